"""Decides how exported rewards differ from those of the head: by a stored calibration, by data, or not at all."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from plaudit.data.parse import read_example
from plaudit.data.schemas import rows_to_score
from plaudit.errors import ConfigError, DataError
from plaudit.inference.io import open_input
from plaudit.inference.reward_model import RewardModel
from plaudit.model.calibration import RewardCalibration
from plaudit.schema import TOKENIZED_COLUMNS, comparisons_of

Rows: TypeAlias = str | os.PathLike[str] | Iterable[Any]
"""A file, a folder, a data set on the Hub, or rows in memory."""
_ROWS_AT_ONCE = 1024
_BOUND = math.log(1000.0)


@dataclass(frozen=True)
class Rescaling:
    """How rewards are to be rescaled: the settings of `export_model` with these names."""

    normalize: Rows | None = None
    temperature: float | Rows | None = None
    raw: bool = False
    dataset_config: str | None = None
    dataset_split: str = "train"

    def __post_init__(self) -> None:
        given = [name for name in ("normalize", "temperature") if getattr(self, name) is not None]
        given += ["raw"] if self.raw else []
        if len(given) > 1:
            message = f"`{given[0]}` and `{given[1]}` exclude each other: each sets the size of rewards"
            raise ConfigError(message, field=given[1], fix="Remove one of the two settings.")
        value = self.temperature
        if isinstance(value, bool) or (isinstance(value, int | float) and not (value > 0 and math.isfinite(value))):
            raise ConfigError(f"is {value!r}", field="temperature", fix='Use a number above 0, data, or "stored".')


def rescaled_rewards(model: RewardModel, stored: RewardCalibration | None, rescaling: Rescaling) -> RewardCalibration:
    """Returns how exported rewards follow from those of the head; scores rows where data decide it.

    `model` has no calibration, and NaN for rows beyond its `max_length`; `stored` lies beside the source. Raises
    `ConfigError` where there is no stored calibration or the data decide nothing, and `DataError` for a row that cannot
    be scored, or does not say which response is better.
    """
    current = stored or RewardCalibration()
    temperature = rescaling.temperature
    if rescaling.normalize is not None:
        return _normalized(model, current, rescaling)
    if temperature is None:
        return current
    if isinstance(temperature, int | float):
        return _divided(current, float(temperature), f"temperature {temperature:.6g}, as asked for")
    if temperature != "stored":
        return _fitted(model, current, temperature, rescaling)
    if stored is None:
        raise ConfigError(
            "is 'stored', and there is no calibration beside the model",
            field="temperature",
            fix="Fit one with `plaudit eval MODEL --suite DATA --save-calibration`, or pass data.",
        )
    how = f"stored temperature {stored.temperature:.6g}" + (f"; {stored.how}" if stored.how else "")
    return _divided(stored, stored.temperature, how)


def _divided(current: RewardCalibration, temperature: float, how: str) -> RewardCalibration:
    """Divides reported rewards by a temperature, so that the sigmoid of a difference is the probability."""
    scale, shift = current.scale / temperature, current.shift / temperature
    return RewardCalibration(scale, shift, 1.0, f"rewards divided by {how}")


def _normalized(model: RewardModel, current: RewardCalibration, rescaling: Rescaling) -> RewardCalibration:
    assert rescaling.normalize is not None
    name, scored = _score(model, rescaling.normalize, rescaling)
    rewards_N = np.array([reward for *_, rewards in scored for reward in rewards], dtype=np.float64)
    kept_N = rewards_N[~np.isnan(rewards_N)]
    mean, deviation = (float(kept_N.mean()), float(kept_N.std())) if len(kept_N) else (math.nan, math.nan)
    if not (math.isfinite(mean) and math.isfinite(deviation) and deviation > 1e-12 * max(abs(mean), 1.0)):
        raise ConfigError(
            f"the {len(kept_N)} rewards of {name} cannot be scaled to deviation 1: their deviation is {deviation:.3g}",
            field="normalize",
            fix="Use data with different responses that the model can read.",
        )
    too_long = len(rewards_N) - len(kept_N)
    how = (
        f"mean 0 and deviation 1 over {len(kept_N):,} responses of {name}"
        f"{f' ({too_long} too long ones left out)' if too_long else ''}, "
        f"where the head's rewards have mean {mean:.6g} and deviation {deviation:.6g}"
    )
    scale = 1 / deviation
    return RewardCalibration(scale, -mean * scale, current.temperature * scale / current.scale, how)


def _fitted(model: RewardModel, current: RewardCalibration, rows: Rows, rescaling: Rescaling) -> RewardCalibration:
    margins: list[float] = []
    preference_probs: list[float] = []
    name, scored = _score(model, rows, rescaling)
    for index, features, row, rewards in scored:
        if not isinstance(row, Mapping):
            fix = "Give it `chosen` and `rejected`, or `responses` with `scores` or `ranks`."
            raise DataError("does not say which response is better", row=index, fix=fix)
        filled = {column for column, value in row.items() if value is not None}
        tokenized = set(TOKENIZED_COLUMNS) <= filled or "response_ids" in filled
        label = read_example(row, row_number=index, tokenized=tokenized, features=features).label
        for better, worse in comparisons_of(label.ratings):
            margin = rewards[better] - rewards[worse]
            if not math.isnan(margin):
                margins.append(margin)
                preference_probs.append(1.0 if label.preference_prob is None else label.preference_prob)
    temperature = fit_temperature(np.array(margins), np.array(preference_probs))
    if temperature is None:
        raise ConfigError(
            f"no temperature fits the {len(margins):,} comparisons of {name}: the model is right in all of them, or no "
            "better than chance",
            field="temperature",
            fix="Use more comparisons, which the model was not trained on.",
        )
    current = replace(current, scale=1.0, shift=current.shift / current.scale)  # the margins are those of the head
    how = f"temperature {temperature:.6g}, fitted on {len(margins):,} comparisons of {name}"
    return _divided(current, temperature, how)


def fit_temperature(margin_P: np.ndarray, preference_prob_P: np.ndarray) -> float | None:
    r"""Returns the temperature at which the sigmoid of margins has the lowest log loss.

    The loss of margins m and probabilities s that the better response is better is convex in :math:`\beta = 1/t`; its
    slope, :math:`\overline{m (1 - s) - m \sigma(-\beta m)}`, is brought to zero by bisection. None where no
    temperature between a thousandth and a thousandfold of the margins' size is best.

    Source: Guo, Pleiss, Sun and Weinberger (2017), On Calibration of Modern Neural Networks.

    >>> round(fit_temperature(np.array([2.0, 2.0, 2.0, -2.0]), np.ones(4)), 6) == round(2 / math.log(3), 6)
    True
    """
    size = float(np.sqrt(np.mean(margin_P**2))) if len(margin_P) else 0.0
    if size == 0 or not math.isfinite(size):
        return None

    def slope(log_beta: float) -> float:
        x_P = math.exp(log_beta) / size * margin_P
        return float(np.mean(margin_P * ((1 - preference_prob_P) - np.exp(-np.logaddexp(0.0, x_P)))))

    low, high = -_BOUND, _BOUND
    if not slope(low) < 0 < slope(high):
        return None
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return size / math.exp((low + high) / 2)


# ---- rows --------------------------------------------------------------------------------------------------------


def _score(
    model: RewardModel, rows: Rows, rescaling: Rescaling
) -> tuple[str, Iterator[tuple[int, Mapping[str, Any] | None, Any, list[float]]]]:
    """Returns the name of the data, and of each row its index, column types, columns and rewards (NaN: too long)."""
    if isinstance(rows, str | os.PathLike):
        path = Path(rows).expanduser()
        name = path.name if path.exists() else os.fspath(rows)  # without the folders above it: models are shared
        config, split = rescaling.dataset_config, rescaling.dataset_split
        opened = open_input(rows, config=config, split=split, schema=model.schema)
        features = opened.features
        rows = (row for chunk in opened.chunks(_ROWS_AT_ONCE) for row in chunk.rows)
    else:
        name, features = "rows in memory", getattr(rows, "features", None)
        rows = rows_to_score(rows, model.schema)
    columns, given = itertools.tee(rows)

    def scored() -> Iterator[tuple[int, Mapping[str, Any] | None, Any, list[float]]]:
        scores = model.score_prepared(given, features=features)
        for index, (row, (_, score)) in enumerate(zip(columns, scores, strict=True)):
            rewards = [score] if isinstance(score, int | float) else list(score)
            if any(map(math.isinf, rewards)):
                raise DataError("has an infinite reward", row=index, fix="Remove the row, or check the model.")
            yield index, features, row, rewards

    return name, scored()
