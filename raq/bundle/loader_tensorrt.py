"""How TensorRT alone loads this model: an engine for the kind of GPU that it was built on; torch keeps its memory."""

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
    if engine is None:
        raise RuntimeError("TensorRT does not take this engine: is it of this version, and for this GPU?")
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    *inputs, output = sorted(names, key=lambda name: engine.get_tensor_mode(name) == tensorrt.TensorIOMode.OUTPUT)
    stream = torch.cuda.Stream()
    contexts = []
    for profile in range(engine.num_optimization_profiles):  # for single samples, and for more
        contexts.append(engine.create_execution_context())
        contexts[-1].set_optimization_profile_async(profile, stream.cuda_stream)

    def run(*arrays: Any) -> Any:
        context = contexts[min(len(arrays[0]) - 1, len(contexts) - 1)]
        given = [torch.from_numpy(value).to(device) for value in arrays]
        for name, value in zip(inputs, given, strict=True):
            context.set_input_shape(name, tuple(value.shape))
            context.set_tensor_address(name, value.data_ptr())
        found = torch.empty(tuple(context.get_tensor_shape(output)), device=device)
        context.set_tensor_address(output, found.data_ptr())
        stream.wait_stream(torch.cuda.current_stream())
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        stream.synchronize()
        return found.cpu().numpy()

    return run
