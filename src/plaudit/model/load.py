"""Loads reward models and their tokenizers, and prepares both; refuses weights that would score at random."""

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

from plaudit.errors import ConfigError
from plaudit.model import find_file
from plaudit.model.head import initialize_head, score_heads_of
from plaudit.model.peft import base_model_of

logger = logging.getLogger("plaudit")
ADAPTER_FILE = "adapter_config.json"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
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
_LIGER_LOSSES = ("cross_entropy", "fused_linear_cross_entropy")


@dataclass(frozen=True)
class Source:
    """Where a model comes from: a folder or Hub id, a revision, and whether code from the Hub may run."""

    name: str
    revision: str | None = None
    trust_remote_code: bool = False

    def has(self, file: str) -> bool:
        """Returns whether the folder or repository has a file."""
        return find_file(self.name, file, self.revision) is not None

    @property
    def is_adapter(self) -> bool:
        """Whether there is an adapter and no weights of a model."""
        return self.has(ADAPTER_FILE) and not any(self.has(file) for file in _WEIGHTS)


# ---- loading a model ----------------------------------------------------------------------------------------------


def load_model(
    name_or_path: str,
    init_kwargs: Mapping[str, Any] | None = None,
    *,
    trust_remote_code: bool = False,
    seed: int = 42,
) -> PreTrainedModel:
    """Loads a model to be trained, with one output; a head that the checkpoint lacks is drawn afresh with `seed`."""
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
    """Loads a sequence-classification model with one output; returns also which weights are random.

    `init_kwargs` go to ``from_pretrained``; weights are float32 unless ``dtype`` is among them.
    """
    kwargs: dict[str, Any] = {"trust_remote_code": trust_remote_code, **(init_kwargs or {})}
    if "dtype" not in kwargs and "torch_dtype" not in kwargs:
        kwargs["dtype"] = torch.float32
    folder = Path(name_or_path)
    if folder.is_dir() and not any((folder / name).exists() for name in ("config.json", ADAPTER_FILE)):
        raise ConfigError(
            f"the folder {name_or_path!r} holds no model: there is no config.json in it",
            fix="Pass a folder written by `save_pretrained` (perhaps one of its checkpoint-* folders), or a model id.",
        )
    if not (folder / ADAPTER_FILE).exists() or (folder / "config.json").exists():
        config_kwargs = {k: kwargs[k] for k in ("revision", "trust_remote_code", "token", "cache_dir") if k in kwargs}
        with _loading(name_or_path):
            config = AutoConfig.from_pretrained(name_or_path, **config_kwargs)
        classifier = any("ForSequenceClassification" in name for name in config.architectures or ())
        if classifier and config.num_labels != 1:
            raise ConfigError(
                f"{name_or_path!r} is a classifier with `num_labels={config.num_labels}`, "
                "but reward models require `num_labels=1`",
                fix="Start from the language model underneath, or from a reward model.",
            )
    kwargs["num_labels"] = 1
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # it would report missing weights, which callers do in better words
    try:
        with _loading(name_or_path):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                name_or_path, output_loading_info=True, **kwargs
            )
    finally:
        transformers_logging.set_verbosity(level)
    return model, frozenset(str(key) for key in info["missing_keys"])


def load_reward_model(
    source: Source,
    *,
    device: torch.device,
    dtype: torch.dtype | str | None = None,
    quantization_config: Any = None,
    merge_adapter: bool = False,
) -> nn.Module:
    """Loads a model or adapter to be used, in evaluation mode; raises `ConfigError` where any weight would be random.

    `dtype` None is float32 on a CPU, and that of the checkpoint (``"auto"``) elsewhere.
    """
    kwargs: dict[str, Any] = {"dtype": dtype or ("float32" if device.type == "cpu" else "auto")}
    if quantization_config is not None:
        kwargs |= {"quantization_config": quantization_config, "device_map": {"": device}}
    with _loading(source.name):
        if source.is_adapter:
            model = _load_adapter(source, kwargs, merge_adapter=merge_adapter)
        else:
            if source.has("config.json"):
                _refuse_language_model(source)
            model, missing = load_checkpoint(
                source.name, kwargs | _revision_of(source), trust_remote_code=source.trust_remote_code
            )
            _require_all_weights(source.name, missing)
    if quantization_config is None:
        model = model.to(device)
    return model.eval().requires_grad_(False)


