"""Reads data files (JSON, JSON lines, CSV, Parquet) as they are: Arrow fills, widens and reorders nothing."""

from __future__ import annotations

import ast
import csv
import gzip
import json
import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, Json, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from plaudit.data.columns import RAW_COLUMNS, RESPONSE_COLUMNS, TOKENIZED_COLUMNS
from plaudit.errors import DataError

logger = logging.getLogger("plaudit")

SUFFIXES = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
"""Kind of file for each extension; all but Parquet may also end in ``.gz``."""

CODE_VERSION = 1
"""Part of the cache key: raise it whenever the same files would give other values than before."""

_MESSAGE_COLUMNS = ("prompt", *RESPONSE_COLUMNS, "response")
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_TEXT_OF_JSON = tuple(name for name in RAW_COLUMNS if name in ("tools", "chat_template_kwargs"))


def kind_of_file(path: Path) -> str | None:
    """Tell how to read a file from its name: ``"json"``, ``"csv"`` or ``"parquet"``, or None.

    Args:
        path: The file; it need not exist.

    >>> [kind_of_file(Path(name)) for name in ("pairs.jsonl.gz", "pairs.parquet.gz", "pairs.txt")]
    ['json', None, None]
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        kind = SUFFIXES.get(suffixes[-2]) if len(suffixes) > 1 else None
        return None if kind == "parquet" else kind
    return SUFFIXES.get(suffixes[-1]) if suffixes else None


def load_files(paths: Sequence[Path], *, streaming: bool = False) -> Dataset | IterableDataset:
    """Read files of one kind as one data set, in the order given.

    JSON values come back as they were written: a mapping of anything but texts is kept as JSON, not forced
    into one Arrow type for all rows. The columns ``tools`` and ``chat_template_kwargs`` become JSON text.

    Args:
        paths: Existing files, all Parquet or none.
        streaming: Read row by row instead of all at once.

    Raises:
        DataError: A file is empty, broken or cannot be read; for a stream, when the row is read.
    """
    if any(kind_of_file(path) == "parquet" for path in paths):
        return _load_parquet(paths, streaming)
    names = [str(path) for path in paths]
    if streaming:
        return IterableDataset.from_generator(_read_files, gen_kwargs={"paths": names})
    columns: dict[str, Kind] = {}
    empty = True
    for row in _read_files(names):
        empty = False
        for name, value in row.items():
            columns[name] = _merge(columns.get(name, "null"), _kind_of(value))
    if empty:
        _refuse(", ".join(names), "has no rows", "Pass a file with at least one row.")
    # The size and time of each file are part of the key under which `datasets` caches what it reads.
    stamps = [[path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    settings: dict[str, Any] = {"paths": names, "columns": columns, "stamps": stamps, "version": CODE_VERSION}
    features = Features({name: _feature_of(kind) for name, kind in columns.items()})
    try:
        return Dataset.from_generator(_encoded_rows, features=features, gen_kwargs=settings)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise
    except OSError as error:
        logger.warning("The cache of data sets cannot be written (%s): the rows are kept in memory.", error)
        return Dataset.from_list(list(_encoded_rows(**settings)), features=features)


def _load_parquet(paths: Sequence[Path], streaming: bool) -> Dataset | IterableDataset:
    rows = 0
    for path in paths:
        try:
            rows += pq.ParquetFile(path).metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            _refuse(str(path), f"is no Parquet file that can be read: {error}", "Write the file again.")
    if rows == 0:
        _refuse(", ".join(map(str, paths)), "has no rows", "Pass a file with at least one row.")
    files = [str(path) for path in paths]
    try:
        return load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    except (DatasetGenerationError, pa.ArrowException) as error:
        cause = error.__cause__ or error
        _refuse(", ".join(files), f"cannot be read: {cause}", "Give all files the same columns and types.")


def _refuse(file: str, message: str, fix: str, line: int | None = None) -> NoReturn:
    place = f"{file}" if line is None else f"{file}, line {line}"
    raise DataError(f"{place}: {message}", fix=fix)


# --- rows ---------------------------------------------------------------------------------------------------


def _read_files(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    for name in paths:
        path = Path(name)
        rows = csv_rows(path) if kind_of_file(path) == "csv" else json_rows(path)
        try:
            for row in rows:
                yield {
                    key: json.dumps(value, ensure_ascii=False)
                    if key in _TEXT_OF_JSON and isinstance(value, list | dict)
                    else value
                    for key, value in row.items()
                }
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            _refuse(name, f"cannot be decompressed: {error}", "Write or download the file again.")
        except OSError as error:
            _refuse(name, f"cannot be read: {error}", "Check the file and its permissions.")


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a JSON or JSON lines file, as they are written.

    Args:
        path: The file; also compressed, as ``.gz``.

    Raises:
        DataError: A line is no JSON, or no object; the message names it.
    """
    with _open(path) as file:
        start = file.peek(1024).removeprefix(b"\xef\xbb\xbf").lstrip()  # type: ignore[attr-defined]
        if start.startswith(b"["):
            yield from _json_array(path, file.read())
            return
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                row = _parse_json(path, raw.rstrip(), number)
                if not isinstance(row, dict):
                    fix = "Write each row as an object with the columns as keys."
                    _refuse(str(path), f"holds a {type(row).__name__}, not an object", fix, number)
                yield row


