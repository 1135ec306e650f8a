"""A tiny reward model in memory and in a folder, and its rewards computed by plain transformers, one by one."""

from __future__ import annotations

import pytest
import torch

from builders import tiny_tokenizer
from model_builders import tiny_model
from plaudit import RewardModel


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def folder(tokenizer, tmp_path_factory):
    """Folder of a reward model with its tokenizer."""
    path = tmp_path_factory.mktemp("reward_model")
    tiny_model(tokenizer, max_position_embeddings=512).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def plain(tokenizer):
    """Reward of a whole text or conversation by a stock model, alone in its batch."""
    model = tiny_model(tokenizer, max_position_embeddings=512)

    def reward(response, **template):
        if isinstance(response, str):
            ids = tokenizer(response + tokenizer.eos_token)["input_ids"]
        else:
            text = tokenizer.apply_chat_template(response, tokenize=False, **template)
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            return model(torch.tensor([ids])).logits.item()

    return reward


@pytest.fixture(scope="session", params=["padded", "shared_prefix"])
def layout(request):
    return request.param


@pytest.fixture
def scorer(folder, layout):
    return RewardModel.from_pretrained(folder, device="cpu", batch_layout=layout, max_tokens_per_batch=300)
