"""Runs that were never trained: plausible numbers, in the files that training and evaluation write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from plaudit.data.report import KindCount
from plaudit.evaluation.bias import format_bias, length_bias
from plaudit.evaluation.compare import compare
from plaudit.evaluation.judge import length_points, margin_histogram, reward_histogram
from plaudit.evaluation.results import (
    Check,
    Evaluation,
    Mistake,
    ModelComparison,
    ModelEvaluation,
    SuiteEvaluation,
)
from plaudit.evaluation.stats import best_of_n_curve, by_slice, calibrate, statistics_of
from plaudit.evaluation.suites.base import Preferences
from plaudit.evaluation.table import ScoredRow, ScoredSet
from plaudit.schema import Label

SOURCES = ("helpfulness", "honesty", "coding questions", "mathematics with several steps", "safety", "summaries")
EVIL = '</p><script>alert("no")</script><img src=x onerror=alert(1)> & "quoted" `code` | a\n# heading'


def write_run(folder: Path, *, steps: int = 600, evaluated: bool = True, rows: int = 900) -> Path:
    """A whole run: record, configuration, and an evaluation on pairs and one on lists.

    Args:
        folder: Where.
        steps: Steps trained.
        evaluated: Whether there are evaluations.
        rows: Rows of the evaluations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    (folder / "plaudit_run.json").write_text(json.dumps(record(steps)))
    if evaluated:
        evaluation(rows, model=str(folder)).save(folder / "evaluation")
    return folder


