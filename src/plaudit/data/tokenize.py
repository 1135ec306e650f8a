"""Prepares preference data for training: every row checked, tokenised in batches, counted, and cached."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from datasets import Dataset, Features, IterableDataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from plaudit.data.columns import (
    LEGACY_COLUMNS,
    PAIR_COLUMNS,
    RAW_COLUMNS,
    TOKENIZED_COLUMNS,
    TOKENIZED_LIST_COLUMNS,
    check_columns,
    columns_read,
    is_tokenized,
    legacy_columns,
)
from plaudit.data.encode import ConversationEncoder, Encoder, TextEncoder
from plaudit.data.formats import read_example, read_tokenized_example
from plaudit.data.forms import forms_in
from plaudit.data.report import DataReport, Flag, Overlong, Purpose
from plaudit.data.rows import RowPreparer, load_error
from plaudit.errors import ConfigError, DataError
from plaudit.objectives import BradleyTerry, Objective
from plaudit.types import Form, PreferenceExample

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
        dataset: Rows in any form that :mod:`plaudit.data.formats` reads, or already tokenised ones.
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
        of lists) and ``scores`` otherwise; and, where the source has them, ``margin``, ``strength`` (0.5 for ties)
        and ``weight``. And what was read, dropped and found suspicious. The rows of a stream are read, checked
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
        optional: Those of the columns ``margin``, ``strength``, ``tie`` and ``weight`` that rows have.
        has_prompt: Whether rows have a prompt of their own.
    """

    dataset: Dataset | IterableDataset
    first: PreferenceExample | None
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
    pairs = "response_ids" not in row if tokenized else forms_in(dataset, row) == {"pairs"}
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
    kept = _count(report, flags.to_numpy(), lengths, form="pairs" if preparer.pairs else "scores")
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


def _count(report: DataReport, flags: np.ndarray, lengths: Any, form: Form) -> np.ndarray:
    """Fill the report from the columns ``flags`` (G,) and ``lengths`` (G lists); return the rows kept."""
    report.lengths.add_all(lengths.flatten().to_numpy())
    if report.overlong == "error":
        overlong = np.flatnonzero(flags & Flag.OVERLONG)
        if len(overlong):
            row = int(overlong[0])
            raise report.overlong_error(row, lengths[row].as_py(), len(overlong), form=form)
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
    gate = _StreamGate(report, [*preparer.result_columns, *extra], form="pairs" if preparer.pairs else "scores")
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
    form: Form
    next_row: int = 0

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        kept = self._keeps({name: values[0] for name, values in batch.items()})
        return {name: batch[name] if kept else [] for name in self.columns}

    def _keeps(self, row: Mapping[str, Any]) -> bool:
        if row["error"] is not None:
            raise load_error(row["error"])
        report, number, flags, lengths = self.report, row["row"], row["flags"], row["lengths"]
        if report.overlong == "error" and flags & Flag.OVERLONG:
            raise report.overlong_error(number, lengths, form=self.form)
        if number < self.next_row:
            # A later pass over the stream: these rows are counted already.
            return report.keeps(flags)
        self.next_row = number + 1
        report.lengths.add(lengths)
        kept = report.add(number, flags)
        if flags:
            report.log_first(flags, number)
        return kept
