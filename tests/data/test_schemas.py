"""Public data sets are read as they were published, and nothing of a conversation is dropped silently."""

import json
import re

import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.published_rows import CHAT_A, CHAT_B, ROWS, assistant, pair, user
from plaudit.data.load import open_data, read_preferences, split_by_prompt
from plaudit.data.mixture import DatasetPart, load_mixture
from plaudit.data.parse import without_nulls
from plaudit.data.prepare import RowPreparer, prepare_dataset
from plaudit.data.schemas import SCHEMAS, check_unread, choose_schema, read_row
from plaudit.errors import ConfigError, DataError


def test_every_schema_reads_the_row_that_its_authors_publish():
    assert {name.split()[0] for name in ROWS} == set(SCHEMAS)
    for key, (row, columns) in ROWS.items():
        name = key.split()[0]
        assert choose_schema(row, [row]) == name
        assert read_row(row, 0, name) == columns, name
        check_unread(row, [row], name)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("arena", {"winner": "tie (bothbad)"}),
        ("arena_55k", {"winner_model_a": 0, "winner_tie": 1}),
        ("webgpt", {"score_0": 0.0, "score_1": 0.0}),
        ("helpsteer3", {"overall_preference": 0}),
    ],
)
def test_ties_stay_ties(name, changes):
    assert read_row({**ROWS[name][0], **changes}, 0, name)["tie"] is True


def test_rows_in_plaudits_own_columns_are_read_as_they_are():
    rows = [
        {"prompt": "2+2=", "chosen": "4", "rejected": "5", "source": "x"},
        {"prompt": user("2+2?"), "chosen": assistant("4"), "rejected": assistant("5"), "messages": CHAT_A},
        {"chosen": CHAT_A, "rejected": CHAT_B},
        {"prompt": "2+2=", "responses": ["4", "5"], "scores": [1.0, 0.0]},
        {"chosen_ids": [1], "rejected_ids": [2], "question": "ignored beside token ids"},
    ]
    for row in rows:
        assert choose_schema(row, [row]) is None
        check_unread(row, [row], None)


@pytest.mark.parametrize(
    "column",
    [
        {"question": "2+2?"},
        {"user_message": "2+2?"},
        {"context": "Be exact."},
        {"history": [["Hi", "Hello"]]},
        {"images": ["image.png"]},
        {"talk": user("2+2?")},
        {"turns_before": [{"from": "human", "value": "2+2?"}]},
    ],
)
def test_a_part_of_the_conversation_that_nothing_reads_stops(column):
    row = {"chosen": assistant("4"), "rejected": assistant("5"), **column}
    with pytest.raises(DataError) as error:
        check_unread(row, [row], choose_schema(row, [row]))
    assert error.value.field == next(iter(column))
    assert "--schema none" in error.value.fix


def test_a_schema_that_is_named_needs_its_columns():
    with pytest.raises(ConfigError) as error:
        choose_schema(["chosen", "rejected"], [], "arena")
    assert error.value.field == "schema"
    with pytest.raises(ConfigError) as error:
        choose_schema(["chosen", "rejected"], [], "arenas")
    assert "arena" in error.value.fix


def test_a_row_that_does_not_fit_is_named():
    with pytest.raises(DataError) as error:
        read_row({**ROWS["arena"][0], "winner": "model_c"}, 7, "arena")
    assert error.value.row == 7
    assert error.value.fix is not None


def test_responses_that_begin_with_their_prompt_are_read_once():
    transcript = "\n\nHuman: 2+2?\n\nAssistant:"
    prefixed = {"prompt": transcript, "chosen": transcript + " 4", "rejected": transcript + " 5"}
    assert choose_schema(prefixed, [prefixed]) == "binarized"
    assert read_row(prefixed, 0, "binarized") == {"chosen": CHAT_A, "rejected": CHAT_B}
    by_chance = {"prompt": "a", "chosen": "a b", "rejected": "a c"}
    other = {"prompt": "a", "chosen": "b", "rejected": "c"}
    assert choose_schema(by_chance, [by_chance, other]) is None
    assert read_row(other, 0, "binarized") == other


