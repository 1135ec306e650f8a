"""Finds a suite by its name, or takes a file, a data set on the Hub or rows in memory as one."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset

from plaudit.data.load import open_data
from plaudit.data.parse import kind_of
from plaudit.data.readers import kind_of_file
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.suites import NAMES
from plaudit.evaluation.suites.base import Preferences, Suite, SuiteRow
from plaudit.evaluation.table import ScoredSet, by_row
from plaudit.schema import RAW_COLUMNS, columns_read, row_kind_of

SUITES: dict[str, type[Suite]] = {
    name: getattr(importlib.import_module(f"plaudit.evaluation.suites.{path.split('.')[0]}"), path.split(".")[1])
    for name, path in NAMES.items()
}
"""Name -> suite, for those with a rule of their own."""
MOST_SLICES = 100
Rows: TypeAlias = Dataset | IterableDataset | Sequence[Mapping[str, Any]]
SuiteLike: TypeAlias = str | PathLike[str] | Rows
"""A name as for `--suite`, or rows in memory."""
Suites: TypeAlias = SuiteLike | Sequence[SuiteLike] | Mapping[str, SuiteLike]
# The value of an optional column that means the same as no value.
_NEUTRAL: dict[str, Any] = {"margin": 0.0, "preference_prob": 1.0, "tie": False, "weight": 1.0}


@dataclass(frozen=True)
class LoadedSuite:
    """The rows of a suite, and the rule that judges them."""

    label: str  # its name in the results; no two suites have the same
    suite: Suite
    rows: tuple[SuiteRow, ...]
    sources: tuple[str, ...]
    total: int  # rows that were read

    def at_most(self, count: int | None, seed: int) -> LoadedSuite:
        """Draws some of the rows at random (None: all); they keep their order."""
        if count is None or count >= len(self.rows):
            return self
        drawn = np.random.default_rng(seed).permutation(len(self.rows))[:count]
        return replace(self, rows=tuple(self.rows[index] for index in sorted(drawn.tolist())))

    def columns(self, wanted: Iterable[str]) -> list[str]:
        """Returns those of some columns that rows have; one with too many values to slice by raises `ConfigError`."""
        present = []
        for name in wanted:
            values = {str(row.columns[name]) for row in self.rows if row.columns.get(name) is not None}
            if len(values) > MOST_SLICES:
                raise ConfigError(
                    f"the column `{name}` has {len(values)} different values: too many to slice by",
                    fix=f"Slice by a column with at most {MOST_SLICES} values.",
                )
            if any(name in row.columns for row in self.rows):
                present.append(name)
        return present

    def joined(self, table: pa.Table) -> ScoredSet:
        """Joins the rows with a table of their rewards; rows without rewards are left out."""
        rewards, tokens = by_row(table), by_row(table, "tokens")
        keys = ((row, (row.source, row.number)) for row in self.rows)
        return ScoredSet(row.scored(rewards[key], tokens.get(key)) for row, key in keys if key in rewards)


@dataclass(frozen=True)
class SuiteSource:
    """A suite and its rows: at a location, in memory, or (neither given) where the suite itself is on the Hub."""

    label: str
    suite: Suite
    location: str | None = None
    rows: Rows | None = None
    split: str | None = None  # None: the one that the suite is scored on

    def load(self) -> LoadedSuite:
        """Reads the rows; a broken row raises `DataError` that names file, row and field."""
        for number, row in enumerate(self.rows if isinstance(self.rows, list | tuple) else ()):
            if not isinstance(row, Mapping):
                fix = "Pass each row as a mapping of columns."
                raise DataError(f"is {kind_of(row)}", row=number, dataset=self.label, fix=fix)
        if self.rows is None:
            rows = self.suite.load(self.location, split=self.split)
        else:
            rows = self.suite.read(open_data(self.rows, name=self.label, schema=self.suite.schema))
        sources = tuple(dict.fromkeys(row.source for row in rows))
        return LoadedSuite(self.label, self.suite, tuple(rows), sources, len(rows))


def suite_dataset(suite: SuiteLike, *, split: str | None = None, max_rows: int | None = None, seed: int = 0) -> Dataset:
    """Read a suite as an `eval_dataset` of `RewardTrainer`.

    With ``eval_dataset={"llmbar": suite_dataset("llmbar=FILE")}`` the trainer logs ``eval_llmbar_accuracy``, which
    `metric_for_best_model` can name. It is the share of comparisons that are right; the score by the rule of the suite
    comes from :func:`plaudit.evaluate`, or from :class:`plaudit.evaluation.callback.SuiteCallback`.

    Args:
        suite: A name, a name with its file, a file, a data set on the Hub, or rows, as for :func:`plaudit.evaluate`.
        split: Split of a data set without a rule of its own.
        max_rows: Maximum number of rows, drawn at random.
        seed: Seed of the draw.

    Returns:
        The rows, with the columns that preferences are read from; others are dropped.

    Raises:
        ConfigError: There is no such suite.
        DataError: It cannot be read.

    >>> suite_dataset([{"prompt": "2+2=", "chosen": "4", "rejected": "5", "source": "sums"}]).column_names
    ['prompt', 'chosen', 'rejected']
    """
    (source,) = resolve_suites([suite], split=split)
    loaded = source.load().at_most(max_rows, seed)
    raws = [{name: row.raw[name] for name in RAW_COLUMNS if row.raw.get(name) is not None} for row in loaded.rows]
    read = {name for raw in raws for name in columns_read(row_kind_of(raw))}
    present = [name for name in RAW_COLUMNS if name in read and any(name in raw for raw in raws)]
    return Dataset.from_list([{name: raw.get(name, _NEUTRAL.get(name)) for name in present} for raw in raws])


def resolve_suites(suites: Suites, *, split: str | None = None, schema: str = "auto") -> list[SuiteSource]:
    """Finds the suites that are named, and checks that named files exist, before anything is computed.

    >>> rows = [{"chosen": "a", "rejected": "b"}]
    >>> [source.label for source in resolve_suites([rows, rows])]
    ['rows', 'rows-2']
    """
    if isinstance(suites, Mapping):
        named: list[tuple[str | None, Any]] = list(suites.items())
    elif isinstance(suites, str | PathLike | Dataset | IterableDataset):
        named = [(None, suites)]
    else:
        given = list(suites)
        rows = bool(given) and all(isinstance(entry, Mapping) for entry in given)
        named = [(None, given)] if rows else [(None, entry) for entry in given]
    if not named:
        raise ConfigError("no suite is named", fix="Name at least one, such as `rewardbench` or a file of pairs.")
    sources: dict[str, SuiteSource] = {}
    for own, entry in named:
        source = _source_of(entry, split)
        if isinstance(source.suite, Preferences):
            source.suite.schema = schema
        label = source.label if own is None else str(own)
        if label in sources:
            label = next(f"{label}-{n}" for n in range(2, len(sources) + 3) if f"{label}-{n}" not in sources)
        sources[label] = replace(source, label=label)
    return list(sources.values())


def _source_of(suite: Any, split: str | None) -> SuiteSource:
    if not isinstance(suite, str | PathLike):
        if not isinstance(suite, Dataset | IterableDataset | list | tuple):
            fix = "Give a name, a file, a data set, or a list of rows."
            raise ConfigError(f"a suite is given as {kind_of(suite)}", fix=fix)
        return SuiteSource("rows", Preferences(), rows=suite)
    rule, location = find_suite(str(suite))
    path = Path(location or "").expanduser()
    is_file = kind_of_file(path) is not None
    if location is not None and not path.exists() and (is_file or location.startswith((".", "/", "~"))):
        raise DataError(f"{location}: there is no such file or folder", fix="Check the name of the file.")
    if not isinstance(rule, Preferences) or location is None:
        return SuiteSource(rule.name, rule, location)
    # Named `dev` of data/dev.jsonl.gz, `name` of owner/name, `v1.2` of v1.2.parquet.
    label = Path(path.name.removesuffix(".gz")).stem if is_file else path.name or location
    return SuiteSource(label, rule, location, split=split)


def find_suite(text: str) -> tuple[Suite, str | None]:
    """Finds a suite, a suite with its file (``llmbar=FILE``), a file, or a data set on the Hub by what a user wrote.

    Returns the suite and the location to read it from (None: the suite's own on the Hub); an unknown name raises
    `ConfigError`. Capitals, spaces and hyphens in names do not matter.

    >>> suite, location = find_suite("RewardBench-2=rb2.parquet")
    >>> suite.name, location
    ('rewardbench2', 'rb2.parquet')
    >>> find_suite("pairs.jsonl")[0].name
    'preferences'
    """

    def plain(name: str) -> str:
        return "".join(letter for letter in name.lower() if letter.isalnum())

    name, separator, location = text.partition("=")
    by_plain = {plain(known): suite for known, suite in SUITES.items()}
    if plain(name) in by_plain and not Path(text).exists():
        return by_plain[plain(name)](), location if separator else None
    if separator and plain(name) == Preferences.name:
        return Preferences(), location
    if Path(text).expanduser().exists() or kind_of_file(Path(text)) is not None or "/" in text:
        return Preferences(), text
    close = difflib.get_close_matches(plain(name), list(by_plain), n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(f'`{by_plain[match].name}`' for match in close)}? " if close else ""
    raise ConfigError(
        f"there is no suite {name!r}",
        fix=f"{meant}Suites: {', '.join(SUITES)}; or a preference file, or a data set on the Hub as `owner/name`.",
    )
