"""What was read, dropped, cut and found suspicious in a data set, counted and said in one line."""

from __future__ import annotations

import enum
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from plaudit.errors import DataError
from plaudit.schema import RowKind, response_field

logger = logging.getLogger("plaudit")
Purpose: TypeAlias = Literal["train", "eval", "predict"]
"""What a data set is prepared for: it decides which rows are dropped."""
Overlong: TypeAlias = Literal["drop", "truncate_left", "truncate_right", "error"]
"""What happens to a row with a response of more than ``max_length`` tokens."""
ROWS_NAMED = 5
"""How many row numbers of each kind are remembered."""


class Flag(enum.IntFlag):
    """What is suspicious about a readable row; a row can carry several."""

    OVERLONG = 1
    IDENTICAL = 2
    EMPTY_RESPONSE = 4
    LAST_MESSAGE_NOT_ASSISTANT = 8
    SAME_RENDERING = 16
    NOTHING_TO_COMPARE = 32

    @property
    def kind(self) -> str:
        """The name under which a report counts this flag, such as ``"empty_response"``."""
        return str(self.name).lower()


def dropped_flags(purpose: Purpose, overlong: Overlong) -> tuple[Flag, ...]:
    """Tell which flags cost a row its place.

    Args:
        purpose: What the data set is for.
        overlong: The policy for over-long rows.

    >>> [flag.kind for flag in dropped_flags("train", "drop")]
    ['overlong', 'identical', 'nothing_to_compare']
    >>> dropped_flags("predict", "truncate_left")
    ()
    """
    flags: list[Flag] = []
    if overlong == "drop":
        flags.append(Flag.OVERLONG)
    if purpose == "train":
        flags.append(Flag.IDENTICAL)
    if purpose != "predict":
        flags.append(Flag.NOTHING_TO_COMPARE)
    return tuple(flags)


@dataclass
class KindCount:
    """How many rows are of one kind, and the numbers of the first of them.

    Attributes:
        count: Number of rows.
        first_rows: Indices of the first :data:`ROWS_NAMED` of them in the source data set, counted from 0.
    """

    count: int = 0
    first_rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        """Count one more row.

        Args:
            row: Its index in the source data set.
        """
        self.count += 1
        if len(self.first_rows) < ROWS_NAMED:
            self.first_rows.append(row)

    def rows(self) -> str:
        """Name the first rows, such as ``"rows 3, 18"`` or ``"rows 0, 1, 2, 3, 4, ..."``."""
        names = ", ".join(map(str, self.first_rows)) + (", ..." if self.count > len(self.first_rows) else "")
        return f"row {names}" if self.count == 1 else f"rows {names}"


@dataclass
class LengthStats:
    """Lengths of single responses with their prompts, in tokens, before any cutting.

    Attributes:
        shortest: Length of the shortest response seen (0: none seen).
        longest: Length of the longest response seen.
        total: Sum of all lengths.
        responses: Number of responses seen.
    """

    shortest: int = 0
    longest: int = 0
    total: int = 0
    responses: int = 0

    @property
    def mean(self) -> float:
        """Mean length in tokens; 0.0 where nothing was seen."""
        return self.total / self.responses if self.responses else 0.0

    def add(self, lengths: Sequence[int]) -> None:
        """Count the responses of one row.

        Args:
            lengths: Their lengths in tokens.
        """
        self._merge(min(lengths), max(lengths), sum(lengths), len(lengths))

    def add_all(self, lengths: np.ndarray) -> None:
        """Count the responses of many rows.

        Args:
            lengths: Their lengths in tokens, any shape.
        """
        if lengths.size:
            self._merge(int(lengths.min()), int(lengths.max()), int(lengths.sum()), int(lengths.size))

    def _merge(self, shortest: int, longest: int, total: int, responses: int) -> None:
        self.shortest = min(self.shortest, shortest) if self.responses else shortest
        self.longest = max(self.longest, longest)
        self.total += total
        self.responses += responses


