"""From prepared rows to rewards: plan batches, compute each different response once, calibrate, shape like the rows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from plaudit.data.collate import PaddedCollator, SharedPrefixCollator
from plaudit.data.prepare import PreparedRow
from plaudit.data.samplers import RowCost, TokenBatchSampler
from plaudit.model.aux_heads import heads_of
from plaudit.model.calibration import RewardCalibration
from plaudit.model.peft import base_model_of
from plaudit.model.shared_prefix import RewardForward
from plaudit.prefix_tree import SHORTEST_NODE, common_prefix_length
from plaudit.schema import Shape

logger = logging.getLogger("plaudit")


class ScoringEngine:
    """Computes rewards without gradients, at most `max_tokens` tokens at a time.

    Tokens are counted as computed: padding included, shared prompts once. A longer response makes a batch of its own.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: RewardForward,
        pad_token_id: int,
        max_tokens: int,
        calibration: RewardCalibration | None,
    ) -> None:
        self.model, self.forward, self.max_tokens, self.calibration = model, forward, max_tokens, calibration
        self.device: torch.device = base_model_of(model).device
        self._padded, self._shared = PaddedCollator(pad_token_id), SharedPrefixCollator()
        self._layout_checked = False

    def score(
        self, window: Sequence[PreparedRow], k: float | None = None, done: Callable[[int], object] = lambda count: None
    ) -> list[Any]:
        """Returns the rewards of rows, each shaped like its row; with a `k`, an `UncertainReward` for each.

        A row without token ids gets NaN. `done` is called with the number of responses after each batch.
        """
        batches = self._plan([ids for row in window for ids in row.ids or ()])
        raw_NK = self._compute(batches, done, members=k is not None)
        scale, shift = (1.0, 0.0) if self.calibration is None else (self.calibration.scale, self.calibration.shift)
        rewards_N = scale * raw_NK[:, 0] + shift
        members_NK = rewards_N[:, None] + scale * raw_NK[:, 1:]
        scores, start = [], 0
        for row in window:
            end = start + len(row.ids or ())
            rewards, members = rewards_N[start:end].tolist(), members_NK[start:end]
            if row.ids is None:
                rewards, members = [np.nan] * row.responses, np.full((row.responses, members_NK.shape[1]), np.nan)
            scores.append(
                _shaped(row.shape, rewards) if k is None else UncertainReward.of(row.shape, rewards, members, k)
            )
            start = end
        return scores

    def _plan(self, responses: Sequence[Ids]) -> list[list[Group]]:
        """Batches of similar work, the largest first."""
        share = self.forward.layout == "shared_prefix"
        if share and responses and not self._layout_checked:
            # The first batch is compared with the padded layout, which may change the layout of all later ones.
            groups = group_responses(responses, share=True, max_tokens=self.max_tokens)
            shortest = sorted(groups, key=lambda group: (len(group.responses) == 1, group.tokens))[:2]
            self._forward_batch([Group(group.responses[:2], group.places[:2], group.tokens) for group in shortest])
            self._layout_checked = True
            share = self.forward.layout == "shared_prefix"
        groups = group_responses(responses, share=share, max_tokens=self.max_tokens)
        if not groups:
            return []
        cost = RowCost(
            tokens=[group.tokens for group in groups],
            widths=[max(map(len, group.responses)) for group in groups],
            responses=[len(group.responses) for group in groups],
            padded=not share,
        )
        sampler = TokenBatchSampler(cost, self.max_tokens, seed=None, order=range(len(groups)))
        return [[groups[index] for index, _ in step[0]] for step in sampler.steps]

    def _compute(self, batches: Sequence[list[Group]], done: Callable[[int], object], *, members: bool) -> np.ndarray:
        """Raw rewards (N, 1), in the order of the responses; with members (N, 1 + K), followed by their deviations."""
        if self.model.training:
            self.model.eval()  # whoever passed in the model may have continued to train it
        computed: list[torch.Tensor] = []
        places_of_each: list[list[int]] = []
        waiting = [*reversed(batches)]
        while waiting:
            batch = waiting.pop()
            try:
                computed.append(self._forward_batch(batch, members))
            except torch.OutOfMemoryError:
                if len(batch) == 1:
                    raise
                self.max_tokens = max(self.max_tokens // 2, 1)
                logger.warning(
                    "Out of memory at %d tokens: this batch is halved, and max_tokens_per_batch is %d from now on.",
                    sum(group.tokens for group in batch),
                    self.max_tokens,
                )
                middle = len(batch) // 2
                waiting += [batch[middle:], batch[:middle]]
                continue
            places_of_each += [places for group in batch for places in group.places]
            done(sum(len(places) for group in batch for places in group.places))
        heads = heads_of(base_model_of(self.model)) if members else None
        width = 1 if heads is None or heads.ensemble is None else 1 + heads.ensemble.out_features
        raw_NK = np.empty((sum(map(len, places_of_each)), width))
        # Read once: each reading would wait for an accelerator.
        values = torch.cat(computed).double().cpu().numpy() if computed else ()
        for value, places in zip(values, places_of_each, strict=True):
            raw_NK[places] = value
        return raw_NK

    @torch.inference_mode()
    def _forward_batch(self, groups: Sequence[Group], members: bool = False) -> torch.Tensor:
        collate = self._padded if self.forward.layout == "padded" else self._shared
        batch: dict[str, Any] = collate(
            [{"response_ids": group.responses, "scores": [0.0] * len(group.responses)} for group in groups]
        )
        on_device = {
            name: value.to(self.device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        rewards = self.forward(self.model, on_device)
        rewards_N1 = rewards.rewards_N[:, None]
        return torch.cat((rewards_N1, rewards.extras["deviations"]), dim=1) if members else rewards_N1


Ids = Sequence[int]
_GROUP_RESPONSES = 64  # a collator looks at all pairs of a group's responses


@dataclass(frozen=True)
class Group:
    """Different responses that are computed together and share what they have in common."""

    responses: list[list[int]]  # token ids, prompt included
    places: list[list[int]]  # indices of the responses that each of them stands for
    tokens: int  # computed


def group_responses(responses: Sequence[Ids], *, share: bool, max_tokens: int) -> list[Group]:
    """Groups equal responses, and with `share` those with a common prefix; the most tokens first.

    A group has at most `max_tokens` tokens, unless it is a single response.

    >>> groups = group_responses([[1, 2], [3], [1, 2]], share=False, max_tokens=9)
    >>> [(group.responses, group.places) for group in groups]
    [([[1, 2]], [[0, 2]]), ([[3]], [[1]])]
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for index, response in enumerate(responses):
        places.setdefault(tuple(response), []).append(index)
    if not share:
        return [Group([list(ids)], [places[ids]], len(ids)) for ids in sorted(places, key=len, reverse=True)]
    groups: list[Group] = []
    # Neighbours in the order of their tokens have most in common.
    for ids in sorted(places):
        last = groups[-1] if groups else None
        common = common_prefix_length([last.responses[-1], ids]) if last else 0
        own = len(ids) - max(common - SHORTEST_NODE + 1, 0)  # a prefix too short to share counts for each
        if (
            last
            and common >= SHORTEST_NODE
            and len(last.responses) < _GROUP_RESPONSES
            and last.tokens + own <= max_tokens
        ):
            groups[-1] = Group([*last.responses, list(ids)], [*last.places, places[ids]], last.tokens + own)
        else:
            groups.append(Group([list(ids)], [places[ids]], len(ids)))
    return sorted(groups, key=lambda group: group.tokens, reverse=True)


def _shaped(shape: Shape, values: list[float]) -> Any:
    return values[0] if shape == "one" else tuple(values) if shape == "pair" else values


@dataclass(frozen=True)
class UncertainReward:
    """Rewards with the disagreement of an ensemble's members; every field is shaped like the row, or the rows.

    Attributes:
        mean: The rewards: the mean over members.
        std: Standard deviation over members, in units of the reward; K - 1 in the denominator.
        lower_bound: ``mean - k * std``.
        members: Reward by each member: the last dimension of an array, or a list of arrays, one per row.
    """

    mean: Any
    std: Any
    lower_bound: Any
    members: Any = field(repr=False)

    @classmethod
    def of(cls, shape: Shape, rewards: list[float], members_NK: np.ndarray, k: float) -> UncertainReward:
        """Builds the uncertain rewards of one row."""
        std = std_of(members_NK)
        lower_bound = [reward - k * deviation for reward, deviation in zip(rewards, std, strict=True)]
        members = members_NK[0] if shape == "one" else members_NK
        return cls(_shaped(shape, rewards), _shaped(shape, std), _shaped(shape, lower_bound), members)

    @classmethod
    def together(cls, rows: Sequence[UncertainReward]) -> UncertainReward:
        """Joins several rows into lists with one entry per row."""
        return cls(*([getattr(row, name) for row in rows] for name in ("mean", "std", "lower_bound", "members")))

    def margin(self, k: float) -> UncertainReward:
        """Returns the margin of a pair, with the members' disagreement about the difference."""
        chosen, rejected = self.mean
        members_1K = (self.members[0] - self.members[1])[None]
        return UncertainReward.of("one", [chosen - rejected], members_1K, k)


def std_of(members_NK: np.ndarray) -> list[float]:
    """Returns the standard deviation over members: K - 1 in the denominator, because members are a sample.

    >>> std_of(np.array([[1.0, 3.0], [2.0, 2.0]]))
    [1.4142135623730951, 0.0]
    """
    std: list[float] = members_NK.std(axis=1, ddof=1).tolist()
    return std
