"""What else rewards follow: the length of responses, and their Markdown."""

from __future__ import annotations

import re

import numpy as np
from scipy.special import expit

from plaudit.evaluation import results, stats
from plaudit.evaluation.results import Correlation, FormatBias, Interval, LengthBias, LengthControlled, Proportion
from plaudit.evaluation.stats import correlation, proportion, spearman, sums_by_cluster
from plaudit.evaluation.table import ScoredSet
from plaudit.intervals import Z_95

FEATURES = ("headers", "bold", "lists", "code", "tables")
_FENCED = re.compile(r"^ {0,3}(```+|~~~+)[^\n]*\n(?:.*?^ {0,3}\1[`~]*[ \t]*$|.*)", re.MULTILINE | re.DOTALL)
_INLINE_CODE = re.compile(r"(?<!`)(`+)(?!`)[^\n]+?(?<!`)\1(?!`)")
_PATTERNS = {
    "headers": re.compile(r"^ {0,3}#{1,6}[ \t]+\S", re.MULTILINE),
    "bold": re.compile(r"(\*\*|__)(?=\S)[^\n]+?(?<=\S)\1"),
    "lists": re.compile(r"^[ \t]*(?:[-*+]|\d{1,9}[.)])[ \t]+\S", re.MULTILINE),
    # The bar in the second line tells a table from a heading that is underlined.
    "tables": re.compile(
        r"^[^\n]*\|[^\n]*\n(?=[^\n]*\|)[ \t]*\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$", re.MULTILINE
    ),
}


def markdown_counts(text: str) -> dict[str, int]:
    """Counts each of :data:`FEATURES` in a text; what is inside code counts as code only.

    >>> markdown_counts("# Title\\n- **one**\\n- two with `code`\\n\\n| a | b |\\n|---|---|\\n| 1 | 2 |\\n")
    {'headers': 1, 'bold': 1, 'lists': 2, 'code': 1, 'tables': 1}
    """
    text, blocks = _FENCED.subn("", text)
    text, spans = _INLINE_CODE.subn("", text)
    counts = {name: sum(1 for _ in pattern.finditer(text)) for name, pattern in _PATTERNS.items()}
    return {name: blocks + spans if name == "code" else counts[name] for name in FEATURES}


def correlate(rewards_N: np.ndarray, values_N: np.ndarray, cluster_N: np.ndarray, *, seed: int = 0) -> Correlation:
    """Correlates rewards with another number, over all responses and within prompts."""

    def with_interval(x_N: np.ndarray, y_N: np.ndarray) -> tuple[float | None, Interval | None]:
        pearson = correlation(x_N, y_N)
        if pearson is None:
            return None, None
        # Centred: sums of squares of large numbers lose their digits.
        x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
        summands_NK = np.stack((np.ones(len(x_N)), x_N, y_N, x_N * x_N, y_N * y_N, x_N * y_N), axis=1)
        return pearson, stats.cluster_bootstrap(summands_NK, cluster_N, _pearson_of_sums, seed=seed)

    overall = with_interval(rewards_N, values_N)
    within = with_interval(*(_centred(numbers_N, cluster_N) for numbers_N in (rewards_N, values_N)))
    return Correlation(*overall, spearman(rewards_N, values_N), *within)


def _centred(values_N: np.ndarray, cluster_N: np.ndarray) -> np.ndarray:
    """Subtracts the mean of the prompt; what rounding leaves of no difference becomes 0."""
    sums_CK = sums_by_cluster(np.stack((values_N, np.ones(len(values_N))), axis=1), cluster_N)
    means_C = sums_CK[:, 0] / sums_CK[:, 1]
    centred_N = values_N - means_C[np.unique(cluster_N, return_inverse=True)[1].reshape(-1)]
    return np.where(np.abs(centred_N) < 1e-12 * np.abs(values_N), 0.0, centred_N)


def _pearson_of_sums(sums_BK: np.ndarray) -> np.ndarray:
    n, x, y, xx, yy, xy = sums_BK.T
    scale = np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    return np.clip((n * xy - x * y) / np.sqrt(scale), -1, 1)


# ---- length ------------------------------------------------------------------------------------------------------


