"""Computes the loss of a batch: objective terms plus regularisers, and the count that normalises them."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor

from plaudit.data.parse import survey
from plaudit.losses import center_rewards_penalty, length_correlation
from plaudit.metrics import Scored
from plaudit.model.shared_prefix import Rewards
from plaudit.objectives import Objective, check_objective, choose_objective, make_objective
from plaudit.schema import Batch
from plaudit.training.config import RewardConfig

logger = logging.getLogger("plaudit")
_LARGEST_DRAW = 12  # a Poisson number of mean 1 is larger once in 10^10 draws
_BITS = 24  # float32 holds multiples of 2**-24 between 0 and 1 exactly


def bootstrap_weights(content_G: Tensor, members: int, seed: int) -> Tensor:
    """Returns how often each example is in the bootstrap sample of each member, shape (K, G): Poisson(1) numbers.

    They are hashed from the content of an example (one number each), not from its position: the same in every epoch,
    batch, process and resumed run.

    >>> bootstrap_weights(torch.tensor([7, 8, 7]), members=2, seed=0)
    tensor([[1., 1., 1.],
            [0., 0., 0.]])
    """
    member_K = torch.arange(1, members + 1, device=content_G.device) * (0x9E3779B97F4A7C15 - 2**64)
    hash_KG = _hash(content_G ^ _hash(member_K + seed)[:, None])
    uniform_KG = ((hash_KG >> (64 - _BITS)) & (2**_BITS - 1)).float() / 2**_BITS
    probabilities = torch.tensor([math.exp(-1) / math.factorial(n) for n in range(_LARGEST_DRAW)], dtype=torch.float64)
    return torch.bucketize(uniform_KG, probabilities.cumsum(0).float().to(content_G.device), right=True).float()


def _hash(values: Tensor) -> Tensor:
    """MurmurHash3's finalizer of 64-bit numbers; products wrap around."""

    def shifted(values: Tensor) -> Tensor:
        # The shift of signed numbers brings in copies of the sign.
        return (values >> 33) & (2**31 - 1)

    for multiplier in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ shifted(values)) * (multiplier - 2**64)
    return values ^ shifted(values)


@dataclass(frozen=True)
class RewardLoss:
    """An objective with its regularisers; the numbers are coefficients, 0 where a regulariser is off."""

    objective: Objective
    center_rewards: float = 0.0  # of the penalty on rewards far from zero
    length_penalty: float = 0.0  # of the absolute correlation of rewards with lengths
    # Of ODIN's losses: the length head learns what length explains, the reward head loses it. The objective sees the
    # sum of both heads; the reward that is reported and saved is the first.
    length_head: float = 0.0
    lm_loss: float = 0.0  # of predicting the tokens of the best responses (GRM)
    ensemble_size: int = 0  # members learn from the objective alone; the reported loss is without theirs
    seed: int = 0  # of the members' bootstrap samples

    def count(self, batch: Batch) -> Tensor:
        """Returns the count of a batch in the mean over a step: its rows, or its responses for ratings and labels."""
        return self.objective.units(batch)[0].sum()

    def __call__(self, rewards: Rewards, batch: Batch) -> Scored:
        """Returns the loss of a batch, with everything that metrics are computed from."""
        rewards_N, extras, example_N = rewards.rewards_N, rewards.extras, batch["example_of_response"]
        # The objective sees the sum of both heads where there is a length head.
        summed_N = rewards_N + extras["length_rewards"] if "length_rewards" in extras else rewards_N
        tie_parameter = extras.get("tie_parameter")
        loss_U = self.objective.losses(summed_N, batch, tie_parameter)
        count_U, example_U = self.objective.units(batch)
        weight_U = count_U if "weight" not in batch else count_U * batch["weight"][example_U]
        # A filler may hold anything, NaN included.
        loss = torch.where(count_U > 0, weight_U * loss_U, 0).sum()
        if "deviations" in extras and loss.requires_grad:
            members = self._members_loss(summed_N, extras["deviations"], batch, tie_parameter)
            loss = loss + (members - members.detach())  # adds 0 to the loss, and the members' gradient
        count_G = torch.zeros_like(batch["example_weight"]).index_add(0, example_U, count_U)
        count = count_G.sum()
        real_N = batch["example_weight"][example_N] > 0
        if self.center_rewards:
            penalty_G = center_rewards_penalty(rewards_N, example_N, len(count_G))
            loss = loss + self.center_rewards * torch.where(count_G > 0, count_G * penalty_G, 0).sum()
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
            zeros_G, losses_S = torch.zeros_like(count_G), extras["text_losses"].to(count_G.dtype)
            total_G = zeros_G.index_add(0, batch["text_example"], losses_S)
            tokens_G = zeros_G.index_add(0, batch["text_example"], torch.ones_like(losses_S))
            text_G = total_G / tokens_G.clamp_min(1)
            text_loss = torch.where(count_G > 0, count_G * text_G, 0).sum() / divisor(count)
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

    def _members_loss(
        self, rewards_N: Tensor, deviations_NK: Tensor, batch: Batch, tie_parameter: Tensor | None
    ) -> Tensor:
        """Returns the mean over members of their summed losses; its gradient reaches only the members' weights."""
        members_KN = (rewards_N.detach()[:, None] + deviations_NK).T
        tie_parameter = None if tie_parameter is None else tie_parameter.detach()
        loss_KU = torch.vmap(lambda rewards_N: self.objective.losses(rewards_N, batch, tie_parameter))(members_KN)
        drawn_KG = bootstrap_weights(batch["content"], len(members_KN), self.seed)
        if "weight" in batch:
            drawn_KG = drawn_KG * batch["weight"]
        count_U, example_U = self.objective.units(batch)
        weight_KU = count_U * drawn_KG[:, example_U]
        return torch.where(count_U > 0, weight_KU * loss_KU, 0).sum() / len(members_KN)


def make_loss(args: RewardConfig, dataset: Dataset | IterableDataset) -> RewardLoss:
    """Returns the loss of the settings, with an objective that can learn from the data, and logs the choice."""
    row_kinds, columns = survey(dataset)
    name, reason = str(args.objective), "as set by `objective`"
    if name == "auto":
        name, reason = choose_objective(row_kinds, columns)
        if name == "bradley_terry" and columns <= {"margin"} and row_kinds == {"pairs"}:
            reason = "the data has pairs"
    objective = make_objective(name, label_smoothing=args.label_smoothing_factor, top_k=args.plackett_luce_top_k)
    check_objective(name, row_kinds, columns, "train")
    logger.info("Objective: %s (%s).", name, reason)
    return RewardLoss(
        objective,
        center_rewards=args.center_rewards_coefficient or 0.0,
        length_penalty=args.length_penalty_coefficient or 0.0,
        length_head=args.length_head_coefficient or 0.0,
        lm_loss=args.lm_loss_coefficient or 0.0,
        ensemble_size=args.ensemble_size,
        seed=args.seed,
    )


def divisor(count: Tensor) -> Tensor:
    """Returns a count that is safe to divide by: a batch of fillers counts 0."""
    return count.clamp_min(torch.finfo(torch.float32).tiny)
