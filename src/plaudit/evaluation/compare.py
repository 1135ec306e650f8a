"""Whether one reward model is better than another on the same rows, or the difference is chance."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from plaudit.errors import ConfigError
from plaudit.evaluation.results import Difference, PValueMethod
from plaudit.evaluation.stats import mean_interval, sums_by_cluster
from plaudit.evaluation.table import ScoredSet

"""A difference with a larger p-value is not called real."""
FLIPS = 20_000
_EXACT_CELLS = 50_000_000


@dataclass(frozen=True)
class Comparison:
    """Two models compared, over all rows and by slice.

    Attributes:
        overall: Over all comparisons.
        slices: Column -> value -> difference; their p-values are corrected together.
    """

    overall: Difference
    slices: Mapping[str, Mapping[str, Difference]]

    @property
    def verdict(self) -> str:
        """The outcome over all comparisons, in one sentence."""
        return self.overall.verdict


def sign_flip_test(differences_C: np.ndarray, *, seed: int = 0) -> tuple[float, PValueMethod]:
    """Two-sided p-value of a sum of differences that would be as likely with the other sign.

    Whole numbers are computed exactly, by adding one difference at a time to the distribution of the sum. If all of
    them are 1, -1 or 0, that is McNemar's exact test. Other numbers, and very many, are flipped at random.

    Args:
        differences_C: Sum of the differences of each prompt.
        seed: Decides the random flips.

    Source: McNemar (1947), Psychometrika 12; Fisher (1935), The Design of Experiments, section 21.

    >>> sign_flip_test(np.array([1, 1, 1, 1, 1, 0, 0]))
    (0.0625, 'mcnemar-exact')
    """
    apart_C = np.asarray(differences_C, dtype=np.float64)
    apart_C = apart_C[np.abs(apart_C) > 1e-12]
    whole_C = np.rint(apart_C)
    sizes_C = np.abs(whole_C).astype(np.int64)
    total = int(sizes_C.sum())
    if not np.allclose(apart_C, whole_C, atol=1e-9) or total * len(sizes_C) > _EXACT_CELLS:
        return _random_flips(apart_C, seed), "sign-flip"
    method: PValueMethod = "sign-flip-exact" if (sizes_C > 1).any() else "mcnemar-exact"
    chances = np.zeros(2 * total + 1)
    chances[total] = 1.0
    for size in sizes_C:
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    reached = abs(int(whole_C.sum()))
    sums = np.abs(np.arange(-total, total + 1))
    return min(1.0, float(chances[sums >= reached].sum())), method


def _random_flips(apart_C: np.ndarray, seed: int) -> float:
    random = np.random.default_rng(seed)
    reached = abs(float(apart_C.sum())) - 1e-9
    size = max(1, min(FLIPS, 4_000_000 // max(1, len(apart_C))))
    as_far = 0
    for start in range(0, FLIPS, size):
        signs_BC = random.integers(2, size=(min(size, FLIPS - start), len(apart_C))) * 2 - 1
        as_far += int(np.sum(np.abs(signs_BC @ apart_C) >= reached))
    return (as_far + 1) / (FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for having looked at several.

    Args:
        p_values: One for each test.

    Source: Holm (1979), Scandinavian Journal of Statistics 6.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for passed, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - passed) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def compare_outcomes(
    first_M: np.ndarray,
    second_M: np.ndarray,
    cluster_M: np.ndarray,
    *,
    names: tuple[str, str] = ("A", "B"),
    seed: int = 0,
) -> Difference:
    """Compare two models by how they did on the same things.

    Args:
        first_M: Outcome of the first model on each: 1 for right, 0 for wrong, or between.
        second_M: Outcome of the second.
        cluster_M: Number of the prompt of each: what belongs to one prompt is flipped and resampled together.
        names: Of the two models.
        seed: Decides the draws.

    Raises:
        ConfigError: There is nothing to compare, or not equally much.

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
    seed: int = 0,
) -> Comparison:
    """Compare the accuracy of two models on the same rows; equal rewards are not right, as everywhere.

    Margins are not compared: two models have rewards of different size.

    Args:
        first: The rows, scored by the first model.
        second: The same rows, scored by the second.
        names: Of the two models.
        columns: Columns whose values make slices.
        seed: Decides the draws.

    Raises:
        ConfigError: The rows are not the same, or hold no comparison.
    """
    _check_same_rows(first, second, names)
    overall = _accuracy_difference(first, second, names, seed)
    slices: dict[str, dict[str, Difference]] = {}
    for column in columns:
        others = second.sliced(column)
        slices[column] = {
            name: _accuracy_difference(part, others[name], names, seed)
            for name, part in first.sliced(column).items()
            if len(part.margin_P)
        }
    return Comparison(overall, adjusted(slices))


def adjusted(slices: Mapping[str, Mapping[str, Difference]]) -> dict[str, dict[str, Difference]]:
    """Correct the p-values of all slices together.

    Args:
        slices: Column -> value -> difference.
    """
    places = [(column, name) for column, parts in slices.items() for name in parts]
    corrected = holm([slices[column][name].p_value for column, name in places])
    result: dict[str, dict[str, Difference]] = {column: {} for column in slices}
    for (column, name), p_adjusted in zip(places, corrected, strict=True):
        result[column][name] = replace(slices[column][name], p_adjusted=p_adjusted)
    return result


def _accuracy_difference(first: ScoredSet, second: ScoredSet, names: tuple[str, str], seed: int) -> Difference:
    return compare_outcomes(first.margin_P > 0, second.margin_P > 0, first.cluster_P, names=names, seed=seed)


def _check_same_rows(first: ScoredSet, second: ScoredSet, names: tuple[str, str]) -> None:
    if len(first) != len(second):
        fix = "Compare on the rows that both have."
        raise ConfigError(f"{names[0]} was scored on {len(first)} rows and {names[1]} on {len(second)}", fix=fix)
    for one, other in zip(first, second, strict=True):
        if (one.row, one.id, one.label, one.cluster) != (other.row, other.id, other.label, other.cluster):
            raise ConfigError(
                f"the models were not scored on the same rows: row {one.row} of {names[0]} stands where "
                f"{names[1]} has row {other.row}, or the data says something else about it",
                fix="Score the same rows, in the same order, with both models.",
            )
