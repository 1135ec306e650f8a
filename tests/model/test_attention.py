"""Shared-prefix attention against attention computed response by response with an explicit mask."""

import math

import pytest
import torch

from plaudit.model.attention import SharedPrefixLayout, shared_prefix_attention
from plaudit.model.varlen import AttentionSettings
from plaudit.prefix_tree import PrefixTree

TREES = [
    ((3, -1, 2), (2, 0, 1), (4, 0, 1)),
    ((5, -1, 2), (1, 0, 1), (1, 0, 1), (3, -1, 1), (2, -1, 1), (2, -1, 3), (4, 5, 1), (1, 5, 1), (6, 5, 1)),
    # Two prompts with a beginning in common, of two responses and three; a response that leaves after the beginning.
    ((4, -1, 6), (3, 0, 2), (2, 1, 1), (5, 1, 1), (1, 0, 3), (2, 4, 1), (9, 4, 1), (1, 4, 1), (2, 0, 1)),
]


def by_hand(query, key, value, layout, *, scale, window=None, softcap=None, sinks=None):
    """Every response with its own copy of the prompt, the full score matrix, an explicit mask."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    output = torch.zeros(*query.shape[:3], value.shape[-1], dtype=query.dtype)
    done = set()
    for leaf in range(len(layout.tree.nodes)):
        path = [leaf]
        while (parent := layout.tree.nodes[path[0]][1]) >= 0:
            path.insert(0, parent)
        places = []
        for node in path:
            start = sum(length for length, _, _ in layout.tree.nodes[:node])
            places += range(start, start + layout.tree.nodes[node][0])
        index = torch.tensor(places)
        q, k, v = query[:, :, index], key[:, :, index], value[:, :, index]
        scores = q @ k.transpose(2, 3) * scale
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        distance = torch.arange(len(index))[:, None] - torch.arange(len(index))
        hidden = (distance < 0) | (distance >= (window or len(index) + 1))
        weights = scores.masked_fill(hidden, -math.inf).exp()
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + sinks.exp()[None, :, None, None]
        attended = (weights / total) @ v
        fresh = [number for number, place in enumerate(places) if place not in done]
        output[:, :, index[fresh]] = attended[:, :, fresh]
        done.update(places)
    return output.transpose(1, 2)


@pytest.mark.parametrize("nodes", TREES)
@pytest.mark.parametrize(
    "options",
    [{}, {"window": 3}, {"window": 100}, {"softcap": 2.0}, {"window": 2, "softcap": 1.5}, {"sinks": True}],
)
def test_values_and_gradients(nodes, options):
    layout = SharedPrefixLayout(PrefixTree(nodes))
    generator = torch.Generator().manual_seed(1)
    tokens = layout.tree.tokens

    def draw(heads, size):
        return torch.randn(1, heads, tokens, size, generator=generator, dtype=torch.float64, requires_grad=True)

    query, key, value = draw(4, 8), draw(2, 8), draw(2, 6)
    sinks = torch.randn(4, generator=generator, dtype=torch.float64) if options.get("sinks") else None
    window, softcap = options.get("window"), options.get("softcap")
    settings = AttentionSettings(0.3, sliding_window=window, softcap=softcap, sinks=sinks)
    result = shared_prefix_attention(query, key, value, layout, settings)
    expected = by_hand(query, key, value, layout, scale=0.3, window=window, softcap=softcap, sinks=sinks)
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-7)
    weights = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    for got, want in zip(
        torch.autograd.grad((result * weights).sum(), (query, key, value)),
        torch.autograd.grad((expected * weights).sum(), (query, key, value)),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)


def test_a_response_does_not_see_another():
    layout = SharedPrefixLayout(PrefixTree(((2, -1, 2), (2, 0, 1), (2, 0, 1))))
    query, key, value = (torch.randn(1, 1, 6, 4, generator=torch.Generator().manual_seed(n)) for n in range(3))
    before = shared_prefix_attention(query, key, value, layout, AttentionSettings(1.0))
    value = value.clone()
    value[:, :, 2:4] += 100  # the first response
    after = shared_prefix_attention(query, key, value, layout, AttentionSettings(1.0))
    changed = (before - after).abs().amax(dim=(0, 2, 3)) > 0
    assert changed.tolist() == [False, False, True, True, False, False]


def test_a_token_counts_for_each_response_that_reads_it():
    layout = SharedPrefixLayout(PrefixTree(((2, -1, 3), (1, 0, 2), (2, 0, 1), (1, -1, 1))))
    assert layout.multiplicity(torch.device("cpu")).tolist() == [3, 3, 2, 1, 1, 1]
