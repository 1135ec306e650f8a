"""Held-out accuracy against seconds of training: Plaudit and the reference library, on the same rows in the same order.

    python benchmarks/time_to_accuracy.py --data train_mix_permissive.jsonl.gz

Both train one epoch at the same learning rate (cosine, a tenth of warm-up) from the same weights, one after the other,
each in a process of its own. Every few steps the clock stops and the held-out rows are judged, by the same code on
both sides. Rows of a column `split` that say "validation" are held out; without one, prompts that are not trained on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from accuracy_picture import draw_picture
from inputs import read_rows, tokenized_pairs, usable_rows, write_model, write_rows
from machine import describe_commit, describe_machine, load_average
from reference_env import python_of
from variants import VARIANTS

FOLDER = Path(__file__).resolve().parent
WORKER = FOLDER / "accuracy_worker.py"
PICTURE = FOLDER.parent / "docs" / "images" / "time_to_accuracy.svg"
MOST_ROWS = 4000


def split_rows(
    rows: list[dict[str, Any]], train_rows: int, held_out_rows: int, seed: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to train on and rows held out, in random order; no prompt is on both sides.

    >>> rows = [{"prompt": str(place // 2), "chosen": "a", "rejected": "b"} for place in range(8)]
    >>> train, held_out = split_rows(rows, 3, 2, seed=0)
    >>> len(train), len(held_out), {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    (3, 2, set())
    """
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    if all("split" in row for row in shuffled):
        held_out = [row for row in shuffled if row["split"] == "validation"][:held_out_rows]
        candidates = [row for row in shuffled if row["split"] == "train"]
    else:
        held_out, candidates = shuffled[:held_out_rows], shuffled[held_out_rows:]
    held = {json.dumps(row.get("prompt")) for row in held_out}
    train = [row for row in candidates if json.dumps(row.get("prompt")) not in held][:train_rows]
    if len(train) < train_rows or len(held_out) < held_out_rows:
        raise SystemExit(f"the data give {len(train)} rows to train on and {len(held_out)} held out: ask for fewer")
    return train, held_out


