"""Mixes several data sets into one: brings their columns to one form and reports how many rows came from where."""

from __future__ import annotations

import json
import logging
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, Features, IterableDataset, Json, List, Value, concatenate_datasets

from plaudit import schema
from plaudit.data.load import SCHEMA_ERROR, map_rows, open_data, split_by_prompt
from plaudit.data.parse import read_example, without_nulls
from plaudit.data.readers import JSON_TEXTS
from plaudit.data.schemas import read_as
from plaudit.errors import ConfigError, DataError
from plaudit.schema import READ_COLUMNS, RESPONSE_COLUMNS, TOKENIZED_COLUMNS

logger = logging.getLogger("plaudit")
PART, PART_ROW = "part", "part_row"
"""Columns that a mixture adds: the name of the part a row is from, and its index there."""
_WHOLE = (*RESPONSE_COLUMNS, "response")
_MIXING = "Mixing the data"
# What rows get that lack a column which other parts have, and what such values are called.
_DEFAULTS: dict[str, tuple[Any, str]] = {
    "margin": (0.0, "margins"),
    "preference_prob": (1.0, "preference_probs"),
    "weight": (1.0, "weights"),
    "tie": (False, "ties"),
}


@dataclass(frozen=True)
class DatasetPart:
    """One data set of a mixture; what its fields do not say is as for `load_preference_dataset`."""

    path: str
    name: str | None = None  # configuration of a data set on the Hub
    data_dir: str | None = None
    data_files: str | list[str] | dict[str, Any] | None = None
    split: str = "train"
    columns: list[str] | dict[str, str] | None = None  # those to take (default: all), or a mapping to new names
    # Share of this part in the mixture: of all parts, or of none. Shares are scaled to sum to 1, and the mixture is as
    # large as it can be without using a row twice.
    fraction: float | None = None
    rows: int | None = None  # take this many; the seed decides which, of a stream the first
    schema: str = "auto"  # of public data, by which the rows are read


@dataclass(frozen=True)
class _OpenedPart:
    """A part whose columns and first row are checked."""

    spec: DatasetPart
    label: str  # short name, different from those of the other parts
    dataset: Any
    columns: tuple[str, ...]  # those that are read
    form: str  # of the first row: "text", "messages" or "ids"


def load_mixture(
    parts: Sequence[DatasetPart], *, streaming: bool = False, eval_fraction: float | None = None, seed: int = 0
) -> tuple[Dataset | IterableDataset, Dataset | None]:
    """Loads several data sets as one, and sets a share of the rows aside, by prompt over all parts.

    All parts hold one form: plain text, messages or token ids. Prompts may be a column of their own in some parts
    only; a part without margins beside one with them gets margins of 0. Rows come part after part; those of streams
    take turns. Only the columns of preferences are kept; `PART` and `PART_ROW` (not for streams) tell where a row is
    from. Raises `DataError` if a part cannot be loaded or does not go together with the first.
    """
    if not parts:
        raise ConfigError("`datasets` is empty", fix="Name at least one data set, or set `dataset_name`.")
    if streaming and eval_fraction is not None:
        raise ConfigError("a stream cannot be split", fix="Remove `eval_fraction`, or turn streaming off.")
    if len({part.fraction is None for part in parts}) > 1:
        fix = "Give all parts a `fraction`, or none; `rows` can stand in single parts."
        raise ConfigError("`datasets`: some parts have a `fraction` and others none", fix=fix)
    labels = []
    for part in parts:
        file = f" {part.data_files}" if isinstance(part.data_files, str) and part.data_files else ""
        labels.append(f"{part.path}{f' ({part.name})' if part.name else ''}{file}")
    counts = Counter(labels)
    labels = [f"{label} (part {n})" if counts[label] > 1 else label for n, label in enumerate(labels, start=1)]
    opened = [_open_part(part, label, streaming) for part, label in zip(parts, labels, strict=True)]
    _check_one_form(opened)
    names = [name for name in READ_COLUMNS if any(name in part.columns for part in opened)]
    for name, (value, words) in _DEFAULTS.items():
        # The optional columns of pairs are never read from rows of other kinds.
        without = [
            part.label
            for part in opened
            if name in names
            and name not in part.columns
            and (name == "weight" or {"chosen", "chosen_ids"} & set(part.columns))
        ]
        if without:
            logger.warning("Mixture: %s: without %s, which are taken as %s.", ", ".join(without), words, value)
    explicit = {part.label: "prompt" in part.columns for part in opened}
    folds = len(set(explicit.values())) > 1
    if streaming:
        texts = [f"{part.label}{f' (first {part.spec.rows:,} rows)' if part.spec.rows else ''}" for part in opened]
        logger.info("Mixture of streams, whose rows take turns: %s.", ", ".join(texts))
        # A tuple: `datasets` would deal the items of a list out to several workers. And the names of the parts, not
        # their streams: it hashes what it is given, which is slow, and fails in older releases.
        specs = tuple((part.spec, part.label) for part in opened)
        settings = {"parts": specs, "columns": tuple(names), "folds": folds}
        return IterableDataset.from_generator(_stream_rows, gen_kwargs=settings), None
    target = _common_features(opened, names, folds)
    mixture = concatenate_datasets(_choose_rows(opened, target, seed))
    mixture, held_out = (
        (mixture, None) if eval_fraction is None else split_by_prompt(mixture, eval_fraction, seed=seed, schema="none")
    )
    if not folds:
        return mixture, held_out
    # Only now: texts with their prompts in front no longer tell which rows share one.
    features = Features({name: kind for name, kind in mixture.features.items() if name != "prompt"})
    fold = partial(_folded, explicit=explicit)
    fold_all = partial(map_rows, function=fold, features=features, remove_columns=["prompt"], desc=_MIXING)
    return fold_all(mixture), None if held_out is None else fold_all(held_out)


