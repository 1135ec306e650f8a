"""Finds a suite by its name, or takes a file or a data set on the Hub as one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset, IterableDataset

from plaudit.data.load import kind_of_file
from plaudit.data.parse import kind_of
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.suites.base import Suite, SuiteRow
from plaudit.evaluation.suites.judge_bench import JudgeBench
from plaudit.evaluation.suites.llmbar import LLMBar
from plaudit.evaluation.suites.preferences import Preferences, preference_rows
from plaudit.evaluation.suites.reward_bench import RewardBench
from plaudit.evaluation.suites.reward_bench_2 import RewardBench2
from plaudit.evaluation.suites.rm_bench import RMBench
from plaudit.schema import RAW_COLUMNS, check_columns, columns_read, row_kind_of

_NOT_GIVEN: dict[str, Any] = {"margin": 0.0, "preference_prob": 1.0, "tie": False, "weight": 1.0}
"""What an optional column holds where a row says nothing: the same as saying nothing."""


def suite_dataset(suite: SuiteLike, *, split: str | None = None, max_rows: int | None = None, seed: int = 0) -> Dataset:
    """Read a suite as an `eval_dataset` of `RewardTrainer`.

    With ``eval_dataset={"llmbar": suite_dataset("llmbar=FILE")}`` the trainer logs ``eval_llmbar_accuracy``, which
    `metric_for_best_model` can name. It is the share of comparisons that are right; the score by the rule of the suite
    comes from :func:`plaudit.evaluate`, or from :class:`plaudit.evaluation.callback.SuiteCallback`.

    Args:
        suite: A name, a name with its file, a file, a data set on the Hub, or rows, as for :func:`plaudit.evaluate`.
        split: Split of a data set that has no suite of its own.
        max_rows: Most rows, drawn at random.
        seed: Decides which.

    Returns:
        The rows, with the columns that preferences are read from; others are left out.

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
    filled = [{name: raw.get(name, _NOT_GIVEN.get(name)) for name in present} for raw in raws]
    return Dataset.from_list(filled)


Rows: TypeAlias = Dataset | IterableDataset | Sequence[Mapping[str, Any]]
SuiteLike: TypeAlias = str | PathLike[str] | Rows
"""A name as for `--suite`, or rows in memory."""
Suites: TypeAlias = SuiteLike | Sequence[SuiteLike] | Mapping[str, SuiteLike]
MOST_SLICES = 100
"""Values of a column above which it is no column to slice by."""


@dataclass(frozen=True)
class SuiteSource:
    """A suite and where its rows are.

    Attributes:
        label: What it is called in the results; no two are called the same.
        suite: Its rule.
        place: Its file, folder or data set (None: the suite's own on the Hub).
        rows: Its rows, where they are in memory.
        split: The split to load (None: the one that the suite is scored on).
    """

    label: str
    suite: Suite
    place: str | None = None
    rows: Rows | None = None
    split: str | None = None

    def load(self) -> LoadedSuite:
        """Read the rows.

        Raises:
            DataError: They cannot be read; the message names file, row and field.
        """
        rows = self.suite.load(self.place, split=self.split) if self.rows is None else self._from_memory(self.rows)
        if not rows:
            raise DataError("has no rows", dataset=self.label, fix="Name a suite with at least one row.")
        return LoadedSuite.of(rows)

    def _from_memory(self, given: Rows) -> list[SuiteRow]:
        if isinstance(given, Dataset | IterableDataset):
            given = given.with_format(None)
            found: list[Mapping[str, Any]] = [dict(row) for row in given]
            features = given.features
        else:
            found, features = list(given), None
        for number, row in enumerate(found):
            if not isinstance(row, Mapping):
                fix = "Give each row as a mapping of columns."
                raise DataError(f"is {kind_of(row)}", row=number, dataset=self.label, fix=fix)
        check_columns(dict.fromkeys(name for row in found for name in row), self.label)
        return preference_rows(found, self.label, features=features)


@dataclass(frozen=True)
class LoadedSuite:
    """Rows of a suite, and the number at which those of each source begin.

    Attributes:
        rows: The rows to score.
        starts: Source -> number of its first row.
        total: Rows that were read.
    """

    rows: tuple[SuiteRow, ...]
    starts: Mapping[str, int]
    total: int

    @classmethod
    def of(cls, rows: Sequence[SuiteRow]) -> LoadedSuite:
        """All rows of a suite.

        Args:
            rows: Them, in order.
        """
        starts: dict[str, int] = {}
        for row in rows:
            starts.setdefault(row.source, row.row)
        return cls(tuple(rows), starts, len(rows))

    def at_most(self, count: int | None, seed: int) -> LoadedSuite:
        """Draw some of the rows at random; they keep their order.

        Args:
            count: How many (None: all).
            seed: Decides which.
        """
        if count is None or count >= len(self.rows):
            return self
        drawn = np.random.default_rng(seed).permutation(len(self.rows))[:count]
        return LoadedSuite(tuple(self.rows[place] for place in sorted(drawn.tolist())), self.starts, self.total)

    def number_in_source(self, row: SuiteRow) -> int:
        """Index of a row in its file, counted from 0.

        Args:
            row: The row.
        """
        return row.row - self.starts[row.source]

    def columns(self, wanted: Iterable[str]) -> list[str]:
        """Those of some columns that rows have.

        Args:
            wanted: Names of columns.

        Raises:
            ConfigError: One has too many values to slice by.
        """
        found = []
        for name in wanted:
            values = {str(row.columns[name]) for row in self.rows if row.columns.get(name) is not None}
            if len(values) > MOST_SLICES:
                raise ConfigError(
                    f"the column `{name}` has {len(values)} different values: too many to slice by",
                    fix=f"Slice by a column with at most {MOST_SLICES} values.",
                )
            if any(name in row.columns for row in self.rows):
                found.append(name)
        return found


