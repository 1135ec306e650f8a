"""Trains on rankings as they are and on the same rankings expanded to pairs: held-out accuracy, time and tokens.

    python benchmarks/rankings_against_pairs.py --data kwise.jsonl.gz --train_prompts 200 --test_prompts 150

Rows have `prompt`, `responses` and `scores`. Every variant starts from the same model, is trained on the same prompts
(one has more of them) and is judged on the same held-out ones; the split is by prompt. "pairs" makes a row of every
two responses of different scores. The result goes to benchmarks/results as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from machine import describe_commit, describe_machine, load_average

from plaudit import RewardConfig, RewardTrainer
from plaudit.data.load import load_preference_dataset, split_by_prompt
from plaudit.demo import embedded_model_path
from plaudit.schema import comparisons_of


@dataclass(frozen=True)
class Variant:
    """One way to learn from the rankings.

    Attributes:
        name: What it is called in the results.
        pairs: Whether the rankings are expanded to pairs.
        objective: Objective by name.
        batch_size: Rows of a step.
        epochs: Passes over the rows.
        prompts: Prompts to train on; None for as many as the others.
    """

    name: str
    pairs: bool
    objective: str
    batch_size: int
    epochs: int = 1
    prompts: int | None = None


def variants(arguments: argparse.Namespace) -> list[Variant]:
    """What is compared."""
    rows = arguments.rows_per_step
    found = [
        Variant("rankings, all comparisons", False, "bradley_terry", rows),
        Variant("rankings, Plackett-Luce", False, "plackett_luce", rows),
        Variant("expanded to pairs", True, "bradley_terry", arguments.pairs_per_step),
    ]
    if arguments.more_epochs > 1:
        name = f"rankings, all comparisons, {arguments.more_epochs} epochs"
        found.insert(2, Variant(name, False, "bradley_terry", rows, epochs=arguments.more_epochs))
    if arguments.more_prompts:
        name = f"rankings, all comparisons, {arguments.more_prompts} prompts"
        found.append(Variant(name, False, "bradley_terry", rows, prompts=arguments.more_prompts))
    return found


def expand(rows: Dataset) -> Dataset:
    """A row for every two responses of different scores."""
    return Dataset.from_list(
        [
            {"prompt": row["prompt"], "chosen": row["responses"][i], "rejected": row["responses"][j]}
            for row in rows
            for i, j in comparisons_of(row["scores"])
        ]
    )


def run(variant: Variant, train: Dataset, test: Dataset, arguments: argparse.Namespace) -> dict[str, Any]:
    """Train one variant and judge it."""
    prompts = variant.prompts or arguments.train_prompts
    rows = train.select(range(min(prompts, len(train))))
    trainer = RewardTrainer(
        model=arguments.model or str(embedded_model_path()),
        args=RewardConfig(
            "runs/rankings_against_pairs",
            objective=variant.objective,
            num_train_epochs=variant.epochs,
            learning_rate=arguments.learning_rate,
            per_device_train_batch_size=variant.batch_size,
            per_device_eval_batch_size=8,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            seed=arguments.seed,
        ),
        train_dataset=expand(rows) if variant.pairs else rows,
        eval_dataset=test,
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    metrics = trainer.evaluate()
    logs = [log for log in trainer.state.log_history if "num_tokens_computed" in log and "loss" in log]
    names = ("accuracy", "best_of_n_accuracy", "kendall_tau", "loss")
    return {
        **asdict(variant),
        "train_prompts": len(rows),
        "train_rows": len(trainer.train_dataset),
        "steps": trainer.state.global_step,
        "seconds": seconds,
        "tokens_computed": logs[-1]["num_tokens_computed"] if logs else None,
        **{name: metrics[f"eval_{name}"] for name in names},
    }


def main() -> None:
    """Compare all variants and write the result after each."""
    arguments = parse()
    rows = load_preference_dataset(arguments.data).select_columns(["prompt", "responses", "scores"])
    rows = rows.filter(lambda row: len(set(row["scores"])) > 1)
    train, test = split_by_prompt(rows, arguments.test_prompts / len(rows), seed=arguments.seed)
    train = train.shuffle(seed=arguments.seed)
    name = Path(arguments.data).name.split(".")[0]
    target = Path(__file__).parent / "results" / f"rankings_against_pairs_{name}.json"
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "commit": describe_commit(),
        "threads": torch.get_num_threads(),
        "arguments": {**vars(arguments), "data": Path(arguments.data).name},
        "test_prompts": len(test),
        "test_comparisons": sum(len(comparisons_of(scores)) for scores in test["scores"]),
        "chance_of_best": sum(sum(s == max(one) for s in one) / len(one) for one in test["scores"]) / len(test),
        "runs": [],
    }
    for variant in variants(arguments):
        result["runs"].append({**run(variant, train, test, arguments), "load_average": load_average()})
        target.write_text(json.dumps(result, indent=1, default=str) + "\n")
        print(json.dumps(result["runs"][-1]))


def parse() -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="JSON lines with prompt, responses and scores")
    parser.add_argument("--train_prompts", type=int, default=200)
    parser.add_argument("--test_prompts", type=int, default=150)
    parser.add_argument("--more_prompts", type=int, default=0, help="train once more, on rankings of so many prompts")
    parser.add_argument("--more_epochs", type=int, default=1, help="train once more, for so many epochs of rankings")
    parser.add_argument("--rows_per_step", type=int, default=4)
    parser.add_argument("--pairs_per_step", type=int, default=16)
    parser.add_argument("--model", help="folder or model id; default: the embedded model")
    parser.add_argument("--learning_rate", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
