r"""Statistics of scored rows: shares and means with intervals, rankings, best of n, calibration.

Calibration asks whether differences of rewards mean what they say: P(better) = sigmoid(margin / T). Which response of
a pair comes first is arbitrary: a margin m with the label 1 stands for -m with the label 0 as well. A margin is
therefore looked at from the side that the model prefers: its *confidence* is :math:`\max(p, 1-p)`, from 0.5 to 1, and
the model is right where the preferred response is the better one (half right at equal rewards).

Source: Guo, Pleiss, Sun and Weinberger (2017), On Calibration of Modern Neural Networks, for the error, the curve and
the temperature; Bradley and Terry (1952), Biometrika 39, for the probability.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import kendalltau, mannwhitneyu, rankdata

from plaudit.errors import DataError
from plaudit.evaluation import results
from plaudit.evaluation.results import Calibration, CalibrationScores, Interval, Proportion, ReliabilityBin
from plaudit.evaluation.table import ScoredSet
from plaudit.intervals import wilson_interval
from plaudit.schema import RowKind

SAMPLES = 2000  # draws of the bootstrap
BINS = 10
_CELLS = 4_000_000  # numbers held at a time


# ---- intervals ---------------------------------------------------------------------------------------------------


def sums_by_cluster(values_MK: np.ndarray, cluster_M: np.ndarray) -> np.ndarray:
    """Adds up K numbers of each observation over prompts; returns shape (C, K), for the prompts that occur."""
    present, index_M = np.unique(cluster_M, return_inverse=True)
    sums_CK = np.zeros((len(present), values_MK.shape[1]))
    np.add.at(sums_CK, index_M.reshape(-1), values_MK)
    return sums_CK


def cluster_bootstrap(
    values_MK: np.ndarray, cluster_M: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, seed: int = 0
) -> Interval | None:
    """Returns the 95% percentile interval of a statistic of column sums, by drawing prompts with replacement.

    Means, differences and Pearson's correlation are functions of sums of K summands, such as ``(x, 1)`` for a mean,
    which makes a draw cost one product. `statistic` turns sums of shape (B, K) into values of shape (B,), NaN where it
    is undefined. The interval is None with fewer than two prompts, or where no draw defines the statistic.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 8 and 13.

    >>> low, high = cluster_bootstrap(np.array([[0.0, 1.0], [1.0, 1.0]] * 50), np.arange(100), ratio)
    >>> bool(0.35 < low < 0.5 < high < 0.65)
    True
    """
    sums_CK = sums_by_cluster(values_MK, cluster_M)
    clusters = len(sums_CK)
    if clusters < 2:
        return None
    random, size, values = np.random.default_rng(seed), max(1, min(SAMPLES, _CELLS // clusters)), []
    for start in range(0, SAMPLES, size):
        draws = (random.integers(clusters, size=clusters) for _ in range(min(size, SAMPLES - start)))
        drawn_BK = np.stack([np.bincount(draw, minlength=clusters) for draw in draws]) @ sums_CK
        with np.errstate(divide="ignore", invalid="ignore"):
            values.append(statistic(drawn_BK))
    values_B = np.concatenate(values)
    values_B = values_B[np.isfinite(values_B)]
    if not len(values_B):
        return None
    low, high = np.quantile(values_B, [0.025, 0.975])
    return Interval(float(low), float(high))


def ratio(sums_BK: np.ndarray) -> np.ndarray:
    """Returns the first sum over the second: the mean of observations with the summands ``(x, 1)``."""
    return sums_BK[:, 0] / sums_BK[:, 1]


def mean_interval(values_M: np.ndarray, cluster_M: np.ndarray, *, seed: int = 0) -> Interval | None:
    """Returns the bootstrap interval of a mean."""
    return cluster_bootstrap(np.stack((values_M, np.ones(len(values_M))), axis=1), cluster_M, ratio, seed=seed)


def proportion(success_M: np.ndarray, cluster_M: np.ndarray, *, seed: int = 0) -> Proportion:
    """Returns the share of successes (from 0 to 1 each), with an interval that respects shared prompts.

    Wilson's interval takes observations for independent. Where prompts repeat, prompts are resampled instead; where
    all observations are alike, which leaves the bootstrap no spread, it is Wilson's for the number of prompts.

    >>> proportion(np.array([1, 1, 0, 1]), np.arange(4)).value
    0.75
    """
    n = len(success_M)
    if n == 0:
        return Proportion(None, 0, Interval(0.0, 1.0))
    value, prompts = float(np.mean(success_M)), len(np.unique(cluster_M))
    if prompts == n:
        return Proportion(value, n, Interval(*wilson_interval(float(np.sum(success_M)), n)))
    drawn = mean_interval(np.asarray(success_M, dtype=float), cluster_M, seed=seed)
    if drawn is None or drawn.low == drawn.high:
        return Proportion(value, n, Interval(*wilson_interval(value * prompts, prompts)))
    return Proportion(value, n, drawn, "bootstrap")


# ---- rows --------------------------------------------------------------------------------------------------------


def statistics_of(scored: ScoredSet, *, seed: int = 0) -> results.Statistics:
    """Returns all statistics that the kinds of the rows allow.

    >>> from plaudit.evaluation.table import ScoredRow
    >>> found = statistics_of(ScoredSet([ScoredRow(0, (2.0, 1.0)), ScoredRow(1, (0.0, 0.0))]))
    >>> found.pairs.accuracy.value, found.pairs.tie_rate, found.pairs.margin
    (0.5, 0.5, 0.5)
    """
    pairs = pair_statistics(scored, seed=seed)
    return results.Statistics(
        rows=len(scored),
        pairs=pairs if pairs.comparisons else None,
        rankings=ranking_statistics(scored, seed=seed),
        labels=pointwise_statistics(scored, "labels"),
        ratings=pointwise_statistics(scored, "ratings"),
    )


def by_slice(scored: ScoredSet, columns: Iterable[str], *, seed: int = 0) -> dict[str, dict[str, results.Statistics]]:
    """Returns the statistics of each slice: column -> value -> statistics."""
    parts = {column: scored.sliced(column) for column in columns}
    return {column: {name: statistics_of(of[name], seed=seed) for name in of} for column, of in parts.items()}


def pair_statistics(scored: ScoredSet, *, seed: int = 0) -> results.PairStatistics:
    """Returns accuracy and margin over all comparisons."""
    margin_P, cluster_P = scored.margin_P, scored.cluster_P
    n = len(margin_P)
    pairs = sum(len(row.rewards) * (len(row.rewards) - 1) // 2 for row in scored)
    return results.PairStatistics(
        comparisons=n,
        prompts=len(np.unique(cluster_P)),
        accuracy=proportion(margin_P > 0, cluster_P, seed=seed),
        tie_rate=float(np.mean(margin_P == 0)) if n else None,
        accuracy_ties_half=float(np.mean((np.sign(margin_P) + 1) / 2)) if n else None,
        margin=float(np.mean(margin_P)) if n else None,
        margin_interval=mean_interval(margin_P, cluster_P, seed=seed) if n else None,
        margin_median=float(np.median(margin_P)) if n else None,
        data_ties=pairs - n,
    )


def kendall_tau(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Returns Kendall's tau-b of two rankings; 0 where one of them is constant.

    >>> round(kendall_tau(np.array([1, 2, 3]), np.array([10, 20, 15])), 4)
    0.3333
    """
    if np.ptp(first_N) == 0 or np.ptp(second_N) == 0:
        return 0.0
    return float(kendalltau(first_N, second_N).statistic)


