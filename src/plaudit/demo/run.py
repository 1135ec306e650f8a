"""What ``plaudit demo`` does: train on the bundled preferences, compare with before, score two answers, report."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PrinterCallback,
    ProgressCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

from plaudit.demo.embedded_model import EMBEDDED_MODEL_NAME, embedded_model_path
from plaudit.demo.preferences import load_preferences
from plaudit.evaluation.run import evaluate
from plaudit.metrics import wilson_interval
from plaudit.report import write_report
from plaudit.training.config import RewardConfig
from plaudit.training.setup import check_writable
from plaudit.training.trainer import RewardTrainer

QUESTION = "How do I get candle wax off a tablecloth?"
BETTER_ANSWER = "Let the wax harden, scrape it off, then iron the spot between sheets of kitchen paper."
WORSE_ANSWER = "Choose a tablecloth that hangs twenty centimetres over each edge of the dining table."
"""A question that is not in the bundled preferences, an answer to it, and one to another question."""
SETTINGS: dict[str, Any] = {
    "learning_rate": 5e-5,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "gradient_checkpointing": False,
}
"""How the demo trains; whatever is not named here is the default."""
SANITY_ROWS = 4
"""Rows that the evaluation scores three times more, to see that rewards depend on the texts only."""


@dataclass(frozen=True)
class Score:
    """How well a model tells better from worse on held-out preferences.

    Attributes:
        accuracy: Share of rows whose better answer got the higher reward.
        margin: Mean difference of the two rewards.
        loss: Mean Bradley-Terry loss.
        rows: Number of rows.
    """

    accuracy: float
    margin: float
    loss: float
    rows: int

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy (Wilson)."""
        return wilson_interval(self.accuracy * self.rows, self.rows)


@dataclass(frozen=True)
class DemoResult:
    """What one run of the demo reached.

    Attributes:
        seed: Seed of head, order and training.
        rows: Rows trained on.
        before: Held-out score with the fresh head.
        after: Held-out score after training.
        seconds: Time of the whole run, and of the training alone.
        folder: Where the reward model is.
        rewards: Rewards of `BETTER_ANSWER` and `WORSE_ANSWER`, from the saved folder loaded anew.
        report: The page about the run.
    """

    seed: int
    rows: int
    before: Score
    after: Score
    seconds: float
    training_seconds: float
    folder: str
    rewards: tuple[float, float]
    report: str


def run_demo(output_dir: str | os.PathLike[str], *, seed: int = 0, say: Callable[[str], None] = print) -> DemoResult:
    """Train the embedded model on the bundled preferences, save it, score two answers with it, and write its report.

    Args:
        output_dir: Folder for the reward model.
        seed: Seed of head, order and training.
        say: Called with each line that tells what happens.

    Raises:
        ConfigError: If the embedded model is not installed, or the folder cannot be written.
    """
    start = time.monotonic()
    check_writable(output_dir)
    path = embedded_model_path(progress=say)
    train, test = load_preferences("train"), load_preferences("test")
    say(f"Model: {EMBEDDED_MODEL_NAME}, a small chat model, with a fresh reward head (seed {seed}).")
    say(f"Data: {len(train)} preferences to learn from, {len(test)} on other topics held out.")
    config = RewardConfig(
        output_dir=str(output_dir), seed=seed, save_strategy="no", report_to=[], logging_steps=5, **SETTINGS
    )
    with _quiet():
        trainer = RewardTrainer(str(path), config, train_dataset=train, eval_dataset=test)
        for callback in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(callback)
        trainer.add_callback(ProgressBar())
        say("Scoring the held-out preferences before training ...")
        before = _score(trainer.evaluate(), len(test))
        say("Training ...")
        training_start = time.monotonic()
        trainer.train()
        training_seconds = time.monotonic() - training_start
        say("Scoring the held-out preferences after training ...")
        after = _score(trainer.evaluate(), len(test))
        trainer.save_model()
        rewards = score_answers(output_dir)
        say("Evaluating the saved model on the held-out preferences, and writing the report ...")
        report = _report(output_dir, test)
    return DemoResult(
        seed=seed,
        rows=len(train),
        before=before,
        after=after,
        seconds=time.monotonic() - start,
        training_seconds=training_seconds,
        folder=str(output_dir),
        rewards=rewards,
        report=str(report),
    )


def _report(folder: str | os.PathLike[str], test: datasets.Dataset) -> Path:
    evaluate(
        folder,
        {"held-out": test},
        slices="skill",
        output=Path(folder) / "evaluation",
        overwrite=True,
        sanity_rows=SANITY_ROWS,
    )
    return write_report(folder).html


def score_answers(folder: str | os.PathLike[str]) -> tuple[float, float]:
    """Rewards of `BETTER_ANSWER` and `WORSE_ANSWER` to `QUESTION`, with plain transformers.

    Args:
        folder: A reward model with its tokenizer.
    """
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    better, worse = (_reward(model, tokenizer, answer) for answer in (BETTER_ANSWER, WORSE_ANSWER))
    return better, worse


def _reward(model: Any, tokenizer: Any, answer: str) -> float:
    messages = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
    inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
    with torch.no_grad():
        return model(**inputs).logits.item()


def _score(metrics: dict[str, float], rows: int) -> Score:
    return Score(metrics["eval_accuracy"], metrics["eval_margin"], metrics["eval_loss"], rows)


class ProgressBar(ProgressCallback):
    """The Trainer's progress bar, with loss and accuracy beside it instead of a line for each log."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the newest numbers beside the bar."""
        if self.training_bar is not None and logs is not None and "accuracy" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", accuracy=f"{logs['accuracy']:.2f}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the bars of loading and tokenising, which take no time here."""
    datasets_bars, transformers_bars = (
        not datasets.are_progress_bars_disabled(),
        transformers_logging.is_progress_bar_enabled(),
    )
    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if datasets_bars:
            datasets.enable_progress_bars()
        if transformers_bars:
            transformers_logging.enable_progress_bar()