@dataclass
class DataReport:
    """What happened to the rows of one data set; for a stream, to the rows read so far.

    Attributes:
        dataset_name: Which data set it is: ``"train"``, ``"eval"``, a file name.
        max_length: The limit in tokens (None: no limit).
        overlong: The policy for over-long rows.
        purpose: What the data set was prepared for.
        streaming: Whether the counts grow while the data set is read.
        rows_read: Number of rows read.
        rows_kept: Number of rows kept.
        dropped: Kind of reason -> the rows dropped for it. A row is counted once.
        flagged: Kind of suspicion -> the rows that were kept all the same. A row can be of several kinds.
        lengths: Token lengths of all responses read.
        prompts: A number for the prompt of each row kept, equal for equal prompts; None for a stream.
    """

    dataset_name: str
    max_length: int | None
    overlong: Overlong
    purpose: Purpose
    streaming: bool = False
    rows_read: int = 0
    rows_kept: int = 0
    dropped: dict[str, KindCount] = field(default_factory=dict)
    flagged: dict[str, KindCount] = field(default_factory=dict)
    lengths: LengthStats = field(default_factory=LengthStats)
    prompts: np.ndarray | None = field(default=None, repr=False, compare=False)

    def keeps(self, flags: int) -> bool:
        """Tell whether a row with such flags is kept.

        Args:
            flags: Sum of the values of its :class:`Flag`.
        """
        return not any(flags & flag for flag in dropped_flags(self.purpose, self.overlong))

    def add(self, row: int, flags: int) -> bool:
        """Count one row and tell whether it is kept.

        Args:
            row: Its index in the source data set.
            flags: Sum of the values of its :class:`Flag`.
        """
        self.rows_read += 1
        kept = True
        if flags:
            reasons = [flag for flag in dropped_flags(self.purpose, self.overlong) if flags & flag]
            kept = not reasons
            counts = self.flagged if kept else self.dropped
            for flag in [flag for flag in Flag if flags & flag] if kept else reasons[:1]:
                counts.setdefault(flag.kind, KindCount()).add(row)
        self.rows_kept += kept
        return kept

    def summary(self) -> str:
        """Say in one line what was read, dropped and found suspicious."""
        parts = [
            f"{self.dataset_name} data: {self.rows_read:,} {'row' if self.rows_read == 1 else 'rows'} read"
            f"{' so far' if self.streaming else ''}, {self.rows_kept:,} kept"
        ]
        for title, counts in (("dropped", self.dropped), ("kept but suspicious:", self.flagged)):
            # The order of the flags, not of the rows, so that two runs read alike.
            found = [self.describe(flag, counts[flag.kind]) for flag in Flag if flag.kind in counts]
            if found:
                parts.append(f"{title} {', '.join(found)}")
        return "; ".join(parts)

    def describe(self, flag: Flag, count: KindCount) -> str:
        """Put one count into words, such as ``"3 with an empty response (rows 1, 4, 9)"``.

        Args:
            flag: The kind of the rows.
            count: How many, and the first of them.
        """
        if flag is Flag.OVERLONG:
            cut = {"truncate_left": ", cut on the left", "truncate_right": ", cut on the right"}
            words = f"over-long{cut.get(self.overlong, '')}"
            return f"{count.count:,} {words} (> {self.max_length} tokens; {count.rows()})"
        words = {
            Flag.IDENTICAL: "with identical responses",
            Flag.EMPTY_RESPONSE: "with an empty response",
            Flag.LAST_MESSAGE_NOT_ASSISTANT: "whose last message is not the assistant's",
            Flag.SAME_RENDERING: "whose different responses become the same tokens",
            Flag.NOTHING_TO_COMPARE: "without two responses of different scores",
        }[flag]
        return f"{count.count:,} {words} ({count.rows()})"

    def log(self) -> None:
        """Log the summary: as a warning if anything was dropped or looks suspicious."""
        level = logging.WARNING if self.dropped or self.flagged else logging.INFO
        logger.log(level, "%s", self.summary())

    def log_first(self, flags: int, row: int) -> None:
        """Warn about kinds that a stream shows for the first time, with the row number.

        Args:
            flags: Flags of the row that was just added.
            row: Its index in the source data set.
        """
        for title, counts in (("dropped", self.dropped), ("kept but suspicious", self.flagged)):
            for flag in Flag:
                count = counts.get(flag.kind)
                if flags & flag and count is not None and count.count == 1 and count.first_rows == [row]:
                    found = f"{self.dataset_name} data: {title}: {self.describe(flag, count)}"
                    logger.warning("%s; more of this kind are counted silently", found)

    def overlong_error(
        self, row: int, lengths: Sequence[int], count: int = 1, *, row_kind: RowKind = "pairs"
    ) -> DataError:
        """Make the error for a row that is too long where that is not allowed.

        Args:
            row: Its index in the source data set.
            lengths: Lengths of its responses, in tokens.
            count: How many such rows there are.
            form: Form of the row, which names its responses.
        """
        worst = max(range(len(lengths)), key=lengths.__getitem__)
        others = f"; {count:,} rows are over-long" if count > 1 else ""
        return DataError(
            f"has {lengths[worst]} tokens, more than `max_length` {self.max_length}{others}",
            row=row,
            field=response_field(row_kind, worst),
            dataset=self.dataset_name,
            fix='Raise `max_length`, or set `overlong` to "drop", "truncate_left" or "truncate_right".',
        )

    def check_usable(self) -> None:
        """Refuse a data set of which no row is left.

        Raises:
            DataError: Every row was dropped.
        """
        if self.rows_kept:
            return
        found = [self.describe(flag, self.dropped[flag.kind]) for flag in Flag if flag.kind in self.dropped]
        fixes = []
        if Flag.OVERLONG.kind in self.dropped:
            fixes.append(
                f"Raise `max_length` (now {self.max_length}; the responses have {self.lengths.shortest} to "
                f'{self.lengths.longest} tokens), or cut instead of dropping with `overlong="truncate_left"`.'
            )
        if Flag.NOTHING_TO_COMPARE.kind in self.dropped:
            fixes.append("Give responses different scores, or learn the scores themselves with `objective` regression.")
        if Flag.IDENTICAL.kind in self.dropped:
            fixes.append("Check how `chosen` and `rejected` were made: equal responses teach nothing.")
        raise DataError(
            f"all {self.rows_read:,} rows were dropped: {', '.join(found)}",
            dataset=self.dataset_name,
            fix=" ".join(fixes),
        )