def correlation(first_M: np.ndarray, second_M: np.ndarray) -> float | None:
    """Returns Pearson's correlation; None where one of the two does not vary."""
    if len(first_M) < 2 or np.ptp(first_M) == 0 or np.ptp(second_M) == 0:
        return None
    first_M, second_M = first_M - first_M.mean(), second_M - second_M.mean()
    scale = np.linalg.norm(first_M) * np.linalg.norm(second_M)
    return float(np.clip(first_M @ second_M / scale, -1, 1)) if scale else None


def spearman(first_M: np.ndarray, second_M: np.ndarray) -> float | None:
    """Returns Spearman's correlation, Pearson's of the ranks; None where one of the two does not vary."""
    return correlation(rankdata(first_M), rankdata(second_M))


def best_found(rewards: Sequence[float], ratings: Sequence[float]) -> float:
    """Returns the chance that a response with the highest reward, drawn among equals, is one of the best.

    >>> best_found([2.0, 2.0, 1.0], [1.0, 0.0, 0.0])
    0.5
    """
    rewards_N, ratings_N = np.array(rewards), np.array(ratings)
    return float(np.mean((ratings_N == ratings_N.max())[rewards_N == rewards_N.max()]))


def ranking_statistics(scored: ScoredSet, *, seed: int = 0) -> results.RankingStatistics | None:
    """Returns best-of-N accuracy and rank correlations of the rows that rank several responses; None without any."""
    kept, values = [], []
    for index, row in enumerate(scored):
        if row.row_kind in ("scores", "ranks") and len(set(row.ratings)) > 1:
            rewards_N, ratings_N = np.array(row.rewards), np.array(row.ratings)
            tau, rho = kendall_tau(ratings_N, rewards_N), spearman(ratings_N, rewards_N) or 0.0
            values.append((best_found(row.rewards, row.ratings), tau, rho, np.mean(ratings_N == ratings_N.max())))
            kept.append(index)
    if not kept:
        return None
    values_GK, cluster_G = np.array(values), scored.cluster_G[kept]
    best, tau, rho, chance = (float(value) for value in values_GK.mean(axis=0))
    intervals = [mean_interval(values_GK[:, column], cluster_G, seed=seed) for column in range(3)]
    return results.RankingStatistics(len(kept), best, chance, intervals[0], tau, intervals[1], rho, intervals[2])


