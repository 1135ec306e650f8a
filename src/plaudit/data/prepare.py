"""Prepares rows for a model: read, checked, rendered, tokenised and truncated, for training, scoring and checking."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from plaudit import schema
from plaudit.data.encode import CACHE_BYTES, RENDER_ERRORS, ConversationEncoder, Encoder, TextEncoder
from plaudit.data.load import SCHEMA_ERROR, open_data
from plaudit.data.parse import all_equal, prompt_of, read_example, row_kinds_in, shape_of
from plaudit.data.report import CUT_AWAY_FIX, DataReport, Flag, Overlong, Purpose, overlong_error
from plaudit.errors import ConfigError, DataError, as_raised_in_worker
from plaudit.objectives import ROW_KIND_NAMES, BradleyTerry, Objective, objectives_for
from plaudit.prefix_tree import common_prefix_length
from plaudit.schema import TOKENIZED_COLUMNS, Example, Label, RowKind, RowSchema, Shape

logger = logging.getLogger("plaudit")
CODE_VERSION = 5
"""Part of every cache key: raise it whenever the same rows would give other columns than before."""
MAP_BATCH = 1000
ROWS_PER_PROCESS = 2000
"""Fewer rows than that cost less than starting a process for them."""
STREAM_BATCH = 64
_RESPONSES_AT_ONCE, _CHARACTERS_AT_ONCE, _ROWS_AT_ONCE = 1024, 4_000_000, 4096
_SHAPES: dict[RowKind, Shape] = {"pairs": "pair", "scores": "list", "ranks": "list", "ratings": "one", "labels": "one"}
_SUSPICIOUS_TO_SCORE = Flag.EMPTY_RESPONSE | Flag.LAST_MESSAGE_NOT_ASSISTANT | Flag.BEGINS_WITH_PROMPT
_OTHER = "\ue0f1"  # for private use: no text begins with it


@dataclass
class PreparedRow:
    """A row as token ids, or the reason why it has none."""

    index: int  # in the data set, counted from 0
    shape: Shape
    responses: int  # how many
    row_kind: RowKind = "pairs"
    label: Label = field(default_factory=Label)
    fields: tuple[str, ...] = ()  # where each response is in the row
    ids: Sequence[Sequence[int]] | None = None  # of each response; None: not tokenised
    lengths: list[int] = field(default_factory=list)  # tokens of each response, before truncation
    flags: int = 0  # sum of the values of its `Flag`
    truncated: bool = False
    own_starts: list[int] | None = None  # truncated on the left: tokens that each shares
    prompt: int = 0  # equal for equal prompts; for rows with labels only
    example: Example | None = None
    error: DataError | None = None

    @property
    def overlong(self) -> bool:
        """Whether it has no token ids because it is too long."""
        return self.error is not None and bool(self.flags & Flag.OVERLONG)


@dataclass
class RowPreparer:
    """Prepares rows: reads each, checks its label, renders, tokenises and truncates its responses.

    Training, scoring, evaluation, ``plaudit check`` and the server all prepare rows here.

    >>> preparer = RowPreparer(None, max_length=2, overlong="truncate_right")
    >>> (row,) = preparer.prepare([{"response_ids": [[5, 6, 7]]}], [0])
    >>> row.ids, row.lengths, row.truncated
    ((array('i', [5, 6]),), [3], True)
    """

    tokenizer: PreTrainedTokenizerBase | None  # copied, not changed; None: only token ids are prepared
    max_length: int | None  # limit for one response with its prompt, in tokens; None: no limit
    # "truncate_left" keeps the last `max_length` tokens of each response with its prompt, "truncate_right" the first,
    # as if it stood alone. An over-long row gets `Flag.OVERLONG`, one that would lose a response `Flag.CUT_AWAY`;
    # without labels, where no later step drops rows, it gets an error unless it is truncated.
    overlong: Literal["drop", "truncate_left", "truncate_right", "error", "nan"]
    cache_bytes: int = CACHE_BYTES
    objective: Objective | None = None  # reads the labels; None: labels are not read, as when scoring
    schema: RowSchema | None = None  # what all rows have in common; None: each row is read by itself
    dataset_name: str | None = None
    features: Mapping[str, Any] | None = None  # types of the columns as `datasets` declares them
    on_broken: Literal["raise", "record"] = "record"  # what happens to a row that cannot be read
    encoders: dict[bool, Encoder] = field(default_factory=dict)  # by whether rows are conversational

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the tokenizer out: encoders have their own copy, and pickles go to every worker process."""
        return {**vars(self), "tokenizer": None}

    def prepare(self, rows: Iterable[Any], indices: Iterable[int]) -> list[PreparedRow]:
        """Reads and encodes some rows, given with their indices in the data set."""
        return self.encode([self.read(row, index) for row, index in zip(rows, indices, strict=True)])

    def windows(
        self, rows: Iterable[Any], size: int | None = None, *, first_row: int = 0, features: Any = None
    ) -> Iterator[list[PreparedRow]]:
        """Prepares any number of rows, some at a time; takes no more rows than the next window needs.

        A window has `size` rows, or by default about a thousand responses, fewer of long texts.
        """
        features = getattr(rows, "features", None) if features is None else features
        window: list[PreparedRow] = []
        responses = characters = 0
        for index, raw in enumerate(rows, start=first_row):
            row = self.read(raw, index, features)
            window.append(row)
            if row.error is None:
                responses += row.responses
                parts: Iterable[Any] = row.ids or cast(Example, row.example).responses
                if row.ids is None and cast(Example, row.example).conversational:
                    parts = (message["content"] for conversation in parts for message in conversation)
                characters += sum(map(len, parts))
            full = responses >= _RESPONSES_AT_ONCE or characters >= _CHARACTERS_AT_ONCE
            if (full or len(window) >= _ROWS_AT_ONCE) if size is None else len(window) >= size:
                yield self.encode(window)
                window, responses, characters = [], 0, 0
        if window:
            yield self.encode(window)

    def read(self, row: Any, index: int, features: Mapping[str, Any] | None = None) -> PreparedRow:
        """Reads a row and checks its label; it has no token ids yet unless the row holds them."""
        row_schema = self.schema or RowSchema()
        try:
            broken = row.get(SCHEMA_ERROR) if isinstance(row, Mapping) else row
            if isinstance(broken, DataError):  # why a public schema cannot read it
                raise broken
            if self.schema is not None:
                row = self._with_schema_columns(row, index, self.schema)
            example = read_example(
                row,
                row_number=index,
                dataset_name=self.dataset_name,
                labels=self.objective is not None,
                tokenized=row_schema.tokenized,
                conversational=row_schema.conversational,
                features=self.features if features is None else features,
            )
            row_kind = "scores" if row_schema.tokenized and not row_schema.pairs else example.row_kind
            shape, ids, fields = _SHAPES[example.row_kind], example.response_ids, example.fields
            prepared = PreparedRow(index, shape, len(fields), row_kind, example.label, fields, ids, example=example)
            prepared.flags = example.flags
            if self.objective is None:
                prepared.flags &= _SUSPICIOUS_TO_SCORE
                return prepared
            prompt = prompt_of(row) if ids is None else list(ids[0][: common_prefix_length(ids)])
            text = json.dumps(prompt, sort_keys=True, default=str)
            digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
            prepared.prompt = int.from_bytes(digest, "big", signed=True)
            self._check_label(prepared, row, self.objective)
        except DataError as error:
            if self.on_broken == "raise":
                raise
            return PreparedRow(index, *shape_of(row), error=error)
        return prepared

    def encode(self, rows: list[PreparedRow]) -> list[PreparedRow]:
        """Renders, tokenises and truncates the responses of rows that were read, in place; one call for each form."""
        unread = [(row, cast(Example, row.example)) for row in rows if row.ids is None and row.error is None]
        for conversational in (False, True):
            members = [(row, example) for row, example in unread if example.conversational is conversational]
            encoder = self.encoder_for(members[0][1]) if members else None
            if encoder is None:
                continue
            try:
                texts = encoder.render([example for _, example in members])
            except ConfigError:
                raise
            except RENDER_ERRORS:
                # The batch does not tell which of its rows was refused.
                texts = [self._render_alone(row, example, encoder) for row, example in members]
            ids = iter(encoder.tokenize([text for responses in texts for text in responses]))
            for (row, _), responses in zip(members, texts, strict=True):
                if row.error is None:
                    row.ids = [next(ids) for _ in responses]
        for row in rows:
            if row.error is None and row.ids is not None:
                self._measure(row, row.ids)
        return rows

    def encoder_for(self, example: Example) -> Encoder | None:
        """Returns the encoder of rows like this one, made and checked when the first is met; None: no tokenizer."""
        conversational = example.conversational
        if conversational not in self.encoders and self.tokenizer is not None:
            encoder: Encoder = (ConversationEncoder if conversational else TextEncoder)(self.tokenizer)
            encoder.cache_bytes = self.cache_bytes
            encoder.check(example)
            if not conversational and self.objective is None and self.tokenizer.chat_template:
                logger.warning(
                    "Plain text is scored as it is, without the chat template that the tokenizer has. If the model was "
                    "trained on conversations, pass lists of messages."
                )
            self.encoders[conversational] = encoder
        return self.encoders.get(conversational)

    def _with_schema_columns(self, row: Mapping[str, Any], index: int, row_schema: RowSchema) -> dict[str, Any]:
        """Holds a row to the optional columns of the first one.

        A stream without declared types fills a batch with null wherever a row lacks a column, and so does a table
        whose rows are of several kinds.
        """
        row = dict(row)
        for column in schema.OPTIONAL_COLUMNS:
            if column in row_schema.optional:
                row.setdefault(column, None)
                if not row_schema.pairs and column != "prompt" and row[column] is None:
                    del row[column]
            elif row.pop(column, None) is not None:
                message = f"is there, but the first row has no {column}"
                raise self._error(index, column, message, f"Give all rows a {column}, or none.")
        return row

    def _check_label(self, prepared: PreparedRow, row: Mapping[str, Any], objective: Objective) -> None:
        """Holds a row against the objective, which was chosen by the columns or by the first row of a stream."""
        row_kind, row_schema = prepared.row_kind, self.schema or RowSchema()
        column = schema.response_field(row_kind, 0).partition("[")[0]
        if not row_schema.tokenized and row_kind not in objective.row_kinds:
            message = f"is of the form {ROW_KIND_NAMES[row_kind]}, from which {objective.name} cannot learn"
            fix = f"Use another objective ({', '.join(objectives_for([row_kind], [])) or 'none reads it'})."
        elif row_schema.pairs and row_kind != "pairs":
            message = f"is of the form {ROW_KIND_NAMES[row_kind]}, but the first row is a pair and has no such columns"
            fix = "Give all rows the columns of all forms, null where a row has none, or pass a `Dataset`."
        elif row_kind == "pairs" and row.get("tie") and "tie" not in objective.columns:
            column, message = "tie", f"is true, and {objective.name} knows no ties"
            fix = f"Use another objective ({' or '.join(objectives_for([row_kind], ['tie']))}), or drop the row."
        else:
            column, message, fix = objective.problem(prepared.label) or ("", "", "")
        if message:
            raise self._error(prepared.index, column, message, fix)
        ratings = prepared.label.ratings
        tied = objective.learns_ties and len(ratings) > 1
        if objective.compares and not tied and not schema.comparisons_of(ratings):
            prepared.flags |= Flag.NOTHING_TO_COMPARE

    def _render_alone(self, row: PreparedRow, example: Example, encoder: Encoder) -> list[str]:
        texts: list[str] = []
        for response, name in zip(example.responses, row.fields, strict=True):
            try:
                texts += encoder.render([replace(example, responses=(response,))])[0]
            except RENDER_ERRORS as error:
                message = f"the chat template refuses it: {type(error).__name__}: {error}"
                fix = "Change or drop the row, or use a chat template that accepts such conversations."
                self._fail(row, name, message, fix)
                return []
        return texts

    def _measure(self, row: PreparedRow, ids: Sequence[Sequence[int]]) -> None:
        row.lengths = [len(response) for response in ids]
        if 0 in row.lengths:
            fix = "Drop the row, or use a chat template that prints something for it."
            self._fail(row, row.fields[row.lengths.index(0)], "has no tokens", fix)
            return
        excess = max(row.lengths) - self.max_length if self.max_length is not None else 0
        if excess > 0:
            row.flags |= Flag.OVERLONG
            row.truncated = self.overlong in ("truncate_left", "truncate_right")
        if row.truncated:
            lost, limit, left = self._lost_response(row, ids), cast(int, self.max_length), "left" in self.overlong
            if left and len(ids) > 1:
                shared = common_prefix_length(ids)
                row.own_starts = [max(0, shared - max(0, length - limit)) for length in row.lengths]
            ids = [response[-limit:] if left else response[:limit] for response in ids]
            if lost is not None and self.objective is None:
                message = f"has nothing left of itself after truncation to `max_length` {self.max_length}"
                self._fail(row, row.fields[lost], message, CUT_AWAY_FIX)
            row.flags |= Flag.CUT_AWAY * (lost is not None)
        row.ids = None if row.error is not None else ids
        if self.objective is not None:
            if not row.flags & Flag.IDENTICAL and all_equal(ids):
                row.flags |= Flag.SAME_RENDERING
            return
        # Nothing but compact ids stays in memory while a model computes rewards.
        row.example, row.ids = None, row.ids and tuple(array("i", response) for response in row.ids)
        if excess > 0 and not row.truncated:
            row.error = overlong_error(row.index, row.fields, row.lengths, self.max_length, self.dataset_name)
            row.ids = None

    def _lost_response(self, row: PreparedRow, ids: Sequence[Sequence[int]]) -> int | None:
        """Returns the first response of which truncation would leave nothing but its prompt, or what ends it."""
        example, limit, right = (
            cast(Example, row.example),
            cast(int, self.max_length),
            self.overlong == "truncate_right",
        )
        if example.response_ids is not None:
            # Of token ids it is only known what the responses of a row share.
            return 0 if right and len(ids) > 1 and common_prefix_length(ids) >= limit else None
        encoder = self.encoders[example.conversational]
        try:
            others = encoder.tokenize(encoder.render([_with_other_responses(example)])[0])
        except RENDER_ERRORS:
            return None
        for index, (own, other) in enumerate(zip(ids, others, strict=True)):
            before, after = common_prefix_length([own, other]), common_prefix_length([own[::-1], other[::-1]])
            if len(own) > limit and (before >= limit if right else limit <= after < len(own) - before):
                return index
        return None

    def _error(self, index: int, field: str, message: str, fix: str) -> DataError:
        return DataError(message, row=index, field=field, dataset=self.dataset_name, fix=fix)

    def _fail(self, row: PreparedRow, field: str, message: str, fix: str) -> None:
        error = self._error(row.index, field, message, fix)
        if self.on_broken == "raise":
            raise error
        row.error, row.ids, row.flags = error, None, 0


