"""The trainer evaluates rows of similar length together, and gives the results in the order of the rows."""

import numpy as np
import pytest
from datasets import Dataset

from model_builders import conversation_rows, tiny_model
from plaudit import RewardConfig, RewardModel, RewardTrainer
from plaudit.training import dataloader
from plaudit.training.dataloader import by_similar_work
from tolerances import REWARD


def ragged(count=23):
    rows = conversation_rows(count)
    for n, row in enumerate(rows):
        row["chosen"] = [{"role": "assistant", "content": "x" * (n * 7 % 41) + str(n)}]
    return rows


def make_trainer(tokenizer, tmp_path, rows, layout, **settings):
    own = {"compute_metrics": settings.pop("compute_metrics", None)}
    config = RewardConfig(
        str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True, batch_layout=layout,
        per_device_eval_batch_size=4, **settings,
    )  # fmt: skip
    model = tiny_model(tokenizer)
    return RewardTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **own)


def test_predictions_and_own_metrics_are_in_the_order_of_the_rows(tokenizer, tmp_path, layout, folder):
    rows, seen = ragged(), []

    def compute_metrics(prediction):
        seen.append(prediction.predictions)
        return {"first": float(prediction.predictions[0, 0])}

    trainer = make_trainer(tokenizer, tmp_path, rows, layout, compute_metrics=compute_metrics)
    expected = np.array(RewardModel.from_pretrained(folder, device="cpu").score(rows))
    predictions = trainer.predict(Dataset.from_list(rows)).predictions
    np.testing.assert_allclose(predictions, expected, **REWARD.close)
    metrics = trainer.evaluate(Dataset.from_list(rows))
    np.testing.assert_allclose(seen[-1], expected, **REWARD.close)
    assert metrics["eval_first"] == REWARD.approx(expected[0, 0])
    assert metrics["eval_accuracy"] == (expected[:, 0] > expected[:, 1]).mean()
    assert trainer.compute_metrics is compute_metrics


def test_rankings_and_their_labels_are_too(tokenizer, tmp_path, layout, folder):
    rows = [
        {"prompt": "Say ", "responses": ["a" * (5 * n % 17 + 1), "b", "c" * n + "!"], "scores": [n, -1.0, 0.5]}
        for n in range(2, 15)
    ]
    trainer = make_trainer(tokenizer, tmp_path, rows, layout)
    output = trainer.predict(Dataset.from_list(rows))
    expected = RewardModel.from_pretrained(folder, device="cpu").score(rows)
    np.testing.assert_allclose(output.predictions, expected, **REWARD.close)
    np.testing.assert_allclose(output.label_ids, [row["scores"] for row in rows])


def test_sorting_saves_padding_and_changes_no_metric(tokenizer, tmp_path, monkeypatch):
    rows = Dataset.from_list(ragged(40))
    trainer = make_trainer(tokenizer, tmp_path, ragged(), "padded")
    metrics = trainer.evaluate(rows)
    monkeypatch.setattr(dataloader, "by_similar_work", lambda rows, padded: None)
    unsorted = trainer.evaluate(rows)
    assert metrics["eval_num_tokens_computed"] < 0.9 * unsorted["eval_num_tokens_computed"]
    measured = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_num_tokens_computed"}
    for name in unsorted.keys() - measured:
        assert metrics[name] == REWARD.approx(unsorted[name]), name


def test_rows_of_one_prompt_are_evaluated_together(tokenizer, tmp_path):
    prompts = ["x" * 60 + str(n) for n in range(6)]
    rows = [{"prompt": prompts[n % 6], "chosen": f" {n}", "rejected": f"{n} "} for n in range(24)]
    trainer = make_trainer(tokenizer, tmp_path, rows, "shared_prefix")
    tokens = trainer.evaluate(Dataset.from_list(rows))["eval_num_tokens_computed"]
    assert tokens < 6 * 62 + 48 * 5
    assert tokens < trainer.evaluate(Dataset.from_list(rows))["eval_num_tokens"] / 4


@pytest.mark.parametrize("padded", [True, False])
def test_every_row_is_in_the_order_once(padded, monkeypatch):
    monkeypatch.setattr("plaudit.training.dataloader._SORTED_AT_A_TIME", 10)
    rows = Dataset.from_list([{"chosen_ids": [1] * (n * 7 % 13 + 1), "rejected_ids": [1, 2]} for n in range(37)])
    order = by_similar_work(rows, padded=padded)(0)
    assert sorted(order) == list(range(37))
    assert [row // 10 for row in order] == sorted(row // 10 for row in order)
    widths = [len(rows[row]["chosen_ids"]) for row in order[:10]]
    assert not padded or max(widths, default=0) == widths[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"length_penalty_coefficient": 0.1},
        {"include_for_metrics": ["inputs"]},
        {"batch_eval_metrics": True},
        {"eval_do_concat_batches": False},
    ],
)
def test_batches_stay_as_they_are_where_results_depend_on_them(tokenizer, tmp_path, settings):
    rows = ragged()
    trainer = make_trainer(tokenizer, tmp_path, rows, "padded", **settings)
    loader = trainer.get_eval_dataloader(trainer._prepare_data(Dataset.from_list(rows), "eval", "eval"))
    assert list(loader.dataset.sampler.order(0)) == list(range(len(rows)))
