"""Every runtime that executes artifacts, in one table: its file, how it is made, loaded, read, and tried alone.

A new runtime is one entry here, its file in this room with the functions named, and its `alone_*.py`. Functions are
named as "module:function": reading the table imports no library.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raq.artifact.metadata import Metadata
from raq.errors import StageError
from raq.lazy import resolve

if TYPE_CHECKING:
    from torch import Tensor

    from raq.artifact.generated_code import GeneratedCode


@dataclass(frozen=True)
class Runtime:
    """One runtime.

    file_name: of an artifact in its stage's folder. backends: those whose quantized programs it executes; it executes
    FP32 programs beside them. devices: where. libraries: distributions that it needs beside torch; made_by: those that
    its artifacts are made with; deployed_with: all that an exported one needs, beside NumPy.

    lower: (program, path, metadata, device, max_batch, min_batch) -> None, writes the artifact. load: (path, threads)
    -> a function of the network's inputs [n, ...] to its output [n, ...]. read: path -> GeneratedCode, executes
    nothing. read_metadata: path -> the artifact's metadata, by itself. recognises: path -> whether a file is one of
    its own. name_scales: (code, program) -> code, its scales called as in the program, if `read` does not know them.
    prepare: () -> None, imports its libraries; UserError if they are not installed. refuse: path -> None, StageError if
    this installation cannot execute the file. alone: the module that loads an artifact in a process without raq.

    use: the line of Python that loads a file without raq, with {path} and {threads} to fill in; use_on_gpu: what
    comes before it there.

    has_7_bits: whether activations may have 7 bits (reduce_range).

    is_native: artifacts are code for this kind of CPU. has_half: it executes networks of 16 bits. has_max_batch: they
    take batches up to a size that is fixed when they are made. is_tuned: kernels are chosen then for the batch sizes
    that are measured. packs_weights: when they are made, weights get the layout that the smallest measured batch size
    wants. reports: who says what is executed: oneDNN (on a CPU), the runtime itself, or nobody.
    """

    name: str
    file_name: str
    backends: tuple[str, ...]
    devices: tuple[str, ...]
    lower: str
    load: str
    read: str
    read_metadata: str
    recognises: str
    alone: str
    use: str = ""
    use_on_gpu: str = ""
    libraries: tuple[str, ...] = ()
    made_by: tuple[str, ...] = ()
    deployed_with: tuple[str, ...] = ()
    name_scales: str | None = None
    prepare: str | None = None
    refuse: str | None = None
    has_7_bits: bool = True
    is_native: bool = False
    has_half: bool = False
    has_max_batch: bool = False
    is_tuned: bool = False
    packs_weights: bool = False
    reports: Literal["onednn", "itself"] | None = None

    def how_to_load(self, path: str, threads: int | None, device: str) -> str:
        """The line of Python that loads a file as it was evaluated; empty if there is none."""
        return ("" if device == "cpu" else self.use_on_gpu) + self.use.format(path=path, threads=threads)


RUNTIMES: dict[str, Runtime] = {
    runtime.name: runtime
    for runtime in (
        Runtime(
            "inductor",
            "artifact.pt2",
            backends=("x86", "arm", "cuda"),
            devices=("cpu", "cuda"),
            lower="raq.artifact.inductor:lower",
            load="raq.artifact.inductor:load",
            read="raq.artifact.generated_code:read_package",
            read_metadata="raq.artifact.generated_code:read_metadata",
            recognises="raq.artifact.generated_code:is_package",
            alone="raq.artifact.alone_inductor",
            use="torch.set_num_threads({threads}); network = torch._inductor.aoti_load_package({path!r})",
            use_on_gpu="torch.backends.cudnn.allow_tf32 = False; ",
            refuse="raq.artifact.inductor:refuse",
            deployed_with=("torch",),
            is_native=True,
            has_half=True,
            packs_weights=True,
            reports="onednn",
        ),
        Runtime(
            "executorch",
            "artifact.pte",
            backends=("xnnpack",),
            devices=("cpu",),
            lower="raq.artifact.executorch:lower",
            load="raq.artifact.executorch:load",
            read="raq.artifact.executorch:read",
            read_metadata="raq.artifact.executorch:read_metadata",
            recognises="raq.artifact.executorch:is_pte",
            alone="raq.artifact.alone_executorch",
            use="portable_lib._unsafe_reset_threadpool({threads}); "
            "network = executorch.runtime.Runtime.get().load_program({path!r}).load_method('forward')",
            libraries=("executorch",),
            deployed_with=("executorch", "torch"),
            name_scales="raq.artifact.scales:name_scales",
            prepare="raq.lazy:require_executorch",
            has_max_batch=True,
        ),
        Runtime(
            "openvino",
            "artifact.onnx",
            backends=("x86",),
            devices=("cpu",),
            lower="raq.artifact.openvino:lower",
            load="raq.artifact.openvino:load",
            read="raq.artifact.onnx:read",
            read_metadata="raq.artifact.onnx:read_metadata",
            recognises="raq.artifact.openvino:recognises",
            alone="raq.artifact.alone_openvino",
            use='network = openvino.Core().compile_model({path!r}, "CPU", {{"INFERENCE_NUM_THREADS": {threads}, '
            '"ENABLE_HYPER_THREADING": True, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}})',
            libraries=("openvino",),
            deployed_with=("openvino",),
            made_by=("onnx", "onnxscript"),
            name_scales="raq.artifact.scales:name_scales",
            prepare="raq.artifact.openvino:prepare",
            has_7_bits=False,
            reports="itself",
        ),
        Runtime(
            "onnxruntime",
            "artifact.onnx",
            backends=("x86",),
            devices=("cpu",),
            lower="raq.artifact.onnxruntime:lower",
            load="raq.artifact.onnxruntime:load",
            read="raq.artifact.onnx:read",
            read_metadata="raq.artifact.onnx:read_metadata",
            recognises="raq.artifact.onnxruntime:recognises",
            alone="raq.artifact.alone_onnxruntime",
            use="options = onnxruntime.SessionOptions(); options.intra_op_num_threads = {threads}; "
            "options.inter_op_num_threads = 1; network = onnxruntime.InferenceSession({path!r}, options)",
            libraries=("onnxruntime",),
            deployed_with=("onnxruntime",),
            made_by=("onnx", "onnxscript"),
            name_scales="raq.artifact.scales:name_scales",
            prepare="raq.artifact.onnxruntime:prepare",
            has_7_bits=False,
            reports="itself",
        ),
        Runtime(
            "tensorrt",
            "artifact.trt",
            backends=("cuda",),
            devices=("cuda",),
            lower="raq.artifact.tensorrt:lower",
            load="raq.artifact.tensorrt:load",
            read="raq.artifact.tensorrt:read",
            read_metadata="raq.artifact.tensorrt:read_metadata",
            recognises="raq.artifact.generated_code:holds_engine",
            alone="raq.artifact.alone_tensorrt",
            use="engine = tensorrt.Runtime(tensorrt.Logger()).deserialize_cuda_engine(zipfile.ZipFile({path!r}).read("
            "'model.engine'))  # run by an execution context",
            libraries=("tensorrt",),
            deployed_with=("tensorrt", "torch"),
            made_by=("onnx", "onnxscript"),
            name_scales="raq.artifact.scales:name_scales",
            prepare="raq.artifact.tensorrt:prepare",
            refuse="raq.artifact.tensorrt:refuse",
            has_7_bits=False,
            has_half=True,
            has_max_batch=True,
            is_tuned=True,
            reports="itself",
        ),
    )
}
FP32_RUNTIME = "inductor"


def runtime_of_backend(backend: str | None) -> Runtime:
    """The runtime that usually executes what this backend quantizes; None: the one that executes FP32 programs."""
    return runtimes_of_backend(backend, (FP32_RUNTIME,))[0]


def runtimes_of_backend(backend: str | None, asked: Sequence[str]) -> list[Runtime]:
    """Of the runtimes asked for, by name, those that execute what this backend quantizes (None: FP32), in that order.

    If it is none of them, the first in the table that does.
    """
    if backend is None:
        return [RUNTIMES[name] for name in asked]
    able = [each for each in RUNTIMES.values() if backend in each.backends]
    assert able, f"no runtime executes what the backend {backend} quantizes"
    return [RUNTIMES[name] for name in asked if RUNTIMES[name] in able] or able[:1]


def runtime_of_file(path: Path) -> Runtime:
    """The runtime whose artifact a file is, by its content; StageError if it is of none, or cannot be read."""
    for runtime in RUNTIMES.values():
        if resolve(runtime.recognises)(path):
            return runtime
    known = " nor as a ".join(dict.fromkeys(Path(runtime.file_name).suffix for runtime in RUNTIMES.values()))
    raise StageError(f"{path}: not a readable package: it begins neither as a {known}", "give one that 'raq run' made")


def read(path: Path) -> "GeneratedCode":
    """What is in an artifact; nothing of it is executed. StageError if it is damaged or no artifact."""
    code: GeneratedCode = resolve(runtime_of_file(path).read)(path)
    return code


def read_metadata(path: Path) -> Metadata:
    """The metadata of an artifact; StageError if it is damaged or no artifact."""
    return Metadata(resolve(runtime_of_file(path).read_metadata)(path))


def in_parts(network: "Callable[..., Tensor]", most: int) -> "Callable[..., Tensor]":
    """The network for batches of any size, given `most` samples at a time."""
    import torch

    def run(*inputs: "Tensor") -> "Tensor":
        parts = zip(*(value.split(most) for value in inputs), strict=True)
        return torch.cat([network(*part) for part in parts])

    return run
