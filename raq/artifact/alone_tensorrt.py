"""How a process without raq loads an engine: with TensorRT and torch alone. Run by alone.py; imports no raq."""

import json
import re
import zipfile
from types import SimpleNamespace
from typing import Any

import torch

FOREIGN = {"torchao", "onnx", "onnxscript"}  # what must not be needed
ENGINE = "model.engine"
NODE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")  # how an engine's metadata name what a kernel computes of the file
MOVING = ("Reformat", "NoOp", "Constant", "Signal", "Wait", "ShapeHostToDevice", "DeviceToShapeHost")  # no arithmetic
LOADED = SimpleNamespace()  # what `account` needs


class Engine:
    """An engine as a function of the network's inputs [n, ...] on a GPU to its output [n, ...].

    It has a set of kernels for single samples, and one for more. RuntimeError if it is damaged, or for another GPU.
    """

    def __init__(self, path: str) -> None:
        import tensorrt

        self.logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        with zipfile.ZipFile(path) as package:
            content = package.read(ENGINE)
        self.engine = tensorrt.Runtime(self.logger).deserialize_cuda_engine(content)
        if self.engine is None:
            raise RuntimeError("TensorRT does not take this engine: is it of this version, and for this GPU?")
        names = [self.engine.get_tensor_name(number) for number in range(self.engine.num_io_tensors)]
        modes = {name: self.engine.get_tensor_mode(name) for name in names}
        self.inputs = [name for name in names if modes[name] == tensorrt.TensorIOMode.INPUT]
        (self.output,) = (name for name in names if modes[name] == tensorrt.TensorIOMode.OUTPUT)
        self.stream = torch.cuda.Stream()  # on the default one TensorRT waits for it at every call
        self.contexts: list[Any] = []
        for profile in range(self.engine.num_optimization_profiles):
            context = self.engine.create_execution_context()
            context.set_optimization_profile_async(profile, self.stream.cuda_stream)
            self.contexts.append(context)
        self.stream.synchronize()

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Its output for inputs on the GPU, in the order of the stream that is current."""
        context = self.contexts[min(len(inputs[0]) - 1, len(self.contexts) - 1)]
        given = [value.contiguous() for value in inputs]
        for name, value in zip(self.inputs, given, strict=True):
            if not context.set_input_shape(name, tuple(value.shape)):
                raise RuntimeError(f"the engine does not take {name} of {list(value.shape)}")
            context.set_tensor_address(name, value.data_ptr())
        output = torch.empty(tuple(context.get_tensor_shape(self.output)), device=given[0].device)
        context.set_tensor_address(self.output, output.data_ptr())
        outside = torch.cuda.current_stream()
        inside = outside if outside != torch.cuda.default_stream() else self.stream
        inside.wait_stream(outside)
        if not context.execute_async_v3(inside.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        outside.wait_stream(inside)
        return output


def prepare(threads: int) -> None:
    """Import TensorRT before the load is timed, and start CUDA."""
    import tensorrt  # noqa: F401

    torch.zeros(1, device="cuda")


def load(path: str) -> Any:
    """The engine as a function of the network's inputs [n, ...]. RuntimeError if damaged."""
    LOADED.network = Engine(path)
    return LOADED.network


def account(*inputs: Any) -> list[dict[str, Any]]:
    """The kernels of the engine, as TensorRT's inspector describes them; see `kernels`."""
    import tensorrt

    inspector = LOADED.network.engine.create_engine_inspector()
    return kernels(inspector.get_engine_information(tensorrt.LayerInformationFormat.JSON))


def kernels(described: str) -> list[dict[str, Any]]:
    """What an inspector's JSON says of each kernel: nodes of the file that it computes, its name, whether in int8.

    It is int8 if the first of what it reads is, as operands come before scales. One described by a name alone is of
    no known type, and counts as float.
    """
    found = []
    for layer in json.loads(described)["Layers"]:
        if isinstance(layer, str):
            found.append({"nodes": layer.split(" + "), "kernel": layer, "int8": False})
            continue
        if layer.get("LayerType") in MOVING:
            continue
        names = NODE.findall(layer.get("Metadata", "")) or layer["Name"].split(" + ")
        reads = [one.get("Format/Datatype", "") for one in layer.get("Inputs", [])]
        kernel = layer.get("TacticName") or layer.get("LayerType") or layer["Name"]
        found.append({"nodes": names, "kernel": kernel, "int8": "int8" in (reads or [""])[0].lower()})
    return found
