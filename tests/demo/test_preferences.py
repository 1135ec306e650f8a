"""The bundled preferences: what they promise, and that no shortcut gives the better answer away."""

import json
import re
from collections import Counter

import numpy as np
import pytest
import scipy.sparse as sp
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoTokenizer

from plaudit.demo import embedded_model_path, load_preferences
from plaudit.errors import ConfigError

REFUSAL = re.compile(
    r"\b(I can't|I cannot|I won't|I must decline|I'd rather not|not able to|unable|can't help|won't help)\b",
    re.IGNORECASE,
)
SKILLS = {
    "explaining",
    "rewriting",
    "advice",
    "arithmetic",
    "coding",
    "refusing_harm",
    "following_format",
    "multi_turn",
    "tools",
    "summarising",
    "brainstorming",
    "facts",
    "classification",
}


def text_of(message) -> str:
    """Return what a reader sees of an answer: its content, and the name and arguments of its calls."""
    calls = [f"{call['function']['name']} {call['function']['arguments']}" for call in message["tool_calls"] or []]
    return " ".join([message["content"] or "", *calls]).strip()


@pytest.fixture(scope="module")
def rows():
    return list(load_preferences())


@pytest.fixture(scope="module")
def test_rows(rows):
    return [row for row in rows if row["split"] == "test"]


