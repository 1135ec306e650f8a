"""``plaudit demo``: trains on the bundled preferences, evaluates before and after, and scores two new responses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PrinterCallback, ProgressCallback

from plaudit.demo.embedded_model import EMBEDDED_MODEL_NAME, embedded_model_path
from plaudit.demo.preferences import load_preferences
from plaudit.evaluation.run import evaluate
from plaudit.intervals import wilson_interval
from plaudit.report import write_report
from plaudit.training.config import RewardConfig
from plaudit.training.setup import check_writable
from plaudit.training.trainer import RewardTrainer

PROMPT = "How do I get candle wax off a tablecloth?"
BETTER_RESPONSE = "Let the wax harden, scrape it off, then iron the spot between sheets of kitchen paper."
WORSE_RESPONSE = "Choose a tablecloth that hangs twenty centimetres over each edge of the dining table."
"""A prompt that is not in the bundled preferences, a response to it, and one to another prompt."""
SETTINGS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "gradient_checkpointing": False,
}
"""Training settings of the demo; all others are the defaults."""
SANITY_ROWS = 4
"""Rows that the evaluation scores three more times, to check that rewards depend on the texts only."""


@dataclass(frozen=True)
class Score:
    """How well a model separates the responses of held-out preferences."""

    accuracy: float  # share of rows whose chosen response has the higher reward
    margin: float  # mean difference of the two rewards
    loss: float  # mean Bradley-Terry loss
    rows: int

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy (Wilson)."""
        return wilson_interval(self.accuracy * self.rows, self.rows)


@dataclass(frozen=True)
class DemoResult:
    """Outcome of one run of the demo."""

    seed: int
    rows: int  # trained on
    before: Score  # with the new head
    after: Score
    seconds: float  # of the whole run
    folder: str  # of the reward model
    rewards: tuple[float, float]  # of `BETTER_RESPONSE` and `WORSE_RESPONSE`, from the saved folder
    report: str  # path of the page


def run_demo(output_dir: str | os.PathLike[str], *, seed: int = 0, say: Callable[[str], None] = print) -> DemoResult:
    """Trains the embedded model on the bundled preferences, saves it, scores two responses, and writes a report.

    `say` is called with each line of progress. Raises `ConfigError` if the embedded model is not installed, or the
    folder cannot be written.
    """
    start = time.monotonic()
    check_writable(output_dir)
    path = embedded_model_path(progress=say)
    train, test = load_preferences("train"), load_preferences("test")
    say(f"Model: {EMBEDDED_MODEL_NAME}, a small chat model, with a new reward head (seed {seed}).")
    say(f"Data: {len(train)} preferences to learn from, {len(test)} on other topics held out.")
    config = RewardConfig(
        output_dir=str(output_dir), seed=seed, save_strategy="no", report_to=[], logging_steps=5, **SETTINGS
    )
    trainer = RewardTrainer(str(path), config, train_dataset=train, eval_dataset=test)
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ProgressBar())
    say("Scoring the held-out preferences before training ...")
    before = _score(trainer.evaluate(), len(test))
    say("Training ...")
    trainer.train()
    say("Scoring the held-out preferences after training ...")
    after = _score(trainer.evaluate(), len(test))
    trainer.save_model()
    rewards = score_responses(output_dir)
    say("Evaluating the saved model on the held-out preferences, and writing the report ...")
    evaluate(
        output_dir,
        {"held-out": test},
        slices="skill",
        output=Path(output_dir) / "evaluation",
        overwrite=True,
        sanity_rows=SANITY_ROWS,
    )
    report = write_report(output_dir).html
    return DemoResult(
        seed=seed,
        rows=len(train),
        before=before,
        after=after,
        seconds=time.monotonic() - start,
        folder=str(output_dir),
        rewards=rewards,
        report=str(report),
    )


def _score(metrics: dict[str, float], rows: int) -> Score:
    return Score(metrics["eval_accuracy"], metrics["eval_margin"], metrics["eval_loss"], rows)


def score_responses(folder: str | os.PathLike[str]) -> tuple[float, float]:
    """Returns the rewards of `BETTER_RESPONSE` and `WORSE_RESPONSE` to `PROMPT`, with plain transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rewards = []
    for response in (BETTER_RESPONSE, WORSE_RESPONSE):
        messages = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": response}]
        inputs: Any = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
        with torch.no_grad():
            rewards.append(model(**inputs).logits.item())
    return rewards[0], rewards[1]


class ProgressBar(ProgressCallback):
    """The Trainer's progress bar, with loss and accuracy beside it instead of one line per log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Shows the newest numbers beside the bar."""
        if self.training_bar is not None and logs is not None and "accuracy" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", accuracy=f"{logs['accuracy']:.2f}")
