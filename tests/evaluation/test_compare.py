"""Comparisons call a difference real only when it is."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from evaluation.refusals import refused
from evaluation.scored_rows import pairs
from plaudit.errors import ConfigError
from plaudit.evaluation.compare import compare, compare_outcomes, sign_flip_test
from plaudit.intervals import holm


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=40))
def test_with_one_comparison_a_prompt_it_is_mcnemars_exact_test(differences):
    only_first, only_second = differences.count(1), differences.count(-1)
    p_value, method = sign_flip_test(np.array(differences))
    expected = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    assert p_value == pytest.approx(expected)
    assert method == "mcnemar-exact"


def test_mcnemars_test_is_that_of_statsmodels():
    first, second = np.repeat([1, 1, 0, 0], [50, 14, 5, 31]), np.repeat([1, 0, 1, 0], [50, 14, 5, 31])
    expected = mcnemar([[50, 14], [5, 31]], exact=True).pvalue
    assert compare_outcomes(first, second, np.arange(100)).p_value == pytest.approx(expected)


@settings(max_examples=40)
@given(st.lists(st.sampled_from([-3, -1, 0, 1, 2]), min_size=1, max_size=9))
def test_with_several_it_is_the_share_of_all_flips(differences):
    reached = abs(sum(differences))
    sums = [
        abs(sum(sign * one for sign, one in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    assert sign_flip_test(np.array(differences))[0] == pytest.approx(np.mean(np.array(sums) >= reached))


def test_numbers_that_are_not_whole_are_flipped_at_random(random):
    differences = random.normal(0.3, 1, size=12)
    reached = abs(differences.sum())
    signs = np.array(list(itertools.product((1, -1), repeat=12)))
    expected = np.mean(np.abs(signs @ differences) >= reached - 1e-9)
    p_value, method = sign_flip_test(differences)
    assert method == "sign-flip"
    assert p_value == pytest.approx(expected, abs=0.015)
    assert sign_flip_test(differences)[0] == p_value


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_is_that_of_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holms_correction_keeps_the_order_and_only_raises(p_values):
    found = holm(p_values)
    assert all(one <= other <= 1 for one, other in zip(p_values, found, strict=True))
    assert max(found) <= 1
    assert min(found) == pytest.approx(min(1, min(p_values) * len(p_values)))
    order = np.argsort(p_values, kind="stable")
    assert list(np.array(found)[order]) == sorted(found)


def models(right_first, right_second, **settings):
    return [pairs([(float(one), 0.5) for one in right], **settings) for right in (right_first, right_second)]


def test_a_real_difference_is_called_by_its_size(random):
    first = random.random(500) < 0.8
    second = np.where(random.random(500) < 0.25, ~first & False, first)
    found = compare(*models(first, second), names=("new", "old"))
    assert found.overall.difference == pytest.approx(first.mean() - second.mean())
    assert found.overall.only_first == int((first & ~second).sum())
    assert found.overall.interval.low > 0
    assert found.overall.real
    size = 100 * found.overall.difference
    assert found.overall.verdict.startswith(f"new is better than old by {size:.1f} points (95% ")
    turned = compare(*models(second, first), names=("old", "new"))
    assert turned.overall.verdict == found.overall.verdict
    assert turned.overall.p_value == found.overall.p_value


def test_no_difference_is_not_called_one(random):
    first, second = random.random((2, 200)) < 0.7
    found = compare(*models(first, second)).overall
    assert not found.real
    assert found.verdict.startswith("no difference shown: A minus B is ")
    same = compare(*models(first, first)).overall
    assert (same.p_value, same.difference) == (1.0, 0.0)


def test_false_alarms_are_as_rare_as_promised(random):
    """Two models that are equally good, many times: called different in at most 5%."""
    called = 0
    for _ in range(200):
        first, second = random.random((2, 60)) < 0.7
        p_value, _ = sign_flip_test(first.astype(int) - second.astype(int))
        called += p_value < 0.05
    assert called <= 16


def test_copies_of_a_prompt_make_no_difference_real():
    first, second = np.repeat([1, 0, 0, 0, 1, 1], 50), np.repeat([0, 1, 0, 0, 1, 0], 50)
    alone = compare(*models(first, second)).overall
    shared = compare(*models(first, second, prompts=[n // 50 for n in range(300)])).overall
    assert alone.real
    assert not shared.real
    assert shared.prompts == 6
    assert shared.method == "sign-flip-exact"
    assert shared.p_value == sign_flip_test(np.array([1, -1, 1]))[0]


def test_slices_are_corrected_for_having_looked_at_several():
    parts = ["a"] * 20 + ["b"] * 20 + ["c"] * 20
    first = np.ones(60)
    second = np.array([0] * 6 + [1] * 14 + [1] * 20 + [0] * 20)
    found = compare(*models(first, second, columns=parts), columns=["part"]).slices["part"]
    assert {name: one.p_value for name, one in found.items()} == pytest.approx({"a": 2**-5, "b": 1, "c": 2**-19})
    assert {name: one.p_adjusted for name, one in found.items()} == pytest.approx({"a": 2**-4, "b": 1, "c": 3 * 2**-19})
    assert not found["a"].real
    assert found["c"].real
    assert found["c"].verdict == "A is better than B by 100.0 points (95% 100.0 to 100.0), p < 0.0001"


def test_other_rows_cannot_be_compared():
    first, second = models([1, 0, 1], [1, 1, 1])
    with refused(ConfigError, "A", 3, "B", 2):
        compare(first, second[:2])
    with refused(ConfigError, "row 0", "row 1"):
        compare(first[:2], second[1:])
    with refused(ConfigError):
        compare(first[:0], second[:0])
