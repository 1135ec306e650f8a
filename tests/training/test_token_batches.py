"""Training with batches by tokens: the same sums, a fixed number of steps, and a resume that changes nothing."""

import logging

import pytest
import torch
from datasets import Dataset

from model_builders import conversation_rows, tiny_model
from plaudit import ConfigError
from tolerances import REWARD


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_a_limit_that_holds_all_rows_gives_the_loss_of_all_rows(layout, tokenizer, dataset, make_trainer):
    settings = {"batch_layout": layout, "max_steps": 2, "logging_steps": 1}
    whole = make_trainer(tiny_model(tokenizer), dataset, per_device_train_batch_size=len(dataset), **settings)
    filled = make_trainer(tiny_model(tokenizer), dataset, max_tokens_per_batch=10**6, **settings)
    losses = []
    for trainer in (whole, filled):
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert losses[1] == REWARD.approx(losses[0])


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_batches_stay_under_the_limit_and_every_row_is_seen_each_epoch(layout, tokenizer, make_trainer):
    dataset = Dataset.from_list(conversation_rows(40))
    trainer = make_trainer(
        tiny_model(tokenizer), dataset, batch_layout=layout, max_tokens_per_batch=600, max_steps=-1, num_train_epochs=3
    )
    loader = trainer.get_train_dataloader()
    seen = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(batch["input_ids"].numel() <= 600 for batch in batches)
        assert sum(int(batch["example_weight"].sum()) for batch in batches) == 40
        seen.append([batch["input_ids"].sum().item() for batch in batches])
    assert seen[0] != seen[1]
    assert sorted(seen[0]) == sorted(seen[1])
    trainer.train()
    assert trainer.state.global_step == 3 * len(loader)


def test_a_resumed_run_ends_where_an_unbroken_one_does(tokenizer, make_trainer, tmp_path):
    dataset = Dataset.from_list(conversation_rows(30))
    settings = {"max_tokens_per_batch": 400, "max_steps": 9, "save_strategy": "steps", "save_steps": 5}
    whole = make_trainer(tiny_model(tokenizer), dataset, folder="whole", **settings)
    whole.train()
    resumed = make_trainer(tiny_model(tokenizer), dataset, folder="again", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-5"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name


def test_a_row_over_the_limit_is_a_batch_and_said(tokenizer, dataset, make_trainer, caplog):
    caplog.set_level(logging.INFO, "plaudit")
    trainer = make_trainer(tiny_model(tokenizer), dataset, max_tokens_per_batch=20)
    assert len(trainer.get_train_dataloader()) == len(dataset)
    assert f"{len(dataset)} rows have more than max_tokens_per_batch=20 tokens by themselves" in caplog.text


@pytest.mark.parametrize(
    "settings",
    [
        {"max_tokens_per_batch": 0},
        {"max_tokens_per_batch": 100, "auto_find_batch_size": True},
        {"max_tokens_per_batch": 100, "dataloader_drop_last": True},
        {"max_tokens_per_batch": 100, "train_sampling_strategy": "group_by_length"},
    ],
)
def test_settings_that_decide_the_same_thing_exclude_each_other(settings, tokenizer, dataset, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(tiny_model(tokenizer), dataset, **settings)
    assert error.value.field == "max_tokens_per_batch"
