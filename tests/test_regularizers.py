"""Regularisers against SciPy, NumPy and the models' own code; their symmetries; their limits in float32."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from scipy.special import softmax
from scipy.stats import pearsonr
from transformers.models.mixtral import modeling_mixtral

from plaudit.losses import center_rewards_penalty, length_correlation, load_balancing_loss

rewards = st.floats(-50, 50)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- reward centering -------------------------------------------------------------------------------------------


@settings(max_examples=20, derandomize=True, deadline=None)
@given(better=rewards, worse=rewards)
def test_centering_of_a_pair_is_the_squared_sum(better, worse):
    penalty = center_rewards_penalty(tensor(1.0, better, -3.0, worse), torch.tensor([0, 1, 0, 1]), 2)
    assert penalty.tolist() == pytest.approx([4.0, (better + worse) ** 2])


def test_centering_is_four_times_the_squared_mean_of_each_example():
    example, values = torch.tensor([0, 2, 1, 0, 2, 0, 2, 2]), randn(8)
    penalty = center_rewards_penalty(values, example, 3)
    expected = [4 * np.mean(values[example == g].numpy()) ** 2 for g in range(3)]
    np.testing.assert_allclose(penalty.numpy(), expected, rtol=1e-9)
    leaf = values.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: center_rewards_penalty(r, example, 3), (leaf,))


@settings(max_examples=20, derandomize=True, deadline=None)
@given(order=st.permutations(range(8)))
def test_permuting_responses_changes_no_centering(order):
    example, values = torch.tensor([0, 2, 1, 0, 2, 0, 2, 2]), randn(8)
    penalty = center_rewards_penalty(values[list(order)], example[list(order)], 3)
    torch.testing.assert_close(penalty, center_rewards_penalty(values, example, 3))


def test_centering_stays_finite_as_far_as_a_square_does():
    # The largest float32 is 3e38: a square overflows beyond 1e19 by its nature, unless the rewards cancel.
    values = torch.tensor([1e18, 1e18, 1e30, -1e30, -1e4, 1e4], requires_grad=True)
    penalty = center_rewards_penalty(values, torch.tensor([0, 0, 1, 1, 2, 2]), 3)
    penalty.sum().backward()
    assert torch.isfinite(penalty).all()
    assert torch.isfinite(values.grad).all()


@pytest.mark.parametrize("shapes", [((3, 1), (3,)), ((4,), (3,)), ((3,), (4,))])
def test_centering_refuses_other_shapes(shapes):
    with pytest.raises(RuntimeError):
        center_rewards_penalty(torch.ones(shapes[0]), torch.zeros(shapes[1], dtype=torch.long), 1)


# ---- correlation with length ------------------------------------------------------------------------------------


def test_length_correlation_is_pearsons():
    values, lengths = randn(12), torch.arange(12) ** 2 + 5
    expected = pearsonr(values.numpy(), lengths.numpy()).statistic
    assert length_correlation(values, lengths, torch.ones(12)).item() == pytest.approx(expected, abs=1e-9)
    assert torch.autograd.gradcheck(
        lambda r: length_correlation(r, lengths, torch.ones(12)), (values.clone().requires_grad_(),)
    )


def test_length_correlation_leaves_fillers_out():
    values, lengths = randn(12).float(), torch.arange(12) ** 2 + 5
    real = torch.tensor([0, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0])
    values[real == 0] = 1e30
    leaf = values.clone().requires_grad_()
    correlation = length_correlation(leaf, lengths, real)
    expected = pearsonr(values[real == 1].numpy(), lengths[real == 1].numpy()).statistic
    assert correlation.item() == pytest.approx(expected, abs=1e-6)
    correlation.backward()
    assert (leaf.grad[real == 0] == 0).all()
    assert (leaf.grad[real == 1] != 0).all()


@settings(max_examples=50, derandomize=True, deadline=None)
@given(
    shift=st.floats(-100, 100),
    factor=st.floats(0.01, 100),
    sign=st.sampled_from([1, -1]),
    order=st.permutations(range(8)),
)
def test_length_correlation_knows_no_origin_unit_or_order(shift, factor, sign, order):
    values, lengths, order = randn(8), torch.arange(8) ** 2, list(order)
    expected = sign * length_correlation(values, lengths, torch.ones(8)).item()
    changed = length_correlation(sign * factor * values[order] + shift, lengths[order], torch.ones(8))
    assert changed.item() == pytest.approx(expected, abs=1e-6)


# 0.1 and 12345.67 are among those whose mean is rounded, so that less the mean they are not 0.
@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, -7.7, 12345.67, 1e30])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 12])
def test_length_correlation_of_equal_rewards_is_zero_and_pulls_nowhere(value, count):
    equal = torch.full((count,), value, requires_grad=True)
    correlation = length_correlation(equal, torch.arange(count) * 10, torch.ones(count))
    correlation.backward()
    assert correlation.item() == 0
    assert (equal.grad == 0).all()


def test_length_correlation_of_equal_lengths_or_fillers_alone_is_zero():
    values = randn(3).float().requires_grad_()
    for lengths, weights in ((torch.full((3,), 7), torch.ones(3)), (torch.arange(3), torch.zeros(3))):
        correlation = length_correlation(values, lengths, weights)
        (gradient,) = torch.autograd.grad(correlation, values)
        assert correlation.item() == 0
        assert (gradient == 0).all()


@pytest.mark.parametrize("unit", [1e-18, 1e4, 1e30])
def test_length_correlation_of_extreme_rewards_is_that_of_common_ones(unit):
    common, lengths = randn(6).float(), torch.tensor([1, 100_000, 30, 500, 7, 7])
    extreme = (common * unit).requires_grad_()
    correlation = length_correlation(extreme, lengths, torch.ones(6))
    correlation.backward()
    expected = pearsonr(common.numpy(), lengths.numpy()).statistic
    assert correlation.item() == pytest.approx(expected, abs=1e-5)
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.parametrize("shapes", [((3, 1), (3,), (3,)), ((3,), (3,), (1,)), ((3,), (1,), (3,)), ((), (), ())])
def test_length_correlation_refuses_shapes_that_would_broadcast(shapes):
    with pytest.raises(ValueError, match="one and the same 1-D shape"):
        length_correlation(*(torch.ones(shape) for shape in shapes))


# ---- load balancing ---------------------------------------------------------------------------------------------


def balance(layers: Sequence[np.ndarray], top_k: int, weight: np.ndarray) -> float:
    """Experts times the sum over choices and experts of share times mean probability, counted token by token."""
    experts, total = layers[0].shape[1], weight.sum() * len(layers)
    share, mean_probability = np.zeros((top_k, experts)), np.zeros(experts)
    for layer in layers:
        for scores, count in zip(layer, weight, strict=True):
            mean_probability += count * softmax(scores) / total
            for choice, expert in enumerate(np.argsort(-scores)[:top_k]):
                share[choice, expert] += count / total
    return float(experts * (share @ mean_probability).sum())


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_load_balancing_is_what_counting_gives(top_k, weighted):
    logits = randn(2, 6, 5, seed=3)
    weight = torch.tensor([1, 3, 0, 2, 1, 1]) if weighted else None
    counts = np.ones(6) if weight is None else weight.numpy().astype(float)
    leaf = logits.float().requires_grad_()
    loss = load_balancing_loss(list(leaf), top_k, weight)
    loss.backward()

    def of_flat(flat: np.ndarray) -> float:
        return balance(list(flat.reshape(2, 6, 5)), top_k, counts)

    values = leaf.detach().double().numpy().ravel()
    assert loss.item() == pytest.approx(of_flat(values), abs=1e-6)
    np.testing.assert_allclose(leaf.grad.numpy().ravel(), approx_fprime(values, of_flat, 1e-7), atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 2])
def test_load_balancing_is_that_of_mixtral(top_k):
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(6, 4, generator=generator) for _ in range(3)]
    expected = modeling_mixtral.load_balancing_loss_func(tuple(logits), 4, top_k)
    torch.testing.assert_close(load_balancing_loss(logits, top_k), expected)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    expected = modeling_mixtral.load_balancing_loss_func(tuple(logits), 4, top_k, mask)
    torch.testing.assert_close(load_balancing_loss(logits, top_k, mask.flatten()), expected)


def test_load_balancing_counts_a_shared_token_as_often_as_it_is_shared():
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    repeated = logits[torch.tensor([0, 0, 0, 1, 2, 2, 3])]
    weight = torch.tensor([3, 1, 2, 1])
    torch.testing.assert_close(load_balancing_loss([logits], 2, weight), load_balancing_loss([repeated], 2))


@settings(max_examples=20, derandomize=True, deadline=None)
@given(
    tokens=st.permutations(range(6)),
    experts=st.permutations(range(4)),
    shifts=st.lists(st.floats(-10, 10), min_size=6, max_size=6),
)
def test_load_balancing_knows_no_order_of_tokens_or_experts_and_no_origin(tokens, experts, shifts):
    logits, weight = randn(6, 4).float(), torch.arange(6)
    changed = (logits + torch.tensor(shifts)[:, None])[list(tokens)][:, list(experts)]
    torch.testing.assert_close(
        load_balancing_loss([changed], 2, weight[list(tokens)]), load_balancing_loss([logits], 2, weight)
    )


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_load_balancing_of_extreme_scores_stays_finite(size):
    logits = torch.tensor([[size, -size, 0.0], [0.0, size, -size], [size, 0.0, 0.0]], requires_grad=True)
    loss = load_balancing_loss([logits], 1)
    loss.backward()
    # Shares and mean probabilities are both (2/3, 1/3, 0).
    assert loss.item() == pytest.approx(3 * (4 / 9 + 1 / 9))
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("shape", [(4,), (2,), (3, 1), ()])
def test_load_balancing_refuses_weights_of_another_shape(shape):
    with pytest.raises(RuntimeError):
        load_balancing_loss([torch.zeros(3, 2)], 1, torch.ones(shape))
