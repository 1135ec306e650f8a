"""Loading, refusing, ranking, comparing, calibrating, and being called by a trainer of policies."""

import json
import logging
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model, tiny_reward_model
from plaudit import ConfigError, DataError, RewardModel
from plaudit.model.calibration import RewardCalibration, load_calibration
from tolerances import REWARD

TEXTS = ["good", "bad, very bad", "I do not know", "good!"]
PAIRS = [
    {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
    {"prompt": "2+2=", "chosen": "four", "rejected": "4"},
    {"prompt": "Hi", "chosen": "a", "rejected": "a"},
]


@pytest.fixture
def rewards(plain):
    return [plain(text) for text in TEXTS]


def load(folder, **settings):
    return RewardModel.from_pretrained(folder, device="cpu", **settings)


def save(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- what can be loaded ---------------------------------------------------------------------------------------


def test_a_folder_is_loaded_with_its_tokenizer_and_says_what_it_is(folder, rewards):
    model = load(str(folder))
    assert model.score(TEXTS) == REWARD.approx(rewards)
    assert (model.batch_layout, model.max_length, model.dtype) == ("shared_prefix", 512, torch.float32)
    assert model.batch_layout_reason == "each prompt computed once"
    assert repr(model) == f"RewardModel('{folder}', device='cpu', batch_layout='shared_prefix')"
    assert not model.model.training


def test_a_model_that_is_loaded_already(tokenizer, rewards):
    before = tokenizer.pad_token
    model = RewardModel(tiny_model(tokenizer, max_position_embeddings=512).train(), tokenizer)
    assert model.score(TEXTS) == REWARD.approx(rewards)
    assert tokenizer.pad_token == before
    model.model.train()
    model.score("a")
    assert not model.model.training


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "bloom", "stablelm", "gemma2", "qwen3_moe"])
def test_other_architectures(tokenizer, tmp_path, architecture):
    model = tiny_reward_model(architecture, vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    save(model, tokenizer, tmp_path)
    with torch.no_grad():
        expected = [
            model(torch.tensor([tokenizer(text + tokenizer.eos_token)["input_ids"]])).logits.item() for text in TEXTS
        ]
    scorer = load(tmp_path)
    assert scorer.score([*TEXTS, *TEXTS]) == REWARD.approx(expected * 2)
    assert scorer.batch_layout == ("shared_prefix" if architecture in ("gpt2", "gemma2", "qwen3_moe") else "padded")


def test_a_layout_that_turns_out_wrong_is_left_and_rewards_stay_right(folder, rewards, monkeypatch, caplog):
    monkeypatch.setattr("plaudit.model.shared_prefix.compare_with_padded", lambda *args: "it is made up")
    model = load(folder)
    with caplog.at_level(logging.WARNING, "plaudit"):
        assert model.score(TEXTS) == REWARD.approx(rewards)
    assert (model.batch_layout, model.batch_layout_reason) == ("padded", "it is made up")
    assert "Falling back to the padded layout: it is made up." in caplog.text
    with pytest.raises(ConfigError, match="it is made up"):
        load(folder, batch_layout="shared_prefix").score(TEXTS)


def test_batches_are_as_small_as_asked_after_the_layout_was_left(folder, monkeypatch):
    monkeypatch.setattr("plaudit.model.shared_prefix.compare_with_padded", lambda *args: "it is made up")
    model = load(folder, max_tokens_per_batch=240)
    computed, forward = [], type(model._engine.forward).__call__

    def watched(self, *args, **options):
        rewards = forward(self, *args, **options)
        computed.append(rewards.tokens_computed)
        return rewards

    monkeypatch.setattr(type(model._engine.forward), "__call__", watched)
    model.score([{"prompt": "x" * 50, "responses": [f"{n}{k}" for k in range(9)]} for n in range(8)])
    assert model.batch_layout == "padded"
    assert max(computed) <= 240


def test_half_precision_has_a_head_in_float32(folder, rewards, tokenizer):
    model = load(folder, dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    texts = [f"answer {n}" for n in range(60)]
    scores = model.score(texts)
    # Rounded to bfloat16, some of them would be equal.
    assert len(set(scores)) == 60
    assert any(score != float(torch.tensor(score).bfloat16()) for score in scores)
    assert model.score(TEXTS) == pytest.approx(rewards, abs=0.1)
    assert load(folder, dtype=torch.bfloat16, batch_layout="padded").score(texts) == pytest.approx(scores, abs=0.05)


@pytest.mark.parametrize("merge", [False, True, "saved"])
@pytest.mark.parametrize("base_is", ["reward model", "language model"])
def test_adapters_and_merged_ones(tokenizer, tmp_path, layout, merge, base_is):
    peft = pytest.importorskip("peft")
    config = tiny_model(tokenizer).config
    torch.manual_seed(0)
    cls = AutoModelForSequenceClassification if base_is == "reward model" else AutoModelForCausalLM
    save(cls.from_config(config), tokenizer, tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    lora = peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], modules_to_save=["score"])
    adapted = peft.get_peft_model(base, lora).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
        ids = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in TEXTS]
        expected = [adapted(torch.tensor([one])).logits.item() for one in ids]
    adapted.save_pretrained(tmp_path / "adapter")
    folder = tmp_path / "adapter"  # without a tokenizer: that of the base is taken
    if merge == "saved":
        folder = save(adapted.merge_and_unload(), tokenizer, tmp_path / "merged")
    model = load(folder, batch_layout=layout, merge_adapter=merge is True)
    assert model.score(TEXTS) == REWARD.approx(expected)
    assert any("lora" in name for name, _ in model.model.named_parameters()) is (merge is False)


