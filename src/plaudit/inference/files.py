"""Scores a file or data set of any size, chunk by chunk, in one process or several, and resumes an interrupted run."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch.distributed as dist
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from plaudit.data.parse import shape_of
from plaudit.data.prepare import dump_error, load_error
from plaudit.data.report import DataReport, Flag
from plaudit.errors import ConfigError, DataError, PlauditError
from plaudit.files import rename, write_atomically
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
)
from plaudit.inference.reward_model import OnError, RewardModel
from plaudit.schema import Shape

logger = logging.getLogger("plaudit")
CHUNK_SIZE = 1024
"""Rows that are scored, and kept on disk, at a time."""
PATIENCE = 300.0
"""Seconds without a heartbeat after which another process counts as dead."""


@dataclass(frozen=True)
class FileScores:
    """Outcome of scoring a file."""

    output: str  # the scored file
    rows: int  # in it, including those that could not be scored
    responses: int  # that have a reward
    unscored: int  # rows that could not be scored
    truncated: int  # rows
    columns: tuple[str, ...]  # that were added
    resumed: int  # rows that earlier runs had scored
    seconds: float  # of this run


def score_file(
    model: RewardModel,
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    column: str = "reward",
    errors: OnError = "raise",
    overwrite: bool = False,
    overwrite_column: bool = False,
    restart: bool = False,
    chunk_size: int = CHUNK_SIZE,
    config: str | None = None,
    split: str = "train",
    streaming: bool = False,
    progress: bool = False,
    patience: float = PATIENCE,
    uncertainty: bool = False,
    k: float = 1.0,
) -> FileScores | None:
    """Scores every row of a file or data set into a new file: the same rows, in the same order, with rewards added.

    A row with one response gets a number in `column`, a row with several a list, and a pair gets ``chosen_<column>``
    and ``rejected_<column>``. The folder ``<output>.chunks`` keeps finished chunks until the file is complete, and the
    next call resumes there. Under `torchrun` or `accelerate launch` the processes share the chunks.

    Args:
        model: The reward model.
        input: A JSON, JSON lines, CSV or Parquet file, a folder, or a data set on the Hub.
        output: File to write; its name decides the format: .jsonl, .csv, .tsv (also with .gz) or .parquet.
        column: Name of the new column.
        errors: ``"raise"`` for the first row that cannot be scored, or write null for it (``"nan"``).
        overwrite: Replace an existing `output` once the new one is complete.
        overwrite_column: Replace an existing column.
        restart: Delete the finished chunks of an earlier run.
        chunk_size: Rows that are scored, and kept on disk, at a time.
        config: Configuration of a data set on the Hub.
        split: Split to read.
        streaming: Read a data set on the Hub while scoring; it is read a second time to write the file.
        progress: Show a progress bar.
        patience: Seconds without a heartbeat after which another process counts as dead.
        uncertainty: Also write ``<column>_std`` and ``<column>_lower_bound``, for pairs ``<column>_margin_std`` and
            ``<column>_margin_lower_bound``. The model must have an ensemble.
        k: Number of standard deviations between the mean and the lower bound.

    Returns:
        The outcome; None in every process but the first.

    Raises:
        DataError: A row cannot be read or scored; the error names it.
        ConfigError: The output exists, or the model, the input or a setting changed since an interrupted run.
    """
    started = time.monotonic()
    path = Path(output).expanduser()
    if chunk_size < 1:
        raise ConfigError(f"`chunk_size` is {chunk_size}", field="chunk_size", fix="Use a positive number of rows.")
    if uncertainty:
        model.require_ensemble(k)
    caution = k if uncertainty else None
    columns = RewardColumns(column, overwrite_column, uncertainty)
    processes = Processes.current()
    jobs: list[_Job] = []

    def examine() -> dict[str, Any]:
        arrow = kind_of_output(path) == "parquet"
        rows = open_input(input, config=config, split=split, streaming=streaming, arrow=arrow)
        jobs.append(_Job(model, rows, errors, chunk_size, caution, columns))
        return jobs[0].made_from()

    def open_folder(made_from: dict[str, Any]) -> tuple[WorkFolder, bool]:
        folder = path.with_name(f"{path.name}.chunks")
        finished = not restart and path.exists() and WorkFolder(folder).is_finished()
        if not finished:
            refuse_existing(path, overwrite)
        return WorkFolder.open(folder, made_from, restart=restart, finished=finished), finished

    work, finished = processes.agree(examine, open_folder)
    if not finished:
        scored = _score_chunks(jobs[0], work, processes, patience, progress=progress)
        if scored is None:
            return None
        _write_result(jobs[0], columns, work, path, *scored)
    if processes.rank:
        return None
    values = json.loads(work.result.read_text(encoding="utf-8"))
    work.remove()
    return FileScores(**{**values, "columns": tuple(values["columns"])}, seconds=time.monotonic() - started)


def _write_result(job: _Job, columns: RewardColumns, work: WorkFolder, path: Path, chunks: int, resumed: int) -> None:
    """Writes the input's rows with the rewards of all chunks, and then gives the file its name."""
    rows, responses = job.rows, 0
    report = DataReport(rows.name, job.model.max_length, job.model.overlong, "score")
    scored_shapes: set[Shape] = set()
    unscored_shapes: set[Shape] = set()
    for row in itertools.chain.from_iterable(work.read_all(chunks)):
        report.add(row.index, row.flags, row.error)
        (unscored_shapes if row.error else scored_shapes).add(row.shape)
        responses += 0 if row.error else len(row.rewards)
        if row.error is not None and job.errors == "raise" and not row.flags & Flag.OVERLONG:
            raise row.error  # an earlier run was told to write null
    # Rows that could not be scored count only where there is nothing else.
    shapes = sorted(scored_shapes or unscored_shapes)
    names = columns.names(shapes)
    if kind_of_output(path) == "parquet":
        columns.require_one_type(shapes)
    schema = None if rows.schema is None else add_to_table(rows.schema.empty_table(), names).schema

    def header() -> list[str]:
        return list(dict.fromkeys([*rows.column_names(), *names]))

    with open_output(path, work.merged, columns=header, schema=schema) as write:
        for chunk, scored in zip(rows.chunks(job.chunk_size), work.read_all(chunks), strict=True):
            added = [columns.values(row.shape, row.values(), shapes) for row in scored]
            if isinstance(chunk.kept, pa.Table):
                write(add_to_table(chunk.kept, names, added))
            else:
                write([{**row, **values} for row, values in zip(chunk.kept, added, strict=True)])
    report.log_unless_known(set())
    truncated = report.flagged.get(Flag.OVERLONG.kind)
    result = {
        "output": str(path),
        "rows": report.rows_read,
        "responses": responses,
        "unscored": report.rows_read - report.rows_kept,
        "truncated": truncated.count if truncated else 0,
        "columns": list(names),
        "resumed": resumed,
    }
    write_atomically(work.result, json.dumps(result))
    rename(work.merged, path)


