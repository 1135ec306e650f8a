"""The variable-length attention of GPUs: its index arithmetic against the loop, with a plain kernel in its place."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from plaudit import ConfigError
from plaudit.model import attention, varlen
from plaudit.model.attention import SharedPrefixLayout, shared_prefix_attention
from plaudit.model.varlen import KERNELS, AttentionSettings, VarlenPlan, varlen_attention, why_not_varlen
from plaudit.prefix_tree import PrefixTree

# Two prompts with a beginning in common, a response alone, a prompt of its own.
TREE = PrefixTree(
    ((4, -1, 4), (3, 0, 1), (6, 0, 2), (1, 2, 1), (5, 2, 1), (1, 0, 1), (6, -1, 1), (7, -1, 2), (2, 7, 1), (2, 7, 1))
)


def causal_problems(query, key, value, query_ends, key_ends, *, scale, left):
    """What such kernels compute, written out: each problem alone, causal from the bottom right."""
    outputs = []
    for i in range(len(query_ends) - 1):
        q = query[query_ends[i] : query_ends[i + 1]]
        k, v = (
            t[key_ends[i] : key_ends[i + 1]].repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", q, k) * scale
        behind = torch.arange(len(q))[:, None] + len(k) - len(q) - torch.arange(len(k))
        seen = (behind >= 0) & ((behind <= left) if left >= 0 else torch.ones_like(behind, dtype=torch.bool))
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        outputs.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(outputs)


def plain_kernel(query, key, value, plan, settings):
    assert settings.dropout == 0
    assert plan.longest_query == plan.query_ends.diff().max()
    assert plan.longest_key == plan.key_ends.diff().max()
    left, right = settings.kernel_window
    assert right == 0
    return causal_problems(query, key, value, plan.query_ends, plan.key_ends, scale=settings.scaling, left=left)


def tensors(heads=4, key_heads=2, size=8):
    torch.manual_seed(0)
    length = TREE.tokens
    return [
        torch.randn(1, n, length, size, dtype=torch.float64, requires_grad=True) for n in (heads, key_heads, key_heads)
    ]


@pytest.mark.parametrize("window", [None, 1, 3, 100])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_one_call_gives_the_outputs_and_gradients_of_the_loop(window, key_heads):
    layout = SharedPrefixLayout(TREE)
    inputs = tensors(key_heads=key_heads)
    loop = shared_prefix_attention(*inputs, layout, AttentionSettings(0.3, sliding_window=window))
    plan = VarlenPlan(layout.tree, torch.device("cpu"))
    call = varlen_attention(*inputs, plan, plain_kernel, AttentionSettings(0.3, sliding_window=window))
    torch.testing.assert_close(call, loop)
    weight = torch.randn_like(loop)
    expected = torch.autograd.grad((loop * weight).sum(), inputs)
    for found, wanted in zip(torch.autograd.grad((call * weight).sum(), inputs), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def fake_varlen_attn(generation):
    """torch's function with the arguments of an older or the newest release."""
    if generation == "old":

        def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
            assert is_causal
            assert query.shape[1] == key.shape[1]
            scale = query.shape[-1] ** -0.5
            return causal_problems(query, key, value, cu_seq_q, cu_seq_k, scale=scale, left=-1)

    else:

        def varlen_attn(
            query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False
        ):
            assert window_size[1] == 0
            assert enable_gqa == (query.shape[1] != key.shape[1])
            return causal_problems(query, key, value, cu_seq_q, cu_seq_k, scale=scale, left=window_size[0])

    module = ModuleType("torch.nn.attention.varlen")
    module.varlen_attn = varlen_attn
    return module


def fake_flash_attn():
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1),
    ):  # fmt: skip
        assert causal
        return causal_problems(q, k, v, cu_seqlens_q, cu_seqlens_k, scale=softmax_scale, left=window_size[0])

    module = ModuleType("flash_attn")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    return module


