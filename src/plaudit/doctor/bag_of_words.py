"""A Bradley-Terry model whose rewards are linear in counts of words: what a reward model must beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

WORD = r"[^\s]+"
STRENGTHS = (0.01, 0.03, 0.1, 1.0)
"""Inverse strengths of the penalty to choose from (scikit-learn's ``C``)."""
MOST_WORDS = 200_000
"""Words and pairs of words that are counted: the most frequent."""


@dataclass(frozen=True)
class WordCounts:
    """Counts of words and pairs of words in P comparisons.

    Attributes:
        better: Counts in the better response of each, a sparse matrix of shape (P, W).
        worse: Counts in the worse one.
        words: The W words and pairs of words.
    """

    better: Any
    worse: Any
    words: np.ndarray

    @classmethod
    def of(cls, better: Sequence[str], worse: Sequence[str]) -> WordCounts:
        """Count the words and pairs of words that occur in at least two responses.

        Args:
            better: P texts.
            worse: P texts.

        Raises:
            ValueError: There is no such word.
        """
        vectorizer = _vectorizer().fit([*better, *worse])
        return cls(vectorizer.transform(better), vectorizer.transform(worse), vectorizer.get_feature_names_out())


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import CountVectorizer

    return CountVectorizer(ngram_range=(1, 2), token_pattern=WORD, min_df=2, max_features=MOST_WORDS)


def out_of_fold(differences: Any, groups: Sequence[int], *, folds: int = 5, seed: int = 0) -> np.ndarray | None:
    """Probability that the better response wins, by models that were fitted on other prompts, shape (P,).

    Each fold chooses its own penalty on a part of its rows, so that nothing is known of the rows that are judged.

    Args:
        differences: Counts in the better response less those in the worse one, a sparse matrix of shape (P, W).
        groups: The prompt of each comparison.
        folds: Number of folds; fewer where there are fewer prompts.
        seed: Decides which comparisons are mirrored.

    Returns:
        None where there are fewer than four prompts.
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
    """Fit on comparisons, with the penalty that is best on a fifth of the prompts, which is held out for that.

    Args:
        differences: Counts in the better response less those in the worse one, a sparse matrix of shape (P, W).
        groups: The prompt of each comparison.
        seed: Decides which comparisons are mirrored and which prompts held out.

    Returns:
        A model whose ``decision_function`` is the difference of rewards.
    """
    from sklearn.model_selection import GroupShuffleSplit

    # The better response always comes first; every second comparison is turned round, which changes no loss.
    signs_P = np.where(np.random.default_rng(seed).random(differences.shape[0]) < 0.5, 1, -1)
    signs_P[:2] = 1, -1
    mirrored = differences.multiply(signs_P[:, None]).tocsr()
    fit, judge = next(GroupShuffleSplit(1, test_size=0.2, random_state=seed).split(mirrored, groups=groups))
    right = {}
    if len(set(signs_P[fit].tolist())) == 2:
        for strength in STRENGTHS:
            scores = _regression(strength).fit(mirrored[fit], signs_P[fit]).decision_function(mirrored[judge])
            right[strength] = float(np.mean((scores * signs_P[judge] > 0) + 0.5 * (scores == 0)))
    best = max(right, key=right.__getitem__) if right else STRENGTHS[1]
    return _regression(best).fit(mirrored, signs_P)


def _regression(strength: float) -> LogisticRegression:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, fit_intercept=False, max_iter=2000, tol=1e-3)


@dataclass(frozen=True)
class BagOfWords:
    """A reward model that counts words.

    Attributes:
        vectorizer: Counts the words and pairs of words of a text.
        weights_W: Reward of each.
        comparisons: How many comparisons it was fitted on.
    """

    vectorizer: Any
    weights_W: np.ndarray
    comparisons: int

    @classmethod
    def fit(cls, better: Sequence[str], worse: Sequence[str], groups: Sequence[int], *, seed: int = 0) -> BagOfWords:
        """Fit on comparisons.

        Args:
            better: P texts.
            worse: P texts.
            groups: The prompt of each comparison.
            seed: Decides which comparisons are mirrored, and which prompts choose the penalty.

        Raises:
            ValueError: No word occurs in two responses, or there are fewer than two comparisons or prompts.
        """
        vectorizer = _vectorizer().fit([*better, *worse])
        model = fit_bradley_terry(vectorizer.transform(better) - vectorizer.transform(worse), groups, seed=seed)
        return cls(vectorizer, model.coef_[0], len(better))

    def rewards(self, texts: Sequence[str]) -> np.ndarray:
        """Reward of each text, shape (N,).

        Args:
            texts: N responses, without their prompts.
        """
        rewards_N: np.ndarray = self.vectorizer.transform(texts) @ self.weights_W
        return rewards_N
