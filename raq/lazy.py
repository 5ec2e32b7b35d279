"""What is imported only when it is used: functions that a table names as text, and the libraries of extras."""

import importlib
import logging
from typing import Any

from raq.errors import UserError, first_line


def resolve(reference: str) -> Any:
    """What "module:name" stands for, or "module" alone; the module is imported now. ImportError, AttributeError."""
    module, _, name = reference.partition(":")
    imported = importlib.import_module(module)
    return getattr(imported, name) if name else imported


def install_hint(extra: str) -> str:
    """How an extra is installed."""
    if extra == "tensorrt":
        return "on a machine with a GPU: pip install 'raq[tensorrt]' (uv sync leaves TensorRT itself out)"
    return f"install the extra: uv sync --extra {extra} (or pip install 'raq[{extra}]')"


def require_library(name: str, extra: str) -> None:
    """Import a library of an extra; UserError if it is not installed, or does not work here."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError, RuntimeError) as error:
        raise UserError(f"the library {name} cannot be used: {first_line(error)}", install_hint(extra)) from None


def require_executorch() -> None:
    """Import ExecuTorch, without the warnings of its libraries; UserError if it is not installed."""
    talkative = logging.getLogger("torch.utils._pytree")
    usual = talkative.level
    try:
        talkative.setLevel(logging.ERROR)
        import executorch.exir
        import executorch.runtime  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # or one that was built for another torch
        raise UserError(f"a .pte needs ExecuTorch: {error}", install_hint("executorch")) from None
    finally:
        talkative.setLevel(usual)
