"""The settings of ``plaudit train``, from the command line, a YAML file and a preset; and the trainer they describe."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import torch
import yaml
from datasets import Dataset, IterableDataset
from transformers import BitsAndBytesConfig

from plaudit.cli.arguments import DATA, DTYPES, Command, Section, Setting, section_of
from plaudit.cli.console import say
from plaudit.data.load import load_preference_dataset, split_by_prompt
from plaudit.data.mixture import DatasetPart, load_mixture, located
from plaudit.demo import EMBEDDED_MODEL_NAME, embedded_model_path
from plaudit.errors import ConfigError, DataError, PlauditError, nearest
from plaudit.schema import quoted
from plaudit.training.artifacts import checkpoint_to_resume
from plaudit.training.config import OBJECTIVE_SETTINGS, RewardConfig
from plaudit.training.setup import check_writable
from plaudit.training.trainer import RewardTrainer

Rows: TypeAlias = Dataset | IterableDataset

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "use_peft": True,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_target_modules": ["all-linear"],
        "learning_rate": 2e-4,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 4,
        "gradient_checkpointing": "auto",
        "save_total_limit": 1,
    },
    "full": {
        "learning_rate": 1e-5,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.05,
        "num_train_epochs": 1,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 8,
        "gradient_checkpointing": "auto",
        "max_length": 2048,
        "save_total_limit": 2,
    },
}
_PRESET_USES = {
    "quick": "trains a LoRA adapter on a laptop or a small GPU",
    "full": "trains the whole model on a large GPU, with the usual settings for reward models",
}
_OWN = [name for name in RewardConfig.__annotations__ if name not in OBJECTIVE_SETTINGS]
_INHERITED = {item.name for item in dataclasses.fields(RewardConfig)} - {*RewardConfig.__annotations__}


def value_text(value: Any) -> str:
    """Returns a value as it is written on the command line.

    >>> value_text(["q_proj", "v_proj"]), value_text(True), value_text(2e-4)
    ('q_proj v_proj', 'true', '0.0002')
    """
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(getattr(value, "value", value))


TRAIN = Command(
    "train",
    usage="[--config FILE.yaml] [--dry-run] [--NAME VALUE ...]",
    about="Train a reward model on preferences.",
    examples=(
        "plaudit train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name pairs.jsonl \\",
        "    --eval_fraction 0.1 --output_dir runs/first",
    ),
    notes=(
        "Settings are written --with_underscores or --with-hyphens, or in a YAML file as `name: value`; the command "
        "line overrides the file. `--NAME false` turns a switch off, and `none` unsets a number.",
        *(
            f"The preset {name} {_PRESET_USES[name]}: "
            f"{', '.join(f'{setting} {value_text(value)}' for setting, value in preset.items())}."
            for name, preset in PRESETS.items()
        ),
    ),
    sections=(
        Section(
            "This command: dry run, file of settings and preset.",
            dry_run=Setting("Show data, batches, memory and time without training. Writes nothing.", bool, False),
            config=Setting("YAML file of settings. Settings on the command line override it."),
            preset=Setting(f"Set of defaults: {' or '.join(PRESETS)} (see above). Other settings override it."),
            ignore_bias_buffers=Setting("Accepted for compatibility; has no effect.", bool, False),
        ),
        section_of("Reward training: how the reward model is trained.", RewardConfig, _OWN),
        section_of("Objective: what is learned, and what is added to the loss.", RewardConfig, OBJECTIVE_SETTINGS),
        Section(
            "Model: the model to train, and how it is loaded.",
            model_name_or_path=Setting(
                "Language or reward model to train: a folder or model id. Default: the small embedded chat model."
            ),
            model_revision=Setting("Branch, tag or commit of a model on the Hub."),
            dtype=Setting(
                "Precision of the weights. Default: float32, which trains best; bfloat16 saves memory.", choices=DTYPES
            ),
            attn_implementation=Setting("Attention implementation of transformers, such as sdpa or eager."),
        ),
        Section(
            "Data: the preferences to train and evaluate on.",
            dataset_name=Setting(DATA[0].upper() + DATA[1:]),
            datasets=Setting(
                "Mixture of data sets, instead of `dataset_name`. In YAML, a list of mappings with `path` and "
                "optionally `name`, `data_dir`, `data_files`, `split`, `columns`, `fraction`, `rows` and `schema`; on "
                "the command line, paths or such mappings as JSON.",
                list[str] | None,
            ),
            dataset_config=Setting("Configuration of a data set on the Hub."),
            dataset_train_split=Setting("Split to train on, optionally with a slice: train[:1000].", str, "train"),
            dataset_test_split=Setting(
                "Split to evaluate on. Default: `test` if `eval_strategy` asks for evaluation, otherwise none."
            ),
            dataset_streaming=Setting(
                "Stream the data; requires `max_steps`. Alias: `streaming`.", bool, False, aliases=("--streaming",)
            ),
            eval_fraction=Setting(
                "Hold out this fraction of the training rows for evaluation. Rows with the same prompt stay together. "
                "Alias: `test_split_size`.",
                float | None,
                aliases=("--test_split_size",),
            ),
        ),
        Section(
            "Adapters (PEFT): train a LoRA adapter instead of the whole model.",
            use_peft=Setting("Train an adapter and the head. A learning rate near 1e-3 works well.", bool, False),
            lora_r=Setting("Rank of the adapter.", int, 16),
            lora_alpha=Setting("Scale of the adapter.", int, 32),
            lora_dropout=Setting("Dropout in the adapter.", float, 0.05),
            lora_target_modules=Setting(
                "Modules that get an adapter, or all-linear. Default: PEFT's choice for the model.", list[str] | None
            ),
            lora_target_parameters=Setting("Parameters that get an adapter, such as experts.", list[str] | None),
            lora_modules_to_save=Setting("Modules trained in full, in addition to the head.", list[str] | None),
            lora_task_type=Setting("Accepted for compatibility; the task type of a reward model is always SEQ_CLS."),
            use_rslora=Setting("Scale the adapter by the square root of its rank (rsLoRA).", bool, False),
            use_dora=Setting("Decompose the weights into magnitude and direction (DoRA).", bool, False),
        ),
        Section(
            "Quantisation (QLoRA): load the frozen model in fewer bits (requires an adapter, a GPU and bitsandbytes).",
            load_in_4bit=Setting("Load the model in 4 bits.", bool, False),
            load_in_8bit=Setting("Load the model in 8 bits.", bool, False),
            bnb_4bit_quant_type=Setting("4-bit number format.", str, "nf4", choices=("nf4", "fp4")),
            use_bnb_nested_quant=Setting("Also quantise the quantisation constants.", bool, False),
            bnb_4bit_quant_storage=Setting(
                "Storage type of the 4-bit numbers. FSDP needs the type of the other weights.",
                choices=("uint8", "bfloat16", "float16", "float32"),
            ),
        ),
        section_of("Training: inherited from transformers' TrainingArguments.", RewardConfig, _INHERITED),
    ),
)


def parse_arguments(arguments: Sequence[str]) -> Namespace:
    """Reads command line, YAML file and preset; in the result, ``config`` is the `RewardConfig`, not the file."""
    _, given = TRAIN.read(arguments)
    file = read_file(Path(given["config"])) if "config" in given else {}
    preset = given.get("preset", file.get("preset"))
    if preset is not None and preset not in PRESETS:
        fix = nearest(preset, PRESETS, f"Use one of: {', '.join(PRESETS)}.")
        raise ConfigError(f"there is no preset {preset!r}", fix=fix)
    values = {**PRESETS.get(str(preset), {}), **file, **given}
    if values.get("output_dir") is None:
        values["output_dir"] = f"{Path(values.get('model_name_or_path') or EMBEDDED_MODEL_NAME).name}-Reward"
    own_settings, calls = TRAIN.assign(values)
    calls["RewardConfig"].setdefault("disable_tqdm", False)  # whatever transformers may log
    try:
        return Namespace(**{**own_settings, "config": RewardConfig(**calls["RewardConfig"])})
    except PlauditError:
        raise
    except (ValueError, TypeError, ImportError) as error:  # raised by TrainingArguments about its own settings
        raise ConfigError(str(error), fix="Change or remove the setting named above.") from error


def preset_lines(settings: Namespace) -> list[str]:
    """Describes what the preset set, and which of its values were overridden."""
    actual = {**vars(settings), **vars(settings.config)}
    taken, replaced = [], []
    for setting, value in PRESETS[settings.preset].items():
        text, wanted = value_text(actual[setting]), value_text(value)
        if text == wanted or actual[setting] == value:
            taken.append(f"{setting} {wanted}")
        else:
            replaced.append(f"{setting} {text} (not {wanted})")
    lines = [f"Preset {settings.preset}: {', '.join(taken) or 'nothing'}."]
    return [*lines, f"  Overridden: {', '.join(replaced)}."] if replaced else lines


def read_file(path: Path) -> dict[str, Any]:
    """Reads a YAML file of settings; sets the environment variables under its key ``env``."""
    fix = "Write one `name: value` per line."
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        fix = "Check the path given to --config."
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", fix=fix) from error
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = f"line {mark.line + 1}: " if mark is not None else ""
        message = f"{path}: {line}is not valid YAML: {problem or 'cannot be parsed'}"
        raise ConfigError(message, fix=fix) from error
    if content is not None and not isinstance(content, dict):
        raise ConfigError(f"{path}: does not hold settings", fix=fix)
    values: dict[str, Any] = {}
    try:
        for key, value in (content or {}).items():
            name = str(key).replace("-", "_")
            if name == "env":
                variables = value if isinstance(value, Mapping) else {"": None}
                if any(text is None or isinstance(text, list | dict) for text in variables.values()):
                    fix = 'Write it like `env: {NAME: "value"}`.'
                    raise ConfigError("`env` is not a mapping of names to values", fix=fix)
                os.environ.update({str(variable): str(text) for variable, text in variables.items()})
                continue
            setting = TRAIN.options.get(f"--{name}")
            if setting is None or name.startswith("no_") or name == "config":
                TRAIN.refuse_unknown(str(key), prefix="")
            name = setting.name
            if name in values:
                raise ConfigError(f"`{key}` sets `{name}` a second time", fix="Remove one of the lines.")
            if value is None and type(None) not in setting.types:
                raise ConfigError(f"`{name}` is empty", fix="Give it a value, or remove the line.")
            if isinstance(value, list | dict) and type(value) not in setting.classes:
                kind = "a list" if isinstance(value, list) else "a mapping"
                raise ConfigError(f"`{name}` cannot be {kind}", fix="Use a single value.")
            if value is not None and not isinstance(value, list | dict):
                text = str(value).lower() if isinstance(value, bool) else str(value)
                value = TRAIN.read([f"--{name}={text}"])[1][name]
            values[name] = value
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.summary}", fix=error.fix) from error.__cause__
    return values


_PART_FIELDS: dict[str, tuple[Any, str]] = {  # types and fix of each field of a part
    "path": (str, "Use the name of a file, a folder or a data set on the Hub."),
    "name": (str, "Use the name of a configuration."),
    "data_dir": (str, "Use the name of a folder."),
    "data_files": ((str, list, dict), "Use a file name, a list of them, or a mapping from splits to them."),
    "split": (str, 'Write it like "train" or "train[:500]".'),
    "columns": ((list, dict), "Use a list of columns, or a mapping from columns to new names."),
    "fraction": ((int, float), "Use a number above 0, such as 0.5."),
    "rows": (int, "Use a whole number from 1."),
    "schema": (str, "Use auto, none, or the name of a schema of public data."),
}


def read_part(value: Any, number: int) -> DatasetPart:
    """Reads item `number` (from 1) of the setting ``datasets``: a mapping, its JSON text, or a path.

    >>> read_part('{"path": "pairs.jsonl", "rows": 100}', 1).rows
    100
    """

    def refuse(message: str, fix: str) -> NoReturn:
        raise ConfigError(f"`datasets`, part {number}: {message}", fix=fix)

    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            refuse(f"is not valid JSON: {error}", 'Write it like {"path": "pairs.jsonl", "rows": 1000}.')
    if isinstance(value, str):
        value = {"path": value}
    if not isinstance(value, Mapping):
        refuse(f"is {value!r}, not a mapping", "Write `- path: pairs.jsonl`, with further fields below it.")
    for name in value:
        if name not in _PART_FIELDS:
            fix = nearest(str(name), _PART_FIELDS, f"A part has the fields {quoted(list(_PART_FIELDS))}.")
            refuse(f"there is no field `{name}`", fix)
    given = {name: item for name, item in value.items() if item is not None}
    for name, item in given.items():
        kinds, fix = _PART_FIELDS[name]
        is_valid = isinstance(item, kinds) and not isinstance(item, bool) and bool(item)
        if is_valid and isinstance(item, int | float):
            is_valid = 0 < item < float("inf")
        elif is_valid and (isinstance(item, list) or name == "columns"):
            is_valid = all(isinstance(text, str) for text in (item.values() if isinstance(item, dict) else item))
        if not is_valid:
            refuse(f"`{name}` is {item!r}", fix)
    if "path" not in given:
        refuse("has no `path`", _PART_FIELDS["path"][1])
    if "fraction" in given and "rows" in given:
        refuse("has both `fraction` and `rows`", "Remove one of them.")
    return DatasetPart(**given)


def build_trainer(settings: Namespace, data: tuple[Rows, Rows | None] | None = None) -> RewardTrainer:
    """Checks the settings, loads the model and, unless `data` is given, the data; completes ``settings.config``."""
    check_settings(settings)
    config: RewardConfig = settings.config
    check_writable(config.output_dir)
    kwargs = model_init_kwargs(settings)
    quantization_config = make_quantization_config(settings, kwargs)
    if quantization_config is not None:
        # Quantised weights cannot be moved later: each process loads onto its own GPU.
        kwargs.setdefault("device_map", {"": int(os.environ.get("LOCAL_RANK", "0"))})
    config.model_init_kwargs = kwargs or None
    peft_config = make_peft_config(settings)
    train_dataset, eval_dataset = load_data(settings) if data is None else data
    model = settings.model_name_or_path
    if model is None:
        if settings.model_revision is not None:
            raise ConfigError("`model_revision` is set, but no model", fix="Pass the model as --model_name_or_path.")
        model = str(embedded_model_path(progress=say))
        say(f"No model is named: using the embedded {EMBEDDED_MODEL_NAME} ({model}).")
    try:
        return RewardTrainer(
            model,
            args=config,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            peft_config=peft_config,
            quantization_config=quantization_config,
        )
    except DataError as error:
        rows = {"train": train_dataset, "eval": eval_dataset}.get(str(error.dataset))
        raise located(error, rows) from error.__cause__


def check_settings(settings: Namespace) -> None:
    """Raises `ConfigError` for settings that cannot work together."""
    resume, run_folder = settings.config.resume_from_checkpoint, settings.config.output_dir
    resume = {"true": True, "false": False}.get(str(resume).lower(), resume)
    settings.config.resume_from_checkpoint = checkpoint_to_resume(resume, run_folder)
    evaluates, mixes = settings.config.eval_strategy != "no", settings.datasets is not None
    holds_out, streams = settings.eval_fraction is not None, settings.dataset_streaming
    if not mixes and settings.dataset_name is None:
        fix = "Pass --dataset_name with a file, a folder or a Hub name (`plaudit demo` brings its own data)."
        raise ConfigError("no data set is named", fix=fix)
    for name, fix in _MIXTURE_FIXES.items():
        if mixes and getattr(settings, name) not in (None, "train"):
            raise ConfigError(f"`datasets` and `{name}` exclude each other", fix=fix)
    if mixes and settings.config.schema not in ("auto", "none"):
        fix = "Give the parts that need it their own `schema`."
        raise ConfigError("`datasets` and `schema` exclude each other", field="schema", fix=fix)
    if mixes and evaluates and not holds_out:
        message = "`eval_strategy` asks for evaluation, but a mixture has no split to evaluate on"
        raise ConfigError(message, fix="Hold out rows with --eval_fraction 0.1.")
    if holds_out and settings.dataset_test_split is not None:
        message = "`eval_fraction` and `dataset_test_split` both select the rows to evaluate on"
        raise ConfigError(message, fix="Remove one of them.")
    if streams and settings.config.max_steps <= 0:
        message = "a streamed data set has no length, so training would never end"
        raise ConfigError(message, fix="Set the number of steps, such as --max_steps 1000.")
    if streams and holds_out:
        fix = "Evaluate on a split with --dataset_test_split, or turn streaming off."
        raise ConfigError("`eval_fraction` needs all rows, and a stream reads them one by one", fix=fix)
    if (settings.load_in_4bit or settings.load_in_8bit) and not settings.use_peft:
        raise ConfigError("a quantised model cannot be trained, only an adapter on top of it", fix="Add --use_peft.")


_MIXTURE_FIXES = {
    "dataset_name": "Remove one of them, or add the data set to `datasets`.",
    "dataset_config": "Give the parts that need a configuration a `name`.",
    "dataset_train_split": "Give each part its own `split`.",
    "dataset_test_split": "Hold out rows with `eval_fraction`.",
}


def model_init_kwargs(settings: Namespace) -> dict[str, Any]:
    """Returns ``model_init_kwargs`` with the settings that stand for one of them; raises where both differ."""
    given = settings.config.model_init_kwargs
    if isinstance(given, str):
        message = f"`model_init_kwargs` is not a JSON object: {given!r}"
        raise ConfigError(message, fix='Write it like {"dtype": "bfloat16"}.')
    kwargs: dict[str, Any] = dict(given or {})
    for name, *keys in (
        ("model_revision", "revision"),
        ("dtype", "dtype", "torch_dtype"),
        ("attn_implementation", "attn_implementation"),
    ):
        value = getattr(settings, name)
        if value is None:
            continue
        for key in keys:
            if key in kwargs and str(kwargs[key]).removeprefix("torch.") != value:
                message = f"`{name}` is {value!r}, but `model_init_kwargs` has {key}={kwargs[key]!r}"
                raise ConfigError(message, fix="Remove one of them.")
        kwargs[keys[0]] = value
    return kwargs


def make_quantization_config(settings: Namespace, kwargs: Mapping[str, Any]) -> Any | None:
    """Returns a configuration for bitsandbytes, or None; 4-bit weights compute in the ``dtype`` of `kwargs`."""
    if not (settings.load_in_4bit or settings.load_in_8bit):
        return None
    if settings.load_in_4bit and settings.load_in_8bit:
        raise ConfigError("`load_in_4bit` and `load_in_8bit` exclude each other", fix="Remove one of them.")
    name = "load_in_4bit" if settings.load_in_4bit else "load_in_8bit"
    if not torch.cuda.is_available():
        raise ConfigError(f"`{name}` needs a GPU, and there is none", fix=f"Remove --{name}.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"`{name}` needs the package bitsandbytes", fix="Run: pip install bitsandbytes")
    if settings.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = kwargs.get("dtype")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_storage=settings.bnb_4bit_quant_storage,
        bnb_4bit_compute_dtype=torch.bfloat16 if dtype in (None, "auto") else dtype,
        bnb_4bit_quant_type=settings.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=settings.use_bnb_nested_quant,
    )


def make_peft_config(settings: Namespace) -> Any | None:
    """Returns a LoRA configuration, or None where the whole model is trained."""
    if not settings.use_peft:
        return None
    if importlib.util.find_spec("peft") is None:
        raise ConfigError("`use_peft` needs the package peft", fix="Run: pip install 'plaudit[peft]'")
    from peft import LoraConfig

    modules = settings.lora_target_modules
    # PEFT reads a text as a pattern for whole names, or as the word all-linear, and a list as ends of names.
    is_pattern = modules is not None and len(modules) == 1 and re.search(r"^all-linear$|[*+?|()\[\]^$\\]", modules[0])
    try:
        return LoraConfig(
            task_type="SEQ_CLS",
            r=settings.lora_r,
            lora_alpha=settings.lora_alpha,
            lora_dropout=settings.lora_dropout,
            target_modules=modules[0] if modules and is_pattern else _split(modules),
            target_parameters=_split(settings.lora_target_parameters),
            modules_to_save=_split(settings.lora_modules_to_save),
            use_rslora=settings.use_rslora,
            use_dora=settings.use_dora,
            bias="none",
        )
    except ValueError as error:
        raise ConfigError(f"PEFT rejects these settings: {error}", fix="Change the lora_ settings.") from error


def _split(names: Sequence[str] | None) -> list[str] | None:
    """Returns the names of a list in which some are joined by commas."""
    return [name.strip() for text in names for name in text.split(",") if name.strip()] if names else None


def load_data(settings: Namespace) -> tuple[Rows, Rows | None]:
    """Returns the rows to train on, and those to evaluate on, if any."""
    config: RewardConfig = settings.config
    streaming = settings.dataset_streaming
    seed = config.seed if config.data_seed is None else config.data_seed
    if settings.datasets is not None:
        parts = [read_part(part, number) for number, part in enumerate(settings.datasets, start=1)]
        parts = [dataclasses.replace(part, schema="none") if config.schema == "none" else part for part in parts]
        return load_mixture(parts, streaming=streaming, eval_fraction=settings.eval_fraction, seed=seed)
    options: dict[str, Any] = {"config": settings.dataset_config, "streaming": streaming}
    load: Any = partial(load_preference_dataset, settings.dataset_name, **options)
    train = load(split=settings.dataset_train_split)
    if settings.eval_fraction is not None:
        return split_by_prompt(train, settings.eval_fraction, seed=seed, schema=config.schema)
    if settings.dataset_test_split is not None:
        return train, load(split=settings.dataset_test_split)
    if config.eval_strategy == "no":
        return train, None
    try:
        return train, load(split="test")
    except DataError as error:
        message = f"`eval_strategy` asks for evaluation, but there is no split to evaluate on: {error.message}"
        fix = "Hold out rows with --eval_fraction 0.1, or pass a split as --dataset_test_split."
        raise ConfigError(message, fix=fix) from error
