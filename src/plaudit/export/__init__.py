"""Writes a reward model as a folder that any server reads: merged, scaled, and checked before it gets its name."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plaudit.export.export import ExportResult, export_model


_HOME = {"ExportResult": "plaudit.export.export", "export_model": "plaudit.export.export"}
__all__ = ["ExportResult", "export_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'plaudit.export' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
