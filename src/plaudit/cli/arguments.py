"""The settings of ``plaudit train``: flags, and a YAML file under them."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from plaudit.cli.presets import PRESETS, find_preset
from plaudit.cli.settings_file import errors_in, read_yaml, set_environment
from plaudit.cli.settings_table import options_of
from plaudit.demo import EMBEDDED_MODEL_NAME
from plaudit.errors import ConfigError, PlauditError
from plaudit.training.config import RewardConfig

_SEE_HELP = "`plaudit train --help` lists all settings."


def _about(help: str, **more: Any) -> dict[str, Any]:
    return {"help": help, **more}


@dataclass
class ModelArguments:
    """Which model to train, and how it is loaded."""

    title: ClassVar[str] = "Model"

    model_name_or_path: str | None = field(
        default=None,
        metadata=_about(
            "Folder or model id to start from: a language model, or a reward model to go on with. "
            "Default: the small embedded chat model."
        ),
    )
    model_revision: str | None = field(default=None, metadata=_about("Branch, tag or commit of a model on the Hub."))
    dtype: str | None = field(
        default=None,
        metadata=_about(
            "Precision the weights are loaded in. Default: float32, which trains best; memory is saved with `bf16`.",
            choices=("auto", "bfloat16", "float16", "float32"),
        ),
    )
    attn_implementation: str | None = field(
        default=None, metadata=_about("Attention under the batch layout, such as sdpa or eager.")
    )


@dataclass
class DataArguments:
    """Which preferences to train and evaluate on."""

    title: ClassVar[str] = "Data"

    dataset_name: str | None = field(
        default=None,
        metadata=_about(
            "A JSON, JSON lines, CSV or Parquet file, a folder of such files or one saved by "
            "`datasets`, or the name of a data set on the Hub."
        ),
    )
    datasets: list[str] | None = field(
        default=None,
        metadata=_about(
            "A mixture of data sets, in place of `dataset_name`. In YAML a list of mappings with `path` and "
            "optionally `name`, `data_dir`, `data_files`, `split`, `columns`, `fraction` and `rows`; on the command "
            "line paths, or such mappings as JSON."
        ),
    )
    dataset_config: str | None = field(default=None, metadata=_about("Configuration of a data set on the Hub."))
    dataset_train_split: str = field(
        default="train", metadata=_about("Split to train on, also with a slice: train[:1000].")
    )
    dataset_test_split: str | None = field(
        default=None,
        metadata=_about("Split to evaluate on. Default: `test` if `eval_strategy` asks for evaluation, else none."),
    )
    dataset_streaming: bool = field(
        default=False, metadata=_about("Read the data while training; needs `max_steps`. Also `streaming`.")
    )
    eval_fraction: float | None = field(
        default=None,
        metadata=_about(
            "Set this share of the training rows aside for evaluation, by prompt: rows that share one stay together. "
            "Also `test_split_size`."
        ),
    )


@dataclass
class AdapterArguments:
    """Train a LoRA adapter instead of the whole model."""

    title: ClassVar[str] = "Adapters (PEFT)"

    use_peft: bool = field(
        default=False,
        metadata=_about("Train a LoRA adapter and the reward head; a learning rate around 1e-3 suits."),
    )
    lora_r: int = field(default=16, metadata=_about("Rank of the adapter."))
    lora_alpha: int = field(default=32, metadata=_about("Scale of the adapter."))
    lora_dropout: float = field(default=0.05, metadata=_about("Dropout in the adapter."))
    lora_target_modules: list[str] | None = field(
        default=None, metadata=_about("Modules that get an adapter, or all-linear. Default: PEFT's.")
    )
    lora_target_parameters: list[str] | None = field(
        default=None, metadata=_about("Parameters that get an adapter (experts of some models).")
    )
    lora_modules_to_save: list[str] | None = field(
        default=None, metadata=_about("Modules trained in full, beside the head.")
    )
    lora_task_type: str | None = field(
        default=None, metadata=_about("Read for compatibility; a reward model is always SEQ_CLS.")
    )
    use_rslora: bool = field(default=False, metadata=_about("Scale by the square root of the rank (rsLoRA)."))
    use_dora: bool = field(default=False, metadata=_about("Split weights into size and direction (DoRA)."))


@dataclass
class QuantizationArguments:
    """Load the frozen model under an adapter in fewer bits (needs a GPU and bitsandbytes)."""

    title: ClassVar[str] = "Quantisation (QLoRA)"

    load_in_4bit: bool = field(default=False, metadata=_about("Load the model in 4 bits."))
    load_in_8bit: bool = field(default=False, metadata=_about("Load the model in 8 bits."))
    bnb_4bit_quant_type: str = field(
        default="nf4", metadata=_about("Type of the 4-bit numbers.", choices=("nf4", "fp4"))
    )
    use_bnb_nested_quant: bool = field(default=False, metadata=_about("Quantise the scales as well."))
    bnb_4bit_quant_storage: str | None = field(
        default=None,
        metadata=_about(
            "Type that 4-bit numbers are stored in; FSDP needs that of the other weights.",
            choices=("uint8", "bfloat16", "float16", "float32"),
        ),
    )


@dataclass
class RunArguments:
    """What this command does with the settings."""

    title: ClassVar[str] = "This command"

    dry_run: bool = field(
        default=False,
        metadata=_about("Show data, layout, memory and time without training; nothing is written."),
    )
    preset: str | None = field(
        default=None,
        metadata=_about("A set of defaults (see above); whatever else is said wins.", choices=tuple(PRESETS)),
    )
    ignore_bias_buffers: bool = field(
        default=False, metadata=_about("Read for compatibility; there is nothing to work around.")
    )


@dataclass(frozen=True)
class TrainSettings:
    """Everything that ``plaudit train`` was told."""

    run: RunArguments
    model: ModelArguments
    data: DataArguments
    adapter: AdapterArguments
    quantization: QuantizationArguments
    config: RewardConfig


OWN = (RunArguments, ModelArguments, DataArguments, AdapterArguments, QuantizationArguments)
"""The dataclasses of this command's own settings, in the order of the help."""

