r"""What the members of an ensemble learn from: the same comparisons as the reward, each weighed by chance.

Member k is the reward plus a deviation of its own, :math:`r_k = r + d_k - \bar d`, so that the mean over members is
the reward at every moment. The deviations are linear in the states under the head. They differ because each begins
elsewhere, and because each sees another bootstrap sample of the data. The reward and the trunk do not learn from them.

Sources: for bootstrapped heads on one trunk Osband et al. (2016), https://arxiv.org/abs/1602.04621; for beginnings that
stay where there are no data Osband et al. (2018), https://arxiv.org/abs/1806.03335; for Poisson weights Oza and Russell
(2001), https://proceedings.mlr.press/r3/oza01a.html.
"""

from __future__ import annotations

import math

import torch

from plaudit.objectives import Objective, Terms
from plaudit.types import Batch

_MOST = 12  # a Poisson number of mean 1 is larger once in 10^10 draws
_BITS = 24  # of a number between 0 and 1, as float32 holds them exactly


def bootstrap_weights(content_G: torch.Tensor, members: int, seed: int) -> torch.Tensor:
    """How often each example is in the bootstrap sample of each member: Poisson numbers of mean 1.

    They depend on the example alone, not on its place: they are the same in every epoch, batch, process and resumed
    run.

    Args:
        content_G: A number made from what each example says, shape (G,).
        members: Number of members K.
        seed: Seed of the draw.

    Returns:
        Shape (K, G).

    >>> bootstrap_weights(torch.tensor([7, 8, 7]), members=2, seed=0)
    tensor([[1., 1., 1.],
            [0., 0., 0.]])
    """
    member_K = torch.arange(1, members + 1, device=content_G.device) * _signed(0x9E3779B97F4A7C15)
    mixed_KG = _mixed(content_G ^ _mixed(member_K + seed)[:, None])
    uniform_KG = ((mixed_KG >> (64 - _BITS)) & (2**_BITS - 1)).float() / 2**_BITS
    probabilities = torch.tensor([math.exp(-1) / math.factorial(n) for n in range(_MOST)], dtype=torch.float64)
    return torch.bucketize(uniform_KG, probabilities.cumsum(0).float().to(content_G.device), right=True).float()


def _mixed(values: torch.Tensor) -> torch.Tensor:
    """Each bit of 64-bit numbers depends on all bits that come in; products wrap around (MurmurHash3's finalizer)."""
    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ _shifted(values, 33)) * _signed(multiplier)
    return values ^ _shifted(values, 33)


def _shifted(values: torch.Tensor, bits: int) -> torch.Tensor:
    # The shift of signed numbers brings in copies of the sign.
    return (values >> bits) & (2 ** (64 - bits) - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def members_loss(
    objective: Objective,
    rewards_N: torch.Tensor,
    deviations_NK: torch.Tensor,
    batch: Batch,
    tie_parameter: torch.Tensor | None,
    terms: Terms,
    seed: int,
) -> torch.Tensor:
    """Mean over members of their summed losses; its gradient reaches their weights and nothing else.

    Args:
        objective: What is learned.
        rewards_N: Rewards, shape (N,).
        deviations_NK: What each member adds, shape (N, K).
        batch: The batch, with ``content``.
        tie_parameter: The learned parameter for ties, shape (1,); None for objectives without one.
        terms: What the objective says about the rewards themselves.
        seed: Seed of the bootstrap samples.
    """
    members_KN = (rewards_N.detach()[:, None] + deviations_NK).T
    tie_parameter = None if tie_parameter is None else tie_parameter.detach()
    loss_KU = torch.vmap(lambda rewards_N: objective.losses(rewards_N, batch, tie_parameter))(members_KN)
    drawn_KG = bootstrap_weights(batch["content"], len(members_KN), seed)
    if "weight" in batch:
        drawn_KG = drawn_KG * batch["weight"]
    weight_KU = terms.count_U * drawn_KG[:, terms.example_U]
    return torch.where(terms.count_U > 0, weight_KU * loss_KU, 0).sum() / len(members_KN)
