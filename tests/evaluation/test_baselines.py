"""Models held against a bag of words fitted on the same preferences."""

import random

import numpy as np
import pytest

import plaudit
from evaluation.refusals import refused
from evaluation.tiny_runs import plain_reward, said, save_model, write
from plaudit import ConfigError, DataError
from plaudit.cli.main import main
from plaudit.doctor.shortcuts import BagOfWords
from plaudit.evaluation.results import Evaluation


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "first")


def worded(count, seed, *, first=0):
    """Pairs whose better response has the word gold, and whose worse has the word mud, four times in five."""
    draw = random.Random(seed)
    rows = []
    for number in range(first, first + count):
        words = ["gold", "mud"]
        if draw.random() < 0.2:
            words.reverse()
        sides = [said("assistant", " ".join([*draw.choices(["a", "b", "c", "d"], k=3), word])) for word in words]
        rows.append(
            {
                "prompt": said("user", f"Question {number}"),
                "chosen": sides[0],
                "rejected": sides[1],
                "source": "xy"[number % 2],
            }
        )
    return rows


def text(row, name):
    return row[name][0]["content"]


def test_the_difference_is_that_of_both_accuracies_row_by_row(folder):
    train, test = worded(200, 1), worded(60, 2, first=200)
    found = plaudit.evaluate(folder, {"test": test}, bag_of_words=train, slices="source")
    words = BagOfWords.fit(
        [text(row, "chosen") for row in train], [text(row, "rejected") for row in train], list(range(200))
    )
    margins = words.rewards([text(row, "chosen") for row in test]) - words.rewards(
        [text(row, "rejected") for row in test]
    )
    reward = plain_reward(folder)
    own = [reward(row["prompt"] + row["chosen"]) > reward(row["prompt"] + row["rejected"]) for row in test]
    one = found.comparisons[0]
    assert one.baseline
    assert one.overall.scores == pytest.approx((np.mean(own), np.mean(margins > 0)))
    assert one.overall.scores[1] > 0.7
    assert one.models == (str(folder), "bag of words (rows, 200 comparisons)")
    assert set(one.slices["source"]) == {"x", "y"}
    assert one.verdict.startswith(f"bag of words (rows, 200 comparisons) is better than {folder} by")


def test_rankings_are_read_and_few_comparisons_drawn_of_each(folder):
    responses = [said("assistant", f"{word} {number}") for number, word in enumerate(["gold"] * 6 + ["mud"] * 6)]
    row = {"responses": responses, "scores": [1.0] * 6 + [0.0] * 6}
    train = [{"prompt": said("user", f"q {number}"), **row} for number in range(10)]
    found = plaudit.evaluate(folder, {"test": worded(20, 2)}, bag_of_words=train)
    assert found.comparisons[0].models[1] == "bag of words (rows, 80 comparisons)"


def test_every_model_is_held_against_it_and_it_is_kept(folder, tmp_path):
    other = save_model(tmp_path / "other", seed=1)
    train, test = write(tmp_path / "train.jsonl", worded(100, 1)), write(tmp_path / "test.jsonl", worded(40, 2))
    out = tmp_path / "out"
    command = ["eval", str(folder), str(other), "--suite", str(test), "--bag_of_words", str(train), "--output"]
    assert main([*command, str(out)]) == 0
    found = Evaluation.load(out)
    against = [one.models for one in found.comparisons if one.baseline]
    name = "bag of words (train, 100 comparisons)"
    assert against == [(str(folder), name), (str(other), name)]
    assert [one.baseline for one in found.comparisons].count(False) == 1
    assert name in (out / "evaluation.md").read_text()


def test_data_that_are_too_few_or_not_there_are_refused_before_a_model_is_loaded(tmp_path):
    with refused(DataError, dataset="rows"):
        plaudit.evaluate("no/model", {"test": worded(4, 2)}, bag_of_words=[{"chosen": "a", "rejected": "b"}])
    with refused(DataError, "train.jsonl"):
        plaudit.evaluate("no/model", {"test": worded(4, 2)}, bag_of_words=str(tmp_path / "train.jsonl"))
    with refused(ConfigError, "nonsense"):
        plaudit.evaluate("no/model", {"test": worded(4, 2)}, bag_of_words="nonsense")
