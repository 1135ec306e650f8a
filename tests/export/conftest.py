"""Tiny reward models in folders, whole and as adapters, and their rewards by plain transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model

ROWS = conversation_rows(8)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def save(tokenizer, tmp_path_factory):
    """Save a tiny model with its tokenizer in a new folder."""

    def save(architecture="llama", *, dtype=None, change=lambda model: None, tokenizer=tokenizer, **changes):
        folder = tmp_path_factory.mktemp("models") / "source"
        model = tiny_model(tokenizer, architecture, max_position_embeddings=512, **changes)
        change(model)
        (model if dtype is None else model.to(dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def source(save):
    return save()


@pytest.fixture(scope="session")
def save_adapter(save, tokenizer):
    """Save an adapter with weights of some size, and the model under it in a folder of its own."""
    peft = pytest.importorskip("peft")

    def save_adapter(config=None, architecture="llama", *, dtype=None, with_tokenizer=True):
        base = save(architecture, dtype=dtype)
        model = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(1)
        if config is None:
            config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", init_lora_weights=False)
        wrapped = peft.get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        folder = base.parent / "adapter"
        wrapped.save_pretrained(folder)
        if with_tokenizer:
            tokenizer.save_pretrained(folder)
        return folder

    return save_adapter


def responses(rows=ROWS):
    """All conversations of some pairs."""
    return [[*row["prompt"], *row[name]] for row in rows for name in ("chosen", "rejected")]


def plain(folder, conversations=None, model=None):
    """Rewards by plain transformers, one by one, in float32."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if model is None:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    found = []
    with torch.no_grad():
        for messages in responses() if conversations is None else conversations:
            text = tokenizer.apply_chat_template(messages, tokenize=False)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            found.append(model(torch.tensor([ids])).logits.item())
    return np.array(found)