def pointwise_statistics(scored: ScoredSet, row_kind: RowKind) -> results.PointwiseStatistics | None:
    """Returns the agreement with labels or ratings of single responses, by their kind; None if there are none."""
    chosen = scored.where(lambda row: row.row_kind == row_kind)
    if not len(chosen):
        return None
    rewards_N, ratings_N = chosen.rewards_N, np.array([row.label.ratings[0] for row in chosen])
    if row_kind == "ratings":
        return results.PointwiseStatistics(
            len(chosen),
            pearson=correlation(ratings_N, rewards_N),
            spearman=spearman(ratings_N, rewards_N),
            mse=float(np.mean((ratings_N - rewards_N) ** 2)),
        )
    good_N = ratings_N > 0.5
    auc = None
    if good_N.any() and not good_N.all():
        u = mannwhitneyu(rewards_N[good_N], rewards_N[~good_N], method="asymptotic").statistic
        auc = float(u / (good_N.sum() * (~good_N).sum()))
    return results.PointwiseStatistics(len(chosen), proportion((rewards_N > 0) == good_N, chosen.cluster_N), auc)


# ---- best of n ---------------------------------------------------------------------------------------------------


def expected_pick(rewards_N: np.ndarray, gold_N: np.ndarray, n: int) -> float:
    r"""Returns the expected gold score of the response with the highest reward among n drawn without replacement.

    .. math:: \frac{1}{\binom{N}{n}} \sum_{i=n}^{N} \binom{i-1}{n-1} g_{(i)}

    with :math:`g_{(i)}` the gold score of the response with the i-th lowest reward: the mean over all subsets, hence
    without bias. Equal rewards are as likely to be picked, and share their mean gold score.

    Source: the estimator of pass@k, Chen et al. (2021), arXiv 2107.03374, for scores that are not 0 or 1; Hilton
    and Gao (2022), Measuring Goodhart's law, OpenAI.

    >>> expected_pick(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 6.0]), 2)
    4.0
    """
    total = len(rewards_N)
    order_N = np.argsort(rewards_N, kind="stable")
    _, group_N, counts = np.unique(rewards_N[order_N], return_inverse=True, return_counts=True)
    group_N = group_N.reshape(-1)
    shared_N = (np.bincount(group_N, weights=gold_N[order_N]) / counts)[group_N]
    weights_N = np.array([math.comb(index, n - 1) / math.comb(total, n) for index in range(total)])
    return float(weights_N @ shared_N)