def _with_other_responses(example: Example) -> Example:
    """Returns the example with a text of its own for each response, which shows what of it is not the response."""
    responses: list[Any] = []
    for response in example.responses:
        size = example.prompt_size
        if isinstance(response, str):
            responses.append(response[:size] + _OTHER)
        else:
            size = size or len(response) - 1
            responses.append([*response[:size], {"role": response[size]["role"], "content": _OTHER}])
    return replace(example, responses=tuple(responses))


# --- training data ------------------------------------------------------------------------------------------------


def prepare_dataset(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase | None,
    *,
    max_length: int | None,
    overlong: Overlong = "drop",
    dataset_name: str = "train",
    purpose: Purpose = "train",
    num_proc: int | None = None,
    keep_columns: bool = False,
    objective: Objective | None = None,
) -> tuple[Dataset | IterableDataset, DataReport]:
    """Reads, checks and tokenises preference data; returns the prepared data set and a report.

    The data set has ``chosen_ids`` and ``rejected_ids`` if all rows are pairs, otherwise ``response_ids`` and
    ``scores``; where the source has them, ``margin``, ``preference_prob`` (0.5 for ties) and ``weight``; to predict,
    ``row``, the row's index; and, of a table with `keep_columns`, the columns that preferences are not read from.
    Rows of a stream are read, checked and counted as they are requested, in this process.
    """
    source, row_schema, first = _open(dataset, dataset_name)
    preparer = RowPreparer(
        tokenizer,
        max_length,
        overlong,
        objective=objective or BradleyTerry(),
        schema=row_schema,
        dataset_name=dataset_name,
        features=source.features,
        on_broken="raise",
    )
    if not row_schema.tokenized and preparer.encoder_for(first) is None:
        fix = "Pass one, or data with `chosen_ids` and `rejected_ids`."
        raise ConfigError("The data needs a tokenizer", fix=fix)
    report = DataReport(dataset_name, max_length, overlong, purpose, conversational=row_schema.conversational)
    filled = {"preference_prob" if name == "tie" else name for name in row_schema.optional}
    names = [*(TOKENIZED_COLUMNS if row_schema.pairs else schema.TOKENIZED_LIST_COLUMNS)]
    names += [name for name in ("margin", "preference_prob", "weight") if name in filled]
    names += ["own_starts"] * (overlong == "truncate_left" and max_length is not None)
    if isinstance(source, IterableDataset):
        return _prepare_stream(source, preparer, names, report), report
    read = {*(schema.columns_read("pairs") if row_schema.pairs else schema.READ_COLUMNS)}
    read |= {*TOKENIZED_COLUMNS, *schema.LEGACY_COLUMNS, "row"}
    prepared, kept = _prepare_table(source, preparer, names, report, num_proc)
    others = [name for name in dataset.column_names if name not in read] if keep_columns else []
    if others:
        prepared = concatenate_datasets([prepared, dataset.select_columns(others).select(kept)], axis=1)
    return prepared, report


