"""Functions that a table names as text, so that reading the table does not import their modules."""

import importlib
from typing import Any


def resolve(reference: str) -> Any:
    """What "module:name" stands for, or "module" alone; the module is imported now. ImportError, AttributeError."""
    module, _, name = reference.partition(":")
    imported = importlib.import_module(module)
    return getattr(imported, name) if name else imported
