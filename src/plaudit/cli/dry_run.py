"""``plaudit train --dry-run``: what training would do, seen before it starts. Nothing is written."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from plaudit.cli import dry_run as estimate
from plaudit.cli.arguments import TrainSettings
from plaudit.cli.build import build_trainer, name_of, open_data
from plaudit.cli.console import duration, size
from plaudit.data.collate import PaddedCollator, SharedPrefixCollator, tokenized_example
from plaudit.data.parse import survey
from plaudit.objectives import ROW_KIND_NAMES, choose_objective
from plaudit.prefix_tree import common_prefix_length
from plaudit.schema import RowKind
from plaudit.training import memory
from plaudit.training.config import OBJECTIVE_SETTINGS, RewardConfig
from plaudit.training.memory import (
    MEASURED_TOKENS,
    Row,
    checkpointing_method,
    count_tokens,
    first_rows,
    uses_checkpointing,
)
from plaudit.training.setup import check_writable
from plaudit.training.trainer import RewardTrainer


def check_layout(trainer: RewardTrainer, rows: Sequence[Row]) -> None:
    """Score a batch in evaluation mode, before which the trainer compares both layouts.

    Raises:
        ConfigError: If the shared-prefix layout was asked for and is wrong for this model.
    """
    model: Any = trainer.model
    model.eval()
    with torch.no_grad():
        trainer.loss_of_rows(rows)


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        seconds_per_token: Forward and backward pass, per computed token.
        seconds_per_parameter: Optimizer step, per trained parameter.
    """

    seconds_per_token: float
    seconds_per_parameter: float


def measure_speed(trainer: RewardTrainer, rows: Sequence[Row]) -> Speed:
    """Time a forward and backward pass over a small batch, and AdamW on a tensor of its own.

    Gradients are dropped and no step is taken: the weights stay as they are. Each is run twice and the second
    run counts, because the first one pays for memory that is new to the process.

    Args:
        trainer: Its model is run in training mode.
        rows: Prepared rows of one batch, of which the first few are taken.
    """
    model: Any = trainer.model
    rows = first_rows(rows, trainer.args, trainer.batch_layout, MEASURED_TOKENS)
    model.train()
    checkpointing = uses_checkpointing(model, trainer.args)
    if checkpointing:
        checkpointing_method(model, "enable")(trainer.args.gradient_checkpointing_kwargs)
    try:
        seconds = _second_run(lambda: trainer.loss_of_rows(rows).backward(), trainer.args.device)
    finally:
        if checkpointing:
            checkpointing_method(model, "disable")()
        model.zero_grad(set_to_none=True)
    tokens = count_tokens(rows, trainer.args.pad_to_multiple_of).computed(trainer.batch_layout)
    weight = nn.Parameter(torch.zeros(2**22, device=trainer.args.device))
    weight.grad = torch.zeros_like(weight)
    step = _second_run(
        torch.optim.AdamW([weight], fused=weight.device.type in ("cpu", "cuda")).step, trainer.args.device
    )
    return Speed(seconds / tokens, step / weight.numel())


def _second_run(action: Any, device: torch.device) -> float:
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds


def count_steps(config: RewardConfig, rows: int | None) -> int:
    """Optimizer steps of the whole run.

    Args:
        config: The settings.
        rows: Rows to train on; None for a stream, which must have ``max_steps``.
    """
    if config.max_steps > 0:
        return config.max_steps
    batches = math.ceil((rows or 0) / (config.train_batch_size * config.world_size))
    per_epoch = max(math.ceil(batches / config.gradient_accumulation_steps), 1)
    return math.ceil(per_epoch * config.num_train_epochs)


def estimate_seconds(config: RewardConfig, speed: Speed, steps: int, tokens_per_batch: float, trained: int) -> float:
    """Time for all steps, without loading, evaluation and checkpoints.

    ``steps x (accumulation x tokens a batch x seconds a token + trained parameters x seconds a parameter)``

    Args:
        config: The settings.
        speed: What was measured.
        steps: Optimizer steps.
        tokens_per_batch: Tokens computed for a batch on average.
        trained: Number of trained parameters.
    """
    batch = config.gradient_accumulation_steps * tokens_per_batch * speed.seconds_per_token
    return steps * (batch + trained * speed.seconds_per_parameter)


