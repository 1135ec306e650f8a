"""Memory of a training run: estimated before it starts, saved by recomputing or offloading, kept once it is freed."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import logging
import math
import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import psutil
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor, nn

from plaudit.data.collate import tokenized_example
from plaudit.model.head import evaluating
from plaudit.model.peft import is_peft_model
from plaudit.prefix_tree import share_prefixes
from plaudit.training.config import RewardConfig

logger = logging.getLogger("plaudit")
Row: TypeAlias = Mapping[str, Any]
LossOfRows: TypeAlias = Callable[[Sequence[Row]], Tensor]
"""Runs prepared rows as one training batch and returns its loss: `RewardTrainer.loss_of_rows`."""

# --- freed memory -----------------------------------------------------------------------------------------

# From malloc.h of glibc, https://man7.org/linux/man-pages/man3/mallopt.3.html
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_NEVER = -1
_AT_ONCE = 64 * 2**20
# What a process starts with. The trim threshold would adapt itself from there; that cannot be turned on again.
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 2**10, _TOP_PAD: 128 * 2**10, _MMAP_THRESHOLD: 128 * 2**10, _MMAP_MAX: 65536}


@contextlib.contextmanager
def keep_freed_memory(device: torch.device) -> Iterator[None]:
    """Context that keeps freed memory within the process, and returns it to the system afterwards.

    A step frees and asks for the same buffers again, and new pages cost time. Has an effect on a CPU with glibc's own
    allocator only.
    """
    library = _glibc() if device.type == "cpu" else None
    if library is None:
        yield
        return
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _AT_ONCE)):
        library.mallopt(option, value)
    try:
        yield
    finally:
        for option, value in _DEFAULTS.items():
            library.mallopt(option, value)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    # Allocators that are preloaded (jemalloc, tcmalloc) keep memory themselves, and may lack these.
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


# --- offloading -------------------------------------------------------------------------------------------

_SMALL = 1024  # elements: moving smaller tensors costs more than it saves


def offload_activations(model: nn.Module, *, pin_memory: bool = True) -> contextlib.AbstractContextManager[None]:
    """Context that moves what autograd saves to the host's memory, and back when the backward pass asks for it.

    Parameters stay where they are, although autograd saves them too. Copies to pinned memory run while it computes.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: Tensor) -> Tensor | tuple[torch.device, Tensor]:
        if tensor.numel() < _SMALL or tensor.untyped_storage().data_ptr() in parameters:
            return tensor
        host = torch.empty(tensor.size(), dtype=tensor.dtype, layout=tensor.layout, pin_memory=pin_memory)
        host.copy_(tensor, non_blocking=pin_memory)
        return tensor.device, host

    def unpack(packed: Tensor | tuple[torch.device, Tensor]) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        device, host = packed
        return host.to(device, non_blocking=pin_memory, copy=device.type == "cpu")

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)


# --- tokens -----------------------------------------------------------------------------------------------

SAMPLED_BATCHES = 64
SAMPLED_BATCHES_OF_A_STREAM = 8
MEASURED_TOKENS = 512


def sample_batches(dataset: Dataset | IterableDataset, args: RewardConfig) -> list[list[Row]]:
    """Returns the prepared rows of up to 64 batches in random order; of a stream, the first few batches."""
    size = args.train_batch_size
    rows: list[Row]
    if isinstance(dataset, Dataset):
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))
        rows = [dataset[index] for index in order[: SAMPLED_BATCHES * size].tolist()]
    else:
        rows = list(islice(iter(dataset), SAMPLED_BATCHES_OF_A_STREAM * size))
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def count_tokens(rows: Sequence[Row], pad_to_multiple_of: int | None = None) -> Counter[str]:
    """Counts the tokens of a batch of prepared rows: of all responses with their prompts, and computed per layout."""
    examples = [tokenized_example(row) for row in rows]
    lengths = [len(ids) for example in examples for ids in example.response_ids]
    step = pad_to_multiple_of or 1
    return Counter(
        responses=sum(lengths),
        padded=len(lengths) * math.ceil(max(lengths) / step) * step,
        shared_prefix=share_prefixes(examples).tree.tokens,
    )


def first_rows(rows: Sequence[Row], args: RewardConfig, layout: str, limit: int) -> list[Row]:
    """Returns the first rows of a batch that stay below a number of computed tokens; one row at least."""
    taken = [rows[0]]
    for row in rows[1:]:
        if count_tokens([*taken, row], args.pad_to_multiple_of)[layout] > limit:
            break
        taken.append(row)
    return taken


# --- the estimate -----------------------------------------------------------------------------------------


