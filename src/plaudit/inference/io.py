"""Reads inputs in chunks, writes outputs atomically, and tells models and inputs apart by digests."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import hashlib
import io
import itertools
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from plaudit.data.load import csv_lines, csv_rows, json_rows, kind_of_file, load_preference_dataset
from plaudit.errors import ConfigError, DataError
from plaudit.model.peft import base_model_of
from plaudit.schema import Shape, quoted


@dataclass(frozen=True)
class RewardColumns:
    """Names of the columns that hold the rewards of a row.

    >>> RewardColumns("reward").values("pair", [0.5, -1.0], ["pair"])
    {'chosen_reward': 0.5, 'rejected_reward': -1.0}
    """

    name: str  # a number for one response, a list for several; pairs have chosen_NAME and rejected_NAME
    overwrite: bool = False  # whether a column of that name may be replaced
    uncertainty: bool = False  # whether to add NAME_std and NAME_lower_bound; pairs have those of NAME_margin

    def of(self, shape: Shape) -> list[str]:
        """Returns the columns for rows of one shape."""
        rewards = [f"chosen_{self.name}", f"rejected_{self.name}"] if shape == "pair" else [self.name]
        uncertain = f"{self.name}_margin" if shape == "pair" else self.name
        return [*rewards, *([f"{uncertain}_std", f"{uncertain}_lower_bound"] if self.uncertainty else [])]

    def names(self, shapes: Iterable[Shape]) -> dict[str, Any]:
        """Returns the columns for rows of several shapes, with their types as `datasets` names them."""
        number = Value("float64")
        return {name: List(number) if shape == "list" else number for shape in shapes for name in self.of(shape)}

    def values(self, shape: Shape, values: Sequence[Any] | None, shapes: Sequence[Shape]) -> dict[str, Any]:
        """Returns the columns of a row; all are null if the row could not be scored (None)."""
        if values is None:
            # A row that holds nothing to score may have a shape that no other row has.
            return dict.fromkeys(self.of(shape) if shape in shapes else self.names(shapes))
        return dict(zip(self.of(shape), map(_finite, values), strict=True))

    def check(self, row: Mapping[str, Any], shape: Shape, index: int) -> None:
        """Raises `DataError` if a row has such a column already, and it may not be replaced."""
        existing = [] if self.overwrite else [name for name in self.of(shape) if name in row]
        if existing:
            fix = "Use another name with `--column`, or pass `--overwrite-column` to replace it."
            raise DataError("exists already", row=index, field=existing[0], fix=fix)

    def require_one_type(self, shapes: Sequence[Shape]) -> None:
        """Raises `ConfigError` if numbers and lists would have to share a column of Parquet."""
        if {"one", "list"} <= set(shapes):
            fix = "Write JSON lines, or score single and several responses as two files."
            raise ConfigError(f"{quoted([self.name])} would hold numbers and lists, which Parquet cannot", fix=fix)


def _finite(value: Any) -> Any:
    """Replaces NaN, which JSON cannot hold, by null."""
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if math.isnan(value) else value


def add_to_table(table: pa.Table, names: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> pa.Table:
    """Adds or replaces columns of a table; `names` holds their types as `datasets` names them."""
    for name, feature in names.items():
        values = pa.array([row.get(name) for row in rows], type=Features({name: feature}).arrow_schema.field(0).type)
        index = table.schema.get_field_index(name)
        table = table.append_column(name, values) if index < 0 else table.set_column(index, name, values)
    return table.replace_schema_metadata(metadata_with(table.schema.metadata, names))


def metadata_with(
    metadata: Mapping[bytes, bytes] | None, names: Mapping[str, Any], without: Iterable[str] = ()
) -> dict[bytes, bytes] | None:
    """Returns a table's metadata after columns were added, replaced or removed.

    `datasets` keeps its own types there, and `pandas` its index.
    """
    if metadata is None or b"huggingface" not in metadata:
        return None if metadata is None else dict(metadata)
    known = Features.from_arrow_schema(pa.schema([], metadata=dict(metadata)))
    features = Features({**{name: kind for name, kind in known.items() if name not in set(without)}, **names})
    return {**metadata, b"huggingface": features.arrow_schema.metadata[b"huggingface"]}


Row: TypeAlias = dict[str, Any]
Wanted: TypeAlias = Callable[[int], bool]


# --- inputs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of an input."""

    index: int
    start: int  # index of its first row
    count: int
    rows: Sequence[Row] = ()  # as a model reads them; empty for a chunk that is only counted
    kept: Any = ()  # the same rows as they are written again: mappings, or an Arrow table


