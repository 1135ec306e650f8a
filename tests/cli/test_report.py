"""``plaudit report``: what it prints and writes, and wrong command lines."""

from __future__ import annotations

import subprocess
import sys
import webbrowser

import pytest

from plaudit.cli.main import main
from report.fake_run import evaluation, write_run


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path / "run", evaluated=False, steps=20)


def test_writes_and_says_where(run_folder, capsys):
    assert main(["report", str(run_folder)]) == 0
    out = capsys.readouterr().out
    assert "No evaluation yet" in out
    assert f"Report in {run_folder / 'report.html'} (" in out
    assert out.rstrip().endswith("also report.json and report.md.")
    assert (run_folder / "report.html").exists()


def test_evaluations_output_and_browser(run_folder, tmp_path, capsys, monkeypatch):
    opened = []
    evaluation(60).save(tmp_path / "elsewhere")
    monkeypatch.setattr(webbrowser, "open", lambda url: opened.append(url) or True)
    page = tmp_path / "page.html"
    arguments = ["report", "--eval", str(tmp_path / "elsewhere"), "--output", str(page), "--open", str(run_folder)]
    assert main(arguments) == 0
    assert opened == [page.resolve().as_uri()]
    assert "No evaluation yet" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required: run folder"),
        (["a", "b"], "unexpected argument 'b'"),
        (["a", "--outptu", "b"], "Did you mean `--output`?"),
        (["a", "--output"], "expected one argument"),
        (["nowhere"], "does not exist"),
    ],
)
def test_wrong_command_lines(arguments, words, capsys):
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("plaudit report: ")
    assert words in error


def test_help_lists_every_setting(capsys):
    assert main(["report", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: plaudit report RUN_FOLDER")
    for name in ("output", "eval", "open"):
        assert f"--{name} " in out


def test_answers_without_importing_torch(run_folder):
    code = f"import sys; from plaudit.cli.main import main; main(['report', {str(run_folder)!r}]); "
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
