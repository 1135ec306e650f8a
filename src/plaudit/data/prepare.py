"""From rows to token ids: read, rendered and tokenised in batches, each row checked before any is computed."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, List, Value, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from plaudit.data.encode import CACHE_BYTES, RENDER_ERRORS, ConversationEncoder, Encoder, TextEncoder
from plaudit.data.load import prompt_of
from plaudit.data.parse import kind_of, read_example, read_flagged_example, read_tokenized_example, row_kinds_in
from plaudit.data.report import DataReport, Flag, Overlong, Purpose
from plaudit.errors import ConfigError, DataError
from plaudit.objectives import ROW_KIND_NAMES, BradleyTerry, Objective, objectives_for
from plaudit.prefix_tree import common_prefix_length
from plaudit.schema import (
    LEGACY_COLUMNS,
    PAIR_COLUMNS,
    RAW_COLUMNS,
    RESPONSE_COLUMNS,
    TOKENIZED_COLUMNS,
    TOKENIZED_LIST_COLUMNS,
    Example,
    Label,
    RowKind,
    check_columns,
    columns_read,
    comparisons_of,
    is_tokenized,
    legacy_columns,
    quoted,
    response_field,
)

CODE_VERSION = 3
"""Part of every cache key: raise it whenever the same rows would give other columns than before."""


@dataclass
class _Row:
    """One row on its way through a batch."""

    index: int
    example: Example | None = None
    row_kind: RowKind = "pairs"
    prompt: int = 0
    ids: list[Any] = field(default_factory=list)
    label: Label = field(default_factory=Label)
    flags: int = 0
    lengths: list[int] = field(default_factory=list)
    error: DataError | None = None


@dataclass(frozen=True)
class RowPreparer:
    """Turns a batch of raw rows into columns of token ids and flags.

    Attributes:
        encoder: Renders and tokenises the responses (None: the rows are tokenised already).
        conversational: What the first row was; rows of another form are refused.
        objective: What the rows are for: it decides which forms can be read.
        pairs: Whether all rows are pairs, which are written as ``chosen_ids`` and ``rejected_ids``; otherwise all
            rows are written as ``response_ids`` with ``scores``.
        optional: Those of the columns ``margin``, ``preference_prob``, ``tie`` and ``weight`` that the rows have.
        has_prompt: Whether the rows have a prompt of their own.
        max_length: Limit for one response, in tokens (None: no limit).
        overlong: The policy for over-long rows; here it matters only whether they are cut.
        dataset_name: Which data set it is.
        source_features: Types of the raw columns, where they are known.
        collect_errors: Write errors into a column ``error`` instead of raising the first of a batch.
    """

    encoder: Encoder | None
    conversational: bool
    objective: Objective
    pairs: bool
    optional: frozenset[str]
    has_prompt: bool
    max_length: int | None
    overlong: Overlong
    dataset_name: str
    source_features: Mapping[str, Any] | None = None
    collect_errors: bool = False

    @property
    def result_columns(self) -> list[str]:
        """Names of the columns that a trainer reads."""
        names = list(TOKENIZED_COLUMNS if self.pairs else TOKENIZED_LIST_COLUMNS)
        read = {"preference_prob" if name == "tie" else name for name in self.optional}
        return names + [name for name in ("margin", "preference_prob", "weight") if name in read]

    @property
    def features(self) -> Features:
        """Types of all columns that are written."""
        ids = List(Value("int32"))
        types = {"response_ids": List(ids), "scores": List(Value("float64")), "chosen_ids": ids, "rejected_ids": ids}
        columns = {name: types.get(name, Value("float64")) for name in self.result_columns}
        columns |= {"row": Value("int64"), "flags": Value("int32"), "lengths": List(Value("int32"))}
        columns["prompt"] = Value("int64")
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
        parts = [CODE_VERSION, dataset._fingerprint, encoder, self.max_length, cut, self.result_columns]
        parts.append(self.objective.name)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def to_table(self, batch: Mapping[str, list[Any]], indices: Sequence[int]) -> pa.Table:
        """Prepare rows like a call does, as an Arrow table, which is written without a look at every value.

        Args:
            batch: Raw columns.
            indices: Index of each row in the source data set.
        """
        features = self.features
        with _no_collection():
            columns: dict[str, Any] = self._prepare(batch, indices)
        for name in ("chosen_ids", "rejected_ids"):
            if name in features:
                columns[name] = _arrow_lists(columns[name])
        return pa.table({name: columns[name] for name in features}, schema=features.arrow_schema)

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
        columns = self._prepare(batch, indices)
        for name in ("chosen_ids", "rejected_ids"):
            if name in columns:
                columns[name] = [list(ids) for ids in columns[name]]
        return {name: columns[name] for name in self.features}

    def _prepare(self, batch: Mapping[str, list[Any]], indices: Sequence[int]) -> dict[str, list[Any]]:
        names = list(batch.keys())
        raw_rows = (dict(zip(names, values, strict=True)) for values in zip(*(batch[n] for n in names), strict=True))
        rows = [self._read(raw, index) for raw, index in zip(raw_rows, indices, strict=True)]
        if self.encoder is not None:
            self._encode([row for row in rows if row.error is None], self.encoder)
        for row in rows:
            if row.error is None:
                self._measure(row)
        columns: dict[str, list[Any]] = {
            "row": list(indices),
            "flags": [int(row.flags) for row in rows],
            "lengths": [row.lengths for row in rows],
            "prompt": [row.prompt for row in rows],
            "error": [None if row.error is None else dump_error(row.error) for row in rows],
            "margin": [row.label.margin for row in rows],
            "preference_prob": [row.label.preference_prob for row in rows],
            "weight": [row.label.weight for row in rows],
        }
        if self.pairs:
            columns["chosen_ids"], columns["rejected_ids"] = (
                [row.ids[place] if row.error is None else [] for row in rows] for place in (0, 1)
            )
            if "preference_prob" in self.result_columns:
                columns["preference_prob"] = [
                    1.0 if preference_prob is None else preference_prob
                    for preference_prob in columns["preference_prob"]
                ]
        else:
            columns["response_ids"] = [[list(ids) for ids in row.ids] for row in rows]
            columns["scores"] = [list(row.label.ratings) for row in rows]
        return columns

    def _read(self, raw: dict[str, Any], index: int) -> _Row:
        row = _Row(index)
        place: dict[str, Any] = {"row_number": index, "dataset_name": self.dataset_name}
        try:
            self._settle_optional(row, raw)
            row.prompt = _number_of(prompt_of(raw) if self.encoder is not None else None)
            if self.encoder is None:
                ids = read_tokenized_example(raw, **place)
                row.ids, row.label = [list(one) for one in ids.response_ids], ids.label
                row.row_kind = "pairs" if self.pairs else "scores"
                row.prompt = _number_of(row.ids[0][: common_prefix_length(row.ids)])
                row.flags = Flag.IDENTICAL if _all_equal(row.ids) else 0
            else:
                row.example, row.flags = read_flagged_example(
                    raw, conversational=self.conversational, features=self.source_features, **place
                )
                row.row_kind, row.label = row.example.row_kind, row.example.label
            self._check_readable(row, raw)
        except DataError as error:
            self._fail(row, error)
        return row

    def _check_readable(self, row: _Row, raw: Mapping[str, Any]) -> None:
        """Hold a row against the objective, which was chosen by the columns or by the first row of a stream."""
        if self.encoder is not None and row.row_kind not in self.objective.row_kinds:
            fix = f"Use another objective ({', '.join(objectives_for([row.row_kind], [])) or 'none reads it'})."
            message = f"is of the form {ROW_KIND_NAMES[row.row_kind]}, from which {self.objective.name} cannot learn"
            raise self._error(row, response_field(row.row_kind, 0).partition("[")[0], message, fix)
        if self.pairs and row.row_kind != "pairs":
            fix = "Give all rows the columns of all forms, null where a row has none, or pass a `Dataset`."
            message = (
                f"is of the form {ROW_KIND_NAMES[row.row_kind]}, but the first row is a pair and has no such columns"
            )
            raise self._error(row, response_field(row.row_kind, 0).partition("[")[0], message, fix)
        if row.row_kind == "pairs" and raw.get("tie") and "tie" not in self.objective.columns:
            fix = f"Use another objective ({' or '.join(objectives_for([row.row_kind], ['tie']))}), or drop the row."
            raise self._error(row, "tie", f"is true, and {self.objective.name} knows no ties", fix)
        problem = self.objective.problem(row.label)
        if problem is not None:
            raise self._error(row, *problem)
        scores = row.label.ratings
        tied = self.objective.learns_ties and len(scores) > 1
        if self.objective.compares and not tied and not comparisons_of(scores):
            row.flags |= Flag.NOTHING_TO_COMPARE

    def _settle_optional(self, row: _Row, raw: dict[str, Any]) -> None:
        """Hold a row to the optional columns of the first one.

        A stream without declared types fills a batch with null wherever a row lacks a column, and so does a table
        whose rows have several forms.
        """
        for column in ("margin", "preference_prob", "tie", "weight", "prompt"):
            if column in self.optional or (column == "prompt" and self.has_prompt):
                raw.setdefault(column, None)
                if not self.pairs and column in (*PAIR_COLUMNS, "weight") and raw[column] is None:
                    raw.pop(column)
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
        examples = [cast(Example, row.example) for row in rows]
        try:
            texts = encoder.render(examples)
        except ConfigError:
            raise
        except RENDER_ERRORS:
            # The batch does not say which of its rows was refused: take them one by one.
            texts = [self._render_alone(row, encoder) for row in rows]
        ids = iter(encoder.tokenize_compactly([text for responses in texts for text in responses]))
        for row, responses in zip(rows, texts, strict=True):
            if row.error is None:
                row.ids = [next(ids) for _ in responses]
                self._check_not_empty(row)

    def _render_alone(self, row: _Row, encoder: Encoder) -> list[str]:
        """Render one row; [] where the template refuses one of its responses."""
        example = cast(Example, row.example)
        texts: list[str] = []
        for index, response in enumerate(example.responses):
            try:
                texts += encoder.render([replace(example, responses=(response,))])[0]
            except RENDER_ERRORS as error:
                message = f"the chat template refuses it: {type(error).__name__}: {error}"
                fix = "Change or drop the row, or use a chat template that accepts such conversations."
                self._fail(row, self._error(row, response_field(row.row_kind, index), message, fix))
                return []
        return texts

    def _check_not_empty(self, row: _Row) -> None:
        for index, ids in enumerate(row.ids):
            if not ids:
                fix = "Drop the row, or use a chat template that prints something for it."
                self._fail(row, self._error(row, response_field(row.row_kind, index), "has no tokens", fix))

    def _measure(self, row: _Row) -> None:
        row.lengths = [len(ids) for ids in row.ids]
        excess = max(row.lengths) - self.max_length if self.max_length is not None else 0
        if excess > 0:
            row.flags |= Flag.OVERLONG
            if self.overlong == "truncate_left":
                row.ids = [ids[min(excess, len(ids) - 1) :] for ids in row.ids]
            elif self.overlong == "truncate_right":
                row.ids = [ids[: self.max_length] for ids in row.ids]
        if not row.flags & Flag.IDENTICAL and _all_equal(row.ids):
            row.flags |= Flag.SAME_RENDERING


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Put off the search for unreachable objects: many rows alive at one time set it off for nothing."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _arrow_lists(ids: Sequence[Sequence[int]]) -> pa.ListArray:
    """Lists of 32-bit numbers as Arrow lists, without a look at every number where they are arrays."""
    offsets = np.zeros(len(ids) + 1, dtype=np.int32)
    np.cumsum([len(one) for one in ids], out=offsets[1:])
    values = b"".join((one if isinstance(one, array) else array("i", one)).tobytes() for one in ids)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.frombuffer(values, dtype=np.int32)))


def _number_of(prompt: Any) -> int:
    """A number that stands for a prompt: equal prompts have equal ones."""
    text = json.dumps(prompt, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def _all_equal(ids: Sequence[Sequence[int]]) -> bool:
    return len(ids) > 1 and all(one == ids[0] for one in ids)


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


logger = logging.getLogger("plaudit")
MAP_BATCH = 1000
ROWS_PER_PROCESS = 2000
"""Fewer rows than that cost less than starting a process for them."""
STREAM_BATCH = 64
_OWN_COLUMNS = {*TOKENIZED_COLUMNS, *LEGACY_COLUMNS, "row"}


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
    """Read, check and tokenise preference data.

    Args:
        dataset: Rows in any form that :mod:`plaudit.data.parse` reads, or already tokenised ones.
        tokenizer: Tokenises the responses; it is copied, not changed. Tokenised rows need none.
        max_length: Limit for one response with its prompt, in tokens (None: no limit).
        overlong: What happens to a row with a longer response. ``"drop"`` leaves it out, ``"error"`` raises,
            ``"truncate_right"`` cuts each response at ``max_length``. ``"truncate_left"`` takes the same
            number of leading tokens from all responses of a row, as many as the longest has too many, so
            that they go on sharing what is left of their prompt; a response no longer than that keeps its
            last token only.
        dataset_name: Which data set it is, for messages.
        purpose: ``"train"`` drops rows with identical responses; ``"eval"`` and ``"predict"`` keep them;
            ``"predict"`` adds the column ``row``, the row's index in ``dataset``.
        num_proc: Most worker processes (None: this process; a stream is always read in one). There are fewer where
            each would have less than `ROWS_PER_PROCESS` rows.
        keep_columns: Keep the columns that preferences are not read from (of a table; those of a stream go).
        objective: What the rows are for (None: Bradley-Terry); it decides which forms can be read.

    Returns:
        The prepared data set: ``chosen_ids`` and ``rejected_ids`` where all rows are pairs, ``response_ids`` (lists
        of lists) and ``scores`` otherwise; and, where the source has them, ``margin``, ``preference_prob`` (0.5 for
        ties) and ``weight``. And what was read, dropped and found suspicious. The rows of a stream are read, checked
        and counted as they are asked for; row numbers count them in the order in which the stream gives them.

    Raises:
        DataError: A row cannot be read, the data set is empty, or nothing is left of it.
        ConfigError: The settings or the tokenizer do not suit the data.
    """
    _check_settings(max_length, overlong, purpose)
    source = _open(dataset, dataset_name)
    encoder = _make_encoder(source, tokenizer)
    preparer = RowPreparer(
        encoder=encoder,
        conversational=source.first is not None and source.first.conversational,
        objective=objective or BradleyTerry(),
        pairs=source.pairs,
        optional=source.optional,
        has_prompt=source.has_prompt,
        max_length=max_length,
        overlong=overlong,
        dataset_name=dataset_name,
        source_features=source.dataset.features,
    )
    report = DataReport(dataset_name, max_length, overlong, purpose)
    if isinstance(source.dataset, IterableDataset):
        return _prepare_stream(source.dataset, preparer, report), report
    own = _OWN_COLUMNS | {*(columns_read("pairs") if source.pairs else (*RAW_COLUMNS, *TOKENIZED_LIST_COLUMNS))}
    others = dataset.remove_columns(sorted({*dataset.column_names} & own)) if keep_columns else None
    return _prepare_table(source.dataset, preparer, report, num_proc, others), report


def as_table(stream: IterableDataset) -> Dataset:
    """Read a prepared stream to its end.

    Args:
        stream: What `prepare_dataset` made of a stream.

    Raises:
        DataError: A row cannot be read, or there is none.
    """
    parts = [Dataset.from_dict(batch, features=stream.features) for batch in stream.iter(batch_size=MAP_BATCH)]
    if not parts:
        raise DataError("has no rows left", fix="Pass at least one row that is short enough, or raise `max_length`.")
    return concatenate_datasets(parts)


def _check_settings(max_length: int | None, overlong: str, purpose: str) -> None:
    if max_length is not None and max_length <= 0:
        fix = "Set it to at least 1 token, or to None for no limit."
        raise ConfigError(f"`max_length` is {max_length}", fix=fix)
    for name, value, known in (
        ("overlong", overlong, ("drop", "truncate_left", "truncate_right", "error")),
        ("purpose", purpose, ("train", "eval", "predict")),
    ):
        if value not in known:
            raise ConfigError(f"`{name}` is {value!r}", fix=f"Set it to one of {', '.join(map(repr, known))}.")


@dataclass(frozen=True)
class _Source:
    """A data set whose columns are known to be there, and what its first row shows.

    Attributes:
        dataset: Legacy columns renamed, rows as plain Python values.
        first: The first row (None: the data is tokenised already).
        pairs: Whether all rows are pairs.
        optional: Those of the columns ``margin``, ``preference_prob``, ``tie`` and ``weight`` that rows have.
        has_prompt: Whether rows have a prompt of their own.
    """

    dataset: Dataset | IterableDataset
    first: Example | None
    pairs: bool
    optional: frozenset[str]
    has_prompt: bool


def _open(dataset: Dataset | IterableDataset, dataset_name: str) -> _Source:
    _check_type(dataset, dataset_name)
    dataset = dataset.with_format(None)
    declared = dataset.column_names
    row = _first_row(dataset, dataset_name) if not declared else {}
    renames = legacy_columns(declared or row)
    if renames:
        dataset = dataset.rename_columns(renames)
    names = [renames.get(name, name) for name in declared or row]
    check_columns(names, dataset_name)
    tokenized = is_tokenized(names)
    if declared:
        ids = {*TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS, *PAIR_COLUMNS, "weight"}
        wanted = ids if tokenized else set(RAW_COLUMNS)
        dataset = dataset.select_columns([name for name in names if name in wanted])
        row = _first_row(dataset, dataset_name)
    row = {renames.get(name, name): value for name, value in row.items()}
    # Reads the whole row: a stream, too, refuses a broken first row before anything starts.
    first = None
    if tokenized:
        read_tokenized_example(row, row_number=0, dataset_name=dataset_name)
    else:
        first = read_example(row, row_number=0, dataset_name=dataset_name)
    pairs = "response_ids" not in row if tokenized else row_kinds_in(dataset, row) == {"pairs"}
    optional = frozenset({*PAIR_COLUMNS, "weight"} & row.keys())
    return _Source(dataset, first, pairs, optional, has_prompt="prompt" in row and not tokenized)


def _check_type(dataset: object, dataset_name: str) -> None:
    if not isinstance(dataset, (Dataset, IterableDataset)):
        message = f"The {dataset_name} data is a {type(dataset).__name__}, not a `Dataset` or `IterableDataset`"
        fix = "Pass one split." if isinstance(dataset, Mapping) else "Use `datasets.Dataset.from_list`, say."
        raise ConfigError(message, fix=fix)


def _first_row(dataset: Dataset | IterableDataset, dataset_name: str) -> dict[str, Any]:
    for row in dataset.take(1):
        return cast(dict[str, Any], row)
    raise DataError("has no rows", dataset=dataset_name, fix="Pass a data set with at least one row.")


def _make_encoder(source: _Source, tokenizer: PreTrainedTokenizerBase | None) -> Encoder | None:
    if source.first is None:
        return None
    if tokenizer is None:
        fix = "Pass one, or data with `chosen_ids` and `rejected_ids`."
        raise ConfigError("The data needs a tokenizer", fix=fix)
    encoder = ConversationEncoder(tokenizer) if source.first.conversational else TextEncoder(tokenizer)
    encoder.check(source.first)
    return encoder


def _prepare_table(
    dataset: Dataset, preparer: RowPreparer, report: DataReport, num_proc: int | None, others: Dataset | None
) -> Dataset:
    prepared = _map_cached(dataset, preparer, num_proc)
    flags, lengths = (prepared.data.column(name).combine_chunks() for name in ("flags", "lengths"))
    kept = _count(report, flags.to_numpy(), lengths, row_kind="pairs" if preparer.pairs else "scores")
    report.check_usable()
    report.log()
    report.prompts = prepared.data.column("prompt").to_numpy()[kept]
    if len(kept) < len(prepared):
        prepared = prepared.select(kept)
    extra = ["row"] if report.purpose == "predict" else []
    prepared = prepared.select_columns([*preparer.result_columns, *extra])
    if others is None or not others.column_names:
        return prepared
    return concatenate_datasets([prepared, others.select(kept)], axis=1)


def _map_cached(dataset: Dataset, preparer: RowPreparer, num_proc: int | None) -> Dataset:
    settings: dict[str, Any] = {
        "batched": True,
        "batch_size": MAP_BATCH,
        "with_indices": True,
        "num_proc": _worth_starting(num_proc, len(dataset)),
        "features": preparer.features,
        # The hash that `datasets` would compute changes once a tokenizer has been called.
        "new_fingerprint": preparer.fingerprint(dataset),
        "desc": f"Preparing the {preparer.dataset_name} data",
    }
    try:
        return dataset.map(preparer.to_table, **settings)
    except OSError as error:
        logger.warning("The cache of prepared data cannot be written (%s): it is kept in memory instead.", error)
        return dataset.map(preparer.to_table, keep_in_memory=True, **settings)


def _worth_starting(num_proc: int | None, rows: int) -> int | None:
    """How many of so many processes pay off; None for the one that is running."""
    worth = min(num_proc or 1, rows // ROWS_PER_PROCESS)
    return worth if worth > 1 else None


def _count(report: DataReport, flags: np.ndarray, lengths: Any, row_kind: RowKind) -> np.ndarray:
    """Fill the report from the columns ``flags`` (G,) and ``lengths`` (G lists); return the rows kept."""
    report.lengths.add_all(lengths.flatten().to_numpy())
    if report.overlong == "error":
        overlong = np.flatnonzero(flags & Flag.OVERLONG)
        if len(overlong):
            row = int(overlong[0])
            raise report.overlong_error(row, lengths[row].as_py(), len(overlong), row_kind=row_kind)
    kept = np.ones(len(flags), dtype=bool)
    for row in np.flatnonzero(flags).tolist():
        kept[row] = report.add(row, int(flags[row]))
    unflagged = int((flags == 0).sum())
    report.rows_read += unflagged
    report.rows_kept += unflagged
    return np.flatnonzero(kept)


def _prepare_stream(dataset: IterableDataset, preparer: RowPreparer, report: DataReport) -> IterableDataset:
    report.streaming = True
    preparer = replace(preparer, collect_errors=True)
    every = list(preparer.features)
    extra = ["row"] if report.purpose == "predict" else []
    gate = _StreamGate(report, [*preparer.result_columns, *extra], row_kind="pairs" if preparer.pairs else "scores")
    prepared = dataset.map(preparer, batched=True, batch_size=STREAM_BATCH, with_indices=True)
    # Batches of one row, not `filter`, which cannot follow a typed `map` in older releases of `datasets`.
    return prepared.select_columns(every).map(
        gate,
        batched=True,
        batch_size=1,
        remove_columns=every,
        features=Features({name: preparer.features[name] for name in gate.columns}),
    )


@dataclass
class _StreamGate:
    """Raises, drops or keeps each prepared row of a stream at the moment it is read, and counts it.

    Attributes:
        report: Where rows are counted.
        columns: The columns that go on.
        form: Form of the rows, for messages.
        next_row: Index of the first row that was not counted yet.
    """

    report: DataReport
    columns: list[str]
    row_kind: RowKind
    next_row: int = 0

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        kept = self._keeps({name: values[0] for name, values in batch.items()})
        return {name: batch[name] if kept else [] for name in self.columns}

    def _keeps(self, row: Mapping[str, Any]) -> bool:
        if row["error"] is not None:
            raise load_error(row["error"])
        report, number, flags, lengths = self.report, row["row"], row["flags"], row["lengths"]
        if report.overlong == "error" and flags & Flag.OVERLONG:
            raise report.overlong_error(number, lengths, row_kind=self.row_kind)
        if number < self.next_row:
            # A later pass over the stream: these rows are counted already.
            return report.keeps(flags)
        self.next_row = number + 1
        report.lengths.add(lengths)
        kept = report.add(number, flags)
        if flags:
            report.log_first(flags, number)
        return kept


Shape: TypeAlias = Literal["one", "list", "pair"]
"""What comes back for a row: one reward, a list of them, or those of ``chosen`` and ``rejected``."""
Score: TypeAlias = float | list[float] | tuple[float, float]
"""Rewards of a row, shaped like the row."""
_SINGLE = ("response", "completion", "messages")
"""Columns that hold one response, the first that is filled in counts."""
_SUSPICIOUS = Flag.EMPTY_RESPONSE | Flag.LAST_MESSAGE_NOT_ASSISTANT
_FIX = (
    "Give a text, a list of messages, or a mapping with `response`, `responses`, or `chosen` and `rejected`, and maybe "
    "`prompt`, `tools` and `chat_template_kwargs`."
)


@dataclass(frozen=True)
class ReadRow:
    """One row, read.

    Attributes:
        number: Its index among the rows, counted from 0.
        shape: What comes back for it.
        example: Its responses (None: they are tokenised already).
        ids: Token ids of its responses, where the row brought them.
        fields: Where each response is in the row, for messages.
        flags: Sum of the values of what is suspicious, a :class:`~plaudit.data.report.Flag`.
    """

    number: int
    shape: Shape
    example: Example | None
    ids: tuple[Sequence[int], ...]
    fields: tuple[str, ...]
    flags: int = 0


def is_one_row(rows: Any) -> bool:
    """Whether something is a single row rather than several: a text, a mapping, or one conversation.

    Args:
        rows: What was passed in.

    >>> is_one_row("a text"), is_one_row([{"role": "user", "content": "Hi"}]), is_one_row([{"response": "Hi"}])
    (True, True, False)
    """
    if isinstance(rows, list | tuple) and rows:
        return all(isinstance(one, Mapping) and "role" in one for one in rows)
    return isinstance(rows, str | Mapping)


def read_row(row: Any, number: int, features: Mapping[str, Any] | None = None) -> ReadRow:
    """Read one row; what it says about its responses does not matter, and is not looked at.

    Args:
        row: A text, a conversation, or a mapping of columns.
        number: Its index among the rows, counted from 0.
        features: Types of the columns as `datasets` declares them, where known.

    Raises:
        DataError: It cannot be read.

    >>> read_row({"prompt": "2+2=", "responses": ["4", "5"], "scores": None}, 0).example.responses
    ('2+2=4', '2+2=5')
    """
    if isinstance(row, str | list | tuple):
        row = {"messages": row}
    if not isinstance(row, Mapping):
        raise DataError(f"is {kind_of(row)}, nothing that can be scored", row=number, fix=_FIX)
    filled = {name for name, value in row.items() if value is not None}
    if set(TOKENIZED_COLUMNS) <= filled:
        pair = {name: row[name] for name in TOKENIZED_COLUMNS}
        ids = read_tokenized_example(pair, row_number=number).response_ids
        return ReadRow(number, "pair", None, ids, TOKENIZED_COLUMNS)
    if "response_ids" in filled:
        ids = read_tokenized_example(_with_scores(row, "response_ids"), row_number=number).response_ids
        return ReadRow(number, "list", None, ids, tuple(f"response_ids[{n}]" for n in range(len(ids))))
    if filled & set(RESPONSE_COLUMNS):
        return _read(row, {name: row.get(name) for name in RESPONSE_COLUMNS}, number, "pair", features)
    if "responses" in filled:
        return _read(row, _with_scores(row, "responses"), number, "list", features)
    single = next((name for among in (filled, row) for name in _SINGLE if name in among), None)
    if single is None:
        raise DataError(
            f"holds nothing to score; it has {quoted(map(str, row)) if row else 'no columns'}", row=number, fix=_FIX
        )
    return _read(row, {"response": row[single], "score": 0.0}, number, "one", features, single)


def shape_of(row: Any) -> tuple[Shape, int]:
    """What comes back for a row, and for how many responses, also where the row cannot be read.

    Args:
        row: What was passed in.

    >>> shape_of({"chosen": None, "rejected": "b"}), shape_of({"responses": ["a", None]}), shape_of(3)
    (('pair', 2), ('list', 2), ('one', 1))
    """
    if isinstance(row, Mapping):
        if any(row.get(name) is not None for name in RESPONSE_COLUMNS + TOKENIZED_COLUMNS):
            return "pair", 2
        for name in ("response_ids", "responses"):
            if row.get(name) is not None:
                return "list", len(row[name]) if isinstance(row[name], list | tuple) else 0
    return "one", 1


def _with_scores(row: Mapping[str, Any], column: str) -> dict[str, Any]:
    values = row[column]
    return {column: values, "scores": [0.0] * len(values) if isinstance(values, list | tuple) else None}


def _read(
    row: Mapping[str, Any],
    responses: dict[str, Any],
    number: int,
    shape: Shape,
    features: Mapping[str, Any] | None,
    single: str = "response",
) -> ReadRow:
    """Read the responses, with those of the row's other columns that belong to them."""
    # Messages are the whole conversation, whatever else a data set keeps beside them.
    beside = ("tools", "chat_template_kwargs") if single == "messages" else ("prompt", "tools", "chat_template_kwargs")
    raw = {**{name: row[name] for name in beside if name in row}, **responses}
    if features is not None and single in features:
        features = {**features, "response": features[single]}
    try:
        example, flags = read_flagged_example(raw, row_number=number, features=features)
    except DataError as error:
        if shape != "one" or not (error.field or "").startswith("response"):
            raise
        place = single + str(error.field).removeprefix("response")
        raise DataError(error.message, row=number, field=place, fix=error.fix) from None
    count = len(example.responses)
    row_kind = example.row_kind
    fields = (single,) if shape == "one" else tuple(response_field(row_kind, index) for index in range(count))
    return ReadRow(number, shape, example, (), fields, flags & _SUSPICIOUS)


ScoringOverlong: TypeAlias = Literal["error", "truncate_left", "truncate_right", "nan"]
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
    overlong: ScoringOverlong
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

    def _encoder(self, conversational: bool, example: Example) -> Encoder:
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
