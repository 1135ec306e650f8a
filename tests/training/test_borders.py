"""Settings that would lose something silently, or end in a traceback, are refused or told, with field and fix."""

import logging
import os

import pytest
import torch
from datasets import Dataset
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from model_builders import conversation_rows, tiny_model
from plaudit import ConfigError, RewardConfig, RewardModel, RewardTrainer
from plaudit.metrics import BETTER, better_values
from plaudit.training.artifacts import checkpoint_to_resume

# ---- the best model -------------------------------------------------------------------------------------------

BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "lr_scheduler_type": "constant",
}


def rated(count=8):
    rows = conversation_rows(count)
    return Dataset.from_list([{"response": row["chosen"], "score": float(i % 3)} for i, row in enumerate(rows)])


class Falling(TrainerCallback):
    """Stands for an evaluation: the error falls until the third, then rises; other numbers rise throughout."""

    def __init__(self, name):
        self.name, self.values = name, iter((0.9, 0.5, 0.2, 0.4, 0.6, 0.8))

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        if self.name in metrics:
            metrics[self.name] = next(self.values)


@pytest.mark.parametrize("prefix", ["eval", "eval_helpful"])
def test_the_checkpoint_with_the_lowest_error_is_kept_and_stopping_waits_for_it(tokenizer, make_trainer, prefix):
    name, rows = f"{prefix}_mse", rated()
    trainer = make_trainer(
        tiny_model(tokenizer),
        rows,
        eval_dataset=rows if prefix == "eval" else {"helpful": rows, "harmless": rows.select(range(4))},
        callbacks=[Falling(name), EarlyStoppingCallback(early_stopping_patience=2)],
        metric_for_best_model=name,
        max_steps=6,
        **BEST,
    )
    assert trainer.args.greater_is_better is False
    trainer.train()
    assert trainer.state.best_metric == 0.2
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-3")
    assert trainer.state.global_step == 5


@pytest.mark.parametrize(
    ("metric", "greater"),
    [
        ("eval_mse", False),
        ("mse", False),
        ("eval_helpful_mse", False),
        ("eval_helpful_tie_rate", False),
        ("eval_text_loss", False),
        ("eval_best_of_n_accuracy", True),
        ("eval_helpful_correlation", True),
        ("eval_of_somebody_else", True),
    ],
)
def test_directions_of_metrics(tmp_path, metric, greater):
    config = RewardConfig(str(tmp_path), metric_for_best_model=metric, report_to=[])
    assert config.greater_is_better is greater


@pytest.mark.parametrize("metric", ["eval_mean_reward", "length_correlation", "eval_helpful_length_correlation"])
def test_a_metric_without_a_direction_chooses_no_model(tmp_path, metric):
    with pytest.raises(ConfigError) as error:
        RewardConfig(str(tmp_path), metric_for_best_model=metric, report_to=[])
    assert error.value.field == "metric_for_best_model"
    assert "eval_loss" in error.value.fix


def test_every_logged_metric_has_a_direction(tokenizer, make_trainer):
    rows = Dataset.from_list(conversation_rows())
    trainer = make_trainer(tiny_model(tokenizer), rows, eval_dataset=rows, length_penalty_coefficient=0.1)
    ours = trainer.evaluate().keys() - {"eval_samples_per_second", "eval_steps_per_second", "epoch"}
    ours = {name for name in ours if not name.endswith("preparation_time")}
    assert all(better_values(name) for name in ours)
    assert {"accuracy", "length_correlation"} <= {name.removeprefix("eval_") for name in ours} <= BETTER.keys()


@pytest.mark.parametrize(
    ("metric", "greater", "told"),
    [("eval_loss", True, True), ("eval_accuracy", False, True), ("eval_loss", False, False)],
)
def test_a_direction_that_contradicts_the_metric_is_told(model, dataset, make_trainer, caplog, metric, greater, told):
    settings = BEST | {"metric_for_best_model": metric, "greater_is_better": greater}
    with caplog.at_level(logging.WARNING, logger="plaudit"):
        trainer = make_trainer(model, dataset, eval_dataset=dataset, **settings)
    assert trainer.args.greater_is_better is greater
    assert (metric in caplog.text) is told