MARK = "│"
"""Stands between two tokens."""
READ = "◀ reward"
"""Stands behind the token at which a reward is read."""
_SHOWN = 320  # tokens of a prompt or response
_RESPONSES_SHOWN = 4


def dry_run(settings: TrainSettings, console: Console) -> None:
    """Print model, data, one example, batches, memory and time.

    Args:
        settings: Those of the training to be.
        console: Where to print.

    Raises:
        PlauditError: Whatever training would have raised before its first step.
    """
    output_dir = settings.config.output_dir
    check_writable(output_dir)
    with tempfile.TemporaryDirectory() as folder:
        # The Trainer makes its folder when it is built.
        settings.config.output_dir = folder
        data = open_data(settings)
        trainer = build_trainer(settings, data)
        row_kinds, columns = survey(data[0])
        batches = memory.sample_batches(trainer.train_dataset, trainer.args)
        estimate.check_layout(trainer, batches[0])
        _show_model(trainer, console)
        _show_data(trainer, console)
        _show_objective(trainer, row_kinds, columns, console)
        _show_example(trainer, batches[0][0], row_kinds, console)
        _show_batches(trainer, batches, console)
        _show_needs(trainer, batches, console)
    console.print(
        f"\nNothing was trained or written. Training would save to {output_dir}.",
        markup=False,
        soft_wrap=True,
    )


def _title(console: Console, text: str) -> None:
    console.print(Text(f"\n{text}", style="bold"))


