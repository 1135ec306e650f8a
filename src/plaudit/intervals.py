"""Wilson's interval, for whatever counts: it needs neither torch nor scipy."""

from __future__ import annotations

import math

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
