"""Which models may take the shared-prefix layout, and the check on real rows before it is relied on.

A model that does not qualify would be *silently* wrong, so there are two gates. `why_not_shared_prefix` reads the
configuration. `compare_with_padded` runs two short examples both ways and watches what each attention layer is called
with; it decides before the first step, on all processes alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import nn
from transformers import PreTrainedModel

from plaudit.data.collate import shortest_examples
from plaudit.errors import ConfigError
from plaudit.model.attention import AttentionCall, use_shared_prefix_attention
from plaudit.model.head import BACKEND_ATTRIBUTE, expand_to_padded, install_reward_forward, score_heads_of, trunk_of
from plaudit.model.peft import base_model_of, is_prompt_learning
from plaudit.model.varlen import AttentionBackend
from plaudit.prefix_tree import PrefixTree
from plaudit.schema import Batch

BatchLayout: TypeAlias = Literal["auto", "padded", "shared_prefix"]


def read_rewards_at_positions(base_model: PreTrainedModel) -> bool:
    """Teach a decoder reward model to read rewards at given positions; others go on pooling themselves.

    Args:
        base_model: The reward model, without wrapping; changed in place if it is such a decoder.

    Returns:
        Whether it is.
    """
    if not score_heads_of(base_model) or trunk_of(base_model) is None:
        return False
    install_reward_forward(base_model)
    return True


def choose_layout(
    model: nn.Module, asked: BatchLayout | str, *, own_collator: bool = False, neftune: bool = False
) -> tuple[str, str]:
    """The layout to start with, and why.

    Args:
        model: The reward model, maybe wrapped in an adapter.
        asked: The layout that was asked for; ``"auto"`` shares prefixes where the model allows it.
        own_collator: Whether the user's own collator makes the batches.
        neftune: Whether NEFTune noise is on.

    Raises:
        ConfigError: The layout asked for cannot be used.
    """
    if own_collator:
        if asked == "shared_prefix":
            raise ConfigError(
                "batch_layout='shared_prefix' and a `data_collator` of your own exclude each other",
                fix="Leave out one of them.",
            )
        return "padded", "a data collator was given"
    if asked == "padded":
        return "padded", "as asked for"
    problem: str | None = "prompt learning discards position ids"
    if not is_prompt_learning(model):
        problem = why_not_shared_prefix(base_model_of(model), neftune=neftune)
    if problem is None:
        return "shared_prefix", "as asked for" if asked == "shared_prefix" else "each prompt computed once"
    if asked == "shared_prefix":
        raise ConfigError(
            f"batch_layout='shared_prefix' cannot be used: {problem}",
            fix="Use batch_layout='auto' or 'padded'.",
        )
    return "padded", problem


LAYER_TYPES = {"full_attention", "sliding_attention"}
"""Kinds of layers whose output at a token depends on earlier tokens through attention alone."""
MODEL_KEYS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "reward_positions",
    "pieces",
    "text_positions",
    "text_targets",
)
"""What a batch hands to the model's forward; the rest is bookkeeping for the loss."""
# Allowed deviation of the states under the head, relative to the largest of them.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def why_not_shared_prefix(model: nn.Module, *, neftune: bool = False) -> str | None:
    """Say why a model must take the padded layout, judging by its configuration; None if it may share prefixes.

    Args:
        model: The sequence-classification model, without adapters' wrapping.
        neftune: Whether NEFTune noise is on: its scale depends on the length of the row.
    """
    name = type(model).__name__
    if neftune:
        return "NEFTune scales its noise by the length of the row"
    if not isinstance(model, PreTrainedModel):
        return f"{name} is not a transformers model"
    if not score_heads_of(model) or trunk_of(model) is None:
        return f"{name} has no linear `score` head on a decoder"
    config = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "use_bidirectional_attention", False):
        return f"{name} is not a causal decoder"
    if not model._can_set_attn_implementation():
        return f"{name} does not call transformers' attention interface"
    types = set(getattr(config, "layer_types", None) or ()) | set(getattr(config, "layers_block_type", None) or ())
    if types - LAYER_TYPES - {"attention"}:
        return f"{name} has layers that are no plain attention ({', '.join(sorted(types - LAYER_TYPES))})"
    return None


