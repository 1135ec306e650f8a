"""``plaudit score``, ``best-of-n`` and ``filter``: write the rewards of a file, and select rows by them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plaudit.cli.arguments import DATA, DATASET, LOAD, LOADING, SCHEMA, Command, Section, Setting, about
from plaudit.cli.console import duration, is_main_process, log_lines, say
from plaudit.errors import ConfigError
from plaudit.files import refuse_existing

if TYPE_CHECKING:
    from plaudit.inference.files import FileScores
    from plaudit.inference.select import Selection

SCORE_FILE = "plaudit.inference.files:score_file"
BEST_OF_N_FILE = "plaudit.inference.select:best_of_n_file"
FILTER_FILE = "plaudit.inference.select:filter_file"
BOUNDS = "plaudit.inference.select:Bounds"


def _files(target: str, **more: Any) -> Section:
    return Section(
        "Files: where to write, and which part of a data set to read.",
        target,
        output=about("File to write: .jsonl, .csv or .tsv (each also with .gz), or .parquet.", aliases=["-o"]),
        **more,
        overwrite="Replace existing files once the new ones are complete.",
        **DATASET,
    )


_MODEL = Section(
    "Model: how the reward model is loaded and run.",
    LOAD,
    **LOADING,
    overlong="How to handle rows longer than --max_length; nan writes null.",
    schema=SCHEMA,
)
_SCORING = Section(
    "Scoring: how a file is scored.",
    SCORE_FILE,
    errors="What to do with a row that cannot be scored: stop (raise), or write null (nan).",
    restart="Discard the progress of an interrupted run instead of resuming it.",
    chunk_size="Number of rows that are scored and saved at a time.",
    dataset_streaming=about("Read a data set on the Hub while scoring, and again to write it.", parameter="streaming"),
)

SCORE = Command(
    "score",
    usage="MODEL INPUT --output FILE [--NAME VALUE ...]",
    about="Score every row of a file or data set. If interrupted, the same command resumes. Under `torchrun` or "
    "`accelerate launch`, the processes share the rows.",
    examples=("plaudit score runs/first pairs.jsonl --output scored.jsonl",),
    notes=(f"INPUT is {DATA}",),
    words=("model", "input"),
    sections=(
        _files(SCORE_FILE),
        Section(
            "Columns: the columns that are added.",
            SCORE_FILE,
            column="Name of the new column (a list for `responses`). Pairs get chosen_NAME and rejected_NAME.",
            overwrite_column="Replace an existing column of that name.",
            uncertainty="Also write NAME_std and NAME_lower_bound; for pairs, NAME_margin_std and "
            "NAME_margin_lower_bound. Needs a model trained with `--ensemble_size`.",
            k="With --uncertainty: number of standard deviations between NAME_lower_bound and the reward.",
        ),
        _MODEL,
        _SCORING,
    ),
)
BEST_OF_N = Command(
    "best-of-n",
    usage="INPUT --output FILE [--model MODEL] [--NAME VALUE ...]",
    about="Keep the best response of each row of a scored file. With --model, the file is scored first.",
    examples=("plaudit best-of-n candidates.jsonl --model runs/first --output best.jsonl",),
    notes=(f"INPUT is {DATA}",),
    words=("input",),
    sections=(
        _files(BEST_OF_N_FILE),
        Section(
            "Choice: what is kept of each row.",
            BEST_OF_N_FILE,
            model=Setting("Reward model (folder or Hub id) to score INPUT with. Default: INPUT already has rewards."),
            top="Number of responses to keep, as a list, best first. Default: the best response, not in a list.",
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
    notes=(f"INPUT is {DATA}",),
    words=("input",),
    sections=(
        _files(FILTER_FILE, dropped="Write what is not kept to this file."),
        Section(
            "Bounds: what is kept. The responses of a row are kept or dropped one by one.",
            BOUNDS,
            min_margin="Minimum margin of a pair: the reward of `chosen` minus that of `rejected`.",
            max_margin="Maximum margin of a pair.",
            min_reward="Minimum reward; for a pair, that of `chosen`.",
            max_reward="Maximum reward; for a pair, that of `chosen`.",
            quantile="Keep this fraction of what is within the other bounds: pairs by margin, others by reward. Takes "
            "8 bytes of memory per pair or response.",
            keep="Whether --quantile keeps the highest or the lowest.",
        ),
        Section(
            "Columns: the columns that are read.",
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
    from plaudit.inference.io import kind_of_output
    from plaudit.inference.select import best_of_n_file

    (source,), own_settings, calls = BEST_OF_N.parse(arguments)
    choice = calls[BEST_OF_N_FILE]
    path = Path(choice["output"])
    kind = kind_of_output(path)
    refuse_existing(path, choice.get("overwrite", False))
    if choice.get("top") is not None and choice["top"] < 1:
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
            Path(scored).unlink(missing_ok=True)
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
    # Checked here as well, before a model is loaded.
    refuse_existing(output, settings.get("overwrite", False) or Path(f"{output}.chunks").exists())
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
