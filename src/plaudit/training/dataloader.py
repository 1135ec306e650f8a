"""The loader of prepared rows: dealt out by our own sampler, moved to the device by accelerate."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader

from plaudit.data.collate import tokenized_example
from plaudit.data.samplers import (
    ExampleBatchSampler,
    RowCost,
    TokenBatchSampler,
    WeightedRows,
    grouped_by_length,
    grouped_by_prompt,
    shuffled,
)
from plaudit.prefix_tree import share_prefixes
from plaudit.schema import Batch
from plaudit.training.config import RewardConfig

logger = logging.getLogger("plaudit")
_STRETCH = 2048  # rows of an evaluation that are in memory, and sorted, at a time


def example_loader(
    rows: Dataset,
    args: RewardConfig,
    batch_size: int,
    *,
    collator: Callable[[list[dict[str, Any]]], Batch],
    device: torch.device,
    is_training: bool,
    padded: bool = False,
    prompts: Sequence[int] | None = None,
) -> DataLoader[Any]:
    """Micro-batches of this process: as many as every other process gets, in an order that all agree on.

    Args:
        rows: Prepared rows.
        args: Says how rows are ordered and loaded, and which process this is.
        batch_size: Rows of a micro-batch.
        collator: Turns rows into a batch.
        device: Where batches go.
        is_training: Whether rows are shuffled; otherwise they come in order.
        padded: Whether batches are rectangles, which is what a limit on their tokens counts.
        prompts: For each row a number that is equal for equal prompts, where rows are to be grouped by them.
    """
    sampler: ExampleBatchSampler | TokenBatchSampler
    if is_training and args.max_tokens_per_batch is not None:
        sampler = _token_batches(rows, args, args.max_tokens_per_batch, padded, prompts)
    else:
        sampler = ExampleBatchSampler(
            len(rows),
            batch_size,
            process_index=args.process_index,
            num_processes=args.world_size,
            order=_order(rows, args, batch_size, prompts) if is_training else None,
            drop_last=is_training and args.dataloader_drop_last,
        )
    loader: DataLoader[Any] = DataLoader(
        WeightedRows(rows, sampler),
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    # One process, as far as accelerate is concerned: the sampler has dealt the rows out already.
    return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)


def sampler_of(loader: Any) -> ExampleBatchSampler | None:
    """The sampler of a loader that `example_loader` made, if it deals out rows by number.

    Args:
        loader: Any loader.
    """
    sampler = getattr(getattr(loader, "dataset", None), "sampler", None)
    return sampler if isinstance(sampler, ExampleBatchSampler) else None


def by_similar_work(rows: Dataset, *, padded: bool) -> list[int]:
    """An order of rows in which those that are cheap to compute together follow each other, the longest first.

    In rectangles these are rows of similar length; where prefixes are shared, rows of one prompt.

    Args:
        rows: Prepared rows.
        padded: Whether batches are rectangles.
    """
    order: list[int] = []
    for start in range(0, len(rows), _STRETCH):
        stretch = rows.select(range(start, min(start + _STRETCH, len(rows))))
        examples = [tokenized_example(row) for row in stretch]
        if padded:
            widths = [max(map(len, example.response_ids)) for example in examples]
            order += [start + g for g in sorted(range(len(widths)), key=widths.__getitem__, reverse=True)]
        else:
            # Neighbours in the order of their tokens have most in common.
            order += [start + g for g in sorted(range(len(examples)), key=lambda g: list(examples[g].response_ids[0]))]
    return order


def _seed(args: RewardConfig) -> int:
    return args.seed if args.data_seed is None else args.data_seed


def _token_batches(
    rows: Dataset, args: RewardConfig, max_tokens: int, padded: bool, prompts: Sequence[int] | None
) -> TokenBatchSampler:
    tokens, widths, responses = [], [], []
    for row in rows:
        example = tokenized_example(row)
        tokens.append(share_prefixes([example]).tree.tokens)
        widths.append(max(map(len, example.response_ids)))
        responses.append(len(example.response_ids))
    cost = RowCost(tokens, widths, responses, padded)
    alone = sum(cost.of([row]) > max_tokens for row in range(len(tokens)))
    if alone:
        logger.warning(
            "%d rows have more than max_tokens_per_batch=%d tokens by themselves (the largest %d): each makes a batch.",
            alone,
            max_tokens,
            max(cost.of([row]) for row in range(len(tokens))),
        )
    sampler = TokenBatchSampler(
        cost,
        max_tokens,
        process_index=args.process_index,
        num_processes=args.world_size,
        seed=None if args.train_sampling_strategy == "sequential" else _seed(args),
        order=None if prompts is None else grouped_by_prompt(prompts, _seed(args))(0),
    )
    logger.info("Batches by tokens: %d rows in %d batches a process.", len(tokens), len(sampler))
    return sampler


def _order(
    rows: Dataset, args: RewardConfig, batch_size: int, prompts: Sequence[int] | None
) -> Callable[[int], Sequence[int]] | None:
    seed = _seed(args)
    if prompts is not None:
        return grouped_by_prompt(prompts, seed)
    if args.train_sampling_strategy == "sequential":
        return None
    if args.train_sampling_strategy == "group_by_length":
        lengths = [max(map(len, tokenized_example(row).response_ids)) for row in rows]
        return grouped_by_length(lengths, batch_size * args.world_size, seed)
    return shuffled(len(rows), seed)