def located(error: DataError, dataset: Any) -> DataError:
    """Names the part of a mixture, and the row there, in an error about a row of what `load_mixture` returned."""
    if not isinstance(dataset, Dataset) or PART_ROW not in dataset.column_names or error.row is None:
        return error
    row = dataset.select_columns([PART, PART_ROW])[error.row]
    return DataError(error.message, row=row[PART_ROW], field=error.field, dataset=row[PART], fix=error.fix)


def _open_part(part: DatasetPart, label: str, streaming: bool) -> _OpenedPart:
    inside: dict[str, Any] = {"data_dir": part.data_dir, "data_files": part.data_files, "columns": part.columns}
    inside |= {"schema": part.schema, "streaming": streaming}
    source = open_data(part.path, name=label, config=part.name, split=part.split, **inside)
    if source.schema is not None:
        logger.info("Mixture: %s: %s.", label, read_as(source.schema))
    tokenized = schema.is_tokenized(source.columns)
    read = source.read_columns if tokenized else schema.columns_read(schema.row_kind_of(next(iter(source.rows()), {})))
    columns = tuple(name for name in source.columns if name in read)
    dataset = source.select(columns)
    if source.schema is None and not source.declared and not tokenized and part.columns is None:
        # A stream that names no columns: its first row may lack what is optional.
        columns += tuple(name for name in JSON_TEXTS if name not in columns)
    first = next(iter(dataset.take(1)), None)
    if first is None:
        raise DataError("has no rows", dataset=label, fix="Remove the part from the mixture.")
    example = read_example(first, row_number=0, dataset_name=label, tokenized=tokenized)
    form = "ids" if tokenized else "messages" if example.conversational else "text"
    return _OpenedPart(part, label, dataset, columns, form)


def _check_one_form(parts: Sequence[_OpenedPart]) -> None:
    """Raises `DataError` if plain text is mixed with conversations, or token ids with either."""
    words = {"text": "plain text", "messages": "a list of messages"}
    first = parts[0]
    for part in parts[1:]:
        if part.form == first.form:
            continue
        if "ids" in (part.form, first.form):
            message = f"has {schema.quoted(part.columns)}, but {first.label} has {schema.quoted(first.columns)}"
            raise DataError(message, dataset=part.label, fix="Mix tokenised data with tokenised data only.")
        message = f"is {words[part.form]}, but in {first.label} it is {words[first.form]}"
        fix = "Mix parts of one form, or turn plain text into messages first."
        raise DataError(message, dataset=part.label, field="chosen", fix=fix)
    for part in parts:
        feature = (part.dataset.features or {}).get("margin")
        if feature is not None and not str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float")):
            fix = "Give every row a finite number, or exclude the column with `columns`."
            raise DataError(f"is of type {feature}, not a number", dataset=part.label, field="margin", fix=fix)


def _choose_rows(parts: Sequence[_OpenedPart], target: Features, seed: int) -> list[Dataset]:
    """Takes as many rows of each part as requested, in their order, and brings them to the features of the mixture."""
    lengths = [len(part.dataset) for part in parts]
    counts = [length if part.spec.rows is None else part.spec.rows for part, length in zip(parts, lengths, strict=True)]
    for part, length, count in zip(parts, lengths, counts, strict=True):
        if count > length:
            raise DataError(f"has {length:,} rows, not {count:,}", dataset=part.label, fix="Lower `rows`.")
    shares = [part.spec.fraction for part in parts if part.spec.fraction is not None]
    if shares:
        whole = sum(shares)
        total = min(length * whole / share for length, share in zip(lengths, shares, strict=True))
        counts = [min(length, round(share / whole * total)) for length, share in zip(lengths, shares, strict=True)]
    result, summary = [], []
    for number, (part, length, count) in enumerate(zip(parts, lengths, counts, strict=True)):
        if count == 0:
            fix = "Raise its `fraction`, or remove the part."
            raise ConfigError(f"no row of {part.label} would be in the mixture", fix=fix)
        dataset = part.dataset.add_column(PART, [part.label] * length).add_column(PART_ROW, np.arange(length))
        if count < length:
            dataset = dataset.select(sorted(random.Random(f"{seed} {number}").sample(range(length), count)))
        if dataset.features == target:
            result.append(dataset.select_columns(list(target)))
        else:
            texts = tuple(name for name in JSON_TEXTS if target.get(name) == Value("string"))
            settings = {"columns": tuple(target), "own": part.columns, "features": dataset.features, "texts": texts}
            result.append(map_rows(dataset, partial(_aligned, **settings), features=target, desc=_MIXING))
        summary.append(f"{count:,} {'rows' if count == length else f'of {length:,} rows'} from {part.label}")
    logger.info("Mixture of %s rows: %s.", f"{sum(counts):,}", ", ".join(summary))
    return result