class RowInput(ABC):
    """Rows that can be read more than once, in chunks."""

    name: str  # in messages
    features: Mapping[str, Any] | None = None  # column types as `datasets` declares them, where known
    length: int | None = None  # number of rows, where known
    schema: Any = None  # column types where chunks keep Arrow tables

    @abstractmethod
    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        """Yields chunks of `size` rows; those that are not wanted come without their rows."""

    @abstractmethod
    def column_names(self) -> list[str]:
        """Returns the names of all columns, in order of first appearance; may read everything."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Returns a text that changes when the rows change."""

    def stamp(self) -> Any:
        """Returns something cheap that changes when the rows are written again."""
        return None


class RowList(RowInput):
    """Rows in memory."""

    def __init__(self, rows: Sequence[Row], name: str, features: Mapping[str, Any] | None = None) -> None:
        self._rows, self.name, self.features, self.length = rows, name, features, len(rows)

    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        """Yields chunks of `size` rows."""
        return _chunks(((row, row) for row in self._rows), size, wanted)

    def column_names(self) -> list[str]:
        """Returns the names of all columns."""
        return list(dict.fromkeys(name for row in self._rows for name in row))

    def fingerprint(self) -> str:
        """Returns a digest of the rows."""
        digest = hashlib.sha256()
        for row in self._rows:
            digest.update(_digest(row).encode())
        return digest.hexdigest()


def open_input(
    name: str | os.PathLike[str],
    *,
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    arrow: bool = False,
) -> RowInput:
    """Opens a file, a folder, or a data set on the Hub; with `arrow`, chunks keep Arrow tables, as Parquet needs them.

    JSON, JSON lines and CSV files are read as they are written: no value is filled in, widened or reordered. All
    others go through Arrow. Raises `DataError` if there is nothing of that name that can be read.
    """
    path = Path(name).expanduser()
    kind = kind_of_file(path) if path.is_file() else None
    whole = config is None and split == "train"
    if whole and kind == "parquet":
        return _ParquetFile(path, arrow)
    if whole and kind is not None and not arrow:
        return _CsvFile(path) if kind == "csv" else _JsonFile(path)
    streaming = streaming and not path.exists()
    rows = load_preference_dataset(name, config=config, split=split, streaming=streaming)
    if isinstance(rows, IterableDataset):
        return _Stream(rows, os.fspath(name), f"{name} {config} {split}", arrow)
    return _Table(rows, os.fspath(name), path if path.exists() else None, arrow)


class _File(RowInput):
    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def fingerprint(self) -> str:
        return digest_of_file(self.path)

    def stamp(self) -> Any:
        stat = self.path.stat()
        return stat.st_size, stat.st_mtime_ns


class _JsonFile(_File):
    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        return _chunks(((row, row) for row in json_rows(self.path)), size, wanted)

    def column_names(self) -> list[str]:
        return list(dict.fromkeys(name for row in json_rows(self.path) for name in row))


class _CsvFile(_File):
    """Cells are written again as they are, and read as the data formats say."""

    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        # The reader comes first: it names the line where the cells do not fit the header.
        return _chunks(zip(csv_rows(self.path), self._cells(), strict=False), size, wanted)

    def column_names(self) -> list[str]:
        return next(csv_lines(self.path), (0, []))[1]

    def _cells(self) -> Iterator[Row]:
        header = self.column_names()
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise DataError(f"{self.name}: has two columns {twice[0]!r}", fix="Give each column a name of its own.")
        for _, cells in itertools.islice(csv_lines(self.path), 1, None):
            yield dict(zip(header, cells, strict=True))


def _chunks(rows: Iterator[tuple[Row, Row]], size: int, wanted: Wanted) -> Iterator[Chunk]:
    start = 0
    for index in itertools.count():
        pairs = list(itertools.islice(rows, size))
        if not pairs:
            return
        if wanted(index):
            yield Chunk(index, start, len(pairs), [row for row, _ in pairs], [kept for _, kept in pairs])
        else:
            yield Chunk(index, start, len(pairs))
        start += len(pairs)


