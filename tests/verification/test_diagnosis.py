"""Diagnoses are pure functions of golden rows and what was seen: each trap is named, and nothing else is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plaudit.model.golden import GoldenRow, GoldenRows
from plaudit.verification.diagnosis import TOLERANCES, TRAPS, Finding, Observation, diagnose, tolerance_for

REWARDS = (-2.3, -0.7, 0.1, 0.4, 0.9, 1.3, 2.2, 3.6)


def golden_of(rewards=REWARDS, **options):
    rows = tuple(GoldenRow((1, *range(5, 8 + n), 2), reward) for n, reward in enumerate(rewards))
    return GoldenRows(rows, **options)


GOLDEN = golden_of()


def look(rewards=None, *, golden=GOLDEN, suspects=(), tolerance=1e-4, **more):
    rewards = None if rewards is None else tuple(map(float, rewards))
    seen = Observation("here", tuple(range(len(golden.rows))), rewards, **more)
    found = diagnose(golden, seen, suspects, tolerance=tolerance)
    assert found is None or found.trap in TRAPS
    return found and found.trap


def sigmoid(rewards):
    return 1 / (1 + np.exp(-np.array(rewards)))


def test_equal_rewards_are_no_difference():
    assert look(REWARDS) is None
    assert look(np.array(REWARDS) + 9e-5) is None


def test_rewards_that_are_no_numbers():
    assert look([math.nan, *REWARDS[1:]]) == "not_finite"
    assert look([math.inf, *REWARDS[1:]]) == "not_finite"


@given(st.lists(st.floats(-8, 8, width=32), min_size=4, max_size=12, unique=True))
def test_a_sigmoid_is_named_whatever_the_rewards(rewards):
    golden = golden_of(rewards)
    if np.abs(sigmoid(rewards) - rewards).max() > 1e-3 and np.ptp(rewards) > 1e-2:
        assert look(sigmoid(rewards), golden=golden) == "sigmoid"


def test_a_sigmoid_in_half_precision():
    noise = np.random.default_rng(0).uniform(-4e-3, 4e-3, len(REWARDS))
    assert look(sigmoid(REWARDS) + noise) == "sigmoid"


def test_softmax_over_one_output_and_over_rows():
    assert look(np.ones(len(REWARDS))) == "softmax"
    assert look(np.exp(REWARDS) / np.exp(REWARDS).sum()) == "softmax"


def test_the_same_reward_for_all():
    assert look(np.full(len(REWARDS), 0.3)) == "constant"


@pytest.mark.parametrize(("scale", "shift"), [(2.0, 0.0), (1.0, 0.5), (0.3, -4.0), (-1.0, 0.0)])
def test_rescaled_rewards(scale, shift):
    assert look(scale * np.array(REWARDS) + shift) == "rescaled"


@pytest.mark.parametrize(("size", "dtype"), [(4e-3, "float16"), (1e-1, "bfloat16")])
def test_rounding_is_named_by_its_size(size, dtype):
    noise = np.array([1, -1, 1, -1, -1, 1, -1, 1]) * size
    seen = Observation("here", tuple(range(8)), tuple((np.array(REWARDS) + noise).tolist()))
    found = diagnose(GOLDEN, seen, tolerance=1e-4)
    assert found.trap == "dtype"
    assert dtype in found.message


def test_another_head():
    assert look([0.3, -1.0, 2.0, -2.0, 1.1, -0.4, 0.2, -1.5]) == "lost_head"
    noisy = np.array(REWARDS) + np.array([0.3, -0.4, 0.2, 0.5, -0.3, 0.1, -0.2, 0.4])
    assert look(noisy) == "unknown"


def test_two_rows_are_too_few_to_tell():
    golden = golden_of((0.0, 1.0))
    assert look((5.0, 5.5), golden=golden) == "unknown"


def test_only_long_rows_differ_where_they_are_cut():
    assert look([*REWARDS[:5], 0.2, 0.7, -0.2]) == "truncated"


def test_only_padded_rows_differ_where_padding_is_read():
    assert look([0.7, -0.2, 1.4, -1.0, 2.0, 0.0, 0.5, REWARDS[-1]]) == "padding"


def test_differences_in_the_middle_are_neither():
    seen = [*REWARDS[:3], 2.0, *REWARDS[4:]]
    assert look(seen) not in ("truncated", "padding", None)


def test_suspects_are_recognised_also_under_a_sigmoid_and_with_rounding():
    other = (0.5, -1.5, 2.5, 0.2, -0.8, 1.0, -2.0, 0.0)
    suspects = [(Finding("second_bos", "twice"), other), (Finding("added_eos", "one more"), REWARDS)]
    assert look(other, suspects=suspects) == "second_bos"
    assert look(sigmoid(other), suspects=suspects) == "sigmoid"
    assert look(np.array(other) + 0.01, suspects=suspects) == "second_bos"
    assert look(REWARDS[::-1], suspects=suspects) != "second_bos"


def test_suspects_are_those_of_the_rows_that_were_sent():
    other = (0.5, -1.5, 2.5, 0.2, -0.8, 1.0, -2.0, 0.0)
    suspects = [(Finding("second_bos", "twice"), other)]
    seen = Observation("here", (5, 1, 3), (other[5], other[1], other[3]))
    assert diagnose(GOLDEN, seen, suspects, tolerance=1e-4).trap == "second_bos"


def test_a_calibrated_server_is_held_to_calibrated_rewards():
    calibrated = tuple(2 * one - 1 for one in REWARDS)
    assert look(calibrated, expected=calibrated) is None
    assert look(REWARDS, expected=calibrated) == "rescaled"


# ---- token ids ------------------------------------------------------------------------------------------------


def ids_changed(change):
    return tuple(tuple(change(row.ids)) for row in GOLDEN.rows)


@pytest.mark.parametrize(
    ("change", "trap"),
    [
        (lambda ids: ids, None),
        (lambda ids: (1, *ids), "second_bos"),
        (lambda ids: (3, *ids), "added_bos"),
        (lambda ids: ids[1:], "missing_bos"),
        (lambda ids: ids[:4], "truncated"),
        (lambda ids: ids[-4:], "truncated"),
        (lambda ids: (*ids[:3], 77, *ids[3:]), "tokenizer"),
    ],
)
def test_other_token_ids(change, trap):
    assert look(ids=ids_changed(change)) == trap


def test_another_chat_template_is_told_from_another_tokenizer():
    golden = golden_of(chat_template="old")
    other = ids_changed(lambda ids: (*ids[:2], 9, *ids[2:]))
    assert look(ids=other, golden=golden, chat_template="new") == "chat_template"
    assert look(ids=other, golden=golden, chat_template="old") == "tokenizer"
    assert look(ids=ids_changed(lambda ids: ids), golden=golden, chat_template="new") is None


def test_other_token_ids_explain_other_rewards():
    assert look(sigmoid(REWARDS), ids=ids_changed(lambda ids: (1, *ids))) == "second_bos"


# ---- tolerances -----------------------------------------------------------------------------------------------


def test_tolerances_follow_the_coarser_dtype_and_the_largest_reward():
    seen = Observation("here", (0,), (0.0,), dtype="bfloat16")
    assert tolerance_for(golden_of((0.5,)), seen) == TOLERANCES["bfloat16"]
    assert tolerance_for(golden_of((10.0,), dtype="float16"), Observation("here", (0,), (0.0,))) == pytest.approx(0.1)
    assert tolerance_for(golden_of((0.5,)), Observation("here", (0,), (0.0,))) == 1e-4


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=9), st.lists(st.floats(-50, 50), min_size=9, max_size=9))
def test_every_difference_gets_one_name_and_no_warning(rewards, got):
    with np.errstate(all="raise", under="ignore"):
        golden = golden_of(rewards)
        trap = look(got[: len(rewards)], golden=golden)
    assert (trap is None) == all(abs(a - b) <= 1e-4 for a, b in zip(rewards, got, strict=False))
