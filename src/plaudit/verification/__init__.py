"""Holds every way of running a reward model to its golden rows, and says what is wrong where they differ."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plaudit.verification.verify import PathResult, Verification, verify


_HOME = {
    "PathResult": "plaudit.verification.verify",
    "Verification": "plaudit.verification.verify",
    "verify": "plaudit.verification.verify",
}
__all__ = ["PathResult", "Verification", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'plaudit.verification' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