def test_an_adapter_keeps_its_float32_head_on_a_trunk_of_half_precision(tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    save(tiny_model(tokenizer), tokenizer, tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    head = adapted.base_model.model.score.modules_to_save["default"].weight
    loaded = load(tmp_path / "adapter", dtype="bfloat16").model.base_model.model
    assert torch.equal(loaded.score.modules_to_save["default"].weight, head)
    assert loaded.model.embed_tokens.weight.dtype == torch.bfloat16


# ---- what cannot ----------------------------------------------------------------------------------------------


def test_a_language_model_is_refused(tokenizer, tmp_path):
    save(AutoModelForCausalLM.from_config(tiny_model(tokenizer).config), tokenizer, tmp_path)
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM"):
        load(tmp_path)


def test_a_classifier_of_two_labels_is_refused(tokenizer, tmp_path):
    config = tiny_model(tokenizer).config
    config.num_labels = 2
    model = AutoModelForSequenceClassification.from_config(config)
    save(model, tokenizer, tmp_path)
    with pytest.raises(ConfigError, match="`num_labels=2`"):
        load(tmp_path)
    with pytest.raises(ConfigError, match="`num_labels=2`"):
        RewardModel(model, tokenizer)


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_a_checkpoint_that_lost_its_head_is_refused(tokenizer, tmp_path, architecture):
    model = tiny_reward_model(architecture, vocab_size=len(tokenizer))
    lost = {name: value for name, value in model.state_dict().items() if not name.startswith(("score", "classifier"))}
    model.save_pretrained(tmp_path, state_dict=lost)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"\((score|classifier)"):
        load(tmp_path)


def test_an_adapter_that_brings_no_head_for_a_language_model_is_refused(tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    save(AutoModelForCausalLM.from_config(tiny_model(tokenizer).config), tokenizer, tmp_path / "lm")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "lm", num_labels=1)
    peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ConfigError, match=r"\(score.weight\)"):
        load(tmp_path / "adapter")


def test_an_adapter_of_a_language_model_is_refused(tokenizer, tmp_path):
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_config(tiny_model(tokenizer).config)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    peft.get_peft_model(base, lora).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="CAUSAL_LM"):
        load(tmp_path)


def test_folders_without_a_model_and_without_a_tokenizer(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json"):
        load(tmp_path)
    tiny_model(tokenizer).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="tokenizer") as caught:
        load(tmp_path)
    assert caught.value.fix
    assert isinstance(load(tmp_path, processing_class=tokenizer).score("a"), float)


def test_settings_that_cannot_work(folder):
    settings = {"batch_layout": "flat", "overlong": "drop", "max_length": 0, "max_tokens_per_batch": -1}
    for name, value in settings.items():
        with pytest.raises(ConfigError, match=str(value)) as caught:
            load(folder, **{name: value})
        assert caught.value.field == name


# ---- the trap of padding --------------------------------------------------------------------------------------


