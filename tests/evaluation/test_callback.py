"""Suites while a model trains: as data sets of the trainer, and by a callback in time to choose a checkpoint."""

import logging

import pytest
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, TrainerCallback

import plaudit
from builders import tiny_tokenizer
from evaluation.refusals import refused
from evaluation.tiny_runs import said, write
from model_builders import conversation_rows, tiny_model
from plaudit import ConfigError, RewardConfig, RewardModel, RewardTrainer
from plaudit.evaluation.callback import SuiteCallback
from plaudit.evaluation.suites.registry import suite_dataset
from tolerances import REWARD


@pytest.fixture
def rows():
    return [{**row, "subset": "natural" if n % 2 else "adv_neighbor"} for n, row in enumerate(conversation_rows(12))]


@pytest.fixture
def bar(tmp_path, rows):
    return f"llmbar={write(tmp_path / 'bar.jsonl', rows)}"


@pytest.fixture
def make_trainer(tmp_path):
    def make(*, callbacks=(), eval_dataset=None, folder="out", **settings):
        tokenizer = tiny_tokenizer()
        defaults = {
            "max_steps": 6,
            "eval_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "no",
            "logging_steps": 1,
            "learning_rate": 3e-3,
            "per_device_train_batch_size": 4,
        }
        config = RewardConfig(
            str(tmp_path / folder), use_cpu=True, report_to=[], disable_tqdm=True, **{**defaults, **settings}
        )
        train = Dataset.from_list(conversation_rows(24))
        return RewardTrainer(
            tiny_model(tokenizer, max_position_embeddings=512),
            config,
            train_dataset=train,
            eval_dataset=train.select(range(4)) if eval_dataset is None else eval_dataset,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )

    return make


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_a_suite_as_an_evaluation_set_chooses_the_best_checkpoint(make_trainer, bar):
    trainer = make_trainer(
        eval_dataset={"llmbar": suite_dataset(bar)},
        metric_for_best_model="eval_llmbar_accuracy",
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
    )
    trainer.train()
    accuracies = logged(trainer, "eval_llmbar_accuracy")
    assert len(accuracies) == 3
    assert trainer.state.best_metric == max(accuracies)
    best = plaudit.evaluate(trainer.model, bar, processing_class=trainer.processing_class, sanity_rows=0)
    assert best["llmbar"].accuracy.value == pytest.approx(max(accuracies))


def test_suite_datasets_hold_what_the_trainer_reads(tmp_path, rows, bar):
    found = suite_dataset(bar)
    assert found.column_names == ["prompt", "chosen", "rejected"]
    assert found.to_list() == [{name: row[name] for name in found.column_names} for row in rows]
    nulls = [{**row, "margin": None if n else 2.0, "weight": 3.0 if n else None} for n, row in enumerate(rows)]
    found = suite_dataset(write(tmp_path / "nulls.jsonl", nulls))
    assert found["margin"][:2] == [2.0, 0.0]
    assert found["weight"][:2] == [1.0, 3.0]
    listed = {"prompt": said("user", "a"), "chosen": ["b"], "rejected": ["c", "d", "e"], "id": "1", "subset": "Math"}
    listed["prompt"] = "a"
    found = suite_dataset(f"rewardbench2={write(tmp_path / 'rb2.jsonl', [listed])}")
    assert found.column_names == ["prompt", "responses", "scores"]
    assert found[0]["scores"] == [1.0, 0.0, 0.0, 0.0]
    assert len(suite_dataset(bar, max_rows=5)) == 5


