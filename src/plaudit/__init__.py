"""Plaudit: train, judge and use reward models.

The public names load on first use, so that ``import plaudit`` and ``plaudit --help`` answer at once.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from plaudit.version import __version__

if TYPE_CHECKING:
    from plaudit.data.collate import DataCollatorForPreference
    from plaudit.doctor.check import check_dataset
    from plaudit.doctor.findings import DataCheck
    from plaudit.errors import ConfigError, DataError, PlauditError
    from plaudit.evaluation.run import evaluate
    from plaudit.export.export import export_model
    from plaudit.inference.reward_model import RewardModel
    from plaudit.training.config import RewardConfig
    from plaudit.training.trainer import RewardTrainer
    from plaudit.verification.verify import verify


_HOME = {
    "ConfigError": "plaudit.errors",
    "DataCheck": "plaudit.doctor.findings",
    "DataCollatorForPreference": "plaudit.data.collate",
    "DataError": "plaudit.errors",
    "PlauditError": "plaudit.errors",
    "RewardConfig": "plaudit.training.config",
    "RewardModel": "plaudit.inference.reward_model",
    "RewardTrainer": "plaudit.training.trainer",
    "check_dataset": "plaudit.doctor.check",
    "evaluate": "plaudit.evaluation.run",
    "verify": "plaudit.verification.verify",
    "export_model": "plaudit.export.export",
}
__all__ = [
    "ConfigError",
    "DataCheck",
    "DataCollatorForPreference",
    "DataError",
    "PlauditError",
    "RewardConfig",
    "RewardModel",
    "RewardTrainer",
    "__version__",
    "check_dataset",
    "evaluate",
    "export_model",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'plaudit' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
