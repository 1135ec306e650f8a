"""``plaudit demo``: trains a small reward model and shows what it learns."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from plaudit.cli.arguments import Command, Section, Setting
from plaudit.cli.console import bars_where_seen, duration, log_lines, make_console, say

DEMO = Command(
    "demo",
    usage="[--seeds N ...] [--output_dir FOLDER]",
    about="Train a reward model on bundled preferences, on any CPU, in a few minutes.",
    examples=("plaudit demo", "plaudit demo --seeds 0 1 2"),
    sections=(
        Section(
            "Settings: how often to train, and where to save.",
            seeds=Setting("Random seeds; the demo trains one model for each.", list[int], [0]),
            output_dir=Setting("Folder for the trained model.", str, "runs/demo"),
        ),
    ),
)


def run_demo(arguments: Sequence[str]) -> int:
    """Runs the demo; prints the held-out numbers of each run, and the rewards of two responses."""
    _, settings, _ = DEMO.parse(arguments)
    from plaudit.demo import run as demo

    seeds, folder, several = settings["seeds"], Path(settings["output_dir"]), len(settings["seeds"]) > 1
    with log_lines(logging.WARNING), bars_where_seen(hide=True):  # loading and encoding take no time here
        results = [demo.run_demo(folder / f"seed-{seed}" if several else folder, seed=seed, say=say) for seed in seeds]
    console, rows = make_console(), results[0].after.rows
    console.print(f"\nHeld-out preferences: {rows} pairs on topics that were not trained on", markup=False)
    table = Table()
    if several:
        table.add_column("seed", justify="right")
    for column in ("", "accuracy", "95% interval", "margin", "loss"):
        table.add_column(column, justify="left" if column == "" else "right")
    for result in results:
        for name, score in (("before", result.before), ("after", result.after)):
            low, high = score.interval
            cells = [name, f"{score.accuracy:.1%}", f"{low:.1%} to {high:.1%}", f"{score.margin:+.3f}"]
            table.add_row(*([str(result.seed)] if several else []), *cells, f"{score.loss:.3f}")
    if several:
        table.add_section()
        for name in ("before", "after"):
            scores = [getattr(result, name) for result in results]
            accuracy, margin, loss = (
                sum(getattr(score, field) for score in scores) / len(scores) for field in ("accuracy", "margin", "loss")
            )
            table.add_row("mean", name, f"{accuracy:.1%}", "", f"{margin:+.3f}", f"{loss:.3f}")
    console.print(table)
    better, worse = results[-1].rewards
    console.print(f"\nA new prompt, scored by the model loaded from {results[-1].folder}:", markup=False)
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    table.add_column(justify="right")
    table.add_column()
    table.add_row("", f"[bold]{demo.PROMPT}[/bold]")
    for reward, response in ((better, demo.BETTER_RESPONSE), (worse, demo.WORSE_RESPONSE)):
        mark = " [bold green]◀ preferred[/bold green]" if reward == max(better, worse) and better != worse else ""
        table.add_row(f"{reward:+.2f}", response + mark)
    console.print(table)
    folders = ", ".join(result.folder for result in results)
    total = duration(sum(result.seconds for result in results))
    saved = "The reward models are" if several else "The reward model is"
    console.print(f"\n{saved} in {folders} (took {total}).", markup=False, soft_wrap=True)
    for result in results:
        console.print(f"The report: {result.report}", markup=False, soft_wrap=True)
    return 0
