"""The page on uncertainty: its code runs from top to bottom with a tiny model, and so does its command."""

import json
import re
import shlex
from pathlib import Path

import pytest

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit.cli.main import main
from plaudit.training.setup import HEAD_LEARNING_RATES

PAGE = (Path(__file__).parents[2] / "docs" / "uncertainty.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """A folder with the model and the data that the page names."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "base-model")
    tokenizer.save_pretrained(tmp_path / "base-model")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, conversation_rows())))
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
def test_code_and_command_run_from_top_to_bottom(newcomer, capsys):
    names = {}
    for block in blocks("python"):
        exec(block, names)
    assert len(names["margins"].std) == 2
    assert names["one"].lower_bound == pytest.approx(names["one"].mean - 2 * names["one"].std)
    assert names["best"] == names["ranked"][0]
    assert len(re.findall(r"^-?\d+\.\d\d give or take \d+\.\d\d, at least", capsys.readouterr().out, re.MULTILINE)) == 2
    for command in "".join(blocks("console")).strip().splitlines():
        assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err
    scored = [json.loads(line) for line in Path("scored.jsonl").read_text().splitlines()]
    assert {"reward_margin_std", "reward_margin_lower_bound"} <= scored[0].keys()


def test_the_page_names_the_learning_rate_of_members():
    assert f"a learning rate of their own, {HEAD_LEARNING_RATES['ensemble.weight']:g} unless" in PAGE
