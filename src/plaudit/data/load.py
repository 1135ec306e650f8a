"""Loads preference data by name: a local file, a folder, or a data set on the Hugging Face Hub."""

from __future__ import annotations

import ast
import csv
import difflib
import gzip
import hashlib
import json
import logging
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    Json,
    List,
    ReadInstruction,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

from plaudit.data.parse import prompt_of
from plaudit.errors import ConfigError, DataError
from plaudit.schema import (
    RAW_COLUMNS,
    RESPONSE_COLUMNS,
    TOKENIZED_COLUMNS,
    TOKENIZED_LIST_COLUMNS,
)

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
        _refuse_of_files(", ".join(names), "has no rows", "Pass a file with at least one row.")
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
            _refuse_of_files(str(path), f"is no Parquet file that can be read: {error}", "Write the file again.")
    if rows == 0:
        _refuse_of_files(", ".join(map(str, paths)), "has no rows", "Pass a file with at least one row.")
    files = [str(path) for path in paths]
    try:
        return load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    except (DatasetGenerationError, pa.ArrowException) as error:
        cause = error.__cause__ or error
        _refuse_of_files(", ".join(files), f"cannot be read: {cause}", "Give all files the same columns and types.")


def _refuse_of_files(file: str, message: str, fix: str, line: int | None = None) -> NoReturn:
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
            _refuse_of_files(name, f"cannot be decompressed: {error}", "Write or download the file again.")
        except OSError as error:
            _refuse_of_files(name, f"cannot be read: {error}", "Check the file and its permissions.")


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
                    _refuse_of_files(str(path), f"holds a {type(row).__name__}, not an object", fix, number)
                yield row


def _json_array(path: Path, raw: bytes) -> Iterator[dict[str, Any]]:
    for index, row in enumerate(_parse_json(path, raw, 1)):
        if not isinstance(row, dict):
            fix = "Write each row as an object with the columns as keys."
            _refuse_of_files(str(path), f"item {index} is a {type(row).__name__}, not an object", fix)
        yield row