def _grid(rows: Sequence[tuple[str, ...]], console: Console) -> None:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _show_model(trainer: RewardTrainer, console: Console) -> None:
    model: Any = trainer.model
    parameters = list(model.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    weights = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
    args = trainer.args
    mixed = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
    device = str(args.device)
    if args.device.type == "cuda":
        device += f" ({torch.cuda.get_device_name(args.device)})"
    _title(console, "Model")
    _grid(
        [
            ("model", f"{name_of(model.config.name_or_path)} ({type(trainer.model).__name__})"),
            (
                "parameters",
                f"{count:,}" + ("" if trained == count else f", of which {trained:,} are trained"),
            ),
            ("precision", f"weights in {', '.join(weights)}" + (f", computed in {mixed}" if mixed else "")),
            ("device", device),
            ("batch layout", f"{trainer.batch_layout} ({trainer.batch_layout_reason})"),
        ],
        console,
    )


def _show_data(trainer: RewardTrainer, console: Console) -> None:
    _title(console, "Data")
    for report in trainer.data_reports.values():
        lengths = report.lengths
        console.print(f"  {report.summary()}", markup=False)
        if lengths.responses:
            text = f"{lengths.shortest:,} to {lengths.longest:,} tokens, {lengths.mean:,.0f} on average"
            console.print(f"  Responses with their prompts: {text}.", markup=False)


def _show_objective(
    trainer: RewardTrainer, row_kinds: frozenset[RowKind], columns: frozenset[str], console: Console
) -> None:
    """What is learned, and from which labels."""
    args, name = trainer.args, trainer.training_objective.name
    prepared: Any = trainer.train_dataset
    reason = "as asked for" if args.objective != "auto" else "auto"
    if args.objective == "auto" and row_kinds:
        reason = f"auto: {choose_objective(row_kinds, columns)[1]}"
    kinds = [ROW_KIND_NAMES[row_kind] for row_kind in sorted(row_kinds)] or ["token ids with scores"]
    weighted = {"weight"} & set(prepared.column_names or ())
    said = [f"`{column}`" for column in (*sorted(columns), *weighted)]
    rows = " and ".join(kinds) + (f", with {' and '.join(said)}" if said else "")
    lines = [("objective", f"{name} ({reason})"), ("rows", rows)]
    if counts := _count_responses(prepared):
        lines.append(("responses", counts))
    added = [(one, getattr(args, one)) for one in OBJECTIVE_SETTINGS[1:] if getattr(args, one)]
    if added:
        lines.append(("settings", ", ".join(f"{one} {value:g}" for one, value in added)))
    _title(console, "Objective")
    _grid(lines, console)


def _count_responses(prepared: Any) -> str:
    if not isinstance(prepared, Dataset):
        return ""
    counts = [len(one) for one in prepared["scores"]] if "scores" in prepared.column_names else [2] * len(prepared)
    a_row = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return f"{sum(counts):,} in {len(counts):,} rows, {a_row} a row"


# --- one example ------------------------------------------------------------------------------------------


def _show_example(
    trainer: RewardTrainer, row: Mapping[str, Any], row_kinds: frozenset[RowKind], console: Console
) -> None:
    example = tokenized_example(row)
    responses = example.response_ids
    # A prompt shows by being shared: of a single response nobody knows where it ends.
    prefix = common_prefix_length(responses) if len(responses) > 1 else 0
    tokenizer: Any = trainer.processing_class
    kind = "One tie" if example.label.preference_prob == 0.5 else "One example"
    _title(console, f"{kind}, its tokens set apart by {MARK}")
    if len(responses) > 1:
        _show_tokens(f"Shared prompt: {prefix:,} tokens", responses[0][:prefix], tokenizer, False, console)
    names = ["Chosen", "Rejected"]
    if "response_ids" in row:
        names = response_names(example.label.ratings, row_kinds)
    for name, ids in list(zip(names, responses, strict=True))[:_RESPONSES_SHOWN]:
        size_of = (
            f"{len(ids) - prefix:,} tokens of its own, {len(ids):,}" if len(responses) > 1 else f"{len(ids):,} tokens"
        )
        _show_tokens(f"{name}: {size_of} with the prompt", ids[prefix:], tokenizer, True, console)
    if len(responses) > _RESPONSES_SHOWN:
        console.print(f"  ... {len(responses) - _RESPONSES_SHOWN} more responses", markup=False)


def response_names(scores: Sequence[float], row_kinds: frozenset[RowKind]) -> list[str]:
    """What each response is called, with what the data says about it.

    Args:
        scores: One number a response, as prepared.
        forms: Forms of the rows of the data set.

    >>> response_names([2.5, 1.0], frozenset(["scores"])), response_names([-1.0], frozenset(["ranks"]))
    (['Response 1 of 2 (score 2.5)', 'Response 2 of 2 (score 1)'], ['Response (rank 1)'])
    >>> response_names([0.0], frozenset(["labels"]))
    ['Response (label false)']
    """
    said = [f"score {score:g}" for score in scores]
    if row_kinds == {"ranks"}:
        said = [f"rank {-score:g}" for score in scores]
    elif row_kinds == {"labels"}:
        said = ["label true" if score else "label false" for score in scores]
    elif row_kinds == {"ratings"}:
        said = [f"rating {score:g}" for score in scores]
    places = [""] if len(said) == 1 else [f" {place} of {len(said)}" for place in range(1, len(said) + 1)]
    return [f"Response{place} ({one})" for place, one in zip(places, said, strict=True)]


def _show_tokens(heading: str, ids: Sequence[int], tokenizer: Any, rewarded: bool, console: Console) -> None:
    console.print(Text(f"  {heading}", style="dim"))
    console.print(render_tokens(ids, tokenizer, rewarded=rewarded), soft_wrap=False)


def render_tokens(ids: Sequence[int], tokenizer: Any, *, rewarded: bool) -> Text:
    """Write tokens out with a mark after each: shaded by turns, special ones coloured, clear without colour.

    Args:
        ids: Token ids; of a long list the middle is left out, and said so.
        tokenizer: The one that made them.
        rewarded: Whether the reward is read at the last one.
    """
    special = set(tokenizer.all_special_ids)
    text = Text()
    left_out = len(ids) - _SHOWN
    for index, piece in enumerate(token_pieces(ids, tokenizer)):
        if left_out > 0 and _SHOWN // 2 <= index < _SHOWN // 2 + left_out:
            if index == _SHOWN // 2:
                text.append(f" ... {left_out:,} tokens left out ... ", style="italic")
            continue
        style = "bold magenta" if ids[index] in special else ("on grey23" if index % 2 else "")
        # A line break is shown, and made.
        text.append(piece.replace("\n", "↵\n"), style=style)
        text.append(MARK, style="dim")
    if rewarded:
        text.append(f" {READ}", style="bold green")
    return text


def token_pieces(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """The text that each token adds; a character made of several tokens stands at the last of them.

    Args:
        ids: Token ids.
        tokenizer: The one that made them.
    """
    pieces: list[str] = []
    start = 0  # of the tokens that are not written out yet
    for end in range(1, len(ids) + 1):
        # Decoded behind the token before it: some tokenizers drop a leading blank otherwise.
        before = tokenizer.decode(ids[start - 1 : start]) if start else ""
        text = tokenizer.decode(ids[max(start - 1, 0) : end])
        piece = text[len(before) :] if text.startswith(before) else tokenizer.decode(ids[start:end])
        if piece.endswith("\ufffd") and end < len(ids):
            pieces.append("")
            continue
        pieces.append(piece)
        start = end
    return pieces


# --- batches, memory, time --------------------------------------------------------------------------------


def _show_batches(trainer: RewardTrainer, batches: Sequence[Sequence[Any]], console: Console) -> None:
    multiple = trainer.args.pad_to_multiple_of
    tokenizer: Any = trainer.processing_class
    total = sum((memory.count_tokens(rows, multiple) for rows in batches), memory.TokenCount())
    padded = tuple(PaddedCollator(tokenizer.pad_token_id, multiple)(batches[0])["input_ids"].shape)
    shared = tuple(SharedPrefixCollator()(batches[0])["input_ids"].shape)
    _title(console, f"Batches of {len(batches[0])} examples")
    over = "1 batch" if len(batches) == 1 else f"{len(batches)} batches"
    table = Table(box=None, padding=(0, 1, 0, 2))
    for column in ("layout", "first batch", f"tokens in {over}", ""):
        table.add_column(column, justify="right" if column.startswith("tokens") else "left", no_wrap=True)
    padding, saved = f"{total.padding_share:.0%} are padding", f"{total.saved_share:.0%} saved"
    table.add_row("padded", str(padded), f"{total.padded:,}", padding)
    table.add_row("shared_prefix", str(shared), f"{total.shared_prefix:,}", saved)
    console.print(table)


def _show_needs(trainer: RewardTrainer, batches: Sequence[Sequence[Any]], console: Console) -> None:
    config, multiple = trainer.args, trainer.args.pad_to_multiple_of
    tokens = [memory.count_tokens(rows, multiple).computed(trainer.batch_layout) for rows in batches]
    rows = len(trainer.train_dataset) if isinstance(trainer.train_dataset, Dataset) else None
    steps = estimate.count_steps(config, rows)
    _title(console, "Estimates")
    try:
        needed = memory.estimate_memory(
            trainer.model,
            config,
            batches[0],
            max(tokens),
            layout=trainer.batch_layout,
            loss_of_rows=trainer.loss_of_rows,
        )
        speed = estimate.measure_speed(trainer, batches[0])
    except torch.OutOfMemoryError:
        console.print("  Not even a small batch fits into this device's memory.", markup=False)
        return
    model: Any = trainer.model
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    seconds = estimate.estimate_seconds(config, speed, steps, sum(tokens) / len(tokens), trained)
    parts = ", ".join(
        f"{name} {size(getattr(needed, name))}" for name in ("weights", "gradients", "optimizer", "activations")
    )
    batch = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    _grid(
        [
            ("peak memory", f"about {size(needed.total)}: {parts}"),
            ("speed", f"{1 / speed.seconds_per_token:,.0f} tokens/s forward and backward"),
            ("steps", f"{steps:,} of {batch:,} examples"),
            ("time", f"about {duration(seconds)} for training, without evaluation and checkpoints"),
        ],
        console,
    )
