"""Preparing whole data sets: token ids, what is dropped and counted, streams, and the cache."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, load_from_disk
from tokenizers.processors import TemplateProcessing

from builders import CHATML, tiny_tokenizer
from plaudit.data.collate import PaddedCollator, SharedPrefixCollator
from plaudit.data.prepare import prepare_dataset
from plaudit.data.report import DataReport
from plaudit.errors import ConfigError, DataError

EOS = 2


def chat(prompt: str, chosen: str, rejected: str, **columns):
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
        **columns,
    }


def text(chosen: str = "good", rejected: str = "bad", **columns):
    return {"chosen": chosen, "rejected": rejected, **columns}


CHATS = [chat("Sky?", "Blue.", "Green."), chat("2+2?", "4", "5"), chat("Ünï 😀?", "é", "ß")]


def prepare(rows, tokenizer, max_length=None, **settings):
    dataset = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return prepare_dataset(dataset, tokenizer, max_length=max_length, **settings)


def stream_of(rows, typed: bool) -> IterableDataset:
    if typed:
        return Dataset.from_list(rows).to_iterable_dataset()
    return IterableDataset.from_generator(lambda: iter(rows))


# --- token ids


def test_conversations_are_the_chat_template_of_the_whole_conversation(tokenizer):
    prepared, report = prepare(CHATS, tokenizer)
    assert prepared.column_names == ["chosen_ids", "rejected_ids"]
    for row, raw in zip(prepared, CHATS, strict=True):
        for side in ("chosen", "rejected"):
            expected = tokenizer.apply_chat_template(raw["prompt"] + raw[side], return_dict=True)["input_ids"]
            assert row[f"{side}_ids"] == expected
    assert tokenizer.decode(prepared[0]["rejected_ids"]) == (
        "<|im_start|>user\nSky?<|im_end|>\n<|im_start|>assistant\nGreen.<|im_end|>\n"
    )
    assert (report.rows_read, report.rows_kept) == (3, 3)


def test_implicit_and_explicit_prompts_give_the_same_ids(tokenizer):
    implicit = [{side: row["prompt"] + row[side] for side in ("chosen", "rejected")} for row in CHATS]
    assert list(prepare(implicit, tokenizer)[0]) == list(prepare(CHATS, tokenizer)[0])
    joined = [text("2+2=4", "2+2=5")]
    split = [text("4", "5", prompt="2+2=")]
    assert list(prepare(joined, tokenizer)[0]) == list(prepare(split, tokenizer)[0])


def test_tools_and_template_variables_reach_the_template_of_their_own_row():
    tokenizer = tiny_tokenizer("{{ style }}|{{ tools | tojson if tools else '-' }}|{{ messages[-1]['content'] }}")
    f, g = [{"name": "f"}], [{"name": "g"}]
    columns = [
        (f, {"style": "x"}),
        (None, {"style": "y"}),
        (g, None),
        (f, {"style": "x"}),
        (f, {"style": "y"}),
    ]
    rows = [
        chat("?", f"c{i}", f"r{i}", tools=tools, chat_template_kwargs=kwargs)
        for i, (tools, kwargs) in enumerate(columns)
    ]
    prepared, _ = prepare(rows, tokenizer)
    assert [tokenizer.decode(row["chosen_ids"]) for row in prepared] == [
        'x|[{"name": "f"}]|c0',
        "y|-|c1",
        '|[{"name": "g"}]|c2',
        'x|[{"name": "f"}]|c3',
        'y|[{"name": "f"}]|c4',
    ]
    assert [tokenizer.decode(row["rejected_ids"])[-2:] for row in prepared] == ["r0", "r1", "r2", "r3", "r4"]


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="columns of mixed types need a newer `datasets`")
@pytest.mark.parametrize("streaming", [False, True])
def test_nulls_that_the_author_wrote_into_a_tool_reach_the_template(tokenizer, streaming):
    schemas = [{"name": "f", "properties": {"a": {"default": None}}}, {"name": "g", "properties": {"b": "c"}}]
    rows = [chat("?", "a", "b", tools=[schema]) for schema in schemas]
    dataset = Dataset.from_list(rows, on_mixed_types="use_json")
    prepared, _ = prepare(dataset.to_iterable_dataset() if streaming else dataset, tokenizer)
    expected = tokenizer.apply_chat_template(
        rows[0]["prompt"] + rows[0]["chosen"], tools=rows[0]["tools"], return_dict=True
    )["input_ids"]
    assert next(iter(prepared))["chosen_ids"] == expected
    assert '"default": null' in tokenizer.decode(expected)


@pytest.mark.parametrize("ending", ["", "<|eos|>"])
def test_plain_text_ends_with_one_eos(tokenizer, ending):
    rows = [text("good" + ending, "bad" + ending, prompt="So: ")]
    row = prepare(rows, tokenizer)[0][0]
    assert row["chosen_ids"] == tokenizer("So: good<|eos|>")["input_ids"]
    assert row["rejected_ids"] == tokenizer("So: bad<|eos|>")["input_ids"]
    assert row["chosen_ids"].count(EOS) == 1


@pytest.mark.parametrize("ending", ["", "<|eos|>"])
@pytest.mark.parametrize("beginning", ["", "<|bos|>"])
def test_a_tokenizer_that_adds_bos_and_eos_doubles_neither(beginning, ending):
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", 1), ("<|eos|>", EOS)]
    )
    bare = tokenizer("good", add_special_tokens=False)["input_ids"]
    row = prepare([text(f"{beginning}good{ending}", "bad")], tokenizer)[0][0]
    assert row["chosen_ids"] == [1, *bare, EOS]


def test_a_template_that_prints_bos_gets_no_second_one():
    tokenizer = tiny_tokenizer("{{ bos_token }}" + CHATML, bos=True)
    row = prepare(CHATS, tokenizer)[0][0]
    assert row["chosen_ids"].count(tokenizer.bos_token_id) == 1
    text_row = prepare([text()], tokenizer)[0][0]
    assert text_row["chosen_ids"].count(tokenizer.bos_token_id) == 1


def test_padding_and_truncation_of_the_callers_tokenizer_are_neither_used_nor_changed(tokenizer):
    expected = list(prepare(CHATS, tokenizer)[0])
    tokenizer.backend_tokenizer.enable_truncation(max_length=3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    state = (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding)
    assert list(prepare(CHATS, tokenizer)[0]) == expected
    assert (tokenizer.backend_tokenizer.truncation, tokenizer.backend_tokenizer.padding) == state


def test_margin_is_kept_only_where_the_source_has_one(tokenizer):
    rows = [text(margin=1), text(margin=2.5)]
    prepared, _ = prepare(rows, tokenizer)
    assert prepared["margin"][:] == [1.0, 2.5]
    assert prepared.column_names == ["chosen_ids", "rejected_ids", "margin"]


def test_other_columns_are_left_out_and_a_format_is_ignored(tokenizer):
    rows = [text(source="web", flags=3, row=9, lengths=[1], score=0.5)]
    dataset = Dataset.from_list(rows).with_format("numpy")
    prepared, _ = prepare(dataset, tokenizer)
    assert prepared.column_names == ["chosen_ids", "rejected_ids"]
    assert isinstance(prepared[0]["chosen_ids"], list)


def test_repeated_texts_keep_their_rows(tokenizer):
    rows = [text("a", "b"), text("c", "a"), text("b", "a")]
    prepared, _ = prepare(rows, tokenizer)
    decoded = [(tokenizer.decode(r["chosen_ids"][:-1]), tokenizer.decode(r["rejected_ids"][:-1])) for r in prepared]
    assert decoded == [("a", "b"), ("c", "a"), ("b", "a")]


# --- tokenised rows


def test_tokenised_rows_go_through_the_same_checks():
    rows = [
        {"chosen_ids": [5, 6], "rejected_ids": [5, 7], "margin": 0.5},
        {"chosen_ids": [5, 6], "rejected_ids": [5, 6], "margin": 0.5},
        {"chosen_ids": [5] * 9, "rejected_ids": [5, 7], "margin": 1.5},
        {"chosen_ids": [8], "rejected_ids": [9], "margin": 2.0},
    ]
    prepared, report = prepare(rows, None, max_length=4)
    assert list(prepared) == [rows[0], rows[3]]
    assert report.dropped["identical"].first_rows == [1]
    assert report.dropped["overlong"].first_rows == [2]


def test_legacy_token_columns_are_read_with_a_warning():
    rows = [{"chosen_input_ids": [1], "rejected_input_ids": [2], "chosen_attention_mask": [1]}]
    with pytest.warns(FutureWarning, match="will not be supported in v1"):
        prepared, _ = prepare(rows, None)
    assert list(prepared) == [{"chosen_ids": [1], "rejected_ids": [2]}]


def test_a_broken_token_list_is_refused():
    rows = [{"chosen_ids": [1], "rejected_ids": [2]}, {"chosen_ids": [1], "rejected_ids": [-2]}]
    with pytest.raises(DataError) as caught:
        prepare(rows, None)
    assert (caught.value.row, caught.value.field) == (1, "rejected_ids[0]")


# --- what is dropped, cut and counted


def mixed_rows():
    return [
        text("good", "bad"),
        text("same", "same"),
        text("x" * 20, "y"),
        text("fine", ""),
        text("same", "same"),
        text("z" * 20, "z" * 20),
    ]


@pytest.mark.parametrize(
    ("purpose", "kept", "dropped", "flagged"),
    [
        ("train", [0, 3], {"identical": [1, 4], "overlong": [2, 5]}, {"empty_response": [3]}),
        ("eval", [0, 1, 3, 4], {"overlong": [2, 5]}, {"identical": [1, 4], "empty_response": [3]}),
        ("predict", [0, 1, 3, 4], {"overlong": [2, 5]}, {"identical": [1, 4], "empty_response": [3]}),
    ],
)
@pytest.mark.parametrize("source", ["table", "typed stream", "untyped stream"])
def test_rows_are_dropped_by_purpose_and_counted(tokenizer, purpose, kept, dropped, flagged, source):
    rows = mixed_rows()
    dataset = Dataset.from_list(rows) if source == "table" else stream_of(rows, source == "typed stream")
    prepared, report = prepare(dataset, tokenizer, max_length=10, purpose=purpose)
    result = list(prepared)
    assert [tokenizer.decode(row["chosen_ids"][:-1]) for row in result] == [rows[i]["chosen"] for i in kept]
    if purpose == "predict":
        assert [row["row"] for row in result] == kept
    else:
        assert "row" not in result[0]
    assert {kind: count.first_rows for kind, count in report.dropped.items()} == dropped
    assert {kind: count.first_rows for kind, count in report.flagged.items()} == flagged
    assert (report.rows_read, report.rows_kept) == (6, len(kept))
    lengths = [len(row[side]) + 1 for row in rows for side in ("chosen", "rejected")]
    assert (report.lengths.shortest, report.lengths.longest) == (min(lengths), max(lengths))
    assert report.lengths.mean == pytest.approx(sum(lengths) / len(lengths))


def test_a_row_of_exactly_max_length_is_kept(tokenizer):
    prepared, report = prepare([text("abc", "a"), text("abcd", "a")], tokenizer, max_length=4)
    assert len(prepared) == 1
    assert report.dropped["overlong"].first_rows == [1]


def cut(tokenizer, rows, max_length, overlong, **settings):
    prepared, report = prepare(rows, tokenizer, max_length=max_length, overlong=overlong, **settings)
    sides = ("chosen_ids", "rejected_ids")
    return [tuple(tokenizer.decode(row[side]) for side in sides) for row in prepared], report


def test_cutting_on_the_left_cuts_each_response_as_if_it_stood_alone(tokenizer):
    rows = [text("hello world", "hello you", prompt="prompt: "), text("short", "s", prompt="")]
    decoded, report = cut(tokenizer, rows, 12, "truncate_left")
    assert decoded == [("hello world<|eos|>", ": hello you<|eos|>"), ("short<|eos|>", "s<|eos|>")]
    assert report.rows_kept == 2
    assert report.flagged["overlong"].first_rows == [0]
    assert "1 over-long, truncated on the left (> 12 tokens; row 0)" in report.summary()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("collator", [PaddedCollator(pad_token_id=0, text=True), SharedPrefixCollator(text=True)])
def test_cutting_on_the_left_leaves_the_prompt_a_prompt(tokenizer, collator, streaming):
    rows = [text("hello world", "hello you", prompt="prompt: "), text("b", "a", prompt="")]
    dataset = stream_of(rows, True) if streaming else Dataset.from_list(rows)
    whole = collator(list(prepare(dataset, tokenizer)[0]))
    cut_rows = list(prepare(dataset, tokenizer, max_length=12, overlong="truncate_left")[0])
    batch = collator(cut_rows)
    assert batch["response_tokens"].tolist() == whole["response_tokens"].tolist()
    assert batch["text_targets"].tolist() == whole["text_targets"].tolist()


def test_a_short_response_beside_a_long_one_is_left_alone(tokenizer):
    decoded, _ = cut(tokenizer, [text("x" * 30, "ab")], 10, "truncate_left")
    assert decoded == [("x" * 9 + "<|eos|>", "ab<|eos|>")]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("row", "max_length", "overlong", "lost"),
    [
        (text("abc", "ab", prompt="0123456789"), 10, "truncate_right", True),
        (text("abc", "ab", prompt="0123456789"), 11, "truncate_right", False),
        (text("abc", "b", prompt="0123456789"), 1, "truncate_left", True),  # the EOS token
        (text("abc", "b", prompt="0123456789"), 2, "truncate_left", False),
        (chat("Sky?", "Blue.", "Green."), 2, "truncate_left", True),  # "<|im_end|>\n"
        (chat("Sky?", "Blue.", "Green."), 3, "truncate_left", False),
        (chat("Sky?", "Blue.", "Green."), 23, "truncate_right", True),
        (chat("Sky?", "Blue.", "Green."), 24, "truncate_right", False),
        ({"chosen_ids": [5, 6, 7, 8], "rejected_ids": [5, 6, 9]}, 2, "truncate_right", True),
        ({"chosen_ids": [5, 6, 7, 8], "rejected_ids": [5, 6, 9]}, 3, "truncate_right", False),
    ],
)
def test_a_row_that_would_lose_a_response_is_dropped_and_counted(tokenizer, row, max_length, overlong, lost, streaming):
    rows = [row, row]
    dataset = stream_of(rows, True) if streaming else Dataset.from_list(rows)
    if lost and not streaming:
        with pytest.raises(DataError) as caught:
            prepare(dataset, tokenizer, max_length=max_length, overlong=overlong)
        assert "2 with a response of which truncation would leave nothing" in caught.value.message
        assert "max_length" in caught.value.fix
        return
    prepared, report = prepare(dataset, tokenizer, max_length=max_length, overlong=overlong)
    assert len(list(prepared)) == (0 if lost else 2)
    assert ("cut_away" in report.dropped) == lost
    assert (report.rows_read, report.rows_kept) == (2, 0 if lost else 2)


def test_cutting_on_the_right_takes_each_response_to_max_length(tokenizer):
    decoded, report = cut(tokenizer, [text("abcdefgh", "xyz")], 5, "truncate_right")
    assert decoded == [("abcde", "xyz<|eos|>")]
    assert report.flagged["overlong"].count == 1


@pytest.mark.parametrize("streaming", [False, True])
def test_over_long_rows_can_be_an_error(tokenizer, streaming):
    rows = [text(), text("a", "b" * 30), text("c" * 40, "d")]
    dataset = stream_of(rows, True) if streaming else Dataset.from_list(rows)
    with pytest.raises(DataError) as caught:
        list(prepare(dataset, tokenizer, max_length=10, overlong="error")[0])
    assert (caught.value.row, caught.value.field) == (1, "rejected")
    assert "31 tokens, more than `max_length` 10" in caught.value.message
    assert len(prepare(rows, tokenizer, max_length=41, overlong="error")[0]) == 3


def test_responses_that_only_render_alike_are_flagged_and_kept(tokenizer):
    call = {"role": "assistant", "content": "4", "tool_calls": [{"function": {"name": "f"}}]}
    rows = [chat("2+2?", "4", "5"), dict(chat("2+2?", "4", "4"), rejected=[call])]
    prepared, report = prepare(rows, tokenizer)
    assert len(prepared) == 2
    assert report.flagged["same_rendering"].first_rows == [1]
    assert not report.dropped


def test_a_last_message_of_another_role_is_flagged_and_kept(tokenizer):
    row = chat("Sky?", "Blue.", "Green.")
    row["rejected"] = [*row["rejected"], {"role": "user", "content": "No!"}]
    prepared, report = prepare([CHATS[0], row], tokenizer)
    assert len(prepared) == 2
    assert report.flagged["last_message_not_assistant"].first_rows == [1]


def test_the_summary_says_everything_in_one_line():
    report = DataReport("train", 1024, "drop", "train")
    for row in range(2000):
        report.add(row, {3: 1, 18: 1, 40: 1, 7: 2, 9: 4}.get(row, 0) or (1 if row > 1990 else 0))
    assert report.summary() == (
        "train data: 2,000 rows read, 1,987 kept; "
        "dropped 12 over-long (> 1024 tokens; rows 3, 18, 40, 1991, 1992, ...), "
        "1 with identical responses (row 7); "
        "kept but suspicious: 1 with an empty response (row 9)"
    )


def test_the_log_warns_only_if_there_is_something_to_say(tokenizer, caplog):
    caplog.set_level(logging.INFO, logger="plaudit")
    prepare([text()], tokenizer)
    prepare([text(), text("a", "a")], tokenizer, dataset_name="eval")
    levels = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert levels == [
        ("INFO", "train data: 1 row read, 1 kept"),
        ("WARNING", "eval data: 2 rows read, 1 kept; dropped 1 with identical responses (row 1)"),
    ]


# --- refused


def test_an_empty_data_set_is_refused(tokenizer):
    for empty in (Dataset.from_list([]), Dataset.from_dict({"chosen": [], "rejected": []})):
        with pytest.raises(DataError, match="eval data set: has no rows"):
            prepare(empty, tokenizer, dataset_name="eval")
    with pytest.raises(DataError, match="has no rows"):
        prepare(IterableDataset.from_generator(lambda: iter([])), tokenizer)


def test_a_data_set_of_which_nothing_is_left_is_refused_with_counts(tokenizer):
    rows = [text("x" * 30, "y" * 20), text("a", "a"), text("b", "b")]
    with pytest.raises(DataError) as caught:
        prepare(rows, tokenizer, max_length=15)
    message = str(caught.value)
    assert (
        "all 3 rows were dropped: 1 over-long (> 15 tokens; row 0), 2 with identical responses (rows 1, 2)" in message
    )
    assert "now 15; the responses have 2 to 31 tokens" in message


def test_missing_columns_are_refused(tokenizer):
    rows = [{"prompt": "a", "response_a": "b", "response_b": "c"}]
    for dataset in (Dataset.from_list(rows), stream_of(rows, True), stream_of(rows, False)):
        with pytest.raises(DataError, match="no column `chosen`, `rejected`"):
            prepare(dataset, tokenizer)


@pytest.mark.parametrize("typed", [True, False])
def test_conversations_need_a_chat_template(typed):
    tokenizer = tiny_tokenizer(chat_template=False)
    for dataset in (Dataset.from_list(CHATS), stream_of(CHATS, typed)):
        with pytest.raises(ConfigError, match="no chat template"):
            prepare(dataset, tokenizer)
    assert len(prepare([text()], tokenizer)[0]) == 1


def test_plain_text_needs_an_eos_token():
    tokenizer = tiny_tokenizer(eos=False)
    with pytest.raises(ConfigError, match="eos_token"):
        prepare([text()], tokenizer)
    assert len(prepare(CHATS, tokenizer)[0]) == 3


def test_other_things_than_data_sets_are_refused(tokenizer):
    with pytest.raises(ConfigError, match="DatasetDict"):
        prepare(DatasetDict(train=Dataset.from_list([text()])), tokenizer)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        prepare([text()], None)


@pytest.mark.parametrize("row", [0, 5, 1203])
def test_every_row_is_checked(tokenizer, row):
    rows = [text(f"good {i}", "bad") for i in range(1300)]
    rows[row]["rejected"] = None
    with pytest.raises(DataError) as caught:
        prepare(rows, tokenizer)
    assert (caught.value.row, caught.value.field, caught.value.dataset) == (row, "rejected", "train")


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="columns of mixed types need a newer `datasets`")
def test_rows_of_different_forms_are_refused(tokenizer):
    rows = [text() for _ in range(5)] + [CHATS[0]]
    dataset = Dataset.from_list(
        [{side: row[side] for side in ("chosen", "rejected")} for row in rows], on_mixed_types="use_json"
    )
    with pytest.raises(DataError) as caught:
        prepare(dataset, tokenizer)
    assert (caught.value.row, caught.value.field) == (5, "chosen")


def test_a_row_that_the_template_refuses_is_named():
    strict = (
        "{% for m in messages %}{% if m.role == 'bot' %}{{ raise_exception('no bots') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    rows = [*CHATS, dict(chat("?", "a", "b"), rejected=[{"role": "bot", "content": "b"}])]
    with pytest.raises(DataError) as caught:
        prepare(rows, tiny_tokenizer(strict))
    assert (caught.value.row, caught.value.field) == (3, "rejected")
    assert "no bots" in caught.value.message


def test_a_template_with_an_error_is_a_matter_of_settings():
    with pytest.raises(ConfigError, match="chat template cannot be read"):
        prepare(CHATS, tiny_tokenizer("{% for %}"))


def test_a_row_without_tokens_is_refused():
    silent = tiny_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    rows = [CHATS[0], chat("", "a", "")]
    with pytest.raises(DataError) as caught:
        prepare(rows, silent)
    assert (caught.value.row, caught.value.field) == (1, "rejected")


# --- streams


@pytest.mark.parametrize("typed", [True, False])
def test_a_stream_gives_the_same_rows_as_a_table(tokenizer, typed):
    rows = [chat(f"{i}?", "yes" * (i % 7), "no") for i in range(150)]
    expected = list(prepare(rows, tokenizer, max_length=80)[0])
    prepared, report = prepare(stream_of(rows, typed), tokenizer, max_length=80)
    assert report.rows_read == 0
    assert list(prepared) == expected
    assert prepared.column_names == ["chosen_ids", "rejected_ids"]
    assert (report.rows_read, report.rows_kept) == (150, len(expected))
    assert len(list(prepared)) == len(expected)
    assert report.rows_read == 150  # the second pass is not counted again


@pytest.mark.parametrize("typed", [True, False])
def test_a_stream_raises_when_the_broken_row_is_read(tokenizer, typed):
    rows = [text(f"good {i}", "bad", margin=1.0) for i in range(100)]
    rows[70]["margin"] = None
    prepared, _ = prepare(stream_of(rows, typed), tokenizer)
    iterator = iter(prepared)
    assert len([next(iterator) for _ in range(70)]) == 70
    with pytest.raises(DataError) as caught:
        next(iterator)
    assert (caught.value.row, caught.value.field) == (70, "margin")


def test_a_stream_refuses_a_row_of_another_form(tokenizer):
    rows = [text(), text(), {"chosen": CHATS[0]["chosen"], "rejected": CHATS[0]["rejected"]}]
    prepared, _ = prepare(stream_of(rows, typed=False), tokenizer)
    with pytest.raises(DataError) as caught:
        list(prepared)
    assert (caught.value.row, caught.value.field) == (2, "chosen")


@pytest.mark.parametrize("column", ["margin", "prompt"])
@pytest.mark.parametrize("first_has_one", [True, False])
@pytest.mark.parametrize("switch", [3, 512])
def test_a_stream_holds_all_rows_to_the_columns_of_the_first(tokenizer, column, first_has_one, switch):
    value = {"margin": 1.0, "prompt": "So: "}[column]
    rows = [text(**({column: value} if (i < switch) == first_has_one else {})) for i in range(switch + 100)]
    prepared, _ = prepare(stream_of(rows, typed=False), tokenizer)
    with pytest.raises(DataError) as caught:
        list(prepared)
    assert (caught.value.row, caught.value.field) == (switch, column)


def test_a_stream_warns_of_the_first_row_of_each_kind(tokenizer, caplog):
    rows = [text("a", "a"), text(), text("b", "b"), text("c", "")]
    prepared, report = prepare(stream_of(rows, typed=True), tokenizer)
    assert not caplog.records
    list(prepared)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "train data: dropped: 1 with identical responses (row 0)" in messages[0]
    assert "train data: kept but suspicious: 1 with an empty response (row 3)" in messages[1]
    assert report.dropped["identical"].count == 2
    assert "4 rows read so far, 2 kept" in report.summary()


def test_a_stream_can_be_resumed(tokenizer):
    rows = [text(f"good {i}", "bad" if i % 3 else f"good {i}") for i in range(100)]
    full = list(prepare(stream_of(rows, True), tokenizer)[0])
    prepared, _ = prepare(stream_of(rows, True), tokenizer)
    iterator = iter(prepared)
    for _ in range(30):
        next(iterator)
    state = prepared.state_dict()
    again, _ = prepare(stream_of(rows, True), tokenizer)
    again.load_state_dict(state)
    assert list(again) == full[30:]


# --- the cache, and where it is not


@pytest.fixture
def stored(tmp_path) -> Dataset:
    Dataset.from_list(CHATS * 20).save_to_disk(tmp_path / "data")
    return load_from_disk(tmp_path / "data")


def cache_files(stored: Dataset) -> set[str]:
    return {path.name for path in Path(stored.cache_files[0]["filename"]).parent.glob("cache-*")}


def test_the_cache_is_hit_after_the_tokenizer_was_used(stored, tokenizer):
    first, report = prepare(stored, tokenizer)
    files = cache_files(stored)
    assert len(files) == 1
    tokenizer(["used", "now with padding"], padding=True, truncation=True, max_length=5)
    tokenizer.apply_chat_template(CHATS[0]["prompt"], add_generation_prompt=True)
    second, again = prepare(stored, tokenizer, dataset_name="other", purpose="eval")
    third, _ = prepare(load_from_disk(Path(stored.cache_files[0]["filename"]).parent), tiny_tokenizer())
    assert cache_files(stored) == files
    assert list(first) == list(second) == list(third)
    assert (report.rows_read, report.lengths) == (again.rows_read, again.lengths)


def test_the_cache_is_missed_when_something_that_matters_changes(stored, tokenizer):
    seen: list[list] = []
    other_eos = tiny_tokenizer()
    other_eos.eos_token = "<|im_end|>"
    for count, (changed, settings) in enumerate(
        [
            (tokenizer, {}),
            (tiny_tokenizer("!" + CHATML), {}),
            (tokenizer, {"max_length": 30}),
            (tokenizer, {"max_length": 30, "overlong": "truncate_left"}),
            (tokenizer, {"max_length": 30, "overlong": "truncate_right"}),
            (other_eos, {}),
        ],
        start=1,
    ):
        seen.append(list(prepare(stored, changed, **settings)[0]))
        assert len(cache_files(stored)) == count
    assert seen[0] != seen[1]
    assert len({str(rows) for rows in seen[2:5]}) == 3


def test_a_broken_row_leaves_nothing_behind(tmp_path, tokenizer):
    rows = [text() for _ in range(1500)] + [text(rejected=None)]
    Dataset.from_list(rows).save_to_disk(tmp_path / "data")
    before = sorted(path.name for path in (tmp_path / "data").iterdir())
    with pytest.raises(DataError) as caught:
        prepare(load_from_disk(tmp_path / "data"), tokenizer)
    assert caught.value.row == 1500
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == before


def test_a_cache_that_cannot_be_written_is_no_obstacle(stored, tokenizer, monkeypatch, caplog):
    expected = list(prepare(Dataset.from_list(CHATS * 20), tokenizer)[0])

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("datasets.arrow_dataset.tempfile.NamedTemporaryFile", refuse)
    prepared, _ = prepare(stored, tokenizer)
    assert list(prepared) == expected
    assert "kept in memory" in caplog.text


@pytest.mark.parametrize(
    ("asked", "rows", "used"), [(4, 39, 3), (2, 39, 2), (2, 19, None), (1, 39, None), (None, 39, None)]
)
def test_no_process_is_started_for_a_few_rows(asked, rows, used, tokenizer, monkeypatch):
    monkeypatch.setattr("plaudit.data.prepare.ROWS_PER_PROCESS", 10)
    counts = []
    mapped = Dataset.map

    def note(dataset, *args, num_proc=None, **kwargs):
        counts.append(num_proc)
        return mapped(dataset, *args, **kwargs)

    monkeypatch.setattr(Dataset, "map", note)
    prepare([text(f"good {i}") for i in range(rows)], tokenizer, num_proc=asked)
    assert counts == [used]


def test_worker_processes_give_the_same_rows_and_the_same_errors(tokenizer, monkeypatch):
    monkeypatch.setattr("plaudit.data.prepare.ROWS_PER_PROCESS", 10)
    rows = [text(f"good {i}", "bad" if i % 5 else f"good {i}") for i in range(40)]
    expected, report = prepare(rows, tokenizer)
    prepared, parallel = prepare(rows, tokenizer, num_proc=2)
    assert list(prepared) == list(expected)
    assert parallel == report
    rows[33]["rejected"] = None
    with pytest.raises(DataError) as caught:
        prepare(rows, tokenizer, num_proc=2)
    assert (caught.value.row, caught.value.field) == (33, "rejected")
    assert caught.value.row == 33
