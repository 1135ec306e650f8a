"""Endings: what breaks off, and what only ends without a full stop."""

from __future__ import annotations

import pytest

from doctor.clean_sets import clean_rows, said
from plaudit import check_dataset
from plaudit.doctor.leaks import breaks_off


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("First, boil the water. Then add the pasta and stir it wel", "middle of a sentence"),
        ("It depends on the weather and the", 'the word "the"'),
        ("There are several reasons, such as cost, time, quality,", "ends with ','"),
        ("Here it is:\n```python\nprint(1)\n", "code block"),
        ("Yes. It was built in 1889 (", "ends with '('"),
        ("One point.\nAnother point is that the city has grown quickly over the last ten years so", "middle of"),
    ],
)
def test_breaks_off(text, reason):
    assert reason in breaks_off(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "42",
        "Paris",
        "no comment",
        "The answer is 42",
        "First step. Then 3 + 4 = 7\nA: 7",
        "Buy:\n- milk\n- eggs\n- a loaf of bread with seeds",
        "He said: “It is done.”",
        "See the page. It is at https://example.org/the/page",
        "Dear Ann,\nthe report is done.\n\nKind regards,",
        "```python\nx = 1\n```",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "so i think its fine. u can do what u want and nobody will mind it at all",
        "这是一个句子。",
        "It works. Try it 🙂",
        "Choose one. Option A",
    ],
)
def test_ends(text):
    assert breaks_off(text) is None


def test_one_sentence_without_a_full_stop_counts_only_where_others_have_theirs():
    rows = clean_rows(200)
    text = "The narrow river follows the ancient bridge towards the plain"
    rows[11]["rejected"] = said(text)
    assert list(check_dataset(rows, words=False).finding("truncated").rows) == [11]
    for row in rows:
        row["chosen"] = said(row["chosen"][0]["content"].split(".")[0])
    assert check_dataset(rows, words=False).finding("truncated") is None


def test_the_shares_of_both_sides_are_compared():
    rows = clean_rows(400)
    for row in rows[:80]:
        row["rejected"] = said(f"All is well. {row['rejected'][0]['content'][:-9]} gentle bri")
    for row in rows[390:]:
        row["chosen"] = said(f"All is well. {row['chosen'][0]['content'][:-9]} gentle bri")
    finding = check_dataset(rows, words=False).finding("truncated")
    assert finding.count == 90
    assert finding.detail.startswith("2.5% of chosen, 20% of rejected responses: a difference")


def test_calls_of_tools_do_not_break_off():
    call = [{"function": {"name": "f", "arguments": {"a": "the"}}}]
    message = {"role": "assistant", "content": "I look it up. It is in the", "tool_calls": call}
    rows = [row | {"chosen": [message]} for row in clean_rows(10)]
    assert check_dataset(rows, words=False).finding("truncated") is None
