"""The demo, on a tiny model: what it prints, and that what it shows comes from the saved folder."""

from __future__ import annotations

import json

import pytest

from plaudit.cli.main import main
from plaudit.demo import load_preferences, run
from tolerances import REWARD


@pytest.fixture
def tiny_demo(monkeypatch, model_folder):
    monkeypatch.setattr(run, "embedded_model_path", lambda progress: model_folder)
    rows = {
        "train": load_preferences("train").select(range(16)),
        "test": load_preferences("test").select(range(8)),
    }
    monkeypatch.setattr(run, "load_preferences", rows.__getitem__)


def test_prints_a_table_a_verdict_and_the_folder(tiny_demo, tmp_path, capsys):
    assert main(["demo", "--output_dir", str(tmp_path / "demo")]) == 0
    printed = capsys.readouterr()
    assert "8 pairs on topics that were not trained on" in printed.out
    assert printed.out.count("% to ") == 2
    assert run.PROMPT in printed.out
    assert printed.out.count("◀ preferred") == 1
    assert str(tmp_path / "demo") in printed.out
    assert "Traceback" not in printed.err
    # Clean lines: no dictionaries of logs.
    assert "{'" not in printed.out + printed.err


def test_several_seeds_have_a_folder_each_and_a_mean(tiny_demo, tmp_path, capsys):
    assert main(["demo", "--seeds", "1", "2", "--output_dir", str(tmp_path / "demo")]) == 0
    out = capsys.readouterr().out
    assert out.count("mean") == 2
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"seed-1", "seed-2"}


def test_numbers_are_those_of_the_saved_model(tiny_demo, tmp_path):
    lines = []
    result = run.run_demo(tmp_path / "demo", seed=3, say=lines.append)
    assert result.rewards == REWARD.approx(run.score_responses(tmp_path / "demo"))
    assert result.rewards[0] != result.rewards[1]
    assert (result.rows, result.after.rows) == (16, 8)
    low, high = result.after.interval
    assert low <= result.after.accuracy <= high
    assert result.before != result.after
    assert any("16 preferences to learn from, 8" in line for line in lines)


def test_bad_settings_are_one_message(capsys):
    assert main(["demo", "--seeds", "x"]) == 2
    assert "is not a whole number" in capsys.readouterr().err
    assert main(["demo", "--help"]) == 0


def test_the_question_is_held_out():
    for row in load_preferences():
        text = json.dumps(row).lower()
        assert "candle wax" not in text
        assert run.PROMPT.lower() not in text
