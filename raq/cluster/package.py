"""What a job needs of the working folder: the experiment, the code that it imports, files that these name. No data.

Without ray. What is measured here is what is sent: a copy in a folder of its own. Kept back, each with its reason, is
whatever looks like a key, is listed in .gitignore, leads out of the folder by a link, or is simply not needed.
"""

import ast
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pathspec

from raq.errors import UserError
from raq.experiment import Experiment
from raq.experiment_file import load_experiment
from raq.model.user_code import sources_of
from raq.yaml_text import read_yaml_text

MOST_BYTES = 100 * 1024 * 1024
"""Ray keeps packages in the head's memory, and takes no larger ones."""
NOT_LOOKED_INTO = ("__pycache__", "node_modules", "results")
LARGEST_NAMED = 3
MAX_LISTED = 20  # files of one folder that are told one by one
OWN_CODE = Path("raq", "cluster", "package.py")
KEY_NAMES = re.compile(
    r"^id_(rsa|dsa|ecdsa|ed25519)|\.(pem|key|p12|pfx|jks|keystore|kdbx|ppk|asc|gpg)$"
    r"|^\.?(netrc|npmrc|pypirc|pgpass|htpasswd)$"
    r"|(^|[._-])(tokens?|secrets?|passwords?|passwd|credentials?|api_?keys?|private_?keys?)([._-]|$)|^aws\.|^\.env",
    re.IGNORECASE,
)
KEY_FOLDERS = re.compile(r"^(secrets?|credentials?|private|\.ssh|\.aws|\.gnupg)$", re.IGNORECASE)
KEY_CONTENTS = re.compile(
    rb"-----BEGIN [A-Z ]*PRIVATE KEY|\bAKIA[0-9A-Z]{16}\b|aws_secret_access_key\s*[=:]|\bgh[pousr]_[A-Za-z0-9]{36}"
    rb"|\bgithub_pat_[A-Za-z0-9_]{30}|\bhf_[A-Za-z0-9]{30}|\bxox[abprs]-[A-Za-z0-9-]{10}|\bAIza[0-9A-Za-z_-]{35}"
    rb"|\bsk-[A-Za-z0-9_-]{20}|\bglpat-[A-Za-z0-9_-]{20}|\bya29\.[A-Za-z0-9_-]{20}"
    rb"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\."
)
CONTENT_LOOKED_AT = 4_000_000  # bytes of a file


@dataclass(frozen=True)
class Package:
    """A folder to send, where the experiment lies in it, what it holds, and what was kept back: (file, why)."""

    folder: Path
    experiment: str
    name: str
    sent: list[str]
    size_bytes: int
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @property
    def files(self) -> int:
        """How many files it holds."""
        return len(self.sent)


def pack(path: Path, overrides: Sequence[str], root: Path, target: Path, include: Sequence[Path] = ()) -> Package:
    """Copy what a job needs of `root`, the working folder, to `target`, an empty folder.

    Needed are the experiment, the files that its own code imports (module:function of the model and of the data) and
    those that this code names by a path, weights in `root`, raq itself if `root` is a checkout of it, and `include`:
    files or folders that the code reads otherwise. Raises UserError if the experiment is wrong or its code cannot be
    imported, if one of them lies outside `root`, looks like a key or leads out of `root` by a link, if data is named by
    a relative path, or if all is larger than Ray takes.
    """
    experiment = load_experiment(path, overrides)
    _refuse_relative_data(path, overrides)
    root, path = root.resolve(), path.absolute()
    if path.parent.resolve() != root and not path.resolve().is_relative_to(root) and _needs_more(experiment, root):
        raise UserError(
            f"{path} lies outside the working folder {root}, whose code its job needs",
            "submit it from the folder that holds both",
        )
    inside = path.resolve().is_relative_to(root)
    name = str(path.resolve().relative_to(root)) if inside else path.name
    ignored = _Ignored(root)
    needed = _needed(experiment, root, include, ignored) if inside else {}
    chosen = {name: path, **needed}
    for file, source in chosen.items():
        _refuse_key_or_link(file, source, root if file != name else path.resolve().parent)
    left_out = list(_left_out(root, root, set(chosen), ignored)) if inside else []
    sizes = {file: source.stat().st_size for file, source in chosen.items()}
    _refuse_too_much(sizes)
    for file, source in chosen.items():
        copy = target / file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return Package(target, name, experiment.name, sorted(chosen), sum(sizes.values()), left_out)


