"""Losses: pure functions from rewards to one loss per comparison.

None of them reduces: the caller sums and divides by the *global* number of comparisons, so that gradient
accumulation, uneven batches and several processes all give what one big batch would.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def load_balancing_loss(
    router_logits: Sequence[torch.Tensor], top_k: int, weight_T: torch.Tensor | None = None
) -> torch.Tensor:
    r"""Auxiliary loss of mixture-of-experts models: smallest where all experts get the same share of tokens.

    .. math:: E \sum_{k} \sum_{e} f_{ke} \, p_e

    with :math:`f_{ke}` the share of tokens whose k-th choice is expert e, and :math:`p_e` the mean probability that
    the router gives to e, both over all layers.

    Args:
        router_logits: For each layer the router's scores, shape (T, E).
        top_k: Experts that each token goes to.
        weight_T: How often each token counts, shape (T,): 0 for padding, and for a shared prompt the number of
            responses that share it.

    Returns:
        A scalar, before its coefficient; ``top_k`` where routing is uniform.

    Source: Fedus et al. (2021), https://arxiv.org/abs/2101.03961, equations 4 to 6, over k choices as in Mixtral.

    >>> load_balancing_loss([torch.zeros(4, 2)], top_k=2)
    tensor(2.)
    """
    device = router_logits[0].device
    logits = torch.cat([layer.to(device).float() for layer in router_logits])
    experts = logits.shape[-1]
    weight = torch.ones(len(logits) // len(router_logits), device=device) if weight_T is None else weight_T.float()
    weight = weight.to(device).repeat(len(router_logits))
    probabilities = logits.softmax(dim=-1)
    chosen = probabilities.topk(top_k, dim=-1).indices
    total = weight.sum()
    # (k, E): weighted share of the tokens whose k-th choice is each expert.
    nothing = torch.zeros(experts, device=device)
    share = torch.stack([nothing.index_add(0, chosen[:, k], weight) for k in range(top_k)]) / total
    mean_probability = (probabilities * weight[:, None]).sum(dim=0) / total
    return experts * (share * mean_probability).sum()


def _require_same_shape(better_P: torch.Tensor, worse_P: torch.Tensor, margin_P: torch.Tensor | None = None) -> None:
    shapes = [tuple(t.shape) for t in (better_P, worse_P, margin_P) if t is not None]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"rewards and margins must all have one and the same shape (P,), got {shapes}")
