"""Mixes several data sets into one: columns brought to one form, and a word on how many rows came from where."""

from __future__ import annotations

import dataclasses
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, Json, List, Value, concatenate_datasets

from plaudit.data.load import load_preference_dataset, split_by_prompt
from plaudit.data.parse import read_example, without_nulls
from plaudit.errors import ConfigError, DataError
from plaudit.schema import (
    PAIR_COLUMNS,
    RAW_COLUMNS,
    RESPONSE_COLUMNS,
    TOKENIZED_COLUMNS,
    TOKENIZED_LIST_COLUMNS,
    check_columns,
    columns_read,
    is_tokenized,
    legacy_columns,
    quoted,
    row_kind_of,
)

JSON_TEXTS = ("tools", "chat_template_kwargs")
"""Columns that hold JSON text where parts differ in how they write it."""


@dataclass(frozen=True)
class DatasetPart:
    """One data set of a mixture.

    Attributes:
        path: A file, a folder, or the name of a data set on the Hub, as for `load_preference_dataset`.
        name: Configuration of a data set on the Hub.
        data_dir: Folder inside the data set.
        data_files: Files inside the data set.
        split: Which split, also with a slice.
        columns: The columns to take (default: all), as a list, or as a mapping from their names to new ones.
        fraction: Share of this part in the mixture: of all parts, or of none. Shares are scaled to sum to 1, and
            the mixture is as large as it can be without using a row twice.
        rows: Take this many rows. Which ones is decided by the seed; of a stream, the first.
    """

    path: str
    name: str | None = None
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, Any] | None = None
    split: str = "train"
    columns: list[str] | dict[str, str] | None = None
    fraction: float | None = None
    rows: int | None = None


@dataclass(frozen=True)
class OpenedPart:
    """A part whose columns and first row are checked.

    Attributes:
        spec: What was asked for.
        label: Short name, different from those of the other parts.
        dataset: Its rows.
        columns: The columns that are read.
        form: Form of the first row: ``"text"``, ``"messages"`` or ``"ids"``.
    """

    spec: DatasetPart
    label: str
    dataset: Any
    columns: tuple[str, ...]
    form: str


def labels_of(parts: Sequence[DatasetPart]) -> list[str]:
    """Short names of the parts, each different."""
    files = [part.data_files if isinstance(part.data_files, str) else None for part in parts]
    names = [
        f"{part.path}{f' ({part.name})' if part.name else ''}{f' {file}' if file else ''}"
        for part, file in zip(parts, files, strict=True)
    ]
    return [f"{name} (part {number})" if names.count(name) > 1 else name for number, name in enumerate(names, start=1)]


def open_part(part: DatasetPart, label: str, streaming: bool) -> OpenedPart:
    """Load a part, take its columns, and read its first row.

    Args:
        part: What is asked for.
        label: What it is called in messages.
        streaming: Read row by row instead of all at once.

    Raises:
        DataError: It cannot be loaded, lacks a column, or its first row cannot be read.
    """
    dataset: Any = load_preference_dataset(
        part.path,
        config=part.name,
        split=part.split,
        streaming=streaming,
        data_dir=part.data_dir,
        data_files=part.data_files,
    ).with_format(None)
    dataset, names = _take_columns(dataset, part, label)
    renames = legacy_columns(names)
    if renames:
        dataset = dataset.rename_columns(renames)
        names = [renames.get(name, name) for name in names]
    check_columns(names, label)
    tokenized = is_tokenized(names)
    wanted: Sequence[str] = (*TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS, *PAIR_COLUMNS, "weight")
    if not tokenized:
        wanted = columns_read(row_kind_of(next(iter(dataset.take(1)), {})))
    columns = tuple(name for name in names if name in wanted)
    if dataset.column_names:
        dataset = dataset.select_columns(list(columns))
    elif not tokenized and part.columns is None:
        # A stream that names no columns: its first row may lack what is optional.
        columns += tuple(name for name in JSON_TEXTS if name not in columns)
    first = next(iter(dataset.take(1)), None)
    if first is None:
        raise DataError("has no rows", dataset=label, fix="Take the part out of the mixture.")
    example = read_example(first, row_number=0, dataset_name=label, tokenized=tokenized)
    form = "ids" if tokenized else "messages" if example.conversational else "text"
    return OpenedPart(part, label, dataset, columns, form)