def record(steps: int = 600) -> dict:
    """What the trainer writes."""
    return {
        "format": "plaudit run",
        "version": 1,
        "saved": "2026-02-03T10:20:30+00:00",
        "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "architecture": "LlamaForSequenceClassification",
        "adapter": False,
        "parameters": 134515584,
        "trainable_parameters": 134515584,
        "objective": "bradley_terry",
        "batch_layout": "shared_prefix",
        "batch_layout_reason": "the model qualifies, and prompts are computed once",
        "device": "cpu",
        "processes": 1,
        "data": {
            "train": {
                "dataset_name": "train",
                "max_length": 1024,
                "overlong": "drop",
                "purpose": "train",
                "streaming": False,
                "rows_read": 6000,
                "rows_kept": 5871,
                "dropped": {
                    "overlong": {"count": 118, "first_rows": [3, 77, 102, 140, 181]},
                    "identical": {"count": 11, "first_rows": [15, 900, 1002, 2040, 3100]},
                },
                "flagged": {"empty_response": {"count": 2, "first_rows": [41, 87]}},
                "lengths": {"shortest": 14, "longest": 2210, "total": 3100000, "responses": 12000, "mean": 258.3},
                "summary": "...",
            },
            "eval": {
                "dataset_name": "eval",
                "max_length": 1024,
                "overlong": "drop",
                "purpose": "eval",
                "streaming": False,
                "rows_read": 900,
                "rows_kept": 900,
                "dropped": {},
                "flagged": {},
                "lengths": {"shortest": 20, "longest": 1010, "total": 460000, "responses": 1800, "mean": 255.6},
                "summary": "...",
            },
        },
        "settings": {
            "learning_rate": 2e-5,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "seed": 42,
            "max_length": 1024,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "bf16": False,
            "load_best_model_at_end": True,
            "report_to": [],
        },
        "changed_settings": ["learning_rate", "lr_scheduler_type", "warmup_steps"],
        "versions": {"plaudit": "0.1.0", "python": "3.12.3", "transformers": "5.23.0", "torch": "2.13.0"},
        "state": {"global_step": steps, "epoch": 1.0, "best_global_step": steps * 2 // 3, "best_metric": 0.7},
        "log_history": logs(steps),
    }


def logs(steps: int = 600, every: int = 10) -> list[dict]:
    """Logs of a training that goes well."""
    random = np.random.default_rng(0)
    found = []
    for step in range(every, steps + 1, every):
        done = step / steps
        found.append(
            {
                "step": step,
                "epoch": done,
                "loss": 0.52 + 0.19 * np.exp(-4 * done) + random.normal(0, 0.02),
                "accuracy": float(np.clip(0.74 - 0.22 * np.exp(-5 * done) + random.normal(0, 0.03), 0, 1)),
                "margin": 1.1 * (1 - np.exp(-2 * done)) + random.normal(0, 0.05),
                "learning_rate": 2e-5 * min(step / (0.05 * steps), 0.5 * (1 + np.cos(np.pi * done))),
                "grad_norm": float(4 + 3 * np.exp(-3 * done) + abs(random.normal(0, 1)) + 14 * (step == 20 * every)),
                "num_tokens": 5000 * step,
            }
        )
        if step % (10 * every) == 0:
            found.append(
                {
                    "step": step,
                    "epoch": done,
                    "eval_loss": 0.57 + 0.12 * np.exp(-4 * done) + 0.02 * done**2,
                    "eval_accuracy": 0.70 - 0.17 * np.exp(-4 * done),
                    "eval_margin": 0.8 * (1 - np.exp(-2 * done)),
                }
            )
    found.append({"step": steps, "train_runtime": 1834.2, "train_loss": 0.561, "epoch": 1.0})
    return found


def evaluation(rows: int = 900, *, model: str = "runs/first") -> Evaluation:
    """Two models on pairs and on lists, with everything that an evaluation can hold."""
    first, second = pairs(rows, seed=1, skill=1.0), pairs(rows, seed=1, skill=0.55)
    suites = (
        suite(first, "heldout", "Preferences", columns=("source",), mistakes=mistakes()),
        suite(lists(rows // 4), "lists", "Preferences"),
    )
    other = (suite(second, "heldout", "Preferences", columns=("source",)),)
    found = compare(first, second, names=(model, "runs/baseline"), columns=("source",))
    comparison = ModelComparison((model, "runs/baseline"), "heldout", rows, 0, found.overall, found.slices)
    about = {
        "architecture": "LlamaForSequenceClassification",
        "parameters": 134515584,
        "dtype": "float32",
        "device": "cpu",
        "batch_layout": "shared_prefix",
        "batch_layout_reason": "",
        "max_length": 1024,
        "adapter": False,
    }
    return Evaluation(
        models=(
            ModelEvaluation(model, **about, suites=suites),
            ModelEvaluation("runs/baseline", **about, suites=other),
        ),
        comparisons=(comparison,),
        settings={"slices": ["source"], "seed": 0},
        versions={"plaudit": "0.1.0", "python": "3.12.3", "numpy": "2.4.0"},
        created="2026-02-03T12:00:00+00:00",
    )


def suite(scored: ScoredSet, name: str, title: str, *, columns: tuple[str, ...] = (), mistakes=()) -> SuiteEvaluation:
    """Everything that evaluation says of some rows."""
    return SuiteEvaluation(
        name=name,
        suite="preferences",
        title=title,
        sources=(f"{name}.jsonl",),
        rows_in_source=len(scored) + 3,
        rows_left_out=0,
        rows=len(scored),
        responses=len(scored.rewards_N),
        dropped={"overlong": KindCount(3, [17, 40, 291])},
        seconds=12.5,
        result=Preferences(columns).score(scored),
        statistics=statistics_of(scored),
        slices=by_slice(scored, columns),
        calibration=calibrate(scored),
        length=length_bias(scored),
        format=format_bias(scored),
        checks=(
            Check("constant rewards", True, "There are 1,800 different rewards for 1,800 responses."),
            Check("swapped labels", True, "Accuracy 0.2900 with swapped labels, 0.2900 expected."),
            Check("batch size", True, "Rewards differ by at most 2.1e-07 of their size (allowed 1e-04 in float32)."),
        ),
        best_of_n=best_of_n_curve(scored),
        mistakes=mistakes,
        histogram=reward_histogram(scored),
        margins=margin_histogram(scored),
        points=length_points(scored),
        notes=("Not scored: 3 over-long (> 1024 tokens; rows 17, 40, 291).",),
    )


def pairs(count: int, *, seed: int = 0, skill: float = 1.0) -> ScoredSet:
    """Pairs whose better response tends to have the higher reward, and to be longer."""
    random = np.random.default_rng(seed)
    rows = []
    for row in range(count):
        source = SOURCES[row % len(SOURCES)]
        lengths = np.exp(random.normal(5.0, 0.7, 2)) * (1.12, 1.0)
        quality = np.array([skill * (0.9 - 0.2 * (row % 6)), 0.0]) + 0.5 * np.log(lengths) - 2.5
        rewards = 1.6 * (quality + random.normal(0, 0.8, 2))
        texts = [f"**Answer** with {int(length)} words\n" + "- a point\n" * random.integers(0, 3) for length in lengths]
        rows.append(
            ScoredRow(
                row,
                tuple(rewards.tolist()),
                Label((1.0, 0.0)),
                "pairs",
                prompt=f"prompt {row}",
                id=str(row),
                tokens=tuple(int(one) + 1 for one in lengths),
                characters=(1, 1),
                texts=tuple(texts),
                columns={"source": source},
            )
        )
    return ScoredSet(rows)


def lists(count: int) -> ScoredSet:
    """Lists of eight responses with gold scores."""
    random = np.random.default_rng(3)
    rows = []
    for row in range(count):
        gold = random.normal(0, 1, 8)
        rewards = gold + random.normal(0, 1.4, 8)
        rows.append(
            ScoredRow(
                row,
                tuple(rewards.tolist()),
                Label(tuple(gold.tolist())),
                "scores",
                prompt=f"list {row}",
                id=str(row),
                tokens=tuple(int(one) for one in random.integers(10, 400, 8)),
                characters=(1,) * 8,
                texts=("plain text",) * 8,
                columns={},
            )
        )
    return ScoredSet(rows)


def mistakes() -> tuple[Mistake, ...]:
    """One that tries to break out of the page, a long one, and a short one."""
    long = "Here is what I would do. " * 60
    return (
        Mistake(
            17,
            "q-17",
            "heldout.jsonl",
            "comparison",
            -4.12,
            0.984,
            EVIL,
            EVIL,
            "Sure, here is the answer you want.",
            -1.93,
            2.19,
            12,
            230,
            {"source": "safety"},
        ),
        Mistake(
            203,
            "203",
            "heldout.jsonl",
            "comparison",
            -3.4,
            0.968,
            "How do I get candle wax off a tablecloth?",
            long,
            "Choose a tablecloth that hangs twenty centimetres over each edge of the dining table.",
            -0.8,
            2.6,
            300,
            19,
            {"source": "helpfulness"},
        ),
        Mistake(
            5,
            "5",
            "heldout.jsonl",
            "comparison",
            -2.9,
            0.948,
            "def f(x):\n    return x\n\nWhat does this do?",
            "It returns its argument:\n\n    f(3) == 3",
            "It prints x.",
            -1.0,
            1.9,
            14,
            4,
            {"source": "coding questions"},
        ),
    )
