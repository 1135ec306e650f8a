"""Training through the public API: what comes out, and that the layout, batching and accumulation do not show."""

import copy
import json
import logging
import math
import sys

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from model_builders import COMMON, conversation_rows, tiny_model
from plaudit import ConfigError, DataCollatorForPreference, RewardTrainer
from tolerances import REWARD, weights_after

METRICS = {
    "loss",
    "accuracy",
    "tie_rate",
    "margin",
    "min_reward",
    "mean_reward",
    "max_reward",
    "num_tokens",
    "num_tokens_computed",
    "learning_rate",
    "grad_norm",
    "epoch",
    "step",
}


def training_logs(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


def plain_rewards(model, dataset):
    """Rewards by a stock forward, one unpadded response at a time."""
    with torch.no_grad():
        return np.array(
            [
                [model(torch.tensor([row[key]])).logits.item() for key in ("chosen_ids", "rejected_ids")]
                for row in dataset
            ]
        )


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_the_saved_model_is_an_ordinary_one_with_the_same_rewards(
    model, dataset, tokenizer, make_trainer, layout, tmp_path
):
    trainer = make_trainer(model, dataset, batch_layout=layout, max_steps=3)
    trainer.train()
    trainer.save_model()
    folder = tmp_path / "out"
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder)
    expected = trainer.predict(dataset).predictions
    np.testing.assert_allclose(plain_rewards(reloaded, trainer.train_dataset), expected, **REWARD.close)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "reward"}
    assert config["problem_type"] == "regression"
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    assert config["pad_token_id"] != config["eos_token_id"]
    assert "shared_prefix" not in (folder / "config.json").read_text()
    saved_tokenizer = AutoTokenizer.from_pretrained(folder)
    assert saved_tokenizer.pad_token_id == config["pad_token_id"]
    assert saved_tokenizer.chat_template == tokenizer.chat_template


def test_training_learns(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset, max_steps=30, learning_rate=1e-2, eval_dataset=dataset)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_accuracy"] == 1.0
    assert after["eval_loss"] < 0.2 < before["eval_loss"]


def test_both_layouts_train_to_the_same_weights(model, dataset, make_trainer):
    weights, logs = [], []
    for layout in ("padded", "shared_prefix"):
        settings = {"optim": "sgd", "learning_rate": 0.01}
        trainer = make_trainer(copy.deepcopy(model), dataset, batch_layout=layout, max_steps=5, **settings)
        trainer.train()
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
        logs.append(training_logs(trainer))
    torch.testing.assert_close(*weights, **weights_after(5, 0.01).close)
    for padded, shared in zip(*logs, strict=True):
        for name in METRICS - {"num_tokens_computed"}:
            assert padded[name] == REWARD.approx(shared[name]), name
        assert shared["num_tokens_computed"] < padded["num_tokens_computed"]


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_uneven_micro_batches_equal_one_big_batch(model, make_trainer, layout):
    dataset = Dataset.from_list(conversation_rows(10))
    logs, weights = [], []
    for size, steps in ((10, 1), (4, 3)):  # 4 + 4 + 2
        trainer = make_trainer(
            copy.deepcopy(model),
            dataset,
            batch_layout=layout,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            max_steps=2,
            center_rewards_coefficient=0.1,
            optim="sgd",
            learning_rate=0.01,
        )
        trainer.train()
        logs.append(training_logs(trainer))
        weights.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(*weights, **weights_after(2, 0.01).close)
    for big, small in zip(*logs, strict=True):
        for name in METRICS - {"num_tokens_computed"}:
            assert big[name] == REWARD.approx(small[name]), name