def estimate_memory(
    model: Any, args: RewardConfig, rows: Sequence[Row], tokens: int, *, layout: str, loss_of_rows: LossOfRows
) -> dict[str, int]:
    r"""Estimates the bytes that unsharded training holds at its peak, by what they are for.

    `rows` are one batch, and the largest batch computes `tokens` tokens.

    .. math:: M = \underbrace{\sum_{all} s}_{weights} + \underbrace{\sum_{trained} s}_{gradients}
        + \underbrace{\sum_{trained} k}_{optimizer} + \underbrace{a + b\,T}_{activations}

    with :math:`s` the bytes of a parameter and :math:`k` those that the optimizer keeps for it
    (`optimizer_bytes`). Temporary buffers and the allocator's slack are not included: allow for a tenth more.
    """
    # What is kept for the backward pass is counted while small batches of two sizes run forward. The line through
    # them has intercept a (copies of weights in lower precision) and slope b.
    measured = []
    for limit in (MEASURED_TOKENS // 4, MEASURED_TOKENS):
        batch = first_rows(rows, args, layout, limit)
        computed = count_tokens(batch, args.pad_to_multiple_of)[layout]
        measured.append((computed, saved_bytes(model, loss_of_rows, batch)))
    (few, few_bytes), (many, many_bytes) = measured
    if many <= few:
        kept = many_bytes * tokens // many
    else:
        kept = int(few_bytes + max(many_bytes - few_bytes, 0) / (many - few) * (tokens - few))
    if uses_checkpointing(model, args):
        # Kept are the inputs of the layers, and what one layer keeps while it is recomputed.
        config = model.config.get_text_config()
        layers = max(getattr(config, "num_hidden_layers", 1), 1)
        width = getattr(config, "hidden_size", 0) * next(model.parameters()).element_size()
        kept = layers * tokens * width + kept // layers
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optim = str(getattr(args.optim, "value", args.optim))
    return {
        "weights": sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        "gradients": sum(parameter.numel() * parameter.element_size() for parameter in trained),
        "optimizer": sum(optimizer_bytes(optim, parameter) for parameter in trained),
        "activations": kept,
    }


def optimizer_bytes(optim: str, parameter: Tensor) -> int:
    """Returns the bytes that an optimizer, named as in ``TrainingArguments.optim``, keeps for a parameter.

    >>> weight = torch.zeros(8, 4)
    >>> [optimizer_bytes(name, weight) for name in ("adamw_torch_fused", "adamw_8bit", "adafactor", "sgd")]
    [256, 64, 48, 0]
    """
    if optim == "sgd":
        return 0
    if optim == "adafactor":
        return 4 * sum(parameter.shape) if parameter.dim() > 1 else 4 * parameter.numel()
    numbers = 1 if any(name in optim for name in ("lion", "adagrad", "rmsprop")) else 2
    half_bytes = 2 if "8bit" in optim else 1 if "4bit" in optim else 2 * parameter.element_size()
    return numbers * parameter.numel() * half_bytes // 2


def saved_bytes(model: nn.Module, loss_of_rows: LossOfRows, rows: Sequence[Row]) -> int:
    """Returns the bytes that the forward pass of a batch saves for the backward pass."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss_of_rows(rows)
    return sum(saved.values())


# --- gradient checkpointing -------------------------------------------------------------------------------

SLACK = 1.25  # temporary buffers, the allocator's slack and batches larger than the sampled ones


def uses_checkpointing(model: Any, args: RewardConfig) -> bool:
    """Returns whether training recomputes activations, as far as that is decided."""
    return bool(args.gradient_checkpointing) and getattr(model, "supports_gradient_checkpointing", False)


def switch_checkpointing(model: Any, args: RewardConfig, on: bool) -> None:
    """Lets a model, maybe with an adapter, recompute activations, or keep them."""
    # Newer transformers have another name for it, and warn about the old one.
    names = [f"{kind}_checkpointing_{'enable' if on else 'disable'}" for kind in ("activation", "gradient")]
    switch = getattr(model, names[0], None) or getattr(model, names[1])
    switch(*([args.gradient_checkpointing_kwargs] if on else []))
    if on and is_peft_model(model):
        model.enable_input_require_grads()


def with_checkpointing(args: RewardConfig, on: bool) -> RewardConfig:
    """Returns a copy of the settings with gradient checkpointing on or off, under both of its names."""
    args = copy.copy(args)
    args.gradient_checkpointing = on
    if hasattr(args, "activation_checkpointing"):
        args.activation_checkpointing = on
    return args


def decide_checkpointing(
    model: Any, args: RewardConfig, dataset: Any, *, layout: str, loss_of_rows: LossOfRows
) -> tuple[bool, str]:
    """Decides whether training without gradient checkpointing would need more memory than is free, and says why."""
    if not isinstance(dataset, Dataset):
        return True, "a stream is not read beforehand"
    free = free_bytes(args.device, args.world_size)
    if free is None:
        return True, "free memory is unknown on this device"
    needed = SLACK * needed_bytes(model, args, dataset, layout=layout, loss_of_rows=loss_of_rows)
    return needed > free, f"about {needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"


def needed_bytes(model: Any, args: RewardConfig, dataset: Dataset, *, layout: str, loss_of_rows: LossOfRows) -> int:
    """Returns the bytes that training needs beyond the weights, which are in memory already."""
    batches = sample_batches(dataset, args)
    sizes = [count_tokens(rows, args.pad_to_multiple_of)[layout] for rows in batches]
    if args.max_tokens_per_batch is not None:
        # Batches are filled by another rule than the sampled ones; a single row may still be larger.
        sizes = [size // len(rows) for size, rows in zip(sizes, batches, strict=True)]
        sizes.append(args.max_tokens_per_batch)
    with evaluating(model, args.device):  # so that nothing is counted among the metrics of training
        memory = estimate_memory(model, args, batches[0], max(sizes), layout=layout, loss_of_rows=loss_of_rows)
    return sum(memory.values()) - memory["weights"]


def free_bytes(device: torch.device, processes: int = 1, container: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Returns the memory that a process may still take on its device (None: unknown); processes share a CPU's."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # no container, or one without a limit ("max")
        limit = int((container / "memory.max").read_text())
        free = min(free, max(limit - int((container / "memory.current").read_text()), 0))
    return free // processes
