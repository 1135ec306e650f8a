"""Loads reward models and their tokenizers, and prepares both; refuses weights that would score at random."""

from __future__ import annotations

import copy
import importlib.util
import logging
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from plaudit.errors import ConfigError
from plaudit.model import find_file
from plaudit.model.head import initialize_head, score_heads_of
from plaudit.model.peft import base_model_of, is_peft_model

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
    def revision_kwargs(self) -> dict[str, str]:
        """The revision as keyword arguments: PEFT does not take None."""
        return {} if self.revision is None else {"revision": self.revision}

    @property
    def is_adapter(self) -> bool:
        """Whether there is an adapter and no weights of a model."""
        return self.has(ADAPTER_FILE) and not any(self.has(file) for file in _WEIGHTS)


# ---- loading a model ----------------------------------------------------------------------------------------------


def load_model(
    name_or_path: str, init_kwargs: Mapping[str, Any] | None = None, *, trust_remote_code: bool = False, seed: int = 42
) -> PreTrainedModel:
    """Loads a model to be trained, with one output; a head that the checkpoint lacks is drawn afresh with `seed`.

    The adapter of a reward model is trained on; that of a language model is merged into the model that it belongs to.
    """
    kwargs = dict(init_kwargs or {})
    source = Source(name_or_path, kwargs.pop("revision", None), trust_remote_code)
    model: Any
    if is_adapter := source.is_adapter:
        model, missing = _load_adapter(source, kwargs, is_trainable=True)
    elif source.has(ADAPTER_FILE):
        message = f"{name_or_path!r} holds a whole model and an adapter, and only one of them can be trained"
        raise ConfigError(message, fix="Move one of them to a folder of its own.")
    else:
        model, missing = load_checkpoint(source, kwargs, needs_head=False)
    if is_peft_model(model):
        logger.info("%s is the adapter of a reward model: it is trained on.", name_or_path)
        return model
    model.fresh_weights = missing  # an adapter around the model has to keep them
    fresh_head = {key for key in missing if key.split(".")[0] == "score"}
    if fresh_head:
        for head in score_heads_of(model):
            with ExitStack() as stack:
                # DeepSpeed ZeRO-3 makes sharded parameters whole while they are written.
                if sharded := [parameter for parameter in head.parameters() if hasattr(parameter, "ds_id")]:
                    import deepspeed

                    stack.enter_context(deepspeed.zero.GatheredParameters(sharded, modifier_rank=0))
                initialize_head(head, seed)
        merged = ", the adapter of a language model, was merged into its base model; it" if is_adapter else ""
        logger.info("%s%s has no reward head yet: a fresh one was drawn (seed %d).", name_or_path, merged, seed)
    if names := sorted(missing - fresh_head):
        logger.warning("%s lacks %d weights, which start at random: %s", name_or_path, len(names), ", ".join(names[:5]))
    return model


def load_checkpoint(
    source: Source, init_kwargs: Mapping[str, Any] | None, *, needs_head: bool
) -> tuple[PreTrainedModel, frozenset[str]]:
    """Loads a model with one output, in float32 unless `init_kwargs` say else; returns also which weights are random.

    With `needs_head` language models are refused before their weights are loaded.
    """
    options = {"trust_remote_code": source.trust_remote_code, **source.revision_kwargs}
    kwargs: dict[str, Any] = {**options, **(init_kwargs or {}), "num_labels": 1}
    if "dtype" not in kwargs and "torch_dtype" not in kwargs:
        kwargs["dtype"] = torch.float32
    folder = Path(source.name)
    has_config, has_adapter = (folder / "config.json").exists(), (folder / ADAPTER_FILE).exists()
    if folder.is_dir() and not has_config and not has_adapter:
        raise ConfigError(
            f"the folder {source.name!r} holds no model: there is no config.json in it",
            fix="Pass a folder written by `save_pretrained` (perhaps one of its checkpoint-* folders), or a model id.",
        )
    level = transformers.logging.get_verbosity()
    with _loading(source.name):
        if has_config or not has_adapter:
            names = kwargs.keys() & {"revision", "trust_remote_code", "token", "cache_dir"}
            config = transformers.AutoConfig.from_pretrained(source.name, **{name: kwargs[name] for name in names})
            _check_architecture(source.name, config, needs_head=needs_head)
        transformers.logging.set_verbosity_error()  # it would report missing weights, which callers do in better words
        try:
            model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
                source.name, output_loading_info=True, **kwargs
            )
        finally:
            transformers.logging.set_verbosity(level)
    return model, frozenset(str(key) for key in info["missing_keys"])


