"""Loads a reward model to be used: whole, or as an adapter; and refuses what would score at random."""

from __future__ import annotations

import copy
import importlib.util
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import logging as transformers_logging
from transformers.utils import cached_file

from plaudit.errors import ConfigError
from plaudit.model.head import initialize_head, score_heads_of
from plaudit.model.peft import base_model_of

logger = logging.getLogger("plaudit")


def set_chat_template(
    model: Any, tokenizer: PreTrainedTokenizerBase, path: str, *, trust_remote_code: bool
) -> list[int]:
    """Take over a chat template, and the tokens that come with it.

    Args:
        model: Its embeddings grow where the new tokens need rows.
        tokenizer: Changed in place: the template, and for a tokenizer's template its added tokens and end of turn.
        path: A ``.jinja`` or ``.j2`` file, a tokenizer folder, or a model id.
        trust_remote_code: Allow tokenizer code from the Hub.

    Returns:
        Ids of the tokens that were added.

    Raises:
        ConfigError: If there is no such template.
    """
    if path.endswith((".jinja", ".j2")):
        try:
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the chat template {path!r} cannot be read ({error})", fix="Check `chat_template_path`."
            ) from error
        return []
    source = load_tokenizer(path, trust_remote_code=trust_remote_code)
    if not source.chat_template:
        raise ConfigError(
            f"the tokenizer {path!r} has no chat template",
            fix="Name another in `chat_template_path`, or a .jinja file.",
        )
    known = tokenizer.get_vocab()
    missing = [token for token in source.added_tokens_decoder.values() if str(token) not in known]
    tokenizer.add_tokens(missing)
    tokenizer.chat_template = source.chat_template
    if source.eos_token in tokenizer.get_vocab():
        tokenizer.eos_token = source.eos_token
        model.config.get_text_config().eos_token_id = tokenizer.eos_token_id
    if len(tokenizer) > embedding_rows(model):
        model.resize_token_embeddings(len(tokenizer))
    if missing:
        names = ", ".join(str(token) for token in missing[:5])
        logger.info("The chat template of %s brought %d tokens: %s", path, len(missing), names)
    return [tokenizer.get_vocab()[str(token)] for token in missing]


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


# Tokens that model makers set aside, best first: a name that says padding, then any that nothing uses.
_RESERVED_TOKENS = (
    r"<\|finetune_right_pad_id\|>",
    r"(?i)[<\[]\|?pad(ding)?\|?[>\]]",
    r"<\|endoftext\|>",
    r"<\|(reserved|extra|unused|dummy)[\w.]*?\d+\|>",
    r"<(unused|extra_id_|reserved)[\w]*\d+>",
    r"\[unused\d+\]",
)
_NEW_PAD_TOKEN = "<|pad|>"


def load_model(
    name_or_path: str,
    init_kwargs: Mapping[str, Any] | None = None,
    *,
    trust_remote_code: bool = False,
    seed: int = 42,
) -> PreTrainedModel:
    """Load a sequence-classification model with one output; a head that the checkpoint lacks is drawn afresh.

    Args:
        name_or_path: A folder, or a model id on the Hub.
        init_kwargs: Further arguments of ``from_pretrained``; float32 unless ``dtype`` is among them.
        trust_remote_code: Allow model code from the Hub.
        seed: Seed of a fresh head.

    Raises:
        ConfigError: If there is no model there, or it has other than one output.
    """
    model, missing = load_checkpoint(name_or_path, init_kwargs, trust_remote_code=trust_remote_code)
    fresh_head = {key for key in missing if key.split(".")[0] == "score"}
    if fresh_head:
        for head in score_heads_of(model):
            with _gathered(head):
                initialize_head(head, seed)
        logger.info("%s has no reward head yet: a fresh one was drawn (seed %d).", name_or_path, seed)
    if missing - fresh_head:
        names = sorted(missing - fresh_head)
        logger.warning("%s lacks %d weights, which start at random: %s", name_or_path, len(names), ", ".join(names[:5]))
    return model


