"""Exported folders: plain transformers reads them, and gives the rewards of their source."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, pipeline

import plaudit
from builders import tiny_tokenizer
from export.conftest import ROWS, plain, responses
from model_builders import tiny_reward_model
from plaudit import RewardModel
from plaudit.export import export as exporting
from plaudit.export.export import ExportResult, export_model
from plaudit.model.aux_heads import TrainingHeads, save_heads
from plaudit.model.golden import GoldenRow, GoldenRows, load_golden_rows
from tolerances import REWARD

peft = pytest.importorskip("peft")


def dtypes_in(folder):
    with safe_open(folder / "model.safetensors", framework="pt") as weights:
        return {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118


# ---- whole models -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "head"),
    [
        ("llama", "score"),
        ("gpt2", "score"),
        ("gpt_neox", "score"),
        ("bert", "classifier"),
        ("modernbert", "classifier"),
    ],
)
def test_a_whole_model_is_written_anew(save, tmp_path, architecture, head):
    source = save(architecture)
    result = export_model(source, tmp_path / "out")
    np.testing.assert_allclose(plain(tmp_path / "out"), plain(source), **REWARD.close)
    assert isinstance(result, ExportResult)
    assert (result.adapter, result.dtype, result.head, result.scale, result.shift) == ("none", "float32", head, 1, 0)
    assert result.calibration is None
    assert result.check.largest_difference <= 1e-5 < result.check.allowed
    assert not (tmp_path / "out" / "reward_calibration.json").exists()


def test_what_servers_read(save_adapter, tmp_path):
    export_model(save_adapter(), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "reward"}
    assert config["problem_type"] == "regression"
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    assert config["pad_token_id"] == 0 != config["eos_token_id"]
    assert AutoConfig.from_pretrained(tmp_path / "out").num_labels == 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "README.md"}
    assert not [name for name in names if name.startswith("adapter")]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.padding_side == "right"
    texts = [tokenizer.apply_chat_template(one, tokenize=False) for one in responses()]
    classify = pipeline("text-classification", model=str(tmp_path / "out"), tokenizer=tokenizer, device="cpu")
    said = classify(texts, function_to_apply="none", batch_size=4)
    np.testing.assert_allclose([one["score"] for one in said], plain(tmp_path / "out"), **REWARD.close)
    # The configuration says by itself that there is no sigmoid.
    np.testing.assert_allclose([one["score"] for one in classify(texts)], plain(tmp_path / "out"), **REWARD.close)


def test_an_export_exported_again_is_the_same(source, tmp_path):
    export_model(source, tmp_path / "one", temperature=0.7)
    export_model(tmp_path / "one", tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_source_that_pads_with_eos_gets_a_padding_token(save, tmp_path, caplog):
    tokenizer = tiny_tokenizer(pad=False)
    tokenizer.pad_token = tokenizer.eos_token

    def pad_with_eos(model):
        model.config.pad_token_id = tokenizer.eos_token_id

    source = save(tokenizer=tokenizer, change=pad_with_eos)
    text = {"response": "2+2=4"}  # plain text ends with eos
    with caplog.at_level(logging.WARNING):
        result = export_model(source, tmp_path / "out")
    exported = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert exported.pad_token_id == AutoConfig.from_pretrained(tmp_path / "out").pad_token_id != exported.eos_token_id
    classify = pipeline("text-classification", model=str(tmp_path / "out"), tokenizer=exported, device="cpu")
    ours = RewardModel.from_pretrained(source, device="cpu").score(text)
    assert classify("2+2=4<|eos|>", function_to_apply="none")[0]["score"] == REWARD.approx(ours)
    assert "The padding token is now '<|pad|>' (it was '<|eos|>')" in result.notes[0]
    assert result.notes[0] in caplog.text


# ---- adapters -----------------------------------------------------------------------------------------------------

KINDS = {
    "LoRA": {"target_modules": "all-linear"},
    "DoRA": {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["q_proj", "score"], "modules_to_save": []},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_gives_the_rewards_of_the_adapter(save_adapter, tmp_path, kind):
    source = save_adapter(peft.LoraConfig(task_type="SEQ_CLS", r=4, init_lora_weights=False, **KINDS[kind]))
    adapter = peft.AutoPeftModelForSequenceClassification.from_pretrained(source, num_labels=1)
    expected = plain(source, model=adapter)
    result = export_model(source, tmp_path / "out", temperature=2.0)
    np.testing.assert_allclose(plain(tmp_path / "out"), expected / 2, **REWARD.close)
    assert np.abs(expected - plain(source.parent / "source")).max() > 0.01
    assert result.adapter == "merged"


def test_the_tokenizer_under_an_adapter_goes_along(save_adapter, tmp_path):
    export_model(save_adapter(with_tokenizer=False), tmp_path / "out")
    assert AutoTokenizer.from_pretrained(tmp_path / "out").chat_template


@pytest.mark.parametrize("architecture", ["gpt2", "bert"])
def test_adapters_of_other_architectures(save_adapter, tmp_path, architecture):
    targets = {"gpt2": ["c_attn"], "bert": ["query", "value"]}[architecture]
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules=targets, init_lora_weights=False)
    source = save_adapter(config, architecture)
    expected = plain(source, model=peft.AutoPeftModelForSequenceClassification.from_pretrained(source, num_labels=1))
    export_model(source, tmp_path / "out", temperature=0.5)
    np.testing.assert_allclose(plain(tmp_path / "out"), expected * 2, **REWARD.close)


def test_an_adapter_may_stay_one(save_adapter, tmp_path):
    source = save_adapter()
    adapter = peft.AutoPeftModelForSequenceClassification.from_pretrained(source, num_labels=1)
    expected = plain(source, model=adapter)
    result = export_model(source, tmp_path / "out", merge=False, temperature=4.0)
    exported = peft.AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "out", num_labels=1)
    np.testing.assert_allclose(plain(tmp_path / "out", model=exported), expected / 4, **REWARD.close)
    assert (result.adapter, result.scale, result.calibration) == ("kept", 0.25, None)
    assert not (tmp_path / "out" / "model.safetensors").exists()


# ---- precision ----------------------------------------------------------------------------------------------------


def test_the_head_keeps_float32_in_a_half_precision_export(save_adapter, tmp_path):
    source = save_adapter(dtype=torch.bfloat16)
    adapter = peft.AutoPeftModelForSequenceClassification.from_pretrained(source, num_labels=1, dtype=torch.float32)
    expected = plain(source, model=adapter)
    result = export_model(source, tmp_path / "out")
    kinds = dtypes_in(tmp_path / "out")
    assert kinds.pop("score.weight") == "F32"
    assert set(kinds.values()) == {"BF16"}
    assert result.dtype == "bfloat16" == json.loads((tmp_path / "out" / "config.json").read_text())["dtype"]
    trained = load_file(source / "adapter_model.safetensors")
    (head,) = (value for name, value in trained.items() if "score" in name)
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["score.weight"], head)
    differences = np.abs(plain(tmp_path / "out") - expected)
    assert 0 < differences.max() < 0.05
    assert 0 < result.check.largest_difference < result.check.allowed < 0.5


def test_close_rewards_do_not_become_ties(save, tmp_path):
    """Rewards on a large common height differ in digits that a bfloat16 head would round away."""

    def raise_all(model):
        model.classifier.bias.data.fill_(300.0)

    source = save("bert", change=raise_all)
    export_model(source, tmp_path / "out", dtype="bfloat16", temperature=3.0)
    expected, found = plain(source), plain(tmp_path / "out")
    assert len(set(found)) == len(set(expected)) == len(expected)
    assert dtypes_in(tmp_path / "out")["classifier.bias"] == "F32"
    assert found.mean() == pytest.approx(100, abs=0.5)


def test_dtype_is_that_of_the_source_or_as_asked_for(save, tmp_path):
    half = save(dtype=torch.bfloat16)
    assert export_model(half, tmp_path / "one").dtype == "bfloat16"
    assert export_model(half, tmp_path / "two", dtype="float32").dtype == "float32"
    np.testing.assert_allclose(plain(tmp_path / "one"), plain(half), **REWARD.close)
    np.testing.assert_allclose(plain(tmp_path / "two"), plain(half), **REWARD.close)
    whole = export_model(save(), tmp_path / "three", dtype="float16")
    assert set(dtypes_in(tmp_path / "three").values()) == {"F16", "F32"}
    assert 0 < whole.check.largest_difference < 0.01


def test_where_the_configuration_does_not_say_the_weights_do(save, tmp_path):
    source = save(dtype=torch.bfloat16)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({name: one for name, one in config.items() if name != "dtype"}))
    assert export_model(source, tmp_path / "out").dtype == "bfloat16"


def test_weights_beyond_float16_are_refused(save, tmp_path):
    def enlarge(model):
        model.model.embed_tokens.weight.data[200, 0] = 1e5

    with pytest.raises(plaudit.ConfigError) as error:
        export_model(save(change=enlarge), tmp_path / "out", dtype="float16")
    assert error.value.field == "dtype"
    assert "`model.embed_tokens.weight`" in error.value.message
    assert not list(tmp_path.iterdir())


# ---- the check can fail -------------------------------------------------------------------------------------------


def test_a_fold_that_does_something_else_is_caught(source, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "fold_into", lambda head, scale, shift: None)
    with pytest.raises(plaudit.ConfigError) as error:
        export_model(source, tmp_path / "out", temperature=2.0)
    assert "raw=True" in error.value.fix
    assert not list(tmp_path.iterdir())


def test_a_folder_that_lost_its_head_is_caught(source, tmp_path, monkeypatch):
    kind = type(tiny_reward_model("llama"))
    stock = kind.save_pretrained

    def forget(self, folder, **kwargs):
        state = {name: value for name, value in self.state_dict().items() if "score" not in name}
        stock(self, folder, state_dict=state, **kwargs)

    monkeypatch.setattr(kind, "save_pretrained", forget)
    with pytest.raises(plaudit.ConfigError, match=r"score\.weight"):
        export_model(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_weights_is_caught(source, tmp_path, monkeypatch):
    kind = type(tiny_reward_model("llama"))
    stock = kind.save_pretrained

    def spoil(self, folder, **kwargs):
        state = {name: value * (3 if "q_proj" in name else 1) for name, value in self.state_dict().items()}
        stock(self, folder, state_dict=state, **kwargs)

    monkeypatch.setattr(kind, "save_pretrained", spoil)
    with pytest.raises(plaudit.ConfigError, match=r"of 6; \d differ by more than") as error:
        export_model(source, tmp_path / "out")
    assert error.value.fix is not None


def test_a_lost_chat_template_is_caught(source, tmp_path, monkeypatch):
    kind = type(tiny_tokenizer())
    stock = kind.save_pretrained

    def forget(self, folder, **kwargs):
        saved = stock(self, folder, **kwargs)
        (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")
        return saved

    monkeypatch.setattr(kind, "save_pretrained", forget)
    with pytest.raises(plaudit.ConfigError, match="tokenizer"):
        export_model(source, tmp_path / "out")


def test_a_tolerance_of_ones_own(source, tmp_path):
    with pytest.raises(plaudit.ConfigError) as error:
        export_model(source, tmp_path / "out", dtype="bfloat16", tolerance=1e-6)
    assert "float32" in error.value.fix
    assert export_model(source, tmp_path / "out", dtype="bfloat16", tolerance=10.0).check.allowed >= 10


# ---- what lies beside ---------------------------------------------------------------------------------------------


@pytest.fixture
def golden(source):
    model = RewardModel.from_pretrained(source, device="cpu")
    ids = [tuple(model.processing_class.apply_chat_template(one, tokenize=True)["input_ids"]) for one in responses()]
    rewards = model.score([{"response_ids": ids}])[0]
    rows = tuple(GoldenRow(one, reward) for one, reward in zip(ids, rewards, strict=True))
    return GoldenRows(rows, pad_token_id=7, how="saved by a test")


def test_golden_rows_go_along_with_the_rewards_of_the_export(source, golden, tmp_path):
    golden.save(source)
    result = export_model(source, tmp_path / "out", temperature=0.5)
    exported = load_golden_rows(str(tmp_path / "out"))
    np.testing.assert_allclose(exported.rewards, np.array(golden.rewards) * 2, rtol=1e-12)
    np.testing.assert_allclose(exported.rewards, plain(tmp_path / "out"), **REWARD.close)
    assert [row.ids for row in exported.rows] == [row.ids for row in golden.rows]
    assert exported.pad_token_id == 0
    assert (result.golden_rows, result.check.golden, result.notes) == (16, 16, ())
    np.testing.assert_allclose(result.check.before[:16], golden.rewards, **REWARD.close)


def test_golden_rows_of_rounded_weights_say_so(source, golden, save, tmp_path):
    """Whoever replays them allows for what the weights lost, and for no more where they lost nothing."""
    golden.save(source)
    export_model(source, tmp_path / "float32")
    export_model(source, tmp_path / "bfloat16", dtype="bfloat16")
    export_model(tmp_path / "float32", tmp_path / "float16", dtype="float16")
    for dtype in ("float32", "bfloat16", "float16"):
        assert load_golden_rows(str(tmp_path / dtype)).dtype == dtype
    half = save(dtype=torch.bfloat16)
    exact = RewardModel.from_pretrained(half, device="cpu").score([{"response_ids": [row.ids for row in golden.rows]}])
    golden.with_rewards(exact[0], "float32").save(half)
    export_model(half, tmp_path / "half")
    assert load_golden_rows(str(tmp_path / "half")).dtype == "float32"


def test_a_source_that_left_its_golden_rows_is_told_of(source, golden, tmp_path):
    golden.rescaled(1.0, 0.3).save(source)
    result = export_model(source, tmp_path / "out")
    assert "golden rows differ by up to 0.3" in result.notes[0]


def test_what_is_carried_and_what_is_left_behind(source, tmp_path):
    (source / "plaudit_run.json").write_text("{}")
    (source / "LICENSE").write_text("Free.")
    for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json", "training_args.bin", "rng_state.pth"):
        (source / name).write_text("x")
    heads = TrainingHeads(32, ensemble_size=4)
    save_heads(heads, source, None, "bradley_terry")
    (source / "checkpoint-5").mkdir()
    result = export_model(source, tmp_path / "out")
    assert result.notes[0].startswith("The ensemble that tells how sure rewards are stays behind")
    assert result.carried == ("plaudit_run.json", "LICENSE")
    assert result.left_behind == (
        *("checkpoint-5/", "optimizer.pt", "rng_state.pth", "scheduler.pt", "trainer_state.json"),
        *("training_args.bin", "training_heads.safetensors"),
    )
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names & {name.rstrip("/") for name in result.left_behind} == set()
    assert (tmp_path / "out" / "LICENSE").read_text() == "Free."


def test_the_record_says_what_was_done(source, tmp_path):
    result = export_model(source, tmp_path / "out", normalize=ROWS)
    record = json.loads((tmp_path / "out" / "plaudit_export.json").read_text())
    assert (record["format"], record["version"], record["source"]) == ("plaudit export", 1, "source")
    assert record["scale"] == result.scale
    assert record["rewards"]["shift"] == result.rewards.shift == record["calibration"]["shift"]
    assert record["check"]["largest_difference"] == result.check.largest_difference
    assert str(tmp_path) not in json.dumps(record) + (tmp_path / "out" / "config.json").read_text()


def test_the_card_keeps_what_is_true_of_the_source(source, tmp_path):
    (source / "README.md").write_text(
        "---\nlibrary_name: peft\nlicense: mit\nbase_model: /home/me/base\ntags: [mine, lora]\n---\n# first\n\n"
        "Trained on pairs.\n\n## Model\n\n<!-- A summary. -->\n\n## Uses\n\n[More Information Needed]\n\n"
        "## Load and score\n\nold code\n\n## Serve\n\nmerge it first\n\n## Data\n\n- 12 rows\n"
    )
    result = export_model(source, tmp_path / "out", temperature=2.0)
    card = (tmp_path / "out" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "mit"
    assert header["library_name"] == "transformers"
    assert set(header["tags"]) == {"mine", "plaudit", "reward-model"}
    assert "base_model" not in header
    assert "Trained on pairs." in card
    assert "## Data\n\n- 12 rows" in card
    assert "old code" not in card
    assert "merge it first" not in card
    assert "## Uses" not in card
    for title, text in result.lines():
        assert f"| {title} | {text} |" in card


# ---- public names -------------------------------------------------------------------------------------------------


def test_it_is_public():
    assert plaudit.export_model is export_model