# ---- reading data sets -------------------------------------------------------------------------------------------


def many(name, count=3, **changes):
    """Rows of a schema with different answers."""
    text = json.dumps({**ROWS[name][0], **changes})
    return [json.loads(text.replace('"5', f'"{5 + index}')) for index in range(count)]


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("form", ["table", "stream", "list", "file"])
def test_data_sets_of_every_schema_are_converted(name, form, tmp_path):
    row, columns = ROWS[name]
    rows = [row] * 3
    if form == "file":
        source = str(tmp_path / "rows.jsonl")
        (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        source = {
            "list": list,
            "table": Dataset.from_list,
            "stream": lambda rows: Dataset.from_list(rows).to_iterable_dataset(),
        }[form](rows)
    opened = open_data(source, name="train")
    assert opened.schema == name.split()[0]
    assert [without_nulls(read) for read in opened.rows()] == [without_nulls(columns)] * 3
    assert opened.length == (None if form == "stream" else 3)
    if form in ("table", "stream"):
        read = read_preferences(source, name="train")
        columns_read = {key: [value] * 3 for key, value in columns.items()}
        assert {key: [item[key] for item in read] for key in columns_read} == columns_read


def test_rows_that_no_schema_fits_stay_the_same_object():
    dataset = Dataset.from_list([{"prompt": "2+2=", "chosen": "4", "rejected": "5", "source": "x"}] * 3)
    assert read_preferences(dataset, name="train") is dataset
    assert open_data(dataset).dataset._fingerprint == dataset.with_format(None)._fingerprint


def test_keys_of_messages_that_come_late_are_kept():
    call = [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"n": None}}}]}]
    rows = [
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        }
    ] * 1200
    assert read_preferences(Dataset.from_list(rows), name="train")[1100]["chosen"] == assistant("4")
    rows = [{"messages": user("2+2?"), "chosen": assistant("4")[0], "rejected": assistant("5")[0]}] * 1100
    late = {"messages": json.dumps(user("2+2?")), "chosen": json.dumps(call), "rejected": json.dumps(assistant("5"))}
    texts = [{key: json.dumps(value) for key, value in row.items()} for row in rows] + [late]
    read = read_preferences(Dataset.from_list(texts), name="train")
    assert read[1100]["chosen"] == call
    assert set(read[0]["chosen"][0]) == {"role", "content"}


def test_an_error_names_the_row_and_the_data_set():
    rows = many("arena", 150)
    rows[120]["winner"] = "model_c"
    with pytest.raises(DataError) as error:
        read_preferences(Dataset.from_list(rows), name="train")
    assert (error.value.row, error.value.dataset) == (120, "train")


def test_columns_beside_a_schema_are_read():
    row = {**ROWS["binarized"][0], "margin": 2.0, "tools": '[{"name": "f"}]'}
    assert read_row(row, 0, "binarized") == {"chosen": CHAT_A, "rejected": CHAT_B, "margin": 2.0, "tools": row["tools"]}


def test_turns_in_helpsteer_prompts_become_messages():
    row = {**ROWS["helpsteer2"][0], "prompt": "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\n2+2?"}
    assert read_row(row, 0, "helpsteer2")["prompt"] == user("Hi") + assistant("Hello") + user("2+2?")


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (
            {
                "prompt": json.dumps(user("2+2?")),
                "responses": json.dumps([assistant("4"), assistant("5")]),
                "ranks": "[1, 2]",
            },
            {"prompt": user("2+2?"), "responses": [assistant("4"), assistant("5")], "ranks": [1, 2]},
        ),
        (
            {
                "prompt": user("2+2?"),
                "responses": [json.dumps(assistant("4")), json.dumps(assistant("5"))],
                "scores": [1.0, 0.0],
            },
            {"prompt": user("2+2?"), "responses": [assistant("4"), assistant("5")], "scores": [1.0, 0.0]},
        ),
        (
            {"response": json.dumps(CHAT_A), "label": True},
            {"response": CHAT_A, "label": True},
        ),
    ],
)
def test_conversations_as_json_text_are_conversations_in_every_column(row, columns, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join([json.dumps(row)] * 2), encoding="utf-8")
    Dataset.from_list([row] * 2).to_parquet(tmp_path / "rows.parquet")
    for file in ("rows.jsonl", "rows.parquet"):
        source = open_data(str(tmp_path / file))
        assert source.schema == "json"
        assert [*source.rows()] == [columns] * 2