def _load_adapter(source: Source, init_kwargs: Mapping[str, Any], *, is_trainable: bool) -> tuple[Any, frozenset[str]]:
    """Loads a reward model in its adapter; raises where any weight would be random.

    To be trained, it may be the adapter of a language model: it is merged into its base and returned with the names of
    the weights that are random.
    """
    fix = f"Set `base_model_name_or_path` in its {ADAPTER_FILE} to the folder or reachable id of its base model."
    with _loading(source.name), warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        base = base_source_of(source, may_be_language_model=is_trainable)
        from peft import PeftConfig, PeftModel
        from peft.utils import load_peft_weights

        config = PeftConfig.from_pretrained(source.name, **source.revision_kwargs)
        merges = getattr(config.task_type, "value", config.task_type) == "CAUSAL_LM"
        try:
            model, missing = load_checkpoint(base, init_kwargs, needs_head=False)
        except ConfigError as error:
            message = f"the base model of the adapter {source.name!r} cannot be loaded: {error.message}"
            raise ConfigError(message, fix=fix if error.__cause__ else error.fix) from error
        if merges and (config.is_prompt_learning or getattr(model, "is_quantized", False)):
            obstacle = "it is made of virtual tokens" if config.is_prompt_learning else "its base is quantised"
            message = f"{source.name!r}, the adapter of a language model, cannot be merged: {obstacle}"
            raise ConfigError(message, fix="Pass an unquantised language model, with the adapter merged into it.")
        weights = load_peft_weights(source.name, device="cpu", **source.revision_kwargs)
        missing = frozenset(name for name in missing if not any(key.endswith(name) for key in weights))
        if merges:
            config.task_type = None  # PEFT's class for language models would look for one
        else:
            _refuse_random_weights(source.name, missing)
            for head in score_heads_of(model):
                head.float()  # as the adapter keeps it, whatever the backbone has: loaded into less, it is rounded
        if source.has("tokenizer_config.json") and (size := len(load_tokenizer_of(source))) > embedding_rows(model):
            model.resize_token_embeddings(size)  # the chat template that it was trained with added tokens
        options: dict[str, Any] = {"config": config, "is_trainable": is_trainable, **source.revision_kwargs}
        try:
            adapted: Any = PeftModel.from_pretrained(model, source.name, **options)
            # PEFT says nothing of weights that have no place in the model; a reward model has no `lm_head`.
            saved = sum("lora_" in name and "lm_head" not in name for name in weights)
            if saved > sum("lora_" in name for name, _ in adapted.named_parameters()):
                raise UserWarning("it has weights of layers that this model lacks")
        except UserWarning as error:
            message = f"the adapter {source.name!r} does not fit {base.name!r}: {textwrap.shorten(str(error), 200)}"
            raise ConfigError(message, fix=fix) from error
        if merges:
            adapted = adapted.merge_and_unload().requires_grad_(True)
            adapted.config.name_or_path = adapted.merged_adapter = source.name
    return adapted, missing


def _refuse_random_weights(name: str, missing: frozenset[str]) -> None:
    if missing:
        names = ", ".join(sorted(missing)[:5]) + (", ..." if len(missing) > 5 else "")
        raise ConfigError(
            f"{name!r} lacks {len(missing)} weights of a reward model ({names}): they would be drawn at "
            "random, and so would the rewards",
            fix="Pass a trained reward model. If this is one, it was saved without its head.",
        )


