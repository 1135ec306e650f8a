"""The generic suite: any preference data, sliced by any column."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from plaudit.data.load import DataSource
from plaudit.data.parse import read_example
from plaudit.errors import DataError
from plaudit.evaluation.results import SuiteResult
from plaudit.evaluation.stats import best_found
from plaudit.evaluation.suites.base import Headline, Suite, SuiteRow, check_source_columns, slice_result
from plaudit.evaluation.table import ScoredRow, ScoredSet, as_given
from plaudit.schema import RAW_COLUMNS, check_columns


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

    def __init__(self, slices: Sequence[str] = ()) -> None:
        self.slices = tuple(slices)

    def read(self, data: DataSource, *, start: int = 0) -> list[SuiteRow]:
        """Keeps the rows as they are, and checks that each can be read.

        Columns that a preference is not read from are kept for slicing; of the others, those in `slices`.
        """
        check_columns(data.columns, data.name)
        check_source_columns(data.columns, self.slices, data.name)
        rows, features = [], data.features
        for number, values in enumerate(data.whole_rows()):
            raw = as_given(values)
            read_example(raw, row_number=number, dataset_name=data.name, features=features)
            columns = {name: value for name, value in raw.items() if name not in RAW_COLUMNS or name in self.slices}
            row_id = str(raw.get("id") if raw.get("id") is not None else number)
            rows.append(SuiteRow(start + number, row_id, raw, columns, data.name, number, features))
        return rows

    def score(self, scored: ScoredSet) -> SuiteResult:
        """Applies the rule."""
        if not len(scored):
            raise DataError("has no scored rows", dataset=self.name, fix="Score at least one row.")
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
        return self.result(counted, [overall, *slices], outcomes, Headline(overall.score, {}, notes), column)


def outcome_of(row: ScoredRow) -> float | None:
    """Returns how well a model did on a row, from 0 to 1; None where nothing can be right or wrong.

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