def _parse_json(path: Path, raw: bytes, first_line: int) -> Any:
    fix = "Mend or delete the line; each line is one JSON object (or the whole file one list of objects)."
    try:
        return json.loads(raw.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        _refuse_of_files(str(path), f"is not valid JSON: {error.msg} (column {error.colno})", fix, line)
    except UnicodeDecodeError as error:
        line = first_line + raw[: error.start].count(b"\n")
        _refuse_of_files(str(path), f"is not UTF-8: {error.reason}", "Save the file as UTF-8.", line)


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
                    _refuse_of_files(
                        str(path), problem, "Quote cells that hold commas or line breaks.", reader.line_num
                    )
                yield parse.row(dict(zip(header, cells, strict=True)), reader.line_num)
        except csv.Error as error:
            fix = "Mend the line; cells beyond 131,072 characters need JSON lines or Parquet."
            _refuse_of_files(str(path), f"is not valid CSV: {error}", fix, reader.line_num)
        except UnicodeDecodeError as error:
            _refuse_of_files(str(path), f"is not UTF-8: {error.reason}", "Save the file as UTF-8.", reader.line_num + 1)


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
                    values[name] = _number_in(cell)  # the rating of a single response
                    expected = "a number"
            elif name in ("margin", "weight", "preference_prob") or (name == "score" and "chosen" not in cells):
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
                _refuse_of_files(str(self._path), f"`{name}` is not {expected}", "Mend or delete the row.", line)
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


def split_by_prompt(dataset: Dataset, fraction: float, *, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split preferences for training and evaluation; rows that share a prompt stay together.

    The prompt is the column ``prompt`` where there is one; in conversations without it, the messages that
    both responses share, up to the last one of the user; in plain text without it, where prompt and answer
    cannot be told apart, the whole row. The same rows, fraction and seed always give the same parts, in which
    the rows keep their order.

    Args:
        dataset: Raw preferences.
        fraction: Share of the rows to evaluate on, between 0 and 1.
        seed: Decides which prompts those are.

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
        raise ConfigError(
            f"`eval_fraction` is {fraction}", fix="Give a share of the rows between 0 and 1, such as 0.1."
        )
    groups: dict[bytes, list[int]] = {}
    columns = [
        name for name in dataset.column_names if name in (*RAW_COLUMNS, *TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS)
    ]
    for index, row in enumerate(dataset.select_columns(columns).with_format(None)):
        key = json.dumps([seed, prompt_of(row)], sort_keys=True, default=str)
        groups.setdefault(hashlib.sha256(key.encode()).digest(), []).append(index)
    if len(groups) < 2:
        raise DataError(
            f"its {len(dataset)} rows share one prompt: nothing can be set aside for evaluation",
            dataset="train",
            fix="Name a split for evaluation with `dataset_test_split`, or leave `eval_fraction` out.",
        )
    chosen = set(_choose(groups, max(1, math.floor(fraction * len(dataset) + 0.5))))
    rest = [index for index in range(len(dataset)) if index not in chosen]
    return dataset.select(rest), dataset.select(sorted(chosen))


def _choose(groups: Mapping[bytes, Sequence[int]], target: int) -> list[int]:
    """Take prompts in the order of their hashes, as many as fit into `target` rows; at least one."""
    taken: list[int] = []
    order = sorted(groups)
    for key in order[:-1]:
        if len(taken) + len(groups[key]) <= target:
            taken.extend(groups[key])
    return taken or list(groups[min(order, key=lambda key: len(groups[key]))])


_SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
}
# Written by `datasets` beside the data.
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_READABLE = ", ".join(SUFFIXES)
_READERS = ("json", "csv", "parquet")
DataFiles: TypeAlias = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""Files of a data set: one or more patterns, or those of each split."""


def load_preference_dataset(
    name: str | os.PathLike[str],
    *,
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    data_dir: str | None = None,
    data_files: DataFiles | None = None,
) -> Dataset | IterableDataset:
    """Load one split of a data set.

    Args:
        name: A JSON, JSON lines, CSV or TSV file (also ``.gz``) or a Parquet file; a folder of such files,
            named after their splits; a folder written by ``save_to_disk``; or a name on the Hub. What
            exists on this machine comes first.
        config: Configuration of a data set on the Hub, or of a folder with the same structure.
        split: Which split, also with slices and sums such as ``"train[:10%]"`` or ``"train+validation"``. A
            single file is the split ``train``.
        streaming: Read row by row instead of all at once.
        data_dir: A folder inside the data set. With ``"json"``, ``"csv"`` or ``"parquet"`` as `name`, any folder.
        data_files: Names or patterns such as ``"part-*.jsonl"`` of files inside the data set (any files, with
            those names), or a mapping from splits to them.

    Raises:
        DataError: There is nothing of that name, it has no such split, or it cannot be read; the message
            names the file and the line where it can.
    """
    text, path = os.fspath(name), Path(name).expanduser()
    if data_dir is not None or data_files is not None:
        return _from_inside(text, config, split, streaming, data_dir, data_files)
    if path.is_dir():
        if config is not None:
            return _from_hub(str(path), config, split, streaming)
        return _from_folder(path, split, streaming)
    if path.is_file():
        if config is not None:
            _refuse(text, f"is a single file: it has no configuration {config!r}", "Leave the configuration out.")
        if kind_of_file(path) is None:
            _refuse(
                text,
                "has an extension that says nothing",
                f"Use one of {_READABLE} (all but Parquet also .gz).",
            )
        return _pick(text, {"train": lambda: load_files([path], streaming=streaming)}, split, streaming)
    if _looks_like_path(text):
        _refuse(text, "there is no such file or folder", _near_misses(path))
    return _from_hub(text, config, split, streaming)


def _refuse(name: str, message: str, fix: str) -> NoReturn:
    raise DataError(f"{name}: {message}", fix=fix)


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


# --- splits -------------------------------------------------------------------------------------------------

Loaders = Mapping[str, Callable[[], Any]]


def _pick(name: str, splits: Loaders, split: str, streaming: bool) -> Any:
    """Load the asked-for split, or parts of several."""
    parts = [re.fullmatch(r"\s*([^\[\]]+?)\s*(\[.*\])?\s*", part) for part in split.split("+")]
    wanted = [part[1] for part in parts if part is not None]
    if len(wanted) < len(parts):
        _refuse(
            name,
            f"the split {split!r} cannot be read",
            'Write it like "train", "train[:500]" or "train+test".',
        )
    unknown = [one for one in wanted if one not in splits]
    if unknown:
        _refuse(name, f"has no split {unknown[0]!r}", f"It has: {', '.join(splits)}.")
    if wanted == [split]:
        return splits[split]()
    if streaming:
        _refuse(name, f"a stream cannot be cut into {split!r}", "Name one whole split, or do not stream.")
    loaded = {one: splits[one]() for one in wanted}
    try:
        pieces = ReadInstruction.from_spec(split).to_absolute({one: len(rows) for one, rows in loaded.items()})
    except (ValueError, AssertionError) as error:
        _refuse(
            name,
            f"the split {split!r} cannot be read: {error}",
            'Write slices like "train[:500]" or "train[10%:]".',
        )
    rows = [
        loaded[piece.splitname].select(range(start, end))
        for piece in pieces
        for start, end in [(piece.from_ or 0, len(loaded[piece.splitname]) if piece.to is None else piece.to)]
        if start < end
    ]
    if not rows:
        _refuse(name, f"the split {split!r} has no rows", "Choose a larger part.")
    return rows[0] if len(rows) == 1 else concatenate_datasets(rows)


# --- folders ------------------------------------------------------------------------------------------------


def _from_folder(folder: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _from_saved(folder, split, streaming)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and kind_of_file(path) is not None
        and path.name not in _NOT_DATA
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        inside = sorted(entry.name for entry in folder.iterdir())[:8]
        _refuse(
            str(folder),
            f"holds no data file (it holds {', '.join(inside) if inside else 'nothing'})",
            f"Put files there that end in one of {_READABLE}, or name a folder written by `save_to_disk`.",
        )
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(path.relative_to(folder)), []).append(path)
    if not set(splits) & set(_SPLIT_WORDS.values()):
        splits = {"train": files}
    return _pick_files(str(folder), splits, split, streaming)


def _pick_files(name: str, splits: Mapping[str, list[Path]], split: str, streaming: bool) -> Any:
    for part, paths in splits.items():
        if len({kind_of_file(path) == "parquet" for path in paths}) > 1:
            names = ", ".join(path.name for path in paths[:4])
            _refuse(name, f"the split {part!r} mixes Parquet with other files ({names})", "Name one file.")
    loaders = {part: _files_loader(paths, streaming) for part, paths in splits.items()}
    return _pick(name, loaders, split, streaming)


def _files_loader(paths: list[Path], streaming: bool) -> Callable[[], Any]:
    return lambda: load_files(paths, streaming=streaming)


def _same(rows: Dataset) -> Dataset:
    return rows


def _split_of(path: Path) -> str:
    """Name the split that a file belongs to.

    >>> [_split_of(Path(name)) for name in ("data/train-00000-of-00002.parquet", "dev.jsonl", "extra.csv")]
    ['train', 'validation', 'extra']
    """
    stem = path.name.split(".")[0]
    for text in (stem, *reversed(path.parent.parts)):
        for word in re.split(r"[^a-z]+", text.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return re.sub(r"-\d{5}-of-\d{5}$", "", stem)


def _from_saved(folder: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    try:
        saved = load_from_disk(folder)
    except (OSError, ValueError, KeyError) as error:
        _refuse(str(folder), f"cannot be loaded: {type(error).__name__}: {error}", "Save the data set again.")
    splits = saved if isinstance(saved, DatasetDict) else {"train": saved}
    loaders: Loaders = {str(name): partial(_same, rows) for name, rows in splits.items()}
    if isinstance(saved, Dataset) and split not in loaders and saved.split is not None:
        # A data set saved alone still knows which split it was.
        loaders = {str(saved.split): partial(_same, saved)}
    rows = _pick(str(folder), loaders, split, streaming)
    if len(rows) == 0:
        _refuse(str(folder), f"the split {split!r} has no rows", "Pass a data set with at least one row.")
    return rows.to_iterable_dataset() if streaming else rows


# --- chosen files -------------------------------------------------------------------------------------------


def _from_inside(
    name: str, config: str | None, split: str, streaming: bool, data_dir: str | None, data_files: DataFiles | None
) -> Any:
    """Load the files of a folder, or any files, that `data_dir` and `data_files` point at."""
    folder = Path(name).expanduser()
    if folder.is_file():
        _refuse(name, "is a single file: it has no files inside", "Leave `data_dir` and `data_files` out.")
    by_split: Mapping[str, Any] = data_files if isinstance(data_files, Mapping) else {"train": data_files}
    patterns = {part: [one] if isinstance(one, str) else list(one) for part, one in by_split.items() if one is not None}
    remote = any("://" in one for files in patterns.values() for one in files)
    if config is not None or remote or not (folder.is_dir() or name in _READERS):
        if _looks_like_path(name) and not folder.exists():
            _refuse(name, "there is no such file or folder", _near_misses(folder))
        return _from_hub(name, config, split, streaming, data_dir=data_dir, data_files=data_files)
    inside = Path(data_dir).expanduser() if data_dir is not None else Path()
    base = folder / inside if folder.is_dir() else inside
    if not base.is_dir():
        _refuse(name, f"there is no folder {str(base)!r}", _near_misses(base))
    if not patterns:
        return _from_folder(base, split, streaming)
    files = {part: [path for one in chosen for path in _matching(base, one)] for part, chosen in patterns.items()}
    return _pick_files(name, files, split, streaming)


def _matching(base: Path, pattern: str) -> list[Path]:
    exact = base / Path(pattern).expanduser()
    root = Path(exact.anchor)
    matching = [exact] if exact.is_file() else root.glob(str(exact.relative_to(root)))
    found = sorted(path for path in matching if path.is_file())
    if not found:
        _refuse(str(base / pattern), "there is no such file", _near_misses(base / pattern))
    unknown = [path for path in found if kind_of_file(path) is None]
    if unknown:
        fix = f"Use one of {_READABLE} (all but Parquet also .gz)."
        _refuse(str(unknown[0]), "has an extension that says nothing", fix)
    return found


# --- the Hub ------------------------------------------------------------------------------------------------


def _from_hub(name: str, config: str | None, split: str, streaming: bool, **inside: Any) -> Dataset | IterableDataset:
    here = "" if Path(name).exists() else " (and there is no local file or folder of that name)"
    try:
        return load_dataset(name, config, split=split, streaming=streaming, **inside)
    except (DatasetNotFoundError, HFValidationError) as error:
        _refuse(
            name,
            f"there is no such data set on the Hub, or it is not open to you{here}: {error}",
            _hub_advice(name),
        )
    except (ConnectionError, OfflineModeIsEnabled) as error:
        advice = "Check the network and HF_HUB_OFFLINE, or download the data and name the local file or folder."
        _refuse(name, f"the Hub cannot be reached{here}: {_first_line(error)}", advice)
    except (DatasetsError, OSError, ValueError, NotImplementedError) as error:
        advice = "Check the configuration (`dataset_config`) and the split against the data set's page."
        _refuse(name, f"cannot be loaded: {_first_line(error.__cause__ or error)}", advice)


def _first_line(error: BaseException) -> str:
    lines: Iterable[str] = str(error).strip().splitlines()
    return next(iter(lines), type(error).__name__)


def _hub_advice(name: str) -> str:
    if "/" not in name:
        close = _near_misses(Path(name))
        return close if close.startswith("Did you mean") else "Write it as `owner/name`, or give a path."
    return "Check the spelling; for a private or gated data set log in with `hf auth login`."
