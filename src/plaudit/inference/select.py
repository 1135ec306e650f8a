"""Keeps rows, and responses of rows, of a scored file: the best of n, or those within bounds."""

from __future__ import annotations

import contextlib
import json
import math
import os
from array import array
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
from datasets import Features

from plaudit.errors import ConfigError, DataError
from plaudit.files import rename
from plaudit.inference.io import (
    Chunk,
    Row,
    RowInput,
    kind_of_output,
    metadata_with,
    open_input,
    open_output,
    refuse_existing,
)
from plaudit.schema import quoted

_CHUNK_SIZE = 1024
Keep: TypeAlias = Literal["highest", "lowest"]
Picks: TypeAlias = "list[int] | bool"
"""Indices of the responses of a row that are kept, in their new order; True or False for the whole row."""


@dataclass
class Selection:
    """Outcome of a selection."""

    output: str  # the file of what was kept
    rows: int = 0  # read
    kept: int = 0  # rows, possibly with fewer responses
    unscored: int = 0  # rows that were dropped because they have no reward
    responses: int = 0  # read, of rows with several
    kept_responses: int = 0
    short: int = 0  # rows that keep fewer responses than requested


def best_of_n_file(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    top: int | None = None,
    responses_column: str = "responses",
    reward_column: str = "reward",
    response_column: str = "response",
    overwrite: bool = False,
    config: str | None = None,
    split: str = "train",
) -> Selection:
    """Keeps the best responses of each row of a scored file; of equal ones the first.

    Without `top`, `response_column` replaces the list and holds the best response, and its reward is a number. With
    `top`, lists stay lists, the best first. Lists ``scores`` and ``ranks`` are reduced in the same way.

    Args:
        input: A file that :func:`~plaudit.inference.files.score_file` wrote, or another with such columns.
        output: File to write, as for `score_file`.
        top: Number of responses to keep per row.
        responses_column: Column of the responses.
        reward_column: Column of their rewards.
        response_column: Column for the best response.
        overwrite: Replace an existing `output`.
        config: Configuration of a data set on the Hub.
        split: Split to read.

    Raises:
        DataError: A row lacks such columns, or has another number of rewards than of responses.
        ConfigError: The output exists, or a setting cannot work.
    """
    if top is not None and top < 1:
        raise ConfigError(f"`top` is {top}", field="top", fix="Keep at least 1 response of each row.")
    picker = _Picker(responses_column, reward_column, response_column if top is None else None)
    selection = Selection(os.fspath(output))

    def pick(row: Row, index: int) -> tuple[Picks, Picks]:
        rewards = _response_rewards(row, index, picker)
        scored = [(-reward, position) for position, reward in enumerate(rewards) if reward is not None]
        best = [position for _, position in sorted(scored)[: top or 1]]
        selection.responses += len(rewards)
        selection.kept_responses += len(best)
        selection.short += 0 < len(best) < (top or 1)
        selection.unscored += not best
        return (best or False), False

    _select(input, [output], picker, pick, selection, overwrite=overwrite, config=config, split=split)
    return selection


@dataclass(frozen=True)
class Bounds:
    """Bounds of what a filter keeps: rows and responses within all bounds that are given.

    Attributes:
        min_margin: Lowest margin of a pair.
        max_margin: Highest margin of a pair.
        min_reward: Lowest reward of a response; for a pair, of ``chosen``.
        max_reward: Highest reward of a response; for a pair, of ``chosen``.
        quantile: Share to keep of what is within the other bounds: by margin for pairs, otherwise by reward.
        keep: Which share: the ``"highest"`` or the ``"lowest"``.

    Raises:
        ConfigError: The bounds contradict each other, or there are none.
    """

    min_margin: float | None = None
    max_margin: float | None = None
    min_reward: float | None = None
    max_reward: float | None = None
    quantile: float | None = None
    keep: Keep = "highest"

    def __post_init__(self) -> None:
        bounds = (self.min_margin, self.max_margin, self.min_reward, self.max_reward, self.quantile)
        if all(bound is None for bound in bounds):
            fix = "Set a bound, such as `min_margin`, `min_reward` or `quantile`."
            raise ConfigError("there is no bound for what to keep", fix=fix)
        for name, low, high in (
            ("margin", self.min_margin, self.max_margin),
            ("reward", self.min_reward, self.max_reward),
        ):
            if low is not None and high is not None and low > high:
                raise ConfigError(
                    f"`min_{name}` {low} is above `max_{name}` {high}", field=f"min_{name}", fix="Exchange them."
                )
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ConfigError(
                f"`quantile` is {self.quantile}", field="quantile", fix="Use a share between 0 and 1, such as 0.2."
            )
        if self.keep not in get_args(Keep):
            raise ConfigError(f"`keep` is {self.keep!r}", field="keep", fix="Use 'highest' or 'lowest'.")


