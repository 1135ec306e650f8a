"""From rows to token ids: read, rendered and tokenised in batches, each row checked before any is computed."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

from plaudit.data.encode import RENDER_ERRORS, ConversationEncoder, Encoder, TextEncoder
from plaudit.data.pieces import CACHE_BYTES
from plaudit.errors import ConfigError, DataError
from plaudit.scoring.rows import ReadRow, Shape, read_row, shape_of
from plaudit.types import PreferenceExample

logger = logging.getLogger("plaudit")

Overlong: TypeAlias = Literal["error", "truncate_left", "truncate_right", "nan"]
"""What happens to a row with a response of more than ``max_length`` tokens."""

_RESPONSES_AT_ONCE = 1024
_CHARACTERS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class PreparedRow:
    """One row as token ids, or why it has none.

    Attributes:
        shape: What comes back for it.
        responses: How many responses it has.
        ids: Token ids of each, compactly (None: it cannot be scored).
        error: Why it cannot be.
        overlong: Whether that is because it is too long.
        cut: Whether it was too long and is cut.
        flags: Sum of the values of what is suspicious, a :class:`~plaudit.data.report.Flag`.
    """

    shape: Shape
    responses: int
    ids: tuple[array[int], ...] | None
    error: DataError | None = None
    overlong: bool = False
    cut: bool = False
    flags: int = 0


@dataclass
class RowPreparation:
    """Turns rows into token ids, as the trainer does.

    Attributes:
        tokenizer: Tokenises the responses; not changed.
        max_length: Limit for one response, in tokens (None: no limit).
        overlong: What happens to rows beyond it.
        cache_bytes: About how much memory the words that were seen may take.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    overlong: Overlong
    cache_bytes: int = CACHE_BYTES

    def __post_init__(self) -> None:
        self._encoders: dict[bool, Encoder] = {}

    def windows(
        self,
        rows: Iterable[Any],
        size: int | None = None,
        *,
        first_row: int = 0,
        features: Mapping[str, Any] | None = None,
    ) -> Iterator[list[PreparedRow]]:
        """Prepare rows, some at a time; no more rows are taken than the next window needs.

        Args:
            rows: What is to be scored.
            size: Rows of a window; by default as many as have about a thousand responses, and less of long texts.
            first_row: Number of the first of them, for messages.
            features: Types of the columns as `datasets` declares them; by default those of `rows`, if it has any.
        """
        features = getattr(rows, "features", None) if features is None else features
        window: list[ReadRow | PreparedRow] = []
        responses = characters = 0
        for number, row in enumerate(rows, start=first_row):
            read = self._read(row, number, features)
            window.append(read)
            if isinstance(read, ReadRow):
                responses += len(read.fields)
                characters += _size_of(read)
            full = responses >= _RESPONSES_AT_ONCE or characters >= _CHARACTERS_AT_ONCE or len(window) >= 4096
            if full if size is None else len(window) >= size:
                yield self._tokenize(window)
                window, responses, characters = [], 0, 0
        if window:
            yield self._tokenize(window)

    def _read(self, row: Any, number: int, features: Mapping[str, Any] | None) -> ReadRow | PreparedRow:
        try:
            return read_row(row, number, features)
        except DataError as error:
            shape, responses = shape_of(row)
            return PreparedRow(shape, responses, None, error)

    def _tokenize(self, window: Sequence[ReadRow | PreparedRow]) -> list[PreparedRow]:
        """Render and tokenise the rows of a window that could be read, texts and conversations each in one call."""
        found: dict[int, PreparedRow] = {}
        for conversational in (False, True):
            members = {
                place: row
                for place, row in enumerate(window)
                if isinstance(row, ReadRow) and row.example is not None and row.example.conversational is conversational
            }
            if members:
                prepared = self._encode(list(members.values()), conversational)
                found.update(zip(members, prepared, strict=True))
        return [
            row
            if isinstance(row, PreparedRow)
            else found[place]
            if place in found
            else self._measured(row, [list(ids) for ids in row.ids])
            for place, row in enumerate(window)
        ]

    def _encode(self, rows: Sequence[ReadRow], conversational: bool) -> list[PreparedRow]:
        examples = [row.example for row in rows if row.example is not None]
        encoder = self._encoder(conversational, examples[0])
        try:
            texts: list[list[str] | DataError] = list(encoder.render(examples))
        except ConfigError:
            raise
        except RENDER_ERRORS:
            # All together do not say which of them was refused.
            texts = [_rendered_alone(row, encoder) for row in rows]
        ids = iter(encoder.tokenize([text for one in texts if not isinstance(one, DataError) for text in one]))
        return [
            _refused(row, one) if isinstance(one, DataError) else self._measured(row, [next(ids) for _ in one])
            for row, one in zip(rows, texts, strict=True)
        ]

    def _encoder(self, conversational: bool, example: PreferenceExample) -> Encoder:
        if conversational not in self._encoders:
            encoder: Encoder = (ConversationEncoder if conversational else TextEncoder)(self.tokenizer)
            encoder.cache_bytes = self.cache_bytes
            encoder.check(example)
            if not conversational and self.tokenizer.chat_template:
                logger.warning(
                    "Plain text is scored as it is, without the chat template that the tokenizer has. If the model was "
                    "trained on conversations, pass lists of messages."
                )
            self._encoders[conversational] = encoder
        return self._encoders[conversational]

    def _measured(self, row: ReadRow, ids: list[list[int]]) -> PreparedRow:
        lengths = [len(one) for one in ids]
        if 0 in lengths:
            fix = "Leave the row out, or use a chat template that prints something for it."
            return _refused(
                row, DataError("has no tokens", field=row.fields[lengths.index(0)], row=row.number, fix=fix)
            )
        excess = 0 if self.max_length is None else max(lengths) - self.max_length
        if excess > 0:
            if self.overlong not in ("truncate_left", "truncate_right"):
                return replace(_refused(row, self._overlong_error(row, lengths)), overlong=True)
            # From the left, all responses of a row alike: they go on sharing what is left of their prompt.
            left = self.overlong == "truncate_left"
            ids = [one[min(excess, len(one) - 1) :] if left else one[: self.max_length] for one in ids]
        compact = tuple(array("i", one) for one in ids)
        return PreparedRow(row.shape, len(ids), compact, cut=excess > 0, flags=row.flags)

    def _overlong_error(self, row: ReadRow, lengths: Sequence[int]) -> DataError:
        longest = max(lengths)
        return DataError(
            f"has {longest} tokens, more than `max_length` {self.max_length}",
            row=row.number,
            field=row.fields[lengths.index(longest)],
            fix='Load the model with `overlong="truncate_left"`, "truncate_right" or "nan", or with a larger '
            "`max_length` if it can read that much.",
        )


def _refused(row: ReadRow, error: DataError) -> PreparedRow:
    return PreparedRow(row.shape, len(row.fields), None, error)


def _rendered_alone(row: ReadRow, encoder: Encoder) -> list[str] | DataError:
    if row.example is None:
        return []
    texts: list[str] = []
    for index, response in enumerate(row.example.responses):
        try:
            texts += encoder.render([replace(row.example, responses=(response,))])[0]
        except RENDER_ERRORS as error:
            return DataError(
                f"the chat template refuses it: {type(error).__name__}: {error}",
                row=row.number,
                field=row.fields[index],
                fix="Change or leave out the row, or use a chat template that accepts such conversations.",
            )
    return texts


def _size_of(row: ReadRow) -> int:
    if row.example is None:
        return sum(map(len, row.ids))
    # The length of a conversation's text, or nearly so: enough to bound what is in memory.
    return sum(
        len(response) if isinstance(response, str) else sum(len(message["content"]) for message in response)
        for response in row.example.responses
    )
