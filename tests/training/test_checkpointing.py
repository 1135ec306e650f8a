"""`gradient_checkpointing="auto"`: recompute only where memory asks for it, say so, and fall back once."""

import logging
import random

import pytest
import torch
from datasets import Dataset

from model_builders import conversation_rows, tiny_model
from plaudit import RewardConfig
from plaudit.training import memory
from plaudit.training.memory import decide_checkpointing, free_bytes, needed_bytes, with_checkpointing
from tolerances import REWARD


def recomputes(trainer):
    return any(getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules())


def losses(trainer):
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


def decide(trainer):
    return decide_checkpointing(
        trainer.model,
        trainer.args,
        trainer.train_dataset,
        layout=trainer.batch_layout,
        loss_of_rows=trainer.loss_of_rows,
    )


@pytest.fixture
def auto(tokenizer, make_trainer):
    def make(dataset=None, **settings):
        settings = {"gradient_checkpointing": "auto", "max_steps": 3, "logging_steps": 1, **settings}
        return make_trainer(tiny_model(tokenizer), dataset or Dataset.from_list(conversation_rows(12)), **settings)

    return make


@pytest.mark.parametrize(("free", "on"), [(2**40, False), (2**16, True)])
def test_it_is_on_only_where_memory_is_short_and_says_so(auto, monkeypatch, caplog, free, on):
    monkeypatch.setattr(memory, "free_bytes", lambda device, processes: free)
    trainer = auto()
    with caplog.at_level(logging.INFO, logger="plaudit"):
        trainer.train()
    assert recomputes(trainer) == on
    assert trainer.args.gradient_checkpointing is on
    said = [record.message for record in caplog.records if "Gradient checkpointing is" in record.message]
    assert len(said) == 1
    assert f"is {'on' if on else 'off'}: about 0.0 GiB needed" in said[0]


def test_deciding_changes_no_number(auto, monkeypatch):
    """Neither the random state nor the metrics of the first interval know of the estimate."""
    plain, estimated = auto(gradient_checkpointing=False), auto()
    for trainer in (plain, estimated):
        trainer.train()
    assert losses(plain) == losses(estimated)
    tokens = [[log["num_tokens"] for log in one.state.log_history if "loss" in log] for one in (plain, estimated)]
    assert tokens[0] == tokens[1]
    state = torch.get_rng_state(), random.getstate()
    trainer = auto()
    torch.set_rng_state(state[0])
    decide(trainer)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert trainer.model.training == auto().model.training


def test_more_memory_is_asked_for_than_a_step_keeps(auto):
    """The estimate covers gradients, AdamW's two numbers a weight, and activations."""

    def needed(trainer):
        layout, loss_of_rows = trainer.batch_layout, trainer.loss_of_rows
        return needed_bytes(
            trainer.model, trainer.args, trainer.train_dataset, layout=layout, loss_of_rows=loss_of_rows
        )

    trainer = auto()
    weights = sum(parameter.numel() for parameter in trainer.model.parameters())
    few = needed(trainer)
    assert few > weights * 4 * 3
    many = needed(auto(max_tokens_per_batch=100_000))
    assert many > 5 * few


def test_the_settings_of_the_caller_stay_as_they_are(tokenizer, auto, tmp_path):
    trainer = auto()
    assert trainer.args.gradient_checkpointing is False  # not decided yet
    config = RewardConfig(str(tmp_path), gradient_checkpointing="auto", report_to=[])
    changed = with_checkpointing(config, True)
    assert (config.gradient_checkpointing, changed.gradient_checkpointing) == ("auto", True)


def test_streams_and_unknown_devices_recompute(auto, monkeypatch):
    stream = Dataset.from_list(conversation_rows(12)).to_iterable_dataset()
    trainer = auto(stream)
    assert decide(trainer) == (True, "a stream is not read beforehand")
    monkeypatch.setattr(memory, "free_bytes", lambda device, processes: None)
    assert decide(auto())[0]


def test_a_step_that_runs_out_of_memory_begins_anew_once(auto, monkeypatch, caplog):
    expected = auto(gradient_checkpointing=True)
    expected.train()
    trainer = auto()
    backward, failures = trainer.accelerator.backward, []

    def fail_once(loss, **kwargs):
        if trainer.state.global_step == 1 and not failures:
            failures.append(1)
            backward(loss * 100, **kwargs)  # what a broken backward pass leaves behind
            raise torch.OutOfMemoryError("CUDA out of memory.")
        backward(loss, **kwargs)

    monkeypatch.setattr(trainer.accelerator, "backward", fail_once)
    trainer.train()
    assert failures
    assert recomputes(trainer)
    assert "Out of memory: gradient checkpointing is on from step 2." in caplog.text
    assert losses(trainer) == REWARD.approx(losses(expected))
    ends = [one.state.log_history[-2]["num_tokens"] for one in (trainer, expected)]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("settings", [{"gradient_accumulation_steps": 2}, {"gradient_checkpointing": False}])
def test_where_that_would_not_be_exact_the_error_stays(auto, monkeypatch, settings):
    trainer = auto(**settings)

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer.accelerator, "backward", fail)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()


def test_adapters_recompute_too(tokenizer, make_trainer, monkeypatch):
    peft = pytest.importorskip("peft")
    monkeypatch.setattr(memory, "free_bytes", lambda device, processes: 0)
    dataset, curves = Dataset.from_list(conversation_rows(12)), []
    for setting in ("auto", False):
        config = peft.LoraConfig(r=2, target_modules=["q_proj"])
        trainer = make_trainer(
            tiny_model(tokenizer), dataset, peft_config=config, gradient_checkpointing=setting, logging_steps=1
        )
        trainer.train()
        curves.append(losses(trainer))
    assert curves[0] == REWARD.approx(curves[1])


def test_free_memory_respects_the_limit_of_a_container(tmp_path):
    assert free_bytes(torch.device("cpu")) > 2**20
    assert free_bytes(torch.device("cpu"), 4) < free_bytes(torch.device("cpu"))
    assert free_bytes(torch.device("meta")) is None
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert free_bytes(torch.device("cpu"), container=tmp_path) == 600
    assert free_bytes(torch.device("cpu"), 3, container=tmp_path) == 200
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(torch.device("cpu"), container=tmp_path) > 2**20
    assert free_bytes(torch.device("cpu"), container=tmp_path / "none") > 2**20
