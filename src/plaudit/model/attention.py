"""Attention for the shared-prefix layout, reached through transformers' own attention interface.

In a row ``[P R1 R2 | P R1 R2 | ...]`` the queries of a response see its own prompt and itself, never another
response. That is a set of independent causal problems: queries ``P+R1`` against keys ``P+R1``, then for each further
response queries ``Ri`` against keys ``P+Ri``, aligned at the bottom right; likewise where prompts branch off from a
common beginning. Queries and keys keep the positions that they would have had alone, so sliding windows stay exact.

No model is patched: one function is registered under a name of its own for each stock implementation, and the layout
arrives as a keyword argument of the model's forward. Without it the call goes to the stock implementation.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from plaudit.errors import ConfigError
from plaudit.model.cpu_tree import tree_attention, why_not_tree_attention
from plaudit.model.flex import FlexPlan, attend_with_flex, why_not_flex
from plaudit.model.varlen import AUTOMATIC, KERNELS, VarlenPlan, varlen_attention, why_not
from plaudit.prefix_tree import PrefixTree

logger = logging.getLogger("plaudit")
_PREFIX = "shared_prefix_over_"


@dataclass
class AttentionCall:
    """What one attention layer was called with: evidence for the gate in :mod:`plaudit.model.shared_prefix`."""

    layer: int | None
    mask_shape: tuple[int, ...] | None
    sliding_window: int | None


@dataclass
class SharedPrefixLayout:
    """Where prompts and responses lie in a shared-prefix row; travels through the model as a keyword argument.

    Attributes:
        tree: What the row is made of.
        backend: What computes attention: ``"auto"`` takes one call of variable lengths where model and machine have it,
            FlexAttention on a GPU for models that cap scores or have sinks, and otherwise a loop over responses
            (``"sdpa"``).
        calls: If a list, each attention layer appends what it was called with.
    """

    tree: PrefixTree
    backend: str = "auto"
    calls: list[AttentionCall] | None = None
    _masks: dict[tuple[Any, ...], torch.Tensor | None] = field(default_factory=dict, repr=False)
    _plans: dict[torch.device, VarlenPlan] = field(default_factory=dict, repr=False)
    _flex_plans: dict[torch.device, FlexPlan] = field(default_factory=dict, repr=False)

    def plan(self, device: torch.device) -> VarlenPlan:
        """Index arithmetic of a variable-length call, made once a batch and device."""
        if device not in self._plans:
            self._plans[device] = VarlenPlan.of(self.tree, device)
        return self._plans[device]

    def flex_plan(self, device: torch.device) -> FlexPlan:
        """What is visible to whom in a call of FlexAttention, made once a batch and device."""
        if device not in self._flex_plans:
            self._flex_plans[device] = FlexPlan.of(self.tree, device)
        return self._flex_plans[device]

    def multiplicity(self, device: torch.device) -> torch.Tensor:
        """How many responses each token belongs to, shape (T,)."""
        return torch.tensor(self.tree.copies).repeat_interleave(torch.tensor(self.tree.lengths)).to(device)

    def mask(self, queries: int, keys: int, window: int | None, like: torch.Tensor) -> torch.Tensor | None:
        """Additive mask (queries, keys) of a causal problem aligned at the bottom right; None for plain causal."""
        if window is not None and window >= keys:
            window = None
        if queries == keys and window is None:
            return None
        key = (queries, keys, window, like.dtype, like.device)
        if key not in self._masks:
            query_position = torch.arange(keys - queries, keys, device=like.device)[:, None]
            distance = query_position - torch.arange(keys, device=like.device)
            visible = distance >= 0
            if window is not None:
                visible &= distance < window
            mask = torch.zeros(queries, keys, dtype=like.dtype, device=like.device)
            self._masks[key] = mask.masked_fill_(~visible, -math.inf)
        return self._masks[key]


def use_shared_prefix_attention(base_implementation: str) -> str:
    """Register the shared-prefix attention on top of a stock implementation and return its name.

    Args:
        base_implementation: What runs when no layout is given: ``"sdpa"``, ``"eager"``, ...

    Returns:
        A name for ``model.set_attn_implementation``.
    """
    if base_implementation.startswith(_PREFIX):
        return base_implementation
    # Names with "flash" in them are taken for flash attention by transformers, which then checks for the package.
    name = _PREFIX + base_implementation.replace("flash_attention", "fa")
    if name not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(name, _attention_over(base_implementation))
        # Without a mask function of the same name transformers builds no mask at all, and padding would be attended.
        if base_implementation in ALL_MASK_ATTENTION_FUNCTIONS:
            AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[base_implementation])
    return name


def _attention_over(base_implementation: str) -> Callable[..., tuple[torch.Tensor, torch.Tensor | None]]:
    def attention_forward(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        shared_prefix_layout: SharedPrefixLayout | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if shared_prefix_layout is None:
            stock = (
                sys.modules[type(module).__module__].__dict__["eager_attention_forward"]
                if base_implementation == "eager"
                else ALL_ATTENTION_FUNCTIONS[base_implementation]
            )
            return stock(module, query, key, value, attention_mask, **kwargs)
        return _attend_in_layout(module, query, key, value, attention_mask, shared_prefix_layout, **kwargs), None

    return attention_forward


# The layout is another one for each batch: compiled code would be, too.
@torch.compiler.disable
def _attend_in_layout(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: SharedPrefixLayout,
    **kwargs: Any,
) -> torch.Tensor:
    if layout.calls is not None:
        layout.calls.append(
            AttentionCall(
                layer=getattr(module, "layer_idx", None),
                mask_shape=None if attention_mask is None else tuple(attention_mask.shape),
                sliding_window=kwargs.get("sliding_window"),
            )
        )
    scaling = kwargs.get("scaling")
    return shared_prefix_attention(
        query,
        key,
        value,
        layout,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        dropout=kwargs.get("dropout", 0.0),
        sliding_window=kwargs.get("sliding_window"),
        softcap=kwargs.get("softcap"),
        sinks=kwargs.get("s_aux"),
    )


def shared_prefix_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: SharedPrefixLayout,
    *,
    scaling: float,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend within each response and its prompt.

    Args:
        query: Shape (1, heads, T, head size).
        key: Shape (1, key heads, T, head size); key heads divide heads.
        value: Shape (1, key heads, T, value size).
        layout: Where prompts and responses lie in T.
        scaling: Factor on the scores.
        dropout: Probability of dropping an attention weight.
        sliding_window: A query sees this many positions, its own included.
        softcap: Scores become ``softcap * tanh(scores / softcap)`` (Gemma 2).
        sinks: One extra score a head that takes weight and gives no value (GPT-OSS), shape (heads,).

    Returns:
        Shape (1, T, heads, value size).
    """
    settings: dict[str, Any] = {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window}
    backend = _backend_for(query, key, value, layout.backend, softcap=softcap, sinks=sinks is not None, **settings)
    if backend in KERNELS:
        return varlen_attention(query, key, value, layout.plan(query.device), KERNELS[backend], **settings)
    if backend == "flex":
        plan = layout.flex_plan(query.device)
        return attend_with_flex(
            query, key, value, plan, scaling=scaling, sliding_window=sliding_window, softcap=softcap, sinks=sinks
        )
    if softcap is None and sinks is None:
        longest = max(layout.tree.response_lengths)
        limits: dict[str, Any] = {"dropout": dropout, "longest": longest, "sliding_window": sliding_window}
        if why_not_tree_attention(query, value, **limits) is None:
            return tree_attention(query, key, value, layout.tree, scaling)
    return _attend_in_a_loop(
        query,
        key,
        value,
        layout,
        scaling=scaling,
        dropout=dropout,
        window=sliding_window,
        softcap=softcap,
        sinks=sinks,
    )


