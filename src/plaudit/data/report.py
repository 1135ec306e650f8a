"""Counts what was read, dropped, truncated and found suspicious in a data set, and reports it in one line."""

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
Purpose: TypeAlias = Literal["train", "eval", "predict", "score"]
"""What a data set is prepared for: it decides which rows are dropped."""
Overlong: TypeAlias = Literal["drop", "truncate_left", "truncate_right", "error"]
"""What happens to a row with a response of more than ``max_length`` tokens."""
ScoringOverlong: TypeAlias = Literal["error", "truncate_left", "truncate_right", "nan"]
"""The same where rewards are computed: ``"nan"`` instead of a reward."""
ROWS_NAMED = 5
"""How many row numbers of each kind are kept."""
BROKEN = "broken"
CUT_AWAY_FIX = (
    'Raise `max_length`, drop the row, or set `overlong` to "truncate_left", which keeps the end of each response.'
)


class Flag(enum.IntFlag):
    """What is suspicious about a readable row; a row can have several."""

    OVERLONG = 1
    IDENTICAL = 2
    EMPTY_RESPONSE = 4
    LAST_MESSAGE_NOT_ASSISTANT = 8
    SAME_RENDERING = 16
    NOTHING_TO_COMPARE = 32
    CUT_AWAY = 64
    BEGINS_WITH_PROMPT = 128

    @property
    def kind(self) -> str:
        """The name under which a report counts this flag, such as ``"empty_response"``."""
        return str(self.name).lower()


KIND_WORDS = {
    Flag.OVERLONG.kind: "over-long",
    Flag.IDENTICAL.kind: "with identical responses",
    Flag.EMPTY_RESPONSE.kind: "with an empty response",
    Flag.LAST_MESSAGE_NOT_ASSISTANT.kind: "whose last message is not the assistant's",
    Flag.SAME_RENDERING.kind: "whose different responses become the same tokens",
    Flag.NOTHING_TO_COMPARE.kind: "without two responses of different scores",
    Flag.CUT_AWAY.kind: "with a response of which truncation would leave nothing",
    Flag.BEGINS_WITH_PROMPT.kind: "whose responses begin with their prompt, which is there twice",
    BROKEN: "that cannot be read",
}


def dropped_flags(purpose: Purpose, overlong: str) -> tuple[Flag, ...]:
    """Returns the flags whose rows are dropped.

    >>> [flag.kind for flag in dropped_flags("train", "drop")]
    ['overlong', 'identical', 'nothing_to_compare', 'cut_away']
    >>> dropped_flags("predict", "truncate_left")
    (<Flag.CUT_AWAY: 64>,)
    """
    drops = {
        Flag.OVERLONG: overlong == "drop" or (purpose == "score" and not overlong.startswith("truncate")),
        Flag.IDENTICAL: purpose == "train",
        Flag.NOTHING_TO_COMPARE: purpose in ("train", "eval"),
        Flag.CUT_AWAY: True,
    }
    return tuple(flag for flag, is_dropped in drops.items() if is_dropped)


@dataclass
class KindCount:
    """Number of rows of one kind, and the indices of the first :data:`ROWS_NAMED` of them."""

    count: int = 0
    first_rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        """Counts one more row."""
        self.count += 1
        if len(self.first_rows) < ROWS_NAMED:
            self.first_rows.append(row)


def row_names(rows: Sequence[int], count: int | None = None) -> str:
    """Names the first of `count` rows (None: as many as are given).

    >>> row_names([3, 18]), row_names([7]), row_names(range(9))
    ('rows 3, 18', 'row 7', 'rows 0, 1, 2, 3, 4, ...')
    """
    count = len(rows) if count is None else count
    names = ", ".join(map(str, rows[:ROWS_NAMED])) + (", ..." if count > len(rows[:ROWS_NAMED]) else "")
    return f"row {names}" if count == 1 else f"rows {names}"


@dataclass
class LengthStats:
    """Lengths of single responses with their prompts, in tokens, before truncation; all 0 if none was seen."""

    shortest: int = 0
    longest: int = 0
    total: int = 0
    responses: int = 0

    @property
    def mean(self) -> float:
        """Mean length in tokens; 0.0 if none was seen."""
        return self.total / self.responses if self.responses else 0.0

    def add(self, lengths: Sequence[int] | np.ndarray) -> None:
        """Counts responses of the given lengths."""
        if len(lengths):
            lengths = np.asarray(lengths)
            self.shortest = min(self.shortest, int(lengths.min())) if self.responses else int(lengths.min())
            self.longest = max(self.longest, int(lengths.max()))
            self.total += int(lengths.sum())
            self.responses += len(lengths)