def _load_adapter(source: Source, kwargs: Mapping[str, Any], *, merge_adapter: bool) -> nn.Module:
    base_source = base_source_of(source)
    from peft import PeftModel
    from peft.utils import load_peft_weights

    base, missing = load_checkpoint(
        base_source.name, {**kwargs, **_revision_of(base_source)}, trust_remote_code=source.trust_remote_code
    )
    weights = load_peft_weights(source.name, device="cpu", **_revision_of(source))
    _require_all_weights(source.name, {name for name in missing if not any(key.endswith(name) for key in weights)})
    for head in score_heads_of(base):
        # An adapter keeps its trained head in float32, whatever the backbone has: loaded into less, it is rounded.
        head.float()
    if source.has("tokenizer_config.json"):
        tokens = len(load_tokenizer_of(source))
        if tokens > embedding_rows(base):
            base.resize_token_embeddings(tokens)  # the chat template that it was trained with added tokens
    model: Any = PeftModel.from_pretrained(base, source.name, is_trainable=False, **_revision_of(source))
    return model.merge_and_unload() if merge_adapter else model


def base_source_of(source: Source) -> Source:
    """Returns the model that an adapter was trained on."""
    if importlib.util.find_spec("peft") is None:
        message = f"{source.name!r} is an adapter, which needs the peft library"
        raise ConfigError(message, fix="pip install 'plaudit[peft]'")
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(source.name, **_revision_of(source))
    task = getattr(config.task_type, "value", config.task_type)
    if task not in (None, "SEQ_CLS"):
        raise ConfigError(
            f"{source.name!r} is an adapter for {task}, not a reward model",
            fix="Pass an adapter that was trained with task_type='SEQ_CLS', such as those of `RewardTrainer`.",
        )
    if not config.base_model_name_or_path:
        raise ConfigError(
            f"{source.name!r} is an adapter that does not name the model it belongs to",
            fix=f"Set `base_model_name_or_path` in its {ADAPTER_FILE}.",
        )
    return Source(config.base_model_name_or_path, config.revision, source.trust_remote_code)


def _revision_of(source: Source) -> dict[str, str]:
    # PEFT does not take None.
    return {} if source.revision is None else {"revision": source.revision}


def _refuse_language_model(source: Source) -> None:
    config = AutoConfig.from_pretrained(
        source.name, revision=source.revision, trust_remote_code=source.trust_remote_code
    )
    architectures = config.architectures or []
    if any(name.endswith(_LANGUAGE_MODELS) for name in architectures):
        raise ConfigError(
            f"{source.name!r} is a language model ({', '.join(architectures)}): it has no reward head, and a fresh one "
            "would score at random",
            fix="Train a reward model from it with `plaudit train` or `RewardTrainer`, and pass that model's folder.",
        )


def _require_all_weights(name: str, missing: set[str] | frozenset[str]) -> None:
    if missing:
        names = ", ".join(sorted(missing)[:5]) + (", ..." if len(missing) > 5 else "")
        raise ConfigError(
            f"{name!r} lacks {len(missing)} weights of a reward model ({names}): they would be drawn at random, and so "
            "would the rewards",
            fix="Pass a trained reward model. If this is one, it was saved without its head.",
        )


def require_reward_model(model: nn.Module) -> None:
    """Raises `ConfigError` for a model object with other than one output."""
    labels = getattr(getattr(model, "config", None), "num_labels", None)
    if labels != 1:
        raise ConfigError(
            f"the model has `num_labels={labels}`, but reward models require `num_labels=1`: one number, the reward",
            fix="Load it with `AutoModelForSequenceClassification.from_pretrained(..., num_labels=1)`, "
            "or pass its name and let Plaudit load it.",
        )


