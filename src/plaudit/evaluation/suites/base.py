"""What a suite is: rows to score, and a rule that turns their rewards into one result; and the generic suite."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np

from plaudit.data.load import DataSource, open_data
from plaudit.data.parse import kind_of, read_example
from plaudit.data.schemas import read_as
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.results import SliceResult, SuiteResult
from plaudit.evaluation.stats import best_found, mean_interval, proportion
from plaudit.evaluation.table import ScoredRow, ScoredSet, as_given, prompt_key, response_texts
from plaudit.schema import RAW_COLUMNS, Example, check_columns, quoted

logger = logging.getLogger("plaudit")
_BROKEN = "Correct the row, or download the file again."


@dataclass(frozen=True)
class SourceRow:
    """One row of a published file."""

    source: str
    row: int  # counted from 0
    values: Mapping[str, Any]

    def refuse(self, field: str, message: str, fix: str) -> NoReturn:
        """Raises the error about a field of the row."""
        raise DataError(message, row=self.row, field=field, dataset=self.source, fix=fix)

    def text(self, field: str) -> str:
        """Returns the text in a column, or raises `DataError`."""
        value = self.values.get(field)
        if not isinstance(value, str):
            self.refuse(field, f"is {kind_of(value)}, not text", _BROKEN)
        return value

    def texts(self, field: str, count: int | None = None) -> list[str]:
        """Returns the texts in a column, at least one of them or as many as `count`, or raises `DataError`."""
        values = self.values.get(field)
        if not isinstance(values, list | tuple) or not values or (count is not None and len(values) != count):
            wanted = "texts" if count is None else f"{count} texts"
            given = f"a list of {len(values)}" if isinstance(values, list | tuple) else kind_of(values)
            self.refuse(field, f"is {given}, not a list of {wanted}", _BROKEN)
        for index, value in enumerate(values):
            if not isinstance(value, str):
                self.refuse(f"{field}[{index}]", f"is {kind_of(value)}, not text", _BROKEN)
        return list(values)

    def choice(self, field: str, choices: Sequence[Any]) -> Any:
        """Returns the value in a column if it is among the choices, or raises `DataError`."""
        value = self.values.get(field)
        if value not in choices or isinstance(value, bool):
            self.refuse(field, f"is {value!r}", f"Use one of: {', '.join(map(repr, choices))}.")
        return value


@dataclass(frozen=True)
class SuiteRow:
    """One row of a suite, in a form that Plaudit reads."""

    row: int  # index over all sources of the suite, counted from 0
    id: str
    raw: Mapping[str, Any]
    columns: Mapping[str, Any]  # values to slice by
    source: str
    number: int  # index in its source, counted from 0
    features: Mapping[str, Any] | None = None  # types of the raw columns, where `datasets` declares them

    def example(self) -> Example:
        """Reads the row."""
        raw = as_given(self.raw)
        return read_example(raw, row_number=self.number, dataset_name=self.source, features=self.features)

    def texts(self) -> tuple[str, ...]:
        """Returns the responses as plain text, without their prompt."""
        return response_texts(self.raw, self.example())

    def scored(self, rewards: Sequence[float], tokens: Sequence[int] | None = None) -> ScoredRow:
        """Joins the row with the rewards of its responses.

        >>> row = SuiteRow(0, "a", {"prompt": "2+2=", "chosen": "4", "rejected": "five"}, {}, "sums", 0)
        >>> row.scored([1.0, 0.5]).texts, row.scored([1.0, 0.5]).characters
        (('4', 'five'), (1, 4))
        """
        example = self.example()
        texts = response_texts(self.raw, example)
        return ScoredRow(
            row=self.row,
            rewards=tuple(float(reward) for reward in rewards),
            label=example.label,
            row_kind=example.row_kind,
            prompt=prompt_key(self.raw),
            id=self.id,
            tokens=None if tokens is None else tuple(tokens),
            characters=tuple(len(text) for text in texts),
            texts=texts,
            columns=dict(self.columns),
        )


class Headline(NamedTuple):
    """Score of a suite, the numbers between it and the slices, and what the reader must know."""

    score: float
    scores: Mapping[str, float]
    notes: Sequence[str]


class Suite:
    """A benchmark: converts the rows of its published files, and applies its published rule.

    A subclass declares the class variables, `convert` and `headline`. Where a row is not a pair, it defines `outcome`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    hub_id: ClassVar[str] = ""  # empty where no data set on the Hub can be loaded
    hub_split: ClassVar[str] = "train"
    rule: ClassVar[str]
    reference: ClassVar[str]  # where the rule is published
    columns: ClassVar[tuple[str, ...]]  # that a source must have
    slice_column: str  # by whose values two models are compared as well; empty for none
    converts: ClassVar[bool] = True  # False: rows are kept as they are
    schema = "none"  # of public data, by which the rows of a source are read

    def convert(self, row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Returns the id of a row, the row in a form that Plaudit reads, and the columns to slice by."""
        raise NotImplementedError

    def headline(self, scored: ScoredSet, slices: Sequence[SliceResult], outcomes: Mapping[int, float]) -> Headline:
        """Returns the score of the suite from its slices and the outcome of each row, with notes on missing parts."""
        raise NotImplementedError

    def outcome(self, row: ScoredRow) -> float | None:
        """Returns how well the model did on a row, from 0 to 1; None where the row does not count.

        Of pairs it is whether the better response wins.
        """
        if len(row.rewards) != 2 or row.ratings[0] == row.ratings[1]:
            fix = "Score the rows of the suite as they are."
            raise DataError("is not a pair with a better response", row=row.row, dataset=self.name, fix=fix)
        return float((row.rewards[0] - row.rewards[1]) * (row.ratings[0] - row.ratings[1]) > 0)

    def columns_of(self, source: str, names: Sequence[str]) -> Sequence[str]:
        """Returns the columns that a source with such columns must have."""
        return self.columns

    def files_in(self, location: str) -> Sequence[str]:
        """Returns the sources at a location that the user names."""
        return [location]

    def group_of(self, name: str) -> str | None:
        """Returns the larger part of the suite that a slice counts in; None where it does not count."""
        return ""

    def parts(self, counted: ScoredSet) -> Mapping[str, ScoredSet]:
        """Returns the slices of the rows that count, by name."""
        return counted.sliced(self.slice_column)

    def slice_result(self, name: str, part: ScoredSet, outcomes: Sequence[float]) -> SliceResult | None:
        """Returns the result of a slice, by default the mean over its rows; None where it has no score."""
        values_G, cluster_G = np.asarray(outcomes, dtype=np.float64), part.cluster_G
        is_share = np.isin(values_G, (0.0, 1.0)).all()
        interval = proportion(values_G, cluster_G).interval if is_share else mean_interval(values_G, cluster_G)
        margin = float(part.margin_P.mean()) if len(part.margin_P) else None
        return SliceResult(name, len(part), float(values_G.mean()), interval, margin, self.group_of(name) or "")

    def load(self, location: str | Sequence[str] | None = None, *, split: str | None = None) -> list[SuiteRow]:
        """Reads the rows from a file, a folder or the Hub, or several of them (None: the suite's own on the Hub)."""
        if location is None and not self.hub_id:
            raise ConfigError(
                f"{self.title} has no data set on the Hub that can be loaded",
                fix=f"Pass a local file, as in `{self.name}=FILE`. {self.reference}",
            )
        rows: list[SuiteRow] = []
        for named in [location or self.hub_id] if isinstance(location, str | None) else location:
            for source in self.files_in(named):
                part = split or self.hub_split
                data = open_data(source, split=part, any_split=True, check=False, schema=self.schema)
                if data.schema is not None:
                    logger.info("%s: %s.", data.name, read_as(data.schema))
                rows += self.read(data, start=len(rows))
        return rows

    def read(self, data: DataSource, *, start: int = 0) -> list[SuiteRow]:
        """Converts the rows of a source, and checks that each can be read."""
        missing = [name for name in self.columns_of(data.name, data.columns) if name not in data.columns]
        if missing:
            raise DataError(
                f"has no column {quoted(missing)}; its columns are {quoted(data.columns)}",
                field=missing[0],
                dataset=data.name,
                fix="Pass the published file of the suite; for other data, pass the file itself as the suite.",
            )
        rows, features = [], None if self.converts else data.features
        for number, values in enumerate(data.whole_rows()):
            row_id, raw, columns = self.convert(SourceRow(data.name, number, values))
            read_example(raw, row_number=number, dataset_name=data.name, features=features)
            rows.append(SuiteRow(start + number, row_id, raw, columns, data.name, number, features))
        return rows

    def outcomes(self, scored: ScoredSet) -> dict[int, float]:
        """Returns the outcome of each row that counts, by its number."""
        rows = [row for row in scored if self.group_of(str(row.columns.get(self.slice_column))) is not None]
        return {row.row: outcome for row in rows if (outcome := self.outcome(row)) is not None}

    def score(self, scored: ScoredSet) -> SuiteResult:
        """Applies the rule; parts without rows are left out of the means, and a note says so."""
        if not len(scored):
            raise DataError("has no scored rows", dataset=self.name, fix="Score at least one row.")
        outcomes = self.outcomes(scored)
        parts = self.parts(scored.where(lambda row: row.row in outcomes)).items() if outcomes else ()
        results = (self.slice_result(name, part, [outcomes[row.row] for row in part]) for name, part in parts)
        slices = tuple(result for result in results if result is not None)
        score, scores, notes = self.headline(scored, slices, outcomes)
        return SuiteResult(
            self.name, score, len(outcomes), slices, dict(scores), self.rule, self.reference, tuple(notes)
        )


class Preferences(Suite):
    """Any file or data set on the Hub that Plaudit reads: pairs, rankings, labels; sliced by some columns."""

    name = "preferences"
    title = "Preferences"
    rule = (
        "A pair is right if the better response has the higher reward, a ranking if the response with the highest "
        "reward is one of the best (a share of it where several have the highest), a label if the reward is on its "
        "side of zero. Rows that say nothing is better, and ratings, do not count. Score: mean over rows."
    )
    reference = "the metrics of training: plaudit.metrics"
    converts = False

    def __init__(self, slices: Sequence[str] = (), schema: str = "auto") -> None:
        self.slices, self.schema = tuple(slices), schema
        self.slice_column = self.slices[0] if slices else ""

    def columns_of(self, source: str, names: Sequence[str]) -> Sequence[str]:
        """Checks that a kind of row can be read from the columns."""
        check_columns(names, source)
        return ()

    def convert(self, row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Keeps the row as it is; columns that a preference is not read from are kept for slicing."""
        raw = as_given(row.values)
        columns = {name: value for name, value in raw.items() if name not in RAW_COLUMNS}
        return str(raw.get("id") if raw.get("id") is not None else row.row), raw, columns

    def outcome(self, row: ScoredRow) -> float | None:
        """Returns how well a model did on a row, from 0 to 1; None where nothing can be right or wrong.

        >>> suite = Preferences()
        >>> suite.outcome(ScoredRow(0, (0.5, 1.5))), suite.outcome(ScoredRow(1, (1.5, 0.5)))
        (0.0, 1.0)
        """
        if row.row_kind == "labels":
            return float((row.rewards[0] > 0) == (row.label.ratings[0] > 0.5))
        if row.row_kind == "ratings" or len(set(row.ratings)) < 2:
            return None
        return super().outcome(row) if row.row_kind == "pairs" else best_found(row.rewards, row.ratings)

    def parts(self, counted: ScoredSet) -> Mapping[str, ScoredSet]:
        """Returns all rows, and the slices by each column."""
        parts = {"all": counted}
        for column in self.slices:
            parts |= {f"{column}={name}": part for name, part in counted.sliced(column).items()}
        return parts

    def headline(self, scored: ScoredSet, slices: Sequence[SliceResult], outcomes: Mapping[int, float]) -> Headline:
        """Mean over rows."""
        if not outcomes:
            fix = "Give rows in which a response is better than another, or is good or bad."
            raise DataError("has no row that a model can be right about", dataset=self.name, fix=fix)
        silent = len(scored) - len(outcomes)
        notes = [f"{silent} rows say nothing that can be right or wrong, and do not count."] if silent else []
        return Headline(slices[0].score, {}, notes)


def conversation_pair(prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    """Returns a pair of single-turn conversations.

    >>> conversation_pair("2+2=", "4", "5")["chosen"]
    [{'role': 'assistant', 'content': '4'}]
    """
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def conversation_list(prompt: str, better: Sequence[str], worse: Sequence[str]) -> dict[str, Any]:
    """Returns several responses to one prompt, good ones first, with the ratings 1 and 0.

    >>> conversation_list("2+2=", ["4"], ["5", "6"])["scores"]
    [1.0, 0.0, 0.0]
    """
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "responses": [[{"role": "assistant", "content": text}] for text in (*better, *worse)],
        "scores": [1.0] * len(better) + [0.0] * len(worse),
    }


def missing_parts(names: Sequence[str], slices: Sequence[SliceResult], note: str) -> list[str]:
    """Returns the note on the named slices that have no rows, with `{}` replaced by their names; none if all do."""
    missing = [name for name in names if name not in {part.name for part in slices}]
    return [note.format(", ".join(missing))] if missing else []
