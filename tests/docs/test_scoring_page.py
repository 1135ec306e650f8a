"""The page on scoring: its code runs from top to bottom with a tiny model, and its table of settings is true."""

import inspect
import re
from pathlib import Path

import pytest

from builders import tiny_tokenizer
from model_builders import tiny_model
from plaudit import RewardModel
from plaudit.model.calibration import RewardCalibration, load_calibration
from tolerances import REWARD

PAGE = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """An empty folder with the model that the page names."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "runs" / "first")
    tokenizer.save_pretrained(tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)


def test_code_runs_from_top_to_bottom(newcomer, capsys):
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert len(names["several"]) == 3
    assert names["chosen"] == REWARD.approx(names["alone"])
    output = capsys.readouterr().out
    assert re.search(r"^-?\d\.\d\d It is (blue|green)\.$", output, flags=re.MULTILINE)
    assert "RewardCalibration(scale=1.0, shift=0.0, temperature=1.5, how='fitted on pairs.jsonl')" in output


def test_the_table_names_every_setting_with_its_default():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
    told = {name: row[1] for row in rows for name in re.findall(r"`(\w+)`", row[0])}
    parameters = inspect.signature(RewardModel.from_pretrained).parameters
    assert set(parameters) - {"name_or_path"} <= told.keys()
    for name in ("batch_layout", "overlong", "calibration"):
        assert told[name] == f"`{parameters[name].default}`"


def test_the_calibration_on_the_page_is_read(tmp_path):
    (tmp_path / "reward_calibration.json").write_text(blocks("json")[0])
    assert load_calibration(str(tmp_path)) == RewardCalibration(2.0, -0.5, 1.5, "fitted on pairs.jsonl")
