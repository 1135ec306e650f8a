"""How exported rewards are to differ from those of the head: by a stored calibration, by data, or not at all."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from plaudit.data.parse import read_example
from plaudit.errors import ConfigError, DataError
from plaudit.inference.io import open_input
from plaudit.inference.reward_model import RewardModel
from plaudit.model.calibration import RewardCalibration
from plaudit.schema import TOKENIZED_COLUMNS, Label, Score, comparisons_of

Rows: TypeAlias = str | os.PathLike[str] | Iterable[Any]
"""A file, a folder, a data set on the Hub, or rows in memory."""
_ROWS_AT_ONCE = 1024
_BOUND = math.log(1000.0)


@dataclass(frozen=True)
class Wishes:
    """What was asked for.

    Attributes:
        normalize: Data on which exported rewards have mean 0 and deviation 1.
        temperature: ``"stored"``, a number, or data to fit one on.
        raw: Leave rewards as they are.
        dataset_config: Configuration of a data set on the Hub.
        dataset_split: Split of the data.
    """

    normalize: Rows | None = None
    temperature: float | Rows | None = None
    raw: bool = False
    dataset_config: str | None = None
    dataset_split: str = "train"

    def __post_init__(self) -> None:
        asked = [name for name in ("normalize", "temperature") if getattr(self, name) is not None]
        asked += ["raw"] if self.raw else []
        if len(asked) > 1:
            raise ConfigError(
                f"`{asked[0]}` and `{asked[1]}` exclude each other: each says how large rewards are",
                fix="Leave one of them out.",
            )
        value = self.temperature
        if isinstance(value, bool) or (isinstance(value, int | float) and not (value > 0 and math.isfinite(value))):
            raise ConfigError(f"`temperature` is {value!r}", fix='Give a number above 0, data, or "stored".')


def wanted_rewards(scorer: RewardModel, stored: RewardCalibration | None, wishes: Wishes) -> RewardCalibration:
    """How exported rewards follow from those of the head; rows are scored where data decide it.

    Args:
        scorer: The model without a calibration; rows beyond its `max_length` are NaN.
        stored: The calibration beside the source.
        wishes: What was asked for.

    Raises:
        ConfigError: There is no stored calibration, or the data decide nothing.
        DataError: A row cannot be scored, or says nothing about which response is better.
    """
    now = stored or RewardCalibration()
    if wishes.normalize is not None:
        return _normalized(scorer, now, wishes.normalize, wishes)
    if wishes.temperature is None:
        return now
    if wishes.temperature == "stored":
        if stored is None:
            raise ConfigError(
                "`temperature` is 'stored', and there is no calibration beside the model",
                fix="Fit one with `plaudit eval MODEL --suite DATA --save-calibration`, or name data here.",
            )
        return _per_temperature(now, now.temperature, f"stored temperature {now.temperature:.6g}", now.how)
    if isinstance(wishes.temperature, int | float):
        return _per_temperature(now, float(wishes.temperature), f"temperature {wishes.temperature:.6g}, as asked for")
    return _fitted(scorer, now, wishes.temperature, wishes)


def _per_temperature(now: RewardCalibration, temperature: float, *how: str) -> RewardCalibration:
    """Divide reported rewards by a temperature, so that the sigmoid of a difference is the probability."""
    words = "; ".join(word for word in how if word)
    return RewardCalibration(now.scale / temperature, now.shift / temperature, 1.0, f"rewards divided by {words}")


def _normalized(scorer: RewardModel, now: RewardCalibration, rows: Rows, wishes: Wishes) -> RewardCalibration:
    rewards = [one for _, _, score in _scored(scorer, rows, wishes) for one in _as_list(score)]
    reward_N = np.array(rewards, dtype=np.float64)
    kept_N = reward_N[~np.isnan(reward_N)]
    name = _name_of(rows)
    mean, deviation = (float(kept_N.mean()), float(kept_N.std())) if len(kept_N) else (math.nan, math.nan)
    if not (math.isfinite(mean) and math.isfinite(deviation) and deviation > 1e-12 * max(abs(mean), 1.0)):
        raise ConfigError(
            f"the {len(kept_N)} rewards of {name} cannot be brought to deviation 1: their deviation is {deviation:.3g}",
            fix="Name data with different responses that the model can read.",
        )
    scale = 1 / deviation
    left_out = f" ({len(reward_N) - len(kept_N)} too long ones left out)" if len(kept_N) < len(reward_N) else ""
    how = (
        f"mean 0 and deviation 1 over {len(kept_N):,} responses of {name}{left_out}, "
        f"where the head's rewards have mean {mean:.6g} and deviation {deviation:.6g}"
    )
    return RewardCalibration(scale, -mean * scale, now.temperature * scale / now.scale, how)


def _fitted(scorer: RewardModel, now: RewardCalibration, rows: Rows, wishes: Wishes) -> RewardCalibration:
    margins: list[float] = []
    preference_probs: list[float] = []
    for place, row, score in _scored(scorer, rows, wishes):
        label, rewards = _label_of(row, *place), _as_list(score)
        for better, worse in comparisons_of(label.ratings):
            margin = rewards[better] - rewards[worse]
            if not math.isnan(margin):
                margins.append(margin)
                preference_probs.append(1.0 if label.preference_prob is None else label.preference_prob)
    name = _name_of(rows)
    temperature = fit_temperature(np.array(margins), np.array(preference_probs))
    if temperature is None:
        raise ConfigError(
            f"no temperature fits the {len(margins):,} comparisons of {name}: the model is right in all of them, or no "
            "better than chance",
            fix="Name more comparisons than that, which it was not trained on.",
        )
    now = replace(now, scale=1.0, shift=now.shift / now.scale)  # the margins are those of the head
    words = f"temperature {temperature:.6g}, fitted on {len(margins):,} comparisons of {name}"
    return _per_temperature(now, temperature, words)


def fit_temperature(margin_P: np.ndarray, preference_prob_P: np.ndarray) -> float | None:
    r"""The temperature at which the sigmoid of margins explains labels best.

    The log loss is convex in :math:`\beta = 1/t`; its slope,
    :math:`\overline{m (1 - s) - m \sigma(-\beta m)}`, is brought to zero by bisection.

    Args:
        margin_P: Reward of the better response less that of the worse one, m.
        preference_prob_P: Probability that the better one is better, s.

    Returns:
        The temperature; None where none between a thousandth and a thousandfold of the margins' size is best.

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


