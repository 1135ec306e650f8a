"""What else rewards follow: the length of responses, and their formatting."""

from __future__ import annotations

import itertools

import numpy as np

from plaudit.evaluation.results import (
    Correlation,
    FormatBias,
    Interval,
    LengthBias,
    LengthBin,
    LengthControlled,
    LengthUnit,
    Proportion,
)
from plaudit.evaluation.stats import (
    FEATURES,
    cluster_bootstrap,
    correlation,
    markdown_counts,
    proportion,
    spearman,
    sums_by_cluster,
)
from plaudit.evaluation.table import ScoredSet


def length_controlled_accuracy(
    right_P: np.ndarray, difference_P: np.ndarray, cluster_P: np.ndarray, *, ridge: float = 1.0
) -> LengthControlled | None:
    r"""Regress being right on the difference of lengths, and read the regression off at no difference.

    .. math:: P(\mathrm{right}) = \sigma\left(\theta + \phi \tanh\frac{\Delta}{\mathrm{std}(\Delta)}\right),
        \qquad \mathrm{accuracy} = \sigma(\theta)

    with :math:`\Delta` the length of the better response less that of the worse one, not centred. This is the
    regression of length-controlled AlpacaEval, without its terms for the difficulty of instructions, where "the model
    beats the baseline" reads "the better response gets the higher reward".

    Args:
        right_P: Whether the better response has the higher reward.
        difference_P: Length of the better response less that of the worse one.
        cluster_P: Number of the prompt of each comparison.
        ridge: Weight of :math:`\phi^2/2` beside the summed log loss, so that data that lengths separate have a
            solution; of little effect beyond some tens of comparisons.

    Returns:
        The result; None without comparisons.

    Source: Dubois, Galambosi, Liang and Hashimoto (2024), Length-Controlled AlpacaEval, arXiv 2404.04475, section 3;
    the variance: Liang and Zeger (1986), Biometrika 73.

    >>> right, longer = np.array([1, 1, 1, 0, 0, 1]), np.array([3, 2, 1, -3, -2, -1])
    >>> found = length_controlled_accuracy(right, longer, np.arange(6))
    >>> 0.5 < found.accuracy < 0.8, found.length_effect > 0
    (True, True)
    """
    n = len(right_P)
    if n == 0:
        return None
    outcome_P = np.asarray(right_P, dtype=np.float64)
    spread = float(np.std(difference_P))
    term_P = np.tanh(difference_P / spread) if spread else np.zeros(n)
    if outcome_P.min() == outcome_P.max():
        return LengthControlled(float(outcome_P[0]), None, 0.0, n)
    design_PK = np.stack((np.ones(n), term_P), axis=1)
    penalty_K = np.array([0.0, ridge if spread else 1.0])
    theta_K = _fit(design_PK, outcome_P, penalty_K)
    accuracy, interval = _predict(theta_K, design_PK, outcome_P, penalty_K, cluster_P)
    return LengthControlled(accuracy, interval, float(theta_K[1]), n)


def _probability(design_PK: np.ndarray, theta_K: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -design_PK @ theta_K))


def _curvature(design_PK: np.ndarray, p_P: np.ndarray, penalty_K: np.ndarray) -> np.ndarray:
    return (design_PK * (p_P * (1 - p_P))[:, None]).T @ design_PK + np.diag(penalty_K)


def _fit(design_PK: np.ndarray, outcome_P: np.ndarray, penalty_K: np.ndarray) -> np.ndarray:
    """Newton's method, its steps halved while they raise the loss."""

    def loss(theta_K: np.ndarray) -> float:
        logit_P = design_PK @ theta_K
        return float(np.sum(np.logaddexp(0.0, logit_P) - outcome_P * logit_P) + penalty_K @ theta_K**2 / 2)

    theta_K = np.zeros(2)
    for _ in range(100):
        p_P = _probability(design_PK, theta_K)
        gradient_K = design_PK.T @ (p_P - outcome_P) + penalty_K * theta_K
        step_K = np.linalg.solve(_curvature(design_PK, p_P, penalty_K), gradient_K)
        while loss(theta_K - step_K) > loss(theta_K) and np.abs(step_K).max() > 1e-12:
            step_K = step_K / 2
        theta_K = theta_K - step_K
        if np.abs(step_K).max() < 1e-10:
            break
    return theta_K


