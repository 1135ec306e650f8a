"""A raw row and its rewards become a scored row: texts without prompts, prompts that can be told apart."""

import pytest

from evaluation.refusals import refused
from evaluation.scored_rows import scored_row
from plaudit.errors import DataError
from plaudit.evaluation.table import prompt_key

QUESTION = {"role": "user", "content": "why?"}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "why?", "chosen": "so", "rejected": "hm"},
        {"prompt": [QUESTION], "chosen": [said("so")], "rejected": [said("hm")]},
        {"chosen": [QUESTION, said("so")], "rejected": [QUESTION, said("hm")]},
        {"prompt": [QUESTION], "chosen": [said([{"type": "text", "text": "so"}])], "rejected": [said("hm")]},
        {"prompt": "why?", "responses": ["so", "hm"], "ranks": [1, 2]},
        {"chosen": "so", "rejected": "hm"},
    ],
)
def test_texts_are_without_the_prompt(row):
    found = scored_row(row, [1.0, 0.0], row_number=3)
    assert found.texts == ("so", "hm")
    assert found.characters == (2, 2)
    assert found.ratings[0] > found.ratings[1]


def test_calls_of_tools_are_part_of_the_text():
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    row = {"prompt": [QUESTION], "chosen": [call], "rejected": [said("hm")]}
    assert "look" in scored_row(row, [1.0, 0.0], row_number=0).texts[0]


def test_rows_with_one_prompt_belong_together():
    rows = [{"prompt": [QUESTION], "chosen": [said(one)], "rejected": [said("x")]} for one in "ab"]
    implicit = {"chosen": [QUESTION, said("a")], "rejected": [QUESTION, said("b")]}
    assert len({prompt_key(row) for row in (*rows, implicit)}) == 1
    assert prompt_key({"prompt": "why?", "chosen": "a", "rejected": "b"}) != prompt_key(rows[0])


def test_a_reward_too_few_names_the_row():
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with refused(DataError, "1 rewards", "2 responses", row=9):
        scored_row(row, [1.0], row_number=9)
    with refused(DataError, "nan", row=9, field="rejected"):
        scored_row(row, [1.0, float("nan")], row_number=9)


def test_lists_keep_their_scores():
    row = {"prompt": "p", "responses": ["a", "b"], "scores": [0.5, 2.0], "topic": "x"}
    found = scored_row(row, [1, 0], row_number=0, tokens=[4, 5])
    assert (found.row_kind, found.ratings) == ("scores", (0.5, 2.0))
    assert (found.tokens, found.columns) == ((4, 5), {"topic": "x"})
