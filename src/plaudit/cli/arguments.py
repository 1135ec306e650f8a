"""The settings of ``plaudit train``: flags, and a YAML file under them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import enum
import json
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NoReturn, cast

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from plaudit.cli.console import make_console
from plaudit.data.mixture import DatasetPart
from plaudit.demo import EMBEDDED_MODEL_NAME
from plaudit.errors import ConfigError, PlauditError
from plaudit.schema import quoted
from plaudit.training.config import OBJECTIVE_SETTINGS, RewardConfig

if TYPE_CHECKING:
    from plaudit.inference.reward_model import RewardModel


_SWITCH = dict.fromkeys(("true", "yes", "t", "y", "1"), True) | dict.fromkeys(("false", "no", "f", "n", "0"), False)


def about(text: str, *, aliases: Sequence[str] = (), choices: Sequence[str] = (), **spellings: bool) -> dict[str, Any]:
    """What is said of a setting: the metadata of its field.

    Args:
        text: Its explanation in the help.
        aliases: Further names of it, with their hyphens.
        choices: The values that it may have (none: any).
        spellings: Of a switch: further words for true and false.
    """
    return {"help": text, "aliases": tuple(aliases), "choices": tuple(choices), "spellings": spellings}


@dataclass(frozen=True)
class Word:
    """What a command takes without a name, such as its model.

    Attributes:
        name: Name of it, as in ``model``.
        title: What it is called in messages (empty: `name`).
        missing: What to do where it is missing.
        extra: What to do where there are more.
        many: Whether there may be several; only for the last word of a command.
    """

    name: str
    title: str = ""
    missing: str = ""
    extra: str = ""
    many: bool = False


@dataclass(frozen=True)
class Command:
    """A command: what it takes, and what its help says.

    Attributes:
        name: What it is called.
        usage: Its command line, after its name.
        about: What it does, in a sentence or two.
        examples: Command lines to start from.
        notes: Paragraphs of the help before the settings.
        words: What it takes without a name, one or more of each.
        kinds: Dataclasses of its settings, each with a `title` and a docstring: the sections of the help.
    """

    name: str
    usage: str
    about: str
    examples: Sequence[str]
    kinds: Sequence[Any]
    words: Sequence[Word] = ()
    notes: Sequence[str] = ()

    def parse(self, arguments: Sequence[str]) -> list[Any]:
        """Read a command line.

        Args:
            arguments: Those after the name of the command.

        Returns:
            A list of the words, and an object of each of `kinds`.

        Raises:
            ConfigError: A setting is unknown or missing, a value cannot be read, or there are too many or too few
                words; near misses are named.
        """
        parser = _Parser_of_flags(
            prog=f"plaudit {self.name}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
        switches: dict[str, Mapping[str, bool]] = {}
        for setting in self._settings():
            setting.add_to(parser)
            if setting.is_switch:
                switches |= dict.fromkeys(setting.options, setting.words)
        end = arguments.index("--") if "--" in arguments else len(arguments)
        tokens, passed_over = _complete_switches_of_flags(arguments[:end], switches)
        found, rest = parser.parse_known_args(tokens)
        unknown = [token for token in rest if token.startswith("-")]
        if unknown:
            self._refuse_unknown(unknown[0].partition("=")[0])
        words = [*rest, *arguments[end + 1 :]]
        self._refuse_extra(words, passed_over)
        given = vars(found)
        self._refuse_missing(words, given)
        names = {kind: [one.name for one in _fields(kind) if one.name in given] for kind in self.kinds}
        return [words, *(kind(**{name: given[name] for name in names[kind]}) for kind in self.kinds)]

    def helped(self, arguments: Sequence[str], console: Console | None = None) -> bool:
        """Print the help if a command line asks for it, and tell whether it did.

        Args:
            arguments: Those after the name of the command.
            console: Where to print (None: standard output).
        """
        asked = bool({"-h", "--help"} & set(arguments))
        if asked:
            self.print_help(make_console() if console is None else console)
        return asked

    def print_help(self, console: Console) -> None:
        """Print what the command does, and every setting.

        Args:
            console: Where to print.
        """
        console.print(f"Usage: plaudit {self.name} {self.usage}\n", markup=False)
        console.print(f"{self.about} For example:\n", markup=False)
        for line in self.examples:
            console.print(f"  {line}", markup=False, soft_wrap=True)
        for number, note in enumerate(self.notes):
            console.print(note if number else f"\n{note}", markup=False)
        for kind in self.kinds:
            # Only the first paragraph of a docstring is about the settings in general.
            text = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
            console.print(Text(f"\n{kind.title}", style="bold"), Text(f"  {text}", style="dim"), sep="")
            console.print(settings_table(_fields(kind), typing.get_type_hints(kind)))

    def option_names(self) -> list[str]:
        """Every spelling of every setting, with its hyphens."""
        return [option for setting in self._settings() for option in (*setting.options, *setting.negations)]

    def _settings(self) -> Iterator[_Setting]:
        for kind in self.kinds:
            hints = typing.get_type_hints(kind)
            for one in _fields(kind):
                yield _Setting(one, hints[one.name])

    @property
    def _see_help(self) -> str:
        return f"`plaudit {self.name} --help` lists all settings."

    def _refuse_unknown(self, name: str) -> NoReturn:
        known = {option.lstrip("-").replace("-", "_"): option for option in reversed(self.option_names())}
        close = difflib.get_close_matches(name.lstrip("-").replace("-", "_"), known, n=1)
        fix = f"Did you mean `{known[close[0]]}`?" if close else self._see_help
        raise ConfigError(f"there is no setting {name}", fix=fix)

    def _refuse_extra(self, words: Sequence[str], passed_over: Mapping[str, str]) -> None:
        if len(words) <= len(self.words) or (self.words and self.words[-1].many):
            return
        for word in words:
            if word in passed_over:
                raise ConfigError(f"{passed_over[word]} is true or false, not {word!r}", fix=self._see_help)
        last = self.words[-1] if self.words else Word("")
        if last.extra:
            raise ConfigError(f"more than one {last.title or last.name} is named", fix=last.extra)
        raise ConfigError(f"unexpected argument {words[len(self.words)]!r}", fix=self._see_help)

    def _refuse_missing(self, words: Sequence[str], given: Mapping[str, Any]) -> None:
        lacking = self.words[len(words) :]
        for word in lacking:
            if word.missing:
                raise ConfigError(f"no {word.title or word.name} is named", fix=word.missing)
        missing = [word.name for word in lacking]
        missing += [one.options[0] for one in self._settings() if one.is_required and one.field.name not in given]
        if missing:
            raise ConfigError(f"the following arguments are required: {', '.join(missing)}", fix=self._see_help)


class _Parser_of_flags(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, fix=f"`{self.prog} --help` lists all settings.")


@dataclass(frozen=True)
class _Setting:
    """A field, as the parser sees it."""

    field: dataclasses.Field[Any]
    hint: Any

    @property
    def options(self) -> list[str]:
        """The field's own name first."""
        return _both_spellings([f"--{self.field.name}", *self.field.metadata.get("aliases", ())])

    @property
    def negations(self) -> list[str]:
        return _both_spellings([f"--no_{self.field.name}"]) if self.is_switch and self.field.default is True else []

    @property
    def is_required(self) -> bool:
        return self.field.default is dataclasses.MISSING and self.field.default_factory is dataclasses.MISSING

    @property
    def is_switch(self) -> bool:
        return self.kind is bool

    @property
    def kind(self) -> Any:
        (kind,) = (one for one in options_of(self.hint) if one is not type(None))
        return kind

    @property
    def words(self) -> dict[str, bool]:
        """Words for true and false."""
        return {**_SWITCH, **self.field.metadata.get("spellings", {})}

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        name, kind = self.field.name, self.kind
        more: dict[str, Any] = {}
        if typing.get_origin(kind) is list:
            (kind,) = typing.get_args(kind)
            more = {"nargs": "+", "action": "extend"}
        if typing.get_origin(kind) is Literal:
            kind = str
        reader = _switch_reader(self.words) if kind is bool else kind
        choices = choices_of(self.field, self.hint) or None
        parser.add_argument(*self.options, dest=name, type=reader, choices=choices, **more)
        if self.negations:
            parser.add_argument(*self.negations, dest=name, action="store_false")


