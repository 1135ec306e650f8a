"""Getting a model and its tokenizer ready: the padding token above all, which decides where servers read rewards."""

import logging

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from builders import tiny_tokenizer
from model_builders import tiny_model, tiny_reward_model
from plaudit import ConfigError
from plaudit.model.load import disable_dropout, load_model, load_tokenizer, set_pad_token, set_serving_config


def plain_tokenizer(*special, eos="<e>", **names):
    """Three words and the given special tokens."""
    vocab = {word: index for index, word in enumerate([eos, *special, "a", "b", "c"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken(token, special=True) for token in (eos, *special)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, **names)


def model_for(tokenizer, rows=None, eos_token_id=0):
    return tiny_reward_model("llama", vocab_size=rows or len(tokenizer), eos_token_id=eos_token_id, pad_token_id=None)


def test_a_good_padding_token_stays():
    tokenizer = plain_tokenizer("<mine>", pad_token="<mine>")
    model = model_for(tokenizer)
    chosen = set_pad_token(model, tokenizer)
    assert chosen.pad_token == "<mine>"
    assert model.config.pad_token_id == chosen.pad_token_id != chosen.eos_token_id


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        (("<|pad|>", "<|endoftext|>"), "<|pad|>"),
        (("<|reserved_special_token_0|>", "<|endoftext|>"), "<|endoftext|>"),
        (("<|reserved_special_token_7|>",), "<|reserved_special_token_7|>"),
        (("<unused3>",), "<unused3>"),
        (("[PAD]",), "[PAD]"),
    ],
)
def test_padding_equal_to_eos_is_replaced_by_a_reserved_token(special, expected):
    tokenizer = plain_tokenizer(*special, pad_token="<e>")
    model = model_for(tokenizer)
    chosen = set_pad_token(model, tokenizer)
    assert chosen.pad_token == expected
    assert tokenizer.pad_token == "<e>"  # the caller's is left alone
    assert model.config.pad_token_id == chosen.convert_tokens_to_ids(expected)


def test_every_eos_of_the_model_counts():
    tokenizer = plain_tokenizer("<|endoftext|>", "<spare>", pad_token="<|endoftext|>")
    model = model_for(tokenizer, rows=8, eos_token_id=[0, 1])
    chosen = set_pad_token(model, tokenizer)
    assert chosen.pad_token_id not in (0, 1)


def test_a_spare_row_of_the_embeddings_is_used_before_they_grow():
    tokenizer = plain_tokenizer(pad_token="<e>")
    model = model_for(tokenizer, rows=8)
    chosen = set_pad_token(model, tokenizer)
    assert chosen.pad_token_id == len(tokenizer) < 8
    assert model.get_input_embeddings().weight.shape[0] == 8


def test_embeddings_grow_only_where_that_is_allowed(caplog):
    tokenizer = plain_tokenizer(pad_token="<e>")
    model = model_for(tokenizer)
    kept = set_pad_token(model, tokenizer, may_resize=False)
    assert kept.pad_token == "<e>"
    assert "end of a turn" in caplog.text
    grown = set_pad_token(model, tokenizer)
    assert grown.pad_token_id == len(tokenizer)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer) + 1


def test_a_padding_token_that_the_user_sets_is_used(caplog):
    tokenizer = plain_tokenizer("<mine>")
    assert set_pad_token(model_for(tokenizer), tokenizer, "<mine>").pad_token == "<mine>"
    with pytest.raises(ConfigError) as error:
        set_pad_token(model_for(tokenizer), tokenizer, "<other>")
    assert error.value.field == "pad_token"


@pytest.mark.parametrize("architecture", ["gpt2", "opt", "phi", "gpt_neox", "bert"])
def test_dropout_is_off_everywhere(architecture):
    names = ("attn_pdrop", "embd_pdrop", "resid_pdrop", "attention_dropout", "dropout", "hidden_dropout")
    high = dict.fromkeys(names, 0.5)
    high |= {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "classifier_dropout": 0.5}
    model = tiny_reward_model(architecture, **high).train()
    ids = torch.randint(3, 100, (2, 9))
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_lora_dropout_survives():
    peft = pytest.importorskip("peft")
    tokenizer = tiny_tokenizer()
    adapted = peft.get_peft_model(
        tiny_model(tokenizer), peft.LoraConfig(lora_dropout=0.3, target_modules="all-linear", task_type="SEQ_CLS")
    )
    disable_dropout(adapted)
    rates = {m.p for name, m in adapted.named_modules() if isinstance(m, torch.nn.Dropout) and "lora_dropout" in name}
    assert rates == {0.3}


def test_serving_configuration_survives_saving(tmp_path):
    model = tiny_reward_model("llama")
    set_serving_config(model)
    model.save_pretrained(tmp_path)
    config = load_model(str(tmp_path)).config
    assert (config.num_labels, config.id2label, config.problem_type) == (1, {0: "reward"}, "regression")
    assert config.sentence_transformers == {"activation_fn": "torch.nn.modules.linear.Identity"}


def test_a_saved_head_is_not_drawn_again(tmp_path, caplog):
    model = tiny_reward_model("llama")
    model.save_pretrained(tmp_path)
    with caplog.at_level(logging.INFO, "plaudit"):
        again = load_model(str(tmp_path))
    assert torch.equal(model.score.weight, again.score.weight)
    assert "fresh" not in caplog.text


def test_missing_models_and_tokenizers_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="nowhere") as error:
        load_model(str(tmp_path / "nowhere"))
    assert error.value.fix is not None
    tiny_reward_model("llama").save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match="bare") as error:
        load_tokenizer(str(tmp_path / "bare"))
    assert error.value.fix is not None
