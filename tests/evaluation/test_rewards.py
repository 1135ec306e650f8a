"""Rewards in a file are judged as those that a model gives, without torch; rewards that do not fit are named."""

import json
import subprocess
import sys

import pytest

import plaudit
from evaluation.tiny_runs import pairs, plain_reward, said, save_model, write
from plaudit import ConfigError, DataError, RewardModel
from plaudit.evaluation.results import to_plain
from plaudit.inference.files import score_file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture(scope="module")
def reward(folder):
    return plain_reward(folder)


def lists(reward):
    prompts = [said("user", f"Say {n}") for n in range(12)]
    texts = ["one", "two", "three and four"]
    return [
        {"prompt": prompt, "responses": [said("assistant", text) for text in texts], "scores": [0.0, 2.0, 1.0]}
        for prompt in prompts
    ]


def labels(reward):
    return [{"prompt": "p", "response": "word " * n, "label": n % 3 == 0} for n in range(1, 13)]


@pytest.mark.parametrize("rows_of", [pairs, lists, labels])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_scoring_a_file_and_judging_it_gives_the_numbers_of_the_model(folder, reward, tmp_path, rows_of, kind):
    file = write(tmp_path / "rows.jsonl", rows_of(reward))
    model = RewardModel.from_pretrained(folder, device="cpu")
    score_file(model, file, tmp_path / f"scored.{kind}")
    by_model = to_plain(plaudit.evaluate(model, {"rows": file}, sanity_rows=0)["rows"])
    own = to_plain(plaudit.evaluate(rewards=tmp_path / f"scored.{kind}")["scored"])
    named = to_plain(plaudit.evaluate(suites={"rows": file}, rewards=tmp_path / f"scored.{kind}")["rows"])
    # Lengths in tokens are known to a model only; of rewards, characters are counted.
    apart = ("seconds", "responses_per_second", "name", "sources", "length", "points", "mistakes")
    for found in (own, named):
        assert {k: v for k, v in found.items() if k not in apart} == {
            k: v for k, v in by_model.items() if k not in apart
        }
        for mistake, other in zip(found["mistakes"], by_model["mistakes"], strict=True):
            without = ("source", "better_tokens", "worse_tokens")
            assert {k: v for k, v in mistake.items() if k not in without} == {
                k: v for k, v in other.items() if k not in without
            }
        assert found["length"] is None or found["length"]["unit"] == "characters"


def test_rewards_are_joined_with_a_benchmark(tmp_path):
    rows = [
        {"id": str(n), "prompt": f"q {n}", "chosen": ["right"], "rejected": ["a", "b", "c"], "subset": "Math"}
        for n in range(4)
    ]
    suite = write(tmp_path / "rb2.jsonl", rows)
    rewards = [[3, 2, 1, 0], [2, 2, 1, 0], [1, 1, 1, 1], [0, 1, 0, 0]]
    scored = write(tmp_path / "rewards.jsonl", [{"reward": [float(one) for one in row]} for row in rewards])
    found = plaudit.evaluate(suites=f"rewardbench2={suite}", rewards=scored, slices="subset", output=tmp_path / "out")
    assert found["rewardbench2"].score == pytest.approx((1 + 1 / 2 + 1 / 4) / 4)
    assert found.models[0].name == str(scored)
    again = plaudit.evaluate(suites=f"rewardbench2={suite}", rewards=scored, max_rows=2, overwrite=True)
    assert again["rewardbench2"].rows == 2


PAIR = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("change", "field", "row"),
    [
        ({"chosen_reward": None, "rejected_reward": None}, "chosen_reward", 1),
        ({"rejected_reward": None}, "rejected_reward", 1),
        ({"rejected_reward": "high"}, "rejected_reward", 1),
        ({"chosen": "c"}, "chosen", 1),
    ],
)
def test_rewards_that_do_not_fit_are_named(tmp_path, change, field, row):
    good = {**PAIR, "chosen_reward": 1.0, "rejected_reward": 0.0}
    suite = write(tmp_path / "suite.jsonl", [PAIR] * 3)
    file = write(tmp_path / "rewards.jsonl", [good, {**good, **change}, good])
    with pytest.raises(DataError) as error:
        plaudit.evaluate(suites=suite, rewards=file)
    assert (error.value.field, error.value.row, error.value.dataset) == (field, row, str(file))
    assert error.value.fix


def test_files_that_do_not_fit_are_refused(tmp_path):
    good = {**PAIR, "chosen_reward": 1.0, "rejected_reward": 0.0}
    file = write(tmp_path / "rewards.jsonl", [good] * 3)
    with pytest.raises(DataError) as error:
        plaudit.evaluate(suites=write(tmp_path / "suite.jsonl", [PAIR] * 4), rewards=file)
    assert "has 3 rows" in error.value.message
    with pytest.raises(DataError) as error:
        plaudit.evaluate(rewards=write(tmp_path / "none.jsonl", [PAIR]))
    assert error.value.field == "reward"
    several = [{"prompt": "p", "responses": ["a", "b"], "scores": [1, 0], "reward": [1.0, 2.0, 3.0]}]
    with pytest.raises(DataError) as error:
        plaudit.evaluate(rewards=write(tmp_path / "several.jsonl", several))
    assert (error.value.field, error.value.row) == ("reward", 0)
    not_finite = tmp_path / "nan.jsonl"
    not_finite.write_text(json.dumps({**good, "chosen_reward": float("nan")}) + "\n")
    with pytest.raises(DataError) as error:
        plaudit.evaluate(rewards=not_finite)
    assert error.value.row in (0, None)
    for call in ({"model": "m", "suites": file, "rewards": file}, {}, {"model": "m"}):
        with pytest.raises(ConfigError):
            plaudit.evaluate(**call)


def test_rows_without_a_reward_are_dropped_on_request(tmp_path):
    good = {**PAIR, "chosen_reward": 1.0, "rejected_reward": 0.0}
    file = write(tmp_path / "r.jsonl", [good, {**good, "chosen_reward": None, "rejected_reward": None}])
    found = plaudit.evaluate(rewards=file, errors="drop")["r"]
    assert (found.rows, found.dropped["broken"].first_rows) == (1, [1])


def test_a_table_is_judged_without_torch(tmp_path):
    rows = [
        {**PAIR, "prompt": f"p {n}", "chosen_reward": n / 7, "rejected_reward": 0.5, "part": "xy"[n % 2]}
        for n in range(9)
    ]
    write(tmp_path / "scored.jsonl", rows)
    code = """
import sys
from plaudit.evaluation.judge import EvaluationSettings, judge
from plaudit.evaluation.results import to_plain
from plaudit.evaluation.rewards import read_rewards
from plaudit.evaluation.suites.registry import resolve_suites
suite = resolve_suites("scored.jsonl")[0].load()
found = judge(read_rewards("scored.jsonl", suite), suite, EvaluationSettings(slices=("part",)))
assert to_plain(found)["result"]["score"] == 5 / 9
sys.exit("torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
