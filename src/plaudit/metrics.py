"""Metrics: exact over examples, summed on the device, read by the host once per report.

A mean of batch means weighs a short last batch too much; the sums kept here do not. Fillers (examples of
weight 0 that even out batches between processes) count nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch

Gather: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

_SUMS = (
    "comparisons",
    "correct",
    "ties",
    "rewards",
    "tokens",
    "tokens_computed",
    "loss",
    "reward",
    "margin",
    "aux_loss",
    "with_aux_loss",
)


@dataclass(frozen=True)
class Scored:
    """The outcome of one forward pass: what metrics are computed from.

    Attributes:
        rewards_N: Reward of each response.
        better_P: Index into the responses of the preferred one of each comparison.
        worse_P: Index of the other one.
        loss_P: Loss of each comparison, regularisers included.
        weight_N: 1 for real responses, 0 for fillers.
        weight_P: 1 for real comparisons, 0 for fillers.
        lengths_N: Tokens of each response, prompt included.
        tokens_computed: Tokens that went through the model, padding included, shared prompts once.
        aux_loss: Auxiliary loss of the batch, weighted into each comparison's loss; None where the model has none.
    """

    rewards_N: torch.Tensor
    better_P: torch.Tensor
    worse_P: torch.Tensor
    loss_P: torch.Tensor
    weight_N: torch.Tensor
    weight_P: torch.Tensor
    lengths_N: torch.Tensor
    tokens_computed: int
    aux_loss: torch.Tensor | None = None


class RewardMetrics:
    """Running sums over an interval: accuracy, tie rate, margin, loss and the spread of rewards.

    >>> metrics = RewardMetrics()
    >>> one = torch.ones
    >>> metrics.update(Scored(torch.tensor([2.0, 1.0, 0.5, 0.5]), torch.tensor([0, 2]), torch.tensor([1, 3]),
    ...                       torch.tensor([0.3, 0.7]), one(4), one(2), torch.tensor([5, 4, 3, 3]), 20))
    >>> values = metrics.compute()
    >>> values["accuracy"], values["tie_rate"], values["margin"], values["max_reward"], values["num_tokens"]
    (0.5, 0.5, 0.5, 2.0, 15)
    """

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None  # one number for each name in _SUMS
        self._extremes: torch.Tensor | None = None  # largest reward, largest negated reward

    def update(self, scored: Scored) -> None:
        """Add one batch; nothing is read by the host."""
        with torch.no_grad():
            rewards_N = scored.rewards_N.detach().float()
            margin_P = rewards_N[scored.better_P] - rewards_N[scored.worse_P]
            real_N, real_P = scored.weight_N > 0, scored.weight_P > 0
            # float64 counts exactly up to 2**53; Apple's GPUs have no float64.
            wide = torch.float32 if rewards_N.device.type == "mps" else torch.float64
            summands = {
                "comparisons": real_P,
                "correct": real_P & (margin_P > 0),
                "ties": real_P & (margin_P == 0),
                "rewards": real_N,
                "tokens": torch.where(real_N, scored.lengths_N, 0),
                "tokens_computed": torch.full((), scored.tokens_computed, device=rewards_N.device),
                "loss": torch.where(real_P, scored.loss_P.detach(), 0),
                "reward": torch.where(real_N, rewards_N, 0),
                "margin": torch.where(real_P, margin_P, 0),
                "aux_loss": real_P * (0.0 if scored.aux_loss is None else scored.aux_loss.detach()),
                "with_aux_loss": real_P * float(scored.aux_loss is not None),
            }
            sums = torch.stack([summands[name].to(wide).sum() for name in _SUMS])
            extremes = torch.stack(
                [torch.where(real_N, values, -math.inf).amax() for values in (rewards_N, -rewards_N)]
            )
        self._sums = sums if self._sums is None else self._sums + sums
        self._extremes = extremes if self._extremes is None else torch.maximum(self._extremes, extremes)

    def compute(self, gather: Gather | None = None) -> dict[str, float]:
        """Read the sums, once, and turn them into metrics.

        Args:
            gather: Collects a tensor of shape (1, C) from all processes as (processes, C); None for one process.

        Returns:
            ``loss, accuracy, tie_rate, margin, min_reward, mean_reward, max_reward, num_tokens,
            num_tokens_computed, comparisons``, and ``aux_loss`` where there is one; empty if nothing was added.
        """
        totals = self.totals(gather)
        if totals is None:
            return {}
        named = dict(zip((*_SUMS, "max", "negative_min"), totals, strict=True))
        comparisons, rewards = max(named["comparisons"], 1.0), max(named["rewards"], 1.0)
        values = {
            "loss": named["loss"] / comparisons,
            "accuracy": named["correct"] / comparisons,
            "tie_rate": named["ties"] / comparisons,
            "margin": named["margin"] / comparisons,
            "min_reward": -named["negative_min"],
            "mean_reward": named["reward"] / rewards,
            "max_reward": named["max"],
            "num_tokens": int(named["tokens"]),
            "num_tokens_computed": int(named["tokens_computed"]),
            "comparisons": int(named["comparisons"]),
        }
        if named["with_aux_loss"]:
            values["aux_loss"] = named["aux_loss"] / named["with_aux_loss"]
        return values

    def totals(self, gather: Gather | None = None) -> list[float] | None:
        """The sums and extremes over all processes as plain numbers, for `restore`; None if nothing was added."""
        if self._sums is None or self._extremes is None:
            return None
        row = torch.cat((self._sums, self._extremes.to(self._sums.dtype)))[None]
        rows = row if gather is None else gather(row)
        size = len(_SUMS)
        return torch.cat((rows[:, :size].sum(dim=0), rows[:, size:].amax(dim=0))).tolist()

    def restore(self, totals: list[float] | None, device: torch.device | str = "cpu") -> None:
        """Continue from what `totals` returned."""
        if totals is None:
            self.reset()
            return
        wide = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self._sums = torch.tensor(totals[: len(_SUMS)], dtype=wide, device=device)
        self._extremes = torch.tensor(totals[len(_SUMS) :], dtype=torch.float32, device=device)

    def reset(self) -> None:
        """Start a new interval."""
        self._sums = self._extremes = None


def wilson_interval(successes: float, trials: int, z: float = 1.959963984540054) -> tuple[float, float]:
    r"""Wilson's score interval for a proportion (95% by default).

    .. math:: \frac{p + z^2/2n \pm z\sqrt{p(1-p)/n + z^2/4n^2}}{1 + z^2/n}

    Args:
        successes: How many trials succeeded.
        trials: How many there were; 0 gives (0, 1).
        z: Standard normal quantile of the wanted confidence.

    Returns:
        Lower and upper bound, each in [0, 1].

    Source: Wilson (1927), Journal of the American Statistical Association 22.

    >>> tuple(round(bound, 4) for bound in wilson_interval(8, 10))
    (0.4902, 0.9433)
    """
    if trials == 0:
        return 0.0, 1.0
    p = successes / trials
    middle = p + z * z / (2 * trials)
    half = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)
