"""Settings of the commands: declared once, read from a command line, listed by ``--help``.

A setting has the type, default and choices of the parameter or field that it is passed to. They are read from the
source of the function: importing it would load torch, which takes seconds, and ``--help`` should answer at once.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import dataclasses
import difflib
import enum
import functools
import importlib
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.table import Table
from rich.text import Text

from plaudit.cli.console import make_console
from plaudit.errors import ConfigError

MISSING = dataclasses.MISSING
_SWITCH = dict.fromkeys(("true", "yes", "t", "y", "1"), True) | dict.fromkeys(("false", "no", "f", "n", "0"), False)
_VALUE_NAMES = {bool: "", int: "N", float: "X", dict: "JSON"}


@dataclass(frozen=True)
class Setting:
    """One setting of a command."""

    name: str
    help: str
    hint: Any = str
    default: Any = None  # MISSING: the setting is required
    target: str = ""  # the function or class that takes it; empty: the command itself
    parameter: str = ""  # its name there
    aliases: Sequence[str] = ()  # further spellings, with their hyphens
    choices: Sequence[str] = ()
    words: Mapping[str, Any] = field(default_factory=dict)  # of a switch: values of words beside true and false
    switch: tuple[Any, Any] = (True, False)  # values of true and false
    reader: Callable[[str], Any] | None = None
    bare: Any = None  # value of the setting written without one

    @functools.cached_property
    def types(self) -> tuple[Any, ...]:
        """Types that the value may have: the members of a union."""
        is_union = typing.get_origin(self.hint) in (typing.Union, types.UnionType)
        return typing.get_args(self.hint) if is_union else (self.hint,)

    @functools.cached_property
    def items(self) -> list[Any]:
        """Types of the items where several values follow the setting; empty where it has one value."""
        # A list that may also be a text, such as `report_to`, is only written in YAML.
        lists = [typing.get_args(hint) for hint in self.types if typing.get_origin(hint) in (list, Sequence)]
        return [item for arguments in lists for item in arguments if str not in self.types or item is not str]

    @functools.cached_property
    def kind(self) -> type:
        """Type of the value, or of the items of a list."""
        kinds = [typing.get_origin(hint) or hint for hint in self.items or self.types]
        return next((kind for kind in (bool, str, int, float, dict) if kind in kinds), str)

    @functools.cached_property
    def allowed(self) -> list[str]:
        """Values to choose from; empty where any will do."""
        if self.choices:
            return list(self.choices)
        values: list[str] = []
        for hint in (*self.types, *self.items):
            if isinstance(hint, type) and issubclass(hint, enum.Enum):
                values += [str(member.value) for member in hint]
            elif typing.get_origin(hint) is Literal:
                values += [value for value in typing.get_args(hint) if isinstance(value, str)]
        return values

    @property
    def is_nullable(self) -> bool:
        """Whether the value may be None."""
        return type(None) in self.types

    @property
    def can_stand_alone(self) -> bool:
        """Whether the setting may be written without a value."""
        return self.kind is bool or self.bare is not None

    @property
    def options(self) -> list[str]:
        """Every spelling, the setting's own name first."""
        return _both_spellings([f"--{self.name}", *self.aliases])

    @property
    def negations(self) -> list[str]:
        """Every spelling that turns a switch off."""
        is_on = self.kind is bool and self.default in (self.switch[0], None)
        return _both_spellings([f"--no_{self.name}"]) if is_on else []

    def allows(self, container: type) -> bool:
        """Whether the value may be a list or a mapping, as YAML has them."""
        return container in [typing.get_origin(hint) or hint for hint in self.types]

    def takes(self, text: str) -> bool:
        """Whether a word after the bare setting is its value."""
        is_word = text.lower() in _SWITCH or text.lower() in self.words
        return is_word or (str in self.types and text != "" and not text.startswith("-"))

    def read(self, text: str) -> Any:
        """Returns the value that a text stands for."""
        if self.reader is not None:
            return self.reader(text)
        if text.lower() in ("none", "null") and self.is_nullable and self.kind in (int, float):
            return None
        if self.bare is not None:
            return self.bare if text == "true" else text
        if self.kind is bool:
            if text.lower() in self.words:
                return self.words[text.lower()]
            if text.lower() in _SWITCH:
                return self.switch[0 if _SWITCH[text.lower()] else 1]
            if str in self.types:
                return text
            raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
        try:
            if self.kind is dict:
                return dict(json.loads(text))
            return self.kind(text)
        except (TypeError, ValueError):
            wanted = {int: "a whole number", float: "a number", dict: "a JSON object"}[self.kind]
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None

    def add_to(self, parser: argparse.ArgumentParser) -> None:
        """Adds the setting to a parser."""
        more: dict[str, Any] = {"nargs": "+", "action": "extend"} if self.items else {}
        parser.add_argument(*self.options, dest=self.name, type=self.read, choices=self.allowed or None, **more)
        if self.negations:
            parser.add_argument(*self.negations, dest=self.name, action="store_const", const=self.switch[1])

    def row(self) -> tuple[Text, Text]:
        """Name and explanation, as the help shows them."""
        value = _VALUE_NAMES.get(self.kind, "TEXT") + " ..." * bool(self.items)
        text = " ".join(self.help.replace("%%", "%").split())
        if self.allowed:
            text += f" Choices: {', '.join(self.allowed)}."
        default = getattr(self.default, "value", self.default)
        if self.kind is bool and default in self.switch:
            default = default == self.switch[0]
        shown = "" if default in (None, MISSING, "", []) else " ".join(map(str, default)) if self.items else default
        text += f" [{shown}]" if shown != "" else ""
        return Text(f"--{self.name}", style="cyan").append(f" {value}", style="dim"), Text(text)