def _functions(experiment: Experiment) -> list[str]:
    """The experiment's own functions, module:function."""
    named = (experiment.model.name, experiment.data.name)
    return [name for name in named if ":" in name and not name.startswith("torchvision:")]


def _needs_more(experiment: Experiment, root: Path) -> bool:
    weights = experiment.model.weights
    here = weights is not None and Path(weights).is_relative_to(root)
    return bool(_functions(experiment)) or here or (root / OWN_CODE).is_file()


def _needed(experiment: Experiment, root: Path, include: Sequence[Path], ignored: "_Ignored") -> dict[str, Path]:
    """By name in `root`, the files that the experiment needs beside itself."""
    found: dict[str, Path] = {}
    for function in _functions(experiment):
        for file in sources_of(function, str(root))["files"]:
            if Path(file).is_absolute():
                raise UserError(
                    f"{function} imports {file}, which lies outside the working folder {root}",
                    "install it on the cluster's nodes as a package, or submit from a folder that holds both",
                )
            found[file] = root / file
            found |= _named_in(root / file, root, ignored)
    wanted = {name for given in include for name in _included(given, root)}
    for name in found:
        if name not in wanted and ignored.why(root / name):
            raise UserError(
                f"{name} is needed by the experiment's code, and .gitignore lists it", f"send it with --include {name}"
            )
    weights = experiment.model.weights
    if weights is not None and Path(weights).is_relative_to(root):
        found[str(Path(weights).relative_to(root))] = Path(weights)
    if (root / OWN_CODE).is_file():  # a checkout of raq: the job runs this code
        found |= {str(file.relative_to(root)): file for file in sorted((root / "raq").rglob("*.py"))}
    for given in include:
        found |= _included(given, root)
    return found


def _named_in(source: Path, root: Path, ignored: "_Ignored") -> dict[str, Path]:
    """Files of `root` that a source file names: its strings that are a file's path, seen from `root` or from itself."""
    found: dict[str, Path] = {}
    with suppress(SyntaxError, ValueError, OSError):
        for node in ast.walk(ast.parse(source.read_bytes())):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if not 0 < len(text) < 300 or "\n" in text or "\0" in text:
                continue
            for folder in (root, source.parent):
                file = Path(folder / text)
                with suppress(OSError, ValueError):
                    if file.is_file() and file.resolve().is_relative_to(root) and not ignored.why(file):
                        found[str(file.absolute().relative_to(root))] = file
    return found


def _included(given: Path, root: Path) -> dict[str, Path]:
    """The files of a path that the user wants sent; UserError if there are none in `root`."""
    place = (root / given).absolute()
    files = [place] if place.is_file() else sorted(f for f in place.rglob("*") if f.is_file()) if place.is_dir() else []
    if not files or not place.is_relative_to(root):
        raise UserError(f"--include {given}: no files of the working folder {root}", "give a path below it")
    return {str(file.relative_to(root)): file for file in files if "__pycache__" not in file.parts}


def _refuse_key_or_link(name: str, file: Path, root: Path) -> None:
    """UserError for a file that is needed and must not be sent."""
    why = _looks_like_a_key(name, file) or _leads_out(file, root)
    if why is not None:
        raise UserError(
            f"{name} is needed by the experiment, and is not sent: {why}",
            "keep keys out of the code's files, and put files where the cluster's nodes can read them",
        )


def _leads_out(file: Path, root: Path) -> str | None:
    return None if file.resolve().is_relative_to(root) else "a link that leads out of the folder"


