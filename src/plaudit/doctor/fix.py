"""Writes a cleaned copy of a data set, and a list of the dropped rows with reasons."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

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
            fix = "Use another file name, or pass `--overwrite` to replace it."
            raise ConfigError(f"{str(target)!r} exists", fix=fix)


def write_fixed(
    source: DataSource, findings: Sequence[Finding], path: Path, *, kinds: Collection[str], total: int
) -> Fixed:
    """Writes the rows without a fault to one file, and the others with their faults to another.

    Both files appear when they are complete; until then neither changes.
    """
    reasons: dict[int, str] = {}  # for each row to remove, the first fault it has in the order of the kinds
    for finding in sorted(findings, key=lambda finding: list(KINDS).index(finding.kind)):
        if finding.kind in kinds and KINDS[finding.kind].removable:
            reasons = dict.fromkeys(finding.rows, finding.kind) | reasons
    if len(reasons) == total:
        fix = "Look at the findings: this looks like one fault in how the data was made."
        raise DataError("has no row without a fault: nothing was written", dataset=source.name, fix=fix)
    counts, rows_seen = Counter[str](), 0
    with _appearing(path) as kept, _appearing(removed_path(path)) as removed:
        for index, row in enumerate(source.given_rows()):
            line = _as_json(row, source, index)
            rows_seen = index + 1
            if reason := reasons.get(index):
                counts[reason] += 1
                about = {"row": index, "reason": reason, "title": KINDS[reason].title}
                removed.write(f'{json.dumps(about)[:-1]}, "data": {line}}}\n')
            else:
                kept.write(f"{line}\n")
        if rows_seen != total:
            raise DataError(
                f"had {total:,} rows when it was checked, and has {rows_seen:,} now: nothing was written",
                dataset=source.name,
                fix="Check a data set that does not change meanwhile.",
            )
    return Fixed(str(path), str(removed_path(path)), total - len(reasons), dict(counts))


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
        name: without_nulls(value, features[name]) if name in features and name in RAW_COLUMNS else value
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