@dataclass
class DataReport:
    """What happened to the rows of one data set; for a stream, to the rows read so far.

    Training, scoring, evaluation and the server count rows here, so that each kind has one name and one wording.

    >>> report = DataReport("train", 1024, "drop", "train")
    >>> report.add(0, 0), report.add(1, Flag.OVERLONG), report.add(2, Flag.EMPTY_RESPONSE)
    (True, False, True)
    >>> report.summary().partition("; ")[2]
    'dropped 1 over-long (> 1024 tokens; row 1); kept but suspicious: 1 with an empty response (row 2)'
    """

    dataset_name: str
    max_length: int | None
    overlong: Overlong | ScoringOverlong
    purpose: Purpose
    conversational: bool | None = None  # whether responses are messages, not plain text; None: token ids
    streaming: bool = False  # the counts grow while the data set is read
    uncounted: str = ""  # why rows are not counted here, of a stream
    numbered: bool = True  # rows have the numbers that they have in the data set; not where workers share a stream
    rows_read: int = 0
    rows_kept: int = 0
    dropped: dict[str, KindCount] = field(default_factory=dict)  # by kind; a row is counted once
    flagged: dict[str, KindCount] = field(default_factory=dict)  # rows that were kept; a row can be of several kinds
    lengths: LengthStats = field(default_factory=LengthStats)
    # A number for the prompt of each row kept, equal for equal prompts; None for a stream.
    prompts: np.ndarray | None = field(default=None, repr=False, compare=False)
    first_error: DataError | None = field(default=None, repr=False, compare=False)  # of the first broken row

    def note_readers(self, workers: int, processes: int, shards: int) -> None:
        """Notes who reads a stream: rows read elsewhere are not counted, nor numbered where several share them."""
        if workers:
            self.uncounted = f"dataloader workers read them (`dataloader_num_workers` is {workers}; 0 counts them)"
        elif processes > 1 and shards >= processes:
            self.uncounted = "each process reads rows of its own"
        self.numbered = shards == 1 or max(workers, 1) * processes == 1

    def keeps(self, flags: int) -> bool:
        """Tells whether a row with these flags is kept."""
        return not any(flags & flag for flag in dropped_flags(self.purpose, self.overlong))

    def add(self, row: int, flags: int, error: DataError | None = None) -> bool:
        """Counts one row by its index, flags and error; tells whether it is kept."""
        self.rows_read += 1
        if error is not None:
            self.first_error = self.first_error or error
            kind = next((flag.kind for flag in (Flag.OVERLONG, Flag.CUT_AWAY) if flags & flag), BROKEN)
            self.dropped.setdefault(kind, KindCount()).add(row)
            return False
        kept = True
        if flags:
            reasons = [flag for flag in dropped_flags(self.purpose, self.overlong) if flags & flag]
            kept = not reasons
            counts = self.flagged if kept else self.dropped
            for flag in [flag for flag in Flag if flags & flag] if kept else reasons[:1]:
                counts.setdefault(flag.kind, KindCount()).add(row)
        self.rows_kept += kept
        return kept

    def summary(self, leave_out: Sequence[str] = ()) -> str:
        """Reports in one line what was read, dropped and found suspicious, except for some suspicious kinds."""
        if self.uncounted:
            return f"{self.dataset_name} data: a stream, whose rows are not counted: {self.uncounted}"
        scores = self.purpose == "score"
        parts = [
            f"{self.dataset_name} data: {self.rows_read:,} {'row' if self.rows_read == 1 else 'rows'} read"
            f"{' so far' if self.streaming else ''}, {self.rows_kept:,} {'scored' if scores else 'kept'}"
        ]
        if texts := self.descriptions(dropped=True):
            parts.append(f"{'not scored:' if scores else 'dropped'} {', '.join(texts)}")
        if texts := self.descriptions(dropped=False, leave_out=leave_out):
            parts.append(f"{'scored' if scores else 'kept'} but suspicious: {', '.join(texts)}")
        return "; ".join(parts)

    def describe(self, kind: str, count: KindCount) -> str:
        """Puts one count into words, such as ``"3 with an empty response (rows 1, 4, 9)"``."""
        words = KIND_WORDS[kind]
        details = row_names(count.first_rows, count.count) if self.numbered else "row number unknown"
        if kind in (Flag.OVERLONG.kind, Flag.CUT_AWAY.kind):
            details = f"> {self.max_length} tokens; {details}"
        if kind == Flag.OVERLONG.kind:
            words += self.overlong.replace("truncate_", ", truncated on the ") if "truncate" in self.overlong else ""
        if kind == BROKEN and self.first_error is not None:
            details += f"; the first: {self.first_error.summary}"
        return f"{count.count:,} {words} ({details})"

    def descriptions(self, *, dropped: bool, leave_out: Sequence[str] = ()) -> list[str]:
        """Describes the kinds of rows that were dropped, or of those that were kept but are suspicious."""
        # The order of the kinds, not of the rows, so that two runs read alike.
        counts = self.dropped if dropped else self.flagged
        return [self.describe(kind, counts[kind]) for kind in KIND_WORDS if kind in counts and kind not in leave_out]

    def log(self) -> None:
        """Logs the summary: as a warning if anything was dropped or looks suspicious."""
        level = logging.WARNING if self.dropped or self.flagged else logging.INFO
        logger.log(level, "%s", self.summary())

    def log_unless_known(self, known: set[str]) -> None:
        """Logs the summary as a warning if it has something new; suspicious kinds are added to the known ones."""
        new = {*self.flagged} - known
        if self.dropped or new:
            logger.warning("%s", self.summary(sorted(known)))
        # What is truncated depends on the rows of each call; the rest is a habit of the data.
        known |= new - {Flag.OVERLONG.kind}

    def log_first(self, flags: int, row: int) -> None:
        """Warns about the kinds that a stream shows for the first time in the row that was just added."""
        for title, counts in (("dropped", self.dropped), ("kept but suspicious", self.flagged)):
            for flag in Flag:
                count = counts.get(flag.kind)
                if flags & flag and count is not None and count.count == 1 and count.first_rows == [row]:
                    text = f"{self.dataset_name} data: {title}: {self.describe(flag.kind, count)}"
                    more = f"not counted: {self.uncounted}" if self.uncounted else "counted silently"
                    logger.warning("%s; more of this kind are %s", text, more)

    def overlong_error(
        self, row: int, lengths: Sequence[int], count: int = 1, *, row_kind: RowKind = "pairs"
    ) -> DataError:
        """Returns the error for the first of `count` rows that are too long where that is not allowed."""
        fields = [response_field(row_kind, index) for index in range(len(lengths))]
        return overlong_error(row, fields, lengths, self.max_length, self.dataset_name, count)

    def check_usable(self) -> None:
        """Raises `DataError` if every row was dropped."""
        if self.rows_kept:
            return
        fixes = {
            Flag.OVERLONG: f"Raise `max_length` (now {self.max_length}; the responses have {self.lengths.shortest} to "
            f'{self.lengths.longest} tokens), or truncate instead of dropping with `overlong="truncate_left"`.',
            Flag.NOTHING_TO_COMPARE: "Give responses different scores, or learn the scores themselves with `objective` "
            "regression.",
            Flag.CUT_AWAY: CUT_AWAY_FIX,
            Flag.IDENTICAL: "Check how `chosen` and `rejected` were made: equal responses teach nothing.",
        }
        fix = " ".join(text for flag, text in fixes.items() if flag.kind in self.dropped)
        message = f"all {self.rows_read:,} rows were dropped: {', '.join(self.descriptions(dropped=True))}"
        raise DataError(message, dataset=self.dataset_name, fix=fix)


def overlong_error(
    row: int,
    fields: Sequence[str],
    lengths: Sequence[int],
    max_length: int | None,
    dataset_name: str | None = None,
    count: int = 1,
) -> DataError:
    """Returns the error for a row whose responses are too long; it names the longest."""
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    others = f"; {count:,} rows are over-long" if count > 1 else ""
    return DataError(
        f"has {lengths[longest]} tokens, more than `max_length` {max_length}{others}",
        row=row,
        field=fields[longest],
        dataset=dataset_name,
        fix='Set `overlong` to "truncate_left" or "truncate_right", or raise `max_length` if the model can read more; '
        'to skip such rows, set `overlong` to "drop" (training) or "nan" (scoring).',
    )
