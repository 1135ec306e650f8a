"""The scored table, one line per response; and its join with what the data says: rows with rewards, as arrays."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plaudit.data.parse import content_text, prompt_of
from plaudit.errors import ConfigError, DataError
from plaudit.files import appearing
from plaudit.schema import PAIR_COLUMNS, Example, Label, RowKind, comparisons_of, ratings_of, response_field

SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "row": pa.int64(),  # number in its source, counted from 0
        "id": pa.string(),
        "response": pa.int32(),  # index in its row
        "reward": pa.float64(),  # null where the row could not be scored
        "tokens": pa.int32(),  # without prompt and template; null where no tokenizer is known
        "variant": pa.string(),  # empty for the row as it is, else the name of a sanity check
        "flags": pa.int32(),  # sum of plaudit.data.report.Flag
        "error": pa.string(),
    }
)
"""The scored table: one line per response, and one for a row that could not be scored."""


def table_of(lines: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Returns the table with these lines."""
    columns = list(zip(*lines, strict=True)) or [()] * len(SCHEMA)
    return pa.table([pa.array(column, kind.type) for column, kind in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)


def by_row(table: pa.Table, name: str = "reward", variant: str = "") -> dict[tuple[str, int], tuple[Any, ...]]:
    """Returns the values of a column for the responses of each row that has them, by its source and number there."""
    values: dict[tuple[str, int], list[Any]] = {}
    columns = (table.column(column).to_pylist() for column in ("source", "row", name, "variant"))
    for source, row, value, of_variant in zip(*columns, strict=True):
        if of_variant == variant and value is not None:
            values.setdefault((source, row), []).append(value)
    return {key: tuple(of_row) for key, of_row in values.items()}


def write_tables(path: Path, tables: Mapping[tuple[str, str], pa.Table | None]) -> None:
    """Writes the tables of several models and suites as one Parquet file, whole or not at all."""
    parts = []
    for (model, suite), table in tables.items():
        if table is not None:
            names = {"model": [model] * len(table), "suite": [suite] * len(table)}
            parts.append(pa.table({**names, **dict(zip(table.column_names, table.columns, strict=True))}))
    if parts:
        with appearing(path) as temporary:
            pq.write_table(pa.concat_tables(parts), temporary)


def read_tables(path: Path) -> dict[tuple[str, str], pa.Table]:
    """Reads the tables that :func:`write_tables` wrote, by model and suite; none where the file does not exist."""
    if not path.is_file():
        return {}
    whole = pq.read_table(path)
    keys = list(zip(whole.column("model").to_pylist(), whole.column("suite").to_pylist(), strict=True))
    return {
        key: whole.filter(pa.array([row_key == key for row_key in keys])).drop_columns(["model", "suite"])
        for key in dict.fromkeys(keys)
    }


# ---- rows --------------------------------------------------------------------------------------------------------


def as_given(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a raw row without the optional columns that are null: evaluation needs neither margin nor weight.

    >>> as_given({"chosen": "a", "rejected": "b", "margin": None})
    {'chosen': 'a', 'rejected': 'b'}
    """
    return {name: value for name, value in row.items() if value is not None or name not in (*PAIR_COLUMNS, "weight")}


def prompt_key(row: Mapping[str, Any]) -> str:
    """Returns a hash of the prompt of a raw row: rows with the same prompt have the same."""
    text = json.dumps(prompt_of(row), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def response_texts(row: Mapping[str, Any], example: Example) -> tuple[str, ...]:
    """Returns the responses of a row as plain text, without their prompt.

    Of conversations that include their prompt it is what follows the messages that all share, up to the last one of
    the user; of plain text without a prompt it is the whole text. Tool calls count as they are written.

    >>> from plaudit.data.parse import read_example
    >>> raw = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}
    >>> response_texts(raw, read_example(raw, row_number=0))
    ('4', '5')
    """
    prompt = prompt_of(row)
    if not example.conversational:
        start = len(prompt) if row.get("prompt") is not None and isinstance(prompt, str) else 0
        return tuple(str(response)[start:] for response in example.responses)
    start = len(prompt) if isinstance(prompt, list | tuple) else 0
    of_responses = ((message_parts(message) for message in response[start:]) for response in example.responses)
    return tuple("\n".join(part for parts in messages for part in parts if part) for messages in of_responses)


def message_parts(message: Any) -> tuple[str, str]:
    """Returns the content of a message as text, and its tool calls as JSON, empty where there are none."""
    if not isinstance(message, Mapping):
        return "", ""
    calls = message.get("tool_calls")
    content = content_text(message.get("content") or "")
    return content, json.dumps(calls, ensure_ascii=False, default=str) if calls else ""


@dataclass(frozen=True)
class ScoredRow:
    """One row with the rewards of its N responses; a reward that is not finite raises `DataError`.

    >>> ScoredRow(3, (1.5, 0.5)).ratings
    (1.0, 0.0)
    >>> ScoredRow(3, (1.5, float("nan")))
    Traceback (most recent call last):
        ...
    plaudit.errors.DataError: row 3, field `rejected`: the reward is nan
      Fix: Look at the model: it gives no finite reward for this response.
    """

    row: int
    rewards: tuple[float, ...]
    label: Label = field(default_factory=Label)
    row_kind: RowKind = "pairs"
    prompt: str = ""  # rows that share it are resampled together; empty: the row stands alone
    id: str = ""
    tokens: tuple[int, ...] | None = None  # of each response, without the prompt
    characters: tuple[int, ...] | None = None
    texts: tuple[str, ...] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)  # values to slice by

    def __post_init__(self) -> None:
        expected = len(self.label.ratings)
        for name in ("rewards", "tokens", "characters", "texts"):
            values = getattr(self, name)
            if values is not None and len(values) != expected:
                raise DataError(
                    f"{len(values)} {name} for {expected} responses", row=self.row, fix="Give one per response."
                )
        for index, reward in enumerate(self.rewards):
            if not math.isfinite(reward):
                fix = "Look at the model: it gives no finite reward for this response."
                response = response_field(self.row_kind, index)
                raise DataError(f"the reward is {float(reward)}", row=self.row, field=response, fix=fix)

    @property
    def ratings(self) -> tuple[float, ...]:
        """How good each response is by the data, higher is better."""
        return ratings_of(self.label)

    @property
    def cluster(self) -> str:
        """The prompt, or a name of the row's own where it has none."""
        return self.prompt or f"row {self.row}"


class ScoredSet(Sequence[ScoredRow]):
    """Scored rows, with their responses and comparisons as arrays.

    A comparison is a pair of responses of one row of which the data calls one better; a row of N responses gives up
    to N(N-1)/2. Pairs that the data calls a tie are none.

    >>> scored = ScoredSet([ScoredRow(0, (2.0, 0.5)), ScoredRow(1, (0.0, 1.0), Label(preference_prob=0.25))])
    >>> scored.margin_P.tolist()
    [1.5, 1.0]
    """

    def __init__(self, rows: Iterable[ScoredRow]) -> None:
        self.rows: tuple[ScoredRow, ...] = tuple(rows)
        better, worse, start = [], [], 0
        for row in self.rows:
            for i, j in comparisons_of(row.ratings):
                better.append(start + i)
                worse.append(start + j)
            start += len(row.rewards)
        probs = (row.label.preference_prob for row in self.rows)
        prob_G = np.array([1.0 if prob is None else max(prob, 1 - prob) for prob in probs])
        counts_G = np.array([len(row.rewards) for row in self.rows], dtype=np.int64)
        # Of each row the number of its prompt, which does not depend on the order of the rows.
        self.cluster_G = np.unique([row.cluster for row in self.rows], return_inverse=True)[1].reshape(-1)
        # Of each response its row (position here), prompt and reward.
        self.row_N = np.repeat(np.arange(len(self.rows)), counts_G)
        self.cluster_N = self.cluster_G[self.row_N]
        self.rewards_N = np.array([reward for row in self.rows for reward in row.rewards], dtype=np.float64)
        # Of each comparison the responses, prompt and margin, and the probability that the better response is better,
        # which is 1 where the data gives none.
        self.better_P, self.worse_P = np.array(better, dtype=np.int64), np.array(worse, dtype=np.int64)
        self.cluster_P = self.cluster_N[self.better_P]
        self.margin_P = self.rewards_N[self.better_P] - self.rewards_N[self.worse_P]
        self.preference_prob_P = prob_G[self.row_N[self.better_P]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return ScoredSet(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def __iter__(self) -> Iterator[ScoredRow]:
        return iter(self.rows)

    def each(self, name: str) -> list[Any]:
        """Returns the tokens, characters or texts of all responses; a row without them raises `DataError`."""
        values: list[Any] = []
        for row in self.rows:
            of_row = getattr(row, name)
            if of_row is None:
                raise DataError(f"has no {name}", row=row.row, fix="Score the rows with their responses' texts.")
            values.extend(of_row)
        return values

    def where(self, keep: Callable[[ScoredRow], bool]) -> ScoredSet:
        """Returns the rows for which a condition holds."""
        return ScoredSet(row for row in self.rows if keep(row))

    def values_of(self, column: str) -> list[str]:
        """Returns the value of a column in each row, ``(none)`` where it has none.

        A column that no row has raises `ConfigError`.
        """
        if self.rows and not any(column in row.columns for row in self.rows):
            known = sorted({name for row in self.rows for name in row.columns})
            raise ConfigError(
                f"no row has a column `{column}` to slice by",
                fix=f"Slice by one of: {', '.join(known)}." if known else "Keep the column when the rows are scored.",
            )
        values = (row.columns.get(column) for row in self.rows)
        return ["(none)" if value is None else str(value) for value in values]

    def sliced(self, column: str) -> dict[str, ScoredSet]:
        """Splits by the values of a column, in the order of their names."""
        parts: dict[str, list[ScoredRow]] = {}
        for row, value in zip(self.rows, self.values_of(column), strict=True):
            parts.setdefault(value, []).append(row)
        return {name: ScoredSet(parts[name]) for name in sorted(parts)}