def test_logged_metrics_are_those_of_the_whole_interval(model, dataset, make_trainer):
    seen = []

    class Watching(RewardTrainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
            rewards = outputs["rewards"].detach()
            seen.append((rewards[inputs["better"]], rewards[inputs["worse"]], inputs["response_lengths"].sum()))
            return (loss, outputs) if return_outputs else loss

    trainer = make_trainer(
        model,
        dataset,
        cls=Watching,
        per_device_train_batch_size=5,
        max_steps=4,
        logging_steps=2,
    )
    trainer.train()
    logs = training_logs(trainer)
    assert len(logs) == 2
    tokens = 0
    for log, batches in zip(logs, (seen[:2], seen[2:]), strict=True):
        assert log.keys() >= METRICS
        chosen = torch.cat([batch[0] for batch in batches])
        rejected = torch.cat([batch[1] for batch in batches])
        tokens += int(sum(batch[2] for batch in batches))
        everything = torch.cat((chosen, rejected))
        assert log["accuracy"] == pytest.approx((chosen > rejected).float().mean().item())
        assert log["tie_rate"] == pytest.approx((chosen == rejected).float().mean().item())
        assert log["margin"] == REWARD.approx((chosen - rejected).mean().item())
        assert log["mean_reward"] == REWARD.approx(everything.mean().item())
        assert log["min_reward"] == pytest.approx(everything.min().item())
        assert log["max_reward"] == pytest.approx(everything.max().item())
        assert log["loss"] == REWARD.approx(-logsigmoid(chosen - rejected).mean().item())
        assert log["num_tokens"] == tokens


def test_margins_reach_the_loss(model, make_trainer):
    rows = [{**row, "margin": float(n)} for n, row in enumerate(conversation_rows(4))]
    trainer = make_trainer(model, Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows))
    rewards = torch.tensor(plain_rewards(trainer.model.eval(), trainer.train_dataset))
    difference = rewards[:, 0] - rewards[:, 1]
    expected = -logsigmoid(difference - torch.arange(4)).mean().item()
    assert trainer.evaluate()["eval_loss"] == REWARD.approx(expected)


def test_margins_stay_exact_where_an_engine_lowers_the_precision_of_batches(model, make_trainer, monkeypatch):
    rows = [{**row, "margin": 1.001 + n} for n, row in enumerate(conversation_rows(4))]
    trainer = make_trainer(model, Dataset.from_list(rows))
    expected = trainer.evaluate(Dataset.from_list(rows))["eval_loss"]

    def lowered(self, data):  # what the Trainer does under DeepSpeed in bfloat16
        if isinstance(data, torch.Tensor):
            return data.bfloat16() if data.is_floating_point() else data
        return {key: lowered(self, value) for key, value in data.items()} if isinstance(data, dict) else data

    monkeypatch.setattr("transformers.Trainer._prepare_input", lowered)
    assert trainer.evaluate(Dataset.from_list(rows))["eval_loss"] == expected


def test_evaluation_is_exact_whatever_the_batch(model, make_trainer):
    dataset = Dataset.from_list(conversation_rows(9))
    trainer = make_trainer(model, dataset)
    rewards = plain_rewards(trainer.model.eval(), trainer.train_dataset)
    difference = rewards[:, 0] - rewards[:, 1]
    expected = {
        "eval_accuracy": (difference > 0).mean(),
        "eval_margin": difference.mean(),
        "eval_loss": np.log1p(np.exp(-difference)).mean(),
        "eval_min_reward": rewards.min(),
        "eval_mean_reward": rewards.mean(),
        "eval_max_reward": rewards.max(),
        "eval_num_tokens": sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset),
    }
    for layout in ("padded", "shared_prefix"):
        for size in (1, 4, 8):
            trainer = make_trainer(copy.deepcopy(model), dataset, batch_layout=layout, per_device_eval_batch_size=size)
            metrics = trainer.evaluate(dataset)
            for name, value in expected.items():
                assert metrics[name] == REWARD.approx(value), (layout, size, name)


def test_swapping_labels_mirrors_the_accuracy(model, make_trainer):
    rows = conversation_rows(9)
    rows[3]["rejected"] = rows[3]["chosen"]  # a tie
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    trainer = make_trainer(model, Dataset.from_list(rows))
    straight = trainer.evaluate(Dataset.from_list(rows))
    mirrored = trainer.evaluate(Dataset.from_list(swapped))
    assert straight["eval_tie_rate"] == pytest.approx(1 / 9)
    assert mirrored["eval_accuracy"] == pytest.approx(1 - straight["eval_accuracy"] - straight["eval_tie_rate"])


def test_several_eval_sets_and_prefixes_keep_apart(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset, eval_dataset={"a": dataset, "b": dataset.select(range(3))})
    metrics = trainer.evaluate()
    assert {"eval_a_accuracy", "eval_b_accuracy", "eval_a_loss", "eval_b_num_tokens"} <= metrics.keys()
    assert metrics["eval_a_num_tokens"] > metrics["eval_b_num_tokens"]
    assert "test_accuracy" in trainer.evaluate(dataset, metric_key_prefix="test")
    trainer.predict(dataset)
    again = trainer.evaluate(dataset.select(range(3)), metric_key_prefix="eval_b")
    assert again["eval_b_margin"] == metrics["eval_b_margin"]


