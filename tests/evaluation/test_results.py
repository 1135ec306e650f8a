"""A saved evaluation reads back equal; a broken one raises an error that names the field."""

import json

import pytest

from evaluation.refusals import refused
from plaudit.errors import ConfigError
from plaudit.evaluation.results import Evaluation
from report.fake_run import evaluation

SUITE = "models[0].suites[0]"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return evaluation(60).save(tmp_path_factory.mktemp("evaluation"))


def test_what_was_saved_is_read_as_it_was(saved):
    read = Evaluation.load(saved)
    assert read.to_dict() == evaluation(60).to_dict()
    assert Evaluation.load(saved / "evaluation.json") == read


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (lambda suite: suite.update(dropped=[["overlong", 3]]), f"{SUITE}.dropped", "a list"),
        (lambda suite: suite.update(dropped={"overlong": 3}), f"{SUITE}.dropped.overlong", "the number 3"),
        (lambda suite: suite.pop("dropped"), f"{SUITE}.dropped", "missing"),
        (lambda suite: suite["statistics"]["pairs"].pop("margin"), f"{SUITE}.statistics.pairs.margin", "missing"),
        (lambda suite: suite.update(result=None), f"{SUITE}.result", "null"),
        (lambda suite: suite["points"][1].pop(), f"{SUITE}.points[1]", "2 values"),
        (lambda suite: suite.update(rows="many"), f"{SUITE}.rows", "text"),
    ],
)
def test_what_another_version_wrote_is_named(saved, tmp_path, change, field, words):
    values = json.loads((saved / "evaluation.json").read_text())
    change(values["models"][0]["suites"][0])
    (tmp_path / "evaluation.json").write_text(json.dumps(values))
    with refused(ConfigError, str(tmp_path / "evaluation.json"), words, field=field):
        Evaluation.load(tmp_path)


def test_keys_that_have_a_default_may_be_missing_and_others_are_ignored(saved, tmp_path):
    values = json.loads((saved / "evaluation.json").read_text())
    del values["models"][0]["suites"][0]["margins"]
    (tmp_path / "evaluation.json").write_text(json.dumps({**values, "later": 1}))
    assert Evaluation.load(tmp_path)["heldout"].margins is None
