"""Objectives through the trainer: what is learned, in both layouts, from every form of data, and what is saved."""

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file
from scipy.special import log_expit, logsumexp
from scipy.stats import kendalltau, pearsonr
from transformers import AutoModelForSequenceClassification

from model_builders import tiny_model
from plaudit import ConfigError, DataCollatorForPreference, DataError
from tolerances import REWARD, weights_after

WORDS = ["good", "bad", "fine", "poor", "great answer", "a bad answer", "quite good and long indeed"]


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


def kwise_rows(count=6, **columns):
    rows = []
    for i in range(count):
        k = 2 + i % 4
        responses = [assistant(f"{WORDS[(i + n) % len(WORDS)]} {n}") for n in range(k)]
        rows.append(
            {
                "prompt": user(f"question {i}"),
                "responses": responses,
                "scores": [float((n * 3 + i) % 4) for n in range(k)],
            }
        )
    return [{**row, **{name: values[i] for name, values in columns.items()}} for i, row in enumerate(rows)]


def pair_rows(count=8, **columns):
    rows = [
        {
            "prompt": user(f"question {i}"),
            "chosen": assistant(f"good {i} {'so ' * (i % 3)}"),
            "rejected": assistant(f"bad {i}"),
        }
        for i in range(count)
    ]
    return [{**row, **{name: values[i] for name, values in columns.items()}} for i, row in enumerate(rows)]


def single_rows(count=8, **columns):
    rows = [{"prompt": user(f"question {i}"), "response": assistant(f"{WORDS[i % 7]} {i}")} for i in range(count)]
    return [{**row, **{name: values[i] for name, values in columns.items()}} for i, row in enumerate(rows)]


RANKED = [
    {"prompt": row["prompt"], "responses": row["responses"], "ranks": ranks}
    for row, ranks in zip(kwise_rows(4), ([2, 1], [1, 3, 1], [3, 1, 2, 4], [1, 2, 2, 4, 5]), strict=True)
]
DATA = {
    "pairs": pair_rows(),
    "margins": pair_rows(margin=[0.5 * i for i in range(8)]),
    "preference_probs": pair_rows(preference_prob=[0.5, 0.9, 0.75, 1.0, 0.5, 0.6, 0.8, 0.3]),
    "ties": pair_rows(tie=[True, False, False, True, False, False, True, False]),
    "weights": pair_rows(weight=[1.0, 0.0, 2.0, 0.5, 1.0, 1.0, 3.0, 1.0]),
    "scores": kwise_rows(),
    "ranks": RANKED,
    "ratings": single_rows(scores=[float(i % 5) for i in range(8)]),
    "labels": single_rows(label=[i % 3 == 0 for i in range(8)]),
}
CASES = [
    ("bradley_terry", "margins"),
    ("bradley_terry", "preference_probs"),
    ("bradley_terry", "weights"),
    ("bradley_terry", "scores"),
    ("scaled_bradley_terry", "margins"),
    ("scaled_bradley_terry", "scores"),
    ("rao_kupper", "ties"),
    ("rao_kupper", "ranks"),
    ("davidson", "preference_probs"),
    ("davidson", "scores"),
    ("hinge", "pairs"),
    ("plackett_luce", "scores"),
    ("plackett_luce", "ranks"),
    ("regression", "ratings"),
    ("regression", "scores"),
    ("binary_cross_entropy", "labels"),
]


def losses_of(trainer):
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize(("objective", "data"), CASES)
def test_both_layouts_and_any_accumulation_learn_the_same(objective, data, tokenizer, make_trainer):
    runs = []
    for layout, batch, steps in (("shared_prefix", 4, 1), ("padded", 4, 1), ("shared_prefix", 1, 4)):
        trainer = make_trainer(
            tiny_model(tokenizer),
            Dataset.from_list(DATA[data]),
            objective=objective,
            batch_layout=layout,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            max_steps=3,
            optim="sgd",
            learning_rate=0.01,
            center_rewards_coefficient=0.1,
        )
        losses = losses_of(trainer)
        runs.append((losses, {name: value.clone() for name, value in trainer.model.state_dict().items()}))
    for losses, state in runs[1:]:
        assert losses == REWARD.approx(runs[0][0])
        for name, value in state.items():
            torch.testing.assert_close(value, runs[0][1][name], msg=name, **weights_after(3, 0.01).close)


