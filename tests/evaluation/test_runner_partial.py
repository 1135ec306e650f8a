"""Results that were reached are kept when a later suite fails, and taken up again."""

import json
import logging

import pytest
import torch

import plaudit
from evaluation.refusals import refused
from evaluation.tiny_runs import pairs, plain_reward, save_model, write
from plaudit import ConfigError, DataError, RewardModel
from plaudit.evaluation import run as runner
from plaudit.evaluation.results import Evaluation, to_plain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that gives NaN to whatever has a tilde in it."""

    def break_tilde(model):
        from builders import tiny_tokenizer

        model.model.embed_tokens.weight[tiny_tokenizer()("~")["input_ids"][0]] = torch.nan

    return save_model(tmp_path_factory.mktemp("models") / "model", change=break_tilde)


@pytest.fixture(scope="module")
def rows(folder):
    return pairs(plain_reward(folder), 24)


@pytest.fixture
def good(rows, tmp_path):
    return write(tmp_path / "good.jsonl", rows)


@pytest.fixture
def bad(rows, tmp_path):
    broken = {**rows[6], "rejected": [{"role": "assistant", "content": "a~b"}]}
    return write(tmp_path / "bad.jsonl", [*rows[:6], broken, *rows[7:12]])


@pytest.fixture
def scored(monkeypatch):
    """Counts rows that models score."""
    counts = []
    score = RewardModel.score_prepared

    def counting(self, given, **options):
        counts.append(len(given))
        return score(self, given, **options)

    monkeypatch.setattr(RewardModel, "score_prepared", counting)
    return counts


def test_nan_is_named_and_what_was_reached_is_kept(folder, rows, good, bad, tmp_path, caplog):
    with refused(DataError, "nan", dataset="bad.jsonl", row=6, field="rejected"):
        plaudit.evaluate(folder, [good, bad], output=tmp_path / "out")
    assert "Stopped early; the results so far are in" in caplog.text
    kept = Evaluation.load(tmp_path / "out")
    assert not kept.complete
    assert [one.name for one in kept.suites] == ["good"]
    assert "Not complete" in (tmp_path / "out" / "evaluation.md").read_text()
    whole = plaudit.evaluate(folder, good)
    assert kept["good"].statistics == whole["good"].statistics


def test_the_same_call_again_goes_on_where_it_was(folder, rows, good, bad, tmp_path, scored, caplog):
    with pytest.raises(DataError):
        plaudit.evaluate(folder, [good, bad], output=tmp_path / "out", sanity_rows=0)
    write(bad, rows[:12])
    scored.clear()
    with caplog.at_level(logging.INFO, logger="plaudit"):
        found = plaudit.evaluate(folder, [good, bad], output=tmp_path / "out", sanity_rows=0)
    assert sum(scored) == 12
    assert "taken from" in caplog.text
    assert found.complete
    fresh = plaudit.evaluate(folder, [good, bad], sanity_rows=0)
    timeless = ("seconds", "responses_per_second", "fingerprint")
    for name in ("good", "bad"):
        one, other = ({k: v for k, v in to_plain(part[name]).items() if k not in timeless} for part in (found, fresh))
        assert one == other
    assert Evaluation.load(tmp_path / "out").to_dict() == found.to_dict()


def test_resumed_results_are_compared_as_fresh_ones(folder, good, tmp_path, scored):
    other = save_model(tmp_path / "other", seed=5)
    call = {"compare_with": other, "slices": "source", "sanity_rows": 0}
    fresh = plaudit.evaluate(folder, good, output=tmp_path / "out", **call)
    scored.clear()
    again = plaudit.evaluate(folder, good, output=tmp_path / "out", **call)
    assert scored == []
    assert again.comparisons == fresh.comparisons


def test_whatever_has_changed_is_scored_again(folder, rows, good, tmp_path, scored):
    model = save_model(tmp_path / "model")
    call = {"output": tmp_path / "out", "sanity_rows": 0}
    plaudit.evaluate(model, good, **call)

    def scored_again(**more):
        scored.clear()
        plaudit.evaluate(model, good, **{**call, **more})
        return sum(scored)

    assert scored_again() == 0
    assert scored_again(max_length=400) == 24
    write(good, rows[:20])
    assert scored_again() == 20
    save_model(tmp_path / "model", seed=3)
    assert scored_again() == 20
    assert scored_again(overwrite=True) == 20
    scored.clear()
    loaded = RewardModel.from_pretrained(model, device="cpu")
    plaudit.evaluate(loaded, good, **call)
    assert sum(scored) == 20  # nobody knows what was done to its weights


def test_other_results_are_not_lost(folder, good, rows, tmp_path):
    plaudit.evaluate(folder, good, output=tmp_path / "out", sanity_rows=0)
    with refused(ConfigError, "model on good", "`overwrite`"):
        plaudit.evaluate(folder, {"else": rows}, output=tmp_path / "out")
    plaudit.evaluate(folder, {"else": rows}, output=tmp_path / "out", overwrite=True, sanity_rows=0)
    assert [one.name for one in Evaluation.load(tmp_path / "out").suites] == ["else"]


def test_an_interruption_keeps_what_was_reached(folder, good, rows, tmp_path, monkeypatch):
    evaluate_suite = runner.evaluate_suite

    def interrupted(model, suite, *arguments, **options):
        if suite.label == "later":
            raise KeyboardInterrupt
        return evaluate_suite(model, suite, *arguments, **options)

    monkeypatch.setattr(runner, "evaluate_suite", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plaudit.evaluate(folder, {"good": good, "later": rows}, output=tmp_path / "out", sanity_rows=0)
    values = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (values["complete"], [one["name"] for one in values["models"][0]["suites"]]) == (False, ["good"])


def test_an_interrupted_suite_resumes_from_its_last_chunk(folder, good, tmp_path, monkeypatch):
    counts, score_prepared = [], RewardModel.score_prepared

    def interrupted(self, rows, **options):
        if len(counts) == 2:
            raise KeyboardInterrupt
        counts.append(len(rows))
        return score_prepared(self, rows, **options)

    monkeypatch.setattr("plaudit.evaluation.score.CHUNK_SIZE", 10)
    fresh = plaudit.evaluate(folder, good, sanity_rows=0)
    monkeypatch.setattr(RewardModel, "score_prepared", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plaudit.evaluate(folder, good, output=tmp_path / "out", sanity_rows=0)
    assert counts == [10, 10]
    counts.clear()
    found = plaudit.evaluate(folder, good, output=tmp_path / "out", sanity_rows=0)
    assert counts == [4]
    assert found["good"].rewards == fresh["good"].rewards
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "evaluation.json",
        "evaluation.md",
        "rewards.parquet",
    ]


def test_a_second_model_that_cannot_be_read_keeps_the_first(folder, good, tmp_path):
    (tmp_path / "empty").mkdir()
    with refused(ConfigError, "empty"):
        plaudit.evaluate(folder, good, compare_with=tmp_path / "empty", output=tmp_path / "out", sanity_rows=0)
    assert Evaluation.load(tmp_path / "out")["good"].rows == 24
