"""Reading raw rows: every form that is accepted, every broken row and what its error says."""

from __future__ import annotations

import json
import math

import datasets
import pytest
from datasets import Dataset

from plaudit.data.parse import read_example, without_nulls
from plaudit.data.report import Flag
from plaudit.errors import DataError
from plaudit.schema import Label, check_columns, is_tokenized, legacy_columns

USER = {"role": "user", "content": "Sky?"}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}]}
CHAT = {"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}


def read(row, **settings):
    return read_example(row, row_number=7, dataset_name="train", **settings)


def flags(row) -> Flag:
    return Flag(read_example(row, row_number=0).flags)


def error_of(row, **settings) -> DataError:
    with pytest.raises(DataError) as caught:
        read(row, **settings)
    assert (caught.value.row, caught.value.dataset) == (7, "train")
    assert caught.value.fix
    return caught.value


# --- accepted forms


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "Sky? Blue.", "rejected": "Sky? Green."},
        {"prompt": "Sky? ", "chosen": "Blue.", "rejected": "Green."},
    ],
    ids=["implicit", "explicit"],
)
def test_text_rows_give_whole_texts(row):
    example = read(row)
    assert example.responses == ("Sky? Blue.", "Sky? Green.")
    assert example.row_kind == "pairs"
    assert example.label == Label(ratings=(1.0, 0.0))
    assert not example.conversational
    assert example.tools is None
    assert example.chat_template_kwargs == {}


@pytest.mark.parametrize(
    "row", [{"chosen": [USER, BLUE], "rejected": [USER, GREEN]}, CHAT], ids=["implicit", "explicit"]
)
def test_chat_rows_give_whole_conversations(row):
    example = read(row)
    assert example.conversational
    assert example.responses == ([USER, BLUE], [USER, GREEN])


def test_reading_leaves_the_row_alone():
    row = {
        "prompt": [dict(USER, name=None)],
        "chosen": [dict(BLUE)],
        "rejected": [dict(CALL)],
        "tools": [{"a": None}],
    }
    before = json.dumps(row)
    read(row)
    assert json.dumps(row) == before


@pytest.mark.parametrize(
    "tools",
    [[{"name": "f", "x": {"y": None, "z": 1}}], '[{"name": "f", "x": {"z": 1}}]'],
    ids=["list", "json"],
)
def test_tools_come_as_a_list_or_json(tools):
    assert read(dict(CHAT, tools=tools)).tools == [{"name": "f", "x": {"z": 1}}]


@pytest.mark.parametrize("tools", [None, [], "", "  ", "null", "[]"])
def test_no_tools(tools):
    assert read(dict(CHAT, tools=tools)).tools is None


@pytest.mark.parametrize("kwargs", [{"thinking": False, "style": None}, '{"thinking": false}'])
def test_template_kwargs_come_as_a_mapping_or_json(kwargs):
    assert read(dict(CHAT, chat_template_kwargs=kwargs)).chat_template_kwargs == {"thinking": False}


@pytest.mark.parametrize("kwargs", [None, {}, "", "{}", "null"])
def test_no_template_kwargs(kwargs):
    assert read(dict(CHAT, chat_template_kwargs=kwargs)).chat_template_kwargs == {}


@pytest.mark.parametrize(("margin", "value"), [(2, 2.0), (0.5, 0.5), (-1.5, -1.5)])
def test_margin(margin, value):
    assert read(dict(CHAT, margin=margin)).label.margin == value


def test_keys_that_arrow_filled_with_null_disappear_at_any_depth():
    filled = {
        "role": "assistant",
        "content": None,
        "name": None,
        "tool_calls": [{"id": None, "function": {"name": "f", "arguments": {"city": "Bonn", "day": None}}}],
    }
    row = {"chosen": [dict(USER, tool_calls=None), filled], "rejected": [USER, BLUE]}
    call = {"function": {"name": "f", "arguments": {"city": "Bonn"}}}
    assert read(row).responses[0] == [USER, {"role": "assistant", "content": "", "tool_calls": [call]}]


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="columns of mixed types need a newer `datasets`")
def test_nulls_inside_json_values_are_the_authors_own():
    schema = [
        {"name": "f", "properties": {"a": {"default": None}}},
        {"name": "g", "properties": {"a": "text"}},
    ]
    row = dict(CHAT, tools=json.dumps(schema))
    assert read(row).tools == schema
    mixed = Dataset.from_list([dict(CHAT, tools=[tool]) for tool in schema], on_mixed_types="use_json")
    assert read(mixed[0], features=mixed.features).tools == [schema[0]]


def test_nulls_in_a_list_stay():
    assert without_nulls({"enum": [1, None], "default": None}) == {"enum": [1, None]}


def test_a_message_with_tool_calls_may_lack_content():
    for content in (None, ""):
        example = read(dict(CHAT, chosen=[dict(CALL, content=content)]))
        assert example.responses[0][-1]["content"] == ""
    assert read(dict(CHAT, chosen=[CALL])).responses[0][-1]["content"] == ""