def rewards_of(model, tokenizer, rows):
    """Rewards by the plain model, one response at a time."""
    rewards = []
    for row in rows:
        responses = row.get("responses") or [row[name] for name in ("chosen", "rejected", "response") if name in row]
        texts = [tokenizer.apply_chat_template(row["prompt"] + r, tokenize=False) for r in responses]
        with torch.no_grad():
            ids = [tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"] for text in texts]
            rewards.append(np.array([model.double()(input_ids=one).logits.item() for one in ids]))
    return rewards


def test_losses_are_the_mean_over_rows_of_the_mean_over_comparisons(tokenizer, make_trainer):
    rows = kwise_rows()
    expected = []
    for rewards, row in zip(rewards_of(tiny_model(tokenizer), tokenizer, rows), rows, strict=True):
        s = row["scores"]
        pairs = [(i, j) for i in range(len(s)) for j in range(len(s)) if s[i] > s[j]]
        expected.append(np.mean([-log_expit(rewards[i] - rewards[j]) for i, j in pairs]))
    trainer = make_trainer(tiny_model(tokenizer), Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows))
    assert trainer.evaluate()["eval_loss"] == REWARD.approx(np.mean(expected))


def test_plackett_luce_is_the_likelihood_of_the_ranking(tokenizer, make_trainer):
    rows = [
        row | {"scores": list(np.random.default_rng(i).permutation(len(row["responses"])) * 1.0)}
        for i, row in enumerate(kwise_rows())
    ]
    for top_k in (None, 2):
        expected = []
        for rewards, row in zip(rewards_of(tiny_model(tokenizer), tokenizer, rows), rows, strict=True):
            ordered = rewards[np.argsort(row["scores"])[::-1]]
            expected.append(sum(logsumexp(ordered[i:]) - ordered[i] for i in range(len(ordered))[:top_k]))
        data = Dataset.from_list(rows)
        trainer = make_trainer(
            tiny_model(tokenizer), data, eval_dataset=data, objective="plackett_luce", plackett_luce_top_k=top_k
        )
        assert trainer.evaluate()["eval_loss"] == REWARD.approx(np.mean(expected))


def test_weights_and_strengths_and_smoothing_enter_the_loss(tokenizer, make_trainer):
    preference_prob, weight = DATA["preference_probs"], [row["weight"] for row in DATA["weights"]]
    rows = [row | {"weight": w} for row, w in zip(preference_prob, weight, strict=True)]
    rewards = np.array(rewards_of(tiny_model(tokenizer), tokenizer, rows))
    p = (1 - 2 * 0.1) * np.array([row["preference_prob"] for row in rows]) + 0.1
    d = rewards[:, 0] - rewards[:, 1]
    expected = np.mean(np.array(weight) * (-p * log_expit(d) - (1 - p) * log_expit(-d)))
    data = Dataset.from_list(rows)
    trainer = make_trainer(tiny_model(tokenizer), data, eval_dataset=data, label_smoothing_factor=0.1)
    assert trainer.evaluate()["eval_loss"] == REWARD.approx(expected)


def test_metrics_of_rankings_are_those_of_scipy(tokenizer, make_trainer):
    rows = kwise_rows(9)
    rewards = rewards_of(tiny_model(tokenizer), tokenizer, rows)
    taus = [kendalltau(r, row["scores"]).statistic for r, row in zip(rewards, rows, strict=True)]
    best = [row["scores"][int(np.argmax(r))] == max(row["scores"]) for r, row in zip(rewards, rows, strict=True)]
    data = Dataset.from_list(rows)
    for batch in (2, 9):
        metrics = make_trainer(
            tiny_model(tokenizer), data, eval_dataset=data, per_device_eval_batch_size=batch
        ).evaluate()
        assert metrics["eval_kendall_tau"] == REWARD.approx(np.mean(taus))
        assert metrics["eval_best_of_n_accuracy"] == pytest.approx(np.mean(best))
        decided = [
            (r[i] > r[j])
            for r, row in zip(rewards, rows, strict=True)
            for i in range(len(r))
            for j in range(len(r))
            if row["scores"][i] > row["scores"][j]
        ]
        assert metrics["eval_accuracy"] == pytest.approx(np.mean(decided))


def test_metrics_of_grades_and_labels(tokenizer, make_trainer):
    for kind, objective in (("ratings", "regression"), ("labels", "binary_cross_entropy")):
        rows = DATA[kind]
        rewards = np.concatenate(rewards_of(tiny_model(tokenizer), tokenizer, rows))
        data = Dataset.from_list(rows)
        trainer = make_trainer(tiny_model(tokenizer), data, eval_dataset=data, per_device_eval_batch_size=3)
        metrics = trainer.evaluate()
        assert trainer.training_objective.name == objective
        if kind == "ratings":
            ratings = np.array([row["scores"] for row in rows])
            assert metrics["eval_mse"] == REWARD.approx(np.mean((rewards - ratings) ** 2))
            assert metrics["eval_loss"] == REWARD.approx(metrics["eval_mse"])
            assert metrics["eval_correlation"] == REWARD.approx(pearsonr(rewards, ratings).statistic)
            assert "eval_accuracy" not in metrics
        else:
            labels = np.array([row["label"] for row in rows])
            assert metrics["eval_accuracy"] == pytest.approx(np.mean((rewards > 0) == labels))
            assert metrics["eval_loss"] == REWARD.approx(np.mean(-log_expit(np.where(labels, rewards, -rewards))))


