"""PEFT adapters around a reward model: wrapping one, and looking through one. PEFT is optional."""

from __future__ import annotations

import copy
import importlib.util
import logging
from typing import Any

from torch import nn

from plaudit.errors import ConfigError

logger = logging.getLogger("plaudit")


def is_peft_model(model: nn.Module) -> bool:
    """Whether a model is wrapped in adapters."""
    if importlib.util.find_spec("peft") is None:
        return False
    from peft import PeftMixedModel, PeftModel

    return isinstance(model, PeftModel | PeftMixedModel)


def base_model_of(model: nn.Module) -> Any:
    """The reward model inside its adapters, or the model itself."""
    if not is_peft_model(model):
        return model
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped.base_model.model


def is_prompt_learning(model: nn.Module) -> bool:
    """Whether an adapter puts virtual tokens before the text."""
    configs = getattr(model, "peft_config", None) if is_peft_model(model) else None
    return any(getattr(config, "is_prompt_learning", False) for config in (configs or {}).values())


def wrap_with_adapter(model: nn.Module, peft_config: Any) -> nn.Module:
    """Wrap a reward model in an adapter, with its head trained and saved.

    Args:
        model: A reward model without adapters.
        peft_config: Left as it was.

    Raises:
        ConfigError: If PEFT is missing, the configuration is none, or the model is wrapped already.
    """
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("`peft_config` needs the peft library", fix="pip install 'plaudit[peft]'")
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        raise ConfigError(
            f"`peft_config` must be a PEFT configuration, got {type(peft_config).__name__}",
            fix="Pass for example `peft.LoraConfig(r=16)`.",
        )
    if is_peft_model(model):
        raise ConfigError(
            "the model is wrapped in adapters already, and a `peft_config` was passed as well",
            fix="Leave out `peft_config` to go on training the adapter, or merge the adapter first.",
        )
    peft_config = copy.deepcopy(peft_config)
    saved = list(getattr(peft_config, "modules_to_save", None) or [])
    if hasattr(peft_config, "modules_to_save") and "score" not in saved and hasattr(model, "score"):
        peft_config.modules_to_save = [*saved, "score"]
        logger.info("The reward head is trained and saved with the adapter (modules_to_save=['score']).")
    return get_peft_model(model, peft_config)