def filter_file(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    bounds: Bounds,
    *,
    dropped: str | os.PathLike[str] | None = None,
    reward_column: str = "reward",
    responses_column: str = "responses",
    overwrite: bool = False,
    config: str | None = None,
    split: str = "train",
) -> Selection:
    """Keeps the pairs, rows and responses of a scored file that are within bounds.

    In rows with several responses, each response is kept or dropped by itself, and a row that loses all of them is
    dropped. Rows and responses without a reward are dropped. A quantile reads the file twice, and keeps 8 bytes per
    pair or response in memory.

    Args:
        input: A file that :func:`~plaudit.inference.files.score_file` wrote, or another with such columns.
        output: File to write, as for `score_file`.
        bounds: What to keep.
        dropped: File for what is not kept.
        reward_column: Column of the rewards; pairs have ``chosen_<name>`` and ``rejected_<name>``.
        responses_column: Column of the responses, where rows have several.
        overwrite: Replace existing files.
        config: Configuration of a data set on the Hub.
        split: Split to read.

    Raises:
        DataError: A row has no rewards, or has no margin although a margin is bounded.
        ConfigError: A file exists, or there are no bounds.
    """
    picker = _Picker(responses_column, reward_column)
    selection = Selection(os.fspath(output))
    in_share: Callable[[float], bool] | None = None
    if bounds.quantile is not None:
        values = array("d")
        for chunk in open_input(input, config=config, split=split).chunks(_CHUNK_SIZE):
            for index, row in enumerate(chunk.rows, start=chunk.start):
                items = _rewards_and_margins(row, index, picker, bounds)
                values.extend(_measure(item) for item in items if _within(item, bounds))
        in_share = _share(values, bounds.quantile, bounds.keep)

    def pick(row: Row, index: int) -> tuple[Picks, Picks]:
        items = _rewards_and_margins(row, index, picker, bounds)
        within = [n for n, item in enumerate(items) if _within(item, bounds)]
        kept = within if in_share is None else [n for n in within if in_share(_measure(items[n]))]
        selection.unscored += all(reward is None for reward, _ in items)
        has_list = isinstance(row.get(responses_column), list | tuple)
        if not has_list or reward_column not in row or _is_pair(row, reward_column):
            return bool(kept), not kept
        left = [n for n in range(len(items)) if n not in kept]
        selection.responses += len(items)
        selection.kept_responses += len(kept)
        return (kept or False), (left or not kept)

    outputs = [output] if dropped is None else [output, dropped]
    _select(input, outputs, picker, pick, selection, overwrite=overwrite, config=config, split=split)
    return selection


Item: TypeAlias = tuple[float | None, float | None]
"""Reward and margin of what is kept or dropped as one; None where there is none."""


def _measure(item: Item) -> float:
    reward, margin = item
    value = reward if margin is None else margin
    assert value is not None
    return value


def _within(item: Item, bounds: Bounds) -> bool:
    reward, margin = item
    limits = [(reward, bounds.min_reward, bounds.max_reward)]
    if margin is not None:
        limits.append((margin, bounds.min_margin, bounds.max_margin))
    return all(
        value is not None and (low is None or value >= low) and (high is None or value <= high)
        for value, low, high in limits
    )


def _share(values: array[float], quantile: float, keep: Keep) -> Callable[[float], bool]:
    """Returns a function that tells, for one value after the other, whether it is in the highest or lowest share.

    The share has the nearest whole number of values; of equal values the first.
    """
    sign = 1.0 if keep == "highest" else -1.0
    signed = sign * np.frombuffer(values, dtype=np.float64) if len(values) else np.empty(0)
    count = int(np.floor(quantile * len(signed) + 0.5))
    least, equal = float("inf"), 0
    if count:
        least = float(np.partition(signed, len(signed) - count)[len(signed) - count])
        equal = count - int((signed > least).sum())

    def takes(value: float) -> bool:
        nonlocal equal
        if sign * value == least and equal:
            equal -= 1
            return True
        return sign * value > least

    return takes


# --- rewards of a row -----------------------------------------------------------------------------------------


