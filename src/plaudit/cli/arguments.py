"""The settings of ``plaudit train``: flags, and a YAML file under them."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from transformers import HfArgumentParser

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
    dataset_config: str | None = field(default=None, metadata=_about("Configuration of a data set on the Hub."))
    dataset_train_split: str = field(
        default="train", metadata=_about("Split to train on, also with a slice: train[:1000].")
    )
    dataset_test_split: str | None = field(
        default=None,
        metadata=_about("Split to evaluate on. Default: `test` if `eval_strategy` asks for evaluation, else none."),
    )
    dataset_streaming: bool = field(default=False, metadata=_about("Read the data while training; needs `max_steps`."))
    eval_fraction: float | None = field(
        default=None,
        metadata=_about(
            "Set this share of the training rows aside for evaluation, by prompt: rows that share one stay together."
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


@dataclass
class RunArguments:
    """What this command does with the settings."""

    title: ClassVar[str] = "This command"

    dry_run: bool = field(
        default=False,
        metadata=_about("Show data, layout, memory and time without training; nothing is written."),
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


# --- reading ------------------------------------------------------------------------------------------------


def parse_arguments(argv: Sequence[str]) -> TrainSettings:
    """Read flags and the YAML file that ``--config`` names; flags win.

    Args:
        argv: Arguments after ``plaudit train``.

    Raises:
        ConfigError: A flag or key is unknown, or a value cannot be read; near misses are named.
    """
    tokens, config_file = _take_config_option(list(argv))
    parser = _Parser([*OWN, RewardConfig], prog="plaudit train", add_help=False, allow_abbrev=False)
    hints = _hints()
    if config_file is not None:
        with _errors_in(config_file):
            _apply_file(parser, hints, config_file)
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


def _take_config_option(tokens: list[str]) -> tuple[list[str], Path | None]:
    rest: list[str] = []
    found: Path | None = None
    index = 0
    while index < len(tokens):
        name, equals, value = tokens[index].partition("=")
        if name != "--config":
            rest.append(tokens[index])
        elif equals:
            found = Path(value)
        else:
            index += 1
            if index == len(tokens):
                raise ConfigError("--config needs the name of a YAML file", fix="plaudit train --config train.yaml")
            found = Path(tokens[index])
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


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union of types, or the one type.

    >>> options_of(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


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


# --- the YAML file ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _errors_in(path: Path) -> Iterator[None]:
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).partition(chr(10))[0]}", fix=error.fix) from None


def _apply_file(parser: _Parser, hints: Mapping[str, Any], path: Path) -> None:
    """Make the values of a YAML file the parser's defaults."""
    tokens: list[str] = []
    raw: dict[str, Any] = {}
    for key, value in _read_yaml(path).items():
        name = str(key).replace("-", "_")
        if name not in hints:
            raise ConfigError(f"there is no setting `{key}`", fix=_near_misses(name, hints))
        if value is None:
            if type(None) not in options_of(hints[name]):
                raise ConfigError(f"`{key}` is empty", fix="Give it a value, or remove the line.")
            raw[name] = None
        elif isinstance(value, list | dict):
            allowed = {typing.get_origin(one) or one for one in options_of(hints[name])}
            if type(value) not in allowed:
                kind = "a list" if isinstance(value, list) else "a mapping"
                raise ConfigError(f"`{key}` cannot be {kind}", fix="Give a single value.")
            raw[name] = value
        elif isinstance(value, bool):
            tokens.append(f"--{name}={str(value).lower()}")
        else:
            tokens.append(f"--{name}={value}")
    read, _ = parser.parse_known_args(tokens)
    parser.set_defaults(**{**vars(read), **raw})


def _read_yaml(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", fix="Check the path given to --config.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark is not None else ""
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise ConfigError(f"{place}is not valid YAML: {problem}", fix="Write one `name: value` a line.") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("does not hold settings", fix="Write one `name: value` a line.")
    return content
