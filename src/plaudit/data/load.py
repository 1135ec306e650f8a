"""Opens preference data: files, folders, data sets on the Hugging Face Hub, and rows in memory."""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import datasets
from datasets import Dataset, Features, IterableDataset, Json, List, Value, load_dataset, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from plaudit.data.parse import kind_of, prompt_of
from plaudit.data.readers import (
    CODE_VERSION,
    MESSAGE_COLUMNS,
    READABLE,
    feature_of,
    kind_of_file,
    load_files,
    refuse,
    widened,
)
from plaudit.data.schemas import FIRST_ROWS, SCHEMAS, check_unread, choose_schema, read_as, read_row, read_rows
from plaudit.errors import ConfigError, DataError
from plaudit.schema import (
    LEGACY_COLUMNS,
    PAIR_COLUMNS,
    RAW_COLUMNS,
    READ_COLUMNS,
    TOKENIZED_COLUMNS,
    TOKENIZED_LIST_COLUMNS,
    check_columns,
    is_tokenized,
    legacy_columns,
    quoted,
    row_kinds_of,
)
from plaudit.version import __version__

logger = logging.getLogger("plaudit")
DataFiles: TypeAlias = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""Files of a data set: one or more patterns, or those of each split."""
DataLike: TypeAlias = "Dataset | IterableDataset | Sequence[Mapping[str, Any]] | str | os.PathLike[str]"
"""What can be opened: a data set, a list of rows, or the name of either as for `load_preference_dataset`."""
BATCH = 500
SCHEMA_ERROR = "schema_error"
"""Column of a converted stream: why a row cannot be read."""
FIRST_ROWS_OF_STREAMS = 10
"""Rows of a stream by which its schema is chosen."""
_READERS = ("json", "csv", "parquet")
_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
# Written by `datasets` beside the data.
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}.*")
_NAMES_CONFIGS = re.compile(r"---\n(?:(?!---).*\n)*?configs:")  # the head of a data set's card


# --- one opener -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataSource:
    """Opened rows, and what is known about their columns. The rows can be gone through again."""

    dataset: Any  # Dataset, IterableDataset or list of mappings
    name: str  # for messages
    columns: tuple[str, ...]  # legacy ones under their new names; those of the first rows if none are declared
    declared: bool  # every row has all columns
    renames: Mapping[str, str]  # legacy name -> new name
    length: int | None  # None: a stream
    broken: DataError | None = None  # why a file can only be read up to here, as a stream
    schema: str | None = None  # of public data, by which rows are read; None: they are read as they are

    @property
    def features(self) -> Mapping[str, Any] | None:
        """Types of the columns, where they are known."""
        return getattr(self.dataset, "features", None)

    @property
    def read_columns(self) -> tuple[str, ...]:
        """The columns that preferences are read from."""
        ids = {*TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS, *PAIR_COLUMNS, "weight"}
        read = ids if is_tokenized(self.columns) else {*RAW_COLUMNS}
        return tuple(name for name in self.columns if name in read)

    def select(self, columns: Sequence[str]) -> Dataset | IterableDataset:
        """Returns a data set's rows with some columns, legacy ones renamed; undeclared columns cannot be selected."""
        if self.schema is not None:
            converted = convert(self.dataset, self.schema, self.name)
            return converted.select_columns(list(columns)) if isinstance(converted, Dataset) else converted
        dataset = self.dataset.rename_columns(dict(self.renames)) if self.renames else self.dataset
        selected: Dataset | IterableDataset = dataset.select_columns(list(columns)) if self.declared else dataset
        return selected

    def rows(self, *, errors: bool = False) -> Iterator[Any]:
        """Iterates over the rows with the columns that preferences are read from, as training sees them.

        With `errors`, a row that its schema cannot read is its error.
        """
        if self.schema is not None:
            return self._read(_rows_of(self.dataset), errors=errors)
        if isinstance(self.dataset, Dataset | IterableDataset):
            return _rows_of(self.select(self.read_columns))
        old = {new: name for name, new in self.renames.items()}
        return ({name: row.get(old.get(name, name)) for name in self.read_columns} for row in self.dataset)

    def whole_rows(self) -> Iterator[dict[str, Any]]:
        """Iterates over the rows as `rows` does, with all other columns beside those, under their own names."""
        return self.given_rows() if self.schema is None else self._read(self.given_rows(), whole=True)

    def given_rows(self) -> Iterator[dict[str, Any]]:
        """Iterates over the rows as they were given."""
        return _rows_of(self.dataset)

    def row(self, index: int) -> Any:
        """Returns a row of a table or list as `rows` does with `errors`."""
        row = self.dataset[index]
        return row if self.schema is None else next(self._read([row], first_row=index, errors=True))

    def _read(self, rows: Iterable[Any], **options: Any) -> Iterator[Any]:
        return read_rows(rows, str(self.schema), dataset_name=self.name, features=self.features, **options)


