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
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, IterableDataset
from transformers import PreTrainedTokenizerBase

from plaudit.data import load, readers
from plaudit.data.schemas import FIRST_ROWS, find_schema, read_as, read_rows
from plaudit.errors import ConfigError, DataError
from plaudit.model.peft import base_model_of

logger = logging.getLogger("plaudit")
Row: TypeAlias = dict[str, Any]
_CHUNK_SIZE = 1024

# --- inputs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of an input."""

    index: int
    start: int  # index of its first row
    count: int
    rows: Sequence[Row] = ()  # as a model reads them; empty for a chunk that is only counted
    kept: Any = ()  # the same rows as they are written again: mappings, or an Arrow table


@dataclass(frozen=True)
class RowInput:
    """Rows that can be read more than once, in chunks."""

    name: str  # in messages
    # Reads Arrow tables of about so many rows where there is a schema, otherwise pairs: a row as a model reads it, and
    # as it is written again.
    read: Callable[[int], Iterable[Any]]
    fingerprint: Callable[[], str]  # a text that changes when the rows change
    columns: Sequence[str] | None = None  # names of all columns, where known without reading the rows
    features: Mapping[str, Any] | None = None  # column types as `datasets` declares them, where known
    length: int | None = None  # number of rows, where known
    schema: Any = None  # column types of Arrow tables
    arrow: bool = False  # whether chunks keep Arrow tables
    path: Path | None = None  # of the file that is read
    read_as: str | None = None  # public schema by which a model reads the rows

    def chunks(self, size: int = _CHUNK_SIZE, wanted: Callable[[int], bool] = lambda index: True) -> Iterator[Chunk]:
        """Yields chunks of `size` rows; those that are not wanted come without their rows."""
        start = 0
        try:
            for index, block in enumerate((_pairs if self.schema is None else _tables)(self.read(size), size)):
                rows: Sequence[Row] = ()
                kept: Any = ()
                if wanted(index) and self.schema is None:
                    rows, kept = zip(*block, strict=True)
                elif wanted(index):
                    rows = _decoded(block)
                    kept = block if self.arrow else rows
                if self.read_as is not None:
                    options: dict[str, Any] = {"dataset_name": self.name, "features": self.features}
                    rows = list(read_rows(rows, self.read_as, first_row=start, errors=True, **options))
                yield Chunk(index, start, len(block), rows, kept)
                start += len(block)
        except (OSError, pa.ArrowException) as error:
            if self.path is None:
                raise
            raise DataError(f"{self.name}: cannot be read: {error}", fix="Write the file again.") from error

    def column_names(self) -> list[str]:
        """Returns the names of all columns, in order of first appearance; may read everything."""
        rows = (row for chunk in self.chunks() for row in chunk.rows) if self.columns is None else [self.columns]
        return list(dict.fromkeys(name for row in rows for name in row))

    def stamp(self) -> Any:
        """Returns something cheap that changes when the file is written again."""
        return None if self.path is None else (self.path.stat().st_size, self.path.stat().st_mtime_ns)


def _pairs(pairs: Iterable[tuple[Row, Row]], size: int) -> Iterator[list[tuple[Row, Row]]]:
    rest = iter(pairs)
    return iter(lambda: list(itertools.islice(rest, size)), [])


