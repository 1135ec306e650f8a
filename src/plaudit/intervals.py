"""Wilson's interval, for whatever counts, and Holm's correction: they need neither torch nor scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z_95 = 1.959963984540054
"""Quantile of the normal distribution for a 95% interval."""


def wilson_interval(successes: float, trials: int) -> tuple[float, float]:
    r"""Returns Wilson's 95% interval of a proportion, also of successes that are not whole; (0, 1) without trials.

    .. math:: \frac{p + z^2/2n \pm z\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}

    Source: Wilson (1927), Journal of the American Statistical Association 22.

    >>> tuple(round(bound, 4) for bound in wilson_interval(8, 10))
    (0.4902, 0.9433)
    """
    if trials == 0:
        return 0.0, 1.0
    p, z2 = successes / trials, Z_95**2 / trials
    half = Z_95 * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials))
    return max(0.0, (p + z2 / 2 - half) / (1 + z2)), min(1.0, (p + z2 / 2 + half) / (1 + z2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number.

    Source: Holm (1979), Scandinavian Journal of Statistics 6.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        corrected[index] = largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
    return corrected