def _rows_of(dataset: Any) -> Iterator[dict[str, Any]]:
    if not isinstance(dataset, Dataset):
        # One by one: a file that breaks off gives every row before the break.
        yield from map(dict, dataset)
        return
    for batch in dataset.iter(batch_size=BATCH):
        for values in zip(*batch.values(), strict=True):
            yield dict(zip(batch, values, strict=True))


def open_data(
    source: DataLike,
    *,
    name: str | None = None,  # in messages; by default the path
    # Where the data is, as for `load_preference_dataset`.
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    data_dir: str | None = None,
    data_files: DataFiles | None = None,
    columns: list[str] | dict[str, str] | None = None,  # those to take, or a mapping from their names to new ones
    check: bool = True,  # whether the columns of preferences must be there
    any_split: bool = False,  # read a single file whatever split it is, and a folder even if no file is named after it
    peek: int = 1,  # rows at the start of a stream that show its columns if it declares none
    keep_readable: bool = False,  # open a file that breaks off as a stream of the rows before the break
    schema: str = "auto",  # of public data, or "none"; "auto" is the one that fits the columns and the first rows
) -> DataSource:
    """Opens a data set, a list of mappings or a name, and checks that it has the columns of preferences and rows.

    >>> source = open_data([{"prompt": "2+2=", "chosen": "4", "rejected": "5"}])
    >>> source.columns, source.length
    (('prompt', 'chosen', 'rejected'), 1)
    """
    broken = None
    rows: Any = source
    if isinstance(source, str | os.PathLike):
        path = Path(source).expanduser()
        name = os.fspath(source) if name is None else name
        saved = (path / "dataset_dict.json").is_file()
        if any_split and path.is_dir() and not saved and split not in _splits_in(path, split, config):
            # Downloaded from the Hub, a folder may hold splits of any name, which are not to be read together.
            data_files = sorted(str(file.relative_to(path)) for file in path.rglob(f"{split}[-.]*") if file.is_file())
            split, data_files = "train", data_files or None
        elif any_split and path.is_file():
            split = "train"
        inside: dict[str, Any] = {"data_dir": data_dir, "data_files": data_files}
        try:
            rows = load_preference_dataset(source, config=config, split=split, streaming=streaming, **inside)
        except DataError as error:
            with contextlib.suppress(DataError):
                if keep_readable and not streaming and path.exists():
                    rows, broken = load_preference_dataset(source, split=split, streaming=True), error
            if broken is None or next(until_broken(iter(rows)), None) is None:
                raise
    name = "train" if name is None else name
    if isinstance(rows, Dataset | IterableDataset):
        rows = rows.with_format(None)
        declared: Any = rows.column_names
    else:
        declared = _columns_of_list(rows)
    first = [] if declared else list(itertools.islice(until_broken(iter(rows)), peek))
    names = tuple(declared or dict.fromkeys(column for row in first for column in row))
    if columns is not None:
        rows, names = _take_columns(rows, names, columns, name)
    length = None if isinstance(rows, IterableDataset) else len(rows)
    if length == 0 or not names:
        raise DataError("has no rows", dataset=name, fix="Pass a data set with at least one row.")
    renames = legacy_columns(names)
    names = tuple(renames.get(column, column) for column in names)
    found = schema_of(rows, names, schema, name)
    if found is not None:
        others = (column for column in names if column not in RAW_COLUMNS)
        names = (*others, *_converted_types(_first_rows(rows), found, name))
    if check:
        check_columns(names, name)
    return DataSource(rows, name, names, bool(declared), renames, length, broken, found)