def _fields(kind: Any) -> list[dataclasses.Field[Any]]:
    return [one for one in dataclasses.fields(kind) if one.init]


def _both_spellings(names: Sequence[str]) -> list[str]:
    hyphens = ("--" + name[2:].replace("_", "-") if name.startswith("--") else name for name in names)
    return list(dict.fromkeys(one for pair in zip(names, hyphens, strict=True) for one in pair))


def _switch_reader(words: Mapping[str, bool]) -> Callable[[str], bool]:
    def read(text: str) -> bool:
        if text.lower() not in words:
            raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
        return words[text.lower()]

    return read


def _complete_switches_of_flags(
    tokens: Sequence[str], switches: Mapping[str, Mapping[str, bool]]
) -> tuple[list[str], dict[str, str]]:
    """Give each bare switch its value: argparse would take the next word for it, whatever that says.

    Returns:
        The tokens, and the words that follow a bare switch with that switch.
    """
    rest: list[str] = []
    passed_over: dict[str, str] = {}
    remaining = iter([*tokens, ""])
    token = next(remaining)
    for following in remaining:
        if token not in switches:
            rest.append(token)
        elif following.lower() in switches[token]:
            rest.append(f"{token}={following}")
            following = next(remaining)
        else:
            rest.append(f"{token}=true")
            passed_over[following] = token
        token = following
    return rest, passed_over


