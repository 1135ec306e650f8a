"""PEFT adapters around a reward model: wrapping one, and looking through one. PEFT is optional."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from plaudit.errors import ConfigError
from plaudit.model.head import backbone_of, score_heads_of

logger = logging.getLogger("plaudit")


def is_peft_model(model: nn.Module) -> bool:
    """Returns whether a model is wrapped in adapters."""
    if importlib.util.find_spec("peft") is None:
        return False
    from peft import PeftMixedModel, PeftModel

    return isinstance(model, PeftModel | PeftMixedModel)


def base_model_of(model: nn.Module) -> Any:
    """Returns the reward model inside its adapters, or the model itself."""
    if not is_peft_model(model):
        return model
    wrapped: Any = model
    return wrapped.get_base_model() if hasattr(wrapped, "get_base_model") else wrapped.base_model.model


def is_prompt_learning(model: nn.Module) -> bool:
    """Returns whether an adapter puts virtual tokens before the text."""
    configs = getattr(model, "peft_config", None) if is_peft_model(model) else None
    return any(getattr(config, "is_prompt_learning", False) for config in (configs or {}).values())


def require_sequence_classification(model: nn.Module) -> None:
    """Raises `ConfigError` for an adapter around a language model, which has no reward head."""
    if is_peft_model(model) and type(model).__name__ in ("PeftModelForCausalLM", "PeftModelForSeq2SeqLM"):
        raise ConfigError(
            f"the adapter is a {type(model).__name__}, around a language model without a reward head",
            fix="Load it with `AutoPeftModelForSequenceClassification.from_pretrained(..., num_labels=1)`.",
        )


def warn_if_head_is_frozen(model: nn.Module) -> None:
    """Warns if nothing would train the head of a ready adapter; the adapter itself is never altered."""
    base_model = base_model_of(model)
    outside = {name: base_model.get_submodule(name) for name in modules_beside_adapter(base_model) if "." not in name}
    names = [name for name, module in outside.items() if not any(value.requires_grad for value in module.parameters())]
    if names:
        logger.warning(
            "The reward head of this adapter is frozen: if it was drawn at random it stays random. To train it, add "
            "modules_to_save=%r to the adapter's configuration.",
            names,
        )


def modules_beside_adapter(model: Any) -> list[str]:
    """Returns the modules that may be random: those outside the backbone, its pooler, and what a checkpoint lacked."""
    backbone = backbone_of(model)
    children = {name: module for name, module in model.named_children() if name != "training_heads"}
    if backbone is None:
        children = {name: module for name, module in children.items() if name in ("score", "classifier")}
    names = [name for name, module in children.items() if module is not backbone and list(module.parameters())]
    if isinstance(getattr(backbone, "pooler", None), nn.Module):
        names.append(f"{model.base_model_prefix}.pooler")
    for name in sorted({key.rpartition(".")[0] for key in getattr(model, "fresh_weights", ())}):
        if name and not any(f"{name}.".startswith(f"{known}.") for known in names):
            names.append(name)
    return names


def require_trainable(model: nn.Module) -> None:
    """Raises `ConfigError` where nothing would be trained, or of an adapter no more than the head."""
    prefix = str(getattr(getattr(model, "base_model", None), "prefix", "lora_"))
    named = list(model.named_parameters())
    of_adapter = [parameter for name, parameter in named if prefix in name]
    if any(parameter.requires_grad for parameter in of_adapter or [parameter for _, parameter in named]):
        return
    if of_adapter or is_peft_model(model):
        message, fix = "the adapter was loaded to be used: its weights are frozen", "Load it with `is_trainable=True`."
    else:
        message = "all weights of the model are frozen, so that nothing would be trained"
        fix = "Set `requires_grad` on the weights to train, or pass a `peft_config`."
    raise ConfigError(message, field="model", fix=fix)


def wrap_with_adapter(model: nn.Module, peft_config: Any, *, trained_tokens: Sequence[int] = ()) -> nn.Module:
    """Wraps a reward model in an adapter, with its head and the embeddings of `trained_tokens` trained and saved."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("`peft_config` needs the peft library", fix="pip install 'plaudit[peft]'")
    from peft import PeftConfig, get_peft_model

    if not isinstance(peft_config, PeftConfig):
        message = f"`peft_config` must be a PEFT configuration, got {type(peft_config).__name__}"
        raise ConfigError(message, fix="Pass for example `peft.LoraConfig(r=16)`.")
    if is_peft_model(model):
        raise ConfigError(
            "the model is wrapped in adapters already, and a `peft_config` was passed as well",
            fix="Remove `peft_config` (`--use_peft`, `--preset quick`) to go on training it, or merge it first.",
        )
    if (merged := getattr(model, "merged_adapter", None)) is not None:
        raise ConfigError(
            f"{merged!r} was merged into its base, and a new adapter on top of it would be saved without it",
            fix="Save the model merged, with `AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload()`, and "
            "train from its folder; or train without a new adapter.",
        )
    peft_config = copy.deepcopy(peft_config)  # the caller's stays as it is
    task = getattr(peft_config, "task_type", None)
    if task not in (None, "SEQ_CLS"):
        name = getattr(task, "value", task)
        logger.warning("The adapter's task_type %s is not that of a reward model: it is read as SEQ_CLS.", name)
    # For this task PEFT trains and saves the head, and finds the model again.
    peft_config.task_type = "SEQ_CLS"
    named = list(getattr(peft_config, "modules_to_save", None) or ())
    fresh = [name for name in modules_beside_adapter(model) if name not in named]
    if fresh:
        logger.info("The reward head is trained and saved with the adapter (modules_to_save=%r).", fresh)
    # PEFT adds these two itself.
    peft_config.modules_to_save = [*named, *(name for name in fresh if name not in ("score", "classifier"))] or None
    if trained_tokens and hasattr(peft_config, "trainable_token_indices"):
        indices = peft_config.trainable_token_indices or {}
        if isinstance(indices, list):
            indices = {"embed_tokens": indices}
        own = indices.get("embed_tokens", [])
        peft_config.trainable_token_indices = {**indices, "embed_tokens": sorted({*own, *trained_tokens})}
    try:
        wrapped: Any = get_peft_model(model, peft_config)
    except ValueError as error:
        message = f"the adapter does not fit {type(model).__name__}: {error}"
        raise ConfigError(message, fix="Name modules of the model in `target_modules`, or use 'all-linear'.") from error
    for config in wrapped.peft_config.values():
        if getattr(config, "modules_to_save", None):
            config.modules_to_save = list(dict.fromkeys(config.modules_to_save))  # PEFT adds the head once more
    return wrapped


def store_trained_head_in_float32(model: nn.Module) -> None:
    """Keeps a trained head in float32 when the frozen backbone is stored in a lower precision."""
    # In bfloat16 the steps of a small learning rate would be rounded away.
    for head in score_heads_of(base_model_of(model)):
        if any(parameter.requires_grad for parameter in head.parameters()):
            head.float()
