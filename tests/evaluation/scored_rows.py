"""Scored rows for the tests of evaluation."""

from __future__ import annotations

from plaudit.evaluation.suites.base import SuiteRow
from plaudit.evaluation.table import ScoredRow, ScoredSet
from plaudit.schema import RAW_COLUMNS, Label


def scored_row(raw, rewards, *, row_number, tokens=None) -> ScoredRow:
    """A raw row with its rewards."""
    columns = {name: value for name, value in raw.items() if name not in RAW_COLUMNS}
    return SuiteRow(row_number, "", raw, columns, "rows", row_number).scored(rewards, tokens)


def pairs(rewards, *, prompts=None, tokens=None, texts=None, columns=None) -> ScoredSet:
    """Pairs with these rewards of the better and the worse response."""
    return ScoredSet(
        ScoredRow(
            number,
            (float(better), float(worse)),
            prompt="" if prompts is None else str(prompts[number]),
            tokens=None if tokens is None else tuple(tokens[number]),
            texts=None if texts is None else tuple(texts[number]),
            columns={} if columns is None else {"part": columns[number]},
        )
        for number, (better, worse) in enumerate(rewards)
    )


def listed(rewards, scores, *, prompts=None) -> ScoredSet:
    """Rows of several responses with these rewards and scores."""
    return ScoredSet(
        ScoredRow(
            number,
            tuple(float(one) for one in row),
            Label(tuple(float(one) for one in scores[number])),
            "scores",
            prompt="" if prompts is None else str(prompts[number]),
        )
        for number, row in enumerate(rewards)
    )
