"""The loss of a batch: the objective's terms and the regularisers, summed, with what the sum is divided by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from plaudit.losses import center_rewards_penalty, length_correlation
from plaudit.metrics import Scored
from plaudit.model.shared_prefix import Rewards
from plaudit.objectives import Objective, Terms
from plaudit.schema import Batch

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


@dataclass(frozen=True)
class RewardLoss:
    """An objective with its regularisers.

    Attributes:
        objective: What is learned from the labels.
        center_rewards: Coefficient of the penalty on rewards far from zero.
        length_penalty: Coefficient of the correlation of rewards with lengths, as a number without its sign.
        length_head: Coefficient of ODIN's losses: the length head takes what length explains, the reward head loses
            it. The objective then sees the sum of both heads; the reward that is reported and saved is the first.
        lm_loss: Coefficient of the loss of predicting the best responses' tokens (GRM).
        ensemble_size: Members of an ensemble around the reward; 0 for none. They learn from the objective alone, and
            the loss that is reported is without theirs.
        seed: Seed of what each member sees.
    """

    objective: Objective
    center_rewards: float = 0.0
    length_penalty: float = 0.0
    length_head: float = 0.0
    lm_loss: float = 0.0
    ensemble_size: int = 0
    seed: int = 0

    def count(self, batch: Batch) -> torch.Tensor:
        """What a batch counts for in the mean over a step: its rows, or its responses for ratings and labels."""
        return self.objective.units(batch)[0].sum()

    def __call__(self, rewards: Rewards, batch: Batch) -> Scored:
        """The loss of a batch, and what metrics are computed from.

        Args:
            rewards: What the model said.
            batch: The batch.
        """
        rewards_N, extras, example_N = rewards.rewards_N, rewards.extras, batch["example_of_response"]
        judged_N = rewards_N + extras["length_rewards"] if "length_rewards" in extras else rewards_N
        tie_parameter = extras.get("tie_parameter")
        terms = self.objective.terms(judged_N, batch, tie_parameter)
        weight_U = terms.count_U if "weight" not in batch else terms.count_U * batch["weight"][terms.example_U]
        # A filler may hold anything, NaN included.
        loss = torch.where(terms.count_U > 0, weight_U * terms.loss_U, 0).sum()
        if "deviations" in extras and loss.requires_grad:
            loss = loss + self._gradient_of_members(judged_N, extras, batch, terms)
        count_G = torch.zeros_like(batch["example_weight"]).index_add(0, terms.example_U, terms.count_U)
        count = count_G.sum()
        real_N = batch["example_weight"][example_N] > 0
        if self.center_rewards:
            penalty_G = center_rewards_penalty(rewards_N, example_N, len(count_G))
            loss = loss + self.center_rewards * _weighted_sum(penalty_G, count_G)
        if rewards.aux_loss is not None:
            loss = loss + rewards.aux_loss_weight * rewards.aux_loss * count
        correlation = None
        if self.length_penalty or self.length_head:
            lengths_N = batch["response_tokens"].to(rewards_N.dtype)
            correlation = length_correlation(rewards_N, lengths_N, real_N.float())
            loss = loss + (self.length_penalty + self.length_head) * correlation.abs() * count
        if self.length_head:
            explained = length_correlation(extras["length_rewards"], lengths_N, real_N.float())
            loss = loss + self.length_head * (extras["head_overlap"] - explained) * count
        text_loss = None
        if self.lm_loss:
            text_G = _mean_by_example(extras["text_losses"], batch["text_example"], torch.zeros_like(count_G))
            text_loss = _weighted_sum(text_G, count_G) / at_least_a_little(count)
            loss = loss + self.lm_loss * text_loss * count
        return Scored(
            rewards_N=rewards_N,
            lengths_N=batch["response_lengths"],
            real_N=real_N,
            example_N=example_N,
            scores_N=batch["scores"],
            better_P=batch["better"],
            worse_P=batch["worse"],
            real_P=real_N[batch["better"]],
            loss=loss,
            count=count,
            tokens_computed=rewards.tokens_computed,
            preference_prob_P=batch.get("preference_prob"),
            tie_width=None if tie_parameter is None else self.objective.tie_width(tie_parameter),
            pointwise=self.objective.pointwise,
            listed=batch.get("listed", False),
            aux_loss=rewards.aux_loss,
            text_loss=text_loss,
            length_correlation=correlation,
        )

    def _gradient_of_members(
        self, rewards_N: torch.Tensor, extras: Mapping[str, torch.Tensor], batch: Batch, terms: Terms
    ) -> torch.Tensor:
        """A summand that is 0, and whose gradient is that of the members' losses."""
        loss = members_loss(
            self.objective, rewards_N, extras["deviations"], batch, extras.get("tie_parameter"), terms, self.seed
        )
        return loss - loss.detach()


def _weighted_sum(values_G: torch.Tensor, count_G: torch.Tensor) -> torch.Tensor:
    return torch.where(count_G > 0, count_G * values_G, 0).sum()


def _mean_by_example(losses_S: torch.Tensor, example_S: torch.Tensor, nothing_G: torch.Tensor) -> torch.Tensor:
    total_G = nothing_G.index_add(0, example_S, losses_S.to(nothing_G.dtype))
    tokens_G = nothing_G.index_add(0, example_S, torch.ones_like(losses_S, dtype=nothing_G.dtype))
    return total_G / tokens_G.clamp_min(1)


def at_least_a_little(count: torch.Tensor) -> torch.Tensor:
    """Keep a batch of fillers alone from dividing by zero.

    Args:
        count: What a sum is divided by.
    """
    return count.clamp_min(torch.finfo(torch.float32).tiny)
