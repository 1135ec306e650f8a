"""Scores a file or data set of any size into another file, and goes on where an interrupted run was."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from plaudit.data.report import Flag, KindCount
from plaudit.errors import ConfigError, DataError
from plaudit.scoring.columns import RewardColumns, add_to_table
from plaudit.scoring.fingerprints import digests_of_model
from plaudit.scoring.inputs import Chunk, RowInput, open_input
from plaudit.scoring.outputs import kind_of_output, open_output, refuse_existing, rename, write_whole
from plaudit.scoring.parts import Part, WorkFolder
from plaudit.scoring.processes import Heartbeat, Processes, Watch
from plaudit.scoring.rows import Shape, shape_of
from plaudit.scoring.scorer import OnError, Scorer
from plaudit.scoring.tally import say_counts
from plaudit.scoring.uncertainty import require_ensemble

logger = logging.getLogger("plaudit")

WINDOW = 1024
"""Rows that are scored, and kept, at a time."""
PATIENCE = 300.0
"""Seconds after which a process without a sign of life is taken to be gone."""
_LOOK_AGAIN = 0.2


@dataclass(frozen=True)
class FileScores:
    """What became of a file.

    Attributes:
        output: The scored file.
        rows: Rows in it, those that could not be scored included.
        responses: Rewards in it.
        lost: Rows that could not be scored.
        cut: Rows that were too long and cut.
        columns: The columns that were added.
        resumed: Rows that were scored by earlier runs.
        seconds: Time that this run took.
    """

    output: str
    rows: int
    responses: int
    lost: int
    cut: int
    columns: tuple[str, ...]
    resumed: int
    seconds: float


def score_file(
    model: Scorer,
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    column: str = "reward",
    errors: OnError = "raise",
    overwrite: bool = False,
    overwrite_column: bool = False,
    restart: bool = False,
    window: int = WINDOW,
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    progress: bool = False,
    patience: float = PATIENCE,
    uncertainty: bool = False,
    caution: float = 1.0,
) -> FileScores | None:
    """Score every row of a file or data set into a new file: the same rows in the same order, with a column more.

    A row with one response gets a number in `column`, one with several a list, and a pair ``chosen_<column>`` and
    ``rejected_<column>``. Finished windows are kept in the folder ``<output>.parts`` until the file is whole; called
    again, it goes on there. Under `torchrun` or `accelerate launch` the processes share the windows.

    Args:
        model: A `RewardModel`.
        input: A JSON, JSON lines, CSV or Parquet file, a folder, or a data set on the Hub.
        output: Where to write; the name decides how: .jsonl, .csv, .tsv (also with .gz) or .parquet.
        column: Name of the new column.
        errors: ``"raise"`` on the first row that cannot be scored, or write null for it (``"nan"``).
        overwrite: Replace an existing `output`, once the new one is whole.
        overwrite_column: Replace an existing column.
        restart: Throw away the finished windows of an earlier run.
        window: Rows that are scored and kept at a time.
        config: Configuration of a data set on the Hub.
        split: Which split.
        streaming: Read a data set on the Hub while scoring; it is then read a second time to write the file.
        progress: Show a progress bar.
        patience: Seconds without a sign of life after which another process is taken to be gone.
        uncertainty: Also write ``<column>_spread`` and ``<column>_lower``, of pairs ``<column>_margin_spread`` and
            ``<column>_margin_lower``. The model must have an ensemble.
        caution: How many spreads below the mean the lower bound is.

    Returns:
        What became of the rows; None in every process but the first.

    Raises:
        DataError: A row cannot be read or scored; it names the row.
        ConfigError: The output exists, or the model, the input or a setting changed since an interrupted run.
    """
    started = time.monotonic()
    path = Path(output).expanduser()
    if window < 1:
        raise ConfigError(f"`window` is {window}", fix="Use a positive number of rows.")
    processes = Processes.current()
    columns = RewardColumns(column, overwrite_column, uncertainty)
    asked = caution if uncertainty else None
    if uncertainty:
        require_ensemble(model.model, model.name, caution)
    opened: list[RowInput] = []

    def examine() -> dict[str, Any]:
        arrow = kind_of_output(path) == "parquet"
        opened.append(open_input(input, config=config, split=split, streaming=streaming, arrow=arrow))
        return {**_made_from(model, opened[0], window), "uncertainty": asked}

    def prepare(made_from: dict[str, Any]) -> tuple[WorkFolder, bool]:
        work = WorkFolder(path.with_name(f"{path.name}.parts"))
        if restart:
            refuse_existing(path, overwrite)
            work.remove()
        elif path.exists() and work.is_finished():
            return work.open(made_from, finished=True), True
        refuse_existing(path, overwrite)
        return work.open(made_from), False

    work, finished = processes.agree(examine, prepare)
    job = _Job(model, opened[0], path, work, processes, columns, errors, window, progress, patience, asked)
    if not finished:
        finished = job.run()
    return job.finish(time.monotonic() - started) if finished and processes.rank == 0 else None


def _made_from(model: Scorer, rows: RowInput, window: int) -> dict[str, Any]:
    calibration = None if model.calibration is None else dataclasses.asdict(model.calibration)
    return {
        **digests_of_model(model.model, model.processing_class),
        "input": rows.fingerprint(),
        "window": window,
        "max_length": model.max_length,
        "overlong": model.overlong,
        "calibration": calibration,
    }


@dataclass
class _Job:
    """One process's share of scoring a file."""

    model: Scorer
    rows: RowInput
    path: Path
    work: WorkFolder
    processes: Processes
    columns: RewardColumns
    errors: OnError
    window: int
    progress: bool
    patience: float
    caution: float | None

    def run(self) -> bool:
        """Score this process's windows; the first process then waits for the others and merges."""
        stamp = self.rows.stamp()
        with Heartbeat(self.work.path, self.processes.rank, min(5.0, self.patience / 4)):
            try:
                counts, resumed = self._score()
            except BaseException as error:
                if self.processes.rank:
                    self.work.say_failed(self.processes.rank, error)
                elif self.processes.count == 1 and not self.work.count():
                    self.work.remove()
                raise
            if self.processes.rank:
                return False
            self._wait(counts)
        if self.rows.stamp() != stamp:
            fix = "Start over with --restart."
            raise DataError(f"{self.rows.name}: changed while it was scored", fix=fix)
        self._merge(counts, resumed)
        return True

    def _score(self) -> tuple[list[int], int]:
        """Score the windows of this process that are not there yet; returns rows of all windows, and those found."""
        counts: list[int] = []
        resumed = 0
        with tqdm(total=self.rows.length, unit=" rows", desc="Scoring", disable=not self.progress) as bar:
            for chunk in self.rows.chunks(self.window, self._is_mine):
                counts.append(chunk.count)
                if chunk.rows:
                    self.work.write(chunk.index, self._score_window(chunk))
                elif chunk.index % self.processes.count == self.processes.rank:
                    resumed += chunk.count
                bar.update(chunk.count)
        if not counts:
            raise DataError(f"{self.rows.name}: has no rows", fix="Pass a file with at least one row.")
        if resumed:
            logger.info("%d rows were scored by an earlier run.", resumed)
        return counts, resumed

    def _is_mine(self, index: int) -> bool:
        return index % self.processes.count == self.processes.rank and self.work.read(index) is None

    def _score_window(self, chunk: Chunk) -> Part:
        for number, row in enumerate(chunk.rows, start=chunk.start):
            self.columns.check(row, shape_of(row)[0], number)
        scored = self.model.score_prepared(
            chunk.rows,
            errors=self.errors,
            first_row=chunk.start,
            features=self.rows.features,
            caution=self.caution,
        )
        return Part.of(chunk.start, scored, self.caution)

    def _wait(self, counts: Sequence[int]) -> None:
        """Wait for the other processes' windows."""
        watch = Watch(self.work.path, self.patience)
        missing = set(range(len(counts)))
        while missing := {index for index in missing if not self.work.has(index, counts[index])}:
            failure = self.work.failure()
            if failure is not None:
                raise ConfigError(failure, fix="Mend it, and start the same command again: finished windows are kept.")
            for rank in {index % self.processes.count for index in missing}:
                watch.require(rank)
            time.sleep(_LOOK_AGAIN)

    # ---- the result -------------------------------------------------------------------------------------------

    def _parts(self, counts: Sequence[int]) -> Iterator[Part]:
        for index in range(len(counts)):
            part = self.work.read(index)
            assert part is not None, f"window {index} is gone"
            yield part

    def _merge(self, counts: Sequence[int], resumed: int) -> None:
        summary = _Summary()
        for part in self._parts(counts):
            summary.add(part)
        if self.errors == "raise" and summary.first_error is not None:
            # An earlier run, told to write null, has passed over it.
            raise DataError(summary.first_error, fix="Or go on with --errors nan.")
        names = self.columns.names(summary.shapes)
        if kind_of_output(self.path) == "parquet":
            self.columns.require_one_type(summary.shapes)
        schema = None if self.rows.schema is None else add_to_table(self.rows.schema.empty_table(), names).schema
        with open_output(self.path, self.work.merged, columns=lambda: self._header(list(names)), schema=schema) as out:
            for chunk, part in zip(self.rows.chunks(self.window), self._parts(counts), strict=True):
                out.write(self._scored(chunk, part, summary.shapes))
        result = {**summary.values(), "columns": list(names), "resumed": resumed, "output": str(self.path)}
        write_whole(self.work.result, json.dumps(result))
        rename(self.work.merged, self.path)

    def _scored(self, chunk: Chunk, part: Part, shapes: Sequence[Shape]) -> Any:
        beside = part.beside or [()] * len(part.scores)
        added = [
            self.columns.values(shape, score, shapes, more)
            for shape, score, more in zip(part.shapes, part.scores, beside, strict=True)
        ]
        if isinstance(chunk.kept, pa.Table):
            return add_to_table(chunk.kept, self.columns.names(shapes), added)
        return [{**row, **values} for row, values in zip(chunk.kept, added, strict=True)]

    def _header(self, names: Sequence[str]) -> list[str]:
        return list(dict.fromkeys([*self.rows.column_names(), *names]))

    def finish(self, seconds: float) -> FileScores:
        """Remove the work folder, and say what became of the rows."""
        values = json.loads(self.work.result.read_text(encoding="utf-8"))
        self.work.remove()
        counts = {name: KindCount(*count) for name, count in values.pop("counts").items()}
        model = self.model
        say_counts(counts, values["rows"], values.pop("first_error"), model.max_length, model.overlong)
        return FileScores(**{**values, "columns": tuple(values["columns"]), "seconds": seconds})


