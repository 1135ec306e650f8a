"""Scores a file or data set of any size, chunk by chunk, in one process or several, and resumes an interrupted run."""

from __future__ import annotations

import functools
import itertools
import json
import logging
import math
import os
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch.distributed as dist
from datasets import List, Value
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from plaudit.data.parse import shape_of
from plaudit.data.prepare import dump_error, load_error
from plaudit.data.report import DataReport, Flag
from plaudit.errors import ConfigError, DataError, PlauditError
from plaudit.files import refuse_existing, rename, write_atomically
from plaudit.inference import io
from plaudit.inference.reward_model import OnError, RewardModel
from plaudit.schema import Shape, quoted

logger = logging.getLogger("plaudit")
CHUNK_SIZE = 1024  # rows that are scored, and kept on disk, at a time
PATIENCE = 300.0  # seconds without a heartbeat after which another process counts as dead


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

    jobs: list[_Job] = []

    def examine() -> dict[str, Any]:
        arrow = io.kind_of_output(path) == "parquet"
        rows = io.open_input(input, config=config, split=split, streaming=streaming, arrow=arrow, schema=model.schema)
        caution = k if uncertainty else None
        jobs.append(_Job(model, rows, errors, chunk_size, caution, column, overwrite_column, patience, progress))
        return jobs[0].made_from()

    def open_folder() -> WorkFolder | None:
        if current_process()[0]:
            return None
        work = WorkFolder(path.with_name(f"{path.name}.chunks"))
        finished = not restart and path.exists() and work.result.exists() and not work.merged.exists()
        if not finished:
            refuse_existing(path, overwrite)
        return WorkFolder.open(work.path, made_from[0], restart=restart, finished=finished)

    made_from = _in_every_process(examine)
    differing = [rank for rank, values in enumerate(made_from) if values != made_from[0]]
    if differing:
        raise ConfigError(
            f"process {differing[0]} has another input, model or setting than process 0",
            fix="Give all processes the same files, in a shared folder if there are several machines.",
        )
    work: WorkFolder = _in_every_process(open_folder)[0]
    job = jobs[0]
    if not work.finished:
        scored = _score_chunks(job, work)
        if scored is not None:
            _write_result(job, work, path, *scored)
    if current_process()[0]:
        return None
    values = json.loads(work.result.read_text(encoding="utf-8"))
    work.remove()
    return FileScores(**{**values, "columns": tuple(values["columns"])}, seconds=time.monotonic() - started)


def _write_result(job: _Job, work: WorkFolder, path: Path, chunks: int, resumed: int) -> None:
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
    if io.kind_of_output(path) == "parquet" and {"one", "list"} <= set(shapes):
        message = f"{quoted([job.column])} would hold numbers and lists, which Parquet cannot"
        raise ConfigError(message, fix="Write JSON lines, or score single and several responses as two files.")
    number = Value("float64")
    types = {name: List(number) if shape == "list" else number for shape in shapes for name in job.columns_of(shape)}
    schema = None if rows.schema is None else io.add_to_table(rows.schema.empty_table(), types).schema
    nothing = dict.fromkeys(types)  # a row that holds nothing to score may have a shape that no other row has
    with io.open_output(path, work.merged, lambda: {**dict.fromkeys(rows.column_names()), **types}, schema) as write:
        for chunk, scored in zip(rows.chunks(job.chunk_size), work.read_all(chunks), strict=True):
            added = [job.values_of(row) if row.shape in shapes else nothing for row in scored]
            if isinstance(chunk.kept, pa.Table):
                write(io.add_to_table(chunk.kept, types, added))
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
        "columns": list(types),
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
    flags: int = 0  # sum of its `Flag` values; a row with `OVERLONG` was truncated, or has an error
    std: Any = None  # of an ensemble, shaped like the rewards; for a pair, of its margin
    lower_bound: Any = None
    error: DataError | None = None  # why the row could not be scored


