"""``plaudit eval``: reward models on benchmarks and on any preferences, one alone or several against each other."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from plaudit.cli.arguments import Command, ComputeArguments, Word, about
from plaudit.cli.console import bars_where_seen, duration, log_lines, make_console, say
from plaudit.doctor.rows import excerpt
from plaudit.errors import ConfigError
from plaudit.evaluation.results import Evaluation, ModelEvaluation, SuiteEvaluation
from plaudit.evaluation.run import evaluate
from plaudit.evaluation.suites.registry import SUITES
from plaudit.model.calibration import RewardCalibration
from plaudit.report.render import HEADINGS, model_line, suite_heading, suite_lines, suite_table, verdicts


@dataclass
class EvalArguments:
    """What to evaluate on, and how."""

    title: ClassVar[str] = "Settings"

    suite: list[str] | None = field(
        default=None,
        metadata=about(
            f"Suites: {', '.join(SUITES)}, or one with its file, as `llmbar=FILE`; any preference file, or a data set "
            "on the Hub as `owner/name`.",
        ),
    )
    slice: list[str] | None = field(default=None, metadata=about("Columns by whose values results are split."))
    output: str | None = field(
        default=None,
        metadata=about(
            "Folder for evaluation.json, evaluation.md and rewards.parquet. Written after each suite; the same command "
            "again goes on where it was."
        ),
    )
    overwrite: bool = field(
        default=False, metadata=about("Forget what is in that folder, and let --json replace a file.")
    )
    json: str | None = field(default=None, metadata=about("Write the results to this file as JSON."))
    bag_of_words: str | None = field(
        default=None,
        metadata=about(
            "The preferences that the models were trained on: a bag of words is fitted on them, and each model held "
            "against it."
        ),
    )
    max_rows: int | None = field(default=None, metadata=about("Most rows of each suite, drawn at random."))
    overlong: str = field(
        default="drop",
        metadata=about(
            "What happens to longer rows; dropped ones are counted.",
            choices=("drop", "truncate_left", "truncate_right", "error"),
        ),
    )
    skip_broken: bool = field(
        default=False, metadata=about("Leave out and count rows that cannot be scored, instead of stopping there.")
    )
    dataset_split: str | None = field(
        default=None,
        metadata=about("Split of files and data sets that are no suite of their own. [train]", aliases=["--split"]),
    )
    save_calibration: bool = field(
        default=False,
        metadata=about(
            "Write the temperature fitted on the first suite beside the model, as reward_calibration.json, if it helps "
            "on the half that it was not fitted on."
        ),
    )
    sanity_rows: int = field(
        default=16,
        metadata=about("Rows of each suite that are scored again, to see that rewards depend on the texts only."),
    )
    mistakes: int = field(default=3, metadata=about("Most confident mistakes to show of each suite."))
    seed: int = field(default=0, metadata=about("Decides what is drawn at random."))


COMMAND = Command(
    "eval",
    usage="MODEL [MODEL ...] --suite SUITE [SUITE ...] [--NAME VALUE ...]",
    about="Judge reward models on benchmarks, or on any preferences.",
    examples=(
        "plaudit eval runs/first --suite rewardbench2 test.jsonl --slice source --output runs/first/eval",
        "plaudit eval runs/second runs/first --suite llmbar=LLMBar/Dataset/LLMBar",
    ),
    notes=(
        "MODEL is a folder or an id on the Hub: what `plaudit train` writes, any other sequence-classification "
        "checkpoint with one output, or an adapter. The first is compared with each of the others, row by row.",
        "Exit code: 0, or 2 for a wrong command line, or a model or data that cannot be read.",
    ),
    words=(Word("model", missing="Write: plaudit eval MODEL --suite SUITE", many=True),),
    kinds=(EvalArguments, ComputeArguments),
)


def run(arguments: Sequence[str]) -> int:
    """Evaluate reward models with the given command-line arguments; returns the exit code, 0.

    Raises:
        PlauditError: The command line is wrong, or a model or a suite cannot be read.
    """
    console = make_console()
    if COMMAND.helped(arguments, console):
        return 0
    models, settings, loading = parse(arguments)
    _check(models, settings)
    with log_lines(logging.INFO if settings.output else logging.WARNING), bars_where_seen() as seen:
        evaluation = _evaluate(models, settings, loading, progress=seen)
    print_evaluation(evaluation, console, mistakes=settings.mistakes)
    if settings.save_calibration:
        for model in evaluation.models:
            console.print(Text(save_calibration(model)), soft_wrap=True)
    if settings.output is not None:
        console.print(Text(f"Results in {settings.output}."), soft_wrap=True)
    if settings.json is not None:
        text = json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        Path(settings.json).write_text(text + "\n", "utf-8")
        say(f"Results in {settings.json}.")
    return 0


def parse(arguments: Sequence[str]) -> tuple[list[str], EvalArguments, ComputeArguments]:
    """Read the command line.

    Args:
        arguments: Those after ``plaudit eval``.

    Returns:
        Names of the models, the settings, and how models are run.

    Raises:
        ConfigError: A setting is unknown, a value cannot be read, or a model or a suite is missing.
    """
    models, settings, loading = COMMAND.parse(arguments)
    if not settings.suite:
        raise ConfigError("no suite is named", fix=f"Add --suite with a file, or one of: {', '.join(SUITES)}.")
    return models, settings, loading


def _check(models: Sequence[str], settings: EvalArguments) -> None:
    """Refuse, before anything is computed, what could not be written in the end."""
    if settings.json is not None and Path(settings.json).exists() and not settings.overwrite:
        raise ConfigError(f"{settings.json!r} exists", fix="Give another name, or allow it with --overwrite.")
    elsewhere = [one for one in models if not Path(one).expanduser().is_dir()]
    if settings.save_calibration and elsewhere:
        raise ConfigError(
            f"--save-calibration writes into the folder of the model, and {elsewhere[0]!r} is no folder",
            fix="Download the model first, and name its folder.",
        )


def _evaluate(
    models: Sequence[str], settings: EvalArguments, loading: ComputeArguments, *, progress: bool
) -> Evaluation:
    return evaluate(
        models[0],
        settings.suite or (),
        compare_with=models[1:],
        slices=settings.slice or (),
        bag_of_words=settings.bag_of_words,
        max_rows=settings.max_rows,
        seed=settings.seed,
        output=settings.output,
        overwrite=settings.overwrite,
        overlong=settings.overlong,  # type: ignore[arg-type]
        errors="drop" if settings.skip_broken else "raise",
        split=settings.dataset_split,
        sanity_rows=settings.sanity_rows,
        mistakes=max(settings.mistakes, 10),
        progress=progress,
        **dataclasses.asdict(loading),
    )


def save_calibration(model: ModelEvaluation) -> str:
    """Write the temperature that was fitted beside a model, if it helps.

    Args:
        model: The model, evaluated; its name is that of its folder.

    Returns:
        What was written, or why nothing was, in one sentence.
    """
    suite = next((one for one in model.suites if one.calibration is not None), None)
    found = None if suite is None else suite.calibration
    if suite is None or found is None or found.temperature is None or found.before is None or found.after is None:
        return f"No calibration is written for {model.name}: there are too few comparisons to fit a temperature."
    if found.at_bound:
        return f"No calibration is written for {model.name}: no temperature fits {suite.name}, all or none are right."
    change = f"log loss {found.before.log_loss:.4f} -> {found.after.log_loss:.4f}"
    if found.after.log_loss >= found.before.log_loss:
        return f"No calibration is written for {model.name}: it does not help on the other half ({change})."
    old = model.calibration or RewardCalibration()
    how = (
        f"temperature fitted on {found.scores.n - found.after.n} comparisons of {suite.name}; "
        f"on {found.after.n} others: {change}, expected calibration error "
        f"{found.before.ece:.3f} -> {found.after.ece:.3f}"
    )
    new = RewardCalibration(old.scale, old.shift, old.temperature * found.temperature, how)
    return f"Wrote {new.save(Path(model.name).expanduser())}: temperature {new.temperature:.4g} ({how})."


# --- screen -----------------------------------------------------------------------------------------------------


def print_evaluation(evaluation: Evaluation, console: Console, *, mistakes: int) -> None:
    """Print the results of each model, and how models compare.

    Args:
        evaluation: The results.
        console: Where to print.
        mistakes: How many of the most confident mistakes to show of each suite.
    """
    if not console.is_terminal:
        console.width = 200  # a pipe has no width: lines should stay whole
    for model in evaluation.models:
        console.print(Text(model.name, style="bold").append(f"  {model_line(model)}", style="dim"), soft_wrap=True)
        for suite in model.suites:
            console.print()
            _print_suite(suite, console, mistakes)
        console.print()
    if evaluation.comparisons:
        console.print(Text("Comparison", style="bold"))
        for name, verdict in verdicts(evaluation):
            console.print(Text(f"  {name}: {verdict}"), soft_wrap=True)
        console.print()


def _print_suite(suite: SuiteEvaluation, console: Console, mistakes: int) -> None:
    console.print(Text(f"{suite_heading(suite)}, {duration(suite.seconds)}", style="bold"), soft_wrap=True)
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in HEADINGS:
        left = name in ("", "95% interval")
        grid.add_column(name, justify="left" if left else "right", no_wrap=bool(name))
    for cells in suite_table(suite):
        grid.add_row(*(Text(cell) for cell in cells))
    console.print(grid)
    for title, text in suite_lines(suite):
        style = "bold red" if text.startswith("FAILED") else "yellow" if title == "Note" else ""
        console.print(Text(f"{title}: ", style="dim").append(text, style=style), soft_wrap=True)
    for one in suite.mistakes[: max(mistakes, 0)]:
        console.print(Text(f"Mistake: row {one.row}, margin {one.margin:+.2f}", style="dim"), soft_wrap=True)
        for name, said in (("prompt", one.prompt), ("better", one.better), ("worse", one.worse)):
            if said:
                console.print(Text(f"  {name}: {excerpt(said, 100)}"), soft_wrap=True)
