"""From settings to a trainer: the model's arguments, the data, the adapter."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset, IterableDataset
from transformers import BitsAndBytesConfig

from plaudit.cli.arguments import (
    AdapterArguments,
    DataArguments,
    ModelArguments,
    QuantizationArguments,
    TrainSettings,
    read_part,
)
from plaudit.cli.console import say
from plaudit.data.load import load_preference_dataset, split_by_prompt
from plaudit.data.mixture import load_mixture, located
from plaudit.demo import EMBEDDED_MODEL_NAME, embedded_model_path
from plaudit.errors import ConfigError, DataError
from plaudit.training.config import RewardConfig
from plaudit.training.setup import check_writable
from plaudit.training.trainer import RewardTrainer

DEFAULT_TEST_SPLIT = "test"
Rows: TypeAlias = Dataset | IterableDataset


def build_trainer(settings: TrainSettings, data: tuple[Rows, Rows | None] | None = None) -> RewardTrainer:
    """Check the settings, load data and model, and make the trainer; completes ``settings.config``.

    Args:
        settings: What was asked for.
        data: Rows to train on and to evaluate on, as `open_data` returns them; None loads them.

    Raises:
        ConfigError: Settings that cannot work together.
        DataError: Data that cannot be read.
    """
    config = settings.config
    _check_together(settings)
    check_writable(config.output_dir)
    kwargs = model_init_kwargs(settings.model, config)
    quantization_config = make_quantization_config(settings.quantization, kwargs)
    if quantization_config is not None:
        # Quantised weights cannot be moved later: each process loads onto its own GPU.
        kwargs.setdefault("device_map", {"": int(os.environ.get("LOCAL_RANK", "0"))})
    config.model_init_kwargs = kwargs or None
    peft_config = make_peft_config(settings.adapter)
    train_dataset, eval_dataset = load_data(settings.data, config) if data is None else data
    try:
        return RewardTrainer(
            find_model(settings.model),
            args=config,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            quantization_config=quantization_config,
        )
    except DataError as error:
        found = located(error, {"train": train_dataset, "eval": eval_dataset}.get(str(error.dataset)))
        if found is error:
            raise
        raise found from error


def _check_together(settings: TrainSettings) -> None:
    config, data, quantization = settings.config, settings.data, settings.quantization
    if data.dataset_name is None and data.datasets is None:
        raise ConfigError(
            "no data set is named",
            fix="Give --dataset_name: a file, a folder, or a Hub name (`plaudit demo` brings its own).",
        )
    if data.datasets is not None:
        _check_mixture(data, config)
    if data.eval_fraction is not None and data.dataset_test_split is not None:
        raise ConfigError(
            "`eval_fraction` and `dataset_test_split` both say what to evaluate on",
            fix="Leave out one of them.",
        )
    if data.dataset_streaming and config.max_steps <= 0:
        raise ConfigError(
            "a streamed data set has no length, so training would have no end",
            fix="Say how many steps to train: --max_steps 1000.",
        )
    if data.dataset_streaming and data.eval_fraction is not None:
        raise ConfigError(
            "`eval_fraction` needs to know all rows, and a stream shows them one by one",
            fix="Name a split to evaluate on with --dataset_test_split, or do not stream.",
        )
    quantized = quantization.load_in_4bit or quantization.load_in_8bit
    if quantized and not settings.adapter.use_peft:
        raise ConfigError(
            "a quantised model cannot be trained itself, only an adapter on top of it", fix="Add --use_peft."
        )


def _check_mixture(data: DataArguments, config: RewardConfig) -> None:
    for name in ("dataset_name", "dataset_config", "dataset_test_split"):
        if getattr(data, name) is not None:
            raise ConfigError(f"`datasets` and `{name}` do not go together", fix=_MIXTURE_FIXES[name])
    if data.dataset_train_split != "train":
        raise ConfigError(
            "`datasets` and `dataset_train_split` do not go together",
            fix="Give each part its own `split`.",
        )
    if config.eval_strategy != "no" and data.eval_fraction is None:
        raise ConfigError(
            "`eval_strategy` asks for evaluation, but a mixture has no split to evaluate on",
            fix="Set rows aside with --eval_fraction 0.1.",
        )


_MIXTURE_FIXES = {
    "dataset_name": "Leave out one of them, or add the data set to `datasets`.",
    "dataset_config": "Give the parts that need a configuration a `name`.",
    "dataset_test_split": "Set rows aside with `eval_fraction`.",
}


# --- model --------------------------------------------------------------------------------------------------


def find_model(model: ModelArguments) -> str:
    """The model asked for, or the folder of the embedded one, which is announced."""
    if model.model_name_or_path is not None:
        return model.model_name_or_path
    if model.model_revision is not None:
        raise ConfigError("`model_revision` is given, but no model", fix="Name the model with --model_name_or_path.")
    folder = embedded_model_path(progress=say)
    say(f"No model is named: taking the embedded {EMBEDDED_MODEL_NAME} ({folder}).")
    return str(folder)


def model_init_kwargs(model: ModelArguments, config: RewardConfig) -> dict[str, Any]:
    """Arguments of ``from_pretrained``: ``model_init_kwargs`` and the flags that stand for one of them.

    Raises:
        ConfigError: If both say something different.
    """
    if isinstance(config.model_init_kwargs, str):
        raise ConfigError(
            f"`model_init_kwargs` is text that is no JSON object: {config.model_init_kwargs!r}",
            fix='Write it like {"dtype": "bfloat16"}.',
        )
    kwargs: dict[str, Any] = dict(config.model_init_kwargs or {})
    for name, keys, value in (
        ("model_revision", ("revision",), model.model_revision),
        ("dtype", ("dtype", "torch_dtype"), model.dtype),
        ("attn_implementation", ("attn_implementation",), model.attn_implementation),
    ):
        if value is None:
            continue
        for key in keys:
            if key in kwargs and str(kwargs[key]).removeprefix("torch.") != value:
                raise ConfigError(
                    f"`{name}` is {value!r}, but `model_init_kwargs` has {key}={kwargs[key]!r}",
                    fix="Leave out one of them.",
                )
        kwargs[keys[0]] = value
    return kwargs


def make_quantization_config(quantization: QuantizationArguments, kwargs: Mapping[str, Any]) -> Any | None:
    """A configuration for bitsandbytes, or None where no quantisation is asked for.

    Args:
        quantization: The settings.
        kwargs: Other arguments of ``from_pretrained``; their ``dtype`` is what 4-bit weights compute in.

    Raises:
        ConfigError: If both widths are asked for, or there is no GPU or no bitsandbytes.
    """
    if not (quantization.load_in_4bit or quantization.load_in_8bit):
        return None
    if quantization.load_in_4bit and quantization.load_in_8bit:
        raise ConfigError("`load_in_4bit` and `load_in_8bit` exclude each other", fix="Leave out one of them.")
    name = "load_in_4bit" if quantization.load_in_4bit else "load_in_8bit"
    if not torch.cuda.is_available():
        raise ConfigError(f"`{name}` needs a GPU, and this machine shows none", fix=f"Leave out --{name}.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"`{name}` needs the package bitsandbytes", fix="pip install bitsandbytes")
    if quantization.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = kwargs.get("dtype")
    storage = quantization.bnb_4bit_quant_storage
    return BitsAndBytesConfig(
        load_in_4bit=True,
        **({} if storage is None else {"bnb_4bit_quant_storage": storage}),
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype in (None, "auto") else dtype,
        bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=quantization.use_bnb_nested_quant,
    )


def make_peft_config(adapter: AdapterArguments) -> Any | None:
    """A LoRA configuration, or None where the whole model is trained.

    Raises:
        ConfigError: If PEFT is not installed or refuses the settings.
    """
    if not adapter.use_peft:
        return None
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("`use_peft` needs the package peft", fix="pip install 'plaudit[peft]'")
    from peft import LoraConfig

    modules = adapter.lora_target_modules
    try:
        return LoraConfig(
            task_type="SEQ_CLS",
            r=adapter.lora_r,
            lora_alpha=adapter.lora_alpha,
            lora_dropout=adapter.lora_dropout,
            target_modules=modules[0] if modules is not None and _is_pattern(modules) else modules,
            target_parameters=adapter.lora_target_parameters,
            modules_to_save=adapter.lora_modules_to_save,
            use_rslora=adapter.use_rslora,
            use_dora=adapter.use_dora,
            bias="none",
        )
    except ValueError as error:
        raise ConfigError(f"PEFT refuses these settings: {error}", fix="Change the lora_ settings.") from error


def _is_pattern(modules: list[str]) -> bool:
    # PEFT reads a text as a pattern for whole names, or as the word all-linear, and a list as ends of names.
    return len(modules) == 1 and (modules[0] == "all-linear" or any(sign in modules[0] for sign in "*+?|()[]^$\\"))


# --- data ---------------------------------------------------------------------------------------------------


def open_data(settings: TrainSettings) -> tuple[Rows, Rows | None]:
    """Check the settings and load the raw rows to train on, and those to evaluate on, if any are asked for.

    Raises:
        ConfigError: Settings that cannot work together.
        DataError: Data that cannot be read.
    """
    _check_together(settings)
    return load_data(settings.data, settings.config)


def load_data(data: DataArguments, config: RewardConfig) -> tuple[Rows, Rows | None]:
    """Rows to train on, and rows to evaluate on, if any are asked for.

    Raises:
        DataError: If they cannot be read.
        ConfigError: If evaluation is on, but there is nothing to evaluate on.
    """
    seed = config.seed if config.data_seed is None else config.data_seed
    if data.datasets is not None:
        parts = [read_part(part, number) for number, part in enumerate(data.datasets, start=1)]
        return load_mixture(parts, streaming=data.dataset_streaming, eval_fraction=data.eval_fraction, seed=seed)
    name = str(data.dataset_name)
    train = _load(data, name, data.dataset_train_split)
    if data.eval_fraction is not None:
        return split_by_prompt(train, data.eval_fraction, seed=seed)
    if data.dataset_test_split is not None:
        return train, _load(data, name, data.dataset_test_split)
    if config.eval_strategy == "no":
        return train, None
    try:
        return train, _load(data, name, DEFAULT_TEST_SPLIT)
    except DataError as error:
        raise ConfigError(
            f"`eval_strategy` asks for evaluation, but there is no split to evaluate on: {error.message}",
            fix="Set rows aside with --eval_fraction 0.1, or name a split with --dataset_test_split.",
        ) from error


def _load(data: DataArguments, name: str, split: str) -> Any:
    return load_preference_dataset(name, config=data.dataset_config, split=split, streaming=data.dataset_streaming)


def name_of(model: str) -> str:
    """Short name of a model, for people.

    >>> name_of("Qwen/Qwen3-0.6B"), name_of("/models/mine/")
    ('Qwen3-0.6B', 'mine')
    """
    return Path(model).name
