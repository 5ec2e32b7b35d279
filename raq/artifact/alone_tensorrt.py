"""How a process without raq loads an engine: with TensorRT and torch alone. Run by alone.py; imports no raq."""

import json
import re
import zipfile
from types import SimpleNamespace
from typing import Any

import torch

FOREIGN = {"torchao", "onnx", "onnxscript"}  # what must not be needed
ENGINE, ABOUT = "model.engine", "about.json"  # in the file, beside the ONNX that the engine was built of
ALIGNED = 256  # bytes: what TensorRT asks of an address
DTYPES = {
    "FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64, "INT32": torch.int32,
    "INT8": torch.int8, "UINT8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")  # how an engine's metadata name what a kernel computes of the file
MULTIPLIES = re.compile(r"conv|gemm|matmul|matrixmul|fprop|mma|mha|fully", re.IGNORECASE)  # of a kernel's type, name
OPAQUE = re.compile(r"myelin|foreignnode", re.IGNORECASE)  # graphs of their own, of which nothing more is said
INT8 = re.compile(r"i8i8|s8s8|imma|int8|(?<![a-z])i8(?![0-9])", re.IGNORECASE)
FLOAT = re.compile(r"f32|f16|bf16|tf32|fp32|fp16|[hs](884|1688|16816)|float|half", re.IGNORECASE)
LOADED = SimpleNamespace()  # what `account` needs


