"""What goes wrong when people train reward models, where no other test says so already."""

import importlib
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from builders import CHATML, tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import DataError, RewardConfig, RewardTrainer
from plaudit.data import encode
from plaudit.data.collate import PaddedCollator, SharedPrefixCollator
from plaudit.data.encode import SegmentTokenizer
from tolerances import REWARD

DATED = "{%- if not today is defined %}{% set today = strftime_now('%d %b %Y') %}{% endif %}{{ today }}\n" + CHATML


def make_trainer(folder, dataset, *, tokenizer=None, model=None, **settings):
    tokenizer = tokenizer or tiny_tokenizer()
    arguments = {key: settings.pop(key) for key in ("eval_dataset", "compute_metrics") if key in settings}
    defaults = {"max_steps": 2, "logging_steps": 1, "per_device_train_batch_size": 4, "save_strategy": "no"}
    config = RewardConfig(str(folder), report_to=[], disable_tqdm=True, **{**defaults, **settings})
    model = model if model is not None else tiny_model(tokenizer)
    return RewardTrainer(model, config, train_dataset=dataset, processing_class=tokenizer, **arguments)


@pytest.fixture
def dataset():
    return Dataset.from_list(conversation_rows())


# ---- wrong numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_05_mixed_precision_makes_no_ties(tmp_path, layout):
    """128 answers, 128 rewards: rounded to bfloat16 there would be fewer."""
    rows = [{"chosen": f"answer {n}", "rejected": f"answer {64 + n}"} for n in range(64)]
    trainer = make_trainer(tmp_path, Dataset.from_list(rows), bf16=True, use_cpu=True, batch_layout=layout)
    with torch.no_grad():
        trainer.model.score.weight.mul_(0.05).add_(5.0)  # rewards around large values, where bfloat16 has few steps
    output = trainer.predict(Dataset.from_list(rows))
    rewards = output.predictions.flatten()
    rounded = torch.tensor(rewards).bfloat16().unique()
    assert len(np.unique(rewards)) > 120 > len(rounded)
    assert output.metrics["test_tie_rate"] == 0.0


