"""Adapters: the head is trained, saved and found again, whatever the adapter and whoever made it."""

import copy
import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from model_builders import COMMON, tiny_model
from plaudit import ConfigError, RewardModel
from tolerances import REWARD

peft = pytest.importorskip("peft")

KINDS = {
    "LoRA": {"r": 4, "target_modules": "all-linear"},
    "DoRA": {"r": 4, "target_modules": ["q_proj", "v_proj"], "use_dora": True},
    "rsLoRA": {"r": 4, "target_modules": "all-linear", "use_rslora": True},
}


def plain_rewards(model, dataset):
    """Rewards by a stock forward, one unpadded response at a time."""
    with torch.no_grad():
        return np.array(
            [
                [model(torch.tensor([row[key]])).logits.item() for key in ("chosen_ids", "rejected_ids")]
                for row in dataset
            ]
        )


def head_of(model):
    return model.base_model.model.score.modules_to_save["default"].weight


@pytest.fixture
def base(tokenizer, tmp_path):
    """Folder of a reward model with its tokenizer."""
    tiny_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


@pytest.fixture
def language_model(tokenizer, tmp_path):
    """Folder of a language model, which has no reward head."""
    config = tiny_model(tokenizer).config
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    return str(tmp_path / "lm")


# ---- save, reload, merge --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize("kind", KINDS)
def test_saved_reloaded_and_merged_adapters_give_the_same_rewards(base, dataset, make_trainer, tmp_path, layout, kind):
    config = peft.LoraConfig(**KINDS[kind])
    trainer = make_trainer(
        base,
        dataset,
        processing_class=None,
        peft_config=config,
        batch_layout=layout,
        max_steps=3,
        learning_rate=1e-2,
    )
    untrained = trainer.predict(dataset).predictions
    trainer.train()
    trainer.save_model()
    expected = trainer.predict(dataset).predictions
    assert np.abs(expected - untrained).max() > 1e-2
    folder = str(tmp_path / "out")
    reloaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    np.testing.assert_allclose(plain_rewards(reloaded, trainer.train_dataset), expected, **REWARD.close)
    merged = reloaded.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    np.testing.assert_allclose(plain_rewards(again, trainer.train_dataset), expected, **REWARD.close)


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_a_fresh_head_on_a_language_model_is_saved_with_the_adapter(
    language_model, dataset, make_trainer, tmp_path, layout
):
    """The base holds no head at all: all of it has to come from the adapter's folder."""
    trainer = make_trainer(
        language_model,
        dataset,
        processing_class=None,
        peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"]),
        batch_layout=layout,
        learning_rate=1e-2,
    )
    fresh = head_of(trainer.model).detach().clone()
    trainer.train()
    assert not torch.equal(head_of(trainer.model), fresh)
    trainer.save_model()
    expected = trainer.predict(dataset).predictions
    folder = tmp_path / "out"
    saved = json.loads((folder / "adapter_config.json").read_text())
    assert "score" in saved["modules_to_save"]
    assert saved["task_type"] == "SEQ_CLS"
    reloaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1).eval()
    np.testing.assert_allclose(plain_rewards(reloaded, trainer.train_dataset), expected, **REWARD.close)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == trainer.processing_class.pad_token_id
    assert tokenizer.chat_template == trainer.processing_class.chat_template


# ---- what the caller passes in --------------------------------------------------------------------------------


@pytest.mark.parametrize("by_name", [True, False])
def test_an_adapter_around_a_name_or_a_model_leaves_its_configuration_alone(
    base, tokenizer, dataset, make_trainer, caplog, by_name
):
    config = peft.LoraConfig(r=2, lora_dropout=0.25, target_modules={"q_proj", "v_proj"})
    before = copy.deepcopy(config.to_dict())
    with caplog.at_level(logging.INFO, "plaudit"):
        trainer = make_trainer(base if by_name else tiny_model(tokenizer), dataset, peft_config=config)
    assert config.to_dict() == before
    assert "The reward head is trained and saved with the adapter" in caplog.text
    assert head_of(trainer.model).requires_grad
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "score.modules_to_save" in name for name in trainable)
    dropouts = {
        module.p
        for name, module in trainer.model.named_modules()
        if "lora_dropout" in name and isinstance(module, torch.nn.Dropout)
    }
    assert dropouts == {0.25}  # though `disable_dropout` is on