def _open(dataset: Any, dataset_name: str) -> tuple[Dataset | IterableDataset, RowSchema, Example]:
    """Returns the columns that rows are read from, what all rows have in common, and the first row."""
    if not isinstance(dataset, Dataset | IterableDataset):
        message = f"The {dataset_name} data is a {type(dataset).__name__}, not a `Dataset` or `IterableDataset`"
        fix = "Pass one split." if isinstance(dataset, Mapping) else "Use `datasets.Dataset.from_list`, say."
        raise ConfigError(message, fix=fix)
    source = open_data(dataset, name=dataset_name, schema="none")  # whoever has the settings has chosen it
    tokenized, selected = schema.is_tokenized(source.columns), source.select(source.read_columns)
    row: dict[str, Any] | None = next(iter(selected.take(1)), None)
    if row is None:
        raise DataError("has no rows", dataset=dataset_name, fix="Pass a data set with at least one row.")
    # Reads the whole row: a stream, too, refuses a broken first row before anything starts.
    first = read_example(row, row_number=0, dataset_name=dataset_name, tokenized=tokenized)
    pairs = "response_ids" not in row if tokenized else row_kinds_in(selected, row) == {"pairs"}
    optional = frozenset({*schema.OPTIONAL_COLUMNS} & row.keys() - ({"prompt"} if tokenized else set()))
    return selected, RowSchema(tokenized, pairs, None if tokenized else first.conversational, optional), first