class _ParquetFile(_File):
    def __init__(self, path: Path, arrow: bool) -> None:
        super().__init__(path)
        self._arrow = arrow
        with self._open() as file:
            self.schema, self.length = file.schema_arrow, file.metadata.num_rows
        try:
            self.features = Dataset(self.schema.empty_table(), fingerprint="-").features
        except ValueError:  # a type that `datasets` cannot name
            self.features = None

    def _open(self) -> Any:
        try:
            return pq.ParquetFile(self.path)
        except (OSError, pa.ArrowException) as error:
            message = f"{self.name}: is no Parquet file that can be read: {error}"
            raise DataError(message, fix="Write the file again.") from error

    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        with self._open() as file:
            tables = (pa.Table.from_batches([batch], self.schema) for batch in file.iter_batches(batch_size=size))
            try:
                yield from _table_chunks(tables, size, wanted, self._arrow)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{self.name}: cannot be read: {error}", fix="Write the file again.") from error

    def column_names(self) -> list[str]:
        return list(self.schema.names)


def _table_chunks(tables: Iterable[pa.Table], size: int, wanted: Wanted, arrow: bool) -> Iterator[Chunk]:
    """Regroups tables of any lengths into chunks of one length."""
    index = start = 0
    rest: pa.Table | None = None
    for table in itertools.chain(tables, [None]):
        if table is not None:
            rest = table if rest is None else pa.concat_tables([rest, table])
        while rest is not None and (len(rest) >= size or (table is None and len(rest))):
            head, rest = rest.slice(0, size), rest.slice(size)
            if wanted(index):
                rows = _decoded(head)
                yield Chunk(index, start, len(head), rows, head if arrow else rows)
            else:
                yield Chunk(index, start, len(head))
            index, start = index + 1, start + len(head)


def _decoded(table: pa.Table) -> list[Row]:
    """Returns the rows of a table as Python values, with the types that `datasets` stored in its metadata."""
    try:
        return _rows_of(Dataset(table, fingerprint="-")[:])
    except ValueError:  # a type that `datasets` cannot name
        rows: list[Row] = table.to_pylist()
        return rows


