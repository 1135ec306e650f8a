"""The scored table, one line per response; and its join with what the data says: rows with rewards, as arrays."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from plaudit.data.parse import content_text, prompt_of
from plaudit.errors import ConfigError, DataError
from plaudit.files import appearing
from plaudit.schema import (
    PAIR_COLUMNS,
    Example,
    Label,
    RowKind,
    Text,
    comparisons_of,
    ratings_of,
    response_field,
)

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


def rewards_by_row(table: pa.Table, variant: str = "") -> dict[tuple[str, int], tuple[float, ...]]:
    """Returns the rewards of each scored row, by its source and its number there."""
    return _by_row(table, "reward", variant)


def tokens_by_row(table: pa.Table) -> dict[tuple[str, int], tuple[int, ...]]:
    """Returns the tokens of each response of the rows that have them, by source and number."""
    return _by_row(table, "tokens", "")


def _by_row(table: pa.Table, name: str, variant: str) -> dict[tuple[str, int], Any]:
    values: dict[tuple[str, int], list[Any]] = {}
    columns = (table.column(column).to_pylist() for column in ("source", "row", name, "variant"))
    for source, row, value, found in zip(*columns, strict=True):
        if found == variant and value is not None:
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
        key: whole.filter(pa.array([other == key for other in keys])).drop_columns(["model", "suite"])
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
    the user; of plain text without a prompt it is the whole text.

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
    return tuple(_message_texts(response[start:]) for response in example.responses)


def _message_texts(messages: Text) -> str:
    """Joins the contents of messages; tool calls count as they are written."""
    parts = []
    for message in messages:
        if isinstance(message, Mapping):
            calls = message.get("tool_calls")
            parts.append(content_text(message.get("content") or ""))
            parts.append(json.dumps(calls, ensure_ascii=False, default=str) if calls else "")
    return "\n".join(part for part in parts if part)


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
    gold: tuple[float, ...] | None = None  # a second opinion on each response, higher is better

    def __post_init__(self) -> None:
        expected = len(self.label.ratings)
        for name in ("rewards", "tokens", "characters", "texts", "gold"):
            values = getattr(self, name)
            if values is not None and len(values) != expected:
                raise DataError(
                    f"{len(values)} {name} for {expected} responses", row=self.row, fix="Give one per response."
                )
        for index, reward in enumerate(self.rewards):
            if not math.isfinite(reward):
                fix = "Look at the model: it gives no finite reward for this response."
                place = response_field(self.row_kind, index)
                raise DataError(f"the reward is {float(reward)}", row=self.row, field=place, fix=fix)

    @property
    def ratings(self) -> tuple[float, ...]:
        """How good each response is by the data, higher is better."""
        return ratings_of(self.label)

    @property
    def listed(self) -> bool:
        """Whether the row ranks several responses, rather than being a pair or a single response."""
        return self.row_kind in ("scores", "ranks")

    @property
    def gold_scores(self) -> tuple[float, ...] | None:
        """The gold score of each response: `gold`, or else the scores of the data."""
        if self.gold is not None:
            return self.gold
        return self.label.ratings if self.row_kind == "scores" else None

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

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return ScoredSet(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def __iter__(self) -> Iterator[ScoredRow]:
        return iter(self.rows)

    @cached_property
    def rewards_N(self) -> np.ndarray:
        """Reward of each response, shape (N,)."""
        return np.array([reward for row in self.rows for reward in row.rewards], dtype=np.float64)

    @cached_property
    def row_N(self) -> np.ndarray:
        """Position in this set of the row that each response belongs to, shape (N,)."""
        return np.repeat(np.arange(len(self.rows)), [len(row.rewards) for row in self.rows])

    @cached_property
    def cluster_G(self) -> np.ndarray:
        """Number of the prompt of each row, shape (G,); it does not depend on the order of the rows."""
        return np.unique([row.cluster for row in self.rows], return_inverse=True)[1].reshape(-1)

    @cached_property
    def cluster_N(self) -> np.ndarray:
        """Number of the prompt of each response, shape (N,)."""
        return self.cluster_G[self.row_N]

    @cached_property
    def _comparisons(self) -> tuple[np.ndarray, np.ndarray]:
        better, worse, start = [], [], 0
        for row in self.rows:
            for i, j in comparisons_of(row.ratings):
                better.append(start + i)
                worse.append(start + j)
            start += len(row.rewards)
        return np.array(better, dtype=np.int64), np.array(worse, dtype=np.int64)

    @property
    def better_P(self) -> np.ndarray:
        """Index of the better response of each comparison, shape (P,)."""
        return self._comparisons[0]

    @property
    def worse_P(self) -> np.ndarray:
        """Index of the worse response of each comparison, shape (P,)."""
        return self._comparisons[1]

    @cached_property
    def margin_P(self) -> np.ndarray:
        """Reward of the better response minus that of the worse one, shape (P,)."""
        return self.rewards_N[self.better_P] - self.rewards_N[self.worse_P]

    @property
    def cluster_P(self) -> np.ndarray:
        """Number of the prompt of each comparison, shape (P,)."""
        return self.cluster_N[self.better_P]

    @cached_property
    def preference_prob_P(self) -> np.ndarray:
        """Probability that the better response is better, 1 where the data gives none, shape (P,)."""
        probs = (row.label.preference_prob for row in self.rows)
        prob_G = np.array([1.0 if prob is None else max(prob, 1 - prob) for prob in probs])
        return prob_G[self.row_N[self.better_P]] if len(self.rows) else np.empty(0)

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

    def sliced(self, column: str) -> dict[str, ScoredSet]:
        """Splits by the values of a column, in the order of their names; rows without a value are ``(none)``.

        A column that no row has raises `ConfigError`.
        """
        if self.rows and not any(column in row.columns for row in self.rows):
            known = sorted({name for row in self.rows for name in row.columns})
            raise ConfigError(
                f"no row has a column `{column}` to slice by",
                fix=f"Slice by one of: {', '.join(known)}." if known else "Keep the column when the rows are scored.",
            )
        parts: dict[str, list[ScoredRow]] = {}
        for row in self.rows:
            value = row.columns.get(column)
            parts.setdefault("(none)" if value is None else str(value), []).append(row)
        return {name: ScoredSet(parts[name]) for name in sorted(parts)}
