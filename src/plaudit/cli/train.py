"""``plaudit train``: train a reward model, save it, and say how to use it."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

from plaudit.cli.arguments import TrainSettings, parse_arguments, preset_lines, print_help
from plaudit.cli.build import build_trainer, name_of
from plaudit.cli.console import duration, log_lines, make_console, say
from plaudit.data.parse import TOKENIZED_COLUMNS
from plaudit.data.report import DataReport
from plaudit.errors import ConfigError
from plaudit.metrics import wilson_interval
from plaudit.model.peft import is_peft_model
from plaudit.training.trainer import RewardTrainer

_SIGNS = ("out of memory", "can't allocate memory", "No executable batch size found")


@contextlib.contextmanager
def loading_explained() -> Iterator[None]:
    """Turn an out-of-memory error while a model is loaded into one that says what to change."""
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise ConfigError(
            f"out of memory while the model was loaded ({_first_line(error)})",
            fix="Load it with `dtype` bfloat16, load it in 4 bits with `load_in_4bit` and `use_peft`, or take a "
            "smaller model.",
        ) from error


@contextlib.contextmanager
def training_explained(trainer: RewardTrainer) -> Iterator[None]:
    """Turn an out-of-memory error into one that names the longest row and what to change.

    Args:
        trainer: The one that is training or evaluating.
    """
    try:
        yield
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        evaluating = trainer.state.global_step > 0 and not trainer.model.training
        steps = _evaluation_steps(trainer) if evaluating else _training_steps(trainer)
        steps.append(f"lower `max_length` (now {trainer.args.max_length}), or train an adapter with `use_peft`")
        where = "while evaluating " if evaluating else ""
        raise ConfigError(
            f"out of memory {where}({_first_line(error)}); {longest_row(trainer, 'eval' if evaluating else 'train')}",
            fix="; ".join(steps) + ".",
        ) from error


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in _SIGNS)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _training_steps(trainer: RewardTrainer) -> list[str]:
    args = trainer.args
    steps = []
    # With `auto_find_batch_size` every size down to one row has been tried.
    if args.per_device_train_batch_size > 1 and not args.auto_find_batch_size:
        steps.append(
            f"halve `per_device_train_batch_size` (now {args.per_device_train_batch_size}) and double "
            "`gradient_accumulation_steps`, or let `auto_find_batch_size` do it"
        )
    if not args.gradient_checkpointing:
        steps.append("turn on `gradient_checkpointing`")
    return steps


def _evaluation_steps(trainer: RewardTrainer) -> list[str]:
    size = trainer.args.per_device_eval_batch_size
    return [f"halve `per_device_eval_batch_size` (now {size})"] if size > 1 else []


def longest_row(trainer: RewardTrainer, name: str = "train") -> str:
    """Name the row with the longest response that goes through the model, by its number where that is known.

    Args:
        trainer: Holds the prepared rows and the report on them.
        name: Which data set: ``"train"`` or ``"eval"``.
    """
    rows = trainer.train_dataset if name == "train" else trainer.eval_dataset
    report = trainer.data_reports.get(name)
    if not isinstance(rows, Dataset):
        known = report is not None and report.lengths.longest
        return f"the longest response read so far has {report.lengths.longest:,} tokens" if known and report else ""
    index, tokens = _longest(rows)
    number = None if report is None else source_row(index, report)
    place = "" if number is None else f", row {number} of the {name} data,"
    return f"the longest row{place} has a response of {tokens:,} tokens"


def _longest(rows: Dataset) -> tuple[int, int]:
    """Index of the row with the longest response, and its tokens."""
    best, tokens, start = 0, 0, 0
    names = [name for name in (*TOKENIZED_COLUMNS, "response_ids") if name in rows.column_names]
    for table in rows.select_columns(names).with_format("arrow").iter(10_000):
        for name in names:
            ids, row_of = table[name].combine_chunks(), None
            if name == "response_ids":
                row_of, ids = pc.list_parent_indices(ids), pc.list_flatten(ids)
            lengths: pa.Array = pc.list_value_length(ids)
            most = pc.max(lengths).as_py()
            if most > tokens:
                index = pc.index(lengths, most).as_py()
                best, tokens = start + (index if row_of is None else row_of[index].as_py()), most
        start += table.num_rows
    return best, tokens


def source_row(index: int, report: DataReport) -> int | None:
    """Number of a row before rows were dropped; None where the report does not name all that were.

    Args:
        index: Its index among the rows kept.
        report: Names the first rows dropped.

    >>> source_row(5, DataReport("train", None, "drop", "train"))
    5
    """
    dropped = sorted(row for count in report.dropped.values() for row in count.first_rows)
    if len(dropped) < sum(count.count for count in report.dropped.values()):
        return None
    for row in dropped:
        index += row <= index
    return index


def run(arguments: Sequence[str]) -> int:
    """Train with the given command-line arguments; returns the exit code.

    Raises:
        PlauditError: Whatever is wrong with settings, data or model.
    """
    if {"-h", "--help"} & set(arguments):
        print_help(make_console())
        return 0
    settings = parse_arguments(arguments)
    _announce_preset(settings)
    if settings.run.dry_run:
        from plaudit.cli.dry_run import dry_run

        with log_lines(logging.WARNING):
            dry_run(settings, make_console())
    else:
        with log_lines():
            train(settings)
    return 0


def _announce_preset(settings: TrainSettings) -> None:
    if settings.run.preset is None:
        return
    owners = (settings.config, settings.adapter, settings.data, settings.model, settings.quantization)
    for line in preset_lines(settings.run.preset, owners):
        say(line)


def train(settings: TrainSettings) -> None:
    """Train, evaluate if there is something to evaluate on, save, and print a summary."""
    start = time.monotonic()
    with _no_empty_folder(settings.config.output_dir):
        with loading_explained():
            trainer = build_trainer(settings)
        with training_explained(trainer):
            trainer.train(resume_from_checkpoint=_checkpoint(settings.config.resume_from_checkpoint))
            metrics = _evaluate(trainer)
        trainer.save_model()
        if settings.config.push_to_hub:
            trainer.push_to_hub()
    if trainer.is_world_process_zero():
        result = Outcome.of(trainer, metrics, time.monotonic() - start)
        print_summary(result, make_console())


def _checkpoint(value: str | None) -> str | bool | None:
    return value.lower() == "true" if value is not None and value.lower() in ("true", "false") else value


@contextlib.contextmanager
def _no_empty_folder(output_dir: str | None) -> Iterator[None]:
    """Remove the folders that the Trainer made if an error leaves them empty."""
    made = [folder for folder in (Path(output_dir or "."), *Path(output_dir or ".").parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty, or never made
                folder.rmdir()
        raise


def _evaluate(trainer: RewardTrainer) -> dict[str, float]:
    """Metrics of the model as it is now, without their prefix; the last step's are not computed again."""
    if trainer.eval_dataset is None:
        return {}
    found = [log for log in trainer.state.log_history if "eval_loss" in log]
    fresh = bool(found) and found[-1].get("step") == trainer.state.global_step
    metrics = found[-1] if fresh and not trainer.args.load_best_model_at_end else trainer.evaluate()
    return {name.removeprefix("eval_"): value for name, value in metrics.items() if name.startswith("eval_")}


