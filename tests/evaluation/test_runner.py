"""Evaluations by small models whose rewards plain transformers gives as well."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

import plaudit
from builders import tiny_tokenizer
from evaluation.refusals import refused
from evaluation.tiny_runs import negate, pairs, plain_reward, said, save_model, write
from model_builders import tiny_model
from plaudit import ConfigError, DataError, RewardModel
from plaudit.data.report import KindCount
from plaudit.evaluation.page import evaluation_page
from plaudit.evaluation.results import Evaluation
from plaudit.model.calibration import RewardCalibration
from tolerances import REWARD


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "first")


@pytest.fixture(scope="module")
def negated(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("models") / "negated", change=negate)


@pytest.fixture(scope="module")
def reward(folder):
    return plain_reward(folder)


@pytest.fixture(scope="module")
def rows(reward):
    return pairs(reward)


@pytest.fixture(scope="module")
def found(folder, rows):
    return plaudit.evaluate(folder, {"pairs": rows}, slices="source")


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_rewards_and_accuracy_are_those_of_plain_transformers(folder, rows, reward, layout):
    found = plaudit.evaluate(folder, {"pairs": rows}, batch_layout=layout, max_tokens_per_batch=200)
    assert found.models[0].batch_layout == layout
    expected = [[reward(row["prompt"] + row[name]) for name in ("chosen", "rejected")] for row in rows]
    assert np.allclose(list(found["pairs"].rewards.values()), expected, **REWARD.close)
    margins = [chosen - rejected for chosen, rejected in expected]
    one = found["pairs"]
    assert one.score == one.accuracy.value == 0.8
    assert one.accuracy.n == one.rows == 40
    assert one.statistics.pairs.margin == REWARD.approx(np.mean(margins))
    low, high = one.accuracy.interval
    assert low < 0.8 < high
    worst = int(np.argmin(margins))
    assert one.mistakes[0].row == worst
    assert one.mistakes[0].better == rows[worst]["chosen"][0]["content"]
    assert one.mistakes[0].prompt == f"user: Question {worst}"
    assert one.mistakes[0].confidence == REWARD.approx(1 / (1 + np.exp(margins[worst])))
    assert len(one.mistakes) == 8
    assert sum(one.histogram.better) == sum(one.histogram.worse) == sum(one.margins.counts) == 40
    tokens = one.table.column("tokens").to_pylist()[:2]
    assert tokens == [len(rows[0][name][0]["content"]) for name in ("chosen", "rejected")]


def test_every_part_is_there(found, rows):
    one = found["pairs"]
    assert list(one.slices) == ["source"]
    assert {name: part.rows for name, part in one.slices["source"].items()} == {"x": 14, "y": 13, "z": 13}
    x_right = [chosen > rejected for (_, row), (chosen, rejected) in one.rewards.items() if rows[row]["source"] == "x"]
    assert one.slices["source"]["x"].pairs.accuracy.value == np.mean(x_right)
    assert one.calibration.scores.n == 40
    assert one.length.unit == "tokens"
    assert {check.name for check in one.checks} == {"constant rewards", "swapped labels", "batch size", "padding"}
    assert all(check.passed for check in one.checks), one.checks
    assert one.best_of_n is None
    assert found.models[0].architecture == "LlamaForSequenceClassification"
    assert found.complete
    assert found.versions["plaudit"] == plaudit.__version__


def test_rankings_have_a_best_of_n_curve(folder, reward):
    prompt = said("user", "Say something")
    texts = ["one", "two", "three", "four", "five and six"]
    rewards = [reward(prompt + said("assistant", text)) for text in texts]
    rows = [{"prompt": prompt, "responses": [said("assistant", text) for text in texts], "scores": rewards}]
    rows.append({**rows[0], "prompt": said("user", "Say it again"), "scores": [-one for one in rewards]})
    found = plaudit.evaluate(folder, rows)["rows"]
    assert found.statistics.rankings.rankings == 2
    assert found.best_of_n.points[-1].n == 5
    assert found.best_of_n.points[-1].oracle == REWARD.approx((max(rewards) - min(rewards)) / 2)
    assert found.statistics.pairs.comparisons == 20


def test_labels_and_grades_of_single_responses(folder, reward):
    prompt = said("user", "Say something")
    answers = [said("assistant", "word " * n) for n in range(1, 9)]
    rewards = [reward(prompt + answer) for answer in answers]
    labels = [
        {"prompt": prompt, "response": one, "label": value > 0} for one, value in zip(answers, rewards, strict=True)
    ]
    labels[0]["label"] = not labels[0]["label"]
    ratings = [
        {"prompt": prompt, "response": one, "score": 2 * value} for one, value in zip(answers, rewards, strict=True)
    ]
    found = plaudit.evaluate(folder, {"labels": labels, "ratings": labels[:1] + ratings})
    assert found["labels"].score == 7 / 8
    assert found["labels"].accuracy.value == 7 / 8
    (mistake,) = found["labels"].mistakes
    assert (mistake.kind, mistake.row, mistake.margin < 0) == ("label", 0, True)
    assert {mistake.better, mistake.worse} == {"word ", None}
    assert found["ratings"].statistics.ratings.pearson == pytest.approx(1)
    assert found["labels"].calibration is found["labels"].length is None


def test_a_model_does_not_differ_from_itself(folder, rows):
    found = plaudit.evaluate(folder, {"pairs": rows}, compare_with=folder, slices="source", sanity_rows=0)
    assert [model.name for model in found.models] == [str(folder), f"{folder} (2)"]
    (one,) = found.comparisons
    assert not one.real
    assert (one.overall.difference, one.overall.p_value, one.rows, one.left_out) == (0.0, 1.0, 40, 0)
    assert set(one.slices["source"]) == {"x", "y", "z"}
    assert one.verdict.startswith("no difference shown")


def test_a_model_with_its_head_turned_round_is_really_worse(folder, negated, rows, found):
    second = plaudit.evaluate(folder, {"pairs": rows}, compare_with=negated, slices="source", sanity_rows=0)
    (one,) = second.comparisons
    assert one.real
    assert one.overall.scores == (0.8, pytest.approx(0.2))
    assert (one.overall.only_first, one.overall.only_second) == (32, 8)
    assert one.verdict.startswith(f"{folder} is better than {negated} by 60.0 points")
    assert second["pairs"].statistics == found["pairs"].statistics
    turned = [[-value for value in rewards] for rewards in second["pairs"].rewards.values()]
    assert np.allclose(turned, list(second.models[1]["pairs"].rewards.values()), **REWARD.close)


def test_models_are_compared_on_rows_that_both_have_scored(folder, rows, tmp_path):
    short = save_model(tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100}))
    long = [{**row, "prompt": said("user", "long " * 20)} for row in rows[:3]]
    found = plaudit.evaluate(folder, {"pairs": long + rows}, compare_with=short, sanity_rows=0)
    assert (found.comparisons[0].rows, found.comparisons[0].left_out) == (40, 3)
    assert found.models[1]["pairs"].dropped == {"overlong": KindCount(3, [0, 1, 2])}
    assert "Not scored: 3 over-long (> 100 tokens; rows 0, 1, 2)." in found.models[1]["pairs"].notes
    assert next(iter(found.models[1]["pairs"].rewards)) == ("pairs", 3)


def test_long_rows_are_dropped_cut_or_refused(folder, rows, caplog):
    long = [rows[0], {**rows[1], "chosen": said("assistant", "word " * 20)}, *rows[2:6]]
    found = plaudit.evaluate(folder, long, max_length=100, sanity_rows=0)["rows"]
    assert (found.rows, found.dropped) == (5, {"overlong": KindCount(1, [1])})
    assert "rows: not scored: 1 over-long (row 1)." in caplog.text
    cut = plaudit.evaluate(folder, long, max_length=100, overlong="truncate_left", sanity_rows=0)["rows"]
    assert cut.rows == 6
    assert any("1 over-long, truncated on the left (> 100 tokens; row 1)" in note for note in cut.notes)
    with refused(DataError, dataset="rows", row=1, field="chosen"):
        plaudit.evaluate(folder, long, max_length=100, overlong="error")
    with refused(DataError, "6 over-long", dataset="rows"):
        plaudit.evaluate(folder, long, max_length=5)
    lost = [{**rows[0], "prompt": said("user", "word " * 20)}, *rows[1:6]]
    cut = plaudit.evaluate(folder, lost, max_length=100, overlong="truncate_right", errors="drop", sanity_rows=0)[
        "rows"
    ]
    assert (cut.rows, cut.dropped) == (5, {"cut_away": KindCount(1, [0])})
    with refused(DataError, dataset="rows", row=0, field="chosen"):
        plaudit.evaluate(folder, lost, max_length=100, overlong="truncate_right")
    with refused(ConfigError, "`overlong`", "'nan'"):
        plaudit.evaluate(folder, long, overlong="nan")


def test_rewards_that_depend_on_company_are_found(folder, rows):
    model = RewardModel.from_pretrained(folder, device="cpu")
    model.model.score.register_forward_hook(lambda module, inputs, output: output + 0.1 * output.shape[0])
    found = plaudit.evaluate(model, rows)["rows"]
    failed = {check.name for check in found.checks if not check.passed}
    assert failed == {"batch size", "padding"}
    model = RewardModel.from_pretrained(folder, device="cpu")
    torch.nn.init.zeros_(model.model.score.weight)
    found = plaudit.evaluate(model, rows)["rows"]
    assert [check.name for check in found.checks if not check.passed] == ["constant rewards"]
    assert found.score == 0.0


def test_null_margins_are_as_not_given(folder, rows, tmp_path):
    file = write(tmp_path / "nulls.jsonl", [{**row, "margin": None if n % 2 else 1.0} for n, row in enumerate(rows)])
    assert plaudit.evaluate(folder, file, sanity_rows=0)["nulls"].rows == 40


def test_bad_data_is_named_by_file_and_row(folder, rows, tmp_path):
    broken = write(tmp_path / "broken.jsonl", [*rows[:3], {**rows[3], "rejected": None}])
    with refused(DataError, dataset="broken.jsonl", row=3, field="rejected"):
        plaudit.evaluate(folder, broken)
    lacking = write(tmp_path / "lacking.jsonl", [{"prompt": "a", "chosen": "b"}])
    with refused(DataError, "`rejected`", dataset="lacking.jsonl"):
        plaudit.evaluate(folder, lacking)
    with refused(DataError, "missing.jsonl"):
        plaudit.evaluate(folder, [broken, tmp_path / "missing.jsonl"])
    with refused(ConfigError, "'rewardbenchh'", "`rewardbench`"):
        plaudit.evaluate(folder, "rewardbenchh")
    with refused(ConfigError):
        plaudit.evaluate(folder, [])
    with refused(DataError, dataset="rows", row=1):
        plaudit.evaluate(folder, Dataset.from_list(rows).to_list()[:1] and [[rows[0], "text"]])


def test_rows_that_the_template_refuses_are_named_or_left_out(folder, rows):
    model = RewardModel.from_pretrained(folder, device="cpu")
    model.processing_class.chat_template = (
        "{% if messages[0]['content'] == 'Question 5' %}{{ raise_exception('no fives') }}{% endif %}"
        + model.processing_class.chat_template
    )
    with refused(DataError, "no fives", dataset="rows", row=5, field="chosen"):
        plaudit.evaluate(model, rows)
    found = plaudit.evaluate(model, rows, errors="drop")["rows"]
    assert (found.rows, found.dropped) == (39, {"broken": KindCount(1, [5])})
    assert any("no fives" in note for note in found.notes)


def test_models_that_give_no_reward_are_refused(folder, rows, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path / "two")
    tiny_model(tokenizer, num_labels=2).save_pretrained(tmp_path / "two")
    with refused(ConfigError, 2):
        plaudit.evaluate(tmp_path / "two", rows)
    with refused(ConfigError, "'./nowhere'"):
        plaudit.evaluate(folder, rows, compare_with="./nowhere")
    with refused(ConfigError, "`processing_class`"):
        plaudit.evaluate(tiny_model(tokenizer), rows)


def test_slices_are_refused_before_scoring(folder, rows, monkeypatch):
    monkeypatch.setattr(RewardModel, "score_prepared", None)
    with refused(ConfigError, "`sources`") as error:
        plaudit.evaluate(folder, rows, slices="sources")
    assert "Slice by one of: source." in str(error.value)
    many = [{**(rows[0]), "key": str(number)} for number in range(101)]
    with refused(ConfigError, 101, "`key`"):
        plaudit.evaluate(folder, many, slices="key")


def test_some_rows_drawn_at_random(folder, rows):
    first, second = (plaudit.evaluate(folder, rows, max_rows=10, sanity_rows=0)["rows"] for _ in range(2))
    assert list(first.rewards) == list(second.rewards)
    assert (first.rows, first.rows_left_out, first.rows_in_source) == (10, 30, 40)
    assert first.notes[0].startswith("10 of 40 rows, drawn at random")
    other = plaudit.evaluate(folder, rows, max_rows=10, sanity_rows=0, seed=1)["rows"]
    assert list(other.rewards) != list(first.rewards)


def test_suites_in_memory_and_by_name_get_labels_of_their_own(folder, rows, tmp_path):
    file = write(tmp_path / "pairs.jsonl", rows[:4])
    bar = write(tmp_path / "bar.jsonl", [{**row, "subset": "natural"} for row in rows[:5]])
    found = plaudit.evaluate(folder, [file, str(file), Dataset.from_list(rows[:6]), f"llmbar={bar}"], sanity_rows=0)
    assert [(one.name, one.rows) for one in found.suites] == [("pairs", 4), ("pairs-2", 4), ("rows", 6), ("llmbar", 5)]
    assert found["llmbar"].result.rule.startswith("A pair is right")
    with pytest.raises(KeyError, match="the suites are pairs, pairs-2, rows, llmbar"):
        found["other"]


def test_a_loaded_model_is_left_as_it_was(folder, rows, found):
    model = AutoModelForSequenceClassification.from_pretrained(folder).train()
    attention = model.config._attn_implementation
    second = plaudit.evaluate(model, {"pairs": rows}, slices="source", processing_class=tiny_tokenizer())
    assert second["pairs"].statistics == found["pairs"].statistics
    assert model.training
    assert "forward" not in model.__dict__
    assert "forward" not in model.score.__dict__
    assert model.config._attn_implementation == attention


def test_calibration_counts_from_the_temperature_in_use(folder, rows):
    plain = plaudit.evaluate(folder, rows, sanity_rows=0)["rows"]
    calibrated = RewardModel.from_pretrained(folder, device="cpu", calibration=RewardCalibration(temperature=4.0))
    found = plaudit.evaluate(calibrated, rows, sanity_rows=0)
    assert found.models[0].calibration.temperature == 4.0
    assert found["rows"].calibration.temperature == pytest.approx(plain.calibration.temperature / 4, rel=1e-3)
    assert found["rows"].accuracy == plain.accuracy
    assert 0.5 < found["rows"].mistakes[0].confidence < plain.mistakes[0].confidence


def test_adapters_load(folder, rows, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(folder), LoraConfig(task_type="SEQ_CLS"))
    model.save_pretrained(tmp_path / "adapter")
    found = plaudit.evaluate(tmp_path / "adapter", rows, compare_with=folder, sanity_rows=0)
    assert found.models[0].adapter
    assert found.comparisons[0].overall.difference == 0.0


def test_results_survive_saving(found, tmp_path):
    found.save(tmp_path / "results")
    assert sorted(path.name for path in (tmp_path / "results").iterdir()) == [
        "evaluation.json",
        "rewards.parquet",
    ]
    values = json.loads((tmp_path / "results" / "evaluation.json").read_text(), parse_constant=pytest.fail)
    assert values == json.loads(json.dumps(found.to_dict()))
    loaded = Evaluation.load(tmp_path / "results")
    assert loaded.to_dict() == found.to_dict()
    assert loaded["pairs"].rewards == found["pairs"].rewards
    assert loaded["pairs"].statistics == found["pairs"].statistics
    assert evaluation_page(loaded) == evaluation_page(found)
    assert "| source=x | 14 |" in evaluation_page(found)
    table = pq.read_table(tmp_path / "results" / "rewards.parquet")
    lines = table.group_by("variant", use_threads=False).aggregate([([], "count_all")]).to_pylist()
    sizes = {"": 80, "swapped labels": 32, "batch size": 32, "padding": 32}
    assert {line["variant"]: line["count_all"] for line in lines} == sizes
    assert table.column("row").to_pylist()[:80:2] == list(range(40))
    with refused(ConfigError, tmp_path):
        Evaluation.load(tmp_path)
    (tmp_path / "results" / "evaluation.json").write_text('{"format": "plaudit evaluation", "version": 7}')
    with refused(ConfigError, 7, 1):
        Evaluation.load(tmp_path / "results")
