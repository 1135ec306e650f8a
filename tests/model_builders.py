"""Tiny random reward models of many architectures, built in memory."""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 5}
ALTERNATE = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

SHARED_PREFIX_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"head_dim": 8, **WINDOW},
    "mixtral": {"head_dim": 8, "num_local_experts": 4, **WINDOW},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 1, **WINDOW},
    "qwen3": {"head_dim": 8},
    "qwen3_moe": {"head_dim": 8, **MOE},
    "gemma": {"head_dim": 8},
    "gemma2": {"head_dim": 8, "attn_implementation": "eager", **WINDOW, **ALTERNATE},
    "gemma3_text": {"head_dim": 8, **WINDOW, **ALTERNATE},
    "phi": {},
    "phi3": {**WINDOW},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128},
    "gpt_neox": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "starcoder2": {**WINDOW},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, **WINDOW, **ALTERNATE},
    "smollm3": {},
}

PADDED_ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {},
    "modernbert": {"num_hidden_layers": 3},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "num_experts": 2,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
    "bloom": {"n_layer": 3, "n_head": 4},
    "gptj": {"n_embd": 32, "n_layer": 3, "n_head": 4, "rotary_dim": 4, "n_positions": 128},
    "stablelm": {},
}


def tiny_reward_model(architecture: str, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random float32 reward model in evaluation mode, without dropout; weights large enough for rewards to differ."""
    known = {**SHARED_PREFIX_ARCHITECTURES, **PADDED_ARCHITECTURES}
    config = AutoConfig.for_model(architecture, **{**COMMON, **known[architecture], "num_labels": 1, **changes})
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
            elif "sinks" in name:
                parameter.normal_()
    return model.eval()


def tiny_model(tokenizer: PreTrainedTokenizerBase, architecture: str = "llama", **changes: Any) -> PreTrainedModel:
    """A random reward model whose vocabulary is that of a tokenizer."""
    return tiny_reward_model(
        architecture,
        vocab_size=len(tokenizer),
        pad_token_id=0,
        eos_token_id=tokenizer.eos_token_id,
        **changes,
    )


def conversation_rows(count: int = 12) -> list[dict[str, Any]]:
    """Pairs whose better answer says so, of uneven lengths."""
    return [
        {
            "prompt": [{"role": "user", "content": "Add " + "one and " * (n % 3) + str(n)}],
            "chosen": [{"role": "assistant", "content": "good" + "!" * (n % 4)}],
            "rejected": [{"role": "assistant", "content": "bad" + "?" * (n % 5)}],
        }
        for n in range(count)
    ]