def test_predictions_come_one_row_per_example_in_order(model, dataset, make_trainer, caplog):
    rows = conversation_rows(7)
    rows[2]["chosen"] = [{"role": "assistant", "content": "x" * 300}]
    seen = {}

    def compute_metrics(prediction):
        seen["shape"] = prediction.predictions.shape
        return {"mine": float(prediction.predictions[0, 0])}

    trainer = make_trainer(model, dataset, max_length=200, compute_metrics=compute_metrics)
    with caplog.at_level(logging.WARNING, "plaudit"):
        output = trainer.predict(Dataset.from_list(rows))
    assert output.predictions.shape == (7, 2)
    assert np.isnan(output.predictions[2]).all()
    assert "row 2" in caplog.text
    kept = [n for n in range(7) if n != 2]
    alone = trainer.predict(Dataset.from_list([rows[n] for n in kept]))
    np.testing.assert_allclose(output.predictions[kept], alone.predictions, **REWARD.close)
    assert seen["shape"] == (6, 2)
    assert output.metrics["test_mine"] == REWARD.approx(float(output.predictions[0, 0]))


def test_the_reference_collator_and_your_own_train_alike(model, dataset, make_trainer):
    finals = []
    for collator in (None, DataCollatorForPreference(pad_token_id=0)):
        trainer = make_trainer(copy.deepcopy(model), dataset, data_collator=collator, eval_dataset=dataset)
        trainer.train()
        finals.append((trainer.evaluate(), trainer.batch_layout))
    assert [layout for _, layout in finals] == ["shared_prefix", "padded"]
    for name in ("eval_loss", "eval_accuracy", "eval_margin", "eval_num_tokens"):
        assert finals[0][0][name] == REWARD.approx(finals[1][0][name])


@pytest.mark.parametrize(
    ("architecture", "says"),
    [("bert", "score"), ("jamba", "plain attention"), ("gptj", "attention interface")],
)
def test_unsuitable_models_train_padded_and_say_why(tokenizer, dataset, make_trainer, caplog, architecture, says):
    with caplog.at_level(logging.INFO, "plaudit"):
        trainer = make_trainer(tiny_model(tokenizer, architecture), dataset, gradient_checkpointing=False)
    assert trainer.batch_layout == "padded"
    lines = [record.message for record in caplog.records if "Batch layout" in record.message]
    assert len(lines) == 1
    assert says in lines[0]
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in training_logs(trainer))


def test_a_model_found_out_on_the_first_batch_falls_back_loudly(tokenizer, dataset, make_trainer, caplog):
    results = []
    for layout in ("auto", "padded"):
        trainer = make_trainer(
            tiny_model(tokenizer, "stablelm"), dataset, batch_layout=layout, gradient_checkpointing=False
        )
        trainer.train()
        results.append([log["loss"] for log in training_logs(trainer)])
    assert "Falling back to the padded layout" in caplog.text
    assert results[0] == REWARD.approx(results[1])


def test_mixed_precision_keeps_the_shared_layout_and_float32_rewards(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset, bf16=True, eval_dataset=dataset)
    trainer.train()
    assert trainer.batch_layout == "shared_prefix"
    predictions = trainer.predict(dataset).predictions
    rounded = torch.tensor(predictions).bfloat16().float().numpy()
    assert (predictions != rounded).mean() > 0.8  # rewards are float32 numbers, not bfloat16 ones written wide


def test_dropout_is_off_unless_asked_for(tokenizer, dataset, make_trainer):
    def losses(**settings):
        model = tiny_model(tokenizer, "gpt2", resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5)
        trainer = make_trainer(model, dataset, gradient_checkpointing=False, learning_rate=0.0, **settings)
        trainer.train()
        return [log["loss"] for log in training_logs(trainer)]

    assert losses() == REWARD.approx(losses(batch_layout="padded"))
    assert losses(disable_dropout=False) != losses()


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_the_auxiliary_loss_of_experts_is_really_added(tokenizer, dataset, make_trainer, architecture):
    def logs(layout, **changes):
        model = tiny_model(tokenizer, architecture, output_router_logits=True, **changes)
        trainer = make_trainer(model, dataset, batch_layout=layout, max_steps=1, eval_dataset=dataset)
        trainer.train()
        return {**training_logs(trainer)[0], **trainer.evaluate()}, trainer.model.model.layers[0].mlp.gate.weight

    padded, _ = logs("padded", router_aux_loss_coef=0.5)
    shared, weight = logs("shared_prefix", router_aux_loss_coef=0.5)
    without, plain_weight = logs("shared_prefix", router_aux_loss_coef=0.0)
    assert shared["aux_loss"] > 2  # two experts a token: 2 is perfect balance
    assert shared["aux_loss"] == REWARD.approx(padded["aux_loss"])
    assert shared["loss"] == REWARD.approx(without["loss"] + 0.5 * shared["aux_loss"])
    assert shared["eval_loss"] == pytest.approx(padded["eval_loss"], rel=1e-3)
    assert not torch.allclose(weight, plain_weight)


