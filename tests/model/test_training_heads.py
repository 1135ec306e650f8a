"""Heads that only training needs: what they compute, and that they stay out of everybody else's way."""

import copy

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from builders import tiny_tokenizer
from model_builders import tiny_model
from plaudit import ConfigError
from plaudit.model.aux_heads import (
    FILE_NAME,
    TrainingHeads,
    heads_of,
    install_training_heads,
    language_model_weight,
    load_heads,
    save_heads,
)
from plaudit.model.head import install_reward_forward


@pytest.fixture
def model():
    model = tiny_model(tiny_tokenizer())
    install_reward_forward(model)
    return model


def batch(model):
    torch.manual_seed(0)
    ids = torch.randint(5, 200, (2, 9))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "reward_positions": torch.tensor([8, 17])}


def test_each_head_computes_its_own(model):
    torch.manual_seed(1)
    vocabulary = torch.randn(261, 32)
    heads = TrainingHeads(32, ties=True, length=True, language_model_weight=vocabulary)
    torch.nn.init.normal_(heads.length.weight)
    install_training_heads(model, heads)
    inputs = batch(model)
    places, targets = torch.tensor([0, 3, 12]), torch.tensor([7, 8, 9])
    outputs = model(**inputs, text_positions=places, text_targets=targets)
    states = model.model(input_ids=inputs["input_ids"]).last_hidden_state.flatten(0, 1)
    extras = outputs.extras
    assert extras["tie_parameter"].tolist() == [0.0]
    torch.testing.assert_close(extras["length_rewards"], states[[8, 17]] @ heads.length.weight[0])
    overlap = (heads.length.weight * model.score.weight).sum().abs()
    torch.testing.assert_close(extras["head_overlap"], overlap)
    expected = cross_entropy(states[places] @ vocabulary.T, targets, reduction="none")
    torch.testing.assert_close(extras["text_losses"], expected)
    assert heads_of(model) is heads


def test_text_in_many_chunks_has_the_loss_and_the_gradient_of_one(model, monkeypatch):
    results = []
    for chunk in (512, 2):
        monkeypatch.setattr("plaudit.model.aux_heads._CHUNK", chunk)
        twin = copy.deepcopy(model)
        install_reward_forward(twin)
        install_training_heads(twin, TrainingHeads(32))
        positions = torch.arange(5)
        losses = twin(**batch(twin), text_positions=positions, text_targets=positions + 9).extras["text_losses"]
        losses.sum().backward()
        results.append((losses, twin.model.embed_tokens.weight.grad))
    torch.testing.assert_close(results[0], results[1])


def test_no_text_at_all_costs_nothing(model):
    install_training_heads(model, TrainingHeads(32))
    nothing = torch.empty(0, dtype=torch.long)
    assert model(**batch(model), text_positions=nothing, text_targets=nothing).extras["text_losses"].shape == (0,)


def test_heads_compute_and_are_stored_in_float32_beside_a_bfloat16_trunk(model):
    model = model.bfloat16()
    install_training_heads(model, TrainingHeads(32, ties=True, length=True))
    heads = heads_of(model)
    torch.nn.init.normal_(heads.length.weight)
    assert {parameter.dtype for parameter in heads.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        extras = model(**batch(model)).extras
    assert {value.dtype for value in extras.values()} == {torch.float32}
    close = extras["length_rewards"]
    assert not torch.equal(close, close.bfloat16().float())


def test_the_tie_parameter_outlives_what_the_engine_does_to_its_storage(model):
    """FSDP2 frees gathered parameters after the forward, before the loss reads them."""
    install_training_heads(model, TrainingHeads(32, ties=True))
    parameter = heads_of(model).tie_parameter
    found = model(**batch(model)).extras["tie_parameter"]
    with torch.no_grad():
        parameter.fill_(99.0)
    assert found.item() == 0.0
    (3 * found).sum().backward()
    assert parameter.grad.tolist() == [3.0]


def test_ddp_is_told_to_leave_the_fixed_vocabulary_alone(model):
    """It is as large as the embedding, and would go to all processes at each step."""
    ours = "training_heads.language_model_weight"
    install_training_heads(model, TrainingHeads(32, language_model_weight=torch.zeros(261, 32)))
    assert ours in dict(model.named_buffers())
    assert ours in model._ddp_params_and_buffers_to_ignore
    peft = pytest.importorskip("peft")
    plain = tiny_model(tiny_tokenizer())
    install_reward_forward(plain)
    wrapped = peft.get_peft_model(plain, peft.LoraConfig(task_type="SEQ_CLS", r=2))
    install_training_heads(plain, TrainingHeads(32, language_model_weight=torch.zeros(261, 32)))
    held = [name for name, _ in wrapped.named_buffers() if name.endswith(ours)]
    assert held
    assert set(held) <= set(wrapped._ddp_params_and_buffers_to_ignore)


def test_a_model_with_heads_saves_as_one_without(model, tmp_path):
    model.save_pretrained(tmp_path / "plain")
    install_training_heads(model, TrainingHeads(32, ties=True, length=True, language_model_weight=torch.zeros(261, 32)))
    model.save_pretrained(tmp_path / "trained")
    plain, trained = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "trained"))
    assert plain.keys() == trained.keys()
    assert all(torch.equal(plain[name], trained[name]) for name in plain)
    del model.training_heads
    assert heads_of(model) is None
    assert model(**batch(model)).extras is None