def load_checkpoint(
    name_or_path: str, init_kwargs: Mapping[str, Any] | None = None, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Load a sequence-classification model with one output, and say which weights the checkpoint lacks.

    Args:
        name_or_path: A folder, or a model id on the Hub.
        init_kwargs: Further arguments of ``from_pretrained``; float32 unless ``dtype`` is among them.
        trust_remote_code: Allow model code from the Hub.

    Returns:
        The model, and the names of the weights that were not there: what they hold is random.

    Raises:
        ConfigError: If there is no model there, or it has other than one output.
    """
    kwargs: dict[str, Any] = {"trust_remote_code": trust_remote_code, **(init_kwargs or {})}
    if "dtype" not in kwargs and "torch_dtype" not in kwargs:
        kwargs["dtype"] = torch.float32
    _require_one_output(name_or_path, kwargs)
    kwargs["num_labels"] = 1
    with _model_errors(name_or_path), _quiet_transformers():
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name_or_path, output_loading_info=True, **kwargs
        )
    return model, frozenset(str(key) for key in info["missing_keys"])


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to a model.

    Raises:
        ConfigError: If the folder or repository holds none.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"no tokenizer could be loaded from {name_or_path!r} ({type(error).__name__}: {error})",
            fix="Pass `processing_class=AutoTokenizer.from_pretrained(...)`, or save the tokenizer beside the model.",
        ) from error


def require_reward_model(model: nn.Module) -> None:
    """Refuse a ready model that is no reward model.

    Raises:
        ConfigError: If it has other than one output.
    """
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    if labels != 1:
        raise ConfigError(
            f"the model has `num_labels={labels}`, but reward models require `num_labels=1`: one number, the reward",
            fix="Load it with `AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)`, "
            "or pass its name and let Plaudit load it.",
        )


def set_pad_token(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pad_token: str | None = None,
    *,
    may_resize: bool = True,
) -> PreTrainedTokenizerBase:
    """Choose a padding token that is no end-of-sequence token, and set it on the model and a copy of the tokenizer.

    A padding token equal to the eos token makes servers read the reward at different tokens. In order: the token
    asked for; the tokenizer's own, unless it is an eos token; a reserved token of the vocabulary; a new token in a
    spare row of the embeddings; a new row; and where that would break an adapter or quantised model, the eos token.

    Args:
        model: The reward model; its configuration changes in place.
        tokenizer: Left as it was.
        pad_token: A token asked for by the user.
        may_resize: Whether a row may be added to the embeddings.

    Returns:
        A copy of the tokenizer with the padding token.

    Raises:
        ConfigError: If the token asked for is not in the vocabulary, or there is neither a padding nor an eos token.
    """
    tokenizer = copy.deepcopy(tokenizer)
    config: Any = model.config
    text_config = config.get_text_config()
    eos_ids = eos_token_ids(tokenizer, text_config)
    chosen = pad_token if pad_token is not None else tokenizer.pad_token
    if pad_token is not None and pad_token not in tokenizer.get_vocab():
        raise ConfigError(
            f"the pad token {pad_token!r} is not in the tokenizer's vocabulary",
            fix="Name one that is, or none.",
        )
    if pad_token is None and (chosen is None or tokenizer.convert_tokens_to_ids(chosen) in eos_ids):
        chosen = _reserved_token(tokenizer, eos_ids)
        if chosen is None:
            chosen = _add_pad_token(model, tokenizer, may_resize)
        if chosen is not None:
            logger.info("Padding token: %r (the tokenizer's own was %r).", chosen, tokenizer.pad_token)
        else:
            chosen = tokenizer.eos_token
    if chosen is None:
        raise ConfigError(
            "the tokenizer has neither a padding nor an eos token",
            fix="Set `tokenizer.pad_token` to a token that no text contains.",
        )
    tokenizer.pad_token = chosen
    if tokenizer.pad_token_id in eos_ids:
        logger.warning(
            "The padding token %r is also the end of a turn. Rewards are read by length here, but a server that looks "
            "for the last token that is not padding reads another one. Use a model with a spare token.",
            chosen,
        )
    text_config.pad_token_id = config.pad_token_id = tokenizer.pad_token_id
    return tokenizer


def eos_token_ids(tokenizer: PreTrainedTokenizerBase, config: Any) -> set[int]:
    """Every token id that ends a sequence, according to the tokenizer and the model."""
    of_model = getattr(config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list | tuple) else (of_model,))}
    return {token_id for token_id in ids if token_id is not None}


def embedding_rows(model: PreTrainedModel) -> int:
    """How many tokens a model has embeddings for, also where they are sharded (DeepSpeed ZeRO-3)."""
    weight: Any = model.get_input_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def disable_dropout(model: nn.Module) -> None:
    """Turn off a model's dropout, the functional one of attention included; adapters' dropout is left alone.

    Args:
        model: Changed in place.
    """
    for name, module in model.named_modules():
        if ".lora_dropout" in name:
            continue
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.AlphaDropout):
            module.p = 0.0
        for attribute in (
            "attention_dropout",
            "dropout",
            "attn_pdrop",
            "hidden_dropout",
            "activation_dropout",
        ):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)


def set_serving_config(model: nn.Module) -> None:
    """Write into the model's configuration what servers need to return the raw reward, without a sigmoid.

    Args:
        model: Its configuration changes in place.
    """
    config: Any = model.config
    config.num_labels = 1
    config.id2label = {0: "reward"}
    config.label2id = {"reward": 0}
    config.problem_type = "regression"
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}


def _require_one_output(name_or_path: str, kwargs: Mapping[str, Any]) -> None:
    folder = Path(name_or_path)
    if folder.is_dir() and not any((folder / name).exists() for name in ("config.json", "adapter_config.json")):
        raise ConfigError(
            f"the folder {name_or_path!r} holds no model: there is no config.json in it",
            fix="Name a folder written by `save_pretrained` (perhaps one of its checkpoint-* folders), or a model id.",
        )
    if (folder / "adapter_config.json").exists() and not (folder / "config.json").exists():
        return
    passed_on = {key: kwargs[key] for key in ("revision", "trust_remote_code", "token", "cache_dir") if key in kwargs}
    with _model_errors(name_or_path):
        config = AutoConfig.from_pretrained(name_or_path, **passed_on)
    classifier = any("ForSequenceClassification" in name for name in config.architectures or ())
    if classifier and config.num_labels != 1:
        raise ConfigError(
            f"{name_or_path!r} is a classifier with `num_labels={config.num_labels}`, "
            "but reward models require `num_labels=1`",
            fix="Start from the language model underneath, or from a reward model.",
        )


@contextmanager
def _model_errors(name_or_path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        kind = "folder" if Path(name_or_path).exists() else "local folder or reachable model id"
        raise ConfigError(
            f"no model could be loaded from {name_or_path!r} ({type(error).__name__}: {error})",
            fix=f"Check that it is a {kind} with a config.json and weights that transformers knows.",
        ) from error


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Hold back the report of missing and unexpected weights, which `load_model` gives in its own words."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


@contextmanager
def _gathered(module: nn.Module) -> Iterator[None]:
    """Make sharded parameters whole while they are written (DeepSpeed ZeRO-3)."""
    parameters = [p for p in module.parameters(recurse=False) if hasattr(p, "ds_id")]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
        yield


def _reserved_token(tokenizer: PreTrainedTokenizerBase, eos_ids: set[int]) -> str | None:
    special = {
        *tokenizer.all_special_tokens,
        *(str(token) for token in tokenizer.added_tokens_decoder.values()),
    }
    taken = {*eos_ids, tokenizer.bos_token_id, tokenizer.unk_token_id}
    free = sorted(token for token in special if tokenizer.convert_tokens_to_ids(token) not in taken)
    for pattern in _RESERVED_TOKENS:
        for token in free:
            if re.fullmatch(pattern, token):
                return token
    return None


def _add_pad_token(model: Any, tokenizer: PreTrainedTokenizerBase, may_resize: bool) -> str | None:
    spare = len(tokenizer) < embedding_rows(model)
    if not spare and not may_resize:
        return None
    tokenizer.add_special_tokens({"pad_token": _NEW_PAD_TOKEN})
    if not spare:
        model.resize_token_embeddings(len(tokenizer))
    return _NEW_PAD_TOKEN


ADAPTER_FILE = "adapter_config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class Source:
    """Where a model comes from.

    Attributes:
        name: A folder, or a model id on the Hub.
        revision: Branch, tag or commit on the Hub.
        trust_remote_code: Allow model and tokenizer code from the Hub.
    """

    name: str
    revision: str | None = None
    trust_remote_code: bool = False

    def has(self, file: str) -> bool:
        """Whether a file is there.

        Args:
            file: Its name.
        """
        try:
            found = cached_file(self.name, file, revision=self.revision, _raise_exceptions_for_missing_entries=False)
        except OSError:  # no such folder or id: whoever loads the model says so
            return False
        return found is not None

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is all that is there."""
        return self.has(ADAPTER_FILE) and not any(self.has(file) for file in _WEIGHTS)


def default_device() -> torch.device:
    """The accelerator that this process uses, or the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, torch.accelerator.current_device_index())


def load_reward_model(
    source: Source,
    *,
    device: torch.device,
    dtype: torch.dtype | str | None = None,
    quantization_config: Any = None,
    merge_adapter: bool = False,
) -> nn.Module:
    """Load a model whose every weight was in its checkpoint, on a device, in evaluation mode.

    Args:
        source: Where it comes from.
        device: Where it goes.
        dtype: What its weights are stored in; ``"auto"`` is that of the checkpoint. None is float32 on a CPU, and
            ``"auto"`` elsewhere.
        quantization_config: Load it quantised.
        merge_adapter: Merge an adapter into the weights under it.

    Raises:
        ConfigError: There is no reward model there.
    """
    kwargs: dict[str, Any] = {"dtype": dtype or ("float32" if device.type == "cpu" else "auto")}
    if quantization_config is not None:
        kwargs |= {"quantization_config": quantization_config, "device_map": {"": device}}
    with _other_errors(source.name):
        if source.is_adapter:
            model = _load_adapter(source, kwargs, merge_adapter=merge_adapter)
        else:
            _refuse_language_model(source)
            model, missing = load_checkpoint(
                source.name, _with_revision(kwargs, source.revision), trust_remote_code=source.trust_remote_code
            )
            _require_whole(source.name, missing)
    if quantization_config is None:
        model = model.to(device)
    return model.eval().requires_grad_(False)


def load_tokenizer_of(source: Source) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model, or beside the model under an adapter.

    Args:
        source: Where the model comes from.

    Raises:
        ConfigError: There is none.
    """
    if source.is_adapter and not source.has("tokenizer_config.json"):
        source = _base_of(source)
    return load_tokenizer(source.name, revision=source.revision, trust_remote_code=source.trust_remote_code)


def _load_adapter(source: Source, kwargs: Mapping[str, Any], *, merge_adapter: bool) -> nn.Module:
    base_source = _base_of(source)
    from peft import PeftModel
    from peft.utils import load_peft_weights

    base, missing = load_checkpoint(
        base_source.name, _with_revision(kwargs, base_source.revision), trust_remote_code=source.trust_remote_code
    )
    revision = {} if source.revision is None else {"revision": source.revision}
    brought = load_peft_weights(source.name, device="cpu", **revision)
    _require_whole(source.name, {name for name in missing if not any(key.endswith(name) for key in brought)})
    for head in score_heads_of(base):
        # An adapter keeps its trained head in float32, whatever is under it: loaded into less, it would be rounded.
        head.float()
    if source.has("tokenizer_config.json"):
        tokens = len(load_tokenizer_of(source))
        if tokens > embedding_rows(base):
            base.resize_token_embeddings(tokens)  # the chat template that it was trained with brought new ones
    model: Any = PeftModel.from_pretrained(base, source.name, is_trainable=False, **revision)
    return model.merge_and_unload() if merge_adapter else model


def _base_of(source: Source) -> Source:
    """The model that an adapter was trained on."""
    if importlib.util.find_spec("peft") is None:
        raise ConfigError(
            f"{source.name!r} is an adapter, which needs the peft library", fix="pip install 'plaudit[peft]'"
        )
    from peft import PeftConfig

    revision = {} if source.revision is None else {"revision": source.revision}
    config = PeftConfig.from_pretrained(source.name, **revision)
    task = getattr(config.task_type, "value", config.task_type)
    if task not in (None, "SEQ_CLS"):
        raise ConfigError(
            f"{source.name!r} is an adapter for {task}, not a reward model",
            fix="Name one that was trained with task_type='SEQ_CLS', such as those of `RewardTrainer`.",
        )
    name = config.base_model_name_or_path
    if not name:
        raise ConfigError(
            f"{source.name!r} is an adapter that does not say which model it belongs to",
            fix=f"Fill in `base_model_name_or_path` in its {ADAPTER_FILE}.",
        )
    return Source(name, config.revision, source.trust_remote_code)


def _refuse_language_model(source: Source) -> None:
    if not source.has("config.json"):
        return  # whoever loads it says so better
    config = AutoConfig.from_pretrained(
        source.name, revision=source.revision, trust_remote_code=source.trust_remote_code
    )
    architectures = config.architectures or []
    if any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures):
        raise ConfigError(
            f"{source.name!r} is a language model ({', '.join(architectures)}): it has no reward head, and a fresh one "
            "would score at random",
            fix="Train a reward model from it, with `plaudit train` or `RewardTrainer`, and name the folder of that.",
        )


