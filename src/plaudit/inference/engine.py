"""Computes rewards of tokenised responses: each different one once, in batches of similar work, order restored."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from plaudit.data.collate import PaddedCollator, SharedPrefixCollator
from plaudit.data.parse import is_one_row
from plaudit.data.prepare import PreparedRow, RowPreparer
from plaudit.data.report import Flag, KindCount, ScoringOverlong
from plaudit.data.samplers import RowCost, TokenBatchSampler
from plaudit.errors import ConfigError, DataError
from plaudit.model.aux_heads import FILE_NAME, ensemble_in, heads_of, install_training_heads
from plaudit.model.calibration import RewardCalibration
from plaudit.model.head import install_reward_forward
from plaudit.model.load import context_length, eos_token_ids, require_reward_model, set_pad_token
from plaudit.model.peft import base_model_of, require_sequence_classification
from plaudit.model.shared_prefix import (
    BatchLayout,
    RewardForward,
    choose_layout,
    enable_shared_prefix,
)
from plaudit.prefix_tree import SHORTEST_NODE, common_prefix_length
from plaudit.schema import Shape

logger = logging.getLogger("plaudit")
_WORDS = {
    Flag.EMPTY_RESPONSE: "have an empty response",
    Flag.LAST_MESSAGE_NOT_ASSISTANT: "end with a message that is not the assistant's",
}


class Tally:
    """Counts the rows of one call.

    Args:
        said: Kinds of suspicion that need not be said again; those that this call says are added.
    """

    def __init__(self, said: set[str]) -> None:
        self._said = said
        self._rows = 0
        self._lost, self._cut = KindCount(), KindCount()
        self._first_error: DataError | None = None
        self._suspicious = {flag: KindCount() for flag in _WORDS}

    def add(self, row: PreparedRow) -> None:
        """Count one more row.

        Args:
            row: It.
        """
        number = self._rows
        self._rows += 1
        if row.error is not None:
            self._first_error = self._first_error or row.error
            self._lost.add(number)
        if row.truncated:
            self._cut.add(number)
        for flag, count in self._suspicious.items():
            if row.flags & flag:
                count.add(number)

    def say(self, max_length: int | None, overlong: str) -> None:
        """Log what was not scored or cut, and what looks wrong, the latter once a model.

        Args:
            max_length: Most tokens of a response.
            overlong: What happens to rows that have more.
        """
        if self._lost.count:
            _say_lost(self._lost, self._rows, self._first_error)
        if self._cut.count:
            _say_cut(self._cut, self._rows, max_length, overlong)
        for flag, count in self._suspicious.items():
            if count.count and flag.kind not in self._said:
                self._said.add(flag.kind)
                logger.warning(
                    "%d of %d rows %s (%s); later calls do not say it again.",
                    count.count,
                    self._rows,
                    _WORDS[flag],
                    count.rows(),
                )


def _say_lost(count: KindCount, rows: int, first_error: object) -> None:
    message = "%d of %d rows could not be scored and have reward NaN (%s). The first: %s"
    logger.warning(message, count.count, rows, count.rows(), first_error)


def _say_cut(count: KindCount, rows: int, max_length: int | None, overlong: str) -> None:
    side = "left" if overlong == "truncate_left" else "right"
    message = "%d of %d rows had more than %s tokens and were cut on the %s (%s)."
    logger.warning(message, count.count, rows, max_length, side, count.rows())


def say_counts(
    counts: Mapping[str, KindCount], rows: int, first_error: str, max_length: int | None, overlong: str
) -> None:
    """Log what became of the rows of a whole file.

    Args:
        counts: ``lost`` and ``cut`` rows, and suspicious ones by kind.
        rows: How many rows there are.
        first_error: Why the first lost row is lost.
        max_length: Most tokens of a response.
        overlong: What happens to rows that have more.
    """
    if "lost" in counts:
        _say_lost(counts["lost"], rows, first_error)
    if "cut" in counts:
        _say_cut(counts["cut"], rows, max_length, overlong)
    for flag, words in _WORDS.items():
        if flag.kind in counts:
            count = counts[flag.kind]
            logger.warning("%d of %d rows %s (%s).", count.count, rows, words, count.rows())


OnError: TypeAlias = Literal["raise", "nan"]
"""What happens to a row that cannot be scored: an error, or NaN in its place."""
_TOKENS_ON_CPU, _TOKENS_ELSEWHERE = 2048, 32768


class Scorer:
    """A reward model that scores rows.

    Args:
        model: A sequence-classification model with one output, or a PEFT model around one. Changed in place: it is
            put into evaluation mode, reads rewards in float32, and takes the layout.
        processing_class: Its tokenizer; it is not changed.
        batch_layout: ``"shared_prefix"`` computes each prompt once, ``"padded"`` pads; ``"auto"`` shares where the
            model allows it.
        max_tokens_per_batch: Most tokens of a batch, as computed: padding included, shared prompts once. By default
            2,048 on a CPU and 32,768 elsewhere.
        max_length: Most tokens of a response with its prompt; by default what the model was made to read.
        overlong: What happens to a row that has more: ``"error"``, ``"truncate_left"`` (the same number of tokens off
            all responses of the row), ``"truncate_right"``, or ``"nan"``. The last three are counted in the log.
        calibration: What turns the head's rewards into those reported; None leaves them as they are.
        name: What the model is called.

    Attributes:
        model: The model.
        processing_class: A copy of the tokenizer, with its padding token.
        device: Where the model is.
        max_length: The limit in use; None for none.
        calibration: The calibration in use.

    Raises:
        ConfigError: The model is no reward model, or does not go with the settings.
    """

    def __init__(
        self,
        model: nn.Module,
        processing_class: PreTrainedTokenizerBase,
        *,
        batch_layout: BatchLayout = "auto",
        max_tokens_per_batch: int | None = None,
        max_length: int | None = None,
        overlong: ScoringOverlong = "error",
        calibration: RewardCalibration | None = None,
        name: str = "",
    ) -> None:
        check_settings(batch_layout, max_tokens_per_batch, max_length, overlong)
        require_sequence_classification(model)
        self.model: Any = model.eval()
        base_model = base_model_of(model)
        require_reward_model(base_model)
        _warn_of_pooling(base_model, processing_class)
        self.processing_class = set_pad_token(base_model, processing_class, may_resize=False)
        reads_positions = install_reward_forward(base_model)
        layout, reason = choose_layout(model, batch_layout)
        if layout == "shared_prefix":
            enable_shared_prefix(base_model)
        self._forward = RewardForward(
            base_model, layout, reason, reads_positions=reads_positions, required=batch_layout == "shared_prefix"
        )
        self.device: torch.device = base_model.device
        if max_length is None:
            max_length = context_length(base_model, self.processing_class, decoder=reads_positions)
        self.max_length, self.overlong, self.calibration = max_length, overlong, calibration
        tokens = _TOKENS_ON_CPU if self.device.type == "cpu" else _TOKENS_ELSEWHERE
        pad_token_id: Any = self.processing_class.pad_token_id
        self._engine = ScoringEngine(
            self.model, self._forward, self.device, pad_token_id, max_tokens_per_batch or tokens
        )
        self._preparation = RowPreparer(self.processing_class, max_length, overlong)
        self._said: set[str] = set()
        self.name = name or str(getattr(base_model.config, "name_or_path", "") or "reward_model")
        # Whoever takes reward functions, such as TRL's trainers, asks for their names.
        self.__name__ = Path(self.name).name

    @property
    def batch_layout(self) -> str:
        """The layout that batches are computed in: ``"padded"`` or ``"shared_prefix"``."""
        return self._forward.layout

    @property
    def batch_layout_reason(self) -> str:
        """Why batches are computed in that layout."""
        return self._forward.reason

    @property
    def max_tokens_per_batch(self) -> int:
        """Most tokens of a batch; less than asked for once the device's memory was too small."""
        return self._engine.max_tokens

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in below its head."""
        dtype: torch.dtype = base_model_of(self.model).dtype
        return dtype

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, device={str(self.device)!r}, batch_layout={self.batch_layout!r})"

    # ---- rewards ----------------------------------------------------------------------------------------------

    def score(
        self,
        rows: Any,
        *,
        progress: bool = False,
        errors: OnError = "raise",
        uncertainty: bool = False,
        k: float = 1.0,
    ) -> Any:
        """Rewards of some rows, in their order and shaped like them.

        Args:
            rows: Rows, or a single one. A row is a text, a conversation (a list of messages), or a mapping of columns
                as in the data formats. One response gives a number, ``responses`` give a list of numbers, ``chosen``
                and ``rejected`` give a tuple of two; several rows give a list of such.
            progress: Show a progress bar.
            errors: ``"raise"`` the first row that cannot be scored, before any is computed; or put ``"nan"`` in its
                place, and count such rows in the log.
            uncertainty: Give an :class:`~plaudit.inference.engine.UncertainReward` instead, whose ``mean``,
                ``std`` and ``lower_bound`` are each shaped like the rows. The model must have an ensemble.
            k: How many standard deviations below the mean ``lower_bound`` is.

        Raises:
            DataError: A row cannot be scored; it names the row, the field, and what to do.
            ConfigError: The model has no ensemble.
        """
        alone = is_one_row(rows)
        asked = k if uncertainty else None
        scores = self._scores([rows] if alone else rows, progress, errors, asked)
        if alone:
            return scores[0]
        return UncertainReward.together(scores) if uncertainty else scores

    def _scores(self, rows: Any, progress: bool, errors: OnError, k: float | None) -> list[Any]:
        """Scores of some rows; with a k, how sure they are."""
        _check_errors(errors)
        members = 0 if k is None else require_ensemble(self.model, self.name, k)
        tally = Tally(self._said)
        windows = []
        for window in self._preparation.windows(rows):
            self._check(window, errors, tally)
            windows.append(window)
        total = sum(row.responses for window in windows for row in window if row.ids is not None)
        with tqdm(total=total, unit=" responses", desc="Scoring", disable=not progress) as bar:
            scores = [score for window in windows for score in self._compute(window, bar.update, members, k)]
        tally.say(self.max_length, self.overlong)
        return scores

    def score_stream(
        self,
        rows: Iterable[Any],
        *,
        progress: bool = False,
        errors: OnError = "raise",
        window: int | None = None,
        uncertainty: bool = False,
        k: float = 1.0,
    ) -> Iterator[Any]:
        """Rewards of any number of rows, one row after the other, in bounded memory.

        Args:
            rows: Any iterable of rows; no more of it is read than the next window needs.
            progress: Show a progress bar.
            errors: As for `score`; a row that cannot be scored raises when its window is reached.
            window: Rows that are read, sorted by length and computed at a time; by default as many as have about a
                thousand responses, and less of very long texts.
            uncertainty: As for `score`: an `UncertainReward` for each row.
            k: As for `score`.

        Raises:
            DataError: A row cannot be scored.
            ConfigError: The model has no ensemble, and `uncertainty` was asked for.
        """
        _check_errors(errors)
        if is_one_row(rows):
            raise ConfigError("`score_stream` was given a single row", fix="Pass an iterable of rows, or use `score`.")
        if window is not None and window < 1:
            raise ConfigError(f"`window` is {window}", fix="Use a positive number of rows, or None.")
        asked = k if uncertainty else None
        members = 0 if asked is None else require_ensemble(self.model, self.name, asked)
        return self._stream(rows, progress, errors, window, members, asked)

    def score_prepared(
        self,
        rows: Iterable[Any],
        *,
        errors: OnError = "raise",
        first_row: int = 0,
        features: Mapping[str, Any] | None = None,
        k: float | None = None,
    ) -> Iterator[tuple[PreparedRow, Any]]:
        """Rewards as `score_stream` gives them, each with what became of its row, which the log does not say then.

        Args:
            rows: Any iterable of rows.
            errors: As for `score`.
            first_row: Number of the first row, for messages.
            features: Types of the columns as `datasets` declares them, where known.
            k: How many standard deviations below the mean the lower bound is; None returns rewards alone.

        Raises:
            DataError: A row cannot be scored.
            ConfigError: The model has no ensemble, and that was asked for.
        """
        _check_errors(errors)
        members = 0 if k is None else require_ensemble(self.model, self.name, k)
        for window in self._preparation.windows(rows, first_row=first_row, features=features):
            self._check(window, errors, Tally(set()))
            yield from zip(window, self._compute(window, lambda count: None, members, k), strict=True)

    def _stream(
        self,
        rows: Iterable[Any],
        progress: bool,
        errors: OnError,
        window: int | None,
        members: int,
        k: float | None,
    ) -> Iterator[Any]:
        tally = Tally(self._said)
        with tqdm(unit=" responses", desc="Scoring", disable=not progress) as bar:
            for prepared in self._preparation.windows(rows, window):
                self._check(prepared, errors, tally)
                yield from self._compute(prepared, bar.update, members, k)
        tally.say(self.max_length, self.overlong)

    def _check(self, window: Sequence[PreparedRow], errors: OnError, tally: Tally) -> None:
        for row in window:
            if row.error is not None and errors == "raise" and not (row.overlong and self.overlong == "nan"):
                raise row.error
            tally.add(row)

    def _compute(
        self,
        window: Sequence[PreparedRow],
        done: Callable[[int], object],
        members: int = 0,
        k: float | None = None,
    ) -> list[Any]:
        raw = iter(self._engine([row.ids for row in window if row.ids is not None], done, members=members > 0))
        nan: Any = float("nan") if not members else [float("nan")] * (1 + members)
        return [self._shaped(row, next(raw) if row.ids is not None else [nan] * row.responses, k) for row in window]

    def _shaped(self, row: PreparedRow, raw: Sequence[Any], k: float | None) -> Any:
        if k is not None:
            return UncertainReward.of(row.shape, *calibrated(raw, self.calibration), k)
        rewards = list(raw) if self.calibration is None else [self.calibration.reward(one) for one in raw]
        if row.shape == "one":
            return rewards[0]
        return (rewards[0], rewards[1]) if row.shape == "pair" else rewards


def _check_errors(errors: str) -> None:
    if errors not in get_args(OnError):
        raise ConfigError(f"`errors` is {errors!r}", fix="Use 'raise' or 'nan'.")


def check_settings(batch_layout: str, max_tokens: int | None, max_length: int | None, overlong: str) -> None:
    """Refuse settings that cannot work.

    Args:
        batch_layout: The layout that was asked for.
        max_tokens: Most tokens of a batch.
        max_length: Most tokens of a response.
        overlong: What happens to rows that have more.

    Raises:
        ConfigError: One of them cannot work.
    """
    for name, value, choices in (
        ("batch_layout", batch_layout, get_args(BatchLayout)),
        ("overlong", overlong, get_args(ScoringOverlong)),
    ):
        if value not in choices:
            raise ConfigError(f"`{name}` is {value!r}", fix=f"Use one of {', '.join(choices)}.")
    for name, number in (("max_tokens_per_batch", max_tokens), ("max_length", max_length)):
        if number is not None and number < 1:
            raise ConfigError(f"`{name}` is {number}", fix="Use a positive number, or None for the default.")


def _warn_of_pooling(base_model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say where other software would read another reward from the same checkpoint."""
    config = base_model.config.get_text_config()
    if config.pad_token_id in eos_token_ids(tokenizer, config):
        logger.warning(
            "This checkpoint pads with its eos token. Rewards are read at the last token of each response here, as "
            "vLLM and SGLang do; transformers reads the token before a trailing eos, and gives another reward."
        )


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
        own = len(ids) - max(common - SHORTEST_NODE + 1, 0)  # what is too short to be shared counts for each
        together = common >= SHORTEST_NODE and last and len(last.responses) < _PIECE and last.tokens + own <= max_tokens
        if last and together:
            pieces[-1] = Piece([*last.responses, list(ids)], [*last.places, found[ids]], last.tokens + own)
        else:
            pieces.append(Piece([list(ids)], [found[ids]], len(ids)))
    return sorted(pieces, key=lambda piece: piece.tokens, reverse=True)


