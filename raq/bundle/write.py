"""`raq export`: write the folder. From records alone: neither torch nor ray."""

import hashlib
import json
import shutil
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any, cast

import yaml

from raq.bundle.card import card
from raq.bundle.facts import Exported, find_exported, metadata, needs
from raq.errors import UserError
from raq.experiment.load import as_in_file
from raq.report.terminal import clean
from raq.report.types import RunSummary
from raq.stages.call import EXAMPLES
from raq.store.files import file_digest

SUMS = "SHA256SUMS"


def export(run_folder: Path, output: Path, name: str | None = None) -> Exported:
    """Write a candidate of a run (None: the one that the verdict chose) as a folder to deploy, whole or not at all.

    Raises UserError for a candidate that cannot be exported, and if the folder is there already or cannot be written.
    """
    found = find_exported(run_folder, name)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"--output {output} is there already", "give a new folder, or an empty one")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}", "give another folder") from None
    try:
        _write(found, scratch)
        scratch.chmod(0o755)
        scratch.replace(output)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written: {error.strerror}", "give another folder") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return found


def _write(found: Exported, folder: Path) -> None:
    """Everything, SHA256SUMS last. The file's digest is computed from the copy."""
    runtime, store = found.runtime, found.store
    files = {
        runtime.file_name: store.file(found.lowered, runtime.file_name),
        EXAMPLES: store.file(found.evaluated, EXAMPLES),
    }
    for name, path in files.items():
        shutil.copyfile(path, folder / name)
    if file_digest(folder / runtime.file_name) != found.lowering.get("sha256"):
        raise UserError(f"{files[runtime.file_name]}: not the file of its record", "delete its folder and run again")
    about = metadata(found)
    own = resources.files("raq.bundle")
    for source, name in (("run.py", "run.py"), ("verify.py", "verify.py"), (f"loader_{runtime.name}.py", "loader.py")):
        (folder / name).write_text((own / source).read_text(encoding="utf-8"), encoding="utf-8")
    _write_json(folder / "metadata.json", about)
    (folder / "README.md").write_text(card(found, about), encoding="utf-8")
    wanted = [
        f"{name}  # which version is not known" if version is None else f"{name}=={version}"
        for name, version in needs(found).items()
    ]
    (folder / "requirements.txt").write_text("\n".join(wanted) + "\n", encoding="utf-8")
    settings = clean(as_in_file(found.run["settings"]))
    (folder / "experiment.yaml").write_text(
        yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    (folder / "records").mkdir()
    for name, value in (
        ("summary", _without_places(found.summary)), ("run", found.run), ("lower", found.lowered),
        ("evaluate", found.evaluated),
    ):  # fmt: skip
        _write_json(folder / "records" / f"{name}.json", value)
    _write_sums(folder)


def _without_places(summary: RunSummary) -> RunSummary:
    """The summary with artifacts by their files' names: where they lay is of no use elsewhere."""
    candidates = [
        {**one, "artifacts": [{**file, "path": file["path"].rpartition("/")[2]} for file in one["artifacts"]]}
        for one in summary["candidates"]
    ]
    return cast("RunSummary", {**summary, "candidates": candidates})


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_sums(folder: Path) -> None:
    """SHA256SUMS of all other files, as `sha256sum -c` reads it."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        lines.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")
