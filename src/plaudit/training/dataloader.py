"""The loader of prepared rows: our sampler deals them out to processes, accelerate moves batches to the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader

from plaudit.data import samplers
from plaudit.data.collate import tokenized_example
from plaudit.prefix_tree import share_prefixes
from plaudit.schema import Batch
from plaudit.training.config import RewardConfig

logger = logging.getLogger("plaudit")
_SORTED_AT_A_TIME = 2048  # rows of an evaluation that are in memory at once


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
    may_sort: bool = False,
) -> DataLoader[Any]:
    """Returns the micro-batches of this process: the same number on each process, in an order that all agree on.

    `padded` says whether batches are rectangles, which a limit on their tokens counts. `prompts` has equal numbers for
    rows with equal prompts, where rows are grouped by prompt. `may_sort` lets an evaluation order rows by their work.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    strategy = args.train_sampling_strategy
    processes: dict[str, Any] = {"process_index": args.process_index, "num_processes": args.world_size}
    order: Callable[[int], Sequence[int]] | None = None
    if is_training and prompts is not None:
        order = samplers.grouped_by_prompt(prompts, seed)
    elif is_training and strategy == "group_by_length":
        lengths = [max(map(len, tokenized_example(row).response_ids)) for row in rows]
        order = samplers.grouped_by_length(lengths, batch_size * args.world_size, seed)
    elif is_training and strategy != "sequential":
        order = samplers.shuffled(len(rows), seed)
    elif may_sort and not is_training:
        order = by_similar_work(rows, padded=padded)
    sampler: samplers.ExampleBatchSampler | samplers.TokenBatchSampler
    if is_training and args.max_tokens_per_batch is not None:
        sampler = samplers.TokenBatchSampler(
            _costs(rows, args.max_tokens_per_batch, padded),
            args.max_tokens_per_batch,
            **processes,
            seed=None if strategy == "sequential" else seed,
            order=None if order is None or prompts is None else order(0),
        )
        logger.info("Batches by tokens: %d rows in %d batches per process.", len(rows), len(sampler))
    else:
        drop_last = is_training and args.dataloader_drop_last
        sampler = samplers.ExampleBatchSampler(len(rows), batch_size, order=order, drop_last=drop_last, **processes)
    loader: DataLoader[Any] = DataLoader(
        samplers.WeightedRows(rows, sampler),
        batch_sampler=sampler,
        collate_fn=collator,
        num_workers=args.dataloader_num_workers,
        pin_memory=args.dataloader_pin_memory,
        persistent_workers=args.dataloader_persistent_workers,
        prefetch_factor=args.dataloader_prefetch_factor,
    )
    # One process, as far as accelerate is concerned: the sampler has dealt the rows out already.
    return prepare_data_loader(loader, device, num_processes=1, process_index=0, put_on_device=True)


def _costs(rows: Dataset, max_tokens: int, padded: bool) -> samplers.RowCost:
    """Counts what rows cost, and warns about those that are larger than a batch may be."""
    tokens, widths, responses = [], [], []
    for row in rows:
        example = tokenized_example(row)
        tokens.append(share_prefixes([example]).tree.tokens)
        widths.append(max(map(len, example.response_ids)))
        responses.append(len(example.response_ids))
    cost = samplers.RowCost(tokens, widths, responses, padded)
    oversized = [size for size in (cost.of([row]) for row in range(len(tokens))) if size > max_tokens]
    if oversized:
        logger.warning(
            "%d rows have more than max_tokens_per_batch=%d tokens by themselves (the largest %d): each makes a batch.",
            len(oversized),
            max_tokens,
            max(oversized),
        )
    return cost


# ---- the order of an evaluation -------------------------------------------------------------------------------


def by_similar_work(rows: Dataset, *, padded: bool) -> Callable[[int], list[int]]:
    """Returns the order in which rows that are cheap to compute together follow each other, for any epoch.

    In rectangles these are rows of similar length, the longest first; where prefixes are shared, rows of one prompt.
    """
    order: list[int] = []
    for start in range(0, len(rows), _SORTED_AT_A_TIME):
        chunk = rows.select(range(start, min(start + _SORTED_AT_A_TIME, len(rows))))
        response_ids = [tokenized_example(row).response_ids for row in chunk]
        if padded:
            widths = [-max(map(len, ids)) for ids in response_ids]
            order += [start + g for g in sorted(range(len(widths)), key=widths.__getitem__)]
        else:
            # Neighbours in the order of their tokens have most in common.
            order += [start + g for g in sorted(range(len(response_ids)), key=lambda g: list(response_ids[g][0]))]
    return lambda epoch: order


def in_row_order(values: Any, order: Sequence[int] | None) -> Any:
    """Returns arrays of shape (rows, ...), or any nesting of such, in the order of the rows instead of `order`."""
    if isinstance(values, Mapping):
        return {name: in_row_order(value, order) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return type(values)(in_row_order(value, order) for value in values)
    if order is None or not isinstance(values, np.ndarray) or values.shape[:1] != (len(order),):
        return values
    restored = np.empty_like(values)
    restored[np.asarray(order, dtype=np.int64)] = values
    return restored