def test_07_a_margin_is_one_number_a_pair(tmp_path):
    rows = [{**row, "margin": float(n)} for n, row in enumerate(conversation_rows(5))]
    trainer = make_trainer(tmp_path, Dataset.from_list(rows), use_cpu=True)
    for collator in (PaddedCollator(0), SharedPrefixCollator()):
        assert collator(list(trainer.train_dataset))["margin"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    batch = trainer.data_collator(list(trainer.train_dataset))
    batch["margin"] = batch["margin"][:, None]
    with pytest.raises(ValueError, match="one and the same"):
        trainer.compute_loss(trainer.model, batch)


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_08_swapped_labels_after_training_tell_on_a_leak(tmp_path, layout):
    """A model that has learnt the pairs gets all of them wrong when they are swapped."""
    rows = conversation_rows(9)
    rows[3]["rejected"] = rows[3]["chosen"]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    trainer = make_trainer(
        tmp_path, Dataset.from_list(rows), use_cpu=True, batch_layout=layout, max_steps=30, learning_rate=1e-2
    )
    trainer.train()
    straight, mirrored = (trainer.evaluate(Dataset.from_list(one)) for one in (rows, swapped))
    assert straight["eval_accuracy"] == pytest.approx(8 / 9)
    assert straight["eval_tie_rate"] == mirrored["eval_tie_rate"] == pytest.approx(1 / 9)
    assert mirrored["eval_accuracy"] == pytest.approx(1 - straight["eval_accuracy"] - straight["eval_tie_rate"])


# ---- silent misconfiguration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("overlong", ["drop", "truncate_left", "truncate_right"])
def test_13_over_long_rows_are_counted_in_training_and_evaluation(tmp_path, caplog, overlong):
    rows = conversation_rows(12)
    for place in (2, 5, 7):
        rows[place]["chosen"] = [{"role": "assistant", "content": "x" * 300}]
    dataset = Dataset.from_list(rows)
    with caplog.at_level(logging.WARNING, "plaudit"):
        trainer = make_trainer(
            tmp_path, dataset, use_cpu=True, eval_dataset={"held_out": dataset}, max_length=200, overlong=overlong
        )
    kept = 9 if overlong == "drop" else 12
    assert len(trainer.train_dataset) == len(trainer.eval_dataset["held_out"]) == kept
    cut = "" if overlong == "drop" else f", truncated on the {overlong.removeprefix('truncate_')}"
    for name in ("train", "held_out"):
        assert f"{name} data: 12 rows read, {kept} kept; " in caplog.text
        report = trainer.data_reports[name]
        counts = report.dropped if overlong == "drop" else report.flagged
        assert counts["overlong"].count == 3
    assert caplog.text.count(f"3 over-long{cut} (> 200 tokens; rows 2, 5, 7)") == 2
    longest = max(len(row[name]) for row in trainer.train_dataset for name in ("chosen_ids", "rejected_ids"))
    assert longest <= 200


@pytest.fixture
def forgetful():
    """The warning comes once a process: each test starts anew."""
    encode._warn_of_todays_date.cache_clear()
    yield
    encode._warn_of_todays_date.cache_clear()


def test_18_a_template_that_prints_todays_date_is_warned_of_once(tmp_path, dataset, caplog, forgetful):
    tokenizer = tiny_tokenizer(chat_template=DATED)
    tokenizer.name_or_path = "maker/dated"
    trainer = make_trainer(tmp_path, dataset, tokenizer=tokenizer, use_cpu=True, eval_dataset=dataset)
    trainer.evaluate(dataset)
    said = [record for record in caplog.records if "today's date" in record.message]
    assert len(said) == 1
    assert said[0].levelno == logging.WARNING
    for words in ("'maker/dated'", '{"today": "26 Jul 2024"}', "`chat_template_kwargs`", "`chat_template_path`"):
        assert words in said[0].message


def test_18_the_mends_that_the_warning_names_work(tmp_path, dataset, caplog, forgetful):
    tokenizer = tiny_tokenizer(chat_template=DATED)
    fixed = dataset.add_column("chat_template_kwargs", ['{"today": "26 Jul 2024"}'] * len(dataset))
    trainer = make_trainer(tmp_path, fixed, tokenizer=tokenizer, use_cpu=True)
    assert trainer.processing_class.decode(trainer.train_dataset[0]["chosen_ids"]).startswith("26 Jul 2024<|im_start|>")
    (tmp_path / "plain.jinja").write_text(CHATML)
    make_trainer(tmp_path, dataset, tokenizer=tokenizer, use_cpu=True, chat_template_path=str(tmp_path / "plain.jinja"))
    # A template may look at the clock without printing it.
    silent = tiny_tokenizer(chat_template="{% set unused = strftime_now('%Y') %}" + CHATML)
    make_trainer(tmp_path, dataset, tokenizer=silent, use_cpu=True)
    assert "today's date" not in caplog.text


def test_18_rendered_text_gets_no_second_bos(tmp_path, dataset):
    tokenizer = tiny_tokenizer(chat_template="{{ bos_token }}" + CHATML, bos=True)
    trainer = make_trainer(tmp_path, dataset, tokenizer=tokenizer, use_cpu=True)
    for row in trainer.train_dataset:
        assert row["chosen_ids"].count(tokenizer.bos_token_id) == 1
        assert row["chosen_ids"][0] == tokenizer.bos_token_id


# ---- crashes and poor errors ----------------------------------------------------------------------------------


def test_20_the_defaults_train_on_whatever_is_there(tmp_path, dataset):
    """No `use_cpu`, no `bf16=False`: on a machine without an accelerator the reference's defaults raise."""
    trainer = make_trainer(tmp_path, dataset)
    trainer.train()
    if not torch.accelerator.is_available():
        assert not trainer.args.bf16
        assert not trainer.args.fp16
        assert next(trainer.model.parameters()).dtype == torch.float32


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "2 + 2 =", "chosen": [{"role": "assistant", "content": "4"}]}, "prompt"),
        ({"prompt": [{"role": "user", "content": "2 + 2"}], "chosen": "4"}, "prompt"),
    ],
)
def test_21_a_prompt_of_one_form_with_answers_of_another(tmp_path, row, words):
    dataset = Dataset.from_list([{**row, "rejected": row["chosen"]}] * 2)
    with pytest.raises(DataError, match=words) as caught:
        make_trainer(tmp_path, dataset, use_cpu=True)
    assert caught.value.row == 0
    assert "Fix:" in str(caught.value)


# ---- speed ----------------------------------------------------------------------------------------------------


def test_23_a_step_computes_each_prompt_once_and_no_padding(tmp_path, dataset):
    rows = [
        {"prompt": f"{n}: a long question, asked once: ", "chosen": "yes" + "!" * (9 * n), "rejected": "no"}
        for n in range(4)
    ]
    logs = {}
    for layout in ("padded", "shared_prefix"):
        trainer = make_trainer(tmp_path, Dataset.from_list(rows), use_cpu=True, batch_layout=layout, max_steps=1)
        trainer.train()
        logs[layout] = next(log for log in trainer.state.log_history if "num_tokens_computed" in log)
    prepared = trainer.train_dataset
    prompt = len(rows[0]["prompt"])
    lengths = [len(row[name]) for row in prepared for name in ("chosen_ids", "rejected_ids")]
    assert logs["shared_prefix"]["num_tokens"] == logs["padded"]["num_tokens"] == sum(lengths)
    assert logs["shared_prefix"]["num_tokens_computed"] == sum(lengths) - len(rows) * prompt
    assert logs["padded"]["num_tokens_computed"] == len(lengths) * max(lengths)


