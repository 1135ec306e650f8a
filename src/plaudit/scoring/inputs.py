"""Reads files and data sets of rows a chunk at a time, twice if need be: to score them, and to write them again."""

from __future__ import annotations

import csv
import gzip
import itertools
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset

from plaudit.data.files import csv_rows, json_rows, kind_of_file
from plaudit.data.sources import load_preference_dataset
from plaudit.errors import DataError
from plaudit.scoring.fingerprints import digest_of_file, digest_of_folder

Row: TypeAlias = dict[str, Any]
Wanted: TypeAlias = Callable[[int], bool]


@dataclass(frozen=True)
class Chunk:
    """Some rows that follow each other.

    Attributes:
        index: Number of the chunk, counted from 0.
        start: Number of its first row.
        count: How many rows it has.
        rows: The rows as they are read by a model; empty for a chunk that is only counted.
        kept: The same rows as they are written again: mappings, or an Arrow table.
    """

    index: int
    start: int
    count: int
    rows: Sequence[Row] = ()
    kept: Any = field(default=())


class RowInput(ABC):
    """Rows that can be gone through again.

    Attributes:
        name: What it is called in messages.
        features: Types of the columns as `datasets` declares them, where known.
        length: Number of rows, where known.
        schema: Types of the columns where chunks keep Arrow tables.
    """

    name: str
    features: Mapping[str, Any] | None = None
    length: int | None = None
    schema: Any = None

    @abstractmethod
    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        """Go through the rows.

        Args:
            size: Rows of a chunk.
            wanted: Tells which chunks to read; others come without their rows.
        """

    @abstractmethod
    def column_names(self) -> list[str]:
        """Names of all columns, in order of their first appearance; may have to read everything."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes when the rows change."""

    def stamp(self) -> Any:
        """Something cheap that changes when the rows are written again."""
        return None


def open_input(
    name: str | os.PathLike[str],
    *,
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    arrow: bool = False,
) -> RowInput:
    """Open a file, a folder, or a data set on the Hub.

    JSON, JSON lines and CSV files are read as they are written: no value is filled in, widened or reordered. All else
    goes through Arrow.

    Args:
        name: As for `load_preference_dataset`.
        config: Configuration of a data set on the Hub.
        split: Which split.
        streaming: Read a data set on the Hub row by row, instead of downloading it first.
        arrow: Let chunks keep Arrow tables, for Parquet.

    Raises:
        DataError: There is nothing of that name, or nothing that can be read.
    """
    path = Path(name).expanduser()
    kind = kind_of_file(path) if path.is_file() else None
    plain = config is None and split == "train"
    if plain and kind == "parquet":
        return ParquetInput(path, arrow)
    if plain and kind is not None and not arrow:
        return CsvInput(path) if kind == "csv" else JsonInput(path)
    streaming = streaming and not path.exists()
    rows = load_preference_dataset(name, config=config, split=split, streaming=streaming)
    if isinstance(rows, IterableDataset):
        return StreamInput(rows, os.fspath(name), f"{name} {config} {split}", arrow)
    return TableInput(rows, os.fspath(name), path if path.exists() else None, arrow)