def fake_flash_attn_3(both):
    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_q=None, seqused_k=None,
        softmax_scale=None, causal=False, window_size=(-1, -1),
    ):  # fmt: skip
        assert causal
        found = causal_problems(q, k, v, cu_seqlens_q, cu_seqlens_k, scale=softmax_scale, left=window_size[0])
        return (found, "sums of scores") if both else found

    module = ModuleType("flash_attn_interface")
    module.flash_attn_varlen_func = flash_attn_varlen_func
    return module


def fake_kernels():
    def get_kernel(repo_id, revision=None, version=None):
        assert (repo_id, revision) == ("kernels-community/flash-attn2", None)
        assert version in (3, 4)
        return fake_flash_attn()

    module = ModuleType("kernels")
    module.get_kernel = get_kernel
    return module


@pytest.mark.parametrize(
    ("backend", "module", "window"),
    [
        ("varlen", fake_varlen_attn("old"), None),
        ("varlen", fake_varlen_attn("new"), None),
        ("varlen", fake_varlen_attn("new"), 3),
        ("flash_attn", fake_flash_attn(), 3),
        ("flash_attn_3", fake_flash_attn_3(both=False), 3),
        ("flash_attn_3", fake_flash_attn_3(both=True), None),
        ("kernels", fake_kernels(), 3),
    ],
    ids=["varlen-old", "varlen", "varlen-window", "flash_attn", "flash_attn_3", "flash_attn_3-both", "kernels"],
)
def test_each_backend_is_called_as_its_release_wants(backend, module, window, monkeypatch):
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(attention, "why_not_varlen", lambda *args: None)
    varlen._hub_kernel.cache_clear()
    layout = SharedPrefixLayout(TREE)
    layout.backend = backend
    inputs = tensors()
    call = shared_prefix_attention(*inputs, layout, AttentionSettings(0.3, sliding_window=window))
    layout.backend = "sdpa"
    torch.testing.assert_close(
        call, shared_prefix_attention(*inputs, layout, AttentionSettings(0.3, sliding_window=window))
    )


def gpu_query(dtype=torch.bfloat16, head_size=64):
    """A query as it would be on a GPU."""
    return SimpleNamespace(device=torch.device("cuda"), dtype=dtype, shape=(1, 4, 1, head_size))


def test_why_a_backend_cannot_compute_a_call(monkeypatch):
    monkeypatch.setattr(varlen.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    settings = AttentionSettings(0.3)
    for backend in KERNELS:
        assert why_not_varlen(backend, gpu_query(), settings) is None
        assert "CUDA" in why_not_varlen(backend, torch.zeros(1, 4, 1, 64, dtype=torch.bfloat16), settings)
        assert "float16" in why_not_varlen(backend, gpu_query(dtype=torch.float32), settings)
        assert "soft cap" in why_not_varlen(backend, gpu_query(), AttentionSettings(0.3, softcap=30.0))
        assert "sinks" in why_not_varlen(backend, gpu_query(), AttentionSettings(0.3, sinks=torch.zeros(4)))
        assert "multiple of 8" in why_not_varlen(backend, gpu_query(head_size=60), settings)
    dropout = AttentionSettings(0.3, dropout=0.1)
    assert "dropout" in why_not_varlen("varlen", gpu_query(), dropout)
    assert "dropout" in why_not_varlen("flash_attn_3", gpu_query(), dropout)
    assert why_not_varlen("flash_attn", gpu_query(), dropout) is None
    assert set(varlen.AUTOMATIC) == set(KERNELS) - {"kernels"}


@pytest.mark.parametrize(("capability", "able"), [((8, 0), False), ((9, 0), True), ((10, 0), False)])
def test_flash_attention_3_is_for_hopper(capability, able, monkeypatch):
    monkeypatch.setattr(varlen.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    problem = why_not_varlen("flash_attn_3", gpu_query(), AttentionSettings(0.3))
    assert (problem is None) is able


def test_a_backend_that_the_user_set_is_not_replaced():
    layout = SharedPrefixLayout(TREE)
    layout.backend = "varlen"
    with pytest.raises(ConfigError) as error:
        shared_prefix_attention(*tensors(), layout, AttentionSettings(0.3))
    assert (error.value.field, error.value.fix is not None) == ("attention_backend", True)