def resolve_suites(suites: Suites, *, split: str | None = None) -> list[SuiteSource]:
    """Find what was named, and see that named files are there, before anything is computed.

    Args:
        suites: A suite, several, or several by a label of their own.
        split: Split of data sets that have no suite of their own.

    Raises:
        ConfigError: There is no such suite, or none was named.
        DataError: A file is not there.

    >>> [one.label for one in resolve_suites([[{"chosen": "a", "rejected": "b"}], [{"chosen": "a", "rejected": "b"}]])]
    ['rows', 'rows-2']
    """
    if isinstance(suites, Mapping):
        named: list[tuple[str | None, SuiteLike]] = list(suites.items())
    else:
        named = [(None, one) for one in _several(suites)]
    if not named:
        raise ConfigError("no suite is named", fix="Name at least one, such as `rewardbench` or a file of pairs.")
    found: list[SuiteSource] = []
    for label, one in named:
        source = _source_of(one, split)
        taken = [other.label for other in found]
        label = source.label if label is None else str(label)
        if label in taken:
            label = next(f"{label}-{n}" for n in range(2, len(taken) + 3) if f"{label}-{n}" not in taken)
        found.append(SuiteSource(label, source.suite, source.place, source.rows, source.split))
    return found


def _several(suites: Any) -> list[Any]:
    if isinstance(suites, str | PathLike | Dataset | IterableDataset):
        return [suites]
    given = list(suites)
    return [given] if given and all(isinstance(one, Mapping) for one in given) else given


def _source_of(one: Any, split: str | None) -> SuiteSource:
    if not isinstance(one, str | PathLike):
        if not isinstance(one, Dataset | IterableDataset | list | tuple):
            raise ConfigError(
                f"a suite is given as {kind_of(one)}", fix="Give a name, a file, a data set, or a list of rows."
            )
        return SuiteSource("rows", Preferences(), rows=one)
    suite, place = find_suite(str(one))
    generic = isinstance(suite, Preferences)
    if place is not None:
        _require_there(place)
    label = _label_of(place) if generic and place is not None else suite.name
    return SuiteSource(label, suite, place, split=split if generic else None)


def _require_there(place: str) -> None:
    path = Path(place).expanduser()
    looks_local = kind_of_file(path) is not None or place.startswith((".", "/", "~"))
    if looks_local and not path.exists():
        raise DataError(f"{place}: there is no such file or folder", fix="Look at the name of the file.")


def _label_of(place: str) -> str:
    """What a file or a data set is called.

    >>> _label_of("data/dev.jsonl.gz"), _label_of("owner/name"), _label_of("data/v1.2.parquet")
    ('dev', 'name', 'v1.2')
    """
    path = Path(place.rstrip("/"))
    if kind_of_file(path) is None:
        return path.name or place
    return Path(path.name.removesuffix(".gz")).stem


SUITES: dict[str, type[Suite]] = {
    suite.name: suite for suite in (RewardBench, RewardBench2, RMBench, LLMBar, JudgeBench)
}
"""Name -> suite, for those with a rule of their own."""


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def find_suite(text: str, *, slices: Sequence[str] = ()) -> tuple[Suite, str | None]:
    """Find what a user names: a suite, a suite with its file (``llmbar=FILE``), a file, or a data set on the Hub.

    Args:
        text: What the user wrote. Capitals, spaces and hyphens in names do not matter.
        slices: Columns to slice by, for files and data sets without a rule of their own.

    Returns:
        The suite, and the source to pass to :meth:`Suite.load` (None: the suite's own place on the Hub).

    Raises:
        ConfigError: There is no such suite; the message names those that there are.

    >>> suite, source = find_suite("RewardBench-2=rb2.parquet")
    >>> suite.name, source
    ('rewardbench2', 'rb2.parquet')
    >>> find_suite("pairs.jsonl")[0].name
    'preferences'
    """
    name, separator, source = text.partition("=")
    by_plain = {_plain(known): suite for known, suite in SUITES.items()}
    if _plain(name) in by_plain and not Path(text).exists():
        return by_plain[_plain(name)](), source if separator else None
    if separator and _plain(name) == Preferences.name:
        return Preferences(slices), source
    if Path(text).expanduser().exists() or kind_of_file(Path(text)) is not None or "/" in text:
        return Preferences(slices), text
    close = difflib.get_close_matches(_plain(name), list(by_plain), n=3, cutoff=0.5)
    meant = f"Did you mean {' or '.join(f'`{by_plain[one].name}`' for one in close)}? " if close else ""
    raise ConfigError(
        f"there is no suite {name!r}",
        fix=f"{meant}Suites: {', '.join(SUITES)}; or a preference file, or a data set on the Hub as `owner/name`.",
    )
