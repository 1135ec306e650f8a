"""Rows of one prompt in one batch: every row once, fewer tokens, the same sums."""

import logging

import pytest
import torch
from datasets import Dataset

from model_builders import tiny_model
from plaudit import ConfigError
from tolerances import REWARD


def rows_of(prompts=6, each=4):
    return [
        {
            "prompt": [{"role": "user", "content": f"question {p}, which is not short at all"}],
            "chosen": [{"role": "assistant", "content": f"good {p} {n}"}],
            "rejected": [{"role": "assistant", "content": f"bad {n}"}],
        }
        for n in range(each)
        for p in range(prompts)
    ]


@pytest.mark.parametrize("tokens", [None, 500])
def test_rows_of_a_prompt_come_together_and_it_is_computed_once(tokens, tokenizer, make_trainer):
    dataset = Dataset.from_list(rows_of())
    settings = {"per_device_train_batch_size": 4, "max_steps": -1, "num_train_epochs": 2, "logging_steps": 1}
    if tokens is not None:
        settings["max_tokens_per_batch"] = tokens
    plain, grouped = (
        make_trainer(tiny_model(tokenizer), dataset, group_by_prompt=flag, **settings) for flag in (False, True)
    )
    for trainer in (plain, grouped):
        loader = trainer.get_train_dataloader()
        assert sum(int(batch["example_weight"].sum()) for batch in loader) == 24
    if tokens is None:
        prompts = [[parent for _, parent, _ in batch["nodes"]] for batch in grouped.get_train_dataloader()]
        assert all(parents.count(-1) == 1 for parents in prompts)
    orders = []
    for epoch in range(2):
        loader = grouped.get_train_dataloader()
        loader.set_epoch(epoch)
        orders.append([batch["input_ids"].sum().item() for batch in loader])
    assert orders[0] != orders[1]
    for trainer in (plain, grouped):
        trainer.train()
    counts = [trainer.state.log_history[-2]["num_tokens_computed"] for trainer in (plain, grouped)]
    assert counts[1] < 0.7 * counts[0]


def test_a_grouped_batch_has_the_loss_of_its_rows(tokenizer, make_trainer):
    """All rows in one batch: the order cannot matter, sharing across rows must not."""
    dataset = Dataset.from_list(rows_of(3, 3))
    losses = []
    for settings in ({"batch_layout": "padded"}, {"group_by_prompt": True}):
        trainer = make_trainer(tiny_model(tokenizer), dataset, per_device_train_batch_size=9, max_steps=3, **settings)
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[1] == REWARD.approx(losses[0])


def test_it_is_suggested_where_prompts_repeat(tokenizer, make_trainer, caplog):
    caplog.set_level(logging.INFO, "plaudit")
    make_trainer(tiny_model(tokenizer), Dataset.from_list(rows_of()))
    assert "The 24 training rows have 6 prompts" in caplog.text
    caplog.clear()
    make_trainer(tiny_model(tokenizer), Dataset.from_list(rows_of()), group_by_prompt=True)
    make_trainer(tiny_model(tokenizer), Dataset.from_list(rows_of(8, 1)))
    assert "group_by_prompt" not in caplog.text


def test_it_goes_on_where_it_stopped(tokenizer, make_trainer, tmp_path):
    dataset = Dataset.from_list(rows_of())
    settings = {"group_by_prompt": True, "max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    whole = make_trainer(tiny_model(tokenizer), dataset, folder="whole", **settings)
    whole.train()
    resumed = make_trainer(tiny_model(tokenizer), dataset, folder="again", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_what_it_cannot_do_is_said(tokenizer, make_trainer):
    dataset = Dataset.from_list(rows_of())
    with pytest.raises(ConfigError) as error:
        make_trainer(tiny_model(tokenizer), dataset, group_by_prompt=True, train_sampling_strategy="sequential")
    assert error.value.field == "group_by_prompt"
    assert "train_sampling_strategy" in error.value.fix
    for settings in ({"group_by_prompt": True}, {"max_tokens_per_batch": 100}):
        with pytest.raises(ConfigError) as error:
            make_trainer(tiny_model(tokenizer), dataset.to_iterable_dataset(), **settings)
        assert error.value.field == next(iter(settings))
    trainer = make_trainer(tiny_model(tokenizer), dataset, group_by_prompt=True)
    trainer.train_dataset = trainer.train_dataset.select(range(5))
    with pytest.raises(ConfigError) as error:
        trainer.get_train_dataloader()
    assert error.value.field == "group_by_prompt"
