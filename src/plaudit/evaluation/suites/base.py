"""What a suite is: rows to score, and a rule that turns their rewards into one result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, cast

import numpy as np
from datasets import Dataset

from plaudit.data.load import load_preference_dataset
from plaudit.data.parse import kind_of, read_example
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.compare import Comparison, adjusted, compare_outcomes
from plaudit.evaluation.results import Proportion, SliceResult, SuiteResult
from plaudit.evaluation.stats import mean_interval, proportion
from plaudit.evaluation.table import ScoredRow, ScoredSet, as_given, response_texts, scored_row
from plaudit.schema import quoted


@dataclass(frozen=True)
class SourceRow:
    """One row as it stands in a file.

    Attributes:
        source: The file.
        row: Index of the row in it, counted from 0.
        values: Its columns.
    """

    source: str
    row: int
    values: Mapping[str, Any]

    def refuse(self, field: str, message: str, fix: str) -> NoReturn:
        """Raise the error about one field of the row."""
        raise DataError(message, row=self.row, field=field, dataset=self.source, fix=fix)

    def text(self, field: str) -> str:
        """Read a text.

        Args:
            field: The column.

        Raises:
            DataError: It holds none.
        """
        value = self.values.get(field)
        if not isinstance(value, str):
            self.refuse(field, f"is {kind_of(value)}, not text", "Mend the row, or download the file again.")
        return value

    def texts(self, field: str, count: int | None = None) -> list[str]:
        """Read a list of texts.

        Args:
            field: The column.
            count: How many there must be (None: at least one).

        Raises:
            DataError: It holds no such list.
        """
        value = self.values.get(field)
        fix = "Mend the row, or download the file again."
        if not isinstance(value, list | tuple) or not value or (count is not None and len(value) != count):
            wanted = f"{count} texts" if count is not None else "texts"
            found = f"a list of {len(value)}" if isinstance(value, list | tuple) else kind_of(value)
            self.refuse(field, f"is {found}, not a list of {wanted}", fix)
        for index, one in enumerate(value):
            if not isinstance(one, str):
                self.refuse(f"{field}[{index}]", f"is {kind_of(one)}, not text", fix)
        return list(value)

    def choice(self, field: str, choices: Sequence[Any]) -> Any:
        """Read one of a few values.

        Args:
            field: The column.
            choices: What it may hold.

        Raises:
            DataError: It holds something else.
        """
        value = self.values.get(field)
        if value not in choices or isinstance(value, bool):
            known = ", ".join(repr(one) for one in choices)
            self.refuse(field, f"is {value!r}", f"It must be one of: {known}.")
        return value


def read_source(source: str, *, split: str, columns: Sequence[str]) -> Iterator[SourceRow]:
    """Read the rows of one file, folder or data set on the Hub.

    Args:
        source: Its name.
        split: The split to load; a single file is read whatever it is called.
        columns: Columns that it must have.

    Raises:
        DataError: It cannot be read, or lacks a column; the message names file and column.
    """
    dataset = load_source(source, split)
    check_source_columns(dataset.column_names, columns, source)
    for row, values in enumerate(dataset):
        yield SourceRow(source, row, values)


def load_source(source: str, split: str) -> Dataset:
    """Load one file, folder or data set on the Hub.

    Args:
        source: Its name.
        split: The split to load. A single file is read whatever it is called, and so is a folder none of whose files
            begins with the name of the split.

    Raises:
        DataError: It cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        dataset = load_preference_dataset(source)
    elif path.is_dir() and not (path / "dataset_dict.json").is_file():
        # Downloaded from the Hub, a folder may hold splits of any name, which are not to be read together.
        own = sorted(str(one.relative_to(path)) for one in path.rglob(f"{split}[-.]*") if one.is_file())
        dataset = load_preference_dataset(source, data_files=own or None)
    else:
        dataset = load_preference_dataset(source, split=split)
    return cast(Dataset, dataset.with_format(None))


def check_source_columns(names: Sequence[str] | None, columns: Sequence[str], source: str) -> None:
    """Refuse a source that lacks a column.

    Args:
        names: The columns that it has.
        columns: Those that it must have.
        source: Its name.

    Raises:
        DataError: One is missing.
    """
    missing = [name for name in columns if name not in (names or ())]
    if missing:
        raise DataError(
            f"has no column {quoted(missing)}; its columns are {quoted(names or ())}",
            field=missing[0],
            dataset=source,
            fix="Name the published file of the suite; for other data, name the file itself as the suite.",
        )


