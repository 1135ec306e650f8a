"""Scores the same rows four ways, alternating in one run: plaudit, the transformers pipeline, and plain padded loops.

    python benchmarks/scoring_throughput.py --data kwise.jsonl.gz --rows 12 --rounds 3

Every side gets whole rows and renders, tokenises and computes them, in the same process, on the same weights in
float32: the embedded model with a fresh head, saved once. The pipeline and the loops take responses in the order of
the rows. One unmeasured pass over the same rows goes first: a process's first passes are slower for its allocator.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from machine import describe_commit, describe_machine, load_average
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from plaudit import RewardModel
from plaudit.data.load import load_preference_dataset
from plaudit.data.parse import read_example
from plaudit.demo import embedded_model_path, load_preferences
from plaudit.model.load import load_model, load_tokenizer, set_pad_token, set_serving_config

RESULTS = Path(__file__).resolve().parent / "results"
Side = Callable[[list[dict[str, Any]]], list[float]]


def read_rows(data: str | None, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows drawn at random."""
    rows = list(load_preferences("train") if data is None else load_preference_dataset(data))
    return random.Random(seed).sample(rows, min(count, len(rows)))


def save_model(folder: Path, seed: int) -> None:
    """The embedded model as every server would find it, with a fresh head."""
    name = str(embedded_model_path())
    model = load_model(name, seed=seed)
    set_serving_config(model)
    tokenizer = set_pad_token(model, load_tokenizer(name))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def flat(scores: list[Any]) -> list[float]:
    """Rewards of all responses, row by row."""
    return [one for score in scores for one in (score if isinstance(score, list | tuple) else [score])]


def rendered(rows: list[dict[str, Any]], tokenizer: Any) -> list[str]:
    """Text of each response, row by row."""
    texts = []
    for number, row in enumerate(rows):
        example = read_example(row, row_number=number, labels=False)
        for response in example.responses:
            plain = isinstance(response, str)
            texts.append(response if plain else tokenizer.apply_chat_template(response, tokenize=False))
    return texts


def make_sides(folder: Path, batch_sizes: list[int], max_tokens: int | None) -> dict[str, Side]:
    """The ways to score, each with a model of its own."""
    scorer = RewardModel.from_pretrained(folder, max_tokens_per_batch=max_tokens)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).to(scorer.device).eval()
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, device=scorer.device)

    def of_plaudit(rows: list[dict[str, Any]]) -> list[float]:
        return flat(scorer.score(rows))

    def of_pipeline(batch_size: int) -> Side:
        def side(rows: list[dict[str, Any]]) -> list[float]:
            found = pipe(rendered(rows, tokenizer), function_to_apply="none", batch_size=batch_size)
            return [one["score"] for one in found]

        return side

    def of_loop(batch_size: int) -> Side:
        def side(rows: list[dict[str, Any]]) -> list[float]:
            texts, rewards = rendered(rows, tokenizer), []
            with torch.inference_mode():
                for start in range(0, len(texts), batch_size):
                    batch = tokenizer(
                        texts[start : start + batch_size], padding=True, add_special_tokens=False, return_tensors="pt"
                    )
                    rewards += model(**batch.to(model.device)).logits[:, 0].tolist()
            return rewards

        return side

    sides: dict[str, Side] = {f"plaudit ({scorer.batch_layout})": of_plaudit}
    sides |= {f"pipeline, batch {size}": of_pipeline(size) for size in batch_sizes}
    sides |= {f"padded loop, batch {size}": of_loop(size) for size in batch_sizes}
    return sides


def measure(sides: dict[str, Side], rows: list[dict[str, Any]], rounds: int) -> tuple[dict[str, list[float]], float]:
    """Seconds of each round of each side, in turn, and the largest difference of rewards from the first side's."""
    expected: list[float] = []
    difference = 0.0
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(-1, rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            rewards = side(rows)
            took = time.perf_counter() - start
            expected = expected or rewards
            difference = max([difference, *(abs(a - b) for a, b in zip(expected, rewards, strict=True))])
            print(f"round {turn + 1}: {name}: {took:.2f} s", flush=True)
            if turn >= 0:
                seconds[name].append(took)
    return seconds, difference


def report(arguments: argparse.Namespace, seconds: dict[str, list[float]], responses: int) -> dict[str, Any]:
    """What the rounds add up to."""
    ours, *others = (statistics.median(taken) for taken in seconds.values())
    speedups = dict(zip(list(seconds)[1:], (round(other / ours, 2) for other in others), strict=True))
    return {
        "benchmark": "scoring_throughput",
        "settings": vars(arguments) | {"data": Path(arguments.data).name if arguments.data else "bundled preferences"},
        "responses": responses,
        "sides": {
            name: {
                "seconds": [round(one, 3) for one in taken],
                "median_seconds": round(statistics.median(taken), 3),
                "responses_per_second": round(responses / statistics.median(taken), 2),
            }
            for name, taken in seconds.items()
        },
        "plaudit_is_faster_by": speedups,
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="file of rows in any form of the data formats; the bundled preferences if none")
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--max_tokens_per_batch", type=int)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    before = load_average()
    rows = read_rows(arguments.data, arguments.rows, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), arguments.seed)
        sides = make_sides(Path(folder), arguments.batch_sizes, arguments.max_tokens_per_batch)
        responses = len(next(iter(sides.values()))(rows))
        seconds, difference = measure(sides, rows, arguments.rounds)
    output = arguments.output
    del arguments.output
    result = report(arguments, seconds, responses) | {
        "largest_difference_of_rewards": difference,
        "machine": describe_machine(),
        "threads": torch.get_num_threads(),
        "load_average": {"before": before, "after": load_average()},
        "commit": describe_commit(),
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in ("torch", "transformers", "plaudit")},
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS"),
    }
    name = Path(arguments.data).name.split(".")[0] if arguments.data else "bundled"
    output = output or RESULTS / f"scoring_throughput_{name}.json"
    output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["plaudit_is_faster_by"], indent=1))
    print(f"largest difference of rewards: {difference:.1e}; written to {output}")
    if difference > 1e-4:
        raise SystemExit("the sides give different rewards")


if __name__ == "__main__":
    main()
