"""``plaudit check``: what is wrong with preference data, what a reward model must beat on it, and a cleaned copy."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from plaudit.cli.arguments import Command, Word, about
from plaudit.cli.console import bars_where_seen, duration, log_lines, make_console, say
from plaudit.doctor.check import REMOVABLE, SAMPLE_ROWS, check_dataset
from plaudit.doctor.findings import DataCheck, Finding, finding_cells, row_names
from plaudit.doctor.rows import excerpt
from plaudit.errors import ConfigError
from plaudit.training.config import RewardConfig

EXIT_FAULTS = 1
_MOST_REMOVED = 0.2
"""Share of the rows above which a cleaned copy is no remedy."""
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


@dataclass
class CheckArguments:
    """What to check, and what to do about it."""

    title: ClassVar[str] = "Settings"

    model: str | None = field(
        default=None,
        metadata=about(
            "Folder or model id whose tokenizer and chat template training will use: finds over-long rows, and rows "
            "that the template refuses or renders alike.",
            aliases=["--model_name_or_path"],
        ),
    )
    model_revision: str | None = field(default=None, metadata=about("Branch, tag or commit of a model on the Hub."))
    max_length: int | None = field(
        default=None,
        metadata=about(
            f"Limit for one response with its prompt, in tokens. Default: that of `plaudit train`, "
            f"{RewardConfig.max_length}; longer rows are then reported, but not removed by --fix."
        ),
    )
    eval: str | None = field(
        default=None, metadata=about("Evaluation data, whose prompts must not occur: a file, a folder, or a Hub name.")
    )
    eval_split: str | None = field(
        default=None, metadata=about("Split of it. Without --eval: a split of DATASET itself.")
    )
    benchmark: list[str] | None = field(
        default=None,
        metadata=about(
            "Files of benchmarks, whose prompts must not occur, also not in part: preferences, or rows with a column "
            "such as `question`."
        ),
    )
    fix: str | None = field(
        default=None,
        metadata=about(
            "Write the rows without certain faults to this file (.jsonl or .jsonl.gz), and those left out, with the "
            "reason, to a .removed file beside it. DATASET itself is never changed."
        ),
    )
    overwrite: bool = field(default=False, metadata=about("Let --fix and --json replace existing files."))
    json: str | None = field(default=None, metadata=about("Write the results to this file as JSON."))
    strict: bool = field(default=False, metadata=about("Let warnings count as errors in the exit code."))
    dataset_config: str | None = field(default=None, metadata=about("Configuration of a data set on the Hub."))
    dataset_split: str = field(
        default="train",
        metadata=about(
            "Split to check, also with a slice: train[:1000].",
            aliases=["--dataset_train_split", "--split"],
        ),
    )
    dataset_streaming: bool = field(
        default=False,
        metadata=about("Read row by row, without the cache of `datasets`.", aliases=["--streaming"]),
    )
    words: bool = field(
        default=True, metadata=about("Fit a bag of words: the shortcut, leaking words, mislabelled rows.")
    )
    sample_rows: int = field(
        default=SAMPLE_ROWS,
        metadata=about("Rows to fit it to at most, drawn at random; memory and time grow with it."),
    )
    examples: int = field(default=2, metadata=about("Examples to show of each finding, up to 3."))
    seed: int = field(default=0, metadata=about("Decides which rows are drawn."))


COMMAND = Command(
    "check",
    usage="DATASET [--model MODEL] [--fix FILE.jsonl] [--NAME VALUE ...]",
    about="Check preference data before a model is trained on it.",
    examples=("plaudit check pairs.jsonl --model Qwen/Qwen3-0.6B --eval test.jsonl --fix clean.jsonl",),
    notes=(
        "DATASET is what `plaudit train --dataset_name` takes: a JSON, JSON lines, CSV or Parquet file, a folder of "
        "such files or one saved by `datasets`, or the name of a data set on the Hub.",
        "Exit code: 0 without errors, 1 with errors, 2 for a wrong command line or data that is not there.",
    ),
    words=(Word("dataset", "data set", extra="Check them one after the other."),),
    kinds=(CheckArguments,),
)


def run(arguments: Sequence[str]) -> int:
    """Check a data set with the given command-line arguments; returns the exit code.

    Returns:
        0 for data without errors, 1 for data with errors (or, with ``--strict``, warnings).

    Raises:
        PlauditError: The command line is wrong, or there is no such data.
    """
    console = make_console()
    if COMMAND.helped(arguments, console):
        return 0
    dataset, settings = parse(arguments)
    if settings.json is not None and Path(settings.json).exists() and not settings.overwrite:
        raise ConfigError(f"{settings.json!r} exists", fix="Give another name, or allow it with --overwrite.")
    with log_lines(logging.WARNING), _progress() as progress:
        check = _check(dataset, settings, progress)
    print_check(check, console, examples=settings.examples, next_steps=_next_steps(check, dataset, settings))
    if settings.json is not None:
        Path(settings.json).write_text(json.dumps(check.to_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")
        say(f"Results in {settings.json}.")
    return EXIT_FAULTS if not check.ok or (settings.strict and check.of("warning")) else 0


def parse(arguments: Sequence[str]) -> tuple[str, CheckArguments]:
    """Read the command line.

    Args:
        arguments: Those after ``plaudit check``.

    Returns:
        The name of the data set, and the settings.

    Raises:
        ConfigError: A setting is unknown, or a value cannot be read.
    """
    (dataset,), settings = COMMAND.parse(arguments)
    if settings.max_length is not None and settings.max_length < 1:
        raise ConfigError(f"`max_length` is {settings.max_length}", fix="Set it to at least 1 token.")
    if settings.sample_rows < 1:
        raise ConfigError(f"`sample_rows` is {settings.sample_rows}", fix="Give at least 1, or --words false.")
    return dataset, settings


def _check(dataset: str, settings: CheckArguments, progress: Any) -> DataCheck:
    tokenizer = None
    if settings.model is not None:
        from plaudit.model.load import load_tokenizer

        tokenizer = load_tokenizer(settings.model, revision=settings.model_revision)
    limit = settings.max_length
    if limit is None and tokenizer is not None:
        limit = RewardConfig.max_length
    other = settings.eval if settings.eval is not None or settings.eval_split is None else dataset
    return check_dataset(
        dataset,
        tokenizer=tokenizer,
        max_length=limit,
        eval_dataset=other,
        benchmarks=settings.benchmark or (),
        fix=settings.fix,
        overwrite=settings.overwrite,
        remove=_removed_kinds(settings),
        config=settings.dataset_config,
        split=settings.dataset_split,
        eval_split=settings.eval_split or "train",
        streaming=settings.dataset_streaming,
        words=settings.words,
        sample_rows=settings.sample_rows,
        seed=settings.seed,
        progress=progress,
    )


def _removed_kinds(settings: CheckArguments) -> list[str]:
    # A limit that nobody wrote should not cost rows.
    return [kind for kind in REMOVABLE if kind != "overlong" or settings.max_length is not None]


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """A bar on a terminal, nothing elsewhere."""
    with bars_where_seen() as seen:
        if not seen:
            yield None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
        with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("Reading", total=None)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


# --- screen -----------------------------------------------------------------------------------------------------


def print_check(check: DataCheck, console: Console, *, examples: int, next_steps: Sequence[str]) -> None:
    """Print the verdict, the findings, examples, shortcuts, and what to do next.

    Args:
        check: What was found.
        console: Where to print.
        examples: Examples to show of each finding.
        next_steps: Lines to end with.
    """
    style = "bold red" if not check.ok else "bold yellow" if check.of("warning") else "bold green"
    if not console.is_terminal:
        console.width = 200  # a pipe has no width: lines should stay whole
    console.print(Text(f"{check.name}: {check.verdict} ({duration(check.seconds)})", style=style), soft_wrap=True)
    if check.findings:
        console.print()
        console.print(_findings_table(check))
    for finding in check.findings:
        _print_details(finding, console, examples)
    if check.shortcuts or check.lengths:
        console.print()
    if check.shortcuts:
        console.print(Text("A reward model must beat", style="bold"))
        console.print(_shortcuts_table(check))
    if check.lengths is not None:
        one = check.lengths
        console.print(
            f"Tokens of a response with its prompt: {one.shortest:,} to {one.longest:,}, half up to {one.median:,}, "
            f"95% up to {one.most:,}.",
            soft_wrap=True,
        )
    _print_suspects(check, console, examples)
    if check.notes:
        console.print()
        for note in check.notes:
            console.print(Text(note, style="dim"), soft_wrap=True)
    console.print()
    for line in next_steps:
        console.print(Text(line), soft_wrap=True)


def _findings_table(check: DataCheck) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("first row numbers", overflow="fold")
    for finding in check.findings:
        cells = [Text(cell) for cell in finding_cells(finding, check.rows)]
        table.add_row(Text(finding.severity, style=_STYLES[finding.severity]), *cells)
    return table


def _print_details(finding: Finding, console: Console, examples: int) -> None:
    shown = [one for one in finding.examples if one.text][:examples]
    if not shown and not finding.lines and not finding.advice:
        return
    heading = Text(f"\n{finding.severity}: ", style=_STYLES[finding.severity])
    console.print(heading.append(finding.title, style="bold"), soft_wrap=True)
    lines = list(finding.lines[:8])
    if len(finding.lines) > len(lines):
        lines.append(f"and {len(finding.lines) - len(lines)} more: see --json")
    lines += [f"{row_names(one.rows)}: {one.text}" for one in shown]
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)
    if finding.advice:
        console.print(Text(f"  {finding.advice}", style="dim"), soft_wrap=True)


def _shortcuts_table(check: DataCheck) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
    for column in ("left", "right", "left"):
        table.add_column(justify=column, no_wrap=column != "left")
    for one in check.shortcuts:
        about = f"95% interval {one.low:.1%} to {one.high:.1%}, {one.rows:,} rows" + f"; {one.note}" * bool(one.note)
        table.add_row(Text(one.name), Text(f"{one.accuracy:.1%}"), Text(about))
    return table


def _print_suspects(check: DataCheck, console: Console, examples: int) -> None:
    words = next((one for one in check.shortcuts if one.name == "bag of words"), None)
    if words is None or not check.suspects:
        return
    console.print(Text("\nMost likely labelled the wrong way round", style="bold"), end="")
    if words.low < 0.6:
        console.print(Text(": no word on that, the words know too little here", style="dim"))
        return
    console.print(Text(f" (by their words; {len(check.suspects)} rows are in --json)", style="dim"))
    for one in check.suspects[: max(examples, 1)]:
        line = f"  row {one.row} (chosen is better: {one.probability:.0%})  chosen: "
        line += f'"{excerpt(one.better, 60)}"  rejected: "{excerpt(one.worse, 60)}"'
        console.print(Text(line), soft_wrap=True)


def _next_steps(check: DataCheck, dataset: str, settings: CheckArguments) -> list[str]:
    """What to do now: the command that cleans, or the one that trains."""
    model = f" --model_name_or_path {shlex.quote(settings.model)}" if settings.model else ""
    if check.fixed is not None:
        removed = ", ".join(f"{count:,} {kind}" for kind, count in check.fixed.removed.items()) or "none"
        target = shlex.quote(check.fixed.path)
        return [
            f"Kept {check.fixed.kept:,} rows in {check.fixed.path}; removed: {removed} ({check.fixed.removed_path}).",
            f"Next: plaudit train --dataset_name {target}{model} --eval_fraction 0.1",
        ]
    removable = [one for one in check.findings if one.kind in _removed_kinds(settings)]
    rows = len({row for one in removable for row in one.rows})
    if rows > _MOST_REMOVED * check.rows:
        return [
            f"Next: mend the errors above in how the data is made. --fix would remove {rows:,} of {check.rows:,} rows."
        ]
    if check.finding("broken_file") is not None:
        return ["Next: mend the file, then check again."]
    if removable:
        return [f"Next: plaudit check {_repeated(dataset, settings)} --fix {shlex.quote(_clean_name(dataset))}"]
    return [f"Next: plaudit train --dataset_name {shlex.quote(dataset)}{model} --eval_fraction 0.1"]


def _clean_name(dataset: str) -> str:
    name = Path(dataset).name
    for suffix in (".gz", *Path(name.removesuffix(".gz")).suffixes[-1:]):
        name = name.removesuffix(suffix)
    return f"{name}.clean.jsonl"


def _repeated(dataset: str, settings: CheckArguments) -> str:
    """The data set and the settings that decide what is found, as on the command line."""
    words = [dataset]
    for name in ("model", "model_revision", "max_length", "eval", "eval_split", "dataset_config", "dataset_split"):
        value = getattr(settings, name)
        if value is not None and (name, value) != ("dataset_split", "train"):
            words += [f"--{name}", str(value)]
    words += ["--benchmark", *settings.benchmark] if settings.benchmark else []
    return shlex.join(words)