def conversation_pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    """A pair of single-turn conversations.

    Args:
        prompt: What the user says.
        chosen: The better answer.
        rejected: The worse one.

    >>> conversation_pair("2+2=", "4", "5")["chosen"]
    [{'role': 'assistant', 'content': '4'}]
    """
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def conversation_list(prompt: str, better: Sequence[str], worse: Sequence[str]) -> dict[str, Any]:
    """Several answers to one prompt, good ones first, with the scores 1 and 0.

    Args:
        prompt: What the user says.
        better: The good answers.
        worse: The bad ones.

    >>> conversation_list("2+2=", ["4"], ["5", "6"])["scores"]
    [1.0, 0.0, 0.0]
    """
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "responses": [[{"role": "assistant", "content": text}] for text in (*better, *worse)],
        "scores": [1.0] * len(better) + [0.0] * len(worse),
    }


def suite_rows(
    rows: Iterator[SourceRow], convert: Callable[[SourceRow], tuple[str, dict[str, Any], dict[str, Any]]], start: int
) -> list[SuiteRow]:
    """Turn source rows into rows of a suite, and see that each can be read.

    Args:
        rows: The rows of one source.
        convert: Gives the id, the raw row and the columns to slice by.
        start: Number of the first.

    Raises:
        DataError: A row is broken; the message names file, row and field.
    """
    converted: list[SuiteRow] = []
    for row in rows:
        row_id, raw, columns = convert(row)
        read_example(raw, row_number=row.row, dataset_name=row.source)
        converted.append(SuiteRow(start + len(converted), row_id, raw, columns, row.source))
    return converted


@dataclass(frozen=True)
class SuiteRow:
    """One row of a suite.

    Attributes:
        row: Its index over all sources of the suite, in their order, counted from 0.
        id: Its name.
        raw: The row in a form that Plaudit reads: what is scored.
        columns: Values to slice by.
        source: Where it comes from.
        features: Types of the raw columns as `datasets` declares them, where the row is as it was in the source.
    """

    row: int
    id: str
    raw: Mapping[str, Any]
    columns: Mapping[str, Any]
    source: str
    features: Mapping[str, Any] | None = None

    def texts(self) -> tuple[str, ...]:
        """The responses as plain text, without their prompt.

        Raises:
            DataError: The row cannot be read.
        """
        example = read_example(
            as_given(self.raw), row_number=self.row, dataset_name=self.source, features=self.features
        )
        return response_texts(self.raw, example)

    def scored(self, rewards: Sequence[float], *, tokens: Sequence[int] | None = None) -> ScoredRow:
        """Join the row with the rewards of its responses.

        Args:
            rewards: Reward of each response, in the order of the row.
            tokens: Tokens of each response, without the prompt.

        Raises:
            DataError: A reward is missing or not finite.
        """
        return scored_row(
            self.raw,
            rewards,
            row_number=self.row,
            row_id=self.id,
            tokens=tokens,
            columns=self.columns,
            dataset_name=self.source,
            features=self.features,
        )