_FIX = (
    "Train it with `RewardConfig(ensemble_size=8)` (`plaudit train --ensemble_size 8`), and name the folder that has "
    f"{FILE_NAME}: the model alone has one reward head."
)


@dataclass(frozen=True)
class UncertainReward:
    """Rewards, and how far the members of an ensemble disagree about them; each shaped like the row, or rows.

    Attributes:
        mean: The rewards themselves: the mean over members.
        std: Standard deviation over members, in units of the reward.
        lower_bound: ``mean - k * std``.
        members: What each member says: the last dimension of an array, or a list of arrays, one a row.
    """

    mean: Any
    std: Any
    lower_bound: Any
    members: Any = field(repr=False)

    @classmethod
    def of(cls, shape: Shape, rewards: Sequence[float], members_NK: np.ndarray, k: float) -> UncertainReward:
        """What is to be said of one row.

        Args:
            shape: Shape of its rewards.
            rewards: Its rewards, calibrated.
            members_NK: What the members say, calibrated, shape (N, K).
            k: How many standard deviations below the mean the lower bound is.
        """
        std = std_of(members_NK)
        lower_bound = [mean - k * one for mean, one in zip(rewards, std, strict=True)]
        if shape == "one":
            return cls(rewards[0], std[0], lower_bound[0], members_NK[0])
        kind: Any = tuple if shape == "pair" else list
        return cls(kind(rewards), kind(std), kind(lower_bound), members_NK)

    @classmethod
    def together(cls, rows: Sequence[UncertainReward]) -> UncertainReward:
        """What is said of several rows, as lists with one entry a row.

        Args:
            rows: The rows.
        """
        return cls(*([getattr(row, name) for row in rows] for name in ("mean", "std", "lower_bound", "members")))

    def margin(self, k: float) -> UncertainReward:
        """How much better the first response of a pair is than the second, and how far members disagree about that.

        Args:
            k: How many standard deviations below the mean the lower bound is.
        """
        chosen, rejected = self.mean
        members_1K = (self.members[0] - self.members[1])[None]
        return UncertainReward.of("one", [chosen - rejected], members_1K, k)


