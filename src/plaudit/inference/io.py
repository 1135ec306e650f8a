"""Tells whether a model or an input is the one it was: digests of weights, configuration, tokenizer and files."""

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
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from plaudit.data.load import csv_rows, json_rows, kind_of_file, load_preference_dataset
from plaudit.errors import ConfigError, DataError
from plaudit.model.peft import base_model_of
from plaudit.schema import Shape, quoted

_PAIR = ("chosen", "rejected")
_BESIDE = ("std", "lower_bound")


@dataclass(frozen=True)
class RewardColumns:
    """Where the rewards of a row go.

    Attributes:
        name: A number for one response, a list for several; pairs have ``chosen_<name>`` and ``rejected_<name>``.
        overwrite: Whether a column of that name may be replaced.
        uncertainty: Whether to add ``<name>_std`` and ``<name>_lower_bound``; pairs have those of their margin, as
            ``<name>_margin_std`` and ``<name>_margin_lower_bound``.

    >>> RewardColumns("reward").values("pair", [0.5, -1.0], ["pair"])
    {'chosen_reward': 0.5, 'rejected_reward': -1.0}
    """

    name: str
    overwrite: bool = False
    uncertainty: bool = False

    def of(self, shape: Shape) -> list[str]:
        """Columns for rows of one shape.

        Args:
            shape: That of the rewards of a row.
        """
        rewards = [f"{one}_{self.name}" for one in _PAIR] if shape == "pair" else [self.name]
        if not self.uncertainty:
            return rewards
        about = f"{self.name}_margin" if shape == "pair" else self.name
        return [*rewards, *(f"{about}_{one}" for one in _BESIDE)]

    def names(self, shapes: Iterable[Shape]) -> dict[str, Any]:
        """All columns, with their types as `datasets` names them.

        Args:
            shapes: The shapes that rows have.
        """
        number = Value("float64")
        return {name: List(number) if shape == "list" else number for shape in shapes for name in self.of(shape)}

    def values(self, shape: Shape, score: Any, shapes: Sequence[Shape], beside: Sequence[Any] = ()) -> dict[str, Any]:
        """What a row gets.

        Args:
            shape: Shape of its rewards.
            score: Its rewards (None: it could not be scored).
            shapes: The shapes that rows have. A row that says nothing has none of them, and is null in all columns.
            beside: Spread and lower bound, where they are written.
        """
        if score is None:
            return dict.fromkeys(self.of(shape) if shape in shapes else self.names(shapes))
        return dict(zip(self.of(shape), [*(score if shape == "pair" else [score]), *beside], strict=True))

    def check(self, row: Mapping[str, Any], shape: Shape, number: int) -> None:
        """Refuse a row that has such a column already.

        Args:
            row: Its columns.
            shape: Shape of its rewards.
            number: Its number.

        Raises:
            DataError: It has one, and that may not be replaced.
        """
        there = [] if self.overwrite else [name for name in self.of(shape) if name in row]
        if there:
            fix = "Name another with --column, or replace it with --overwrite-column."
            raise DataError("is there already", row=number, field=there[0], fix=fix)

    def require_one_type(self, shapes: Sequence[Shape]) -> None:
        """Refuse to write numbers and lists into one column of Parquet.

        Args:
            shapes: The shapes that rows have.

        Raises:
            ConfigError: Some rows have one response, others several.
        """
        if {"one", "list"} <= set(shapes):
            fix = "Write JSON lines, or score them as two files."
            raise ConfigError(f"{quoted([self.name])} would hold numbers and lists, which Parquet cannot", fix=fix)


