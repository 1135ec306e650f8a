"""Training on public data as it was published: what it says is learned, and nothing of a conversation is dropped."""

import json
import logging

import pytest
from datasets import Dataset, IterableDataset

from data.published_rows import CHAT_A, CHAT_B, ROWS, assistant, user
from plaudit import ConfigError, DataError


def arena(count=12):
    """Battles of which a third are ties."""
    winners = ["model_a", "model_b", "tie"]
    chats = (
        [user(f"{n}+2?") + assistant(f"{n + 2}") for n in range(count)],
        [user(f"{n}+2?") + assistant("?") for n in range(count)],
    )
    columns = zip(*chats, strict=True)
    rows = [{"conversation_a": first, "conversation_b": second} for first, second in columns]
    return [{"id": n, "model_a": "a", "model_b": "b", "winner": winners[n % 3], **row} for n, row in enumerate(rows)]


def own(rows):
    """The same battles in Plaudit's own columns."""
    sides = {"model_b": ("conversation_b", "conversation_a")}
    return [
        {
            "chosen": row[sides.get(row["winner"], ("conversation_a", "conversation_b"))[0]],
            "rejected": row[sides.get(row["winner"], ("conversation_a", "conversation_b"))[1]],
            "tie": row["winner"] == "tie",
        }
        for row in rows
    ]


def losses(trainer):
    trainer.train()
    return [log["loss"] for log in trainer.state.log_history if "loss" in log]


@pytest.mark.parametrize("streaming", [False, True])
def test_arena_battles_train_as_pairs_with_ties(make_trainer, model, streaming, caplog):
    caplog.set_level(logging.INFO, "plaudit")
    rows, seed = Dataset.from_list(arena()), {"seed": 3}
    data = rows.to_iterable_dataset() if streaming else rows
    trainer = make_trainer(model, data, eval_dataset=data, **seed)
    assert [record for record in caplog.messages if "Chatbot Arena" in record] == [
        "train data: rows are read as Chatbot Arena (33k, 100k, 140k) (schema arena).",
        "eval data: rows are read as Chatbot Arena (33k, 100k, 140k) (schema arena).",
    ]
    assert trainer.training_objective.learns_ties
    expected = Dataset.from_list(own(arena()))
    expected = expected.to_iterable_dataset() if streaming else expected
    from model_builders import tiny_model

    same = make_trainer(tiny_model(trainer.processing_class), expected, folder="own", **seed)
    assert losses(trainer) == losses(same)
    assert trainer.evaluate(rows)["eval_tie_accuracy"] >= 0


def test_ratings_train_by_regression(make_trainer, model):
    rows = [{**ROWS["helpsteer2"][0], "response": f"{n}", "helpfulness": n % 5} for n in range(8)]
    trainer = make_trainer(model, Dataset.from_list(rows))
    assert trainer.training_objective.name == "regression"
    assert len(losses(trainer)) == 2


def test_a_question_that_nothing_reads_stops_training(make_trainer, model):
    rows = [{"chosen": assistant("4"), "rejected": assistant("5"), "question": "2+2?"}] * 4
    with pytest.raises(DataError) as error:
        make_trainer(model, Dataset.from_list(rows))
    assert (error.value.field, error.value.dataset) == ("question", "train")
    trainer = make_trainer(model, Dataset.from_list(rows), schema="none")
    assert trainer.data_reports["train"].rows_kept == 4


def test_a_schema_can_be_named(make_trainer, model):
    with pytest.raises(ConfigError) as error:
        make_trainer(model, Dataset.from_list([{"chosen": CHAT_A, "rejected": CHAT_B}] * 4), schema="arena")
    assert error.value.field == "schema"
    trainer = make_trainer(
        model,
        Dataset.from_list(arena(4)),
        eval_dataset=Dataset.from_list([{"chosen": CHAT_A, "rejected": CHAT_B}] * 4),
        schema="arena",
    )
    assert trainer.data_reports["eval"].rows_kept == 4


def test_prompts_that_the_responses_begin_with_are_read_once(make_trainer, model):
    row = ROWS["binarized"][0]
    trainer = make_trainer(model, Dataset.from_list([row] * 4))
    decoded = trainer.processing_class.decode(trainer.train_dataset[0]["chosen_ids"])
    assert decoded.count("2+2?") == 1


def test_a_stream_without_types_is_read(make_trainer, model):
    def rows():
        yield from ({**row, "prompt": ""} for row in json.loads(json.dumps([ROWS["hh"][0]] * 12)))

    trainer = make_trainer(model, IterableDataset.from_generator(rows))
    assert len(losses(trainer)) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_row_of_a_stream_is_named(make_trainer, model, workers):
    rows = arena(30)
    rows[20]["winner"] = "model_c"
    stream = Dataset.from_list(rows).to_iterable_dataset(num_shards=1)
    trainer = make_trainer(model, stream, max_steps=10, dataloader_num_workers=workers)
    with pytest.raises(DataError) as error:
        trainer.train()
    assert (error.value.row, error.value.dataset) == (20, "train")
    assert "model_c" in error.value.message
