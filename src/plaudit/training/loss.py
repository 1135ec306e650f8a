"""The loss of a batch: the objective's terms and the regularisers, summed, with what the sum is divided by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from plaudit.metrics import Scored
from plaudit.model.rewards import Rewards
from plaudit.objectives import Objective, Terms
from plaudit.regularizers import center_rewards_penalty, length_correlation
from plaudit.training.ensemble import members_loss
from plaudit.types import Batch


@dataclass(frozen=True)
class RewardLoss:
    """An objective with its regularisers.

    Attributes:
        objective: What is learned from the judgements.
        center_rewards: Coefficient of the penalty on rewards far from zero.
        length_penalty: Coefficient of the correlation of rewards with lengths, as a number without its sign.
        length_head: Coefficient of ODIN's losses: the length head takes what length explains, the reward head loses
            it. The objective then sees the sum of both heads; the reward that is reported and saved is the first.
        text_generation: Coefficient of the loss of predicting the best responses' tokens (GRM).
        ensemble_size: Members of an ensemble around the reward; 0 for none. They learn from the objective alone, and
            the loss that is reported is without theirs.
        seed: Seed of what each member sees.
    """

    objective: Objective
    center_rewards: float = 0.0
    length_penalty: float = 0.0
    length_head: float = 0.0
    text_generation: float = 0.0
    ensemble_size: int = 0
    seed: int = 0

    def count(self, batch: Batch) -> torch.Tensor:
        """What a batch counts for in the mean over a step: its rows, or its responses for grades and labels."""
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
        if self.text_generation:
            text_G = _mean_by_example(extras["text_losses"], batch["text_example"], torch.zeros_like(count_G))
            text_loss = _weighted_sum(text_G, count_G) / at_least_a_little(count)
            loss = loss + self.text_generation * text_loss * count
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
            strength_P=batch.get("strength"),
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