def _columns_of_list(rows: Any) -> tuple[str, ...]:
    if isinstance(rows, Mapping):
        raise ConfigError(f"The data is a {type(rows).__name__}, not one data set", fix="Pass one split.")
    if not isinstance(rows, Sequence):
        fix = "Pass a `Dataset`, an `IterableDataset`, a list of mappings, or the name of a data set."
        raise ConfigError(f"The data is {kind_of(rows)}, not a data set", fix=fix)
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ConfigError(f"row {index} is {kind_of(row)}", fix="Pass each row as a mapping of columns.")
    return tuple(dict.fromkeys(name for row in rows for name in row))


def _take_columns(
    rows: Any, names: Sequence[str], columns: list[str] | dict[str, str], name: str
) -> tuple[Any, tuple[str, ...]]:
    missing = [column for column in columns if column not in names]
    if missing:
        message = f"has no column {quoted(missing)}, which `columns` asks for"
        raise DataError(message, dataset=name, fix=f"Its columns are {quoted(names)}.")
    renames = columns if isinstance(columns, dict) else {column: column for column in columns}
    if len(set(renames.values())) < len(renames):
        raise ConfigError(f"`columns` of {name} gives two columns one name", fix="Give each its own.")
    rows = rows.select_columns(list(columns))
    changed = {old: new for old, new in renames.items() if old != new}
    return (rows.rename_columns(changed) if changed else rows), tuple(renames.values())


def until_broken(rows: Iterator[Any]) -> Iterator[Any]:
    """Iterates over the rows before the first that raises `DataError`."""
    with contextlib.suppress(DataError):
        yield from rows


# --- public schemas -----------------------------------------------------------------------------------------------


def read_preferences(dataset: Any, *, name: str, schema: str = "auto") -> Any:
    """Returns a data set in the columns that Plaudit reads, and logs by which schema; itself if none fits."""
    if not isinstance(dataset, Dataset | IterableDataset):
        return dataset
    found = schema_of(dataset, dataset.column_names, schema, name)
    if found is None:
        return dataset
    logger.info("%s data: %s.", name, read_as(found))
    return convert(dataset, found, name)


def schema_of(rows: Any, names: Sequence[str] | None, schema: str = "auto", dataset_name: str = "train") -> str | None:
    """Returns the public schema by which a data set or list is read; None: it is read as it is."""
    if schema == "none" or is_tokenized(LEGACY_COLUMNS.get(name, name) for name in names or ()):
        return None
    first = _first_rows(rows)
    names = names or list(dict.fromkeys(column for row in first for column in row))
    found = choose_schema(names, first, schema)
    if found is not None or row_kinds_of(names):
        check_unread(names, first, found, dataset_name)
    return found


def _first_rows(rows: Any) -> list[Any]:
    """Returns the rows by which a schema is chosen. Pictures and the like are not decoded."""
    if not isinstance(rows, Dataset):
        count = FIRST_ROWS if isinstance(rows, Sequence) else FIRST_ROWS_OF_STREAMS
        return list(itertools.islice(until_broken(iter(rows)), count))
    rows = rows.with_format(None).select(range(min(FIRST_ROWS, len(rows))))
    media = [name for name, kind in rows.features.items() if re.search("Image|Audio|Video|Pdf|Nifti", repr(kind))]
    undecoded = rows.select_columns(media).with_format("arrow")[:].to_pylist() if media else [{}] * len(rows)
    return [{**row, **others} for row, others in zip(_rows_of(rows.remove_columns(media)), undecoded, strict=True)]


