"""Evaluation and prediction: raw data of every kind, prefixes, metrics of the caller's own, and the best model."""

import copy
import logging
from functools import partial

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
from transformers import EarlyStoppingCallback

from model_builders import conversation_rows, tiny_model
from tolerances import REWARD

NUMBERS = (
    "loss",
    "accuracy",
    "tie_rate",
    "margin",
    "min_reward",
    "mean_reward",
    "max_reward",
    "num_tokens",
)


def stream_of(rows):
    return IterableDataset.from_generator(partial(iter, rows))


def numbers(metrics, prefix="eval"):
    return {name: metrics[f"{prefix}_{name}"] for name in NUMBERS}


def with_overlong(count, *places):
    rows = conversation_rows(count)
    for place in places:
        rows[place]["chosen"] = [{"role": "assistant", "content": "x" * 300}]
    return rows


def evaluations(trainer):
    return [log for log in trainer.state.log_history if any(name.startswith("eval_") for name in log)]


# ---- raw data of every kind -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_every_kind_of_data_set_gives_the_same_numbers_before_training_and_after(model, make_trainer, layout):
    rows = conversation_rows(7)
    table, stream = Dataset.from_list(rows), stream_of(rows)
    settings = {"batch_layout": layout, "per_device_eval_batch_size": 3}
    trainer = make_trainer(model, table, **settings)
    for trained in (False, True):
        if trained:
            trainer.train()
        expected = numbers(trainer.evaluate(table))
        assert numbers(trainer.evaluate(stream)) == REWARD.approx(expected)
        for several in (
            {"a": table, "b": stream},
            DatasetDict({"a": table, "b": table}),
            IterableDatasetDict({"a": stream, "b": stream}),
        ):
            metrics = trainer.evaluate(several)
            assert numbers(metrics, "eval_a") == REWARD.approx(expected)
            assert numbers(metrics, "eval_b") == REWARD.approx(expected)


@pytest.mark.parametrize(
    ("several", "prefixes"),
    [
        (lambda table, stream: table, ["eval"]),
        (lambda table, stream: stream, ["eval"]),
        (lambda table, stream: {"a": table, "b": stream}, ["eval_a", "eval_b"]),
        (lambda table, stream: DatasetDict({"a": table, "b": table}), ["eval_a", "eval_b"]),
        (lambda table, stream: IterableDatasetDict({"a": stream}), ["eval_a"]),
    ],
    ids=["Dataset", "IterableDataset", "dict", "DatasetDict", "IterableDatasetDict"],
)
def test_the_constructor_takes_every_kind_of_evaluation_set(model, dataset, make_trainer, several, prefixes):
    rows = conversation_rows(7)
    table = Dataset.from_list(rows)
    trainer = make_trainer(
        model, dataset, eval_dataset=several(table, stream_of(rows)), eval_strategy="steps", eval_steps=1, max_steps=1
    )
    expected = numbers(trainer.evaluate(table))
    metrics = trainer.evaluate()
    for prefix in prefixes:
        assert numbers(metrics, prefix) == REWARD.approx(expected)
    trainer.train()
    logged = {name for log in evaluations(trainer) for name in log}
    assert {f"{prefix}_accuracy" for prefix in prefixes} <= logged


def test_prepared_data_is_taken_too(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset)
    prepared = trainer.train_dataset
    assert numbers(trainer.evaluate(prepared)) == numbers(trainer.evaluate(dataset))
    assert np.array_equal(trainer.predict(prepared).predictions, trainer.predict(dataset).predictions)


# ---- prefixes -------------------------------------------------------------------------------------------------


def test_each_set_keeps_its_prefix_and_its_numbers(model, dataset, make_trainer):
    parts = {"easy": dataset.select(range(5)), "hard": dataset.select(range(5, 12))}
    trainer = make_trainer(model, dataset, eval_dataset=parts)
    metrics = trainer.evaluate()
    for name, part in parts.items():
        assert numbers(metrics, f"eval_{name}") == numbers(trainer.evaluate(part))
    assert not any(name in metrics for name in ("eval_accuracy", "eval_loss"))
    named = trainer.evaluate(parts["easy"], metric_key_prefix="held_out")
    assert numbers(named, "held_out") == numbers(metrics, "eval_easy")
    assert not any(name.startswith("eval") for name in named)


def test_predicting_leaves_nothing_behind_for_the_next_evaluation(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset, eval_dataset=dataset)
    first = trainer.evaluate()
    output = trainer.predict(dataset.select(range(4)))
    assert {f"test_{name}" for name in NUMBERS} <= output.metrics.keys()
    assert output.metrics["test_num_tokens"] < first["eval_num_tokens"]
    again = trainer.evaluate()
    assert numbers(again) == numbers(first)
    assert not any(name.startswith("test_") for name in again)