def _take_columns(dataset: Any, part: DatasetPart, label: str) -> tuple[Any, list[str]]:
    names = list(dataset.column_names or next(iter(dataset.take(1)), {}))
    if part.columns is None:
        return dataset, names
    missing = [name for name in part.columns if name not in names]
    if missing:
        raise DataError(
            f"has no column {quoted(missing)}, which `columns` asks for",
            dataset=label,
            fix=f"Its columns are {quoted(names)}.",
        )
    dataset = dataset.select_columns(list(part.columns))
    if not isinstance(part.columns, dict):
        return dataset, part.columns
    new_names = list(part.columns.values())
    if len(set(new_names)) < len(new_names):
        raise ConfigError(f"`columns` of {label} gives two columns one name", fix="Give each its own.")
    renames = {old: new for old, new in part.columns.items() if old != new}
    return (dataset.rename_columns(renames) if renames else dataset), new_names


def check_one_form(parts: Sequence[OpenedPart]) -> None:
    """Refuse parts that do not go together: plain text with conversations, token ids with either.

    Args:
        parts: All parts of the mixture.

    Raises:
        DataError: A part differs from the first.
    """
    words = {"text": "plain text", "messages": "a list of messages"}
    first = parts[0]
    for part in parts[1:]:
        if part.form == first.form:
            continue
        if "ids" in (part.form, first.form):
            message = f"has {quoted(part.columns)}, but {first.label} has {quoted(first.columns)}"
            raise DataError(message, dataset=part.label, fix="Mix tokenised data with tokenised data only.")
        raise DataError(
            f"is {words[part.form]}, but in {first.label} it is {words[first.form]}",
            dataset=part.label,
            field="chosen",
            fix="Mix parts of one form, or turn plain text into messages first.",
        )
    for part in parts:
        feature = (part.dataset.features or {}).get("margin")
        if feature is not None and not str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float")):
            fix = "Give every row a finite number, or leave the column out with `columns`."
            raise DataError(f"is of type {feature}, not a number", dataset=part.label, field="margin", fix=fix)


logger = logging.getLogger("plaudit")
PART, PART_ROW = "part", "part_row"
"""Columns that a mixture adds: the name of the part a row is from, and its index there."""
_DEFAULTS: dict[str, tuple[Any, str]] = {
    "margin": (0.0, "margins"),
    "preference_prob": (1.0, "preference_probs"),
    "weight": (1.0, "weights"),
    "tie": (False, "ties"),
}
"""What rows get that lack a column which other parts have, and what such values are called."""
_WHOLE = (*RESPONSE_COLUMNS, "response")


