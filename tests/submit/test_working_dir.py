"""What is sent with a job: all that it needs, and nothing else; what looks like a key never."""

import os
from pathlib import Path

import pytest
from workplace import Workplace

from raq.errors import UserError
from raq.submit import working_dir as package
from raq.submit.working_dir import Package, pack

NET = "def net(num_classes): ...\n"
PRIVATE_KEY = "-----BEGIN OPENSSH " + "PRIVATE KEY-----\nabc\n"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "sent"
    folder.mkdir()
    return folder


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    write(folder, {"plain.yaml": "name: plain\n", "own.yaml": "name: own\nmodel: {name: 'own:net'}\n", "own.py": NET})
    monkeypatch.chdir(folder)
    return folder


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def sent(target: Path) -> set[str]:
    return {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}


def reasons(found: Package) -> dict[str, str]:
    return dict(found.left_out)


def test_an_experiment_without_code_goes_alone(root: Path, target: Path) -> None:
    found = pack(root / "plain.yaml", [], root, target)
    assert (found.experiment, found.name, found.files) == ("plain.yaml", "plain", 1)
    assert sent(target) == {"plain.yaml"}


def test_what_the_code_imports_and_names_goes_with_it(root: Path, target: Path) -> None:
    write(root, {
        "nets/__init__.py": "from .build import net\n", "nets/build.py": f"from .blocks import width\n{NET}",
        "nets/blocks.py": "width = open('nets/widths.txt').read\n", "nets/widths.txt": "1",
        "nets/other.py": "", "more.py": "",
        "images.py": "from pathlib import Path\nLIST = Path(__file__).with_name('list.txt')\ndef load(): ...\n",
        "list.txt": "a", "sub/weights.pt": "x", "pictures/one.png": "x",
        "sub/e.yaml": "name: e\ndata: {name: 'images:load'}\nmodel: {name: 'nets:net', weights: weights.pt}\n",
    })  # fmt: skip
    found = pack(root / "sub" / "e.yaml", [], root, target)
    assert found.experiment == "sub/e.yaml"
    assert sent(target) == set(found.sent) == {
        "sub/e.yaml", "nets/__init__.py", "nets/build.py", "nets/blocks.py", "nets/widths.txt", "images.py", "list.txt",
        "sub/weights.pt",
    }  # fmt: skip
    assert found.size_bytes == sum((target / name).stat().st_size for name in sent(target))
    assert {"nets/other.py", "more.py", "pictures/one.png", "plain.yaml"} <= set(reasons(found))
    again = target.with_name("again")
    again.mkdir()
    more = pack(root / "sub" / "e.yaml", [], root, again, [Path("pictures"), Path("more.py")])
    assert set(more.sent) - set(found.sent) == {"pictures/one.png", "more.py"}


def test_a_checkout_of_raq_is_sent_with_all_that_lies_in_it(root: Path, target: Path) -> None:
    """Its page has a template, a style and a script of its own."""
    own = {"raq/submit/working_dir.py": "", "raq/page/page.css": "p {}", "raq/page/page.html.j2": "<p>"}
    write(root, {**own, "raq/page/__pycache__/a.pyc": "x"})
    assert set(pack(root / "plain.yaml", [], root, target).sent) == {"plain.yaml", *own}


def test_a_model_of_transformers_in_the_folder_is_sent(root: Path, target: Path) -> None:
    write(root, {"bert/config.json": "{}", "bert/model.safetensors": "x", "bert/readme.md": "x",
                 "e.yaml": "name: e\nmodel: {name: 'transformers:bert', weights: included}\n"})  # fmt: skip
    found = pack(root / "e.yaml", [], root, target)
    assert set(found.sent) == {"e.yaml", "bert/config.json", "bert/model.safetensors"}


KEYS = (
    "id_rsa", "server.pem", "wandb_token.txt", "secrets/aws.txt", ".env", "deploy.key", "aws.json", "wandb_key.txt",
    "kaggle.json", ".s3cfg",
)  # fmt: skip


