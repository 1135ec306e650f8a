"""``auto_find_batch_size``: training starts again with a smaller batch, and counts nothing twice."""

from __future__ import annotations

import copy

import pytest
import torch

from plaudit.cli.train import memory_explained
from plaudit.errors import ConfigError
from plaudit.training.setup import check_train_dataset

IDS = ("chosen_ids", "rejected_ids")
METRICS = ("loss", "accuracy", "tie_rate", "margin", "min_reward", "mean_reward", "max_reward", "num_tokens")


def limit_memory(model, limit, error=torch.OutOfMemoryError, fails=lambda number: True):
    """Let a model's forward in training fail beyond `limit` tokens, in the calls that `fails` names."""
    calls = []

    def check(module, args, kwargs):
        if not module.training:
            return
        calls.append(kwargs["input_ids"].numel())
        if fails(len(calls)) and calls[-1] > limit:
            raise error("CUDA out of memory. Tried to allocate 2.00 GiB.")

    model.register_forward_pre_hook(check, with_kwargs=True)
    return calls


def logs_of(trainer):
    return [{name: log[name] for name in METRICS} for log in trainer.state.log_history if "accuracy" in log]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
@pytest.mark.parametrize(("layout", "limit"), [("padded", 400), ("shared_prefix", 250)])
def test_a_smaller_batch_is_found_and_logs_what_it_would_have_logged_alone(
    make_trainer, model, dataset, layout, limit, error
):
    settings = {"num_train_epochs": 2, "max_steps": -1, "batch_layout": layout, "logging_steps": 1}
    limited = copy.deepcopy(model)
    calls = limit_memory(limited, limit, error)
    trainer = make_trainer(
        limited, dataset, per_device_train_batch_size=8, auto_find_batch_size=True, folder="found", **settings
    )
    trainer.train()
    size = trainer.state.train_batch_size
    assert 1 <= size < 8
    assert calls[0] > limit
    alone = make_trainer(model, dataset, per_device_train_batch_size=size, folder="alone", **settings)
    alone.train()
    assert logs_of(trainer) == logs_of(alone)
    assert len(logs_of(trainer)) == trainer.state.global_step == 2 * -(-len(dataset) // size)


def test_sums_of_a_failed_attempt_do_not_leak_into_the_next(make_trainer, model, dataset):
    # Four rows fit; the failure comes in the middle of a logging interval and of an accumulation.
    settings = {"max_steps": 4, "logging_steps": 4, "gradient_accumulation_steps": 2, "learning_rate": 0.0}
    limited = copy.deepcopy(model)
    limit_memory(limited, 0, fails=lambda number: number == 4)
    trainer = make_trainer(
        limited, dataset, per_device_train_batch_size=4, auto_find_batch_size=True, folder="found", **settings
    )
    trainer.train()
    size = trainer.state.train_batch_size
    assert size < 4
    alone = make_trainer(model, dataset, per_device_train_batch_size=size, folder="alone", **settings)
    alone.train()
    assert logs_of(trainer) == logs_of(alone)


def test_where_not_even_one_row_fits_the_longest_is_named(make_trainer, model, dataset):
    limit_memory(model, 1)
    trainer = make_trainer(model, dataset, per_device_train_batch_size=4, auto_find_batch_size=True)
    with pytest.raises(ConfigError) as caught, memory_explained(trainer):
        trainer.train()
    lengths = [max(map(len, pair)) for pair in zip(*(trainer.train_dataset[key] for key in IDS), strict=True)]
    row, tokens = lengths.index(max(lengths)), max(lengths)
    assert f"the longest row, row {row} of the train data, has a response of {tokens} tokens" in str(caught.value)
    assert "per_device_train_batch_size" not in str(caught.value)
    assert "`max_length` (now 1024)" in str(caught.value)


@pytest.mark.parametrize("max_steps", [-1, 0])
def test_a_stream_without_an_end_is_refused(make_trainer, model, dataset, max_steps):
    with pytest.raises(ConfigError) as error:
        check_train_dataset(dataset.to_iterable_dataset(), max_steps)
    assert error.value.field == "max_steps"
    assert "max_steps=1000" in error.value.fix
    check_train_dataset(dataset.to_iterable_dataset(), 5)
    check_train_dataset(dataset, max_steps)
    with pytest.raises(ConfigError) as error:
        make_trainer(model, dataset.to_iterable_dataset(), max_steps=max_steps)
    assert error.value.field == "max_steps"