# --- rows ---------------------------------------------------------------------------------------------------------


def _scored(
    scorer: RewardModel, rows: Rows, wishes: Wishes
) -> Iterator[tuple[tuple[int, Mapping[str, Any] | None], Any, Score]]:
    """Each row with its number, the types of its columns, and its rewards; NaN where it is too long."""
    for start, some, features in _chunks(rows, wishes):
        scores = scorer.score_prepared(some, first_row=start, features=features)
        for number, (row, (_, score)) in enumerate(zip(some, scores, strict=True), start=start):
            if any(math.isinf(one) for one in _as_list(score)):
                raise DataError("has an infinite reward", row=number, fix="Leave the row out, or look at the model.")
            yield (number, features), row, score


def _chunks(rows: Rows, wishes: Wishes) -> Iterator[tuple[int, list[Any], Mapping[str, Any] | None]]:
    if isinstance(rows, str | os.PathLike):
        opened = open_input(rows, config=wishes.dataset_config, split=wishes.dataset_split)
        for chunk in opened.chunks(_ROWS_AT_ONCE):
            yield chunk.start, list(chunk.rows), opened.features
        return
    start, some = 0, []
    features = getattr(rows, "features", None)
    for row in rows:
        some.append(row)
        if len(some) == _ROWS_AT_ONCE:
            yield start, some, features
            start, some = start + len(some), []
    if some:
        yield start, some, features


def _as_list(score: Score) -> list[float]:
    return [score] if isinstance(score, int | float) else list(score)


def _label_of(row: Any, number: int, features: Mapping[str, Any] | None) -> Label:
    if not isinstance(row, Mapping):
        fix = "Give it `chosen` and `rejected`, or `responses` with `scores` or `ranks`."
        raise DataError("does not say which response is better", row=number, fix=fix)
    filled = {name for name, value in row.items() if value is not None}
    tokenized = set(TOKENIZED_COLUMNS) <= filled or "response_ids" in filled
    return read_example(row, row_number=number, tokenized=tokenized, features=features).label


def _name_of(rows: Rows) -> str:
    """What the data are called; of a path its last part, for a model may be shared."""
    if not isinstance(rows, str | os.PathLike):
        return "rows in memory"
    path = Path(rows).expanduser()
    return path.name if path.exists() else os.fspath(rows)