def _converted_types(first: Sequence[Any], schema: str, dataset_name: str, given: Any = None) -> dict[str, Any]:
    """Returns the columns of a schema and their types, as the first rows show them; `given` are those of the data."""
    types: dict[str, Any] = {}
    for row, read in zip(first, read_rows(first, schema, features=given, errors=True), strict=True):
        for name, value in read.items() if isinstance(read, dict) else ():
            if types.get(name) is not None or value is None:
                types.setdefault(name, None)
            elif name in MESSAGE_COLUMNS or name == "responses":
                # Messages may have keys that come late; JSON keeps them, and adds none to the others.
                is_text, are_texts = isinstance(value, str), all(isinstance(item, str) for item in value)
                types[name] = Value("string") if is_text else List(Value("string")) if are_texts else Json()
            else:
                own = (given or {}).get(name) if row.get(name) is value else None
                types[name] = own or feature_of(widened("null", value))
    if not types and first:
        read_row(first[0], 0, schema, dataset_name)
    return {name: kind or (given or {}).get(name) or Value("string") for name, kind in types.items()}


def convert(dataset: Dataset | IterableDataset, schema: str, name: str) -> Dataset | IterableDataset:
    """Returns the rows of a public schema in the columns that Plaudit reads, beside those that nothing reads."""
    first, given = _first_rows(dataset), dataset.features
    types = _converted_types(first, schema, name, given)
    removed = list(dataset.column_names or dict.fromkeys(key for row in first for key in row))
    settings: dict[str, Any] = {"schema": schema, "dataset_name": name, "features": given}
    if isinstance(dataset, IterableDataset):
        for row in first[:1]:
            read_row(row, 0, schema, name, given)  # a stream, too, refuses a broken first row before anything starts
        return dataset.map(partial(_convert_row, **settings), with_indices=True, remove_columns=removed)
    reads = SCHEMAS[schema].reads | {*RAW_COLUMNS}
    removed = [column for column in removed if column in reads]
    kept = {column: kind for column, kind in dataset.features.items() if column not in reads}
    key = json.dumps([dataset._fingerprint, schema, __version__, CODE_VERSION])
    return map_rows(
        dataset.with_format(None),
        partial(_convert_row, types=types, **settings),
        features=Features({**kept, **types}),
        with_indices=True,
        remove_columns=removed,
        new_fingerprint=hashlib.sha256(key.encode()).hexdigest()[:32],
        desc=f"Reading the {name} data",
    )