def test_evaluation_counts_its_own_tokens_and_training_goes_on_counting(model, dataset, make_trainer):
    small = dataset.select(range(3))
    alone = make_trainer(copy.deepcopy(model), dataset, folder="alone", max_steps=4)
    alone.train()
    trainer = make_trainer(
        model, dataset, eval_dataset=small, eval_strategy="steps", eval_steps=1, eval_on_start=True, max_steps=4
    )
    trainer.train()
    tokens = sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in trainer.train_dataset.select(range(3)))
    assert [log["eval_num_tokens"] for log in evaluations(trainer)] == [tokens] * 5  # one before the first step
    counts = [[log["num_tokens"] for log in one.state.log_history if "num_tokens" in log] for one in (alone, trainer)]
    assert counts[0] == counts[1]


# ---- predictions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Dataset.from_list, stream_of], ids=["table", "stream"])
@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_rows_too_long_to_score_are_nan_in_their_place_and_said(model, make_trainer, caplog, make, layout):
    rows = with_overlong(9, 0, 4)
    trainer = make_trainer(
        model,
        Dataset.from_list(conversation_rows(9)),
        max_length=200,
        batch_layout=layout,
        per_device_eval_batch_size=4,
    )
    expected = trainer.predict(Dataset.from_list(conversation_rows(9))).predictions
    with caplog.at_level(logging.WARNING, "plaudit"):
        output = trainer.predict(make(rows))
    assert output.predictions.shape == (9, 2)
    assert np.isnan(output.predictions).all(axis=1).tolist() == [n in (0, 4) for n in range(9)]
    kept = [n for n in range(9) if n not in (0, 4)]
    np.testing.assert_allclose(output.predictions[kept], expected[kept], **REWARD.close)
    assert "over-long (> 200 tokens; row" in caplog.text
    assert "2 of 9 rows are too long to score (more than 200 tokens): their rewards are NaN" in caplog.text
    assert output.metrics["test_accuracy"] == pytest.approx((expected[kept, 0] > expected[kept, 1]).mean())


def test_nothing_is_said_where_every_row_was_scored(model, dataset, make_trainer, caplog):
    trainer = make_trainer(model, dataset)
    assert np.isfinite(trainer.predict(dataset).predictions).all()
    assert "NaN" not in caplog.text


# ---- metrics of the caller's own ------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_own_metrics_see_one_row_an_example(model, make_trainer, layout):
    shapes = {"logits": [], "predictions": []}

    def preprocess_logits_for_metrics(logits, labels):
        shapes["logits"].append(tuple(logits.shape))
        return logits * 2

    def compute_metrics(prediction):
        shapes["predictions"].append(prediction.predictions.shape)
        return {"gap": float((prediction.predictions[:, 0] - prediction.predictions[:, 1]).mean()), "eval_mine": 1.0}

    dataset = Dataset.from_list(conversation_rows(10))
    trainer = make_trainer(
        model,
        dataset,
        eval_dataset=dataset,
        batch_layout=layout,
        per_device_eval_batch_size=4,
        compute_metrics=compute_metrics,
        preprocess_logits_for_metrics=preprocess_logits_for_metrics,
    )
    metrics = trainer.evaluate()
    assert shapes == {"logits": [(4, 2), (4, 2), (2, 2)], "predictions": [(10, 2)]}
    assert metrics["eval_gap"] == REWARD.approx(2 * metrics["eval_margin"])
    assert metrics["eval_mine"] == 1.0


@pytest.mark.parametrize("accumulation", [None, 1, 2])
def test_eval_accumulation_changes_nothing(model, make_trainer, accumulation):
    dataset = Dataset.from_list(conversation_rows(10))
    seen = []

    def compute_metrics(prediction):
        seen.append(prediction.predictions)
        return {}

    trainer = make_trainer(
        model,
        dataset,
        per_device_eval_batch_size=3,
        eval_accumulation_steps=accumulation,
        compute_metrics=compute_metrics,
    )
    trainer.evaluate(dataset)
    np.testing.assert_allclose(seen[0], trainer.predict(dataset).predictions, **REWARD.close)
    assert seen[0].shape == (10, 2)


