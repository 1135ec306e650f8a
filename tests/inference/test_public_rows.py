"""Public rows in memory get the rewards of the conversations that they hold."""

import json
import math

import pytest

from data.published_rows import CHAT_A, CHAT_B, ROWS, assistant, user
from plaudit import ConfigError, DataError, RewardModel
from tolerances import REWARD


@pytest.fixture(scope="module")
def model(folder):
    return RewardModel.from_pretrained(folder, device="cpu")


def test_pairs_of_every_schema(model):
    expected = model.score([CHAT_A, CHAT_B])
    for name in ("arena", "hh", "json", "binarized", "openai", "sharegpt", "swift response", "reward_bench"):
        row = ROWS[name][0]
        assert list(model.score(row)) == REWARD.approx(expected), name
        assert [list(pair) for pair in model.score_stream(iter([row, row]))] == [REWARD.approx(expected)] * 2
        assert model.margin(row) == REWARD.approx(expected[0] - expected[1])


def test_lists_and_single_responses(model):
    first, second = model.score([CHAT_A, CHAT_B])
    assert model.score(ROWS["nectar"][0]) == REWARD.approx([second, first])
    assert model.score([ROWS["helpsteer2"][0]] * 2) == REWARD.approx([first, first])
    assert model.score({"messages": json.dumps(CHAT_A)}) == REWARD.approx(first)


def test_a_row_that_its_schema_cannot_read_is_named(model):
    rows = [ROWS["arena"][0], {**ROWS["arena"][0], "winner": "model_c"}]
    with pytest.raises(DataError) as error:
        model.score(rows)
    assert error.value.row == 1
    with pytest.raises(DataError) as error:
        model.margin(rows)
    assert error.value.row == 1
    assert math.isnan(model.score(rows, errors="nan")[1])


def test_a_question_beside_a_response_is_refused_or_ignored(model, folder):
    row = {"question": "2+2?", "response": assistant("4")}
    with pytest.raises(DataError) as error:
        model.score(row)
    assert error.value.field == "question"
    plain = RewardModel.from_pretrained(folder, device="cpu", schema="none")
    assert plain.score(row) == REWARD.approx(model.score({"response": assistant("4")}))


def test_a_named_schema_is_that_of_rows_only(folder):
    model = RewardModel.from_pretrained(folder, device="cpu", schema="arena")
    with pytest.raises(ConfigError) as error:
        model.score({"prompt": "2+2=", "response": "4"})
    assert error.value.field == "schema"
    assert model.rank(user("2+2?"), ["4", "5"])[0].reward == REWARD.approx(max(model.score(ROWS["arena"][0])))
    assert len(model([user("2+2?")], ["4"])) == 1