def test_text_parts_become_text():
    parts = [{"type": "text", "text": "Bl"}, {"type": "text", "text": "ue."}]
    assert read(dict(CHAT, chosen=[{"role": "assistant", "content": parts}])).responses[0][-1]["content"] == "Blue."


# --- broken rows


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"chosen": None}, "chosen", "null"),
        ({"rejected": 3}, "rejected", "the number 3"),
        ({"rejected": math.nan}, "rejected", "nan"),
        ({"chosen": []}, "chosen", "without messages"),
        ({"prompt": None}, "prompt", "null"),
        ({"prompt": []}, "prompt", "without messages"),
        ({"chosen": {"role": "assistant", "content": "x"}}, "chosen", "mapping"),
        ({"chosen": ["Blue."]}, "chosen[0]", "text, not a message"),
        ({"chosen": [{"content": "Blue."}]}, "chosen[0].role", "missing"),
        ({"chosen": [{"role": "", "content": "Blue."}]}, "chosen[0].role", "role"),
        ({"chosen": [USER, {"role": "assistant"}]}, "chosen[1].content", "missing"),
        ({"chosen": [USER, {"role": "assistant", "content": None}]}, "chosen[1].content", "null"),
        ({"prompt": [{"role": "user", "content": 5}]}, "prompt[0].content", "the number 5"),
        ({"rejected": [dict(CALL, content=None, tool_calls=[])]}, "rejected[0].content", "null"),
        ({"rejected": [dict(CALL, content={"a": 1})]}, "rejected[0].content", "mapping"),
        ({"chosen": [dict(BLUE, content=[{"type": "image"}])]}, "chosen[0].content[0].type", "image"),
        (
            {"chosen": [dict(BLUE, content=[{"type": "text", "text": None}])]},
            "chosen[0].content[0].text",
            "null",
        ),
        ({"chosen": [dict(BLUE, content=["Blue."])]}, "chosen[0].content[0]", "text, not a part"),
        ({"margin": None}, "margin", "null"),
        ({"margin": math.nan}, "margin", "nan"),
        ({"margin": math.inf}, "margin", "inf"),
        ({"margin": "2"}, "margin", "text, not a finite number"),
        ({"margin": True}, "margin", "truth value"),
        ({"tools": "[{]"}, "tools", "not valid JSON"),
        ({"tools": '{"name": "f"}'}, "tools", "mapping, not a list"),
        ({"tools": ["f"]}, "tools[0]", "text"),
        ({"chat_template_kwargs": "{]"}, "chat_template_kwargs", "not valid JSON"),
        ({"chat_template_kwargs": "[1]"}, "chat_template_kwargs", "list, not a mapping"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize", "cannot be set"),
    ],
)
def test_broken_values_name_their_place(changes, field, words):
    error = error_of(dict(CHAT, **changes))
    assert error.field == field
    assert words in error.message


def test_sharegpt_messages_are_recognised():
    assert "Rename `from` to `role`" in error_of(dict(CHAT, chosen=[{"from": "gpt", "value": "x"}])).fix


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"chosen": "Blue.", "rejected": [USER, GREEN]}, "rejected"),
        ({"chosen": [USER, BLUE], "rejected": "Green."}, "rejected"),
        ({"prompt": "Sky?", "chosen": [BLUE], "rejected": [GREEN]}, "prompt"),
        ({"prompt": [USER], "chosen": "Blue.", "rejected": "Green."}, "prompt"),
    ],
)
def test_a_row_of_mixed_forms_is_refused(row, field):
    error = error_of(row)
    assert error.field == field
    assert "plain text" in error.message
    assert "list of messages" in error.message


def test_a_row_of_another_form_than_the_first_is_refused():
    text = {"chosen": "a", "rejected": "b"}
    assert read(text, conversational=False)
    assert read(CHAT, conversational=True)
    assert "first row" in error_of(text, conversational=True).message
    assert "first row" in error_of(CHAT, conversational=False).message


# --- suspicious rows


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (CHAT, Flag(0)),
        ({"chosen": "a", "rejected": "b"}, Flag(0)),
        ({"chosen": "a", "rejected": "a"}, Flag.IDENTICAL),
        ({"chosen": [USER, BLUE], "rejected": [USER, dict(BLUE)]}, Flag.IDENTICAL),
        # Same text, different tool calls: not the same message.
        ({"chosen": [USER, dict(CALL, content="Blue.")], "rejected": [USER, BLUE]}, Flag(0)),
        ({"prompt": "Sky? ", "chosen": "Blue.", "rejected": " \n"}, Flag.EMPTY_RESPONSE),
        ({"chosen": "", "rejected": "b"}, Flag.EMPTY_RESPONSE),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, Flag(0)),
        (dict(CHAT, rejected=[dict(GREEN, content=" ")]), Flag.EMPTY_RESPONSE),
        (dict(CHAT, rejected=[dict(GREEN, content=[{"type": "text", "text": ""}])]), Flag.EMPTY_RESPONSE),
        ({"chosen": [USER, BLUE], "rejected": [USER, dict(GREEN, content="")]}, Flag.EMPTY_RESPONSE),
        (dict(CHAT, rejected=[CALL]), Flag(0)),
        (dict(CHAT, chosen=[BLUE, USER]), Flag.LAST_MESSAGE_NOT_ASSISTANT),
        ({"prompt": "Sky? ", "chosen": "", "rejected": ""}, Flag.EMPTY_RESPONSE | Flag.IDENTICAL),
    ],
)
def test_suspicious_rows_are_read_and_flagged(row, expected):
    assert flags(row) == expected