def _json_array(path: Path, raw: bytes) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(_parse_json(path, raw, 1)):
        if not isinstance(row, dict):
            fix = "Write each row as an object with the columns as keys."
            _refuse(str(path), f"item {index} is a {type(row).__name__}, not an object", fix)
        yield row


def _parse_json(path: Path, raw: bytes, first_line: int) -> Any:
    fix = "Mend or delete the line; each line is one JSON object (or the whole file one list of objects)."
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        _refuse(str(path), f"is not valid JSON: {error.msg} (column {error.colno})", fix, line)
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        _refuse(str(path), f"is not UTF-8: {error.reason}", "Save the file as UTF-8.", line)


def csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read the rows of a CSV or TSV file; cells that hold JSON or numbers are parsed where the column is known.

    Args:
        path: The file; also compressed, as ``.gz``.

    Raises:
        DataError: A line has too many or too few cells, or cannot be read; the message names it.
    """
    delimiter = "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            parse = _CsvCells(path)
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    problem = f"has {len(cells)} cells, but the header names {len(header)} columns"
                    _refuse(str(path), problem, "Quote cells that hold commas or line breaks.", reader.line_num)
                yield parse.row(dict(zip(header, cells, strict=True)), reader.line_num)
        except csv.Error as error:
            fix = "Mend the line; cells beyond 131,072 characters need JSON lines or Parquet."
            _refuse(str(path), f"is not valid CSV: {error}", fix, reader.line_num)
        except UnicodeDecodeError as error:
            _refuse(str(path), f"is not UTF-8: {error.reason}", "Save the file as UTF-8.", reader.line_num + 1)


class _CsvCells:
    """Turns the text in cells into values; the first row decides which columns hold lists of messages."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns_of_messages: set[str] | None = None

    def row(self, cells: Mapping[str, str], line: int) -> dict[str, Any]:
        if self._columns_of_messages is None:
            self._columns_of_messages = {
                name for name in _MESSAGE_COLUMNS if _messages_in(cells.get(name, "")) is not None
            }
        values: dict[str, Any] = dict(cells)
        for name, cell in cells.items():
            if name in self._columns_of_messages:
                values[name] = _messages_in(cell)
                expected = "a JSON list of messages, as in the first row"
            elif name in TOKENIZED_COLUMNS:
                values[name] = _literal(cell)
                expected = "a list of token ids such as [5, 17]"
            elif name in ("scores", "ranks", "responses") and "chosen" not in cells:
                values[name] = _literal(cell)
                expected = "a JSON list"
                if name == "scores" and "responses" not in cells and values[name] is None:
                    values[name] = _number_in(cell)  # the grade of a single response
                    expected = "a number"
            elif name in ("margin", "weight", "strength") or (name == "score" and "chosen" not in cells):
                values[name] = _number_in(cell)
                expected = "a number"
            elif name == "tie" and not cell.strip():
                values[name] = None  # as in JSON: no tie
                continue
            elif name == "tie" or (name == "label" and "chosen" not in cells):
                values[name] = _TRUTHS.get(cell.strip().lower())
                expected = "true or false"
            else:
                continue
            if values[name] is None:
                _refuse(str(self._path), f"`{name}` is not {expected}", "Mend or delete the row.", line)
        return values


