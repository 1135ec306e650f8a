"""Liger's kernels in a reward model: norms, rotations and activations, but not its losses for language models."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from plaudit.errors import ConfigError
from plaudit.model.adapters import base_model_of

logger = logging.getLogger("plaudit")

_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


def liger_settings(asked: Mapping[str, Any] | None) -> dict[str, Any]:
    """What Liger is asked for: everything but the losses, one of which would replace the forward of the model.

    Args:
        asked: The user's ``liger_kernel_config``.

    Raises:
        ConfigError: It asks for a loss of language models.

    >>> liger_settings({"rope": False})
    {'rope': False, 'cross_entropy': False, 'fused_linear_cross_entropy': False}
    """
    settings = dict(asked or {})
    for name in _LOSSES:
        if settings.get(name):
            raise ConfigError(
                f"`liger_kernel_config` asks for {name!r}, a loss of language models that would replace the reward "
                "model's own forward",
                fix="Leave it out.",
            )
    return {**settings, **dict.fromkeys(_LOSSES, False)}


def apply_liger(model: Any, asked: Mapping[str, Any] | None, *, use_cpu: bool) -> None:
    """Put Liger's kernels into a reward model, as the Trainer does once more when training starts.

    Args:
        model: The reward model, maybe wrapped in an adapter; modules inside it are changed in place.
        asked: The user's ``liger_kernel_config``.
        use_cpu: Whether training runs on a CPU.

    Raises:
        ConfigError: There is no GPU, no ``liger-kernel``, or Liger does not take such a model.
    """
    from transformers.integrations.liger import apply_liger_kernel, is_liger_kernel_available

    fix = "Leave out `use_liger_kernel`."
    if use_cpu:
        raise ConfigError("`use_liger_kernel` needs a GPU: Liger's kernels are written in Triton", fix=fix)
    if not is_liger_kernel_available():
        raise ConfigError("`use_liger_kernel` needs liger-kernel 0.3.0 or newer", fix="pip install liger-kernel")
    base_model = base_model_of(model)
    kind, forward, before = base_model.config.model_type, base_model.forward, _replaced(base_model)
    try:
        apply_liger_kernel(model, liger_settings(asked))
    except (TypeError, ValueError, AttributeError) as error:
        message = f"Liger does not take a {type(base_model).__name__} ({error})"
        raise ConfigError(message, fix=fix) from error
    if base_model.forward != forward:
        raise ConfigError(f"Liger has replaced the forward of the {type(base_model).__name__}", fix=fix)
    count = len(_replaced(base_model) - before)
    if count:
        logger.info("Liger kernels: in %d modules of the %s model.", count, kind)
    else:
        logger.warning("`use_liger_kernel` does nothing: Liger has no kernels for models of type %s.", kind)


def _replaced(model: nn.Module) -> set[str]:
    """Modules whose forward is not that of their class."""
    return {name for name, module in model.named_modules() if "forward" in vars(module)}