def add_to_table(table: pa.Table, names: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> pa.Table:
    """A table with more columns, or with columns replaced where they are.

    Args:
        table: It; its own columns keep their types.
        names: Names and types of the columns, as `datasets` names them.
        rows: Values of the columns.
    """
    for name, feature in names.items():
        values = pa.array([row.get(name) for row in rows], type=Features({name: feature}).arrow_schema.field(0).type)
        place = table.schema.get_field_index(name)
        table = table.append_column(name, values) if place < 0 else table.set_column(place, name, values)
    return table.replace_schema_metadata(metadata_with(table.schema.metadata, names))


def metadata_with(
    metadata: Mapping[bytes, bytes] | None, names: Mapping[str, Any], without: Iterable[str] = ()
) -> dict[bytes, bytes] | None:
    """Metadata of a table whose columns change: `datasets` keeps its own types there, and `pandas` its index.

    Args:
        metadata: What the table has.
        names: Names and types of columns that are new or replaced.
        without: Names of columns that go.
    """
    if metadata is None or b"huggingface" not in metadata:
        return None if metadata is None else dict(metadata)
    known = Features.from_arrow_schema(pa.schema([], metadata=dict(metadata)))
    features = Features({**{name: one for name, one in known.items() if name not in set(without)}, **names})
    return {**metadata, b"huggingface": features.arrow_schema.metadata[b"huggingface"]}


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


_FIX = "End it in .jsonl, .csv, .tsv (all also with .gz) or .parquet."


def kind_of_output(path: Path) -> str:
    """Tell from its name how a file is written: ``"jsonl"``, ``"csv"`` or ``"parquet"``.

    Args:
        path: The file; it need not exist.

    Raises:
        ConfigError: The name says nothing, or the folder does not exist.

    >>> kind_of_output(Path("scored.jsonl.gz"))
    'jsonl'
    """
    kind = kind_of_file(path)
    if kind == "json" and ".json" in path.suffixes[-2:]:
        raise ConfigError(f"{str(path)!r}: rows are written as JSON lines, not as one JSON list", fix=_FIX)
    if kind is None:
        raise ConfigError(f"{str(path)!r} has an extension that says nothing", fix=_FIX)
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {str(path.parent)!r} to write {path.name!r} to", fix="Make the folder.")
    return "jsonl" if kind == "json" else kind


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Refuse to write over a file.

    Args:
        path: What is to be written.
        overwrite: Whether that was allowed.

    Raises:
        ConfigError: It exists, and it was not.
    """
    if path.exists() and (path.is_dir() or not overwrite):
        fix = "Name a file." if path.is_dir() else "Give another name, or allow it with --overwrite."
        raise ConfigError(f"{str(path)!r} exists", fix=fix)


def sync_folder(folder: Path) -> None:
    """Make sure that new names in a folder survive a loss of power.

    Args:
        folder: The folder.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, text: str) -> None:
    """Write a small file under a temporary name, and rename it once it is on the disk.

    Args:
        path: The file.
        text: What it is to hold.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


class Writer(ABC):
    """Writes rows to an open file."""

    @abstractmethod
    def write(self, rows: Any) -> None:
        """Write some rows.

        Args:
            rows: Mappings; for Parquet an Arrow table.
        """

    def close(self) -> None:
        """Write what is still to be written."""
        return


class JsonLinesWriter(Writer):
    """Writes one JSON object a line.

    Args:
        file: Where to.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write some rows; see `Writer`."""
        self._file.write(b"".join(map(_json_line, rows)))


def _json_line(row: Mapping[str, Any]) -> bytes:
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


class CsvWriter(Writer):
    """Writes a header and one line a row: lists and mappings as JSON, null as an empty cell.

    Args:
        file: Where to.
        columns: Names of the columns.
        delimiter: What stands between cells.
    """

    def __init__(self, file: IO[bytes], columns: Sequence[str], delimiter: str) -> None:
        self._text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        self._columns = list(columns)
        self._writer = csv.writer(self._text, delimiter=delimiter, lineterminator="\n")
        self._writer.writerow(self._columns)

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write some rows; see `Writer`."""
        try:
            self._writer.writerows([[_cell(row.get(name)) for name in self._columns] for row in rows])
        except UnicodeEncodeError as error:
            raise DataError(f"CSV cannot hold half a surrogate pair: {error}", fix="Write JSON lines.") from error

    def close(self) -> None:
        """Let go of the file, which stays open."""
        self._text.flush()
        self._text.detach()


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, default=_plain) if not hasattr(value, "isoformat") else _plain(value)


class ParquetWriter(Writer):
    """Writes Arrow tables.

    Args:
        file: Where to.
        schema: Types of the columns.
    """

    def __init__(self, file: IO[bytes], schema: pa.Schema) -> None:
        self._schema = schema
        self._writer = pq.ParquetWriter(file, schema)

    def write(self, rows: pa.Table) -> None:
        """Write some rows; see `Writer`."""
        if len(rows):
            self._writer.write_table(rows.cast(self._schema))

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


@contextmanager
def open_output(
    path: Path, temporary: Path, *, columns: Callable[[], Sequence[str]], schema: pa.Schema | None = None
) -> Iterator[Writer]:
    """Write a file under a temporary name; it is on the disk afterwards, and whole, and still to be renamed.

    Args:
        path: The file that it is to become, whose name decides how it is written.
        temporary: Its name until then; removed if an error comes in between.
        columns: Names of the columns, asked for where a header needs them.
        schema: Types of the columns, for Parquet.
    """
    kind = kind_of_output(path)
    try:
        with temporary.open("wb") as raw:
            with ExitStack() as stack:
                file: Any = raw
                if path.suffix.lower() == ".gz":
                    file = stack.enter_context(gzip.GzipFile("", "wb", fileobj=raw, mtime=0))
                writer: Writer
                if kind == "parquet":
                    writer = ParquetWriter(file, schema)
                elif kind == "csv":
                    delimiter = "\t" if ".tsv" in (one.lower() for one in path.suffixes) else ","
                    writer = CsvWriter(file, columns(), delimiter)
                else:
                    writer = JsonLinesWriter(file)
                try:
                    yield writer
                finally:
                    writer.close()
            raw.flush()
            os.fsync(raw.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def rename(temporary: Path, path: Path) -> None:
    """Give a whole file its name.

    Args:
        temporary: The file.
        path: Its name.
    """
    temporary.replace(path)
    sync_folder(path.parent)


def finite(value: float) -> float | None:
    """A number, or None for NaN, which JSON has not.

    Args:
        value: The number.
    """
    return None if math.isnan(value) else value


_BLOCK = 1 << 22
_NOT_THE_MODEL = ("transformers_version", "attn_implementation", "dtype", "torch_dtype")


def digest_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes.

    Args:
        path: The file.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def digest_of_folder(folder: Path) -> str:
    """SHA-256 of the names and bytes of all files in a folder.

    Args:
        folder: The folder; files whose name begins with a dot do not count.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()} {digest_of_file(path)}\n".encode())
    return digest.hexdigest()


def digests_of_model(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Digests of a model's weights and configuration, and of its tokenizer with the chat template.

    Args:
        model: A reward model, or an adapter around one.
        tokenizer: Its tokenizer.
    """
    weights = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        weights.update(name.encode())
        if isinstance(value, torch.Tensor):
            weights.update(f"{value.dtype} {tuple(value.shape)}".encode())
            weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            weights.update(repr(value).encode())
    config: Any = base_model_of(model).config
    known = {
        name: value
        for name, value in config.to_dict().items()
        if not name.startswith("_") and name not in _NOT_THE_MODEL
    }
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tokens: Any = backend.to_str() if backend is not None else sorted(tokenizer.get_vocab().items())
    special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}
    return {
        "weights": weights.hexdigest(),
        "configuration": _digest(known),
        "tokenizer": _digest([tokens, special, tokenizer.chat_template]),
    }


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