def test_a_head_that_was_asked_for_is_no_news(base, dataset, make_trainer, caplog):
    """The configuration that the reference page shows."""
    with caplog.at_level(logging.INFO, "plaudit"):
        trainer = make_trainer(base, dataset, peft_config=peft.LoraConfig(modules_to_save=["score"]))
    assert "The reward head is trained and saved" not in caplog.text
    assert head_of(trainer.model).requires_grad


def test_a_configuration_for_language_models_is_read_as_one_for_rewards(base, dataset, make_trainer, tmp_path, caplog):
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    trainer = make_trainer(base, dataset, peft_config=config)
    assert config.task_type == "CAUSAL_LM"
    assert isinstance(trainer.model, peft.PeftModelForSequenceClassification)
    assert "CAUSAL_LM" in caplog.text
    trainer.train()
    trainer.save_model()
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"


def test_what_is_no_configuration_or_does_not_fit_is_refused(base, dataset, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(base, dataset, peft_config={"r": 4})
    assert error.value.fix
    with pytest.raises(ConfigError) as error:
        make_trainer(base, dataset, peft_config=peft.LoraConfig(target_modules=["nowhere"]))
    assert "all-linear" in error.value.fix


# ---- ready adapters -------------------------------------------------------------------------------------------


def test_a_saved_adapter_is_trained_on(base, dataset, make_trainer, tmp_path):
    first = make_trainer(base, dataset, peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"]), learning_rate=1e-2)
    first.train()
    first.save_model()
    expected = first.predict(dataset).predictions
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        str(tmp_path / "out"), num_labels=1, is_trainable=True
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    second = make_trainer(model, dataset, folder="second", learning_rate=1e-2)
    np.testing.assert_allclose(second.predict(dataset).predictions, expected, **REWARD.close)
    second.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert any("lora_A" in name for name in changed)
    assert any("score.modules_to_save" in name for name in changed)
    assert all("lora_" in name or "score.modules_to_save" in name for name in changed)
    second.save_model()
    reloaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "second"), num_labels=1)
    np.testing.assert_allclose(
        plain_rewards(reloaded.eval(), second.train_dataset), second.predict(dataset).predictions, **REWARD.close
    )


def test_a_ready_adapter_with_a_frozen_head_is_left_as_it_is_and_said_once(tokenizer, dataset, make_trainer, caplog):
    ready = peft.get_peft_model(tiny_model(tokenizer), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    trainable = {name for name, parameter in ready.named_parameters() if parameter.requires_grad}
    trainer = make_trainer(ready, dataset)
    assert caplog.text.count("The reward head of this adapter is frozen") == 1
    assert "modules_to_save" in caplog.text
    assert {name for name, parameter in ready.named_parameters() if parameter.requires_grad} == trainable
    trainer.train()


def test_a_causal_language_models_adapter_is_refused_by_name(language_model, dataset, make_trainer):
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(language_model),
        peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]),
    )
    with pytest.raises(ConfigError) as error:
        make_trainer(model, dataset)
    assert "AutoPeftModelForSequenceClassification" in error.value.fix


def test_an_adapter_in_an_adapter_is_refused(tokenizer, dataset, make_trainer):
    ready = peft.get_peft_model(tiny_model(tokenizer), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ConfigError) as error:
        make_trainer(ready, dataset, peft_config=peft.LoraConfig())
    assert error.value.fix


# ---- precision of the head ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_a_trained_head_on_a_frozen_bfloat16_model_is_stored_in_float32(
    language_model, dataset, make_trainer, tmp_path, layout
):
    """In bfloat16 the steps of a small learning rate would be rounded away."""
    trainer = make_trainer(
        language_model,
        dataset,
        processing_class=None,
        peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"]),
        model_init_kwargs={"dtype": "bfloat16"},
        batch_layout=layout,
        learning_rate=1e-6,
    )
    base_model = trainer.model.get_base_model()
    assert base_model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    head = head_of(trainer.model)
    assert head.dtype == torch.float32
    before = head.detach().clone()
    trainer.train()
    assert (head_of(trainer.model) != before).float().mean() > 0.9
    trainer.save_model()
    expected = trainer.predict(dataset).predictions
    reloaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(
        str(tmp_path / "out"), num_labels=1, dtype=torch.bfloat16
    ).eval()
    np.testing.assert_allclose(plain_rewards(reloaded, trainer.train_dataset), expected, atol=0.05)
    merged = trainer.model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    np.testing.assert_allclose(plain_rewards(again, trainer.train_dataset), expected, atol=0.05)