def load_mixture(
    parts: Sequence[DatasetPart], *, streaming: bool = False, eval_fraction: float | None = None, seed: int = 0
) -> tuple[Dataset | IterableDataset, Dataset | None]:
    """Load several data sets as one.

    All parts hold one form: plain text, messages or token ids. Prompts may be a column of their own in some parts
    only; a part without margins beside one with them gets margins of 0. Rows come part after part; those of streams
    take turns. Other columns than those of preferences are left out, and `PART` and `PART_ROW` (not for streams) say
    where a row is from.

    Args:
        parts: At least one.
        streaming: Read row by row instead of all at once.
        eval_fraction: Set this share of the rows aside, by prompt, over all parts.
        seed: Decides which rows are taken and which are set aside.

    Returns:
        The mixture, and the rows set aside from it, if any are.

    Raises:
        DataError: A part cannot be loaded, or does not go together with the first; the message names it.
        ConfigError: The shares or counts asked for cannot be had.
    """
    if not parts:
        raise ConfigError("`datasets` is empty", fix="Name at least one data set, or give `dataset_name`.")
    if streaming and eval_fraction is not None:
        raise ConfigError("a stream cannot be split", fix="Leave out `eval_fraction`, or do not stream.")
    _check_shares(parts)
    labels = labels_of(parts)
    loaded = [open_part(part, label, streaming) for part, label in zip(parts, labels, strict=True)]
    check_one_form(loaded)
    known = dict.fromkeys((*RAW_COLUMNS, *TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS))
    names = [name for name in known if any(name in one.columns for one in loaded)]
    for name, (value, words) in _DEFAULTS.items():
        lack = [one for one in loaded if name in names and name not in one.columns]
        # What pairs may say is never read from the other forms.
        without = [one.label for one in lack if name == "weight" or {"chosen", "chosen_ids"} & set(one.columns)]
        if without:
            logger.warning("Mixture: %s: without %s, which are taken as %s.", ", ".join(without), words, value)
    explicit = {one.label: "prompt" in one.columns for one in loaded}
    folds = len(set(explicit.values())) > 1
    if streaming:
        return _mix_streams(loaded, names, folds), None
    target = _common_features(loaded, names, folds)
    chosen = _choose_rows(loaded, seed)
    mixture = concatenate_datasets([_align(one, target) for one in chosen])
    mixture, held_out = (mixture, None) if eval_fraction is None else split_by_prompt(mixture, eval_fraction, seed=seed)
    if not folds:
        return mixture, held_out
    # Only now: texts with their prompts in front no longer tell which rows share one.
    fold = _Fold(explicit)
    return _map(mixture, fold), None if held_out is None else _map(held_out, fold)


def located(error: DataError, dataset: Any) -> DataError:
    """Name the part of a mixture, and the row there, in an error about a row of the mixture.

    Args:
        error: What a row of `dataset` raised.
        dataset: What `load_mixture` returned; for anything else the error is returned as it is.
    """
    if not isinstance(dataset, Dataset) or PART_ROW not in dataset.column_names or error.row is None:
        return error
    row = dataset.select_columns([PART, PART_ROW])[error.row]
    return DataError(error.message, row=row[PART_ROW], field=error.field, dataset=row[PART], fix=error.fix)


# --- which rows ---------------------------------------------------------------------------------------------


def _check_shares(parts: Sequence[DatasetPart]) -> None:
    shares = [part.fraction is not None for part in parts]
    if any(shares) and not all(shares):
        raise ConfigError(
            "`datasets`: some parts have a `fraction` and others none",
            fix="Give all parts a `fraction`, or none; `rows` can stand in single parts.",
        )


def _choose_rows(parts: Sequence[OpenedPart], seed: int) -> list[OpenedPart]:
    """Mark each row with its place and take as many as asked for, in their order."""
    available = [len(part.dataset) for part in parts]
    counts = [
        length if part.spec.rows is None else part.spec.rows for part, length in zip(parts, available, strict=True)
    ]
    for part, length, count in zip(parts, available, counts, strict=True):
        if count > length:
            raise DataError(f"has {length:,} rows, not {count:,}", dataset=part.label, fix="Lower `rows`.")
    shares = [part.spec.fraction for part in parts if part.spec.fraction is not None]
    if shares:
        whole = sum(shares)
        total = min(length * whole / share for length, share in zip(available, shares, strict=True))
        counts = [min(length, round(share / whole * total)) for length, share in zip(available, shares, strict=True)]
    result = []
    for number, (part, length, count) in enumerate(zip(parts, available, counts, strict=True)):
        if count == 0:
            fix = "Raise its `fraction`, or take the part out."
            raise ConfigError(f"no row of {part.label} would be in the mixture", fix=fix)
        dataset = part.dataset.add_column(PART, [part.label] * length).add_column(PART_ROW, np.arange(length))
        if count < length:
            dataset = dataset.select(sorted(random.Random(f"{seed} {number}").sample(range(length), count)))
        result.append(dataclasses.replace(part, dataset=dataset))
    texts = [
        f"{count:,} {'rows' if count == length else f'of {length:,} rows'} from {part.label}"
        for part, count, length in zip(parts, counts, available, strict=True)
    ]
    logger.info("Mixture of %s rows: %s.", f"{sum(counts):,}", ", ".join(texts))
    return result


