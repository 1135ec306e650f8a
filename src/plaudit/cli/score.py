"""``plaudit score``: rewards for every row of a file or data set, into a new file."""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from plaudit.cli.arguments import Command, LoadArguments, Word, about
from plaudit.cli.console import duration, log_lines, say
from plaudit.errors import ConfigError
from plaudit.inference.files import CHUNK_SIZE, FileScores, score_file
from plaudit.inference.select import Selection

INPUT = (
    "INPUT is a JSON, JSON lines, CSV or Parquet file, a folder of such files or one saved by `datasets`, or the name "
    "of a data set on the Hub."
)


@dataclass
class OutputArguments:
    """Where to write, and which part of a data set to read."""

    title: ClassVar[str] = "Files"

    output: str = field(
        metadata=about("File to write: .jsonl, .csv, .tsv (all also with .gz) or .parquet.", aliases=["-o"])
    )
    overwrite: bool = field(default=False, metadata=about("Replace existing files, once the new ones are whole."))
    dataset_config: str | None = field(default=None, metadata=about("Configuration of a data set on the Hub."))
    dataset_split: str = field(
        default="train", metadata=about("Split to read, also with a slice: train[:1000].", aliases=["--split"])
    )


@dataclass
class ModelArguments(LoadArguments):
    """How the reward model is loaded and run."""

    overlong: str = field(
        default="error",
        metadata=about(
            "What happens to rows beyond it; nan writes null.",
            choices=("error", "truncate_left", "truncate_right", "nan"),
        ),
    )


@dataclass
class RunArguments:
    """How a file is scored."""

    title: ClassVar[str] = "Scoring"

    errors: str = field(
        default="raise",
        metadata=about("Stop at a row that cannot be scored, or write null for it.", choices=("raise", "nan")),
    )
    restart: bool = field(
        default=False, metadata=about("Throw away what an interrupted run left, instead of going on with it.")
    )
    chunk_size: int = field(default=CHUNK_SIZE, metadata=about("Rows that are scored, and kept on disk, at a time."))
    dataset_streaming: bool = field(
        default=False,
        metadata=about(
            "Read a data set on the Hub while scoring; it is then read a second time to write the file.",
            aliases=["--streaming"],
        ),
    )


@dataclass
class ColumnArguments:
    """The columns that are added."""

    title: ClassVar[str] = "Columns"

    column: str = field(
        default="reward",
        metadata=about(
            "Name of the new column: a number, or a list for `responses`. Pairs get chosen_NAME and rejected_NAME."
        ),
    )
    overwrite_column: bool = field(default=False, metadata=about("Replace a column of that name."))
    uncertainty: bool = field(
        default=False,
        metadata=about(
            "Also write NAME_std and NAME_lower_bound, of pairs those of their margin: NAME_margin_std and "
            "NAME_margin_lower_bound. The model must have been trained with `--ensemble_size`."
        ),
    )
    k: float = field(
        default=1.0,
        metadata=about("How many standard deviations below the reward NAME_lower_bound is, with --uncertainty."),
    )


COMMAND = Command(
    "score",
    usage="MODEL INPUT --output FILE [--NAME VALUE ...]",
    about="Score every row of a file or data set. Interrupted, the same command goes on where it was; started with "
    "`torchrun` or `accelerate launch`, its processes share the rows.",
    examples=("plaudit score runs/first pairs.jsonl --output scored.jsonl",),
    notes=(INPUT,),
    words=(Word("model"), Word("input")),
    kinds=(OutputArguments, ColumnArguments, ModelArguments, RunArguments),
)


def run(arguments: Sequence[str]) -> int:
    """Score with the given command-line arguments; returns the exit code.

    Raises:
        PlauditError: Whatever is wrong with settings, data or model.
    """
    if COMMAND.helped(arguments):
        return 0
    (model, source), output, columns, loading, running = COMMAND.parse(arguments)
    with log_lines():
        result = score(model, source, output.output, output, columns, loading, running)
    if result is not None:
        for line in _lines(result):
            say(line)
    return 0


def score(
    model: str,
    input: str,
    target: str,
    output: OutputArguments,
    columns: ColumnArguments,
    loading: ModelArguments,
    running: RunArguments,
) -> FileScores | None:
    """Load a model and score a file; says where an interrupted run goes on.

    Args:
        model: Folder or id of the model.
        input: What is scored.
        target: Where to.
        output: Settings of files.
        columns: Settings of columns.
        loading: Settings of the model.
        running: Settings of the run.
    """
    if Path(target).exists() and not output.overwrite and not Path(f"{target}.chunks").exists():
        # Said before a model is loaded.
        raise ConfigError(f"{target!r} exists", fix="Give another name, or allow it with --overwrite.")
    _on_own_device(loading)
    try:
        return score_file(
            loading.load(model, loading.overlong),
            input,
            target,
            column=columns.column,
            errors=typing.cast(Any, running.errors),
            overwrite=output.overwrite,
            overwrite_column=columns.overwrite_column,
            restart=running.restart,
            chunk_size=running.chunk_size,
            config=output.dataset_config,
            split=output.dataset_split,
            streaming=running.dataset_streaming,
            uncertainty=columns.uncertainty,
            k=columns.k,
            progress=sys.stderr.isatty() and int(os.environ.get("RANK", "0") or 0) == 0,
        )
    except KeyboardInterrupt:
        if Path(f"{target}.chunks").exists():
            say(f"\nFinished chunks are kept in {target}.chunks: the same command goes on there.")
        raise


def _on_own_device(settings: ModelArguments) -> None:
    """Where there are several processes, let each have an accelerator of its own."""
    local = os.environ.get("LOCAL_RANK")
    if local and settings.device is None and torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(local))


def _lines(result: FileScores) -> list[str]:
    earlier = f", {result.resumed:,} of them by an earlier run" if result.resumed else ""
    names = " and ".join(f"`{name}`" for name in result.columns)
    lines = [f"Scored {result.rows:,} rows{earlier} ({result.responses:,} rewards, {duration(result.seconds)})."]
    if result.unscored:
        lines.append(f"{result.unscored:,} rows could not be scored and are null.")
    return [*lines, f"Wrote {names} to {result.output}."]


def selection_lines(result: Selection) -> list[str]:
    """Say what was kept.

    Args:
        result: It.
    """
    lines = [f"Kept {result.kept:,} of {result.rows:,} rows, dropped {result.rows - result.kept:,}."]
    if result.responses:
        dropped = result.responses - result.kept_responses
        lines.append(f"Kept {result.kept_responses:,} of {result.responses:,} responses, dropped {dropped:,}.")
    if result.unscored:
        lines.append(f"Dropped because they have no reward: {result.unscored:,} rows.")
    if result.short:
        lines.append(f"{result.short:,} rows have fewer scored responses than asked for.")
    return [*lines, f"Wrote {result.output}."]