def length_bias(scored: ScoredSet, *, unit: results.LengthUnit = "tokens", bins: int = 8, seed: int = 0) -> LengthBias:
    """Returns how rewards follow the length of responses; a row without lengths raises `DataError`.

    >>> from plaudit.evaluation.table import ScoredRow
    >>> rows = [ScoredRow(0, (2.0, 1.0), tokens=(9, 3)), ScoredRow(1, (0.0, 1.0), tokens=(4, 8))]
    >>> found = length_bias(ScoredSet(rows))
    >>> found.accuracy_longer_right.value, found.accuracy_longer_wrong.value, found.balanced_accuracy
    (1.0, 0.0, 0.5)
    """
    lengths_N = np.array(scored.each(unit), dtype=np.float64)
    difference_P = lengths_N[scored.better_P] - lengths_N[scored.worse_P]
    margin_P, cluster_P = scored.margin_P, scored.cluster_P
    right_P, apart_P = margin_P > 0, difference_P != 0

    def share(success_P: np.ndarray, kept_P: np.ndarray) -> Proportion:
        return proportion(success_P[kept_P], cluster_P[kept_P], seed=seed)

    longer_right, longer_wrong = share(right_P, difference_P > 0), share(right_P, difference_P < 0)
    both = None if longer_right.value is None or longer_wrong.value is None else longer_right.value + longer_wrong.value
    inside = stats.in_bins(difference_P, stats.bins_of_equal_mass(difference_P, bins)) if len(difference_P) else ()
    by_length = (results.LengthBin(low, high, share(right_P, inside_P)) for low, high, inside_P in inside)
    return LengthBias(
        unit=unit,
        correlation=correlate(scored.rewards_N, lengths_N, scored.cluster_N, seed=seed),
        longer_right=share(difference_P > 0, apart_P),
        longer_preferred=share(margin_P * difference_P > 0, apart_P),
        accuracy_longer_right=longer_right,
        accuracy_longer_wrong=longer_wrong,
        balanced_accuracy=None if both is None else both / 2,
        controlled=length_controlled_accuracy(right_P, difference_P, cluster_P),
        bins=tuple(by_length),
    )


def length_controlled_accuracy(
    right_P: np.ndarray, difference_P: np.ndarray, cluster_P: np.ndarray, *, ridge: float = 1.0
) -> LengthControlled | None:
    r"""Regresses being right on the difference of lengths, and returns the prediction at no difference.

    .. math:: P(\mathrm{right}) = \sigma\left(\theta + \phi \tanh\frac{\Delta}{\mathrm{std}(\Delta)}\right),
        \qquad \mathrm{accuracy} = \sigma(\theta)

    with :math:`\Delta` the length of the better response minus that of the worse one, not centred. This is the
    regression of length-controlled AlpacaEval, without its terms for the difficulty of instructions, where "the model
    beats the baseline" reads "the better response gets the higher reward".

    `ridge` weighs :math:`\phi^2/2` beside the summed log loss, so that data that lengths separate have a solution; it
    has little effect beyond some tens of comparisons. The result is None without comparisons.

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
    if outcome_P.min() == outcome_P.max():
        return LengthControlled(float(outcome_P[0]), None, 0.0, n)
    std = float(np.std(difference_P))
    design_PK = np.stack((np.ones(n), np.tanh(difference_P / std) if std else np.zeros(n)), axis=1)
    penalty_K = np.array([0.0, ridge if std else 1.0])

    def loss(theta_K: np.ndarray) -> float:
        logit_P = design_PK @ theta_K
        return float(np.sum(np.logaddexp(0.0, logit_P) - outcome_P * logit_P) + penalty_K @ theta_K**2 / 2)

    def residual(theta_K: np.ndarray) -> np.ndarray:
        return np.asarray(expit(design_PK @ theta_K) - outcome_P)

    def curvature(theta_K: np.ndarray) -> np.ndarray:
        p_P = expit(design_PK @ theta_K)
        return (design_PK * (p_P * (1 - p_P))[:, None]).T @ design_PK + np.diag(penalty_K)

    theta_K = np.zeros(2)
    for _ in range(100):  # Newton's method; steps are halved while they raise the loss
        step_K = np.linalg.solve(curvature(theta_K), design_PK.T @ residual(theta_K) + penalty_K * theta_K)
        while loss(theta_K - step_K) > loss(theta_K) and np.abs(step_K).max() > 1e-12:
            step_K = step_K / 2
        theta_K = theta_K - step_K
        if np.abs(step_K).max() < 1e-10:
            break
    # The sandwich variance over prompts.
    scores_CK = sums_by_cluster(design_PK * residual(theta_K)[:, None], cluster_P)
    bread_KK = np.linalg.inv(curvature(theta_K))
    deviation = float(np.sqrt((bread_KK @ (scores_CK.T @ scores_CK) @ bread_KK)[0, 0]))
    accuracy, low, high = expit(theta_K[0] + np.array([0.0, -Z_95, Z_95]) * deviation).tolist()
    return LengthControlled(accuracy, Interval(low, high) if len(scores_CK) > 1 else None, float(theta_K[1]), n)


# ---- Markdown ----------------------------------------------------------------------------------------------------


def format_bias(scored: ScoredSet, *, seed: int = 0) -> tuple[FormatBias, ...]:
    """Returns how rewards follow Markdown, feature by feature; a row without texts raises `DataError`."""
    counts = [markdown_counts(text) for text in scored.each("texts")]
    biases = []
    for feature in FEATURES:
        counts_N = np.array([count[feature] for count in counts], dtype=np.float64)
        difference_P = counts_N[scored.better_P] - counts_N[scored.worse_P]
        apart_P = difference_P != 0
        more_right, more_preferred = (
            proportion(success_P[apart_P], scored.cluster_P[apart_P], seed=seed)
            for success_P in (difference_P > 0, scored.margin_P * difference_P > 0)
        )
        share = float(np.mean(counts_N > 0)) if len(counts_N) else 0.0
        correlated = correlate(scored.rewards_N, counts_N, scored.cluster_N, seed=seed)
        biases.append(FormatBias(feature, share, correlated, more_right, more_preferred))
    return tuple(biases)
