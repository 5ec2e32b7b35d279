"""What a job needs of the working folder: the experiment, the code that it imports, files that these name. No data.

Without ray. What is measured here is what is sent: a copy in a folder of its own. Kept back, each with its reason, is
whatever looks like a key, is listed in .gitignore, leads out of the folder by a link, or is simply not needed.
"""

import ast
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pathspec

from raq.errors import UserError
from raq.experiment.load import load_experiment
from raq.experiment.schema import Experiment
from raq.experiment.yaml_text import read_yaml_text, read_yaml_value
from raq.model.library_models import transformers_files
from raq.model.user_code import is_own, sources_of
from raq.submit.keys import holds_a_key, named_as_a_key

MAX_BYTES = 100 * 1024 * 1024
"""Ray keeps packages in the head's memory, and takes no larger ones."""
NOT_LOOKED_INTO = ("__pycache__", "node_modules", "results")
LARGEST_NAMED = 3
MAX_IGNORE_BYTES = 1_000_000
MAX_LISTED = 20  # files of one folder that are listed one by one
OWN_CODE = Path("raq", "submit", "working_dir.py")


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
    if path.is_symlink() and not _resolved(path).is_relative_to(root):
        raise UserError(f"{path}: a link that leads out of the working folder", "submit the file itself")
    inside = _resolved(path).is_relative_to(root)
    if not inside and _needs_more(experiment, root):
        raise UserError(
            f"{path} lies outside the working folder {root}, whose code its job needs",
            "submit it from the folder that holds both",
        )
    name = _inside(path, root) if inside else path.name
    ignored = _Ignored(root)
    chosen = {name: path, **(_needed(experiment, root, include, ignored) if inside else {})}
    for file, source in chosen.items():
        _refuse_key_or_link(file, source, root if file != name else path.parent.resolve(), root)
    left_out = list(_left_out(root, root, set(chosen), ignored)) if inside else []
    sizes = {file: source.stat().st_size for file, source in chosen.items()}
    _refuse_too_much(sizes)
    for file, source in chosen.items():
        copy = target / file
        assert copy.resolve().is_relative_to(target.resolve()), file
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
    return Package(target, name, experiment.name, sorted(chosen), sum(sizes.values()), left_out)


def _functions(experiment: Experiment) -> list[str]:
    """The experiment's own functions, module:function."""
    named = (experiment.model.name, experiment.data.name, experiment.metric.function, experiment.loss or "")
    return [name for name in named if is_own(name)]


def _needs_more(experiment: Experiment, root: Path) -> bool:
    weights = experiment.model.weights
    here = weights is not None and Path(weights).is_relative_to(root)
    return bool(_functions(experiment)) or here or bool(_model_files(experiment, root)) or (root / OWN_CODE).is_file()


def _model_files(experiment: Experiment, root: Path) -> list[Path]:
    """The files of a model of transformers that lies in the working folder."""
    library, _, place = experiment.model.name.partition(":")
    inside = library == "transformers" and Path(place).is_relative_to(root)
    return transformers_files(place) if inside else []


def _needed(experiment: Experiment, root: Path, include: Sequence[Path], ignored: "_Ignored") -> dict[str, Path]:
    """By name in `root`, the files that the experiment needs beside itself."""
    found: dict[str, Path] = {}
    for function in _functions(experiment):
        for file in sources_of(function, str(root)).files:
            if Path(file).is_absolute():
                raise UserError(
                    f"{function} imports {file}, which lies outside the working folder {root}",
                    "install it on the cluster's nodes as a package, or submit from a folder that holds both",
                )
            found[file] = root / file
            found |= _links_to(root / file, root)
            found |= _named_in(root / file, root, ignored)
    wanted = {name for given in include for name in _included(given, root, ignored)}
    for name in found:
        if name not in wanted and ignored.why(root / name):
            raise UserError(
                f"{name} is needed by the experiment's code, and .gitignore lists it", f"send it with --include {name}"
            )
    weights = experiment.model.weights
    if weights is not None and Path(weights).is_relative_to(root):
        if not Path(weights).is_file():
            raise UserError(f"model.weights: there is no file {weights}", "give the path of a state dict")
        found[_inside(Path(weights), root)] = Path(weights)
    found |= {_inside(file, root): file for file in _model_files(experiment, root)}
    if (root / OWN_CODE).is_file():  # a checkout of raq: the job runs this code
        own = (file for file in sorted((root / "raq").rglob("*")) if file.is_file() and "__pycache__" not in file.parts)
        found |= {str(file.relative_to(root)): file for file in own}
    for given in include:
        found |= _included(given, root, ignored)
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
                    if file.is_file() and _resolved(file).is_relative_to(root) and not ignored.why(file):
                        found[_inside(file, root)] = file
    return found


def _included(given: Path, root: Path, ignored: "_Ignored") -> dict[str, Path]:
    """The files of a path that the user wants sent, one that .gitignore lists if it is named itself.

    Raises UserError if there are none in `root`.
    """
    place = Path(os.path.normpath(root / given))
    files = [place] if place.is_file() else []
    if place.is_dir():
        files = [
            f for f in sorted(place.rglob("*")) if f.is_file() and not ignored.why(f) and "__pycache__" not in f.parts
        ]
    if not files or not place.is_relative_to(root):
        raise UserError(f"--include {given}: no files of the working folder {root}", "give a path below it")
    return {_inside(file, root): file for file in files}