# --- scoring in chunks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowScores:
    """Rewards of one row of an input."""

    index: int  # of the row in the input
    shape: Shape
    rewards: list[float]  # one per response; NaN where the row could not be scored
    tokens: list[int]  # of each response with its prompt, as computed; empty where the row could not be scored
    flags: int = 0  # sum of its `Flag` values; a row with `OVERLONG` was truncated, or has an error
    error: DataError | None = None  # why the row could not be scored
    std: Any = None  # of an ensemble, shaped like the rewards; for a pair, of its margin
    lower_bound: Any = None

    def values(self) -> list[Any] | None:
        """Returns what the row gets in a file: its rewards, then std and lower bound where there are any."""
        if self.error is not None:
            return None
        rewards = [self.rewards] if self.shape == "list" else self.rewards
        return [*rewards, *([] if self.std is None else [self.std, self.lower_bound])]

    def dump(self) -> list[Any]:
        """Returns the values that `load` reads, as JSON knows them."""
        return [dump_error(value) if isinstance(value, DataError) else value for value in vars(self).values()]

    @classmethod
    def load(cls, values: Sequence[Any]) -> RowScores:
        """Reads what `dump` returned."""
        row = cls(*values)
        return row if row.error is None else dataclasses.replace(row, error=load_error(str(row.error)))


