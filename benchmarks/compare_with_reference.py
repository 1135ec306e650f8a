"""Train a reward model with Plaudit and with the reference library, in turn, and compare time and losses."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import available_memory, describe_commit, describe_machine, load_average
from reference_env import ENV_VARIABLE, reference_python
from report import print_progress, print_result
from sides import Side
from summary import summarise
from variants import DEFAULT_VARIANTS, VARIANTS

FOLDER = Path(__file__).resolve().parent
EXPLANATION = """
Every variant is a process that loads model and data once. They take turns, never two at once: each trains a
block of steps, then the next one does, on the same rows, from the same weights. The first round is a warm-up:
its losses are compared, its times are not counted. All compute in float32 on the CPU, with the machine's
default number of threads. For times that mean something, let nothing else run.
"""


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    variants = "\n".join(f"  {name}\n      {variant.description}" for name, variant in VARIANTS.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\n{EXPLANATION}",
        epilog=f"variants:\n{variants}\n\nBy default all but the last.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_work(parser)
    _add_run(parser)
    settings = parser.parse_args(arguments)
    if settings.distinct_batches is None:
        settings.distinct_batches = settings.steps
    for name in ("batch_size", "steps", "blocks", "distinct_batches", "loss_steps"):
        if getattr(settings, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if settings.data and not Path(settings.data).is_file():
        parser.error(f"there is no file {settings.data}")
    if len(set(settings.variants)) < len(settings.variants):
        parser.error("--variants names one of them twice")
    return settings


def _add_work(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the work").add_argument
    add("--data", metavar="PATH", help="preferences as JSONL or JSONL.gz (default: the bundled ones)")
    add("--model", metavar="FOLDER", help="model folder or id (default: the embedded model)")
    add("--batch-size", type=int, default=8, metavar="N", help="rows of a step (default: %(default)s)")
    add(
        "--max-length",
        type=int,
        default=1024,
        metavar="N",
        help="longer rows are left out (default: %(default)s)",
    )
    add(
        "--distinct-batches",
        type=int,
        metavar="N",
        help="batches in the data, walked through again and again (default: as many as a block has steps)",
    )
    add("--learning-rate", type=float, default=1e-4, metavar="X", help="kept constant (default: %(default)s)")
    add(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="draws the rows and the reward head (default: %(default)s)",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("the run").add_argument
    add(
        "--variants",
        nargs="+",
        choices=VARIANTS,
        default=list(DEFAULT_VARIANTS),
        metavar="NAME",
        help="see below",
    )
    add("--steps", type=int, default=4, metavar="N", help="steps of a block (default: %(default)s)")
    add(
        "--blocks",
        type=int,
        default=3,
        metavar="N",
        help="counted blocks of a variant (default: %(default)s)",
    )
    add(
        "--loss-steps",
        type=int,
        default=10,
        metavar="N",
        help="compare the losses of so many first steps, warm-up included (default: %(default)s)",
    )
    add(
        "--loss-tolerance",
        type=float,
        default=1e-3,
        metavar="X",
        help="largest difference of the losses of a step (default: %(default)s)",
    )
    add(
        "--max-minutes",
        type=float,
        default=60,
        metavar="X",
        help="stop before a round that would end later (default: %(default)s)",
    )
    add(
        "--release-memory",
        action="store_true",
        help="give free memory back between turns: more variants fit, and each block pays a little for it",
    )
    add(
        "--reference-python",
        default=os.environ.get(ENV_VARIABLE),
        metavar="PATH",
        help=f"Python with the reference library (default: ${ENV_VARIABLE}, else an environment made here)",
    )
    add(
        "--name",
        help="of the result <name>.json, which is replaced if it exists (default: data and batch size)",
    )
    add(
        "--results",
        type=Path,
        default=FOLDER / "results",
        metavar="FOLDER",
        help="(default: benchmarks/results)",
    )


def main() -> None:
    settings = parse_arguments()
    # As for Ctrl-C: end the workers and remove the temporary folder.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    started = time.monotonic()
    result = describe_run(settings)
    pythons = {"plaudit": Path(sys.executable)}
    if any(VARIANTS[name].library == "reference" for name in settings.variants):
        pythons["reference"] = reference_python(settings.reference_python)
    with tempfile.TemporaryDirectory(prefix="plaudit-bench-") as folder:
        make_inputs(settings, Path(folder))
        sides = [Side(name, VARIANTS[name], pythons[VARIANTS[name].library]) for name in settings.variants]
        try:
            result["work"] = start_sides(sides, settings, Path(folder))
            take_turns(sides, settings, started)
        finally:
            for side in sides:
                side.close()
    result["variants"] = {side.name: side.measured for side in sides}
    result |= summarise(result["variants"], result["work"]["tokens_per_batch"], settings)
    result["load_average"]["after"] = load_average()
    result["wall_seconds"] = round(time.monotonic() - started, 1)
    path = write_result(result, settings)
    print_result(result)
    print(f"Written to {os.path.relpath(path)}")


def describe_run(settings: argparse.Namespace) -> dict[str, Any]:
    """Where, when and what, without a path of this machine."""
    hidden = ("reference_python", "results", "name", "max_minutes")
    shown = {key: value for key, value in vars(settings).items() if key not in hidden}
    for key in ("data", "model"):
        shown[key] = Path(shown[key]).name if shown[key] else "bundled"
    load = load_average()
    if load[0] > 0.5:
        print(f"The machine is busy (load average {load[0]}): do not trust the times of this run.", flush=True)
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine(),
        "commit": describe_commit(),
        "settings": {**shown, "device": "cpu", "precision": "float32"},
        "load_average": {"before": load},
    }


def make_inputs(settings: argparse.Namespace, folder: Path) -> None:
    """Write the model and the rows that all variants start from."""
    wanted = {
        "data": settings.data,
        "model": settings.model,
        "seed": settings.seed,
        "distinct_rows": settings.distinct_batches * settings.batch_size,
    }
    done = subprocess.run([sys.executable, FOLDER / "inputs.py", folder, json.dumps(wanted)], check=False)
    if done.returncode != 0:
        raise SystemExit("model and rows could not be prepared")


def start_sides(sides: list[Side], settings: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Start one process a variant and return what they share, having made sure that they share it."""
    for side in sides:
        spec = {
            "model": str(folder / "model"),
            "rows": str(folder / "rows.jsonl"),
            "output_dir": str(folder / side.name),
            "batch_size": settings.batch_size,
            "max_length": settings.max_length,
            "distinct_rows": settings.distinct_batches * settings.batch_size,
            "steps_per_block": settings.steps,
            "total_steps": settings.steps * (settings.blocks + 1),
            "learning_rate": settings.learning_rate,
            "release_memory": settings.release_memory,
            "seed": settings.seed,
        }
        side.start(spec, folder / f"{side.name}.log")
        print(f"{side.name}: ready, {side.measured['threads']} threads", flush=True)
    shared = {}
    token_counts = ("tokens_per_batch", "padded_tokens_per_batch", "shared_tokens_per_batch")
    for what in ("optimizer", "weights_sha256", "token_ids_sha256", *token_counts):
        values = {side.name: side.measured.pop(what) for side in sides}
        shared[what] = values[sides[0].name]
        if any(value != shared[what] for value in values.values()):
            raise SystemExit(f"the variants would not do the same work, {what} differs: {values}")
    return shared