class Engine:
    """An engine as a function of the network's inputs [n, ...] on a GPU to its output [n, ...].

    Each batch size has an execution context of its own, as a CUDA graph of one must not see another's shapes; each of
    the engine's profiles is a range of sizes. RuntimeError if it is damaged, or for another GPU.
    """

    def __init__(self, path: str) -> None:
        import tensorrt

        self.trt, self.logger = tensorrt, tensorrt.Logger(tensorrt.Logger.ERROR)
        with zipfile.ZipFile(path) as package:
            content, self.about = package.read(ENGINE), json.loads(package.read(ABOUT))
        self.engine = tensorrt.Runtime(self.logger).deserialize_cuda_engine(content)
        if self.engine is None:
            raise RuntimeError("TensorRT does not take this engine: is it of this version, and for this GPU?")
        names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        given = [name for name in names if self.engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
        (self.output,) = (name for name in names if name not in given)
        # in the order of the network's; TensorRT may have dropped one that is not used
        self.inputs = [one["name"] for one in self.about["inputs"]]
        self.kept = [name for name in self.inputs if name in given]
        if len(self.kept) != len(given):
            raise RuntimeError(f"the engine has inputs {', '.join(given)}, its file {', '.join(self.inputs)}")
        self.dtypes = {name: DTYPES[self.engine.get_tensor_dtype(name).name] for name in (*self.kept, self.output)}
        self.contexts: dict[int, Any] = {}
        self.stream = self._stream()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Its output for inputs on the GPU, in the order of the stream that is current."""
        context = self.context(len(inputs[0]))
        given = dict(zip(self.inputs, inputs, strict=True))
        held = {name: self._fitting(name, given[name]) for name in self.kept}
        for name, value in held.items():
            _done(context.set_input_shape(name, tuple(value.shape)), f"take {name} of {list(value.shape)}")
            _done(context.set_tensor_address(name, value.data_ptr()), f"read {name}")
        shape = tuple(context.get_tensor_shape(self.output))
        output = torch.empty(shape, dtype=self.dtypes[self.output], device=inputs[0].device)
        _done(context.set_tensor_address(self.output, output.data_ptr()), "write its output")
        self._execute(context)
        return output

    def context(self, size: int) -> Any:
        """The execution context of a batch size, made when it is first asked for."""
        if size not in self.contexts:
            first = self.kept[0]
            for profile in range(self.engine.num_optimization_profiles):
                least, _, most = self.engine.get_tensor_profile_shape(first, profile)
                if least[0] <= size <= most[0]:
                    break
            else:
                raise RuntimeError(f"the engine takes no batch of {size}")
            kind = self.trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE  # memory for this profile alone
            context = self.engine.create_execution_context(kind)
            _done(context.set_optimization_profile_async(profile, self.stream.cuda_stream), "take its own profile")
            self.stream.synchronize()
            self.contexts[size] = context
        return self.contexts[size]

    def _fitting(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """The tensor where TensorRT can read it; RuntimeError if it is on no GPU, or of another type."""
        if not self._is_there(value):
            raise RuntimeError(f"{name} is on {value.device}, and the engine on a GPU")
        if value.dtype != self.dtypes[name]:
            raise RuntimeError(f"{name} is {value.dtype}, and the engine takes {self.dtypes[name]}")
        value = value.contiguous()
        return value.clone() if value.data_ptr() % ALIGNED else value

    def _is_there(self, value: torch.Tensor) -> bool:
        return value.is_cuda

    def _stream(self) -> Any:
        return torch.cuda.Stream()  # on the default one TensorRT waits for it at every call

    def _execute(self, context: Any) -> None:
        """On the current stream, or, where that is the default one, beside it and in its order."""
        outside = torch.cuda.current_stream()
        inside = outside if outside != torch.cuda.default_stream() else self.stream
        inside.wait_stream(outside)
        _done(context.execute_async_v3(inside.cuda_stream), "run")
        outside.wait_stream(inside)


def _done(answer: bool, what: str) -> None:
    """RuntimeError unless TensorRT says that it has done it."""
    if not answer:
        raise RuntimeError(f"the engine cannot {what}")


def prepare(threads: int) -> None:
    """Import TensorRT before the load is timed, and start CUDA."""
    import tensorrt  # noqa: F401

    torch.zeros(1, device="cuda")


def load(path: str) -> Any:
    """The engine as a function of the network's inputs [n, ...]. RuntimeError if damaged."""
    LOADED.network = Engine(path)
    return LOADED.network


def account(*inputs: Any) -> list[dict[str, Any]]:
    """The kernels of every size that the engine is tuned for, as TensorRT's inspector describes them; see `kernels`.

    It says which types they compute in where shapes are known, so each size is run once.
    """
    network, found = LOADED.network, []
    inspector = network.engine.create_engine_inspector()
    for size in network.about.get("batch_sizes") or [len(inputs[0])]:
        network(*(value[:1].expand(size, *value.shape[1:]).contiguous().cuda() for value in inputs))
        torch.cuda.synchronize()
        inspector.execution_context = network.context(size)
        found += kernels(inspector.get_engine_information(network.trt.LayerInformationFormat.JSON))
    return found


def kernels(described: str) -> list[dict[str, Any]]:
    """What an inspector's JSON says of each kernel that multiplies: nodes of the file that it computes, its name,
    whether in int8; None where that cannot be told, as of all if the JSON cannot be read.
    """
    try:
        layers = json.loads(described, strict=False)["Layers"]  # its separators are control characters
        if not isinstance(layers, list):
            raise TypeError
        found = [_kernel(layer if isinstance(layer, dict) else {"Name": str(layer)}) for layer in layers]
    except (ValueError, KeyError, TypeError, AttributeError):
        return [{"nodes": [], "kernel": "what TensorRT says of itself cannot be read", "int8": None}]
    return [one for one in found if one is not None]


def _kernel(layer: dict[str, Any]) -> dict[str, Any] | None:
    """One kernel; None if it does not multiply: it moves data, adds, or pools."""
    name, kind, tactic = (str(layer.get(key) or "") for key in ("Name", "LayerType", "TacticName"))
    said = f"{kind} {layer.get('ParameterType') or ''} {tactic}" if kind or tactic else name
    opaque = OPAQUE.search(said)
    if not MULTIPLIES.search(said) and not opaque:
        return None
    nodes = NODE.findall(str(layer.get("Metadata") or "")) or name.split(" + ")
    formats = [str(one.get("Format/Datatype") or "") for one in layer.get("Inputs") or []]
    weights = layer.get("Weights")
    types = [*formats[:1], str(weights.get("Type") or "") if isinstance(weights, dict) else "", tactic]
    told = next((bool(INT8.search(one)) for one in types if INT8.search(one) or FLOAT.search(one)), None)
    return {"nodes": nodes, "kernel": tactic or kind or name, "int8": None if opaque and told is None else told}