def _require_whole(name: str, missing: set[str] | frozenset[str]) -> None:
    if not missing:
        return
    named = ", ".join(sorted(missing)[:5]) + (", ..." if len(missing) > 5 else "")
    raise ConfigError(
        f"{name!r} lacks {len(missing)} weights of a reward model ({named}): they would be drawn at random, and so "
        "would the rewards",
        fix="Name a trained reward model; if this is one, it was saved without its head.",
    )


def _with_revision(kwargs: Mapping[str, Any], revision: str | None) -> dict[str, Any]:
    return {**kwargs} if revision is None else {**kwargs, "revision": revision}


@contextmanager
def _other_errors(name: str) -> Iterator[None]:
    """Say of which model it is that weights do not fit, or a file cannot be read."""
    try:
        yield
    except ConfigError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise ConfigError(
            f"no reward model could be loaded from {name!r} ({type(error).__name__}: {error})",
            fix="Name a sequence-classification checkpoint with one output, or an adapter of one.",
        ) from error


def context_length(base_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, decoder: bool) -> int | None:
    """Most tokens that a model was made to read; None where it does not say.

    Args:
        base_model: The reward model, without wrapping.
        tokenizer: Its tokenizer: where positions are learned, some are reserved, and only the tokenizer knows.
        decoder: Whether the model is a decoder.
    """
    config: Any = base_model.config
    limits = [getattr(config.get_text_config(), "max_position_embeddings", None)]
    if not decoder:
        limits.append(tokenizer.model_max_length)
    known = [int(limit) for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return min(known, default=None)