def _predict(
    theta_K: np.ndarray, design_PK: np.ndarray, outcome_P: np.ndarray, penalty_K: np.ndarray, cluster_P: np.ndarray
) -> tuple[float, Interval | None]:
    """Accuracy at no difference, and its interval."""
    p_P = _probability(design_PK, theta_K)
    scores_CK = sums_by_cluster(design_PK * (outcome_P - p_P)[:, None], cluster_P)
    bread_KK = np.linalg.inv(_curvature(design_PK, p_P, penalty_K))
    deviation = float(np.sqrt((bread_KK @ (scores_CK.T @ scores_CK) @ bread_KK)[0, 0]))
    at_zero = np.array(
        [theta_K[0], theta_K[0] - 1.959963984540054 * deviation, theta_K[0] + 1.959963984540054 * deviation]
    )
    accuracy, low, high = np.exp(-np.logaddexp(0.0, -at_zero))
    return float(accuracy), Interval(float(low), float(high)) if len(scores_CK) > 1 else None


LENGTH_BINS = 8


def correlate(rewards_N: np.ndarray, values_N: np.ndarray, cluster_N: np.ndarray, *, seed: int = 0) -> Correlation:
    """Correlate rewards with another number, over all responses and within prompts.

    Args:
        rewards_N: Reward of each response.
        values_N: The other number.
        cluster_N: Number of the prompt of each.
        seed: Decides the draws of the bootstrap.
    """
    own_N, other_N = (_centred(one, cluster_N) for one in (rewards_N, values_N))
    return Correlation(
        pearson=correlation(rewards_N, values_N),
        pearson_interval=_correlation_interval(rewards_N, values_N, cluster_N, seed),
        spearman=spearman(rewards_N, values_N),
        within=correlation(own_N, other_N),
        within_interval=_correlation_interval(own_N, other_N, cluster_N, seed),
    )


def _centred(values_N: np.ndarray, cluster_N: np.ndarray) -> np.ndarray:
    """Subtract the mean of the prompt; what rounding leaves of no difference becomes 0."""
    sums_CK = sums_by_cluster(np.stack((values_N, np.ones(len(values_N))), axis=1), cluster_N)
    means_C = sums_CK[:, 0] / sums_CK[:, 1]
    centred_N = values_N - means_C[np.unique(cluster_N, return_inverse=True)[1].reshape(-1)]
    return np.where(np.abs(centred_N) < 1e-12 * np.abs(values_N), 0.0, centred_N)


def _correlation_interval(x_N: np.ndarray, y_N: np.ndarray, cluster_N: np.ndarray, seed: int) -> Interval | None:
    if correlation(x_N, y_N) is None:
        return None
    # Centred once more: sums of squares of large numbers lose their digits.
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    summands_NK = np.stack((np.ones(len(x_N)), x_N, y_N, x_N * x_N, y_N * y_N, x_N * y_N), axis=1)
    return cluster_bootstrap(summands_NK, cluster_N, _pearson_of_sums, seed=seed)


