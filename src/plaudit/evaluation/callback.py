"""Evaluates suites while a model trains, in time to choose the best checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from plaudit.errors import ConfigError
from plaudit.evaluation.judge import EvaluationSettings, OnBroken, Overlong
from plaudit.evaluation.results import SuiteEvaluation
from plaudit.evaluation.score import evaluate_suite, log_dropped, model_for, unchanged
from plaudit.evaluation.suites.registry import Suites, resolve_suites
from plaudit.inference.reward_model import RewardModel

logger = logging.getLogger("plaudit")


class SuiteCallback(TrainerCallback):
    """Evaluates suites on the model that is trained, after each evaluation of its trainer.

    Metrics are called ``eval_<suite>_score``, ``_accuracy``, ``_margin``, ``_best_of_n`` (each where there is one) and
    ``eval_<suite>_<slice>``, and can be named by `metric_for_best_model`. The model is scored in evaluation mode and
    in its own precision; training goes on as if nothing had happened. With several processes each scores all rows.

    Args:
        suites: As for :func:`plaudit.evaluate`; read at once, so that a broken file is found before the training.
        slices: Columns by whose values results are split, in the suites that have them.
        max_rows: Maximum number of rows of each suite, drawn at random, always the same ones.
        seed: Seed of the draw.
        max_length: Maximum number of tokens of a response with its prompt; by default that of the trainer.
        overlong: Treatment of a longer row, as for :func:`plaudit.evaluate`.
        errors: Treatment of a row that cannot be scored, as for :func:`plaudit.evaluate`.
        max_tokens_per_batch: Maximum number of tokens of a batch; see `RewardModel`.

    Attributes:
        results: Name of a suite -> its results at the last evaluation.

    Raises:
        ConfigError: There is no such suite.
        DataError: A suite cannot be read.
    """

    def __init__(
        self,
        suites: Suites,
        *,
        slices: Sequence[str] = (),
        max_rows: int | None = None,
        seed: int = 0,
        max_length: int | None = None,
        overlong: Overlong = "drop",
        errors: OnBroken = "raise",
        max_tokens_per_batch: int | None = None,
    ) -> None:
        self._settings = EvaluationSettings(tuple(slices), max_rows, seed, 0, 0, max_length, overlong, errors)
        self._max_tokens = max_tokens_per_batch
        self._suites = [source.load().at_most(max_rows, seed) for source in resolve_suites(suites)]
        self._trainer: Trainer | None = None
        self._round: tuple[int, bool] | None = None
        self._seen: set[str] = set()
        self._metrics: dict[str, float] = {}
        self._training = False
        self.results: dict[str, SuiteEvaluation] = {}

    def add_to(self, trainer: Trainer) -> SuiteCallback:
        """Add the callback to a trainer, and log through it, so that trackers such as Weights & Biases see the metrics.

        Passed as ``callbacks=[...]`` instead, metrics reach `log_history` and `metric_for_best_model`, but no tracker.

        Args:
            trainer: The trainer.
        """
        self._trainer = trainer
        trainer.add_callback(self)
        return self

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises `ConfigError` if the model is split between processes."""
        self._training, self._round = True, None
        if getattr(args, "fsdp", None) or getattr(args, "deepspeed", None):
            raise ConfigError(
                "`SuiteCallback` needs the whole model on each process, and FSDP or DeepSpeed split it",
                fix="Evaluate suites as data sets: eval_dataset={'name': suite_dataset('name=FILE')}.",
            )

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forgets what was evaluated: the best checkpoint may be loaded now."""
        self._training, self._round = False, None

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluates the suites, and adds their metrics to those of the trainer.

        With several evaluation sets the trainer calls this once for each; suites are evaluated at the first.
        """
        metrics: dict[str, float] = kwargs.get("metrics") or {}
        name = next((key for key in metrics if key.endswith("_runtime")), ",".join(sorted(metrics)))
        this_round = (state.global_step, self._training)
        if this_round != self._round or name in self._seen:
            self._round, self._seen = this_round, set()
            self._metrics = self._evaluate(kwargs["model"], kwargs["processing_class"], args)
            if self._trainer is not None:
                self._trainer.log(dict(self._metrics))
            else:
                epoch = {} if state.epoch is None else {"epoch": state.epoch}
                state.log_history.append({**self._metrics, "step": state.global_step, **epoch})
                if state.is_world_process_zero:
                    logger.info("%s", ", ".join(f"{name} {value:.3f}" for name, value in self._metrics.items()))
        self._seen.add(name)
        metrics.update(self._metrics)

    def _evaluate(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, args: Any) -> dict[str, float]:
        first = not self.results
        with unchanged(model):
            scorer = RewardModel(
                model,
                tokenizer,
                batch_layout="padded" if getattr(args, "batch_layout", "auto") == "padded" else "auto",
                max_tokens_per_batch=self._max_tokens,
                max_length=self._settings.max_length or getattr(args, "max_length", None),
            )
            view = model_for(scorer, self._settings)
            self.results = {suite.label: evaluate_suite(view, suite, self._settings) for suite in self._suites}
        metrics: dict[str, float] = {}
        for name, evaluated in self.results.items():
            if first:
                log_dropped(evaluated)
            metrics |= {f"eval_{name}_{key}": value for key, value in suite_metrics(evaluated).items()}
        return metrics


def suite_metrics(evaluated: SuiteEvaluation) -> dict[str, float]:
    """Returns the numbers of a suite that a trainer can log, by name."""
    pairs, rankings, accuracy = evaluated.statistics.pairs, evaluated.statistics.rankings, evaluated.accuracy
    values: dict[str, float | None] = {
        "score": evaluated.score,
        "accuracy": None if accuracy is None else accuracy.value,
        "margin": None if pairs is None else pairs.margin,
        "best_of_n": None if rankings is None else rankings.best_of_n,
        **{part.name: part.score for part in evaluated.result.slices if part.name != "all"},
    }
    for column, parts in evaluated.slices.items():
        for name, part in parts.items():
            values.setdefault(f"{column}={name}", None if part.pairs is None else part.pairs.accuracy.value)
    return {name: value for name, value in values.items() if value is not None}
