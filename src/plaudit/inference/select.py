"""Takes rows, and responses of rows, out of what was read."""

from __future__ import annotations

import contextlib
import json
import math
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa
from datasets import Features

from plaudit.errors import ConfigError, DataError
from plaudit.inference.io import (
    Chunk,
    Row,
    RowInput,
    Writer,
    kind_of_output,
    metadata_with,
    open_input,
    open_output,
    refuse_existing,
    rename,
)
from plaudit.schema import quoted

_ROWS_AT_ONCE = 1024
Keep: TypeAlias = Literal["highest", "lowest"]


@dataclass
class Selection:
    """What was kept.

    Attributes:
        output: The file.
        rows: Rows that were read.
        kept: Rows that were kept, maybe with fewer responses.
        unscored: Rows that were dropped because they have no reward.
        responses: Responses of rows with several that were read.
        kept_responses: Those of them that were kept.
        short: Rows that have fewer responses than were asked for.
    """

    output: str
    rows: int = 0
    kept: int = 0
    unscored: int = 0
    responses: int = 0
    kept_responses: int = 0
    short: int = 0


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
    """Keep the best responses of each row of a scored file; of equal ones the first.

    Without `top` the best response of a row goes to `response_column`, in the place of the list, and its reward is a
    number; with `top` lists stay lists, the best first. Lists ``scores`` and ``ranks`` go along.

    Args:
        input: What :func:`~plaudit.inference.files.score_file` wrote, or anything with such columns.
        output: Where to write, as for `score_file`.
        top: How many responses to keep of each row.
        responses_column: Column of the responses.
        reward_column: Column of their rewards.
        response_column: Where the best response goes.
        overwrite: Replace an existing `output`.
        config: Configuration of a data set on the Hub.
        split: Which split.

    Raises:
        DataError: A row has no such columns, or rewards and responses differ in number.
        ConfigError: The output exists, or a setting cannot work.
    """
    if top is not None and top < 1:
        raise ConfigError(f"`top` is {top}", fix="Keep at least 1 response of each row.")
    picker = Picker(responses_column, reward_column, response_column if top is None else None)
    selection = Selection(os.fspath(output))

    def pick(row: Row, number: int) -> tuple[Picks, Picks]:
        rewards = _rewards_of(row, number, picker)
        scored = [(-one, place) for place, one in enumerate(rewards) if one is not None]
        best = [place for _, place in sorted(scored)[: top or 1]]
        selection.responses += len(rewards)
        selection.kept_responses += len(best)
        selection.short += 0 < len(best) < (top or 1)
        selection.unscored += not best
        return (best or False), False

    _select(input, output, None, picker, pick, selection, overwrite, config, split)
    return selection


def _rewards_of(row: Row, number: int, picker: Picker) -> list[float | None]:
    for name in (picker.responses, picker.rewards):
        if name not in row:
            fix = "Score the file with `plaudit score` first, or name the columns."
            raise DataError("is not there", row=number, field=name, fix=fix)
    rewards, responses = numbers_in(row[picker.rewards], number, picker.rewards), row[picker.responses]
    count = len(responses) if isinstance(responses, list | tuple) else 0
    if rewards is None:
        return [None] * count
    if not isinstance(rewards, list) or len(rewards) != count:
        have = len(rewards) if isinstance(rewards, list) else 1
        message = f"has {have} rewards for {count} responses"
        raise DataError(message, row=number, field=picker.rewards, fix="Score the file again.")
    return rewards