def test_the_head_on_a_quantised_model_is_stored_in_float32(tokenizer, dataset, make_trainer):
    """A model that says it is quantised, in bfloat16 where it is not: what the 4-bit loader makes, on a CPU."""
    model = tiny_model(tokenizer).to(torch.bfloat16)
    model.is_quantized = model.is_loaded_in_4bit = True
    model.hf_quantizer = SimpleNamespace(is_trainable=True, is_qat_trainable=False)
    trainer = make_trainer(model, dataset, peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert head_of(trainer.model).dtype == torch.float32
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_the_start_of_a_fresh_head_does_not_depend_on_the_precision(language_model, dataset, make_trainer):
    heads = [
        make_trainer(
            language_model, dataset, processing_class=None, model_init_kwargs={"dtype": dtype}, seed=3
        ).model.score.weight
        for dtype in ("float32", "bfloat16")
    ]
    assert heads[0].std().item() == pytest.approx(1 / (COMMON["hidden_size"] + 1) ** 0.5, rel=0.5)
    assert torch.equal(heads[0].bfloat16(), heads[1])


# ---- other kinds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_prompt_learning_takes_the_padded_layout_and_reads_the_right_tokens(
    base, dataset, make_trainer, tmp_path, kind
):
    """Rewards of a padded batch are those of each response alone, virtual tokens and all."""
    trainer = make_trainer(
        base,
        dataset,
        peft_config=getattr(peft, kind)(num_virtual_tokens=4),
        learning_rate=0.1,
        gradient_checkpointing=False,
        per_device_eval_batch_size=12,
    )
    assert (trainer.batch_layout, trainer.batch_layout_reason) == ("padded", "prompt learning discards position ids")
    before = trainer.predict(dataset).predictions
    trainer.train()
    expected = trainer.predict(dataset).predictions
    assert np.abs(expected - before).max() > 1e-3
    trainer.save_model()
    reloaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "out"), num_labels=1).eval()
    np.testing.assert_allclose(plain_rewards(reloaded, trainer.train_dataset), expected, **REWARD.close)


def test_the_classifier_of_an_encoder_is_trained_too(tokenizer, dataset, make_trainer):
    model = tiny_model(tokenizer, "bert")
    trainer = make_trainer(
        model, dataset, peft_config=peft.LoraConfig(r=2, target_modules=["query"]), gradient_checkpointing=False
    )
    trained = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert any("classifier.modules_to_save" in name for name in trained)
    trainer.train()


# ---- folders of adapters --------------------------------------------------------------------------------------


