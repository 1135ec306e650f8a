"""Scores rows with a reward model: checked before anything is computed, in order, in bounded memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerBase

from plaudit.errors import ConfigError
from plaudit.model.adapters import base_model_of, require_sequence_classification
from plaudit.model.calibration import RewardCalibration
from plaudit.model.layout import BatchLayout, choose_layout, read_rewards_at_positions
from plaudit.model.loading import eos_token_ids, require_reward_model, set_pad_token
from plaudit.model.rewards import RewardForward
from plaudit.model.shared_prefix import enable_shared_prefix
from plaudit.scoring.engine import ScoringEngine
from plaudit.scoring.loading import context_length
from plaudit.scoring.preparation import Overlong, PreparedRow, RowPreparation
from plaudit.scoring.rows import is_one_row
from plaudit.scoring.tally import Tally
from plaudit.scoring.uncertainty import UncertainReward, calibrated, require_ensemble

logger = logging.getLogger("plaudit")

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
        overlong: Overlong = "error",
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
        reads_positions = read_rewards_at_positions(base_model)
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
        self._preparation = RowPreparation(self.processing_class, max_length, overlong)
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
        caution: float = 1.0,
    ) -> Any:
        """Rewards of some rows, in their order and shaped like them.

        Args:
            rows: Rows, or a single one. A row is a text, a conversation (a list of messages), or a mapping of columns
                as in the data formats. One response gives a number, ``responses`` give a list of numbers, ``chosen``
                and ``rejected`` give a tuple of two; several rows give a list of such.
            progress: Show a progress bar.
            errors: ``"raise"`` the first row that cannot be scored, before any is computed; or put ``"nan"`` in its
                place, and count such rows in the log.
            uncertainty: Give an :class:`~plaudit.scoring.uncertainty.UncertainReward` instead, whose ``mean``,
                ``spread`` and ``lower`` are each shaped like the rows. The model must have an ensemble.
            caution: How many spreads below the mean ``lower`` is.

        Raises:
            DataError: A row cannot be scored; it names the row, the field, and what to do.
            ConfigError: The model has no ensemble.
        """
        alone = is_one_row(rows)
        asked = caution if uncertainty else None
        scores = self._scores([rows] if alone else rows, progress, errors, asked)
        if alone:
            return scores[0]
        return UncertainReward.together(scores) if uncertainty else scores

    def _scores(self, rows: Any, progress: bool, errors: OnError, caution: float | None) -> list[Any]:
        """Scores of some rows; with a caution, how sure they are."""
        _check_errors(errors)
        members = 0 if caution is None else require_ensemble(self.model, self.name, caution)
        tally = Tally(self._said)
        windows = []
        for window in self._preparation.windows(rows):
            self._check(window, errors, tally)
            windows.append(window)
        total = sum(row.responses for window in windows for row in window if row.ids is not None)
        with tqdm(total=total, unit=" responses", desc="Scoring", disable=not progress) as bar:
            scores = [score for window in windows for score in self._compute(window, bar.update, members, caution)]
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
        caution: float = 1.0,
    ) -> Iterator[Any]:
        """Rewards of any number of rows, one row after the other, in bounded memory.

        Args:
            rows: Any iterable of rows; no more of it is read than the next window needs.
            progress: Show a progress bar.
            errors: As for `score`; a row that cannot be scored raises when its window is reached.
            window: Rows that are read, sorted by length and computed at a time; by default as many as have about a
                thousand responses, and less of very long texts.
            uncertainty: As for `score`: an `UncertainReward` for each row.
            caution: As for `score`.

        Raises:
            DataError: A row cannot be scored.
            ConfigError: The model has no ensemble, and `uncertainty` was asked for.
        """
        _check_errors(errors)
        if is_one_row(rows):
            raise ConfigError("`score_stream` was given a single row", fix="Pass an iterable of rows, or use `score`.")
        if window is not None and window < 1:
            raise ConfigError(f"`window` is {window}", fix="Use a positive number of rows, or None.")
        asked = caution if uncertainty else None
        members = 0 if asked is None else require_ensemble(self.model, self.name, asked)
        return self._stream(rows, progress, errors, window, members, asked)

    def score_prepared(
        self,
        rows: Iterable[Any],
        *,
        errors: OnError = "raise",
        first_row: int = 0,
        features: Mapping[str, Any] | None = None,
        caution: float | None = None,
    ) -> Iterator[tuple[PreparedRow, Any]]:
        """Rewards as `score_stream` gives them, each with what became of its row, which the log does not say then.

        Args:
            rows: Any iterable of rows.
            errors: As for `score`.
            first_row: Number of the first row, for messages.
            features: Types of the columns as `datasets` declares them, where known.
            caution: Say how sure each is, with the lower bound this many spreads below the mean; None: rewards alone.

        Raises:
            DataError: A row cannot be scored.
            ConfigError: The model has no ensemble, and that was asked for.
        """
        _check_errors(errors)
        members = 0 if caution is None else require_ensemble(self.model, self.name, caution)
        for window in self._preparation.windows(rows, first_row=first_row, features=features):
            self._check(window, errors, Tally(set()))
            yield from zip(window, self._compute(window, lambda count: None, members, caution), strict=True)

    def _stream(
        self,
        rows: Iterable[Any],
        progress: bool,
        errors: OnError,
        window: int | None,
        members: int,
        caution: float | None,
    ) -> Iterator[Any]:
        tally = Tally(self._said)
        with tqdm(unit=" responses", desc="Scoring", disable=not progress) as bar:
            for prepared in self._preparation.windows(rows, window):
                self._check(prepared, errors, tally)
                yield from self._compute(prepared, bar.update, members, caution)
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
        caution: float | None = None,
    ) -> list[Any]:
        raw = iter(self._engine([row.ids for row in window if row.ids is not None], done, members=members > 0))
        nan: Any = float("nan") if not members else [float("nan")] * (1 + members)
        return [
            self._shaped(row, next(raw) if row.ids is not None else [nan] * row.responses, caution) for row in window
        ]

    def _shaped(self, row: PreparedRow, raw: Sequence[Any], caution: float | None) -> Any:
        if caution is not None:
            return UncertainReward.of(row.shape, *calibrated(raw, self.calibration), caution)
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
        ("overlong", overlong, get_args(Overlong)),
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
