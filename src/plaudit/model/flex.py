"""The shared-prefix layout through FlexAttention, for GPUs: where scores are capped, or sinks take part of the weight.

In the row of a `PrefixTree` everything that branches off from a node follows it without a gap. The query at index ``q``
of the row therefore sees the key at index ``k`` if ``k <= q < end[k]``, where ``end[k]`` follows the last branch of the
key's node, and if the key's position is not before the sliding window of the query. All of that is tensors: the same
compiled kernel serves every batch and every window.

Source: Dong et al. (2024), Flex Attention, https://arxiv.org/abs/2412.05496.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, create_mask, flex_attention

from plaudit.model.varlen import AttentionSettings, dense_attention
from plaudit.prefix_tree import PrefixTree

logger = logging.getLogger("plaudit")
BLOCK = 128  # tokens; which pairs of blocks are visible is computed once per batch
# The kernel would be compiled again for rows of one block, and rows below a block take a kernel made for decoding.
_FEWEST_TOKENS = 2 * BLOCK
# Allowed deviation in the trial run, relative to the largest entry; float32 may run as TF32 if torch was told so.
_TOLERANCE = {torch.float32: 5e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}


class FlexPlan:
    """What each token sees in one batch; nothing is read back from the device.

    Whole blocks are filled up by a last node of its own, so that every query sees at least itself.

    >>> plan = FlexPlan(PrefixTree(((3, -1, 2), (2, 0, 1), (1, 0, 1))), torch.device("cpu"))
    >>> plan.end_T[:6].tolist(), plan.position_T[:6].tolist(), plan.tokens
    ([6, 6, 6, 5, 5, 6], [0, 1, 2, 3, 4, 3], 256)
    """

    def __init__(self, tree: PrefixTree, device: torch.device) -> None:
        self.device = device  # where masks are needed
        self.tokens = max(_FEWEST_TOKENS, math.ceil(tree.tokens / BLOCK) * BLOCK)  # of the row, filling included
        ends = [start + length for start, length in zip(tree.starts, tree.lengths, strict=True)]
        # Backwards, because a node stands before its branches.
        for node in reversed(range(len(ends))):
            parent = tree.nodes[node][1]
            if parent >= 0:
                ends[parent] = max(ends[parent], ends[node])
        lengths = torch.tensor([*tree.lengths, self.tokens - tree.tokens])
        # Where the branches of each token's node end, and its position in its response: (T,), int32, on the CPU.
        self.end_T = torch.tensor([*ends, self.tokens], dtype=torch.int32).repeat_interleave(lengths)
        shift_T = torch.tensor([*tree.starts, tree.tokens]) - torch.tensor([*tree.depths, 0])
        self.position_T = (torch.arange(self.tokens) - shift_T.repeat_interleave(lengths)).int()
        self._masks: dict[int | None, BlockMask] = {}

    def first_visible(self, window: int | None) -> Tensor:
        """Returns the first position that each token sees, shape (T,), int32, on the CPU."""
        return torch.zeros_like(self.position_T) if window is None else self.position_T - (window - 1)

    def mask_function(self, window: int | None) -> Callable[..., Tensor]:
        """Returns FlexAttention's `mask_mod`. It reads tensors only: one compiled kernel serves every batch."""
        end_T, position_T, first_T = (
            tensor.to(self.device, non_blocking=True)
            for tensor in (self.end_T, self.position_T, self.first_visible(window))
        )

        def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & (query < end_T[key]) & (position_T[key] >= first_T[query])

        return sees

    def mask(self, window: int | None) -> BlockMask:
        """Returns which pairs of blocks are visible, in part or as a whole; made once per batch and window."""
        if window not in self._masks:
            some, every = visible_blocks(self.end_T, self.position_T, self.first_visible(window))
            ordered = (*_in_order(some & ~every), *_in_order(every))
            mask = BlockMask.from_kv_blocks(*ordered, BLOCK_SIZE=BLOCK, mask_mod=self.mask_function(window))
            self._masks[window] = mask.to(self.device)
        return self._masks[window]