@pytest.fixture(scope="module")
def ids(rows):
    """Return the token ids of both conversations of every row, default system turn included."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())

    def encode(row, side):
        tools = json.loads(row["tools"]) if row["tools"] else None
        return tokenizer.apply_chat_template(row["prompt"] + row[side], tools=tools, return_dict=True)["input_ids"]

    return [(encode(row, "chosen"), encode(row, "rejected")) for row in rows]


class TestLoading:
    def test_splits_are_parts_of_the_whole(self, rows):
        parts = {split: list(load_preferences(split)) for split in ("train", "test")}
        assert [row for row in rows if row["split"] == "train"] == parts["train"]
        assert [row for row in rows if row["split"] == "test"] == parts["test"]
        assert len(parts["train"]) + len(parts["test"]) == len(rows)

    def test_both_splits_have_the_same_columns(self):
        train, test = load_preferences("train"), load_preferences("test")
        assert train.features == test.features
        assert train.column_names == ["topic", "skill", "split", "prompt", "chosen", "rejected", "tools"]

    def test_an_unknown_split_is_refused(self):
        with pytest.raises(ConfigError, match="validation"):
            load_preferences("validation")

    def test_loading_twice_gives_the_same_data_set(self):
        assert load_preferences("test")._fingerprint == load_preferences("test")._fingerprint


class TestRows:
    def test_there_are_enough(self, rows, test_rows):
        assert len(rows) >= 400
        assert len(test_rows) >= 120

    def test_no_topic_is_in_both_splits(self, rows):
        splits = {}
        for row in rows:
            splits.setdefault(row["topic"].lower(), set()).add(row["split"])
        assert len(splits) >= 80
        assert {len(found) for found in splits.values()} == {1}

    def test_every_skill_is_there_and_held_out(self, rows, test_rows):
        assert {row["skill"] for row in rows} == SKILLS
        assert {row["skill"] for row in test_rows} == SKILLS

    def test_no_prompt_is_there_twice(self, rows):
        counts = Counter(json.dumps([message["content"] for message in row["prompt"]]).lower() for row in rows)
        assert [prompt for prompt, count in counts.items() if count > 1] == []

    def test_turns_are_well_formed(self, rows):
        for row in rows:
            assert row["prompt"][-1]["role"] in ("user", "tool")
            for side in ("chosen", "rejected"):
                (answer,) = row[side]
                assert answer["role"] == "assistant"
                assert text_of(answer)
            for message in row["prompt"] + row["chosen"] + row["rejected"]:
                assert message["content"] == message["content"].strip()
                assert message["content"] or message["tool_calls"]

    def test_tool_rows_have_schemas_and_readable_calls(self, rows):
        count = 0
        for row in rows:
            assert (row["tools"] is not None) == (row["skill"] == "tools")
            names = {tool["function"]["name"] for tool in json.loads(row["tools"] or "[]")}
            for message in row["prompt"] + row["chosen"] + row["rejected"]:
                for call in message["tool_calls"] or []:
                    assert call["type"] == "function"
                    assert call["function"]["name"] in names
                    assert isinstance(json.loads(call["function"]["arguments"]), dict)
                    count += 1
        assert count >= 10

    def test_rows_without_calls_have_none(self, rows):
        plain = [row for row in rows if row["skill"] != "tools"]
        assert {message["tool_calls"] is None for row in plain for message in row["prompt"]} == {True}


class TestTokens:
    def test_rows_are_short(self, rows, ids):
        for row, (chosen, rejected) in zip(rows, ids, strict=True):
            same = [left == right for left, right in zip(chosen, rejected, strict=False)]
            shared = same.index(False)
            assert len(chosen) + len(rejected) - shared <= 110, row["prompt"]

    def test_the_two_answers_differ(self, ids):
        assert all(chosen != rejected for chosen, rejected in ids)


def longer_share(pairs) -> float:
    return float(np.mean([0.5 if left == right else left > right for left, right in pairs]))


class TestNoShortcuts:
    def test_the_longer_answer_is_no_guide(self, rows, ids):
        chars = [(len(text_of(row["chosen"][0])), len(text_of(row["rejected"][0]))) for row in rows]
        tokens = [(len(chosen), len(rejected)) for chosen, rejected in ids]
        held_out = [index for index, row in enumerate(rows) if row["split"] == "test"]
        for lengths in (chars, tokens):
            assert 0.45 <= longer_share(lengths) <= 0.55
            assert 0.42 <= longer_share([lengths[index] for index in held_out]) <= 0.58

    def test_refusals_are_on_both_sides(self, rows, test_rows):
        for part, least in ((rows, 15), (test_rows, 4)):
            sides = [
                sum(bool(REFUSAL.search(text_of(row[side][0]))) for row in part) for side in ("chosen", "rejected")
            ]
            assert min(sides) >= least
            assert 0.35 <= sides[0] / sum(sides) <= 0.65

    @pytest.mark.parametrize("grams", [(1, 1), (1, 2)])
    def test_a_bag_of_words_stays_below_seventy_percent(self, rows, test_rows, grams):
        train_rows = [row for row in rows if row["split"] == "train"]
        fold = {topic: index % 5 for index, topic in enumerate(sorted({row["topic"] for row in rows}))}
        for preference_prob in (0.01, 0.1, 1.0, 10.0):
            assert bag_of_words_accuracy(train_rows, test_rows, preference_prob, grams) < 0.70
            folds = [
                bag_of_words_accuracy(
                    [row for row in rows if fold[row["topic"]] != held_out],
                    [row for row in rows if fold[row["topic"]] == held_out],
                    preference_prob,
                    grams,
                )
                for held_out in range(5)
            ]
            assert np.mean(folds) < 0.70

    def test_the_bag_of_words_finds_a_planted_word(self, rows, test_rows):
        planted = [{**row, "chosen": [{"content": "indeed", "tool_calls": None}]} for row in rows + test_rows]
        assert bag_of_words_accuracy(planted[: len(rows)], planted[len(rows) :], 1.0, (1, 1)) > 0.95


def bag_of_words_accuracy(train, held_out, preference_prob, grams) -> float:
    """Return the accuracy of a Bradley-Terry model of word counts; a tie counts as half."""
    counter = CountVectorizer(ngram_range=grams, token_pattern=r"(?u)\b\w+\b")
    counter.fit([text_of(row[side][0]) for row in train for side in ("chosen", "rejected")])

    def differences(part):
        chosen, rejected = (
            counter.transform([text_of(row[side][0]) for row in part]).astype(float) for side in ("chosen", "rejected")
        )
        return chosen - rejected

    seen = differences(train)
    labels = np.repeat([1, 0], seen.shape[0])
    model = LogisticRegression(C=preference_prob, fit_intercept=False, solver="liblinear").fit(
        sp.vstack([seen, -seen]), labels
    )
    scores = differences(held_out) @ model.coef_[0]
    return float(np.mean(np.where(np.abs(scores) < 1e-12, 0.5, scores > 0)))
