"""The page of the report: its code and commands run, and its picture is small."""

import re
import shlex
from pathlib import Path

import pytest

from plaudit.cli.main import main
from report.fake_run import evaluation, write_run

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "report.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.slow
def test_code_and_commands_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("webbrowser.open", lambda url: True)
    write_run(Path("runs/first"), rows=120, steps=50)
    evaluation(120).save("evaluations/llmbar")
    commands = [line for line in blocks("bash")[0].splitlines() if line.startswith("plaudit report")]
    assert len(commands) == 2
    for command in commands:
        assert main(shlex.split(command)[1:]) == 0
    assert Path("first.html").exists()
    capsys.readouterr()
    for block in blocks("python"):
        exec(block, {})
    out = capsys.readouterr().out
    assert "runs/first/report.html runs/first/report.json runs/first/report.md" in out
    # The table of the page names every section that there is.
    named = {row.split("|")[1].strip() for row in PAGE.splitlines() if row.startswith("|")}
    shown = {line.rsplit(" ", 1)[0] for line in out.splitlines()[1:]} - {"heldout", "lists"}
    assert shown <= named


def test_the_picture_is_small():
    assert (DOCS / "images" / "report.png").stat().st_size < 200_000