_COLUMNS: dict[str, tuple[Any, Callable[[PreparedRow], Any]]] = {
    "chosen_ids": (List(Value("int32")), lambda row: row.ids[0] if row.ids else []),
    "rejected_ids": (List(Value("int32")), lambda row: row.ids[1] if row.ids else []),
    "response_ids": (List(List(Value("int32"))), lambda row: [list(ids) for ids in row.ids or ()]),
    "scores": (List(Value("float64")), lambda row: list(row.label.ratings)),
    "own_starts": (List(Value("int32")), lambda row: row.own_starts),
    "margin": (Value("float64"), lambda row: row.label.margin),
    "preference_prob": (Value("float64"), lambda row: row.label.preference_prob),
    "weight": (Value("float64"), lambda row: row.label.weight),
    "row": (Value("int64"), lambda row: row.index),
    "flags": (Value("int32"), lambda row: int(row.flags)),
    "lengths": (List(Value("int32")), lambda row: row.lengths),
    "prompt": (Value("int64"), lambda row: row.prompt),
    "error": (Value("string"), lambda row: None if row.error is None else dump_error(row.error)),
}
"""Type and values of the columns of prepared rows; those from ``row`` on are for the report."""


def _prepare_batch(
    batch: Mapping[str, list[Any]], indices: Sequence[int], *, preparer: RowPreparer, features: Features, as_table: bool
) -> Any:
    """Prepares rows that are given as columns; returns them as an Arrow table, or as lists."""
    raw_rows = (dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True))
    collects = gc.isenabled()
    gc.disable()  # many rows alive at one time trigger garbage collection for nothing
    try:
        rows = preparer.prepare(raw_rows, indices)
        columns: dict[str, Any] = {name: [_COLUMNS[name][1](row) for row in rows] for name in features}
    finally:
        if collects:
            gc.enable()
    if {"chosen_ids", "preference_prob"} <= columns.keys():
        columns["preference_prob"] = [1.0 if prob is None else prob for prob in columns["preference_prob"]]
    for name in {*TOKENIZED_COLUMNS} & columns.keys():
        columns[name] = _arrow_lists(columns[name]) if as_table else [list(ids) for ids in columns[name]]
    return pa.table(columns, schema=features.arrow_schema) if as_table else columns


