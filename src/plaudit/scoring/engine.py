"""Computes rewards of tokenised responses: each different one once, in batches of similar work, order restored."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from plaudit.data.collate import PaddedCollator, SharedPrefixCollator
from plaudit.data.sharing import SHORTEST_PIECE, common_prefix_length
from plaudit.data.token_batches import RowCost, TokenBatchSampler
from plaudit.model.rewards import RewardForward

logger = logging.getLogger("plaudit")

Ids = Sequence[int]

_PIECE = 64  # responses of a piece: a collator looks at all pairs of an example's responses


@dataclass(frozen=True)
class Piece:
    """Different responses that are computed together, and share what they have in common.

    Attributes:
        responses: Token ids of each, prompt included.
        places: For each, which responses of which rows it stands for.
        tokens: Tokens that are computed.
    """

    responses: list[list[int]]
    places: list[list[tuple[int, int]]]
    tokens: int


class ScoringEngine:
    """Computes rewards without gradients, under a number of tokens at a time.

    Args:
        model: What is called: the reward model, maybe wrapped in an adapter.
        forward: Calls it in its layout.
        device: Where it is.
        pad_token_id: Fills rectangles.
        max_tokens: Most tokens of a batch as computed: padding included, shared prompts once. A response that has
            more makes a batch of its own.
    """

    def __init__(
        self, model: nn.Module, forward: RewardForward, device: torch.device, pad_token_id: int, max_tokens: int
    ) -> None:
        self._model, self._forward, self._device = model, forward, device
        self._padded_collator, self._shared_collator = PaddedCollator(pad_token_id), SharedPrefixCollator()
        self.max_tokens = max_tokens
        self._settled = self._members = False

    def __call__(
        self,
        rows: Sequence[Sequence[Ids]],
        done: Callable[[int], object] = lambda count: None,
        *,
        members: bool = False,
    ) -> list[list[Any]]:
        """Raw rewards of the responses of some rows, in their order.

        Args:
            rows: For each row the token ids of its responses.
            done: Told how many responses have just been computed.
            members: Give a list in place of each reward: the reward, and what each member of the ensemble adds to it.
        """
        self._members = members
        rewards: list[list[Any]] = [[0.0] * len(responses) for responses in rows]
        if self._model.training:
            self._model.eval()  # whoever passed in the model may have gone on training it
        batches = self._batches(rows)
        computed: list[torch.Tensor] = []
        for batch in batches:
            computed.append(self._compute(batch))
            done(sum(len(places) for piece in batch for places in piece.places))
        # Read once: each reading would wait for an accelerator.
        values = iter(torch.cat(computed).tolist() if computed else ())
        for batch in batches:
            for piece in batch:
                for places in piece.places:
                    reward = next(values)
                    for row, response in places:
                        rewards[row][response] = reward
        return rewards

    def _batches(self, rows: Sequence[Sequence[Ids]]) -> list[list[Piece]]:
        if not self._settled and self._forward.layout == "shared_prefix" and any(rows):
            # The layout is held against the padded one on the first batch, which decides what later ones look like.
            pieces = pieces_of(rows, share=True, max_tokens=self.max_tokens)
            few = sorted(pieces, key=lambda piece: (len(piece.responses) == 1, piece.tokens))[:2]
            self._rewards([Piece(piece.responses[:2], piece.places[:2], piece.tokens) for piece in few])
            self._settled = True
        padded = self._forward.layout == "padded"
        pieces = pieces_of(rows, share=not padded, max_tokens=self.max_tokens)
        cost = RowCost(
            tokens=[piece.tokens for piece in pieces],
            widths=[max(map(len, piece.responses)) for piece in pieces],
            responses=[len(piece.responses) for piece in pieces],
            padded=padded,
        )
        if not pieces:
            return []
        sampler = TokenBatchSampler(cost, self.max_tokens, seed=None, order=range(len(pieces)))
        return [[pieces[index] for index, _ in step[0]] for step in sampler.steps]

    def _compute(self, pieces: Sequence[Piece]) -> torch.Tensor:
        """Rewards of all responses of some pieces, in halves where the device's memory does not hold them."""
        try:
            return self._rewards(pieces)
        except torch.OutOfMemoryError:
            if len(pieces) == 1:
                raise
            self.max_tokens = max(self.max_tokens // 2, 1)
            logger.warning(
                "Out of memory at %d tokens: this batch is halved, and max_tokens_per_batch is %d from now on.",
                sum(piece.tokens for piece in pieces),
                self.max_tokens,
            )
        middle = len(pieces) // 2
        return torch.cat((self._compute(pieces[:middle]), self._compute(pieces[middle:])))

    @torch.inference_mode()
    def _rewards(self, pieces: Sequence[Piece]) -> torch.Tensor:
        collate = self._padded_collator if self._forward.layout == "padded" else self._shared_collator
        batch: dict[str, Any] = collate(
            [{"response_ids": piece.responses, "scores": [0.0] * len(piece.responses)} for piece in pieces]
        )
        moved = {
            name: value.to(self._device, non_blocking=True) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        rewards = self._forward(self._model, moved)
        if not self._members:
            return rewards.rewards_N
        return torch.cat((rewards.rewards_N[:, None], rewards.extras["deviations"]), dim=1)


def pieces_of(rows: Sequence[Sequence[Ids]], *, share: bool, max_tokens: int) -> list[Piece]:
    """Split the work: equal responses together, those of one prompt too where it is shared, the longest first.

    Args:
        rows: For each row the token ids of its responses.
        share: Whether a common prefix is computed once.
        max_tokens: Pieces are made no larger than this, unless a single response is.

    >>> [(piece.responses, piece.places) for piece in pieces_of([[[1, 2]], [[3], [1, 2]]], share=False, max_tokens=9)]
    [([[1, 2]], [[(0, 0), (1, 1)]]), ([[3]], [[(1, 0)]])]
    """
    found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for g, responses in enumerate(rows):
        for n, ids in enumerate(responses):
            found.setdefault(tuple(ids), []).append((g, n))
    if not share:
        longest_first = sorted(found, key=len, reverse=True)
        return [Piece([list(ids)], [found[ids]], len(ids)) for ids in longest_first]
    pieces: list[Piece] = []
    # Neighbours in the order of their tokens have most in common.
    for ids in sorted(found):
        last = pieces[-1] if pieces else None
        common = common_prefix_length([last.responses[-1], ids]) if last else 0
        own = len(ids) - max(common - SHORTEST_PIECE + 1, 0)  # what is too short to be shared counts for each
        together = (
            common >= SHORTEST_PIECE and last and len(last.responses) < _PIECE and last.tokens + own <= max_tokens
        )
        if last and together:
            pieces[-1] = Piece([*last.responses, list(ids)], [*last.places, found[ids]], last.tokens + own)
        else:
            pieces.append(Piece([list(ids)], [found[ids]], len(ids)))
    return sorted(pieces, key=lambda piece: piece.tokens, reverse=True)
