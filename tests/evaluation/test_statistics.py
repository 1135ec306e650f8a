"""Statistics equal independent computations, and keep to what the data says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from evaluation.refusals import refused
from evaluation.scored_rows import listed, pairs
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.results import to_plain
from plaudit.evaluation.stats import (
    SAMPLES,
    by_slice,
    cluster_bootstrap,
    correlation,
    kendall_tau,
    mean_interval,
    pair_statistics,
    proportion,
    ranking_statistics,
    ratio,
    spearman,
    statistics_of,
)
from plaudit.evaluation.table import ScoredRow, ScoredSet
from plaudit.intervals import wilson_interval
from plaudit.schema import Label

values = st.sampled_from([-1.0, 0.0, 0.5, 2.0])
reward_pairs = st.lists(st.tuples(values, values), min_size=1, max_size=12)


def test_of_pairs(random):
    rewards = random.normal(size=(200, 2)).round(1)
    found = pair_statistics(pairs(rewards))
    margin = rewards[:, 0] - rewards[:, 1]
    assert found.accuracy.value == np.mean(margin > 0)
    assert found.tie_rate == np.mean(margin == 0) > 0
    assert found.accuracy_ties_half == pytest.approx(np.mean(margin > 0) + np.mean(margin == 0) / 2)
    assert found.margin == pytest.approx(margin.mean())
    assert found.margin_median == pytest.approx(np.median(margin))
    assert found.comparisons == found.prompts == 200
    expected = stats.binomtest(int((margin > 0).sum()), 200).proportion_ci(method="wilson")
    assert tuple(found.accuracy.interval) == pytest.approx((expected.low, expected.high))
    assert found.accuracy.method == "wilson"


@settings(max_examples=30)
@given(rewards=reward_pairs, order=st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rewards, order):
    rows = list(pairs(rewards, prompts=[n // 2 for n in range(len(rewards))]))
    shuffled = list(rows)
    order.shuffle(shuffled)
    first, second = (to_plain(pair_statistics(ScoredSet(one))) for one in (rows, shuffled))
    assert first.pop("margin_interval") == pytest.approx(second.pop("margin_interval"))
    assert first["accuracy"].pop("interval") == pytest.approx(second["accuracy"].pop("interval"))
    for name, value in first.items():
        assert second[name] == pytest.approx(value), name


@given(rewards=reward_pairs)
def test_swapped_labels_give_one_minus_accuracy_minus_tie_rate(rewards):
    straight, swapped = (pair_statistics(pairs(one)) for one in (rewards, [pair[::-1] for pair in rewards]))
    assert swapped.accuracy.value == pytest.approx(1 - straight.accuracy.value - straight.tie_rate)
    assert swapped.margin == pytest.approx(-straight.margin)


@given(rewards=reward_pairs, scale=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_only_the_order_of_rewards_matters_to_accuracy(rewards, scale, shift):
    moved = [[math.copysign(abs(one) ** 3, one) * scale + shift for one in pair] for pair in rewards]
    assert pair_statistics(pairs(moved)).accuracy.value == pair_statistics(pairs(rewards)).accuracy.value


def test_strength_turns_a_pair_round_and_one_half_is_no_comparison():
    rows = [
        ScoredRow(0, (0.0, 1.0), Label(preference_prob=0.2)),
        ScoredRow(1, (0.0, 1.0), Label(preference_prob=0.5)),
        ScoredRow(2, (0.0, 1.0), Label(preference_prob=0.9)),
    ]
    found = pair_statistics(ScoredSet(rows))
    assert (found.comparisons, found.accuracy.value, found.data_ties) == (2, 0.5, 1)
    assert ScoredSet(rows).preference_prob_P.tolist() == [0.8, 0.9]


def test_a_ranking_counts_all_its_comparisons():
    found = pair_statistics(listed([[3, 2, 1], [1, 2, 3]], [[2, 1, 0], [1, 1, 0]]))
    assert (found.comparisons, found.data_ties) == (5, 1)
    assert found.accuracy.value == 3 / 5


def test_prompts_that_repeat_are_resampled_together():
    """Ten copies of each of 40 prompts tell no more than the 40 prompts."""
    right = np.tile(np.arange(40) % 4 != 0, 10)
    found = proportion(right, np.tile(np.arange(40), 10))
    assert found.method == "bootstrap"
    width, alone = np.diff(found.interval)[0], np.diff(wilson_interval(30, 40))[0]
    assert width == pytest.approx(alone, rel=0.1)
    assert np.diff(wilson_interval(300, 400))[0] < width / 2


def test_where_the_bootstrap_sees_no_spread_the_interval_is_wilsons_for_the_prompts():
    found = proportion(np.ones(60), np.repeat(np.arange(20), 3))
    assert tuple(found.interval) == pytest.approx(wilson_interval(20, 20))
    assert proportion(np.ones(3), np.zeros(3)).interval == pytest.approx(wilson_interval(1, 1))


def test_the_bootstrap_of_a_mean_is_the_normal_interval_of_many(random):
    sample = random.normal(3.0, 2.0, size=2000)
    low, high = mean_interval(sample, np.arange(2000))
    deviation = sample.std(ddof=1) / math.sqrt(2000)
    assert (low, high) == pytest.approx((sample.mean() - 1.96 * deviation, sample.mean() + 1.96 * deviation), abs=0.01)
    assert (low, high) == mean_interval(sample, np.arange(2000))
    assert (low, high) != mean_interval(sample, np.arange(2000), seed=1)


def test_the_bootstrap_equals_drawing_prompts_by_hand():
    values, cluster = np.array([1.0, 2.0, 5.0, 9.0, 0.0]), np.array([0, 0, 1, 2, 2])
    generator = np.random.default_rng(0)
    means = []
    for _ in range(SAMPLES):
        drawn = generator.integers(3, size=3)
        means.append(np.mean(np.concatenate([values[cluster == one] for one in drawn])))
    columns = np.stack((values, np.ones(5)), axis=1)
    found = cluster_bootstrap(columns, cluster, ratio)
    assert tuple(found) == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_one_prompt_has_no_bootstrap_interval():
    assert mean_interval(np.array([1.0, 2.0]), np.zeros(2)) is None


@given(st.lists(st.tuples(values, values), min_size=2, max_size=8))
def test_rank_correlations_are_those_of_scipy(points):
    first, second = np.array(points).T
    constant = np.ptp(first) == 0 or np.ptp(second) == 0
    if constant:
        assert kendall_tau(first, second) == 0
        assert spearman(first, second) is None
        assert correlation(first, second) is None
    else:
        assert kendall_tau(first, second) == pytest.approx(stats.kendalltau(first, second).statistic)
        assert spearman(first, second) == pytest.approx(stats.spearmanr(first, second).statistic)
        assert correlation(first, second) == pytest.approx(stats.pearsonr(first, second).statistic)


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_of_rankings(random):
    rewards, scores = random.normal(size=(50, 5)).round(), random.integers(3, size=(50, 5))
    scores[0] = 1  # says nothing
    found = ranking_statistics(listed(rewards, scores))
    kept = [n for n in range(50) if np.ptp(scores[n])]
    tau = [stats.kendalltau(scores[n], rewards[n]).statistic for n in kept]
    rho = [stats.spearmanr(scores[n], rewards[n]).statistic for n in kept]
    best = [np.mean(scores[n][rewards[n] == rewards[n].max()] == scores[n].max()) for n in kept]
    assert found.rankings == len(kept) < 50
    assert found.kendall_tau == pytest.approx(np.nan_to_num(tau).mean())
    assert found.spearman == pytest.approx(np.nan_to_num(rho).mean())
    assert found.best_of_n == pytest.approx(np.mean(best))
    assert found.best_of_n_chance == pytest.approx(np.mean([np.mean(scores[n] == scores[n].max()) for n in kept]))
    assert found.best_of_n_interval.low < found.best_of_n < found.best_of_n_interval.high
    assert ranking_statistics(pairs([(1, 0)])) is None


def test_of_thumbs_and_grades(random):
    rewards, good = random.normal(size=60).round(1), random.integers(2, size=60)
    labels = [ScoredRow(n, (rewards[n],), Label((float(good[n]),)), "labels") for n in range(60)]
    ratings = [ScoredRow(n, (rewards[n],), Label((rewards[n] ** 3,)), "ratings") for n in range(60)]
    found = statistics_of(ScoredSet(labels + ratings))
    assert found.pairs is None
    assert found.rankings is None
    assert found.labels.accuracy.value == np.mean((rewards > 0) == (good > 0))
    assert found.labels.auc == pytest.approx(roc_auc_score(good, rewards))
    assert found.ratings.pearson == pytest.approx(stats.pearsonr(rewards, rewards**3).statistic)
    assert found.ratings.spearman == pytest.approx(1.0)
    assert found.ratings.mse == pytest.approx(np.mean((rewards - rewards**3) ** 2))
    assert to_plain(found)["labels"]["responses"] == 60


def test_slices_by_any_column():
    scored = pairs([(1, 0), (0, 1), (1, 0), (1, 0)], columns=["b", "a", "b", None])
    found = by_slice(scored, ["part"])["part"]
    assert {name: one.pairs.accuracy.value for name, one in found.items()} == {"(none)": 1.0, "a": 0.0, "b": 1.0}
    with refused(ConfigError, "`parts`", "part."):
        by_slice(scored, ["parts"])


def test_nothing_to_count_is_nothing_and_no_error():
    assert to_plain(statistics_of(ScoredSet([]))) == {
        "rows": 0,
        "pairs": None,
        "rankings": None,
        "labels": None,
        "ratings": None,
    }
    found = pair_statistics(ScoredSet([ScoredRow(0, (1.0, 0.0), Label(preference_prob=0.5))]))
    assert (found.accuracy.value, found.margin, found.margin_interval) == (None, None, None)
    assert found.accuracy.interval == (0, 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused_by_its_row(bad):
    with refused(DataError, row=7, field="responses[2]"):
        ScoredRow(7, (1.0, 2.0, bad), Label((2.0, 1.0, 0.0)), "scores")


@pytest.mark.parametrize("name", ["rewards", "tokens", "characters", "texts"])
def test_one_value_for_each_response(name):
    settings = {"rewards": (1.0, 2.0)} | {name: (1, 2, 3)}
    with refused(DataError, f"3 {name}", "2 responses", row=4):
        ScoredRow(4, **settings)