def _arrow_lists(ids: Sequence[Sequence[int]]) -> pa.ListArray:
    """Builds Arrow lists of 32-bit numbers without looking at every number where they are arrays."""
    offsets = np.zeros(len(ids) + 1, dtype=np.int32)
    np.cumsum([len(response) for response in ids], out=offsets[1:])
    values = b"".join((response if isinstance(response, array) else array("i", response)).tobytes() for response in ids)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.frombuffer(values, dtype=np.int32)))


def dump_error(error: DataError) -> str:
    """Writes an error as text that fits into a column."""
    return json.dumps([error.message, error.row, error.field, error.dataset, error.fix])


def load_error(text: str) -> DataError:
    """Reads an error back from the text that :func:`dump_error` wrote."""
    message, row, field, dataset, fix = json.loads(text)
    return DataError(message, row=row, field=field, dataset=dataset, fix=fix)


def _prepare_table(
    dataset: Dataset, preparer: RowPreparer, names: list[str], report: DataReport, num_proc: int | None
) -> tuple[Dataset, np.ndarray]:
    """Returns the prepared rows that are kept, and which these are."""
    prepared = _map_cached(dataset, preparer, names, num_proc)
    columns = {name: prepared.data.column(name).combine_chunks() for name in ("flags", "lengths", "prompt")}
    flags, lengths = columns["flags"].to_numpy(), columns["lengths"]
    report.lengths.add(lengths.flatten().to_numpy())
    overlong = np.flatnonzero(flags & Flag.OVERLONG)
    if report.overlong == "error" and len(overlong):
        row, row_kind = int(overlong[0]), "pairs" if "chosen_ids" in names else "scores"
        raise report.overlong_error(row, lengths[row].as_py(), len(overlong), row_kind=cast(RowKind, row_kind))
    is_kept = flags == 0
    report.rows_read = report.rows_kept = int(is_kept.sum())
    for row in np.flatnonzero(flags).tolist():
        is_kept[row] = report.add(row, int(flags[row]))
    report.check_usable()
    report.log()
    kept = np.flatnonzero(is_kept)
    report.prompts = columns["prompt"].to_numpy()[kept]
    if len(kept) < len(prepared):
        prepared = prepared.select(kept)
    return prepared.select_columns(names + ["row"] * (report.purpose == "predict")), kept


