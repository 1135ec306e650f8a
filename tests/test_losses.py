"""Losses against SciPy, scikit-learn and explicit probabilities; their symmetries; their limits in float32."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_expit, logsumexp
from sklearn.metrics import log_loss

from plaudit.losses import (
    binary_cross_entropy_loss,
    bradley_terry_loss,
    davidson_loss,
    hinge_loss,
    plackett_luce_loss,
    rao_kupper_loss,
    regression_loss,
    scaled_bradley_terry_loss,
)

reward = st.floats(-50, 50)
preference_prob = st.sampled_from([0.0, 0.2, 0.5, 0.9, 1.0])
EXTREMES = [0.0, -1e4, 1e4, -1e30, 1e30]


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_tensors(count: int, size: int = 20, scale: float = 3.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [scale * torch.randn(size, generator=generator, dtype=torch.float64) for _ in range(count)]


def random_preference_probs(size: int = 20) -> torch.Tensor:
    """Sure, unsure and tied comparisons."""
    preference_probs = torch.rand(size, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    preference_probs[::4], preference_probs[1::4] = 0.5, 1.0
    return preference_probs


def assert_equal(actual: torch.Tensor, expected: Any) -> None:
    np.testing.assert_allclose(actual.detach().numpy(), np.asarray(expected), rtol=1e-6, atol=1e-6)


def assert_gradient(loss: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    leaves = tuple(t.clone().requires_grad_() for t in inputs)
    assert torch.autograd.gradcheck(loss, leaves, atol=1e-6)


# ---- values and gradients ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_preference_prob", [False, True])
@pytest.mark.parametrize("with_margin", [False, True])
def test_bradley_terry_is_the_negative_log_likelihood(with_margin, with_preference_prob, label_smoothing):
    better, worse, margin = random_tensors(3)
    margin_P = margin if with_margin else None
    preference_prob_P = random_preference_probs() if with_preference_prob else None
    loss = partial(bradley_terry_loss, preference_prob_P=preference_prob_P, label_smoothing=label_smoothing)

    ahead = (better - worse - (margin if with_margin else 0)).numpy()
    p = preference_prob_P.numpy() if with_preference_prob else np.ones(20)
    # The label is flipped with probability label_smoothing.
    p = p * (1 - label_smoothing) + (1 - p) * label_smoothing
    assert_equal(loss(better, worse, margin_P), -p * log_expit(ahead) - (1 - p) * log_expit(-ahead))
    assert_gradient(loss, better, worse, *([margin] if with_margin else []))


def test_bradley_terry_with_preference_probs_is_the_log_loss_of_a_sample_with_these_shares():
    better, worse = random_tensors(2)
    p = random_preference_probs().numpy()
    chance = 1 / (1 + np.exp((worse - better).numpy()))
    expected = log_loss(
        np.repeat([1, 0], 20), np.concatenate([chance, chance]), sample_weight=np.concatenate([p, 1 - p])
    )
    assert_equal(bradley_terry_loss(better, worse, preference_prob_P=torch.from_numpy(p)).mean(), expected)


def test_bradley_terry_gradient_is_the_probability_of_the_other_answer():
    better, worse = random_tensors(2)
    better.requires_grad_()
    bradley_terry_loss(better, worse).sum().backward()
    assert_equal(better.grad, -np.exp(log_expit((worse - better).detach().numpy())))


def test_scaled_bradley_terry_weighs_by_the_margin_and_does_not_subtract_it():
    better, worse, margin = random_tensors(3)
    margin = margin.abs()
    expected = -margin.numpy() * log_expit((better - worse).numpy())
    assert_equal(scaled_bradley_terry_loss(better, worse, margin), expected)
    assert_gradient(scaled_bradley_terry_loss, better, worse, margin)


def rao_kupper_probabilities(better: torch.Tensor, worse: torch.Tensor, theta: float) -> tuple[np.ndarray, ...]:
    """Win, tie and loss, as the paper writes them: with worths pi and rho = exp(r) and a threshold theta."""
    pi, rho = np.exp(better.numpy()), np.exp(worse.numpy())
    win, loss = pi / (pi + theta * rho), rho / (rho + theta * pi)
    return win, pi * rho * (theta**2 - 1) / ((pi + theta * rho) * (theta * pi + rho)), loss


def davidson_probabilities(better: torch.Tensor, worse: torch.Tensor, nu: float) -> tuple[np.ndarray, ...]:
    pi, rho = np.exp(better.numpy()), np.exp(worse.numpy())
    total = pi + rho + nu * np.sqrt(pi * rho)
    return pi / total, nu * np.sqrt(pi * rho) / total, rho / total


TIE_MODELS = [
    pytest.param(rao_kupper_loss, rao_kupper_probabilities, 1.7, id="rao_kupper"),
    pytest.param(davidson_loss, davidson_probabilities, 0.6, id="davidson"),
]


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize(("loss", "probabilities", "parameter"), TIE_MODELS)
def test_losses_with_ties_are_the_negative_log_likelihood(loss, probabilities, parameter, shape):
    better, worse = random_tensors(2)
    log_parameter = torch.full(shape, parameter, dtype=torch.float64).log()
    win, tie, lose = probabilities(better, worse, parameter)
    p = random_preference_probs().numpy()
    expected = np.where(p == 0.5, -np.log(tie), -p * np.log(win) - (1 - p) * np.log(lose))
    assert_equal(loss(better, worse, log_parameter, torch.from_numpy(p)), expected)
    assert_equal(loss(better, worse, log_parameter), -np.log(win))
    assert_gradient(lambda b, w, t: loss(b, w, t, torch.from_numpy(p)), better, worse, log_parameter)
    assert_gradient(loss, better, worse, log_parameter)


@pytest.mark.parametrize(("loss", "log_parameters"), [(rao_kupper_loss, (0.01, 6)), (davidson_loss, (-6, 6))])
@settings(max_examples=50, derandomize=True, deadline=None)
@given(data=st.data())
def test_the_probabilities_of_win_tie_and_loss_sum_to_one(loss, log_parameters, data):
    better, worse = tensor(data.draw(reward)), tensor(data.draw(reward))
    parameter = torch.tensor(data.draw(st.floats(*log_parameters)), dtype=torch.float64)
    chances = [torch.exp(-loss(better, worse, parameter, tensor(p))) for p in (1.0, 0.5, 0.0)]
    assert sum(chances).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("with_margin", [False, True])
def test_hinge_is_the_shortfall(with_margin):
    better, worse, margin = random_tensors(3)
    margins = [margin] if with_margin else []
    wanted = margin.numpy() if with_margin else np.ones(20)
    expected = [max(0.0, m - b + w) for b, w, m in zip(better.tolist(), worse.tolist(), wanted, strict=True)]
    assert 0 < expected.count(0.0) < 20
    assert_equal(hinge_loss(better, worse, *margins), expected)
    assert_gradient(hinge_loss, better, worse, *margins)


# Examples of 5, 1, 4 and 2 responses, interleaved; the first and the third with ties.
EXAMPLE = torch.tensor([0, 2, 0, 3, 1, 0, 2, 0, 2, 3, 0, 2])
SCORES = tensor(3, 1, 3, 0, 9, 1, 1, 1, 2, 5, 4, 0)


@pytest.mark.parametrize("top_k", [None, 1, 2, 3])
def test_plackett_luce_is_the_log_probability_of_each_choice(top_k):
    rewards = random_tensors(1, len(EXAMPLE))[0]
    expected = []
    for i, (example, score) in enumerate(zip(EXAMPLE, SCORES, strict=True)):
        others = [j for j in range(len(EXAMPLE)) if EXAMPLE[j] == example]
        below = [rewards[j].item() for j in others if SCORES[j] < score]
        rank = sum(SCORES[j] > score for j in others)
        counts = top_k is None or rank < top_k
        expected.append(logsumexp([rewards[i].item(), *below]) - rewards[i].item() if counts else 0.0)
    loss = partial(plackett_luce_loss, scores_N=SCORES, example_of_response=EXAMPLE, top_k=top_k)
    assert_equal(loss(rewards), expected)
    assert_gradient(loss, rewards)


def ranking_probability(order: Sequence[int], worths: np.ndarray) -> float:
    """Draw without replacement in proportion to worth, and be drawn in this order."""
    probability, left = 1.0, float(worths.sum())
    for response in order:
        probability *= worths[response] / left
        left -= worths[response]
    return probability


@pytest.mark.parametrize("top_k", [None, 1, 2])
def test_plackett_luce_is_the_likelihood_of_a_ranking_among_all_rankings(top_k):
    rewards = random_tensors(1, 4, scale=1.0)[0]
    orders = list(itertools.permutations(range(4)))
    chances = [ranking_probability(order, rewards.exp().numpy()) for order in orders]
    assert sum(chances) == pytest.approx(1)
    for order in orders:
        # A ranking of the best k only is any full ranking that begins with them.
        expected = sum(c for full, c in zip(orders, chances, strict=True) if full[:top_k] == order[:top_k])
        scores = tensor(*(-order.index(response) for response in range(4)))
        loss = plackett_luce_loss(rewards, scores, torch.zeros(4, dtype=torch.long), top_k)
        assert torch.exp(-loss.sum()).item() == pytest.approx(expected, abs=1e-9)


def test_regression_is_the_squared_error():
    rewards, ratings = random_tensors(2)
    expected = [(r - g) * (r - g) for r, g in zip(rewards.tolist(), ratings.tolist(), strict=True)]
    assert_equal(regression_loss(rewards, ratings), expected)
    assert_gradient(regression_loss, rewards, ratings)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_binary_cross_entropy_is_the_log_loss(label_smoothing):
    rewards = random_tensors(1)[0]
    p = random_preference_probs().numpy()
    loss = partial(binary_cross_entropy_loss, labels_N=torch.from_numpy(p), label_smoothing=label_smoothing)
    p = p * (1 - label_smoothing) + (1 - p) * label_smoothing
    assert_equal(loss(rewards), -p * log_expit(rewards.numpy()) - (1 - p) * log_expit(-rewards.numpy()))
    assert_gradient(loss, rewards)

    chance = 1 / (1 + np.exp(-rewards.numpy()))
    expected = log_loss(
        np.repeat([1, 0], 20), np.concatenate([chance, chance]), sample_weight=np.concatenate([p, 1 - p])
    )
    assert_equal(loss(rewards).mean(), expected)


# ---- symmetries -------------------------------------------------------------------------------------------------

THREE = tensor(1.0, 0.5, 0.2)
ETA = torch.tensor(0.4, dtype=torch.float64)

COMPARISON_LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "bradley_terry": bradley_terry_loss,
    "bradley_terry_soft": partial(bradley_terry_loss, margin_P=THREE, preference_prob_P=THREE, label_smoothing=0.1),
    "scaled_bradley_terry": partial(scaled_bradley_terry_loss, margin_P=THREE),
    "rao_kupper": partial(rao_kupper_loss, log_threshold=ETA, preference_prob_P=THREE),
    "davidson": partial(davidson_loss, log_tie_weight=ETA, preference_prob_P=THREE),
    "hinge": hinge_loss,
    "hinge_margin": partial(hinge_loss, margin_P=THREE),
}
three_rewards = st.lists(reward, min_size=3, max_size=3).map(lambda values: tensor(*values))


@pytest.mark.parametrize("name", COMPARISON_LOSSES)
@settings(max_examples=50, derandomize=True, deadline=None)
@given(better=three_rewards, worse=three_rewards, shifts=st.lists(st.floats(-100, 100), min_size=3, max_size=3))
def test_adding_a_constant_to_all_rewards_of_a_prompt_changes_no_comparison(name, better, worse, shifts):
    loss = COMPARISON_LOSSES[name]
    assert_equal(loss(better + tensor(*shifts), worse + tensor(*shifts)), loss(better, worse))


@settings(max_examples=50, derandomize=True, deadline=None)
@given(
    rewards=st.lists(reward, min_size=12, max_size=12),
    shifts=st.lists(st.floats(-100, 100), min_size=4, max_size=4),
    top_k=st.sampled_from([None, 1, 2]),
)
def test_adding_a_constant_to_all_rewards_of_a_prompt_changes_no_ranking(rewards, shifts, top_k):
    shifted = tensor(*rewards) + tensor(*shifts)[EXAMPLE]
    expected = plackett_luce_loss(tensor(*rewards), SCORES, EXAMPLE, top_k)
    assert_equal(plackett_luce_loss(shifted, SCORES, EXAMPLE, top_k), expected)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(
    rewards=st.lists(reward, min_size=12, max_size=12),
    order=st.permutations(range(12)),
    names=st.permutations(range(4)),
    top_k=st.sampled_from([None, 1, 2]),
)
def test_permuting_responses_and_examples_changes_no_ranking(rewards, order, names, top_k):
    rewards, permuted = tensor(*rewards), torch.tensor(order)
    example = torch.tensor(names)[EXAMPLE]
    loss = plackett_luce_loss(rewards[permuted], SCORES[permuted], example[permuted], top_k)
    assert_equal(loss, plackett_luce_loss(rewards, SCORES, EXAMPLE, top_k)[permuted])


@settings(max_examples=50, derandomize=True, deadline=None)
@given(scores=st.lists(st.integers(0, 3), min_size=12, max_size=12))
def test_only_the_order_of_scores_matters_to_a_ranking(scores):
    rewards = random_tensors(1, 12)[0]
    loss = plackett_luce_loss(rewards, tensor(*scores), EXAMPLE)
    assert_equal(plackett_luce_loss(rewards, tensor(*scores) ** 3 * 10 - 5, EXAMPLE), loss)


@pytest.mark.parametrize(
    "loss",
    [
        lambda b, w, m, s: bradley_terry_loss(b, w, m, preference_prob_P=s, label_smoothing=0.1),
        lambda b, w, m, s: bradley_terry_loss(b, w, m, preference_prob_P=s),
        lambda b, w, m, s: rao_kupper_loss(b, w, ETA, s),
        lambda b, w, m, s: davidson_loss(b, w, ETA, s),
    ],
    ids=["bradley_terry_smoothed", "bradley_terry", "rao_kupper", "davidson"],
)
@settings(max_examples=50, derandomize=True, deadline=None)
@given(better=reward, worse=reward, margin=st.floats(-5, 5), share=preference_prob)
def test_swapping_the_responses_and_the_preference_prob_changes_nothing(loss, better, worse, margin, share):
    swapped = loss(tensor(worse), tensor(better), tensor(-margin), tensor(1 - share))
    assert_equal(swapped, loss(tensor(better), tensor(worse), tensor(margin), tensor(share)))


@settings(max_examples=50, derandomize=True, deadline=None)
@given(better=reward, worse=reward, share=st.sampled_from([0.0, 0.3, 1.0]))
def test_without_ties_the_tie_models_are_bradley_terry(better, worse, share):
    better, worse, share = tensor(better), tensor(worse), tensor(share)
    expected = bradley_terry_loss(better, worse, preference_prob_P=share)
    assert_equal(rao_kupper_loss(better, worse, torch.tensor(1e-12), share), expected)
    assert_equal(rao_kupper_loss(better, worse, torch.tensor(0.0), share), expected)
    assert_equal(davidson_loss(better, worse, torch.tensor(-100.0), share), expected)


@settings(max_examples=50, derandomize=True, deadline=None)
@given(better=reward, worse=reward, top_k=st.sampled_from([None, 1, 2]), chosen_first=st.booleans())
def test_plackett_luce_of_two_is_bradley_terry(better, worse, top_k, chosen_first):
    rewards, scores = (tensor(better, worse), tensor(1, 0))
    if not chosen_first:
        rewards, scores = rewards.flip(0), scores.flip(0)
    loss = plackett_luce_loss(rewards, scores, torch.zeros(2, dtype=torch.long), top_k)
    assert_equal(loss.sum(), bradley_terry_loss(tensor(better), tensor(worse)).item())


# ---- extremes in float32 ----------------------------------------------------------------------------------------


def assert_finite(loss: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """The loss, whose sum and gradients are finite in float32."""
    leaves = [t.clone().requires_grad_() for t in inputs]
    value = loss(*leaves)
    value.sum().backward()
    assert value.dtype == torch.float32
    assert all(t is not None and torch.isfinite(t).all() for t in (value.sum(), *(leaf.grad for leaf in leaves)))
    return value.detach()


@pytest.mark.parametrize("share", [None, 0.0, 0.5, 0.7, 1.0])
def test_extreme_rewards_stay_finite(share):
    preference_prob_P = None if share is None else torch.tensor([share])
    labels = torch.tensor([0.5 if share is None else share])
    p = 0.9 if share is None else 0.1 + 0.8 * share
    for better, worse in itertools.product(EXTREMES, repeat=2):
        rewards = torch.tensor([better]), torch.tensor([worse])
        loss = assert_finite(
            partial(bradley_terry_loss, preference_prob_P=preference_prob_P, label_smoothing=0.1), *rewards
        )
        ahead = better - worse
        assert loss.item() == pytest.approx(-p * log_expit(ahead) - (1 - p) * log_expit(-ahead), rel=1e-5)
        assert_finite(partial(bradley_terry_loss, preference_prob_P=preference_prob_P), *rewards)
        assert_finite(bradley_terry_loss, *rewards, torch.tensor([1e30]))
        assert_finite(scaled_bradley_terry_loss, *rewards, torch.tensor([3.0]))
        assert_finite(hinge_loss, *rewards, torch.tensor([1e30]))
        assert_finite(partial(binary_cross_entropy_loss, labels_N=labels, label_smoothing=0.1), rewards[0])


# Below 1e-38 float32 loses digits; the slope of a tie's log-likelihood is 1/eta there, which no float32 holds.
@pytest.mark.parametrize(
    ("loss", "parameter"),
    [(rao_kupper_loss, eta) for eta in (0.0, 1e-45, 1e-38, 1e-8, 1e4, 1e30)]
    + [(davidson_loss, log_nu) for log_nu in (-1e30, -1e4, 0.0, 1e4, 1e30)],
)
def test_extreme_rewards_and_tie_parameters_stay_finite(loss, parameter):
    for ahead, share in itertools.product(EXTREMES, (None, 0.0, 0.5, 0.7, 1.0)):
        preference_prob_P = None if share is None else torch.tensor([share, share])
        rewards = torch.tensor([ahead, 0.0]), torch.zeros(2)
        value = assert_finite(partial(loss, preference_prob_P=preference_prob_P), *rewards, torch.tensor(parameter))
        assert (value >= 0).all(), (ahead, share)


def test_a_tie_is_certain_to_float32_where_the_threshold_is_wide():
    # Written as log(theta^2 - 1) and two large sigmoids, the terms cancel and lose the digits.
    better, worse, tie = torch.tensor([100.0, 0.3]), torch.zeros(2), torch.full((2,), 0.5)
    loss = rao_kupper_loss(better, worse, torch.tensor(100.0), tie)
    np.testing.assert_allclose(loss.numpy(), [np.log(2), 0], atol=1e-6)


def test_a_threshold_of_zero_leaves_the_gradient_of_decided_comparisons_alone():
    eta = torch.tensor(0.0, requires_grad=True)
    rao_kupper_loss(torch.tensor([1.0]), torch.tensor([0.0]), eta, torch.tensor([1.0])).sum().backward()
    assert eta.grad.item() == pytest.approx(1 / (1 + np.e))


@pytest.mark.parametrize("top_k", [None, 1])
@pytest.mark.parametrize("scores", [(4.0, 3, 2, 1, 0), (0.0, 1, 2, 3, 4), (1.0, 1, 0, 0, 2), (0.0, 0, 0, 0, 0)])
def test_extreme_rewards_stay_finite_in_rankings(scores, top_k):
    same = torch.zeros(5, dtype=torch.long)
    loss = partial(plackett_luce_loss, scores_N=torch.tensor(scores), example_of_response=same, top_k=top_k)
    assert_finite(loss, torch.tensor(EXTREMES))


def test_extreme_rewards_stay_finite_in_regression_as_far_as_their_square_does():
    # The largest float32 is 3e38: squared errors overflow beyond 1e19 by their nature.
    assert_finite(regression_loss, torch.tensor([1e18, -1e18, 1e4]), torch.tensor([-1e4, 1e18, 1e18]))


# ---- shapes -----------------------------------------------------------------------------------------------------

TIE_PARAMETER = torch.tensor(0.5)


@pytest.mark.parametrize("shapes", [((3, 1), (3, 1), (3,)), ((3,), (3,), (3, 1)), ((3,), (2,), (3,)), ((), (), ())])
@pytest.mark.parametrize(
    "loss",
    [
        bradley_terry_loss,
        lambda a, b, c: bradley_terry_loss(a, b, preference_prob_P=c),
        scaled_bradley_terry_loss,
        lambda a, b, c: rao_kupper_loss(a, b, TIE_PARAMETER, c),
        lambda a, b, c: davidson_loss(a, b, TIE_PARAMETER, c),
        hinge_loss,
        lambda a, b, c: plackett_luce_loss(a, b, c.long()),
    ],
    ids=["bradley_terry", "preference_prob", "scaled", "rao_kupper", "davidson", "hinge", "plackett_luce"],
)
def test_shapes_that_would_broadcast_are_refused(loss, shapes):
    with pytest.raises(ValueError, match="one and the same 1-D shape"):
        loss(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("shapes", [((3, 1), (3,)), ((3,), (1,)), ((3, 1), (3, 1)), ((), ())])
@pytest.mark.parametrize(
    "loss",
    [
        bradley_terry_loss,
        hinge_loss,
        lambda a, b: rao_kupper_loss(a, b, TIE_PARAMETER),
        lambda a, b: davidson_loss(a, b, TIE_PARAMETER),
        regression_loss,
        binary_cross_entropy_loss,
    ],
    ids=["bradley_terry", "hinge", "rao_kupper", "davidson", "regression", "binary_cross_entropy"],
)
def test_two_shapes_that_would_broadcast_are_refused(loss, shapes):
    with pytest.raises(ValueError, match="one and the same 1-D shape"):
        loss(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("loss", [rao_kupper_loss, davidson_loss])
def test_a_tie_parameter_for_each_comparison_is_refused(loss):
    with pytest.raises(RuntimeError, match="invalid for input of size 3"):
        loss(torch.zeros(3), torch.zeros(3), torch.ones(3))