def enable_shared_prefix(model: PreTrainedModel, backend: AttentionBackend = "auto") -> None:
    """Route a model's attention through the shared-prefix function; batches without a layout run as before.

    Args:
        model: A model that `why_not_shared_prefix` lets pass. Its attention setting changes in place.
        backend: What computes the attention of a shared-prefix batch.
    """
    setattr(model, BACKEND_ATTRIBUTE, backend)
    base_implementation = model.config._attn_implementation
    # Older transformers let sdpa ignore the soft cap; eager attention applies it, as servers do.
    if base_implementation == "sdpa" and getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        base_implementation = "eager"
    model.set_attn_implementation(use_shared_prefix_attention(base_implementation))


@dataclass(frozen=True)
class Comparison:
    """Outcome of running the same rows in both layouts.

    Attributes:
        problem: Why the shared-prefix layout must not be used; None if it may.
        deviation: Largest difference of the states under the head, relative to the largest of them.
        tolerance: What was allowed.
    """

    problem: str | None
    deviation: float
    tolerance: float


def compare_with_padded(
    model: nn.Module, base_model: PreTrainedModel, batch: Batch, compute_dtype: torch.dtype | None = None
) -> Comparison:
    """Run a shared-prefix batch in both layouts, in evaluation mode, and compare the states under the head.

    Args:
        model: The model as it is called in training (wrapped by DDP, PEFT, ...).
        base_model: The reward model inside it.
        batch: A shared-prefix batch of a few short examples, on the model's device.
        compute_dtype: What the model computes in where that is not the type of its states (mixed precision).

    The random state, the training mode of every module and the model are left as they were.
    """
    inputs = {key: batch[key] for key in MODEL_KEYS if key in batch}
    input_ids, attention_mask, places_T = expand_to_padded(
        batch["input_ids"], batch["pieces"], base_model.config.get_text_config().pad_token_id or 0
    )
    positions_N = places_T.index_select(0, batch["reward_positions"])
    padded = {"input_ids": input_ids, "attention_mask": attention_mask, "reward_positions": positions_N}
    calls: list[AttentionCall] = []
    modes = [(module, module.training) for module in model.modules()]
    devices = [batch["input_ids"].device] if batch["input_ids"].device.type == "cuda" else []
    model.eval()
    try:
        # Nothing is worth compiling for two rows.
        eager = torch.compiler.set_stance("force_eager")
        with torch.no_grad(), torch.random.fork_rng(devices=devices), eager:
            shared_states = model(**inputs, attention_calls=calls).pooled_states
            padded_states = model(**padded).pooled_states
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError | ConfigError):
            raise
        return Comparison(f"the model failed on a shared-prefix batch ({type(error).__name__}: {error})", 0.0, 0.0)
    finally:
        for module, training in modes:
            module.training = training
    tolerance = max(_TOLERANCE.get(dtype, 1e-2) for dtype in (shared_states.dtype, compute_dtype) if dtype is not None)
    problem = _unexpected_calls(base_model, calls)
    scale = padded_states.float().abs().amax().clamp_min(1e-12)
    deviation = float((shared_states.float() - padded_states.float()).abs().amax() / scale)
    if problem is None and not deviation <= tolerance:
        problem = f"rewards would differ between the layouts (states by {deviation:.1e}, allowed {tolerance:.0e})"
    return Comparison(problem, deviation, tolerance)


def _unexpected_calls(model: PreTrainedModel, calls: list[AttentionCall]) -> str | None:
    config = model.config.get_text_config()
    layers = config.num_hidden_layers
    if len(calls) != layers:
        return f"{len(calls)} of {layers} layers attend through the attention interface"
    if any(call.mask_shape != (1, 1, 1, 1) for call in calls):
        return "the model builds an attention mask of its own"
    types = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if window is None:
        return None
    expected = [window if types is None or kind == "sliding_attention" else None for kind in types or [None] * layers]
    # Short rows would not show a window that the layers forgot to pass on.
    if [call.sliding_window for call in calls] != expected:
        return "its layers do not say which of them have a sliding window"
    return None