def _map_cached(dataset: Dataset, preparer: RowPreparer, names: list[str], num_proc: int | None) -> Dataset:
    features = Features({name: _COLUMNS[name][0] for name in (*names, "row", "flags", "lengths", "prompt")})
    cut = preparer.overlong if preparer.overlong.startswith("truncate") else None
    encoder = next((encoder.fingerprint() for encoder in preparer.encoders.values()), None)
    objective = cast(Objective, preparer.objective).name
    parts = [CODE_VERSION, dataset._fingerprint, encoder, preparer.max_length, cut, names, objective]
    workers = min(num_proc or 1, len(dataset) // ROWS_PER_PROCESS)
    settings: dict[str, Any] = {
        "batched": True,
        "batch_size": MAP_BATCH,
        "with_indices": True,
        "num_proc": workers if workers > 1 else None,
        "features": features,
        # The hash that `datasets` would compute changes once a tokenizer has been called.
        "new_fingerprint": hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32],
        "desc": f"Preparing the {preparer.dataset_name} data",
    }
    function = partial(_prepare_batch, preparer=preparer, features=features, as_table=True)
    try:
        return dataset.map(function, **settings)
    except OSError as error:
        logger.warning("The cache of prepared data cannot be written (%s): it is kept in memory instead.", error)
        return dataset.map(function, keep_in_memory=True, **settings)


