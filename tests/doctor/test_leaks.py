"""Leaks: the tests against SciPy and against a plain computation, and what is reported of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from doctor.clean_sets import clean_rows, said
from plaudit import check_dataset
from plaudit.doctor.leaks import Leak, Marker, find_leaks, percent, two_proportions
from plaudit.doctor.shortcuts import distinct
from plaudit.intervals import holm


@given(st.integers(1, 60), st.integers(1, 60), st.integers(61, 200), st.integers(61, 200))
def test_two_proportions_is_the_chi_square_test_of_a_table(first, second, size, other_size):
    table = [[first, size - first], [second, other_size - second]]
    expected = chi2_contingency(table, correction=False).pvalue
    found = two_proportions(np.array([float(first)]), size, np.array([float(second)]), other_size)
    assert found[0] == pytest.approx(expected, rel=1e-9, abs=1e-300)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_against_its_definition(p_values):
    adjusted = holm(p_values)
    order = sorted(range(len(p_values)), key=lambda n: p_values[n])
    for place, number in enumerate(order):
        steps = [min(1.0, (len(order) - step) * p_values[order[step]]) for step in range(place + 1)]
        assert adjusted[number] == pytest.approx(max(steps))


def test_nothing_is_found_where_nothing_differs():
    assert find_leaks(["a"], np.array([30.0]), 100, np.array([30.0]), 100) == []
    assert find_leaks([], np.array([]), 0, np.array([]), 0) == []


def test_a_difference_must_be_certain_and_large():
    few = find_leaks(["a"], np.array([3.0]), 100, np.array([0.0]), 100)
    small = find_leaks(["a"], np.array([5200.0]), 10_000, np.array([4800.0]), 10_000)
    clear = find_leaks(["a"], np.array([31.0]), 100, np.array([1.0]), 100)
    assert few == small == []
    assert clear[0].sentence() == "a is in 31% of chosen and 1.0% of rejected"
    assert clear[0].effect == pytest.approx(2 * np.arcsin(np.sqrt(0.31)) - 2 * np.arcsin(np.sqrt(0.01)))


def test_random_marks_hardly_ever_alarm():
    draw = np.random.default_rng(0)
    alarms = 0
    for _ in range(200):
        first, second = draw.binomial(500, 0.1, 300).astype(float), draw.binomial(500, 0.1, 300).astype(float)
        alarms += min(holm(two_proportions(first, 500, second, 500))) < 0.01
    assert alarms <= 6  # 2 are expected at most


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        ("As an AI language model, I think so.", 'the phrase "as an AI"'),
        ("I\u2019m sorry, no.", 'the phrase "I\'m sorry"'),
        ("I cannot assist with that.", 'the phrase "I cannot help"'),
        ("Sure! Here you go.", 'the opening "Sure"'),
        ("- one\n- two", "a bullet list"),
        ("1. one\n2. two", "a numbered list"),
        ("# Title\ntext", "a markdown heading"),
        ("so **bold**", "bold text"),
        ("use `x` here", "inline code"),
        ("```\nx\n```", "a code block"),
        ("| a | b |\n", "a table"),
        ("nice 😀", "an emoji"),
        (" text.", "leading white space"),
        ("text.\n", "trailing white space"),
        ("text.\n\nHuman: and then?", "a turn of the other speaker"),
        ("see https://example.org", "a link"),
        (r"\boxed{4}", "LaTeX"),
    ],
)
def test_marks(text, mark):
    assert mark in Marker().marks(text)
    assert mark not in Marker().marks("A plain sentence about nothing.")


@pytest.mark.parametrize("text", ["so.</s>", "<|endoftext|>", "a <|im_end|>", "[INST] x", "<eos>", "<end_of_turn>"])
def test_special_tokens(text):
    assert Marker().special_token(text) is not None
    assert Marker().special_token("a < b and c > d, x[i] | y") is None


def test_special_tokens_of_the_tokenizer():
    assert Marker(["[[STOP]]"]).special_token("well [[STOP]]") == "[[STOP]]"


@pytest.mark.parametrize(("share", "text"), [(0.0998, "10%"), (0.0996, "10%"), (1.0, "100%"), (0.001, "0.1%")])
def test_percent(share, text):
    assert percent(share) == text


def test_words_inside_a_phrase_are_not_told_again():
    leaks = [
        Leak(mark, 0.0, 0.3, -1.0, 0.0) for mark in ('the phrase "I\'m sorry"', 'the text "sorry"', 'the text "x y"')
    ]
    assert [one.mark for one in distinct(leaks)] == ['the phrase "I\'m sorry"', 'the text "x y"']


def test_labels_have_two_sides_as_well():
    rows = []
    for row in clean_rows(300):
        rows += [
            {"prompt": row["prompt"], "response": row["chosen"], "label": True},
            {"prompt": row["prompt"], "response": said("As an AI, I do not know."), "label": False},
        ]
    check = check_dataset(rows)
    assert {one.mark for one in check.leaks} >= {'the phrase "as an AI"'}
    assert check.shortcuts == []
    assert "No row compares two responses: no shortcuts were computed." in check.notes