@dataclass(frozen=True)
class _Job:
    """Rows to score, and everything that their rewards depend on."""

    model: RewardModel
    rows: RowInput
    errors: OnError
    chunk_size: int
    k: float | None  # standard deviations to the lower bound; None without uncertainty
    columns: RewardColumns | None = None  # that the rows must not have already

    def made_from(self) -> dict[str, Any]:
        """Returns digests of model and input, and the settings: finished chunks are reused if none changed."""
        model = self.model
        return {
            **digests_of_model(model.model, model.processing_class),
            "input": self.rows.fingerprint(),
            "chunk_size": self.chunk_size,
            "max_length": model.max_length,
            "overlong": model.overlong,
            "calibration": None if model.calibration is None else dataclasses.asdict(model.calibration),
            "k": self.k,
        }

    def score(self, chunk: Chunk) -> list[RowScores]:
        """Scores the rows of a chunk."""
        if self.columns is not None:
            for index, raw in enumerate(chunk.rows, start=chunk.start):
                self.columns.check(raw, shape_of(raw)[0], index)
        options: dict[str, Any] = {"errors": self.errors, "features": self.rows.features, "k": self.k}
        scores = []
        for row, score in self.model.score_prepared(chunk.rows, first_row=chunk.start, **options):
            rewards, std, lower_bound = score, None, None
            if self.k is not None:
                uncertain = score.margin(self.k) if row.shape == "pair" else score
                rewards, std, lower_bound = score.mean, uncertain.std, uncertain.lower_bound
            rewards = [rewards] if row.shape == "one" else list(rewards)
            tokens = [len(ids) for ids in row.ids or ()]
            scores.append(RowScores(row.index, row.shape, rewards, tokens, int(row.flags), row.error, std, lower_bound))
        return scores


def score_in_chunks(
    model: RewardModel,
    rows: RowInput,
    folder: str | os.PathLike[str] | None = None,
    *,
    errors: OnError = "raise",
    chunk_size: int = CHUNK_SIZE,
    k: float | None = None,
    restart: bool = False,
    progress: bool = False,
    patience: float = PATIENCE,
) -> Iterator[RowScores]:
    """Yields the scores of each row of an input, in order.

    A `folder` keeps finished chunks: a later call resumes there, and raises `ConfigError` if the model, the rows or a
    setting changed. The caller deletes the folder. Several processes share the chunks of a folder; then all rows are
    yielded in the first process, and none in the others. Without a folder nothing is kept, and each chunk is yielded
    once it is scored. `errors` is ``"raise"``, or ``"nan"`` for rows that hold their error; with `k` the model's
    ensemble adds std and lower bound.
    """
    if k is not None:
        model.require_ensemble(k)

    job = _Job(model, rows, errors, chunk_size, k)
    if folder is None:
        with tqdm(total=rows.length, unit=" rows", desc="Scoring", disable=not progress) as bar:
            for chunk in rows.chunks(chunk_size):
                yield from job.score(chunk)
                bar.update(chunk.count)
        return
    processes, path = Processes.current(), Path(folder)
    work = processes.agree(job.made_from, lambda made_from: WorkFolder.open(path, made_from, restart=restart))
    scored = _score_chunks(job, work, processes, patience, progress=progress)
    if scored is not None:
        yield from itertools.chain.from_iterable(work.read_all(scored[0]))


def _score_chunks(
    job: _Job, work: WorkFolder, processes: Processes, patience: float, *, progress: bool
) -> tuple[int, int] | None:
    """Scores this process's missing chunks; the first process waits for those of the others.

    Returns the number of chunks and of rows that earlier runs had scored; None in every process but the first.
    """
    rows, stamp = job.rows, job.rows.stamp()
    counts: list[int] = []
    resumed = 0

    def is_mine(index: int) -> bool:
        return index % processes.count == processes.rank

    with _heartbeat(work.path, processes.rank, min(5.0, patience / 4)):
        try:
            with tqdm(total=rows.length, unit=" rows", desc="Scoring", disable=not progress) as bar:
                for chunk in rows.chunks(job.chunk_size, lambda index: is_mine(index) and work.read(index) is None):
                    counts.append(chunk.count)
                    if chunk.rows:
                        work.write(chunk.index, job.score(chunk))
                    elif is_mine(chunk.index):
                        resumed += chunk.count
                    bar.update(chunk.count)
            if not counts:
                raise DataError(f"{rows.name}: has no rows", fix="Pass a file with at least one row.")
        except BaseException as error:
            if processes.rank:
                work.report_failure(processes.rank, error)
            elif processes.count == 1 and not work.count():
                work.remove()
            raise
        if resumed:
            logger.info("%d rows were scored by an earlier run.", resumed)
        if processes.rank:
            return None
        _wait_for_others(work, processes, counts, patience)
    if rows.stamp() != stamp:
        raise DataError(f"{rows.name}: changed while it was scored", fix="Start over with `--restart`.")
    return len(counts), resumed


