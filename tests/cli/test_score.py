"""``plaudit score``, ``best-of-n`` and ``filter``: what they write and say, and the commands on the page on scoring."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from model_builders import conversation_rows
from plaudit import RewardModel
from plaudit.cli.main import main
from plaudit.inference.files import WorkFolder
from tolerances import REWARD

PAGE = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text(encoding="utf-8")


@pytest.fixture
def plaudit(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = main([*map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def candidates(tmp_path):
    rows = [
        {"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]], "n": n}
        for n, row in enumerate(conversation_rows(4))
    ]
    path = tmp_path / "candidates.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_the_commands_on_the_page(plaudit, pairs, candidates, model_folder):
    shutil.copytree(model_folder, "runs/first")
    commands = re.findall(r"```console\n(.*?)```", PAGE, flags=re.DOTALL)[0].strip().splitlines()
    for command in commands:
        code, out, err = plaudit(*shlex.split(command)[1:])
        assert (code, out) == (0, ""), err
    model = RewardModel.from_pretrained(model_folder, device="cpu")
    rows = lines("scored.jsonl")
    for row, (chosen, rejected) in zip(rows, model.score(conversation_rows()), strict=True):
        assert row["chosen_reward"] == REWARD.approx(chosen)
        assert row["rejected_reward"] == REWARD.approx(rejected)
    kept = [row for row in rows if row["chosen_reward"] - row["rejected_reward"] >= 0.01]
    assert lines("clear.jsonl") == kept
    assert len(lines("unclear.jsonl")) == len(rows) - len(kept)
    best = lines("best.jsonl")
    for row, source in zip(best, lines("candidates.jsonl"), strict=True):
        assert list(row) == ["prompt", "response", "n", "reward"]
        assert row["response"] == model.best_of_n(source["prompt"], source["responses"]).response
    assert len(lines("top.jsonl")) == 2
    assert not list(Path().glob("*.chunks")) + list(Path().glob("*.scored.*")) + list(Path().glob(".*.tmp"))


def test_what_is_said(plaudit, pairs, model_folder):
    code, _, err = plaudit("score", model_folder, pairs, "-o", "out.jsonl")
    assert code == 0
    assert re.search(r"Scored 12 rows \(24 rewards, [\d.]+ s\)\.\n", err)
    assert "Wrote `chosen_reward` and `rejected_reward` to out.jsonl." in err
    code, _, err = plaudit("score", model_folder, pairs, "--output", "out.jsonl")
    assert code == 2
    assert "'out.jsonl' exists" in err
    assert plaudit("score", model_folder, pairs, "--output", "out.jsonl", "--overwrite")[0] == 0
    code, _, err = plaudit("filter", "out.jsonl", "--output", "kept.jsonl", "--min_margin", "1000")
    assert code == 0
    assert "Kept 0 of 12 rows, dropped 12." in err
    assert lines("kept.jsonl") == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["score", "model", "in.jsonl"], "--output"),
        (
            ["score", "model", "in.jsonl", "--output", "o.jsonl", "--min-margin", "1"],
            "there is no setting --min-margin",
        ),
        (["score", "m", "in.jsonl", "--output", "o.jsonl", "--colum", "x"], "Did you mean `--column`?"),
        (["score", "m", "in.jsonl", "more", "--output", "o.jsonl"], "unexpected argument 'more'"),
        (["filter", "in.jsonl", "--output", "o.jsonl"], "there is no bound"),
        (["filter", "none.jsonl", "--output", "o.jsonl", "--quantile", "0.5"], "no such file"),
        (["best-of-n", "in.jsonl", "--output", "o.jsonl", "--top", "0"], "Keep at least 1"),
        (["best-of-n", "in.jsonl", "--output", "o.txt"], "unknown extension"),
    ],
)
def test_wrong_command_lines(plaudit, command, message):
    code, _, err = plaudit(*command)
    assert code == 2
    assert message in err


@pytest.mark.parametrize("command", ["score", "best-of-n", "filter"])
def test_help_lists_every_setting(plaudit, command):
    code, out, _ = plaudit(command, "--help")
    assert code == 0
    assert out.startswith(f"Usage: plaudit {command} ")
    for name in ("--output", "--overwrite", "--dataset_split"):
        assert name in out


def test_an_interruption_says_where_it_goes_on(plaudit, pairs, model_folder, monkeypatch):
    write = WorkFolder.write

    def interrupted(work, index, rows):
        if index == 2:
            raise KeyboardInterrupt
        write(work, index, rows)

    with monkeypatch.context() as patch:
        patch.setattr("plaudit.inference.files.WorkFolder.write", interrupted)
        code, _, err = plaudit("score", model_folder, pairs, "--output", "out.jsonl", "--chunk_size", "4")
    assert code == 130
    assert "Finished chunks are kept in out.jsonl.chunks" in err
    code, _, err = plaudit("score", model_folder, pairs, "--output", "out.jsonl", "--chunk_size", "4")
    assert code == 0
    assert "Scored 12 rows, 8 of them by an earlier run" in err