def numbers_in(value: Any, row: int, field: str) -> Any:
    """Returns rewards as a number or a list, None for null and NaN; raises `DataError` for anything else.

    >>> numbers_in("[0.5, null]", 0, "reward"), numbers_in(2, 0, "reward"), numbers_in("", 0, "reward")
    ([0.5, None], 2.0, None)
    """
    if isinstance(value, str):  # a cell of CSV
        with contextlib.suppress(ValueError):
            value = json.loads(value) if value.strip() else None
    if isinstance(value, list | tuple):
        return [numbers_in(item, row, f"{field}[{n}]") for n, item in enumerate(value)]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"is {value!r}, not a reward", row=row, field=field, fix="Score the file with `plaudit score`.")
    return float(value)


def _response_rewards(row: Row, index: int, picker: _Picker) -> list[float | None]:
    for name in (picker.responses, picker.rewards):
        if name not in row:
            fix = "Score the file with `plaudit score` first, or pass the names of the columns."
            raise DataError("is missing", row=index, field=name, fix=fix)
    rewards, responses = numbers_in(row[picker.rewards], index, picker.rewards), row[picker.responses]
    count = len(responses) if isinstance(responses, list | tuple) else 0
    if rewards is None:
        return [None] * count
    if not isinstance(rewards, list) or len(rewards) != count:
        message = f"has {len(rewards) if isinstance(rewards, list) else 1} rewards for {count} responses"
        raise DataError(message, row=index, field=picker.rewards, fix="Score the file again.")
    return rewards


def _is_pair(row: Row, name: str) -> bool:
    return f"chosen_{name}" in row and f"rejected_{name}" in row and row.get(name) is None


def _rewards_and_margins(row: Row, index: int, picker: _Picker, bounds: Bounds) -> Sequence[Item]:
    name = picker.rewards
    if _is_pair(row, name):
        columns = (f"chosen_{name}", f"rejected_{name}")
        chosen, rejected = (numbers_in(row[column], index, column) for column in columns)
        unscored = chosen is None or rejected is None
        return [(None, None) if unscored else (chosen, chosen - rejected)]
    if name not in row:
        fix = "Score the file with `plaudit score` first, or pass the column's name with `--reward-column`."
        raise DataError("is missing", row=index, field=name, fix=fix)
    if bounds.min_margin is not None or bounds.max_margin is not None:
        fix = "Bound the reward instead: only pairs have a margin."
        raise DataError("belongs to no pair", row=index, field=name, fix=fix)
    if isinstance(row.get(picker.responses), list | tuple):
        return [(reward, None) for reward in _response_rewards(row, index, picker)]
    return [(numbers_in(row[name], index, name), None)]


# --- reading and writing --------------------------------------------------------------------------------------


def _select(
    input: str | os.PathLike[str],
    outputs: Sequence[str | os.PathLike[str]],
    picker: _Picker,
    pick: Callable[[Row, int], tuple[Picks, Picks]],
    selection: Selection,
    *,
    overwrite: bool,
    config: str | None,
    split: str,
) -> None:
    """Writes what is kept of each row to the first output, and the rest to the second if there is one."""
    paths = [Path(output).expanduser() for output in outputs]
    parquet = [kind_of_output(path) == "parquet" for path in paths]
    if len(set(parquet)) > 1:
        raise ConfigError("one of the files is Parquet, and the other is not", fix="Write both in one format.")
    if len({path.resolve() for path in [*paths, Path(input).expanduser()]}) <= len(paths):
        raise ConfigError("two of the files are the same", fix="Give each a name of its own.")
    for path in paths:
        refuse_existing(path, overwrite)
    rows = open_input(input, config=config, split=split, arrow=parquet[0])
    schema = picker.schema(rows) if parquet[0] else None
    temporary = [path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in paths]

    def header() -> list[str]:
        return [picker.name(column) for column in rows.column_names()]

    with ExitStack() as stack:
        writers = [
            stack.enter_context(open_output(path, unfinished, columns=header, schema=schema))
            for path, unfinished in zip(paths, temporary, strict=True)
        ]
        for chunk in rows.chunks(_CHUNK_SIZE):
            picks = [pick(row, index) for index, row in enumerate(chunk.rows, start=chunk.start)]
            selection.rows += chunk.count
            selection.kept += sum(kept is not False for kept, _ in picks)
            for write, picks_of_output in zip(writers, zip(*picks, strict=True), strict=False):
                write(picker.apply(chunk, picks_of_output))
    for path, unfinished in zip(paths, temporary, strict=True):
        rename(unfinished, path)