logger = logging.getLogger("plaudit")


@dataclass(frozen=True)
class Rewards:
    """What a reward model says about a batch.

    Attributes:
        rewards_N: Reward of each response, float32, shape (N,).
        tokens_computed: Tokens that went through the model, padding included, shared prompts once.
        aux_loss: Auxiliary loss of a mixture-of-experts model, a scalar; None without one.
        aux_loss_weight: Its coefficient in the loss, from the model's configuration.
        extras: What the training heads computed, by name.
    """

    rewards_N: torch.Tensor
    tokens_computed: int
    aux_loss: torch.Tensor | None = None
    aux_loss_weight: float = 0.0
    extras: Mapping[str, torch.Tensor] = field(default_factory=dict)


class RewardForward:
    """Calls a reward model in its layout, which is held against the padded one on the first batch.

    Args:
        base_model: The reward model itself, without wrapping.
        layout: ``"padded"`` or ``"shared_prefix"``: how batches arrive.
        reason: Why that one.
        reads_positions: Whether the model reads rewards at given positions, rather than pooling itself.
        required: Whether the layout was asked for: then a difference is an error, otherwise a fall back.

    Attributes:
        layout: The layout the model computes in; ``"padded"`` after a fall back.
        reason: Why that one.
    """

    def __init__(
        self, base_model: PreTrainedModel, layout: str, reason: str, *, reads_positions: bool, required: bool = False
    ) -> None:
        self.layout, self.reason = layout, reason
        self._base_model, self._reads_positions, self._required = base_model, reads_positions, required
        self._unchecked = layout == "shared_prefix"

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        compute_dtype: torch.dtype | None = None,
        gather: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> Rewards:
        """Rewards of a batch on the model's device.

        Args:
            model: The model as it is called (wrapped by DDP, PEFT, ...).
            batch: A batch in the layout.
            compute_dtype: What the model computes in, where mixed precision makes that differ from its states.
            gather: Collects a tensor from all processes, which decide alike; None for one process.

        Raises:
            ConfigError: If the layout was asked for and turns out wrong for this model.
        """
        if self._unchecked:
            self._check(model, batch, compute_dtype, gather)
        if not self._reads_positions:
            outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            return Rewards(outputs.logits[:, 0].float(), batch["input_ids"].numel())
        outputs = model(**{key: batch[key] for key in MODEL_KEYS if key in batch})
        weight = 0.0
        if outputs.aux_loss is not None:
            weight = self._base_model.config.get_text_config().router_aux_loss_coef
        tokens = self._tokens_computed(batch)
        return Rewards(outputs.logits[:, 0], tokens, outputs.aux_loss, weight, outputs.extras or {})

    def _check(
        self,
        model: nn.Module,
        batch: Batch,
        compute_dtype: torch.dtype | None,
        gather: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> None:
        comparison = compare_with_padded(model, self._base_model, shortest_examples(batch), compute_dtype)
        self._unchecked = False
        problem = torch.tensor([comparison.problem is not None], device=batch["input_ids"].device)
        if not (problem if gather is None else gather(problem)).any():
            return
        reason = comparison.problem or "another process found a difference"
        if self._required:
            raise ConfigError(
                f"batch_layout='shared_prefix' would be wrong for this model: {reason}",
                fix="Use batch_layout='auto'.",
            )
        self._base_model.expand_shared_prefix = True  # type: ignore[assignment]
        self.layout, self.reason = "padded", reason
        logger.warning("Falling back to the padded layout: %s.", reason)

    def _tokens_computed(self, batch: Batch) -> int:
        if "pieces" in batch and getattr(self._base_model, "expand_shared_prefix", False):
            lengths = PrefixTree(batch["pieces"]).response_lengths
            return len(lengths) * max(lengths)
        return batch["input_ids"].numel()