def std_of(members_NK: np.ndarray) -> list[float]:
    """Standard deviation over members, K - 1 in the denominator: they are a sample of what might have been learned.

    Args:
        members_NK: What each member says of each response, shape (N, K).

    >>> std_of(np.array([[1.0, 3.0], [2.0, 2.0]]))
    [1.4142135623730951, 0.0]
    """
    found: list[float] = members_NK.std(axis=1, ddof=1).tolist()
    return found


def compared(members_NK: np.ndarray) -> np.ndarray:
    """What each member says of some responses to one prompt, less what it says of them on average.

    What a member adds to all responses of a prompt decides nothing between them.

    Args:
        members_NK: Shape (N, K); responses that could not be scored are NaN.
    """
    known_N = ~np.isnan(members_NK).any(axis=1)
    return members_NK - (members_NK[known_N].mean(axis=0) if known_N.any() else 0.0)


def calibrated(raw: Sequence[Sequence[float]], calibration: RewardCalibration | None) -> tuple[list[float], np.ndarray]:
    """Rewards, and those of the members (N, K), of what the engine says about the responses of a row.

    Args:
        raw: For each response the reward, and what each member adds.
        calibration: What turns rewards into those reported.
    """
    report: Callable[[float], float] = (lambda one: one) if calibration is None else calibration.reward
    scale = 1.0 if calibration is None else calibration.scale
    rewards = [report(one[0]) for one in raw]
    deviations_NK = scale * np.array([one[1:] for one in raw], dtype=np.float64)
    return rewards, np.array(rewards)[:, None] + deviations_NK