def test_a_checkpoint_that_pads_with_eos_is_read_at_the_last_token_and_says_so(tmp_path, caplog):
    tokenizer = tiny_tokenizer(pad=False)
    model = tiny_model(tokenizer)
    model.config.pad_token_id = tokenizer.eos_token_id
    save(model, tokenizer, tmp_path)
    ids = [tokenizer(text + tokenizer.eos_token)["input_ids"] for text in TEXTS]
    with torch.no_grad():
        states = [model.model(torch.tensor([one]))[0][0, -1] for one in ids]
        expected = [model.score(state).item() for state in states]
    for layout in ("padded", "shared_prefix"):
        with caplog.at_level(logging.WARNING, "plaudit"):
            scorer = load(tmp_path, batch_layout=layout)
        assert "This checkpoint pads with its eos token" in caplog.text
        assert scorer.score(TEXTS) == REWARD.approx(expected)
    assert scorer.processing_class.pad_token_id != tokenizer.eos_token_id


def test_an_encoder_is_padded_with_what_it_knows(tokenizer, tmp_path):
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        num_labels=1, pad_token_id=0, max_position_embeddings=64,
    )  # fmt: skip
    save(AutoModelForSequenceClassification.from_config(config), tokenizer, tmp_path)
    scorer = load(tmp_path, batch_layout="auto")
    together = scorer.score(TEXTS)
    assert together == REWARD.approx([scorer.score(text) for text in TEXTS])
    assert scorer.max_length == 64
    with pytest.raises(DataError, match="64"):
        scorer.score("x" * 80)


# ---- choices --------------------------------------------------------------------------------------------------


def test_ranking_is_best_first_and_says_where_each_was(folder, plain):
    model = load(folder)
    answers = ["4", "22", "5", "4"]
    ranked = model.rank("2+2=", answers)
    expected = [plain("2+2=" + answer) for answer in answers]
    assert [one.position for one in ranked] == sorted(range(4), key=lambda n: -round(expected[n], 4))
    assert [one.reward for one in ranked] == REWARD.approx(sorted(expected, reverse=True))
    assert [one.response for one in ranked] == [answers[one.position] for one in ranked]
    same = [one.position for one in ranked if one.response == "4"]
    assert same == [0, 3]  # equal ones stay in their order
    assert model.best_of_n("2+2=", answers) == ranked[0]
    response, reward, position = ranked[0]
    assert (answers[position], reward) == (response, ranked[0].reward)
    assert model.rank("2+2=", []) == []


def test_texts_after_messages_are_what_the_assistant_says(folder):
    model = load(folder)
    prompt = [{"role": "user", "content": "2+2?"}]
    answers = ["4", "5"]
    as_messages = [[{"role": "assistant", "content": answer}] for answer in answers]
    ranked = model.rank(prompt, answers)
    assert [one.reward for one in ranked] == REWARD.approx([one.reward for one in model.rank(prompt, as_messages)])
    assert {one.response for one in ranked} == set(answers)
    whole = model.rank(None, [prompt + one for one in as_messages])
    assert [one.reward for one in whole] == REWARD.approx([one.reward for one in ranked])
    tools = [{"type": "function", "function": {"name": "add"}}]
    with_tools = model.best_of_n(prompt, answers, tools=tools).reward
    row = {"prompt": prompt, "responses": as_messages, "tools": tools}
    assert with_tools == REWARD.approx(max(model.score(row)))


def test_nothing_to_choose_from(folder):
    model = load(folder, max_length=4, overlong="nan")
    with pytest.raises(DataError) as caught:
        model.best_of_n("a", [])
    assert caught.value.field == "responses"
    ranked = model.rank("a", ["b" * 9, "c"])
    assert [one.response for one in ranked] == ["b" * 9, "c"]
    assert all(math.isnan(one.reward) for one in ranked)  # a row is too long where one of its responses is
    with pytest.raises(DataError) as caught:
        model.best_of_n("a", ["b" * 9])
    assert caught.value.field == "responses"
    with pytest.raises(DataError) as caught:
        model.rank("a", "b")
    assert caught.value.field == "responses"


def test_margins_and_probabilities(folder, plain):
    model = load(folder)
    expected = [plain(row["prompt"] + row["chosen"]) - plain(row["prompt"] + row["rejected"]) for row in PAIRS]
    assert model.margin(PAIRS) == REWARD.approx(expected)
    assert model.margin(PAIRS[0]) == REWARD.approx(expected[0])
    assert model.margin(iter(PAIRS)) == REWARD.approx(expected)
    assert model.probability(PAIRS) == REWARD.approx([1 / (1 + math.exp(-one)) for one in expected])
    assert model.probability(PAIRS[2]) == 0.5
    with pytest.raises(DataError) as caught:
        model.margin([PAIRS[0], {"prompt": "a", "response": "b"}])
    assert caught.value.row == 1