class FileInput(RowInput):
    """Rows of one file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)

    def fingerprint(self) -> str:
        """Digest of the file."""
        return digest_of_file(self.path)

    def stamp(self) -> Any:
        """Size and time of the file."""
        stat = self.path.stat()
        return stat.st_size, stat.st_mtime_ns


class JsonInput(FileInput):
    """Rows of a JSON or JSON lines file, as they are written."""

    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        """Go through the rows; see `RowInput`."""
        yield from _chunks(((row, row) for row in self._rows()), size, wanted)

    def column_names(self) -> list[str]:
        """Names of all columns, for which the file is read once."""
        return list(dict.fromkeys(name for row in self._rows() for name in row))

    def _rows(self) -> Iterator[Row]:
        return _with_file_errors(self.path, json_rows(self.path))


class CsvInput(FileInput):
    """Rows of a CSV or TSV file: cells are written again as they are, and read as in the data formats."""

    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        """Go through the rows; see `RowInput`."""
        read = _with_file_errors(self.path, csv_rows(self.path))
        # The reader's own messages about broken lines come first.
        yield from _chunks(zip(read, self._cells(), strict=False), size, wanted)

    def column_names(self) -> list[str]:
        """Names in the header."""
        return next(_with_file_errors(self.path, self._lines()), [])

    def _cells(self) -> Iterator[Row]:
        lines = self._lines()
        header = next(lines, [])
        twice = [name for name in header if header.count(name) > 1]
        if twice:
            raise DataError(f"{self.name}: has two columns {twice[0]!r}", fix="Give each column a name of its own.")
        for cells in lines:
            yield dict(zip(header, cells, strict=True))

    def _lines(self) -> Iterator[list[str]]:
        opener = gzip.open if self.path.suffix.lower() == ".gz" else open
        with opener(self.path, "rt", encoding="utf-8-sig", newline="") as file:
            delimiter = "\t" if ".tsv" in (one.lower() for one in self.path.suffixes) else ","
            for cells in csv.reader(file, delimiter=delimiter, strict=True):
                if cells:
                    yield cells


def _chunks(rows: Iterator[tuple[Row, Row]], size: int, wanted: Wanted) -> Iterator[Chunk]:
    start = 0
    for index in itertools.count():
        some = list(itertools.islice(rows, size))
        if not some:
            return
        if wanted(index):
            yield Chunk(index, start, len(some), [one for one, _ in some], [kept for _, kept in some])
        else:
            yield Chunk(index, start, len(some))
        start += len(some)


def _with_file_errors(path: Path, rows: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from rows
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be decompressed: {error}", fix="Write or download the file again.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}", fix="Check the file and its permissions.") from error


# --- Arrow --------------------------------------------------------------------------------------------------


def decoded(table: pa.Table) -> list[Row]:
    """The rows of a table as Python values, the way a data set gives them.

    Args:
        table: It; metadata of `datasets` is heeded.
    """
    try:
        columns = Dataset(table, fingerprint="-")[:]
    except ValueError:  # a type that `datasets` cannot name
        rows: list[Row] = table.to_pylist()
        return rows
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class ParquetInput(FileInput):
    """Rows of a Parquet file, with the types that it has.

    Args:
        path: The file.
        arrow: Whether chunks keep tables.
    """

    def __init__(self, path: Path, arrow: bool) -> None:
        super().__init__(path)
        self._arrow = arrow
        with self._file() as file:
            self.schema, self.length = file.schema_arrow, file.metadata.num_rows
        try:
            self.features = Dataset(self.schema.empty_table(), fingerprint="-").features
        except ValueError:
            self.features = None

    def _file(self) -> Any:
        try:
            return pq.ParquetFile(self.path)
        except (OSError, pa.ArrowException) as error:
            fix = "Write the file again."
            raise DataError(f"{self.name}: is no Parquet file that can be read: {error}", fix=fix) from error

    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        """Go through the rows; see `RowInput`."""
        with self._file() as file:
            try:
                yield from _table_chunks(self._tables(file, size), size, wanted, self._arrow)
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{self.name}: cannot be read: {error}", fix="Write the file again.") from error

    def _tables(self, file: Any, size: int) -> Iterator[pa.Table]:
        for batch in file.iter_batches(batch_size=size):
            yield pa.Table.from_batches([batch], self.schema)

    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)


def _table_chunks(tables: Iterator[pa.Table], size: int, wanted: Wanted, arrow: bool) -> Iterator[Chunk]:
    """Cut tables of any lengths into chunks of one."""
    index = start = 0
    rest: pa.Table | None = None
    for table in itertools.chain(tables, [None]):
        last = table is None
        if table is not None:
            rest = table if rest is None else pa.concat_tables([rest, table])
        while rest is not None and (len(rest) >= size or (last and len(rest))):
            some, rest = rest.slice(0, size), rest.slice(size)
            if wanted(index):
                rows = decoded(some)
                yield Chunk(index, start, len(some), rows, some if arrow else rows)
            else:
                yield Chunk(index, start, len(some))
            index, start = index + 1, start + len(some)


class TableInput(RowInput):
    """Rows of a data set on disk.

    Args:
        dataset: The rows.
        name: What it is called.
        path: The file or folder that it comes from (None: the Hub).
        arrow: Whether chunks keep tables.
    """

    def __init__(self, dataset: Dataset, name: str, path: Path | None, arrow: bool) -> None:
        self.name, self._path, self._arrow = name, path, arrow
        self._dataset = dataset.with_format(None)
        self.features, self.length = dataset.features, len(dataset)
        self.schema = dataset.features.arrow_schema

    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        """Go through the rows; see `RowInput`."""
        tables = self._dataset.with_format("arrow")
        assert self.length is not None
        for index, start in enumerate(range(0, self.length, size)):
            end = min(start + size, self.length)
            if not wanted(index):
                yield Chunk(index, start, end - start)
                continue
            columns = self._dataset[start:end]
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            kept = tables[start:end].cast(self.schema) if self._arrow else rows
            yield Chunk(index, start, end - start, rows, kept)

    def column_names(self) -> list[str]:
        """Names of the columns."""
        return list(self._dataset.column_names)

    def fingerprint(self) -> str:
        """Digest of the files; for a data set on the Hub, what `datasets` tells it by."""
        if self._path is None:
            return f"{self._dataset._fingerprint} {self.length}"
        files = digest_of_file(self._path) if self._path.is_file() else digest_of_folder(self._path)
        return f"{files} {self.length}"


class StreamInput(RowInput):
    """Rows of a data set on the Hub, read as they arrive.

    Args:
        dataset: The rows.
        name: What it is called.
        label: What tells it from other parts of the same data set.
        arrow: Whether chunks keep tables.
    """

    def __init__(self, dataset: IterableDataset, name: str, label: str, arrow: bool) -> None:
        self.name, self._label, self._arrow = name, label, arrow
        self._dataset = dataset
        features: Any = dataset.features
        self.features = features
        if arrow and features is None:
            raise DataError(f"{name}: its types are known only once it is read", fix="Do not stream, or write JSONL.")
        self.schema = None if features is None else features.arrow_schema

    def chunks(self, size: int, wanted: Wanted = lambda index: True) -> Iterator[Chunk]:
        """Go through the rows; see `RowInput`."""
        if self._arrow:
            tables = (one.cast(self.schema) for one in self._dataset.with_format("arrow").iter(batch_size=size))
            yield from _table_chunks(tables, size, wanted, arrow=True)
        else:
            yield from _chunks(((row, row) for row in self._dataset), size, wanted)

    def column_names(self) -> list[str]:
        """Names of the columns; those of all rows where none are declared."""
        if self._dataset.column_names:
            return list(self._dataset.column_names)
        return list(dict.fromkeys(name for row in self._dataset for name in row))

    def fingerprint(self) -> str:
        """Name, configuration and split, and what the data set says about itself: its rows are not read for it."""
        info = self._dataset.info
        return json.dumps([self._label, str(info.version), str(info.features), sorted(info.download_checksums or {})])