def test_no_auxiliary_loss_unless_asked_for(tokenizer, dataset, make_trainer):
    trainer = make_trainer(tiny_model(tokenizer, "mixtral"), dataset)
    trainer.train()
    assert "aux_loss" not in training_logs(trainer)[0]


def test_streams_train(model, make_trainer):
    stream = IterableDataset.from_generator(lambda: iter(conversation_rows(12)))
    trainer = make_trainer(model, stream, max_steps=3)
    trainer.train()
    assert len(training_logs(trainer)) == 3


def test_what_the_caller_passed_in_is_left_alone(model, dataset, tokenizer, make_trainer):
    tokenizer.pad_token = tokenizer.eos_token
    before = (tokenizer.pad_token, len(tokenizer), tokenizer.chat_template, dataset.column_names)
    trainer = make_trainer(model, dataset)
    assert (tokenizer.pad_token, len(tokenizer), tokenizer.chat_template, dataset.column_names) == before
    assert trainer.processing_class.pad_token != trainer.processing_class.eos_token
    assert trainer.model.config.pad_token_id == trainer.processing_class.pad_token_id


def test_a_string_loads_a_language_model_with_a_fresh_head_in_float32(tokenizer, dataset, make_trainer, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("llama", **COMMON | {"vocab_size": len(tokenizer)})
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    trainers = [make_trainer(str(tmp_path / "lm"), dataset, processing_class=None, seed=seed) for seed in (1, 1, 2)]
    heads = [trainer.model.score.weight for trainer in trainers]
    assert heads[0].dtype == torch.float32
    assert heads[0].shape == (1, 32)
    assert heads[0].std().item() == pytest.approx(1 / 33**0.5, rel=0.5)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    bf16 = make_trainer(str(tmp_path / "lm"), dataset, processing_class=None, model_init_kwargs={"dtype": "bfloat16"})
    assert bf16.model.score.weight.dtype == torch.bfloat16


def test_the_default_precision_of_a_cpu_is_float32(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset)
    assert trainer.args.bf16 is False
    assert trainer.args.gradient_checkpointing is True
    trainer.train()


def test_lora_trains_and_saves_the_head(model, dataset, make_trainer, tmp_path, caplog):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)
    frozen = model.score.weight.clone()
    with caplog.at_level(logging.INFO, "plaudit"):
        trainer = make_trainer(model, dataset, peft_config=config, max_steps=4, learning_rate=1e-2)
    assert config.modules_to_save is None
    assert "head is trained and saved" in caplog.text
    assert trainer.batch_layout == "shared_prefix"
    trainer.train()
    trainer.save_model()
    expected = trainer.predict(dataset).predictions
    base = tiny_model(trainer.processing_class)
    reloaded = peft.PeftModel.from_pretrained(base, str(tmp_path / "out")).eval()
    assert not torch.allclose(reloaded.base_model.model.score.modules_to_save["default"].weight, frozen)
    np.testing.assert_allclose(plain_rewards(reloaded, trainer.train_dataset), expected, **REWARD.close)
    merged = reloaded.merge_and_unload()
    np.testing.assert_allclose(plain_rewards(merged, trainer.train_dataset), expected, **REWARD.close)