def test_a_folder_with_keys_links_and_a_gitignore(root: Path, target: Path, tmp_path: Path) -> None:
    write(root, dict.fromkeys(KEYS, "x"))
    write(root, {".gitignore": "*.log\nbuild/\n!keep.log\n", "a.log": "x", "keep.log": "x", "build/x.o": "x",
                 ".git/config": "x", "results/a.json": "x", "env/pyvenv.cfg": "x", "env/lib/big.py": "x",
                 "inner/.gitignore": "/local.txt\n", "inner/local.txt": "x", "inner/deep/local.txt": "x"})  # fmt: skip
    (tmp_path / "outside.txt").write_text("secret")
    (root / "link.txt").symlink_to(tmp_path / "outside.txt")
    (root / "up").symlink_to(tmp_path)
    found = pack(root / "own.yaml", [], root, target)
    assert set(found.sent) == sent(target) == {"own.yaml", "own.py"}
    why = reasons(found)
    assert {why[name] for name in KEYS} == {"its name is that of a key", "its folder is one for keys"}
    assert {why[name] for name in ("link.txt", "up/")} == {"a link that leads out of the folder"}
    assert {why[name] for name in ("a.log", "build/", "inner/local.txt")} == {".gitignore lists it"}
    assert why["keep.log"] == why["inner/deep/local.txt"] == "the experiment neither imports nor names it"
    assert why["env/"] == "a virtual environment"


@pytest.mark.parametrize(
    ("files", "include", "message"),
    [
        ({"own.py": f"KEY = {PRIVATE_KEY!r}\n{NET}"}, [], r"own\.py is needed .* and is not sent: a key stands in it"),
        (
            {"own.py": f"open('my_token.txt')\n{NET}", "my_token.txt": "x"},
            [],
            r"my_token\.txt is needed .* that of a key",
        ),
        ({"notes.txt": f"my key:\n{PRIVATE_KEY}"}, ["notes.txt"], r"notes\.txt is needed .* a key stands in it"),
        ({"hub.cfg": "token = hf_" + "a" * 34}, ["hub.cfg"], r"hub\.cfg is needed .* a key stands in it"),
        ({"a.yaml": "password: hunter22\n"}, ["a.yaml"], r"a\.yaml is needed .* a key stands in it"),
        ({"db.txt": "postgres://me:secret@host/db"}, ["db.txt"], r"db\.txt is needed .* a key stands in it"),
        ({"secrets/a.txt": "x"}, ["secrets"], r"secrets/a\.txt is needed .* its folder is one for keys"),
        ({".gitignore": "own.py"}, [], r"own\.py is needed .* \.gitignore lists it"),
        ({}, ["nothing"], "--include nothing: no files"),
        ({}, ["../sent"], "--include ../sent: no files"),
    ],
)
def test_what_is_needed_and_must_not_be_sent_is_refused(
    root: Path, target: Path, files: dict[str, str], include: list[str], message: str
) -> None:
    write(root, files)
    with pytest.raises(UserError, match=message):
        pack(root / "own.yaml", [], root, target, [Path(name) for name in include])
    assert sent(target) == set()


def test_a_needed_link_that_leads_out_is_refused(root: Path, target: Path, tmp_path: Path) -> None:
    (tmp_path / "blocks.py").write_text("width = 1\n")
    (root / "blocks.py").symlink_to(tmp_path / "blocks.py")
    write(root, {"own.py": f"import blocks\n{NET}"})
    with pytest.raises(UserError, match=r"blocks\.py"):
        pack(root / "own.yaml", [], root, target)
    assert sent(target) == set()


def test_links_and_names_that_hide_something_are_looked_through(root: Path, target: Path) -> None:
    """A link to an ignored or a secret file; a link inside the folder under which code is imported."""
    write(root, {".env": "A=1", ".gitignore": ".env\nlocal.txt\n", "local.txt": "x", "nets_v2.py": NET,
                 "own.py": "open('settings.txt'); open('more.txt'); from nets import net\n"})  # fmt: skip
    (root / "settings.txt").symlink_to(root / ".env")
    (root / "more.txt").symlink_to(root / "local.txt")
    (root / "nets.py").symlink_to(root / "nets_v2.py")
    assert set(pack(root / "own.yaml", [], root, target).sent) == {"own.yaml", "own.py", "nets.py", "nets_v2.py"}


def test_a_gitignore_above_the_folder_counts(root: Path, target: Path) -> None:
    write(root, {".git/config": "", ".gitignore": "local.json\n", "sub/conf/.gitignore": "x.txt\n",
                 "sub/e.yaml": "name: e\nmodel: {name: 'net:net'}\n", "sub/net.py": f"NAME = 'local.json'\n{NET}",
                 "sub/local.json": "x", "sub/conf/x.txt": "x", "sub/conf/y.txt": "y"})  # fmt: skip
    found = pack(root / "sub" / "e.yaml", [], root / "sub", target, [Path("conf")])
    assert set(found.sent) == {"e.yaml", "net.py", "conf/y.txt", "conf/.gitignore"}


