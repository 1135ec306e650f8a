"""Attention on a CPU without masks and copies: the same as the loop over responses, and only where it may be used."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.model import cpu_tree as module
from plaudit.model.attention import SharedPrefixLayout, shared_prefix_attention
from plaudit.model.cpu_tree import tree_attention, tree_attention_applies
from plaudit.model.varlen import AttentionSettings
from plaudit.prefix_tree import PrefixTree, share_prefixes
from plaudit.schema import EncodedExample
from tolerances import BFLOAT16, rounding

TREE = PrefixTree(
    # A beginning of two prompts; a response that leaves right after it; a response alone; two without a prompt.
    ((9, -1, 5), (3, 0, 2), (6, 1, 1), (1, 1, 1), (5, 0, 2), (4, 4, 1), (2, 4, 1), (1, 0, 1), (70, -1, 1), (2, -1, 1))
)


def drawn(tree, dtype=torch.float64, heads=4, key_heads=2, size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(1, n, tree.tokens, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for n in (heads, key_heads, key_heads)
    ]


def by_the_loop(inputs, tree, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("plaudit.model.attention.tree_attention_applies", lambda *args, **kwargs: False)
        return shared_prefix_attention(*inputs, SharedPrefixLayout(tree), AttentionSettings(0.3))


def gradients(output, inputs):
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad((output.double() * weight).sum(), inputs)


@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_those_of_the_loop(key_heads, dtype, monkeypatch):
    allowed = BFLOAT16.share if dtype == torch.bfloat16 else rounding(512, 3, dtype)
    inputs = drawn(TREE, dtype, key_heads=key_heads)
    found = tree_attention(*inputs, TREE, 0.3)
    assert found.dtype == dtype
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    expected = by_the_loop(exact, TREE, monkeypatch)
    pairs = zip((found, *gradients(found, inputs)), (expected, *gradients(expected, exact)), strict=True)
    for tensor, reference in pairs:
        assert tensor.shape == reference.shape
        assert (tensor.double() - reference).abs().max() <= allowed * reference.abs().max()


def test_gradients_are_those_of_differences():
    tree = PrefixTree(((2, -1, 3), (2, 0, 2), (1, 1, 1), (2, 1, 1), (1, 0, 1)))
    inputs = drawn(tree, size=8)
    torch.autograd.gradcheck(lambda *tensors: tree_attention(*tensors, tree, 0.3), inputs)


beginnings = st.sampled_from([(), (1,) * 9, (1,) * 9 + (2,) * 9, (3,) * 20])
responses = st.builds(
    lambda start, rest: [*start, *rest], beginnings, st.lists(st.integers(1, 3), min_size=1, max_size=5)
)


@settings(max_examples=60, derandomize=True, deadline=None)
@given(ids=st.lists(st.lists(responses, min_size=1, max_size=3), min_size=1, max_size=4))
def test_of_any_batch_each_response_reads_its_own_tokens_only(ids):
    tree = share_prefixes([EncodedExample(tuple(responses)) for responses in ids]).tree
    query, key, value = drawn(tree)
    found = tree_attention(query, key, value, tree, 0.3)[0].transpose(0, 1)
    for path in tree.paths:
        places = [tree.starts[node] + t for node in path for t in range(tree.lengths[node])]
        alone = torch.nn.functional.scaled_dot_product_attention(
            query[:, :, places], key[:, :, places], value[:, :, places], is_causal=True, scale=0.3, enable_gqa=True
        )
        torch.testing.assert_close(found[:, places], alone[0], rtol=0, atol=rounding(512, 3, torch.float64))


def test_it_is_used_where_it_can_be_and_only_there(monkeypatch):
    inputs = drawn(TREE)
    used = []
    monkeypatch.setattr("plaudit.model.attention.tree_attention", lambda *args: used.append(1) or tree_attention(*args))
    layout = SharedPrefixLayout(TREE)
    cases = [
        ({}, 1),
        ({"sliding_window": 70}, 1),
        ({"sliding_window": 69}, 0),
        ({"softcap": 5.0}, 0),
        ({"sinks": torch.zeros(4, dtype=torch.float64)}, 0),
        ({"dropout": 0.1}, 0),
    ]
    for options, times in cases:
        used.clear()
        shared_prefix_attention(*inputs, layout, AttentionSettings(0.3, **options))
        assert len(used) == times, options
    used.clear()
    shared_prefix_attention(*inputs[:2], inputs[2][..., :4], layout, AttentionSettings(0.3))
    assert not used


def test_kernels_that_are_gone_or_wrong_are_not_used(monkeypatch):
    query, _, value = drawn(TREE)
    call = (query, value, TREE, AttentionSettings(0.3))
    assert tree_attention_applies(*call)
    original = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

    def gone(*args, **kwargs):
        raise RuntimeError("no such operator")

    def wrong(*args, **kwargs):
        return tuple(2 * gradient for gradient in original(*args, **kwargs))

    for kernel in (gone, wrong):
        module._kernels_are_as_expected.cache_clear()
        monkeypatch.setattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", kernel)
        assert not tree_attention_applies(*call)
    monkeypatch.undo()
    module._kernels_are_as_expected.cache_clear()
    # The question may come up while nothing is being learned, or in mixed precision.
    for context in (torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)):
        module._kernels_are_as_expected.cache_clear()
        with context:
            assert tree_attention_applies(*call)


def test_under_autocast_it_computes_in_half_precision():
    inputs = drawn(TREE, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = tree_attention(*inputs, TREE, 0.3)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), tree_attention(*inputs, TREE, 0.3), **BFLOAT16.close)
