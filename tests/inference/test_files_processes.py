"""Two processes score one file into one result in the input's order, and notice when the other is gone."""

import json
import shutil
from pathlib import Path

import pytest
from two_processes import run_two_processes

from plaudit import RewardModel
from plaudit.inference.files import score_file
from tolerances import REWARD


@pytest.fixture(scope="module")
def outcome(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("processes")
    shutil.copytree(folder, path / "model")
    rows = [{"n": n, "response": "a" * (n % 7 + 1)} for n in range(30)]
    for name, some in {
        "rows": rows,
        "rows1": rows[1:],
        "broken": [*rows[:5], {"n": 5, "response": None}, *rows[6:]],
    }.items():
        (path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)))
    script = Path(__file__).with_name("run_scoring_process.py")
    return path, run_two_processes(str(script), path)


def test_one_merged_result_in_the_order_of_the_input(outcome, tmp_path):
    path, (first, second) = outcome
    assert first["scored"].startswith("FileScores(")
    assert second["scored"] == "None"
    score_file(RewardModel.from_pretrained(path / "model", device="cpu"), path / "rows.jsonl", tmp_path / "one.jsonl")
    together, alone = (
        [json.loads(line) for line in file.read_text().splitlines()]
        for file in (path / "scored.jsonl", tmp_path / "one.jsonl")
    )
    assert [row["n"] for row in together] == list(range(30))
    for row, other in zip(together, alone, strict=True):
        assert row["reward"] == REWARD.approx(other["reward"])
    assert not (path / "scored.jsonl.chunks").exists()


def test_both_say_that_they_see_different_rows_or_may_not_write(outcome):
    for said in outcome[1]:
        assert "another input, model or setting" in said["differing"]
        assert "exists" in said["exists"]


def test_a_process_that_fails_is_named_by_the_one_that_waits(outcome):
    path, (first, second) = outcome
    assert second["broken"].startswith("DataError: row 5, field `response`")
    assert "process 1 failed: row 5" in first["broken"]
    assert not (path / "b.jsonl").exists()


def test_a_process_that_is_gone_is_not_waited_for_for_ever(outcome):
    path, (first, _) = outcome
    assert "process 1 has had no heartbeat for 2 seconds" in first["alone"]
    assert not (path / "alone.jsonl").exists()
    assert (path / "alone.jsonl.chunks").is_dir()