def _pearson_of_sums(sums_BK: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = sums_BK.T
    spread = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    return np.clip((n * xy - x * y) / np.sqrt(spread), -1, 1)


def length_bias(
    scored: ScoredSet, *, unit: LengthUnit = "tokens", bins: int = LENGTH_BINS, seed: int = 0
) -> LengthBias:
    """Say how far rewards follow the length of responses.

    Args:
        scored: Rows with lengths.
        unit: What lengths count.
        bins: How many bins of length difference.
        seed: Decides the draws of the bootstrap.

    Raises:
        DataError: A row has no lengths.

    >>> from plaudit.evaluation.table import ScoredRow
    >>> rows = [ScoredRow(0, (2.0, 1.0), tokens=(9, 3)), ScoredRow(1, (0.0, 1.0), tokens=(4, 8))]
    >>> found = length_bias(ScoredSet(rows))
    >>> found.accuracy_longer_right.value, found.accuracy_longer_wrong.value, found.balanced_accuracy
    (1.0, 0.0, 0.5)
    """
    lengths_N = scored.lengths_N(unit)
    difference_P = lengths_N[scored.better_P] - lengths_N[scored.worse_P]
    margin_P, cluster_P = scored.margin_P, scored.cluster_P
    right_P, apart_P = margin_P > 0, difference_P != 0

    def share(success_P: np.ndarray, kept_P: np.ndarray) -> Proportion:
        return proportion(success_P[kept_P], cluster_P[kept_P], seed=seed)

    by_sign = [share(right_P, difference_P > 0), share(right_P, difference_P < 0)]
    known = [one.value for one in by_sign if one.value is not None]
    return LengthBias(
        unit=unit,
        correlation=correlate(scored.rewards_N, lengths_N, scored.cluster_N, seed=seed),
        longer_right=share(difference_P > 0, apart_P),
        longer_preferred=share(margin_P * difference_P > 0, apart_P),
        accuracy_longer_right=by_sign[0],
        accuracy_longer_wrong=by_sign[1],
        balanced_accuracy=sum(known) / 2 if len(known) == 2 else None,
        controlled=length_controlled_accuracy(right_P, difference_P, cluster_P),
        bins=_length_bins(right_P, difference_P, cluster_P, bins, seed),
    )


def _length_bins(
    right_P: np.ndarray, difference_P: np.ndarray, cluster_P: np.ndarray, bins: int, seed: int
) -> tuple[LengthBin, ...]:
    if not len(difference_P):
        return ()
    edges = np.unique(np.quantile(difference_P, np.linspace(0, 1, bins + 1), method="higher"))
    edges = edges if len(edges) > 1 else np.repeat(edges, 2)
    index_P = np.clip(np.searchsorted(edges, difference_P, side="left") - 1, 0, len(edges) - 2)
    return tuple(
        LengthBin(float(low), float(high), proportion(right_P[inside_P], cluster_P[inside_P], seed=seed))
        for place, (low, high) in enumerate(itertools.pairwise(edges))
        for inside_P in [index_P == place]
    )


def format_bias(scored: ScoredSet, *, seed: int = 0) -> tuple[FormatBias, ...]:
    """Say how far rewards follow markdown, feature by feature.

    Args:
        scored: Rows with texts.
        seed: Decides the draws of the bootstrap.

    Raises:
        DataError: A row has no texts.
    """
    counts = [markdown_counts(text) for text in scored.texts_N()]
    return tuple(
        _format_bias(scored, feature, np.array([one[feature] for one in counts], dtype=np.float64), seed)
        for feature in FEATURES
    )


def _format_bias(scored: ScoredSet, feature: str, counts_N: np.ndarray, seed: int) -> FormatBias:
    difference_P = counts_N[scored.better_P] - counts_N[scored.worse_P]
    apart_P = difference_P != 0
    cluster_P = scored.cluster_P[apart_P]
    preferred_P = scored.margin_P * difference_P > 0
    return FormatBias(
        feature=feature,
        share=float(np.mean(counts_N > 0)) if len(counts_N) else 0.0,
        correlation=correlate(scored.rewards_N, counts_N, scored.cluster_N, seed=seed),
        more_right=proportion((difference_P > 0)[apart_P], cluster_P, seed=seed),
        more_preferred=proportion(preferred_P[apart_P], cluster_P, seed=seed),
    )
