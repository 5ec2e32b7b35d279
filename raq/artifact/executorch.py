"""What is deployed to phones: an ExecuTorch program (.pte) whose layers XNNPACK computes. Made, read and run here.

Needs the extra `executorch`. A .pte is data for ExecuTorch's runtime: a plan of instructions that call operators and
delegates. A delegate of XNNPACK is a graph of its own, in which every value has its type: what it computes in int8 is
read there. Formats: executorch's schema/program.fbs and backends/xnnpack/serialization/schema.fbs (1.5).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from raq.artifact.generated_code import MAX_METADATA_BYTES, GeneratedCode
from raq.artifact.metadata import METADATA_KEY, Metadata
from raq.artifact.xnnpack import ProgramReader
from raq.errors import StageError, first_line
from raq.lazy import require_executorch
from raq.model.inputs import example_of
from raq.quantize.export import export_program
from raq.store.files import refuse_constant

MAGIC, MAGIC_AT = b"ET", 4


def is_pte(path: Path) -> bool:
    """Whether a file says of itself that it is an ExecuTorch program."""
    try:
        with path.open("rb") as file:
            return file.read(MAGIC_AT + len(MAGIC))[MAGIC_AT:] == MAGIC
    except OSError:
        return False


def lower(
    program: ExportedProgram,
    path: Path,
    metadata: dict[str, Any],
    device: str = "cpu",
    max_batch: int | None = None,
    min_batch: int = 1,
) -> None:
    """Lower a quantized program to XNNPACK, for batches of 1 to `max_batch` (memory is planned for the largest).

    `metadata` (plain values; `inputs` describes what it is called with) travels as the constant method "raq", with
    torch's and ExecuTorch's versions. Raises StageError if it cannot be lowered.
    """
    assert device == "cpu", "XNNPACK has no other"
    assert max_batch is not None, "memory is planned for the largest batch"
    require_executorch()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from raq.environment import versions

    written = {**metadata, "max_batch": max_batch, **versions(("torch", "executorch"))}
    # the example has the largest size: torch's convolution asks whether a batch is below 16, and what is asked of a
    # smaller example would bound the memory that is planned
    bounded = export_program(
        program.module(),
        example_of(Metadata({METADATA_KEY: metadata}).inputs or (), max(2, max_batch)),
        max_batch,
    )
    try:
        edge = to_edge_transform_and_lower(
            bounded,
            partitioner=[XnnpackPartitioner()],
            constant_methods={METADATA_KEY: json.dumps(written, sort_keys=True)},
        )
        content = edge.to_executorch().buffer
    except Exception as error:
        first = first_line(error)
        raise StageError(f"ExecuTorch cannot lower the program: {first}", "--debug shows all of it") from error
    path.write_bytes(content)


def load(path: Path, threads: int) -> Callable[..., Tensor]:
    """The program as a function of the network's inputs [n, ...], on `threads` threads of this process.

    Raises StageError if it is damaged, or if the thread pool has another size.
    """
    require_executorch()
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)
    if portable_lib._threadpool_get_thread_count() != threads:
        raise StageError(
            f"ExecuTorch runs {portable_lib._threadpool_get_thread_count()} threads, not {threads}",
            "set bench.threads, or resources of that stage, to as many CPUs as it has",
        )
    try:
        method = Runtime.get().load_program(path).load_method("forward")
    except Exception as error:
        raise StageError(f"{path}: the artifact cannot be loaded: {error}", "run again to make it anew") from error

    def network(*inputs: Tensor) -> Tensor:
        output: Tensor = method.execute([value.contiguous() for value in inputs])[0]
        return output

    return network


def read(path: Path) -> GeneratedCode:
    """Read a program; nothing of it is executed.

    Raises StageError if it is damaged or no such program, UserError if ExecuTorch is not installed.
    """
    require_executorch()
    from executorch.exir._serialize._program import _get_extended_header, deserialize_pte_binary

    try:
        content = path.read_bytes()
        header = _get_extended_header(content)
        if header is None or not header.is_valid():
            raise ValueError("it has no header")
        if header.segment_base_offset + header.segment_data_size > len(content) or header.program_size > len(content):
            raise ValueError("it is shorter than its header says")
        file = deserialize_pte_binary(content)
        plans = {plan.name: plan for plan in file.program.execution_plan}
        metadata = _metadata(plans)
        reader = ProgramReader(file)
        reader.read(plans["forward"])
    except Exception as error:  # a damaged flatbuffer raises many kinds
        first = first_line(error)
        raise StageError(f"{path}: not a readable .pte: {first}", "lower it again") from None
    return GeneratedCode(list(reader.constants.values()), reader.calls, metadata, len(content), len(content))


def read_metadata(path: Path) -> dict[str, Any]:
    """A program's metadata; raises as `read` does."""
    return read(path).metadata


def _metadata(plans: dict[str, Any]) -> dict[str, Any]:
    """What `lower` wrote, in the form that a package's metadata has."""
    plan = plans.get(METADATA_KEY)
    if plan is None:
        return {}
    text = plan.values[plan.outputs[0]].val.string_val
    if len(text) > MAX_METADATA_BYTES:
        raise ValueError("its metadata is too large")
    written = json.loads(text, parse_constant=refuse_constant)
    if not isinstance(written, dict):
        raise ValueError("its metadata is no mapping")
    return {METADATA_KEY: written}