# ---- calibration ----------------------------------------------------------------------------------------------


@pytest.fixture
def calibrated(tokenizer, tmp_path):
    save(tiny_model(tokenizer, max_position_embeddings=512), tokenizer, tmp_path)
    RewardCalibration(scale=3.0, shift=-1.0, temperature=2.0, how="fitted on pairs.jsonl").save(tmp_path)
    return tmp_path


def test_a_calibration_beside_the_model_is_applied_and_said(calibrated, rewards, folder, caplog):
    with caplog.at_level(logging.INFO, "plaudit"):
        model = load(calibrated)
    assert "rewards are 3 times the model's plus -1, temperature 2 (fitted on pairs.jsonl)" in caplog.text
    assert model.calibration.how == "fitted on pairs.jsonl"
    assert model.score(TEXTS) == REWARD.times(3).approx([3 * one - 1 for one in rewards])
    raw = load(folder).margin(PAIRS)
    assert model.margin(PAIRS) == REWARD.times(3).approx([3 * one for one in raw])
    assert model.probability(PAIRS) == REWARD.times(3).approx([1 / (1 + math.exp(-1.5 * one)) for one in raw])
    assert load(calibrated, calibration=None).score(TEXTS) == REWARD.approx(rewards)
    own = RewardCalibration(shift=10.0)
    assert load(calibrated, calibration=own).score(TEXTS) == REWARD.approx([one + 10 for one in rewards])


def test_calibrations_are_written_and_read(tmp_path, folder):
    calibration = RewardCalibration(0.5, 0.25, 4.0, "by hand")
    path = calibration.save(tmp_path)
    assert json.loads(path.read_text()) == {
        "version": 1, "scale": 0.5, "shift": 0.25, "temperature": 4.0, "how": "by hand",
    }  # fmt: skip
    assert load_calibration(str(tmp_path)) == calibration
    assert load_calibration(str(folder)) is None


BROKEN = ["{", "[]", "{}", '{"version": 2}', '{"version": 1, "bias": 3}', '{"version": 1, "scale": 0}']
BROKEN += ['{"version": 1, "temperature": -1}', '{"version": 1, "shift": "a"}', '{"version": 1, "scale": NaN}']


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_calibration_is_refused(calibrated, text):
    (calibrated / "reward_calibration.json").write_text(text)
    with pytest.raises(ConfigError, match="calibration"):
        load(calibrated)


@pytest.mark.parametrize(("margin", "probability"), [(1e4, 1.0), (-1e4, 0.0), (0.0, 0.5)])
def test_probabilities_do_not_overflow(margin, probability):
    assert RewardCalibration().probability(margin) == probability
    assert math.isnan(RewardCalibration().probability(math.nan))


# ---- a reward function of trainers ----------------------------------------------------------------------------


def test_it_is_called_like_a_reward_function(folder, plain):
    model = load(folder)
    assert model.__name__ == folder.name
    assert not isinstance(model, torch.nn.Module)  # TRL would call that with token ids
    prompts, completions = ["2+2=", "2+2=", "Hi "], ["4", "5", "there"]
    expected = [plain(prompt + completion) for prompt, completion in zip(prompts, completions, strict=True)]
    rewards = model(prompts=prompts, completions=completions, completion_ids=[[1]] * 3, trainer_state=None, answer=[4])
    assert rewards == REWARD.approx(expected)
    assert all(type(one) is float for one in rewards)
    talks = [row["prompt"] for row in conversation_rows(3)]
    said = [row["chosen"] for row in conversation_rows(3)]
    expected = [plain(prompt + completion) for prompt, completion in zip(talks, said, strict=True)]
    assert model(prompts=talks, completions=said) == REWARD.approx(expected)
    assert model(talks, [one[0]["content"] for one in said]) == REWARD.approx(expected)
    tools = [None, [{"type": "function", "function": {"name": "add"}}], None]
    expected[1] = plain(talks[1] + said[1], tools=tools[1])
    assert model(talks, said, tools=tools) == REWARD.approx(expected)
    with pytest.raises(DataError, match=r"2 completions.* 3 prompts"):
        model(talks, said[:2])
