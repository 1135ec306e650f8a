"""Scores a file or data set of any size into another file, and goes on where an interrupted run was."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch.distributed as dist
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from plaudit.data.parse import shape_of
from plaudit.data.prepare import PreparedRow
from plaudit.data.report import Flag, KindCount
from plaudit.errors import ConfigError, DataError, PlauditError
from plaudit.inference.engine import OnError, Scorer, require_ensemble, say_counts
from plaudit.inference.io import (
    Chunk,
    RewardColumns,
    RowInput,
    add_to_table,
    digests_of_model,
    kind_of_output,
    open_input,
    open_output,
    refuse_existing,
    rename,
    write_whole,
)
from plaudit.schema import Score, Shape

logger = logging.getLogger("plaudit")
_VERSION = 1
_LETTERS: dict[Shape, str] = {"one": "o", "list": "l", "pair": "p"}
_SHAPES: dict[str, Shape] = {letter: shape for shape, letter in _LETTERS.items()}
_NAMES = {
    "weights": "the model's weights",
    "configuration": "the model's configuration",
    "tokenizer": "the tokenizer or its chat template",
    "input": "the input",
    "window": "`window`",
    "max_length": "`max_length`",
    "overlong": "`overlong`",
    "calibration": "the calibration",
    "uncertainty": "whether uncertainty is written, and how cautiously,",
}


@dataclass
class Part:
    """Rewards of one window.

    Attributes:
        start: Number of its first row.
        shapes: Shape of each row's rewards.
        scores: Rewards of each row (None: it could not be scored).
        lost: Rows that could not be scored: number, error, and whether that is because they are too long.
        cut: Numbers of rows that were too long and cut.
        suspicious: Numbers of suspicious rows, with what is, a :class:`~plaudit.data.report.Flag`.
        beside: Spread and lower bound of each row, of pairs those of their margin; empty where they are not written.
    """

    start: int
    shapes: list[Shape] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)
    lost: list[tuple[int, str, bool]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    suspicious: list[tuple[int, int]] = field(default_factory=list)
    beside: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, start: int, scored: Iterable[tuple[PreparedRow, Any]], k: float | None = None) -> Part:
        """Collect the rewards of a window.

        Args:
            start: Number of its first row.
            scored: Its rows with their rewards; with a k, how sure these are.
            k: How many standard deviations below the mean the lower bound of a margin is.
        """
        part = cls(start)
        for number, (row, score) in enumerate(scored, start=start):
            if k is not None:
                about = score.margin(k) if row.shape == "pair" else score
                part.beside.append([_without_nan(about.std), _without_nan(about.lower_bound)])
                score = score.mean
            part.shapes.append(row.shape)
            part.scores.append(None if row.error is not None else _without_nan(score))
            if row.error is not None:
                part.lost.append((number, str(row.error), row.overlong))
            if row.truncated:
                part.cut.append(number)
            if row.flags:
                part.suspicious.append((number, int(row.flags)))
        return part


def _without_nan(score: Score) -> Any:
    if isinstance(score, list | tuple):
        return [None if math.isnan(one) else one for one in score]
    return None if math.isnan(score) else score


@dataclass(frozen=True)
class WorkFolder:
    """The folder ``OUT.parts`` beside a file that is being scored.

    Attributes:
        path: The folder.
        run: Tells its parts from those of a run that was started over.
    """

    path: Path
    run: str = ""

    @property
    def merged(self) -> Path:
        """The result before it has its own name."""
        return self.path / "merged.tmp"

    @property
    def result(self) -> Path:
        """What is to be said about the result; there once it is whole."""
        return self.path / "result.json"

    def open(self, made_from: Mapping[str, Any], *, finished: bool = False) -> WorkFolder:
        """Make the folder, or go on with it.

        Args:
            made_from: Everything that decides about rewards: digests and settings.
            finished: Whether the result has its name already.

        Raises:
            ConfigError: The folder holds windows of something else.
        """
        manifest = self.path / "manifest.json"
        if manifest.exists():
            known = _read_json(manifest)
            if known is None or known.get("version") != _VERSION:
                raise ConfigError(f"{str(manifest)!r} cannot be read", fix=_start_over(self.path, 0))
            changed = _changes(known["made_from"], made_from)
            if changed:
                raise ConfigError(
                    f"{' and '.join(changed)} changed since {str(self.path)!r} was begun",
                    fix=f"{_start_over(self.path, self.count())}, or put it back as it was to go on.",
                )
            run = known["run"]
        else:
            if self.path.exists() and any(one.name.startswith("window-") for one in self.path.iterdir()):
                raise ConfigError(f"{str(self.path)!r} has no manifest", fix=_start_over(self.path, self.count()))
            self.path.mkdir(exist_ok=True)
            run = uuid.uuid4().hex
        if not finished:
            self.result.unlink(missing_ok=True)
        for stale in [*self.path.glob("rank-*"), *self.path.glob("*.tmp")]:
            stale.unlink(missing_ok=True)
        write_whole(manifest, json.dumps({"version": _VERSION, "run": run, "made_from": made_from}, indent=1))
        return WorkFolder(self.path, run)

    def _file(self, index: int) -> Path:
        return self.path / f"window-{index:08d}.json"

    def write(self, index: int, part: Part) -> None:
        """Keep the rewards of a window.

        Args:
            index: Number of the window.
            part: Its rewards.
        """
        shapes = "".join(_LETTERS[shape] for shape in part.shapes)
        write_whole(self._file(index), json.dumps({"run": self.run, **asdict(part), "shapes": shapes}))

    def read(self, index: int) -> Part | None:
        """Rewards of a window; None where they are not there yet, or of a run that was started over.

        Args:
            index: Number of the window.
        """
        values = _read_json(self._file(index))
        if values is None or values.pop("run", None) != self.run:
            return None
        values["shapes"] = [_SHAPES[letter] for letter in values["shapes"]]
        return Part(**values)

    def has(self, index: int, rows: int) -> bool:
        """Whether a window is there.

        Args:
            index: Its number.
            rows: How many rows it must have.

        Raises:
            DataError: It has another number of rows.
        """
        part = self.read(index)
        if part is not None and len(part.scores) != rows:
            raise DataError(
                f"window {index} has {len(part.scores)} rows in {str(self.path)!r}, and {rows} in the input",
                fix="The input changed meanwhile: start over with --restart.",
            )
        return part is not None

    def count(self) -> int:
        """How many windows are finished."""
        return sum(1 for _ in self.path.glob("window-*.json"))

    def is_finished(self) -> bool:
        """Whether the result is whole and has its name, and only this folder is left."""
        return self.result.exists() and not self.merged.exists()

    def remove(self) -> None:
        """Remove the folder; that the result is whole is forgotten last."""
        last = (self.path / "manifest.json", self.result)
        for _ in range(50):
            if not self.path.is_dir():
                return
            for entry in self.path.iterdir():
                if entry not in last:
                    entry.unlink(missing_ok=True)
            for entry in last:
                entry.unlink(missing_ok=True)
            try:
                self.path.rmdir()
            except OSError:  # another process shows a last sign of life
                time.sleep(0.1)
        if self.path.is_dir():
            logger.warning("%s cannot be removed; nothing in it is needed any more.", self.path)

    def say_failed(self, rank: int, error: BaseException) -> None:
        """Tell the process that merges that this one has failed.

        Args:
            rank: Which process.
            error: Why.
        """
        text = str(error) if isinstance(error, PlauditError) else f"{type(error).__name__}: {error}"
        write_whole(self.path / f"rank-{rank:05d}.failed", text)

    def failure(self) -> str | None:
        """Why another process failed, if one did."""
        for file in sorted(self.path.glob("rank-*.failed")):
            return f"process {int(file.stem.split('-')[1])} failed: {file.read_text(encoding='utf-8')}"
        return None


def _start_over(path: Path, windows: int) -> str:
    return f"Start over with --restart, which throws away {windows} finished windows in {str(path)!r}"


def _changes(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changed = []
    for name in [*known, *(name for name in now if name not in known)]:
        if known.get(name) == now.get(name):
            continue
        if name == "overlong" and known.get(name) == "error":
            continue  # finished windows have no row that is too long
        values = (
            f" ({known.get(name)!r}, now {now.get(name)!r})" if name in ("window", "max_length", "overlong") else ""
        )
        changed.append(f"{_NAMES.get(name, name)}{values}")
    return changed


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


_MEETING = timedelta(minutes=30)


@dataclass(frozen=True)
class Processes:
    """This process among those that were started together.

    Attributes:
        rank: Its number.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """As `torchrun` and `accelerate launch` say it in the environment, or the process group where there is one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls(int(os.environ.get("RANK", "0") or 0), int(os.environ.get("WORLD_SIZE", "1") or 1))

    def agree(self, mine: Callable[[], Any], lead: Callable[[Any], Any]) -> Any:
        """Have every process find out something, check that all found the same, and let the first one act on it.

        Args:
            mine: Finds it out.
            lead: Called with it in the first process.

        Returns:
            What `lead` returned, in every process.

        Raises:
            PlauditError: That of `mine` or `lead`, in every process.
            ConfigError: The processes do not agree.
        """
        if self.count == 1:
            return lead(mine())
        found, error = _caught(mine)
        with _group() as group:
            everyone: list[Any] = [None] * self.count
            dist.all_gather_object(everyone, (found, error), group=group)
            answer: list[Any] = [None]
            if self.rank == 0:
                error = next((one for _, one in everyone if one is not None), None)
                differing = [rank for rank, (one, _) in enumerate(everyone) if one != found]
                if error is None and differing:
                    error = ConfigError(
                        f"process {differing[0]} has another input, model or setting than process 0",
                        fix="Give all processes the same files, on a shared folder where there are several machines.",
                    )
                result, error = (None, error) if error is not None else _caught(lambda: lead(found))
                answer = [(result, error)]
            dist.broadcast_object_list(answer, src=0, group=group)
        result, error = answer[0]
        if error is not None:
            raise error
        return result


def _caught(call: Callable[[], Any]) -> tuple[Any, PlauditError | None]:
    try:
        return call(), None
    except PlauditError as error:
        return None, error


@contextmanager
def _group() -> Iterator[Any]:
    """A group of all processes on the CPU, for as long as it takes to agree."""
    if dist.is_initialized():
        group = dist.new_group(backend="gloo")
        try:
            yield group
        finally:
            dist.destroy_process_group(group)
        return
    try:
        dist.init_process_group("gloo", timeout=_MEETING)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes do not find each other ({error})",
            fix="Start them with `accelerate launch` or `torchrun`, or score in one process.",
        ) from error
    try:
        yield None
    finally:
        dist.destroy_process_group()


class Heartbeat:
    """Shows the other processes that this one is alive, for as long as it is entered.

    Args:
        folder: A folder that all processes see.
        rank: Which process this is.
        every: Seconds between two signs of life.
    """

    def __init__(self, folder: Path, rank: int, every: float) -> None:
        self._file, self._every = folder / f"rank-{rank:05d}.alive", every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def _beat(self) -> None:
        count = 0
        while True:
            count += 1
            try:
                self._file.write_text(str(count), encoding="utf-8")
            except OSError:  # the folder is gone: the file is merged, or somebody started over
                return
            if self._stop.wait(self._every):
                return

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


class Watch:
    """Notices that a process shows no more signs of life; no clocks of different machines are compared.

    Args:
        folder: A folder that all processes see.
        patience: Seconds without a sign after which a process is taken to be gone.
    """

    def __init__(self, folder: Path, patience: float) -> None:
        self._folder, self._patience = folder, patience
        self._seen: dict[int, tuple[str, float]] = {}

    def require(self, rank: int) -> None:
        """Look at a process that is being waited for.

        Args:
            rank: Which process.

        Raises:
            ConfigError: It has shown no sign of life for too long.
        """
        file = self._folder / f"rank-{rank:05d}.alive"
        sign = file.read_text(encoding="utf-8") if file.exists() else ""
        now = time.monotonic()
        last, since = self._seen.setdefault(rank, (sign, now))
        if last != sign:
            self._seen[rank] = (sign, now)
        elif now - since > self._patience:
            raise ConfigError(
                f"process {rank} has shown no sign of life for {self._patience:.0f} seconds",
                fix="See why it ended, and start the same command again: finished windows are kept.",
            )


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
    k: float = 1.0,
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
        uncertainty: Also write ``<column>_std`` and ``<column>_lower_bound``, of pairs ``<column>_margin_std`` and
            ``<column>_margin_lower_bound``. The model must have an ensemble.
        k: How many standard deviations below the mean the lower bound is.

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
    asked = k if uncertainty else None
    if uncertainty:
        require_ensemble(model.model, model.name, k)
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
    k: float | None

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
            k=self.k,
        )
        return Part.of(chunk.start, scored, self.k)

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
