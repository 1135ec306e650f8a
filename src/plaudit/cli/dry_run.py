"""``plaudit train --dry-run``: shows what training would do, and writes nothing."""

from __future__ import annotations

import math
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from plaudit.cli.build import build_trainer, check_settings, load_data
from plaudit.cli.console import duration, size
from plaudit.data.collate import PaddedCollator, SharedPrefixCollator, tokenized_example
from plaudit.data.load import convert, schema_of
from plaudit.data.parse import survey
from plaudit.data.schemas import read_as
from plaudit.objectives import ROW_KIND_NAMES, choose_objective
from plaudit.prefix_tree import common_prefix_length
from plaudit.schema import RowKind
from plaudit.training import memory
from plaudit.training.config import OBJECTIVE_SETTINGS, RewardConfig
from plaudit.training.setup import check_writable
from plaudit.training.trainer import RewardTrainer

MARK = "│"  # between two tokens
READ = "◀ reward"  # behind the token at which a reward is read
_SHOWN = 320  # tokens of a prompt or response
_RESPONSES_SHOWN = 4


def dry_run(settings: Namespace, console: Console) -> None:
    """Prints model, data, one example, batches, memory and time; raises what training would before its first step."""
    output_dir = settings.config.output_dir
    check_writable(output_dir)
    check_settings(settings)
    with tempfile.TemporaryDirectory() as folder:
        # The Trainer makes its folder, and its repository on the Hub, when it is built.
        settings.config.output_dir, settings.config.push_to_hub = folder, False
        data = load_data(settings)
        trainer = build_trainer(settings, data)
        found = schema_of(data[0], data[0].column_names, settings.config.schema)
        row_kinds, columns = survey(data[0] if found is None else convert(data[0], found, "train"))
        batches = memory.sample_batches(trainer.train_dataset, trainer.args)
        # The first batch in evaluation mode makes the trainer compare both layouts.
        trainer.model.eval()
        with torch.no_grad():
            trainer.loss_of_rows(batches[0])
        args, model = trainer.args, trainer.model
        parameters = list(model.parameters())
        count = sum(parameter.numel() for parameter in parameters)
        trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        weights = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in parameters})
        mixed = "bfloat16" if args.bf16 else "float16" if args.fp16 else None
        gpu = f" ({torch.cuda.get_device_name(args.device)})" if args.device.type == "cuda" else ""
        lines = [
            ("model", f"{Path(model.config.name_or_path).name} ({type(model).__name__})"),
            ("parameters", f"{count:,}" + ("" if trained == count else f", of which {trained:,} are trained")),
            ("precision", f"weights in {', '.join(weights)}" + (f", computed in {mixed}" if mixed else "")),
            ("device", f"{args.device}{gpu}"),
            ("batch layout", f"{trainer.batch_layout} ({trainer.batch_layout_reason})"),
        ]
        _print_grid("Model", lines, console)
        console.print(Text("\nData", style="bold"))
        if found is not None:
            console.print(f"  The {read_as(found)}.", markup=False)
        for report in trainer.data_reports.values():
            lengths = report.lengths
            console.print(f"  {report.summary()}", markup=False)
            if lengths.responses:
                tokens = f"{lengths.shortest:,} to {lengths.longest:,} tokens, {lengths.mean:,.0f} on average"
                console.print(f"  Responses with their prompts: {tokens}.", markup=False)
        _print_grid("Objective", _objective_rows(trainer, row_kinds, columns), console)
        _show_example(trainer, batches[0][0], row_kinds, console)
        _show_costs(trainer, batches, console)
    console.print(Text(f"\nNothing was trained or written. Training would save to {output_dir}."), soft_wrap=True)


def _print_grid(title: str, rows: Sequence[tuple[str, ...]], console: Console) -> None:
    console.print(Text(f"\n{title}", style="bold"))
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 2))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def _objective_rows(
    trainer: RewardTrainer, row_kinds: frozenset[RowKind], columns: frozenset[str]
) -> list[tuple[str, str]]:
    args, name = trainer.args, trainer.training_objective.name
    prepared: Any = trainer.train_dataset
    reason = "set by `objective`" if args.objective != "auto" else "auto"
    if args.objective == "auto" and row_kinds:
        reason = f"auto: {choose_objective(row_kinds, columns)[1]}"
    kinds = [ROW_KIND_NAMES[row_kind] for row_kind in sorted(row_kinds)] or ["token ids with scores"]
    weighted = {"weight"} & set(prepared.column_names or ())
    named = [f"`{column}`" for column in (*sorted(columns), *weighted)]
    rows = " and ".join(kinds) + (f", with {' and '.join(named)}" if named else "")
    lines = [("objective", f"{name} ({reason})"), ("rows", rows)]
    if isinstance(prepared, Dataset):
        has_scores = "scores" in prepared.column_names
        counts = [len(scores) for scores in prepared["scores"]] if has_scores else [2] * len(prepared)
        per_row = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        lines.append(("responses", f"{sum(counts):,} in {len(counts):,} rows, {per_row} per row"))
    added = [f"{setting} {getattr(args, setting):g}" for setting in OBJECTIVE_SETTINGS[1:] if getattr(args, setting)]
    return [*lines, ("settings", ", ".join(added))] if added else lines


