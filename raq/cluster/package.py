"""What of a working folder a job needs on a cluster: the experiment, the user's code and weights; no data, no results.

Without ray. What is measured here is what is sent: a copy in a folder of its own.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from raq.errors import UserError
from raq.experiment import Experiment
from raq.experiment_file import load_experiment
from raq.yaml_text import read_yaml_text

MOST_BYTES = 100 * 1024 * 1024
"""Ray keeps packages in the head's memory, and takes no larger ones."""
NOT_SENT = ("__pycache__", "node_modules", "results")
LARGEST_NAMED = 3


@dataclass(frozen=True)
class Package:
    """A folder to send, where the experiment lies in it, and how much it is."""

    folder: Path
    experiment: str
    name: str
    files: int
    size_bytes: int


def pack(path: Path, overrides: Sequence[str], root: Path, target: Path) -> Package:
    """Copy what a job needs of `root`, the working folder, to `target`, an empty folder.

    Code is sent if the experiment names some (module:function) or weights in `root`, or if `root` is a checkout of raq;
    else the experiment alone. Raises UserError if the experiment is wrong, lies outside `root` though code is needed,
    names data by a relative path, or if all is larger than Ray takes.
    """
    experiment = load_experiment(path, overrides)
    _refuse_relative_data(path, overrides)
    root, path = root.resolve(), path.resolve()
    if not _needs_tree(experiment, root):
        shutil.copy(path, target / path.name)
        return Package(target, path.name, experiment.name, 1, path.stat().st_size)
    if not path.is_relative_to(root):
        raise UserError(
            f"{path} lies outside the working folder {root}, whose code its job needs",
            "submit it from the folder that holds both",
        )
    files = list(_files(root, Path(experiment.data.root) if experiment.data.root else None))
    sizes = {file: file.stat().st_size for file in files}
    total = sum(sizes.values())
    if total >= MOST_BYTES:
        largest = sorted(files, key=lambda file: -sizes[file])[:LARGEST_NAMED]
        named = ", ".join(f"{file.relative_to(root)} ({sizes[file] / 1e6:.0f} MB)" for file in largest)
        raise UserError(
            f"the working folder has {total / 1e6:.0f} MB to send, and a job may have {MOST_BYTES / 1e6:.0f}: {named}",
            "put large files where the cluster's nodes can read them, and give their absolute paths",
        )
    for file in files:
        copy = target / file.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    return Package(target, str(path.relative_to(root)), experiment.name, len(files), total)


def _needs_tree(experiment: Experiment, root: Path) -> bool:
    named = [name for name in (experiment.data.name, experiment.model.name) if not name.startswith("torchvision:")]
    weights = experiment.model.weights
    own_code = any(":" in name for name in named)
    weights_here = weights is not None and Path(weights).is_relative_to(root)
    return own_code or weights_here or (root / "raq" / "cluster" / "package.py").is_file()


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


def _files(root: Path, data: Path | None) -> Iterator[Path]:
    """The files to send: nothing hidden, no caches, no virtual environments, no results, no data."""
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(".") or entry.name in NOT_SENT or entry.suffix == ".pyc":
            continue
        if entry.is_dir():
            if not (entry.is_symlink() or (entry / "pyvenv.cfg").is_file() or entry == data):
                yield from _files(entry, data)
        elif entry.is_file():
            yield entry