class _Summary:
    """What the parts say about all rows."""

    def __init__(self) -> None:
        self.rows = self.responses = 0
        self.first_error: str | None = None
        self._first_lost = ""
        self._shapes: Counter[Shape] = Counter()
        self._lost_shapes: Counter[Shape] = Counter()
        self._counts = {name: KindCount() for name in ("lost", "cut", *(flag.kind for flag in Flag))}

    def add(self, part: Part) -> None:
        self.rows += len(part.scores)
        for shape, score in zip(part.shapes, part.scores, strict=True):
            self.responses += len(score) if isinstance(score, list) else score is not None
            (self._lost_shapes if score is None else self._shapes)[shape] += 1
        for number, error, overlong in part.lost:
            self._counts["lost"].add(number)
            self._first_lost = self._first_lost or error
            if not overlong:
                self.first_error = self.first_error or error
        for number in part.cut:
            self._counts["cut"].add(number)
        for number, flags in part.suspicious:
            for flag in Flag:
                if flags & flag:
                    self._counts[flag.kind].add(number)

    @property
    def shapes(self) -> list[Shape]:
        """Shapes that rows have; those of rows that could not be scored count only where there is nothing else."""
        return sorted(self._shapes or self._lost_shapes)

    def values(self) -> dict[str, Any]:
        counts = {name: (one.count, one.first_rows) for name, one in self._counts.items() if one.count}
        return {
            "rows": self.rows,
            "responses": self.responses,
            "lost": self._counts["lost"].count,
            "cut": self._counts["cut"].count,
            "counts": counts,
            "first_error": self._first_lost,
        }
