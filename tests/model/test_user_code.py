"""The user's code: whatever it imports counts, and what cannot be imported is said."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import raq
from raq.errors import UserError
from raq.model.reading import changed_read, recording_reads
from raq.model.user_code import import_function, on_path, shadowing, sources_of
from raq.store.settings import Sources


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package with a relative import, a re-export, an import inside a function, a namespace package and a library."""
    files = {
        "my_package/__init__.py": "from .nets import build\n",
        "my_package/nets.py": "import yaml\nfrom .blocks import width\nfrom . import names\n"
        "def build(num_classes):\n    from my_package import late\n    return late.more\n",
        "my_package/blocks.py": "from .deep.down import width\n",
        "my_package/names.py": "",
        "my_package/late.py": "from loose import value\nmore = value\n",
        "my_package/deep/__init__.py": "",
        "my_package/deep/down.py": "width = 1\n",
        "my_package/unused.py": "never = 1\n",
        "loose.py": "value = 1\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_every_file_that_comes_along_is_covered(package: Path) -> None:
    found = sources_of("my_package:build", str(package))
    assert sorted(found.files) == [
        "loose.py", "my_package/__init__.py", "my_package/blocks.py", "my_package/deep/__init__.py",
        "my_package/deep/down.py", "my_package/late.py", "my_package/names.py", "my_package/nets.py",
    ]  # fmt: skip
    assert found.distributions.keys() == {"PyYAML"}


def test_a_file_whose_name_is_not_utf8_is_covered_too(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9"))
    folder.mkdir()
    (folder / "inner.py").write_text("value = 1\n")
    (tmp_path / "m2.py").write_text(f"import os, sys\nsys.path.insert(0, os.fsdecode({os.fsencode(folder)!r}))\n"
                                    "import inner\ndef f(n):\n    return n\n")  # fmt: skip
    assert len(sources_of("m2:f", str(tmp_path)).files) == 2


@pytest.mark.parametrize(
    "name", ["my_package/deep/down.py", "my_package/__init__.py", "loose.py", "my_package/late.py"]
)
def test_a_change_in_any_of_them_is_another_source(package: Path, name: str) -> None:
    before = sources_of("my_package.nets:build", str(package)).files
    (package / name).write_text((package / name).read_text() + "# changed\n")
    after = sources_of("my_package.nets:build", str(package)).files
    assert {file for file in before if before[file] != after[file]} == {name}


def test_an_upgraded_distribution_is_another_source(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = package / "site"
    (site / "third_party").mkdir(parents=True)
    (site / "third_party" / "__init__.py").write_text("")
    reported = site / "third_party-1.0.dist-info"
    reported.mkdir()
    (reported / "RECORD").write_text("third_party/__init__.py,,\n")
    (reported / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
    (package / "net.py").write_text("import third_party\ndef build(num_classes): ...\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    assert sources_of("net:build", str(package)).distributions == {"third-party": "1.0"}
    (reported / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.1\n")
    assert sources_of("net:build", str(package)).distributions == {"third-party": "1.1"}


def test_what_it_prints_and_how_it_fails(package: Path) -> None:
    (package / "loud.py").write_text("print('hello')\ndef build(num_classes): ...\n")
    assert list(sources_of("loud:build", str(package)).files) == ["loud.py"]
    (package / "bad.py").write_text("raise SystemExit('was run')\n")
    for name, message in (
        ("bad:build", "SystemExit: was run"), ("loud:missing", "AttributeError"), ("no_such:f", "No module named"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=f"{name}: cannot be imported: .*{message}"):
            sources_of(name, str(package))
    (package / "ended.py").write_text("import os\nos._exit(3)\n")
    with pytest.raises(UserError, match="its process ended with 3"):
        sources_of("ended:build", str(package))


def test_a_module_that_hides_a_library_is_named(package: Path) -> None:
    (package / "colorsys.py").write_text("")
    (package / "net.py").write_text("from colorsys import rgb_to_hsv\ndef build(num_classes): ...\n")
    assert shadowing(package) == ["colorsys.py"]
    with pytest.raises(UserError) as caught:
        sources_of("net:build", str(package))
    assert "colorsys.py" in caught.value.hint
    with pytest.raises(UserError, match="cannot be imported"):
        import_function("no_such_module_here:build", str(package))


def test_raq_itself_does_not_import_from_the_working_folder(package: Path) -> None:
    """`python -m raq`, as a submitted job runs, has the working folder on the path."""
    for name in ("statistics", "json", "yaml", "numpy"):
        (package / f"{name}.py").write_text("raise RuntimeError('the wrong module')\n")
    (package / "x.yaml").write_text("name: x\ntrain: {lr: no}\n")
    done = subprocess.run(
        [sys.executable, "-m", "raq", "plan", "x.yaml"], cwd=package, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "train.lr" in done.stderr


DYNAMIC = """
import importlib, json, pathlib, runpy
HERE = pathlib.Path(__file__).parent
def build(num_classes):
    importlib.import_module("hidden_module")
    runpy.run_path(str(HERE / "ran.py"))
    exec(compile((HERE / "executed.txt").read_text(), "executed.txt", "exec"))
    with open("config.json") as file:
        json.load(file)
    with open("log.txt", "w") as file:
        file.write("written, not read")
"""


def test_what_is_read_only_when_it_runs_is_seen_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By importlib, runpy and exec, and files that are opened; not what is written, nor what is covered otherwise."""
    files = {"dynamic.py": DYNAMIC, "hidden_module.py": "", "ran.py": "", "executed.txt": "x = 1", "config.json": "{}",
             "data/images.bin": "x", ".hidden": "x"}  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    planned = {"dynamic:build": sources_of("dynamic:build", str(tmp_path))}
    assert list(planned["dynamic:build"].files) == ["dynamic.py"]
    with recording_reads(planned, str(tmp_path), (tmp_path / "data",)) as read:
        build = import_function("dynamic:build", str(tmp_path))
        with on_path(str(tmp_path)):
            build(10)
        (tmp_path / "data" / "images.bin").read_text()
        (tmp_path / ".hidden").read_text()
    own = {name for name in read if not name.startswith("/")}
    assert own == {"config.json", "executed.txt", "hidden_module.py", "ran.py"}
    assert changed_read(read, tmp_path) is None
    (tmp_path / "config.json").write_text("[]")
    assert changed_read(read, tmp_path) == "config.json"
    for name in ("dynamic", "hidden_module"):
        sys.modules.pop(name, None)


def test_what_others_read_is_not_the_users(tmp_path: Path) -> None:
    """Compilers read the source of torch, of raq and of Python itself; a file elsewhere is the user's."""
    elsewhere = tmp_path / "elsewhere" / "helper.py"
    elsewhere.parent.mkdir()
    elsewhere.write_text("")
    folder = tmp_path / "work"
    folder.mkdir()
    others = [contextlib.__file__, pytest.__file__, raq.__file__]
    with recording_reads({"net:build": Sources(files={}, distributions={})}, str(folder), ()) as read:
        for file in (*others, elsewhere):
            Path(file).read_text()
    assert str(elsewhere) in read
    assert not {*others} & {*read}


def test_code_that_changes_between_plan_and_stage_is_refused(package: Path) -> None:
    planned = {"my_package:build": sources_of("my_package:build", str(package))}
    said = r"loose\.py, which my_package:build imports, has changed since the plan"
    with pytest.raises(UserError, match=said), recording_reads(planned, str(package), ()):
        (package / "loose.py").write_text("value = 2\n")
    with pytest.raises(UserError, match="has changed since the plan"), recording_reads(planned, str(package), ()):
        pass


def test_a_loose_file_among_installed_packages_is_the_users(package: Path) -> None:
    """No distribution's version tells of it."""
    import sysconfig

    loose = Path(sysconfig.get_paths()["purelib"]) / "raq_test_loose_module.py"
    (package / "net.py").write_text("import raq_test_loose_module\ndef build(num_classes): ...\n")
    loose.write_text("x = 1\n")
    try:
        assert str(loose.resolve()) in sources_of("net:build", str(package)).files
    finally:
        loose.unlink()


def test_blocks_that_do_not_run_on_import_are_not_run(package: Path) -> None:
    (package / "launch.py").write_text("import pathlib; pathlib.Path('launched').touch()\n")
    (package / "ends.py").write_text("import os; os._exit(0)\n")
    text = "def build(num_classes):\n    import ends\nif __name__ == '__main__':\n    import launch\n"
    (package / "net.py").write_text(text)
    assert list(sources_of("net:build", str(package)).files) == ["net.py"]
    assert not (package / "launched").exists()


def test_the_folder_comes_first_on_the_path_wherever_else_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, value in (("other", 1), ("own", 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "twice_there.py").write_text(f"def build(num_classes): return {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    assert import_function("twice_there:build", str(tmp_path / "own"))(10) == 2
    sys.modules.pop("twice_there", None)
