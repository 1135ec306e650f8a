"""What a reward model must beat: a bag of words that learned from the same preferences."""

from __future__ import annotations

import random
from collections.abc import Container
from os import PathLike

import numpy as np

from plaudit.doctor.bag_of_words import BagOfWords
from plaudit.errors import DataError
from plaudit.evaluation.scored import ScoredSet
from plaudit.evaluation.suite_sources import LoadedSuite, Rows, resolve_suites
from plaudit.types import comparisons_of

MOST_COMPARISONS = 50_000
_MOST_OF_A_ROW = 8


class BagOfWordsBaseline:
    """A bag of words, fitted once and held against models on suites.

    Args:
        data: Preferences to fit it on: a file, a folder, a data set on the Hub (its split ``train``), or rows.
        seed: Decides what is drawn where there are very many comparisons.

    Raises:
        DataError: The data cannot be read, or are too few.
        ConfigError: There are no such data.
    """

    def __init__(self, data: str | PathLike[str] | Rows, *, seed: int = 0) -> None:
        source = resolve_suites([data])[0]
        better, worse, groups = _comparisons(source.load(), seed)
        try:
            self._model = BagOfWords.fit(better, worse, groups, seed=seed)
        except ValueError as error:
            raise DataError(
                f"is too little to fit a bag of words on ({error})",
                dataset=source.label,
                fix="Give it the preferences that the model was trained on.",
            ) from error
        self.name = f"bag of words ({source.label}, {self._model.comparisons:,} comparisons)"

    def scored(self, suite: LoadedSuite, places: Container[int]) -> ScoredSet:
        """Some rows of a suite with the rewards that the bag of words gives.

        Args:
            suite: The rows.
            places: Numbers of those that count.
        """
        rows = (row for row in suite.rows if row.row in places)
        return ScoredSet(row.scored(self._model.rewards(row.texts()).tolist()) for row in rows)


def _comparisons(suite: LoadedSuite, seed: int) -> tuple[list[str], list[str], list[int]]:
    """Better and worse texts and the number of the prompt of each comparison; some of them where there are many."""
    draw = random.Random(seed)
    found: list[tuple[str, str, str]] = []
    for row in suite.rows:
        texts = row.texts()
        scored = row.scored([0.0] * len(texts))
        pairs = comparisons_of(scored.goodness)
        for one, other in pairs if len(pairs) <= _MOST_OF_A_ROW else draw.sample(pairs, _MOST_OF_A_ROW):
            found.append((texts[one], texts[other], scored.cluster))
    if len(found) > MOST_COMPARISONS:
        found = draw.sample(found, MOST_COMPARISONS)
    groups = np.unique([cluster for *_, cluster in found], return_inverse=True)[1].tolist() if found else []
    return [one for one, *_ in found], [other for _, other, _ in found], groups
