"""How torch alone loads this model: an AOTInductor package, native code for the kind of CPU that it was made on."""

from collections.abc import Callable
from typing import Any


def load(path: str, threads: int, device: str) -> Callable[..., Any]:
    """The file as a function of arrays [n, ...] to an array [n, ...]. RuntimeError if it is damaged."""
    import torch

    torch.set_num_threads(threads)
    torch.backends.cudnn.allow_tf32 = False  # as it was evaluated: on a GPU torch would round floats in convolutions
    network: Any = torch._inductor.aoti_load_package(path)

    def run(*inputs: Any) -> Any:
        with torch.inference_mode():
            return network(*(torch.from_numpy(value).to(device) for value in inputs)).float().cpu().numpy()

    return run
