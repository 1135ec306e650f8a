"""Scores the rows of a suite, and variants of some of them for sanity checks, into one table."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from plaudit.data.report import KIND_WORDS, Flag, row_names
from plaudit.errors import DataError
from plaudit.evaluation.checks import ALONE, PADDED, SWAPPED, swap_labels
from plaudit.evaluation.judge import EvaluationSettings, judge
from plaudit.evaluation.results import SuiteEvaluation
from plaudit.evaluation.suites.base import SuiteRow
from plaudit.evaluation.suites.registry import LoadedSuite
from plaudit.evaluation.table import by_row, table_of
from plaudit.inference.files import CHUNK_SIZE, RowScores, current_process, score_in_chunks
from plaudit.inference.io import rows_in_memory
from plaudit.inference.reward_model import RewardModel
from plaudit.model.head import score_heads_of
from plaudit.model.peft import base_model_of
from plaudit.model.shared_prefix import BatchLayout
from plaudit.schema import RAW_COLUMNS, response_field, row_kind_of

logger = logging.getLogger("plaudit")


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restores a model's forward methods, modes and attention after scoring; a trainer may have wrapped its forward."""
    base = base_model_of(model)
    changed = [base, *score_heads_of(base)]
    forwards = [module.__dict__.get("forward") for module in changed]
    modes = [(module, module.training) for module in model.modules()]
    attention = base.config._attn_implementation
    expands = getattr(base, "expand_shared_prefix", None)
    try:
        yield
    finally:
        for module, forward in zip(changed, forwards, strict=True):
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.forward = forward
        if base.config._attn_implementation != attention:
            base.set_attn_implementation(attention)
        if expands is None and hasattr(base, "expand_shared_prefix"):
            del base.expand_shared_prefix
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def warnings_once() -> Iterator[None]:
    """Shows each warning once: several views of a model, and several models, give the same ones."""
    seen: set[str] = set()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        known = record.levelno >= logging.WARNING and text in seen
        seen.add(text)
        return not known

    logger.addFilter(is_new)
    try:
        yield
    finally:
        logger.removeFilter(is_new)


def model_for(
    model: RewardModel,
    settings: EvaluationSettings,
    *,
    batch_layout: BatchLayout | None = None,
    max_tokens_per_batch: int | None = None,
) -> RewardModel:
    """Returns a view of a model that scores as the settings say; by default batches are laid out as the model's."""
    own_layout: BatchLayout = "auto" if model.batch_layout == "shared_prefix" else "padded"
    limits = [limit for limit in (settings.max_length, model.max_length) if limit is not None]
    disabled, logger.disabled = logger.disabled, True  # the model itself has given the warnings
    try:
        return RewardModel(
            model.model,
            model.processing_class,
            batch_layout=batch_layout or own_layout,
            max_tokens_per_batch=max_tokens_per_batch or model.max_tokens_per_batch,
            max_length=min(limits, default=None),
            overlong="nan" if settings.overlong == "drop" else settings.overlong,
            calibration=model.calibration,
            name=model.name,
        )
    finally:
        logger.disabled = disabled


def evaluate_suite(
    model: RewardModel,
    suite: LoadedSuite,
    settings: EvaluationSettings,
    *,
    folder: Path | None = None,
    progress: bool = False,
) -> SuiteEvaluation:
    """Scores a suite with a view of :func:`model_for`, some rows also in variants for sanity checks, and judges it.

    Scoring resumes from the finished chunks in a folder. A row that cannot be scored, or has a reward that is not
    finite, raises `DataError` that names source, row and field.
    """
    start = time.perf_counter()
    tables = [score_rows(model, suite.rows, settings, folder=folder, progress=progress)]
    seconds = time.perf_counter() - start
    rewards = by_row(tables[0])
    scored = [row for row in suite.rows if (row.source, row.number) in rewards]
    drawn = np.random.default_rng(settings.seed).permutation(len(scored))[: max(settings.sanity_rows, 0)]
    rows = [scored[index] for index in sorted(drawn.tolist())]
    if rows:
        listed = (row for row in rows if row_kind_of(row.raw) in ("pairs", "scores", "ranks"))
        swapped = [replace(row, raw=swap_labels(row.raw)) for row in listed]
        alone = model_for(model, settings, max_tokens_per_batch=1)
        tables.append(score_rows(model, swapped, settings, variant=SWAPPED))
        tables.append(score_rows(alone, rows, settings, variant=ALONE))
        # The shortest rows in one rectangle with the longest are padded as much as possible; one pair of rows after
        # the other, since more at a time would take more memory than the model had.
        tokens = max(model.max_tokens_per_batch, 8 * (model.max_length or 2048))
        padded = model_for(model, settings, batch_layout="padded", max_tokens_per_batch=tokens)
        ordered = sorted(rows, key=lambda row: sum(map(len, row.texts())))
        half = (len(ordered) + 1) // 2
        for short, long in zip(ordered[:half], reversed(ordered[len(ordered) - half :]), strict=True):
            pair = [short] if short is long else [short, long]
            tables.append(score_rows(padded, pair, settings, variant=PADDED))
    evaluated = judge(
        pa.concat_tables(tables),
        suite,
        replace(settings, max_length=model.max_length),
        temperature=model.calibration.temperature if model.calibration is not None else 1.0,
        dtype=str(model.dtype).removeprefix("torch."),
    )
    return replace(evaluated, seconds=seconds)


