"""Metrics of the current logging interval, kept inside the checkpoint so that a resumed run logs the same numbers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from plaudit.metrics import Gather, RewardMetrics, Scored


class LoggingInterval(TrainerCallback, ExportableState):
    """Sums since the last log, and token counts since the first step.

    The Trainer writes `state` into ``trainer_state.json``; `on_train_begin` reads it back from there, because the
    Trainer restores callbacks by itself only on request.
    """

    def __init__(self) -> None:
        self._metrics = RewardMetrics()
        self._num_tokens = 0
        self._num_tokens_computed = 0
        self._saved: list[float] | None = None

    def update(self, scored: Scored) -> None:
        """Add a training batch."""
        self._metrics.update(scored)

    def flush(self, gather: Gather | None = None) -> dict[str, float]:
        """Metrics of the interval, with the token counts since the first step; starts the next interval."""
        values = self._metrics.compute(gather)
        self._metrics.reset()
        if values:
            self._num_tokens += int(values["num_tokens"])
            self._num_tokens_computed += int(values["num_tokens_computed"])
            values.pop("comparisons")
            values.update(num_tokens=self._num_tokens, num_tokens_computed=self._num_tokens_computed)
        return values

    def collect(self, gather: Gather | None = None) -> None:
        """Take down the sums over all processes, for the checkpoint about to be written."""
        self._saved = self._metrics.totals(gather)

    def state(self) -> dict[str, Any]:
        """What the Trainer writes into ``trainer_state.json``."""
        return {
            "args": {},
            "attributes": {
                "_num_tokens": self._num_tokens,
                "_num_tokens_computed": self._num_tokens_computed,
                "_saved": self._saved,
            },
        }

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from nothing, or from where the checkpoint left off."""
        # A fresh state lists callbacks, one read from a checkpoint holds what they saved under their names.
        saved: Any = state.stateful_callbacks if state.global_step > 0 else None
        attributes = saved.get(type(self).__name__, {}).get("attributes", {}) if isinstance(saved, dict) else {}
        self._num_tokens = attributes.get("_num_tokens", 0)
        self._num_tokens_computed = attributes.get("_num_tokens_computed", 0)
        # The sums are those of all processes: one of them carries on with them.
        totals = attributes.get("_saved") if state.is_world_process_zero else None
        self._metrics.restore(totals, device=args.device)
