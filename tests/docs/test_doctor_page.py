"""The page of the data doctor: its table is complete and true, its code and its commands run."""

import json
import re
import shlex
from pathlib import Path

import pytest

from builders import tiny_tokenizer
from doctor.clean_sets import clean_rows
from plaudit.cli.main import main
from plaudit.doctor.findings import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_its_table_has_every_kind():
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in PAGE.splitlines() if line.startswith("| `")]
    assert [(name.strip("`"), severity, removed.startswith(("yes", "if"))) for name, severity, removed in rows] == [
        (name, kind.severity, kind.removable) for name, kind in KINDS.items()
    ]


def test_code_runs(capsys):
    for block in blocks("python"):
        exec(block, {})
    out = capsys.readouterr().out
    assert out.startswith("False | 2 errors in 3 rows\nerror identical responses [2]\nerror contradictory")


@pytest.mark.slow
@pytest.mark.parametrize("command", blocks("bash")[0].splitlines())
def test_commands_run(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_tokenizer().save_pretrained("tiny")
    rows = clean_rows(60)
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows[:50])))
    Path("test.jsonl").write_text("\n".join(map(json.dumps, rows[50:])))
    Path("questions.jsonl").write_text(json.dumps({"question": "What is 2+2?"}))
    arguments = ["tiny" if word.startswith("Qwen/") else word for word in shlex.split(command)[1:]]
    assert main(arguments) == 0
    assert Path("pairs.clean.jsonl").exists() is ("--fix" in arguments)
