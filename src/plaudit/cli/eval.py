"""``plaudit eval`` and ``plaudit report``: how good reward models are, on the screen and as a page."""

from __future__ import annotations

import json
import logging
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from plaudit.cli.arguments import COMPUTE, DTYPE, LOAD, SCHEMA, Command, Section, Setting, about
from plaudit.cli.console import bars_where_seen, duration, log_lines, make_console, say, size
from plaudit.errors import ConfigError
from plaudit.evaluation.suites import NAMES
from plaudit.files import refuse_existing

if TYPE_CHECKING:
    from plaudit.evaluation.results import Evaluation, ModelEvaluation

EVALUATE = "plaudit.evaluation.run:evaluate"
WRITE_REPORT = "plaudit.report.build:write_report"

EVAL = Command(
    "eval",
    usage="[MODEL ...] --suite SUITE [SUITE ...] [--NAME VALUE ...]",
    about="Evaluate reward models on benchmarks, or on your own preferences.",
    examples=(
        "plaudit eval runs/first --suite rewardbench2 test.jsonl --slice source --output runs/first/eval",
        "plaudit eval runs/second runs/first --suite llmbar=LLMBar/Dataset/LLMBar",
        "plaudit eval --rewards scored.jsonl",
    ),
    notes=(
        "MODEL is a folder or an id on the Hub: what `plaudit train` writes, any other sequence-classification "
        "checkpoint with one output, or an adapter. The first model is compared with each of the others, row by row.",
        "Exit code: 0, or 2 for an invalid command line, or a model or data that cannot be read.",
    ),
    words=("[model]...",),
    sections=(
        Section(
            "Settings: what to evaluate on, and how.",
            EVALUATE,
            suite=about(
                f"Suites: {', '.join(NAMES)}; one of these with its file, as `llmbar=FILE`; a file of preferences; or "
                "a data set on the Hub, as `owner/name`.",
                parameter="suites",
            ),
            rewards="File, instead of MODEL, in which `plaudit score` or another program wrote rewards beside the rows "
            "of the suite. Without --suite, its own rows are the suite.",
            slice=about("Columns whose values get results of their own.", parameter="slices", hint=list[str]),
            output="Folder for evaluation.json, evaluation.md and rewards.parquet. Written after each suite: the same "
            "command resumes an interrupted run.",
            overwrite="Discard the contents of --output, and let --json replace a file.",
            json=Setting("Also write the results to this file."),
            bag_of_words=about(
                "Training data of the models. Each is compared with a bag of words fitted to it.", hint=str | None
            ),
            max_rows="Maximum number of rows per suite, drawn at random.",
            overlong="How to handle rows that are too long; dropped rows are counted.",
            skip_broken=about(
                "Drop and count rows that cannot be scored, instead of stopping at the first.",
                hint=bool,
                parameter="errors",
                aliases=(),
                switch=("drop", "raise"),
            ),
            dataset_split=about("Split of files and data sets that are not named suites. [train]", parameter="split"),
            schema=SCHEMA,
            save_calibration=Setting(
                "Save the temperature fitted on the first suite beside the model, as reward_calibration.json, if it "
                "improves the half of the rows that it was not fitted on.",
                bool,
                False,
            ),
            sanity_rows="Number of rows per suite that are scored again, to check that rewards depend only on texts.",
            mistakes=Setting("Number of mistakes to show per suite, most confident first.", int, 3),
            seed="Seed of all random draws.",
        ),
        Section("Model: how a reward model is run.", LOAD, **COMPUTE, dtype=DTYPE),
    ),
)
REPORT = Command(
    "report",
    usage="RUN_FOLDER [--output FILE.html] [--NAME VALUE ...]",
    about="Write one page about a run: how training went, how good the rewards are, and what the data was.",
    examples=(
        "plaudit eval runs/first --suite test.jsonl --output runs/first/evaluation",
        "plaudit report runs/first --open",
    ),
    notes=(
        "RUN_FOLDER is the output_dir of a training run, or one of its checkpoints. The page is a single file that "
        "needs no network. The same results are written beside it as JSON and Markdown.",
    ),
    words=("run folder",),
    sections=(
        Section(
            "Settings: where the report is written, and what it shows.",
            WRITE_REPORT,
            output="Page to write; JSON and Markdown go beside it. Default: report.html in RUN_FOLDER. Replaces an "
            "earlier report, but no other file.",
            eval=about(
                "Folders written by `plaudit eval --output`. Those in RUN_FOLDER are found automatically.",
                parameter="evaluations",
            ),
            open=Setting("Open the page in the browser.", bool, False),
        ),
    ),
)


