"""The head's arithmetic, its start, and what happens to it in low precision."""

import copy

import pytest
import torch

from model_builders import tiny_reward_model
from plaudit.data.collate import SharedPrefixCollator
from plaudit.model.head import initialize_head, install_reward_forward
from plaudit.model.shared_prefix import MODEL_KEYS, enable_shared_prefix

ROWS = [{"chosen_ids": [5, 6, 7 + n], "rejected_ids": [5, 6, 70 + n]} for n in range(32)]


def rewards_of(model):
    batch = SharedPrefixCollator()(ROWS)
    with torch.no_grad():
        return model(**{key: batch[key] for key in MODEL_KEYS if key in batch}).logits[:, 0]


def prepared(dtype=torch.float32):
    model = tiny_reward_model("llama").to(dtype)
    install_reward_forward(model)
    enable_shared_prefix(model)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rewards_are_float32_and_close_ones_stay_apart(dtype):
    model = prepared(dtype)
    with torch.no_grad():
        model.score.weight.add_(5.0)  # rewards around a large value, where bfloat16 has few steps
    rewards = rewards_of(model)
    assert rewards.dtype == torch.float32
    assert model.score.weight.dtype == dtype  # storage follows the model
    assert len(rewards.unique()) > len(rewards.bfloat16().unique())


def test_autocast_does_not_round_rewards():
    model = prepared()
    with torch.autocast("cpu", torch.bfloat16):
        rewards = rewards_of(model)
    assert rewards.dtype == torch.float32
    assert len(rewards.unique()) > 60


def test_a_copy_scores_with_its_own_weights():
    model = prepared()
    twin = copy.deepcopy(model)
    torch.nn.init.zeros_(twin.score.weight)
    assert rewards_of(twin).abs().max() == 0
    assert rewards_of(model).abs().max() > 0


def test_a_fresh_head_starts_small_and_reproducibly():
    head = torch.nn.Linear(1023, 1, bias=False)
    state = torch.get_rng_state()
    initialize_head(head, seed=7)
    drawn = head.weight.clone()
    assert torch.equal(torch.get_rng_state(), state)
    assert drawn.std().item() == pytest.approx(1 / 1024**0.5, rel=0.1)
    initialize_head(head, seed=7)
    assert torch.equal(drawn, head.weight)
    initialize_head(head, seed=8)
    assert not torch.equal(drawn, head.weight)
