"""The page on evaluation: its code runs from top to bottom with a tiny model, and its table of settings is true."""

import inspect
import re
from pathlib import Path

import pytest

import plaudit
from evaluation.tiny_runs import negate, pairs, plain_reward, save_model, write
from plaudit.cli.main import main

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")


def blocks(language):
    found = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [text for name, text in found if name == language]


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """An empty folder with the models and the file that the page names."""
    monkeypatch.chdir(tmp_path)
    save_model(Path("runs/first"))
    save_model(Path("runs/second"), change=negate)
    reward = plain_reward("runs/first")
    write(Path("pairs.jsonl"), pairs(reward))
    write(Path("train.jsonl"), pairs(reward, seed=2))


@pytest.mark.slow
def test_code_runs_from_top_to_bottom(newcomer, capsys, monkeypatch):
    names = {}
    for block in blocks("python"):
        quick = block.replace('"runs/third",', '"runs/third", use_cpu=True, report_to=[], disable_tqdm=True,')
        exec(quick, names)
    out = capsys.readouterr().out
    assert "80.0% of 40 rows" in out
    assert "rows x 9 columns]" in out
    assert "runs/first is better than runs/second by 60.0 points" in out
    assert names["trainer"].state.best_metric >= 0.5


@pytest.mark.slow
def test_commands_print_what_the_page_shows(newcomer, capsys):
    command, shown, compare, compared, against_words = blocks("")
    assert main(command.split()[1:]) == 0
    out = capsys.readouterr().out

    def without_numbers(text):
        return re.sub(r"[-+]?\d[\d.,]*", "#", " ".join(text.split()))

    found = without_numbers(out)
    for line in shown.splitlines():
        begin = without_numbers(line.partition("…")[0])
        if not line.startswith("  ") or "source=" in line:
            assert begin in found, line
    assert main([*compare.split()[1:], "--sanity_rows", "0"]) == 0
    assert without_numbers(compared) in without_numbers(capsys.readouterr().out)
    assert main(against_words.split()[1:]) == 0
    assert "bag of words (train, 40 comparisons)" in capsys.readouterr().out


def test_the_table_names_every_setting_with_its_default():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
    told = {name: row[2] for row in rows if len(row) == 4 for name in re.findall(r"`(\w+)`", row[0])}
    parameters = inspect.signature(plaudit.evaluate).parameters
    assert set(parameters) - {"model", "suites", "loading"} <= told.keys()
    assert told["overlong"] == f"`{parameters['overlong'].default}`"
    assert told["errors"] == f"`{parameters['errors'].default}`"
    assert told["sanity_rows"] == str(parameters["sanity_rows"].default)