def _check_architecture(name: str, config: Any, *, needs_head: bool) -> None:
    architectures = config.architectures or []
    has_own_code = "AutoModelForSequenceClassification" in (getattr(config, "auto_map", None) or {})
    if type(config) not in transformers.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING and not has_own_code:
        raise ConfigError(
            f"{name!r} is a model of type {config.model_type}: transformers has no sequence classifier of this type, "
            "and so no reward model",
            fix="Use a model of another type, such as Llama, Qwen3, Gemma or ModernBERT.",
        )
    if any("ForSequenceClassification" in kind for kind in architectures) and config.num_labels != 1:
        raise ConfigError(
            f"{name!r} is a classifier with `num_labels={config.num_labels}`, but reward models require `num_labels=1`",
            fix="Start from the language model underneath, or from a reward model.",
        )
    if needs_head and any(kind.endswith(_LANGUAGE_MODELS) for kind in architectures):
        raise ConfigError(
            f"{name!r} is a language model ({', '.join(architectures)}): it has no reward head, and a fresh one "
            "would score at random",
            fix="Train a reward model from it with `plaudit train` or `RewardTrainer`, and pass that model's folder.",
        )


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
    model: Any
    if source.is_adapter:
        model, _ = _load_adapter(source, kwargs, is_trainable=False)
        model = model.merge_and_unload() if merge_adapter else model
    else:
        model, missing = load_checkpoint(source, kwargs, needs_head=True)
        _refuse_random_weights(source.name, missing)
    if quantization_config is None:
        model = model.to(device)
    return model.eval().requires_grad_(False)


def base_source_of(source: Source, *, may_be_language_model: bool = False) -> Source:
    """Returns the model that an adapter was trained on."""
    if importlib.util.find_spec("peft") is None:
        message = f"{source.name!r} is an adapter, which needs the peft library"
        raise ConfigError(message, fix="pip install 'plaudit[peft]'")
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(source.name, **source.revision_kwargs)
    task = getattr(config.task_type, "value", config.task_type)
    if task not in (None, "SEQ_CLS") and not (may_be_language_model and task == "CAUSAL_LM"):
        raise ConfigError(
            f"{source.name!r} is an adapter for {task}, not a reward model",
            fix="Pass an adapter that was trained with task_type='SEQ_CLS', such as those of `RewardTrainer`.",
        )
    if not config.base_model_name_or_path:
        message = f"{source.name!r} is an adapter that does not name the model it belongs to"
        raise ConfigError(message, fix=f"Set `base_model_name_or_path` in its {ADAPTER_FILE}.")
    return Source(config.base_model_name_or_path, config.revision, source.trust_remote_code)


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
    except ImportError as error:
        message = f"a package that {name_or_path!r} needs is missing: {textwrap.shorten(str(error), 300)}"
        fix = "Install the package, or choose another `attn_implementation` if it computes attention."
        raise ConfigError(message, fix=fix) from error
    except (OSError, ValueError, RuntimeError) as error:
        kind = "folder" if Path(name_or_path).exists() else "local folder or reachable model id"
        reason = textwrap.shorten(str(error), 400)
        raise ConfigError(
            f"no model could be loaded from {name_or_path!r} ({type(error).__name__}: {reason})",
            fix=f"Check that it is a {kind} with a config.json and weights that transformers knows: of a language "
            "model to train, of a classifier with one output, or of an adapter.",
        ) from error


def choose_device(given: torch.device | str | None = None) -> torch.device:
    """Returns a device that was named, if it can be used; by default the accelerator of this process, or the CPU."""
    if given is not None:
        try:
            return torch.empty(0, device=given).device
        except (RuntimeError, AssertionError) as error:
            message = f"{str(given)!r} cannot be used: {str(error).partition(chr(10))[0]}"
            fix = "Use a device that this machine has, such as cpu."
            raise ConfigError(message, field="device", fix=fix) from error
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
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ConfigError(
            f"no tokenizer could be loaded from {name_or_path!r} ({type(error).__name__}: {error})",
            fix="Pass `processing_class=AutoTokenizer.from_pretrained(...)`, or save the tokenizer beside the model.",
        ) from error