def log_dropped(evaluated: SuiteEvaluation) -> None:
    """Logs which rows were dropped."""
    for kind, count in evaluated.dropped.items():
        rows = row_names(count.first_rows, count.count)
        logger.warning("%s: not scored: %d %s (%s).", evaluated.name, count.count, KIND_WORDS[kind], rows)


def score_rows(
    model: RewardModel,
    rows: Sequence[SuiteRow],
    settings: EvaluationSettings,
    *,
    variant: str = "",
    folder: Path | None = None,
    progress: bool = False,
) -> pa.Table:
    """Returns the table of some rows, source by source."""
    lines: list[tuple[Any, ...]] = []
    sources = itertools.groupby(rows, key=lambda row: row.source)
    for number, (_, of_source) in enumerate(sources):
        members = list(of_source)
        # Other columns could be taken for responses, such as messages kept beside a pair.
        raws = [{name: value for name, value in row.raw.items() if name in RAW_COLUMNS} for row in members]
        # Chunks are worth keeping if there are several; several processes each score all rows.
        resumable = folder is not None and len(members) > CHUNK_SIZE and current_process()[1] == 1
        kept = folder / str(number) if folder is not None and resumable else None
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
        given = rows_in_memory(raws, members[0].source, members[0].features)
        scores = score_in_chunks(model, given, kept, errors="nan", chunk_size=CHUNK_SIZE, progress=progress)
        scored = list(zip(members, scores, strict=True))
        for start in range(0, len(scored), CHUNK_SIZE):
            lines += _lines(model, scored[start : start + CHUNK_SIZE], settings, variant)
    return table_of(lines)


def _lines(
    model: RewardModel, batch: Sequence[tuple[SuiteRow, RowScores]], settings: EvaluationSettings, variant: str
) -> Iterator[tuple[Any, ...]]:
    texts = [row.texts() if scores.error is None and not variant else () for row, scores in batch]
    flat = [text for of_row in texts for text in of_row]
    ids = iter(model.processing_class(flat, add_special_tokens=False)["input_ids"] if flat else ())
    for (row, scores), of_row in zip(batch, texts, strict=True):
        if scores.error is not None:
            error = scores.error
            named = DataError(error.message, row=row.number, field=error.field, dataset=row.source, fix=error.fix)
            if settings.errors == "raise" and not (scores.flags & Flag.OVERLONG and settings.overlong == "drop"):
                raise named
            yield row.source, row.number, row.id, 0, None, None, variant, scores.flags, str(named)
            continue
        if not all(map(math.isfinite, scores.rewards)):
            raise _not_finite(model, row, scores.rewards)
        tokens: list[int | None] = [len(next(ids)) for _ in of_row] or [None] * len(scores.rewards)
        for index, (reward, count) in enumerate(zip(scores.rewards, tokens, strict=True)):
            yield row.source, row.number, row.id, index, reward, count, variant, scores.flags, None


def _not_finite(model: RewardModel, row: SuiteRow, rewards: Sequence[float]) -> DataError:
    """Returns the error about a row with a reward that is NaN or infinite."""
    example = row.example()
    beside = {"tools": example.tools, "chat_template_kwargs": example.chat_template_kwargs}
    # One by one: computed together, what is wrong with one response spreads to those beside it.
    alone = [
        model.score(response if isinstance(response, str) else {"messages": response, **beside}, errors="nan")
        for response in example.responses
    ]
    values = rewards if all(map(math.isfinite, alone)) else alone
    index = next(index for index, value in enumerate(values) if not math.isfinite(value))
    return DataError(
        f"the reward is {float(values[index])}",
        row=row.number,
        field=response_field(example.row_kind, index),
        dataset=row.source,
        fix="Look at the model (its dtype, a damaged checkpoint) and at the text of the row.",
    )