def _show_example(
    trainer: RewardTrainer, row: Mapping[str, Any], row_kinds: frozenset[RowKind], console: Console
) -> None:
    example = tokenized_example(row)
    responses = example.response_ids
    # Only a prompt that responses share can be told from them.
    prefix = common_prefix_length(responses) if len(responses) > 1 else 0
    tokenizer: Any = trainer.processing_class
    kind = "One tie" if example.label.preference_prob == 0.5 else "One example"
    console.print(Text(f"\n{kind}, tokens separated by {MARK}", style="bold"))
    if len(responses) > 1:
        console.print(Text(f"  Shared prompt: {prefix:,} tokens", style="dim"))
        console.print(render_tokens(responses[0][:prefix], tokenizer, rewarded=False))
    names = ["Chosen", "Rejected"]
    if "response_ids" in row:
        ratings, count = example.label.ratings, len(responses)
        labels = [f"score {rating:g}" for rating in ratings]
        if row_kinds == {"ranks"}:
            labels = [f"rank {-rating:g}" for rating in ratings]
        elif row_kinds == {"labels"}:
            labels = ["label true" if rating else "label false" for rating in ratings]
        elif row_kinds == {"ratings"}:
            labels = [f"rating {rating:g}" for rating in ratings]
        numbers = [f"Response {number} of {count}" for number in range(1, count + 1)] if count > 1 else ["Response"]
        names = [f"{number} ({label})" for number, label in zip(numbers, labels, strict=True)]
    for name, ids in list(zip(names, responses, strict=True))[:_RESPONSES_SHOWN]:
        tokens = f"{len(ids) - prefix:,} tokens, {len(ids):,}" if len(responses) > 1 else f"{len(ids):,} tokens"
        console.print(Text(f"  {name}: {tokens} with the prompt", style="dim"))
        console.print(render_tokens(ids[prefix:], tokenizer, rewarded=True))
    if len(responses) > _RESPONSES_SHOWN:
        console.print(f"  ... {len(responses) - _RESPONSES_SHOWN} more responses", markup=False)


def render_tokens(ids: Sequence[int], tokenizer: Any, *, rewarded: bool) -> Text:
    """Renders tokens with a mark after each, without the middle of a long text; `rewarded` marks the last one."""
    special = set(tokenizer.all_special_ids)
    text = Text()
    omitted = len(ids) - _SHOWN
    for index, token in enumerate(token_texts(ids, tokenizer)):
        if omitted > 0 and _SHOWN // 2 <= index < _SHOWN // 2 + omitted:
            if index == _SHOWN // 2:
                text.append(f" ... {omitted:,} tokens omitted ... ", style="italic")
            continue
        style = "bold magenta" if ids[index] in special else ("on grey23" if index % 2 else "")
        text.append(token.replace("\n", "↵\n"), style=style)
        text.append(MARK, style="dim")
    if rewarded:
        text.append(f" {READ}", style="bold green")
    return text


def token_texts(ids: Sequence[int], tokenizer: Any) -> list[str]:
    """Returns the text that each token adds; a character made of several tokens belongs to the last of them."""
    texts: list[str] = []
    start = 0  # of the tokens that are not written out yet
    for end in range(1, len(ids) + 1):
        # Decoded behind the token before it: some tokenizers drop a leading blank otherwise.
        before = tokenizer.decode(ids[start - 1 : start]) if start else ""
        text = tokenizer.decode(ids[max(start - 1, 0) : end])
        added = text[len(before) :] if text.startswith(before) else tokenizer.decode(ids[start:end])
        if added.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(added)
        start = end
    return texts