@dataclass(frozen=True)
class _Job:
    """Rows to score, and everything that their rewards depend on."""

    model: RewardModel
    rows: io.RowInput
    errors: OnError
    chunk_size: int
    k: float | None = None  # standard deviations to the lower bound; None without uncertainty
    column: str = ""  # that is added to the rows, if any
    overwrite_column: bool = False
    patience: float = PATIENCE
    progress: bool = False

    def columns_of(self, shape: Shape) -> list[str]:
        """Returns the names of the columns that are added to rows of one shape."""
        if shape == "pair":
            rewards, uncertain = [f"chosen_{self.column}", f"rejected_{self.column}"], f"{self.column}_margin"
        else:
            rewards, uncertain = [self.column], self.column
        return rewards if self.k is None else [*rewards, f"{uncertain}_std", f"{uncertain}_lower_bound"]

    def values_of(self, row: RowScores) -> dict[str, Any]:
        """Returns the columns that are added to a row: null where there is no reward, because JSON has no NaN."""
        if row.error is not None:
            return dict.fromkeys(self.columns_of(row.shape))
        values: list[Any] = [row.rewards] if row.shape == "list" else list(row.rewards)
        values += [] if self.k is None else [row.std, row.lower_bound]
        return dict(zip(self.columns_of(row.shape), map(_without_nan, values), strict=True))

    def made_from(self) -> dict[str, Any]:
        """Returns digests of model and input, and the settings: finished chunks are reused if none changed."""
        model = self.model
        return {
            **io.digests_of_model(model.model, model.processing_class),
            "input": self.rows.fingerprint(),
            "schema": self.rows.read_as,
            "chunk_size": self.chunk_size,
            "max_length": model.max_length,
            "overlong": model.overlong,
            "calibration": None if model.calibration is None else asdict(model.calibration),
            "k": self.k,
        }

    def score(self, chunk: io.Chunk) -> list[RowScores]:
        """Scores the rows of a chunk; raises `DataError` if one has a column already that may not be replaced."""
        if self.column and not self.overwrite_column:
            given = chunk.rows if isinstance(chunk.kept, pa.Table) else chunk.kept
            for index, (raw, row) in enumerate(zip(chunk.rows, given, strict=True), start=chunk.start):
                for name in self.columns_of(shape_of(raw)[0]):
                    if name in (self.rows.columns or row):
                        fix = "Use another name with `--column`, or pass `--overwrite-column` to replace it."
                        raise DataError("exists already", row=index, field=name, fix=fix)
        options: dict[str, Any] = {"errors": self.errors, "features": self.rows.features, "k": self.k}
        scores = []
        for row, score in self.model.score_prepared(chunk.rows, first_row=chunk.start, **options):
            rewards, std, lower_bound = score, None, None
            if self.k is not None:
                uncertain = score.margin(self.k) if row.shape == "pair" else score
                rewards, std, lower_bound = score.mean, uncertain.std, uncertain.lower_bound
            rewards = [rewards] if row.shape == "one" else list(rewards)
            scores.append(RowScores(row.index, row.shape, rewards, int(row.flags), std, lower_bound, row.error))
        return scores


