"""Scale and shift: folded into the weights where they allow it, beside the model where not, and said in any case."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import LlamaForSequenceClassification

from export.conftest import ROWS, plain, responses
from plaudit import ConfigError, DataError, RewardModel
from plaudit.evaluation.stats import fit_temperature as fit_with_scipy
from plaudit.export import export as heads
from plaudit.export.export import export_model
from plaudit.export.rescaling import fit_temperature
from plaudit.model.calibration import RewardCalibration, load_calibration
from tolerances import REWARD, SUMMED

STORED = RewardCalibration(2.5, -0.75, 1.5, "by hand")


def ours(folder):
    """Rewards as our own scorer reports them, with what lies beside the model."""
    return np.array(RewardModel.from_pretrained(folder, device="cpu").score(responses()))


# ---- what goes where ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["bert", "modernbert"])
def test_a_head_with_a_bias_takes_scale_and_shift(save, tmp_path, architecture):
    source = save(architecture)
    STORED.save(source)
    raw = plain(source)
    result = export_model(source, tmp_path / "out")
    np.testing.assert_allclose(plain(tmp_path / "out"), 2.5 * raw - 0.75, **REWARD.times(2.5).close)
    np.testing.assert_allclose(ours(tmp_path / "out"), 2.5 * raw - 0.75, **REWARD.times(2.5).close)
    assert (result.scale, result.shift, result.notes) == (2.5, -0.75, ())
    # The temperature of the calibration is in units of the new rewards, and stays with them.
    assert load_calibration(str(tmp_path / "out")) == RewardCalibration(1.0, 0.0, 1.5, "by hand")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_a_head_without_one_takes_the_scale_and_the_shift_lies_beside(save, tmp_path, caplog, architecture):
    source = save(architecture)
    STORED.save(source)
    raw = plain(source)
    with caplog.at_level(logging.WARNING):
        result = export_model(source, tmp_path / "out")
    np.testing.assert_allclose(plain(tmp_path / "out"), 2.5 * raw, **REWARD.times(2.5).close)
    np.testing.assert_allclose(ours(tmp_path / "out"), 2.5 * raw - 0.75, **REWARD.times(2.5).close)
    np.testing.assert_allclose(ours(tmp_path / "out"), ours(source), **REWARD.close)
    assert load_calibration(str(tmp_path / "out")) == RewardCalibration(1.0, -0.75, 1.5, "by hand")
    (note,) = result.notes
    assert "the shift of -0.75 could not be folded" in note
    assert "other servers give rewards that are higher by 0.75" in note
    assert "Rankings, margins and probabilities are the same there" in note
    assert note in caplog.text
    assert note in (tmp_path / "out" / "README.md").read_text()
    assert note in json.loads((tmp_path / "out" / "plaudit_export.json").read_text())["notes"]


def test_raw_leaves_rewards_and_calibration_as_they_are(source, tmp_path):
    STORED.save(source)
    result = export_model(source, tmp_path / "out", raw=True)
    np.testing.assert_allclose(plain(tmp_path / "out"), plain(source), **REWARD.close)
    assert load_calibration(str(tmp_path / "out")) == STORED
    assert (result.scale, result.shift) == (1.0, 0.0)
    assert "Rewards are left as they are" in result.notes[0]


@pytest.fixture
def bounded(save, monkeypatch):
    """Folder of a reward model whose last layer is followed by something else."""
    stock = LlamaForSequenceClassification.__init__

    def bounded(self, config):
        stock(self, config)
        self.score = nn.Sequential(nn.Linear(config.hidden_size, 1, bias=False), nn.Tanh())

    monkeypatch.setattr(LlamaForSequenceClassification, "__init__", bounded)
    return save()


def test_no_plain_head_leaves_the_change_beside(bounded, tmp_path):
    raw = plain(bounded)
    STORED.save(bounded)
    result = export_model(bounded, tmp_path / "out")
    np.testing.assert_allclose(plain(tmp_path / "out"), raw, **REWARD.close)
    np.testing.assert_allclose(ours(tmp_path / "out"), 2.5 * raw - 0.75, **REWARD.times(2.5).close)
    assert (result.head, result.scale, result.shift, result.calibration) == (None, 1.0, 0.0, STORED)
    assert "could not be folded into the weights" in result.notes[0]
    assert "margins and thresholds are not" in result.notes[0]


def test_a_layer_like_a_head_that_is_none_is_not_taken_for_it(bounded, tmp_path, monkeypatch):
    """Taken by its name and shape, the scale would go in before what follows it: the check sees that."""
    monkeypatch.setattr(heads, "find_head", lambda model, ids: ("score.0", model.model.score[0]))
    with pytest.raises(ConfigError, match="differ by more than"):
        export_model(bounded, tmp_path / "out", temperature=3.0)
    assert not (tmp_path / "out").exists()


def test_nothing_to_do_is_said(source, tmp_path):
    lines = dict(export_model(source, tmp_path / "out").lines())
    assert lines["Rewards"] == "as they were"
    assert lines["In the weights"].startswith("nothing folded")


# ---- temperature --------------------------------------------------------------------------------------------------


def test_a_stored_temperature_makes_differences_log_odds(source, tmp_path):
    STORED.save(source)
    probability = RewardModel.from_pretrained(source, device="cpu").probability(ROWS)
    result = export_model(source, tmp_path / "out", temperature="stored")
    assert (result.scale, result.calibration.shift) == (2.5 / 1.5, -0.5)
    margins = plain(tmp_path / "out").reshape(-1, 2) @ [1, -1]
    np.testing.assert_allclose(1 / (1 + np.exp(-margins)), probability, **REWARD.close)
    exported = RewardModel.from_pretrained(tmp_path / "out", device="cpu")
    np.testing.assert_allclose(exported.probability(ROWS), probability, **REWARD.close)
    assert "by hand" in result.rewards.how


def test_a_number_divides(source, tmp_path):
    result = export_model(source, tmp_path / "out", temperature=4)
    np.testing.assert_allclose(plain(tmp_path / "out"), plain(source) / 4, **REWARD.close)
    assert (result.scale, result.calibration) == (0.25, None)


def mostly_right(source, rows=ROWS * 3):
    """Pairs in three of four of which the model is right, and their margins."""
    margins = RewardModel.from_pretrained(source, device="cpu").margin(rows)
    found = []
    for n, (row, margin) in enumerate(zip(rows, margins, strict=True)):
        turn = (margin > 0) == (n % 4 == 0)
        found.append({**row, "chosen": row["rejected"], "rejected": row["chosen"]} if turn else row)
    return found, np.array([-abs(one) if n % 4 == 0 else abs(one) for n, one in enumerate(margins)])


def test_one_fitted_on_data_is_the_best(source, tmp_path):
    rows, margins = mostly_right(source)
    best, at_bound = fit_with_scipy(margins)
    assert not at_bound
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    result = export_model(source, tmp_path / "out", temperature=path)
    assert result.scale == REWARD.approx(1 / best)
    np.testing.assert_allclose(plain(tmp_path / "out"), plain(source) / best, **REWARD.close)
    assert "fitted on 24 comparisons of pairs.jsonl" in result.rewards.how
    again = export_model(tmp_path / "out", tmp_path / "again", temperature=path)
    assert again.scale == REWARD.approx(1.0)


def test_a_fit_starts_from_the_rewards_of_the_head(source, tmp_path):
    """A stored scale is replaced, and the shift keeps its height in the new units."""
    rows, _ = mostly_right(source)
    alone = export_model(source, tmp_path / "alone", temperature=rows)
    STORED.save(source)
    result = export_model(source, tmp_path / "out", temperature=rows)
    assert result.scale == pytest.approx(alone.scale)
    assert result.calibration.shift == pytest.approx(-0.75 / 2.5 * result.scale)


def test_all_right_or_all_wrong_fits_no_temperature(source, tmp_path):
    margin = RewardModel.from_pretrained(source, device="cpu").margin(ROWS[:1])[0]
    right = ROWS[0] if margin > 0 else {**ROWS[0], "chosen": ROWS[0]["rejected"], "rejected": ROWS[0]["chosen"]}
    wrong = {**right, "chosen": right["rejected"], "rejected": right["chosen"]}
    for rows in ([right], [wrong]):
        with pytest.raises(ConfigError, match="1 comparisons of rows in memory") as error:
            export_model(source, tmp_path / "out", temperature=rows)
        assert error.value.field == "temperature"
    assert not list(tmp_path.iterdir())


def test_rows_that_say_nothing_about_what_is_better(source, tmp_path):
    with pytest.raises(DataError) as error:
        export_model(source, tmp_path / "out", temperature=[ROWS[0], responses()[0]])
    assert error.value.row == 1


def test_lists_of_scores_strengths_and_token_ids_count(source, tokenizer, tmp_path):
    rows, margins = mostly_right(source)
    best, _ = fit_with_scipy(margins)
    lists = [{"prompt": row["prompt"], "responses": [row["rejected"], row["chosen"]], "scores": [0, 2]} for row in rows]
    assert export_model(source, tmp_path / "lists", temperature=lists).scale == REWARD.approx(1 / best)
    texts = [
        {
            name: tokenizer.apply_chat_template([*row["prompt"], *row[name]], tokenize=False)
            for name in row
            if name != "prompt"
        }
        for row in rows
    ]
    ids = [
        {f"{name}_ids": tokenizer(text, add_special_tokens=False)["input_ids"] for name, text in row.items()}
        for row in texts
    ]
    assert export_model(source, tmp_path / "ids", temperature=ids).scale == REWARD.approx(1 / best)
    soft, _ = fit_with_scipy(margins, np.full(len(margins), 0.8))
    preference_probs = [{**row, "preference_prob": 0.8} for row in rows]
    assert export_model(source, tmp_path / "soft", temperature=preference_probs).scale == REWARD.approx(1 / soft)
    assert soft != pytest.approx(best, rel=0.05)


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    st.lists(st.floats(0.05, 5), min_size=2, max_size=20),
    st.lists(st.floats(0.01, 0.049), min_size=1, max_size=3),
    st.floats(0.1, 10),
)
def test_the_fit_is_that_of_the_evaluation_and_follows_the_unit(right, wrong, unit):
    margin_P = np.array([*right, *(-one for one in wrong)])
    found = fit_temperature(margin_P, np.ones(len(margin_P)))
    expected, at_bound = fit_with_scipy(margin_P)
    if found is None:
        assert at_bound
        return
    assert found == REWARD.approx(expected)
    assert fit_temperature(margin_P * unit, np.ones(len(margin_P))) == SUMMED.approx(found * unit)


# ---- mean and deviation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_kind", ["file", "list", "dataset", "generator"])
def test_normalized_rewards_have_mean_0_and_deviation_1(source, tmp_path, row_kind):
    raw = plain(source)
    data = ROWS
    if row_kind == "file":
        data = tmp_path / "pairs.jsonl"
        data.write_text("\n".join(map(json.dumps, ROWS)))
    if row_kind == "dataset":
        data = Dataset.from_list(ROWS)
    if row_kind == "generator":
        data = (row for row in ROWS)
    result = export_model(source, tmp_path / "out", normalize=data)
    assert result.scale == REWARD.approx(1 / raw.std())
    assert result.calibration.shift == REWARD.approx(-raw.mean() / raw.std())
    np.testing.assert_allclose(plain(tmp_path / "out"), raw / raw.std(), **REWARD.close)
    np.testing.assert_allclose(ours(tmp_path / "out"), (raw - raw.mean()) / raw.std(), **REWARD.close)
    name = "pairs.jsonl" if row_kind == "file" else "rows in memory"
    assert f"over 16 responses of {name}" in result.rewards.how


def test_normalized_rewards_of_a_head_with_a_bias_are_the_same_everywhere(save, tmp_path):
    export_model(save("bert"), tmp_path / "out", normalize=ROWS)
    assert plain(tmp_path / "out").mean() == REWARD.approx(0)
    assert plain(tmp_path / "out").std() == REWARD.approx(1)


def test_probabilities_stay_what_they_were(source, tmp_path):
    STORED.save(source)
    before = RewardModel.from_pretrained(source, device="cpu").probability(ROWS)
    result = export_model(source, tmp_path / "out", normalize=ROWS)
    np.testing.assert_allclose(RewardModel.from_pretrained(tmp_path / "out").probability(ROWS), before, **REWARD.close)
    assert result.calibration.temperature == pytest.approx(1.5 * result.scale / 2.5)


def test_rows_that_are_too_long_are_left_out_and_counted(save, tmp_path):
    source = save()
    long = {"prompt": [{"role": "user", "content": "x" * 600}], "response": [{"role": "assistant", "content": "y"}]}
    result = export_model(source, tmp_path / "out", normalize=[*ROWS, long])
    assert "over 16 responses of rows in memory (1 too long ones left out)" in result.rewards.how
    raw = plain(source)
    assert result.scale == REWARD.approx(1 / raw.std())


@pytest.mark.parametrize("rows", [[], ROWS[:1] * 3])
def test_data_without_a_deviation_are_refused(source, tmp_path, rows):
    rows = [{"prompt": row["prompt"], "response": row["chosen"]} for row in rows]
    with pytest.raises(ConfigError) as error:
        export_model(source, tmp_path / "out", normalize=rows)
    assert error.value.field == "normalize"


def test_a_broken_row_is_named(source, tmp_path):
    with pytest.raises(DataError) as error:
        export_model(source, tmp_path / "out", normalize=[*ROWS, {**ROWS[0], "chosen": None}])
    assert (error.value.row, error.value.field) == (8, "chosen")
    assert not list(tmp_path.iterdir())


# ---- what goes together -------------------------------------------------------------------------------------------


def test_settings_that_exclude_each_other(source, tmp_path):
    wrong = [({"normalize": ROWS, "temperature": 2.0}, "temperature"), ({"normalize": ROWS, "raw": True}, "raw")]
    wrong += [({"temperature": value}, "temperature") for value in (0.0, -1.0, math.nan, math.inf, True, "stored")]
    for rescaling, field in wrong:
        with pytest.raises(ConfigError) as error:
            export_model(source, tmp_path / "out", **rescaling)
        assert error.value.field == field
        assert error.value.fix is not None