@dataclass(frozen=True)
class Bounds:
    """What is kept: rows and responses within all bounds that are given.

    Attributes:
        min_margin: Least reward of ``chosen`` above that of ``rejected``.
        max_margin: Most of it.
        min_reward: Least reward of a response; of a pair that of ``chosen``.
        max_reward: Most of it.
        quantile: Share of what is within the other bounds: by margin for pairs, else by reward.
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
        given = (self.min_margin, self.max_margin, self.min_reward, self.max_reward, self.quantile)
        if all(one is None for one in given):
            fix = "Give a bound, such as `min_margin`, `min_reward` or `quantile`."
            raise ConfigError("nothing says what to keep", fix=fix)
        for name, low, high in (
            ("margin", self.min_margin, self.max_margin),
            ("reward", self.min_reward, self.max_reward),
        ):
            if low is not None and high is not None and low > high:
                raise ConfigError(f"`min_{name}` {low} is above `max_{name}` {high}", fix="Exchange them.")
        if self.quantile is not None and not 0 < self.quantile < 1:
            raise ConfigError(f"`quantile` is {self.quantile}", fix="Give a share between 0 and 1, such as 0.2.")
        if self.keep not in get_args(Keep):
            raise ConfigError(f"`keep` is {self.keep!r}", fix="Use 'highest' or 'lowest'.")

    def passes(self, reward: float, margin: float | None) -> bool:
        """Whether a response or pair is within the bounds, but for the quantile.

        Args:
            reward: Its reward.
            margin: That of a pair.
        """
        return _within(reward, self.min_reward, self.max_reward) and (
            margin is None or _within(margin, self.min_margin, self.max_margin)
        )


def _within(value: float, low: float | None, high: float | None) -> bool:
    return (low is None or value >= low) and (high is None or value <= high)


class _Share:
    """Decides about one value after the other whether it belongs to the highest or lowest of all.

    Args:
        values: All of them.
        bounds: Which share is kept: the whole number of values next to it; of equal ones the first.
    """

    def __init__(self, values: array[float], bounds: Bounds) -> None:
        assert bounds.quantile is not None
        self._sign = 1.0 if bounds.keep == "highest" else -1.0
        signed = self._sign * np.frombuffer(values, dtype=np.float64) if len(values) else np.empty(0)
        count = int(np.floor(bounds.quantile * len(signed) + 0.5))
        if count == 0:
            self._least, self._equal = float("inf"), 0
            return
        self._least = float(np.partition(signed, len(signed) - count)[len(signed) - count])
        self._equal = count - int((signed > self._least).sum())

    def takes(self, value: float) -> bool:
        """Whether the next value belongs to it."""
        signed = self._sign * value
        if signed == self._least and self._equal:
            self._equal -= 1
            return True
        return signed > self._least


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
    """Keep the pairs, rows and responses of a scored file that are within bounds.

    Of rows with several responses, each response is kept or dropped by itself, and a row of which none is left is
    dropped. Rows and responses without a reward are dropped. For a quantile the file is read twice, and 8 bytes are
    kept in memory for each pair or response.

    Args:
        input: What :func:`~plaudit.inference.files.score_file` wrote, or anything with such columns.
        output: Where to write, as for `score_file`.
        bounds: What to keep.
        dropped: Where to write what is not kept.
        reward_column: Column of the rewards; those of pairs are ``chosen_<name>`` and ``rejected_<name>``.
        responses_column: Column of the responses, where rows have several.
        overwrite: Replace existing files.
        config: Configuration of a data set on the Hub.
        split: Which split.

    Raises:
        DataError: A row has no rewards, or no margin where one is asked for.
        ConfigError: A file exists, or there are no bounds.
    """
    picker = Picker(responses_column, reward_column)
    selection = Selection(os.fspath(output))
    share: _Share | None = None
    if bounds.quantile is not None:
        values = array("d")
        rows = open_input(input, config=config, split=split)
        for chunk in rows.chunks(_ROWS_AT_ONCE):
            for number, row in enumerate(chunk.rows, start=chunk.start):
                values.extend(_measure(*one) for one in _measured(row, number, picker, bounds) if _in(one, bounds))
        share = _Share(values, bounds)

    def pick(row: Row, number: int) -> tuple[Picks, Picks]:
        several = reward_column in row and not _is_pair(row, reward_column)
        items = _measured(row, number, picker, bounds)
        kept = [
            place
            for place, one in enumerate(items)
            if _in(one, bounds) and (share is None or share.takes(_measure(*one)))
        ]
        selection.unscored += all(reward is None for reward, _ in items)
        if not (several and isinstance(row.get(responses_column), list | tuple)):
            return bool(kept), not kept
        left = [place for place in range(len(items)) if place not in kept]
        selection.responses += len(items)
        selection.kept_responses += len(kept)
        return (kept or False), (left or not kept)

    _select(input, output, dropped, picker, pick, selection, overwrite, config, split)
    return selection


def _measure(reward: float | None, margin: float | None) -> float:
    value = reward if margin is None else margin
    assert value is not None
    return value


def _in(item: tuple[float | None, float | None], bounds: Bounds) -> bool:
    reward, margin = item
    return reward is not None and bounds.passes(reward, margin)


def _is_pair(row: Row, column: str) -> bool:
    return f"chosen_{column}" in row and f"rejected_{column}" in row and row.get(column) is None


def _measured(row: Row, number: int, picker: Picker, bounds: Bounds) -> Sequence[tuple[float | None, float | None]]:
    """Reward and margin of each thing in a row that is kept or dropped; None where it has none."""
    name = picker.rewards
    if _is_pair(row, name):
        chosen, rejected = (
            numbers_in(row[column], number, column) for column in (f"chosen_{name}", f"rejected_{name}")
        )
        lost = chosen is None or rejected is None
        return [(None, None) if lost else (chosen, chosen - rejected)]
    if name not in row:
        fix = "Score the file with `plaudit score` first, or name the column with --reward-column."
        raise DataError("is not there", row=number, field=name, fix=fix)
    if bounds.min_margin is not None or bounds.max_margin is not None:
        fix = "Bound the reward instead: only pairs have a margin."
        raise DataError("belongs to no pair", row=number, field=name, fix=fix)
    if isinstance(row.get(picker.responses), list | tuple):
        return [(one, None) for one in _rewards_of(row, number, picker)]
    return [(numbers_in(row[name], number, name), None)]


# --- going through the file -----------------------------------------------------------------------------------


@dataclass
class _Target:
    path: Path
    picker: Picker
    writer: Writer | None = field(default=None)

    @property
    def temporary(self) -> Path:
        return self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")

    def open(self, rows: RowInput, stack: ExitStack) -> None:
        schema = self.picker.schema(rows) if kind_of_output(self.path) == "parquet" else None

        def columns() -> list[str]:
            return [self.picker.name(one) for one in rows.column_names()]

        self.writer = stack.enter_context(open_output(self.path, self.temporary, columns=columns, schema=schema))

    def write(self, chunk: Chunk, picks: Sequence[Picks]) -> None:
        assert self.writer is not None
        self.writer.write(self.picker.apply(chunk, picks))


def _select(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    dropped: str | os.PathLike[str] | None,
    picker: Picker,
    pick: Callable[[Row, int], tuple[Picks, Picks]],
    selection: Selection,
    overwrite: bool,
    config: str | None,
    split: str,
) -> None:
    """Write what is kept of each row to one file, and what is not to another."""
    targets = [_Target(Path(output).expanduser(), picker)]
    if dropped is not None:
        targets.append(_Target(Path(dropped).expanduser(), picker))
    kinds = [kind_of_output(one.path) == "parquet" for one in targets]
    if len(set(kinds)) > 1:
        raise ConfigError("one of the files is Parquet, and the other is not", fix="Write both in one format.")
    if len({one.path.resolve() for one in targets} | {Path(input).expanduser().resolve()}) <= len(targets):
        raise ConfigError("two of the files are the same", fix="Give each a name of its own.")
    for one in targets:
        refuse_existing(one.path, overwrite)
    rows = open_input(input, config=config, split=split, arrow=kinds[0])
    with ExitStack() as stack:
        for one in targets:
            one.open(rows, stack)
        for chunk in rows.chunks(_ROWS_AT_ONCE):
            decisions = list(_decisions(chunk, pick))
            selection.rows += chunk.count
            selection.kept += sum(kept is not False for kept, _ in decisions)
            for target, picks in zip(targets, zip(*decisions, strict=True), strict=False):
                target.write(chunk, picks)
    for one in targets:
        rename(one.temporary, one.path)


def _decisions(chunk: Chunk, pick: Callable[[Row, int], tuple[Picks, Picks]]) -> Iterator[tuple[Picks, Picks]]:
    for number, row in enumerate(chunk.rows, start=chunk.start):
        yield pick(row, number)


Picks: TypeAlias = "list[int] | bool"
"""Which responses of a row are kept: their places; or whether the row is kept as it is."""


def numbers_in(value: Any, row: int, field: str) -> Any:
    """Rewards as they were written: a number or a list, None for null and NaN.

    Args:
        value: What the row holds; in CSV a text.
        row: Its number.
        field: Its column.

    Raises:
        DataError: It is neither.

    >>> numbers_in("[0.5, null]", 0, "reward"), numbers_in(2, 0, "reward"), numbers_in("", 0, "reward")
    ([0.5, None], 2.0, None)
    """
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value) if value.strip() else None
    if isinstance(value, list | tuple):
        return [numbers_in(one, row, f"{field}[{n}]") for n, one in enumerate(value)]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"is {value!r}, no reward", row=row, field=field, fix="Write it with `plaudit score`.")
    return float(value)


@dataclass(frozen=True)
class Picker:
    """Keeps some responses of each row, and what goes with them.

    Attributes:
        responses: Column of the responses.
        rewards: Column of their rewards.
        single: Where the response goes if one is left of each row; None keeps lists.
    """

    responses: str
    rewards: str
    single: str | None = None

    @property
    def _alongside(self) -> tuple[str, ...]:
        return (self.responses, self.rewards, "scores", "ranks")

    def name(self, column: str) -> str:
        """What a column is called afterwards.

        Args:
            column: What it is called before.
        """
        return self.single if self.single is not None and column == self.responses else column

    def apply(self, chunk: Chunk, picks: Sequence[Picks]) -> Any:
        """The rows that are left of a chunk, as mappings or as a table, like the chunk itself.

        Args:
            chunk: Rows.
            picks: What is kept of each.

        Raises:
            DataError: There is a column of the new name already.
        """
        if isinstance(chunk.kept, pa.Table):
            return self._of_table(chunk.kept, picks)
        return [
            kept if picked is True else self._of_row(kept, read, picked, chunk.start + place)
            for place, (kept, read, picked) in enumerate(zip(chunk.kept, chunk.rows, picks, strict=True))
            if picked is not False
        ]

    def _of_row(self, kept: Row, read: Row, picked: Any, number: int) -> Row:
        self.require_free(kept, number)
        count = len(read[self.responses])
        row: Row = {}
        for name, value in kept.items():
            if name in self._alongside:
                values = numbers_in(read[name], number, name) if isinstance(read[name], str) else read[name]
                if isinstance(values, list | tuple) and len(values) == count:
                    some = [values[place] for place in picked]
                    value = some if self.single is None else some[0]
            row[self.name(name)] = value
        return row

    def require_free(self, columns: Any, number: int | None = None) -> None:
        """Refuse columns among which the new one is already.

        Args:
            columns: Names of columns.
            number: Number of a row.

        Raises:
            DataError: It is.
        """
        if self.single is not None and self.single != self.responses and self.single in columns:
            fix = "Use another name with `--response-column`."
            raise DataError("exists already", row=number, field=self.single, fix=fix)

    def _of_table(self, table: pa.Table, picks: Sequence[Picks]) -> pa.Table:
        left = [place for place, picked in enumerate(picks) if picked is not False]
        result = table.take(pa.array(left, pa.int64()))
        chosen = [picks[place] for place in left]
        if (chosen and all(picked is True for picked in chosen)) or self.responses not in table.column_names:
            return result
        self.require_free(table.column_names)
        new = {}
        for place, name in enumerate(table.column_names):
            if name in self._alongside and _is_list(table.schema.field(name).type):
                column = self._taken(result.column(name), chosen)
                result = result.set_column(place, name, column)
                new[name] = column
        result = result.rename_columns([self.name(name) for name in result.column_names])
        return result.replace_schema_metadata(self._metadata(table.schema, list(new)))

    def _taken(self, column: pa.ChunkedArray, picks: Sequence[Any]) -> pa.Array:
        """The picked items of each list; a list that is null, such as the rewards of a lost row, stays so."""
        lists = column.combine_chunks()
        offsets = lists.offsets.to_pylist()
        taken: list[list[int]] = []
        for picked, start, end in zip(picks, offsets, offsets[1:], strict=False):
            places = range(end - start) if picked is True else picked
            taken.append([start + place for place in places if start + place < end])
        if self.single is not None:
            return lists.values.take(pa.array([one[0] if one else None for one in taken], pa.int64()))
        ends = [0]
        for one in taken:
            ends.append(ends[-1] + len(one))
        values = lists.values.take(pa.array([place for one in taken for place in one], pa.int64()))
        mask = lists.is_null() if lists.null_count else None
        return type(lists).from_arrays(pa.array(ends, lists.offsets.type), values, type=lists.type, mask=mask)

    def _metadata(self, schema: pa.Schema, changed: Sequence[str]) -> Any:
        metadata = schema.metadata
        if self.single is None or metadata is None or b"huggingface" not in metadata:
            return metadata
        known = Features.from_arrow_schema(schema)
        features = {
            self.name(name): one.feature if name in changed and hasattr(one, "feature") else one
            for name, one in known.items()
        }
        return metadata_with({**metadata}, features, without=known)

    def schema(self, rows: RowInput) -> Any:
        """Types of the columns afterwards, where they are known.

        Args:
            rows: What is read.

        Raises:
            ConfigError: Its responses have no list type, as Parquet needs it.
        """
        if rows.schema is None:
            return None
        names = rows.schema.names
        if self.responses in names and not _is_list(rows.schema.field(self.responses).type):
            kind = rows.schema.field(self.responses).type
            raise ConfigError(
                f"{quoted([self.responses])} holds {kind}, not lists of one type", fix="Write JSON lines."
            )
        empty = rows.schema.empty_table()
        return self._of_table(empty, []).schema


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))