def print_help(console: Console) -> None:
    """Print every setting, Plaudit's own first, the inherited ones last."""
    console.print(
        "Usage: plaudit train [--preset NAME] [--config FILE.yaml] [--dry-run] [--NAME VALUE ...]\n", markup=False
    )
    console.print("Train a reward model on preferences. For example:\n")
    console.print("  plaudit train --model_name_or_path Qwen/Qwen3-0.6B --dataset_name pairs.jsonl \\", markup=False)
    console.print("      --eval_fraction 0.1 --output_dir runs/first\n", markup=False)
    console.print(
        "Settings may be written --with_underscores or --with-hyphens, or stand in a YAML file as "
        "`name: value`; flags win over the file. `--NAME false` turns a switch off, `none` empties a number."
    )
    own = [one for one in dataclasses.fields(RewardConfig) if one.name in RewardConfig.__annotations__ and one.init]
    by_name = {one.name: one for one in own}
    objective = [by_name[name] for name in OBJECTIVE_SETTINGS]
    inherited = [one for one in dataclasses.fields(RewardConfig) if one not in own and one.init]
    sections: list[tuple[str, str, list[dataclasses.Field[Any]], type]] = [
        (RunArguments.title, "", list(dataclasses.fields(RunArguments)), RunArguments),
        ("Reward training", "", [one for one in own if one not in objective], RewardConfig),
        ("Objective", "What is learned from the data, and what is added to its loss.", objective, RewardConfig),
    ]
    sections += [(cls.title, cls.__doc__ or "", list(dataclasses.fields(cls)), cls) for cls in OWN[1:]]
    sections.append(
        ("Training", "Inherited from transformers' TrainingArguments.", inherited, RewardConfig),
    )
    _print_presets(console)
    for title, text, fields, cls in sections:
        console.print(Text(f"\n{title}", style="bold"), Text(f"  {text}", style="dim") if text else "", sep="")
        console.print(settings_table(fields, typing.get_type_hints(cls)))


def _print_presets(console: Console) -> None:
    console.print(Text("\nPresets", style="bold"), Text("  Defaults, chosen by --preset.", style="dim"), sep="")
    table = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, preset in PRESETS.items():
        values = ", ".join(f"{setting} {value_text(value)}" for setting, value in preset.values.items())
        table.add_row(Text(name, style="cyan"), Text(f"{preset.about} Sets {values}."))
    console.print(table)


@contextlib.contextmanager
def errors_in(path: Path) -> Iterator[None]:
    """Put the file's name in front of errors.

    Args:
        path: The file.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.summary}", fix=error.fix) from None


def read_yaml(path: Path) -> dict[Any, Any]:
    """Read a file of settings.

    Args:
        path: The file.

    Raises:
        ConfigError: It cannot be read, is not valid YAML, or holds no mapping.
    """
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


def set_environment(values: Any) -> None:
    """Set the environment variables of the key ``env``.

    Args:
        values: A mapping from names to values.

    Raises:
        ConfigError: It is none.
    """
    if not isinstance(values, Mapping) or any(one is None or isinstance(one, list | dict) for one in values.values()):
        raise ConfigError("`env` is no mapping of names to values", fix='Write it like `env: {NAME: "value"}`.')
    os.environ.update({str(name): str(value) for name, value in values.items()})


@dataclass(frozen=True)
class Preset:
    """Defaults that go together.

    Attributes:
        about: What they are for.
        values: Setting -> its default.
    """

    about: str
    values: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = {
    "quick": Preset(
        "A LoRA adapter on a laptop or a small GPU.",
        {
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
    ),
    "full": Preset(
        "The whole model on a large GPU, with the settings that are usual for reward models.",
        {
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
    ),
}
"""Every preset by its name."""


def find_preset(name: str) -> Preset:
    """Look a preset up.

    Args:
        name: Its name.

    Raises:
        ConfigError: There is none of that name.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        fix = f"Did you mean `{close[0]}`?" if close else f"There are: {', '.join(PRESETS)}."
        raise ConfigError(f"there is no preset {name!r}", fix=fix)
    return PRESETS[name]