def load_tokenizer_of(source: Source) -> PreTrainedTokenizerBase:
    """Loads the tokenizer beside a model, or beside the model under an adapter."""
    if source.is_adapter and not source.has("tokenizer_config.json"):
        source = base_source_of(source, may_be_language_model=True)
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
        message = f"the tokenizer {path!r} has no chat template"
        fix = "Use another tokenizer in `chat_template_path`, or a .jinja file."
        raise ConfigError(message, field="chat_template_path", fix=fix)
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
    model: Any, tokenizer: PreTrainedTokenizerBase, pad_token: str | None = None, *, may_resize: bool = True
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
        message = f"the pad token {pad_token!r} is not in the tokenizer's vocabulary"
        raise ConfigError(message, field="pad_token", fix="Use a token of the vocabulary, or remove `pad_token`.")
    if pad_token is None and (chosen is None or tokenizer.convert_tokens_to_ids(chosen) in eos_ids):
        chosen = _reserved_token(tokenizer, eos_ids)
        has_spare_row = len(tokenizer) < embedding_rows(model)
        if chosen is None and (has_spare_row or may_resize):
            chosen = _NEW_PAD_TOKEN
            tokenizer.add_special_tokens({"pad_token": chosen})
            if not has_spare_row:
                model.resize_token_embeddings(len(tokenizer))
        if chosen is not None:
            logger.info("Padding token: %r (the tokenizer's own was %r).", chosen, tokenizer.pad_token)
        else:
            chosen = tokenizer.eos_token
    if chosen is None:
        message = "the tokenizer has neither a padding nor an eos token"
        raise ConfigError(message, fix="Set `tokenizer.pad_token` to a token that no text contains.")
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


def eos_token_ids(tokenizer: PreTrainedTokenizerBase, config: Any) -> set[int]:
    """Returns every token id that ends a sequence, according to the tokenizer and the model's configuration."""
    of_model = getattr(config, "eos_token_id", None)
    ids = {tokenizer.eos_token_id, *(of_model if isinstance(of_model, list | tuple) else (of_model,))}
    return {token_id for token_id in ids if token_id is not None}


def embedding_rows(model: PreTrainedModel) -> int:
    """Returns the number of tokens that a model has embeddings for, also where they are sharded (DeepSpeed ZeRO-3)."""
    weight: Any = model.get_input_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def context_length(base_model: Any, tokenizer: PreTrainedTokenizerBase, *, decoder: bool) -> int | None:
    """Returns the number of tokens that a model was made to read; None where its files do not say."""
    limits = [getattr(base_model.config.get_text_config(), "max_position_embeddings", None), position_limit(base_model)]
    if not decoder:
        # Encoders learn positions and reserve some of them; only the tokenizer knows how many are left.
        limits.append(tokenizer.model_max_length)
    known = [int(limit) for limit in limits if isinstance(limit, int) and 0 < limit < 10**9]
    return min(known, default=None)


def position_limit(base_model: nn.Module) -> int | None:
    """Returns the number of positions that a model has a table of; None where it computes them."""
    limits = []
    for name, module in base_model.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.Embedding) and (leaf == "wpe" or ("position" in leaf and "relative" not in leaf)):
            # OPT and BART leave the first rows out, RoBERTa those up to the row of padding.
            unused = getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - unused)
    tables = ("pos_encoding", "embed_positions")  # of CTRL, GPT-J and CodeGen
    limits += [len(table) for name, table in base_model.named_buffers() if name.rpartition(".")[2] in tables]
    return min(limits, default=None)


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
    """Returns the user's `liger_kernel_config` without losses of language models, which replace the model's forward."""
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
    """Puts Liger's kernels into the modules of a reward model, before the Trainer does it again."""
    from transformers.integrations.liger import apply_liger_kernel, is_liger_kernel_available

    field, fix = "use_liger_kernel", "Remove `use_liger_kernel`."
    if use_cpu:
        raise ConfigError("it needs a GPU: Liger's kernels are written in Triton", field=field, fix=fix)
    if not is_liger_kernel_available():
        raise ConfigError("it needs liger-kernel 0.3.0 or newer", field=field, fix="pip install liger-kernel")
    base_model = base_model_of(model)

    def replaced_forwards() -> set[str]:
        return {name for name, module in base_model.named_modules() if "forward" in vars(module)}

    forward, replaced_before = base_model.forward, replaced_forwards()
    try:
        apply_liger_kernel(model, liger_settings(config))
    except (TypeError, ValueError, AttributeError) as error:
        message = f"Liger does not support {type(base_model).__name__} ({error})"
        raise ConfigError(message, field=field, fix=fix) from error
    if base_model.forward != forward:
        message = f"Liger has replaced the forward of the {type(base_model).__name__}"
        raise ConfigError(message, field=field, fix=fix)
    count, kind = len(replaced_forwards() - replaced_before), base_model.config.model_type
    if count:
        logger.info("Liger kernels: in %d modules of the %s model.", count, kind)
    else:
        logger.warning("`use_liger_kernel` does nothing: Liger has no kernels for models of type %s.", kind)
