"""The reward head: which hidden states it reads, in which precision, and how a fresh one starts.

The stock sequence-classification forward scores every token and pools one per row. A reward model built here keeps
its class, its state dict and its stock behaviour, and learns one more way to be called: with ``reward_positions`` it
scores the states at those positions and nothing else, whatever the layout of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from plaudit.losses import load_balancing_loss
from plaudit.model.attention import AttentionCall, SharedPrefixLayout
from plaudit.prefix_tree import Piece, PrefixTree

BACKEND_ATTRIBUTE = "shared_prefix_backend"
"""Attribute of a reward model that says what computes its attention in the shared-prefix layout."""


@dataclass
class RewardOutput(ModelOutput):
    """What a reward model returns for a batch that says where rewards are read.

    Attributes:
        logits: Rewards, shape (N, 1), float32.
        pooled_states: The states under the head that they were read from, shape (N, H).
        aux_loss: Load-balancing loss of a mixture-of-experts model whose configuration asks for it, a scalar.
        extras: What the training heads computed, by name; see `plaudit.model.aux_heads`.
    """

    logits: torch.Tensor | None = None
    pooled_states: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None
    extras: dict[str, torch.Tensor] | None = None


def trunk_of(model: PreTrainedModel) -> nn.Module | None:
    """The model below the head, or None where the model is built otherwise."""
    backbone = getattr(model, getattr(model, "base_model_prefix", ""), None)
    return backbone if isinstance(backbone, nn.Module) and backbone is not model else None


def score_heads_of(model: nn.Module) -> list[nn.Linear]:
    """The linear layers behind the name ``score`` of a decoder reward model; empty where there is none.

    Usually one; an adapter that trains the head keeps the original beside each trained copy.
    """
    head: Any = getattr(model, "score", None)
    copies = getattr(head, "modules_to_save", None)
    layers = [head] if copies is None else [head.original_module, *copies.values()]
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


def initialize_head(head: nn.Linear, seed: int) -> None:
    """Draw a fresh head with standard deviation ``1/sqrt(H+1)``, so that rewards start near zero.

    Args:
        head: The layer to fill, in place.
        seed: Seed of the draw; the global random state is left alone.

    Source: Stiennon et al. (2020), https://arxiv.org/abs/2009.01325, appendix.
    """
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randn(head.weight.shape, generator=generator) / (head.in_features + 1) ** 0.5
    with torch.no_grad():
        head.weight.copy_(fresh)
        if head.bias is not None:
            head.bias.zero_()


def install_reward_forward(model: PreTrainedModel) -> None:
    """Teach a decoder reward model to read rewards at given positions; without them it behaves as before.

    Args:
        model: A sequence-classification model with a backbone and a linear ``score`` head. Changed in place: its
            ``forward`` and that of its head, on the instance only.
    """
    heads = score_heads_of(model)
    if not heads or trunk_of(model) is None:
        raise TypeError(f"{type(model).__name__} has no backbone with a linear `score` head")
    for head in heads:
        head.forward = MethodType(_float32_linear_forward, head)  # type: ignore[method-assign]
    # Not functools.wraps: whoever unwraps the function would find the stock forward again.
    model.forward = MethodType(_reward_forward, model)


def _float32_linear_forward(self: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    # In bfloat16 close rewards become ties.
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(hidden.float(), self.weight.float(), bias)


# What it is told of the layout changes from batch to batch; below it the backbone compiles.
@torch.compiler.disable(recursive=False)
def _reward_forward(
    self: Any,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    reward_positions: torch.Tensor | None = None,
    pieces: Sequence[Piece] | None = None,
    attention_calls: list[AttentionCall] | None = None,
    text_positions: torch.Tensor | None = None,
    text_targets: torch.Tensor | None = None,
    skip_logits: bool | None = None,
    past_key_values: Any = None,
    **kwargs: Any,
) -> Any:
    """Rewards (N, 1) at ``reward_positions`` of the flattened ``input_ids``, or the stock forward without them."""
    kwargs["past_key_values"] = past_key_values  # by name: prefix tuning looks for it in the signature
    if reward_positions is None:
        return type(self).forward(
            self, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
    kwargs = {name: value for name, value in kwargs.items() if value is not None and name != "return_dict"}
    layout = None
    if input_ids is None:
        # Prompt learning hands down embeddings, those of its virtual tokens in front.
        reward_positions = last_attended(cast(torch.Tensor, attention_mask))
    elif pieces is not None and getattr(self, "expand_shared_prefix", False):
        input_ids, attention_mask, places_T = expand_to_padded(
            input_ids, pieces, self.config.get_text_config().pad_token_id or 0
        )
        reward_positions = places_T.index_select(0, reward_positions)
        text_positions = None if text_positions is None else places_T.index_select(0, text_positions)
        position_ids = None
    elif pieces is not None:
        backend = getattr(self, BACKEND_ATTRIBUTE, "auto")
        layout = SharedPrefixLayout(PrefixTree(tuple(pieces)), backend, attention_calls)
        kwargs["shared_prefix_layout"] = layout
    if position_ids is not None:
        kwargs["position_ids"] = position_ids
    backbone = getattr(self, self.base_model_prefix)
    outputs = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs)
    states_TH = outputs[0].flatten(0, 1)
    pooled_NH = states_TH.index_select(0, reward_positions)
    router_logits = getattr(outputs, "router_logits", None)
    aux_loss = None
    if router_logits:
        # A token of a shared prompt stands for one in each response; padding stands for none.
        weight_T = None if attention_mask is None else attention_mask.flatten()
        if layout is not None:
            weight_T = layout.multiplicity(reward_positions.device)
        aux_loss = load_balancing_loss(router_logits, self.config.get_text_config().num_experts_per_tok, weight_T)
    heads = getattr(self, "training_heads", None)
    extras = None
    if heads is not None:
        embedding = self.get_input_embeddings().weight
        text = (text_positions, text_targets, embedding)
        extras = heads(pooled_NH, states_TH, _trained_head_of(self.score).weight, *text)
    return RewardOutput(logits=self.score(pooled_NH), pooled_states=pooled_NH, aux_loss=aux_loss, extras=extras)


def _trained_head_of(score: Any) -> Any:
    """The head that is in use: an adapter that trains it keeps the original beside its copy."""
    copies = getattr(score, "modules_to_save", None)
    return score if copies is None else copies[score.active_adapters[0]]


def last_attended(attention_mask: torch.Tensor) -> torch.Tensor:
    """Where the last attended token of each row lies in the flattened rectangle, wherever the padding is.

    Args:
        attention_mask: Shape (N, T).

    Returns:
        Shape (N,).

    >>> last_attended(torch.tensor([[1, 1, 0], [0, 1, 1]])).tolist()
    [1, 5]
    """
    rows, width = attention_mask.shape
    last = width - 1 - attention_mask.flip(-1).argmax(-1)
    return torch.arange(rows, device=attention_mask.device) * width + last


def expand_to_padded(
    input_ids: torch.Tensor, pieces: Sequence[Piece], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn a shared-prefix row back into a padded rectangle, one response a row.

    Args:
        input_ids: Shape (1, T).
        pieces: What the row is made of, as in `PrefixTree`.
        pad_token_id: Fills the rest.

    Returns:
        ``input_ids`` (N, T') and ``attention_mask`` (N, T'); and where each token of the row lies in the flattened
        rectangle, shape (T,), those of a shared prompt in its first copy.
    """
    tree = PrefixTree(tuple(pieces))
    ids = input_ids[0].split(tree.lengths)
    rows: list[torch.Tensor] = []
    origins: list[tuple[int, int]] = []  # row and column of each token
    for path, own in zip(tree.paths, tree.own, strict=True):
        start = tree.depths[path[-own]]
        origins += [(len(rows), column) for column in range(start, tree.response_lengths[len(rows)])]
        rows.append(torch.cat([ids[piece] for piece in path]))
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    width = padded.shape[1]
    lengths_N = torch.tensor([len(row) for row in rows], device=padded.device)
    attention_mask = torch.arange(width, device=padded.device) < lengths_N[:, None]
    places_T = torch.tensor([row * width + column for row, column in origins], device=padded.device)
    return padded, attention_mask.long(), places_T