def _tables(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """Regroups tables of any lengths into tables of one length, the last of which may be shorter."""
    rest: pa.Table | None = None
    for table in tables:
        rest = table if rest is None else pa.concat_tables([rest, table])
        while len(rest) >= size:
            yield rest.slice(0, size)
            rest = rest.slice(size)
    if rest:
        yield rest


def _decoded(table: pa.Table) -> list[Row]:
    """Returns the rows of a table as Python values, with the types that `datasets` stored in its metadata."""
    try:
        columns = Dataset(table, fingerprint="-")[:]
    except ValueError:  # a type that `datasets` cannot name
        rows: list[Row] = table.to_pylist()
        return rows
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def rows_in_memory(rows: Sequence[Row], name: str, features: Mapping[str, Any] | None = None) -> RowInput:
    """Returns rows in memory as an input."""

    def fingerprint() -> str:
        return hashlib.sha256("".join(map(_digest, rows)).encode()).hexdigest()

    return RowInput(name, lambda size: ((row, row) for row in rows), fingerprint, None, features, len(rows))


def open_input(
    name: str | os.PathLike[str],
    *,
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    arrow: bool = False,
    schema: str = "none",
) -> RowInput:
    """Opens a file, a folder, or a data set on the Hub; with `arrow`, chunks keep Arrow tables, as Parquet needs them.

    JSON, JSON lines and CSV files are read as they are written: no value is filled in, widened or reordered. All
    others go through Arrow. A model reads the rows by the public schema of that name, or ``"auto"`` by the one that
    fits the first. Raises `DataError` if there is nothing of that name that can be read.
    """
    rows = _open(name, config, split, streaming, arrow)
    first: Sequence[Row] = ()
    if schema != "none":
        with suppress(DataError):  # raised again when the rows are read
            first = next(iter(rows.chunks(FIRST_ROWS)), Chunk(0, 0, 0)).rows
    found = find_schema(rows.columns or dict.fromkeys(key for row in first for key in row), first, schema, rows.name)
    if found is not None:
        logger.info("%s: %s.", rows.name, read_as(found))
    return replace(rows, read_as=found)


def _open(name: str | os.PathLike[str], config: str | None, split: str, streaming: bool, arrow: bool) -> RowInput:
    path = Path(name).expanduser()
    kind = readers.kind_of_file(path) if path.is_file() and config is None and split == "train" else None
    if kind == "parquet" or (kind is not None and not arrow):
        return _open_file(path, kind, arrow)
    streaming = streaming and not path.exists()
    dataset: Any = load.load_preference_dataset(name, config=config, split=split, streaming=streaming)
    name, columns, features = os.fspath(name), dataset.column_names or None, dataset.features
    if isinstance(dataset, IterableDataset) and arrow and features is None:
        fix = "Turn streaming off, or write JSON lines."
        raise DataError(f"{name}: its column types are known only after it is read", fix=fix)
    schema = None if features is None else features.arrow_schema

    def tables(size: int) -> Iterator[pa.Table]:
        return (table.cast(schema) for table in dataset.with_format("arrow").iter(batch_size=size))

    def fingerprint() -> str:
        if isinstance(dataset, IterableDataset):  # what it declares about itself: its rows are not read for it
            label, info = f"{name} {config} {split}", dataset.info
            return json.dumps([label, str(info.version), str(info.features), sorted(info.download_checksums or {})])
        return f"{_digest_of_files(path) if path.exists() else dataset._fingerprint} {len(dataset)}"

    if isinstance(dataset, IterableDataset) and not arrow:
        return RowInput(name, lambda size: ((row, row) for row in dataset), fingerprint, columns, features)
    length = None if isinstance(dataset, IterableDataset) else len(dataset)
    return RowInput(name, tables, fingerprint, columns, features, length, schema, arrow)


def _open_file(path: Path, kind: str, arrow: bool) -> RowInput:
    name, fingerprint = str(path), partial(_digest_of_files, path)
    if kind == "json":
        return RowInput(name, lambda size: ((row, row) for row in readers.json_rows(path)), fingerprint, path=path)
    if kind == "csv":
        header = next(readers.csv_lines(path), (0, []))[1]
        twice = [column for column in header if header.count(column) > 1]
        if twice:
            raise DataError(f"{name}: has two columns {twice[0]!r}", fix="Give each column a name of its own.")

        def read(size: int) -> Iterator[tuple[Row, Row]]:
            # Cells are written again as they are, and read as the data formats say. The reader of rows comes first: it
            # names the line where the cells do not fit the header.
            lines = itertools.islice(readers.csv_lines(path), 1, None)
            cells = (dict(zip(header, line, strict=True)) for _, line in lines)
            return zip(readers.csv_rows(path), cells, strict=False)

        return RowInput(name, read, fingerprint, header, path=path)
    try:
        with pq.ParquetFile(path) as file:
            schema, length = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        message = f"{name}: is no Parquet file that can be read: {error}"
        raise DataError(message, fix="Write the file again.") from error
    try:
        features = Dataset(schema.empty_table(), fingerprint="-").features
    except ValueError:  # a type that `datasets` cannot name
        features = None

    def read_tables(size: int) -> Iterator[pa.Table]:
        with pq.ParquetFile(path) as file:
            yield from (pa.Table.from_batches([batch], schema) for batch in file.iter_batches(batch_size=size))

    return RowInput(name, read_tables, fingerprint, schema.names, features, length, schema, arrow, path)


# --- tables and outputs -------------------------------------------------------------------------------------


def add_to_table(table: pa.Table, names: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> pa.Table:
    """Adds or replaces columns of a table; `names` holds their types as `datasets` names them."""
    for name, feature in names.items():
        values = pa.array([row.get(name) for row in rows], type=Features({name: feature}).arrow_schema.field(0).type)
        index = table.schema.get_field_index(name)
        table = table.append_column(name, values) if index < 0 else table.set_column(index, name, values)
    return with_known_types(table)


def with_known_types(table: pa.Table) -> pa.Table:
    """Brings the column types that `datasets` keeps in a table's metadata up to date with its columns."""
    metadata = table.schema.metadata
    if metadata is None or b"huggingface" not in metadata:
        return table
    features = Features.from_arrow_schema(table.schema)
    return table.replace_schema_metadata({**metadata, b"huggingface": features.arrow_schema.metadata[b"huggingface"]})


def kind_of_output(path: Path) -> str:
    """Returns the format that a file's name asks for: ``"jsonl"``, ``"csv"`` or ``"parquet"``.

    Raises `ConfigError` if the name has another extension, or its folder does not exist.

    >>> kind_of_output(Path("scored.jsonl.gz"))
    'jsonl'
    """
    kind = readers.kind_of_file(path)
    fix = "Use a name that ends in .jsonl, .csv, .tsv (all also with .gz) or .parquet."
    if kind == "json" and ".json" in path.suffixes[-2:]:
        raise ConfigError(f"{str(path)!r}: rows are written as JSON lines, not as one JSON list", fix=fix)
    if kind is None:
        raise ConfigError(f"{str(path)!r} has an unknown extension", fix=fix)
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to", fix="Make the folder.")
    return "jsonl" if kind == "json" else kind


Write: TypeAlias = Callable[[Any], Any]
"""Writes rows to an open file: mappings, or for Parquet an Arrow table."""


@contextmanager
def open_output(
    path: Path, temporary: Path, columns: Callable[[], Iterable[str]], schema: pa.Schema | None = None
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
                    writer = stack.enter_context(pq.ParquetWriter(file, schema))
                    yield lambda table: writer.write_table(table.cast(schema)) if len(table) else None
                elif kind == "csv":
                    text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
                    stack.callback(text.detach)  # the file stays open
                    delimiter = "\t" if ".tsv" in map(str.lower, path.suffixes) else ","
                    names = list(columns())
                    cells = csv.writer(text, delimiter=delimiter, lineterminator="\n")
                    cells.writerow(names)
                    yield lambda rows: cells.writerows([[_cell(row.get(name)) for name in names] for row in rows])
                else:
                    yield lambda rows: file.write(b"".join(map(_json_line, rows)))
            raw.flush()
            os.fsync(raw.fileno())
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if kind == "csv" and isinstance(error, UnicodeEncodeError):
            raise DataError(f"CSV cannot hold half a surrogate pair: {error}", fix="Write JSON lines.") from error
        raise


def _cell(value: Any) -> str:
    """Returns a cell of CSV: lists and mappings as JSON, null as an empty cell."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, default=_plain) if not hasattr(value, "isoformat") else _plain(value)


def _json_line(row: Row) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False, default=_plain) + "\n").encode()
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can name and UTF-8 cannot
        return (json.dumps(row, default=_plain) + "\n").encode()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time | datetime.datetime):
        return value.isoformat()
    if isinstance(value, decimal.Decimal | datetime.timedelta):
        return str(value)
    raise DataError(f"JSON and CSV cannot hold a {type(value).__name__}", fix="Write Parquet.")


# --- digests ------------------------------------------------------------------------------------------------


def _digest_of_files(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, or of the names and bytes of all files in a folder, except hidden ones."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file_path in sorted(path.rglob("*")):
        name = file_path.relative_to(path)
        if file_path.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()} {_digest_of_files(file_path)}\n".encode())
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