def test_rows_with_the_same_prompt_stay_together_when_a_split_is_held_out():
    rows = [{**ROWS["helpsteer2"][0], "prompt": str(index // 2), "response": f"{index}"} for index in range(20)]
    train, test = split_by_prompt(Dataset.from_list(rows), 0.3)
    assert len(test) == 6
    assert not {*train["prompt"]} & {*test["prompt"]}


def test_a_mixture_reads_each_part_by_its_own_schema(tmp_path):
    files = {"arena": many("arena"), "hh": many("hh"), "own": [pair(user("2+2?"), "4", "5")] * 3}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    mixture, _ = load_mixture([DatasetPart(str(tmp_path / f"{name}.jsonl")) for name in files])
    assert len(mixture) == 9
    chosen = [(row.get("prompt") or []) + row["chosen"] for row in mixture]
    assert chosen == [CHAT_A] * 9
    stream, _ = load_mixture([DatasetPart(str(tmp_path / f"{name}.jsonl")) for name in ("arena", "hh")], streaming=True)
    assert [row["chosen"] for row in stream] == [CHAT_A] * 6


def test_mixed_rows_that_begin_with_their_prompt_are_counted(tokenizer):
    prompt = "What is the sum of two and two?"
    rows = [
        {"prompt": prompt, "chosen": f"{prompt} 4", "rejected": f"{prompt} 5"},
        {"prompt": prompt, "chosen": " 4", "rejected": " 5"},
    ]
    _, report = prepare_dataset(Dataset.from_list(rows), tokenizer, max_length=None)
    assert report.flagged["begins_with_prompt"].first_rows == [0]
    assert "begin with their prompt" in report.summary()


# ---- nothing is lost ---------------------------------------------------------------------------------------------

PLAIN = [
    {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
    {"prompt": user("2+2?", "Be exact."), "chosen": assistant("4"), "rejected": assistant("5")},
    {"chosen": CHAT_A, "rejected": CHAT_B},
    {"prompt": "2+2?", "responses": ["4", "5", "6"], "scores": [1.0, 0.0, 0.5]},
]
TEXTS = st.text(st.characters(categories=["L", "N"], max_codepoint=0x2FF), min_size=3, max_size=12)
WORDS = {
    "2+2?": "question",
    "4": "better",
    "5": "worse",
    "6": "worst",
    "?": "other",
    "Be exact.": "system",
    "Add.": "instruction",
}


def replaced(value, texts):
    """A row with other texts in place of those of `WORDS`."""
    if isinstance(value, dict):
        return {key: replaced(item, texts) for key, item in value.items()}
    if isinstance(value, list):
        return [replaced(item, texts) for item in value]
    if not isinstance(value, str):
        return value
    return re.sub("|".join(map(re.escape, WORDS)), lambda match: texts[WORDS[match[0]]], value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([row for row, _ in ROWS.values()] + PLAIN),
    st.fixed_dictionaries(dict.fromkeys(WORDS.values(), TEXTS)),
)
def test_every_text_of_an_accepted_row_is_in_what_the_model_reads(tokenizer, row, texts):
    texts = {word: f"{word[0]}{text}" for word, text in texts.items()}
    row = replaced(row, texts)
    name = choose_schema(row, [row])
    check_unread(row, [row], name)
    columns = row if name is None else read_row(row, 0, name)
    preparer = RowPreparer(tokenizer, None, "error")
    (prepared,) = preparer.prepare([columns], [0])
    assert prepared.error is None
    decoded = "".join(tokenizer.decode(ids) for ids in prepared.ids)
    # What has no rating is left out, and models, sources and critiques are no part of the conversation.
    written = json.dumps({key: value for key, value in row.items() if key not in ("critique",)}, ensure_ascii=False)
    missing = [text for word, text in texts.items() if text in written and text not in decoded and word != "other"]
    assert missing == []
