"""Scores the rows of a suite with a reward model: in bounded memory, what cannot be scored named or counted."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

from torch import nn

from plaudit.data.prepare import PreparedRow, RowPreparer
from plaudit.data.report import Flag, ScoringOverlong
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.results import Dropped
from plaudit.evaluation.suites.base import SuiteRow
from plaudit.evaluation.suites.registry import LoadedSuite
from plaudit.evaluation.table import ScoredRow
from plaudit.inference.reward_model import RewardModel
from plaudit.model.head import score_heads_of
from plaudit.model.peft import base_model_of
from plaudit.schema import RAW_COLUMNS, response_field, row_kind_of

Overlong: TypeAlias = Literal["drop", "truncate_left", "truncate_right", "error"]
"""What happens to a row with a response of more than ``max_length`` tokens."""
OnBroken: TypeAlias = Literal["raise", "drop"]
"""What happens to a row that cannot be scored, such as one that the chat template refuses."""


@dataclass(frozen=True)
class ScoringSettings:
    """How rows are scored.

    Attributes:
        max_length: Most tokens of a response with its prompt (None: what the model was made to read).
        overlong: What happens to a row that has more.
        errors: What happens to a row that cannot be scored.
    """

    max_length: int | None = None
    overlong: Overlong = "drop"
    errors: OnBroken = "raise"

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("overlong", self.overlong, get_args(Overlong)),
            ("errors", self.errors, get_args(OnBroken)),
        ):
            if value not in choices:
                raise ConfigError(f"`{name}` is {value!r}", fix=f"Use one of: {', '.join(choices)}.")
        if self.max_length is not None and self.max_length < 1:
            raise ConfigError(f"`max_length` is {self.max_length}", fix="Use at least 1 token, or None.")

    def limit(self, model: RewardModel) -> int | None:
        """Most tokens of a response under a model.

        Args:
            model: It.
        """
        limits = [one for one in (self.max_length, model.max_length) if one is not None]
        return min(limits, default=None)


@contextlib.contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Let a model be taught to score, and undo it: its trainer may have put a forward of its own there (autocast).

    Args:
        model: A reward model, maybe wrapped in an adapter.
    """
    base = base_model_of(model)
    taught = [base, *score_heads_of(base)]
    forwards = [one.__dict__.get("forward") for one in taught]
    modes = [(one, one.training) for one in model.modules()]
    attention = base.config._attn_implementation
    expands = getattr(base, "expand_shared_prefix", None)
    try:
        yield
    finally:
        for one, forward in zip(taught, forwards, strict=True):
            if forward is None:
                one.__dict__.pop("forward", None)
            else:
                one.forward = forward
        if base.config._attn_implementation != attention:
            base.set_attn_implementation(attention)
        if expands is None and hasattr(base, "expand_shared_prefix"):
            del base.expand_shared_prefix
        for one, training in modes:
            one.training = training


_ROWS_NAMED = 10
_BATCHES_AT_ONCE = 8
_FLAGS = {
    Flag.EMPTY_RESPONSE: "have an empty response",
    Flag.LAST_MESSAGE_NOT_ASSISTANT: "end with a message that is not the assistant's",
}


@dataclass
class Scoring:
    """What came of scoring some rows.

    Attributes:
        rows: Those that could be scored, in order.
        dropped: Those that could not.
        notes: What looked wrong, or was cut.
    """

    rows: list[ScoredRow] = field(default_factory=list)
    dropped: tuple[Dropped, ...] = ()
    notes: tuple[str, ...] = ()


def score_rows(
    model: RewardModel,
    suite: LoadedSuite,
    settings: ScoringSettings,
    *,
    done: Callable[[int], object] = lambda count: None,
) -> Scoring:
    """Score the rows of a suite.

    Args:
        model: The reward model; it is not changed.
        suite: The rows.
        settings: How.
        done: Told how many rows are through, time and again.

    Raises:
        DataError: A row cannot be scored, or its reward is not finite; the message names source, row and field.
    """
    tally = _Tally(settings, settings.limit(model))
    found: list[ScoredRow] = []
    for window, prepared in _windows(model, suite.rows, settings):
        kept = [(row, one) for row, one in zip(window, prepared, strict=True) if tally.keeps(row, one, suite)]
        done(len(window) - len(kept))
        rewards: list[Sequence[float]] = [()] * len(kept)
        for part in _parts(model, [one for _, one in kept]):
            ids = [[list(one) for one in kept[place][1].ids or ()] for place in part]
            values = model.score([{"response_ids": one} for one in ids])
            for place, reward in zip(part, values, strict=True):
                if not all(map(math.isfinite, reward)):
                    raise _not_finite(model, kept[place], reward, suite)
                rewards[place] = reward
            done(len(part))
        found += _with_tokens(model, [row.scored(one) for (row, _), one in zip(kept, rewards, strict=True)])
    return Scoring(found, tally.dropped(), tally.notes())