def _without_nan(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if math.isnan(value) else value


def score_in_chunks(
    model: RewardModel,
    rows: io.RowInput,
    folder: str | os.PathLike[str] | None = None,
    *,
    errors: OnError = "raise",
    chunk_size: int = CHUNK_SIZE,
    progress: bool = False,
) -> Iterator[RowScores]:
    """Yields the scores of each row of an input, in order.

    A `folder` of this process keeps finished chunks: a later call resumes there, and raises `ConfigError` if the model,
    the rows or a setting changed. The caller deletes the folder. Without one nothing is kept, and each chunk is yielded
    once it is scored. `errors` is ``"raise"``, or ``"nan"`` for rows that hold their error.
    """
    job = _Job(model, rows, errors, chunk_size, progress=progress)
    if folder is None:
        with tqdm(total=rows.length, unit=" rows", desc="Scoring", disable=not progress) as bar:
            for chunk in rows.chunks(chunk_size):
                yield from job.score(chunk)
                bar.update(chunk.count)
        return
    work = WorkFolder.open(Path(folder), job.made_from())
    scored = _score_chunks(job, work)
    if scored is not None:
        yield from itertools.chain.from_iterable(work.read_all(scored[0]))


def _score_chunks(job: _Job, work: WorkFolder) -> tuple[int, int] | None:
    """Scores this process's missing chunks; the first process waits for those of the others.

    Returns the number of chunks and of rows that earlier runs had scored; None in every process but the first.
    """
    rows, stamp, (rank, processes) = job.rows, job.rows.stamp(), current_process()
    counts: list[int] = []
    resumed = 0

    def is_mine(index: int) -> bool:
        return index % processes == rank

    with _heartbeat(work.path, rank, min(5.0, job.patience / 4)):
        try:
            with tqdm(total=rows.length, unit=" rows", desc="Scoring", disable=not job.progress) as bar:
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
            if rank:
                text = str(error) if isinstance(error, PlauditError) else f"{type(error).__name__}: {error}"
                write_atomically(work.path / f"rank-{rank:05d}.failed", text)
            elif processes == 1 and not any(work.path.glob("chunk-*.json")):
                work.remove()
            raise
        if resumed:
            logger.info("%d rows were scored by an earlier run.", resumed)
        if rank:
            return None
        _wait_for_others(work, processes, counts, job.patience)
    if rows.stamp() != stamp:
        raise DataError(f"{rows.name}: changed while it was scored", fix="Start over with `--restart`.")
    return len(counts), resumed


# --- several processes ----------------------------------------------------------------------------------------


def current_process() -> tuple[int, int]:
    """Returns the rank of this process and the number of processes that were started together.

    Reads the process group, or the environment that `torchrun` and `accelerate launch` set.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return int(os.environ.get("RANK", "0") or 0), int(os.environ.get("WORLD_SIZE", "1") or 1)


def _in_every_process(call: Callable[[], Any]) -> list[Any]:
    """Returns the results of a call in every process; an error in any of them is raised in all."""
    rank, processes = current_process()
    if processes == 1:
        return [call()]
    mine: tuple[Any, PlauditError | None]
    try:
        mine = call(), None
    except PlauditError as error:
        mine = None, error
    everyone: list[Any] = [None] * processes
    if dist.is_initialized():
        group = dist.new_group(backend="gloo")
        dist.all_gather_object(everyone, mine, group=group)
        dist.destroy_process_group(group)
    else:
        store, turn = _store(), next(_turns)
        store.set(f"{turn}/{rank}", pickle.dumps(mine))
        everyone = [pickle.loads(store.get(f"{turn}/{number}")) for number in range(processes)]
        if store.add(f"{turn}/read", 1) == processes:
            store.set(f"{turn}/done", "")
        if rank == 0:
            store.wait([f"{turn}/done"])  # this process may hold the store, and may end with an error now
    for _, failure in everyone:
        if failure is not None:
            raise failure
    return [result for result, _ in everyone]


_turns = itertools.count()


@functools.cache
def _store() -> Any:
    """Returns the store through which processes without a process group agree; it lives as long as the process.

    If it were closed after each file, a process that is quicker than the first would wait at the old store.
    """
    try:
        store, _, _ = next(iter(dist.rendezvous("env://", timeout=timedelta(minutes=30))))
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes do not find each other ({error})",
            fix="Start them with `accelerate launch` or `torchrun`, or score in one process.",
        ) from error
    return dist.PrefixStore("plaudit", store)


@contextmanager
def _heartbeat(folder: Path, rank: int, interval: float) -> Iterator[None]:
    """Writes a heartbeat file every `interval` seconds, so that other processes see that this one is alive."""
    file, stop = folder / f"rank-{rank:05d}.alive", threading.Event()

    def beat() -> None:
        count = 0
        with suppress(OSError):  # the folder is gone: the file is merged, or somebody started over
            while not stop.wait(interval if count else 0):
                file.write_text(str(count := count + 1), encoding="utf-8")

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _wait_for_others(work: WorkFolder, processes: int, counts: Sequence[int], patience: float) -> None:
    """Waits until every chunk is there; raises `ConfigError` if another process failed or has no heartbeat."""
    fix = "Find out why, and run the same command again: finished chunks are kept."
    beats: dict[int, tuple[str, float]] = {}
    missing = dict(enumerate(counts))
    while True:
        for index, count in list(missing.items()):
            rows = work.read(index)
            if rows is not None and len(rows) != count:
                message = f"chunk {index} has {len(rows)} rows in {str(work.path)!r}, and {count} in the input"
                raise DataError(message, fix="The input changed meanwhile: start over with `--restart`.")
            if rows is not None:
                del missing[index]
        if not missing:
            return
        failed = sorted(work.path.glob("rank-*.failed"))
        if failed:
            rank, text = int(failed[0].stem.split("-")[1]), failed[0].read_text(encoding="utf-8")
            raise ConfigError(f"process {rank} failed: {text}", fix=fix)
        for rank in {index % processes for index in missing}:
            file = work.path / f"rank-{rank:05d}.alive"
            # A clock is compared only with itself: those of different machines differ.
            beat, now = file.read_text(encoding="utf-8") if file.exists() else "", time.monotonic()
            if beats.setdefault(rank, (beat, now))[0] != beat:
                beats[rank] = (beat, now)
            elif now - beats[rank][1] > patience:
                raise ConfigError(f"process {rank} has had no heartbeat for {patience:.0f} seconds", fix=fix)
        time.sleep(0.2)


# --- the folder of finished chunks ----------------------------------------------------------------------------

_VERSION = 2
_INPUTS = {
    "weights": "the model's weights",
    "configuration": "the model's configuration",
    "tokenizer": "the tokenizer or its chat template",
    "input": "the input",
    "calibration": "the calibration",
    "k": "`uncertainty` or `k`",
}


class WorkFolder:
    """The folder that holds the finished chunks of an input that is being scored."""

    def __init__(self, path: Path, run: str = "", *, finished: bool = False) -> None:
        self.path = path
        self.run = run  # tells chunks from those of a run that was started over
        self.finished = finished  # whether the scored file is complete and has its name, and only this folder is left
        self.merged = path / "merged.tmp"  # the scored file before it gets its name
        self.result = path / "result.json"  # the outcome; it exists once the scored file is complete

    @classmethod
    def open(
        cls, path: Path, made_from: Mapping[str, Any], *, restart: bool = False, finished: bool = False
    ) -> WorkFolder:
        """Makes the folder or resumes it; raises `ConfigError` if its chunks were made from something else."""
        manifest, count = path / "manifest.json", len(list(path.glob("chunk-*.json")))
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
                    changed.append(f"{_INPUTS.get(name, f'`{name}`')}{values}")
            if changed:
                message = f"{' and '.join(changed)} changed since {str(path)!r} was begun"
                raise ConfigError(message, fix=f"{fix}, or restore what changed to resume.")
            run = known["run"]
        elif count and not restart:
            raise ConfigError(f"{str(path)!r} has no manifest", fix=f"{fix}.")
        else:
            path.mkdir(parents=True, exist_ok=True)
            run = uuid.uuid4().hex
        work = cls(path, run, finished=finished)
        if not finished:
            work.result.unlink(missing_ok=True)
        for stale in [*path.glob("rank-*"), *path.glob("*.tmp")]:
            stale.unlink(missing_ok=True)
        write_atomically(manifest, json.dumps({"version": _VERSION, "run": run, "made_from": made_from}, indent=1))
        return work

    def write(self, index: int, rows: Sequence[RowScores]) -> None:
        """Keeps the scores of a chunk."""
        values = {"run": self.run, "rows": [list(vars(row).values()) for row in rows]}
        write_atomically(self.path / f"chunk-{index:08d}.json", json.dumps(values, default=dump_error))

    def read(self, index: int) -> list[RowScores] | None:
        """Returns the scores of a chunk; None if they are missing, or of a run that was started over."""
        chunk = _read_json(self.path / f"chunk-{index:08d}.json")
        if chunk is None or chunk["run"] != self.run:
            return None
        rows = [RowScores(*values) for values in chunk["rows"]]
        return [row if row.error is None else replace(row, error=load_error(str(row.error))) for row in rows]

    def read_all(self, count: int) -> Iterator[list[RowScores]]:
        """Yields the scores of every chunk, in order."""
        for index in range(count):
            rows = self.read(index)
            assert rows is not None, f"chunk {index} is gone"
            yield rows

    def remove(self) -> None:
        """Removes the folder; the result goes last, so that an interrupted removal does not lose it."""
        last = [self.path / "manifest.json", self.result]
        for _ in range(50):
            if not self.path.is_dir():
                return
            for entry in sorted(self.path.iterdir(), key=lambda entry: last.index(entry) if entry in last else -1):
                entry.unlink(missing_ok=True)
            with suppress(OSError):  # another process writes a last heartbeat
                self.path.rmdir()
                return
            time.sleep(0.1)
        logger.warning("%s cannot be removed; nothing in it is needed any more.", self.path)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
