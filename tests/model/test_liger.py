"""Liger through the standard flag: kernels go into the model, its losses stay out, and rewards stay what they are."""

import functools
import logging
import sys
from types import MethodType, ModuleType

import pytest
import torch
from datasets import Dataset
from transformers.integrations import liger as integration
from transformers.models.llama import modeling_llama

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model, tiny_reward_model
from plaudit import ConfigError, RewardConfig, RewardTrainer
from plaudit.data.collate import PaddedCollator, SharedPrefixCollator
from plaudit.losses import bradley_terry_loss
from plaudit.model.head import install_reward_forward
from plaudit.model.load import apply_liger
from plaudit.model.shared_prefix import MODEL_KEYS, enable_shared_prefix
from tolerances import REWARD, assert_gradients_close

ROWS = [{"chosen_ids": [5, 6, 7, 8 + n, 9], "rejected_ids": [5, 6, 7, 70 + n]} for n in range(6)]


def norm(self, hidden):
    self.calls.append("norm")
    wide = hidden.float()
    return self.weight * (wide * (wide.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()).to(
        hidden.dtype
    )


def swiglu(self, x):
    self.calls.append("swiglu")
    return self.down_proj(torch.nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))


def causal_lm_forward(self, *args, **kwargs):
    raise AttributeError("a sequence-classification model has no lm_head")


def stand_in(calls):
    """What liger_kernel.transformers does to an instance, with its defaults, and without Triton."""

    def rope(q, k, cos, sin, position_ids=None, unsqueeze_dim=1):
        calls.append("rope")
        return stock_rope(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)

    stock_rope = modeling_llama.apply_rotary_pos_emb

    def to_llama(rope_too=True, cross_entropy=False, fused_linear_cross_entropy=True, rms_norm=True, model=None):
        assert not (cross_entropy and fused_linear_cross_entropy)
        modeling_llama.apply_rotary_pos_emb = rope
        if fused_linear_cross_entropy:
            model.forward = MethodType(causal_lm_forward, model)
        backbone = getattr(model, model.base_model_prefix, model)
        norms = [backbone.norm] if rms_norm else []
        for layer in backbone.layers:
            norms += [layer.input_layernorm, layer.post_attention_layernorm] if rms_norm else []
            bind(layer.mlp, swiglu)
        for module in norms:
            bind(module, norm)

    def bind(module, function):
        module.calls = calls
        module.__dict__["forward"] = function.__get__(module, type(module))

    def to_instance(model, **settings):
        if model.config.model_type == "llama":
            to_llama(model=model, **{name: value for name, value in settings.items() if name != "swiglu"})
        if model.config.model_type == "qwen3":
            raise TypeError("The model must be Qwen3ForCausalLM.")

    package, module = ModuleType("liger_kernel"), ModuleType("liger_kernel.transformers")
    package.transformers = module
    module._apply_liger_kernel_to_instance = to_instance
    return {"liger_kernel": package, "liger_kernel.transformers": module}


@pytest.fixture
def liger(monkeypatch):
    """Liger, as it were; the list says which of its kernels ran."""
    calls = []
    for name, module in stand_in(calls).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(integration, "is_liger_kernel_available", lambda: True)
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", modeling_llama.apply_rotary_pos_emb)
    return calls


def rewards_and_gradients(model, batch):
    model.zero_grad()
    rewards_N = model(**{key: batch[key] for key in MODEL_KEYS if key in batch}, skip_logits=True).logits[:, 0]
    bradley_terry_loss(rewards_N[batch["better"]], rewards_N[batch["worse"]]).sum().backward()
    return rewards_N.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("collator", [SharedPrefixCollator(), PaddedCollator(pad_token_id=0)])
def test_rewards_and_gradients_stay_the_same(collator, liger, caplog):
    model = tiny_reward_model("llama")
    install_reward_forward(model)
    enable_shared_prefix(model)
    expected, wanted = rewards_and_gradients(model, collator(ROWS))
    assert not liger
    with caplog.at_level(logging.INFO, logger="plaudit"):
        apply_liger(model, None, use_cpu=False)
    # 3 layers of two norms and an MLP, and the last norm.
    assert "in 10 modules of the llama model" in caplog.text
    found, gradients = rewards_and_gradients(model, collator(ROWS))
    assert set(liger) == {"norm", "swiglu", "rope"}
    torch.testing.assert_close(found, expected, **REWARD.close)
    assert_gradients_close(gradients, wanted)


