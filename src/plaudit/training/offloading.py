"""Activation offloading: what the backward pass needs waits in the host's memory meanwhile."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

import torch
from torch import nn

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
