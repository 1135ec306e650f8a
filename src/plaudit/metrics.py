"""Metrics: exact over examples, summed on the device, read by the host once per report.

A mean of batch means weighs a short last batch too much; the sums kept here do not. Fillers (examples of
weight 0 that even out batches between processes) count nowhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

Gather: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
# One running sum per name; `RewardMetrics.totals` returns them in this order.
_SUMS = (
    "loss", "count", "comparisons", "correct", "equal", "margin", "ties", "ties_found", "with_tie_width",
    "rewards", "reward", "tokens", "tokens_computed", "rankings", "best_found", "tau",
    "rated", "rating", "squared_rating", "rated_reward", "squared_rated_reward", "rating_times_reward", "squared_error",
    "labelled", "labelled_right", "aux_loss", "with_aux_loss", "text_loss", "length_correlation",
)  # fmt: skip

BETTER: dict[str, Literal["higher", "lower", "neither"]] = {
    **dict.fromkeys(("loss", "aux_loss", "text_loss", "mse", "tie_rate"), "lower"),
    **dict.fromkeys(("accuracy", "tie_accuracy", "best_of_n_accuracy", "best_of_n"), "higher"),
    **dict.fromkeys(("kendall_tau", "correlation", "margin"), "higher"),
    # The correlation of rewards with lengths is best at 0; the others say nothing about the quality of a model.
    **dict.fromkeys(("length_correlation", "min_reward", "mean_reward", "max_reward"), "neither"),
    **dict.fromkeys(("num_tokens", "num_tokens_computed", "runtime"), "neither"),
}
"""Which values of each metric that a run logs are the better ones."""


def better_values(name: str) -> Literal["higher", "lower", "neither"] | None:
    """Returns which values of a logged metric are better, whatever its prefix; None for a metric that is not Plaudit's.

    >>> better_values("eval_mse"), better_values("eval_helpful_best_of_n_accuracy"), better_values("eval_f1")
    ('lower', 'higher', None)
    """
    known = [metric for metric in BETTER if f"_{name}".endswith(f"_{metric}")]
    return BETTER[max(known, key=len)] if known else None


@dataclass(frozen=True)
class Scored:
    """The outcome of one forward pass: what metrics are computed from."""

    rewards_N: torch.Tensor
    lengths_N: torch.Tensor  # tokens of each response, prompt included
    real_N: torch.Tensor  # whether a response is real, rather than a filler
    example_N: torch.Tensor  # the example that each response belongs to
    scores_N: torch.Tensor  # the label of each response, higher is better
    better_P: torch.Tensor  # index of the preferred response of each comparison
    worse_P: torch.Tensor  # index of the other one
    real_P: torch.Tensor
    loss: torch.Tensor  # sum of the losses of what is real, regularisers included, a scalar
    count: torch.Tensor  # what that sum is divided by, a scalar
    tokens_computed: int  # tokens that went through the model, padding included, shared prompts once
    preference_prob_P: torch.Tensor | None = None  # 0.5 for ties; None: 1 throughout
    tie_width: torch.Tensor | None = None  # differences below it are predicted ties, shape (1,); None: no ties
    pointwise: Literal["ratings", "labels"] | None = None  # what scores are; None where they only rank
    listed: bool = False  # whether examples may have more than two responses
    # Of the batch, a scalar each; None where the run does not compute it.
    aux_loss: torch.Tensor | None = None
    text_loss: torch.Tensor | None = None
    length_correlation: torch.Tensor | None = None


class RewardMetrics:
    """Running sums over an interval, from which accuracy, tie rate, margin, loss and range of rewards are computed.

    >>> metrics = RewardMetrics()
    >>> metrics.update(Scored(rewards_N=torch.tensor([2.0, 1.0, 0.5, 0.5]), lengths_N=torch.tensor([5, 4, 3, 3]),
    ...     real_N=torch.ones(4) > 0, example_N=torch.tensor([0, 0, 1, 1]), scores_N=torch.tensor([1.0, 0.0, 1.0, 0.0]),
    ...     better_P=torch.tensor([0, 2]), worse_P=torch.tensor([1, 3]), real_P=torch.ones(2) > 0,
    ...     loss=torch.tensor(1.0), count=torch.tensor(2.0), tokens_computed=20))
    >>> values = metrics.compute()
    >>> values["accuracy"], values["tie_rate"], values["margin"], values["max_reward"], values["num_tokens"]
    (0.5, 0.5, 0.5, 2.0, 15)
    """

    def __init__(self) -> None:
        self._sums: torch.Tensor | None = None  # one number for each name in _SUMS
        self._extremes: torch.Tensor | None = None  # largest reward, largest negated reward

    def update(self, scored: Scored) -> None:
        """Adds a batch; the host reads nothing."""
        with torch.no_grad():
            rewards_N = scored.rewards_N.detach().float()
            # float64 counts exactly up to 2**53; Apple's GPUs have no float64.
            wide = torch.float32 if rewards_N.device.type == "mps" else torch.float64
            summands = {
                "loss": scored.loss.detach(),
                "count": scored.count,
                "rewards": scored.real_N,
                "reward": torch.where(scored.real_N, rewards_N, 0),
                "tokens": torch.where(scored.real_N, scored.lengths_N, 0),
                "tokens_computed": torch.full((), scored.tokens_computed, device=rewards_N.device),
                **_of_comparisons(rewards_N, scored),
                **(_of_rankings(rewards_N, scored) if scored.listed else {}),
                **(_of_ratings(rewards_N.to(wide), scored, wide) if scored.pointwise == "ratings" else {}),
                **(_of_labels(rewards_N, scored) if scored.pointwise == "labels" else {}),
            }
            for name in ("aux_loss", "text_loss", "length_correlation"):
                value = getattr(scored, name)
                if value is not None:
                    summands[name] = value.detach() * scored.count
            if scored.aux_loss is not None:
                summands["with_aux_loss"] = scored.count
            zero = torch.zeros((), device=rewards_N.device, dtype=wide)
            sums = torch.stack([summands[name].to(wide).sum() if name in summands else zero for name in _SUMS])
            extremes = torch.stack(
                [torch.where(scored.real_N, values, -math.inf).amax() for values in (rewards_N, -rewards_N)]
            )
        self._sums = sums if self._sums is None else self._sums + sums
        self._extremes = extremes if self._extremes is None else torch.maximum(self._extremes, extremes)

    def compute(self, gather: Gather | None = None) -> dict[str, float]:
        """Reads the sums, once, and returns the metrics; empty if nothing was added.

        Always ``loss, min_reward, mean_reward, max_reward, num_tokens, num_tokens_computed, comparisons``; of
        comparisons without ties ``accuracy, tie_rate, margin``; of ties ``tie_accuracy``; of rankings ``kendall_tau,
        best_of_n_accuracy``; of ratings ``mse, correlation``; of labels ``accuracy``; and ``aux_loss, text_loss,
        length_correlation`` where a run has them. `gather` collects a tensor (1, C) from all processes as
        (processes, C).
        """
        totals = self.totals(gather)
        if totals is None:
            return {}
        named = dict(zip((*_SUMS, "max", "negative_min"), totals, strict=True))
        count, rewards = named["count"] or 1.0, max(named["rewards"], 1.0)
        values: dict[str, float] = {"loss": named["loss"] / count}
        if named["comparisons"]:
            values["accuracy"] = named["correct"] / named["comparisons"]
            values["tie_rate"] = named["equal"] / named["comparisons"]
            values["margin"] = named["margin"] / named["comparisons"]
        elif named["labelled"]:
            values["accuracy"] = named["labelled_right"] / named["labelled"]
        if named["with_tie_width"]:
            values["tie_accuracy"] = named["ties_found"] / named["with_tie_width"]
        if named["rankings"]:
            values["kendall_tau"] = named["tau"] / named["rankings"]
            values["best_of_n_accuracy"] = named["best_found"] / named["rankings"]
        if named["rated"]:
            values["mse"] = named["squared_error"] / named["rated"]
            values["correlation"] = _correlation(named)
        values |= {
            "min_reward": -named["negative_min"],
            "mean_reward": named["reward"] / rewards,
            "max_reward": named["max"],
            "num_tokens": int(named["tokens"]),
            "num_tokens_computed": int(named["tokens_computed"]),
            "comparisons": int(named["comparisons"]),
        }
        if named["with_aux_loss"]:
            values["aux_loss"] = named["aux_loss"] / named["with_aux_loss"]
        values |= {name: named[name] / count for name in ("text_loss", "length_correlation") if named[name]}
        return values

    def totals(self, gather: Gather | None = None) -> list[float] | None:
        """Returns sums and extremes over all processes as plain numbers, for `restore`; None if nothing was added."""
        if self._sums is None or self._extremes is None:
            return None
        row = torch.cat((self._sums, self._extremes.to(self._sums.dtype)))[None]
        rows = row if gather is None else gather(row)
        size = len(_SUMS)
        return torch.cat((rows[:, :size].sum(dim=0), rows[:, size:].amax(dim=0))).tolist()

    def restore(self, totals: list[float] | None, device: torch.device | str = "cpu") -> None:
        """Continues from the values of `totals`."""
        if totals is None:
            self.reset()
            return
        wide = torch.float32 if torch.device(device).type == "mps" else torch.float64
        self._sums = torch.tensor(totals[: len(_SUMS)], dtype=wide, device=device)
        self._extremes = torch.tensor(totals[len(_SUMS) :], dtype=torch.float32, device=device)

    def reset(self) -> None:
        """Starts a new interval."""
        self._sums = self._extremes = None


def _of_comparisons(rewards_N: torch.Tensor, scored: Scored) -> dict[str, torch.Tensor]:
    margin_P = rewards_N[scored.better_P] - rewards_N[scored.worse_P]
    if scored.preference_prob_P is None:
        tied_P = torch.zeros_like(scored.real_P)
    else:
        tied_P = scored.real_P & (scored.preference_prob_P == 0.5)
        # Below one half the other response is the better one.
        margin_P = torch.where(scored.preference_prob_P < 0.5, -margin_P, margin_P)
    decided_P = scored.real_P & ~tied_P
    sums = {
        "comparisons": decided_P,
        "correct": decided_P & (margin_P > 0),
        "equal": decided_P & (margin_P == 0),
        "margin": torch.where(decided_P, margin_P, 0),
        "ties": tied_P,
    }
    if scored.tie_width is not None:
        sums["ties_found"] = tied_P & (margin_P.abs() < scored.tie_width)
        sums["with_tie_width"] = tied_P
    return sums


def _of_rankings(rewards_N: torch.Tensor, scored: Scored) -> dict[str, torch.Tensor]:
    """Sums Kendall's tau-b over examples, and how often the highest reward is on one of the best responses."""
    example_N, scores_N = scored.example_N, scored.scores_N
    real_NN = (example_N[:, None] == example_N) & scored.real_N
    apart_NN = torch.where(real_NN, (scores_N[:, None] - scores_N).sign(), 0)
    found_NN = torch.where(real_NN, (rewards_N[:, None] - rewards_N).sign(), 0)
    size = int(example_N.shape[0])  # at least the number of examples
    zeros_G = torch.zeros(size, device=rewards_N.device)

    def per_example(values_NN: torch.Tensor) -> torch.Tensor:
        return zeros_G.index_add(0, example_N, values_NN.sum(dim=1).float())

    agreeing_G, decided_G = per_example(apart_NN * found_NN), per_example(apart_NN.abs())
    ordered_G = per_example(found_NN.abs())
    ranked_G = decided_G > 0
    tau_G = torch.where(ordered_G > 0, agreeing_G / (decided_G * ordered_G).clamp_min(1).sqrt(), 0)
    top_N = scored.real_N & ~(found_NN < 0).any(dim=1)
    best_N = scored.real_N & ~(apart_NN < 0).any(dim=1)
    top_G = zeros_G.index_add(0, example_N, top_N.float())
    found_G = zeros_G.index_add(0, example_N, (top_N & best_N).float()) / top_G.clamp_min(1)
    return {
        "rankings": ranked_G,
        "tau": torch.where(ranked_G, tau_G, 0),
        "best_found": torch.where(ranked_G, found_G, 0),
    }


