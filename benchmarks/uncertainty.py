"""Does the spread of an ensemble say where a reward model is wrong? Trains small ones on simulated comparisons.

    python benchmarks/uncertainty.py

Responses are words of known worth, some of them rare. Near comparisons are drawn like those of training; far ones are
of words that were never seen. A mistake is a margin of the wrong sign. The spread of heads on one backbone is held
against the spread of models that were trained apart. The result goes to benchmarks/results as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from machine import describe_commit, describe_machine, load_average
from scipy.stats import rankdata
from uncertain_words import Words, words_model, words_tokenizer

from plaudit import RewardConfig, RewardModel, RewardTrainer
from plaudit.inference.engine import UncertainReward

DRAWS = 500  # bootstrap draws of an interval
STRATA = 5


def main() -> None:
    """Train, score, and say what the spread is worth."""
    arguments = parse()
    result: dict[str, Any] = {
        "benchmark": "uncertainty",
        "machine": describe_machine(),
        "commit": describe_commit(),
        "load_average": load_average(),
        "settings": vars(arguments),
        "cases": {},
    }
    for noisy in (True, False):
        name = "noisy labels" if noisy else "labels without noise"
        result["cases"][name] = of_case(arguments, noisy)
        print(name, json.dumps(result["cases"][name], indent=1), flush=True)
    target = Path(__file__).parent / "results" / "uncertainty.json"
    target.write_text(json.dumps(result, indent=1) + "\n")
    print(target)


def parse() -> argparse.Namespace:
    """Command-line arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_rows", type=int, default=3000)
    parser.add_argument("--held_out_rows", type=int, default=2000, help="of each kind: near, and far away")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--models", type=int, default=4, help="models that are trained apart, to compare with")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def of_case(arguments: argparse.Namespace, noisy: bool) -> dict[str, Any]:
    """What an ensemble on one backbone says, and what models that were trained apart say about the same comparisons."""
    words = Words(arguments.seed, noisy)
    train = words.draw(arguments.train_rows)
    rows = {"near": words.draw(arguments.held_out_rows), "far": words.draw(arguments.held_out_rows, far=True)}
    found = [margins_of(arguments, arguments.seed + place, train, rows) for place in range(arguments.models)]
    heads = {name: (np.array(one.mean), np.array(one.spread)) for name, one in found[0].items()}
    apart = {name: np.std([one[name].mean for one in found], axis=0, ddof=1) for name in rows}
    return {
        "accuracy": {name: float((mean > 0).mean()) for name, (mean, _) in heads.items()},
        "median_margin": {name: float(np.median(np.abs(mean))) for name, (mean, _) in heads.items()},
        "median_spread": {name: float(np.median(spread)) for name, (_, spread) in heads.items()},
        "heads_on_one_trunk": tellings(heads, arguments.seed),
        "models_trained_apart": tellings({name: (heads[name][0], apart[name]) for name in rows}, arguments.seed),
    }