def test_of_several_sets_the_metric_names_one(model, dataset, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(model, dataset, eval_dataset={"a": dataset, "b": dataset}, **BEST)
    assert error.value.field == "metric_for_best_model"
    assert "'eval_a_loss'" in error.value.fix


def test_a_misspelled_metric_is_named_at_the_first_evaluation(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset, eval_dataset=dataset, metric_for_best_model="acuracy", **BEST)
    with pytest.raises(ConfigError) as error:
        trainer.train()
    assert error.value.field == "metric_for_best_model"
    assert "`eval_accuracy`" in error.value.fix


# ---- resuming -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True])
def test_a_checkpoint_without_optimizer_state_is_not_resumed(model, dataset, make_trainer, tmp_path, named):
    make_trainer(model, dataset, save_strategy="steps", save_steps=1, save_only_model=True).train()
    trainer = make_trainer(model, dataset)
    with pytest.raises(ConfigError) as error:
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-1") if named else True)
    assert error.value.field == "resume_from_checkpoint"
    assert "optimizer" in error.value.message
    assert error.value.fix
    assert trainer.state.global_step == 0


def test_only_a_checkpoint_can_be_resumed(model, dataset, make_trainer, tmp_path):
    make_trainer(model, dataset, save_strategy="steps", save_steps=1).train()
    out = tmp_path / "out"
    assert checkpoint_to_resume(out / "checkpoint-1", out) == str(out / "checkpoint-1")
    assert checkpoint_to_resume(True, out) == str(out / "checkpoint-2")
    assert checkpoint_to_resume(None, out) is checkpoint_to_resume(False, out) is None
    trainer = make_trainer(model, dataset)
    for wrong in (out, tmp_path / "nowhere", out / "checkpoint-1" / "model.safetensors"):
        with pytest.raises(ConfigError) as error:
            trainer.train(resume_from_checkpoint=str(wrong))
        assert error.value.field == "resume_from_checkpoint"
        assert "checkpoint-*" in error.value.fix


# ---- numbers that are none ------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"eval_strategy": "steps", "eval_steps": 2, "logging_strategy": "no"}])
def test_losses_that_are_not_finite_are_told_once_with_the_step(model, dataset, make_trainer, caplog, settings):
    model.score.weight.data.fill_(torch.nan)
    trainer = make_trainer(model, dataset, eval_dataset=dataset, max_steps=4, **settings)
    with caplog.at_level(logging.WARNING, logger="plaudit"):
        trainer.train()
    told = [record.getMessage() for record in caplog.records if "finite number" in record.getMessage()]
    told = [message for message in told if "golden" not in message]
    assert len(told) == 1
    assert told[0].startswith("Step 2: eval_loss" if settings else "Step 1: loss")


# ---- settings that ended in a traceback -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "field", "fix"),
    [
        ({"report_to": ["swanlab"]}, "report_to", "pip install swanlab"),
        ({"report_to": ["wandbb"]}, "report_to", "`wandb`"),
        ({"optim": "adamw_bnb_8bit"}, "optim", "adamw_torch"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size", "1 or more"),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size", "1 or more"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps", "1 or more"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of", "positive"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 13}, "dataloader_drop_last", "lower"),
        ({"push_to_hub": True, "hub_model_id": "somebody/model"}, "push_to_hub", "hf auth login"),
    ],
)
def test_settings_that_cannot_work(tokenizer, dataset, tmp_path, monkeypatch, settings, field, fix):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = {"report_to": [], "use_cpu": True, **settings}
    with pytest.raises(ConfigError) as error:
        RewardTrainer(
            tiny_model(tokenizer),
            RewardConfig(str(tmp_path / "out"), **settings),
            train_dataset=dataset,
            processing_class=tokenizer,
        )
    assert error.value.field == field
    assert fix in error.value.fix


def test_settings_of_another_class(model, tokenizer, dataset, tmp_path):
    with pytest.raises(ConfigError) as error:
        RewardTrainer(model, TrainingArguments(str(tmp_path)), train_dataset=dataset, processing_class=tokenizer)
    assert error.value.field == "args"
    assert "RewardConfig" in error.value.fix


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:7", "gpu"])
def test_a_device_that_is_not_there(model, tokenizer, tmp_path, device):
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(ConfigError) as error:
        RewardModel.from_pretrained(os.fspath(folder), device=device)
    assert error.value.field == "device"
    assert "cpu" in error.value.fix
