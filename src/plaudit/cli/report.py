"""``plaudit report``: one page about a run, its training, its evaluations and its data."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from rich.console import Console
from rich.text import Text

from plaudit.cli.arguments import Command, Word, about
from plaudit.cli.console import make_console, size
from plaudit.report import Report, write_report
from plaudit.report.build import Paragraph


@dataclass
class ReportArguments:
    """Where the report goes, and what it shows."""

    title: ClassVar[str] = "Settings"

    output: str | None = field(
        default=None,
        metadata=about(
            "The page to write; JSON and Markdown go beside it. Default: report.html in RUN_FOLDER. An earlier report "
            "is replaced, any other file is left alone."
        ),
    )
    eval: list[str] = field(
        default_factory=list,
        metadata=about("Folders of `plaudit eval --output`. Those in RUN_FOLDER are found without it."),
    )
    open: bool = field(default=False, metadata=about("Show the page in the browser."))


COMMAND = Command(
    "report",
    usage="RUN_FOLDER [--output FILE.html] [--eval FOLDER ...] [--open]",
    about="Write one page about a run: how training went, how good the rewards are, what the data was.",
    examples=(
        "plaudit eval runs/first --suite test.jsonl --output runs/first/evaluation",
        "plaudit report runs/first --open",
    ),
    notes=(
        "RUN_FOLDER is the output_dir of a training, or one of its checkpoints. The page is one file that needs no "
        "network; the same results stand beside it as JSON and Markdown.",
    ),
    words=(
        Word(
            "folder",
            "run folder",
            missing="Name it first: `plaudit report runs/first`, then the settings.",
            extra="Write their reports one after the other.",
        ),
    ),
    kinds=(ReportArguments,),
)


def run(arguments: Sequence[str]) -> int:
    """Write a report with the given command-line arguments; returns the exit code, 0.

    Raises:
        ConfigError: The command line is wrong, or there is no such run or evaluation.
    """
    console = make_console()
    if COMMAND.helped(arguments, console):
        return 0
    (folder,), settings = COMMAND.parse(arguments)
    report = write_report(folder, settings.output, evaluations=settings.eval)
    print_report(report, console)
    if settings.open and not webbrowser.open(report.html.resolve().as_uri()):
        console.print("No browser could be opened.")
    return 0


def print_report(report: Report, console: Console) -> None:
    """Say what was written, and what could not be shown.

    Args:
        report: The files.
        console: Where to print.
    """
    for block in report.document.sections[0].blocks:
        if isinstance(block, Paragraph) and block.tone in ("warning", "empty"):
            console.print(Text(block.text.replace("`", ""), style="yellow"), soft_wrap=True)
    about = f"{report.html} ({size(report.html.stat().st_size)}, needs no network)"
    console.print(Text(f"Report in {about}; also {report.json.name} and {report.markdown.name}."), soft_wrap=True)