def _links_to(file: Path, root: Path) -> dict[str, Path]:
    """Links of the same folder that lead to a file: an import may go by their name."""
    links = [entry for entry in file.parent.iterdir() if entry.is_symlink() and _resolved(entry) == file.resolve()]
    return {_inside(link, root): link for link in links}


def _inside(file: Path, root: Path) -> str:
    """A file's name in `root`, links kept; UserError if it lies outside."""
    place = Path(os.path.normpath(file.absolute()))
    if not place.is_relative_to(root):
        place = place.resolve()
    if not place.is_relative_to(root):
        raise UserError(f"{file} lies outside the working folder {root}", "submit from a folder that holds both")
    return str(place.relative_to(root))


def _resolved(path: Path) -> Path:
    """Where a path leads; a link that leads to itself leads nowhere."""
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return Path(os.devnull)


def _refuse_key_or_link(name: str, file: Path, allowed: Path, root: Path) -> None:
    """UserError for a file that is needed and must not be sent, by its own name or by that of the file it leads to."""
    target = _resolved(file)
    why = None if target.is_relative_to(allowed) else "a link that leads out of the folder"
    why = why or ("no plain file" if not target.is_file() else None) or named_as_a_key(name)
    if why is None and target.is_relative_to(root):
        why = named_as_a_key(str(target.relative_to(root)))
    if why or holds_a_key(target):
        raise UserError(
            f"{name} is needed by the experiment, and is not sent: {why or 'a key stands in it'}",
            "keep keys out of the code's files, and put files where the cluster's nodes can read them",
        )


class _Ignored:
    """What the .gitignore files of a folder, of those below it, and of those above it in its repository list."""

    def __init__(self, root: Path) -> None:
        above = [root, *root.parents]
        self.root = next((folder for folder in above if (folder / ".git").exists()), root)
        self.specs: dict[Path, pathspec.GitIgnoreSpec] = {}

    def why(self, file: Path) -> str | None:
        """Why git ignores a file or folder, or what a link leads to; None if it does not."""
        places = {Path(os.path.normpath(file.absolute())), _resolved(file)}
        return next(filter(None, (self._why(place) for place in places if place.is_relative_to(self.root))), None)

    def _why(self, file: Path) -> str | None:
        parts = file.relative_to(self.root).parts
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
            listed = folder / ".gitignore"
            with suppress(OSError):
                if listed.is_file() and listed.stat().st_size <= MAX_IGNORE_BYTES:
                    lines = listed.read_text(errors="replace").splitlines()
            self.specs[folder] = pathspec.GitIgnoreSpec.from_lines(lines)
        return self.specs[folder]


def _left_out(folder: Path, root: Path, chosen: set[str], ignored: _Ignored) -> Iterator[tuple[str, str]]:
    """What of the folder is kept back, and why: what must not be sent by name, the rest by folder where it is much."""
    plain: list[str] = []
    for entry in sorted(folder.iterdir()):
        name = str(entry.relative_to(root))
        if name in chosen:
            continue
        why = None if _resolved(entry).is_relative_to(root) else "a link that leads out of the folder"
        why = why or ignored.why(entry)
        if why is None and entry.is_dir():
            if entry.is_symlink() or entry.name.startswith(".") or entry.name in NOT_LOOKED_INTO:
                yield f"{name}/", "hidden, a cache, results, or a link"
            elif (entry / "pyvenv.cfg").is_file():
                yield f"{name}/", "a virtual environment"
            else:
                yield from _left_out(entry, root, chosen, ignored)
            continue
        why = why or named_as_a_key(name) or (None if entry.is_file() or entry.is_dir() else "no plain file")
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
    if total >= MAX_BYTES:
        largest = sorted(sizes, key=lambda file: -sizes[file])[:LARGEST_NAMED]
        named = ", ".join(f"{file} ({sizes[file] / 1e6:.0f} MB)" for file in largest)
        raise UserError(
            f"there are {total / 1e6:.0f} MB to send, and a job may have {MAX_BYTES / 1e6:.0f}: {named}",
            "put large files where the cluster's nodes can read them, and give their absolute paths",
        )


def _refuse_relative_data(path: Path, overrides: Sequence[str]) -> None:
    """UserError for a folder of data that is named relative to the experiment or to where one stands."""
    tree, _ = read_yaml_text(path)
    data = tree.get("data") if isinstance(tree, dict) else None
    given = str((data or {}).get("root") or "") if isinstance(data, dict) else ""
    for override in overrides:
        key, _, text = override.partition("=")
        value = read_yaml_value(text, f"--set {key}")
        if key.strip() == "data.root":
            given = str(value or "")
        elif key.strip() == "data" and isinstance(value, dict):
            given = str(value.get("root") or "")
    if given and not given.startswith(("/", "~")):
        raise UserError(
            f"data.root is {given}, and data is not sent with a job",
            "give the absolute path that it has on the cluster's nodes: --set data.root=/PATH",
        )
