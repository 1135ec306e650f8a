"""Computes the rewards of a batch. Trainer, evaluation and scoring all call the model through `RewardForward`.

A model that does not qualify for the shared-prefix layout would be *silently* wrong, so there are two gates.
`why_not_shared_prefix` reads the configuration. `compare_with_padded` runs two short examples both ways and records
what each attention layer is called with; it decides before the first step, on all processes alike.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from plaudit.data.collate import shortest_examples
from plaudit.errors import ConfigError
from plaudit.metrics import Gather
from plaudit.model.attention import AttentionCall, use_shared_prefix_attention
from plaudit.model.head import backbone_of, evaluating, expand_to_padded, score_heads_of
from plaudit.model.peft import base_model_of, is_prompt_learning
from plaudit.model.varlen import AttentionBackend
from plaudit.prefix_tree import PrefixTree
from plaudit.schema import Batch

logger = logging.getLogger("plaudit")
BatchLayout: TypeAlias = Literal["auto", "padded", "shared_prefix"]
# What a batch hands to the model's forward; the rest is bookkeeping for the loss.
MODEL_KEYS = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "reward_positions",
    "nodes",
    "text_positions",
    "text_targets",
)
# In these layers the output at a token depends on earlier tokens through attention alone.
_LAYER_TYPES = {"full_attention", "sliding_attention", "attention"}
# Allowed deviation of the states under the head, relative to the largest of them.
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def why_not_shared_prefix(model: nn.Module, *, neftune: bool = False) -> str | None:
    """Returns why the configuration of a model (without adapters) rules sharing prefixes out; None if it may share."""
    name = type(model).__name__
    if neftune:
        return "NEFTune scales its noise by the length of the row"
    if not isinstance(model, PreTrainedModel):
        return f"{name} is not a transformers model"
    if not score_heads_of(model) or backbone_of(model) is None:
        return f"{name} has no linear `score` head on a decoder"
    config = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "use_bidirectional_attention", False):
        return f"{name} is not a causal decoder"
    # Bloom, MPT and GPT-J have attention code of their own. StableLM takes the interface but drops the layout, which
    # only `compare_with_padded` can find.
    if not model._can_set_attn_implementation():
        return f"{name} does not call transformers' attention interface"
    # Hybrids (Qwen3-Next, Jamba, MiniMax) carry states from token to token beside attention; Llama 4 attends in chunks.
    types = set(getattr(config, "layer_types", None) or ()) | set(getattr(config, "layers_block_type", None) or ())
    if types - _LAYER_TYPES:
        return f"{name} has layers that are no plain attention ({', '.join(sorted(types - _LAYER_TYPES))})"
    return None


def enable_shared_prefix(model: PreTrainedModel, backend: AttentionBackend = "auto") -> None:
    """Routes a model's attention through the shared-prefix function; batches without a layout run as before."""
    model.shared_prefix_backend = backend  # type: ignore[assignment]
    base_implementation = model.config._attn_implementation
    # Older transformers let sdpa ignore the soft cap; eager attention applies it, as servers do.
    if base_implementation == "sdpa" and getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        base_implementation = "eager"
    model.set_attn_implementation(use_shared_prefix_attention(base_implementation))


@dataclass(frozen=True)
class Rewards:
    """What a reward model returns for a batch."""

    rewards_N: Tensor  # float32, shape (N,)
    tokens_computed: int  # tokens that went through the model, padding included, shared prompts once
    aux_loss: Tensor | None = None  # auxiliary loss of a mixture of experts, a scalar
    aux_loss_weight: float = 0.0  # its coefficient in the loss, from the model's configuration
    extras: Mapping[str, Tensor] = field(default_factory=dict)  # outputs of the training heads, by name


class RewardForward:
    """Calls a reward model in its layout, which is compared with the padded one on the first batch.

    `base_model` is the reward model without wrapping. `layout` is how batches arrive, ``"padded"`` after a fallback,
    and `reason` says why. `reads_positions` tells whether the model reads rewards at given positions, rather than
    pooling itself. With `required` a difference raises `ConfigError`, rather than fall back: the user set the layout.
    """

    def __init__(
        self, base_model: PreTrainedModel, layout: str, reason: str, *, reads_positions: bool, required: bool = False
    ) -> None:
        self.layout, self.reason = layout, reason
        self.base_model, self.reads_positions, self._required = base_model, reads_positions, required
        self._unchecked = layout == "shared_prefix"

    def __call__(
        self, model: nn.Module, batch: Batch, *, compute_dtype: torch.dtype | None = None, gather: Gather | None = None
    ) -> Rewards:
        """Returns the rewards of a batch in the layout, on the model's device.

        `model` is the model as it is called (wrapped by DDP, PEFT, ...), and `compute_dtype` what it computes in, where
        mixed precision makes that differ from its states. Processes decide alike, by what `gather` collects of them.
        """
        if self._unchecked:
            self._check(model, batch, compute_dtype, gather)
        if not self.reads_positions:
            outputs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            return Rewards(outputs.logits[:, 0].float(), batch["input_ids"].numel())
        outputs = model(**{key: batch[key] for key in MODEL_KEYS if key in batch})
        tokens, weight = batch["input_ids"].numel(), 0.0
        if "nodes" in batch and getattr(self.base_model, "expand_shared_prefix", False):
            lengths = PrefixTree(batch["nodes"]).response_lengths
            tokens = len(lengths) * max(lengths)
        if outputs.aux_loss is not None:
            weight = self.base_model.config.get_text_config().router_aux_loss_coef
        return Rewards(outputs.logits[:, 0], tokens, outputs.aux_loss, weight, outputs.extras or {})

    def _check(self, model: nn.Module, batch: Batch, compute_dtype: torch.dtype | None, gather: Gather | None) -> None:
        reason = compare_with_padded(model, self.base_model, shortest_examples(batch), compute_dtype)
        self._unchecked = False
        problem = torch.tensor([reason is not None], device=batch["input_ids"].device)
        if not (problem if gather is None else gather(problem)).any():
            return
        reason = reason or "another process found a difference"
        if self._required:
            message = f"batch_layout='shared_prefix' would be wrong for this model: {reason}"
            raise ConfigError(message, field="batch_layout", fix="Use batch_layout='auto'.")
        # Batches still arrive in the layout; the model turns each of them into a rectangle.
        self.base_model.expand_shared_prefix = True  # type: ignore[assignment]
        self.layout, self.reason = "padded", reason
        logger.warning("Falling back to the padded layout: %s.", reason)


