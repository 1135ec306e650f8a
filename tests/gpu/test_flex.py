"""FlexAttention as it is compiled on a GPU: outputs and gradients of the loop, one compilation for all lengths."""

import pytest
import torch

from model_builders import tiny_reward_model
from plaudit.data.collate import SharedPrefixCollator
from plaudit.model import attention
from plaudit.model.attention import SharedPrefixLayout, shared_prefix_attention
from plaudit.model.flex import why_not_flex
from plaudit.model.head import install_reward_forward
from plaudit.model.shared_prefix import compare_with_padded, enable_shared_prefix
from plaudit.model.varlen import AttentionSettings
from plaudit.prefix_tree import PrefixTree

DEVICE = torch.device("cuda")
ALLOWED = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
# Three levels of branches over several blocks, a response that leaves after the first, one without a prompt.
TREE = ((150, -1, 5), (40, 0, 3), (99, 1, 2), (3, 2, 1), (61, 2, 1), (1, 1, 1), (30, 0, 1), (1, 0, 1), (20, -1, 1))


def drawn(tree, heads, key_heads, size=64):
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(1, n, tree.tokens, size, generator=generator) for n in (heads, key_heads, key_heads)]
    return [*tensors, torch.randn(heads, generator=generator)]


def outputs_and_gradients(backend, tensors, tree, dtype, *, sinks, device=DEVICE, **options):
    inputs = [one.to(device, dtype).requires_grad_() for one in tensors[: 4 if sinks else 3]]
    options["sinks"] = inputs[3] if sinks else None
    output = shared_prefix_attention(
        *inputs[:3], SharedPrefixLayout(tree, backend), AttentionSettings(0.125, **options)
    )
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(9)).to(device)
    return [output, *torch.autograd.grad((output.to(weight.dtype) * weight).sum(), inputs)]


@pytest.mark.parametrize("dtype", ALLOWED)
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (8, 2), (6, 3)])
@pytest.mark.parametrize(
    "options",
    [
        {"sinks": False},
        {"sinks": False, "softcap": 2.0},
        {"sinks": True},
        {"sinks": True, "softcap": 2.0, "sliding_window": 70},
    ],
)
def test_outputs_and_gradients_are_those_of_the_loop(options, heads, key_heads, dtype):
    tree = PrefixTree(TREE)
    tensors = drawn(tree, heads, key_heads)
    found = outputs_and_gradients("flex", tensors, tree, dtype, **options)
    exact = outputs_and_gradients("sdpa", tensors, tree, torch.float64, device=torch.device("cpu"), **options)
    for one, other in zip(found, exact, strict=True):
        assert (one.cpu().double() - other).abs().max() <= ALLOWED[dtype] * other.abs().max()


def test_batches_of_other_lengths_are_not_compiled_for_again():
    frames = torch._dynamo.utils.counters["frames"]
    for number, prompt in enumerate((500, 5, 128, 1000, 3000, 257)):
        tree = PrefixTree(((prompt, -1, 2), (20 + number, 0, 1), (31, 0, 1)))
        outputs_and_gradients("flex", drawn(tree, 8, 2), tree, torch.bfloat16, sinks=False, softcap=2.0)
        if number == 1:
            before = frames["total"]
    assert frames["total"] == before


@pytest.mark.parametrize("architecture", ["gemma2", "gpt_oss"])
def test_models_that_need_it_take_it_and_pass_the_check_of_the_layouts(architecture, monkeypatch):
    used = []
    attend = attention.attend_with_flex
    monkeypatch.setattr(
        attention, "attend_with_flex", lambda *args, **kwargs: used.append(1) or attend(*args, **kwargs)
    )
    model = tiny_reward_model(architecture, head_dim=32).to(DEVICE)
    install_reward_forward(model)
    enable_shared_prefix(model)
    rows = [{"chosen_ids": [*range(5, 60), n], "rejected_ids": [*range(5, 60), n + 20, 7]} for n in range(60, 66)]
    batch = SharedPrefixCollator()(rows)
    batch = {key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
    assert compare_with_padded(model, model, batch) is None
    assert len(used) >= 3


def test_the_trial_run_passes():
    query, key, value, _ = (one.to(DEVICE, torch.bfloat16) for one in drawn(PrefixTree(TREE), 8, 2))
    assert (
        why_not_flex(query, key, value, AttentionSettings(0.125, softcap=50.0, sinks=torch.zeros(8, device=DEVICE)))
        is None
    )
