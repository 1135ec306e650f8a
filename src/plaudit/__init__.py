"""Plaudit: train, judge and use reward models.

The public names load on first use, so that ``import plaudit`` and ``plaudit --help`` answer at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from plaudit.version import __version__

if TYPE_CHECKING:
    from plaudit.data.collate import DataCollatorForPreference
    from plaudit.errors import ConfigError, DataError, PlauditError
    from plaudit.training.config import RewardConfig
    from plaudit.training.trainer import RewardTrainer

_HOME = {
    "ConfigError": "plaudit.errors",
    "DataCollatorForPreference": "plaudit.data.collate",
    "DataError": "plaudit.errors",
    "PlauditError": "plaudit.errors",
    "RewardConfig": "plaudit.training.config",
    "RewardTrainer": "plaudit.training.trainer",
}

__all__ = [
    "ConfigError",
    "DataCollatorForPreference",
    "DataError",
    "PlauditError",
    "RewardConfig",
    "RewardTrainer",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'plaudit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
