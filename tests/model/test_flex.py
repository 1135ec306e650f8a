"""FlexAttention on the shared-prefix layout: the same as the loop over responses, from masks to gradients."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as torch_flex
from torch.nn.attention.flex_attention import create_mask

from model_builders import tiny_reward_model
from plaudit import ConfigError
from plaudit.data.collate import PaddedCollator, SharedPrefixCollator
from plaudit.losses import bradley_terry_loss
from plaudit.model import attention, flex
from plaudit.model.attention import SharedPrefixLayout, shared_prefix_attention
from plaudit.model.flex import BLOCK, FlexPlan, attend_densely, attend_with_flex, visible_blocks, why_not_flex
from plaudit.model.head import install_reward_forward
from plaudit.model.load import disable_dropout
from plaudit.model.shared_prefix import MODEL_KEYS, enable_shared_prefix
from plaudit.model.varlen import AttentionSettings
from plaudit.prefix_tree import PrefixTree, share_prefixes
from plaudit.schema import EncodedExample
from tolerances import ATTENTION, BFLOAT16, REWARD, assert_gradients_close

CPU = torch.device("cpu")

# Three levels of branches over several blocks, a response that leaves after the first, one without a prompt.
TREE = PrefixTree(
    ((150, -1, 5), (40, 0, 3), (99, 1, 2), (3, 2, 1), (61, 2, 1), (1, 1, 1), (30, 0, 1), (1, 0, 1), (20, -1, 1))
)
SMALL = PrefixTree(
    ((4, -1, 5), (3, 0, 2), (2, 1, 1), (5, 1, 1), (1, 0, 3), (2, 4, 1), (9, 4, 1), (1, 4, 1), (7, -1, 1))
)

# No backward pass of FlexAttention on a CPU is public; what it is made of runs here all the same.
FEATURES = [
    {},
    {"softcap": 1.5},
    {"sinks": True},
    {"sliding_window": 5},
    {"sliding_window": 70, "softcap": 2.0, "sinks": True},
]


@pytest.fixture
def gradients_on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)
    monkeypatch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


def random_rows(count=5):
    draw = random.Random(0)

    def tokens(low, high):
        return [draw.randrange(3, 128) for _ in range(draw.randint(low, high))]

    prompts = [tokens(4, 60) for _ in range(count)]
    rows = [{"chosen_ids": p + tokens(1, 9), "rejected_ids": p + tokens(1, 9)} for p in prompts]
    return [*rows, {"chosen_ids": prompts[0] + tokens(1, 9), "rejected_ids": prompts[0][:3] + tokens(1, 9)}]


ROWS = random_rows()


def rewards_and_gradients(model, batch):
    model.zero_grad()
    rewards_N = model(**{key: batch[key] for key in MODEL_KEYS if key in batch}).logits[:, 0]
    better, worse = rewards_N[batch["better"]], rewards_N[batch["worse"]]
    bradley_terry_loss(better, worse).sum().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return torch.cat((better, worse)).detach(), found


def drawn(tree, heads=4, key_heads=2, size=16, value_size=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    shapes = ((heads, size), (key_heads, size), (key_heads, value_size))
    tensors = [torch.randn(1, n, tree.tokens, width, generator=generator, dtype=torch.float64) for n, width in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def features_of(options, heads, dtype=torch.float32):
    sinks = None
    if options.get("sinks"):
        generator = torch.Generator().manual_seed(4)
        sinks = torch.randn(heads, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return {**options, "sinks": sinks}


def gradients(output, inputs):
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad((output.double() * weight).sum(), inputs)


def exact(inputs, options, tree):
    """The loop over responses in float64, which test_attention holds against attention written out."""
    wide = [tensor.detach().double().requires_grad_() for tensor in inputs]
    sinks = options["sinks"]
    sinks = None if sinks is None else sinks.detach().double().requires_grad_()
    layout = SharedPrefixLayout(tree, "sdpa")
    output = shared_prefix_attention(*wide, layout, AttentionSettings(0.3, **{**options, "sinks": sinks}))
    return output, gradients(output, [*wide, *([] if sinks is None else [sinks])])


def assert_close(found, expected, allowed=ATTENTION):
    assert found.shape == expected.shape
    assert (found.double() - expected).abs().max() <= allowed.share * expected.abs().max().clamp_min(1.0)


@pytest.mark.parametrize("attend", [attend_densely, attend_with_flex])
@pytest.mark.parametrize("key_heads", [1, 3, 6])
@pytest.mark.parametrize("options", FEATURES, ids=lambda options: "-".join(options) or "plain")
def test_outputs_and_gradients_are_those_of_the_loop(options, key_heads, attend, gradients_on_a_cpu):
    inputs, options = drawn(TREE, heads=6, key_heads=key_heads, value_size=24), features_of(options, 6)
    found = attend(*inputs, FlexPlan(TREE, CPU), AttentionSettings(0.3, **options))
    expected, wanted = exact(inputs, options, TREE)
    assert_close(found, expected)
    sinks = [] if options["sinks"] is None else [options["sinks"]]
    for gradient, reference in zip(gradients(found, [*inputs, *sinks]), wanted, strict=True):
        assert_close(gradient, reference)


def test_without_gradients_the_public_function_runs_on_a_cpu():
    inputs, options = [tensor.detach() for tensor in drawn(SMALL)], {"sliding_window": 6, "softcap": 2.0, "sinks": None}
    found = attend_with_flex(*inputs, FlexPlan(SMALL, CPU), AttentionSettings(0.3, **options))
    assert_close(found, exact(inputs, options, SMALL)[0])


def test_in_mixed_precision_it_computes_in_the_lower_one(gradients_on_a_cpu):
    inputs, options = drawn(SMALL), features_of({"sinks": True, "softcap": 3.0}, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend_with_flex(*inputs, FlexPlan(SMALL, CPU), AttentionSettings(0.3, **options))
    assert found.dtype == torch.bfloat16
    expected, wanted = exact(inputs, options, SMALL)
    actual = (found, *gradients(found, [*inputs, options["sinks"]]))
    for tensor, reference in zip(actual, (expected, *wanted), strict=True):
        assert_close(tensor, reference, allowed=BFLOAT16)


def test_sinks_move_the_gradients_of_scores_through_the_sum_that_they_share(gradients_on_a_cpu):
    """Without the gradient of the log-sum-exp, queries would miss what sinks take from them."""
    inputs, options = drawn(SMALL), features_of({"sinks": True}, 4)
    _, wanted = exact(inputs, options, SMALL)
    detached = torch_flex.flex_attention

    def without(*args, **settings):
        output, aux = detached(*args, **settings)
        return output, aux._replace(lse=aux.lse.detach())

    flex_kernel = flex._kernel
    try:
        flex._kernel = lambda kind: without
        found = attend_with_flex(*inputs, FlexPlan(SMALL, CPU), AttentionSettings(0.3, **options))
    finally:
        flex._kernel = flex_kernel
    assert (gradients(found, inputs)[0] - wanted[0]).abs().max() > 1e-2


def by_hand(tree, window):
    """Whether a query sees a key: the key is in the query's path, not later, not too far back."""
    visible = torch.zeros(tree.tokens, tree.tokens, dtype=torch.bool)
    for path in tree.paths:
        places = [tree.starts[node] + token for node in path for token in range(tree.lengths[node])]
        for position, query in enumerate(places):
            first = 0 if window is None else max(0, position - window + 1)
            visible[query, places[first : position + 1]] = True
    return visible