@dataclass(frozen=True)
class _Picker:
    """Keeps some responses of each row, and reduces the lists beside them in the same way."""

    responses: str  # column
    rewards: str  # column
    single: str | None = None  # column for the only response that is kept of each row; None keeps lists

    def name(self, column: str) -> str:
        """Returns the name of a column in the output."""
        return self.single if self.single is not None and column == self.responses else column

    def apply(self, chunk: Chunk, picks: Sequence[Picks]) -> Any:
        """Returns the kept rows of a chunk, as mappings or as a table, like the chunk itself."""
        if isinstance(chunk.kept, pa.Table):
            return self._reduce_table(chunk.kept, picks)
        return [
            kept if picked is True else self._reduce_row(kept, row, picked, index)
            for index, (kept, row, picked) in enumerate(zip(chunk.kept, chunk.rows, picks, strict=True), chunk.start)
            if picked is not False
        ]

    def _reduce_row(self, kept: Row, row: Row, picked: Any, index: int) -> Row:
        self._require_free(kept, index)
        count = len(row[self.responses])
        reduced: Row = {}
        for name, value in kept.items():
            if self._is_beside(name):
                values = numbers_in(row[name], index, name) if isinstance(row[name], str) else row[name]
                if isinstance(values, list | tuple) and len(values) == count:
                    value = [values[n] for n in picked] if self.single is None else values[picked[0]]
            reduced[self.name(name)] = value
        return reduced

    def _is_beside(self, column: str) -> bool:
        return column in (self.responses, self.rewards, "scores", "ranks")

    def _require_free(self, columns: Any, index: int | None = None) -> None:
        if self.single is not None and self.single != self.responses and self.single in columns:
            fix = "Use another name with `--response-column`."
            raise DataError("exists already", row=index, field=self.single, fix=fix)

    def _reduce_table(self, table: pa.Table, picks: Sequence[Picks]) -> pa.Table:
        kept = [n for n, picked in enumerate(picks) if picked is not False]
        result = table.take(pa.array(kept, pa.int64()))
        kept_picks = [picks[n] for n in kept]
        if (kept and all(picked is True for picked in kept_picks)) or self.responses not in table.column_names:
            return result
        self._require_free(table.column_names)
        reduced = []
        for n, name in enumerate(table.column_names):
            if self._is_beside(name) and _is_list(table.schema.field(name).type):
                result = result.set_column(n, name, self._reduce_lists(result.column(name), kept_picks))
                reduced.append(name)
        result = result.rename_columns([self.name(name) for name in result.column_names])
        return result.replace_schema_metadata(self._metadata(table.schema, reduced))

    def _reduce_lists(self, column: pa.ChunkedArray, picks: Sequence[Any]) -> pa.Array:
        """Returns the picked items of each list; a null list, such as the rewards of an unscored row, stays null."""
        lists = column.combine_chunks()
        offsets = lists.offsets.to_pylist()
        items: list[list[int]] = []
        for picked, start, end in zip(picks, offsets, offsets[1:], strict=False):
            positions = range(end - start) if picked is True else picked
            items.append([start + position for position in positions if start + position < end])
        if self.single is not None:
            return lists.values.take(pa.array([some[0] if some else None for some in items], pa.int64()))
        ends = np.cumsum([0, *map(len, items)]).tolist()
        values = lists.values.take(pa.array([item for some in items for item in some], pa.int64()))
        mask = lists.is_null() if lists.null_count else None
        return type(lists).from_arrays(pa.array(ends, lists.offsets.type), values, type=lists.type, mask=mask)

    def _metadata(self, schema: pa.Schema, reduced: Sequence[str]) -> Any:
        metadata = schema.metadata
        if self.single is None or metadata is None or b"huggingface" not in metadata:
            return metadata
        known = Features.from_arrow_schema(schema)
        features = {
            self.name(name): kind.feature if name in reduced and hasattr(kind, "feature") else kind
            for name, kind in known.items()
        }
        return metadata_with({**metadata}, features, without=known)

    def schema(self, rows: RowInput) -> Any:
        """Returns the column types of the output, where they are known; Parquet needs responses of a list type."""
        if rows.schema is None:
            return None
        if self.responses in rows.schema.names and not _is_list(rows.schema.field(self.responses).type):
            kind = rows.schema.field(self.responses).type
            message = f"{quoted([self.responses])} holds {kind}, not lists of one type"
            raise ConfigError(message, fix="Write JSON lines.")
        return self._reduce_table(rows.schema.empty_table(), []).schema


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