def _convert_row(
    row: Mapping[str, Any],
    index: int,
    *,
    schema: str,
    dataset_name: str,
    features: Mapping[str, Any] | None,
    types: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    try:
        read = read_row(row, index, schema, dataset_name, features)
    except DataError as error:
        if types is None:
            return {SCHEMA_ERROR: error}  # raised by whoever prepares the row, and knows its number
        raise
    if types is None:
        return read
    for name in {**types, **read}:
        value, kind = read.setdefault(name, None), types.get(name)
        if value is not None and (name not in types or (kind == Value("string")) != isinstance(value, str)):
            message = f"is {kind_of(value)}, and not of the form that the first rows have"
            fix = "Give all rows of a data set in one form, or split it into two data sets."
            raise DataError(message, row=index, field=name, dataset=dataset_name, fix=fix)
    return read


def map_rows(dataset: Dataset, function: Any, **settings: Any) -> Dataset:
    """Maps the rows of a table; in memory where the cache of data sets cannot be written."""
    try:
        return dataset.map(function, **settings)
    except OSError as error:
        logger.warning("The cache of data sets cannot be written (%s): the rows are kept in memory.", error)
        return dataset.map(function, keep_in_memory=True, **settings)


# --- names ------------------------------------------------------------------------------------------------------


def load_preference_dataset(
    name: str | os.PathLike[str],
    *,
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    data_dir: str | None = None,
    data_files: DataFiles | None = None,
) -> Dataset | IterableDataset:
    """Loads one split of a data set by name.

    Args:
        name: A JSON, JSON lines, CSV or TSV file (also ``.gz``) or a Parquet file; a folder of such files,
            named after their splits; a folder written by ``save_to_disk``; or a name on the Hub. What
            exists on this machine comes first.
        config: Configuration of a data set on the Hub, or of a folder with the same structure.
        split: One split, or slices and sums such as ``"train[:10%]+validation"``. A single file is ``train``.
        streaming: Read row by row instead of all at once.
        data_dir: A folder inside the data set. With ``"json"``, ``"csv"`` or ``"parquet"`` as `name`, any folder.
        data_files: Names or patterns such as ``"part-*.jsonl"`` of files inside the data set (any files, with
            those names), or a mapping from splits to them.

    Raises:
        DataError: There is no such data or split, or it cannot be read; names the file, and the line where known.
    """
    text, path = os.fspath(name), Path(name).expanduser()
    if not text.strip():
        raise ConfigError("The name of the data is empty", fix="Name a file, a folder (`.` is this one) or a data set.")
    inside: dict[str, Any] = {"data_dir": data_dir, "data_files": data_files}
    inside = {} if inside == {"data_dir": None, "data_files": None} else inside
    by_split: Mapping[str, Any] = data_files if isinstance(data_files, Mapping) else {"train": data_files}
    patterns = {
        part: [files] if isinstance(files, str) else list(files)
        for part, files in by_split.items()
        if files is not None
    }
    if path.is_file():
        if inside:
            refuse(text, "is a single file: it has no files inside", "Remove `data_dir` and `data_files`.")
        if config is not None:
            refuse(text, f"is a single file: it has no configuration {config!r}", "Remove the configuration.")
        return _pick(text, {"train": _matching(Path(), text)}, split, streaming)
    remote = any("://" in pattern for files in patterns.values() for pattern in files)
    has_inside = path.is_dir() or (inside and text in _READERS)
    if (config is not None and (inside or not path.is_dir())) or remote or not has_inside:
        if _looks_like_path(text) and not path.exists():
            refuse(text, "there is no such file or folder", _near_misses(path))
        return _from_hub(str(path) if path.exists() else text, config, split, streaming, **inside)
    base = (path if path.is_dir() else Path()) / Path(data_dir or "").expanduser()
    if not base.is_dir():
        refuse(text, f"there is no folder {str(base)!r}", _near_misses(base))
    if not patterns:
        return _pick(str(base), _splits_in(base, split, config), split, streaming)
    paths = {part: [path for pattern in files for path in _matching(base, pattern)] for part, files in patterns.items()}
    return _pick(text, paths, split, streaming)


def _looks_like_path(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or "\\" in name
        or kind_of_file(Path(name)) is not None
        or Path(name).suffix == ".gz"
    )


def _near_misses(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"The folder {str(folder)!r} does not exist either."
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    close = difflib.get_close_matches(path.name, names, n=3, cutoff=0.6)
    if close:
        return f"Did you mean {' or '.join(repr(str(folder / name)) for name in close)}?"
    usable = [name for name in names if kind_of_file(Path(name)) is not None]
    if usable:
        return f"In {str(folder)!r} there are: {', '.join(usable[:8])}{', ...' if len(usable) > 8 else ''}."
    return f"There is no data file in {str(folder)!r}."


def _pick(name: str, splits: Mapping[str, list[Path] | Dataset], split: str, streaming: bool) -> Any:
    """Loads the requested split, or parts of several."""
    for part, paths in splits.items():
        if isinstance(paths, list) and len({kind_of_file(path) == "parquet" for path in paths}) > 1:
            names = ", ".join(path.name for path in paths[:4])
            refuse(name, f"the split {part!r} mixes Parquet with other files ({names})", "Name one file.")
    parts = [re.fullmatch(r"\s*([^\[\]]+?)\s*(\[.*\])?\s*", part) for part in split.split("+")]
    requested = [part[1] for part in parts if part is not None]
    if len(requested) < len(parts):
        fix = 'Write it like "train", "train[:500]" or "train+test".'
        refuse(name, f"the split {split!r} cannot be read", fix)
    unknown = [part for part in requested if part not in splits]
    if unknown:
        refuse(name, f"has no split {unknown[0]!r}", f"It has: {', '.join(splits)}.")
    if streaming and requested != [split]:
        refuse(name, f"a stream cannot be cut into {split!r}", "Name one whole split, or turn streaming off.")
    loaded: dict[str, Any] = {part: splits[part] for part in requested}
    for part, data in loaded.items():
        loaded[part] = load_files(data, streaming=streaming) if isinstance(data, list) else data
    if requested == [split]:
        rows = loaded[split]
        if isinstance(rows, Dataset) and len(rows) == 0:
            refuse(name, f"the split {split!r} has no rows", "Pass a data set with at least one row.")
        return rows.to_iterable_dataset() if streaming and isinstance(rows, Dataset) else rows
    try:
        lengths = {part: len(rows) for part, rows in loaded.items()}
        slices = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    except (ValueError, AssertionError) as error:
        fix = 'Write slices like "train[:500]" or "train[10%:]".'
        refuse(name, f"the split {split!r} cannot be read: {error}", fix)
    ranges = [(cut.splitname, range(lengths[cut.splitname])[cut.from_ : cut.to]) for cut in slices]
    chosen = [loaded[part].select(rows) for part, rows in ranges if rows]
    if not chosen:
        refuse(name, f"the split {split!r} has no rows", "Choose a larger part.")
    return chosen[0] if len(chosen) == 1 else datasets.concatenate_datasets(chosen)


def _splits_in(folder: Path, split: str, config: str | None = None) -> dict[str, Any]:
    """Returns the splits of a folder: data sets that were saved there, or files."""
    card = folder / "README.md"
    if config is not None or (card.is_file() and _NAMES_CONFIGS.match(card.read_text("utf-8", errors="replace"))):
        with _hub_errors(str(folder)):
            declared: Any = load_dataset_builder(str(folder), config).config.data_files
            if all(kind_of_file(Path(file)) is not None for files in declared.values() for file in files):
                return {str(name): [Path(file) for file in files] for name, files in declared.items()}
            return {str(name): rows for name, rows in load_dataset(str(folder), config).items()}
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        try:
            saved = datasets.load_from_disk(folder)
        except (OSError, ValueError, KeyError) as error:
            refuse(str(folder), f"cannot be loaded: {type(error).__name__}: {error}", "Save the data set again.")
        if isinstance(saved, datasets.DatasetDict):
            return {str(name): rows for name, rows in saved.items()}
        # A data set saved alone still knows which split it was.
        return {"train" if split == "train" or saved.split is None else str(saved.split): saved}
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and kind_of_file(path) is not None
        and path.name not in _NOT_DATA
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        inside = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        fix = f"Put files there that end in one of {READABLE}, or name a folder written by `save_to_disk`."
        refuse(str(folder), f"holds no data file (it holds {inside})", fix)
    splits: dict[str, list[Path]] = {}
    for path in files:
        if path.parent == folder / "data" and (shard := _SHARD.fullmatch(path.name)):
            splits.setdefault(shard[1], []).append(path)
    if splits:  # written by `push_to_hub`, which gives each split its own name; `load_dataset` reads nothing else then
        return splits
    for path in files:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    if not set(splits) & set(_SPLIT_WORDS.values()):
        return {"train": files}
    for name, paths in splits.items():
        named = {(path.parent, re.sub(r"[\W\d_]|of", "", path.stem)): path for path in paths if name in path.stem}
        if len(named) > 1 and name in split:
            names = ", ".join(str(path.relative_to(folder)) for path in named.values())
            _warn_of_several_names(folder, name, names)
    return splits


@functools.cache  # once is enough
def _warn_of_several_names(folder: Path, split: str, names: str) -> None:
    logger.warning(
        "%s: the split %r is all of %s; choose some with `data_files`, if it should not be.", folder, split, names
    )


def _split_of(path: Path) -> str:
    """Names the split that a file belongs to.

    >>> [_split_of(Path(name)) for name in ("data/train-00000-of-00002.parquet", "dev.jsonl", "extra.csv")]
    ['train', 'validation', 'extra']
    """
    stem = path.name.split(".")[0]
    for text in (stem, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", text.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return re.sub(r"-\d{5}-of-\d{5}$", "", stem)


def _matching(base: Path, pattern: str) -> list[Path]:
    exact = base / Path(pattern).expanduser()
    root = Path(exact.anchor)
    matching = [exact] if exact.is_file() else root.glob(str(exact.relative_to(root)))
    paths = sorted(path for path in matching if path.is_file())
    if not paths:
        refuse(str(base / pattern), "there is no such file", _near_misses(base / pattern))
    for path in paths:
        if kind_of_file(path) is None:
            fix = f"Use one of {READABLE} (all but Parquet also .gz)."
            refuse(str(path), "has an extension that does not tell how to read it", fix)
    return paths


def _from_hub(name: str, config: str | None, split: str, streaming: bool, **inside: Any) -> Dataset | IterableDataset:
    with _hub_errors(name):
        return load_dataset(name, config, split=split, streaming=streaming, **inside)


@contextlib.contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    here = "" if Path(name).exists() else " (and there is no local file or folder of that name)"
    try:
        yield
    except (DatasetNotFoundError, HFValidationError) as error:
        fix = "Check the spelling; for a private or gated data set log in with `hf auth login`."
        if "/" not in name:
            fix = _near_misses(Path(name))
            fix = fix if fix.startswith("Did you mean") else "Write it as `owner/name`, or give a path."
        refuse(name, f"there is no such data set on the Hub, or it is not open to you{here}: {error}", fix)
    except (ConnectionError, OfflineModeIsEnabled) as error:
        fix = "Check the network and HF_HUB_OFFLINE, or download the data and name the local file or folder."
        refuse(name, f"the Hub cannot be reached{here}: {_first_line(error)}", fix)
    except (DatasetsError, OSError, ValueError, NotImplementedError) as error:
        fix = "Check the configuration (`dataset_config`) and the split against the data set's page."
        cause = error.__cause__ or error
        named = [line for line in str(cause).split("\n") if "available configs" in line]
        refuse(name, " ".join([f"cannot be loaded: {_first_line(cause)}", *named]), fix)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


# --- splits -----------------------------------------------------------------------------------------------------


def split_by_prompt(
    dataset: Dataset, fraction: float, *, seed: int = 0, schema: str = "auto"
) -> tuple[Dataset, Dataset]:
    """Splits preferences for training and evaluation; rows that share a prompt stay together.

    The prompt is the column ``prompt`` where there is one; in conversations without it, the messages that
    both responses share, up to the last user turn; in plain text without it, the whole row. The same rows,
    fraction and seed always give the same parts, in which the rows keep their order.

    Args:
        dataset: Raw preferences.
        fraction: Share of the rows to evaluate on, between 0 and 1.
        seed: Decides which prompts those are.
        schema: Public schema by which the prompts are read, ``"auto"`` or ``"none"``.

    Returns:
        Rows to train on, and rows to evaluate on.

    Raises:
        ConfigError: If `fraction` is not between 0 and 1.
        DataError: If all rows have the same prompt.

    >>> rows = Dataset.from_dict({"prompt": ["a", "b", "a", "b"], "chosen": ["x"] * 4, "rejected": ["y"] * 4})
    >>> train, test = split_by_prompt(rows, 0.5)
    >>> len(train), len(test), set(train["prompt"]) & set(test["prompt"])
    (2, 2, set())
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"`eval_fraction` is {fraction}", fix="Use a share of the rows between 0 and 1, such as 0.1.")
    groups: dict[bytes, list[int]] = {}
    columns = [name for name in dataset.column_names if name in READ_COLUMNS]
    found = schema_of(dataset, dataset.column_names, schema)
    rows = dataset.select_columns(columns) if found is None else dataset
    read: Any = rows.with_format(None)
    if found is not None:
        read = read_rows(read, found, dataset_name="train", features=dataset.features)
    for index, row in enumerate(read):
        key = json.dumps([seed, prompt_of(row)], sort_keys=True, default=str)
        groups.setdefault(hashlib.sha256(key.encode()).digest(), []).append(index)
    if len(groups) < 2:
        raise DataError(
            f"its {len(dataset)} rows share one prompt: nothing can be set aside for evaluation",
            dataset="train",
            fix="Name a split for evaluation with `dataset_test_split`, or remove `eval_fraction`.",
        )
    # Prompts in the order of their hashes, as many as fit into the target; at least one.
    target = max(1, math.floor(fraction * len(dataset) + 0.5))
    order = sorted(groups)
    taken: list[int] = []
    for digest in order[:-1]:
        if len(taken) + len(groups[digest]) <= target:
            taken.extend(groups[digest])
    held_out = set(taken or groups[min(order, key=lambda digest: len(groups[digest]))])
    rest = [index for index in range(len(dataset)) if index not in held_out]
    return dataset.select(rest), dataset.select(sorted(held_out))
