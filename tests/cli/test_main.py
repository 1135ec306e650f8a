"""The entry point: help, unknown commands, and what becomes of errors."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from plaudit import __version__
from plaudit.cli import main as entry
from plaudit.cli.arguments import Command
from plaudit.errors import ConfigError


def test_help_answers_without_importing_torch():
    code = (
        "import sys; from plaudit.cli.main import main; code = main(['--help']); "
        "print(code, sorted({'torch', 'transformers', 'datasets', 'rich'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines()[-1] == "0 []"
    assert "  train" in result.stdout
    assert "  demo" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(arguments, capsys):
    assert entry.main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name}" in printed for name in entry.COMMANDS)


def test_version(capsys):
    assert entry.main(["--version"]) == 0
    assert capsys.readouterr().out == f"plaudit {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["serve", "--help"]])
def test_a_closed_pipe_ends_silently(arguments):
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(
        [sys.executable, "-m", "plaudit", *arguments], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert result.stderr == b""


def test_unknown_command_names_the_near_miss(capsys):
    assert entry.main(["trian"]) == 2
    assert "Did you mean `plaudit train`?" in capsys.readouterr().err


def stub(monkeypatch, error):
    def run(arguments):
        raise error

    command = Command("train", "", "", (), sections=())
    monkeypatch.setattr(entry, "command_of", lambda name: (command, run))


def test_errors_are_one_message_without_traceback(monkeypatch, capsys):
    stub(monkeypatch, ConfigError("it is wrong", fix="Repair it."))
    monkeypatch.delenv("PLAUDIT_DEBUG", raising=False)
    assert entry.main(["train"]) == 2
    printed = capsys.readouterr()
    assert printed.err == "plaudit train: it is wrong\n  Fix: Repair it.\n"
    assert printed.out == ""


def test_errors_of_libraries_have_no_traceback_either(monkeypatch, capsys):
    stub(monkeypatch, RuntimeError("no package"))
    monkeypatch.delenv("PLAUDIT_DEBUG", raising=False)
    assert entry.main(["train"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("plaudit train: RuntimeError: no package (test_main.py, line ")
    assert "PLAUDIT_DEBUG=1" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("kind", [ConfigError, RuntimeError])
def test_debug_keeps_the_traceback(monkeypatch, kind):
    stub(monkeypatch, kind("it is wrong"))
    monkeypatch.setenv("PLAUDIT_DEBUG", "1")
    with pytest.raises(kind):
        entry.main(["train"])


def test_interruption_has_its_own_exit_code(monkeypatch, capsys):
    stub(monkeypatch, KeyboardInterrupt())
    assert entry.main(["train"]) == 130
    assert capsys.readouterr().err == "Interrupted.\n"
