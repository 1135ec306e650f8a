"""``plaudit score``, ``best-of-n`` and ``filter``: write the rewards of a file, and select rows by them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.cli.arguments import DATASET, LOAD, LOADING, Command, Section, Setting, about
from plaudit.cli.console import duration, is_main_process, log_lines, say
from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from plaudit.inference.files import FileScores
    from plaudit.inference.select import Selection

SCORE_FILE = "plaudit.inference.files:score_file"
BEST_OF_N_FILE = "plaudit.inference.select:best_of_n_file"
FILTER_FILE = "plaudit.inference.select:filter_file"
BOUNDS = "plaudit.inference.select:Bounds"
_INPUT = (
    "INPUT is a JSON, JSON lines, CSV or Parquet file, a folder of such files or one saved by `datasets`, or the name "
    "of a data set on the Hub."
)


def _files(target: str, **more: Any) -> Section:
    return Section(
        "Files",
        "Where to write, and which part of a data set to read.",
        target,
        output=about("File to write: .jsonl, .csv or .tsv (each also with .gz), or .parquet.", aliases=["-o"]),
        **more,
        overwrite="Replace existing files once the new ones are complete.",
        **DATASET,
    )


_MODEL = Section(
    "Model",
    "How the reward model is loaded and run.",
    LOAD,
    **LOADING,
    overlong="How to handle rows longer than that; nan writes null.",
)
_SCORING = Section(
    "Scoring",
    "How a file is scored.",
    SCORE_FILE,
    errors="Whether to stop at a row that cannot be scored, or to write null for it.",
    restart="Discard the progress of an interrupted run instead of resuming it.",
    chunk_size="Number of rows that are scored and saved at a time.",
    dataset_streaming=about(
        "Read a data set on the Hub while scoring, and a second time to write the file.",
        parameter="streaming",
        aliases=["--streaming"],
    ),
)

SCORE = Command(
    "score",
    usage="MODEL INPUT --output FILE [--NAME VALUE ...]",
    about="Score every row of a file or data set. If interrupted, the same command resumes. Started with `torchrun` or "
    "`accelerate launch`, several processes share the rows.",
    examples=("plaudit score runs/first pairs.jsonl --output scored.jsonl",),
    notes=(_INPUT,),
    words=("model", "input"),
    sections=(
        _files(SCORE_FILE),
        Section(
            "Columns",
            "The columns that are added.",
            SCORE_FILE,
            column="Name of the new column: a number, or a list for `responses`. Pairs get chosen_NAME and "
            "rejected_NAME.",
            overwrite_column="Replace an existing column of that name.",
            uncertainty="Also write NAME_std and NAME_lower_bound; for pairs, NAME_margin_std and "
            "NAME_margin_lower_bound. Needs a model trained with `--ensemble_size`.",
            k="With --uncertainty: number of standard deviations that NAME_lower_bound is below the reward.",
        ),
        _MODEL,
        _SCORING,
    ),
)
BEST_OF_N = Command(
    "best-of-n",
    usage="INPUT --output FILE [--model MODEL] [--NAME VALUE ...]",
    about="Keep the best of the responses in each row of a scored file, or score the file first.",
    examples=("plaudit best-of-n candidates.jsonl --model runs/first --output best.jsonl",),
    notes=(_INPUT,),
    words=("input",),
    sections=(
        _files(BEST_OF_N_FILE),
        Section(
            "Choice",
            "What is kept of each row.",
            BEST_OF_N_FILE,
            model=Setting(
                "Folder or id of a reward model that scores INPUT first. Default: INPUT already has rewards."
            ),
            top="Keep a list of this many responses, best first. Default: the best response, not in a list.",
            responses_column="Column of the responses.",
            reward_column="Column of their rewards.",
            response_column="Column for the best response.",
        ),
        _MODEL,
        _SCORING,
    ),
)
FILTER = Command(
    "filter",
    usage="INPUT --output FILE [--NAME VALUE ...]",
    about="Keep the pairs, rows and responses of a scored file that are within bounds.",
    examples=("plaudit filter scored.jsonl --output clear.jsonl --min-margin 0.5 --dropped unclear.jsonl",),
    notes=(_INPUT,),
    words=("input",),
    sections=(
        _files(FILTER_FILE, dropped=about("Write what is not kept to this file.", hint=str | None)),
        Section(
            "Bounds",
            "What is kept. Of rows with several responses, each is kept or dropped on its own.",
            BOUNDS,
            min_margin="Minimum margin of a pair: the reward of `chosen` minus that of `rejected`.",
            max_margin="Maximum margin of a pair.",
            min_reward="Minimum reward; of a pair, that of `chosen`.",
            max_reward="Maximum reward; of a pair, that of `chosen`.",
            quantile="Keep this fraction of what is within the other bounds: pairs by margin, others by reward. Takes "
            "8 bytes of memory per pair or response.",
            keep="End of the order that --quantile keeps.",
        ),
        Section(
            "Columns",
            "The columns that are read.",
            FILTER_FILE,
            reward_column="Column of the rewards; pairs have chosen_NAME and rejected_NAME.",
            responses_column="Column of the responses, in rows that have several.",
        ),
    ),
)


def run_score(arguments: Sequence[str]) -> int:
    """Scores with the given command-line arguments; returns the exit code."""
    (model, source), _, calls = SCORE.parse(arguments)
    with log_lines():
        result = _score(model, source, calls[LOAD], calls[SCORE_FILE])
    if result is not None:
        earlier = f", {result.resumed:,} of them by an earlier run" if result.resumed else ""
        say(f"Scored {result.rows:,} rows{earlier} ({result.responses:,} rewards, {duration(result.seconds)}).")
        if result.unscored:
            say(f"{result.unscored:,} rows could not be scored and are null.")
        say(f"Wrote {' and '.join(f'`{name}`' for name in result.columns)} to {result.output}.")
    return 0


def run_best_of_n(arguments: Sequence[str]) -> int:
    """Keeps the best responses with the given command-line arguments; returns the exit code."""
    from plaudit.inference.io import kind_of_output, refuse_existing
    from plaudit.inference.select import best_of_n_file

    (source,), own_settings, calls = BEST_OF_N.parse(arguments)
    choice = calls[BEST_OF_N_FILE]
    path = Path(choice["output"])
    kind = kind_of_output(path)
    refuse_existing(path, choice.get("overwrite", False))
    if choice.get("top", 1) is not None and choice.get("top", 1) < 1:
        raise ConfigError(f"`top` is {choice['top']}", fix="Keep at least 1 response per row.")
    with log_lines():
        if own_settings["model"] is None:
            _say_selection(best_of_n_file(source, **choice))
            return 0
        if choice.get("responses_column", "responses") != "responses":
            raise ConfigError("a model reads the column `responses` only", fix="Rename the column, or score it first.")
        scored = f"{path}.scored.{kind if kind in ('parquet', 'csv') else 'jsonl'}"
        part: dict[str, Any] = {name: choice.pop(name) for name in ("config", "split") if name in choice}
        column = {"column": choice["reward_column"]} if "reward_column" in choice else {}
        # Nothing records which model an interrupted selection was scored with: its scores are not reused.
        settings: dict[str, Any] = {**calls[SCORE_FILE], **part, **column, "output": scored, "overwrite": True}
        if _score(own_settings["model"], source, calls[LOAD], settings) is None:
            return 0
        try:
            _say_selection(best_of_n_file(scored, **choice))
        finally:
            if os.path.lexists(scored):
                Path(scored).unlink()
    return 0


def run_filter(arguments: Sequence[str]) -> int:
    """Filters with the given command-line arguments; returns the exit code."""
    from plaudit.inference.select import Bounds, filter_file

    (source,), _, calls = FILTER.parse(arguments)
    with log_lines():
        result = filter_file(source, bounds=Bounds(**calls[BOUNDS]), **calls[FILTER_FILE])
    _say_selection(result)
    if "dropped" in calls[FILTER_FILE]:
        say(f"Wrote the others to {calls[FILTER_FILE]['dropped']}.")
    return 0


def _score(model: str, source: str, loading: dict[str, Any], settings: dict[str, Any]) -> FileScores | None:
    """Scores a file; returns None in every process but the first."""
    import torch

    from plaudit.inference.files import score_file
    from plaudit.inference.reward_model import RewardModel

    output = settings["output"]
    if os.path.lexists(output) and not settings.get("overwrite") and not Path(f"{output}.chunks").exists():
        # Checked here as well, before a model is loaded.
        raise ConfigError(f"{output!r} exists", fix="Use another file name, or pass `--overwrite` to replace it.")
    local_rank = os.environ.get("LOCAL_RANK")
    if local_rank and loading.get("device") is None and torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(local_rank))  # several processes: each has its own accelerator
    try:
        progress = sys.stderr.isatty() and is_main_process()
        return score_file(RewardModel.from_pretrained(model, **loading), source, progress=progress, **settings)
    except KeyboardInterrupt:
        if Path(f"{output}.chunks").exists():
            say(f"\nFinished chunks are kept in {output}.chunks. Run the same command to resume.")
        raise


def _say_selection(result: Selection) -> None:
    say(f"Kept {result.kept:,} of {result.rows:,} rows, dropped {result.rows - result.kept:,}.")
    if result.responses:
        dropped = result.responses - result.kept_responses
        say(f"Kept {result.kept_responses:,} of {result.responses:,} responses, dropped {dropped:,}.")
    if result.unscored:
        say(f"Dropped {result.unscored:,} rows without a reward.")
    if result.short:
        say(f"{result.short:,} rows have fewer scored responses than requested.")
    say(f"Wrote {result.output}.")
