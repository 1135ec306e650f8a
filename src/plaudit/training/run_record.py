"""What a run folder keeps about its training: data counts, settings, versions and logs, as JSON beside the weights."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from plaudit.data.report import DataReport
from plaudit.model.adapters import is_peft_model
from plaudit.training.config import RewardConfig
from plaudit.training.model_card import installed_versions

if TYPE_CHECKING:
    from plaudit.training.trainer import RewardTrainer

RUN_RECORD = "plaudit_run.json"
"""Name of the file in the folder of a run, and in each of its checkpoints."""

FORMAT, VERSION = "plaudit run", 1
_STATE = ("global_step", "epoch", "max_steps", "num_train_epochs", "best_metric", "best_global_step", "total_flos")


def write_run_record(trainer: RewardTrainer, folder: str | os.PathLike[str] | None = None) -> None:
    """Write the record of a run beside its weights; does nothing on processes that do not save.

    The record of a checkpoint leaves out the logs, which stand in the checkpoint's ``trainer_state.json``.

    Args:
        trainer: The trainer, at any time after it was made.
        folder: Where the weights were saved (None: the output folder).
    """
    if not trainer.args.should_save:
        return
    path = Path(str(trainer.args.output_dir) if folder is None else folder) / RUN_RECORD
    record = run_record(trainer)
    if path.parent.name.startswith(f"{PREFIX_CHECKPOINT_DIR}-"):
        del record["log_history"]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole: a process may be killed at any time.
    unfinished = path.with_suffix(".json.part")
    unfinished.write_text(json.dumps(record, indent=1, default=str, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(path)


def run_record(trainer: RewardTrainer) -> dict[str, Any]:
    """What there is to know about a run without its data set, as plain values.

    Args:
        trainer: The trainer.
    """
    settings = trainer.args.to_dict()
    base_model, state = trainer._base_model, trainer.state
    return {
        "format": FORMAT,
        "version": VERSION,
        "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "base_model": getattr(base_model.config, "name_or_path", "") or None,
        "architecture": type(base_model).__name__,
        "adapter": is_peft_model(trainer.model),
        **_parameters(trainer),
        "objective": trainer.training_objective.name,
        "batch_layout": trainer.batch_layout,
        "batch_layout_reason": trainer.batch_layout_reason,
        "device": torch.cuda.get_device_name(trainer.args.device)
        if trainer.args.device.type == "cuda"
        else trainer.args.device.type,
        "processes": trainer.args.world_size,
        "data": {name: report_as_dict(report) for name, report in trainer.data_reports.items()},
        "settings": settings,
        "changed_settings": changed_settings(settings),
        "versions": installed_versions(),
        "state": {name: getattr(state, name, None) for name in _STATE},
        "log_history": state.log_history,
    }


def report_as_dict(report: DataReport) -> dict[str, Any]:
    """What was read, dropped and found suspicious in a data set, as plain values.

    Args:
        report: The report; its `prompts`, one number a row, are left out.

    >>> report = DataReport("train", 1024, "drop", "train")
    >>> report.add(0, 1), report_as_dict(report)["dropped"]
    (False, {'overlong': {'count': 1, 'first_rows': [0]}})
    """
    values = dataclasses.asdict(dataclasses.replace(report, prompts=None))
    del values["prompts"]
    return {**values, "lengths": {**values["lengths"], "mean": report.lengths.mean}, "summary": report.summary()}


def changed_settings(settings: Mapping[str, Any]) -> list[str]:
    """Names of the settings that are not at their defaults, sorted.

    Args:
        settings: Those of a run, as plain values.

    >>> changed_settings({"learning_rate": 3e-6, "seed": 42})
    ['learning_rate']
    """
    changed = []
    for field in dataclasses.fields(RewardConfig):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        plain = default.value if isinstance(default, enum.Enum) else default
        if field.name in settings and field.init and settings[field.name] != plain:
            changed.append(field.name)
    return sorted(changed)


def _parameters(trainer: RewardTrainer) -> dict[str, int | None]:
    """How many parameters there are; None where this process holds only some of them."""
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return {"parameters": None, "trainable_parameters": None}
    model = trainer._base_model
    return {
        "parameters": model.num_parameters(),
        "trainable_parameters": model.num_parameters(only_trainable=True),
    }