# --- columns of one form ------------------------------------------------------------------------------------


def _common_features(parts: Sequence[OpenedPart], names: Sequence[str], folds: bool) -> Features:
    """Types that hold every part's values: the parts' own where they agree."""
    found = {name: [part.dataset.features[name] for part in parts if name in part.dataset.features] for name in names}
    same = {name: all(one == features[0] for one in features) for name, features in found.items()}
    # Whole numbers may stay what they are only where no part gets a default such as 0.0.
    same |= {name: same[name] and len(found[name]) == len(parts) for name in _DEFAULTS if name in same}
    answers = [one for name in _WHOLE for one in found.get(name, [])]
    answers += [getattr(one, "feature", one) for one in found.get("responses", [])]
    if folds and not all(one == answers[0] for one in [*answers, *found["prompt"]]):
        same |= dict.fromkeys(("prompt", "responses", *_WHOLE), False)
    ids = parts[0].form == "ids"
    # A column that holds several kinds of values is JSON already: reading its rows will say which one is broken.
    mixed = parts[0].form == "messages" or any(isinstance(one, Json) for name in found for one in found[name])
    general: dict[str, Any] = {
        **dict.fromkeys(("prompt", *_WHOLE), Json() if mixed else Value("string")),
        "responses": Json() if mixed else List(Value("string")),
        **dict.fromkeys(TOKENIZED_COLUMNS, Json() if ids and mixed else List(Value("int64"))),
        "response_ids": List(List(Value("int64"))),
        **dict.fromkeys(JSON_TEXTS, Value("string")),
        **dict.fromkeys(("margin", "preference_prob", "weight", "score"), Value("float64")),
        **dict.fromkeys(("tie", "label"), Value("bool")),
        **dict.fromkeys(("scores", "ranks"), List(Value("float64"))),
    }
    if any(not isinstance(one, List) for one in found.get("scores", [])):
        general["scores"] = Json()  # numbers of single responses beside lists
    chosen = {name: found[name][0] if same[name] else general[name] for name in names}
    return Features({**chosen, PART: Value("string"), PART_ROW: Value("int64")})


@dataclass(frozen=True)
class _Aligner:
    """Gives a row of one part the columns of the mixture.

    Attributes:
        columns: Columns of the mixture.
        own: Columns of the part.
        features: Their types, where known.
        texts: Columns whose mappings and lists become JSON text.
    """

    columns: tuple[str, ...]
    own: tuple[str, ...]
    features: Mapping[str, Any]
    texts: tuple[str, ...]

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self._value(row, name) for name in self.columns}

    def _value(self, row: Mapping[str, Any], name: str) -> Any:
        if name not in self.own:
            return row.get(name, _DEFAULTS.get(name, (None,))[0])
        value = without_nulls(row.get(name), self.features.get(name))
        if name in self.texts and value is not None and not isinstance(value, str):
            return json.dumps(value, ensure_ascii=False)
        return value


def _align(part: OpenedPart, target: Features) -> Dataset:
    if part.dataset.features == target:
        return part.dataset.select_columns(list(target))
    texts = tuple(name for name in JSON_TEXTS if target.get(name) == Value("string"))
    aligner = _Aligner(tuple(target), part.columns, part.dataset.features, texts)
    return _map(part.dataset, aligner, target)


