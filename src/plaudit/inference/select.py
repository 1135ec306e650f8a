"""Keeps rows, and responses of rows, of a scored file: the best of n, or those within bounds."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from plaudit.errors import ConfigError, DataError
from plaudit.files import appearing, refuse_existing
from plaudit.inference import io
from plaudit.schema import quoted

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
    columns = _Columns(responses_column, reward_column, response_column if top is None else None)
    selection = Selection(os.fspath(output))

    def pick(row: io.Row, index: int) -> tuple[Picks, Picks]:
        for name in (responses_column, reward_column):
            if name not in row:
                fix = "Score the file with `plaudit score` first, or pass the names of the columns."
                raise DataError("is missing", row=index, field=name, fix=fix)
        rewards = _response_rewards(row, index, columns)
        scored = [(-reward, position) for position, reward in enumerate(rewards) if reward is not None]
        best = [position for _, position in sorted(scored)[: top or 1]]
        selection.responses += len(rewards)
        selection.kept_responses += len(best)
        selection.short += 0 < len(best) < (top or 1)
        selection.unscored += not best
        return (best or False), False

    _select(input, [output], columns, pick, selection, overwrite, {"config": config, "split": split})
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
    columns = _Columns(responses_column, reward_column)
    source: dict[str, Any] = {"config": config, "split": split}
    selection = Selection(os.fspath(output))
    in_share: Iterator[bool] | None = None
    if bounds.quantile is not None:
        values = array("d")
        for chunk in io.open_input(input, **source).chunks():
            for index, row in enumerate(chunk.rows, start=chunk.start):
                values.extend(value for value in _measures(row, index, columns, bounds)[0] if value is not None)
        # The nearest whole number of values; of equal values the first.
        order = np.argsort(np.array(values) * (-1 if bounds.keep == "highest" else 1), kind="stable")
        in_share_N = np.zeros(len(values), dtype=bool)
        in_share_N[order[: int(bounds.quantile * len(values) + 0.5)]] = True
        in_share = iter(in_share_N)

    def pick(row: io.Row, index: int) -> tuple[Picks, Picks]:
        measures, unscored = _measures(row, index, columns, bounds)
        within = [position for position, value in enumerate(measures) if value is not None]
        kept = within if in_share is None else [position for position in within if next(in_share)]
        selection.unscored += unscored
        if not isinstance(row.get(responses_column), list | tuple) or _pair_columns(row, reward_column):
            return bool(kept), not kept
        left = [position for position in range(len(measures)) if position not in kept]
        selection.responses += len(measures)
        selection.kept_responses += len(kept)
        return (kept or False), (left or not kept)

    outputs = [output] if dropped is None else [output, dropped]
    _select(input, outputs, columns, pick, selection, overwrite, source)
    return selection


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


def _response_rewards(row: io.Row, index: int, columns: _Columns) -> list[float | None]:
    rewards, responses = numbers_in(row[columns.rewards], index, columns.rewards), row[columns.responses]
    count = len(responses) if isinstance(responses, list | tuple) else 0
    if rewards is None:
        return [None] * count
    if not isinstance(rewards, list) or len(rewards) != count:
        message = f"has {len(rewards) if isinstance(rewards, list) else 1} rewards for {count} responses"
        raise DataError(message, row=index, field=columns.rewards, fix="Score the file again.")
    return rewards


def _pair_columns(row: io.Row, name: str) -> list[str]:
    """Returns the columns of a pair's rewards; none if the row is no pair."""
    names = [f"chosen_{name}", f"rejected_{name}"]
    return names if row.get(name) is None and all(column in row for column in names) else []


def _measures(row: io.Row, index: int, columns: _Columns, bounds: Bounds) -> tuple[list[float | None], bool]:
    """Returns what a quantile goes by, and whether the row has no reward.

    That is the margin of a pair, or the rewards of the responses; None for those that are not within the bounds.
    """
    name, margin = columns.rewards, None
    pair = [numbers_in(row[column], index, column) for column in _pair_columns(row, name)]
    if pair:
        rewards: list[Any] = [None if None in pair else pair[0]]
        margin = None if None in pair else pair[0] - pair[1]
    elif name not in row:
        fix = "Score the file with `plaudit score` first, or pass the column's name with `--reward-column`."
        raise DataError("is missing", row=index, field=name, fix=fix)
    elif bounds.min_margin is not None or bounds.max_margin is not None:
        fix = "Bound the reward instead: only pairs have a margin."
        raise DataError("belongs to no pair", row=index, field=name, fix=fix)
    elif isinstance(row.get(columns.responses), list | tuple):
        rewards = _response_rewards(row, index, columns)
    else:
        rewards = [numbers_in(row[name], index, name)]
        if isinstance(rewards[0], list):
            message = "is a list, and the row has no list of responses"
            fix = "Score the file again, or pass the column's name with `--responses-column`."
            raise DataError(message, row=index, field=name, fix=fix)

    def within(value: float | None, low: float | None, high: float | None) -> bool:
        return value is not None and (low is None or value >= low) and (high is None or value <= high)

    measures = [
        (reward if margin is None else margin)
        if within(reward, bounds.min_reward, bounds.max_reward)
        and (margin is None or within(margin, bounds.min_margin, bounds.max_margin))
        else None
        for reward in rewards
    ]
    return measures, all(reward is None for reward in rewards)


# --- reading and writing --------------------------------------------------------------------------------------