def test_harmless_things_in_the_folder_neither_stall_nor_crash(root: Path, target: Path) -> None:
    os.mkfifo(root / "pipe")
    (root / "sub").mkdir()
    os.mkfifo(root / "sub" / ".gitignore")
    (root / "loop").symlink_to(root / "loop")
    (root / "large.bin").write_bytes(b"-eyJaaaaaaaaaaaa" * 200_000)
    found = pack(root / "own.yaml", [], root, target)
    assert set(found.sent) == {"own.yaml", "own.py"}
    assert reasons(found)["pipe"] == "no plain file"
    assert set(pack(root / "own.yaml", [], root, target, [Path("large.bin")]).sent) == {
        "own.yaml",
        "own.py",
        "large.bin",
    }


def test_an_experiment_that_is_a_link_out_of_the_folder_is_refused(root: Path, target: Path, tmp_path: Path) -> None:
    (tmp_path / "out.yaml").write_text("name: out\nmodel: {name: 'own:net'}\n")
    (root / "link.yaml").symlink_to(tmp_path / "out.yaml")
    with pytest.raises(UserError, match="a link that leads out of the working folder"):
        pack(root / "link.yaml", [], root, target)


def test_reading_a_key_from_the_environment_is_no_key(root: Path, target: Path) -> None:
    write(
        root,
        {"own.py": f"import os\nx = dict(aws_secret_access_key=os.environ.get('B'))\npassword = os.getenv('C')\n{NET}"},
    )
    assert set(pack(root / "own.yaml", [], root, target).sent) == {"own.yaml", "own.py"}


def test_ignored_files_go_if_they_are_asked_for(root: Path, target: Path) -> None:
    write(root, {".gitignore": "own.py"})
    assert set(pack(root / "own.yaml", [], root, target, [Path("own.py")]).sent) == {"own.yaml", "own.py"}


def test_what_cannot_be_sent_is_refused(root: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "MAX_BYTES", 3_000_000)
    (root / "large.bin").write_bytes(bytes(4_000_000))
    with pytest.raises(UserError, match=r"4 MB to send, and a job may have 3: large.bin \(4 MB\)"):
        pack(root / "own.yaml", [], root, target, [Path("large.bin")])
    assert sent(target) == set()
    with pytest.raises(UserError, match=r"data\.root is pictures, and data is not sent"):
        pack(root / "plain.yaml", ["data.root=pictures"], root, target)
    with pytest.raises(UserError, match=r"data\.root is pictures"):
        pack(root / "plain.yaml", ["data={name: imagefolder, root: pictures}"], root, target)
    with pytest.raises(UserError, match=r"model\.weights: there is no file"):
        pack(root / "own.yaml", [f"model.weights={root}/none.pt"], root, target)
    inner = root / "inner"
    inner.mkdir()
    with pytest.raises(UserError, match="lies outside the working folder"):
        pack(root / "own.yaml", [], inner, target)
    with pytest.raises(UserError, match="unknown key"):
        pack(root / "own.yaml", ["trian.epochs=1"], root, target)


def test_a_dry_run_prints_the_list_and_asks_no_cluster(workplace: Workplace) -> None:
    write(workplace.folder, {"id_rsa": "x", "notes.txt": "x"})
    done = workplace.raq_here("submit", "tiny.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:2] == ["tiny.yaml", "tiny_user.py"]
    assert "left out: id_rsa: its name is that of a key" in lines
    assert "left out: notes.txt: the experiment neither imports nor names it" in lines


@pytest.mark.parametrize(
    "address", ["http://10.1.2.3:8265", "cluster.example:8265", "http://[2001:db8::1]:8265", "http://[x"]
)
def test_plain_http_to_another_machine_needs_a_flag(workplace: Workplace, address: str) -> None:
    done = workplace.raq_here("submit", "tiny.yaml", "--address", address, "--results", "/shared")
    assert done.returncode == 2
    assert "plain HTTP to another machine" in done.stderr or "no address" in done.stderr


def test_no_proxy_is_used_to_reach_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tunnel ends here: a proxy would be sent the token in the open."""
    from requests.utils import should_bypass_proxies

    from raq.submit.connection import refuse_plain_http

    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert not should_bypass_proxies("http://127.0.0.1:8265", None)
    refuse_plain_http("http://127.0.0.1:8265", insecure=False)
    assert should_bypass_proxies("http://127.0.0.1:8265", None)