def _map(dataset: Dataset, function: Any, features: Features | None = None) -> Dataset:
    settings: dict[str, Any] = {"features": features, "desc": "Mixing the data"}
    if features is None:
        kept = {name: kind for name, kind in dataset.features.items() if name != "prompt"}
        settings |= {"features": Features(kept), "remove_columns": ["prompt"]}
    try:
        return dataset.map(function, **settings)
    except OSError as error:
        logger.warning("The cache of data sets cannot be written (%s): the mixture is kept in memory.", error)
        return dataset.map(function, keep_in_memory=True, **settings)


@dataclass(frozen=True)
class _Fold:
    """Puts prompts in front of the answers; for mixtures in which not every part has a column of prompts."""

    explicit: Mapping[str, bool]

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        if not self.explicit[row[PART]]:
            return {name: row[name] for name in ("responses", *_WHOLE) if name in row}
        return _folded(row, row[PART], row[PART_ROW])


def _folded(row: Mapping[str, Any], label: str, number: int) -> dict[str, Any]:
    # Reads the row as it is: a broken one would be hidden by what follows.
    read_example(row, row_number=number, dataset_name=label)
    folded = {name: row[name] and row["prompt"] + row[name] for name in _WHOLE if name in row}
    if "responses" in row:
        folded["responses"] = row["responses"] and [row["prompt"] + response for response in row["responses"]]
    return folded


# --- streams ------------------------------------------------------------------------------------------------


def _mix_streams(parts: Sequence[OpenedPart], names: Sequence[str], folds: bool) -> IterableDataset:
    """The parts' rows in turns, so that training for some steps sees all of them."""
    shares = ", ".join(f"{part.label}{f' (first {part.spec.rows:,} rows)' if part.spec.rows else ''}" for part in parts)
    logger.info("Mixture of streams, whose rows take turns: %s.", shares)
    # A tuple: `datasets` would deal the items of a list out to several workers. And the names of the parts, not their
    # streams: it hashes what it is given, which is slow, and fails in older releases.
    settings = {
        "parts": tuple((part.spec, part.label) for part in parts),
        "columns": tuple(names),
        "folds": folds,
    }
    return IterableDataset.from_generator(_stream_rows, gen_kwargs=settings)


def _stream_rows(
    parts: Sequence[tuple[DatasetPart, str]], columns: Sequence[str], folds: bool
) -> Iterator[dict[str, Any]]:
    opened = [open_part(spec, label, streaming=True) for spec, label in parts]
    rows = [_part_rows(part, columns, folds) for part in opened]
    weights = [1.0 if spec.fraction is None else spec.fraction for spec, _ in parts]
    turns = [0] * len(parts)
    live = list(range(len(parts)))
    while live:
        # Whoever is furthest behind its share is next.
        index = min(live, key=lambda one: (turns[one] + 1) / weights[one])
        row = next(rows[index], None)
        if row is None:
            live.remove(index)
            continue
        turns[index] += 1
        yield row


def _part_rows(part: OpenedPart, columns: Sequence[str], folds: bool) -> Iterator[dict[str, Any]]:
    aligner = _Aligner(tuple(columns), part.columns, part.dataset.features or {}, JSON_TEXTS)
    stream = part.dataset if part.spec.rows is None else part.dataset.take(part.spec.rows)
    for number, raw in enumerate(stream):
        for name in ("prompt", *_DEFAULTS):
            if name not in part.columns and part.spec.columns is None and raw.get(name) is not None:
                message, fix = f"is there, but the first row has no {name}", f"Give all rows a {name}, or none."
                raise DataError(message, row=number, field=name, dataset=part.label, fix=fix)
        row = aligner(raw)
        if folds:
            if "prompt" in part.columns:
                row |= _folded(row, part.label, number)
            del row["prompt"]
        yield row
