"""The entry point: help, unknown commands, and what becomes of errors."""

from __future__ import annotations

import importlib.util
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


@pytest.mark.slow  # two processes
@pytest.mark.parametrize("debug", ["0", "1"])
def test_a_clean_run_prints_our_lines_once_and_in_order(model_folder, pairs, tmp_path, debug):
    settings = ["--model_name_or_path", model_folder, "--dataset_name", pairs, "--output_dir", tmp_path / "out"]
    settings += ["--max_steps", "2", "--eval_fraction", "0.2", "--use_cpu"]
    if importlib.util.find_spec("peft") is not None:
        settings += ["--use_peft"]
    result = subprocess.run(
        [sys.executable, "-m", "plaudit", "train", *map(str, settings)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PLAUDIT_DEBUG": debug, "HF_DATASETS_CACHE": str(tmp_path / "cache")},
    )
    lines = result.stderr.splitlines()
    if debug == "1":
        assert any("it/s" in line for line in lines)
        return
    starts = ["Objective: ", "train data: ", "eval data: ", "The reward head ", "Batch layout: ", "golden_rows.json "]
    starts = starts if "--use_peft" in settings else [start for start in starts if not start.startswith("The reward")]
    assert len(lines) == len(starts), lines
    assert all(line.startswith(start) for line, start in zip(lines, starts, strict=True)), lines