@contextmanager
def _loading(name_or_path: str) -> Iterator[None]:
    """Raises the errors of transformers and PEFT as `ConfigError`s that name the model."""
    try:
        yield
    except (ConfigError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        kind = "folder" if Path(name_or_path).exists() else "local folder or reachable model id"
        raise ConfigError(
            f"no model could be loaded from {name_or_path!r} ({type(error).__name__}: {error})",
            fix=f"Check that it is a {kind} with a config.json and weights that transformers knows: of a language "
            "model to train, of a classifier with one output, or of an adapter.",
        ) from error


@contextmanager
def _gathered(module: nn.Module) -> Iterator[None]:
    """Makes sharded parameters whole while they are written (DeepSpeed ZeRO-3)."""
    parameters = [p for p in module.parameters(recurse=False) if hasattr(p, "ds_id")]
    if not parameters:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
        yield


def default_device() -> torch.device:
    """Returns the accelerator that this process uses, or the CPU."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return torch.device("cpu")
    return torch.device(accelerator.type, torch.accelerator.current_device_index())


# ---- tokenizers and their tokens ----------------------------------------------------------------------------------


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer in a folder or repository; raises `ConfigError` where there is none."""
    try:
        return AutoTokenizer.from_pretrained(name_or_path, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"no tokenizer could be loaded from {name_or_path!r} ({type(error).__name__}: {error})",
            fix="Pass `processing_class=AutoTokenizer.from_pretrained(...)`, or save the tokenizer beside the model.",
        ) from error


def load_tokenizer_of(source: Source) -> PreTrainedTokenizerBase:
    """Loads the tokenizer beside a model, or beside the model under an adapter."""
    if source.is_adapter and not source.has("tokenizer_config.json"):
        source = base_source_of(source)
    return load_tokenizer(source.name, revision=source.revision, trust_remote_code=source.trust_remote_code)


def set_chat_template(
    model: Any, tokenizer: PreTrainedTokenizerBase, path: str, *, trust_remote_code: bool
) -> list[int]:
    """Copies a chat template into a tokenizer, with its added tokens and end of turn; returns the ids of new tokens.

    `path` is a ``.jinja`` or ``.j2`` file, a tokenizer folder or a model id. The model's embeddings grow where the new
    tokens need rows.
    """
    if path.endswith((".jinja", ".j2")):
        try:
            tokenizer.chat_template = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            message = f"the chat template {path!r} cannot be read ({error})"
            raise ConfigError(message, field="chat_template_path", fix="Check `chat_template_path`.") from error
        return []
    source = load_tokenizer(path, trust_remote_code=trust_remote_code)
    if not source.chat_template:
        raise ConfigError(
            f"the tokenizer {path!r} has no chat template",
            field="chat_template_path",
            fix="Use another tokenizer in `chat_template_path`, or a .jinja file.",
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
        logger.info("The chat template of %s added %d tokens: %s", path, len(missing), names)
    return [tokenizer.get_vocab()[str(token)] for token in missing]


def set_pad_token(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pad_token: str | None = None,
    *,
    may_resize: bool = True,
) -> PreTrainedTokenizerBase:
    """Sets a padding token that is no end-of-sequence token in the model's configuration and a copy of the tokenizer.

    A padding token equal to the eos token makes servers read the reward at different tokens. In order: `pad_token`;
    the tokenizer's own, unless it is an eos token; a reserved token of the vocabulary; a new token in a spare row of
    the embeddings; a new row if it `may_resize`, which would break an adapter or quantised model; the eos token.
    """
    tokenizer = copy.deepcopy(tokenizer)
    config: Any = model.config
    text_config = config.get_text_config()
    eos_ids = eos_token_ids(tokenizer, text_config)
    chosen = pad_token if pad_token is not None else tokenizer.pad_token
    if pad_token is not None and pad_token not in tokenizer.get_vocab():
        raise ConfigError(
            f"the pad token {pad_token!r} is not in the tokenizer's vocabulary",
            field="pad_token",
            fix="Use a token of the vocabulary, or remove `pad_token`.",
        )
    if pad_token is None and (chosen is None or tokenizer.convert_tokens_to_ids(chosen) in eos_ids):
        chosen = _reserved_token(tokenizer, eos_ids) or _add_pad_token(model, tokenizer, may_resize)
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


def _reserved_token(tokenizer: PreTrainedTokenizerBase, eos_ids: set[int]) -> str | None:
    special = {*tokenizer.all_special_tokens, *map(str, tokenizer.added_tokens_decoder.values())}
    taken = {*eos_ids, tokenizer.bos_token_id, tokenizer.unk_token_id}
    free = sorted(token for token in special if tokenizer.convert_tokens_to_ids(token) not in taken)
    matches = (token for pattern in _RESERVED_TOKENS for token in free if re.fullmatch(pattern, token))
    return next(matches, None)


def _add_pad_token(model: Any, tokenizer: PreTrainedTokenizerBase, may_resize: bool) -> str | None:
    spare = len(tokenizer) < embedding_rows(model)
    if not spare and not may_resize:
        return None
    tokenizer.add_special_tokens({"pad_token": _NEW_PAD_TOKEN})
    if not spare:
        model.resize_token_embeddings(len(tokenizer))
    return _NEW_PAD_TOKEN


def eos_token_ids(tokenizer: PreTrainedTokenizerBase, config: Any) -> set[int]:
    """Returns every token id that ends a sequence, according to the tokenizer and the model's configuration."""
    of_model = getattr(config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list | tuple) else (of_model,))}
    return {token_id for token_id in ids if token_id is not None}


