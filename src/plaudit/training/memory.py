"""How much memory a training run will need, estimated before it starts. The weights stay as they are."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import logging
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import psutil
import torch
from datasets import Dataset
from torch import nn

from plaudit.data.collate import tokenized_example
from plaudit.model.peft import is_peft_model
from plaudit.prefix_tree import share_prefixes
from plaudit.schema import Batch
from plaudit.training.config import RewardConfig

if TYPE_CHECKING:
    from plaudit.training.trainer import RewardTrainer


# From malloc.h of glibc, https://man7.org/linux/man-pages/man3/mallopt.3.html
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_NEVER = -1
_AT_ONCE = 64 * 2**20
# What a process starts with. The trim threshold would adapt itself from there; that cannot be turned on again.
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 2**10, _TOP_PAD: 128 * 2**10, _MMAP_THRESHOLD: 128 * 2**10, _MMAP_MAX: 65536}


@contextlib.contextmanager
def freed_memory_kept(device: torch.device) -> Iterator[None]:
    """Keep freed memory within the process inside this context, and hand it back afterwards.

    Does nothing on other devices, other systems, or with another allocator in glibc's place.

    Args:
        device: Where the model is trained.
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
    """The C library of this process, if it is glibc with its own allocator."""
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    # Allocators that are preloaded (jemalloc, tcmalloc) keep memory themselves, and may lack these.
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


logger = logging.getLogger("plaudit")
Packed: TypeAlias = torch.Tensor | tuple[torch.device, torch.Tensor]
_SMALL = 1024
"""Tensors of fewer elements stay where they are: moving them costs more than it saves."""