def test_metrics_batch_by_batch(model, make_trainer):
    dataset = Dataset.from_list(conversation_rows(10))
    calls, margins = [], []

    def compute_metrics(prediction, compute_result):
        rewards = torch.as_tensor(prediction.predictions)
        calls.append((tuple(rewards.shape), bool(compute_result)))
        margins.extend((rewards[:, 0] - rewards[:, 1]).tolist())
        return {"gap": sum(margins) / len(margins)} if compute_result else {}

    trainer = make_trainer(
        model,
        dataset,
        per_device_eval_batch_size=4,
        batch_eval_metrics=True,
        compute_metrics=compute_metrics,
    )
    metrics = trainer.evaluate(dataset)
    assert calls == [((4, 2), False), ((4, 2), False), ((2, 2), True)]
    assert metrics["eval_gap"] == REWARD.approx(metrics["eval_margin"])


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize("by_batch", [False, True])
def test_inputs_and_losses_reach_own_metrics(model, dataset, make_trainer, layout, by_batch):
    seen = []

    def compute_metrics(prediction, compute_result=True):
        seen.append(prediction)
        return {}

    trainer = make_trainer(
        model,
        dataset,
        batch_layout=layout,
        per_device_eval_batch_size=5,
        include_for_metrics=["inputs", "loss"],
        batch_eval_metrics=by_batch,
        compute_metrics=compute_metrics,
    )
    trainer.evaluate(dataset)
    assert all(one.inputs is not None and one.losses is not None for one in seen)
    assert sum(len(one.predictions) for one in seen) == 12


def test_an_evaluation_without_own_metrics_gathers_no_predictions(model, dataset, make_trainer, monkeypatch):
    trainer = make_trainer(model, dataset)
    steps = []
    original = trainer.prediction_step
    monkeypatch.setattr(trainer, "prediction_step", lambda *a, **k: steps.append(original(*a, **k)) or steps[-1])
    assert "eval_accuracy" in trainer.evaluate(dataset)
    assert all(logits is None for _, logits, _ in steps)


# ---- the best model -------------------------------------------------------------------------------------------


def best_model_settings(**changes):
    return {
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "lr_scheduler_type": "constant",
        **changes,
    }


@pytest.mark.parametrize("adapter", [False, True])
def test_early_stopping_watches_the_accuracy_and_the_best_model_comes_back(
    tokenizer, make_trainer, monkeypatch, adapter
):
    peft_config = None
    if adapter:
        peft = pytest.importorskip("peft")
        peft_config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    dataset = Dataset.from_list(conversation_rows(12))
    trainer = make_trainer(
        tiny_model(tokenizer),
        dataset,
        eval_dataset=dataset,
        peft_config=peft_config,
        learning_rate=0.05,
        per_device_train_batch_size=12,
        callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        **best_model_settings(max_steps=20, metric_for_best_model="eval_accuracy"),
    )
    heads = {}
    original = trainer._save_checkpoint

    def save(*args, **kwargs):
        heads[trainer.state.global_step] = [
            parameter.detach().clone() for name, parameter in trainer.model.named_parameters() if "score" in name
        ]
        return original(*args, **kwargs)

    monkeypatch.setattr(trainer, "_save_checkpoint", save)
    trainer.train()
    accuracies = [log["eval_accuracy"] for log in evaluations(trainer)]
    best = 1 + max(range(len(accuracies)), key=accuracies.__getitem__)
    assert len(accuracies) == best + 2 < 20  # stopped two evaluations after the best
    assert trainer.state.best_metric == max(accuracies)
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    restored = [parameter for name, parameter in trainer.model.named_parameters() if "score" in name]
    for parameter, saved in zip(restored, heads[best], strict=True):
        assert torch.equal(parameter, saved)
    assert not all(torch.equal(a, b) for a, b in zip(heads[best], heads[best + 2], strict=True))
    assert trainer.evaluate()["eval_accuracy"] == max(accuracies)


def test_the_best_of_several_sets_is_named_by_its_prefix(tokenizer, dataset, make_trainer):
    trainer = make_trainer(
        tiny_model(tokenizer),
        dataset,
        eval_dataset={"a": dataset, "b": dataset.select(range(6))},
        learning_rate=0.3,
        **best_model_settings(max_steps=3, metric_for_best_model="eval_b_loss", greater_is_better=False),
    )
    trainer.train()
    losses = [log["eval_b_loss"] for log in trainer.state.log_history if "eval_b_loss" in log]
    assert len(set(losses)) == 3
    assert trainer.evaluate()["eval_b_loss"] == REWARD.approx(min(losses))


def test_evaluation_before_the_first_step(model, dataset, make_trainer):
    trainer = make_trainer(
        model, dataset, eval_dataset=dataset, eval_strategy="steps", eval_steps=2, eval_on_start=True, max_steps=2
    )
    expected = numbers(trainer.evaluate())
    trainer.train()
    first, last = evaluations(trainer)
    assert (first["step"], last["step"]) == (0, 2)
    assert numbers(first) == pytest.approx(expected)
    assert numbers(last) != pytest.approx(expected)


def test_kept_workers_do_not_answer_for_another_data_set(model, dataset, make_trainer):
    small = dataset.select(range(3))
    settings = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "eval_dataset": dataset}
    trainer = make_trainer(model, dataset, **settings)
    metrics = [trainer.evaluate(), trainer.evaluate(small), trainer.evaluate()]
    tokens = [one["eval_num_tokens"] for one in metrics]
    assert tokens[0] == tokens[2] > tokens[1]
