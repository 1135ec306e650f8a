"""What happens before the Trainer is built: checks, loading, and getting model and tokenizer ready."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

from plaudit.errors import ConfigError
from plaudit.model.adapters import (
    base_model_of,
    is_peft_model,
    require_sequence_classification,
    store_trained_head_in_float32,
    warn_if_head_is_frozen,
    wrap_with_adapter,
)
from plaudit.model.chat_template import set_chat_template
from plaudit.model.layout import choose_layout, read_rewards_at_positions
from plaudit.model.liger import apply_liger
from plaudit.model.loading import (
    disable_dropout,
    load_model,
    load_tokenizer,
    require_reward_model,
    set_pad_token,
    set_serving_config,
)
from plaudit.model.shared_prefix import enable_shared_prefix
from plaudit.training.config import RewardConfig

logger = logging.getLogger("plaudit")


def default_config(model: Any) -> RewardConfig:
    """Default settings, writing to ``<model name>-Reward``."""
    name = model if isinstance(model, str) else getattr(model.config, "name_or_path", "") or "model"
    return RewardConfig(output_dir=f"{Path(name).name}-Reward")


def require_train_dataset(dataset: Any, max_steps: int | None = None) -> None:
    """Refuse anything but one data set or stream, and a stream without an end.

    Args:
        dataset: What is to be trained on.
        max_steps: How many steps to train; 0 or less where nothing was said. None skips the check.
    """
    if dataset is None:
        raise ConfigError("`train_dataset` is required", fix="Pass a `datasets.Dataset` of preferences.")
    if isinstance(dataset, DatasetDict | IterableDatasetDict | dict):
        raise ConfigError(
            f"`train_dataset` holds several splits ({', '.join(map(str, dataset))})",
            fix=f"Pass one of them, for example `train_dataset=dataset[{next(iter(dataset), 'train')!r}]`.",
        )
    if not isinstance(dataset, Dataset | IterableDataset):
        raise ConfigError(
            f"`train_dataset` must be a `datasets.Dataset` or `IterableDataset`, got {type(dataset).__name__}",
            fix="For a list of rows: `datasets.Dataset.from_list(rows)`.",
        )
    if isinstance(dataset, IterableDataset) and max_steps is not None and max_steps <= 0:
        raise ConfigError(
            "a streamed `train_dataset` has no length, so training would have no end",
            fix="Say how many steps to train: `max_steps=1000`.",
        )


def require_writable(folder: str | os.PathLike[str] | None) -> None:
    """Refuse an output folder that could not be made or written to; makes nothing itself."""
    if folder is None:
        return
    existing = Path(folder).absolute()
    while not existing.exists() and not existing.is_symlink():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        problem = "cannot be written to" if existing.is_dir() else "is not a folder"
        raise ConfigError(
            f"the output folder {str(folder)!r} cannot be written: {str(existing)!r} {problem}",
            fix="Choose another `output_dir`.",
        )


@dataclass(frozen=True)
class LoadedModel:
    """A reward model and a tokenizer of our own, before they are made ready.

    Attributes:
        model: The reward model, maybe wrapped in an adapter already.
        tokenizer: A copy of the caller's, or the one that belongs to the model.
        added_tokens: Ids of tokens that came with a chat template.
    """

    model: Any
    tokenizer: Any
    added_tokens: list[int]


def load_model_and_tokenizer(
    model: Any, args: RewardConfig, tokenizer: Any, quantization_config: Any = None
) -> LoadedModel:
    """Load what is given by name, check what is given ready, and set the tokens and template that were asked for."""
    if isinstance(args.model_init_kwargs, str):
        raise ConfigError(
            f"`model_init_kwargs` is text that is no JSON object: {args.model_init_kwargs!r}",
            fix='Pass a dict, or JSON such as \'{"dtype": "bfloat16"}\'.',
        )
    init_kwargs = dict(args.model_init_kwargs or {})
    revision: str | None = None
    if quantization_config is not None:
        if "quantization_config" in init_kwargs:
            raise ConfigError(
                "`quantization_config` was passed to the trainer and in `model_init_kwargs`",
                fix="Leave out one of them.",
            )
        init_kwargs["quantization_config"] = quantization_config
    name: str = ""
    if isinstance(model, str):
        name, revision = model, init_kwargs.get("revision")
        model = load_model(name, init_kwargs, trust_remote_code=args.trust_remote_code, seed=args.seed)
    else:
        if init_kwargs:
            logger.warning("%s: ignored, as the model is already instantiated.", ", ".join(map(repr, init_kwargs)))
        require_sequence_classification(model)
        require_reward_model(model)
        name = getattr(model.config, "name_or_path", None) or ""
    if tokenizer is None:
        tokenizer = load_tokenizer(name, revision=revision, trust_remote_code=args.trust_remote_code)
    tokenizer = copy.deepcopy(tokenizer)
    if args.eos_token is not None:
        if args.eos_token not in tokenizer.get_vocab():
            raise ConfigError(
                f"the `eos_token` {args.eos_token!r} is not in the tokenizer's vocabulary",
                fix="Name one that is.",
            )
        tokenizer.eos_token = args.eos_token
        model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    added = []
    if args.chat_template_path is not None:
        added = set_chat_template(model, tokenizer, args.chat_template_path, trust_remote_code=args.trust_remote_code)
    return LoadedModel(model, tokenizer, added)


@dataclass(frozen=True)
class ReadyModel:
    """A model ready to be trained.

    Attributes:
        model: What the Trainer trains: the reward model, maybe wrapped in an adapter.
        base_model: The reward model itself.
        tokenizer: With its padding token set.
        batch_layout: ``"padded"`` or ``"shared_prefix"``.
        batch_layout_reason: Why that one.
        reads_positions: Whether the model reads rewards at given positions (decoders), rather than pooling itself.
    """

    model: Any
    base_model: Any
    tokenizer: Any
    batch_layout: str
    batch_layout_reason: str
    reads_positions: bool


def make_ready(loaded: LoadedModel, args: RewardConfig, collator: Any, peft_config: Any) -> ReadyModel:
    """Set padding, serving configuration, dropout, head, adapter and layout, in that order."""
    model, tokenizer = loaded.model, loaded.tokenizer
    base_model = base_model_of(model)
    may_resize = peft_config is None and not is_peft_model(model) and not getattr(model, "is_quantized", False)
    tokenizer = set_pad_token(base_model, tokenizer, args.pad_token, may_resize=may_resize)
    set_serving_config(base_model)
    if args.disable_dropout:
        disable_dropout(model)
    reads_positions = read_rewards_at_positions(base_model)
    if peft_config is not None:
        model = wrap_with_adapter(model, peft_config, trained_tokens=loaded.added_tokens)
        if reads_positions:
            store_trained_head_in_float32(model)
    elif is_peft_model(model):
        warn_if_head_is_frozen(model)
    if is_peft_model(model) and args.gradient_checkpointing:
        model.enable_input_require_grads()
    if args.use_liger_kernel:
        apply_liger(model, args.liger_kernel_config, use_cpu=args.use_cpu)
    layout, reason = choose_layout(
        model, args.batch_layout, own_collator=collator is not None, neftune=bool(args.neftune_noise_alpha)
    )
    if layout == "shared_prefix":
        enable_shared_prefix(base_model, args.attention_backend)
        if args.pad_to_multiple_of is not None:
            logger.warning("`pad_to_multiple_of` does nothing in the shared_prefix layout: it has no padding.")
    logger.info("Batch layout: %s (%s).", layout, reason)
    return ReadyModel(model, base_model, tokenizer, layout, reason, reads_positions)


def keep_outputs_exact(fsdp_plugin: Any) -> None:
    """Stop FSDP2 from rounding what the model returns to the precision that it computes in.

    Args:
        fsdp_plugin: accelerate's plugin, changed in place; None where FSDP is off.
    """
    policy = getattr(fsdp_plugin, "mixed_precision_policy", None)
    if getattr(fsdp_plugin, "fsdp_version", 1) == 2 and policy is not None:
        # The head computes in float32, below the module whose output FSDP2 casts.
        fsdp_plugin.mixed_precision_policy = dataclasses.replace(policy, output_dtype=None)
