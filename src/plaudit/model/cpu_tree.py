"""The shared-prefix layout on a CPU: every query meets every key once, without masks and without copies of keys.

Responses are runs of neighbouring tokens, each a causal problem of its own. What a response has in common with those
before it lies elsewhere in the row: its queries attend to all of that, a second problem without a mask, and the two
outputs are weighted by the sums of their scores. All problems are views of the row.

With the total log-sum-exp the backward pass of each problem is independent of the others, and their gradients add up.
Source: Dao et al. (2022), FlashAttention, https://arxiv.org/abs/2205.14135, section 3.1 and appendix B.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from plaudit.model.varlen import AttentionSettings
from plaudit.prefix_tree import PrefixTree


def tree_attention(query: Tensor, key: Tensor, value: Tensor, tree: PrefixTree, scaling: float) -> Tensor:
    """Attends within each response and what it branches off from; see `shared_prefix_attention` for shapes."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    output: Tensor = _TreeAttention.apply(query, key, value, tree, scaling)
    return output


def tree_attention_applies(query: Tensor, value: Tensor, tree: PrefixTree, settings: AttentionSettings) -> bool:
    """Returns whether `tree_attention` computes a call of an attention layer."""
    window = settings.sliding_window
    return (
        query.device.type == "cpu"
        and settings.softcap is None
        and settings.sinks is None
        and settings.dropout == 0
        and query.shape[-1] == value.shape[-1]
        and (window is None or window >= max(tree.response_lengths))
        and _kernels_are_as_expected()  # those of another torch may not be
    )


class _TreeAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, tree: PrefixTree, scaling: float) -> Tensor:
        wide = torch.promote_types(query.dtype, torch.float32)
        heads, tokens, size = query.shape[1:]
        output_1THD = query.new_empty(1, tokens, heads, size, dtype=wide)
        sums_1TH = query.new_empty(1, tokens, heads, dtype=wide)
        output, sums = output_1THD.transpose(1, 2), sums_1TH.transpose(1, 2)
        for queries, keys, causal in _problems(tree):
            attended, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, queries], key[:, :, keys], value[:, :, keys], 0.0, causal, scale=scaling
            )
            if causal:  # the first problem of these queries
                output[:, :, queries] = attended
                sums[:, :, queries] = log_sums
                continue
            share = torch.sigmoid(log_sums - sums[:, :, queries])
            output[:, :, queries].lerp_(attended.to(wide), share[..., None])
            sums[:, :, queries] = torch.logaddexp(sums[:, :, queries], log_sums)
        output_1THD = output_1THD.to(query.dtype)
        ctx.save_for_backward(query, key, value, output_1THD, sums_1TH)
        ctx.tree, ctx.scaling = tree, scaling
        return output_1THD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output_1THD, sums_1TH = ctx.saved_tensors
        gradient, output, sums = (tensor.transpose(1, 2) for tensor in (gradients[0], output_1THD, sums_1TH))
        query_gradient, key_gradient, value_gradient = (torch.empty_like(tensor) for tensor in (query, key, value))
        for queries, keys, causal in _problems(ctx.tree):
            grad_i, query_i, output_i, sums_i = (tensor[:, :, queries] for tensor in (gradient, query, output, sums))
            parts = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_i, query_i, key[:, :, keys], value[:, :, keys], output_i, sums_i, 0.0, causal, scale=ctx.scaling
            )
            totals = (query_gradient[:, :, queries], key_gradient[:, :, keys], value_gradient[:, :, keys])
            for total, part in zip(totals, parts, strict=True):
                if causal:  # the first problem of these tokens
                    total.copy_(part)
                else:
                    total.add_(part)
        return query_gradient, key_gradient, value_gradient, None, None


def _problems(tree: PrefixTree) -> Iterator[tuple[slice, slice, bool]]:
    """Yields queries, keys and whether they are the same: first each run itself, then what runs branch off from.

    >>> tree = PrefixTree(((3, -1, 2), (2, 0, 1), (1, 0, 1)))  # a prompt and two responses
    >>> [(q.start, q.stop, k.start, k.stop, causal) for q, k, causal in _problems(tree)]
    [(0, 5, 0, 5, True), (5, 6, 5, 6, True), (5, 6, 0, 3, False)]
    """
    branches_end = len(tree.nodes) * [0]  # where the last branch of each node ends
    run_end = len(tree.nodes) * [0]  # where the run that each node is part of ends: other branches begin there
    for path, own in zip(tree.paths, tree.own, strict=True):
        start, stop = tree.starts[path[-own]], tree.starts[path[-1]] + tree.lengths[path[-1]]
        yield slice(start, stop), slice(start, stop), True
        for node in path:
            branches_end[node] = stop
        for node in path[-own:]:
            run_end[node] = stop
    for node, length in enumerate(tree.lengths):
        if run_end[node] < branches_end[node]:
            start = tree.starts[node]
            yield slice(run_end[node], branches_end[node]), slice(start, start + length), False


@functools.cache
def _kernels_are_as_expected() -> bool:
    """Runs a tiny case of each use: torch's kernels are not public, and may be missing or different."""
    # The first caller may be computing without gradients, or in mixed precision.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        generator = torch.Generator().manual_seed(0)
        query, key, value = (
            torch.randn(1, heads, 6, 8, generator=generator, requires_grad=True) for heads in (4, 2, 2)
        )
        wide_key, wide_value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
        visible = torch.ones(6, 6, dtype=torch.bool).tril()
        visible[5, 3:5] = False
        expected = nn.functional.scaled_dot_product_attention(query, wide_key, wide_value, attn_mask=visible, scale=0.5)
        expected = expected.transpose(1, 2)
        weight = torch.randn(1, 6, 4, 8, generator=generator)
        expected_gradients = torch.autograd.grad((expected * weight).sum(), (query, key, value))
        try:
            output = _TreeAttention.apply(query, key, value, PrefixTree(((3, -1, 2), (2, 0, 1), (1, 0, 1))), 0.5)
            gradients = torch.autograd.grad((output * weight).sum(), (query, key, value))
        except (AttributeError, RuntimeError, TypeError):
            return False
    pairs = zip((output, *gradients), (expected, *expected_gradients), strict=True)
    return all(torch.allclose(actual, reference, atol=1e-4) for actual, reference in pairs)