def best_of_n_curve(scored: ScoredSet, *, max_n: int | None = None, seed: int = 0) -> results.BestOfNCurve | None:
    """Returns the curve over the rows that have a gold score and at least `max_n` responses; None without any.

    By default `max_n` is the number of responses that every row has.
    """
    with_gold = [index for index, row in enumerate(scored) if row.row_kind == "scores" and len(row.rewards) > 1]
    if not with_gold:
        return None
    largest = max_n if max_n is not None else min(len(scored[index].rewards) for index in with_gold)
    kept = [index for index in with_gold if len(scored[index].rewards) >= largest]
    if not kept:
        most = max(len(scored[index].rewards) for index in with_gold)
        raise DataError(f"no row has {largest} responses", fix=f"Choose an n up to {most}.")
    pairs = [(np.array(scored[index].rewards), np.array(scored[index].label.ratings)) for index in kept]
    random = float(np.mean([gold_N.mean() for _, gold_N in pairs]))
    points = []
    for n in range(1, largest + 1):
        picked_G = np.array([expected_pick(rewards_N, gold_N, n) for rewards_N, gold_N in pairs])
        oracle = float(np.mean([expected_pick(gold_N, gold_N, n) for _, gold_N in pairs]))
        interval = mean_interval(picked_G, scored.cluster_G[kept], seed=seed)
        points.append(results.BestOfNPoint(n, float(picked_G.mean()), interval, oracle, random))
    without = sum(row.row_kind != "scores" for row in scored)
    return results.BestOfNCurve(tuple(points), len(kept), len(with_gold) - len(kept), without)


# ---- calibration -------------------------------------------------------------------------------------------------


def log_loss(margin_P: np.ndarray, temperature: float = 1.0, preference_prob_P: np.ndarray | None = None) -> float:
    """Returns the mean negative log likelihood of the labels; without `preference_prob_P` these are certain."""
    scaled_P = margin_P / temperature
    loss_P = np.logaddexp(0.0, -scaled_P)
    if preference_prob_P is not None:
        loss_P = loss_P + (1 - preference_prob_P) * scaled_P
    return float(np.mean(loss_P))


def bins_of_equal_mass(values_P: np.ndarray, bins: int) -> np.ndarray:
    """Returns edges of bins with equally many values; equal values are never put apart, which may leave fewer bins."""
    edges = np.unique(np.quantile(values_P, np.linspace(0, 1, bins + 1), method="higher"))
    return edges if len(edges) > 1 else np.repeat(edges, 2)


def in_bins(values_P: np.ndarray, edges: np.ndarray) -> Iterator[tuple[float, float, np.ndarray]]:
    """Yields each bin, open at its lower edge except the first, with the values that are inside."""
    index_P = np.clip(np.searchsorted(edges, values_P, side="left") - 1, 0, len(edges) - 2)
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        yield float(low), float(high), index_P == index


def reliability(
    confidence_P: np.ndarray, right_P: np.ndarray, cluster_P: np.ndarray, *, binning: Literal["width", "mass"] = "width"
) -> tuple[ReliabilityBin, ...]:
    """Returns accuracy by confidence, in bins of equal width or equal mass.

    `right_P` is 1 where the model is right, 0 where it is not, 0.5 for equal rewards.
    """
    edges = np.linspace(0.5, 1.0, BINS + 1) if binning == "width" else bins_of_equal_mass(confidence_P, BINS)
    curve = []
    for low, high, inside_P in in_bins(confidence_P, edges):
        share = proportion(right_P[inside_P], cluster_P[inside_P])
        confidence = float(confidence_P[inside_P].mean()) if inside_P.any() else None
        curve.append(ReliabilityBin(low, high, share.n, confidence, share.value, share.interval))
    return tuple(curve)