def load_ensemble(model: Any, name: str, revision: str | None = None) -> None:
    """Put the ensemble that lies beside a model, if there is one, back into it.

    Args:
        model: The reward model, or an adapter around it; changed in place.
        name: Its folder, or its id on the Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ConfigError: The ensemble belongs to a model of another size.
    """
    try:
        found: str | None = cached_file(name, FILE_NAME, revision=revision, _raise_exceptions_for_missing_entries=False)
    except OSError:  # not on the Hub, or no way there
        return
    heads = None if found is None else ensemble_in(Path(found))
    if heads is None or heads.ensemble is None:
        return
    base_model = base_model_of(model)
    width = base_model.config.get_text_config().hidden_size
    if heads.ensemble.in_features != width:
        raise ConfigError(
            f"{found} is for states of width {heads.ensemble.in_features}, and those of {name!r} have {width}",
            fix="Keep it beside the model that it was trained with, or delete it.",
        )
    if hasattr(base_model, "score"):
        install_training_heads(base_model, heads.eval().requires_grad_(False))


def require_ensemble(model: Any, name: str, k: float) -> int:
    """How many members a model has.

    Args:
        model: The reward model, or an adapter around it.
        name: What it is called.
        k: How many standard deviations below the mean the lower bound is to be.

    Raises:
        ConfigError: It has none, or `k` is no number of standard deviations.
    """
    if isinstance(k, bool) or not isinstance(k, int | float) or not 0 <= k < math.inf:
        raise ConfigError(f"`k` is {k!r}", fix="Give 0 or more: how many standard deviations below the mean.")
    heads = heads_of(base_model_of(model))
    if heads is None or heads.ensemble is None:
        raise ConfigError(f"{name!r} has no ensemble, and so no std", fix=_FIX)
    return heads.ensemble.out_features
