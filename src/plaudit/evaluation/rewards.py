"""Reads rewards that another program wrote beside the rows of a suite, as `plaudit score` does, into a scored table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from os import PathLike
from typing import Any, NoReturn

import pyarrow as pa

from plaudit.data.load import open_data
from plaudit.data.parse import kind_of
from plaudit.errors import DataError
from plaudit.evaluation.suites.base import Preferences, SuiteRow
from plaudit.evaluation.suites.registry import LoadedSuite
from plaudit.evaluation.table import table_of
from plaudit.schema import quoted, response_field, row_kind_of

COLUMNS = ("reward", "chosen_reward", "rejected_reward")
"""One reward or a list of them in the first; those of a pair in the others."""
_TEXTS = ("prompt", "chosen", "rejected", "responses", "response")


def without_rewards(suite: LoadedSuite) -> LoadedSuite:
    """Returns a suite read from a file of rewards, without their columns: they are nothing to slice by."""
    rows = (
        replace(row, columns={name: value for name, value in row.columns.items() if name not in COLUMNS})
        for row in suite.rows
    )
    return replace(suite, rows=tuple(rows))


def read_rewards(file: str | PathLike[str], suite: LoadedSuite, *, drop_missing: bool = False) -> pa.Table:
    """Returns the table of a suite with the rewards in a file, which has the same rows in the same order.

    With `drop_missing`, rows whose rewards are null are dropped. Other missing rewards, rewards that are not finite
    numbers, and rows that do not match raise `DataError`.
    """
    source = str(file)
    data = open_data(source, any_split=True, check=False, schema=suite.suite.schema)
    if not set(COLUMNS) & set(data.columns):
        raise DataError(
            f"has no rewards; its columns are {quoted(data.columns)}",
            field=COLUMNS[0],
            dataset=source,
            fix="Write `reward`, or `chosen_reward` and `rejected_reward`, beside each row, as `plaudit score` does.",
        )
    fix = "Score the rows of the suite as they are, in their order."
    if data.length != suite.total:
        raise DataError(f"has {data.length} rows, and {suite.label} has {suite.total}", dataset=source, fix=fix)
    rows = list(data.whole_rows())
    lines: list[tuple[Any, ...]] = []
    for row in suite.rows:
        values = rows[row.row]
        for name in _TEXTS if isinstance(suite.suite, Preferences) else ():
            if values.get(name) is not None and row.raw.get(name) is not None and values[name] != row.raw[name]:
                message = f"differs from row {row.number} of {row.source}"
                raise DataError(message, row=row.row, field=name, dataset=source, fix=fix)
        rewards = _rewards(row, values, source, drop_missing)
        if rewards is None:
            lines.append((row.source, row.number, row.id, 0, None, None, "", 0, "has no reward"))
        for index, reward in enumerate(rewards or ()):
            lines.append((row.source, row.number, row.id, index, reward, None, "", 0, None))
    return table_of(lines)


def _rewards(row: SuiteRow, values: Mapping[str, Any], source: str, drop_missing: bool) -> Sequence[float] | None:
    kind, count = row_kind_of(row.raw), len(row.texts())
    pair = kind == "pairs" and any(values.get(name) is not None for name in COLUMNS[1:])
    names = COLUMNS[1:] if pair or (kind == "pairs" and values.get("reward") is None) else COLUMNS[:1]

    def refuse(field: str, message: str, fix: str) -> NoReturn:
        raise DataError(message, row=row.row, field=field, dataset=source, fix=fix)

    rewards: Any = [values.get(name) for name in names]
    if all(value is None for value in rewards):
        if drop_missing:
            return None
        refuse(names[0], "has no reward", "Score the row, or drop such rows with `--skip_broken`.")
    if len(names) == 1:
        rewards = rewards[0] if isinstance(rewards[0], list | tuple) else rewards
    if len(rewards) != count:
        refuse(names[0], f"has {len(rewards)} rewards for {count} responses", "Give one reward per response.")
    for index, value in enumerate(rewards):
        field = names[index] if len(names) == 2 else f"{names[0]}[{index}]" if count > 1 else names[0]
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            what = value if isinstance(value, float) else kind_of(value)
            response = response_field(kind, index)
            refuse(field, f"is {what}, not a finite reward of `{response}`", "Score the row again, or remove it.")
    return [float(value) for value in rewards]