def make_reward_adapter(base, dataset, make_trainer):
    """Trains an adapter of a reward model into the folder "adapter"; returns its trainer."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    trainer = make_trainer(
        base, dataset, processing_class=None, peft_config=config, learning_rate=1e-2, folder="adapter"
    )
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture
def language_adapter(language_model, tmp_path):
    """Folder of an adapter of a language model, as fine-tuning leaves it; its weights are not zero."""
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(language_model),
        peft.LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj", "lm_head"]),
    )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, 0, 0.3)
    model.save_pretrained(tmp_path / "sft")
    return str(tmp_path / "sft")


def test_the_folder_of_a_reward_adapter_is_trained_on(base, dataset, make_trainer, tmp_path):
    expected = make_reward_adapter(base, dataset, make_trainer).predict(dataset).predictions
    trainer = make_trainer(str(tmp_path / "adapter"), dataset, processing_class=None, learning_rate=1e-2)
    assert isinstance(trainer.model, peft.PeftModelForSequenceClassification)
    np.testing.assert_allclose(trainer.predict(dataset).predictions, expected, **REWARD.close)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    changed = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    assert any("lora_A" in name for name in changed)
    assert any("score.modules_to_save" in name for name in changed)
    trainer.save_model()
    again = RewardModel.from_pretrained(tmp_path / "out", device="cpu")
    np.testing.assert_allclose(again.score(list(dataset)), trainer.predict(dataset).predictions, **REWARD.close)


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_the_folder_of_a_language_models_adapter_is_merged_into_its_base(
    language_adapter, tokenizer, dataset, make_trainer, caplog, layout
):
    merged = peft.AutoPeftModelForCausalLM.from_pretrained(language_adapter).merge_and_unload()
    caplog.clear()
    with caplog.at_level(logging.INFO, "plaudit"):
        trainer = make_trainer(language_adapter, dataset, processing_class=None, batch_layout=layout)
    assert caplog.text.count(language_adapter) == 1
    assert "merged into its base model; it has no reward head yet" in caplog.text
    assert all(parameter.requires_grad for parameter in trainer.model.parameters())
    ids = torch.tensor([tokenizer("some words")["input_ids"]])
    with torch.no_grad():
        states = trainer.model.model(ids).last_hidden_state
        np.testing.assert_allclose(states, merged.model(ids).last_hidden_state, **REWARD.close)
    q_proj = trainer.model.model.layers[0].self_attn.q_proj.weight
    before = q_proj.detach().clone()
    trainer.train()
    assert not torch.equal(before, q_proj)
    trainer.save_model()


def test_a_new_adapter_around_a_merged_one_would_lose_it(language_adapter, dataset, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(language_adapter, dataset, processing_class=None, peft_config=peft.LoraConfig())
    assert "merge_and_unload" in error.value.fix


@pytest.mark.parametrize("fault", ["nowhere", "deeper", "shallower"])
def test_an_adapter_without_its_base_model(language_adapter, tokenizer, dataset, make_trainer, tmp_path, fault):
    """The base is gone, or it is another model than the one that the adapter was trained on."""
    path = tmp_path / "sft" / "adapter_config.json"
    folder = tmp_path / fault
    if fault != "nowhere":
        tiny_model(tokenizer, num_hidden_layers=5 if fault == "deeper" else 2).save_pretrained(folder)
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(folder)}))
    with pytest.raises(ConfigError) as error:
        make_trainer(language_adapter, dataset)
    assert str(folder) in error.value.message
    assert "base_model_name_or_path" in error.value.fix


@pytest.mark.parametrize("layers", [2, 5])
def test_an_adapter_that_does_not_fit_its_base_model_gives_no_rewards(
    base, tokenizer, dataset, make_trainer, tmp_path, layers
):
    make_reward_adapter(base, dataset, make_trainer)
    assert RewardModel.from_pretrained(tmp_path / "adapter", device="cpu").score("a")
    tiny_model(tokenizer, num_hidden_layers=layers).save_pretrained(base)
    with pytest.raises(ConfigError) as error:
        RewardModel.from_pretrained(tmp_path / "adapter", device="cpu")
    assert base in error.value.message
    assert "base_model_name_or_path" in error.value.fix


def test_a_folder_with_a_model_and_an_adapter_is_refused(base, language_adapter, tokenizer, dataset, make_trainer):
    tiny_model(tokenizer).save_pretrained(language_adapter)
    with pytest.raises(ConfigError) as error:
        make_trainer(language_adapter, dataset)
    assert error.value.fix


def test_an_adapter_loaded_to_be_used_is_refused_with_the_argument_that_it_needs(base, dataset, make_trainer, tmp_path):
    make_reward_adapter(base, dataset, make_trainer)
    frozen = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "adapter"), num_labels=1)
    with_head = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "adapter"), num_labels=1)
    head_of(with_head).requires_grad_(True)
    for model in (frozen, with_head):
        with pytest.raises(ConfigError) as error:
            make_trainer(model, dataset)
        assert "is_trainable=True" in error.value.fix


def test_a_model_of_which_nothing_is_trained_is_refused(tokenizer, dataset, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(tiny_model(tokenizer).requires_grad_(False), dataset)
    assert error.value.fix


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_that_are_zero_on_the_first_step_are_an_error(tokenizer, dataset, make_trainer, accumulation):
    model = tiny_model(tokenizer)
    model.requires_grad_(False)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(True)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.zero_()  # so that what is trained does not reach the reward
    settings = {"gradient_accumulation_steps": accumulation, "gradient_checkpointing": False}
    trainer = make_trainer(model, dataset, per_device_train_batch_size=2, **settings)
    with pytest.raises(ConfigError) as error:
        trainer.train()
    assert error.value.fix
    assert trainer.state.global_step == 0


def test_an_engine_that_shows_no_gradients_is_asked_for_their_norm(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset)
    with pytest.raises(ConfigError):
        trainer.log({"loss": 0.5, "grad_norm": 0.0})
    make_trainer(model, dataset).log({"loss": 0.5, "grad_norm": 0.1})