def visible_blocks(end_T: Tensor, position_T: Tensor, first_T: Tensor) -> tuple[Tensor, Tensor]:
    """Returns of which pairs of blocks (queries, keys) something is visible, and of which everything.

    No mask of all pairs of tokens is made. Where the extremes of two blocks cannot tell, something counts as visible:
    never too little.
    """
    end, position, first = (tensor.view(-1, BLOCK) for tensor in (end_T, position_T, first_T))
    start = torch.arange(len(end)) * BLOCK
    # The key of a block that reaches furthest is reached from every later token up to there.
    some = (start[:, None] >= start) & (start[:, None] < end.amax(1))
    some &= position.amax(1) >= first.amin(1)[:, None]
    every = (start[:, None] > start) & (start[:, None] + BLOCK <= end.amin(1))
    every &= position.amin(1) >= first.amax(1)[:, None]
    return some, every


def _in_order(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """Returns how many blocks of keys each block of queries meets, and their indices with those first."""
    counts = pairs.sum(-1, dtype=torch.int32)
    return counts[None, None], pairs.int().argsort(dim=-1, descending=True, stable=True).int()[None, None]


def attend_with_flex(query: Tensor, key: Tensor, value: Tensor, plan: FlexPlan, settings: AttentionSettings) -> Tensor:
    """Attends within each response and its prompt, in one call; see `shared_prefix_attention` for shapes.

    A sink with score ``s`` takes weight and gives no value: with the log-sum-exp ``l`` of a query's scores all its
    weights shrink by ``exp(l) / (exp(l) + exp(s)) = sigmoid(l - s)``. FlexAttention differentiates ``l``.
    """
    kind, tokens = query.device.type, query.shape[2]
    if torch.is_autocast_enabled(kind):
        query, key, value = (tensor.to(torch.get_autocast_dtype(kind)) for tensor in (query, key, value))
    query, key, value = (_fill_up(tensor, plan.tokens) for tensor in (query, key, value))
    options: dict[str, Any] = {"scale": settings.scaling, "enable_gqa": query.shape[1] != key.shape[1]}
    if settings.sinks is not None:
        options["return_aux"] = AuxRequest(lse=True)
    cap: Any = settings.softcap

    def capped(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return cap * torch.tanh(score / cap)

    with torch.autocast(kind, enabled=False):
        block_mask = plan.mask(settings.sliding_window)
        output = _kernel(kind)(query, key, value, None if cap is None else capped, block_mask, **options)
        if settings.sinks is not None:
            unshared, aux = output
            share = torch.sigmoid(aux.lse - settings.sinks.to(aux.lse.dtype)[:, None])[..., None]
            output = (unshared * share).to(unshared.dtype)
    return cast(Tensor, output[:, :, :tokens].transpose(1, 2))


def _fill_up(tensor: Tensor, tokens: int) -> Tensor:
    """Appends zeros to (1, heads, T, D), always with the same strides: the kernel is compiled anew for others."""
    zeros = tensor.new_zeros(1, tokens - tensor.shape[2], tensor.shape[1], tensor.shape[3])
    return torch.cat((tensor.transpose(1, 2), zeros), dim=1).transpose(1, 2)


def _kernel(device_type: str) -> Callable[..., Any]:
    # On a CPU FlexAttention has no backward pass; tests run it without gradients.
    return cast(Callable[..., Any], flex_attention) if device_type == "cpu" else _call_compiled


def _call_compiled(*args: Any, **settings: Any) -> Any:
    # `compare_with_padded` runs models uncompiled, but this kernel is what it has to check. `specialize_float` makes
    # the factor on the scores part of the kernel rather than one of its arguments.
    with torch.compiler.set_stance("default"), torch._dynamo.config.patch(specialize_float=True):
        return _compiled()(*args, **settings)


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(flex_attention, dynamic=True)


def attend_densely(query: Tensor, key: Tensor, value: Tensor, plan: FlexPlan, settings: AttentionSettings) -> Tensor:
    """Computes what `attend_with_flex` does with the full matrix of scores: the reference of the trial and tests."""
    tokens, groups = query.shape[2], query.shape[1] // key.shape[1]
    visible = create_mask(plan.mask_function(settings.sliding_window), 1, 1, tokens, tokens, plan.device)
    mask = torch.zeros_like(visible, dtype=query.dtype).masked_fill(~visible, -math.inf)
    key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    return dense_attention(query, key, value, mask, settings).transpose(1, 2)


def why_not_flex(query: Tensor, key: Tensor, value: Tensor, settings: AttentionSettings) -> str | None:
    """Returns why FlexAttention cannot compute a call; None if it can. The first call of a kind tries it out."""
    if query.device.type != "cuda":
        return "flex needs a CUDA device"
    if importlib.util.find_spec("triton") is None:
        return "flex needs triton"
    if settings.dropout > 0:
        return "flex has no dropout"
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    if dtype not in _TOLERANCE:
        return f"flex does not compute in {dtype}"
    shape = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
    plain = replace(settings, sliding_window=None, sinks=None)
    return _problem_in_a_trial(query.device, dtype, shape, plain, settings.sinks is not None)


@functools.cache
def _problem_in_a_trial(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int], settings: AttentionSettings, sinks: bool
) -> str | None:
    """Computes a small row both ways. Kernels are compiled, and some gave wrong gradients (pytorch 158212)."""
    heads, key_heads, size, value_size = shape
    # The first caller may be computing without gradients, or in mixed precision.
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        # Parts of blocks, whole ones, a response beside another, and a length off a multiple of 128, where kernels
        # gave NaN (pytorch 153799). As many blocks as no model has heads: torch takes equal sizes of a first call for
        # one and the same.
        tree = PrefixTree(((270, -1, 3), (90, 0, 2), (150, 1, 1), (7, 1, 1), (70, 0, 1), (11, -1, 1)))
        plan = FlexPlan(tree, device)
        generator = torch.Generator().manual_seed(0)
        inputs = [
            torch.randn(1, n, tree.tokens, width, generator=generator).to(device, dtype)
            for n, width in ((heads, size), (key_heads, size), (key_heads, value_size))
        ]
        inputs += [torch.randn(heads, generator=generator).to(device)] if sinks else []
        exact_inputs = [tensor.float() for tensor in inputs]
        weight = torch.randn(1, tree.tokens, heads, value_size, generator=generator).to(device)
        for window in (None, 100):
            settings = replace(settings, sliding_window=window)
            try:
                actual = _output_and_gradients(attend_with_flex, inputs, weight, plan, settings)
                expected = _output_and_gradients(attend_densely, exact_inputs, weight, plan, settings)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, ValueError, AttributeError, ImportError) as error:
                return _warn(f"flex does not run here ({type(error).__name__}: {str(error).strip()[:200]})")
            for tensor, reference in zip(actual, expected, strict=True):
                deviation = float((tensor.float() - reference).abs().max() / reference.abs().max().clamp_min(1e-12))
                if not deviation <= _TOLERANCE[dtype]:  # NaN included
                    return _warn(f"flex computes something else here (by {deviation:.1e})")
    return None


def _output_and_gradients(
    attend: Callable[..., Tensor], inputs: list[Tensor], weight: Tensor, plan: FlexPlan, settings: AttentionSettings
) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    sinks = leaves[3] if len(leaves) == 4 else None
    output = attend(*leaves[:3], plan, replace(settings, sinks=sinks))
    return [output.detach(), *torch.autograd.grad((output.float() * weight).sum(), leaves)]


def _warn(problem: str) -> str:
    logger.warning("FlexAttention is not used: %s.", problem)
    return problem