def write_everything(settings: argparse.Namespace, folder: Path) -> None:
    """The model, the rows to train on, and the held-out rows as token ids."""
    tokenizer = write_model(settings.model, settings.seed, folder / "model")
    everything = list(read_rows(settings.data))
    random.Random(settings.seed).shuffle(everything)
    # More than enough of both, since some are too long.
    train, held_out = split_rows(
        everything, 2 * settings.rows, min(2 * settings.held_out, len(everything) // 4), settings.seed
    )
    for rows, wanted, name in ((train, settings.rows, "rows"), (held_out, settings.held_out, "held_out")):
        usable = [dict(row.fields) for row in usable_rows(rows, tokenizer, settings.max_length, 1)][:wanted]
        if len(usable) < wanted:
            raise SystemExit(f"only {len(usable)} of {len(rows)} rows are short enough, {wanted} are needed")
        write_rows(tokenized_pairs(usable, tokenizer) if name == "held_out" else usable, folder / f"{name}.jsonl")


def train(name: str, settings: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train one side to the end; its answers as they come."""
    variant = VARIANTS[name]
    schedule = {"lr_scheduler_type": "cosine", "warmup_steps": 0.1}
    spec = {
        "library": variant.library,
        "order": variant.order,
        "lora": variant.lora,
        "options": {**schedule, **variant.options},
        "model": str(folder / "model"),
        "rows": str(folder / "rows.jsonl"),
        "held_out": str(folder / "held_out.jsonl"),
        "output_dir": str(folder / name),
        "batch_size": settings.batch_size,
        "max_length": settings.max_length,
        "total_steps": settings.rows // settings.batch_size,
        "judge_every": settings.judge_every,
        "learning_rate": settings.learning_rate,
        "seed": settings.seed,
    }
    given = settings.reference_python if variant.library == "reference" else None
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    log = folder / f"{name}.log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [python_of(variant.library, given), WORKER, json.dumps(spec)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**environment, "HF_HUB_OFFLINE": "1"},
            cwd=folder,
        )
        with process:
            assert process.stdout is not None
            weights, *points = [_show(name, json.loads(line)) for line in process.stdout] or [{}]
    if process.returncode != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise SystemExit(f"{tail}\n\n{name}: the worker ended with code {process.returncode}")
    return {"description": variant.description, **weights, "points": points}


def _show(name: str, answer: dict[str, Any]) -> dict[str, Any]:
    if "step" in answer:
        print(
            f"{name:<28} step {answer['step']:4d} {answer['seconds']:8.1f} s  {answer['accuracy']:.4f}",
            flush=True,
        )
    return answer


def seconds_to(points: list[dict[str, Any]], accuracy: float) -> float | None:
    """Training seconds after which an accuracy was first seen; None if it never was.

    >>> seconds_to([{"seconds": 0.0, "accuracy": 0.5}, {"seconds": 9.0, "accuracy": 0.7}], 0.6)
    9.0
    """
    return next((point["seconds"] for point in points if point["accuracy"] >= accuracy), None)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", metavar="PATH", help="pairs as JSONL or JSONL.gz (default: the bundled ones)")
    add("--model", metavar="FOLDER", help="model folder or id (default: the embedded model)")
    add("--variants", nargs="+", choices=VARIANTS, default=["plaudit", "reference"], metavar="NAME")
    add("--rows", type=int, default=600, metavar="N", help="rows to train on, once (default: %(default)s)")
    add("--held-out", type=int, default=160, metavar="N", help="rows held out (default: %(default)s)")
    add("--judge-every", type=int, default=15, metavar="N", help="steps between two labels (default: %(default)s)")
    add("--batch-size", type=int, default=8, metavar="N", help="(default: %(default)s)")
    add("--max-length", type=int, default=1024, metavar="N", help="longer rows are left out (default: %(default)s)")
    add("--learning-rate", type=float, default=5e-5, metavar="X", help="highest (default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    add("--reference-python", metavar="PATH", help="Python with the reference library")
    add("--results", type=Path, default=FOLDER / "results", metavar="FOLDER", help="(default: benchmarks/results)")
    add("--picture", type=Path, default=PICTURE, metavar="PATH", help="(default: docs/images/time_to_accuracy.svg)")
    settings = parser.parse_args(arguments)
    if settings.rows % settings.batch_size:
        parser.error("--rows must be a multiple of --batch-size")
    return settings


def main() -> None:
    settings = parse_arguments()
    hidden = ("results", "picture", "reference_python")
    shown = {key: value for key, value in vars(settings).items() if key not in hidden}
    shown |= {key: Path(shown[key]).name if shown[key] else "bundled" for key in ("data", "model")}
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "commit": describe_commit(),
        "load_average_before": load_average(),
        "settings": shown,
    }
    with tempfile.TemporaryDirectory(prefix="plaudit-bench-") as folder:
        write_everything(settings, Path(folder))
        result["variants"] = {name: train(name, settings, Path(folder)) for name in settings.variants}
    if len({side["weights_sha256"] for side in result["variants"].values()}) > 1:
        raise SystemExit("the sides did not start from the same weights")
    reached = min(side["points"][-1]["accuracy"] for side in result["variants"].values())
    result["reached"] = {
        "accuracy": reached,
        "seconds": {name: seconds_to(side["points"], reached) for name, side in result["variants"].items()},
    }
    settings.results.mkdir(parents=True, exist_ok=True)
    path = settings.results / f"time_to_accuracy-{shown['data'].split('.')[0]}.json"
    path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    draw_picture(result, settings.picture)
    print(f"{result['reached']}\n{path}\n{settings.picture}")


if __name__ == "__main__":
    main()
