"""Bad input: broken data and settings stop before any training; suspicious data is counted and said."""

import json
import logging

import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model, tiny_reward_model
from plaudit import ConfigError, DataError, RewardConfig, RewardTrainer
from plaudit.data.load import load_preference_dataset


def assistant(content):
    return [{"role": "assistant", "content": content}]


def with_row(index, **changes):
    rows = conversation_rows(6)
    rows[index] = {**rows[index], **changes}
    return Dataset.from_list(rows)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"chosen": None}, "chosen"),
        ({"rejected": assistant(None)}, "rejected[0].content"),
        ({"chosen": [{"role": None, "content": "x"}]}, "chosen[0].role"),
    ],
)
def test_a_broken_row_anywhere_stops_before_anything_is_made(model, make_trainer, tmp_path, changes, field):
    with pytest.raises(DataError) as caught:
        make_trainer(model, with_row(4, **changes))
    message = str(caught.value)
    assert (caught.value.row, caught.value.field) == (4, field)
    assert "train data set, row 4" in message
    assert "Fix:" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("margin", [None, float("nan")])
def test_a_margin_must_be_a_number(model, make_trainer, margin):
    rows = [{**row, "margin": 1.0} for row in conversation_rows(5)]
    rows[3]["margin"] = margin
    with pytest.raises(DataError) as caught:
        make_trainer(model, Dataset.from_list(rows))
    assert (caught.value.row, caught.value.field) == (3, "margin")


def test_eval_data_is_checked_too_and_named(model, dataset, make_trainer):
    with pytest.raises(DataError) as error:
        make_trainer(model, dataset, eval_dataset={"held_out": with_row(2, chosen=None)})
    assert (error.value.dataset, error.value.row) == ("held_out", 2)


def test_mixed_forms(model, make_trainer):
    rows = [{"chosen": "a", "rejected": "b"}, {"chosen": assistant("a"), "rejected": assistant("b")}]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    trainer = make_trainer(model, stream)
    with pytest.raises(DataError) as error:  # a stream is read as it trains
        trainer.train()
    assert error.value.row == 1


def test_empty_data_and_missing_columns(model, make_trainer):
    with pytest.raises(DataError) as error:
        make_trainer(model, Dataset.from_dict({"chosen": [], "rejected": []}))
    assert error.value.dataset == "train"
    with pytest.raises(DataError, match="rejected"):
        make_trainer(model, Dataset.from_dict({"chosen": ["a"], "other": ["b"]}))


def test_every_row_too_long_says_how_long(model, dataset, make_trainer):
    with pytest.raises(DataError, match="max_length"):
        make_trainer(model, dataset, max_length=3)


