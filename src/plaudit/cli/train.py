"""``plaudit train``: trains a reward model, saves it, and shows how to use it."""

from __future__ import annotations

import contextlib
import logging
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from datasets import Dataset
from rich.console import Console
from rich.padding import Padding
from rich.syntax import Syntax
from rich.table import Table

from plaudit.cli.build import TRAIN as TRAIN
from plaudit.cli.build import build_trainer, parse_arguments, preset_lines
from plaudit.cli.console import duration, log_lines, make_console, say
from plaudit.data.parse import TOKENIZED_COLUMNS
from plaudit.data.report import DataReport
from plaudit.errors import ConfigError
from plaudit.intervals import wilson_interval
from plaudit.model.peft import is_peft_model
from plaudit.training.trainer import RewardTrainer

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "No executable batch size found")
_ROWS_CALLED = {None: "preferences", "ratings": "rated responses", "labels": "labelled responses"}
_METRICS = ("accuracy", "tie_accuracy", "best_of_n_accuracy", "kendall_tau", "mse", "correlation", "margin", "loss")
_TITLES = {"best_of_n_accuracy": "Best of N", "kendall_tau": "Kendall's tau", "mse": "Mean squared error"}


def run_train(arguments: Sequence[str]) -> int:
    """Trains with the given command-line arguments; returns the exit code."""
    settings = parse_arguments(arguments)
    if settings.preset is not None:
        for line in preset_lines(settings):
            say(line)
    if settings.dry_run:
        from plaudit.cli.dry_run import dry_run

        with log_lines(logging.WARNING):
            dry_run(settings, make_console())
    else:
        with log_lines():
            train(settings)
    return 0


def train(settings: Namespace) -> None:
    """Trains, evaluates if there are rows to evaluate on, saves, and prints a summary."""
    start = time.monotonic()
    folder = Path(settings.config.output_dir or ".")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with memory_explained():
            trainer = build_trainer(settings)
        with memory_explained(trainer):
            trainer.train(resume_from_checkpoint=settings.config.resume_from_checkpoint)
            metrics: dict[str, float] = {}
            if trainer.eval_dataset is not None:
                # An evaluation at the last step is reused if it is of the model as it is now.
                logs = [log for log in trainer.state.log_history if "eval_loss" in log]
                fresh = bool(logs) and logs[-1].get("step") == trainer.state.global_step
                metrics = logs[-1] if fresh and not trainer.args.load_best_model_at_end else trainer.evaluate()
        trainer.save_model()
        if settings.config.push_to_hub:
            trainer.push_to_hub()
    except BaseException:
        for path in made:  # no empty folder stays behind
            with contextlib.suppress(OSError):  # not empty, or never made
                path.rmdir()
        raise
    if trainer.is_world_process_zero():
        metrics = {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}
        print_summary(trainer, metrics, time.monotonic() - start, make_console())


