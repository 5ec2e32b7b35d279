"""A kind of stage and a runtime that nobody needs: what one entry in each table makes of them."""

import json
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from raq.artifact.generated_code import GeneratedCode
from raq.stages.call import Call, Progress, Results


def count_stage(call: Call, progress: Progress) -> Results:
    """Counts the weights that the stage before has left."""
    weights = torch.load(Path(call.inputs["weights"]) / "weights.pt", weights_only=True)
    (Path(call.folder) / "names.txt").write_text("\n".join(weights))
    return {"tensors": len(weights), "asked": call.settings["question"]}


def count_in_words(results: Results) -> str:
    return f"{results['tensors']} tensors"


def lower(
    program: ExportedProgram, path: Path, metadata: dict[str, Any], device: str, most: int | None, least: int
) -> None:
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files={"raq": json.dumps(metadata)})


def load(path: Path, threads: int) -> Any:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def read(path: Path) -> GeneratedCode:
    return GeneratedCode([], [], read_metadata(path), 0, path.stat().st_size)


def read_metadata(path: Path) -> dict[str, Any]:
    extra = {"raq": ""}
    with path.open("rb") as file:
        torch.export.load(file, extra_files=extra)
    return {"raq": json.loads(extra["raq"])}


def recognises(path: Path) -> bool:
    return path.suffix == ".saved" or path.name == "artifact.saved"