def test_missing_template_and_eos(model, dataset, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(model, dataset, processing_class=tiny_tokenizer(chat_template=False))
    assert error.value.fix
    text = Dataset.from_dict({"chosen": ["a"], "rejected": ["b"]})
    with pytest.raises(ConfigError, match="eos_token"):
        make_trainer(model, text, processing_class=tiny_tokenizer(eos=False))


def test_data_sets_of_the_wrong_kind(model, dataset, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(model, None)
    assert error.value.field == "train_dataset"
    with pytest.raises(ConfigError) as error:
        make_trainer(model, DatasetDict({"train": dataset, "test": dataset}))
    assert error.value.field == "train_dataset"
    assert "dataset['train']" in error.value.fix
    with pytest.raises(ConfigError) as error:
        make_trainer(model, conversation_rows(2))
    assert error.value.field == "train_dataset"


def test_models_that_are_no_reward_models(dataset, tokenizer, make_trainer, tmp_path):
    with pytest.raises(ValueError, match="reward models require `num_labels=1`"):
        make_trainer(tiny_model(tokenizer, num_labels=2), dataset)
    tiny_model(tokenizer, num_labels=2).save_pretrained(tmp_path / "two")
    with pytest.raises(ValueError, match="reward models require `num_labels=1`"):
        make_trainer(str(tmp_path / "two"), dataset)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ConfigError) as error:
        make_trainer(str(tmp_path / "nothing"), dataset)
    assert "config.json" in error.value.message
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    with pytest.raises(ConfigError) as error:
        make_trainer(str(tmp_path / "broken"), dataset)
    assert str(tmp_path / "broken") in error.value.message


def test_an_output_folder_that_cannot_be_written(model, dataset, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    config = RewardConfig(str(tmp_path / "file" / "out"), use_cpu=True, report_to=[])
    with pytest.raises(ConfigError) as error:
        RewardTrainer(model, config, train_dataset=dataset, processing_class=tokenizer)
    assert error.value.field == "output_dir"


@pytest.mark.parametrize(
    ("settings", "choice"),
    [
        ({"batch_layout": "dense"}, "shared_prefix"),
        ({"overlong": "cut"}, "truncate_left"),
        ({"max_length": 0}, "None"),
        ({"label_smoothing_factor": 0.5}, "0 or more"),
        ({"objective": "brier"}, "bradley_terry"),
        ({"plackett_luce_top_k": 0}, "None"),
        ({"ensemble_size": 1}, "2 or more"),
        ({"ensemble_size": -1}, "2 or more"),
        ({"golden_rows": -1}, "0 for none"),
        ({"gradient_checkpointing": "sometimes"}, "'auto'"),
        ({"accelerator_config": {"split_batches": True}}, "per-device batch size"),
    ],
)
def test_settings_that_cannot_work(tmp_path, settings, choice):
    with pytest.raises(ConfigError) as error:
        RewardConfig(str(tmp_path), use_cpu=True, report_to=[], **settings)
    assert error.value.field == next(iter(settings)).replace("accelerator_config", "split_batches")
    assert choice in error.value.fix


def test_a_layout_that_cannot_work_is_refused_when_asked_for(dataset, tokenizer, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(tiny_model(tokenizer, "bert"), dataset, batch_layout="shared_prefix")
    assert error.value.field == "batch_layout"
    trainer = make_trainer(
        tiny_model(tokenizer, "stablelm"), dataset, batch_layout="shared_prefix", gradient_checkpointing=False
    )
    with pytest.raises(ConfigError) as error:
        trainer.train()
    assert error.value.field == "batch_layout"


def test_tokens_that_are_not_in_the_vocabulary(model, dataset, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(model, dataset, eos_token="<|nowhere|>")
    assert error.value.field == "eos_token"
    with (
        pytest.warns(FutureWarning, match="pad_token"),
        pytest.raises(ConfigError, match="vocabulary"),
    ):
        make_trainer(model, dataset, pad_token="<|nowhere|>")


def test_no_pad_token_to_be_had_warns(dataset, caplog):
    from plaudit.model.load import set_pad_token

    tokenizer = tiny_tokenizer(pad=False)
    model = tiny_reward_model("llama", vocab_size=len(tokenizer))
    chosen = set_pad_token(model, tokenizer, may_resize=False)
    # <|pad|> is reserved in the vocabulary though no role names it
    assert chosen.pad_token == "<|pad|>"
    assert tokenizer.pad_token is None


def test_suspicious_rows_are_counted_and_said(model, make_trainer, caplog):
    rows = conversation_rows(8)
    rows[1]["rejected"] = rows[1]["chosen"]
    rows[3]["rejected"] = assistant("")
    rows[5]["chosen"] = [*rows[5]["chosen"], {"role": "user", "content": "Thanks"}]
    rows[6]["chosen"] = assistant("x" * 400)
    dataset = Dataset.from_list(rows)
    with caplog.at_level(logging.INFO, "plaudit"):
        trainer = make_trainer(model, dataset, max_length=300, eval_dataset=dataset)
    assert len(trainer.train_dataset) == 6  # identical and over-long rows are dropped
    assert len(trainer.eval_dataset) == 7  # identical ones are not dropped here
    line = next(record.message for record in caplog.records if record.message.startswith("train data"))
    for words in (
        "8 rows read",
        "6 kept",
        "identical responses (row 1)",
        "(> 300 tokens; row 6)",
        "row 3",
        "row 5",
    ):
        assert words in line, line


def numbered_rows(first, broken=None):
    for index in range(first, first + 8):
        row = conversation_rows(16)[index]
        if index == broken:
            row["rejected"][0]["content"] = None
        yield row


def rows_of_shards(shards, broken):
    for first in shards:
        yield from numbered_rows(first, broken)


def sharded_stream(*firsts, broken=None):
    return IterableDataset.from_generator(rows_of_shards, gen_kwargs={"shards": list(firsts), "broken": broken})


@pytest.mark.parametrize(("shards", "workers", "row"), [((0, 8), 2, None), ((8,), 1, 3)])
def test_workers_of_a_stream_name_the_row_of_an_error_or_none(model, make_trainer, shards, workers, row):
    stream = sharded_stream(*shards, broken=11)
    trainer = make_trainer(model, stream, max_steps=9, dataloader_num_workers=workers)
    with pytest.raises(DataError) as error:
        trainer.train()
    assert (error.value.row, error.value.field) == (row, "rejected[0].content")
    assert error.value.fix
    assert "Traceback" not in str(error.value)


def test_workers_of_a_stream_name_the_broken_line_of_a_file(model, make_trainer, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([json.dumps(row) for row in conversation_rows(100)] + ["{"]))
    stream = load_preference_dataset(path, streaming=True)
    trainer = make_trainer(model, stream, max_steps=40, dataloader_num_workers=1)
    with pytest.raises(DataError) as error:
        trainer.train()
    assert error.value.message.startswith(f"{path}, line 101: is not valid JSON")
    assert error.value.fix.startswith("Correct or delete the line")


def test_rows_that_workers_read_are_not_counted_and_a_reason_is_given(model, make_trainer):
    trainer = make_trainer(model, sharded_stream(0, 8), max_steps=3, dataloader_num_workers=1)
    trainer.train()
    report = trainer.data_reports["train"]
    assert "dataloader_num_workers" in report.uncounted
    assert report.uncounted in report.summary()
    assert "0 rows" not in report.summary()


TEXTS = [{"prompt": "2+2=", "chosen": "4" + "!" * n, "rejected": "5" + "?" * n} for n in range(6)]


@pytest.mark.parametrize("chats_are", ["train", "held_out"])
def test_evaluating_on_another_form_than_that_of_training_is_told_once(model, dataset, make_trainer, caplog, chats_are):
    texts = Dataset.from_list(TEXTS)
    train, other = (dataset, texts) if chats_are == "train" else (texts, dataset)
    with caplog.at_level(logging.WARNING, "plaudit"):
        trainer = make_trainer(
            model, train, eval_dataset={"held_out": other, "same": train}, eval_strategy="steps", eval_steps=1
        )
        trainer.train()
    (told,) = [record.getMessage() for record in caplog.records if "in one form" in record.getMessage()]
    assert "held_out data is " + ("plain text" if chats_are == "train" else "conversations") in told