def losses_of(folder, monkeypatch, **settings):
    monkeypatch.setattr("plaudit.model.load.apply_liger", lambda *args, use_cpu: apply_liger(*args, use_cpu=False))
    tokenizer = tiny_tokenizer()
    rows = Dataset.from_list(conversation_rows())
    config = RewardConfig(
        str(folder),
        use_cpu=True,
        max_steps=3,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        prediction_loss_only=True,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    trainer = RewardTrainer(
        tiny_model(tokenizer), config, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer
    )
    trainer.train()
    assert trainer.batch_layout == "shared_prefix"
    history = trainer.state.log_history
    return [log[name] for log in history for name in ("loss", "eval_loss") if name in log]


def test_the_flag_of_the_trainer_trains_and_evaluates_alike(tmp_path, monkeypatch, liger):
    plain = losses_of(tmp_path, monkeypatch)
    assert not liger
    patched = losses_of(tmp_path, monkeypatch, use_liger_kernel=True)
    assert set(liger) == {"norm", "swiglu", "rope"}
    assert len(plain) == 4
    assert patched == REWARD.approx(plain)


def test_adapters_are_looked_through(liger):
    peft = pytest.importorskip("peft")
    model = tiny_reward_model("llama")
    install_reward_forward(model)
    enable_shared_prefix(model)
    config = peft.LoraConfig(
        r=4, task_type="SEQ_CLS", target_modules="all-linear", init_lora_weights=False, modules_to_save=["score"]
    )
    adapted = peft.get_peft_model(model, config)
    expected, _ = rewards_and_gradients(adapted, SharedPrefixCollator()(ROWS))
    apply_liger(adapted, {"rope_too": True}, use_cpu=False)
    found, _ = rewards_and_gradients(adapted, SharedPrefixCollator()(ROWS))
    assert liger
    torch.testing.assert_close(found, expected, **REWARD.close)


def test_losses_of_language_models_are_refused_and_off_by_default(tmp_path):
    config = functools.partial(RewardConfig, str(tmp_path), use_cpu=True, use_liger_kernel=True)
    settings = {"rope": False}
    assert config(liger_kernel_config=settings).liger_kernel_config == {
        "rope": False,
        "cross_entropy": False,
        "fused_linear_cross_entropy": False,
    }
    assert settings == {"rope": False}
    with pytest.raises(ConfigError, match="fused_linear_cross_entropy") as error:
        config(liger_kernel_config={"fused_linear_cross_entropy": True})
    assert error.value.field == "liger_kernel_config"


def test_what_cannot_work_is_said_before_training(monkeypatch, liger, caplog):
    llama = tiny_reward_model("llama")
    with pytest.raises(ConfigError) as error:
        apply_liger(llama, None, use_cpu=True)
    assert error.value.field == "use_liger_kernel"
    with pytest.raises(ConfigError, match=r"Qwen3ForSequenceClassification .*Qwen3ForCausalLM"):
        apply_liger(tiny_reward_model("qwen3"), None, use_cpu=False)
    apply_liger(tiny_reward_model("gpt2"), None, use_cpu=False)
    assert "no kernels for models of type gpt2" in caplog.text
    monkeypatch.setattr(integration, "is_liger_kernel_available", lambda: False)
    with pytest.raises(ConfigError) as error:
        apply_liger(llama, None, use_cpu=False)
    assert error.value.fix == "pip install liger-kernel"


def test_a_forward_that_liger_replaced_all_the_same_is_noticed(monkeypatch, liger):
    model = tiny_reward_model("llama")
    install_reward_forward(model)

    def replace(model, **settings):
        model.forward = MethodType(causal_lm_forward, model)

    monkeypatch.setattr(sys.modules["liger_kernel.transformers"], "_apply_liger_kernel_to_instance", replace)
    with pytest.raises(ConfigError) as error:
        apply_liger(model, None, use_cpu=False)
    assert error.value.field == "use_liger_kernel"


def test_the_flag_without_a_gpu_is_refused(tmp_path):
    tokenizer = tiny_tokenizer()
    config = RewardConfig(str(tmp_path), use_cpu=True, use_liger_kernel=True, report_to=[])
    rows = Dataset.from_list(conversation_rows())
    with pytest.raises(ConfigError) as error:
        RewardTrainer(tiny_model(tokenizer), config, train_dataset=rows, processing_class=tokenizer)
    assert error.value.field == "use_liger_kernel"