def embedding_rows(model: PreTrainedModel) -> int:
    """Returns the number of tokens that a model has embeddings for, also where they are sharded (DeepSpeed ZeRO-3)."""
    weight: Any = model.get_input_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def context_length(base_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, decoder: bool) -> int | None:
    """Returns the number of tokens that a model was made to read; None where its files do not say."""
    config: Any = base_model.config
    limits = [getattr(config.get_text_config(), "max_position_embeddings", None)]
    if not decoder:
        # Encoders learn positions and reserve some of them; only the tokenizer knows how many are left.
        limits.append(tokenizer.model_max_length)
    known = [int(limit) for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return min(known, default=None)


# ---- preparing a model --------------------------------------------------------------------------------------------


def disable_dropout(model: nn.Module) -> None:
    """Turns off a model's dropout, the functional one of attention included; adapters' dropout is left alone."""
    for name, module in model.named_modules():
        if ".lora_dropout" in name:
            continue
        if isinstance(module, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.AlphaDropout):
            module.p = 0.0
        for attribute in ("attention_dropout", "dropout", "attn_pdrop", "hidden_dropout", "activation_dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)


def set_serving_config(model: nn.Module) -> None:
    """Writes into the model's configuration what servers need to return the raw reward, without a sigmoid."""
    config: Any = model.config
    config.num_labels = 1
    config.id2label = {0: "reward"}
    config.label2id = {"reward": 0}
    config.problem_type = "regression"
    config.sentence_transformers = {"activation_fn": "torch.nn.modules.linear.Identity"}


def liger_settings(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the user's `liger_kernel_config` without losses of language models, which replace the model's forward.

    >>> liger_settings({"rope": False})
    {'rope': False, 'cross_entropy': False, 'fused_linear_cross_entropy': False}
    """
    settings = dict(config or {})
    for name in _LIGER_LOSSES:
        if settings.get(name):
            raise ConfigError(
                f"`liger_kernel_config` asks for {name!r}, a loss of language models that would replace the reward "
                "model's own forward",
                field="liger_kernel_config",
                fix=f"Remove {name!r}.",
            )
    return {**settings, **dict.fromkeys(_LIGER_LOSSES, False)}


def apply_liger(model: Any, config: Mapping[str, Any] | None, *, use_cpu: bool) -> None:
    """Puts Liger's kernels into the modules of a reward model, before the Trainer does it again.

    Raises `ConfigError` without a GPU or ``liger-kernel``, and where Liger does not support the model.
    """
    from transformers.integrations.liger import apply_liger_kernel, is_liger_kernel_available

    field, fix = "use_liger_kernel", "Remove `use_liger_kernel`."
    if use_cpu:
        raise ConfigError("it needs a GPU: Liger's kernels are written in Triton", field=field, fix=fix)
    if not is_liger_kernel_available():
        raise ConfigError("it needs liger-kernel 0.3.0 or newer", field=field, fix="pip install liger-kernel")
    base_model = base_model_of(model)
    forward, replaced_before = base_model.forward, _replaced_forwards(base_model)
    try:
        apply_liger_kernel(model, liger_settings(config))
    except (TypeError, ValueError, AttributeError) as error:
        message = f"Liger does not support {type(base_model).__name__} ({error})"
        raise ConfigError(message, field=field, fix=fix) from error
    if base_model.forward != forward:
        message = f"Liger has replaced the forward of the {type(base_model).__name__}"
        raise ConfigError(message, field=field, fix=fix)
    count, kind = len(_replaced_forwards(base_model) - replaced_before), base_model.config.model_type
    if count:
        logger.info("Liger kernels: in %d modules of the %s model.", count, kind)
    else:
        logger.warning("`use_liger_kernel` does nothing: Liger has no kernels for models of type %s.", kind)


def _replaced_forwards(model: nn.Module) -> set[str]:
    """Returns the modules whose forward is not that of their class."""
    return {name for name, module in model.named_modules() if "forward" in vars(module)}