def run_eval(arguments: Sequence[str]) -> int:
    """Evaluates reward models with the given command-line arguments; returns the exit code."""
    models, settings, calls = EVAL.parse(arguments)
    given = calls[EVALUATE]
    # Raised before anything is computed: results that could not be written in the end.
    target = settings["json"]
    if target is not None:
        refuse_existing(target, given.get("overwrite", False))
    elsewhere = [model for model in models or ["--rewards"] if not Path(model).expanduser().is_dir()]
    if settings["save_calibration"] and elsewhere:
        raise ConfigError(
            f"--save-calibration writes into the model's folder, and {elsewhere[0]!r} is not a folder",
            fix="Download the model first, and pass its folder.",
        )
    from plaudit.evaluation.run import evaluate

    with log_lines(logging.INFO if "output" in given else logging.WARNING), bars_where_seen() as seen:
        first, others = (models[0], models[1:]) if models else (None, None)
        more = {"mistakes": max(settings["mistakes"], 10), "progress": seen, **given, **calls[LOAD]}
        evaluation = evaluate(first, compare_with=others or None, **more)
    console = make_console()
    print_evaluation(evaluation, console, mistakes=settings["mistakes"])
    if settings["save_calibration"]:
        for model in evaluation.models:
            console.print(Text(save_calibration(model)), soft_wrap=True)
    if "output" in given:
        console.print(Text(f"Results in {given['output']}."), soft_wrap=True)
    if target is not None:
        text = json.dumps(evaluation.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        Path(target).write_text(text + "\n", "utf-8")
        say(f"Results in {target}.")
    return 0


def save_calibration(model: ModelEvaluation) -> str:
    """Saves the temperature fitted on an evaluation beside the model, if it helps; returns a sentence about it."""
    from plaudit.model.calibration import RewardCalibration

    suite = next((suite for suite in model.suites if suite.calibration is not None), None)
    fit = None if suite is None else suite.calibration
    none = f"No calibration is written for {model.name}: "
    if suite is None or fit is None or fit.temperature is None or fit.before is None or fit.after is None:
        return none + "there are too few comparisons to fit a temperature."
    if fit.at_bound:
        return none + f"no temperature fits {suite.name}, because all comparisons are right, or all are wrong."
    change = f"log loss {fit.before.log_loss:.4f} -> {fit.after.log_loss:.4f}"
    if fit.after.log_loss >= fit.before.log_loss:
        return none + f"it does not help on the other half ({change})."
    old = model.calibration or RewardCalibration()
    how = (
        f"temperature fitted on {fit.scores.n - fit.after.n} comparisons of {suite.name}; "
        f"on {fit.after.n} others: {change}, expected calibration error "
        f"{fit.before.ece:.3f} -> {fit.after.ece:.3f}"
    )
    new = RewardCalibration(old.scale, old.shift, old.temperature * fit.temperature, how)
    return f"Wrote {new.save(Path(model.name).expanduser())}: temperature {new.temperature:.4g} ({how})."


def print_evaluation(evaluation: Evaluation, console: Console, *, mistakes: int) -> None:
    """Prints the results of each model, with the most confident mistakes, and how models compare."""
    from plaudit.doctor.rows import excerpt
    from plaudit.evaluation import page

    if not console.is_terminal:
        console.width = 200  # a pipe has no width: lines should stay whole
    styles = {"warning": "bold red", "note": "yellow"}

    def show(text: str | Text, style: str = "") -> None:
        console.print(Text(text, style) if isinstance(text, str) else text, soft_wrap=True)

    for model in evaluation.models:
        show(Text(model.name, style="bold").append(f"  {page.model_line(model)}", style="dim"))
        for suite in model.suites:
            console.print()
            show(f"{page.suite_title(suite)}: {page.suite_size(suite)}, {duration(suite.seconds)}", "bold")
            table = page.suite_table(suite)
            grid = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
            for name, kind in table.heads:
                left = kind in ("text", "share interval")
                grid.add_column(name, justify="left" if left else "right", no_wrap=bool(name))
            for cells in table.cells():
                grid.add_row(*map(Text, cells))
            console.print(grid)
            for title, text, tone in page.findings(suite):
                show(Text(f"{title}: ", style="dim").append(text, style=styles.get(tone or "", "")))
            for row in suite.mistakes[: max(mistakes, 0)]:
                mistake = page.mistake_of(row, suite)
                show(f"Mistake: {' · '.join(mistake.facts)}", "dim")
                show(f"  prompt: {excerpt(mistake.prompt, 100)}")
                for response in mistake.responses:
                    show(f"  {response.label}: {excerpt(response.text or '', 100)}")
        console.print()
    if evaluation.comparisons:
        show("Comparison", "bold")
        for comparison in evaluation.comparisons:
            for title, text, _ in page.verdicts(comparison):
                show(f"  {title}: {text}")
        console.print()


def run_report(arguments: Sequence[str]) -> int:
    """Writes a report with the given command-line arguments; returns the exit code."""
    from plaudit.evaluation.page import Paragraph
    from plaudit.report import write_report

    (folder,), settings, calls = REPORT.parse(arguments)
    report = write_report(folder, **calls[WRITE_REPORT])
    console = make_console()
    for block in report.document.sections[0].blocks:  # what could not be shown
        if isinstance(block, Paragraph) and block.tone in ("warning", "empty"):
            console.print(Text(block.text.replace("`", ""), style="yellow"), soft_wrap=True)
    page = f"{report.html} ({size(report.html.stat().st_size)}, needs no network)"
    console.print(Text(f"Report in {page}; also {report.json.name} and {report.markdown.name}."), soft_wrap=True)
    if settings["open"] and not webbrowser.open(report.html.resolve().as_uri()):
        console.print("No browser could be opened.")
    return 0
