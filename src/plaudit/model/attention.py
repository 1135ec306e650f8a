"""Attention for the shared-prefix layout, reached through transformers' own attention interface.

In a row ``[P R1 R2 | P R1 R2 | ...]`` the queries of a response see its own prompt and itself, never another
response. That is a set of independent causal problems: queries ``P+R1`` against keys ``P+R1``, then for each further
response queries ``Ri`` against keys ``P+Ri``, aligned at the bottom right; likewise where prompts branch off from a
common beginning. Queries and keys keep the positions that they would have alone, so sliding windows stay exact.

No model is patched: one function is registered under a name of its own for each stock implementation, and the layout
arrives as a keyword argument of the model's forward, which models hand down verbatim. This survives gradient
checkpointing and PEFT. Without a layout the call goes to the stock implementation.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plaudit.errors import ConfigError
from plaudit.model import varlen
from plaudit.model.cpu_tree import tree_attention, tree_attention_applies
from plaudit.model.flex import FlexPlan, attend_with_flex, why_not_flex
from plaudit.model.varlen import AttentionSettings, VarlenPlan, why_not_varlen
from plaudit.prefix_tree import PrefixTree

logger = logging.getLogger("plaudit")
Plan = TypeVar("Plan", VarlenPlan, FlexPlan)
AttentionCall: TypeAlias = tuple[tuple[int, ...] | None, int | None]
"""Shape of the mask and sliding window that an attention layer was called with: evidence for `compare_with_padded`."""
_PREFIX = "shared_prefix_over_"


@dataclass
class SharedPrefixLayout:
    """Where prompts and responses lie in a shared-prefix row; travels through the model as a keyword argument."""

    tree: PrefixTree
    backend: str = "auto"
    calls: list[AttentionCall] | None = None  # if a list, each attention layer appends what it was called with
    _plans: dict[tuple[type, torch.device], Any] = field(default_factory=dict, repr=False)
    _masks: dict[tuple[Any, ...], Tensor] = field(default_factory=dict, repr=False)

    def plan(self, kind: type[Plan], device: torch.device) -> Plan:
        """Returns the index arithmetic of a kernel, made once per batch and device."""
        if (kind, device) not in self._plans:
            self._plans[kind, device] = kind(self.tree, device)
        plan: Plan = self._plans[kind, device]
        return plan

    def multiplicity(self, device: torch.device) -> Tensor:
        """Returns how many responses each token belongs to, shape (T,)."""
        return torch.tensor(self.tree.copies).repeat_interleave(torch.tensor(self.tree.lengths)).to(device)

    def mask(self, queries: int, keys: int, window: int | None, like: Tensor) -> Tensor | None:
        """Returns the additive mask (queries, keys) of a causal problem; None where `is_causal` says the same."""
        if window is not None and window >= keys:
            window = None
        if queries == keys and window is None:
            return None
        key = (queries, keys, window, like.dtype, like.device)
        if key not in self._masks:
            # Aligned at the bottom right: torch's `is_causal` aligns at the top left.
            position = torch.arange(keys, device=like.device)
            distance = position[keys - queries :, None] - position
            hidden = (distance < 0) | (distance >= (window or keys))
            self._masks[key] = like.new_zeros(queries, keys).masked_fill_(hidden, -math.inf)
        return self._masks[key]


def use_shared_prefix_attention(base_implementation: str) -> str:
    """Registers the shared-prefix attention over a stock one; returns the name for `set_attn_implementation`."""
    if base_implementation.startswith(_PREFIX):
        return base_implementation
    # transformers takes names with "flash" in them for flash attention, and checks for the package.
    name = _PREFIX + base_implementation.replace("flash_attention", "fa")
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, _attention_over(base_implementation))
        # Without a mask function of the same name transformers builds no mask at all, and padding would be attended.
        if base_implementation in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base_implementation])
    return name


def _attention_over(base_implementation: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    def attention_forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        shared_prefix_layout: SharedPrefixLayout | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        if shared_prefix_layout is not None:
            return _attend_in_layout(query, key, value, attention_mask, shared_prefix_layout, **kwargs), None
        # Eager attention is not in the registry: each model's file has its own.
        stock = (
            sys.modules[type(module).__module__].__dict__["eager_attention_forward"]
            if base_implementation == "eager"
            else ALL_ATTENTION_FUNCTIONS[base_implementation]
        )
        return stock(module, query, key, value, attention_mask, **kwargs)

    return attention_forward


# The layout differs from batch to batch: torch.compile would compile for each of them anew.
@torch.compiler.disable
def _attend_in_layout(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: SharedPrefixLayout,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    if layout.calls is not None:
        mask_shape = None if attention_mask is None else tuple(attention_mask.shape)
        layout.calls.append((mask_shape, sliding_window))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    settings = AttentionSettings(scaling, dropout, sliding_window, softcap, sinks=s_aux)
    return shared_prefix_attention(query, key, value, layout, settings)


def shared_prefix_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: SharedPrefixLayout, settings: AttentionSettings
) -> Tensor:
    """Attends within each response and its prompt; returns shape (1, T, heads, value size).

    The shape of `query` is (1, heads, T, head size), of `key` (1, key heads, T, head size), and of `value`
    (1, key heads, T, value size); key heads divide heads.
    """
    wanted, problem = layout.backend, None
    for backend in {"auto": varlen.AUTOMATIC, "flex": (), "sdpa": ()}.get(wanted, (wanted,)):
        problem = why_not_varlen(backend, query, settings)
        if problem is None:
            _log_once(f"{backend}, one call per layer")
            plan = layout.plan(VarlenPlan, query.device)
            return varlen.varlen_attention(query, key, value, plan, varlen.KERNELS[backend], settings)
    # FlexAttention has to be compiled first; the kernels above are ready at once.
    if wanted == "flex" or (wanted == "auto" and (settings.softcap is not None or settings.sinks is not None)):
        problem = why_not_flex(query, key, value, settings)
        if problem is None:
            _log_once("flex, one call per layer, compiled for this model")
            return attend_with_flex(query, key, value, layout.plan(FlexPlan, query.device), settings)
    if wanted not in ("auto", "sdpa"):
        message = f"`attention_backend` {wanted!r} cannot be used: {problem}"
        raise ConfigError(message, field="attention_backend", fix="Use 'auto' or 'sdpa'.")
    if wanted == "auto" and query.device.type != "cpu":
        _log_once(f"a loop over responses ({problem})")
    if tree_attention_applies(query, value, layout.tree, settings):
        return tree_attention(query, key, value, layout.tree, settings.scaling)
    return _attend_in_a_loop(query, key, value, layout, settings)


@functools.cache
def _log_once(backend: str) -> None:
    logger.info("Attention of the shared-prefix layout: %s.", backend)


def _attend_in_a_loop(
    query: Tensor, key: Tensor, value: Tensor, layout: SharedPrefixLayout, settings: AttentionSettings
) -> Tensor:
    """Attends response by response: a dense T x T mask would be more than ten times slower."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    # split, not slices: the backward of a slice fills a whole zero tensor each time.
    queries, keys, values = (tensor.split(layout.tree.lengths, dim=2) for tensor in (query, key, value))
    outputs = []
    for path, own in zip(layout.tree.paths, layout.tree.own, strict=True):
        before = sum(layout.tree.lengths[node] for node in path[:-own])
        # Where it is less work than a mask, compute the queries of the shared part once more and need no mask.
        again = 2 * before < sum(layout.tree.lengths[node] for node in path)
        query_i, key_i, value_i = (
            parts[nodes[0]] if len(nodes) == 1 else torch.cat([parts[node] for node in nodes], dim=2)
            for parts, nodes in ((queries, path if again else path[-own:]), (keys, path), (values, path))
        )
        mask = layout.mask(query_i.shape[2], key_i.shape[2], settings.sliding_window, query)
        if settings.softcap is None and settings.sinks is None:
            causal, dropout = mask is None, settings.dropout
            output = sdpa(query_i, key_i, value_i, mask, dropout, causal, scale=settings.scaling)
        else:
            output = varlen.dense_attention(query_i, key_i, value_i, mask, settings)
        outputs.append(output[:, :, before:] if again else output)
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()