def _both_spellings(names: Iterable[str]) -> list[str]:
    pairs = ((name, "--" + name[2:].replace("_", "-") if name.startswith("--") else name) for name in names)
    return list(dict.fromkeys(name for pair in pairs for name in pair))


@dataclass(frozen=True)
class Section:
    """Settings that the help lists together."""

    title: str
    about: str
    target: str
    given: Mapping[str, str | Mapping[str, Any] | Setting]

    @functools.cached_property
    def settings(self) -> list[Setting]:
        """The settings, completed by what the target declares."""
        settings = []
        for name, given in self.given.items():
            if isinstance(given, Setting):
                settings.append(dataclasses.replace(given, name=name))
                continue
            changes = {"parameter": name, **({"help": given} if isinstance(given, str) else given)}
            fields = {**declared(self.target, changes["parameter"]), "name": name, "target": self.target, **changes}
            settings.append(Setting(**fields))
        return settings


def section(title: str, about: str, target: str = "", /, **settings: str | Mapping[str, Any] | Setting) -> Section:
    """Declares settings by their help, which are passed to a function or class.

    `target` is ``module:function``, ``module:Class`` or ``module:Class.method``. What `about` gives replaces what the
    target declares.
    """
    return Section(title, about, target, settings)


def about(help: str, **changes: Any) -> Mapping[str, Any]:
    """Declares the help of a setting, and fields of it that differ from the parameter it is passed to."""
    return {"help": help, **changes}


def own(help: str, hint: Any = str | None, default: Any = None, **more: Any) -> Setting:
    """Declares a setting of the command itself, which no function takes."""
    return Setting("", help, hint, default, **more)


def section_of(title: str, about: str, kind: Any, names: Iterable[str] | None = None) -> Section:
    """Declares the fields of a dataclass (None: all) as settings; their metadata hold help, aliases and choices."""
    hints = typing.get_type_hints(kind)
    settings: dict[str, Setting] = {}
    for item in dataclasses.fields(kind):
        if not item.init or (names is not None and item.name not in names):
            continue
        default = item.default if item.default_factory is MISSING else item.default_factory()
        metadata = {name: item.metadata[name] for name in ("aliases", "choices") if name in item.metadata}
        metadata |= {"bare": item.metadata.get("const"), "target": kind.__name__, "parameter": item.name}
        settings[item.name] = Setting(item.name, item.metadata.get("help", ""), hints[item.name], default, **metadata)
    return Section(title, about, kind.__name__, settings)


