r"""Whether differences of rewards mean what they say: P(better) = sigmoid(margin / T).

Which response of a pair comes first is arbitrary, so that every margin m with the label 1 stands for -m with the label
0 as well. A margin is therefore looked at from the side that the model prefers: its *confidence* is
:math:`\max(p, 1-p)`, from 0.5 to 1, and the model is right where the preferred response is the better one (half right
at equal rewards). Both orders together give the same calibration error, Brier score and log loss.

Source: Guo, Pleiss, Sun and Weinberger (2017), On Calibration of Modern Neural Networks, for the error, the curve and
the temperature; Bradley and Terry (1952), Biometrika 39, for the probability.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import numpy as np

from plaudit.errors import DataError
from plaudit.evaluation.results import (
    BestOfNCurve,
    BestOfNPoint,
    Calibration,
    CalibrationScores,
    Interval,
    PairStatistics,
    PointwiseStatistics,
    Proportion,
    RankingStatistics,
    ReliabilityBin,
    Statistics,
)
from plaudit.evaluation.table import ScoredSet
from plaudit.metrics import wilson_interval

FEATURES = ("headers", "bold", "lists", "code", "tables")
"""Headings; bold spans; list items; code blocks and inline code; tables."""
_FENCED = re.compile(r"^ {0,3}(```+|~~~+)[^\n]*\n(?:.*?^ {0,3}\1[`~]*[ \t]*$|.*)", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"(?<!`)(`+)(?!`)[^\n]+?(?<!`)\1(?!`)")
_HEADER = re.compile(r"^ {0,3}#{1,6}[ \t]+\S", re.MULTILINE)
_BOLD = re.compile(r"(\*\*|__)(?=\S)[^\n]+?(?<=\S)\1")
_LIST_ITEM = re.compile(r"^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+\S", re.MULTILINE)
# The bar in the second line tells a table from a heading that is underlined.
_TABLE = re.compile(
    r"^[^\n]*\|[^\n]*\n(?=[^\n]*\|)[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$", re.MULTILINE
)


def markdown_counts(text: str) -> dict[str, int]:
    """Count each of :data:`FEATURES` in a text; what stands in code counts as code only.

    Args:
        text: Any text.

    >>> markdown_counts("# Title\\n- **one**\\n- two with `code`\\n\\n| a | b |\\n|---|---|\\n| 1 | 2 |\\n")
    {'headers': 1, 'bold': 1, 'lists': 2, 'code': 1, 'tables': 1}
    """
    text, blocks = _FENCED.subn("", text)
    text, spans = _INLINE_CODE.subn("", text)
    counts = {"headers": _HEADER, "bold": _BOLD, "lists": _LIST_ITEM, "tables": _TABLE}
    found = {name: sum(1 for _ in pattern.finditer(text)) for name, pattern in counts.items()}
    return {name: blocks + spans if name == "code" else found[name] for name in FEATURES}


SAMPLES = 2000
"""How many times prompts are drawn."""
_CELLS = 4_000_000  # numbers held at a time


def sums_by_cluster(values_MK: np.ndarray, cluster_M: np.ndarray) -> np.ndarray:
    """Add up what belongs to one prompt.

    Args:
        values_MK: K numbers for each of M observations.
        cluster_M: Number of the prompt of each.

    Returns:
        Sums of the prompts that occur, shape (C, K).
    """
    present, index_M = np.unique(cluster_M, return_inverse=True)
    sums_CK = np.zeros((len(present), values_MK.shape[1]))
    np.add.at(sums_CK, index_M.reshape(-1), values_MK)
    return sums_CK


def cluster_bootstrap(
    values_MK: np.ndarray,
    cluster_M: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval | None:
    """Percentile interval of a statistic of column sums, by drawing prompts with replacement.

    Means, differences and Pearson's correlation are all functions of sums, so that a draw costs one product.

    Args:
        values_MK: The K summands of each of M observations, such as ``(x, 1)`` for a mean.
        cluster_M: Number of the prompt of each observation.
        statistic: Turns sums of shape (B, K) into values of shape (B,); NaN for a draw where it is undefined.
        samples: How many draws.
        seed: Decides which draws; the same seed always gives the same interval.
        confidence: Share of the draws inside.

    Returns:
        The interval; None with fewer than two prompts, or where no draw defines the statistic.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapters 8 and 13.

    >>> low, high = cluster_bootstrap(np.array([[0.0, 1.0], [1.0, 1.0]] * 50), np.arange(100), ratio)
    >>> bool(0.35 < low < 0.5 < high < 0.65)
    True
    """
    sums_CK = sums_by_cluster(values_MK, cluster_M)
    if len(sums_CK) < 2:
        return None
    with np.errstate(divide="ignore", invalid="ignore"):
        values_B = np.concatenate([statistic(drawn_BK) for drawn_BK in _draws(sums_CK, samples, seed)])
    values_B = values_B[np.isfinite(values_B)]
    if not len(values_B):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(values_B, [tail, 1 - tail])
    return Interval(float(low), float(high))


def ratio(sums_BK: np.ndarray) -> np.ndarray:
    """First sum over second: the mean of observations with the summands ``(x, 1)``.

    Args:
        sums_BK: Sums of B draws.
    """
    return sums_BK[:, 0] / sums_BK[:, 1]


def mean_interval(values_M: np.ndarray, cluster_M: np.ndarray, *, seed: int = 0) -> Interval | None:
    """Bootstrap interval of a mean.

    Args:
        values_M: The observations.
        cluster_M: Number of the prompt of each.
        seed: Decides which prompts are drawn.
    """
    return cluster_bootstrap(np.stack((values_M, np.ones(len(values_M))), axis=1), cluster_M, ratio, seed=seed)


def _draws(sums_CK: np.ndarray, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Sums over prompts drawn with replacement, some draws at a time, shape (B, K)."""
    random = np.random.default_rng(seed)
    clusters = len(sums_CK)
    size = max(1, min(samples, _CELLS // clusters))
    for start in range(0, samples, size):
        counts_BC = np.stack(
            [
                np.bincount(random.integers(clusters, size=clusters), minlength=clusters)
                for _ in range(min(size, samples - start))
            ]
        )
        yield counts_BC @ sums_CK


def proportion(success_M: np.ndarray, cluster_M: np.ndarray, *, seed: int = 0) -> Proportion:
    """Share of successes, with an interval that respects shared prompts.

    Wilson's interval takes the observations for independent. Where prompts repeat, prompts are resampled instead;
    where all observations are alike, which leaves the bootstrap no spread, it is Wilson's for as many observations as
    there are prompts.

    Args:
        success_M: 1 for a success, 0 for none, or between.
        cluster_M: Number of the prompt of each.
        seed: Decides the draws.

    >>> proportion(np.array([1, 1, 0, 1]), np.arange(4)).value
    0.75
    """
    n = len(success_M)
    if n == 0:
        return Proportion(None, 0, Interval(0.0, 1.0))
    value = float(np.mean(success_M))
    prompts = len(np.unique(cluster_M))
    if prompts == n:
        return Proportion(value, n, Interval(*wilson_interval(float(np.sum(success_M)), n)))
    drawn = mean_interval(np.asarray(success_M, dtype=float), cluster_M, seed=seed)
    if drawn is None or drawn.low == drawn.high:
        return Proportion(value, n, Interval(*wilson_interval(value * prompts, prompts)))
    return Proportion(value, n, drawn, "bootstrap")


def pair_statistics(scored: ScoredSet, *, seed: int = 0) -> PairStatistics:
    """Accuracy and margin over all comparisons.

    Args:
        scored: The rows.
        seed: Decides the draws of the bootstrap.
    """
    margin_P, cluster_P = scored.margin_P, scored.cluster_P
    n = len(margin_P)
    accuracy = proportion(margin_P > 0, cluster_P, seed=seed)
    ties = float(np.mean(margin_P == 0)) if n else None
    pairs = sum(len(row.rewards) * (len(row.rewards) - 1) // 2 for row in scored)
    return PairStatistics(
        comparisons=n,
        prompts=len(np.unique(cluster_P)),
        accuracy=accuracy,
        tie_rate=ties,
        accuracy_ties_half=float(np.mean((np.sign(margin_P) + 1) / 2)) if n else None,
        margin=float(np.mean(margin_P)) if n else None,
        margin_interval=mean_interval(margin_P, cluster_P, seed=seed) if n else None,
        margin_median=float(np.median(margin_P)) if n else None,
        data_ties=pairs - n,
    )


def kendall_tau(first_N: np.ndarray, second_N: np.ndarray) -> float:
    """Kendall's tau-b of two rankings; 0 where one of them is constant.

    Args:
        first_N: One ranking.
        second_N: The other.

    Source: Kendall (1945), Biometrika 33.

    >>> kendall_tau(np.array([1, 2, 3]), np.array([10, 20, 15])) == 1 / 3
    True
    """
    apart_NN = np.sign(first_N[:, None] - first_N)
    found_NN = np.sign(second_N[:, None] - second_N)
    scale = float(np.sqrt(np.abs(apart_NN).sum() * np.abs(found_NN).sum()))
    return float((apart_NN * found_NN).sum() / scale) if scale else 0.0


def correlation(first_M: np.ndarray, second_M: np.ndarray) -> float | None:
    """Pearson's correlation; None where one of the two does not vary.

    Args:
        first_M: One variable.
        second_M: The other.
    """
    if len(first_M) < 2 or np.ptp(first_M) == 0 or np.ptp(second_M) == 0:
        return None
    first_M, second_M = first_M - first_M.mean(), second_M - second_M.mean()
    scale = np.linalg.norm(first_M) * np.linalg.norm(second_M)
    return float(np.clip(first_M @ second_M / scale, -1, 1)) if scale else None


def ranks_of(values_M: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank.

    Args:
        values_M: Any numbers.

    >>> ranks_of(np.array([3.0, 1.0, 3.0])).tolist()
    [2.5, 1.0, 2.5]
    """
    _, index_M, counts = np.unique(values_M, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((2 * last - counts + 1) / 2)[index_M.reshape(-1)]


def spearman(first_M: np.ndarray, second_M: np.ndarray) -> float | None:
    """Spearman's correlation: Pearson's of the ranks; None where one of the two does not vary.

    Args:
        first_M: One variable.
        second_M: The other.
    """
    return correlation(ranks_of(first_M), ranks_of(second_M))


def best_found(rewards_N: np.ndarray, ratings_N: np.ndarray) -> float:
    """Chance that a response with the highest reward, drawn among equals, is one of the best.

    Args:
        rewards_N: Rewards of the responses of one row.
        ratings_N: How good they are.

    >>> best_found(np.array([2.0, 2.0, 1.0]), np.array([1.0, 0.0, 0.0]))
    0.5
    """
    return float(np.mean((ratings_N == ratings_N.max())[rewards_N == rewards_N.max()]))


def ranking_statistics(scored: ScoredSet, *, seed: int = 0) -> RankingStatistics | None:
    """Best-of-N accuracy and rank correlations of the rows that rank several responses; None if there are none.

    Args:
        scored: The rows.
        seed: Decides the draws of the bootstrap.
    """
    kept = [place for place, row in enumerate(scored) if row.listed and len(set(row.ratings)) > 1]
    if not kept:
        return None
    values = []
    for place in kept:
        rewards_N, ratings_N = np.array(scored[place].rewards), np.array(scored[place].ratings)
        chance = float(np.mean(ratings_N == ratings_N.max()))
        values.append(
            (
                best_found(rewards_N, ratings_N),
                kendall_tau(ratings_N, rewards_N),
                spearman(ratings_N, rewards_N) or 0.0,
                chance,
            )
        )
    values_GK, cluster_G = np.array(values), scored.cluster_G[kept]
    best, tau, rho, chance = (float(value) for value in values_GK.mean(axis=0))
    intervals = [mean_interval(values_GK[:, column], cluster_G, seed=seed) for column in range(3)]
    return RankingStatistics(len(kept), best, chance, intervals[0], tau, intervals[1], rho, intervals[2])


def pointwise_statistics(scored: ScoredSet, row_kind: Literal["labels", "ratings"]) -> PointwiseStatistics | None:
    """Agreement with labels of single responses; None if there are none.

    Args:
        scored: The rows.
        form: Which labels: labels or ratings.
    """
    chosen = scored.where(lambda row: row.row_kind == row_kind)
    if not len(chosen):
        return None
    rewards_N = chosen.rewards_N
    scores_N = np.array([row.label.ratings[0] for row in chosen])
    if row_kind == "ratings":
        return PointwiseStatistics(
            len(chosen),
            pearson=correlation(scores_N, rewards_N),
            spearman=spearman(scores_N, rewards_N),
            mse=float(np.mean((scores_N - rewards_N) ** 2)),
        )
    good_N = scores_N > 0.5
    good, bad = int(good_N.sum()), int((~good_N).sum())
    # The rank sum of Mann and Whitney.
    auc = (ranks_of(rewards_N)[good_N].sum() / good - (good + 1) / 2) / bad if good and bad else None
    right = proportion((rewards_N > 0) == good_N, chosen.cluster_N)
    return PointwiseStatistics(len(chosen), accuracy=right, auc=None if auc is None else float(auc))


def statistics_of(scored: ScoredSet, *, seed: int = 0) -> Statistics:
    """All statistics that the forms of the rows allow.

    Args:
        scored: The rows.
        seed: Decides the draws of the bootstrap.

    >>> from plaudit.evaluation.table import ScoredRow
    >>> found = statistics_of(ScoredSet([ScoredRow(0, (2.0, 1.0)), ScoredRow(1, (0.0, 0.0))]))
    >>> found.pairs.accuracy.value, found.pairs.tie_rate, found.pairs.margin
    (0.5, 0.5, 0.5)
    """
    pairs = pair_statistics(scored, seed=seed)
    return Statistics(
        rows=len(scored),
        pairs=pairs if pairs.comparisons else None,
        rankings=ranking_statistics(scored, seed=seed),
        labels=pointwise_statistics(scored, "labels"),
        ratings=pointwise_statistics(scored, "ratings"),
    )


def by_slice(scored: ScoredSet, columns: Iterable[str], *, seed: int = 0) -> Mapping[str, Mapping[str, Statistics]]:
    """Statistics of each slice: column -> value -> statistics.

    Args:
        scored: The rows.
        columns: Names of the columns to slice by.
        seed: Decides the draws of the bootstrap.

    Raises:
        ConfigError: No row has such a column.
    """
    return {
        column: {name: statistics_of(part, seed=seed) for name, part in scored.sliced(column).items()}
        for column in columns
    }


def expected_pick(rewards_N: np.ndarray, gold_N: np.ndarray, n: int) -> float:
    r"""Expected gold score of the response with the highest reward among n drawn without replacement.

    .. math:: \frac{1}{\binom{N}{n}} \sum_{i=n}^{N} \binom{i-1}{n-1} g_{(i)}

    with :math:`g_{(i)}` the gold score of the response with the i-th lowest reward: the mean over all subsets, hence
    without bias. Among equal rewards each is as likely to be picked, so that they share their mean gold score.

    Args:
        rewards_N: Reward of each of the N responses.
        gold_N: Gold score of each.
        n: How many are drawn, from 1 to N.

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
    weights_N = np.array([math.comb(place, n - 1) / math.comb(total, n) for place in range(total)])
    return float(weights_N @ shared_N)


def best_of_n_curve(scored: ScoredSet, *, max_n: int | None = None, seed: int = 0) -> BestOfNCurve | None:
    """Draw the curve over all rows that have a gold score and enough responses.

    Args:
        scored: The rows; their gold score is `gold`, or else the scores of rows of the form ``"scores"``.
        max_n: Largest n (None: as many responses as every row has). Rows with fewer responses do not count.
        seed: Decides the draws of the bootstrap.

    Returns:
        The curve; None where no row has a gold score of at least two responses.

    Raises:
        DataError: No row has as many responses as `max_n`.
    """
    with_gold = [place for place, row in enumerate(scored) if row.gold_scores is not None and len(row.rewards) > 1]
    if not with_gold:
        return None
    largest = max_n if max_n is not None else min(len(scored[place].rewards) for place in with_gold)
    kept = [place for place in with_gold if len(scored[place].rewards) >= largest]
    if not kept:
        most = max(len(scored[place].rewards) for place in with_gold)
        raise DataError(f"no row has {largest} responses", fix=f"Choose an n up to {most}.")
    pairs = [(np.array(scored[place].rewards), np.array(scored[place].gold_scores)) for place in kept]
    cluster_G = scored.cluster_G[kept]
    points = []
    for n in range(1, largest + 1):
        picked_G = np.array([expected_pick(rewards_N, gold_N, n) for rewards_N, gold_N in pairs])
        oracle = float(np.mean([expected_pick(gold_N, gold_N, n) for _, gold_N in pairs]))
        random = float(np.mean([gold_N.mean() for _, gold_N in pairs]))
        interval = mean_interval(picked_G, cluster_G, seed=seed)
        points.append(BestOfNPoint(n, float(picked_G.mean()), interval, oracle, random))
    without = sum(row.gold_scores is None for row in scored)
    return BestOfNCurve(tuple(points), len(kept), len(with_gold) - len(kept), without)


Binning = Literal["width", "mass"]
"""Bins of equal width, or with equally many comparisons."""
BINS = 10


def sigmoid(values: np.ndarray) -> np.ndarray:
    """The logistic function, exact at both ends.

    Args:
        values: Any numbers.
    """
    return np.exp(-np.logaddexp(0.0, -values))


def log_loss(margin_P: np.ndarray, temperature: float = 1.0, preference_prob_P: np.ndarray | None = None) -> float:
    """Mean negative log likelihood of the labels.

    Args:
        margin_P: Reward of the better response less that of the worse one.
        temperature: What margins are divided by.
        preference_prob_P: Probability that the better one is better (None: 1).
    """
    scaled_P = margin_P / temperature
    loss_P = np.logaddexp(0.0, -scaled_P)
    if preference_prob_P is not None:
        loss_P = loss_P + (1 - preference_prob_P) * scaled_P
    return float(np.mean(loss_P))


def reliability(
    confidence_P: np.ndarray,
    right_P: np.ndarray,
    cluster_P: np.ndarray,
    *,
    bins: int = BINS,
    binning: Binning = "width",
) -> tuple[ReliabilityBin, ...]:
    """The reliability curve: accuracy by confidence.

    Args:
        confidence_P: Confidence of each comparison, from 0.5 to 1.
        right_P: 1 where the model is right, 0 where it is not, 0.5 for equal rewards.
        cluster_P: Number of the prompt of each.
        bins: How many bins.
        binning: Equal width, or equal mass; equal confidences are never put apart, so that there may be fewer.
    """
    if binning == "width":
        edges = np.linspace(0.5, 1.0, bins + 1)
    else:
        edges = np.unique(np.quantile(confidence_P, np.linspace(0, 1, bins + 1), method="higher"))
        edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    index_P = np.clip(np.searchsorted(edges, confidence_P, side="left") - 1, 0, len(edges) - 2)
    curve = []
    for place, (low, high) in enumerate(itertools.pairwise(edges)):
        inside_P = index_P == place
        share = proportion(right_P[inside_P], cluster_P[inside_P])
        confidence = float(confidence_P[inside_P].mean()) if inside_P.any() else None
        curve.append(ReliabilityBin(float(low), float(high), share.n, confidence, share.value, share.interval))
    return tuple(curve)


def calibration_error(curve: tuple[ReliabilityBin, ...]) -> float:
    r"""Expected calibration error of a reliability curve.

    .. math:: \sum_b \frac{n_b}{n} \left| \mathrm{accuracy}_b - \mathrm{confidence}_b \right|

    Args:
        curve: The curve.

    >>> calibration_error((ReliabilityBin(0.5, 1.0, 4, 1.0, 0.75, Interval(0.3, 1.0)),))
    0.25
    """
    total = sum(one.n for one in curve)
    gaps = [one.n * abs(one.accuracy - one.confidence) for one in curve if one.accuracy is not None and one.confidence]
    return float(sum(gaps) / total) if total else 0.0


def calibration_scores(
    margin_P: np.ndarray,
    cluster_P: np.ndarray,
    *,
    preference_prob_P: np.ndarray | None = None,
    temperature: float = 1.0,
    bins: int = BINS,
) -> CalibrationScores:
    """Judge the probabilities at one temperature.

    Args:
        margin_P: Reward of the better response less that of the worse one; at least one.
        cluster_P: Number of the prompt of each comparison.
        preference_prob_P: Probability that the better response is better (None: 1).
        temperature: What margins are divided by.
        bins: How many bins.
    """
    preference_prob_P = np.ones(len(margin_P)) if preference_prob_P is None else preference_prob_P
    probability_P = sigmoid(margin_P / temperature)
    confidence_P = np.maximum(probability_P, 1 - probability_P)
    right_P = np.where(margin_P > 0, preference_prob_P, np.where(margin_P < 0, 1 - preference_prob_P, 0.5))
    curves = [
        reliability(confidence_P, right_P, cluster_P, bins=bins, binning=binning) for binning in ("width", "mass")
    ]
    brier_P = preference_prob_P * (1 - probability_P) ** 2 + (1 - preference_prob_P) * probability_P**2
    return CalibrationScores(
        n=len(margin_P),
        temperature=temperature,
        ece=calibration_error(curves[0]),
        ece_mass=calibration_error(curves[1]),
        brier=float(np.mean(brier_P)),
        log_loss=log_loss(margin_P, temperature, preference_prob_P),
        curve=curves[0],
        curve_mass=curves[1],
    )


def fit_temperature(margin_P: np.ndarray, preference_prob_P: np.ndarray | None = None) -> tuple[float, bool] | None:
    """Find the temperature with the least log loss.

    The loss is convex in 1/T. It is searched between a thousandth and a thousandfold of the margins' size.

    Args:
        margin_P: Reward of the better response less that of the worse one.
        preference_prob_P: Probability that the better response is better (None: 1).

    Returns:
        The temperature, and whether it is at a bound; None where all margins are 0.
    """
    from scipy.optimize import minimize_scalar

    scale = float(np.sqrt(np.mean(margin_P**2))) if len(margin_P) else 0.0
    if scale == 0:
        return None
    bound = float(np.log(1000.0))
    found = minimize_scalar(
        lambda log_t: log_loss(margin_P / scale, float(np.exp(log_t)), preference_prob_P),
        bounds=(-bound, bound),
        method="bounded",
        options={"xatol": 1e-8},
    )
    at_bound = bool(abs(found.x) > bound - 0.01)
    return float(np.exp(found.x)) * scale, at_bound


def halves(scored: ScoredSet, *, seed: int = 0) -> tuple[ScoredSet, ScoredSet]:
    """Split rows in two by their prompts, in an order drawn by hashing: the order of the rows does not matter.

    Args:
        scored: The rows.
        seed: Decides the split.
    """
    order = sorted({row.cluster for row in scored}, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    first = set(order[: len(order) // 2])
    return scored.where(lambda row: row.cluster in first), scored.where(lambda row: row.cluster not in first)


def calibrate(scored: ScoredSet, *, bins: int = BINS, seed: int = 0) -> Calibration | None:
    """Judge how far margins are probabilities, and fit a temperature on one half of the prompts to test on the other.

    Args:
        scored: The rows; all their comparisons count.
        bins: How many bins.
        seed: Decides the halves.

    Returns:
        The calibration; None without comparisons.

    >>> from plaudit.evaluation.table import ScoredRow
    >>> found = calibrate(ScoredSet([ScoredRow(n, (0.0, 0.0)) for n in range(4)]))
    >>> found.scores.ece, found.scores.brier, found.temperature
    (0.0, 0.25, None)
    """
    if not len(scored.margin_P):
        return None
    compared = scored.where(lambda row: len(set(row.ratings)) > 1)
    scores = _scores_of(compared, 1.0, bins)
    train, test = halves(compared, seed=seed)
    fitted = fit_temperature(train.margin_P, train.preference_prob_P)
    if fitted is None or not len(test.margin_P):
        return Calibration(scores)
    temperature, at_bound = fitted
    before, after = (_scores_of(test, one, bins) for one in (1.0, temperature))
    return Calibration(scores, temperature, at_bound, before, after)


def _scores_of(scored: ScoredSet, temperature: float, bins: int) -> CalibrationScores:
    return calibration_scores(
        scored.margin_P,
        scored.cluster_P,
        preference_prob_P=scored.preference_prob_P,
        temperature=temperature,
        bins=bins,
    )
