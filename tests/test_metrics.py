"""Metrics are exact over examples, however the examples were batched, and survive a round trip."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, pearsonr

from plaudit.intervals import wilson_interval
from plaudit.metrics import RewardMetrics, Scored


def scored(chosen, rejected, *, loss=None, weight=None, lengths=None, tokens=7) -> Scored:
    """A padded-style batch: chosen rewards first, then rejected."""
    chosen, rejected = torch.tensor(chosen), torch.tensor(rejected)
    pairs = len(chosen)
    real = (torch.ones(pairs) if weight is None else torch.tensor(weight)) > 0
    losses = torch.zeros(pairs) if loss is None else torch.tensor(loss)
    return Scored(
        rewards_N=torch.cat((chosen, rejected)),
        lengths_N=torch.full((2 * pairs,), 3) if lengths is None else torch.tensor(lengths),
        real_N=real.repeat(2),
        example_N=torch.arange(pairs).repeat(2),
        scores_N=torch.tensor([1.0, 0.0]).repeat_interleave(pairs),
        better_P=torch.arange(pairs),
        worse_P=torch.arange(pairs) + pairs,
        real_P=real,
        loss=torch.where(real, losses, 0).sum(),
        count=real.float().sum(),
        tokens_computed=tokens,
    )


pairs = st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.sampled_from([-1.0, 0.0, 0.5, 3.0])), min_size=1)


@settings(max_examples=50)
@given(pairs=pairs, cut=st.integers(1, 5))
def test_any_batching_gives_the_metrics_of_all_examples(pairs, cut):
    metrics = RewardMetrics()
    for start in range(0, len(pairs), cut):
        chosen, rejected = zip(*pairs[start : start + cut], strict=True)
        loss = [c - r for c, r in pairs[start : start + cut]]
        metrics.update(scored(list(chosen), list(rejected), loss=loss))
    values = metrics.compute()
    chosen, rejected = np.array(pairs).T
    assert values["accuracy"] == pytest.approx(np.mean(chosen > rejected))
    assert values["tie_rate"] == pytest.approx(np.mean(chosen == rejected))
    assert values["margin"] == pytest.approx(np.mean(chosen - rejected))
    assert values["loss"] == pytest.approx(np.mean(chosen - rejected))
    assert values["mean_reward"] == pytest.approx(np.mean([chosen, rejected]))
    assert values["min_reward"] == min(chosen.min(), rejected.min())
    assert values["max_reward"] == max(chosen.max(), rejected.max())
    assert values["num_tokens"] == 6 * len(pairs)
    assert values["comparisons"] == len(pairs)


@given(pairs=pairs)
def test_swapping_labels_gives_one_minus_accuracy_minus_tie_rate(pairs):
    chosen, rejected = map(list, zip(*pairs, strict=True))
    straight, swapped = RewardMetrics(), RewardMetrics()
    straight.update(scored(chosen, rejected))
    swapped.update(scored(rejected, chosen))
    values = straight.compute()
    assert swapped.compute()["accuracy"] == pytest.approx(1 - values["accuracy"] - values["tie_rate"])


def test_a_short_last_batch_weighs_what_it_holds():
    metrics = RewardMetrics()
    metrics.update(scored([1.0] * 3 + [0.0] * 5, [0.0] * 3 + [1.0] * 5))
    metrics.update(scored([1.0], [0.0]))
    assert metrics.compute()["accuracy"] == pytest.approx(4 / 9)  # the mean of batch means would be 0.6875


def test_fillers_count_nowhere():
    metrics = RewardMetrics()
    metrics.update(scored([1.0, 99.0], [0.0, -99.0], loss=[0.5, 50.0], weight=[1.0, 0.0], lengths=[2, 8, 3, 9]))
    values = metrics.compute()
    assert (values["accuracy"], values["loss"], values["max_reward"], values["min_reward"]) == (1, 0.5, 1, 0)
    assert (values["num_tokens"], values["comparisons"]) == (5, 1)


def test_filler_rewards_that_are_no_numbers_do_not_leak():
    metrics = RewardMetrics()
    metrics.update(scored([1.0, math.nan], [0.0, math.inf], loss=[0.5, math.nan], weight=[1.0, 0.0]))
    assert all(math.isfinite(value) for value in metrics.compute().values())


def test_a_reward_that_is_no_number_shows():
    metrics = RewardMetrics()
    metrics.update(scored([math.nan, 1.0], [0.0, 0.0]))
    values = metrics.compute()
    assert math.isnan(values["mean_reward"])
    assert math.isnan(values["max_reward"])


def test_totals_restore_to_the_same_metrics_and_go_on():
    first = RewardMetrics()
    first.update(scored([1.0, 0.1], [0.3, 0.2], loss=[0.1, 0.7]))
    second = RewardMetrics()
    second.restore(first.totals())
    for metrics in (first, second):
        metrics.update(scored([2.0], [5.0], loss=[3.3]))
    assert first.compute() == second.compute()


def test_gathering_adds_processes_up():
    metrics, remote = RewardMetrics(), RewardMetrics()
    metrics.update(scored([1.0], [0.0], loss=[0.5]))
    remote.update(scored([0.0, 0.0], [4.0, 1.0], loss=[1.0, 1.5]))
    theirs = torch.tensor([remote.totals()], dtype=torch.float64)
    values = metrics.compute(gather=lambda mine: torch.cat((mine, theirs)))
    assert (values["loss"], values["accuracy"], values["max_reward"]) == pytest.approx((1.0, 1 / 3, 4.0))


def test_nothing_added_gives_nothing():
    assert RewardMetrics().compute() == {}


@pytest.mark.parametrize(
    ("successes", "trials", "expected"),
    # By hand from the formula, z = 1.96: R's binom::binom.wilson gives the same.
    [(50, 100, (0.40383, 0.59617)), (0, 10, (0.0, 0.27753)), (10, 10, (0.72247, 1.0)), (0, 0, (0.0, 1.0))],
)
def test_wilson_interval(successes, trials, expected):
    assert wilson_interval(successes, trials) == pytest.approx(expected, abs=1e-5)


# --- any number of responses

VALUES = [-1.0, 0.0, 0.5, 2.0]
rankings = st.lists(
    st.lists(st.tuples(st.sampled_from(VALUES), st.integers(0, 2)), min_size=1, max_size=4), min_size=1, max_size=8
)


def listed(examples, *, pointwise=None, tie_width=None, fillers=0) -> Scored:
    """A batch of examples, each a list of (reward, score), the last `fillers` of which are none."""
    responses = [(g, n, *response) for g, example in enumerate(examples) for n, response in enumerate(example)]
    responses.sort(key=lambda response: (response[1], response[0]))  # as the padded layout has them
    owners = [g for g, *_ in responses]
    scores = [score for *_, score in responses]
    real = [g < len(examples) - fillers for g in owners]
    places = range(len(responses))
    same = [(i, j) for i in places for j in places if owners[i] == owners[j]]
    pairs = [(i, j, 1.0) for i, j in same if scores[i] > scores[j]]
    if tie_width is not None:
        pairs += [(i, j, 0.5) for i, j in same if i < j and scores[i] == scores[j]]
    better, worse, preference_prob = [torch.tensor([pair[k] for pair in pairs]) for k in range(3)]
    real_N = torch.tensor(real)
    return Scored(
        rewards_N=torch.tensor([reward for _, _, reward, _ in responses]),
        lengths_N=torch.ones(len(responses)),
        real_N=real_N,
        example_N=torch.tensor(owners),
        scores_N=torch.tensor(scores).float(),
        better_P=better.long(),
        worse_P=worse.long(),
        real_P=real_N[better.long()],
        loss=torch.tensor(0.0),
        count=torch.tensor(float(len(examples) - fillers)),
        tokens_computed=1,
        preference_prob_P=None if tie_width is None else preference_prob,
        tie_width=None if tie_width is None else torch.tensor([tie_width]),
        pointwise=pointwise,
        listed=True,
    )


def computed(examples, cut, **settings):
    metrics = RewardMetrics()
    for start in range(0, len(examples), cut):
        part = examples[start : start + cut]
        # A filler behind each batch, of a row that is there already.
        metrics.update(listed([*part, part[-1]], fillers=1, **settings))
    return metrics.compute()


@settings(max_examples=80, deadline=None)
@given(examples=rankings, cut=st.integers(1, 4))
def test_any_batching_gives_the_metrics_of_all_rankings(examples, cut):
    taus, best, decided, tied = [], [], [], []
    for example in examples:
        rewards, scores = zip(*example, strict=True)
        pairs = [(i, j) for i in range(len(scores)) for j in range(len(scores))]
        decided += [rewards[i] > rewards[j] for i, j in pairs if scores[i] > scores[j]]
        tied += [abs(rewards[i] - rewards[j]) < 0.75 for i, j in pairs if i < j and scores[i] == scores[j]]
        if len(set(scores)) > 1:
            taus.append(kendalltau(rewards, scores).statistic if len(set(rewards)) > 1 else 0.0)
            top = [score for reward, score in example if reward == max(rewards)]
            best.append(np.mean([score == max(scores) for score in top]))
    values = computed(examples, cut, tie_width=0.75)
    for name, expected in (
        ("kendall_tau", taus),
        ("best_of_n_accuracy", best),
        ("accuracy", decided),
        ("tie_accuracy", tied),
    ):
        assert (name in values) == bool(expected), name
        if expected:
            assert values[name] == pytest.approx(np.mean(expected), abs=1e-6), name


ratings = st.lists(st.tuples(st.floats(-9, 9, width=32), st.floats(1, 5, width=32)), min_size=2, max_size=12)


@settings(max_examples=80, deadline=None)
@given(responses=ratings, cut=st.integers(1, 4))
def test_any_batching_gives_the_metrics_of_all_ratings(responses, cut):
    rewards, given_ratings = np.array(responses, dtype=np.float64).T
    values = computed([[response] for response in responses], cut, pointwise="ratings")
    assert values["mse"] == pytest.approx(np.mean((rewards - given_ratings) ** 2), rel=1e-9, abs=1e-12)
    if min(np.std(rewards) / np.abs(rewards).max(initial=1e-9), np.std(given_ratings)) > 1e-3:
        assert values["correlation"] == pytest.approx(pearsonr(rewards, given_ratings).statistic, abs=1e-6)
    assert -1 <= values["correlation"] <= 1
    assert "accuracy" not in values
    assert "kendall_tau" not in values


def test_what_does_not_vary_is_correlated_with_nothing():
    for reward, rating in ((0.1, 0.3), (1e6 + 0.1, 5.0)):
        assert computed([[(reward, rating)]] * 7, 2, pointwise="ratings")["correlation"] == 0.0
    assert math.isnan(computed([[(math.nan, 1.0)], [(0.0, 2.0)]], 1, pointwise="ratings")["correlation"])


@given(
    responses=st.lists(st.tuples(st.sampled_from(VALUES), st.booleans()), min_size=1, max_size=9), cut=st.integers(1, 4)
)
def test_any_batching_gives_the_accuracy_of_all_labels(responses, cut):
    values = computed([[(reward, float(label))] for reward, label in responses], cut, pointwise="labels")
    assert values["accuracy"] == pytest.approx(np.mean([(reward > 0) == label for reward, label in responses]))


def test_rankings_ties_and_ratings_survive_a_round_trip():
    examples = [[(2.0, 1), (0.5, 2), (0.5, 0)], [(0.0, 1), (0.0, 1)], [(1.0, 2), (-1.0, 0)]]
    first = RewardMetrics()
    first.update(listed(examples, pointwise="ratings", tie_width=0.5))
    second = RewardMetrics()
    second.restore(first.totals())
    for metrics in (first, second):
        metrics.update(listed(examples[::-1], pointwise="ratings", tie_width=0.5))
    assert first.compute() == second.compute()
    assert {"kendall_tau", "best_of_n_accuracy", "tie_accuracy", "mse", "correlation"} <= first.compute().keys()


def test_soft_labels_below_one_half_reverse_a_pair():
    batch = dataclasses.replace(
        scored([2.0, 2.0, 2.0], [1.0, 1.0, 1.0]), preference_prob_P=torch.tensor([0.9, 0.2, 0.5])
    )
    metrics = RewardMetrics()
    metrics.update(batch)
    values = metrics.compute()
    assert (values["accuracy"], values["margin"], values["comparisons"]) == (0.5, 0.0, 2)