def margins_of(
    arguments: argparse.Namespace, seed: int, train: list[dict[str, str]], rows: dict[str, list[dict[str, str]]]
) -> dict[str, UncertainReward]:
    """Train a model, and say how sure it is of comparisons."""
    tokenizer = words_tokenizer()
    with tempfile.TemporaryDirectory() as folder:
        trainer = RewardTrainer(
            words_model(seed),
            RewardConfig(
                folder,
                seed=seed,
                learning_rate=arguments.learning_rate,
                num_train_epochs=arguments.epochs,
                per_device_train_batch_size=32,
                lr_scheduler_type="cosine",
                warmup_steps=0.1,
                gradient_checkpointing=False,
                ensemble_size=arguments.members,
                save_strategy="no",
                logging_steps=1000,
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_list(train),
            processing_class=tokenizer,
        )
        trainer.train()
    model = RewardModel(trainer.model, tokenizer)
    return {name: model.margin(some, uncertainty=True) for name, some in rows.items()}


def tellings(values: dict[str, tuple[np.ndarray, np.ndarray]], seed: int) -> dict[str, Any]:
    """What spreads tell of mistakes among the near, and of how far away comparisons are."""
    return {
        "mistakes": of_margins(*values["near"], seed=seed),
        "far_from_near": apart(values["near"], values["far"], seed),
    }


def of_margins(mean: np.ndarray, spread: np.ndarray, *, seed: int) -> dict[str, Any]:
    """How well mistakes are told from the size of the margin, from the spread, and from both."""
    wrong = mean <= 0
    size = np.abs(mean)
    sure = spread <= np.median(spread)

    def telling(rows: np.ndarray) -> list[float]:
        wrong_there, size_there, spread_there = wrong[rows], size[rows], spread[rows]
        by_size, by_both = auroc(-size_there, wrong_there), auroc(-size_there / spread_there, wrong_there)
        return [
            by_size,
            auroc(spread_there, wrong_there),
            by_both,
            by_both - by_size,
            auroc_within(spread_there, wrong_there, size_there),
            float(1 - wrong_there[sure[rows]].mean() - (1 - wrong_there[~sure[rows]].mean())),
        ]

    names = (
        "auroc_of_small_margins",
        "auroc_of_spread",
        "auroc_of_small_margins_over_spread",
        "gained_over_small_margins",
        "auroc_of_spread_among_margins_of_a_size",
        "accuracy_of_the_surer_half_less_that_of_the_other",
    )
    return with_intervals(names, telling, len(mean), seed)


def apart(near: tuple[np.ndarray, ...], far: tuple[np.ndarray, ...], seed: int) -> dict[str, Any]:
    """How well spreads tell comparisons far from the training data from those that are near."""
    spread = np.concatenate((near[1], far[1]))
    size = np.abs(np.concatenate((near[0], far[0])))
    is_far = np.arange(len(spread)) >= len(near[1])

    def telling(rows: np.ndarray) -> list[float]:
        there = is_far[rows]
        ratio = float(np.median(spread[rows][there]) / np.median(spread[rows][~there]))
        by_size = auroc(-size[rows], there)
        return [ratio, by_size, auroc(spread[rows], there), auroc((spread / size)[rows], there)]

    names = (
        "spread_far_over_near",
        "auroc_of_small_margins",
        "auroc_of_spread",
        "auroc_of_spread_over_margin",
    )
    return with_intervals(names, telling, len(spread), seed)


def with_intervals(names: tuple[str, ...], telling: Any, count: int, seed: int) -> dict[str, Any]:
    """Each number with its 95% interval over bootstrap draws of the comparisons."""
    draw = np.random.default_rng(seed)
    values = telling(np.arange(count))
    drawn = np.array([telling(draw.integers(0, count, count)) for _ in range(DRAWS)])
    low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return {
        name: {"value": round(value, 4), "interval": [round(float(low[n]), 4), round(float(high[n]), 4)]}
        for n, (name, value) in enumerate(zip(names, values, strict=True))
    }


def auroc(scores: np.ndarray, marked: np.ndarray) -> float:
    """Probability that a marked one has a higher score than another; NaN where all are marked, or none is.

    >>> auroc(np.array([3.0, 1.0, 2.0]), np.array([True, False, False]))
    1.0
    """
    positives, negatives = int(marked.sum()), int((~marked).sum())
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[marked].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def auroc_within(scores: np.ndarray, marked: np.ndarray, sizes: np.ndarray) -> float:
    """The same among those of about one size alone: what scores say beyond it."""
    total = pairs = 0.0
    for part in np.array_split(np.argsort(sizes), STRATA):
        weight = float(marked[part].sum() * (~marked[part]).sum())
        if weight:
            total += weight * auroc(scores[part], marked[part])
            pairs += weight
    return total / pairs if pairs else float("nan")


if __name__ == "__main__":
    main()