def _select(
    input: str | os.PathLike[str],
    outputs: Sequence[str | os.PathLike[str]],
    columns: _Columns,
    pick: Callable[[io.Row, int], tuple[Picks, Picks]],
    selection: Selection,
    overwrite: bool,
    source: dict[str, Any],
) -> None:
    """Writes what is kept of each row to the first output, and the rest to the second if there is one."""
    paths = [Path(output).expanduser() for output in outputs]
    parquet = [io.kind_of_output(path) == "parquet" for path in paths]
    if len(set(parquet)) > 1:
        raise ConfigError("one of the files is Parquet, and the other is not", fix="Write both in one format.")
    if len({path.resolve() for path in [*paths, Path(input).expanduser()]}) <= len(paths):
        raise ConfigError("two of the files are the same", fix="Give each a name of its own.")
    for path in paths:
        refuse_existing(path, overwrite)
    rows = io.open_input(input, arrow=parquet[0], **source)
    schema = None
    if parquet[0]:
        types = dict(zip(rows.schema.names, rows.schema.types, strict=True))
        for name in (columns.responses, columns.rewards) if columns.responses in types else ():
            kind = types.get(name, pa.null())
            number = pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)
            if not _is_list(kind) and not (number and name == columns.rewards):
                message = f"{quoted([name])} holds {kind}, not lists of one type"
                raise ConfigError(message, fix="Write JSON lines.")
        schema = columns.reduce_table(rows.schema.empty_table(), []).schema
    with ExitStack() as stack:
        temporary = [stack.enter_context(appearing(path)) for path in paths]
        writers = [
            stack.enter_context(
                io.open_output(path, unfinished, lambda: map(columns.name, rows.column_names()), schema)
            )
            for path, unfinished in zip(paths, temporary, strict=True)
        ]
        for chunk in rows.chunks():
            picks = [pick(row, index) for index, row in enumerate(chunk.rows, start=chunk.start)]
            selection.rows += chunk.count
            selection.kept += sum(kept is not False for kept, _ in picks)
            for write, picks_of_output in zip(writers, zip(*picks, strict=True), strict=False):
                if isinstance(chunk.kept, pa.Table):
                    write(columns.reduce_table(chunk.kept, picks_of_output))
                else:
                    write(columns.reduce_rows(chunk, picks_of_output))


@dataclass(frozen=True)
class _Columns:
    """Columns of a scored file; keeps some responses of each row, and reduces the lists beside them in the same way."""

    responses: str
    rewards: str
    single: str | None = None  # for the only response that is kept of each row; None keeps lists
    beside: tuple[str, ...] = ("scores", "ranks")  # others with one value for each response

    def name(self, column: str) -> str:
        """Returns the name of a column in the output."""
        return self.single if self.single is not None and column == self.responses else column

    def require_free(self, columns: Iterable[str], index: int | None = None) -> None:
        """Raises `DataError` if the column for the only response exists."""
        if self.single is not None and self.single != self.responses and self.single in columns:
            fix = "Use another name with `--response-column`."
            raise DataError("exists already", row=index, field=self.single, fix=fix)

    def reduce_rows(self, chunk: io.Chunk, picks: Sequence[Picks]) -> list[io.Row]:
        """Returns the kept rows of a chunk."""
        reduced: list[io.Row] = []
        for index, (kept, row, picked) in enumerate(zip(chunk.kept, chunk.rows, picks, strict=True), chunk.start):
            if isinstance(picked, bool):
                reduced += [kept] if picked else []
                continue
            self.require_free(kept, index)
            changed: io.Row = {}
            for name, value in kept.items():
                if name in (self.responses, self.rewards, *self.beside):
                    values = numbers_in(row[name], index, name) if isinstance(row[name], str) else row[name]
                    if isinstance(values, list | tuple) and len(values) == len(row[self.responses]):
                        value = [values[n] for n in picked] if self.single is None else values[picked[0]]
                changed[self.name(name)] = value
            reduced.append(changed)
        return reduced

    def reduce_table(self, table: pa.Table, picks: Sequence[Picks]) -> pa.Table:
        """Returns the kept rows of a table."""
        kept = [index for index, picked in enumerate(picks) if picked is not False]
        result = table.take(pa.array(kept, pa.int64()))
        kept_picks = [picks[index] for index in kept]
        if (kept and all(picked is True for picked in kept_picks)) or self.responses not in table.column_names:
            return result
        self.require_free(table.column_names)
        for index, field in enumerate(table.schema):
            if field.name in (self.responses, self.rewards, *self.beside) and _is_list(field.type):
                result = result.set_column(index, field.name, self._reduce_lists(result.column(index), kept_picks))
        result = result.rename_columns([self.name(name) for name in result.column_names])
        return io.with_known_types(result.replace_schema_metadata(table.schema.metadata))

    def _reduce_lists(self, column: pa.ChunkedArray, picks: Sequence[Any]) -> pa.Array:
        """Returns the picked items of each list; a null list, such as the rewards of an unscored row, stays null."""
        lists = column.combine_chunks()
        offsets = lists.offsets.to_pylist()
        items: list[list[int]] = []
        for picked, start, end in zip(picks, offsets, offsets[1:], strict=False):
            positions = range(end - start) if picked is True else picked
            items.append([start + position for position in positions if start + position < end])
        if self.single is not None:
            return lists.values.take(pa.array([indices[0] if indices else None for indices in items], pa.int64()))
        ends = np.cumsum([0, *map(len, items)]).tolist()
        values = lists.values.take(pa.array(list(itertools.chain.from_iterable(items)), pa.int64()))
        mask = lists.is_null() if lists.null_count else None
        return type(lists).from_arrays(pa.array(ends, lists.offsets.type), values, type=lists.type, mask=mask)


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
