"""The generic suite: any preference data, sliced by any column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from plaudit.data.parse import read_example
from plaudit.errors import DataError
from plaudit.evaluation.results import SuiteResult
from plaudit.evaluation.stats import best_found
from plaudit.evaluation.suites.base import (
    Suite,
    SuiteRow,
    check_source_columns,
    load_source,
    require_rows,
    slice_result,
)
from plaudit.evaluation.table import ScoredRow, ScoredSet, as_given
from plaudit.schema import RAW_COLUMNS, check_columns


class Preferences(Suite):
    """Any file or data set on the Hub that Plaudit reads: pairs, rankings, labels.

    Args:
        slices: Columns to slice by.
    """

    name: ClassVar[str] = "preferences"
    title: ClassVar[str] = "Preferences"
    rule: ClassVar[str] = (
        "A pair is right if the better response has the higher reward, a ranking if the response with the highest "
        "reward is one of the best (a share of it where several have the highest), a label if the reward is on its "
        "side of zero. Rows that say nothing is better, and ratings, do not count. Score: mean over rows."
    )
    reference: ClassVar[str] = "the metrics of training: plaudit.metrics"

    def __init__(self, slices: Sequence[str] = ()) -> None:
        self.slices = tuple(slices)

    def read(self, place: str, split: str, start: int) -> list[SuiteRow]:
        """Read the rows of one source, like :meth:`Suite.read`."""
        dataset = load_source(place, split)
        check_columns(dataset.column_names, place)
        check_source_columns(dataset.column_names, self.slices, place)
        return preference_rows(dataset, place, start=start, slices=self.slices, features=dataset.features)

    def score(self, scored: ScoredSet) -> SuiteResult:
        """Apply the rule, like :meth:`Suite.score`."""
        require_rows(scored, self.name)
        outcomes = {row.row: value for row in scored if (value := outcome_of(row)) is not None}
        if not outcomes:
            fix = "Give rows in which a response is better than another, or is good or bad."
            raise DataError("has no row that a model can be right about", dataset=self.name, fix=fix)
        counted = scored.where(lambda row: row.row in outcomes)
        slices = [
            slice_result(f"{column}={name}", part, [outcomes[row.row] for row in part])
            for column in self.slices
            for name, part in counted.sliced(column).items()
        ]
        overall = slice_result("all", counted, list(outcomes.values()))
        silent = len(scored) - len(counted)
        notes = [f"{silent} rows say nothing that can be right or wrong, and do not count."] if silent else []
        column = self.slices[0] if self.slices else ""
        return self.result(counted, overall.score, [overall, *slices], outcomes, slice_column=column, notes=notes)


def preference_rows(
    rows: Iterable[Mapping[str, Any]],
    source: str,
    *,
    start: int = 0,
    slices: Sequence[str] = (),
    features: Mapping[str, Any] | None = None,
) -> list[SuiteRow]:
    """Turn raw preferences into rows of a suite, and see that each can be read.

    Args:
        rows: The raw rows.
        source: Where they come from.
        start: Number of the first.
        slices: Columns to slice by that a preference is read from; all others are kept in any case.
        features: Types of the columns as `datasets` declares them.

    Raises:
        DataError: A row is broken; the message names source, row and field.
    """
    found = []
    for number, values in enumerate(rows):
        raw = as_given(values)
        read_example(raw, row_number=number, dataset_name=source, features=features)
        columns = {name: value for name, value in raw.items() if name not in RAW_COLUMNS or name in slices}
        row_id = str(raw.get("id") if raw.get("id") is not None else number)
        found.append(SuiteRow(start + number, row_id, raw, columns, source, features))
    return found


def outcome_of(row: ScoredRow) -> float | None:
    """How well a model did on one row, from 0 to 1; None where there is nothing to be right about.

    Args:
        row: The row.

    >>> outcome_of(ScoredRow(0, (1.0, 1.0))), outcome_of(ScoredRow(0, (2.0, 1.0)))
    (0.0, 1.0)
    """
    if row.row_kind == "ratings":
        return None
    if row.row_kind == "labels":
        return float((row.rewards[0] > 0) == (row.label.ratings[0] > 0.5))
    if len(set(row.ratings)) < 2:
        return None
    if row.row_kind == "pairs":
        return float((row.rewards[0] - row.rewards[1]) * (row.ratings[0] - row.ratings[1]) > 0)
    return best_found(np.array(row.rewards), np.array(row.ratings))
