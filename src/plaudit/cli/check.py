"""``plaudit check``: faults of preference data, shortcuts that a reward model must beat, and a cleaned copy."""

from __future__ import annotations

import contextlib
import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from plaudit.cli.arguments import DATA, DATASET, REVISION, SCHEMA, Command, Section, Setting, about
from plaudit.cli.console import bars_where_seen, duration, log_lines, make_console, say
from plaudit.errors import ConfigError
from plaudit.files import refuse_existing

if TYPE_CHECKING:
    from plaudit.doctor.findings import DataCheck

CHECK_DATASET = "plaudit.doctor.check:check_dataset"
_MOST_REMOVED = 0.2  # share of the rows above which a cleaned copy is no remedy
_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}

CHECK = Command(
    "check",
    usage="DATASET [--fix FILE.jsonl] [--NAME VALUE ...]",
    about="Check preference data before you train a model on it.",
    examples=("plaudit check pairs.jsonl --model Qwen/Qwen3-0.6B --eval test.jsonl --fix clean.jsonl",),
    notes=(
        f"DATASET is {DATA}",
        "Exit code: 0 if no errors were found, 1 if some were, 2 for an invalid command line or missing data.",
    ),
    words=("dataset",),
    sections=(
        Section(
            "Settings: what to check, and what to write.",
            CHECK_DATASET,
            model=Setting(
                "Model (folder or Hub id) to be trained. Its tokenizer and chat template reveal overlong rows, and "
                "rows that the template rejects or renders alike.",
                aliases=("--model_name_or_path",),
            ),
            model_revision=Setting(REVISION["help"]),
            max_length=Setting(
                "Maximum length of a prompt with its response, in tokens. If it is not set, rows longer than the "
                "default of `plaudit train` are reported, but --fix keeps them.",
                int | None,
            ),
            eval=Setting("Evaluation data whose prompts must not occur in DATASET: a file, a folder, or a Hub name."),
            eval_split=Setting("Split of the evaluation data; without --eval, of DATASET itself."),
            benchmark=about(
                "Benchmark files whose prompts must not occur in DATASET, even in part: preferences, or rows with a "
                "column such as `question`.",
                parameter="benchmarks",
            ),
            fix="Write a cleaned copy to this file (.jsonl or .jsonl.gz), and the removed rows with their reasons to a "
            ".removed file beside it. DATASET itself never changes.",
            overwrite="Let --fix and --json replace existing files.",
            json=Setting("Also write the results to this file."),
            strict=Setting("Count warnings as errors in the exit code.", bool, False),
            dataset_config=DATASET["dataset_config"],
            dataset_split=about(
                "Split to check, optionally with a slice: train[:1000].",
                parameter="split",
                aliases=("--dataset_train_split", "--split"),
            ),
            dataset_streaming=about("Read row by row, without the cache of `datasets`.", parameter="streaming"),
            schema=SCHEMA,
            words="Fit a bag of words, which finds shortcuts by words, leaking words and mislabelled rows.",
            sample_rows="Maximum number of rows for --words, drawn at random. Memory and time grow with it.",
            examples=Setting("Number of examples per finding, up to 3.", int, 2),
            seed="Seed of all random draws.",
        ),
    ),
)


