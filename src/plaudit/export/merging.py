"""What happens to weights: adapters are merged in float32, and the result is rounded to what is stored."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from plaudit.errors import ConfigError
from plaudit.model.adapters import is_peft_model, is_prompt_learning
from plaudit.scoring.loading import Source, _base_of

DTYPES = ("float32", "bfloat16", "float16")
_HEADER_NAMES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def stored_dtype(source: Source, asked: str | None) -> str:
    """What the exported weights are stored in: what was asked for, or what those of the source are.

    Args:
        source: The model; of an adapter, the weights are those of the model under it.
        asked: What was asked for; None or ``"auto"`` for what the source has.

    Raises:
        ConfigError: There is no such precision, or the weights of the source are quantised.
    """
    if asked not in (None, "auto", *DTYPES):
        raise ConfigError(f"`dtype` is {asked!r}", fix=f"Use one of {', '.join(DTYPES)}, or leave it out.")
    below = _base_of(source) if source.is_adapter else source
    if not below.has("config.json"):
        raise ConfigError(
            f"there is no reward model in {below.name!r}: it has no config.json",
            fix="Name a folder that `plaudit train` wrote (perhaps one of its checkpoint-* folders), or a model id.",
        )
    config: Any = AutoConfig.from_pretrained(
        below.name, revision=below.revision, trust_remote_code=below.trust_remote_code
    )
    if getattr(config, "quantization_config", None):
        raise ConfigError(
            f"the weights of {below.name!r} are stored quantised: an adapter merged into them, or another precision, "
            "would not give the rewards that it was trained to give",
            fix="Serve it as it is; or name the unquantised model in `base_model_name_or_path` of the adapter, and "
            "hold rewards against each other with `plaudit verify`.",
        )
    if asked not in (None, "auto"):
        return str(asked)
    said = str(getattr(config.get_text_config(), "dtype", None) or config.dtype or "").removeprefix("torch.")
    return said if said in DTYPES else _dtype_in_header(below)


def _dtype_in_header(source: Source) -> str:
    """What most weights are stored in, where the configuration does not say; float32 where that is not known."""
    try:
        found = cached_file(
            source.name, SAFE_WEIGHTS_NAME, revision=source.revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError:  # whoever loads the weights says so
        found = None
    if found is None:
        return "float32"
    with safe_open(found, framework="pt") as weights:
        kinds = [weights.get_slice(name).get_dtype() for name in weights.keys()]  # noqa: SIM118 (no mapping)
    return _HEADER_NAMES.get(max(sorted(set(kinds)), key=kinds.count), "float32") if kinds else "float32"


def merge(model: Any) -> PreTrainedModel:
    """Merge an adapter into the weights under it; a model without one stays as it is.

    Args:
        model: In float32; changed in place.

    Raises:
        ConfigError: The adapter is of a kind that cannot be merged.
    """
    if not is_peft_model(model):
        whole: PreTrainedModel = model
        return whole
    kind = ", ".join(type(config).__name__ for config in model.peft_config.values())
    fix = "Export it as an adapter with `merge=False` (`--merge false`), or serve it with `plaudit serve`."
    if is_prompt_learning(model) or not hasattr(model, "merge_and_unload"):
        raise ConfigError(f"an adapter of this kind ({kind}) cannot be merged into weights", fix=fix)
    try:
        merged: PreTrainedModel = model.merge_and_unload(safe_merge=True)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"the adapter ({kind}) cannot be merged: {error}", fix=fix) from error
    return merged


def round_weights(model: PreTrainedModel, dtype: str, keep: Iterable[torch.nn.Parameter]) -> bool:
    """Round weights to the precision that they are stored in, and tell whether any has changed by it.

    Args:
        model: In float32; changed in place. Buffers stay, and so does what the architecture wants in float32.
        dtype: The precision.
        keep: Parameters that stay in float32.

    Raises:
        ConfigError: A weight is too large for it.
    """
    to = getattr(torch, dtype)
    kept = {id(one) for one in keep}
    patterns = _kept_in_float32(model, to)
    changed = False
    for name, parameter in model.named_parameters():
        stays = id(parameter) in kept or not parameter.is_floating_point() or (patterns and patterns.search(name))
        if stays or parameter.dtype == to:
            continue
        rounded = parameter.data.to(to)
        if not torch.isfinite(rounded).all():
            raise ConfigError(
                f"the weights `{name}` do not fit into {dtype}: some would be infinite or are no numbers",
                fix="Use `dtype='bfloat16'` or 'float32'." if dtype == "float16" else "Look at how it was trained.",
            )
        changed = changed or not torch.equal(rounded.to(parameter.dtype), parameter.data)
        parameter.data = rounded
    return changed


def _kept_in_float32(model: Any, dtype: torch.dtype) -> re.Pattern[str] | None:
    names = {*(getattr(model, "_keep_in_fp32_modules_strict", None) or ())} if dtype != torch.float32 else set()
    if dtype == torch.float16:
        names |= {*(getattr(model, "_keep_in_fp32_modules", None) or ())}
    return re.compile("|".join(rf"(?:^|\.)(?:{name})(?:\.|$)" for name in sorted(names))) if names else None
