"""Checks that a reward model, and the code that runs it, give what they should: mostly rewards computed twice."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.results import Check
from plaudit.evaluation.row_scoring import ScoringSettings, score_rows
from plaudit.evaluation.stats import pair_statistics
from plaudit.evaluation.suites.base import SuiteRow
from plaudit.evaluation.suites.registry import LoadedSuite
from plaudit.evaluation.table import ScoredRow, ScoredSet
from plaudit.inference.reward_model import RewardModel
from plaudit.model.shared_prefix import BatchLayout
from plaudit.schema import row_kind_of

logger = logging.getLogger("plaudit")


def sanity_checks(
    model: RewardModel, suite: LoadedSuite, scored: ScoredSet, settings: ScoringSettings, *, rows: int, seed: int = 0
) -> tuple[Check, ...]:
    """Check that rewards differ, and that they depend on nothing but the texts.

    Args:
        model: The reward model.
        suite: The rows of the suite.
        scored: The same, scored; without those that were left out.
        settings: How they were scored.
        rows: How many of them to score again, drawn at random (0: none, and no check but the first).
        seed: Decides which.
    """
    checks = [check_constant(scored)]
    if rows < 1 or not len(scored):
        return tuple(checks)
    drawn = np.random.default_rng(seed).permutation(len(scored))[:rows]
    before = ScoredSet(scored[place] for place in sorted(drawn.tolist()))
    by_number = {row.row: row for row in suite.rows}
    again = [by_number[row.row] for row in before]
    dtype = str(model.dtype).removeprefix("torch.")
    dtype = dtype if dtype in TOLERANCE else "bfloat16"
    checks.append(_swapped(model, suite, before, again, settings))
    alone = _variant(model, max_tokens=1, layout="auto" if model.batch_layout == "shared_prefix" else "padded")
    one_by_one = _scored(alone, suite, again, settings)
    checks.append(check_invariance("batch size", before, one_by_one, dtype=dtype))
    checks.append(check_invariance("padding", before, _much_padded(model, suite, again, before, settings), dtype=dtype))
    return tuple(checks)


def _scored(model: RewardModel, suite: LoadedSuite, rows: Sequence[SuiteRow], settings: ScoringSettings) -> ScoredSet:
    return ScoredSet(score_rows(model, replace(suite, rows=tuple(rows)), settings).rows)


def _swapped(
    model: RewardModel, suite: LoadedSuite, before: ScoredSet, again: Sequence[SuiteRow], settings: ScoringSettings
) -> Check:
    listed = [place for place, row in enumerate(again) if row_kind_of(row.raw) in ("pairs", "scores", "ranks")]
    turned = [replace(again[place], raw=swap_labels(again[place].raw)) for place in listed]
    straight = ScoredSet(before[place] for place in listed)
    return check_swapped_labels(straight, _scored(model, suite, turned, settings))


def _much_padded(
    model: RewardModel, suite: LoadedSuite, again: Sequence[SuiteRow], before: ScoredSet, settings: ScoringSettings
) -> ScoredSet:
    """Score the shortest rows in one rectangle with the longest, which pads them as much as can be."""
    order = sorted(range(len(again)), key=lambda place: sum(before[place].characters or ()))
    half = (len(order) + 1) // 2
    found: dict[int, ScoredRow] = {}
    # One after the other, the shortest with the longest: more at a time would take more memory than the model had.
    padded = _variant(
        model, layout="padded", max_tokens=max(model.max_tokens_per_batch, 8 * (settings.limit(model) or 2048))
    )
    for low, high in zip(order[:half], reversed(order[len(order) - half :]), strict=True):
        rows = [again[place] for place in sorted({low, high})]
        found.update((row.row, row) for row in _scored(padded, suite, rows, settings))
    return ScoredSet(found[row.row] for row in before)


def _variant(model: RewardModel, *, max_tokens: int, layout: BatchLayout) -> RewardModel:
    """The same model, put to work otherwise."""
    with _silent():
        return RewardModel(
            model.model,
            model.processing_class,
            batch_layout=layout,
            max_tokens_per_batch=max_tokens,
            max_length=model.max_length,
            overlong=model.overlong,
            calibration=model.calibration,
            name=model.name,
        )


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the warnings that the model has given already."""
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""How far two rewards of the same response may be apart, relative to the largest reward or to 1, by dtype."""
_ROWS_NAMED = 5


def check_finite(rewards: Iterable[Sequence[float]], rows: Iterable[int] | None = None) -> None:
    """Refuse rewards that are NaN or infinite.

    Args:
        rewards: Rewards of the responses of each row.
        rows: Number of each row (None: counted from 0).

    Raises:
        DataError: Some are; the message counts the rows and names the first.

    >>> check_finite([(1.0, 2.0), (float("nan"), 0.0)], rows=[10, 17])
    Traceback (most recent call last):
        ...
    plaudit.errors.DataError: row 17: the reward of response 0 is nan (in 1 row: 17)
      Fix: Look at the model (its dtype, a damaged checkpoint) and at the text of the row.
    """
    numbered = enumerate(rewards) if rows is None else zip(rows, rewards, strict=True)
    broken = [(row, np.asarray(values, dtype=np.float64)) for row, values in numbered if not np.isfinite(values).all()]
    if not broken:
        return
    row, values_N = broken[0]
    place = int(np.flatnonzero(~np.isfinite(values_N))[0])
    names = ", ".join(str(one) for one, _ in broken[:_ROWS_NAMED]) + (", ..." if len(broken) > _ROWS_NAMED else "")
    raise DataError(
        f"the reward of response {place} is {values_N[place]} (in {len(broken)} row{'s' * (len(broken) > 1)}: {names})",
        row=row,
        fix="Look at the model (its dtype, a damaged checkpoint) and at the text of the row.",
    )


def check_constant(scored: ScoredSet) -> Check:
    """See whether rewards differ at all: a head that is not trained, or not loaded, may give one for everything.

    Args:
        scored: The rows.
    """
    distinct = len(np.unique(scored.rewards_N))
    passed = distinct > 1 or len(scored.rewards_N) < 2
    said = f"{distinct} different rewards for {len(scored.rewards_N)} responses"
    message = f"There are {said}." if passed else "All responses have the same reward: the model tells nothing apart."
    return Check("constant rewards", passed, message, value=float(distinct))


def swap_labels(row: Mapping[str, Any]) -> dict[str, Any]:
    """Turn round what a raw row says: the worse response becomes the better one.

    Args:
        row: A raw row: a pair, or several responses with scores or ranks.

    Raises:
        ConfigError: The row judges a single response.

    >>> swap_labels({"prompt": "2+2=", "chosen": "4", "rejected": "5"})
    {'prompt': '2+2=', 'chosen': '5', 'rejected': '4'}
    >>> swap_labels({"responses": ["a", "b", "c"], "ranks": [1, 1, 3]})["ranks"]
    [2, 2, 1]
    """
    swapped = dict(row)
    if row.get("chosen") is not None:
        swapped["chosen"], swapped["rejected"] = row["rejected"], row["chosen"]
    elif row.get("responses") is not None and row.get("scores") is not None:
        swapped["scores"] = [-score for score in row["scores"]]
    elif row.get("responses") is not None and row.get("ranks") is not None:
        order = sorted(set(row["ranks"]), reverse=True)
        swapped["ranks"] = [order.index(rank) + 1 for rank in row["ranks"]]
    else:
        raise ConfigError("a row with a single response has no labels to swap", fix="Leave such rows out.")
    return swapped


def check_swapped_labels(scored: ScoredSet, swapped: ScoredSet) -> Check:
    """Hold rewards of rows against rewards of the same rows with their labels swapped.

    A model that sees only the texts then has the accuracy ``1 - accuracy - tie_rate``. Another accuracy says that
    something else gets through: the order of the responses, or the label itself.

    Args:
        scored: The rows as they are.
        swapped: The same rows after :func:`swap_labels`, scored anew.

    Raises:
        ConfigError: The two are not of the same rows.
    """
    _check_same_rows(scored, swapped)
    straight, turned = pair_statistics(scored), pair_statistics(swapped)
    if straight.accuracy.value is None or straight.tie_rate is None or turned.accuracy.value is None:
        return Check("swapped labels", True, "There are no comparisons to swap.")
    expected = 1 - straight.accuracy.value - straight.tie_rate
    gap = abs(turned.accuracy.value - expected)
    passed = gap < 0.5 / straight.comparisons
    numbers = f"accuracy {turned.accuracy.value:.4f} with swapped labels, {expected:.4f} expected"
    said = "" if passed else ": rewards depend on more than the texts"
    return Check("swapped labels", passed, f"{numbers}{said}.", value=gap, tolerance=0.0)


def check_invariance(name: str, first: ScoredSet, second: ScoredSet, *, dtype: str = "float32") -> Check:
    """Hold rewards against those of the same responses in other company: other batches, or other padding.

    Args:
        name: What was changed, such as ``"batch size"`` or ``"padding"``.
        first: The rows, scored.
        second: The same rows, scored the other way.
        dtype: In which the model computes; it decides the tolerance.

    Raises:
        ConfigError: The two are not of the same rows, or the dtype is unknown.
    """
    if dtype not in TOLERANCE:
        raise ConfigError(f"no tolerance is known for the dtype {dtype!r}", fix=f"Use one of: {', '.join(TOLERANCE)}.")
    _check_same_rows(first, second)
    if not len(first.rewards_N):
        return Check(name, True, "There are no rewards to compare.", tolerance=TOLERANCE[dtype])
    scale = max(1.0, float(np.abs(first.rewards_N).max()))
    apart_N = np.abs(first.rewards_N - second.rewards_N) / scale
    worst = int(np.argmax(apart_N))
    value, tolerance = float(apart_N[worst]), TOLERANCE[dtype]
    flips = int(np.sum(np.sign(first.margin_P) != np.sign(second.margin_P)))
    passed = value <= tolerance
    over = sorted({first[int(place)].row for place in first.row_N[apart_N > tolerance]})
    turned = f"; {flips} of {len(first.margin_P)} comparisons change sides" if flips else ""
    message = (
        f"Rewards differ by at most {value:.1e} of their size (allowed {tolerance:.0e} in {dtype}), "
        f"most in row {first[int(first.row_N[worst])].row}{turned}."
    )
    return Check(name, passed, message, value, tolerance, tuple(over[:_ROWS_NAMED]))


def _check_same_rows(first: ScoredSet, second: ScoredSet) -> None:
    def shape(row: ScoredRow) -> tuple[int, int]:
        return row.row, len(row.rewards)

    if [shape(row) for row in first] != [shape(row) for row in second]:
        raise ConfigError(
            f"the two sets of rewards are not of the same rows ({len(first)} and {len(second)} rows)",
            fix="Score the same rows, in the same order, both times.",
        )