ALIASES = {"streaming": "dataset_streaming", "test_split_size": "eval_fraction"}
"""Names beside those of the fields: what the reference's mixtures call them."""


# --- reading ------------------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str]) -> TrainSettings:
    """Read flags and the YAML file that ``--config`` names; flags win.

    Args:
        argv: Arguments after ``plaudit train``.

    Raises:
        ConfigError: A flag or key is unknown, or a value cannot be read; near misses are named.
    """
    tokens, config = _take_option("config", "the name of a YAML file", _without_aliases(argv))
    tokens, preset = _take_option("preset", f"a name: {' or '.join(PRESETS)}", tokens)
    parser = _Parser([*OWN, RewardConfig], prog="plaudit train", add_help=False, allow_abbrev=False)
    hints = _hints()
    content: dict[str, Any] = {}
    if config is not None:
        with errors_in(Path(config)):
            content = _named(read_yaml(Path(config)), hints)
    in_file = content.pop("preset", None)
    preset = in_file if preset is None else preset
    if preset is not None:
        _make_defaults(parser, hints, find_preset(str(preset)).values)
        parser.set_defaults(preset=preset)
    if config is not None:
        with errors_in(Path(config)):
            _make_defaults(parser, hints, content)
    tokens, nulls = _take_nulls(_complete_switches(tokens, hints), hints)
    parser.set_defaults(**dict.fromkeys(nulls))
    known, unknown = parser.parse_known_args(tokens)
    if unknown:
        _refuse_unknown(unknown, hints)
    if known.output_dir is None:
        parser.set_defaults(output_dir=f"{Path(known.model_name_or_path or EMBEDDED_MODEL_NAME).name}-Reward")
    try:
        parts = parser.parse_args_into_dataclasses(tokens, look_for_args_file=False)
    except PlauditError:
        raise
    except (
        ValueError,
        TypeError,
        ImportError,
    ) as error:  # what TrainingArguments raises about its own settings
        raise ConfigError(str(error), fix="Change or leave out the setting named above.") from error
    return TrainSettings(*parts)


class _Parser(HfArgumentParser):
    def __init__(self, kinds: list[Any], **kwargs: Any) -> None:
        super().__init__(kinds, **kwargs)
        # HfArgumentParser reads true and false only where a setting may also be a word.
        switch = next(action for action in self._actions if action.dest == "gradient_checkpointing")
        switch.type = lambda text: text if text == "auto" else string_to_bool(text)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, fix=_SEE_HELP)


def _hints() -> dict[str, Any]:
    """Type of each setting."""
    return {
        one.name: hints[one.name]
        for cls in (*OWN, RewardConfig)
        for hints in [typing.get_type_hints(cls)]
        for one in dataclasses.fields(cls)
        if one.init
    }


