"""Sanity checks: rewards of some rows against those of variants of the same rows, which are lines of the same table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from plaudit.errors import ConfigError
from plaudit.evaluation.results import Check
from plaudit.evaluation.stats import pair_statistics
from plaudit.evaluation.suites.base import SuiteRow
from plaudit.evaluation.suites.registry import LoadedSuite
from plaudit.evaluation.table import ScoredSet, by_row

SWAPPED, ALONE, PADDED = "swapped labels", "batch size", "padding"
"""Variants of a row: with its labels swapped, alone in its batch, and padded as much as possible."""
TOLERANCE = {"float64": 1e-9, "float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Allowed difference of two rewards of the same response, relative to the largest reward or to 1, by dtype."""
_ROWS_NAMED = 5


def sanity_checks(table: pa.Table, suite: LoadedSuite, scored: ScoredSet, *, dtype: str) -> tuple[Check, ...]:
    """Checks that rewards differ, and (where the table has variants of rows) that they depend on the texts only."""
    rows = {(row.source, row.number): row for row in suite.rows}
    as_is = {row.row: row for row in scored}

    def both(variant: str, change: Callable[[SuiteRow], SuiteRow] = lambda row: row) -> tuple[ScoredSet, ScoredSet]:
        rewards = by_row(table, variant=variant)
        keys = sorted(rewards, key=lambda key: rows[key].row)
        first = ScoredSet(as_is[rows[key].row] for key in keys)
        return first, ScoredSet(change(rows[key]).scored(rewards[key]) for key in keys)

    alone = both(ALONE)
    if not len(alone[0]):
        return (check_constant(scored),)
    return (
        check_constant(scored),
        check_swapped_labels(*both(SWAPPED, lambda row: replace(row, raw=swap_labels(row.raw)))),
        check_invariance(ALONE, *alone, dtype=dtype),
        check_invariance(PADDED, *both(PADDED), dtype=dtype),
    )


def check_constant(scored: ScoredSet) -> Check:
    """Checks whether rewards differ at all: a head that is not trained, or not loaded, may give one for everything."""
    distinct, total = len(np.unique(scored.rewards_N)), len(scored.rewards_N)
    passed = distinct > 1 or total < 2
    message = f"There are {distinct} different rewards for {total} responses."
    if not passed:
        message = "All responses have the same reward: the model tells nothing apart."
    return Check("constant rewards", passed, message, value=float(distinct))


def swap_labels(row: Mapping[str, Any]) -> dict[str, Any]:
    """Swaps the labels of a raw row: the worst response becomes the best one. Single responses raise `ConfigError`.

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
        raise ConfigError("a row with a single response has no labels to swap", fix="Remove such rows.")
    return swapped


def check_swapped_labels(scored: ScoredSet, swapped: ScoredSet) -> Check:
    """Checks that the accuracy with swapped labels is ``1 - accuracy - tie_rate``.

    A model that sees only the texts has that accuracy. Another one shows that something else gets through: the order
    of the responses, or the label itself.
    """
    straight, turned = pair_statistics(scored), pair_statistics(swapped)
    if straight.accuracy.value is None or straight.tie_rate is None or turned.accuracy.value is None:
        return Check(SWAPPED, True, "There are no comparisons to swap.")
    expected = 1 - straight.accuracy.value - straight.tie_rate
    gap = abs(turned.accuracy.value - expected)
    passed = gap < 0.5 / straight.comparisons
    numbers = f"accuracy {turned.accuracy.value:.4f} with swapped labels, {expected:.4f} expected"
    reason = "" if passed else ": rewards depend on more than the texts"
    return Check(SWAPPED, passed, f"{numbers}{reason}.", value=gap, tolerance=0.0)


def check_invariance(name: str, first: ScoredSet, second: ScoredSet, *, dtype: str = "float32") -> Check:
    """Checks that rewards equal those of the same responses in other batches, or with other padding."""
    dtype = dtype if dtype in TOLERANCE else "bfloat16"
    tolerance = TOLERANCE[dtype]
    if not len(first.rewards_N):
        return Check(name, True, "There are no rewards to compare.", tolerance=tolerance)
    scale = max(1.0, float(np.abs(first.rewards_N).max()))
    apart_N = np.abs(first.rewards_N - second.rewards_N) / scale
    worst = int(np.argmax(apart_N))
    value, passed = float(apart_N[worst]), bool(apart_N[worst] <= tolerance)
    flips = int(np.sum(np.sign(first.margin_P) != np.sign(second.margin_P)))
    turned = f"; {flips} of {len(first.margin_P)} comparisons change sides" if flips else ""
    message = (
        f"Rewards differ by at most {value:.1e} of their size (allowed {tolerance:.0e} in {dtype}), "
        f"most in row {first[int(first.row_N[worst])].row}{turned}."
    )
    over = sorted({first[int(index)].row for index in first.row_N[apart_N > tolerance]})
    return Check(name, passed, message, value, tolerance, tuple(over[:_ROWS_NAMED]))
