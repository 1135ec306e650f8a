"""What a model cannot do is met when the trainer is built: positions, token ids, recomputing, missing packages."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from builders import tiny_tokenizer
from model_builders import COMMON, conversation_rows, tiny_model
from plaudit import ConfigError, DataError, RewardModel
from plaudit.cli.main import main

POSITIONS = {  # architecture, changes, and how many tokens the model reads
    "bert": ({"max_position_embeddings": 40}, 40),
    "roberta": ({"max_position_embeddings": 42, "pad_token_id": 1}, 40),
    "gpt2": ({"n_positions": 40}, 40),
    "opt": ({"max_position_embeddings": 40, "ffn_dim": 48, "word_embed_proj_dim": 32}, 40),
    "gptj": ({"n_positions": 40, "rotary_dim": 4}, 40),
    "ctrl": ({"n_positions": 40, "dff": 48}, 40),
}


def make_model(architecture, **changes):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4} if {"n_positions"} & changes.keys() else COMMON
    tokens = {name: COMMON[name] for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    config = AutoConfig.for_model(architecture, **{**sizes, **tokens, "vocab_size": 261, "num_labels": 1, **changes})
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(config)


def rows_around(limit):
    """Texts whose longest response has `limit` tokens, EOS included, and one that has a token more."""
    return [{"chosen": "a" * (limit - 1 + n % 2), "rejected": "b" * 5} for n in range(8)]


@pytest.mark.parametrize("architecture", POSITIONS)
def test_no_row_is_longer_than_the_positions_of_the_model(make_trainer, caplog, architecture):
    changes, limit = POSITIONS[architecture]
    model = make_model(architecture, **changes)
    trainer = make_trainer(model, Dataset.from_list(rows_around(limit)), gradient_checkpointing=False)
    assert trainer.args.max_length == limit
    assert caplog.text.count("`max_length`") == 1
    assert trainer.data_reports["train"].rows_kept == 4
    trainer.train()
    scorer = RewardModel(model, tiny_tokenizer())
    assert scorer.max_length == limit
    assert scorer.score("a" * (limit - 1))
    with pytest.raises(DataError):
        scorer.score("a" * limit)


def test_a_max_length_within_the_positions_stays(make_trainer, dataset, tokenizer, caplog):
    trainer = make_trainer(tiny_model(tokenizer, "gpt2"), dataset, max_length=100)
    assert trainer.args.max_length == 100
    trainer = make_trainer(tiny_model(tokenizer), dataset)  # computes its positions
    assert trainer.args.max_length == 1024
    assert "`max_length`" not in caplog.text


def test_rows_beyond_what_computed_positions_were_made_for_are_said_once(make_trainer, tokenizer, caplog):
    trainer = make_trainer(tiny_model(tokenizer, max_position_embeddings=40), Dataset.from_list(rows_around(40)))
    assert trainer.args.max_length == 1024
    assert caplog.text.count("up to 41 tokens, and the model was made for 40") == 1
    caplog.clear()
    make_trainer(tiny_model(tokenizer, max_position_embeddings=41), Dataset.from_list(rows_around(40)))
    assert "made for" not in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_tokens_added_without_resizing(make_trainer, streaming):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    tokenizer.add_tokens(["<think>"])
    rows = conversation_rows(8)
    for row in rows:
        row["chosen"][0]["content"] = "<think> good"
    data = Dataset.from_list(rows)
    if streaming:
        data = data.to_iterable_dataset()
    with pytest.raises(DataError) as error:
        make_trainer(model, data, processing_class=tokenizer).train()
    assert "<think>" in error.value.message
    assert "resize_token_embeddings" in error.value.fix
    model.resize_token_embeddings(len(tokenizer))
    make_trainer(model, Dataset.from_list(rows), processing_class=tokenizer).train()


def test_added_tokens_that_no_row_holds_do_no_harm(make_trainer, dataset):
    tokenizer = tiny_tokenizer()
    model = tiny_model(tokenizer)
    tokenizer.add_tokens(["<think>"])
    make_trainer(model, dataset, processing_class=tokenizer).train()


@pytest.mark.parametrize("setting", [True, "auto"])
@pytest.mark.parametrize("architecture", ["albert", "xlnet", "mpnet", "ctrl", "jetmoe"])
def test_models_that_cannot_recompute_keep_their_activations(make_trainer, caplog, architecture, setting):
    changes = {
        "albert": {"embedding_size": 16},
        "xlnet": {"d_model": 32, "d_inner": 48, "n_positions": 128},
        "mpnet": {"pad_token_id": 1},
        "ctrl": {"n_positions": 128, "dff": 48},
        "jetmoe": {"kv_channels": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
    }[architecture]
    model = make_model(architecture, **changes)
    rows = Dataset.from_list([{"chosen": "good" * (1 + n % 2), "rejected": "bad"} for n in range(8)])
    trainer = make_trainer(model, rows, gradient_checkpointing=setting)
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.args.gradient_checkpointing is False
    assert caplog.text.count("Gradient checkpointing is off") == 1


@pytest.mark.parametrize("name", ["adamw_8bit", "galore_adamw"])
def test_an_optimizer_without_its_package_is_met_when_the_trainer_is_built(model, dataset, make_trainer, name):
    with pytest.raises(ConfigError) as error:
        make_trainer(model, dataset, optim=name, optim_target_modules="all-linear")
    assert error.value.field == "optim"


def test_attention_without_its_package(make_trainer, dataset, model, tokenizer, tmp_path):
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ConfigError) as error:
        make_trainer(str(tmp_path / "model"), dataset, model_init_kwargs={"attn_implementation": "flash_attention_2"})
    assert "flash" in error.value.message.lower()
    assert "attn_implementation" in error.value.fix


def test_a_type_of_model_that_cannot_classify_is_named_in_short(make_trainer, dataset, tmp_path):
    config = AutoConfig.for_model("mamba", vocab_size=261, hidden_size=16, num_hidden_layers=1, state_size=4)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "mamba")
    for load in (
        lambda folder: make_trainer(folder, dataset),
        lambda folder: RewardModel.from_pretrained(folder, device="cpu"),
    ):
        with pytest.raises(ConfigError) as error:
            load(str(tmp_path / "mamba"))
        assert "mamba" in error.value.message
        assert len(error.value.message) < 300
        assert "type" in error.value.fix


@pytest.mark.parametrize(
    ("architecture", "settings", "code", "line"),
    [
        ("albert", (), 0, "Gradient checkpointing is off"),
        ("gpt2", (), 0, "`max_length` is 128"),
        ("gpt2", ("--optim", "adamw_8bit"), 2, "use another optimizer"),
        ("gpt2", ("--attn_implementation", "flash_attention_2"), 2, "attn_implementation"),
    ],
)
def test_the_dry_run_meets_them_too(tmp_path, capsys, architecture, settings, code, line):
    model = tiny_model(tiny_tokenizer(), "gpt2")
    if architecture == "albert":
        model = make_model("albert", embedding_size=16, max_position_embeddings=1024)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, conversation_rows())))
    command = f"train --dry-run --model_name_or_path {tmp_path}/model --dataset_name {tmp_path}/pairs.jsonl --use_cpu"
    assert main([*command.split(), "--output_dir", str(tmp_path / "out"), *settings]) == code
    written = capsys.readouterr().err
    assert written.count(line) == 1
    assert "Traceback" not in written