def _without_aliases(tokens: Sequence[str]) -> list[str]:
    result = []
    for token in tokens:
        name, equals, value = token.partition("=")
        known = ALIASES.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        result.append(token if known is None else f"--{known}{equals}{value}")
    return result


def _take_option(option: str, wanted: str, tokens: Sequence[str]) -> tuple[list[str], str | None]:
    """Take an option out that must be known before the others are read."""
    rest: list[str] = []
    found: str | None = None
    index = 0
    while index < len(tokens):
        name, equals, value = tokens[index].partition("=")
        if name != f"--{option}":
            rest.append(tokens[index])
        elif equals:
            found = value
        else:
            index += 1
            if index == len(tokens):
                raise ConfigError(f"--{option} needs {wanted}", fix=_SEE_HELP)
            found = tokens[index]
        index += 1
    return rest, found


def _take_nulls(tokens: Sequence[str], hints: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Take out numbers set to ``none``, which argparse has no way to say."""
    rest: list[str] = []
    nulls: list[str] = []
    index = 0
    while index < len(tokens):
        name, equals, value = tokens[index].partition("=")
        follows = value if equals else (tokens[index + 1] if index + 1 < len(tokens) else "")
        setting = name.removeprefix("--").replace("-", "_")
        if name.startswith("--") and follows.lower() in ("none", "null") and _may_be_null_number(hints.get(setting)):
            nulls.append(setting)
            index += 1 if equals else 2
            continue
        rest.append(tokens[index])
        index += 1
    return rest, nulls


def _complete_switches(tokens: Sequence[str], hints: Mapping[str, Any]) -> list[str]:
    """Let a bare ``--bf16`` mean true; argparse asks for a value where the default is None."""
    rest: list[str] = []
    for token, following in zip(tokens, [*tokens[1:], "--"], strict=True):
        options = options_of(hints.get(token.removeprefix("--").replace("-", "_")))
        bare = token.startswith("--") and bool in options and type(None) in options and following.startswith("--")
        rest.append(f"{token}=true" if bare else token)
    return rest


def _may_be_null_number(hint: Any) -> bool:
    options = options_of(hint)
    return type(None) in options and any(one in (int, float) for one in options)


def _refuse_unknown(unknown: Sequence[str], hints: Mapping[str, Any]) -> NoReturn:
    options = [token for token in unknown if token.startswith("-")]
    if not options:
        raise ConfigError(f"unexpected argument {unknown[0]!r}", fix=f"Settings look like --name value; {_SEE_HELP}")
    name = options[0].partition("=")[0]
    raise ConfigError(f"there is no setting {name}", fix=_near_misses(name.lstrip("-"), hints, "--"))


def _near_misses(name: str, hints: Mapping[str, Any], prefix: str = "") -> str:
    close = difflib.get_close_matches(name.replace("-", "_"), ["config", *hints], n=3, cutoff=0.6)
    if not close:
        return _SEE_HELP
    return f"Did you mean {' or '.join(f'`{prefix}{one}`' for one in close)}?"


# --- defaults from a file or a preset -----------------------------------------------------------------------


def _named(content: Mapping[Any, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a file under the names of the fields; sets the environment variables among them."""
    named: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name == "env":
            set_environment(value)
            continue
        name = ALIASES.get(name, name)
        if name not in hints:
            raise ConfigError(f"there is no setting `{key}`", fix=_near_misses(name, hints))
        if name in named:
            raise ConfigError(f"`{key}` sets `{name}` a second time", fix="Remove one of the lines.")
        named[name] = value
    return named


def _make_defaults(parser: _Parser, hints: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Make values, as YAML gives them, the parser's defaults."""
    tokens: list[str] = []
    raw: dict[str, Any] = {}
    for name, value in values.items():
        if value is None:
            if type(None) not in options_of(hints[name]):
                raise ConfigError(f"`{name}` is empty", fix="Give it a value, or remove the line.")
            raw[name] = None
        elif isinstance(value, list | dict):
            allowed = {typing.get_origin(one) or one for one in options_of(hints[name])}
            if type(value) not in allowed:
                kind = "a list" if isinstance(value, list) else "a mapping"
                raise ConfigError(f"`{name}` cannot be {kind}", fix="Give a single value.")
            raw[name] = list(value) if isinstance(value, list) else dict(value)
        elif isinstance(value, bool):
            tokens.append(f"--{name}={str(value).lower()}")
        else:
            tokens.append(f"--{name}={value}")
    read, _ = parser.parse_known_args(tokens)
    parser.set_defaults(**{**vars(read), **raw})