def _attend_in_a_loop(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: SharedPrefixLayout, **settings: Any
) -> torch.Tensor:
    """One response after the other."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    # split, not slices: the backward of a slice fills a whole zero tensor each time.
    queries, keys, values = (t.split(layout.tree.lengths, dim=2) for t in (query, key, value))
    outputs = []
    for path, own in zip(layout.tree.paths, layout.tree.own, strict=True):
        before = sum(layout.tree.lengths[piece] for piece in path[:-own])
        # Queries of the shared part once more, and no mask, where that is less work than a mask for the others.
        again = 2 * before < sum(layout.tree.lengths[piece] for piece in path)
        output = _attend(
            _joined([queries[piece] for piece in (path if again else path[-own:])]),
            _joined([keys[piece] for piece in path]),
            _joined([values[piece] for piece in path]),
            layout,
            **settings,
        )
        outputs.append(output[:, :, before:] if again else output)
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _joined(pieces: Sequence[torch.Tensor]) -> torch.Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(list(pieces), dim=2)


def _backend_for(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    asked: str,
    *,
    scaling: float,
    dropout: float,
    sliding_window: int | None,
    softcap: float | None,
    sinks: bool,
) -> str:
    """The backend of a call; an error where the one asked for cannot compute it."""
    if asked == "sdpa":
        return "sdpa"
    problem = None
    for backend in {"auto": AUTOMATIC, "flex": ()}.get(asked, (asked,)):
        problem = why_not(
            backend,
            device=query.device,
            dtype=query.dtype,
            head_size=query.shape[-1],
            dropout=dropout,
            sliding_window=sliding_window,
            softcap=softcap,
            sinks=sinks,
        )
        if problem is None:
            _say_once(f"{backend}, one call a layer")
            return backend
    # It must be compiled first: the others are ready at once.
    if asked == "flex" or (asked == "auto" and (softcap is not None or sinks)):
        problem = why_not_flex(query, key, value, scaling=scaling, dropout=dropout, softcap=softcap, sinks=sinks)
        if problem is None:
            _say_once("flex, one call a layer, compiled for this model")
            return "flex"
    if asked != "auto":
        raise ConfigError(f"attention_backend={asked!r} cannot be used: {problem}", fix="Use 'auto' or 'sdpa'.")
    if query.device.type != "cpu":
        _say_once(f"a loop over responses ({problem})")
    return "sdpa"


@functools.cache
def _say_once(what: str) -> None:
    logger.info("Attention of the shared-prefix layout: %s.", what)


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: SharedPrefixLayout,
    *,
    scaling: float,
    dropout: float,
    window: int | None,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """One causal problem, aligned at the bottom right: (1, heads, Tq, D) against (1, heads, Tk, D)."""
    mask = layout.mask(query.shape[2], key.shape[2], window, query)
    if softcap is None and sinks is None:
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling, is_causal=mask is None
        )
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None:
        length = query.shape[2]
        causal = torch.ones(length, length, dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~causal, -math.inf)
    else:
        scores = scores + mask
    if sinks is not None:
        sink_scores = sinks.reshape(1, -1, 1, 1).expand(1, -1, query.shape[2], 1).to(scores.dtype)
        scores = torch.cat((scores, sink_scores), dim=-1)
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=wide).to(value.dtype)
    weights = nn.functional.dropout(weights[..., : key.shape[2]], p=dropout, training=dropout > 0)
    return weights @ value
