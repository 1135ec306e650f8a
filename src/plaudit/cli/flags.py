"""The one parser of all commands but ``plaudit train``: their command lines and their help, from declared settings.

A command declares its settings as dataclasses, and itself as a `Command`; it then has a parser and a help page::

    @dataclass
    class OutputArguments:
        '''Where to write.'''

        title: ClassVar[str] = "Files"

        output: str = field(metadata=about("File to write.", aliases=["-o"]))  # no default: must be given
        overwrite: bool = field(default=False, metadata=about("Replace it."))
        format: str = field(default="auto", metadata=about("How.", choices=("auto", "onnx")))
        column: list[str] | None = field(default=None, metadata=about("Columns to keep."))


    COMMAND = Command(
        "export",
        usage="MODEL --output FILE [--NAME VALUE ...]",
        about="Write a model in another form.",
        examples=("plaudit export runs/first --output rm.onnx",),
        notes=("MODEL is a folder, or an id on the Hub.",),
        words=(Word("model", extra="Export them one after the other."),),
        kinds=(OutputArguments, LoadArguments),
    )


    def run(arguments: Sequence[str]) -> int:
        if COMMAND.helped(arguments):
            return 0
        (model,), output, loading = COMMAND.parse(arguments)

Settings are written ``--a_b`` or ``--a-b``, ``--a_b VALUE`` or ``--a_b=VALUE``, and may stand before, between or after
the words. A type is one of `str`, `int`, `float`, `bool`, a `Literal` of texts, or a list of one of these, or any of
them or None. A ``bool`` is a switch: ``--strict``, ``--strict false``, and ``--no_words`` where the default is true. A
list takes several values, and may be given several times. What `model_settings.py` declares (device, dtype, layout and
so on) is meant to be among the `kinds` of each command that loads a model. Nothing here imports more than `rich`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from rich.console import Console
from rich.text import Text

from plaudit.cli.console import make_console
from plaudit.cli.settings_table import choices_of, options_of, settings_table
from plaudit.errors import ConfigError

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
        parser = _Parser(
            prog=f"plaudit {self.name}", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS
        )
        switches: dict[str, Mapping[str, bool]] = {}
        for setting in self._settings():
            setting.add_to(parser)
            if setting.is_switch:
                switches |= dict.fromkeys(setting.options, setting.words)
        end = arguments.index("--") if "--" in arguments else len(arguments)
        tokens, passed_over = _complete_switches(arguments[:end], switches)
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


class _Parser(argparse.ArgumentParser):
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


def _complete_switches(
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