def _literal(cell: str) -> Any:
    """Read a list as JSON, or as Python writes it (pandas does); None if it is no list."""
    if not cell.lstrip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            return read(cell)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return None


def _messages_in(cell: str) -> list[Any] | None:
    value = _literal(cell)
    return value if isinstance(value, list) and value and all(isinstance(one, dict) for one in value) else None


def _number_in(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


# --- types --------------------------------------------------------------------------------------------------

Kind: TypeAlias = "str | list[Any] | dict[str, Any]"
"""Type of a column: a name, ``[kind]`` for a list, ``{key: kind}`` for a mapping of texts, or ``"json"``"""

_SCALARS: dict[type, str] = {type(None): "null", bool: "bool", int: "int", float: "float", str: "string"}


def _kind_of(value: Any) -> Kind:
    if isinstance(value, list):
        kind: Kind = "null"
        for item in value:
            kind = _merge(kind, _kind_of(item))
        return [kind]
    if isinstance(value, dict):
        flat = value and all(item is None or isinstance(item, str) for item in value.values())
        return {key: _SCALARS[type(item)] for key, item in value.items()} if flat else "json"
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return "json"
    return _SCALARS[type(value)]


def _merge(one: Kind, other: Kind) -> Kind:
    if one == other or other == "null":
        return one
    if one == "null":
        return other
    if isinstance(one, list) and isinstance(other, list):
        return [_merge(one[0], other[0])]
    if isinstance(one, dict) and isinstance(other, dict):
        return {key: _merge(one.get(key, "null"), other.get(key, "null")) for key in {**one, **other}}
    return "float" if one in ("int", "float") and other in ("int", "float") else "json"


def _feature_of(kind: Kind) -> Any:
    if isinstance(kind, list):
        return List(_feature_of(kind[0]))
    if isinstance(kind, dict):
        return {key: _feature_of(inner) for key, inner in kind.items()}
    if kind == "json":
        return Json()
    return Value({"null": "string", "int": "int64", "float": "float64"}.get(kind, kind))


def _encoded_rows(
    paths: Sequence[str], columns: Mapping[str, Kind], stamps: Any, version: int
) -> Iterator[dict[str, Any]]:
    """The rows as they are stored; `stamps` and `version` are there for the cache key only."""
    encoder = _Encoder()
    for index, row in enumerate(_read_files(paths)):
        yield {name: encoder.encode(row.get(name), kind, index, name) for name, kind in columns.items()}
    if encoder.rounded:
        logger.warning(
            "%d values with long decimal numbers are rounded in the last digit (the first in row %d).",
            len(encoder.rounded),
            encoder.rounded[0],
        )


class _Encoder:
    """Writes values of kind ``"json"`` as the text that `datasets` stores for them.

    Attributes:
        rounded: Rows of the values whose numbers come back with another last digit: `datasets` reads them with
            a parser of its own, which also gives up on NaN and on numbers beyond 64 bits.
    """

    def __init__(self) -> None:
        self.rounded: list[int] = []

    def encode(self, value: Any, kind: Kind, row: int, field: str) -> Any:
        if value is None:
            return None
        if isinstance(kind, list):
            return [self.encode(item, kind[0], row, f"{field}[{n}]") for n, item in enumerate(value)]
        if isinstance(kind, dict):
            return {key: self.encode(value.get(key), inner, row, f"{field}.{key}") for key, inner in kind.items()}
        if kind != "json":
            return value
        text = json.dumps(value)
        try:
            back = Json().decode_example(text)
        except ValueError:
            back = text
        if isinstance(back, str) != isinstance(value, str):
            fix = "Write it as text."
            raise DataError("holds a number that JSON or 64 bits cannot hold", row=row, field=field, fix=fix)
        if back != value:
            self.rounded.append(row)
        return text
