"""Checks on rewards computed twice pass what is sound, and find what is not."""

import numpy as np
import pytest

from evaluation.refusals import refused
from evaluation.scored_rows import listed, pairs, scored_row
from plaudit.data.parse import read_example
from plaudit.errors import ConfigError
from plaudit.evaluation.checks import (
    TOLERANCE,
    check_constant,
    check_invariance,
    check_swapped_labels,
    swap_labels,
)
from plaudit.evaluation.table import ScoredRow, ScoredSet

ROWS = [
    {"prompt": "p", "chosen": "longer", "rejected": "b"},
    {"prompt": "q", "chosen": "c", "rejected": "even longer"},
    {"prompt": "r", "chosen": "xy", "rejected": "zz"},
    {"prompt": "s", "responses": ["a", "bbb", "cc"], "scores": [0.0, 2.0, 1.0]},
    {"prompt": "t", "responses": ["aaaa", "b", "cc"], "ranks": [1, 1, 3]},
]


def scored_by(rows, reward):
    def texts(row):
        return row.get("responses") or [row["chosen"], row["rejected"]]

    return ScoredSet(
        scored_row(row, [reward(text, place) for place, text in enumerate(texts(row))], row_number=number)
        for number, row in enumerate(rows)
    )


def test_a_model_of_the_texts_passes_the_swap():
    swapped = [swap_labels(row) for row in ROWS]
    both = [scored_by(rows, lambda text, place: len(text)) for rows in (ROWS, swapped)]
    found = check_swapped_labels(*both)
    assert found.passed, found.message
    assert found.value == pytest.approx(0)
    assert ROWS[0]["chosen"] == "longer"  # the caller's rows are left alone
    for row in swapped:
        read_example(row, row_number=0)


def test_a_model_that_knows_which_response_comes_first_does_not():
    both = [scored_by(rows, lambda text, place: -place) for rows in (ROWS, [swap_labels(row) for row in ROWS])]
    found = check_swapped_labels(*both)
    assert not found.passed
    assert "rewards depend on more than the texts" in found.message


def test_a_single_response_has_no_labels_to_swap():
    with refused(ConfigError):
        swap_labels({"response": "a", "label": True})


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_invariance_has_a_tolerance_for_each_dtype(dtype, random):
    rewards = random.normal(size=(40, 2))
    for factor, passed in ((0.5, True), (2.0, False)):
        moved = rewards.copy()
        moved[17, 1] += factor * TOLERANCE[dtype] * max(1, np.abs(rewards).max())
        found = check_invariance("batch size", pairs(rewards), pairs(moved), dtype=dtype)
        assert found.passed is passed
        assert found.value == pytest.approx(factor * TOLERANCE[dtype], rel=1e-3)
        assert "most in row 17" in found.message
        assert found.rows == (() if passed else (17,))


def test_comparisons_that_change_sides_are_counted():
    found = check_invariance("padding", pairs([(1.0, 0.999), (2, 1)]), pairs([(1.0, 1.001), (2, 1)]), dtype="bfloat16")
    assert found.passed
    assert "1 of 2 comparisons change sides" in found.message


def test_an_unknown_dtype_has_the_widest_tolerance_and_no_rewards_pass():
    assert (
        check_invariance("padding", pairs([(1, 0)]), pairs([(1, 0)]), dtype="int8").tolerance == TOLERANCE["bfloat16"]
    )
    assert check_invariance("padding", ScoredSet([]), ScoredSet([])).passed


def test_constant_rewards_are_found():
    assert not check_constant(pairs([(1.0, 1.0), (1.0, 1.0)])).passed
    assert check_constant(listed([[1.0, 1.0, 2.0]], [[1.0, 0.0, 2.0]])).value == 2
    assert check_constant(ScoredSet([ScoredRow(0, (1.0, 0.0))])).passed