def _rows_of(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class _Table(RowInput):
    """A data set on disk; `path` is the file or folder that it was read from (None: the Hub)."""

    def __init__(self, dataset: Dataset, name: str, path: Path | None, arrow: bool) -> None:
        self.name, self._path, self._arrow = name, path, arrow
        self._dataset = dataset.with_format(None)
        self.features, self.length = dataset.features, len(dataset)
        self.schema = dataset.features.arrow_schema

    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        tables, length = self._dataset.with_format("arrow"), len(self._dataset)
        for index, start in enumerate(range(0, length, size)):
            end = min(start + size, length)
            if not wanted(index):
                yield Chunk(index, start, end - start)
                continue
            rows = _rows_of(self._dataset[start:end])
            kept = tables[start:end].cast(self.schema) if self._arrow else rows
            yield Chunk(index, start, end - start, rows, kept)

    def column_names(self) -> list[str]:
        return list(self._dataset.column_names)

    def fingerprint(self) -> str:
        if self._path is None:
            return f"{self._dataset._fingerprint} {self.length}"
        files = digest_of_file(self._path) if self._path.is_file() else digest_of_folder(self._path)
        return f"{files} {self.length}"


class _Stream(RowInput):
    """A data set on the Hub that is read as it arrives; `label` tells it from other splits."""

    def __init__(self, dataset: IterableDataset, name: str, label: str, arrow: bool) -> None:
        self.name, self._label, self._arrow, self._dataset = name, label, arrow, dataset
        features: Any = dataset.features
        self.features = features
        if arrow and features is None:
            fix = "Turn streaming off, or write JSON lines."
            raise DataError(f"{name}: its column types are known only after it is read", fix=fix)
        self.schema = None if features is None else features.arrow_schema

    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        if self._arrow:
            tables = (table.cast(self.schema) for table in self._dataset.with_format("arrow").iter(batch_size=size))
            return _table_chunks(tables, size, wanted, arrow=True)
        return _chunks(((row, row) for row in self._dataset), size, wanted)

    def column_names(self) -> list[str]:
        return list(self._dataset.column_names or dict.fromkeys(name for row in self._dataset for name in row))

    def fingerprint(self) -> str:
        # What the data set declares about itself: its rows are not read for it.
        info = self._dataset.info
        return json.dumps([self._label, str(info.version), str(info.features), sorted(info.download_checksums or {})])


# --- outputs ------------------------------------------------------------------------------------------------


def kind_of_output(path: Path) -> str:
    """Returns the format that a file's name asks for: ``"jsonl"``, ``"csv"`` or ``"parquet"``.

    Raises `ConfigError` if the name has another extension, or its folder does not exist.

    >>> kind_of_output(Path("scored.jsonl.gz"))
    'jsonl'
    """
    kind = kind_of_file(path)
    fix = "Use a name that ends in .jsonl, .csv, .tsv (all also with .gz) or .parquet."
    if kind == "json" and ".json" in path.suffixes[-2:]:
        raise ConfigError(f"{str(path)!r}: rows are written as JSON lines, not as one JSON list", fix=fix)
    if kind is None:
        raise ConfigError(f"{str(path)!r} has an unknown extension", fix=fix)
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to", fix="Make the folder.")
    return "jsonl" if kind == "json" else kind


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raises `ConfigError` if a file exists and may not be overwritten."""
    if path.is_dir():
        raise ConfigError(f"{str(path)!r} is a folder", fix="Pass a file name.")
    if path.exists() and not overwrite:
        fix = "Use another file name, or pass `--overwrite` to replace it."
        raise ConfigError(f"{str(path)!r} exists", fix=fix)


Write: TypeAlias = Callable[[Any], None]
"""Writes rows to an open file: mappings, or for Parquet an Arrow table."""


@contextmanager
def open_output(
    path: Path, temporary: Path, *, columns: Callable[[], Sequence[str]], schema: pa.Schema | None = None
) -> Iterator[Write]:
    """Writes a file under a temporary name, synced to disk, for the caller to rename; removes it after an error.

    The name of `path` decides the format. `columns` is called where a header needs names; Parquet needs the `schema`.
    """
    kind = kind_of_output(path)
    try:
        with temporary.open("wb") as raw:
            with ExitStack() as stack:
                file: Any = raw
                if path.suffix.lower() == ".gz":
                    file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
                if kind == "parquet":
                    yield _parquet_writer(stack.enter_context(pq.ParquetWriter(file, schema)), schema)
                elif kind == "csv":
                    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
                    stack.callback(text.detach)  # the file stays open
                    delimiter = "\t" if ".tsv" in map(str.lower, path.suffixes) else ","
                    yield _csv_writer(text, list(columns()), delimiter)
                else:
                    yield lambda rows: file.write(b"".join(map(_json_line, rows)))
            raw.flush()
            os.fsync(raw.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _parquet_writer(file: pq.ParquetWriter, schema: Any) -> Write:
    def write(table: pa.Table) -> None:
        if len(table):
            file.write_table(table.cast(schema))

    return write


def _csv_writer(file: IO[str], columns: Sequence[str], delimiter: str) -> Write:
    """Writes lists and mappings as JSON, null as an empty cell."""
    writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
    writer.writerow(columns)

    def write(rows: Sequence[Row]) -> None:
        try:
            writer.writerows([[_cell(row.get(name)) for name in columns] for row in rows])
        except UnicodeEncodeError as error:
            raise DataError(f"CSV cannot hold half a surrogate pair: {error}", fix="Write JSON lines.") from error

    return write


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, default=_plain) if not hasattr(value, "isoformat") else _plain(value)


def _json_line(row: Row) -> bytes:
    text = json.dumps(row, ensure_ascii=False, default=_plain) + "\n"
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can name and UTF-8 cannot
        return (json.dumps(row, default=_plain) + "\n").encode("ascii")


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time | datetime.datetime):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise DataError(f"JSON and CSV cannot hold a {type(value).__name__}", fix="Write Parquet.")


# --- digests ------------------------------------------------------------------------------------------------


def digest_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_folder(folder: Path) -> str:
    """Returns the SHA-256 of the names and bytes of all files in a folder, except hidden ones."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()} {digest_of_file(path)}\n".encode())
    return digest.hexdigest()


def digests_of_model(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Returns digests of a model's weights and configuration, and of its tokenizer with the chat template."""
    weights = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        weights.update(name.encode())
        if isinstance(value, torch.Tensor):
            weights.update(f"{value.dtype} {tuple(value.shape)}".encode())
            weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            weights.update(repr(value).encode())
    config: Any = base_model_of(model).config
    irrelevant = ("transformers_version", "attn_implementation", "dtype", "torch_dtype")
    settings = {
        name: value for name, value in config.to_dict().items() if not name.startswith("_") and name not in irrelevant
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tokens: Any = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return {
        "weights": weights.hexdigest(),
        "configuration": _digest(settings),
        "tokenizer": _digest([tokens, special, tokenizer.chat_template]),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
