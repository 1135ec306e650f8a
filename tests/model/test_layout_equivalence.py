"""The shared-prefix layout gives the rewards and gradients of the padded one, for every architecture we claim."""

import copy
import random

import pytest
import torch

from model_builders import PADDED_ARCHITECTURES, SHARED_PREFIX_ARCHITECTURES, tiny_reward_model
from plaudit.data.collate import PaddedCollator, SharedPrefixCollator
from plaudit.losses import bradley_terry_loss
from plaudit.model.head import install_reward_forward
from plaudit.model.load import disable_dropout
from plaudit.model.shared_prefix import MODEL_KEYS, compare_with_padded, enable_shared_prefix, why_not_shared_prefix
from tolerances import REWARD, assert_gradients_close


def random_rows(count=4, seed=0):
    """Rows of uneven lengths, longer than the sliding windows of the tiny models (5)."""
    draw = random.Random(seed)

    def tokens(low, high):
        return [draw.randrange(3, 128) for _ in range(draw.randint(low, high))]

    prompts = [tokens(4, 14) for _ in range(count)]
    rows = [{"chosen_ids": p + tokens(1, 9), "rejected_ids": p + tokens(1, 9)} for p in prompts]
    return [
        *rows,
        # The prompt of the first row again, with one of its answers.
        {"chosen_ids": rows[0]["rejected_ids"], "rejected_ids": prompts[0] + tokens(1, 9)},
        {"chosen_ids": [5, 6, 7], "rejected_ids": [8, 9]},  # nothing shared
        {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 6, 7]},  # everything shared
    ]


def rewards_and_gradients(model, batch):
    model.zero_grad()
    rewards_N = model(**{key: batch[key] for key in MODEL_KEYS if key in batch}).logits[:, 0]
    better, worse = rewards_N[batch["better"]], rewards_N[batch["worse"]]
    bradley_terry_loss(better, worse).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return torch.cat((better, worse)).detach(), gradients


def assert_same(model, rows):
    padded, padded_gradients = rewards_and_gradients(model, PaddedCollator(pad_token_id=0)(rows))
    shared, shared_gradients = rewards_and_gradients(model, SharedPrefixCollator()(rows))
    assert padded.std() > 1e-2, "the rewards must differ for this to say anything"
    torch.testing.assert_close(shared, padded, **REWARD.close)
    assert_gradients_close(shared_gradients, padded_gradients)


def prepared(architecture, **changes):
    model = tiny_reward_model(architecture, **changes)
    assert why_not_shared_prefix(model) is None
    install_reward_forward(model)
    enable_shared_prefix(model)
    return model


@pytest.mark.parametrize("architecture", SHARED_PREFIX_ARCHITECTURES)
def test_rewards_and_gradients_agree(architecture):
    model = prepared(architecture)
    assert compare_with_padded(model, model, SharedPrefixCollator()(random_rows())) is None
    assert_same(model, random_rows())


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2", "qwen3_moe"])
def test_they_agree_under_gradient_checkpointing(architecture):
    model = prepared(architecture)
    disable_dropout(model)
    plain = rewards_and_gradients(model, SharedPrefixCollator()(random_rows()))
    model.gradient_checkpointing_enable()
    model.train()
    assert_same(model, random_rows())
    checkpointed = rewards_and_gradients(model, SharedPrefixCollator()(random_rows()))
    assert torch.equal(plain[0], checkpointed[0])
    assert_gradients_close(checkpointed[1], plain[1])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox"])
def test_they_agree_with_lora(architecture, checkpointing):
    peft = pytest.importorskip("peft")
    model = tiny_reward_model(architecture)
    install_reward_forward(model)
    enable_shared_prefix(model)
    config = peft.LoraConfig(
        r=4,
        task_type="SEQ_CLS",
        target_modules="all-linear",
        init_lora_weights=False,
        modules_to_save=["score"],
    )
    adapted = peft.get_peft_model(model, config)
    if checkpointing:
        adapted.enable_input_require_grads()
        adapted.gradient_checkpointing_enable()
        adapted.train()
    assert_same(adapted, random_rows())


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "bert", "gptj"])
def test_a_prepared_model_without_layout_is_the_stock_model(architecture):
    stock = tiny_reward_model(architecture)
    model = copy.deepcopy(stock)
    if why_not_shared_prefix(model) is None:
        install_reward_forward(model)
        enable_shared_prefix(model)
    batch = PaddedCollator(pad_token_id=0)(random_rows())
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
    for flip in (False, True):  # right padding, then left
        inputs = {key: value.flip(-1) if flip else value for key, value in inputs.items()}
        torch.testing.assert_close(model(**inputs).logits, stock(**inputs).logits, **REWARD.close)
    assert type(model) is type(stock)
    assert model.state_dict().keys() == stock.state_dict().keys()


@pytest.mark.parametrize("architecture", [*SHARED_PREFIX_ARCHITECTURES])
def test_rewards_do_not_depend_on_the_batch(architecture):
    model = prepared(architecture)
    rows = random_rows()
    with torch.no_grad():
        together, _ = _rewards(model, rows, SharedPrefixCollator())
        alone = [_rewards(model, [row], SharedPrefixCollator())[0] for row in rows]
        wide, _ = _rewards(model, rows, PaddedCollator(pad_token_id=0, pad_to_multiple_of=64))
    alone = torch.stack(alone, dim=1).flatten(1)
    torch.testing.assert_close(together, alone, **REWARD.close)
    torch.testing.assert_close(together, wide, **REWARD.close)


def _rewards(model, rows, collator):
    batch = collator(rows)
    rewards = model(**{key: batch[key] for key in MODEL_KEYS if key in batch}).logits[:, 0]
    return torch.stack((rewards[batch["better"]], rewards[batch["worse"]])), batch


@pytest.mark.parametrize("architecture", ["bert", "modernbert", "jamba", "bloom", "gptj"])
def test_unsuitable_architectures_are_turned_away_by_their_configuration(architecture):
    assert architecture in PADDED_ARCHITECTURES
    assert why_not_shared_prefix(tiny_reward_model(architecture)) is not None


def test_a_model_that_drops_the_layout_is_found_out_before_the_first_step():
    model = tiny_reward_model("stablelm")
    install_reward_forward(model)
    enable_shared_prefix(model)
    assert "0 of 3 layers" in compare_with_padded(model, model, SharedPrefixCollator()(random_rows()))


def test_the_comparison_sees_wrong_states_even_under_a_head_of_zeros():
    model = prepared("llama")
    torch.nn.init.zeros_(model.score.weight)
    batch = SharedPrefixCollator()(random_rows())
    assert compare_with_padded(model, model, batch) is None
    batch["position_ids"] = torch.arange(batch["position_ids"].numel())[None]  # positions that do not restart
    assert "rewards would differ" in compare_with_padded(model, model, batch)


def test_the_comparison_leaves_no_trace():
    model = prepared("llama")
    model.train()
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    compare_with_padded(model, model, SharedPrefixCollator()(random_rows()))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_neftune_takes_the_padded_path():
    assert "NEFTune" in why_not_shared_prefix(tiny_reward_model("llama"), neftune=True)


def test_a_fallen_back_model_re_expands_the_batch():
    model = prepared("llama")
    batch = SharedPrefixCollator()(random_rows())
    shared, _ = rewards_and_gradients(model, batch)
    model.expand_shared_prefix = True
    expanded, _ = rewards_and_gradients(model, batch)
    torch.testing.assert_close(shared, expanded, **REWARD.close)
