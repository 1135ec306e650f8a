"""Mixtures: several data sets as one, whatever their columns, and clear words where they do not go together."""

from __future__ import annotations

import json
import logging

import datasets.config
import pytest
from datasets import Dataset, IterableDataset

from plaudit.data.mixture import DatasetPart, load_mixture, located
from plaudit.data.prepare import prepare_dataset
from plaudit.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write rows to a file in the working folder and return its name."""
    monkeypatch.chdir(tmp_path)

    def write_rows(name, rows):
        path = tmp_path / name
        if name.endswith(".parquet"):
            Dataset.from_list(rows).to_parquet(path)
        else:
            path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return name

    return write_rows


def plain(*names, **more):
    return [{"chosen": f"{name} good", "rejected": f"{name} bad", **more} for name in names]


def talk(question, answer):
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def mix(*parts, **settings):
    return load_mixture([DatasetPart(**part) for part in parts], **settings)


def texts(dataset):
    return [(row["chosen"], row["rejected"]) for row in dataset]


def tokens(dataset, tokenizer):
    prepared, _ = prepare_dataset(dataset, tokenizer, max_length=None)
    return [(row["chosen_ids"], row["rejected_ids"]) for row in prepared]


# --- how many rows, and which -------------------------------------------------------------------------------


def test_parts_stand_one_behind_the_other_and_are_counted(write, caplog):
    write("a.jsonl", plain("a", "b"))
    write("b.jsonl", plain("c", other=[1]))
    with caplog.at_level(logging.INFO, "plaudit"):
        mixture, held_out = mix({"path": "a.jsonl"}, {"path": "b.jsonl"})
    assert held_out is None
    assert texts(mixture) == [(f"{name} good", f"{name} bad") for name in "abc"]
    assert list(zip(mixture["part"], mixture["part_row"], strict=True)) == [
        ("a.jsonl", 0),
        ("a.jsonl", 1),
        ("b.jsonl", 0),
    ]
    assert "Mixture of 3 rows: 2 rows from a.jsonl, 1 rows from b.jsonl." in caplog.messages


def test_as_many_rows_as_asked_for_decided_by_the_seed(write, caplog):
    write("a.jsonl", plain(*map(str, range(20))))
    write("b.jsonl", plain("x", "y"))
    with caplog.at_level(logging.INFO, "plaudit"):
        first = mix({"path": "a.jsonl", "rows": 5}, {"path": "b.jsonl"}, seed=1)[0]
    assert "5 of 20 rows from a.jsonl" in caplog.text
    assert len(first) == 7
    picked = first["part_row"][:5]
    assert picked == sorted(set(picked))
    assert picked != [0, 1, 2, 3, 4]
    assert texts(first)[0] == (f"{picked[0]} good", f"{picked[0]} bad")
    assert mix({"path": "a.jsonl", "rows": 5}, {"path": "b.jsonl"}, seed=1)[0]["part_row"][:5] == picked
    assert mix({"path": "a.jsonl", "rows": 5}, {"path": "b.jsonl"}, seed=2)[0]["part_row"][:5] != picked


def test_shares_are_scaled_and_use_no_row_twice(write):
    write("a.jsonl", plain(*map(str, range(10))))
    write("b.jsonl", plain("x", "y", "z"))
    mixture = mix({"path": "a.jsonl", "fraction": 3}, {"path": "b.jsonl", "fraction": 1.5})[0]
    assert (mixture["part"].count("a.jsonl"), mixture["part"].count("b.jsonl")) == (6, 3)
    assert len(set(mixture["part_row"][:6])) == 6


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"fraction": 0.5}, {}, "some parts have a `fraction`"),
        ({"rows": 3}, {}, r"a.jsonl data set: has 2 rows, not 3"),
        ({"fraction": 0.001}, {"fraction": 1}, "no row of a.jsonl"),
        ({"columns": ["chosen", "worse"]}, {}, "(?s)a.jsonl.*no column `worse`.*`chosen`, `rejected`"),
        ({"columns": ["chosen"]}, {}, "a.jsonl data set: has no column `rejected`"),
        ({"split": "dev"}, {}, "no split 'dev'"),
        ({}, {"path": "gone.jsonl"}, "gone.jsonl: there is no such file"),
    ],
)
def test_what_cannot_be_had(write, first, second, message):
    write("a.jsonl", plain("a", "b"))
    write("b.jsonl", plain("c"))
    with pytest.raises((ConfigError, DataError), match=message):
        mix({"path": "a.jsonl", **first}, {"path": "b.jsonl", **second})


def test_an_empty_mixture():
    with pytest.raises(ConfigError, match="`datasets` is empty"):
        load_mixture([])


# --- columns ------------------------------------------------------------------------------------------------


def test_columns_are_selected_and_renamed(write):
    write("a.jsonl", plain("a"))
    write("b.jsonl", [{"question": "Q ", "better": "B", "worse": "W", "chosen": [0]}])
    names = {"question": "prompt", "better": "chosen", "worse": "rejected"}
    mixture = mix({"path": "a.jsonl", "columns": ["chosen", "rejected"]}, {"path": "b.jsonl", "columns": names})[0]
    assert texts(mixture) == [("a good", "a bad"), ("Q B", "Q W")]
    with pytest.raises(ConfigError, match="two columns one name"):
        mix({"path": "b.jsonl", "columns": {"better": "chosen", "worse": "chosen"}})


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("second", ["b.jsonl", "b.parquet"])
def test_prompts_of_their_own_and_in_the_answers_go_together(write, tokenizer, streaming, second):
    rows = [
        {"prompt": talk("Hi", "x")[:1], "chosen": talk("Hi", "good")[1:], "rejected": talk("Hi", "bad")[1:]},
        {"chosen": talk("Ho", "fine"), "rejected": talk("Ho", "poor")},
    ]
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": "Bonn", "days": None}}}
    rows[1]["chosen"].insert(1, {"role": "assistant", "content": "", "tool_calls": [call]})
    write("a.jsonl", rows[:1])
    write(second, rows[1:])
    mixture = mix({"path": "a.jsonl"}, {"path": second}, streaming=streaming)[0]
    assert "prompt" not in next(iter(mixture))
    expected = [tokens(Dataset.from_list([row]), tokenizer)[0] for row in rows]
    assert tokens(mixture, tokenizer) == expected
    reverse = mix({"path": second}, {"path": "a.jsonl"}, streaming=streaming)[0]
    assert tokens(reverse, tokenizer) == expected[::-1]


@pytest.mark.parametrize("streaming", [False, True])
def test_keys_that_arrow_filled_in_are_gone_and_nulls_of_the_author_stay(write, streaming):
    call = {"name": "f", "arguments": {"city": "Bonn", "days": None}}
    typed = [{"role": "user", "content": "Hi", "name": "Ann"}, {"role": "assistant", "content": "a"}]
    loose = [{"role": "user", "content": "Ho"}, {"role": "assistant", "content": "b", "tool_calls": [call]}]
    write("a.parquet", [{"chosen": typed, "rejected": typed[:1]}])
    write("b.jsonl", [{"chosen": loose, "rejected": loose[:1]}])
    assert next(iter(Dataset.from_parquet("a.parquet")))["chosen"][1]["name"] is None
    mixture = mix({"path": "a.parquet"}, {"path": "b.jsonl"}, streaming=streaming)[0]
    chosen = [row["chosen"] for row in mixture]
    assert chosen[0] == typed
    assert chosen[1][1]["tool_calls"] == ([call] if not streaming else [{**call, "arguments": {"city": "Bonn"}}])


@pytest.mark.parametrize("streaming", [False, True])
def test_tools_as_a_list_and_as_json(write, tokenizer, streaming):
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    rows = [
        {"chosen": talk("Hi", "a"), "rejected": talk("Hi", "b"), "tools": [tool]},
        {"chosen": talk("Ho", "a"), "rejected": talk("Ho", "b"), "tools": json.dumps([tool])},
        {"chosen": talk("Hu", "a"), "rejected": talk("Hu", "b")},
    ]
    for name, row in zip(("a.parquet", "b.jsonl", "c.jsonl"), rows, strict=True):
        write(name, [row])
    mixture = mix(*({"path": name} for name in ("a.parquet", "b.jsonl", "c.jsonl")), streaming=streaming)[0]
    assert tokens(mixture, tokenizer) == [tokens(Dataset.from_list([row]), tokenizer)[0] for row in rows]


def test_rankings_beside_pairs_with_margins_lack_nothing(write, caplog):
    write("a.jsonl", plain("a", margin=2))
    write("b.jsonl", [{"responses": ["b1", "b2", "b3"], "ranks": [1, 2, 3]}])
    rows = list(mix({"path": "a.jsonl"}, {"path": "b.jsonl"})[0])
    assert [row["margin"] for row in rows if row["chosen"]] == [2.0]
    assert rows[-1]["responses"] == ["b1", "b2", "b3"]
    assert "without margins" not in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_a_part_without_margins_gets_zeros_and_a_null_stays_an_error(write, tokenizer, caplog, streaming):
    write("a.jsonl", plain("a", margin=2))
    write("b.jsonl", plain("b"))
    mixture = mix({"path": "a.jsonl"}, {"path": "b.jsonl"}, streaming=streaming)[0]
    assert [row["margin"] for row in mixture] == [2.0, 0.0]
    assert "b.jsonl: without margins, which are taken as 0" in caplog.text
    prepared, _ = prepare_dataset(mixture, tokenizer, max_length=None)
    assert [row["margin"] for row in prepared] == [2.0, 0.0]
    write("c.jsonl", [*plain("c", margin=1.5), *plain("d", margin=None)])
    mixture = mix({"path": "b.jsonl"}, {"path": "c.jsonl"}, streaming=streaming)[0]
    with pytest.raises(DataError, match="field `margin`: is null"):
        list(prepare_dataset(mixture, tokenizer, max_length=None)[0])


def test_token_ids(write):
    write("a.jsonl", [{"chosen_ids": [1, 2], "rejected_ids": [1, 3]}])
    write("b.parquet", [{"chosen_input_ids": [4], "rejected_input_ids": [5], "margin": 1.0}])
    with pytest.warns(FutureWarning, match="chosen_input_ids"):
        mixture = mix({"path": "a.jsonl"}, {"path": "b.parquet"})[0]
    assert mixture["chosen_ids"] == [[1, 2], [4]]
    assert mixture["margin"] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"chosen": talk("Hi", "a"), "rejected": talk("Hi", "b")},
            "b.jsonl data set, field `chosen`: is a list of messages, but in a.jsonl it is plain text",
        ),
        ({"chosen_ids": [1], "rejected_ids": [2]}, "b.jsonl data set: has `chosen_ids`, `rejected_ids`, but a.jsonl"),
        ({**plain("x")[0], "margin": "much"}, "b.jsonl data set, row 0, field `margin`"),
        ({"chosen": "a", "rejected": None}, "b.jsonl data set, row 0, field `rejected`: is null"),
        ({"text": "a"}, "b.jsonl data set: has no column `chosen`, `rejected`"),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_parts_that_do_not_go_together(write, row, message, streaming):
    write("a.jsonl", plain("a"))
    write("b.jsonl", [row])
    with pytest.raises(DataError, match=message):
        mix({"path": "a.jsonl"}, {"path": "b.jsonl"}, streaming=streaming)


def test_margins_that_are_text_are_not_read_as_numbers(write):
    write("a.jsonl", plain("a", margin=1))
    write("b.parquet", plain("b", margin="1.5"))
    with pytest.raises(DataError) as caught:
        mix({"path": "a.jsonl"}, {"path": "b.parquet"})
    assert (caught.value.row, caught.value.field, caught.value.dataset) == (0, "margin", "b.parquet")
    write("c.jsonl", [*plain("c", margin=1), *plain("d", margin="1.5")])
    with pytest.raises(DataError, match=r"c\.jsonl data set, field `margin`: is of type Json.*, not a number"):
        mix({"path": "a.jsonl"}, {"path": "c.jsonl"})


# --- errors in rows -----------------------------------------------------------------------------------------


def test_a_broken_row_is_named_by_its_part(write, tokenizer):
    write("a.jsonl", plain("a", "b"))
    write("b.jsonl", [*plain("c", "d"), {"chosen": None, "rejected": "bad"}])
    mixture = mix({"path": "a.jsonl"}, {"path": "b.jsonl"})[0]
    with pytest.raises(DataError) as caught:
        prepare_dataset(mixture, tokenizer, max_length=None)
    assert caught.value.row == 4
    assert str(located(caught.value, mixture)).startswith("b.jsonl data set, row 2, field `chosen`: is null")
    assert located(caught.value, None) is caught.value


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_of_another_form_is_named_and_text_that_looks_like_json_stays_text(write, tokenizer, streaming):
    write("a.jsonl", plain('{"a": 1} 12', "12"))
    write("b.jsonl", [*plain("b"), {"chosen": talk("Hi", "a"), "rejected": talk("Hi", "b")}])
    mixture = mix({"path": "a.jsonl"}, {"path": "b.jsonl"}, streaming=streaming)[0]
    assert next(iter(mixture))["chosen"] == '{"a": 1} 12 good'
    with pytest.raises(DataError) as caught:
        list(prepare_dataset(mixture, tokenizer, max_length=None)[0])
    assert (caught.value.row, caught.value.field) == (3, "chosen")


@pytest.mark.parametrize(("name", "value"), [("prompt", "p "), ("margin", 1.0)])
def test_a_stream_whose_first_row_lacks_a_column_loses_nothing(write, tokenizer, name, value):
    write("a.jsonl", plain("a"))
    write("b.jsonl", [*plain("b"), *plain("c", **{name: value})])
    with pytest.raises(DataError) as caught:
        list(mix({"path": "a.jsonl"}, {"path": "b.jsonl"}, streaming=True)[0])
    assert (caught.value.row, caught.value.field, caught.value.dataset) == (1, name, "b.jsonl")
    write("c.jsonl", [*plain("b"), *plain("c", tools='[{"name": "f"}]')])
    rows = list(mix({"path": "a.jsonl"}, {"path": "c.jsonl"}, streaming=True)[0])
    assert rows[-1]["tools"] == '[{"name": "f"}]'


@pytest.mark.parametrize("streaming", [False, True])
def test_a_null_prompt_is_broken_also_beside_a_part_without_prompts(write, streaming):
    write("a.jsonl", plain("a"))
    write("b.jsonl", [*plain("b", prompt="p "), *plain("c", prompt=None)])
    with pytest.raises(DataError) as caught:
        list(mix({"path": "a.jsonl"}, {"path": "b.jsonl"}, streaming=streaming)[0])
    assert (caught.value.row, caught.value.field, caught.value.dataset) == (1, "prompt", "b.jsonl")


def test_equal_names_are_told_apart(write):
    write("a.jsonl", plain("a", "b"))
    mixture = mix({"path": "a.jsonl", "split": "train[:1]"}, {"path": "a.jsonl", "split": "train[1:]"})[0]
    assert mixture["part"] == ["a.jsonl (part 1)", "a.jsonl (part 2)"]


# --- held out -----------------------------------------------------------------------------------------------


def test_rows_of_one_prompt_stay_together_across_parts(write):
    prompts = [f"{number}?" for number in range(6)]
    write("a.jsonl", [{"prompt": one, "chosen": "x", "rejected": "y"} for one in prompts])
    write("b.jsonl", [{"prompt": one, "chosen": "u", "rejected": "v"} for one in prompts])
    write("c.jsonl", plain("c"))
    train, held_out = mix(*({"path": f"{name}.jsonl"} for name in "abc"), eval_fraction=0.3, seed=3)
    assert len(train) + len(held_out) == 13
    asked = [{row["chosen"].partition("?")[0] for row in part if "?" in row["chosen"]} for part in (train, held_out)]
    assert asked[0] and asked[1]  # noqa: PT018
    assert not asked[0] & asked[1]


# --- streams ------------------------------------------------------------------------------------------------


def test_streams_take_turns(write):
    write("a.jsonl", plain(*"abcdef"))
    write("b.parquet", plain("x", "y"))
    mixture = mix({"path": "a.jsonl", "rows": 4}, {"path": "b.parquet"}, streaming=True)[0]
    assert isinstance(mixture, IterableDataset)
    assert [row["chosen"][0] for row in mixture] == list("axbycd")
    assert [row["chosen"][0] for row in mixture] == list("axbycd")
    shares = mix({"path": "a.jsonl", "fraction": 2}, {"path": "b.parquet", "fraction": 1}, streaming=True)[0]
    assert [row["chosen"][0] for row in shares] == list("abxcdyef")


def test_a_stream_cannot_be_split(write):
    write("a.jsonl", plain("a"))
    with pytest.raises(ConfigError, match="cannot be split"):
        mix({"path": "a.jsonl"}, streaming=True, eval_fraction=0.5)