def _show_costs(trainer: RewardTrainer, batches: Sequence[Sequence[Any]], console: Console) -> None:
    """Shows what both layouts compute, and estimates memory, speed, steps and time of the training."""
    config, multiple, layout = trainer.args, trainer.args.pad_to_multiple_of, trainer.batch_layout
    tokenizer: Any = trainer.processing_class
    counts = [memory.count_tokens(rows, multiple) for rows in batches]
    total = sum(counts, Counter[str]())
    padded = tuple(PaddedCollator(tokenizer.pad_token_id, multiple)(batches[0])["input_ids"].shape)
    shared = tuple(SharedPrefixCollator()(batches[0])["input_ids"].shape)
    console.print(Text(f"\nBatches of {len(batches[0])} examples", style="bold"))
    over = "1 batch" if len(batches) == 1 else f"{len(batches)} batches"
    table = Table(box=None, padding=(0, 1, 0, 2))
    for column in ("layout", "first batch", f"tokens in {over}", ""):
        table.add_column(column, justify="right" if column.startswith("tokens") else "left", no_wrap=True)
    padding, saved = (1 - total[name] / max(total["padded"], 1) for name in ("responses", "shared_prefix"))
    table.add_row("padded", str(padded), f"{total['padded']:,}", f"{padding:.0%} are padding")
    table.add_row("shared_prefix", str(shared), f"{total['shared_prefix']:,}", f"{saved:.0%} saved")
    console.print(table)
    steps = count_steps(config, len(trainer.train_dataset) if isinstance(trainer.train_dataset, Dataset) else None)
    most = max(count[layout] for count in counts)
    try:
        more: dict[str, Any] = {"layout": layout, "loss_of_rows": trainer.loss_of_rows}
        needed = memory.estimate_memory(trainer.model, config, batches[0], most, **more)
        per_token, per_parameter = measure_speed(trainer, batches[0])
    except torch.OutOfMemoryError:
        reason = "Even a small batch does not fit into the device's memory."
        console.print(Text("\nEstimates", style="bold").append(f"\n  {reason}", style="not bold"))
        return
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    # Without loading, evaluation and checkpoints.
    batch_seconds = config.gradient_accumulation_steps * total[layout] / len(counts) * per_token
    seconds = steps * (batch_seconds + trained * per_parameter)
    parts = ", ".join(f"{name} {size(num_bytes)}" for name, num_bytes in needed.items())
    batch = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
    lines = [
        ("peak memory", f"about {size(sum(needed.values()))}: {parts}"),
        ("speed", f"{1 / per_token:,.0f} tokens/s forward and backward"),
        ("steps", f"{steps:,} of {batch:,} examples"),
        ("time", f"about {duration(seconds)} for training, without evaluation and checkpoints"),
    ]
    _print_grid("Estimates", lines, console)


def measure_speed(trainer: RewardTrainer, rows: Sequence[memory.Row]) -> tuple[float, float]:
    """Returns the seconds per computed token, forward and backward, and per trained parameter in an AdamW step.

    Gradients are dropped and the step is taken on a separate tensor: the weights do not change.
    """
    model: Any = trainer.model
    rows = memory.first_rows(rows, trainer.args, trainer.batch_layout, memory.MEASURED_TOKENS)
    model.train()
    checkpointing = memory.uses_checkpointing(model, trainer.args)
    if checkpointing:
        memory.switch_checkpointing(model, trainer.args, True)
    try:
        seconds = _second_run(lambda: trainer.loss_of_rows(rows).backward(), trainer.args.device)
    finally:
        if checkpointing:
            memory.switch_checkpointing(model, trainer.args, False)
        model.zero_grad(set_to_none=True)
    tokens = memory.count_tokens(rows, trainer.args.pad_to_multiple_of)[trainer.batch_layout]
    weight = nn.Parameter(torch.zeros(2**22, device=trainer.args.device))
    weight.grad = torch.zeros_like(weight)
    optimizer = torch.optim.AdamW([weight], fused=weight.device.type in ("cpu", "cuda"))
    return seconds / tokens, _second_run(optimizer.step, trainer.args.device) / weight.numel()


def _second_run(action: Any, device: torch.device) -> float:
    """Returns the seconds of a second run: the first one pays for memory that is new to the process."""
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
    return seconds


def count_steps(config: RewardConfig, rows: int | None) -> int:
    """Returns the optimizer steps of the whole run; `rows` is None for a stream, which has ``max_steps``."""
    if config.max_steps > 0:
        return config.max_steps
    batches = math.ceil((rows or 0) / (config.train_batch_size * config.world_size))
    per_epoch = max(math.ceil(batches / config.gradient_accumulation_steps), 1)
    return math.ceil(per_epoch * config.num_train_epochs)
