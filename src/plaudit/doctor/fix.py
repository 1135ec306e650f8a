"""Writes a cleaned copy of a data set, and a list of the dropped rows with reasons."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import json
import os
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from plaudit.data.load import DataSource
from plaudit.data.parse import without_nulls
from plaudit.doctor.findings import KINDS, Finding, Fixed
from plaudit.errors import ConfigError, DataError
from plaudit.files import appearing
from plaudit.schema import RAW_COLUMNS

_SUFFIXES = (".jsonl", ".jsonl.gz")


def removed_path(path: Path) -> Path:
    """Returns the path of the list of dropped rows.

    >>> str(removed_path(Path("clean.jsonl.gz")))
    'clean.removed.jsonl.gz'
    """
    suffix = next(suffix for suffix in reversed(_SUFFIXES) if path.name.endswith(suffix))
    return path.with_name(f"{path.name.removesuffix(suffix)}.removed{suffix}")


def check_target(path: Path, source: Any, *, overwrite: bool) -> None:
    """Raises if the target cannot be written, before any work is done."""
    if not path.name.endswith(_SUFFIXES):
        raise ConfigError(f"the cleaned copy {str(path)!r} would be JSON lines", fix="Let its name end in .jsonl.")
    if not path.parent.is_dir():
        raise ConfigError(f"there is no folder {str(path.parent)!r}", fix="Make it first.")
    for target in (path, removed_path(path)):
        if isinstance(source, str | os.PathLike) and target.resolve() == Path(source).expanduser().resolve():
            raise ConfigError(f"{str(target)!r} is the data set itself", fix="Give the cleaned copy another name.")
        if target.exists() and not overwrite:
            raise ConfigError(
                f"{str(target)!r} exists", fix="Use another file name, or pass `--overwrite` to replace it."
            )


def write_fixed(
    source: DataSource, findings: Sequence[Finding], path: Path, *, kinds: Collection[str], total: int
) -> Fixed:
    """Writes the rows without a fault to one file, and the others with their faults to another.

    Both files appear when they are complete; until then neither changes.
    """
    rows, reasons = _removals(findings, kinds)
    if len(rows) == total:
        fix = "Look at the findings: this looks like one fault in how the data was made."
        raise DataError("has no row without a fault: nothing was written", dataset=source.name, fix=fix)
    counts: dict[str, int] = {}
    seen, index = 0, 0
    with _appearing(path) as kept, _appearing(removed_path(path)) as removed:
        for seen, row in enumerate(source.whole_rows(), start=1):
            line = _as_json(row, source, seen - 1)
            if index < len(rows) and rows[index] == seen - 1:
                kind = reasons[index]
                counts[kind] = counts.get(kind, 0) + 1
                about = {"row": seen - 1, "reason": kind, "title": KINDS[kind].title}
                removed.write(f'{json.dumps(about)[:-1]}, "data": {line}}}\n')
                index += 1
            else:
                kept.write(f"{line}\n")
        if seen != total:
            raise DataError(
                f"had {total:,} rows when it was checked, and has {seen:,} now: nothing was written",
                dataset=source.name,
                fix="Check a data set that does not change meanwhile.",
            )
    return Fixed(str(path), str(removed_path(path)), total - len(rows), counts)


def _removals(findings: Sequence[Finding], kinds: Collection[str]) -> tuple[list[int], list[str]]:
    """Rows to remove, ascending, and for each the first fault it has, in the order of the kinds."""
    order = [name for name, kind in KINDS.items() if kind.removable and name in kinds]
    faults = sorted((fault for fault in findings if fault.kind in order), key=lambda fault: order.index(fault.kind))
    if not faults:
        return [], []
    rows = np.concatenate([np.asarray(fault.rows, dtype=np.int64) for fault in faults])
    names = np.repeat([order.index(fault.kind) for fault in faults], [fault.count for fault in faults])
    unique, first = np.unique(rows, return_index=True)
    return unique.tolist(), [order[number] for number in names[first].tolist()]


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[IO[str]]:
    """Opens a file that appears under its name only once it is complete."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with appearing(path) as temporary, opener(temporary, "wt", encoding="utf-8") as file:
        yield file


def _as_json(row: dict[str, Any], source: DataSource, number: int) -> str:
    features = source.features or {}
    # Arrow fills the messages of a table with nulls for keys that other rows have.
    values = {
        name: without_nulls(value, features.get(name))
        if features and name in RAW_COLUMNS and value is not None
        else value
        for name, value in row.items()
    }
    try:
        return json.dumps(values, ensure_ascii=False, default=_plain)
    except TypeError as error:
        fix = "Leave out the columns that JSON cannot hold."
        raise DataError(f"cannot be written as JSON: {error}", row=number, dataset=source.name, fix=fix) from error


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} in one of its columns")