def _looks_like_a_key(name: str, file: Path) -> str | None:
    """Why a file looks like a key; None if it does not. Names of Python files say nothing, their contents do."""
    path = Path(name)
    if any(KEY_FOLDERS.match(part) for part in path.parts[:-1]):
        return "its folder is one for keys"
    if path.suffix != ".py" and KEY_NAMES.search(path.name):
        return "its name is that of a key"
    with suppress(OSError), file.open("rb") as content:
        if KEY_CONTENTS.search(content.read(CONTENT_LOOKED_AT)):
            return "a key stands in it"
    return None


class _Ignored:
    """What the .gitignore files of a folder and of those below it list."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.specs: dict[Path, pathspec.GitIgnoreSpec] = {}

    def why(self, file: Path) -> str | None:
        """Why git ignores a file or folder of `root`; None if it does not."""
        parts = file.absolute().relative_to(self.root).parts
        for depth in range(len(parts)):
            folder = self.root.joinpath(*parts[:depth])
            for end in range(depth + 1, len(parts) + 1):
                inner = "/".join(parts[depth:end]) + ("/" if end < len(parts) or file.is_dir() else "")
                if self._spec(folder).match_file(inner):
                    return ".gitignore lists it"
        return None

    def _spec(self, folder: Path) -> pathspec.GitIgnoreSpec:
        if folder not in self.specs:
            lines: list[str] = []
            with suppress(OSError):
                lines = (folder / ".gitignore").read_text(errors="replace").splitlines()
            self.specs[folder] = pathspec.GitIgnoreSpec.from_lines(lines)
        return self.specs[folder]


def _left_out(folder: Path, root: Path, chosen: set[str], ignored: _Ignored) -> Iterator[tuple[str, str]]:
    """What of the folder is kept back, and why: what must not be sent by name, the rest by folder where it is much."""
    plain: list[str] = []
    for entry in sorted(folder.iterdir()):
        name = str(entry.relative_to(root))
        if name in chosen:
            continue
        why = _leads_out(entry, root) or ignored.why(entry)
        if why is None and entry.is_dir():
            if entry.is_symlink() or entry.name.startswith(".") or entry.name in NOT_LOOKED_INTO:
                yield f"{name}/", "hidden, a cache, results, or a link"
            elif (entry / "pyvenv.cfg").is_file():
                yield f"{name}/", "a virtual environment"
            else:
                yield from _left_out(entry, root, chosen, ignored)
            continue
        why = why or _looks_like_a_key(name, entry)
        if why is not None:
            yield name + ("/" if entry.is_dir() else ""), why
        else:
            plain.append(name)
    if len(plain) > MAX_LISTED:
        yield f"{folder.relative_to(root)}/*", f"{len(plain)} files that the experiment neither imports nor names"
    else:
        yield from ((name, "the experiment neither imports nor names it") for name in plain)


def _refuse_too_much(sizes: dict[str, int]) -> None:
    total = sum(sizes.values())
    if total >= MOST_BYTES:
        largest = sorted(sizes, key=lambda file: -sizes[file])[:LARGEST_NAMED]
        named = ", ".join(f"{file} ({sizes[file] / 1e6:.0f} MB)" for file in largest)
        raise UserError(
            f"there are {total / 1e6:.0f} MB to send, and a job may have {MOST_BYTES / 1e6:.0f}: {named}",
            "put large files where the cluster's nodes can read them, and give their absolute paths",
        )


def _refuse_relative_data(path: Path, overrides: Sequence[str]) -> None:
    tree, _ = read_yaml_text(path)
    data = tree.get("data") if isinstance(tree, dict) else None
    given = str((data or {}).get("root") or "")
    for override in overrides:
        key, _, value = override.partition("=")
        given = value if key.strip() == "data.root" else given
    if given and given not in ("null", "~") and not given.startswith(("/", "~")):
        raise UserError(
            f"data.root is {given}, and data is not sent with a job",
            "give the absolute path that it has on the cluster's nodes: --set data.root=/PATH",
        )
