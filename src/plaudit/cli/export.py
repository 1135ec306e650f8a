"""``plaudit export`` and ``plaudit verify``: a folder that other servers read, and whether they give its rewards."""

from __future__ import annotations

import json
import logging
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from plaudit.cli.arguments import API_KEY_VARIABLE, COMPUTE, DEVICE, DTYPES, REVISION, Command, Section, Setting, about
from plaudit.cli.console import bars_where_seen, log_lines, make_console

EXPORT_MODEL = "plaudit.export.export:export_model"
VERIFY_MODEL = "plaudit.verification.verify:verify"
_STYLES = {"same": "green", "differs": "bold red", "failed": "bold red", "skipped": "dim"}


EXPORT = Command(
    "export",
    usage="MODEL --output FOLDER [--NAME VALUE ...]",
    about="Write a reward model as a folder that vLLM, SGLang and plain transformers read. Adapters are merged, "
    "rewards can be rescaled, and the result is checked against the rewards of the source.",
    examples=(
        "plaudit export runs/first --output exported",
        "plaudit export runs/first --output exported --dtype bfloat16 --normalize pairs.jsonl",
        "plaudit export runs/first --output exported --temperature test.jsonl",
    ),
    notes=("MODEL is a folder, or an id on the Hub. Data is a file, a folder or a Hub name, as for `plaudit score`.",),
    words=("model",),
    sections=(
        Section(
            "Export: what is written, and where.",
            EXPORT_MODEL,
            output=about(
                "Folder to write. It appears under this name once the export has passed its check.", aliases=["-o"]
            ),
            merge="Merge an adapter into the weights, as servers require; false keeps it separate.",
            overwrite="Replace an existing model in --output.",
            tolerance="Maximum difference between an exported reward and the expected one. Default: 1e-4 in float32, "
            "0.01 in float16, 0.05 in bfloat16.",
        ),
        Section(
            "Rewards: how rewards are rescaled. By default, a calibration saved with the model is folded in.",
            EXPORT_MODEL,
            normalize="Data whose responses get exported rewards with mean 0 and standard deviation 1.",
            temperature="Divide rewards by a temperature, so that the sigmoid of a difference is the probability of "
            "being better: a number, `stored` for that of the saved calibration, or data to fit it to.",
            raw="Keep rewards unchanged, and copy the saved calibration.",
            dataset_config="Configuration of a data set on the Hub.",
            dataset_split=about("Split of the data, optionally with a slice: train[:1000].", aliases=["--split"]),
        ),
        Section(
            "Model: how the model is loaded (always in float32), and how it is stored.",
            EXPORT_MODEL,
            **COMPUTE,
            dtype=about("Precision of the weights; the head stays in float32. Default: the model's.", choices=DTYPES),
            model_revision=REVISION,
        ),
    ),
)
VERIFY = Command(
    "verify",
    usage="MODEL [--url URL] [--NAME VALUE ...]",
    about="Send the golden rows of a model through plain transformers, its pipeline, the scorer, the merged export and "
    "a running server, and compare the rewards with those that were saved. The exit code is 1 if any differ.",
    examples=(
        "plaudit verify runs/first",
        "plaudit verify runs/first --url http://127.0.0.1:8000 --server vllm",
        "plaudit verify someone/reward-model --rows pairs.jsonl",
    ),
    notes=(
        "MODEL is a folder, or an id on the Hub. Training saves golden rows with it; for other models `--rows FILE "
        "--save` computes them with plain transformers.",
    ),
    words=("model",),
    sections=(
        Section(
            "Rows: the rows to send.",
            VERIFY_MODEL,
            rows="File of golden rows, or of preferences: eight of their responses become golden rows, with the "
            "rewards of plain transformers. Default: the golden rows saved with the model.",
            save="Save the golden rows with the model.",
            tolerance="Maximum difference between two rewards. Default: 1e-4 in float32, 0.01 in float16, 0.05 in "
            "bfloat16, times the largest reward if that is above 1.",
            json=Setting("Also write the results to this file."),
        ),
        Section(
            "Ways: where the rows are sent.",
            VERIFY_MODEL,
            url="Address of a running server, such as http://127.0.0.1:8000.",
            server="Type of the server; auto asks it.",
            api_key=f"API key of the server. Default: the environment variable {API_KEY_VARIABLE}.",
            local="Also run the model on this machine; `--no_local` skips that, and some of the diagnoses.",
            export="Also export the model into a temporary folder, which takes as much space as the model.",
        ),
        Section(
            "Model: how the model is run on this machine.",
            VERIFY_MODEL,
            **DEVICE,
            dtype=about("Precision of the weights. Default: that of the golden rewards.", choices=DTYPES),
            model_revision=REVISION,
        ),
    ),
)


def run_export(arguments: Sequence[str]) -> int:
    """Exports with the given command-line arguments; prints what was done, and the commands that can follow."""
    (model,), _, calls = EXPORT.parse(arguments)
    from plaudit.export.export import export_model

    with log_lines(logging.WARNING), bars_where_seen():
        result = export_model(model, **calls[EXPORT_MODEL])
    console, folder = make_console(), calls[EXPORT_MODEL]["output"]
    console.print(Text(f"Exported to {folder}", style="bold"), soft_wrap=True)
    width = max(len(title) for title, _ in result.lines()) + 2
    for title, text in result.lines():
        console.print(Text(f"{title:{width}}", style="dim").append(text, style="not dim"), soft_wrap=True)
    target = shlex.quote(folder)
    lines = [f"plaudit verify {target}", f"hf upload USER/{shlex.quote(Path(folder).resolve().name)} {target}"]
    if result.adapter != "kept":
        lines.insert(1, f"vllm serve {target} --runner pooling")
    for line in lines:
        console.print(Text(f"  {line}", style="cyan"), soft_wrap=True)
    return 0


def run_verify(arguments: Sequence[str]) -> int:
    """Verifies a model, and prints every way and its diagnosis; returns 1 where a reward differs."""
    (model,), options, calls = VERIFY.parse(arguments)
    from plaudit.verification.verify import number, verify

    settings = {"api_key": os.environ.get(API_KEY_VARIABLE), **calls[VERIFY_MODEL]}
    # Warnings that the ways log about each other are part of the diagnosis printed below.
    with log_lines(logging.INFO if settings.get("save") else logging.ERROR), bars_where_seen():
        result = verify(model, **settings)
    if options["json"] is not None:
        Path(options["json"]).write_text(json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    console, golden = make_console(), result.golden
    title = f"{result.model}: {len(golden.rows)} golden rows, in {golden.dtype}"
    console.print(Text(title, style="bold"), soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    table.add_column("way", overflow="fold")
    for name in ("rows", "largest", "mean", "allowed"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for way in result.results:
        numbers = [number(value) for value in (way.largest, way.mean, way.tolerance)]
        verdict = Text(way.verdict, style=_STYLES[way.verdict])
        table.add_row(way.path, str(way.rows or ""), *numbers, verdict)
    console.print(table)
    for text, paths in result.explanations.items():
        console.print(Text(f"\n{', '.join(paths)}", style="bold"), soft_wrap=True)
        console.print(Text(f"  {text}"), soft_wrap=True)
    same = "the same" if result.passed else "not the same"
    console.print(Text(f"\nThe rewards are {same} everywhere.", style="green" if result.passed else "bold red"))
    return 0 if result.passed else 1