# --- tokenised rows


def test_tokenised_rows():
    example = read_example({"chosen_ids": [1, 2], "rejected_ids": (1, 3, 4), "margin": 2}, row_number=0)
    assert example.response_ids == ([1, 2], [1, 3, 4])
    assert example.label.margin == 2.0
    assert read_example({"chosen_ids": [1], "rejected_ids": [0]}, row_number=0).label.margin is None


@pytest.mark.parametrize(
    ("ids", "field"),
    [
        (None, "rejected_ids"),
        ([], "rejected_ids"),
        ("12", "rejected_ids"),
        ([1, -2], "rejected_ids[1]"),
        ([1, 2.0], "rejected_ids[1]"),
        ([True], "rejected_ids[0]"),
        ([1, 2, None], "rejected_ids[2]"),
    ],
)
def test_broken_token_ids_are_refused(ids, field):
    with pytest.raises(DataError) as caught:
        read_example({"chosen_ids": [1], "rejected_ids": ids}, row_number=4, dataset_name="eval")
    assert (caught.value.row, caught.value.field, caught.value.dataset) == (4, field, "eval")


# --- columns


@pytest.mark.parametrize(
    ("columns", "tokenized"),
    [
        (["chosen", "rejected", "margin"], False),
        (["chosen_ids", "rejected_ids"], True),
        (["chosen", "rejected", "chosen_ids", "rejected_ids"], True),
        (["chosen", "rejected", "chosen_ids"], False),
    ],
)
def test_complete_columns_are_accepted(columns, tokenized):
    check_columns(columns, "train")
    assert is_tokenized(columns) == tokenized


@pytest.mark.parametrize(
    ("columns", "missing", "hint"),
    [
        (["prompt", "chosen"], "`rejected`", "Preference data has `chosen` and `rejected`"),
        (
            ["Chosen", "Rejected"],
            "`chosen`, `rejected`",
            "Rename `Chosen` to `chosen` and `Rejected` to `rejected`",
        ),
        (["question", "response_j", "response_k"], "`chosen`, `rejected`", "`response_k` to `rejected`"),
        (["prompt", "response_a", "response_b", "winner_model_a"], "`chosen`", "leave ties out"),
        (["prompt", "completion", "label"], "`chosen`", "rename `completion` to `response`"),
        (["prompt", "responses"], "`chosen`", "a column `scores` (higher is better) or `ranks`"),
        (["prompt", "response"], "`chosen`", "a column `scores` (a rating) or `label`"),
        (["chosen_ids"], "`rejected_ids`", "Preference data has"),
        ([], "`chosen`", "Preference data has"),
    ],
)
def test_missing_columns_are_named_with_advice(columns, missing, hint):
    with pytest.raises(DataError) as caught:
        check_columns(columns, "eval")
    assert f"no column {missing}" in caught.value.message
    assert all(f"`{name}`" in caught.value.message for name in columns)
    assert hint in caught.value.fix
    assert caught.value.dataset == "eval"


def test_legacy_columns_are_renamed_with_a_warning():
    with pytest.warns(FutureWarning, match="will not be supported in v1"):
        renames = legacy_columns(["chosen_input_ids", "rejected_input_ids", "margin"])
    assert renames == {"chosen_input_ids": "chosen_ids", "rejected_input_ids": "rejected_ids"}


@pytest.mark.filterwarnings("error")
def test_new_columns_need_no_warning():
    assert legacy_columns(["chosen_ids", "rejected_ids", "chosen_input_ids"]) == {}


def test_rows_read_back_from_a_data_set_equal_the_rows_that_went_in():
    rows = [dict(CHAT, tools=[{"name": "f"}], margin=1.0), dict(CHAT, chosen=[CALL], tools=None, margin=2.0)]
    rows[1]["chosen"] = [dict(CALL, tool_calls=[{"type": "function", "function": {"name": "f"}}])]
    dataset = Dataset.from_list(rows)
    for row, raw in zip(dataset, rows, strict=True):
        example = read_example(row, row_number=0, features=dataset.features)
        assert example.responses == read_example(raw, row_number=0).responses
        assert example.tools == raw["tools"]
