"""What the members of an ensemble say about a response, and how far they disagree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers.utils import cached_file

from plaudit.errors import ConfigError
from plaudit.model.adapters import base_model_of
from plaudit.model.calibration import RewardCalibration
from plaudit.model.training_heads import FILE_NAME, ensemble_in, heads_of, install_training_heads
from plaudit.scoring.rows import Shape

_FIX = (
    "Train it with `RewardConfig(ensemble_size=8)` (`plaudit train --ensemble_size 8`), and name the folder that has "
    f"{FILE_NAME}: the model alone has one reward head."
)


@dataclass(frozen=True)
class UncertainReward:
    """Rewards, and how far the members of an ensemble disagree about them; each shaped like the row, or rows.

    Attributes:
        mean: The rewards themselves: the mean over members.
        spread: Standard deviation over members, in units of the reward.
        lower: ``mean - caution * spread``.
        members: What each member says: the last dimension of an array, or a list of arrays, one a row.
    """

    mean: Any
    spread: Any
    lower: Any
    members: Any = field(repr=False)

    @classmethod
    def of(cls, shape: Shape, rewards: Sequence[float], members_NK: np.ndarray, caution: float) -> UncertainReward:
        """What is to be said of one row.

        Args:
            shape: Shape of its rewards.
            rewards: Its rewards, calibrated.
            members_NK: What the members say, calibrated, shape (N, K).
            caution: How many spreads below the mean the lower bound is.
        """
        spread = spread_of(members_NK)
        lower = [mean - caution * one for mean, one in zip(rewards, spread, strict=True)]
        if shape == "one":
            return cls(rewards[0], spread[0], lower[0], members_NK[0])
        kind: Any = tuple if shape == "pair" else list
        return cls(kind(rewards), kind(spread), kind(lower), members_NK)

    @classmethod
    def together(cls, rows: Sequence[UncertainReward]) -> UncertainReward:
        """What is said of several rows, as lists with one entry a row.

        Args:
            rows: The rows.
        """
        return cls(*([getattr(row, name) for row in rows] for name in ("mean", "spread", "lower", "members")))

    def margin(self, caution: float) -> UncertainReward:
        """How much better the first response of a pair is than the second, and how far members disagree about that.

        Args:
            caution: How many spreads below the mean the lower bound is.
        """
        chosen, rejected = self.mean
        members_1K = (self.members[0] - self.members[1])[None]
        return UncertainReward.of("one", [chosen - rejected], members_1K, caution)


def spread_of(members_NK: np.ndarray) -> list[float]:
    """Standard deviation over members, K - 1 in the denominator: they are a sample of what might have been learned.

    Args:
        members_NK: What each member says of each response, shape (N, K).

    >>> spread_of(np.array([[1.0, 3.0], [2.0, 2.0]]))
    [1.4142135623730951, 0.0]
    """
    found: list[float] = members_NK.std(axis=1, ddof=1).tolist()
    return found


def compared(members_NK: np.ndarray) -> np.ndarray:
    """What each member says of some responses to one prompt, less what it says of them on average.

    What a member adds to all responses of a prompt decides nothing between them.

    Args:
        members_NK: Shape (N, K); responses that could not be scored are NaN.
    """
    known_N = ~np.isnan(members_NK).any(axis=1)
    return members_NK - (members_NK[known_N].mean(axis=0) if known_N.any() else 0.0)


def calibrated(raw: Sequence[Sequence[float]], calibration: RewardCalibration | None) -> tuple[list[float], np.ndarray]:
    """Rewards, and those of the members (N, K), of what the engine says about the responses of a row.

    Args:
        raw: For each response the reward, and what each member adds.
        calibration: What turns rewards into those reported.
    """
    report: Callable[[float], float] = (lambda one: one) if calibration is None else calibration.reward
    scale = 1.0 if calibration is None else calibration.scale
    rewards = [report(one[0]) for one in raw]
    deviations_NK = scale * np.array([one[1:] for one in raw], dtype=np.float64)
    return rewards, np.array(rewards)[:, None] + deviations_NK


def load_ensemble(model: Any, name: str, revision: str | None = None) -> None:
    """Put the ensemble that lies beside a model, if there is one, back into it.

    Args:
        model: The reward model, or an adapter around it; changed in place.
        name: Its folder, or its id on the Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ConfigError: The ensemble belongs to a model of another size.
    """
    try:
        found: str | None = cached_file(name, FILE_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError:  # not on the Hub, or no way there
        return
    heads = None if found is None else ensemble_in(Path(found))
    if heads is None or heads.ensemble is None:
        return
    base_model = base_model_of(model)
    width = base_model.config.get_text_config().hidden_size
    if heads.ensemble.in_features != width:
        raise ConfigError(
            f"{found} is for states of width {heads.ensemble.in_features}, and those of {name!r} have {width}",
            fix="Keep it beside the model that it was trained with, or delete it.",
        )
    if hasattr(base_model, "score"):
        install_training_heads(base_model, heads.eval().requires_grad_(False))


def require_ensemble(model: Any, name: str, caution: float) -> int:
    """How many members a model has.

    Args:
        model: The reward model, or an adapter around it.
        name: What it is called.
        caution: How many spreads below the mean the lower bound is to be.

    Raises:
        ConfigError: It has none, or `caution` is no number of spreads.
    """
    if isinstance(caution, bool) or not isinstance(caution, int | float) or not 0 <= caution < math.inf:
        raise ConfigError(f"`caution` is {caution!r}", fix="Give 0 or more: how many spreads below the mean.")
    heads = heads_of(base_model_of(model))
    if heads is None or heads.ensemble is None:
        raise ConfigError(f"{name!r} has no ensemble, and so no spread", fix=_FIX)
    return heads.ensemble.out_features