def value_text(value: Any) -> str:
    """Write a value as on the command line.

    Args:
        value: That of a setting.

    >>> value_text(["q_proj", "v_proj"]), value_text(True), value_text(2e-4)
    ('q_proj v_proj', 'true', '0.0002')
    """
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(getattr(value, "value", value))


def preset_lines(name: str, settings: Iterable[Any]) -> list[str]:
    """Say what a preset set, and which of its values gave way to something else.

    Args:
        name: The preset.
        settings: The settings that training goes by: objects with an attribute for each.
    """
    owners = list(settings)
    taken, replaced = [], []
    for setting, value in find_preset(name).values.items():
        actual = next(getattr(owner, setting) for owner in owners if hasattr(owner, setting))
        text = value_text(actual)
        if text == value_text(value) or actual == value:
            taken.append(f"{setting} {value_text(value)}")
        else:
            replaced.append(f"{setting} {text} (not {value_text(value)})")
    lines = [f"Preset {name}: {', '.join(taken) or 'nothing'}."]
    return [*lines, f"  You set otherwise: {', '.join(replaced)}."] if replaced else lines


def settings_table(fields: Sequence[dataclasses.Field[Any]], hints: Mapping[str, Any]) -> Table:
    """Names, values, explanations and defaults of some settings.

    Args:
        fields: Fields of a dataclass; the explanation is the `help` of their metadata.
        hints: The type of each, by name.
    """
    table = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
    table.add_column(no_wrap=True, max_width=44)
    table.add_column(overflow="fold")
    for one in fields:
        option = Text(f"--{one.name}", style="cyan").append(f" {_value_name(hints[one.name])}", style="dim")
        text = " ".join(str(one.metadata.get("help", "")).replace("%%", "%").split())
        choices = choices_of(one, hints[one.name])
        if choices:
            text += f" Choices: {', '.join(map(str, choices))}."
        default = _default_of(one)
        table.add_row(option, Text(f"{text} [{default}]" if default else text))
    return table


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union of types, or the one type.

    >>> options_of(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def choices_of(one: dataclasses.Field[Any], hint: Any) -> list[Any]:
    """The values that a setting may have; none where it may have any.

    Args:
        one: The field.
        hint: Its type.
    """
    if one.metadata.get("choices"):
        return list(one.metadata["choices"])
    for option in options_of(hint):
        if isinstance(option, type) and issubclass(option, enum.Enum):
            return [str(member.value) for member in option]
        if typing.get_origin(option) is Literal:
            return [str(value) for value in typing.get_args(option)]
    return []


def _value_name(hint: Any) -> str:
    names = {int: "N", float: "X", str: "TEXT", bool: "", dict: "JSON", list: "TEXT ..."}
    options = [typing.get_origin(one) or one for one in options_of(hint) if one is not type(None)]
    for kind in (dict, list, bool, float, int, str):
        if kind in options:
            return names[kind]
    return "NAME"


def _default_of(one: dataclasses.Field[Any]) -> str:
    default = one.default
    if one.default_factory is not dataclasses.MISSING:
        default = one.default_factory()
    if default is dataclasses.MISSING or default is None or default == "" or default == []:
        return ""
    return str(default.value if isinstance(default, enum.Enum) else default)


DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass
class DeviceArguments:
    """Where a reward model is computed."""

    title: ClassVar[str] = "Model"

    device: str | None = field(
        default=None, metadata=about("Where it runs, such as cuda:1. Default: the accelerator, or the CPU.")
    )
    max_tokens_per_batch: int | None = field(
        default=None, metadata=about("Tokens of a batch, as computed. Default: 2,048 on a CPU, else 32,768.")
    )
    trust_remote_code: bool = field(default=False, metadata=about("Allow code that comes with a model."))


@dataclass
class ComputeArguments(DeviceArguments):
    """How a reward model is run."""

    dtype: str | None = field(
        default=None,
        metadata=about("Precision of its weights. Default: float32 on a CPU, else the checkpoint's.", choices=DTYPES),
    )
    batch_layout: str = field(
        default="auto",
        metadata=about(
            "shared_prefix computes each prompt once; same rewards.", choices=("auto", "shared_prefix", "padded")
        ),
    )
    max_length: int | None = field(
        default=None,
        metadata=about("Limit for one response with its prompt, in tokens. Default: what the model was made to read."),
    )


@dataclass
class LoadArguments(ComputeArguments):
    """How the reward model is loaded and run."""

    model_revision: str | None = field(
        default=None, metadata=about("Branch, tag or commit of a model on the Hub.", aliases=["--revision"])
    )
    merge_adapter: bool = field(default=False, metadata=about("Merge an adapter into the weights: faster."))
    calibrated: bool = field(
        default=True,
        metadata=about(
            "Apply the calibration beside the model, if there is one; false: raw rewards. Also `--calibration none`.",
            aliases=["--calibration"],
            stored=True,
            none=False,
        ),
    )

    def load(self, model: str, overlong: str = "error") -> RewardModel:
        """Load a reward model with these settings.

        Args:
            model: Folder or id.
            overlong: What happens to rows beyond the limit; see `RewardModel.from_pretrained`.

        Raises:
            ConfigError: There is no reward model there, or a setting cannot work.
        """
        from plaudit.inference.reward_model import RewardModel  # it imports torch, which --help need not wait for

        return RewardModel.from_pretrained(
            model,
            device=self.device,
            dtype=self.dtype,
            batch_layout=cast(Any, self.batch_layout),
            max_tokens_per_batch=self.max_tokens_per_batch,
            max_length=self.max_length,
            overlong=cast(Any, overlong),
            calibration="stored" if self.calibrated else None,
            merge_adapter=self.merge_adapter,
            revision=self.model_revision,
            trust_remote_code=self.trust_remote_code,
        )


def read_part(value: Any, number: int) -> DatasetPart:
    """Read one item of the setting ``datasets``.

    Args:
        value: A mapping with the fields of a `DatasetPart`, or its path alone; also as JSON text.
        number: Which item it is, counted from 1.

    Raises:
        ConfigError: A field is unknown, missing or of the wrong kind.

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
    fields = [one.name for one in dataclasses.fields(DatasetPart)]
    for name in value:
        if name not in fields:
            close = difflib.get_close_matches(str(name), fields, n=1)
            refuse(
                f"there is no field `{name}`",
                f"Did you mean `{close[0]}`?" if close else f"A part has the fields {quoted(fields)}.",
            )
    given = {name: one for name, one in value.items() if one is not None}
    for name, one in given.items():
        if not _is_valid(name, one):
            refuse(f"`{name}` is {one!r}", _FIELD_FORMS[name])
    if "path" not in given:
        refuse("has no `path`", _FIELD_FORMS["path"])
    if "fraction" in given and "rows" in given:
        refuse("has both `fraction` and `rows`", "Leave out one of them.")
    return DatasetPart(**given)


_FIELD_FORMS = {
    "path": "Name a file, a folder or a data set on the Hub.",
    "name": "Give the configuration's name.",
    "data_dir": "Give the name of a folder.",
    "data_files": "Give a file name, a list of them, or a mapping from splits to them.",
    "split": 'Write it like "train" or "train[:500]".',
    "columns": "Give a list of columns, or a mapping from columns to their new names.",
    "fraction": "Give a number above 0, such as 0.5.",
    "rows": "Give a whole number from 1 on.",
}


def _is_valid(name: str, value: Any) -> bool:
    is_list = isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
    is_names = isinstance(value, dict) and bool(value) and all(isinstance(one, str) for one in value.values())
    if name == "columns":
        return is_list or is_names
    if name == "data_files":
        return bool(value) and (is_list or isinstance(value, str | dict))
    if name in ("fraction", "rows"):
        kinds: Any = int if name == "rows" else int | float
        return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < float("inf")
    return isinstance(value, str) and bool(value)


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
