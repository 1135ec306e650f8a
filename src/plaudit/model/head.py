"""The reward head: which hidden states it reads, in which precision, and how a fresh one starts.

The stock sequence-classification forward scores every token and pools one per row. A reward model built here keeps
its class, its state dict and its stock behaviour, and learns one more way to be called: with ``reward_positions`` it
scores the states at those positions and nothing else, whatever the layout of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from plaudit.losses import load_balancing_loss
from plaudit.model.attention import AttentionCall, SharedPrefixLayout


@dataclass
class RewardOutput(ModelOutput):
    """What a reward model returns for a batch that says where rewards are read.

    Attributes:
        logits: Rewards, shape (N, 1), float32.
        pooled_states: The states under the head that they were read from, shape (N, H).
        aux_loss: Load-balancing loss of a mixture-of-experts model whose configuration asks for it, a scalar.
    """

    logits: torch.Tensor | None = None
    pooled_states: torch.Tensor | None = None
    aux_loss: torch.Tensor | None = None


def trunk_of(model: PreTrainedModel) -> nn.Module | None:
    """The model below the head, or None where the model is built otherwise."""
    trunk = getattr(model, getattr(model, "base_model_prefix", ""), None)
    return trunk if isinstance(trunk, nn.Module) and trunk is not model else None


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
        model: A sequence-classification model with a trunk and a linear ``score`` head. Changed in place: its
            ``forward`` and that of its head, on the instance only.
    """
    heads = score_heads_of(model)
    if not heads or trunk_of(model) is None:
        raise TypeError(f"{type(model).__name__} has no trunk with a linear `score` head")
    for head in heads:
        head.forward = MethodType(_float32_linear_forward, head)  # type: ignore[method-assign]
    # Not functools.wraps: whoever unwraps the function would find the stock forward again.
    model.forward = MethodType(_reward_forward, model)


def _float32_linear_forward(self: nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
    # In bfloat16 close rewards become ties.
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(hidden.float(), self.weight.float(), bias)


def _reward_forward(
    self: Any,
    input_ids: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    reward_positions: torch.Tensor | None = None,
    prefix_lengths: torch.Tensor | None = None,
    response_lengths: torch.Tensor | None = None,
    example_of_response: torch.Tensor | None = None,
    attention_calls: list[AttentionCall] | None = None,
    skip_logits: bool | None = None,
    **kwargs: Any,
) -> Any:
    """Rewards (N, 1) at ``reward_positions`` of the flattened ``input_ids``, or the stock forward without them."""
    if reward_positions is None or input_ids is None:
        return type(self).forward(
            self, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
    kwargs = {name: value for name, value in kwargs.items() if value is not None and name != "return_dict"}
    weight_T = None if attention_mask is None else attention_mask.flatten()
    if prefix_lengths is not None:
        if response_lengths is None or example_of_response is None:
            raise ValueError("a shared-prefix batch needs response_lengths and example_of_response")
        if getattr(self, "expand_shared_prefix", False):
            input_ids, attention_mask, reward_positions = expand_to_padded(
                input_ids, prefix_lengths, response_lengths, example_of_response, self.config.pad_token_id or 0
            )
            position_ids, weight_T = None, attention_mask.flatten()
        else:
            layout = SharedPrefixLayout.from_tensors(prefix_lengths, response_lengths, example_of_response)
            layout.calls, weight_T = attention_calls, layout.multiplicity(input_ids.device)
            kwargs["shared_prefix_layout"] = layout
    if position_ids is not None:
        kwargs["position_ids"] = position_ids
    trunk = getattr(self, self.base_model_prefix)
    outputs = trunk(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs)
    pooled_NH = outputs[0].flatten(0, 1).index_select(0, reward_positions)
    router_logits = getattr(outputs, "router_logits", None)
    aux_loss = None
    if router_logits:
        aux_loss = load_balancing_loss(router_logits, self.config.get_text_config().num_experts_per_tok, weight_T)
    return RewardOutput(logits=self.score(pooled_NH), pooled_states=pooled_NH, aux_loss=aux_loss)


def expand_to_padded(
    input_ids: torch.Tensor,
    prefix_lengths_G: torch.Tensor,
    response_lengths_N: torch.Tensor,
    example_of_response_N: torch.Tensor,
    pad_token_id: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Turn a shared-prefix row back into a padded rectangle, one response a row.

    Args:
        input_ids: Shape (1, T).
        prefix_lengths_G: Tokens of each shared prompt, shape (G,).
        response_lengths_N: Tokens of each response, prompt included, shape (N,).
        example_of_response_N: Which example each response belongs to, shape (N,).
        pad_token_id: Fills the rest.

    Returns:
        ``input_ids`` (N, T'), ``attention_mask`` (N, T') and ``reward_positions`` (N,).
    """
    layout = SharedPrefixLayout.from_tensors(prefix_lengths_G, response_lengths_N, example_of_response_N)
    pieces = iter(input_ids[0].split(layout.key_pieces))
    rows: list[torch.Tensor] = []
    for suffixes in layout.suffix_lengths:
        prefix = next(pieces)
        rows.extend(torch.cat((prefix, next(pieces))) for _ in suffixes)
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    width = padded.shape[1]
    attention_mask = torch.arange(width, device=padded.device) < response_lengths_N[:, None]
    positions = torch.arange(len(rows), device=padded.device) * width + response_lengths_N - 1
    return padded, attention_mask.long(), positions
