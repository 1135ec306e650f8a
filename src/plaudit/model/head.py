"""The reward head: which hidden states it reads, in which precision, and how a fresh one starts.

The stock sequence-classification forward scores every token and pools one per row. A reward model built here keeps
its class, its state dict and its stock behaviour, and learns one more way to be called: with ``reward_positions`` it
scores the states at those positions and nothing else, whatever the layout of the batch. This happens in the root
module's forward, so that the hooks of DDP, FSDP, DeepSpeed and PEFT run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from plaudit.losses import load_balancing_loss
from plaudit.model.attention import AttentionCall, SharedPrefixLayout
from plaudit.prefix_tree import Node, PrefixTree


@dataclass
class RewardOutput(ModelOutput):
    """What a reward model returns when it is called with ``reward_positions``."""

    logits: Tensor | None = None  # rewards, shape (N, 1), float32
    pooled_states: Tensor | None = None  # the states that they were read from, shape (N, H)
    aux_loss: Tensor | None = None  # load-balancing loss of a mixture of experts that asks for it, a scalar
    extras: dict[str, Tensor] | None = None  # outputs of the training heads, see `plaudit.model.aux_heads`


def backbone_of(model: PreTrainedModel) -> nn.Module | None:
    """Returns the model below the head, or None where the model is built otherwise."""
    backbone = getattr(model, getattr(model, "base_model_prefix", ""), None)
    return backbone if isinstance(backbone, nn.Module) and backbone is not model else None


def score_heads_of(model: nn.Module) -> list[nn.Linear]:
    """Returns the linear layers behind the name ``score`` of a decoder reward model; empty where there is none.

    Usually one; an adapter that trains the head keeps the original beside each trained copy.
    """
    head: Any = getattr(model, "score", None)
    copies = getattr(head, "modules_to_save", None)
    layers = [head] if copies is None else [head.original_module, *copies.values()]
    return [layer for layer in layers if isinstance(layer, nn.Linear)]


@contextmanager
def evaluating(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Context in which a model is in evaluation mode; its modes and the random states are restored."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training


def initialize_head(head: nn.Linear, seed: int) -> None:
    """Draws a fresh head with standard deviation ``1/sqrt(H+1)``, so that rewards start near zero.

    The global random state is left alone. Source: Stiennon et al. (2020), https://arxiv.org/abs/2009.01325, appendix.
    """
    generator = torch.Generator().manual_seed(seed)
    fresh = torch.randn(head.weight.shape, generator=generator) / (head.in_features + 1) ** 0.5
    with torch.no_grad():
        head.weight.copy_(fresh)
        if head.bias is not None:
            head.bias.zero_()


def install_reward_forward(model: PreTrainedModel) -> bool:
    """Lets a decoder reward model read rewards at given positions; returns False for models that pool themselves.

    Changes the forward of the model and of its head, on the instance only. Without positions it behaves as before.
    """
    heads = score_heads_of(model)
    if not heads or backbone_of(model) is None:
        return False
    for head in heads:
        head.forward = MethodType(_float32_linear_forward, head)  # type: ignore[method-assign]
    # Not functools.wraps: whoever unwraps the function would find the stock forward again.
    model.forward = MethodType(_reward_forward, model)
    return True


def _float32_linear_forward(self: nn.Linear, hidden: Tensor) -> Tensor:
    # In bfloat16 close rewards become ties.
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(hidden.float(), self.weight.float(), bias)


# The layout changes from batch to batch; the backbone below this function compiles.
@torch.compiler.disable(recursive=False)
def _reward_forward(
    self: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    reward_positions: Tensor | None = None,
    nodes: Sequence[Node] | None = None,
    attention_calls: list[AttentionCall] | None = None,
    text_positions: Tensor | None = None,
    text_targets: Tensor | None = None,
    skip_logits: bool | None = None,  # Liger passes it
    past_key_values: Any = None,  # by name, because prefix tuning looks for it in the signature
    **kwargs: Any,
) -> Any:
    """Returns rewards (N, 1) at ``reward_positions`` of the flattened ``input_ids``; without them, stock outputs."""
    kwargs["past_key_values"] = past_key_values
    if reward_positions is None:
        return type(self).forward(
            self, input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )
    kwargs = {name: value for name, value in kwargs.items() if value is not None and name != "return_dict"}
    layout = None
    if input_ids is None:
        # Prompt learning passes embeddings, those of its virtual tokens in front.
        reward_positions = last_attended(cast(Tensor, attention_mask))
    elif nodes is not None and getattr(self, "expand_shared_prefix", False):
        pad_token_id = self.config.get_text_config().pad_token_id or 0
        input_ids, attention_mask, index_T = expand_to_padded(input_ids, nodes, pad_token_id)
        reward_positions = index_T.index_select(0, reward_positions)
        text_positions = None if text_positions is None else index_T.index_select(0, text_positions)
        position_ids = None
    elif nodes is not None:
        layout = SharedPrefixLayout(PrefixTree(nodes), getattr(self, "shared_prefix_backend", "auto"), attention_calls)
        kwargs["shared_prefix_layout"] = layout
    if position_ids is not None:
        kwargs["position_ids"] = position_ids
    backbone = getattr(self, self.base_model_prefix)
    outputs = backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **kwargs)
    states_TH = outputs[0].flatten(0, 1)
    pooled_NH = states_TH.index_select(0, reward_positions)
    aux_loss = None
    if router_logits := getattr(outputs, "router_logits", None):
        # A token of a shared prompt stands for one in each response; padding stands for none.
        weight_T = None if attention_mask is None else attention_mask.flatten()
        if layout is not None:
            weight_T = layout.multiplicity(reward_positions.device)
        aux_loss = load_balancing_loss(router_logits, self.config.get_text_config().num_experts_per_tok, weight_T)
    extras = None
    if (heads := getattr(self, "training_heads", None)) is not None:
        embedding_weight = self.get_input_embeddings().weight
        # An adapter that trains the head keeps the original beside its copy.
        copies = getattr(self.score, "modules_to_save", None)
        head = self.score if copies is None else copies[self.score.active_adapters[0]]
        extras = heads(pooled_NH, states_TH, head.weight, text_positions, text_targets, embedding_weight)
    return RewardOutput(logits=self.score(pooled_NH), pooled_states=pooled_NH, aux_loss=aux_loss, extras=extras)


def last_attended(attention_mask: Tensor) -> Tensor:
    """Returns the index of each row's last attended token in the flattened rectangle, wherever the padding is."""
    rows, width = attention_mask.shape
    last = width - 1 - attention_mask.flip(-1).argmax(-1)
    return torch.arange(rows, device=attention_mask.device) * width + last


def expand_to_padded(input_ids: Tensor, nodes: Sequence[Node], pad_token_id: int) -> tuple[Tensor, Tensor, Tensor]:
    """Turns a shared-prefix row (1, T) back into a padded rectangle, one response per row.

    Returns ``input_ids`` (N, T'), ``attention_mask`` (N, T'), and the index of each token of the row in the flattened
    rectangle, shape (T,): of a shared prompt in its first copy.
    """
    tree = PrefixTree(nodes)
    ids = input_ids[0].split(tree.lengths)
    rows = [torch.cat([ids[node] for node in path]) for path in tree.paths]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    width = padded.shape[1]
    index: list[int] = []
    for row, (path, own) in enumerate(zip(tree.paths, tree.own, strict=True)):
        index += range(row * width + tree.depths[path[-own]], row * width + tree.response_lengths[row])
    lengths_N = torch.tensor(tree.response_lengths, device=padded.device)
    attention_mask = torch.arange(width, device=padded.device) < lengths_N[:, None]
    return padded, attention_mask.long(), torch.tensor(index, device=padded.device)
