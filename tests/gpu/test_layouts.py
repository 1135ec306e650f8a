"""The shared-prefix layout gives the rewards and gradients of the padded one on a GPU, with its own kernels."""

import copy
import random

import pytest
import torch

from model_builders import tiny_reward_model
from plaudit.data.collate import PaddedCollator, SharedPrefixCollator
from plaudit.losses import bradley_terry_loss
from plaudit.model.head import install_reward_forward
from plaudit.model.shared_prefix import MODEL_KEYS, compare_with_padded, enable_shared_prefix

DEVICE = "cuda"
ARCHITECTURES = ["llama", "mistral", "qwen2", "qwen3_moe", "gemma2", "gpt2", "gpt_neox", "phi3"]


def rows(count=6):
    """Uneven lengths, longer than the sliding windows of the tiny models."""
    draw = random.Random(0)

    def tokens(low, high):
        return [draw.randrange(3, 128) for _ in range(draw.randint(low, high))]

    prompts = [tokens(4, 30) for _ in range(count)]
    return [{"chosen_ids": p + tokens(1, 9), "rejected_ids": p + tokens(1, 9)} for p in prompts]


def batches():
    return {"padded": PaddedCollator(pad_token_id=0)(rows()), "shared_prefix": SharedPrefixCollator()(rows())}


def on_device(batch):
    return {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}


def prepared(architecture):
    model = tiny_reward_model(architecture)
    install_reward_forward(model)
    enable_shared_prefix(model)
    return model


def rewards_and_gradients(model, batch):
    model.zero_grad()
    rewards_N = model(**{key: batch[key] for key in MODEL_KEYS if key in batch}).logits[:, 0]
    better, worse = rewards_N[batch["better"]], rewards_N[batch["worse"]]
    bradley_terry_loss(better, worse).sum().backward()
    gradients = {name: p.grad.float().cpu() for name, p in model.named_parameters() if p.grad is not None}
    return torch.cat((better, worse)).detach().cpu(), gradients


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rewards_and_gradients_agree_in_float32(architecture):
    model = prepared(architecture).to(DEVICE)
    results = {layout: rewards_and_gradients(model, on_device(batch)) for layout, batch in batches().items()}
    (padded, padded_gradients), (shared, shared_gradients) = results["padded"], results["shared_prefix"]
    assert padded.std() > 1e-2, "the rewards must differ for this to say anything"
    torch.testing.assert_close(shared, padded, rtol=0, atol=1e-4)
    largest = max(gradient.norm() for gradient in padded_gradients.values())
    for name, expected in padded_gradients.items():
        assert (shared_gradients[name] - expected).norm() <= 1e-3 * expected.norm() + 1e-5 * largest, name


@pytest.mark.parametrize("stored", [False, True], ids=["autocast", "stored"])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma2", "gpt2"])
def test_in_bfloat16_neither_layout_is_further_from_the_truth(architecture, stored):
    exact_model = prepared(architecture)
    exact, exact_gradients = rewards_and_gradients(exact_model, batches()["padded"])
    model = copy.deepcopy(exact_model).to(DEVICE, torch.bfloat16 if stored else torch.float32)
    errors, gradient_errors = {}, {}
    for layout, batch in batches().items():
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=not stored):
            rewards, gradients = rewards_and_gradients(model, on_device(batch))
        assert rewards.dtype == torch.float32
        errors[layout] = (rewards - exact).norm() / exact.norm()
        gradient_errors[layout] = max(
            (gradients[name] - expected).norm() / (expected.norm() + 1e-3)
            for name, expected in exact_gradients.items()
            if expected.norm() > 1e-2
        )
    assert errors["padded"] < 0.1, "bfloat16 itself must not drown the comparison"
    assert errors["shared_prefix"] <= 2 * errors["padded"] + 0.01
    assert gradient_errors["shared_prefix"] <= 2 * gradient_errors["padded"] + 0.05


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_check_before_the_first_step_lets_them_pass(architecture):
    model = prepared(architecture).to(DEVICE)
    batch = on_device(batches()["shared_prefix"])
    assert compare_with_padded(model, model, batch) is None
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert compare_with_padded(model, model, batch, torch.bfloat16) is None