@dataclass(frozen=True)
class Command:
    """A command: what it takes, and what its help says."""

    name: str
    usage: str  # the command line after its name
    about: str
    examples: Sequence[str]
    sections: Sequence[Section]
    words: Sequence[str] = ()  # what it takes without a name; in brackets: optional; "..." behind the last: several
    notes: Sequence[str] = ()  # paragraphs of the help before the settings

    @functools.cached_property
    def settings(self) -> dict[str, Setting]:
        """Every setting by its name."""
        return {setting.name: setting for section in self.sections for setting in section.settings}

    @functools.cached_property
    def names(self) -> dict[str, Setting]:
        """Every spelling, aliases and negations included, with underscores and without leading hyphens."""
        spellings = {name: (*setting.options, *setting.negations) for name, setting in self.settings.items()}
        return {_plain(option): self.settings[name] for name, options in spellings.items() for option in options}

    def option_names(self) -> list[str]:
        """Returns every spelling of every setting, with its hyphens."""
        return [option for setting in self.settings.values() for option in (*setting.options, *setting.negations)]

    def parse(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any], dict[str, dict[str, Any]]]:
        """Reads the arguments after the name of the command.

        Returns the words, the value of every setting of the command's own, and the arguments of each target: only those
        that were given, by parameter. The defaults of the others are the target's.
        """
        words, given = self.read(arguments)
        values: dict[str, Any] = {}
        calls: dict[str, dict[str, Any]] = {}
        for name, setting in self.settings.items():
            if not setting.target:
                values[name] = given.get(name, setting.default)
                continue
            call = calls.setdefault(setting.target, {})
            if name in given:
                call[setting.parameter] = given[name]
        return words, values, calls

    def read(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Returns the words of a command line, and the value of each setting in it; raises `ConfigError`."""
        end = arguments.index("--") if "--" in arguments else len(arguments)
        tokens, ignored = self._complete(arguments[:end])
        namespace, rest = self._parser.parse_known_args(tokens)
        given = vars(namespace)
        unknown = next((token for token in rest if token.startswith("-")), None)
        if unknown is not None:
            self.refuse_unknown(unknown.partition("=")[0])
        words = [*rest, *arguments[end + 1 :]]
        several = bool(self.words) and self.words[-1].endswith("...")
        if len(words) > len(self.words) and not several:
            for word in words:
                if word in ignored:
                    raise ConfigError(f"{ignored[word]} is true or false, not {word!r}", fix=self._see_help)
            raise ConfigError(f"unexpected argument {words[len(self.words)]!r}", fix=self._usage)
        lacking = [word.removesuffix("...") for word in self.words[len(words) :] if not word.startswith("[")]
        for name, setting in self.settings.items():
            if setting.default is MISSING and name not in given:
                lacking.append(f"--{name}")
        if lacking:
            names = ", ".join(lacking)
            raise ConfigError(f"the following arguments are required: {names}", fix=self._usage)
        return words, given

    def refuse_unknown(self, name: str, prefix: str = "--") -> NoReturn:
        """Raises an error that names the nearest setting."""
        close = difflib.get_close_matches(_plain(name), self.names, n=1)
        fix = f"Did you mean `{prefix}{close[0]}`?" if close else self._see_help
        shown = name if prefix else f"`{name}`"
        raise ConfigError(f"there is no setting {shown}", fix=fix)

    def helped(self, arguments: Sequence[str]) -> bool:
        """Prints the help if a command line asks for it, and returns whether it did."""
        if not {"-h", "--help"} & set(arguments):
            return False
        console = make_console()
        console.print(f"Usage: plaudit {self.name} {self.usage}\n", markup=False)
        console.print(f"{self.about} For example:\n", markup=False)
        for line in self.examples:
            console.print(f"  {line}", markup=False, soft_wrap=True)
        for note in self.notes:
            console.print(f"\n{note}", markup=False)
        for part in self.sections:
            console.print(Text(f"\n{part.title}", style="bold"), Text(f"  {part.about}", style="dim"), sep="")
            table = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
            table.add_column(no_wrap=True, max_width=44)
            table.add_column(overflow="fold")
            for setting in part.settings:
                table.add_row(*setting.row())
            console.print(table)
        return True

    @functools.cached_property
    def _parser(self) -> argparse.ArgumentParser:
        parser = _Parser(f"plaudit {self.name}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        for setting in self.settings.values():
            setting.add_to(parser)
        return parser

    @property
    def _see_help(self) -> str:
        return f"`plaudit {self.name} --help` lists all settings."

    @property
    def _usage(self) -> str:
        return f"Write: plaudit {self.name} {self.usage}"

    def _complete(self, tokens: Sequence[str]) -> tuple[list[str], dict[str, str]]:
        """Gives each bare switch its value: argparse would take the next word for it, whatever that says.

        Returns:
            The tokens, and the words that follow a bare switch with that switch.
        """
        switches = [setting for setting in self.settings.values() if setting.can_stand_alone]
        alone = {option: setting for setting in switches for option in setting.options}
        complete: list[str] = []
        ignored: dict[str, str] = {}
        index = 0
        while index < len(tokens):
            token, following = tokens[index], tokens[index + 1] if index + 1 < len(tokens) else ""
            if token in alone and alone[token].takes(following):
                complete.append(f"{token}={following}")
                index += 1
            elif token in alone:
                complete.append(f"{token}=true")
                ignored[following] = token
            else:
                complete.append(token)
            index += 1
        return complete, ignored


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        message = re.sub("^argument ([^/:]*)[^:]*", r"\1", message)  # of all spellings only the first
        raise ConfigError(message, fix=f"`{self.prog} --help` lists all settings.")


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


# --- functions, read from their source -----------------------------------------------------------------------


def declared(target: str, parameter: str) -> dict[str, Any]:
    """Returns hint and default of a parameter of a function, or of a field of a dataclass."""
    names, arguments = _signature(target)
    annotation, value = arguments[parameter]
    default = MISSING if value is None else names.value(value)
    default = default.default if isinstance(default, dataclasses.Field) else default
    return {"hint": names.value(annotation), "default": default}


@functools.cache
def _signature(target: str) -> tuple[_Names, dict[str, tuple[Any, Any]]]:
    """Returns the names of the module, and annotation and default of each parameter, unevaluated."""
    module, _, path = target.partition(":")
    names = _names(module)
    first, *rest = path.split(".")
    node = names.definition(first)
    for name in rest:
        node = next(line for line in node.body if getattr(line, "name", "") == name)
    if isinstance(node, ast.ClassDef):
        fields = [line for line in node.body if isinstance(line, ast.AnnAssign)]
        return names, {ast.unparse(line.target): (line.annotation, line.value) for line in fields}
    arguments = [*node.args.posonlyargs, *node.args.args]
    defaults = [*[None] * (len(arguments) - len(node.args.defaults)), *node.args.defaults, *node.args.kw_defaults]
    pairs = zip([*arguments, *node.args.kwonlyargs], defaults, strict=True)
    return names, {argument.arg: (argument.annotation, default) for argument, default in pairs}


@functools.cache
def _names(module: str) -> _Names:
    path = Path(__file__).parents[2].joinpath(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    loaded = sys.modules.get(module)
    return _Names(Path((loaded and loaded.__file__) or path).read_text(encoding="utf-8"))


class _Names(dict[str, Any]):
    """The names of a module, evaluated one by one as annotations and defaults need them."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.imports: dict[str, tuple[Any, str]] = {}  # name -> the import, and the name in that module
        self.chunks: dict[str, str] = {}  # name -> the lines that define it; parsing all would take 10 ms per module
        for chunk in re.split(r"^(?=[A-Za-z_@])", source, flags=re.MULTILINE):
            if re.match("from |import |if TYPE_CHECKING", chunk):
                for node in ast.walk(ast.parse(chunk)):
                    if isinstance(node, ast.Import | ast.ImportFrom):
                        self.imports |= {alias.asname or alias.name: (node, alias.name) for alias in node.names}
            elif match := re.match(r"(?:def |class )?(\w+)", chunk):
                self.chunks.setdefault(match[1], chunk)

    def definition(self, name: str) -> Any:
        return ast.parse(self.chunks[name]).body[0]

    def value(self, node: Any) -> Any:
        return eval(compile(ast.Expression(node), "<source>", "eval"), {}, self)

    def __missing__(self, name: str) -> Any:
        value = getattr(builtins, name, _Opaque)
        if name in self.imports:
            value = _imported(*self.imports[name])
        elif name in self.chunks:
            node = self.definition(name)
            value = self.value(node.value) if isinstance(node, ast.Assign | ast.AnnAssign) else _Opaque
        self[name] = value
        return value


def _imported(node: ast.Import | ast.ImportFrom, name: str) -> Any:
    module = str(node.module) if isinstance(node, ast.ImportFrom) else name
    if module.partition(".")[0] in sys.stdlib_module_names:
        loaded = importlib.import_module(module)
        return getattr(loaded, name) if isinstance(node, ast.ImportFrom) else loaded
    return _names(module)[name] if module.startswith("plaudit.") else _Opaque


class _OpaqueType(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls

    def __getitem__(cls, item: Any) -> Any:
        return cls


class _Opaque(metaclass=_OpaqueType):
    """Stands for a type of a library that is not imported, such as `torch.device`, and for what is looked up in it."""


# --- settings that several commands share ------------------------------------------------------------------------

API_KEY_VARIABLE = "PLAUDIT_API_KEY"
DTYPES = ("auto", "bfloat16", "float16", "float32")
REVISION: Mapping[str, Any] = about(
    "Branch, tag or commit of a model on the Hub.", parameter="revision", aliases=["--revision"]
)
DATASET: Mapping[str, Mapping[str, Any]] = {
    "dataset_config": about("Configuration of a data set on the Hub.", parameter="config"),
    "dataset_split": about(
        "Split to read. May have a slice, as in train[:1000].", parameter="split", aliases=["--split"]
    ),
}
DEVICE: Mapping[str, Any] = {
    "device": about("Device to run on, such as cuda:1. Default: the accelerator, or the CPU.", hint=str | None),
    "max_tokens_per_batch": "Maximum number of computed tokens in a batch. Default: 2,048 on a CPU, otherwise 32,768.",
    "trust_remote_code": "Allow models and tokenizers that bring their own Python code.",
}
COMPUTE: Mapping[str, Any] = {
    **DEVICE,
    "dtype": about(
        "Precision of the weights. Default: float32 on a CPU, otherwise that of the checkpoint.", choices=DTYPES
    ),
    "batch_layout": "shared_prefix computes each prompt once and gives the same rewards.",
    "max_length": "Maximum length of a response with its prompt, in tokens. Default: the model's own limit.",
}
LOAD = "plaudit.inference.reward_model:RewardModel.from_pretrained"
LOADING: Mapping[str, Any] = {
    **COMPUTE,
    "model_revision": REVISION,
    "merge_adapter": "Merge an adapter into the weights, which is faster.",
    "calibrated": about(
        "Apply the calibration beside the model, if there is one; false gives raw rewards. Also `--calibration none`.",
        hint=bool,
        parameter="calibration",
        aliases=["--calibration"],
        words={"stored": "stored", "none": None},
        switch=("stored", None),
    ),
}