class Suite:
    """A benchmark: reads its published files, and applies its published rule.

    Attributes:
        name: By which it is called.
        title: As it calls itself.
        hub_id: Where it is on the Hub; empty where no data set there can be loaded.
        hub_split: The split to load.
        rule: How its numbers come about, in words.
        reference: Where that is published.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    hub_id: ClassVar[str] = ""
    hub_split: ClassVar[str] = "train"
    rule: ClassVar[str]
    reference: ClassVar[str]

    def load(self, source: str | Sequence[str] | None = None, *, split: str | None = None) -> list[SuiteRow]:
        """Read the rows of the suite.

        Args:
            source: A local file or folder, a name on the Hub, or several of them (None: the suite's own place there).
            split: The split to load (None: the one that the suite is scored on).

        Raises:
            ConfigError: There is no source, and the suite has no place on the Hub.
            DataError: A source cannot be read, lacks a column, or has a broken row.
        """
        rows: list[SuiteRow] = []
        for place in self.sources(source):
            rows += self.read(place, split or self.hub_split, len(rows))
        return rows

    def read(self, place: str, split: str, start: int) -> list[SuiteRow]:
        """Read the rows of one source.

        Args:
            place: Its name.
            split: The split to load.
            start: Number of the first row.

        Raises:
            DataError: It cannot be read, lacks a column, or has a broken row.
        """
        raise NotImplementedError

    def score(self, scored: ScoredSet) -> SuiteResult:
        """Apply the rule.

        Args:
            scored: The rows of the suite, scored.

        Raises:
            DataError: There are no rows, or they are not the suite's.
        """
        raise NotImplementedError

    def sources(self, source: str | Sequence[str] | None) -> list[str]:
        """The places to read.

        Args:
            source: What the user named.

        Raises:
            ConfigError: Nothing, and the suite has no place of its own.
        """
        if source is not None:
            return [source] if isinstance(source, str) else list(source)
        if not self.hub_id:
            raise ConfigError(
                f"{self.title} has no data set on the Hub that can be loaded",
                fix=f"Name a local file, as in `{self.name}=FILE`. {self.reference}",
            )
        return [self.hub_id]

    def result(
        self,
        scored: ScoredSet,
        score: float,
        slices: Sequence[SliceResult],
        outcomes: Mapping[int, float],
        *,
        slice_column: str,
        scores: Mapping[str, float] | None = None,
        notes: Sequence[str] = (),
    ) -> SuiteResult:
        """Put a result together.

        Args:
            scored: The rows.
            score: The headline number.
            slices: The parts.
            outcomes: Row -> how well the model did on it.
            slice_column: Column by whose values two models are compared; empty for none.
            scores: Numbers between the parts and the headline.
            notes: What the reader must know.
        """
        counted = [(row, cluster) for row, cluster in zip(scored, scored.cluster_G, strict=True) if row.row in outcomes]
        return SuiteResult(
            suite=self.name,
            score=score,
            rows=len(counted),
            slices=tuple(slices),
            scores=dict(scores or {}),
            rule=self.rule,
            reference=self.reference,
            notes=tuple(notes),
            outcomes={row.row: outcomes[row.row] for row, _ in counted},
            clusters={row.row: int(cluster) for row, cluster in counted},
            slice_of={row.row: str(row.columns.get(slice_column)) for row, _ in counted} if slice_column else {},
        )


def require_rows(scored: ScoredSet, suite: str) -> None:
    """Refuse an empty set.

    Args:
        scored: The rows.
        suite: Name of the suite.

    Raises:
        DataError: There are no rows.
    """
    if not len(scored):
        raise DataError("has no scored rows", dataset=suite, fix="Score at least one row.")


def mean_margin(scored: ScoredSet) -> float | None:
    """Mean margin over all comparisons; None where there are none.

    Args:
        scored: The rows.
    """
    return float(scored.margin_P.mean()) if len(scored.margin_P) else None


def slice_result(name: str, scored: ScoredSet, outcomes: Sequence[float], *, group: str = "") -> SliceResult:
    """The result of a slice whose score is the mean over its rows.

    Args:
        name: Of the slice.
        scored: Its rows.
        outcomes: How well the model did on each, from 0 to 1.
        group: The larger part that it counts in.
    """
    outcome_G = np.asarray(outcomes, dtype=np.float64)
    if np.isin(outcome_G, (0.0, 1.0)).all():
        share: Proportion = proportion(outcome_G, scored.cluster_G)
        return SliceResult(name, len(scored), float(outcome_G.mean()), share.interval, mean_margin(scored), group)
    interval = mean_interval(outcome_G, scored.cluster_G)
    return SliceResult(name, len(scored), float(outcome_G.mean()), interval, mean_margin(scored), group)


def pair_outcomes(scored: ScoredSet, suite: str) -> list[float]:
    """1 for each row whose better response has the higher reward, 0 for others, equal rewards among them.

    Args:
        scored: Pairs.
        suite: Name of the suite.

    Raises:
        DataError: A row is no pair with a better response.
    """
    outcomes = []
    for row in scored:
        if len(row.rewards) != 2 or row.ratings[0] == row.ratings[1]:
            fix = "Score the rows that the suite gave."
            raise DataError("is no pair with a better response", row=row.row, dataset=suite, fix=fix)
        sign = 1 if row.ratings[0] > row.ratings[1] else -1
        outcomes.append(float(sign * (row.rewards[0] - row.rewards[1]) > 0))
    return outcomes


def by_row(scored: ScoredSet, values: Iterable[Any]) -> dict[int, Any]:
    """Row number -> value.

    Args:
        scored: The rows.
        values: One for each.
    """
    return {row.row: value for row, value in zip(scored, values, strict=True)}


def compare_results(first: SuiteResult, second: SuiteResult, *, names: tuple[str, str] = ("A", "B")) -> Comparison:
    """Compare two models by their results on the same suite: row by row, overall and by slice.

    What is compared is the mean outcome over rows, which weighs rows alike; the headline number of a suite may weigh
    its parts otherwise.

    Args:
        first: Result of the first model.
        second: Result of the second.
        names: Of the two models.

    Raises:
        ConfigError: The results are of different suites or rows.
    """
    if first.suite != second.suite or list(first.outcomes) != list(second.outcomes):
        raise ConfigError(
            f"the results are of different rows ({first.suite}, {len(first.outcomes)} rows; "
            f"{second.suite}, {len(second.outcomes)} rows)",
            fix="Score the same rows of the same suite with both models.",
        )
    rows = list(first.outcomes)
    one_G, other_G = (np.array([result.outcomes[row] for row in rows]) for result in (first, second))
    cluster_G = np.array([first.clusters[row] for row in rows])
    slice_G = np.array([first.slice_of.get(row, "") for row in rows])
    parts = {
        str(name): compare_outcomes(
            one_G[slice_G == name], other_G[slice_G == name], cluster_G[slice_G == name], names=names
        )
        for name in np.unique(slice_G)
    }
    return Comparison(compare_outcomes(one_G, other_G, cluster_G, names=names), adjusted({"slice": parts}))