def test_23_rows_are_tokenised_together_and_equal_pieces_once(tmp_path, monkeypatch):
    calls = []
    original = SegmentTokenizer._encode

    def counted(self, texts):
        calls.append(texts)
        return original(self, texts)

    monkeypatch.setattr(SegmentTokenizer, "_encode", counted)
    rows = [{"prompt": "Say ", "chosen": "a" * (n // 2), "rejected": "no"} for n in range(1, 41)]
    make_trainer(tmp_path, Dataset.from_list(rows), use_cpu=True, golden_rows=0)
    pieces = [piece for texts in calls for piece in texts]
    assert len([texts for texts in calls if texts]) == 1
    assert len(pieces) == len(set(pieces)) == 23  # the prompt, 21 good answers and one bad one


@pytest.mark.parametrize(("prompt", "answer", "answers"), [(400, 100, 2), (100, 100, 2), (1, 50, 2)])
def test_24_the_tokens_saved_are_those_of_the_bound(prompt, answer, answers):
    """K answers of R tokens to a prompt of P: K(P+R)/(P+KR) times fewer tokens, exactly."""
    rows = [
        {
            "chosen_ids": [*range(start, start + prompt), *range(1000, 1000 + answer)],
            "rejected_ids": [*range(start, start + prompt), *range(2000, 2000 + answer)],
        }
        for start in (3000, 4000, 5000)
    ]
    padded, shared = (collator(rows)["input_ids"].numel() for collator in (PaddedCollator(0), SharedPrefixCollator()))
    assert padded / shared == pytest.approx(answers * (prompt + answer) / (prompt + answers * answer))


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a file of the benchmarks, which are no package."""
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - known:
        if Path(getattr(sys.modules[name], "__file__", None) or ".").parent == folder:
            del sys.modules[name]


def test_25_both_sides_take_turns_and_the_cold_round_is_not_counted(monkeypatch, benchmark, tmp_path):
    compare, summary = benchmark("compare_with_reference"), benchmark("summary")
    order = []

    class Side:
        def __init__(self, name, seconds):
            self.name, self.seconds, self.measured = name, seconds, {"blocks": []}

        def train_block(self, load, counted):
            order.append(self.name)
            block = {"step_seconds": [self.seconds if counted else 100.0], "counted": counted}
            self.measured["blocks"].append(block)
            return block

    for name in ("print_progress", "require_memory"):
        monkeypatch.setattr(compare, name, lambda *arguments: None)
    monkeypatch.setattr(compare.Run, "_start", lambda *arguments, **settings: None)
    sides = [Side("reference", 3.0), Side("ours", 1.0)]
    settings = compare.parse_arguments(["--blocks", "3"])
    compare.Run(sides, settings, tmp_path, compare.time.monotonic()).measure()
    assert order == ["reference", "ours"] * 4
    blocks = [side.measured["blocks"] for side in sides]
    assert summary.speed_ratio(*blocks)["overall"] == 3.0
    assert summary.throughput(blocks[1], 8, [10])["rows_per_second"]["overall"] == 8.0


# ---- a checkpoint that every server reads ---------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path, dataset):
    """A trained and saved model: its folder, its trainer, and the rewards it gave."""
    trainer = make_trainer(tmp_path / "out", dataset, use_cpu=True, max_steps=4, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    return tmp_path / "out", trainer, trainer.predict(dataset).predictions


def texts_of(trainer):
    return [
        trainer.processing_class.decode(row[name])
        for row in trainer.train_dataset
        for name in ("chosen_ids", "rejected_ids")
    ]


def test_weights_are_a_trunk_and_a_head_without_bias(saved):
    folder, *_ = saved
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert list(weights.get_slice("score.weight").get_shape()) == [1, 32]
    assert {name for name in names if not name.startswith("model.")} == {"score.weight"}
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert len(config["id2label"]) == 1


def test_the_pipeline_returns_the_raw_reward(saved):
    folder, trainer, expected = saved
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classify = pipeline("text-classification", model=str(folder), tokenizer=tokenizer, device="cpu")
    scores = [classify(text, add_special_tokens=False)[0] for text in texts_of(trainer)]
    assert {score["label"] for score in scores} == {"reward"}
    np.testing.assert_allclose([score["score"] for score in scores], expected.flatten(), **REWARD.close)


def test_a_right_padded_batch_of_the_stock_model_gives_the_rewards(saved):
    """As trainers that use the model as a judge call it: right padding, no added special tokens."""
    folder, trainer, expected = saved
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(
        texts_of(trainer), return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False
    )
    with torch.no_grad():
        rewards = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    np.testing.assert_allclose(rewards.numpy(), expected.flatten(), **REWARD.close)
