"""Settings of the commands: declared once, read from a command line, listed by ``--help``.

A setting has the type, default and choices of the parameter or field that it is passed to. They are read from the
source of the function: importing it would load torch, which takes seconds, and ``--help`` should answer at once.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import dataclasses
import enum
import functools
import importlib
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.table import Table
from rich.text import Text

from plaudit.cli.console import make_console
from plaudit.errors import ConfigError, nearest

MISSING = dataclasses.MISSING
_SWITCH = dict.fromkeys(("true", "yes", "t", "y", "1"), True) | dict.fromkeys(("false", "no", "f", "n", "0"), False)
_VALUE_NAMES = {bool: "", int: "N", float: "X", dict: "JSON"}


@dataclass(frozen=True)
class Setting:
    """One setting of a command."""

    help: str
    hint: Any = str | None
    default: Any = None  # MISSING: the setting is required
    name: str = ""  # its keyword in a `Section`
    target: str = ""  # the function or class that takes it; empty: the command itself
    parameter: str = ""  # its name there
    aliases: Sequence[str] = ()  # further spellings, with their hyphens
    choices: Sequence[str] = ()
    words: Mapping[str, Any] = field(default_factory=dict)  # of a switch: values of words beside true and false
    switch: tuple[Any, Any] = (True, False)  # values of true and false
    bare: Any = None  # value of the setting written without one

    @functools.cached_property
    def types(self) -> tuple[Any, ...]:
        """Types that the value may have: the members of a union."""
        is_union = typing.get_origin(self.hint) in (typing.Union, types.UnionType)
        return typing.get_args(self.hint) if is_union else (self.hint,)

    @functools.cached_property
    def classes(self) -> list[Any]:
        """Classes of the types: ``list`` of ``list[str]``."""
        return [typing.get_origin(hint) or hint for hint in self.types]

    @functools.cached_property
    def items(self) -> list[Any]:
        """Types of the items where several values follow the setting; empty where it has one value."""
        # A list that may also be a text, such as `report_to`, is only written in YAML.
        lists = [typing.get_args(hint) for hint in self.types if typing.get_origin(hint) in (list, Sequence)]
        return [item for arguments in lists for item in arguments if str not in self.types or item is not str]

    @functools.cached_property
    def kind(self) -> type:
        """Type of the value, or of the items of a list."""
        kinds = [typing.get_origin(item) or item for item in self.items] or self.classes
        return next((kind for kind in (bool, str, int, float, dict) if kind in kinds), str)

    @functools.cached_property
    def allowed(self) -> list[str]:
        """Values to choose from; empty where any will do."""
        values = list(self.choices)
        for hint in () if values else (*self.types, *self.items):
            if isinstance(hint, type) and issubclass(hint, enum.Enum):
                values += [str(member.value) for member in hint]
            elif typing.get_origin(hint) is Literal:
                values += [value for value in typing.get_args(hint) if isinstance(value, str)]
        return values

    @property
    def options(self) -> list[str]:
        """Every spelling, the setting's own name first."""
        return _both_spellings(f"--{self.name}", *self.aliases)

    @property
    def negations(self) -> list[str]:
        """Every spelling that turns a switch off."""
        is_on = self.kind is bool and self.default in (self.switch[0], None)
        return _both_spellings(f"--no_{self.name}") if is_on else []

    def read(self, text: str) -> Any:
        """Returns the value that a text stands for."""
        if text.lower() in ("none", "null") and type(None) in self.types and self.kind in (int, float):
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
            if self.kind is str and float in self.types:  # a number, or the name of something
                return float(text)
            return dict(json.loads(text)) if self.kind is dict else self.kind(text)
        except (TypeError, ValueError):
            if self.kind is str and text.strip():
                return text
            wanted = {int: "a whole number", float: "a number", dict: "a JSON object"}.get(self.kind, "a name")
            raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}") from None


def _both_spellings(*names: str) -> list[str]:
    pairs = ((name, "--" + name[2:].replace("_", "-") if name.startswith("--") else name) for name in names)
    return list(dict.fromkeys(name for pair in pairs for name in pair))


def about(help: str, **changes: Any) -> Mapping[str, Any]:
    """Declares the help of a setting, and fields of it that differ from the parameter it is passed to."""
    return {"help": help, **changes}