@pytest.mark.parametrize("prefix", [None, "", "base_model.model.", "_orig_mod."])
def test_heads_come_back_from_their_own_state_or_a_gathered_one(prefix, tmp_path):
    heads = TrainingHeads(4, ties=True, length=True)
    with torch.no_grad():
        heads.tie_parameter.fill_(0.5)
        heads.length.weight.copy_(torch.arange(4.0)[None])
    state = None
    if prefix is not None:
        state = {f"{prefix}training_heads.{name}": value.bfloat16() for name, value in heads.state_dict().items()}
        state[f"{prefix}score.weight"] = torch.ones(1)
    save_heads(heads, tmp_path, state, "davidson")
    fresh = TrainingHeads(4, ties=True, length=True)
    load_heads(fresh, tmp_path, "davidson")
    assert fresh.tie_parameter.tolist() == [0.5]
    assert fresh.length.weight.tolist() == [[0.0, 1.0, 2.0, 3.0]]
    assert fresh.tie_parameter.dtype == torch.float32


def test_nothing_is_written_where_nothing_was_learned(tmp_path):
    heads = TrainingHeads(4, language_model_weight=torch.zeros(3, 4))
    save_heads(heads, tmp_path, None, "bradley_terry")
    assert not (tmp_path / FILE_NAME).exists()
    load_heads(heads, tmp_path, "bradley_terry")
    load_heads(None, tmp_path, "bradley_terry")


@pytest.mark.parametrize(
    ("fresh", "about", "says"),
    [
        (TrainingHeads(4, ties=True), "rao_kupper", "`tie_parameter` for davidson.*`tie_parameter` for rao_kupper"),
        (TrainingHeads(4, ties=True, length=True), "davidson", "`tie_parameter`.*`length.weight`"),
        (TrainingHeads(4, length=True), "bradley_terry", "`tie_parameter`.*`length.weight`"),
        (None, "bradley_terry", "`tie_parameter` for davidson.*no training heads"),
    ],
)
def test_heads_of_another_run_raise(fresh, about, says, tmp_path):
    save_heads(TrainingHeads(4, ties=True), tmp_path, None, "davidson")
    with pytest.raises(ConfigError, match=f"(?s){says}"):
        load_heads(fresh, tmp_path, about)


# --- the language-model head


def test_the_language_model_head_is_found_in_one_file_or_several(model, tmp_path):
    weight = torch.randn(261, 32)
    model.config._name_or_path = str(tmp_path)
    save_file({"lm_head.weight": weight}, tmp_path / "model.safetensors")
    assert torch.equal(language_model_weight(model), weight)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00002-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}'
    )
    assert torch.equal(language_model_weight(model.bfloat16()), weight.bfloat16())


def test_a_tied_head_is_that_of_the_embeddings(model):
    model.config.tie_word_embeddings = True
    assert language_model_weight(model) is None


def test_the_head_comes_from_the_revision_of_the_model(model, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "plaudit.model.aux_heads.find_file",
        lambda source, name, revision: calls.append((source, revision)),
    )
    model.config._name_or_path, model.config._commit_hash = "someone/model", "abc123"
    with pytest.raises(ConfigError, match="someone/model"):
        language_model_weight(model)
    assert set(calls) == {("someone/model", "abc123")}


@pytest.mark.parametrize("name", ["", "/a/folder/that/is/gone"])
def test_a_head_that_is_nowhere_raises(name, model):
    model.config._name_or_path = name
    with pytest.raises(ConfigError) as error:
        language_model_weight(model)
    assert error.value.field == "lm_loss_coefficient"
