"""Trains on some rows of a preference file; the run's report, held against a bag of words fitted on the same rows.

    python benchmarks/held_out_accuracy.py --data pairs.jsonl.gz --train_rows 1500 --suite llmbar=llmbar.jsonl.gz

Held-out prompts never occur in training. If the file has a column `split` with "train" and "validation", that split is
used; otherwise prompts are split at random. The run folder ends with evaluations and `report.html`; a summary goes to
benchmarks/results as JSON.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from machine import describe_commit, describe_machine, load_average

import plaudit
from plaudit import RewardConfig, RewardTrainer
from plaudit.demo import embedded_model_path
from plaudit.report import write_report

COLUMNS = ("prompt", "chosen", "rejected")
WATCHED = 200  # held-out rows that are looked at while training


def main() -> None:
    """Train, evaluate, write report and summary."""
    arguments = parse()
    train, held_out, passed_over = pick_rows(arguments)
    print(f"{len(train)} rows to train on, {len(held_out)} held out, {passed_over} passed over (trained prompts)")
    start = time.perf_counter()
    train_model(arguments, train, held_out[:WATCHED])
    seconds = time.perf_counter() - start
    folder = Path(arguments.output_dir)
    evaluation = plaudit.evaluate(
        str(folder),
        {"held_out": held_out, **{one.partition("=")[0]: one for one in arguments.suite}},
        slices="source" if "source" in held_out[0] else (),
        bag_of_words=train,
        output=folder / "evaluation",
        overwrite=True,
        progress=True,
    )
    summary: dict[str, Any] = {
        "machine": describe_machine(),
        "commit": describe_commit(),
        "load_average": load_average(),
        "arguments": {
            **{name: value for name, value in vars(arguments).items() if name != "output_dir"},
            "data": Path(arguments.data).name,
            "suite": [one.partition("=")[0] for one in arguments.suite],
        },
        "train_rows": len(train),
        "held_out_rows": len(held_out),
        "passed_over_rows": passed_over,
        "training_seconds": seconds,
        "comparisons": [one.to_dict() for one in evaluation.comparisons],
    }
    name = Path(arguments.data).name.split(".")[0]
    target = Path(__file__).parent / "results" / f"held_out_accuracy_{name}.json"
    text = json.dumps(summary, indent=1, default=str).replace(str(folder), folder.name)
    target.write_text(text + "\n", encoding="utf-8")
    for one in evaluation.comparisons:
        print(f"{one.suite}: {one.overall.scores[0]:.4f} against {one.overall.scores[1]:.4f}: {one.verdict}")
    print(f"{seconds / 60:.1f} minutes of training; {write_report(folder).html}; {target}")


def train_model(arguments: argparse.Namespace, train: list[dict[str, Any]], watched: list[dict[str, Any]]) -> None:
    """Train one epoch after another into the output folder; what an interrupted run left is taken up."""
    folder = Path(arguments.output_dir)
    trainer = RewardTrainer(
        model=arguments.model or str(embedded_model_path()),
        args=RewardConfig(
            str(folder),
            num_train_epochs=arguments.epochs,
            learning_rate=arguments.learning_rate,
            per_device_train_batch_size=8,
            per_device_eval_batch_size=16,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            gradient_checkpointing="auto",
            logging_steps=10,
            eval_strategy="steps",
            eval_steps=100,
            eval_on_start=True,
            save_steps=100,
            save_total_limit=1,
            report_to=[],
            seed=arguments.seed,
        ),
        train_dataset=Dataset.from_list([{name: row[name] for name in COLUMNS} for row in train]),
        eval_dataset=Dataset.from_list([{name: row[name] for name in COLUMNS} for row in watched]),
    )
    trainer.train(resume_from_checkpoint=any(folder.glob("checkpoint-*")))
    trainer.save_model()


def parse() -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="JSON lines with prompt, chosen and rejected as messages")
    parser.add_argument("--train_rows", type=int, default=1500)
    parser.add_argument("--held_out_rows", type=int, default=300)
    parser.add_argument("--suite", nargs="*", default=[], metavar="NAME=FILE", help="further suites to judge it on")
    parser.add_argument("--model", help="folder or model id; default: the embedded model")
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", default="runs/held_out_accuracy")
    return parser.parse_args()


def pick_rows(arguments: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Rows to train on, held-out rows without a prompt in common with them, and how many were passed over for that."""
    rows = load_dataset("json", data_files=arguments.data, split="train").to_list()
    random.Random(arguments.seed).shuffle(rows)
    if "split" in rows[0]:
        train = [row for row in rows if row["split"] == "train"]
        held_out = [row for row in rows if row["split"] == "validation"]
    else:
        prompts = sorted({json.dumps(row["prompt"]) for row in rows})
        random.Random(arguments.seed).shuffle(prompts)
        own = set(prompts[: max(1, len(prompts) * arguments.held_out_rows // len(rows))])
        train = [row for row in rows if json.dumps(row["prompt"]) not in own]
        held_out = [row for row in rows if json.dumps(row["prompt"]) in own]
    train = train[: arguments.train_rows]
    known = {json.dumps(row["prompt"]) for row in train}
    kept = [row for row in held_out if json.dumps(row["prompt"]) not in known]
    return train, kept[: arguments.held_out_rows], len(held_out) - len(kept)


if __name__ == "__main__":
    main()