def _common_features(parts: Sequence[_OpenedPart], names: Sequence[str], folds: bool) -> Features:
    """Returns common feature types: those of the parts where they agree, general ones elsewhere."""
    types = {name: [part.dataset.features[name] for part in parts if name in part.dataset.features] for name in names}
    same = {name: all(feature == features[0] for feature in features) for name, features in types.items()}
    # Whole numbers may stay what they are only where no part gets a default such as 0.0.
    same |= {name: same[name] and len(types[name]) == len(parts) for name in _DEFAULTS if name in same}
    responses = [feature for name in _WHOLE for feature in types.get(name, [])]
    responses += [getattr(feature, "feature", feature) for feature in types.get("responses", [])]
    if folds and not all(feature == responses[0] for feature in [*responses, *types["prompt"]]):
        same |= dict.fromkeys(("prompt", "responses", *_WHOLE), False)
    ids = parts[0].form == "ids"
    # A column that holds several kinds of values is JSON already: reading its rows will name the broken one.
    mixed = parts[0].form == "messages" or any(isinstance(feature, Json) for name in types for feature in types[name])
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
    if any(not isinstance(feature, List) for feature in types.get("scores", [])):
        general["scores"] = Json()  # numbers of single responses beside lists
    common = {name: types[name][0] if same[name] else general[name] for name in names}
    return Features({**common, PART: Value("string"), PART_ROW: Value("int64")})


def _aligned(
    row: Mapping[str, Any],
    *,
    columns: Sequence[str],
    own: Sequence[str],
    features: Mapping[str, Any],
    texts: Sequence[str],
) -> dict[str, Any]:
    """Returns a row of one part, whose columns are `own`, with the columns of the mixture; `texts` become JSON text."""
    values: dict[str, Any] = {}
    for name in columns:
        if name not in own:
            values[name] = row.get(name, _DEFAULTS.get(name, (None,))[0])
            continue
        values[name] = without_nulls(row.get(name), features.get(name))
        if name in texts and not isinstance(values[name], str | None):
            values[name] = json.dumps(values[name], ensure_ascii=False)
    return values


def _folded(row: Mapping[str, Any], *, explicit: Mapping[str, bool]) -> dict[str, Any]:
    """Puts prompts in front of responses, for mixtures in which only some parts have a column of prompts."""
    if not explicit[row[PART]]:
        return {name: row[name] for name in ("responses", *_WHOLE) if name in row}
    # Reads the row as it is: a broken one would be hidden by what follows.
    read_example(row, row_number=row[PART_ROW], dataset_name=row[PART])
    folded = {name: row[name] and row["prompt"] + row[name] for name in _WHOLE if name in row}
    if "responses" in row:
        folded["responses"] = row["responses"] and [row["prompt"] + response for response in row["responses"]]
    return folded


def _stream_rows(
    parts: Sequence[tuple[DatasetPart, str]], columns: Sequence[str], folds: bool
) -> Iterator[dict[str, Any]]:
    """Iterates over the rows of all parts in turns, so that training for some steps sees all of them."""
    opened = [_open_part(spec, label, streaming=True) for spec, label in parts]
    rows = [_part_rows(part, columns, folds) for part in opened]
    weights = [1.0 if spec.fraction is None else spec.fraction for spec, _ in parts]
    turns = [0] * len(parts)
    live = list(range(len(parts)))
    while live:
        # Whoever is furthest behind its share is next.
        index = min(live, key=lambda part: (turns[part] + 1) / weights[part])
        row = next(rows[index], None)
        if row is None:
            live.remove(index)
            continue
        turns[index] += 1
        yield row


def _part_rows(part: _OpenedPart, columns: Sequence[str], folds: bool) -> Iterator[dict[str, Any]]:
    features = part.dataset.features or {}
    stream = part.dataset if part.spec.rows is None else part.dataset.take(part.spec.rows)
    for number, raw in enumerate(stream):
        if SCHEMA_ERROR in raw:
            raise raw[SCHEMA_ERROR]
        for name in ("prompt", *_DEFAULTS):
            if name not in part.columns and part.spec.columns is None and raw.get(name) is not None:
                message, fix = f"is there, but the first row has no {name}", f"Give all rows a {name}, or none."
                raise DataError(message, row=number, field=name, dataset=part.label, fix=fix)
        row = _aligned(raw, columns=columns, own=part.columns, features=features, texts=JSON_TEXTS)
        if folds:
            about = {PART: part.label, PART_ROW: number}
            row |= _folded(row | about, explicit={part.label: "prompt" in part.columns})
            del row["prompt"]
        yield row