def _windows(
    model: RewardModel, rows: Sequence[SuiteRow], settings: ScoringSettings
) -> Iterator[tuple[list[SuiteRow], list[PreparedRow]]]:
    """Rows with their token ids, as many at a time as the scorer would take."""
    overlong: ScoringOverlong = "nan" if settings.overlong == "drop" else settings.overlong
    preparation = RowPreparer(model.processing_class, settings.limit(model), overlong)
    for _, of_source in itertools.groupby(rows, key=lambda row: (row.source, id(row.features))):
        members = list(of_source)
        waiting = iter(members)
        for prepared in preparation.windows(_RawRows(members)):
            yield list(itertools.islice(waiting, len(prepared))), prepared


class _RawRows:
    """Raw rows of one source, with what it declares about their columns."""

    def __init__(self, rows: Sequence[SuiteRow]) -> None:
        self._rows, self.features = rows, rows[0].features

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        # Other columns could be taken for responses, such as messages kept beside a pair.
        return ({name: value for name, value in row.raw.items() if name in RAW_COLUMNS} for row in self._rows)


def _parts(model: RewardModel, prepared: Sequence[PreparedRow]) -> Iterator[list[int]]:
    """Places of rows that are computed in one go: some batches of similar length."""
    lengths = [[len(ids) for ids in one.ids or ()] for one in prepared]
    order: Iterable[int] = range(len(prepared))
    if model.batch_layout == "padded":
        order = sorted(order, key=lambda place: max(lengths[place]), reverse=True)
    part: list[int] = []
    tokens = 0
    for place in order:
        part.append(place)
        tokens += sum(lengths[place])
        if tokens >= _BATCHES_AT_ONCE * model.max_tokens_per_batch:
            yield part
            part, tokens = [], 0
    if part:
        yield part


def _with_tokens(model: RewardModel, rows: Sequence[ScoredRow]) -> list[ScoredRow]:
    """Count the tokens of the responses alone, without prompt and template."""
    texts = [text for row in rows for text in row.texts or ()]
    ids = iter(model.processing_class(texts, add_special_tokens=False)["input_ids"] if texts else ())
    return [replace(row, tokens=tuple(len(next(ids)) for _ in row.rewards)) for row in rows]


def _not_finite(
    model: RewardModel, kept: tuple[SuiteRow, PreparedRow], rewards: Sequence[float], suite: LoadedSuite
) -> DataError:
    """The error about a row with a reward that is NaN or infinite."""
    row, prepared = kept
    # One by one: computed together, what is wrong with one response spreads to those beside it.
    alone = [model.score([{"response_ids": [list(ids)]}])[0][0] for ids in prepared.ids or ()]
    values = rewards if all(map(math.isfinite, alone)) else alone
    index = next(place for place, value in enumerate(values) if not math.isfinite(value))
    row_kind: Any = row_kind_of(row.raw)
    return DataError(
        f"the reward is {float(values[index])}",
        row=suite.number_in_source(row),
        field=response_field(row_kind, index),
        dataset=row.source,
        fix="Look at the model (its dtype, a damaged checkpoint) and at the text of the row.",
    )


class _Tally:
    """Counts rows that are left out, cut, or look wrong."""

    def __init__(self, settings: ScoringSettings, limit: int | None) -> None:
        self._settings, self._limit = settings, limit
        self._too_long: list[int] = []
        self._broken: list[int] = []
        self._cut: list[int] = []
        self._first: str | None = None
        self._suspicious: dict[Flag, list[int]] = {flag: [] for flag in _FLAGS}

    def keeps(self, row: SuiteRow, prepared: PreparedRow, suite: LoadedSuite) -> bool:
        """Whether a row can be scored; counts it otherwise.

        Raises:
            DataError: It cannot, and that is not to be passed over.
        """
        error, number = prepared.error, suite.number_in_source(row)
        if prepared.overlong and self._settings.overlong == "drop":
            self._too_long.append(number)
            return False
        if error is not None:
            named = DataError(error.message, row=number, field=error.field, dataset=row.source, fix=error.fix)
            if self._settings.errors == "raise":
                raise named
            self._first = self._first or str(named)
            self._broken.append(number)
            return False
        if prepared.truncated:
            self._cut.append(number)
        for flag, numbers in self._suspicious.items():
            if prepared.flags & flag:
                numbers.append(number)
        return True

    def dropped(self) -> tuple[Dropped, ...]:
        """What was left out, by reason."""
        reasons = (
            (f"more than {self._limit} tokens", self._too_long, None),
            ("cannot be scored", self._broken, self._first),
        )
        return tuple(
            Dropped(reason, len(rows), tuple(rows[:_ROWS_NAMED]), example) for reason, rows, example in reasons if rows
        )

    def notes(self) -> tuple[str, ...]:
        """What the reader must know about the rows that were scored."""
        said = [(numbers, words) for numbers, words in ((self._suspicious[flag], _FLAGS[flag]) for flag in _FLAGS)]
        said.append((self._cut, f"had more than {self._limit} tokens and were cut ({self._settings.overlong})"))
        return tuple(f"{len(rows)} rows {words} ({_names(rows)})." for rows, words in said if rows)


def _names(rows: Sequence[int]) -> str:
    shown = ", ".join(str(row) for row in rows[:_ROWS_NAMED])
    return f"row{'s' * (len(rows) > 1)} {shown}{', ...' if len(rows) > _ROWS_NAMED else ''}"
