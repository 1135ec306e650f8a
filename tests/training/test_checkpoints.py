"""Stop and resume: bit-equal, from whole checkpoints only, for full and adapter training."""

import copy
import shutil

import pytest
import torch

from model_builders import tiny_model
from plaudit import ConfigError
from plaudit.training.artifacts import is_complete, newest_complete_checkpoint
from tolerances import REWARD

SETTINGS = {"max_steps": 7, "logging_steps": 2, "save_strategy": "steps", "save_steps": 3, "seed": 11}


def logs_of(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize("adapter", [False, True])
def test_a_resumed_run_ends_where_an_unbroken_one_does(tokenizer, dataset, make_trainer, tmp_path, layout, adapter):
    """Seven steps of three a epoch; saving every three and logging every two do not line up."""
    peft_config = None
    if adapter:
        peft = pytest.importorskip("peft")
        peft_config = peft.LoraConfig(r=2, lora_dropout=0.3, target_modules="all-linear")
    model = tiny_model(tokenizer)

    def build(folder):
        return make_trainer(
            copy.deepcopy(model), dataset, folder=folder, batch_layout=layout, peft_config=peft_config, **SETTINGS
        )

    whole = build("whole")
    whole.train()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "stopped" / "checkpoint-3")
    resumed = build("stopped")
    resumed.train(resume_from_checkpoint=True)
    for left, right in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)
    expected, got = logs_of(whole), logs_of(resumed)
    assert len(expected) == len(got) == 3
    for left, right in zip(expected, got, strict=True):
        assert left == right


def test_a_checkpoint_that_was_not_finished_is_passed_over(model, dataset, make_trainer, tmp_path, caplog):
    trainer = make_trainer(model, dataset, **SETTINGS | {"max_steps": 6})
    trainer.train()
    out = tmp_path / "out"
    assert is_complete(out / "checkpoint-6")
    state = out / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    (out / "checkpoint-notes").mkdir()
    (out / "checkpoint-99").mkdir()
    assert newest_complete_checkpoint(out) == out / "checkpoint-3"
    assert "checkpoint-6: it was not written to its end" in caplog.text


def test_no_checkpoint_to_resume_from(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset)
    with pytest.raises(ConfigError) as error:
        trainer.train(resume_from_checkpoint=True)
    assert error.value.field == "resume_from_checkpoint"


def test_writing_a_checkpoint_again_takes_its_mark_away_first(model, dataset, make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(model, dataset, **SETTINGS)
    trainer.train()
    again = make_trainer(tiny_model(trainer.processing_class), dataset, **SETTINGS)

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(again, "_save_optimizer_and_scheduler", killed)
    with pytest.raises(KeyboardInterrupt):
        again.train()
    assert not is_complete(tmp_path / "out" / "checkpoint-3")
    assert is_complete(tmp_path / "out" / "checkpoint-6")


def test_the_best_model_comes_back_with_its_head(tokenizer, dataset, make_trainer):
    peft = pytest.importorskip("peft")
    trainer = make_trainer(
        tiny_model(tokenizer),
        dataset,
        eval_dataset=dataset,
        peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"]),
        max_steps=6,
        learning_rate=0.3,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
    )
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(losses) == 3
    assert len(set(losses)) == 3
    assert trainer.evaluate()["eval_loss"] == REWARD.approx(min(losses))