def take_turns(sides: list[Side], settings: argparse.Namespace, started: float) -> None:
    """Let every variant train a block, round after round."""
    last_round = 0.0
    for number in range(settings.blocks + 1):
        begun = time.monotonic()
        if number > 1 and begun - started + last_round > settings.max_minutes * 60:
            print(f"Stopped after {number - 1} counted blocks: --max-minutes.", flush=True)
            return
        for side in sides:
            require_memory(side)
            block = side.train_block(load_average()[0])
            print_progress(side.name, block, number, settings)
        last_round = time.monotonic() - begun


def require_memory(side: Side) -> None:
    """Stop before a block that would drive the machine out of memory, judging by the blocks before it.

    Raises:
        SystemExit: If less memory is free than the process has already needed beyond what it holds between steps.
    """
    free = available_memory()
    if free is None or not side.measured["blocks"]:
        return
    needed = side.measured["peak_memory_bytes"] - side.measured["resting_memory_bytes"]
    if free < needed:
        raise SystemExit(
            f"{side.name} may need {needed / 2**30:.1f} GiB more and {free / 2**30:.1f} GiB are free: "
            "use --release-memory, run fewer --variants at once, or use smaller batches"
        )


def write_result(result: dict[str, Any], settings: argparse.Namespace) -> Path:
    """Write the result in one step, so that an interrupted run leaves the previous one whole."""
    data = Path(settings.data).name.split(".")[0] if settings.data else "bundled"
    path = settings.results / f"{settings.name or f'{data}-batch{settings.batch_size}'}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)
    return path


if __name__ == "__main__":
    main()