# --- several processes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Processes:
    """This process among those that were started together."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Reads the process group, or the environment that `torchrun` and `accelerate launch` set."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls(int(os.environ.get("RANK", "0") or 0), int(os.environ.get("WORLD_SIZE", "1") or 1))

    def agree(self, examine: Callable[[], Any], act: Callable[[Any], Any]) -> Any:
        """Calls `examine` in every process, and `act` with its result in the first; returns what `act` returned.

        An error in either is raised in every process, as is a `ConfigError` if the results of `examine` differ.
        """
        if self.count == 1:
            return act(examine())
        mine = _result_or_error(examine)
        with _cpu_group() as group:
            everyone: list[Any] = [None] * self.count
            dist.all_gather_object(everyone, mine, group=group)
            answer: list[Any] = [None]
            if self.rank == 0:
                error = next((error for _, error in everyone if error is not None), None)
                differing = [rank for rank, (result, _) in enumerate(everyone) if result != mine[0]]
                if error is None and differing:
                    error = ConfigError(
                        f"process {differing[0]} has another input, model or setting than process 0",
                        fix="Give all processes the same files, in a shared folder if there are several machines.",
                    )
                answer = [(None, error) if error is not None else _result_or_error(lambda: act(mine[0]))]
            dist.broadcast_object_list(answer, src=0, group=group)
        result, error = answer[0]
        if error is not None:
            raise error
        return result


def _result_or_error(call: Callable[[], Any]) -> tuple[Any, PlauditError | None]:
    try:
        return call(), None
    except PlauditError as error:
        return None, error


@contextmanager
def _cpu_group() -> Iterator[Any]:
    """A group of all processes on the CPU, for as long as it takes to agree."""
    if dist.is_initialized():
        group = dist.new_group(backend="gloo")
        try:
            yield group
        finally:
            dist.destroy_process_group(group)
        return
    try:
        dist.init_process_group("gloo", timeout=timedelta(minutes=30))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes do not find each other ({error})",
            fix="Start them with `accelerate launch` or `torchrun`, or score in one process.",
        ) from error
    try:
        yield None
    finally:
        dist.destroy_process_group()


@contextmanager
def _heartbeat(folder: Path, rank: int, interval: float) -> Iterator[None]:
    """Writes a heartbeat file every `interval` seconds, so that other processes see that this one is alive."""
    file, stop = folder / f"rank-{rank:05d}.alive", threading.Event()

    def beat() -> None:
        for count in itertools.count():
            try:
                file.write_text(str(count), encoding="utf-8")
            except OSError:  # the folder is gone: the file is merged, or somebody started over
                return
            if stop.wait(interval):
                return

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _wait_for_others(work: WorkFolder, processes: Processes, counts: Sequence[int], patience: float) -> None:
    """Waits until every chunk is there; raises `ConfigError` if another process failed or has no heartbeat."""
    fix = "Find out why, and run the same command again: finished chunks are kept."
    beats: dict[int, tuple[str, float]] = {}
    missing = set(range(len(counts)))
    while missing := {index for index in missing if not work.has(index, counts[index])}:
        failure = work.failure()
        if failure is not None:
            raise ConfigError(failure, fix=fix)
        for rank in {index % processes.count for index in missing}:
            # A clock is compared only with itself: those of different machines differ.
            beat, now = work.heartbeat(rank), time.monotonic()
            if beats.setdefault(rank, (beat, now))[0] != beat:
                beats[rank] = (beat, now)
            elif now - beats[rank][1] > patience:
                raise ConfigError(f"process {rank} has had no heartbeat for {patience:.0f} seconds", fix=fix)
        time.sleep(0.2)


# --- the folder of finished chunks ----------------------------------------------------------------------------

_VERSION = 1
_INPUTS = {
    "weights": "the model's weights",
    "configuration": "the model's configuration",
    "tokenizer": "the tokenizer or its chat template",
    "input": "the input",
    "chunk_size": "`chunk_size`",
    "max_length": "`max_length`",
    "overlong": "`overlong`",
    "calibration": "the calibration",
    "k": "`uncertainty` or `k`",
}


@dataclass(frozen=True)
class WorkFolder:
    """The folder that holds the finished chunks of an input that is being scored."""

    path: Path
    run: str = ""  # tells chunks from those of a run that was started over

    @property
    def merged(self) -> Path:
        """The scored file before it gets its name."""
        return self.path / "merged.tmp"

    @property
    def result(self) -> Path:
        """The outcome; it exists once the scored file is complete."""
        return self.path / "result.json"

    @classmethod
    def open(
        cls, path: Path, made_from: Mapping[str, Any], *, restart: bool = False, finished: bool = False
    ) -> WorkFolder:
        """Makes the folder or resumes it; raises `ConfigError` if its chunks were made from something else."""
        manifest, count = path / "manifest.json", cls(path).count()
        fix = f"Start over with `--restart`, which deletes {count} finished chunks in {str(path)!r}"
        if restart:
            cls(path).remove()
        if manifest.exists():
            known = _read_json(manifest)
            if known is None or known.get("version") != _VERSION:
                raise ConfigError(f"{str(manifest)!r} cannot be read", fix=f"{fix}.")
            before, changed = known["made_from"], []
            for name in dict.fromkeys([*before, *made_from]):
                old, new = before.get(name), made_from.get(name)
                # Chunks that were finished under "error" have no row that is too long.
                if old != new and not (name == "overlong" and old == "error"):
                    values = f" ({old!r}, now {new!r})" if name in ("chunk_size", "max_length", "overlong", "k") else ""
                    changed.append(f"{_INPUTS.get(name, name)}{values}")
            if changed:
                message = f"{' and '.join(changed)} changed since {str(path)!r} was begun"
                raise ConfigError(message, fix=f"{fix}, or restore what changed to resume.")
            run = known["run"]
        elif count and not restart:
            raise ConfigError(f"{str(path)!r} has no manifest", fix=f"{fix}.")
        else:
            path.mkdir(parents=True, exist_ok=True)
            run = uuid.uuid4().hex
        work = cls(path, run)
        if not finished:
            work.result.unlink(missing_ok=True)
        for stale in [*path.glob("rank-*"), *path.glob("*.tmp")]:
            stale.unlink(missing_ok=True)
        write_atomically(manifest, json.dumps({"version": _VERSION, "run": run, "made_from": made_from}, indent=1))
        return work

    def write(self, index: int, rows: Sequence[RowScores]) -> None:
        """Keeps the scores of a chunk."""
        text = json.dumps({"run": self.run, "rows": [row.dump() for row in rows]})
        write_atomically(self.path / f"chunk-{index:08d}.json", text)

    def read(self, index: int) -> list[RowScores] | None:
        """Returns the scores of a chunk; None if they are missing, or of a run that was started over."""
        values = _read_json(self.path / f"chunk-{index:08d}.json")
        if values is None or values["run"] != self.run:
            return None
        return [RowScores.load(row) for row in values["rows"]]

    def read_all(self, count: int) -> Iterator[list[RowScores]]:
        """Yields the scores of every chunk, in order."""
        for index in range(count):
            rows = self.read(index)
            assert rows is not None, f"chunk {index} is gone"
            yield rows

    def has(self, index: int, count: int) -> bool:
        """Returns whether a chunk is there; raises `DataError` unless it has `count` rows."""
        rows = self.read(index)
        if rows is not None and len(rows) != count:
            raise DataError(
                f"chunk {index} has {len(rows)} rows in {str(self.path)!r}, and {count} in the input",
                fix="The input changed meanwhile: start over with `--restart`.",
            )
        return rows is not None

    def count(self) -> int:
        """Returns the number of finished chunks."""
        return sum(1 for _ in self.path.glob("chunk-*.json"))

    def is_finished(self) -> bool:
        """Returns whether the scored file is complete and has its name, and only this folder is left."""
        return self.result.exists() and not self.merged.exists()

    def remove(self) -> None:
        """Removes the folder; the result goes last, so that an interrupted removal does not lose it."""
        last = (self.path / "manifest.json", self.result)
        for _ in range(50):
            if not self.path.is_dir():
                return
            for entry in [*(entry for entry in self.path.iterdir() if entry not in last), *last]:
                entry.unlink(missing_ok=True)
            try:
                self.path.rmdir()
            except OSError:  # another process writes a last heartbeat
                time.sleep(0.1)
        if self.path.is_dir():
            logger.warning("%s cannot be removed; nothing in it is needed any more.", self.path)

    def heartbeat(self, rank: int) -> str:
        """Returns a text that changes while another process is alive."""
        file = self.path / f"rank-{rank:05d}.alive"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    def report_failure(self, rank: int, error: BaseException) -> None:
        """Tells the first process why this one failed."""
        text = str(error) if isinstance(error, PlauditError) else f"{type(error).__name__}: {error}"
        write_atomically(self.path / f"rank-{rank:05d}.failed", text)

    def failure(self) -> str | None:
        """Returns why another process failed, if one did."""
        for file in sorted(self.path.glob("rank-*.failed")):
            return f"process {int(file.stem.split('-')[1])} failed: {file.read_text(encoding='utf-8')}"
        return None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