def test_ties_are_left_out_of_accuracy_and_counted_beside_it(tokenizer, make_trainer):
    rows = DATA["ties"]
    rewards = np.array(rewards_of(tiny_model(tokenizer), tokenizer, rows))
    d, tie = rewards[:, 0] - rewards[:, 1], np.array([row["tie"] for row in rows])
    data = Dataset.from_list(rows)
    trainer = make_trainer(tiny_model(tokenizer), data, eval_dataset=data, objective="davidson")
    with torch.no_grad():
        trainer.model.training_heads.tie_parameter.fill_(float(np.median(np.abs(d[tie]))) / 2 + 1e-4)
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == pytest.approx(np.mean(d[~tie] > 0))
    assert metrics["eval_tie_accuracy"] == pytest.approx(2 / 3)


# --- choosing


@pytest.mark.parametrize(
    ("data", "objective"),
    [
        ("pairs", "bradley_terry"),
        ("preference_probs", "bradley_terry"),
        ("ties", "rao_kupper"),
        ("scores", "bradley_terry"),
        ("ranks", "bradley_terry"),
        ("ratings", "regression"),
        ("labels", "binary_cross_entropy"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_auto_picks_the_objective_and_says_so(data, objective, streaming, tokenizer, make_trainer, caplog):
    caplog.set_level(logging.INFO, "plaudit")
    rows = Dataset.from_list(DATA[data])
    trainer = make_trainer(tiny_model(tokenizer), rows.to_iterable_dataset() if streaming else rows)
    assert trainer.training_objective.name == objective
    assert [record.message for record in caplog.records if record.message.startswith(f"Objective: {objective} (")]
    assert all(np.isfinite(losses_of(trainer)))


def test_auto_says_that_tokenised_lists_tell_nothing(tokenizer, make_trainer, caplog):
    caplog.set_level(logging.INFO, "plaudit")
    rows = [{"response_ids": [[5, 6], [5, 7], [5, 8]], "scores": [1.0, 0.0, 2.0]}] * 4
    make_trainer(tiny_model(tokenizer), Dataset.from_list(rows))
    assert "Objective: bradley_terry (the data is tokenised)." in caplog.text


def mixed(*parts):
    rows = [row for part in parts for row in DATA[part][:4]]
    return Dataset.from_list([dict.fromkeys({name for row in rows for name in row}) | row for row in rows])


def test_mixed_forms_train_together_where_one_objective_reads_all(tokenizer, make_trainer):
    trainer = make_trainer(tiny_model(tokenizer), mixed("margins", "scores", "ranks"), per_device_train_batch_size=12)
    assert trainer.train_dataset.column_names == ["response_ids", "scores", "margin"]
    pairs, rest = trainer.train_dataset["margin"][:4], trainer.train_dataset["margin"][4:]
    assert pairs == [0.0, 0.5, 1.0, 1.5]
    assert set(rest) == {None}
    assert all(np.isfinite(losses_of(trainer)))


@pytest.mark.parametrize(
    ("rows", "settings", "name"),
    [
        (mixed("pairs", "labels"), {}, "label"),
        (mixed("ties", "margins"), {}, "`margin`"),
        (DATA["ties"], {"objective": "bradley_terry"}, "rao_kupper or davidson"),
        (DATA["margins"], {"objective": "rao_kupper"}, "`margin`"),
        (DATA["labels"], {"objective": "regression"}, "binary_cross_entropy"),
        (DATA["ranks"], {"objective": "regression"}, "ranked responses"),
        (DATA["pairs"], {"objective": "scaled_bradley_terry"}, "`margin`"),
        (DATA["pairs"], {"objective": "hinge", "label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        (DATA["scores"], {"plackett_luce_top_k": 2}, "plackett_luce"),
    ],
)
def test_what_does_not_go_together_raises_and_names_it(rows, settings, name, tokenizer, make_trainer):
    data = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    with pytest.raises(ConfigError) as error:
        make_trainer(tiny_model(tokenizer), data, **settings)
    assert name in str(error.value)


def test_a_stream_is_held_to_the_objective_row_by_row(tokenizer, make_trainer):
    rows = [*DATA["pairs"][:6], DATA["labels"][0]]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    trainer = make_trainer(tiny_model(tokenizer), stream, max_steps=9)
    with pytest.raises(DataError) as error:
        trainer.train()
    assert error.value.row == 6
    assert "binary_cross_entropy" in error.value.fix or "binary_cross_entropy" in error.value.message


def test_metadata_beside_pairs_changes_nothing(tokenizer, make_trainer):
    plain = make_trainer(tiny_model(tokenizer), Dataset.from_list(pair_rows()))
    noise = pair_rows(
        responses=[["x"]] * 8, scores=[[1.0]] * 8, label=["spam"] * 8, response=["y"] * 8, tie=[False] * 8
    )
    noisy = make_trainer(tiny_model(tokenizer), Dataset.from_list(noise))
    assert losses_of(noisy) == losses_of(plain)
    assert noisy.train_dataset["chosen_ids"] == plain.train_dataset["chosen_ids"]


# --- bad input


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scores": [1.0]}, "scores"),
        ({"scores": [1.0, float("nan"), 0.0]}, "scores[1]"),
        ({"scores": None}, "scores"),
        ({"responses": []}, "responses"),
        ({"weight": -1.0}, "weight"),
    ],
)
def test_broken_rankings_are_named(changes, field, tokenizer, make_trainer):
    rows = [kwise_rows()[1] | {"weight": 1.0} for _ in range(3)]
    rows[2] |= changes
    with pytest.raises(DataError) as error:
        make_trainer(tiny_model(tokenizer), Dataset.from_list(rows))
    assert (error.value.row, error.value.field) == (2, field)
    assert error.value.fix


@pytest.mark.parametrize("ranks", [[0, 1, 2], [1, 3, 4], [2, 3, 4], [1.5, 1, 2], [1, 1, 4]])
def test_ranks_with_gaps_are_refused(ranks, tokenizer, make_trainer):
    row = {"prompt": user("q"), "responses": [assistant(w) for w in "abc"], "ranks": ranks}
    with pytest.raises(DataError) as error:
        make_trainer(tiny_model(tokenizer), Dataset.from_list([row]))
    assert error.value.field.startswith("ranks")


@pytest.mark.parametrize("ranks", [[1, 1, 2], [1, 1, 3], [3, 1, 2], [1, 2, 2]])
def test_ties_in_ranks_may_skip_or_not(ranks, tokenizer, make_trainer):
    row = {"prompt": user("q"), "responses": [assistant(w) for w in "abc"], "ranks": ranks}
    prepared = make_trainer(tiny_model(tokenizer), Dataset.from_list([row])).train_dataset
    assert prepared["scores"][0] == [-float(rank) for rank in ranks]


@pytest.mark.parametrize("preference_prob", [-0.1, 1.5, float("nan"), None, "0.7"])
def test_strength_is_a_probability(preference_prob, tokenizer, make_trainer):
    column = [0.5] * 8
    column[3] = preference_prob
    rows = pair_rows(
        preference_prob=column if not isinstance(preference_prob, str) else ["0.5"] * 3 + [preference_prob] * 5
    )
    with pytest.raises(DataError) as error:
        make_trainer(tiny_model(tokenizer), Dataset.from_list(rows))
    assert error.value.field == "preference_prob"


def test_rows_that_compare_nothing_are_dropped_and_counted(tokenizer, make_trainer, caplog):
    rows = kwise_rows(5)
    rows[0]["responses"], rows[0]["scores"] = rows[0]["responses"][:1], [1.0]
    rows[3]["scores"] = [2.0] * len(rows[3]["scores"])
    data = Dataset.from_list(rows)
    trainer = make_trainer(tiny_model(tokenizer), data)
    assert len(trainer.train_dataset) == 3
    assert "2 without two responses of different scores (rows 0, 3)" in caplog.text
    # Equal scores are ties to an objective that knows them, and ratings to one that does not compare.
    assert len(make_trainer(tiny_model(tokenizer), data, objective="davidson").train_dataset) == 4
    assert len(make_trainer(tiny_model(tokenizer), data, objective="regression").train_dataset) == 5
    with pytest.raises(DataError) as error:
        make_trainer(tiny_model(tokenizer), data.select([3]))
    assert error.value.dataset == "train"


# --- predictions


def test_predictions_have_one_row_an_example_and_nan_where_there_is_no_response(tokenizer, make_trainer):
    rows = kwise_rows(5)
    rows[2]["responses"][0] = assistant("far too long " * 40)
    expected = rewards_of(tiny_model(tokenizer), tokenizer, rows)
    seen = []
    data = Dataset.from_list(rows)
    trainer = make_trainer(
        tiny_model(tokenizer),
        Dataset.from_list(kwise_rows(5)),
        max_length=100,
        per_device_eval_batch_size=2,
        compute_metrics=lambda p: seen.append(p) or {},
    )
    output = trainer.predict(data)
    assert output.predictions.shape == (5, 5)
    for i, row in enumerate(expected):
        found = output.predictions[i]
        if i == 2:
            assert np.isnan(found).all()
        else:
            np.testing.assert_allclose(found[: len(row)], row, **REWARD.close)
            assert np.isnan(found[len(row) :]).all()
    np.testing.assert_allclose(seen[0].label_ids[0], [*rows[0]["scores"], *[np.nan] * 3])
    assert output.label_ids.shape == (5, 5)
    assert np.isnan(output.label_ids[2]).all()
    np.testing.assert_allclose(output.label_ids[4][:2], rows[4]["scores"][:2])


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("data", ["ratings", "labels", "ranks", "ties"])
def test_predictions_keep_the_order_of_rows_and_responses(data, streaming, tokenizer, make_trainer):
    rows = DATA[data]
    expected = rewards_of(tiny_model(tokenizer), tokenizer, rows)
    table = Dataset.from_list(rows)
    trainer = make_trainer(tiny_model(tokenizer), table, per_device_eval_batch_size=3)
    found = trainer.predict(table.to_iterable_dataset() if streaming else table).predictions
    assert len(found) == len(rows)
    for rewards, row in zip(expected, found, strict=True):
        np.testing.assert_allclose(row[: len(rewards)], rewards, **REWARD.close)
        assert np.isnan(row[len(rewards) :]).all()


def test_rows_without_a_comparison_are_predicted_but_not_trained_on(tokenizer, make_trainer):
    rows = kwise_rows(3)
    rows[0]["responses"], rows[0]["scores"] = rows[0]["responses"][:1], [1.0]
    rows[1]["scores"] = [2.0] * 3
    expected = rewards_of(tiny_model(tokenizer), tokenizer, rows)
    for objective in ("bradley_terry", "plackett_luce", "davidson"):
        trainer = make_trainer(
            tiny_model(tokenizer), Dataset.from_list(kwise_rows(3)), objective=objective, per_device_eval_batch_size=1
        )
        output = trainer.predict(Dataset.from_list(rows))
        for rewards, row in zip(expected, output.predictions, strict=True):
            np.testing.assert_allclose(row[: len(rewards)], rewards, **REWARD.close)
        assert np.isfinite(output.metrics["test_loss"])


def test_a_prepared_data_set_is_evaluated_like_the_raw_one(tokenizer, make_trainer):
    for data in ("ties", "scores", "ratings", "labels", "weights"):
        table = Dataset.from_list(DATA[data])
        trainer = make_trainer(tiny_model(tokenizer), table, eval_dataset=table)
        timing = ("runtime", "per_second")
        raw, prepared = (
            {name: value for name, value in metrics.items() if not name.endswith(timing)}
            for metrics in (trainer.evaluate(), trainer.evaluate(trainer.eval_dataset))
        )
        assert raw == prepared, data


def test_ties_among_other_forms_are_no_rankings(tokenizer, make_trainer):
    rows = [*DATA["ties"][:4], *DATA["scores"][:4]]
    table = Dataset.from_list([dict.fromkeys({name for row in rows for name in row}) | row for row in rows])
    trainer = make_trainer(tiny_model(tokenizer), table, eval_dataset=table)
    assert trainer.training_objective.name == "rao_kupper"
    taus = []
    for rewards, row in zip(rewards_of(tiny_model(tokenizer), tokenizer, rows), rows, strict=True):
        if not row.get("tie"):
            taus.append(kendalltau(rewards, row.get("scores", [1, 0])).statistic)
    assert trainer.evaluate()["eval_kendall_tau"] == REWARD.approx(np.mean(taus))


def test_what_a_collator_of_the_callers_own_does_not_know_still_counts(tokenizer, make_trainer):
    rows = [row | {"weight": float(i % 3)} for i, row in enumerate(DATA["preference_probs"])]
    data = Dataset.from_list(rows)
    losses = []
    for collator in (None, DataCollatorForPreference(pad_token_id=0)):
        trainer = make_trainer(tiny_model(tokenizer), data, eval_dataset=data, data_collator=collator)
        losses.append(trainer.evaluate()["eval_loss"])
    assert losses[1] == REWARD.approx(losses[0])


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_a_length_penalty_sees_the_lengths_of_single_responses(layout, tokenizer, make_trainer):
    rows = [{"prompt": "q ", "response": "so " * (1 + i % 5), "score": 0.1 * i} for i in range(8)]
    data = Dataset.from_list(rows)
    trainer = make_trainer(
        tiny_model(tokenizer), data, eval_dataset=data, batch_layout=layout, length_penalty_coefficient=1.0,
        per_device_eval_batch_size=8,
    )  # fmt: skip
    rewards = trainer.predict(data).predictions[:, 0]
    expected = pearsonr(rewards, [len(row["response"]) for row in rows]).statistic
    assert trainer.evaluate()["eval_length_correlation"] == REWARD.approx(expected)


# --- what is learned beside the reward


@pytest.mark.parametrize("settings", [{"objective": "rao_kupper"}, {"length_head_coefficient": 1.0}])
def test_heads_are_saved_beside_the_model_and_resume_bit_for_bit(settings, tokenizer, make_trainer, tmp_path):
    data = Dataset.from_list(DATA["ties"] if "objective" in settings else DATA["pairs"])
    whole = make_trainer(tiny_model(tokenizer), data, folder="whole", max_steps=4, **settings)
    whole.train()
    half = make_trainer(
        tiny_model(tokenizer), data, folder="half", max_steps=4, save_strategy="steps", save_steps=2, **settings
    )
    half.train()
    resumed = make_trainer(tiny_model(tokenizer), data, folder="half", max_steps=4, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    learned = load_file(tmp_path / "half" / "checkpoint-4" / "training_heads.safetensors")
    name, value = next(iter(learned.items()))
    assert value.abs().sum() > 0
    assert torch.equal(value, whole.model.state_dict()[f"training_heads.{name}"])
    # A server sees the reward model alone.
    whole.save_model(str(tmp_path / "final"))
    assert not [key for key in load_file(tmp_path / "final" / "model.safetensors") if "training_heads" in key]
    served, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    rows = DATA["pairs"][:2]
    plain = rewards_of(served, tokenizer, rows)
    scored = whole.predict(Dataset.from_list(rows)).predictions
    np.testing.assert_allclose(scored, np.array(plain), **REWARD.close)


def test_the_best_model_comes_back_with_its_tie_parameter(tokenizer, make_trainer):
    data = Dataset.from_list(DATA["ties"])
    trainer = make_trainer(
        tiny_model(tokenizer), data, eval_dataset=data, objective="davidson", max_steps=4, learning_rate=0.3,
        save_strategy="steps", save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=False,
    )  # fmt: skip
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert trainer.evaluate()["eval_loss"] == REWARD.approx(min(losses))


def test_another_objective_cannot_go_on_from_such_a_checkpoint(tokenizer, make_trainer, tmp_path):
    data = Dataset.from_list(DATA["pairs"])
    make_trainer(tiny_model(tokenizer), data, save_strategy="steps", save_steps=1).train()
    trainer = make_trainer(tiny_model(tokenizer), data, objective="davidson", max_steps=4)
    with pytest.raises(ConfigError, match="tie_parameter"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


@pytest.mark.parametrize("objective", ["rao_kupper", "bradley_terry"])
def test_a_tie_parameter_is_read_by_its_own_objective_only(objective, tokenizer, make_trainer, tmp_path):
    data = Dataset.from_list(DATA["pairs"])
    make_trainer(tiny_model(tokenizer), data, objective="davidson", save_strategy="steps", save_steps=1).train()
    trainer = make_trainer(tiny_model(tokenizer), data, objective=objective, max_steps=4)
    with pytest.raises(ConfigError) as error:
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert "`tie_parameter`" in error.value.message
    assert "davidson" in error.value.message


def test_heads_of_an_earlier_trainer_do_not_stay_in_the_model(tokenizer, make_trainer):
    """A length head would go on adding to the rewards that the loss sees."""
    data = Dataset.from_list(DATA["pairs"])
    model = tiny_model(tokenizer)
    make_trainer(model, data, length_head_coefficient=1.0, learning_rate=0.1, max_steps=3).train()
    again = make_trainer(model, data, eval_dataset=data)
    rewards = np.array(rewards_of(tiny_copy(model, tokenizer), tokenizer, DATA["pairs"]))
    expected = np.mean(-log_expit(rewards[:, 0] - rewards[:, 1]))
    assert again.evaluate()["eval_loss"] == REWARD.approx(expected)
    assert not [name for name in again.model.state_dict() if "training_heads" in name]


def tiny_copy(model, tokenizer):
    copy = tiny_model(tokenizer)
    copy.load_state_dict({name: value for name, value in model.state_dict().items() if name in copy.state_dict()})
    return copy


def test_the_tie_parameter_learns_at_its_own_pace(tokenizer, make_trainer):
    trainer = make_trainer(
        tiny_model(tokenizer),
        Dataset.from_list(DATA["ties"]),
        learning_rate=1e-6,
        max_steps=5,
        lr_scheduler_type="constant",
    )
    trainer.train()
    assert abs(trainer.model.training_heads.tie_parameter.item()) > 0.02


def test_the_best_adapter_comes_back_with_its_tie_parameter(tokenizer, make_trainer):
    peft = pytest.importorskip("peft")
    data = Dataset.from_list(DATA["ties"])
    trainer = make_trainer(
        tiny_model(tokenizer), data, eval_dataset=data, max_steps=4, learning_rate=0.3, save_strategy="steps",
        save_steps=1, eval_strategy="steps", eval_steps=1, load_best_model_at_end=True,
        metric_for_best_model="eval_loss", greater_is_better=False, peft_config=peft.LoraConfig(r=2),
    )  # fmt: skip
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert min(losses) < losses[-1]
    assert trainer.evaluate()["eval_loss"] == REWARD.approx(min(losses))


def test_heads_go_with_an_adapter(tokenizer, make_trainer, tmp_path):
    peft = pytest.importorskip("peft")
    data = Dataset.from_list(DATA["ties"])
    settings = {"peft_config": peft.LoraConfig(r=2), "max_steps": 4}
    whole = make_trainer(tiny_model(tokenizer), data, folder="whole", **settings)
    whole.train()
    make_trainer(tiny_model(tokenizer), data, folder="half", save_strategy="steps", save_steps=2, **settings).train()
    resumed = make_trainer(tiny_model(tokenizer), data, folder="half", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "half" / "checkpoint-2"))
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    tie = whole.model.get_base_model().training_heads.tie_parameter
    assert tie.item() != 0
    saved = load_file(tmp_path / "half" / "checkpoint-4" / "adapter_model.safetensors")
    assert not [key for key in saved if "training_heads" in key]


# --- regularisers


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize("data", ["pairs", "scores"])
def test_text_generation_is_the_loss_of_a_language_model(layout, data, tokenizer, make_trainer):
    model = tiny_model(tokenizer, tie_word_embeddings=True)
    rows = DATA[data][:4]
    trainer = make_trainer(
        model,
        Dataset.from_list(rows),
        batch_layout=layout,
        lm_loss_coefficient=0.5,
        eval_dataset=Dataset.from_list(rows),
    )
    plain = make_trainer(
        tiny_model(tokenizer), Dataset.from_list(rows), batch_layout=layout, eval_dataset=Dataset.from_list(rows)
    )
    embedding = model.get_input_embeddings().weight
    expected = []
    for row in rows:
        responses = row.get("responses") or [row["chosen"], row["rejected"]]
        best = int(np.argmax(row["scores"])) if "scores" in row else 0
        ids = [tokenizer.apply_chat_template(row["prompt"] + r, tokenize=True, return_dict=False) for r in responses]
        prefix = next(t for t in range(200) if len({tuple(one[: t + 1]) for one in ids}) > 1)
        with torch.no_grad():
            states = model.model(input_ids=torch.tensor([ids[best]])).last_hidden_state[0]
            logp = (states @ embedding.T).log_softmax(-1)
        own = ids[best][prefix:]
        expected.append(np.mean([-logp[prefix - 1 + t, token].item() for t, token in enumerate(own)]))
    metrics = trainer.evaluate()
    assert metrics["eval_text_loss"] == REWARD.approx(np.mean(expected))
    assert metrics["eval_loss"] == REWARD.approx(plain.evaluate()["eval_loss"] + 0.5 * np.mean(expected))
    first = trainer.evaluate()["eval_text_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_text_loss"] < first


def test_text_generation_finds_the_head_of_an_untied_model(tokenizer, make_trainer, tmp_path):
    from transformers import AutoModelForCausalLM

    config = tiny_model(tokenizer).config
    torch.manual_seed(3)
    causal = AutoModelForCausalLM.from_config(config)
    causal.save_pretrained(tmp_path / "causal")
    data = Dataset.from_list(DATA["pairs"])
    trainer = make_trainer(str(tmp_path / "causal"), data, lm_loss_coefficient=0.01)
    assert torch.equal(trainer.model.training_heads.language_model_weight, causal.lm_head.weight)
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / "training_heads.safetensors").exists()  # nothing was learned beside the reward
    with pytest.raises(ConfigError, match="lm_loss_coefficient"):
        make_trainer(tiny_model(tokenizer), data, lm_loss_coefficient=0.01)


@pytest.mark.parametrize("overlong", ["truncate_left", "truncate_right"])
@pytest.mark.parametrize("data", ["pairs", "scores", "labels"])
def test_cut_rows_and_a_fall_back_give_the_same_text_loss(data, overlong, tokenizer, make_trainer):
    values = []
    for layout in ("padded", "shared_prefix", "fallen back"):
        rows = Dataset.from_list(DATA[data])
        trainer = make_trainer(
            tiny_model(tokenizer, tie_word_embeddings=True), rows, eval_dataset=rows, max_length=40, overlong=overlong,
            batch_layout="padded" if layout == "padded" else "shared_prefix", lm_loss_coefficient=0.1,
        )  # fmt: skip
        if layout == "fallen back":
            trainer._base_model.expand_shared_prefix = True
            trainer._forward._unchecked = False
        trainer.train()
        metrics = trainer.evaluate()
        assert trainer.data_reports["train"].flagged["overlong"].count > 0
        values.append((metrics["eval_text_loss"], metrics["eval_loss"]))
    assert values[1] == REWARD.approx(values[0])
    assert values[2] == REWARD.approx(values[0])


def test_virtual_tokens_and_text_generation_exclude_each_other(tokenizer, make_trainer):
    peft = pytest.importorskip("peft")
    config = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    model = tiny_model(tokenizer, tie_word_embeddings=True)
    with pytest.raises(ConfigError) as error:
        make_trainer(model, Dataset.from_list(DATA["pairs"]), peft_config=config, lm_loss_coefficient=0.1)
    assert error.value.field == "lm_loss_coefficient"


def test_gradient_checkpointing_changes_nothing(tokenizer, make_trainer):
    data = Dataset.from_list(DATA["ties"])
    losses = [
        losses_of(
            make_trainer(
                tiny_model(tokenizer, tie_word_embeddings=True), data, gradient_checkpointing=checkpointing,
                length_head_coefficient=0.1, lm_loss_coefficient=0.1,
            )
        )
        for checkpointing in (False, True)
    ]  # fmt: skip
    assert losses[0] == REWARD.approx(losses[1])


def test_a_length_penalty_takes_length_out_of_the_reward(tokenizer, make_trainer):
    rows = [{"prompt": f"q{i % 3} ", "chosen": "so " * (2 + i % 7), "rejected": "so " * (1 + i % 2)} for i in range(16)]
    data = Dataset.from_list(rows)
    correlations = {}
    for coefficient in (None, 10.0):
        trainer = make_trainer(
            tiny_model(tokenizer),
            data,
            max_steps=30,
            learning_rate=3e-3,
            per_device_train_batch_size=16,
            length_penalty_coefficient=coefficient,
            logging_steps=30,
        )
        trainer.train()
        rewards = trainer.predict(data).predictions
        lengths = np.array([[len(row["chosen"].split()), len(row["rejected"].split())] for row in rows])
        correlations[coefficient] = abs(pearsonr(rewards.ravel(), lengths.ravel()).statistic)
    assert correlations[None] > 0.7
    assert correlations[10.0] < 0.5 * correlations[None]


def test_odin_gives_length_to_the_other_head(tokenizer, make_trainer):
    rows = [{"prompt": f"q{i % 3} ", "chosen": "so " * (2 + i % 7), "rejected": "so " * (1 + i % 2)} for i in range(16)]
    data = Dataset.from_list(rows)
    trainer = make_trainer(
        tiny_model(tokenizer), data, eval_dataset=data, max_steps=40, learning_rate=3e-3,
        per_device_train_batch_size=16, length_head_coefficient=1.0,
    )  # fmt: skip
    trainer.train()
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.model.eval()
    with torch.no_grad():
        rewards = trainer._forward(trainer.model, batch)
    lengths = batch["response_tokens"].double().numpy()
    taken = pearsonr(rewards.extras["length_rewards"].double().numpy(), lengths).statistic
    left = pearsonr(rewards.rewards_N.double().numpy(), lengths).statistic
    assert taken > 0.9
    assert abs(left) < 0.5


def test_an_encoder_cannot_have_such_heads(tokenizer, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(tiny_model(tokenizer, "bert"), Dataset.from_list(DATA["ties"]))
    assert error.value.field == "objective"


def test_the_tie_parameter_finds_the_share_of_ties(tokenizer, make_trainer):
    """Where the rewards tell nothing, half of all pairs being ties is all there is to learn."""
    rows = [{"prompt": "q ", "chosen": "same", "rejected": "equal", "tie": i % 2 == 0} for i in range(16)]
    for row in rows[1::4]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    trainer = make_trainer(
        tiny_model(tokenizer),
        Dataset.from_list(rows),
        max_steps=150,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        objective="davidson",
        logging_steps=150,
    )
    trainer.train()
    nu = trainer.model.training_heads.tie_parameter.exp().item()
    assert nu / (2 + nu) == pytest.approx(0.5, abs=0.03)