def test_the_callback_chooses_the_best_checkpoint(make_trainer, bar):
    callback = SuiteCallback(bar, slices=["subset"])
    trainer = make_trainer(
        callbacks=[callback],
        metric_for_best_model="llmbar_score",
        greater_is_better=True,
        save_strategy="best",
        load_best_model_at_end=True,
    )
    trainer.train()
    scores = logged(trainer, "eval_llmbar_score")
    assert len(scores) == 3
    assert trainer.state.best_metric == max(scores)
    steps = [entry["step"] for entry in trainer.state.log_history if entry.get("eval_llmbar_score") == max(scores)]
    assert trainer.state.best_global_step == steps[0]
    best = RewardModel.from_pretrained(trainer.state.best_model_checkpoint, device="cpu")
    assert plaudit.evaluate(best, bar, sanity_rows=0)["llmbar"].score == pytest.approx(max(scores))
    names = {name for entry in trainer.state.log_history for name in entry if name.startswith("eval_llmbar_")}
    assert names == {
        f"eval_llmbar_{name}"
        for name in ("score", "accuracy", "margin", "Natural", "Neighbor", "subset=Natural", "subset=Neighbor")
    }
    assert callback.results["llmbar"].checks[0].passed


@pytest.mark.parametrize("settings", [{}, {"bf16": True}, {"batch_layout": "padded"}])
def test_training_goes_on_as_if_nothing_had_happened(make_trainer, bar, settings):
    alone, beside = make_trainer(**settings), make_trainer(callbacks=[SuiteCallback(bar)], **settings)
    alone.train()
    beside.train()
    assert logged(alone, "loss") == logged(beside, "loss")
    assert logged(alone, "eval_loss") == logged(beside, "eval_loss")
    assert len(logged(beside, "eval_llmbar_score")) == 3


def test_metrics_are_those_of_the_model_at_that_step(make_trainer, bar):
    trainer = make_trainer(callbacks=[SuiteCallback(bar)], max_steps=2)
    trainer.train()
    found = plaudit.evaluate(RewardModel(trainer.model, trainer.processing_class), bar, sanity_rows=0)["llmbar"]
    assert logged(trainer, "eval_llmbar_margin") == [REWARD.approx(found.statistics.pairs.margin)]


def test_several_evaluation_sets_evaluate_suites_once_a_round(make_trainer, rows, bar, monkeypatch):
    count = []
    evaluate = SuiteCallback._evaluate
    monkeypatch.setattr(SuiteCallback, "_evaluate", lambda self, *rest: count.append(1) or evaluate(self, *rest))
    sets = {name: Dataset.from_list(rows).remove_columns("subset") for name in ("one", "other")}
    trainer = make_trainer(callbacks=[SuiteCallback(bar)], eval_dataset=sets, max_steps=4)
    trainer.train()
    assert len(count) == len(logged(trainer, "eval_llmbar_score")) == 2
    assert "eval_llmbar_score" in trainer.evaluate()
    assert len(count) == 3
    trainer.evaluate()
    assert len(count) == 4


def test_added_to_a_trainer_it_logs_through_it(make_trainer, bar, caplog):
    class Listener(TrainerCallback):
        def __init__(self):
            self.heard = []

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.heard.append(set(logs))

    listener = Listener()
    trainer = make_trainer(callbacks=[listener], max_steps=2)
    SuiteCallback(bar).add_to(trainer)
    trainer.train()
    assert sum("eval_llmbar_score" in one for one in listener.heard) == 1
    assert len(logged(trainer, "eval_llmbar_score")) == 1
    trainer = make_trainer(callbacks=[SuiteCallback(bar)], max_steps=2)
    with caplog.at_level(logging.INFO, logger="plaudit"):
        trainer.train()
    assert "eval_llmbar_score" in caplog.text


def test_a_broken_suite_is_found_before_training(tmp_path):
    with refused(plaudit.DataError, "`chosen`"):
        SuiteCallback(write(tmp_path / "broken.jsonl", [{"prompt": "a"}]))


def test_a_sharded_model_is_refused(bar):
    class Arguments:
        fsdp = "full_shard"

    with refused(ConfigError, "FSDP"):
        SuiteCallback(bar).on_train_begin(Arguments(), None, None)


def test_a_stock_model_has_its_stock_forward_again(bar, tmp_path):
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model").train()
    SuiteCallback(bar)._evaluate(model, tokenizer, object())
    assert "forward" not in model.__dict__
    assert model.training
