"""Whether one reward model is better than another on the same rows, or the difference is chance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest

from plaudit.errors import ConfigError
from plaudit.evaluation.results import Difference, PValueMethod
from plaudit.evaluation.stats import mean_interval, sums_by_cluster
from plaudit.evaluation.suites.base import Suite
from plaudit.evaluation.table import ScoredSet
from plaudit.intervals import holm

FLIPS = 20_000
_EXACT_CELLS = 50_000_000


class Comparison(NamedTuple):
    """Two models compared over all outcomes and by slice; the p-values of slices are corrected together."""

    overall: Difference
    slices: dict[str, dict[str, Difference]]  # column -> value -> difference


def sign_flip_test(differences_C: np.ndarray, *, seed: int = 0) -> tuple[float, PValueMethod]:
    """Returns the two-sided p-value of a sum of differences whose signs are as likely the other way round.

    The distribution of whole numbers is computed exactly; if all are 1, -1 or 0, that is McNemar's exact test. Other
    numbers, and very many, are flipped at random.

    Source: McNemar (1947), Psychometrika 12; Fisher (1935), The Design of Experiments, section 21.

    >>> sign_flip_test(np.array([1, 1, 1, 1, 1, 0, 0]))
    (0.0625, 'mcnemar-exact')
    """
    apart_C = np.asarray(differences_C, dtype=np.float64)
    apart_C = apart_C[np.abs(apart_C) > 1e-12]
    whole_C = np.rint(apart_C).astype(np.int64)
    sizes_C, is_whole = np.abs(whole_C), np.allclose(apart_C, whole_C, atol=1e-9)
    if is_whole and (sizes_C == 1).all():
        wins, n = int(np.sum(whole_C > 0)), len(whole_C)
        return (float(binomtest(wins, n).pvalue) if n else 1.0), "mcnemar-exact"
    total = int(sizes_C.sum())
    if not is_whole or total * len(sizes_C) > _EXACT_CELLS:
        random, as_far = np.random.default_rng(seed), 0
        size = max(1, min(FLIPS, 4_000_000 // len(apart_C)))
        for start in range(0, FLIPS, size):
            signs_BC = random.integers(2, size=(min(size, FLIPS - start), len(apart_C))) * 2 - 1
            as_far += int(np.sum(np.abs(signs_BC @ apart_C) >= abs(float(apart_C.sum())) - 1e-9))
        return (as_far + 1) / (FLIPS + 1), "sign-flip"
    chances = np.zeros(2 * total + 1)
    chances[total] = 1.0
    for size in sizes_C:  # adds one difference at a time to the distribution of the sum
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    reached = abs(int(whole_C.sum()))
    return min(1.0, float(chances[np.abs(np.arange(-total, total + 1)) >= reached].sum())), "sign-flip-exact"


def compare_outcomes(
    first_M: np.ndarray,
    second_M: np.ndarray,
    cluster_M: np.ndarray,
    *,
    names: tuple[str, str] = ("A", "B"),
    seed: int = 0,
) -> Difference:
    """Compares two models by their outcomes, from 0 (wrong) to 1 (right); what shares a prompt is flipped together.

    >>> found = compare_outcomes(np.ones(40), np.repeat([1, 0], 20), np.arange(40), names=("new", "old"))
    >>> found.verdict
    'new is better than old by 50.0 points (95% 35.0 to 65.0), p < 0.0001'
    """
    first_M, second_M = np.asarray(first_M, dtype=np.float64), np.asarray(second_M, dtype=np.float64)
    if not len(first_M) or len(first_M) != len(second_M):
        raise ConfigError(
            f"{names[0]} has {len(first_M)} outcomes and {names[1]} has {len(second_M)}: nothing to compare",
            fix="Score the same rows, which must hold comparisons, with both models.",
        )
    difference_M = first_M - second_M
    sums_C = sums_by_cluster(difference_M[:, None], cluster_M)[:, 0]
    p_value, method = sign_flip_test(sums_C, seed=seed)
    return Difference(
        names=names,
        n=len(first_M),
        prompts=len(sums_C),
        scores=(float(first_M.mean()), float(second_M.mean())),
        difference=float(difference_M.mean()),
        interval=mean_interval(difference_M, cluster_M, seed=seed),
        p_value=p_value,
        p_adjusted=p_value,
        method=method,
        only_first=int(np.sum(difference_M > 0)),
        only_second=int(np.sum(difference_M < 0)),
    )


def compare(
    first: ScoredSet,
    second: ScoredSet,
    *,
    names: tuple[str, str] = ("A", "B"),
    columns: Iterable[str] = (),
    rule: Suite | None = None,
    seed: int = 0,
) -> Comparison:
    """Compares two models on the same rows, overall and by the values of some columns.

    By a suite's `rule` the mean outcome over rows is compared, which weighs rows alike; the headline of a suite may
    weigh its parts otherwise. Without one it is the accuracy over all comparisons; equal rewards are not right, as
    everywhere. Margins are not compared: the rewards of two models differ in scale.
    """
    if len(first) != len(second):
        fix = "Compare on the rows that both have."
        raise ConfigError(f"{names[0]} was scored on {len(first)} rows and {names[1]} on {len(second)}", fix=fix)
    for a, b in zip(first, second, strict=True):
        if (a.row, a.id, a.label, a.cluster) != (b.row, b.id, b.label, b.cluster):
            raise ConfigError(
                f"the models were not scored on the same rows: where {names[0]} has row {a.row}, {names[1]} has row "
                f"{b.row}, or another label",
                fix="Score the same rows, in the same order, with both models.",
            )
    if rule is None:
        index_M, outcomes = first.row_N[first.better_P], [scored.margin_P > 0 for scored in (first, second)]
    else:
        by_row = [rule.outcomes(scored) for scored in (first, second)]
        index_M = np.array([index for index, row in enumerate(first) if row.row in by_row[0]], dtype=np.int64)
        outcomes = [np.array([of[first[index].row] for index in index_M]) for of in by_row]
    cluster_M = first.cluster_G[index_M]

    def difference(kept_M: np.ndarray) -> Difference:
        first_M, second_M = (of[kept_M] for of in outcomes)
        return compare_outcomes(first_M, second_M, cluster_M[kept_M], names=names, seed=seed)

    overall = difference(np.ones(len(index_M), dtype=bool))
    values = {column: np.array(first.values_of(column))[index_M] for column in columns}
    places = [(column, str(value)) for column, values_M in values.items() for value in np.unique(values_M)]
    parts = [difference(values[column] == value) for column, value in places]
    slices: dict[str, dict[str, Difference]] = {column: {} for column in values}
    for (column, value), part, p in zip(places, parts, holm([part.p_value for part in parts]), strict=True):
        slices[column][value] = replace(part, p_adjusted=p)
    return Comparison(overall, slices)
