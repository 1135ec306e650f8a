"""The parser that the commands share: spellings, switches, lists, words, and what it says of wrong command lines."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
from rich.console import Console

from plaudit.cli import best_of_n, check, demo, eval, filter, report, score, serve
from plaudit.cli.arguments import Command, ComputeArguments, LoadArguments, Word, about
from plaudit.errors import ConfigError


@dataclass
class Files:
    """Where to write.

    A second paragraph, which no help shows.
    """

    title: ClassVar[str] = "Files"

    output: str = field(metadata=about("File to write.", aliases=["-o", "--write_to"]))
    max_rows: int | None = field(default=None, metadata=about("Most rows."))
    columns: list[str] | None = field(default=None, metadata=about("Columns."))
    limits: list[float] = field(default_factory=list, metadata=about("Limits."))


@dataclass
class Choice:
    """What to do."""

    title: ClassVar[str] = "Choice"

    strict: bool = field(default=False, metadata=about("Be strict."))
    sort_rows: bool = field(default=True, metadata=about("Sort.", aliases=["--order"], sorted=True, given=False))
    least: float | None = field(default=None, metadata=about("Least reward."))
    row_kind: Literal["plain", "rendered"] = field(default="plain", metadata=about("Form."))
    mode: str = field(default="fast", metadata=about("Mode, 100%.", choices=("fast", "exact")))


COMMAND = Command(
    "try",
    usage="MODEL INPUT --output FILE",
    about="Try it.",
    examples=("plaudit try model input -o file",),
    notes=("A note [in brackets].",),
    words=(Word("model"), Word("input")),
    kinds=(Files, Choice),
)


def parse(line, command=COMMAND):
    return command.parse(line.split())


def error(line, command=COMMAND):
    with pytest.raises(ConfigError) as caught:
        parse(line, command)
    return str(caught.value)


def test_defaults_are_those_of_the_dataclasses():
    assert parse("m i -o f") == [["m", "i"], Files("f"), Choice()]


@pytest.mark.parametrize("line", ["m i -o f", "-o f m i", "m -o f i", "m --output=f i", "-o f -- m i", "m i -of"])
def test_words_stand_before_between_or_after_settings(line):
    assert parse(line)[:2] == [["m", "i"], Files("f")]


def test_what_follows_two_hyphens_is_a_word():
    assert parse("m -o f -- --strict")[0] == ["m", "--strict"]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--max_rows 3", "max_rows", 3),
        ("--max-rows 3", "max_rows", 3),
        ("--max-rows=3", "max_rows", 3),
        ("--max_rows 2 --max-rows 3", "max_rows", 3),
        ("--write_to g", "output", "g"),
        ("--write-to g", "output", "g"),
        ("--columns a b", "columns", ["a", "b"]),
        ("--columns a b --columns c", "columns", ["a", "b", "c"]),
        ("--limits 1 -0.5", "limits", [1.0, -0.5]),
    ],
)
def test_spellings_and_lists(line, name, value):
    assert getattr(parse(f"m i -o f {line}")[1], name) == value


@pytest.mark.parametrize(
    ("line", "strict", "sort_rows"),
    [
        ("--strict", True, True),
        ("--strict true", True, True),
        ("--strict=no", False, True),
        ("--strict --strict false", False, True),
        ("--sort-rows false", False, False),
        ("--no_sort_rows", False, False),
        ("--no-sort-rows --strict", True, False),
        ("--order given", False, False),
        ("--order sorted", False, True),
        ("--order=given --strict", True, False),
    ],
)
def test_switches(line, strict, sort_rows):
    words, _, choice = parse(f"{line} m i -o f")
    assert (words, choice.strict, choice.sort_rows) == (["m", "i"], strict, sort_rows)


def test_a_list_is_not_shared_between_command_lines():
    parse("m i -o f --limits 1")[1].limits.append(2.0)
    assert parse("m i -o f")[1].limits == []
    assert parse("m i -o f --limits 3")[1].limits == [3.0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "the following arguments are required: model, input, --output"),
        ("m", "the following arguments are required: input, --output"),
        ("m i", "the following arguments are required: --output"),
        ("m i j -o f", "unexpected argument 'j'"),
        ("m i -o f --max_row 3", "there is no setting --max_row\n  Fix: Did you mean `--max_rows`?"),
        ("m i --ouput f", "Did you mean `--output`?"),
        ("m i -o f --write-t g", "Did you mean `--write_to`?"),
        ("m i -o f --zzz=3", "there is no setting --zzz\n  Fix: `plaudit try --help` lists all settings."),
        ("m i -o f --max_rows many", "invalid int value: 'many'"),
        ("m i -o f --form round", "invalid choice: 'round'"),
        ("m i -o f --mode slow", "invalid choice: 'slow'"),
        ("m i -o", "expected one argument"),
        ("m i -o f --strict maybe", "--strict is true or false, not 'maybe'"),
        ("m i -o f --strict=maybe", "'maybe' is neither true nor false"),
        ("m i -o f --max 3", "there is no setting --max"),
    ],
)
def test_wrong_command_lines(line, words):
    assert words in error(line)


def test_words_with_advice_of_their_own():
    one = Command(
        "one", "", "", (), kinds=(), words=(Word("run", "run folder", missing="Name it.", extra="One each."),)
    )
    assert error("", one) == "no run folder is named\n  Fix: Name it."
    assert error("a b", one) == "more than one run folder is named\n  Fix: One each."
    many = Command("many", "", "", (), kinds=(), words=(Word("run", many=True),))
    assert parse("a b c", many) == [["a", "b", "c"]]
    assert "required: run" in error("", many)
    assert "unexpected argument 'a'" in error("a", Command("none", "", "", (), kinds=()))


def test_help_is_printed_only_where_it_is_asked_for():
    out = io.StringIO()
    console = Console(file=out, width=100)
    assert not COMMAND.helped(["m", "i"], console)
    assert out.getvalue() == ""
    assert COMMAND.helped(["m", "--help"], console)
    text = out.getvalue()
    assert text.startswith(
        "Usage: plaudit try MODEL INPUT --output FILE\n\nTry it. For example:\n\n  plaudit try model"
    )
    assert "A note [in brackets]." in text
    assert "Files  Where to write.\n" in text
    assert "second paragraph" not in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "--output TEXT File to write." in lines
    assert "--max_rows N Most rows." in lines
    assert "--strict Be strict. [False]" in lines
    assert "--form NAME Form. Choices: plain, rendered. [plain]" in lines
    assert "--mode TEXT Mode, 100%. Choices: fast, exact. [fast]" in lines


@pytest.mark.parametrize(
    "module", [best_of_n, check, demo, eval, filter, report, score, serve], ids=lambda one: one.__name__
)
def test_every_command_declares_settings_with_help_and_no_name_twice(module):
    names = module.COMMAND.option_names()
    assert len(names) == len(set(names))
    for kind in module.COMMAND.kinds:
        assert kind.title
        assert all(one.metadata["help"] for one in kind.__dataclass_fields__.values() if one.name != "title")
    for line in module.COMMAND.examples:
        assert line.startswith("plaudit ")
    example = next(line for line in module.COMMAND.examples if line.startswith(f"plaudit {module.COMMAND.name}"))
    module.COMMAND.parse(example.split()[2:])


@pytest.mark.parametrize("line", ["--revision v1 --calibration none", "--model-revision v1 --calibrated false"])
def test_settings_of_models_mean_the_same_everywhere(line):
    assert all(issubclass(one.COMMAND.kinds[2], LoadArguments) for one in (score, best_of_n))
    assert eval.COMMAND.kinds[1] is ComputeArguments
    served = serve.COMMAND.parse(["m", *line.split()])[2]
    scored = score.COMMAND.parse(["m", "i", "-o", "f", *line.split()])[3]
    assert (served.model_revision, served.calibrated) == ("v1", False)
    assert dataclasses.asdict(served).items() <= dataclasses.asdict(scored).items()


def test_the_parser_imports_no_torch():
    code = "import sys, plaudit.cli.arguments, plaudit.cli.arguments; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