def test_a_resumed_run_counts_and_logs_like_one_that_never_stopped(model, dataset, make_trainer, tmp_path):
    settings = {"max_steps": 6, "logging_steps": 2, "save_strategy": "steps", "save_steps": 3, "seed": 5}
    whole = make_trainer(copy.deepcopy(model), dataset, folder="whole", **settings)
    whole.train()
    resumed = make_trainer(copy.deepcopy(model), dataset, folder="resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for expected, log in zip(training_logs(whole)[1:], training_logs(resumed)[1:], strict=True):
        assert expected["step"] == log["step"]
        for name in METRICS:
            assert log[name] == expected[name], (log["step"], name)
    for left, right in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_steps_read_nothing_back_from_the_device_and_a_log_once(model, dataset, make_trainer, monkeypatch):
    """On a GPU every such read waits for all that was queued; on a CPU we can count who asks."""
    readers = []

    def watch(name):
        original = getattr(torch.Tensor, name)

        def watched(self, *args, **kwargs):
            module = sys._getframe(1).f_globals.get("__name__", "")
            if module.startswith("plaudit"):
                readers.append((module, name))
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, watched)

    trainer = make_trainer(model, dataset, max_steps=6, logging_steps=3, logging_nan_inf_filter=False)
    trainer.train()  # the layouts are compared once, before the first step
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "cpu", "numpy", "nonzero"):
        watch(name)
    trainer.train()
    in_sampling = [reader for reader in readers if reader[0] == "plaudit.data.samplers"]
    logs = [reader for reader in readers if reader[0] == "plaudit.metrics"]
    assert len(logs) == 2, readers
    assert len(readers) == len(logs) + len(in_sampling), readers  # orders are drawn on the host


def test_training_again_starts_counting_again(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset)
    trainer.train()
    first = training_logs(trainer)[-1]["num_tokens"]
    trainer.train()
    assert training_logs(trainer)[-1]["num_tokens"] == first


def test_a_chat_template_from_a_file(model, dataset, make_trainer, tmp_path):
    path = tmp_path / "shouting.jinja"
    path.write_text("{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    trainer = make_trainer(model, dataset, chat_template_path=str(path))
    text = trainer.processing_class.decode(trainer.train_dataset[0]["chosen_ids"])
    assert text == "ADD 0GOOD"


@pytest.mark.parametrize("adapter", [False, True])
def test_a_chat_template_from_another_tokenizer_brings_its_tokens(
    model, dataset, tokenizer, make_trainer, tmp_path, adapter
):
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<|turn|>"], special_tokens=True)
    other.chat_template = "{% for m in messages %}<|turn|>{{ m.content }}<|im_end|>{% endfor %}"
    other.eos_token = "<|im_end|>"
    other.save_pretrained(tmp_path / "other")
    peft_config = None
    if adapter:
        peft = pytest.importorskip("peft")
        peft_config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    trainer = make_trainer(model, dataset, chat_template_path=str(tmp_path / "other"), peft_config=peft_config)
    turn = trainer.processing_class.convert_tokens_to_ids("<|turn|>")
    assert trainer.train_dataset[0]["chosen_ids"][0] == turn == len(tokenizer)
    assert trainer.processing_class.eos_token == "<|im_end|>"
    assert trainer.processing_class.pad_token != "<|im_end|>"
    trainer.train()
    assert "<|turn|>" not in tokenizer.get_vocab()


def test_a_chat_template_that_is_not_there(model, dataset, make_trainer, tmp_path):
    with pytest.raises(ConfigError) as error:
        make_trainer(model, dataset, chat_template_path=str(tmp_path / "missing.jinja"))
    assert error.value.field == "chat_template_path"


def test_adapters_that_were_made_elsewhere(model, dataset, tokenizer, make_trainer, caplog, tmp_path):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    language_model = AutoModelForCausalLM.from_config(model.config)
    wrong = peft.get_peft_model(language_model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with pytest.raises(ConfigError) as error:
        make_trainer(wrong, dataset)
    assert "AutoPeftModelForSequenceClassification" in error.value.fix
    frozen = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    make_trainer(frozen, dataset)
    assert "is frozen" in caplog.text
    caplog.clear()
    ready = peft.get_peft_model(tiny_model(tokenizer), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    trainer = make_trainer(ready, dataset, max_steps=3, learning_rate=1e-2)
    assert "is frozen" not in caplog.text
    before = ready.base_model.model.score.modules_to_save["default"].weight.clone()
    trainer.train()
    trainer.save_model()
    assert not torch.equal(before, ready.base_model.model.score.modules_to_save["default"].weight)
    # ... and on again from the saved adapter
    saved = peft.PeftModel.from_pretrained(tiny_model(tokenizer), str(tmp_path / "out"), is_trainable=True)
    again = make_trainer(saved, dataset, folder="again")
    np.testing.assert_allclose(again.predict(dataset).predictions, trainer.predict(dataset).predictions, **REWARD.close)
    again.train()
