"""Turns batches of raw preference rows into columns of token ids, their lengths, and what is suspicious."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import pyarrow as pa
from datasets import Dataset, Features, List, Value

from plaudit.data.encode import RENDER_ERRORS, Encoder
from plaudit.data.formats import (
    RESPONSE_COLUMNS,
    TOKENIZED_COLUMNS,
    read_flagged_example,
    read_tokenized_example,
)
from plaudit.data.report import Flag, Overlong
from plaudit.errors import ConfigError, DataError
from plaudit.types import PreferenceExample

CODE_VERSION = 1
"""Part of every cache key: raise it whenever the same rows would give other columns than before."""


@dataclass
class _Row:
    """One row on its way through a batch."""

    index: int
    example: PreferenceExample | None = None
    ids: list[list[int]] = field(default_factory=lambda: [[], []])
    margin: float | None = None
    flags: int = 0
    lengths: list[int] = field(default_factory=lambda: [0, 0])
    error: DataError | None = None


@dataclass(frozen=True)
class RowPreparer:
    """Turns a batch of raw rows into columns of token ids and flags.

    Attributes:
        encoder: Renders and tokenises the responses (None: the rows are tokenised already).
        conversational: What the first row was; rows of another form are refused.
        has_margin: Whether the rows have a margin.
        has_prompt: Whether the rows have a prompt of their own.
        max_length: Limit for one response, in tokens (None: no limit).
        overlong: The policy for over-long rows; here it matters only whether they are cut.
        dataset_name: Which data set it is.
        source_features: Types of the raw columns, where they are known.
        collect_errors: Write errors into a column ``error`` instead of raising the first of a batch.
    """

    encoder: Encoder | None
    conversational: bool
    has_margin: bool
    has_prompt: bool
    max_length: int | None
    overlong: Overlong
    dataset_name: str
    source_features: Mapping[str, Any] | None = None
    collect_errors: bool = False

    @property
    def result_columns(self) -> list[str]:
        """Names of the columns that a trainer reads."""
        return [*TOKENIZED_COLUMNS, "margin"] if self.has_margin else list(TOKENIZED_COLUMNS)

    @property
    def features(self) -> Features:
        """Types of all columns that are written."""
        columns: dict[str, Any] = {name: List(Value("int32")) for name in TOKENIZED_COLUMNS}
        if self.has_margin:
            columns["margin"] = Value("float64")
        columns |= {"row": Value("int64"), "flags": Value("int32"), "lengths": List(Value("int32"), length=2)}
        if self.collect_errors:
            columns["error"] = Value("string")
        return Features(columns)

    def fingerprint(self, dataset: Dataset) -> str:
        """Name the result for the cache, by the data, the tokenizer and every setting that matters.

        Args:
            dataset: The source.
        """
        cut = self.overlong if self.overlong.startswith("truncate") else None
        encoder = self.encoder.fingerprint() if self.encoder is not None else None
        parts = [CODE_VERSION, dataset._fingerprint, encoder, self.max_length, cut, self.has_margin]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def to_table(self, batch: Mapping[str, list[Any]], indices: Sequence[int]) -> pa.Table:
        """Prepare rows like a call does, as an Arrow table, which is written without a look at every value.

        Args:
            batch: Raw columns.
            indices: Index of each row in the source data set.
        """
        return pa.table(self(batch, indices), schema=self.features.arrow_schema)

    def __call__(self, batch: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        """Prepare rows.

        Args:
            batch: Raw columns.
            indices: Index of each row in the source data set.

        Returns:
            The columns named in :attr:`features`.

        Raises:
            DataError: A row cannot be read, and errors are not collected.
        """
        names = list(batch.keys())
        raw_rows = (dict(zip(names, values, strict=True)) for values in zip(*(batch[n] for n in names), strict=True))
        rows = [self._read(raw, index) for raw, index in zip(raw_rows, indices, strict=True)]
        if self.encoder is not None:
            self._encode([row for row in rows if row.error is None], self.encoder)
        for row in rows:
            if row.error is None:
                self._measure(row)
        columns: dict[str, list[Any]] = {
            "chosen_ids": [row.ids[0] for row in rows],
            "rejected_ids": [row.ids[1] for row in rows],
            "row": list(indices),
            "flags": [int(row.flags) for row in rows],
            "lengths": [row.lengths for row in rows],
        }
        if self.has_margin:
            columns["margin"] = [row.margin for row in rows]
        if self.collect_errors:
            columns["error"] = [None if row.error is None else dump_error(row.error) for row in rows]
        return {name: columns[name] for name in self.features}

    def _read(self, raw: dict[str, Any], index: int) -> _Row:
        row = _Row(index)
        place: dict[str, Any] = {"row_number": index, "dataset_name": self.dataset_name}
        try:
            self._settle_optional(row, raw)
            if self.encoder is None:
                ids = read_tokenized_example(raw, **place)
                row.ids, row.margin = [list(one) for one in ids.response_ids], ids.margin
                row.flags = Flag.IDENTICAL if row.ids[0] == row.ids[1] else 0
            else:
                row.example, row.flags = read_flagged_example(
                    raw, conversational=self.conversational, features=self.source_features, **place
                )
                row.margin = row.example.margin
        except DataError as error:
            self._fail(row, error)
        return row

    def _settle_optional(self, row: _Row, raw: dict[str, Any]) -> None:
        """Hold a row to the optional columns of the first one.

        A stream without declared types fills a batch with null wherever a row lacks a column.
        """
        for column, expected in (("margin", self.has_margin), ("prompt", self.has_prompt)):
            if expected:
                raw.setdefault(column, None)
            elif raw.pop(column, None) is not None:
                fix = f"Give all rows a {column}, or none."
                raise self._error(row, column, f"is there, but the first row has no {column}", fix)

    def _error(self, row: _Row, column: str, message: str, fix: str) -> DataError:
        return DataError(message, row=row.index, field=column, dataset=self.dataset_name, fix=fix)

    def _fail(self, row: _Row, error: DataError) -> None:
        if not self.collect_errors:
            raise error
        row.error = row.error or error

    def _encode(self, rows: Sequence[_Row], encoder: Encoder) -> None:
        examples = [cast(PreferenceExample, row.example) for row in rows]
        try:
            texts = encoder.render(examples)
        except ConfigError:
            raise
        except RENDER_ERRORS:
            # The batch does not say which of its rows was refused: take them one by one.
            texts = [self._render_alone(row, encoder) for row in rows]
        ids = iter(encoder.tokenize([text for pair in texts for text in pair]))
        for row, pair in zip(rows, texts, strict=True):
            if row.error is None:
                row.ids = [next(ids) for _ in pair]
                self._check_not_empty(row)

    def _render_alone(self, row: _Row, encoder: Encoder) -> list[str]:
        """Render one row; [] where the template refuses one of its responses."""
        example = cast(PreferenceExample, row.example)
        texts: list[str] = []
        for column, response in zip(RESPONSE_COLUMNS, example.responses, strict=True):
            try:
                texts += encoder.render([replace(example, responses=(response,))])[0]
            except RENDER_ERRORS as error:
                message = f"the chat template refuses it: {type(error).__name__}: {error}"
                fix = "Change or drop the row, or use a chat template that accepts such conversations."
                self._fail(row, self._error(row, column, message, fix))
                return []
        return texts

    def _check_not_empty(self, row: _Row) -> None:
        for column, ids in zip(RESPONSE_COLUMNS, row.ids, strict=True):
            if not ids:
                fix = "Drop the row, or use a chat template that prints something for it."
                self._fail(row, self._error(row, column, "has no tokens", fix))

    def _measure(self, row: _Row) -> None:
        row.lengths = [len(ids) for ids in row.ids]
        excess = max(row.lengths) - self.max_length if self.max_length is not None else 0
        if excess > 0:
            row.flags |= Flag.OVERLONG
            if self.overlong == "truncate_left":
                row.ids = [ids[min(excess, len(ids) - 1) :] for ids in row.ids]
            elif self.overlong == "truncate_right":
                row.ids = [ids[: self.max_length] for ids in row.ids]
        if not row.flags & Flag.IDENTICAL and row.ids[0] == row.ids[1]:
            row.flags |= Flag.SAME_RENDERING


def dump_error(error: DataError) -> str:
    """Write an error as text that fits into a column.

    Args:
        error: What is wrong with a row.
    """
    return json.dumps([error.message, error.row, error.field, error.dataset, error.fix])


def load_error(text: str) -> DataError:
    """Read an error back from the text that :func:`dump_error` wrote.

    Args:
        text: Contents of the column ``error``.

    >>> load_error(dump_error(DataError("is null", row=3, field="chosen"))).row
    3
    """
    message, row, place, dataset, fix = json.loads(text)
    return DataError(message, row=row, field=place, dataset=dataset, fix=fix)
