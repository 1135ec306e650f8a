"""Measures how well rules without understanding do, and names rows that contradict the bag of words."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from plaudit.doctor.leaks import Leak, find_leaks
from plaudit.doctor.rows import CheckedRow, Comparison, Sample
from plaudit.intervals import wilson_interval
from plaudit.schema import comparisons_of

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression


WORD = r"[^\s]+"
STRENGTHS = (0.01, 0.03, 0.1, 1.0)
"""Inverse strengths of the penalty to choose from (scikit-learn's ``C``)."""
MOST_WORDS = 200_000
"""Words and pairs of words that are counted: the most frequent."""


def count_words(better: Sequence[str], worse: Sequence[str]) -> tuple[Any, Any, Any]:
    """Counts the words and pairs of words that occur in at least two responses of P comparisons.

    Returns the fitted vectorizer, and the counts in the better and in the worse responses: sparse, shape (P, W).
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=WORD, min_df=2, max_features=MOST_WORDS)
    vectorizer.fit([*better, *worse])
    return vectorizer, vectorizer.transform(better), vectorizer.transform(worse)


def out_of_fold(differences: Any, groups: Sequence[int], *, folds: int = 5, seed: int = 0) -> np.ndarray | None:
    """Probability that the better response wins, by models that were fitted on other prompts, shape (P,).

    Each fold chooses its own penalty on a part of its rows, so that nothing is known of the rows that are judged.
    """
    from sklearn.model_selection import GroupKFold

    folds = min(folds, len(set(groups)) // 2)
    if folds < 2:
        return None
    prompts = np.asarray(groups)
    probabilities_P = np.empty(differences.shape[0])
    for fit, judge in GroupKFold(folds).split(differences, groups=prompts):
        model = fit_bradley_terry(differences[fit], prompts[fit], seed=seed)
        probabilities_P[judge] = model.predict_proba(differences[judge])[:, 1]
    return probabilities_P


def fit_bradley_terry(differences: Any, groups: Sequence[int] | np.ndarray, *, seed: int = 0) -> LogisticRegression:
    """Fits on comparisons, with the penalty that is best on a fifth of the prompts, which is held out for that."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupShuffleSplit

    regression = partial(LogisticRegression, fit_intercept=False, max_iter=2000, tol=1e-3)
    # The better response always comes first; every second comparison is turned round, which changes no loss.
    signs_P = np.where(np.random.default_rng(seed).random(differences.shape[0]) < 0.5, 1, -1)
    signs_P[:2] = 1, -1
    mirrored = differences.multiply(signs_P[:, None]).tocsr()
    fit, judge = next(GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(mirrored, groups=groups))
    right = {}
    if len(set(signs_P[fit].tolist())) == 2:
        for strength in STRENGTHS:
            scores = regression(C=strength).fit(mirrored[fit], signs_P[fit]).decision_function(mirrored[judge])
            right[strength] = float(np.mean((scores * signs_P[judge] > 0) + 0.5 * (scores == 0)))
    best = max(right, key=right.__getitem__) if right else STRENGTHS[1]
    return regression(C=best).fit(mirrored, signs_P)


@dataclass(frozen=True)
class BagOfWords:
    """A reward model that counts words."""

    vectorizer: Any  # counts the words and pairs of words of a text
    weights_W: np.ndarray  # reward of each
    comparisons: int  # how many comparisons it was fitted on

    @classmethod
    def fit(cls, better: Sequence[str], worse: Sequence[str], groups: Sequence[int], *, seed: int = 0) -> BagOfWords:
        """Fits on comparisons."""
        vectorizer, better_counts, worse_counts = count_words(better, worse)
        model = fit_bradley_terry(better_counts - worse_counts, groups, seed=seed)
        return cls(vectorizer, model.coef_[0], len(better))

    def rewards(self, texts: Sequence[str]) -> np.ndarray:
        """Reward of each text, shape (N,)."""
        rewards_N: np.ndarray = self.vectorizer.transform(texts) @ self.weights_W
        return rewards_N


logger = logging.getLogger("plaudit")
SUSPECTS = 20
"""Number of likely mislabelled rows to list."""
LEAST_COMPARISONS = 40
"""Minimum number of comparisons for a bag of words."""
_QUOTED = re.compile(r'"(.+)"')
WORDS_LEAKING = 8
"""Number of words and pairs of words to list as leaks."""


@dataclass(frozen=True)
class Shortcut:
    """How often a rule that knows nothing of the content prefers the right response."""

    name: str  # the rule
    accuracy: float  # share of the comparisons it gets right, each row counting as one; equal ones count half
    low: float  # lower end of the 95% interval (Wilson)
    high: float  # upper end
    rows: int  # number of rows
    note: str = ""  # what else there is to say

    @classmethod
    def of(cls, name: str, right: float, rows: int, note: str = "") -> Shortcut:
        """Makes one from counts."""
        return cls(name, right / rows, *wilson_interval(right, rows), rows, note)


@dataclass(frozen=True)
class Suspect:
    """A row that is perhaps labelled the wrong way round."""

    row: int  # its number
    probability: float  # probability that its preferred response is the better one, according to the words
    better: str  # beginning of that response
    worse: str  # beginning of the other


class Lengths:
    """Counts how often the longer response is the better one, over all rows."""

    def __init__(self) -> None:
        self._right, self._rows, self._ties = 0.0, 0, 0

    def add(self, row: CheckedRow) -> None:
        """Counts a row."""
        pairs = comparisons_of(row.ratings)
        if not pairs:
            return
        sizes = row.lengths if row.parts is None else [len(response) for response in row.parts.responses]
        wins = [(sizes[i] > sizes[j]) + 0.5 * (sizes[i] == sizes[j]) for i, j in pairs]
        self._right += sum(wins) / len(wins)
        self._ties += all(win == 0.5 for win in wins)
        self._rows += 1

    def shortcuts(self) -> list[Shortcut]:
        """The rule "the longer is the better one", in a list that is empty where no row compares."""
        note = f"{self._ties / self._rows:.0%} equally long" if self._ties else ""
        return [Shortcut.of("always the longer", self._right, self._rows, note)] if self._rows else []


def read_words(sample: Sample, *, seed: int = 0) -> tuple[Shortcut, list[Suspect], list[Leak]] | None:
    """Fits bag-of-words models to a sample of rows; None where there is too little to fit.

    Returns how they do on prompts that they were not fitted on, the rows that they contradict most, the clearest
    first, and the words and pairs of words of one side.
    """
    comparisons = sample.comparisons()
    if len(comparisons) < LEAST_COMPARISONS:
        return None
    try:
        vectorizer, *counts = count_words([pair.better for pair in comparisons], [pair.worse for pair in comparisons])
    except ValueError as error:  # no word occurs twice
        logger.info("No bag of words: %s", error)
        return None
    prompts = [pair.prompt_key for pair in comparisons]
    probabilities_P = out_of_fold(counts[0] - counts[1], prompts, seed=seed)
    if probabilities_P is None:
        return None
    _, firsts, row_of = np.unique([pair.row for pair in comparisons], return_index=True, return_inverse=True)
    right_P = (probabilities_P > 0.5) + 0.5 * (probabilities_P == 0.5)
    right = np.bincount(row_of, weights=right_P) / np.bincount(row_of)
    drawn = len(firsts)
    note = "words and pairs of words, cross-validated by prompt"
    if drawn < sample.seen:
        note += f"; on {drawn:,} of {sample.seen:,} rows, drawn at random"
    suspects: dict[int, Suspect] = {}
    for index in np.argsort(probabilities_P, kind="stable").tolist():
        pair, probability = comparisons[index], float(probabilities_P[index])
        if probability >= 0.5 or len(suspects) == SUSPECTS:
            break
        suspects.setdefault(pair.row, Suspect(pair.row, probability, pair.better[:400], pair.worse[:400]))
    # One comparison of each row: those of one row are not independent.
    words = _leaking_words(vectorizer.get_feature_names_out().tolist(), [side[firsts] for side in counts])
    openings = _leaking_openings([comparisons[index] for index in firsts])
    shortcut = Shortcut.of("bag of words", float(right.sum()), drawn, note)
    return shortcut, list(suspects.values()), words + openings


def _leaking_words(words: Sequence[str], counts: Sequence[Any]) -> list[Leak]:
    """Words and pairs of words that occur in responses of nearly one side only."""
    size = counts[0].shape[0]
    chosen_W, rejected_W = (np.asarray((side > 0).sum(axis=0), float).reshape(-1) for side in counts)
    clear = [leak for leak in find_leaks(words, chosen_W, size, rejected_W, size) if leak.one_sided]
    # A pair of words says more than one of its words that occurs as often.
    clear.sort(key=lambda leak: (-round(abs(leak.effect), 2), -len(leak.mark)))
    return distinct([replace(leak, mark=f'the text "{leak.mark}"') for leak in clear])[:WORDS_LEAKING]


def distinct(leaks: Sequence[Leak]) -> list[Leak]:
    """Drops quoted words that an earlier mark also quotes: "sorry" after "I'm sorry"."""
    kept, seen = [], set[str]()
    for leak in leaks:
        words = {word for quoted in _QUOTED.findall(leak.mark) for word in re.findall(r"\w+", quoted.lower())}
        if leak.mark.startswith("the text") and words & seen:
            continue
        kept.append(leak)
        seen |= words
    return kept


def _leaking_openings(comparisons: Sequence[Comparison]) -> list[Leak]:
    """First and last words that occur on nearly one side only."""
    sides: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for pair in comparisons:
        for side, text in zip(sides, (pair.better, pair.worse), strict=True):
            words = text.lower().split()
            if len(words) >= 6:
                side[f'the opening "{" ".join(words[:3])}"'] += 1
                side[f'the ending "{" ".join(words[-3:])}"'] += 1
    names = [name for name in sides[0] | sides[1] if sides[0][name] + sides[1][name] > 1]
    chosen, rejected = (np.array([side[name] for name in names], float) for side in sides)
    leaks = find_leaks(names, chosen, len(comparisons), rejected, len(comparisons))
    return [leak for leak in leaks if leak.one_sided][:3]