def make_forward(
    model: nn.Module,
    batch_layout: BatchLayout,
    *,
    reads_positions: bool,
    own_collator: bool = False,
    neftune: bool = False,
    backend: AttentionBackend = "auto",
) -> RewardForward:
    """Chooses the batch layout, prepares the model for it, and returns what calls the model.

    Raises `ConfigError` where the user set a layout that cannot be used.
    """
    base_model, required = base_model_of(model), batch_layout == "shared_prefix"
    layout, reason, problem = "padded", "as set by `batch_layout`", None
    if own_collator:
        problem = "a data collator was given"
    elif batch_layout != "padded":
        problem = why_not_shared_prefix(base_model, neftune=neftune)
        if is_prompt_learning(model):
            problem = "prompt learning discards position ids"
        layout = "padded" if problem else "shared_prefix"
    if problem and required:
        fix = "Remove `data_collator`, or `batch_layout`." if own_collator else "Use batch_layout='auto' or 'padded'."
        message = f"batch_layout='shared_prefix' cannot be used: {problem}"
        raise ConfigError(message, field="batch_layout", fix=fix)
    if layout == "shared_prefix":
        enable_shared_prefix(base_model, backend)
        reason = reason if required else "each prompt computed once"
    return RewardForward(base_model, layout, problem or reason, reads_positions=reads_positions, required=required)


def compare_with_padded(
    model: nn.Module, base_model: PreTrainedModel, batch: Batch, compute_dtype: torch.dtype | None = None
) -> str | None:
    """Runs a few short examples in both layouts and returns why sharing prefixes is wrong for the model; None if exact.

    States under the head are compared, because a fresh or constant head would hide a difference. The random state,
    the training mode of every module and the model are left as they were.
    """
    inputs = {key: batch[key] for key in MODEL_KEYS if key in batch}
    pad_token_id = base_model.config.get_text_config().pad_token_id or 0
    input_ids, attention_mask, index_T = expand_to_padded(batch["input_ids"], batch["nodes"], pad_token_id)
    positions_N = index_T.index_select(0, batch["reward_positions"])
    calls: list[AttentionCall] = []
    try:
        # Nothing is worth compiling for two rows.
        eager = torch.compiler.set_stance("force_eager")
        with evaluating(model, batch["input_ids"].device), torch.no_grad(), eager:
            shared_states = model(**inputs, attention_calls=calls).pooled_states
            padded_states = model(
                input_ids=input_ids, attention_mask=attention_mask, reward_positions=positions_N
            ).pooled_states
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if isinstance(error, torch.OutOfMemoryError | ConfigError):
            raise
        return f"the model failed on a shared-prefix batch ({type(error).__name__}: {error})"
    config = base_model.config.get_text_config()
    layers, types = config.num_hidden_layers, getattr(config, "layer_types", None)
    if len(calls) != layers:
        return f"{len(calls)} of {layers} layers attend through the attention interface"
    # transformers passes the collator's placeholder on and builds no mask. Any other one hides tokens of its own.
    if any(mask_shape != (1, 1, 1, 1) for mask_shape, _ in calls):
        return "the model builds an attention mask of its own"
    if (window := getattr(config, "sliding_window", None)) is not None:
        kinds = types or ["sliding_attention"] * layers
        # Short rows would not show a window that a layer does not pass on.
        if [given for _, given in calls] != [window if kind == "sliding_attention" else None for kind in kinds]:
            return "its layers do not say which of them have a sliding window"
    tolerance = max(_TOLERANCE.get(dtype, 1e-2) for dtype in (shared_states.dtype, compute_dtype) if dtype is not None)
    scale = padded_states.float().abs().amax().clamp_min(1e-12)
    deviation = float((shared_states.float() - padded_states.float()).abs().amax() / scale)
    if not deviation <= tolerance:  # NaN included
        return f"rewards would differ between the layouts (states by {deviation:.1e}, allowed {tolerance:.0e})"
    return None