def calibration_scores(
    margin_P: np.ndarray,
    cluster_P: np.ndarray,
    *,
    preference_prob_P: np.ndarray | None = None,
    temperature: float = 1.0,
) -> CalibrationScores:
    r"""Judges the probabilities at one temperature, of at least one comparison.

    The expected calibration error of a reliability curve is

    .. math:: \sum_b \frac{n_b}{n} \left| \mathrm{accuracy}_b - \mathrm{confidence}_b \right|
    """
    preference_prob_P = np.ones(len(margin_P)) if preference_prob_P is None else preference_prob_P
    prob_P = expit(margin_P / temperature)
    confidence_P = np.maximum(prob_P, 1 - prob_P)
    right_P = np.where(margin_P > 0, preference_prob_P, np.where(margin_P < 0, 1 - preference_prob_P, 0.5))
    curve = reliability(confidence_P, right_P, cluster_P)
    curve_mass = reliability(confidence_P, right_P, cluster_P, binning="mass")
    brier_P = preference_prob_P * (1 - prob_P) ** 2 + (1 - preference_prob_P) * prob_P**2

    def error(curve: Iterable[ReliabilityBin]) -> float:
        gaps = (point.n * abs((point.accuracy or 0.0) - (point.confidence or 0.0)) for point in curve)
        return float(sum(gaps) / len(margin_P))

    return CalibrationScores(
        n=len(margin_P),
        temperature=temperature,
        ece=error(curve),
        ece_mass=error(curve_mass),
        brier=float(np.mean(brier_P)),
        log_loss=log_loss(margin_P, temperature, preference_prob_P),
        curve=curve,
        curve_mass=curve_mass,
    )


def fit_temperature(margin_P: np.ndarray, preference_prob_P: np.ndarray | None = None) -> tuple[float, bool] | None:
    """Finds the temperature with the least log loss; returns it and whether it is at a bound.

    The loss is convex in 1/T. It is searched between a thousandth and a thousandfold of the margins' size; where all
    margins are 0, the result is None.
    """
    scale = float(np.sqrt(np.mean(margin_P**2))) if len(margin_P) else 0.0
    if scale == 0:
        return None
    bound = float(np.log(1000.0))
    minimum = minimize_scalar(
        lambda log_t: log_loss(margin_P / scale, float(np.exp(log_t)), preference_prob_P),
        bounds=(-bound, bound),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return float(np.exp(minimum.x)) * scale, bool(abs(minimum.x) > bound - 0.01)


def halves(scored: ScoredSet, *, seed: int = 0) -> tuple[ScoredSet, ScoredSet]:
    """Splits rows in two by their prompts, in an order drawn by hashing, which does not depend on that of the rows."""
    order = sorted({row.cluster for row in scored}, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    first = set(order[: len(order) // 2])
    return scored.where(lambda row: row.cluster in first), scored.where(lambda row: row.cluster not in first)


def calibrate(scored: ScoredSet, *, seed: int = 0) -> Calibration | None:
    """Judges all comparisons as probabilities; returns None without comparisons.

    A temperature is fitted on one half of the prompts, and tested on the other.

    >>> from plaudit.evaluation.table import ScoredRow
    >>> found = calibrate(ScoredSet([ScoredRow(n, (0.0, 0.0)) for n in range(4)]))
    >>> found.scores.ece, found.scores.brier, found.temperature
    (0.0, 0.25, None)
    """
    if not len(scored.margin_P):
        return None

    def scores(part: ScoredSet, temperature: float = 1.0) -> CalibrationScores:
        probs_P = part.preference_prob_P
        return calibration_scores(part.margin_P, part.cluster_P, preference_prob_P=probs_P, temperature=temperature)

    compared = scored.where(lambda row: len(set(row.ratings)) > 1)
    train, test = halves(compared, seed=seed)
    fitted = fit_temperature(train.margin_P, train.preference_prob_P)
    if fitted is None or not len(test.margin_P):
        return Calibration(scores(compared))
    temperature, at_bound = fitted
    return Calibration(scores(compared), temperature, at_bound, scores(test), scores(test, temperature))