def _of_ratings(rewards_N: torch.Tensor, scored: Scored, wide: torch.dtype) -> dict[str, torch.Tensor]:
    real_N = scored.real_N
    ratings_N, rewards_N = torch.where(real_N, scored.scores_N.to(wide), 0), torch.where(real_N, rewards_N, 0)
    return {
        "rated": real_N,
        "rating": ratings_N,
        "squared_rating": ratings_N**2,
        "rated_reward": rewards_N,
        "squared_rated_reward": rewards_N**2,
        "rating_times_reward": ratings_N * rewards_N,
        "squared_error": (ratings_N - rewards_N) ** 2,
    }


def _of_labels(rewards_N: torch.Tensor, scored: Scored) -> dict[str, torch.Tensor]:
    right_N = (rewards_N > 0) == (scored.scores_N > 0.5)
    return {"labelled": scored.real_N, "labelled_right": scored.real_N & right_N}


def _correlation(named: dict[str, float]) -> float:
    """Returns Pearson's correlation of ratings and rewards from their sums; 0 where either does not vary."""
    n = named["rated"]
    covariance = named["rating_times_reward"] / n - named["rating"] / n * named["rated_reward"] / n
    variances = []
    for square, total in (("squared_rating", "rating"), ("squared_rated_reward", "rated_reward")):
        variance = named[square] / n - (named[total] / n) ** 2
        if variance <= 1e-12 * named[square] / n:  # what rounding leaves of equal values
            return 0.0
        variances.append(variance)
    # In this order NaN stays NaN.
    return max(min(covariance / math.sqrt(variances[0] * variances[1]), 1.0), -1.0)