class Section:
    """Settings that the help lists together, declared by their help, which are passed to a function or class.

    `target` is ``module:function``, ``module:Class`` or ``module:Class.method``. What `about` gives replaces what the
    target declares; the name of the parameter is an alias. A `Setting` belongs to the command itself.
    """

    def __init__(self, heading: str, target: str = "", /, **given: str | Mapping[str, Any] | Setting) -> None:
        self.heading, self.target, self.given = heading, target, given

    @functools.cached_property
    def settings(self) -> list[Setting]:
        """The settings, completed by what the target declares."""
        settings = []
        for name, given in self.given.items():
            if isinstance(given, Setting):
                settings.append(dataclasses.replace(given, name=name))
                continue
            changes = {"parameter": name, **({"help": given} if isinstance(given, str) else given)}
            fields = {"name": name, "target": self.target, "aliases": [f"--{changes['parameter']}"]}
            settings.append(Setting(**{**fields, **declared(self.target, changes["parameter"]), **changes}))
        return settings


def section_of(heading: str, kind: Any, names: Iterable[str]) -> Section:
    """Declares fields of a dataclass as settings; their metadata hold help, aliases and choices."""
    hints, target = typing.get_type_hints(kind), kind.__name__
    settings: dict[str, Setting] = {}
    for item in dataclasses.fields(kind):
        if item.init and item.name in names:
            default = item.default if item.default_factory is MISSING else item.default_factory()
            more = {name: item.metadata[name] for name in ("aliases", "choices") if name in item.metadata}
            more |= {"bare": item.metadata.get("const"), "target": target, "parameter": item.name}
            settings[item.name] = Setting(item.metadata.get("help", ""), hints[item.name], default, **more)
    return Section(heading, target, **settings)


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
    def options(self) -> dict[str, Setting]:
        """Every spelling, aliases and negations included, with its setting."""
        settings = self.settings.values()
        return {option: setting for setting in settings for option in (*setting.options, *setting.negations)}

    def parse(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any], dict[str, dict[str, Any]]]:
        """Reads the arguments after the name of the command; returns the words, and what `assign` does."""
        words, given = self.read(arguments)
        return words, *self.assign(given)

    def assign(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Returns the command's own settings, and the arguments of each target, by parameter, that were given."""
        values: dict[str, Any] = {}
        calls: dict[str, dict[str, Any]] = {}
        for name, setting in self.settings.items():
            if not setting.target:
                values[name] = given.get(name, setting.default)
                continue
            call = calls.setdefault(setting.target, {})
            if name in given:
                call[setting.parameter] = given[name]
        return values, calls

    def read(self, arguments: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
        """Returns the words of a command line, and the value of each setting in it; raises `ConfigError`."""
        end = arguments.index("--") if "--" in arguments else len(arguments)
        tokens: list[str] = []
        ignored: dict[str, str] = {}  # the word after a bare switch -> the switch
        remaining = iter(zip(arguments[:end], [*arguments[1:end], ""], strict=False))
        for token, following in remaining:
            # A bare switch is given its value: argparse would take the next word for it, whatever that says.
            setting = self.options.get(token)
            if setting is None or token in setting.negations or (setting.kind is not bool and setting.bare is None):
                tokens.append(token)
            elif following.lower() in {*_SWITCH, *setting.words} or (
                str in setting.types and following != "" and not following.startswith("-")
            ):
                tokens.append(f"{token}={following}")
                next(remaining)
            else:
                tokens.append(f"{token}=true")
                ignored[following] = token
        try:
            namespace, rest = self._parser.parse_known_args(tokens)
        except argparse.ArgumentError as error:
            message = re.sub("^argument ([^/:]*)[^:]*", r"\1", str(error))  # of all spellings only the first
            raise ConfigError(message, fix=self._see_help) from None
        given = vars(namespace)
        unknown = next((token for token in rest if token.startswith("-")), None)
        if unknown is not None:
            self.refuse_unknown(unknown.partition("=")[0])
        words = [*rest, *arguments[end + 1 :]]
        usage = f"Write: plaudit {self.name} {self.usage}"
        if len(words) > len(self.words) and not (self.words and self.words[-1].endswith("...")):
            for word in words:
                if word in ignored:
                    raise ConfigError(f"{ignored[word]} is true or false, not {word!r}", fix=self._see_help)
            raise ConfigError(f"unexpected argument {words[len(self.words)]!r}", fix=usage)
        lacking = [word.removesuffix("...") for word in self.words[len(words) :] if not word.startswith("[")]
        settings = self.settings.items()
        lacking += [f"--{name}" for name, setting in settings if setting.default is MISSING and name not in given]
        if lacking:
            raise ConfigError(f"the following arguments are required: {', '.join(lacking)}", fix=usage)
        return words, given

    def refuse_unknown(self, name: str, prefix: str = "--") -> NoReturn:
        """Raises an error that names the nearest setting."""
        plain, *names = (option.lstrip("-").replace("-", "_") for option in (name, *self.options))
        fix = nearest(plain, dict.fromkeys(names), self._see_help, prefix)
        raise ConfigError(f"there is no setting {name if prefix else f'`{name}`'}", fix=fix)

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
        for section in self.sections:
            title, colon, rest = section.heading.partition(":")
            console.print(Text(f"\n{title}", style="bold").append(colon + rest, style="not bold dim"))
            table = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
            table.add_column(no_wrap=True, max_width=44)
            table.add_column(overflow="fold")
            for setting in section.settings:
                value = _VALUE_NAMES.get(setting.kind, "TEXT") + " ..." * bool(setting.items)
                text = " ".join(setting.help.replace("%%", "%").split())
                text += f" Choices: {', '.join(setting.allowed)}." if setting.allowed else ""
                default = getattr(setting.default, "value", setting.default)
                if setting.kind is bool and default in setting.switch:
                    default = default == setting.switch[0]
                if default not in (None, MISSING, "", [], ()):
                    text += f" [{' '.join(map(str, default)) if setting.items else default}]"
                table.add_row(Text(f"--{setting.name}", style="cyan").append(f" {value}", style="dim"), Text(text))
            console.print(table)
        return True

    @functools.cached_property
    def _parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(
            add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS, exit_on_error=False
        )
        for name, setting in self.settings.items():
            more: dict[str, Any] = {"nargs": "+", "action": "extend"} if setting.items else {}
            parser.add_argument(*setting.options, dest=name, type=setting.read, choices=setting.allowed or None, **more)
            if setting.negations:
                parser.add_argument(*setting.negations, dest=name, action="store_const", const=setting.switch[1])
        return parser

    @property
    def _see_help(self) -> str:
        return f"`plaudit {self.name} --help` lists all settings."


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
    name, _, method = path.partition(".")
    names = _names(module)
    source = names.chunks[name]
    if method:  # parsing a whole class would take 5 ms
        methods = re.split(r"^(?=    [A-Za-z_@])", source, flags=re.MULTILINE)
        source = textwrap.dedent(next(lines for lines in methods if lines.startswith(f"    def {method}(")))
    node: Any = ast.parse(source).body[0]
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

    def value(self, node: Any) -> Any:
        return eval(compile(ast.Expression(node), "<source>", "eval"), {}, self)

    def __missing__(self, name: str) -> Any:
        value, chunk = getattr(builtins, name, _Opaque), self.chunks.get(name, "")
        if name in self.imports:
            node, imported = self.imports[name]
            module = str(node.module) if isinstance(node, ast.ImportFrom) else imported
            if module.partition(".")[0] in sys.stdlib_module_names:
                value = importlib.import_module(module)
                value = getattr(value, imported) if isinstance(node, ast.ImportFrom) else value
            else:
                value = _names(module)[imported] if module.startswith("plaudit.") else _Opaque
        elif chunk:
            definition: Any = None if chunk.startswith(("def ", "class ", "@")) else ast.parse(chunk).body[0]
            value = _Opaque if definition is None else self.value(definition.value)
        self[name] = value
        return value


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
DATA = (
    "a JSON, JSON lines, CSV or Parquet file, a folder of such files or one saved by `datasets`, or the name of a data "
    "set on the Hub."
)
DTYPES = ("auto", "bfloat16", "float16", "float32")
REVISION = about("Branch, tag or commit of a model on the Hub.", parameter="revision")
DATASET: Mapping[str, Mapping[str, Any]] = {
    "dataset_config": about("Configuration of a data set on the Hub.", parameter="config", aliases=()),
    "dataset_split": about("Split to read, optionally with a slice: train[:1000].", parameter="split"),
}
SCHEMA = "Schema by which public data is read. auto: the one that fits its columns and rows; none: rows as they are."
DEVICE: Mapping[str, Any] = {
    "device": "Device to run on, such as cuda:1. Default: the accelerator, or the CPU.",
    "max_tokens_per_batch": "Maximum number of tokens computed per batch. Default: 2,048 on a CPU, otherwise 32,768.",
    "trust_remote_code": "Allow models and tokenizers that bring their own Python code.",
}
COMPUTE: Mapping[str, Any] = {
    **DEVICE,
    "batch_layout": "Layout of batches; shared_prefix computes each prompt once, with the same rewards.",
    "max_length": "Maximum length of a prompt with its response, in tokens. Default: the model's own limit.",
}
DTYPE = about("Precision of the weights. Default: float32 on a CPU, otherwise the checkpoint's.", choices=DTYPES)
LOAD = "plaudit.inference.reward_model:RewardModel.from_pretrained"
LOADING: Mapping[str, Any] = {
    **COMPUTE,
    "dtype": DTYPE,
    "model_revision": REVISION,
    "merge_adapter": "Merge an adapter into the weights, which is faster.",
    "calibrated": about(
        "Apply the calibration saved with the model, if any; false, or `--calibration none`, gives raw rewards.",
        hint=bool,
        parameter="calibration",
        words={"stored": "stored", "none": None},
        switch=("stored", None),
    ),
}
