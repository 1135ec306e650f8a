"""The best-of-N curve equals the mean over all subsets."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.refusals import refused
from evaluation.scored_rows import listed, pairs
from plaudit.errors import DataError
from plaudit.evaluation.stats import best_of_n_curve, expected_pick

numbers = st.sampled_from([-1.0, 0.0, 1.0, 2.5])


@given(rows=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=6), data=st.data())
def test_the_closed_form_is_the_mean_over_all_subsets(rows, data):
    rewards, gold = np.array(rows).T
    n = data.draw(st.integers(1, len(rewards)))
    picks = []
    for chosen in map(list, itertools.combinations(range(len(rewards)), n)):
        top = rewards[chosen] == rewards[chosen].max()
        picks.append(gold[chosen][top].mean())
    assert expected_pick(rewards, gold, n) == pytest.approx(np.mean(picks))


@given(rows=st.lists(st.tuples(numbers, numbers), min_size=2, max_size=6))
def test_the_curve_is_between_the_worst_and_the_oracle_and_the_oracle_rises(rows):
    rewards, gold = np.array(rows).T
    curve = best_of_n_curve(listed([rewards], [gold]))
    assert curve.points[0].picked == pytest.approx(curve.points[0].random)
    assert curve.points[-1].oracle == pytest.approx(gold.max())
    oracle = [one.oracle for one in curve.points]
    assert oracle == pytest.approx(sorted(oracle))
    assert all(one.picked <= one.oracle + 1e-9 for one in curve.points)
    turned = best_of_n_curve(listed([np.exp(rewards)], [gold]))
    assert [one.picked for one in turned.points] == pytest.approx([one.picked for one in curve.points])


def test_the_same_rows_count_at_every_n_and_the_others_are_counted(random):
    sizes = [3, 5, 5, 8]
    rewards = [random.normal(size=size) for size in sizes]
    gold = [random.normal(size=size) for size in sizes]
    scored = listed(rewards, gold)
    assert [one.n for one in best_of_n_curve(scored).points] == [1, 2, 3]
    curve = best_of_n_curve(scored, max_n=5)
    assert (len(curve.points), curve.rows, curve.rows_too_short) == (5, 3, 1)
    assert curve.points[0].random == pytest.approx(np.mean([one.mean() for one in gold[1:]]))
    with refused(DataError, 9, 8):
        best_of_n_curve(scored, max_n=9)


def test_the_interval_is_over_prompts(random):
    rewards, gold = random.normal(size=(60, 4)), random.normal(size=(60, 4))
    alone = best_of_n_curve(listed(rewards, gold)).points[3]
    copies = best_of_n_curve(
        listed(np.tile(rewards, (9, 1)), np.tile(gold, (9, 1)), prompts=[n % 60 for n in range(540)])
    ).points[3]
    assert alone.interval.low < alone.picked < alone.interval.high
    assert np.diff(copies.interval) == pytest.approx(np.diff(alone.interval), rel=0.1)


def test_a_reward_that_picks_the_worse_one_gains_nothing():
    assert best_of_n_curve(listed([[1.0, 0.0]], [[0.0, 4.0]])).points[1].picked == 0
    assert best_of_n_curve(pairs([(1.0, 0.0)])) is None
