"""Reads rows from files: JSON, JSON lines, CSV, TSV and Parquet, with the line of whatever cannot be read."""

from __future__ import annotations

import ast
import contextlib
import csv
import gzip
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, IterableDataset, Json, List, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from plaudit.errors import DataError, as_raised_in_worker
from plaudit.schema import RESPONSE_COLUMNS, TOKENIZED_COLUMNS, quoted

logger = logging.getLogger("plaudit")
SUFFIXES = {
    **dict.fromkeys((".json", ".jsonl", ".ndjson"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
}
"""Kind of file for each extension; all but Parquet may also end in ``.gz``."""
CODE_VERSION = 1
"""Part of the cache key: raise it whenever the same files would give other values than before."""
READABLE = ", ".join(SUFFIXES)
MESSAGE_COLUMNS = ("prompt", *RESPONSE_COLUMNS, "response")
JSON_TEXTS = ("tools", "chat_template_kwargs")
"""Columns that may hold JSON as text."""
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


def refuse(file: str, message: str, fix: str, line: int | None = None) -> NoReturn:
    """Raises the error about a file, or a line of it."""
    place = file if line is None else f"{file}, line {line}"
    raise as_raised_in_worker(DataError(f"{place}: {message}", fix=fix))


def kind_of_file(path: Path) -> str | None:
    """Tells how to read a file from its name: ``"json"``, ``"csv"`` or ``"parquet"``, or None.

    >>> [kind_of_file(Path(name)) for name in ("pairs.jsonl.gz", "pairs.parquet.gz", "pairs.txt")]
    ['json', None, None]
    """
    before, last = ["", "", *(suffix.lower() for suffix in path.suffixes)][-2:]
    if last != ".gz":
        return SUFFIXES.get(last)
    return None if before == ".parquet" else SUFFIXES.get(before)


def load_files(paths: Sequence[Path], *, streaming: bool = False) -> Dataset | IterableDataset:
    """Reads existing files, all Parquet or none, as one data set, in the order given.

    JSON values come back as they were written: a mapping of anything but texts is kept as JSON, not forced
    into one Arrow type for all rows. The columns ``tools`` and ``chat_template_kwargs`` become JSON text.
    """
    files = [str(path) for path in paths]
    if any(kind_of_file(path) == "parquet" for path in paths):
        return _load_parquet(files, streaming)
    if streaming:
        return IterableDataset.from_generator(_read_files, gen_kwargs={"paths": files})
    columns: dict[str, Kind] | None = None
    for row in _read_files(files):
        columns = {} if columns is None else columns
        for name, value in row.items():
            columns[name] = widened(columns.get(name, "null"), value)
    if columns is None:
        refuse(", ".join(files), "has no rows", "Pass a file with at least one row.")
    # The size and time of each file are part of the key under which `datasets` caches what it reads.
    stamps = [[path.stat().st_size, path.stat().st_mtime_ns] for path in paths]
    settings: dict[str, Any] = {"paths": files, "columns": columns, "stamps": stamps, "version": CODE_VERSION}
    features = Features({name: feature_of(kind) for name, kind in columns.items()})
    try:
        return Dataset.from_generator(_encoded_rows, features=features, gen_kwargs=settings)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, DataError):
            raise error.__cause__ from None
        raise
    except OSError as error:
        logger.warning("The cache of data sets cannot be written (%s): the rows are kept in memory.", error)
        return Dataset.from_list(list(_encoded_rows(**settings)), features=features)


def _load_parquet(files: list[str], streaming: bool) -> Dataset | IterableDataset:
    rows = 0
    for file in files:
        try:
            opened = pq.ParquetFile(file)
            rows += opened.metadata.num_rows
        except (OSError, pa.ArrowException) as error:
            refuse(file, f"is no Parquet file that can be read: {error}", "Write the file again.")
        _check_names(file, opened.schema_arrow.names)
    if rows == 0:
        refuse(", ".join(files), "has no rows", "Pass a file with at least one row.")
    try:
        return load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    except (DatasetGenerationError, pa.ArrowException) as error:
        cause = error.__cause__ or error
        refuse(", ".join(files), f"cannot be read: {cause}", "Give all files the same columns and types.")


def _check_names(file: str, names: Sequence[str], line: int | None = None) -> None:
    twice = [name for name in dict.fromkeys(names) if name.strip() and names.count(name) > 1]
    if twice:
        refuse(file, f"has several columns named {quoted(twice)}", "Rename or delete all but one.", line)


def _read_files(paths: Sequence[str]) -> Iterator[dict[str, Any]]:
    for path in map(Path, paths):
        for row in csv_rows(path) if kind_of_file(path) == "csv" else json_rows(path):
            for name in JSON_TEXTS:
                if isinstance(row.get(name), list | dict):
                    row[name] = json.dumps(row[name], ensure_ascii=False)
            yield row


@contextlib.contextmanager
def _opened(path: Path, mode: str, **settings: Any) -> Iterator[Any]:
    """Opens a file, also ``.gz``, and turns errors of the operating system and of gzip into `DataError`."""
    opener: Any = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with opener(path, mode, **settings) as file:
            yield file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        refuse(str(path), f"cannot be decompressed: {error}", "Write or download the file again.")
    except OSError as error:
        refuse(str(path), f"cannot be read: {error}", "Check the file and its permissions.")


def json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Reads the rows of a JSON or JSON lines file, also ``.gz``, as they are written."""
    with _opened(path, "rb") as file:
        start = file.peek(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
        if start.startswith(b"["):
            numbered: Iterable[tuple[int | None, Any]] = ((None, row) for row in _parse_json(path, file.read(), 1))
        else:
            lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            numbered = ((number, _parse_json(path, line.rstrip(), number)) for number, line in lines)
        for index, (number, row) in enumerate(numbered):
            if not isinstance(row, dict):
                fix = "Write each row as an object with the columns as keys."
                item = f"item {index} is" if number is None else "holds"
                refuse(str(path), f"{item} a {type(row).__name__}, not an object", fix, number)
            yield row


def _parse_json(path: Path, raw: bytes, first_line: int) -> Any:
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        fix = "Correct or delete the line; each line is one JSON object (or the whole file one list of objects)."
        line = first_line + error.lineno - 1
        refuse(str(path), f"is not valid JSON: {error.msg} (column {error.colno})", fix, line)
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        refuse(str(path), f"is not UTF-8: {error.reason}", "Save the file as UTF-8.", line)


def csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Reads the cells of a CSV or TSV file, also ``.gz``, with the numbers of their lines; the header comes first."""
    delimiter = "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","
    with _opened(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            yield from ((reader.line_num, cells) for cells in reader if cells)
        except csv.Error as error:
            fix = "Correct the line; cells beyond 131,072 characters need JSON lines or Parquet."
            refuse(str(path), f"is not valid CSV: {error}", fix, reader.line_num)
        except UnicodeDecodeError as error:
            refuse(str(path), f"is not UTF-8: {error.reason}", "Save the file as UTF-8.", reader.line_num + 1)


def csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Reads the rows of a CSV or TSV file; JSON and numbers are parsed where the column is known."""
    lines = csv_lines(path)
    line, header = next(lines, (0, []))
    _check_names(str(path), header, line)
    readers: dict[str, tuple[Callable[[str], Any], str]] | None = None
    for number, cells in lines:
        if len(cells) != len(header):
            problem = f"has {len(cells)} cells, but the header names {len(header)} columns"
            refuse(str(path), problem, "Quote cells that hold commas or line breaks.", number)
        row: dict[str, Any] = dict(zip(header, cells, strict=True))
        if readers is None:
            readers = _cell_readers(row)
        for name, (read, expected) in readers.items():
            value = read(row[name])
            # An empty cell of `tie` is null, as in JSON: no tie.
            if value is None and not (name == "tie" and not row[name].strip()):
                refuse(str(path), f"`{name}` is not {expected}", "Correct or delete the row.", number)
            row[name] = value
        yield row


def _cell_readers(first: Mapping[str, str]) -> dict[str, tuple[Callable[[str], Any], str]]:
    """Returns, for columns that are no text, how to read a cell and what it should be, given the first row."""
    number = (_number_in, "a number")
    truth = (lambda cell: _TRUTHS.get(cell.strip().lower()), "true or false")
    readers: dict[str, tuple[Callable[[str], Any], str]] = {
        **dict.fromkeys(TOKENIZED_COLUMNS, (_literal, "a list of token ids such as [5, 17]")),
        **dict.fromkeys(("margin", "weight", "preference_prob"), number),
        "tie": truth,
    }
    if "chosen" not in first:  # beside a pair, columns of other kinds of rows may hold anything
        readers |= dict.fromkeys(("scores", "ranks", "responses"), (_literal, "a JSON list"))
        readers |= {"score": number, "label": truth}
        if "responses" not in first:  # the rating of a single response may be there
            readers["scores"] = (_list_or_number, "a number")
    messages = (_messages_in, "a JSON list of messages, as in the first row")
    readers |= {name: messages for name in MESSAGE_COLUMNS if _messages_in(first.get(name, ""))}
    return {name: readers[name] for name in first if name in readers}


def _literal(cell: str) -> Any:
    """Reads a list as JSON, or as Python writes it (pandas does); None if it is no list."""
    if not cell.lstrip().startswith("["):
        return None
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return read(cell)
    return None


def _list_or_number(cell: str) -> Any:
    value = _literal(cell)
    return _number_in(cell) if value is None else value


def _messages_in(cell: str) -> list[Any] | None:
    value = _literal(cell)
    return value if isinstance(value, list) and value and all(isinstance(item, dict) for item in value) else None


def _number_in(cell: str) -> float | None:
    with contextlib.suppress(ValueError):
        return float(cell)
    return None


# --- types of JSON columns --------------------------------------------------------------------------------------

Kind: TypeAlias = "str | list[Any] | dict[str, Any]"
"""Type of a column: a name, ``[kind]`` for a list, ``{key: kind}`` for a mapping of texts, or ``"json"``"""
_SCALARS: dict[type, str] = {type(None): "null", bool: "bool", int: "int", float: "float", str: "string"}


def widened(kind: Kind, value: Any) -> Kind:
    """Returns the kind of a column that holds one more value."""
    if value is None or kind == "json":
        return kind
    if isinstance(value, list) and (kind == "null" or isinstance(kind, list)):
        inner: Kind = "null" if kind == "null" else kind[0]
        for item in value:
            inner = widened(inner, item)
        return [inner]
    texts = value.values() if isinstance(value, dict) else ()
    is_flat = texts and all(item is None or isinstance(item, str) for item in texts)
    if is_flat and (kind == "null" or isinstance(kind, dict)):
        known: Any = {} if kind == "null" else kind
        return known | {key: widened(known.get(key, "null"), item) for key, item in value.items()}
    is_long = type(value) is int and not -(2**63) <= value < 2**63
    own = "json" if is_long else _SCALARS.get(type(value), "json")
    if kind in ("null", own):
        return own
    return "float" if kind in ("int", "float") and own in ("int", "float") else "json"


def feature_of(kind: Kind) -> Any:
    """Returns the type of a column as `datasets` declares it."""
    if isinstance(kind, list):
        return List(feature_of(kind[0]))
    if isinstance(kind, dict):
        return {key: feature_of(inner) for key, inner in kind.items()}
    if kind == "json":
        return Json()
    return Value({"null": "string", "int": "int64", "float": "float64"}.get(kind, kind))


def _encoded_rows(
    paths: Sequence[str], columns: Mapping[str, Kind], stamps: Any, version: int
) -> Iterator[dict[str, Any]]:
    """Iterates over the rows as they are stored; `stamps` and `version` are there for the cache key only."""
    rounded: list[int] = []
    for index, row in enumerate(_read_files(paths)):
        yield {name: _encoded(row.get(name), kind, index, name, rounded) for name, kind in columns.items()}
    if rounded:
        logger.warning(
            "%d values with long decimal numbers are rounded in the last digit (the first in row %d).",
            len(rounded),
            rounded[0],
        )


def _encoded(value: Any, kind: Kind, row: int, field: str, rounded: list[int]) -> Any:
    """Writes values of kind ``"json"`` as the text that `datasets` stores; `rounded` collects rows that change."""
    if value is None:
        return None
    if isinstance(kind, list):
        return [_encoded(item, kind[0], row, f"{field}[{index}]", rounded) for index, item in enumerate(value)]
    if isinstance(kind, dict):
        return {key: _encoded(value.get(key), inner, row, f"{field}.{key}", rounded) for key, inner in kind.items()}
    if kind != "json":
        return value
    text = json.dumps(value)
    try:
        # `datasets` has a parser of its own, which gives up on NaN and on numbers beyond 64 bits.
        back = Json().decode_example(text)
    except ValueError:
        back = text
    if isinstance(back, str) != isinstance(value, str):
        message = "holds a number that JSON or 64 bits cannot hold"
        raise DataError(message, row=row, field=field, fix="Write it as text.")
    if back != value:
        rounded.append(row)
    return text