@contextlib.contextmanager
def memory_explained(trainer: RewardTrainer | None = None) -> Iterator[None]:
    """Turns an out-of-memory error into one that names the settings to change; without a trainer, of loading."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error)
        if not isinstance(error, torch.OutOfMemoryError) and not any(words in text for words in _OUT_OF_MEMORY):
            raise
        line = next(iter(text.splitlines()), type(error).__name__)
        if trainer is None:
            fix = "Use `dtype` bfloat16, 4 bits (`load_in_4bit` with `use_peft`), or a smaller model."
            raise ConfigError(f"out of memory while loading the model ({line})", fix=fix) from error
        args = trainer.args
        evaluating = trainer.state.global_step > 0 and not trainer.model.training
        steps = []
        if evaluating and args.per_device_eval_batch_size > 1:
            steps.append(f"halve `per_device_eval_batch_size` (now {args.per_device_eval_batch_size})")
        # With `auto_find_batch_size` every size down to one row has been tried.
        if not evaluating and args.per_device_train_batch_size > 1 and not args.auto_find_batch_size:
            steps.append(
                f"halve `per_device_train_batch_size` (now {args.per_device_train_batch_size}) and double "
                "`gradient_accumulation_steps`, or let `auto_find_batch_size` do so"
            )
        if not evaluating and not args.gradient_checkpointing:
            steps.append("turn on `gradient_checkpointing`")
        steps.append(f"lower `max_length` (now {args.max_length}), or train an adapter with `use_peft`")
        fix = "; ".join(steps) + "."
        where = "while evaluating " if evaluating else ""
        message = f"out of memory {where}({line}); {longest_row(trainer, 'eval' if evaluating else 'train')}"
        raise ConfigError(message, fix=fix[0].upper() + fix[1:]) from error


def longest_row(trainer: RewardTrainer, name: str = "train") -> str:
    """Names the row with the longest response of the data set `name` (train or eval), by its number where known."""
    rows = trainer.train_dataset if name == "train" else trainer.eval_dataset
    report = trainer.data_reports.get(name)
    if not isinstance(rows, Dataset):
        longest = report.lengths.longest if report is not None else 0
        return f"the longest response read so far has {longest:,} tokens" if longest else ""
    best, tokens, start = 0, 0, 0
    columns = [column for column in (*TOKENIZED_COLUMNS, "response_ids") if column in rows.column_names]
    for table in rows.select_columns(columns).with_format("arrow").iter(10_000):
        for column in columns:
            ids, row_of = table[column].combine_chunks(), None
            if column == "response_ids":
                row_of, ids = pc.list_parent_indices(ids), pc.list_flatten(ids)
            lengths: pa.Array = pc.list_value_length(ids)
            most = pc.max(lengths).as_py()
            if most > tokens:
                index = pc.index(lengths, most).as_py()
                best, tokens = start + (index if row_of is None else row_of[index].as_py()), most
        start += table.num_rows
    number = None if report is None else source_row(best, report)
    source = "" if number is None else f", row {number} of the {name} data,"
    return f"the longest row{source} has a response of {tokens:,} tokens"


def source_row(index: int, report: DataReport) -> int | None:
    """Returns the number that a kept row had before rows were dropped; None where the report does not name them all."""
    dropped = sorted(row for count in report.dropped.values() for row in count.first_rows)
    if len(dropped) < sum(count.count for count in report.dropped.values()):
        return None
    for row in dropped:
        index += row <= index
    return index


def print_summary(trainer: RewardTrainer, metrics: dict[str, float], seconds: float, console: Console) -> None:
    """Prints what training reached and how to use the model."""
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    objective, rows = trainer.training_objective, trainer.train_dataset
    name = Path(getattr(model.config, "name_or_path", "") or type(trainer.model).__name__).name
    count = f"{len(rows):,}" if isinstance(rows, Dataset) else "a stream of"
    trained = f"{name} on {count} {_ROWS_CALLED[objective.pointwise]}, {trainer.state.global_step:,} steps"
    losses = [log["train_loss"] for log in trainer.state.log_history if "train_loss" in log]
    table = Table.grid(padding=(0, 2))
    table.add_row("Trained", f"{trained}, {duration(seconds)}")
    table.add_row("Objective", objective.name)
    if metrics:
        held_out = trainer.eval_dataset
        trials = count_trials(held_out, objective.pointwise) if isinstance(held_out, Dataset) else {}
        for index, metric in enumerate(name for name in _METRICS if name in metrics):
            value, number = metrics[metric], trials.get(metric)
            text = f"{value:.4f}" if metric == "loss" else f"{value:.3f}"
            if number:
                low, high = wilson_interval(value * number, number)
                text += f" (95% interval {low:.3f} to {high:.3f})"
            text += f" on {len(held_out):,} held-out rows" if index == 0 and isinstance(held_out, Dataset) else ""
            table.add_row(_TITLES.get(metric, metric.replace("_", " ").capitalize()), text)
    elif losses:
        table.add_row("Training loss", f"{losses[-1]:.4f} (no rows were held out: see --eval_fraction)")
    folder = str(trainer.args.output_dir)
    table.add_row("Saved in", folder)
    console.print()
    console.print(table, markup=False)
    console.print("\nLoad and score:")
    conversational = trainer.data_reports["train"].conversational
    if conversational is None:  # token ids do not tell
        conversational = bool(getattr(trainer.processing_class, "chat_template", None))
    code = snippet(folder, adapter=is_peft_model(model), conversational=conversational)
    if console.is_terminal:
        console.print(Padding(Syntax(code, "python", background_color="default", word_wrap=False), (0, 0, 0, 2)))
    else:  # never wrapped, so that it can be copied
        console.print("\n".join(f"  {line}" for line in code.splitlines()), soft_wrap=True, markup=False)


def count_trials(rows: Dataset, pointwise: str | None) -> dict[str, int]:
    """Returns how many independent labels each metric is a share of.

    Several comparisons of one row are not independent: then the accuracy has no entry.

    >>> rows = {"response_ids": [[[1], [2], [3]], [[4], [5]]], "scores": [[2.0, 1.0, 0.0], [1.0, 1.0]]}
    >>> count_trials(Dataset.from_dict(rows), None)
    {'best_of_n_accuracy': 1}
    """
    if pointwise == "labels":
        return {"accuracy": len(rows)}
    columns = [name for name in ("scores", "preference_prob") if name in rows.column_names]
    labels: list[dict[str, Any]] = list(rows.select_columns(columns)) if columns else [{}] * len(rows)
    scores = [label.get("scores") or (1.0, 0.0) for label in labels if label.get("preference_prob") != 0.5]
    decided = [values for values in scores if max(values) > min(values)]
    if "scores" not in columns:
        return {"accuracy": len(decided)}
    pairs = {"accuracy": len(decided)} if all(len(values) == 2 for values in decided) else {}
    return {**pairs, "best_of_n_accuracy": len(decided)}


def snippet(folder: str, *, adapter: bool, conversational: bool) -> str:
    """Returns three lines of Python that load the folder and score a conversation or a text."""
    loader, options = "AutoModelForSequenceClassification", ""
    imports = f"from transformers import {loader}, AutoTokenizer"
    if adapter:
        loader, options = "AutoPeftModelForSequenceClassification", ", num_labels=1"
        imports = f"from peft import {loader}; from transformers import AutoTokenizer"
    if conversational:
        chat = '[{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}]'
        inputs = f'tokenizer.apply_chat_template({chat}, return_dict=True, return_tensors="pt")'
    else:
        inputs = 'tokenizer("What is 2+2? 4" + tokenizer.eos_token, return_tensors="pt")'
    loaded = f"{loader}.from_pretrained({folder!r}{options}).eval(), AutoTokenizer.from_pretrained({folder!r})"
    return f"{imports}\nmodel, tokenizer = {loaded}\nprint(model(**{inputs}).logits.item())"
