"""The parser that the commands share: spellings, switches, lists, words, and wrong command lines."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest

from plaudit.cli.arguments import LOAD, Command, Section, Setting, about, declared, section_of
from plaudit.cli.main import COMMANDS, command_of
from plaudit.errors import ConfigError

WRITE = f"{__name__}:write"
DEFAULT_KIND = "plain"


def write(
    output: str,
    *,
    max_rows: int | None = None,
    columns: list[str] | None = None,
    least: float = 0.5,
    kind: Literal["plain", "rendered"] = DEFAULT_KIND,
    seed: Unknown | int = 0,  # noqa: F821 (a type that only the type checker knows)
):
    """Stands for a function that a command calls."""


@dataclass
class Choice:
    strict: bool = field(default=False, metadata={"help": "Be strict."})
    bf16: bool | None = None
    limits: list[float] = field(default_factory=list, metadata={"help": "Limits."})
    mode: str = field(default="fast", metadata={"help": "Mode, 100%%.", "choices": ("fast", "exact")})
    recompute: bool | str = True
    fsdp: str | None = field(default=None, metadata={"const": True})
    report_to: str | list[str] | None = None
    extra: dict[str, bool] | None = None


COMMAND = Command(
    "try",
    usage="MODEL INPUT --output FILE",
    about="Try it.",
    examples=("plaudit try model input -o file",),
    notes=("A note [in brackets].",),
    words=("model", "input"),
    sections=(
        Section(
            "Files: where to write.",
            WRITE,
            output=about("File to write.", aliases=["-o", "--write_to"]),
            max_rows="Maximum number of rows.",
            columns="Columns.",
            least="Least reward.",
            kind="Kind.",
            random_seed=about("Seed.", parameter="seed"),
            sort_rows=Setting("Sort.", bool, True, aliases=["--order"], words={"sorted": True, "given": False}),
            keep=Setting("Keep.", bool, "stored", switch=("stored", None), words={"none": None}),
        ),
        section_of("Choice: what to do.", Choice, Choice.__annotations__),
    ),
)


def parse(line, command=COMMAND):
    return command.parse(line.split())


def value_of(name, line):
    """What a setting has after a command line; None where it is not given."""
    return COMMAND.read(f"m i -o f {line}".split())[1].get(name)


def error(line, command=COMMAND):
    with pytest.raises(ConfigError) as caught:
        parse(line, command)
    return caught.value


def test_only_what_is_given_is_passed_on_under_the_names_of_the_parameters():
    words, settings, calls = parse("m i -o f --random-seed 3 --strict")
    assert words == ["m", "i"]
    assert settings == {"sort_rows": True, "keep": "stored"}
    assert calls == {WRITE: {"output": "f", "seed": 3}, "Choice": {"strict": True}}


def test_settings_are_those_of_the_function():
    assert declared(WRITE, "least") == {"hint": float, "default": 0.5}
    assert declared(WRITE, "kind")["default"] == "plain"
    assert COMMAND.settings["kind"].allowed == ["plain", "rendered"]
    assert COMMAND.settings["random_seed"].kind is int


@pytest.mark.parametrize("line", ["m i -o f", "-o f m i", "m -o f i", "m --output=f i", "-o f -- m i", "m i -of"])
def test_words_stand_before_between_or_after_settings(line):
    words, _, calls = parse(line)
    assert (words, calls[WRITE]) == (["m", "i"], {"output": "f"})


def test_what_follows_two_hyphens_is_a_word():
    assert parse("m -o f -- --strict")[0] == ["m", "--strict"]


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("--max_rows 3", "max_rows", 3),
        ("--max-rows 3", "max_rows", 3),
        ("--max-rows=3", "max_rows", 3),
        ("--max_rows 2 --max-rows 3", "max_rows", 3),
        ("--max_rows none", "max_rows", None),
        ("--write_to g", "output", "g"),
        ("--write-to g", "output", "g"),
        ("--columns a b", "columns", ["a", "b"]),
        ("--columns a b --columns c", "columns", ["a", "b", "c"]),
        ("--limits 1 -0.5", "limits", [1.0, -0.5]),
        ("--report_to none", "report_to", "none"),
        ('--extra {"a":true}', "extra", {"a": True}),
        ("--strict", "strict", True),
        ("--strict true", "strict", True),
        ("--strict=no", "strict", False),
        ("--strict --strict false", "strict", False),
        ("--bf16", "bf16", True),
        ("--bf16 true", "bf16", True),
        ("--no_bf16", "bf16", False),
        ("--sort-rows false", "sort_rows", False),
        ("--no_sort_rows", "sort_rows", False),
        ("--no-sort-rows --strict", "sort_rows", False),
        ("--order given", "sort_rows", False),
        ("--order sorted", "sort_rows", True),
        ("--order=given --strict", "sort_rows", False),
        ("--keep false", "keep", None),
        ("--keep none", "keep", None),
        ("--keep", "keep", "stored"),
        ("--recompute", "recompute", True),
        ("--recompute auto", "recompute", "auto"),
        ("--recompute false", "recompute", False),
        ("--no_recompute", "recompute", False),
        ("--fsdp", "fsdp", True),
        ("--fsdp full_shard", "fsdp", "full_shard"),
    ],
)
def test_values(line, name, value):
    result = value_of(name, line)
    assert result == value
    assert type(result) is type(value)


def test_a_bare_switch_leaves_the_word_after_it():
    words, _, calls = parse("--strict m i -o f")
    assert (words, calls["Choice"]) == (["m", "i"], {"strict": True})


def test_a_list_is_not_shared_between_command_lines():
    value_of("limits", "--limits 1").append(2.0)
    assert value_of("limits", "--limits 3") == [3.0]


@pytest.mark.parametrize(
    ("line", "message", "fix"),
    [
        ("", "required: model, input, --output", "Write: plaudit try MODEL INPUT --output FILE"),
        ("m", "required: input, --output", "Write: plaudit try"),
        ("m i", "required: --output", "Write: plaudit try"),
        ("m i j -o f", "'j'", "Write: plaudit try"),
        ("m i -o f --max_row 3", "--max_row", "Did you mean `--max_rows`?"),
        ("m i --ouput f", "--ouput", "Did you mean `--output`?"),
        ("m i -o f --write-t g", "--write-t", "Did you mean `--write_to`?"),
        ("m i -o f --zzz=3", "--zzz", "`plaudit try --help` lists all settings."),
        ("m i -o f --max_rows many", "'many' is not a whole number", "--help"),
        ("m i -o f --kind round", "invalid choice: 'round'", "--help"),
        ("m i -o f --mode slow", "invalid choice: 'slow'", "--help"),
        ("m i -o", "expected one argument", "--help"),
        ("m i -o f --strict maybe", "--strict is true or false, not 'maybe'", "--help"),
        ("m i -o f --strict=maybe", "'maybe' is neither true nor false", "--help"),
        ("m i -o f --max 3", "--max", "--help"),
        ("m i -o f --extra x", "'x' is not a JSON object", "--help"),
    ],
)
def test_wrong_command_lines(line, message, fix):
    assert message in error(line).message
    assert fix in error(line).fix


def test_the_last_word_may_be_several():
    many = Command("many", "RUN [RUN ...]", "", (), sections=(), words=("run...",))
    assert parse("a b c", many)[0] == ["a", "b", "c"]
    assert "required: run" in error("", many).message
    assert "'a'" in error("a", Command("none", "", "", (), sections=())).message


def test_help_is_printed_only_where_it_is_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert not COMMAND.helped(["m", "i"])
    assert capsys.readouterr().out == ""
    assert COMMAND.helped(["m", "--help"])
    text = capsys.readouterr().out
    assert text.startswith(
        "Usage: plaudit try MODEL INPUT --output FILE\n\nTry it. For example:\n\n  plaudit try model"
    )
    assert "A note [in brackets]." in text
    assert "Files: where to write.\n" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "--output TEXT File to write.",
        "--least X Least reward. [0.5]",
        "--strict Be strict. [False]",
        "--keep Keep. [True]",
        "--limits X ... Limits.",
        "--kind TEXT Kind. Choices: plain, rendered. [plain]",
        "--mode TEXT Mode, 100%. Choices: fast, exact. [fast]",
    ):
        assert line in lines


def test_every_command_declares_settings_with_help_and_no_name_twice():
    for name in COMMANDS:
        command, _ = command_of(name)
        assert command.name == name
        spellings = sum(len(setting.options) + len(setting.negations) for setting in command.settings.values())
        assert len(command.options) == spellings, name
        assert all(setting.help for setting in command.settings.values()), name
        example = next(line for line in command.examples if line.startswith(f"plaudit {name}"))
        command.read(example.removesuffix("\\").split()[2:])


@pytest.mark.parametrize("line", ["--revision v1 --calibration none", "--model-revision v1 --calibrated false"])
def test_settings_of_models_mean_the_same_everywhere(line):
    for name, words in (("serve", "m"), ("score", "m i -o f"), ("best-of-n", "i -o f")):
        _, _, calls = command_of(name)[0].parse(f"{words} {line}".split())
        assert calls[LOAD] == {"revision": "v1", "calibration": None}, name


def test_help_of_every_command_but_train_imports_no_torch():
    code = (
        "import sys; from plaudit.cli.main import COMMANDS, main\n"
        "for name in set(COMMANDS) - {'train'}: main([name, '--help'])\n"
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