# --- summary ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What there is to say after training.

    Attributes:
        model: Name of the model that was started from.
        folder: Where the reward model is.
        adapter: Whether that is an adapter only.
        conversational: Whether the tokenizer has a chat template.
        rows: Rows trained on (None for a stream).
        eval_rows: Rows evaluated on (None where unknown).
        steps: Optimizer steps.
        seconds: Time from start to end.
        metrics: ``accuracy``, ``margin``, ``loss``, ... on the evaluation data; empty if there is none.
        training_loss: Mean loss over the training.
        objective: Name of the objective.
        rows_called: What the rows are: preferences, rated or labelled responses.
        trials: For metrics that are shares: how many independent labels they are a share of.
    """

    model: str
    folder: str
    adapter: bool
    conversational: bool
    rows: int | None
    eval_rows: int | None
    steps: int
    seconds: float
    metrics: dict[str, float]
    training_loss: float | None
    objective: str = "bradley_terry"
    rows_called: str = "preferences"
    trials: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, trainer: RewardTrainer, metrics: dict[str, float], seconds: float) -> Outcome:
        """Read it off a trainer."""
        train, evaluation = trainer.train_dataset, trainer.eval_dataset
        objective = trainer.training_objective
        losses = [log["train_loss"] for log in trainer.state.log_history if "train_loss" in log]
        config = trainer.accelerator.unwrap_model(trainer.model).config
        return cls(
            model=name_of(getattr(config, "name_or_path", "") or type(trainer.model).__name__),
            folder=str(trainer.args.output_dir),
            adapter=is_peft_model(trainer.accelerator.unwrap_model(trainer.model)),
            conversational=bool(getattr(trainer.processing_class, "chat_template", None)),
            rows=len(train) if isinstance(train, Dataset) else None,
            eval_rows=len(evaluation) if isinstance(evaluation, Dataset) else None,
            steps=trainer.state.global_step,
            seconds=seconds,
            metrics=metrics,
            training_loss=losses[-1] if losses else None,
            objective=objective.name,
            rows_called=_ROWS_CALLED[objective.pointwise],
            trials=count_trials(evaluation, objective.pointwise) if isinstance(evaluation, Dataset) else {},
        )


def print_summary(outcome: Outcome, console: Console) -> None:
    """Print what was reached and how to use it."""
    table = Table.grid(padding=(0, 2))
    rows = f"{'a stream of' if outcome.rows is None else f'{outcome.rows:,}'} {outcome.rows_called}"
    table.add_row("Trained", f"{outcome.model} on {rows}, {outcome.steps:,} steps, {duration(outcome.seconds)}")
    table.add_row("Objective", outcome.objective)
    if outcome.metrics:
        for line in metric_lines(outcome):
            table.add_row(*line)
    elif outcome.training_loss is not None:
        table.add_row("Training loss", f"{outcome.training_loss:.4f} (nothing was held out: see --eval_fraction)")
    table.add_row("Saved in", outcome.folder)
    console.print()
    console.print(table, markup=False)
    console.print("\nLoad and score:")
    code = Syntax(snippet(outcome), "python", background_color="default", word_wrap=False)
    # Copied by people: never wrapped, whatever the width of the terminal.
    if console.is_terminal:
        console.print(Padding(code, (0, 0, 0, 2)))
    else:
        console.print("\n".join(f"  {line}" for line in snippet(outcome).splitlines()), soft_wrap=True, markup=False)


_ROWS_CALLED = {None: "preferences", "ratings": "rated responses", "labels": "labelled responses"}
_TITLES = {
    "accuracy": "Accuracy",
    "tie_accuracy": "Tie accuracy",
    "best_of_n_accuracy": "Best of N",
    "kendall_tau": "Kendall's tau",
    "mse": "Mean squared error",
    "correlation": "Correlation",
    "margin": "Margin",
    "loss": "Loss",
}


def metric_lines(outcome: Outcome) -> list[tuple[str, str]]:
    """Title and value of each metric that there is, the first with the number of rows.

    Args:
        outcome: Its metrics, and what they are shares of.
    """
    found = {name: outcome.metrics[name] for name in _TITLES if name in outcome.metrics}
    texts = {name: share_text(value, outcome.trials.get(name)) for name, value in found.items()}
    texts |= {"loss": f"{found['loss']:.4f}"} if "loss" in found else {}
    if outcome.eval_rows is not None:
        texts[next(iter(texts))] += f" on {outcome.eval_rows:,} held-out rows"
    return [(_TITLES[name], text) for name, text in texts.items()]


def count_trials(rows: Dataset, pointwise: str | None) -> dict[str, int]:
    """How many independent labels the metrics of an evaluation are shares of.

    Several comparisons of one row are not independent: then the accuracy has no entry.

    Args:
        rows: The prepared rows.
        pointwise: What the scores are to the objective, ``"ratings"``, ``"labels"`` or None.

    >>> rows = {"response_ids": [[[1], [2], [3]], [[4], [5]]], "scores": [[2.0, 1.0, 0.0], [1.0, 1.0]]}
    >>> count_trials(Dataset.from_dict(rows), None)
    {'best_of_n_accuracy': 1}
    """
    if pointwise == "labels":
        return {"accuracy": len(rows)}
    columns = [name for name in ("scores", "preference_prob") if name in rows.column_names]
    said: list[dict[str, Any]] = list(rows.select_columns(columns)) if columns else [{}] * len(rows)
    scores = [row.get("scores") or (1.0, 0.0) for row in said if row.get("preference_prob") != 0.5]
    decided = [one for one in scores if max(one) > min(one)]
    if "scores" not in columns:
        return {"accuracy": len(decided)}
    pairs = {"accuracy": len(decided)} if all(len(one) == 2 for one in decided) else {}
    return {**pairs, "best_of_n_accuracy": len(decided)}


def share_text(value: float, trials: int | None) -> str:
    """A metric; of a share, with its 95% interval where the number of trials is known.

    Args:
        value: The metric.
        trials: What it is a share of.

    >>> share_text(0.75, 100)
    '0.750 (95% interval 0.657 to 0.825)'
    """
    if not trials:
        return f"{value:.3f}"
    low, high = wilson_interval(value * trials, trials)
    return f"{value:.3f} (95% interval {low:.3f} to {high:.3f})"


def snippet(outcome: Outcome) -> str:
    """Three lines of Python that load the folder and score a conversation or a text."""
    kind = "peft.AutoPeftModelForSequenceClassification" if outcome.adapter else "AutoModelForSequenceClassification"
    module, _, name = kind.rpartition(".")
    imports = f"from {module} import {name}; " if module else ""
    names = "AutoTokenizer" if module else f"{name}, AutoTokenizer"
    options = ", num_labels=1" if outcome.adapter else ""
    folder = repr(outcome.folder)
    if outcome.conversational:
        chat = '[{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}]'
        inputs = f'tokenizer.apply_chat_template({chat}, return_dict=True, return_tensors="pt")'
    else:
        inputs = 'tokenizer("What is 2+2? 4" + tokenizer.eos_token, return_tensors="pt")'
    return "\n".join(
        [
            f"{imports}from transformers import {names}",
            f"model, tokenizer = {name}.from_pretrained({folder}{options}).eval(), "
            f"AutoTokenizer.from_pretrained({folder})",
            f"print(model(**{inputs}).logits.item())",
        ]
    )
