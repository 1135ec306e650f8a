"""What a training run will need: tokens per batch in both layouts, peak memory, and time. Weights stay as they are."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from datasets import Dataset
from torch import nn

from plaudit.data.collate import common_prefix_length, tokenized_example
from plaudit.training.config import RewardConfig
from plaudit.training.trainer import RewardTrainer
from plaudit.types import Batch

SAMPLED_BATCHES = 64
SAMPLED_BATCHES_OF_A_STREAM = 8
_MEASURED_TOKENS = 512

Row = Mapping[str, Any]


def sample_batches(trainer: RewardTrainer) -> list[list[Row]]:
    """Rows of up to 64 training batches, drawn like the Trainer draws them (of a stream: its first few batches)."""
    size, dataset = trainer.args.train_batch_size, trainer.train_dataset
    if isinstance(dataset, Dataset):
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(trainer.args.seed))
        rows: list[Row] = [dataset[index] for index in order[: SAMPLED_BATCHES * size].tolist()]
    else:
        rows = list(islice(iter(dataset), SAMPLED_BATCHES_OF_A_STREAM * size))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


# --- tokens -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenCount:
    """Tokens of some batches.

    Attributes:
        responses: Tokens of all responses, prompts included.
        padded: Tokens computed in the padded layout.
        shared_prefix: Tokens computed in the shared-prefix layout.
    """

    responses: int = 0
    padded: int = 0
    shared_prefix: int = 0

    @property
    def padding_share(self) -> float:
        """Share of the padded rectangle that is padding."""
        return 1 - self.responses / max(self.padded, 1)

    @property
    def saved_share(self) -> float:
        """Share of the rectangle's tokens that the shared-prefix layout need not compute."""
        return 1 - self.shared_prefix / max(self.padded, 1)

    def __add__(self, other: TokenCount) -> TokenCount:
        return TokenCount(
            self.responses + other.responses,
            self.padded + other.padded,
            self.shared_prefix + other.shared_prefix,
        )

    def computed(self, layout: str) -> int:
        """Tokens computed in a layout."""
        return self.shared_prefix if layout == "shared_prefix" else self.padded


def count_tokens(rows: Sequence[Row], pad_to_multiple_of: int | None = None) -> TokenCount:
    """Count the tokens of one batch.

    Args:
        rows: Prepared rows.
        pad_to_multiple_of: Rounds the width of the rectangle up.

    >>> count_tokens([{"chosen_ids": [1, 2, 3], "rejected_ids": [1, 2, 4, 5]}])
    TokenCount(responses=7, padded=8, shared_prefix=5)
    """
    examples = [tokenized_example(row).response_ids for row in rows]
    lengths = [len(ids) for responses in examples for ids in responses]
    step = pad_to_multiple_of or 1
    shared = sum((len(responses) - 1) * common_prefix_length(responses) for responses in examples)
    return TokenCount(
        responses=sum(lengths),
        padded=len(lengths) * math.ceil(max(lengths) / step) * step,
        shared_prefix=sum(lengths) - shared,
    )


# --- memory -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """Bytes that training holds at its peak on one device, without sharding.

    Attributes:
        weights: All parameters.
        gradients: One number for each trained parameter, in its type.
        optimizer: What the optimizer keeps for each trained parameter.
        activations: What the largest sampled batch keeps for the backward pass.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer + self.activations


def estimate_memory(trainer: RewardTrainer, rows: Sequence[Row], tokens: int) -> Memory:
    r"""Estimate the peak memory of training.

    .. math:: M = \underbrace{\sum_{all} s}_{weights} + \underbrace{\sum_{trained} s}_{gradients}
        + \underbrace{\sum_{trained} k}_{optimizer} + a + b\,T

    with :math:`s` the bytes of a parameter and :math:`k` those that the optimizer keeps for it (two moments in the
    parameter's own type for Adam; see `optimizer_bytes`). The bytes kept for the backward pass are counted while
    small batches of two sizes run forward: the line through them has intercept :math:`a` (copies of weights in lower
    precision) and slope :math:`b`, and :math:`T` is the size of the largest sampled batch in tokens. With gradient
    checkpointing, where only the inputs of layers are kept, one layer's worth of what would be kept otherwise comes
    on top. Temporary buffers and the allocator's slack are not included: allow for a tenth more.

    Args:
        trainer: Its model is run, not changed.
        rows: Prepared rows of one batch.
        tokens: Tokens computed for the largest batch.
    """
    model: Any = trainer.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    checkpointing = bool(trainer.args.gradient_checkpointing)
    kept = _activations(trainer, rows, tokens)
    if checkpointing and getattr(model, "supports_gradient_checkpointing", False):
        layers = max(getattr(model.config.get_text_config(), "num_hidden_layers", 1), 1)
        with _checkpointing(model, trainer.args):
            kept = _activations(trainer, rows, tokens) + kept // layers
    return Memory(
        weights=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        gradients=sum(parameter.numel() * parameter.element_size() for parameter in trained),
        optimizer=sum(optimizer_bytes(trainer.args, parameter) for parameter in trained),
        activations=kept,
    )