beginnings = st.sampled_from([(), (1,) * 9, (1,) * 9 + (2,) * 140, (3,) * 260])
responses = st.builds(
    lambda start, rest: [*start, *rest], beginnings, st.lists(st.integers(1, 3), min_size=1, max_size=130)
)
batches = st.lists(st.lists(responses, min_size=1, max_size=3), min_size=1, max_size=4)


@settings(max_examples=60, derandomize=True, deadline=None)
@example(ids=[[[3] * 600, [3] * 600 + [1]]], window=130)
@example(ids=[[[3] * 600, [3] * 600 + [1]]], window=300)
@given(ids=batches, window=st.sampled_from([None, 1, 4, 100, 130, 1000]))
def test_of_any_batch_masks_and_blocks_say_what_each_token_sees(ids, window):
    tree = share_prefixes([EncodedExample(tuple(responses)) for responses in ids]).tree
    plan = FlexPlan(tree, CPU)
    seen = create_mask(plan.mask_function(window), 1, 1, plan.tokens, plan.tokens, CPU)[0, 0]
    assert torch.equal(seen[: tree.tokens, : tree.tokens], by_hand(tree, window))
    assert not seen[tree.tokens :, : tree.tokens].any(), "what fills the row up sees nothing of it"
    assert seen.diagonal().all(), "no query without a key"
    blocks = seen.view(plan.tokens // BLOCK, BLOCK, -1, BLOCK).transpose(1, 2)
    some, every = visible_blocks(plan.end_T, plan.position_T, plan.first_visible(window))
    assert not (blocks.any(-1).any(-1) & ~some).any(), "a block that is left out is empty"
    assert not (every & ~blocks.all(-1).all(-1)).any(), "a block that is taken whole is full"
    if window is None:
        assert torch.equal(some, blocks.any(-1).any(-1))
        assert torch.equal(every, blocks.all(-1).all(-1))


def test_the_mask_of_blocks_holds_them_in_both_directions():
    plan = FlexPlan(TREE, CPU)
    some, every = visible_blocks(plan.end_T, plan.position_T, plan.first_visible(None))
    assert every.any(), "or this shows nothing"
    assert (some & ~every).any()
    mask = plan.mask(None)
    assert torch.equal(mask.to_dense()[0, 0].bool(), some)
    for counts, indices, pairs in (
        (mask.kv_num_blocks, mask.kv_indices, some & ~every),
        (mask.full_kv_num_blocks, mask.full_kv_indices, every),
        (mask.q_num_blocks, mask.q_indices, (some & ~every).T),
        (mask.full_q_num_blocks, mask.full_q_indices, every.T),
    ):
        for row, expected in enumerate(pairs):
            assert sorted(indices[0, 0, row, : counts[0, 0, row]].tolist()) == expected.nonzero()[:, 0].tolist()


def test_masks_are_made_once_a_batch_and_window(monkeypatch):
    made = []
    blocks = flex.visible_blocks
    monkeypatch.setattr(flex, "visible_blocks", lambda *args: made.append(1) or blocks(*args))
    layout = SharedPrefixLayout(SMALL)
    for window in (None, 5, None, 5, None):
        inputs = [tensor.detach() for tensor in drawn(SMALL)]
        attend_with_flex(*inputs, layout.plan(FlexPlan, CPU), AttentionSettings(0.3, sliding_window=window))
    assert len(made) == 2


def test_one_compiled_kernel_serves_batches_of_any_length_and_window(monkeypatch, gradients_on_a_cpu):
    """Traced as on a GPU, with shapes that may change; only the last step of compiling is another."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(torch_flex.flex_attention, dynamic=True, backend=backend)
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    monkeypatch.setattr(flex, "_kernel", lambda kind: flex._call_compiled)
    lengths = [(500, 20, 31), (5, 3, 4), (128, 128, 128), (128, 128, 1), (1000, 90, 7)]
    for number, (prompt, first, second) in enumerate(lengths):
        tree = PrefixTree(((prompt, -1, 2), (first, 0, 1), (second, 0, 1)))
        for window in (None, 6 + number):
            inputs = drawn(tree)
            options = features_of({"softcap": 2.0, "sinks": True, "sliding_window": window}, 4)
            # As in the check of the layouts, where nothing else is compiled.
            with torch.compiler.set_stance("force_eager"):
                found = attend_with_flex(*inputs, FlexPlan(tree, CPU), AttentionSettings(0.3, **options))
            expected, _ = exact(inputs, options, tree)
            assert_close(found, expected)
    assert len(graphs) == 1
    torch._dynamo.reset()


def on_a_gpu(monkeypatch, trial=None):
    """The choice as it would be made on a GPU."""
    monkeypatch.setattr(attention, "why_not_flex", lambda query, *args: why_not_flex(Gpu(), *args))
    monkeypatch.setattr(flex.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(flex, "_problem_in_a_trial", lambda *args: trial)


class Gpu:
    device = torch.device("cuda")
    dtype = torch.bfloat16
    shape = (1, 4, 1, 16)


@pytest.mark.parametrize(
    ("backend", "options", "used"),
    [
        ("auto", {"softcap": 2.0}, True),
        ("auto", {"sinks": True}, True),
        ("auto", {}, False),
        ("flex", {}, True),
        ("flex", {"softcap": 2.0, "sliding_window": 4}, True),
        ("sdpa", {"softcap": 2.0}, False),
    ],
)
def test_it_is_used_where_scores_are_capped_or_sinks_take_part_or_where_set(backend, options, used, monkeypatch):
    on_a_gpu(monkeypatch)
    calls = []

    def attend(*args):
        calls.append(1)
        return attend_densely(*args)

    monkeypatch.setattr(attention, "attend_with_flex", attend)
    inputs, options = drawn(SMALL), features_of(options, 4)
    found = shared_prefix_attention(*inputs, SharedPrefixLayout(SMALL, backend), AttentionSettings(0.3, **options))
    assert bool(calls) == used
    assert_close(found, exact(inputs, options, SMALL)[0])


def test_a_machine_on_which_it_fails_goes_on_with_the_loop_or_is_told(monkeypatch):
    on_a_gpu(monkeypatch, trial="flex does not run here")
    inputs = drawn(SMALL)
    found = shared_prefix_attention(*inputs, SharedPrefixLayout(SMALL), AttentionSettings(0.3, softcap=2.0))
    assert_close(found, exact(inputs, {"softcap": 2.0, "sinks": None}, SMALL)[0])
    with pytest.raises(ConfigError, match="flex does not run here") as error:
        shared_prefix_attention(*inputs, SharedPrefixLayout(SMALL, "flex"), AttentionSettings(0.3, softcap=2.0))
    assert error.value.field == "attention_backend"


def test_what_it_cannot_do_is_said(monkeypatch):
    inputs = drawn(SMALL)
    assert "CUDA" in why_not_flex(*inputs, AttentionSettings(0.3))
    with pytest.raises(ConfigError) as error:
        shared_prefix_attention(*inputs, SharedPrefixLayout(SMALL, "flex"), AttentionSettings(0.3))
    assert (error.value.field, error.value.fix is not None) == ("attention_backend", True)
    on_a_gpu(monkeypatch)
    assert why_not_flex(Gpu(), Gpu(), Gpu(), AttentionSettings(0.3, softcap=50.0, sinks=torch.zeros(4))) is None
    assert "dropout" in why_not_flex(Gpu(), Gpu(), Gpu(), AttentionSettings(0.3, dropout=0.1))
    monkeypatch.setattr(Gpu, "dtype", torch.float64)
    assert "float64" in why_not_flex(Gpu(), Gpu(), Gpu(), AttentionSettings(0.3))
    monkeypatch.setattr(flex.importlib.util, "find_spec", lambda name: None)
    assert "triton" in why_not_flex(Gpu(), Gpu(), Gpu(), AttentionSettings(0.3))


@pytest.mark.parametrize(("architecture", "checkpointing"), [("gemma2", True), ("gpt_oss", True), ("llama", False)])
def test_models_give_the_rewards_and_gradients_of_the_padded_layout(
    architecture, checkpointing, monkeypatch, gradients_on_a_cpu
):
    torch._dynamo.reset()
    # Compiled up to the last step, backward pass and all: traced in between layers that are computed twice.
    compiled = torch.compile(torch_flex.flex_attention, dynamic=True, backend="aot_eager")
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    monkeypatch.setattr(flex, "_kernel", lambda kind: flex._call_compiled)
    monkeypatch.setattr(attention, "why_not_flex", lambda *args: None)
    model = tiny_reward_model(architecture)
    install_reward_forward(model)
    enable_shared_prefix(model, "flex")
    disable_dropout(model)
    calls = []

    def attend(*args):
        calls.append(args[-1])
        return attend_with_flex(*args)

    monkeypatch.setattr(attention, "attend_with_flex", attend)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.train()
    padded, wanted = rewards_and_gradients(model, PaddedCollator(pad_token_id=0)(ROWS))
    assert not calls
    shared, found = rewards_and_gradients(model, SharedPrefixCollator()(ROWS))
    assert len(calls) == (6 if checkpointing else 3)
    assert any(call.softcap for call in calls) == (architecture == "gemma2")
    assert any(call.sinks is not None for call in calls) == (architecture == "gpt_oss")
    torch.testing.assert_close(shared, padded, **REWARD.close)
    assert_gradients_close(found, wanted)


@pytest.mark.parametrize("sinks", [False, True])
def test_the_trial_run_finds_a_kernel_that_is_missing_or_wrong(sinks, monkeypatch, gradients_on_a_cpu, caplog):
    arguments = (CPU, torch.float32, (4, 2, 16, 16), AttentionSettings(0.3, softcap=2.0), sinks)
    trial = flex._problem_in_a_trial.__wrapped__
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert trial(*arguments) is None
    attend = flex.attend_with_flex
    monkeypatch.setattr(flex, "attend_with_flex", lambda *args: attend(*args[:-1], replace(args[-1], softcap=None)))
    assert "something else" in trial(*arguments)

    def missing(*args):
        raise RuntimeError("no kernel image is available")

    monkeypatch.setattr(flex, "attend_with_flex", missing)
    assert "no kernel image" in trial(*arguments)
    assert "FlexAttention is not used" in caplog.text
