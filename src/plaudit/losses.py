"""Losses: pure functions from rewards to one loss per comparison.

None of them reduces: the caller sums and divides by the *global* number of comparisons, so that gradient
accumulation, uneven batches and several processes all give what one big batch would.
"""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    better_P: torch.Tensor, worse_P: torch.Tensor, margin_P: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Negative log-likelihood of each comparison under the Bradley-Terry model.

    .. math:: \ell = -\log \sigma(r^+ - r^- - m)

    Args:
        better_P: Rewards of the preferred responses, shape (P,).
        worse_P: Rewards of the responses they are preferred to, shape (P,).
        margin_P: How much better they should be, in reward units, shape (P,); None means 0.

    Returns:
        The loss of each comparison, shape (P,).

    Raises:
        ValueError: If the shapes differ (broadcasting (P, 1) against (P,) would give a silent (P, P)).

    Source: Bradley and Terry (1952), https://www.jstor.org/stable/2334029; the additive margin is that of
    Llama 2, https://arxiv.org/abs/2307.09288.

    >>> bradley_terry_loss(torch.tensor([1.0]), torch.tensor([1.0]))
    tensor([0.6931])
    >>> bradley_terry_loss(torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([2.0]))
    tensor([0.6931])
    """
    _require_same_shape(better_P, worse_P, margin_P)
    difference_P = better_P - worse_P
    if margin_P is not None:
        difference_P = difference_P - margin_P
    return -logsigmoid(difference_P)


def center_rewards_penalty(better_P: torch.Tensor, worse_P: torch.Tensor) -> torch.Tensor:
    r"""Squared sum of the two rewards of each comparison: keeps rewards near zero, where Bradley-Terry is indifferent.

    .. math:: (r^+ + r^-)^2

    Args:
        better_P: Rewards of the preferred responses, shape (P,).
        worse_P: Rewards of the others, shape (P,).

    Returns:
        The penalty of each comparison, shape (P,), before its coefficient (recommended: 0.01).

    Source: Eisenstein et al. (2023), https://arxiv.org/abs/2312.09244.

    >>> center_rewards_penalty(torch.tensor([2.0]), torch.tensor([-1.0]))
    tensor([1.])
    """
    _require_same_shape(better_P, worse_P)
    return (better_P + worse_P) ** 2


def _require_same_shape(better_P: torch.Tensor, worse_P: torch.Tensor, margin_P: torch.Tensor | None = None) -> None:
    shapes = [tuple(t.shape) for t in (better_P, worse_P, margin_P) if t is not None]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"rewards and margins must all have one and the same shape (P,), got {shapes}")