def run_check(arguments: Sequence[str]) -> int:
    """Checks a data set; returns 0 without errors, 1 with errors (or, with ``--strict``, warnings)."""
    (dataset,), settings, calls = CHECK.parse(arguments)
    given = calls[CHECK_DATASET]
    for name, fix in (("max_length", "1 token."), ("sample_rows", "1, or pass --words false.")):
        value = {**settings, **given}.get(name)
        if value is not None and value < 1:
            raise ConfigError(f"`{name}` is {value}", fix=f"Set it to at least {fix}")
    target, limit, split, tokenizer = settings["json"], settings["max_length"], settings["eval_split"], None
    if target is not None:
        refuse_existing(target, given.get("overwrite", False))
    from plaudit.doctor.check import REMOVABLE, check_dataset
    from plaudit.model.load import load_tokenizer
    from plaudit.training.config import RewardConfig

    # A limit that nobody set should not cost rows.
    given["remove"] = [kind for kind in REMOVABLE if kind != "overlong" or limit is not None]
    with log_lines(logging.WARNING), _progress() as progress:
        if settings["model"] is not None:
            tokenizer = load_tokenizer(settings["model"], revision=settings["model_revision"])
            limit = RewardConfig.max_length if limit is None else limit
        check = check_dataset(
            dataset,
            tokenizer=tokenizer,
            max_length=limit,
            eval_dataset=dataset if settings["eval"] is None and split is not None else settings["eval"],
            eval_split=split or "train",
            progress=progress,
            **given,
        )
    steps = _next_steps(check, dataset, {**settings, **given})
    print_check(check, make_console(), examples=settings["examples"], next_steps=steps)
    if target is not None:
        Path(target).write_text(json.dumps(check.to_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")
        say(f"Results in {target}.")
    return 1 if not check.ok or (settings["strict"] and check.of("warning")) else 0


@contextlib.contextmanager
def _progress() -> Iterator[Any]:
    """Shows a bar on a terminal, and nothing elsewhere."""
    with bars_where_seen() as seen:
        if not seen:
            yield None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"))
        with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("Reading", total=None)
            yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)


def print_check(check: DataCheck, console: Console, *, examples: int, next_steps: Sequence[str]) -> None:
    """Prints the verdict, the findings with examples, the shortcuts, and what to do next."""
    from plaudit.doctor.findings import finding_cells, row_names
    from plaudit.doctor.rows import excerpt

    style = "bold red" if not check.ok else "bold yellow" if check.of("warning") else "bold green"
    if not console.is_terminal:
        console.width = 200  # a pipe has no width: lines should stay whole
    console.print(Text(f"{check.name}: {check.verdict} ({duration(check.seconds)})", style=style), soft_wrap=True)
    if check.findings:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", no_wrap=True)
        table.add_column("found", overflow="fold")
        table.add_column("rows", justify="right", no_wrap=True)
        table.add_column("share", justify="right", no_wrap=True)
        table.add_column("first row numbers", overflow="fold")
        for finding in check.findings:
            cells = [Text(cell) for cell in finding_cells(finding, check.rows)]
            table.add_row(Text(finding.severity, style=_STYLES[finding.severity]), *cells)
        console.print()
        console.print(table)
    for finding in check.findings:
        shown = [example for example in finding.examples if example.text][:examples]
        if not shown and not finding.lines and not finding.advice:
            continue
        heading = Text(f"\n{finding.severity}: ", style=_STYLES[finding.severity])
        console.print(heading.append(finding.title, style="bold"), soft_wrap=True)
        lines = list(finding.lines[:8])
        if len(finding.lines) > len(lines):
            lines.append(f"and {len(finding.lines) - len(lines)} more: see --json")
        lines += [f"{row_names(example.rows)}: {example.text}" for example in shown]
        for line in lines:
            console.print(Text(f"  {line}"), soft_wrap=True)
        if finding.advice:
            console.print(Text(f"  {finding.advice}", style="dim"), soft_wrap=True)
    if check.shortcuts or check.lengths:
        console.print()
    if check.shortcuts:
        console.print(Text("A reward model must beat", style="bold"))
        table = Table(box=None, padding=(0, 2, 0, 2), show_header=False)
        for justify in ("left", "right", "left"):
            table.add_column(justify=justify, no_wrap=justify != "left")
        for shortcut in check.shortcuts:
            about = f"95% interval {shortcut.low:.1%} to {shortcut.high:.1%}, {shortcut.rows:,} rows"
            about += f"; {shortcut.note}" if shortcut.note else ""
            table.add_row(Text(shortcut.name), Text(f"{shortcut.accuracy:.1%}"), Text(about))
        console.print(table)
    if check.lengths is not None:
        lengths = check.lengths
        console.print(
            f"Tokens per response with its prompt: {lengths.shortest:,} to {lengths.longest:,}, median "
            f"{lengths.median:,}, 95% up to {lengths.most:,}.",
            soft_wrap=True,
        )
    words = next((shortcut for shortcut in check.shortcuts if shortcut.name == "bag of words"), None)
    if words is not None and check.suspects:
        console.print(Text("\nMost likely mislabelled", style="bold"), end="")
        if words.low < 0.6:
            console.print(Text(": unknown, because the words predict the labels too poorly", style="dim"))
        else:
            console.print(Text(f" (by a bag of words; --json lists {len(check.suspects)} rows)", style="dim"))
            for suspect in check.suspects[: max(examples, 1)]:
                line = f"  row {suspect.row} (chosen is better: {suspect.probability:.0%})  chosen: "
                line += f'"{excerpt(suspect.better, 60)}"  rejected: "{excerpt(suspect.worse, 60)}"'
                console.print(Text(line), soft_wrap=True)
    if check.notes:
        console.print()
        for note in check.notes:
            console.print(Text(note, style="dim"), soft_wrap=True)
    console.print()
    for line in next_steps:
        console.print(Text(line), soft_wrap=True)


def _next_steps(check: DataCheck, dataset: str, settings: Mapping[str, Any]) -> list[str]:
    """Returns lines with the command that cleans the data, or the one that trains on it."""
    model = f" --model_name_or_path {shlex.quote(settings['model'])}" if settings["model"] else ""
    if check.fixed is not None:
        removed = ", ".join(f"{count:,} {kind}" for kind, count in check.fixed.removed.items()) or "none"
        target = shlex.quote(check.fixed.path)
        return [
            f"Kept {check.fixed.kept:,} rows in {check.fixed.path}; removed: {removed} ({check.fixed.removed_path}).",
            f"Next: plaudit train --dataset_name {target}{model} --eval_fraction 0.1",
        ]
    removable = [finding for finding in check.findings if finding.kind in settings["remove"]]
    rows = len({row for finding in removable for row in finding.rows})
    if rows > _MOST_REMOVED * check.rows:
        would = f"--fix would remove {rows:,} of {check.rows:,} rows."
        return [f"Next: fix the errors above where the data is made. {would}"]
    if check.finding("broken_file") is not None:
        return ["Next: repair the file, then check again."]
    if removable:
        words = [dataset]  # with the settings that decide what is found
        for name in ("model", "model_revision", "max_length", "eval", "eval_split", "dataset_config", "dataset_split"):
            value = settings.get(CHECK.settings[name].parameter or name)
            if value is not None and (name, value) != ("dataset_split", "train"):
                words += [f"--{name}", str(value)]
        words += ["--benchmark", *settings["benchmarks"]] if settings.get("benchmarks") else []
        target = Path(dataset).name
        for suffix in (".gz", *Path(target.removesuffix(".gz")).suffixes[-1:]):
            target = target.removesuffix(suffix)
        return [f"Next: plaudit check {shlex.join(words)} --fix {shlex.quote(f'{target}.clean.jsonl')}"]
    return [f"Next: plaudit train --dataset_name {shlex.quote(dataset)}{model} --eval_fraction 0.1"]