def _prepare_stream(
    dataset: IterableDataset, preparer: RowPreparer, names: list[str], report: DataReport
) -> IterableDataset:
    report.streaming = True
    preparer.on_broken = "record"  # raised when the row is reached, not when its batch is prepared
    features = Features({name: _COLUMNS[name][0] for name in (*names, "row", "flags", "lengths", "prompt", "error")})
    gate = _StreamGate(report, names + ["row"] * (report.purpose == "predict"))
    function = partial(_prepare_batch, preparer=preparer, features=features, as_table=False)
    prepared = dataset.map(function, batched=True, batch_size=STREAM_BATCH, with_indices=True)
    # Batches of one row, not `filter`, which cannot follow a typed `map` in older releases of `datasets`.
    kept = Features({name: features[name] for name in gate.columns})
    return prepared.select_columns(list(features)).map(
        gate, batched=True, batch_size=1, remove_columns=list(features), features=kept
    )


@dataclass
class _StreamGate:
    """Raises, drops or keeps each prepared row of a stream at the moment it is read, and counts it."""

    report: DataReport
    columns: list[str]  # those that go on
    next_row: int = 0  # the first that was not counted yet

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        report, (error,), (row,) = self.report, batch["error"], batch["row"]
        (flags,), (lengths,) = batch["flags"], batch["lengths"]
        problem = None if error is None else load_error(error)
        if problem is None and report.overlong == "error" and flags & Flag.OVERLONG:
            problem = report.overlong_error(
                row, lengths, row_kind="pairs" if "chosen_ids" in self.columns else "scores"
            )
        if problem is not None:
            problem.row = problem.row if report.numbered else None
            raise as_raised_in_worker(problem)
        if row < self.next_row:
            # A later pass over the stream: these rows are counted already.
            kept = report.keeps(flags)
        else:
            self.next_row = row + 1
            report.lengths.add(lengths)
            kept = report.add(row, flags)
            if flags:
                report.log_first(flags, row)
        return {name: batch[name] if kept else [] for name in self.columns}


def as_table(stream: IterableDataset) -> Dataset:
    """Reads a prepared stream to its end; raises `DataError` for a broken row, or if there is none."""
    parts = [Dataset.from_dict(batch, features=stream.features) for batch in stream.iter(batch_size=MAP_BATCH)]
    if not parts:
        raise DataError("has no rows left", fix="Pass at least one row that is short enough, or raise `max_length`.")
    return concatenate_datasets(parts)
