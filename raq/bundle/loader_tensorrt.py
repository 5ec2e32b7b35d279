"""How TensorRT alone loads this model: an engine for the kind of GPU that it was built on; torch keeps its memory."""

import json
import zipfile
from collections.abc import Callable
from typing import Any


def load(path: str, threads: int, device: str) -> Callable[..., Any]:
    """The engine as a function of arrays [n, ...] to an array [n, ...]. RuntimeError if it is damaged."""
    import tensorrt
    import torch

    logger = tensorrt.Logger(tensorrt.Logger.ERROR)
    with zipfile.ZipFile(path) as package:
        engine = tensorrt.Runtime(logger).deserialize_cuda_engine(package.read("model.engine"))
        ordered = [one["name"] for one in json.loads(package.read("about.json"))["inputs"]]
    if engine is None:
        raise RuntimeError("TensorRT does not take this engine: is it of this version, and for this GPU?")
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    (output,) = (name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.OUTPUT)
    kept = [name for name in ordered if name in names]
    ranges = [engine.get_tensor_profile_shape(kept[0], number) for number in range(engine.num_optimization_profiles)]
    types = {"FLOAT": torch.float32, "HALF": torch.float16, "BF16": torch.bfloat16, "INT64": torch.int64}
    kind = types[engine.get_tensor_dtype(output).name]
    stream = torch.cuda.Stream()
    contexts: dict[int, Any] = {}

    def done(answer: bool, what: str) -> None:
        if not answer:
            raise RuntimeError(f"the engine cannot {what}")

    def context_of(size: int) -> Any:
        fits = [number for number, (least, _, most) in enumerate(ranges) if least[0] <= size <= most[0]]
        done(bool(fits), f"take a batch of {size}")
        if fits[0] not in contexts:
            contexts[fits[0]] = engine.create_execution_context()
            done(contexts[fits[0]].set_optimization_profile_async(fits[0], stream.cuda_stream), "take its own profile")
        return contexts[fits[0]]

    def run(*arrays: Any) -> Any:
        context, given = context_of(len(arrays[0])), {}
        with torch.cuda.stream(stream):
            for name, array in zip(ordered, arrays, strict=True):
                if name in kept:
                    value = given[name] = torch.from_numpy(array).to(device)
                    done(context.set_input_shape(name, tuple(value.shape)), f"take {name} of {list(value.shape)}")
                    done(context.set_tensor_address(name, value.data_ptr()), f"read {name}")
            found = torch.empty(tuple(context.get_tensor_shape(output)), dtype=kind, device=device)
            done(context.set_tensor_address(output, found.data_ptr()), "write its output")
            done(context.execute_async_v3(stream.cuda_stream), "run")
            return found.float().cpu().numpy()

    return run