def offloading_or_nothing(model: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """A context for the forward pass that offloads activations, or does nothing.

    Args:
        model: Its parameters stay on the accelerator.
        wanted: The setting; without an accelerator it does nothing.
    """
    on_accelerator = next(model.parameters()).device.type not in ("cpu", "meta")
    return offload_activations(model, pin_memory=True) if wanted and on_accelerator else contextlib.nullcontext()


@contextlib.contextmanager
def offload_activations(model: nn.Module, *, pin_memory: bool = False) -> Iterator[None]:
    """Move what autograd saves in this context to the host's memory, and back when the backward pass asks for it.

    Args:
        model: Its parameters are saved by autograd too, but stay where they are.
        pin_memory: Use pinned host memory, so that copies run beside the computation.
    """
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> Packed:
        if tensor.numel() < _SMALL or tensor.untyped_storage().data_ptr() in parameters:
            return tensor
        host = torch.empty(tensor.size(), dtype=tensor.dtype, layout=tensor.layout, pin_memory=pin_memory)
        host.copy_(tensor, non_blocking=pin_memory)
        return tensor.device, host

    def unpack(packed: Packed) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        device, host = packed
        return host.to(device, non_blocking=pin_memory, copy=device.type == "cpu")

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


def warn_if_useless(wanted: bool) -> None:
    """Say that offloading does nothing on this machine."""
    if wanted and not torch.accelerator.is_available():
        logger.warning("`activation_offloading` does nothing here: there is no accelerator to offload from.")


SAMPLED_BATCHES = 64
SAMPLED_BATCHES_OF_A_STREAM = 8
MEASURED_TOKENS = 512
Row = Mapping[str, Any]


def sample_batches(trainer: RewardTrainer) -> list[list[Row]]:
    """Rows of up to 64 training batches in random order (of a stream: its first few batches)."""
    size = trainer.args.train_batch_size
    dataset: Any = trainer.train_dataset
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
    examples = [tokenized_example(row) for row in rows]
    lengths = [len(ids) for example in examples for ids in example.response_ids]
    step = pad_to_multiple_of or 1
    return TokenCount(
        responses=sum(lengths),
        padded=len(lengths) * math.ceil(max(lengths) / step) * step,
        shared_prefix=share_prefixes(examples).tree.tokens,
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
        + \underbrace{\sum_{trained} k}_{optimizer} + \underbrace{a + b\,T}_{activations}

    with :math:`s` the bytes of a parameter and :math:`k` those that the optimizer keeps for it
    (`optimizer_bytes`). What is kept for the backward pass is counted while small batches of two sizes run
    forward; the line through them has intercept :math:`a` (copies of weights in lower precision) and slope
    :math:`b`, and :math:`T` is the size of the largest batch in tokens. Gradient checkpointing keeps the
    inputs of the :math:`L` layers, of hidden size :math:`H`, and what one layer keeps while it is worked on:
    :math:`L\,T\,H\,s + (a + b\,T)/L`. Temporary buffers and the allocator's slack are not included: allow for
    a tenth more.

    Args:
        trainer: Its model is run, not changed.
        rows: Prepared rows of one batch.
        tokens: Tokens computed for the largest batch.
    """
    model: Any = trainer.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optim = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    kept = _activations(trainer, rows, tokens)
    if checkpoints_activations(trainer):
        config = model.config.get_text_config()
        layers = max(getattr(config, "num_hidden_layers", 1), 1)
        width = getattr(config, "hidden_size", 0) * next(model.parameters()).element_size()
        kept = layers * tokens * width + kept // layers
    return Memory(
        weights=sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()),
        gradients=sum(parameter.numel() * parameter.element_size() for parameter in trained),
        optimizer=sum(optimizer_bytes(optim, parameter) for parameter in trained),
        activations=kept,
    )


def optimizer_bytes(optim: str, parameter: torch.Tensor) -> int:
    """Bytes that an optimizer keeps for a parameter.

    Args:
        optim: Name of the optimizer, as in ``TrainingArguments.optim``.
        parameter: A trained parameter.

    >>> weight = torch.zeros(8, 4)
    >>> [optimizer_bytes(name, weight) for name in ("adamw_torch_fused", "adamw_8bit", "adafactor", "sgd")]
    [256, 64, 48, 0]
    """
    if optim == "sgd":
        return 0
    if optim == "adafactor":
        return 4 * sum(parameter.shape) if parameter.dim() > 1 else 4 * parameter.numel()
    numbers = 1 if any(name in optim for name in ("lion", "adagrad", "rmsprop")) else 2
    if "8bit" in optim:
        return numbers * parameter.numel()
    if "4bit" in optim:
        return numbers * parameter.numel() // 2
    return numbers * parameter.numel() * parameter.element_size()


def checkpoints_activations(trainer: RewardTrainer) -> bool:
    """Whether training will recompute activations, as far as that is settled."""
    model: Any = trainer.model
    return bool(trainer.args.gradient_checkpointing) and getattr(model, "supports_gradient_checkpointing", False)


def _activations(trainer: RewardTrainer, rows: Sequence[Row], tokens: int) -> int:
    """Bytes kept for the backward pass of a batch of a given size, without gradient checkpointing."""
    small, large = (
        small_batch(trainer, rows, MEASURED_TOKENS // 4),
        small_batch(trainer, rows, MEASURED_TOKENS),
    )
    few, few_bytes = _kept(trainer, small)
    many, many_bytes = _kept(trainer, large)
    if many <= few:
        return many_bytes * tokens // many
    slope = max(many_bytes - few_bytes, 0) / (many - few)
    return int(few_bytes + slope * (tokens - few))


def _kept(trainer: RewardTrainer, rows: Sequence[Row]) -> tuple[int, int]:
    """Tokens computed for a batch, and the bytes that its forward pass keeps."""
    model: Any = trainer.model
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_of(trainer, collate(trainer, rows))
    return count_tokens(rows, trainer.args.pad_to_multiple_of).computed(trainer.batch_layout), sum(kept.values())


# --- running a batch --------------------------------------------------------------------------------------


def small_batch(trainer: RewardTrainer, rows: Sequence[Row], limit: int) -> list[Row]:
    """The first rows of a batch that stay below a number of computed tokens; one row at least."""
    taken = [rows[0]]
    for row in rows[1:]:
        count = count_tokens([*taken, row], trainer.args.pad_to_multiple_of)
        if count.computed(trainer.batch_layout) > limit:
            break
        taken.append(row)
    return taken


def collate(trainer: RewardTrainer, rows: Sequence[Row]) -> Batch:
    """A batch as training would see it, on the model's device."""
    batch = trainer.data_collator([dict(row) for row in rows])
    return trainer._prepare_inputs(batch)


def loss_of(trainer: RewardTrainer, batch: Batch) -> Any:
    """The loss of a batch, in the precision of the training."""
    model: Any = trainer.model
    with trainer.accelerator.autocast():
        return trainer.compute_loss(model, batch)


def checkpointing_switch(model: Any, verb: str) -> Any:
    """The method that turns gradient checkpointing on ("enable") or off ("disable")."""
    # Newer transformers have another name for it, and warn about the old one.
    return getattr(model, f"activation_checkpointing_{verb}", None) or getattr(model, f"gradient_checkpointing_{verb}")


SLACK = 1.25
"""Temporary buffers, the allocator's slack and batches larger than the sampled ones, on top of the estimate."""


def decides_itself(args: RewardConfig) -> bool:
    """Whether the settings leave gradient checkpointing to the estimate."""
    return args.gradient_checkpointing == "auto"


def with_checkpointing(args: RewardConfig, on: bool) -> RewardConfig:
    """A copy of settings in which gradient checkpointing is decided, under both of its names.

    Args:
        args: The settings.
        on: What was decided.
    """
    args = copy.copy(args)
    args.gradient_checkpointing = on
    if hasattr(args, "activation_checkpointing"):
        args.activation_checkpointing = on
    return args


def turn_checkpointing_on(model: Any, args: RewardConfig) -> None:
    """Let a model recompute activations.

    Args:
        model: The model as it is trained, maybe with an adapter. Changed in place.
        args: Their ``gradient_checkpointing_kwargs`` are used.
    """
    checkpointing_switch(model, "enable")(args.gradient_checkpointing_kwargs)
    if is_peft_model(model):
        model.enable_input_require_grads()


@dataclass(frozen=True)
class Decision:
    """What was decided, and why.

    Attributes:
        on: Whether activations are recomputed.
        reason: For the log.
    """

    on: bool
    reason: str


def decide(trainer: RewardTrainer) -> Decision:
    """Hold what training needs without gradient checkpointing against the memory that is free.

    All processes decide alike: if one is short of memory, all recompute.

    Args:
        trainer: Before training. Its model runs forward on a few rows and stays as it is.
    """
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        return Decision(True, "the memory of sharded training is not estimated")
    if not isinstance(trainer.train_dataset, Dataset):
        return Decision(True, "a stream is not read beforehand")
    free = free_bytes(trainer.args.device, trainer.args.world_size)
    if free is None:
        return Decision(True, "free memory is unknown on this device")
    needed = SLACK * _needed_bytes(trainer)
    verdicts = trainer.accelerator.gather(torch.tensor([needed > free], device=trainer.args.device))
    words = f"about {needed / 2**30:.1f} GiB needed, {free / 2**30:.1f} GiB free"
    return Decision(bool(verdicts.any()), words)


def _needed_bytes(trainer: RewardTrainer) -> int:
    """Bytes beyond the weights, which are there already."""
    model: Any = trainer.model
    batches = sample_batches(trainer)
    sizes = [count_tokens(rows, trainer.args.pad_to_multiple_of).computed(trainer.batch_layout) for rows in batches]
    if trainer.args.max_tokens_per_batch is not None:
        # Batches are filled by another rule than the sampled ones; a single row may still be larger.
        sizes = [
            trainer.args.max_tokens_per_batch,
            *(size // len(rows) for size, rows in zip(sizes, batches, strict=True)),
        ]
    modes = [(module, module.training) for module in model.modules()]
    devices = [trainer.args.device] if trainer.args.device.type == "cuda" else []
    model.eval()  # so that nothing is counted among the metrics of training
    try:
        with torch.random.fork_rng(devices=devices):
            memory = estimate_memory(trainer, batches[0], max(sizes))
    finally:
        for module, training in modes:
            module.training = training
    return memory.total - memory.weights


def free_bytes(device: torch.device, processes: int = 1) -> int | None:
    """Memory that a process may still take on its device; None where that is unknown.

    Args:
        device: Where it trains.
        processes: How many share the memory of a CPU.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type == "cpu":
        return min(psutil.virtual_memory().available, _left_in_container()) // processes
    return None


def _left_in_container(folder: Path = Path("/sys/fs/cgroup")) -> int:
    """What a container's limit leaves, a huge number without one."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return 2**62
    return 2**62 if limit == "max" else max(int(limit) - used, 0)
