"""Data files: values come back as they were written, and what is wrong is named with file and line."""

from __future__ import annotations

import gzip
import json

import datasets.config
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, IterableDataset

from plaudit.data.readers import kind_of_file, load_files
from plaudit.errors import DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def call(**arguments):
    return message(
        "assistant",
        None,
        tool_calls=[{"type": "function", "function": {"name": "f", "arguments": arguments}}],
    )


ROWS = [
    {"prompt": "1+1=", "chosen": "2", "rejected": "3", "margin": 1, "tag": {"a": 1}},
    {"prompt": "2+2=", "chosen": "4", "rejected": "5", "margin": 0.5, "tag": None},
]


def write(path, rows, *, lines=True):
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1)
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


# --- forms -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.jsonl", True),
        ("a.json", True),
        ("a.json", False),
        ("a.jsonl.gz", True),
        ("a.json.gz", False),
        ("a.NDJSON", True),
    ],
)
@pytest.mark.parametrize("streaming", [False, True])
def test_json(tmp_path, name, lines, streaming):
    dataset = load_files([write(tmp_path / name, ROWS, lines=lines)], streaming=streaming)
    assert isinstance(dataset, IterableDataset if streaming else Dataset)
    assert list(dataset) == ROWS


def test_several_files_are_one_data_set_in_order(tmp_path):
    paths = [write(tmp_path / "b.jsonl", ROWS[:1]), write(tmp_path / "a.jsonl.gz", ROWS[1:])]
    assert list(load_files(paths)) == ROWS
    assert list(load_files(paths, streaming=True)) == ROWS


def test_blank_lines_and_byte_order_marks_are_no_rows(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\n\n  \n" + json.dumps(ROWS[1]).encode() + b"\n"
    )
    assert list(load_files([path])) == ROWS


@pytest.mark.parametrize("streaming", [False, True])
def test_parquet(tmp_path, streaming):
    Dataset.from_list([{"chosen": "a", "rejected": "b"}]).to_parquet(tmp_path / "a.parquet")
    assert list(load_files([tmp_path / "a.parquet"], streaming=streaming)) == [{"chosen": "a", "rejected": "b"}]


def test_the_same_file_has_the_same_fingerprint_until_it_changes(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS)
    first = load_files([path])._fingerprint
    assert load_files([path])._fingerprint == first
    write(path, [*ROWS, ROWS[0]])
    changed = load_files([path])
    assert changed._fingerprint != first
    assert len(changed) == 3


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, caplog):
    def fail(*arguments, **settings):
        raise PermissionError("read-only")

    monkeypatch.setattr(Dataset, "from_generator", fail)
    assert list(load_files([write(tmp_path / "a.jsonl", ROWS)])) == ROWS
    assert "kept in memory" in caplog.text


# --- nothing is damaged ----------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_arguments_that_differ_from_row_to_row_stay_as_they_are(tmp_path, streaming):
    arguments = [
        {"x": 1, "day": "2024-05-01"},
        {"y": [1, "two"], "x": 1.5},
        {"x": "one", "nested": {"b": None, "a": True}},
        {},
    ]
    rows = [{"chosen": [message("user", "q"), call(**one)], "rejected": [message("user", "q")]} for one in arguments]
    read = list(load_files([write(tmp_path / "a.jsonl", rows)], streaming=streaming))
    assert read == rows
    got = [row["chosen"][1]["tool_calls"][0]["function"]["arguments"] for row in read]
    assert [json.dumps(one) for one in got] == [json.dumps(one) for one in arguments]  # order and types of keys, too


def test_numbers_in_mappings_keep_their_type(tmp_path):
    rows = [{"meta": {"x": 1}}, {"meta": {"x": 1.5}}]
    read = list(load_files([write(tmp_path / "a.jsonl", rows)]))
    assert [json.dumps(row) for row in read] == [json.dumps(row) for row in rows]


def test_plain_messages_are_typed_and_absent_keys_are_null(tmp_path):
    rows = [{"chosen": [message("user", "q", name="Ann")]}, {"chosen": [message("user", "q")]}]
    dataset = load_files([write(tmp_path / "a.jsonl", rows)])
    assert dataset[1]["chosen"] == [message("user", "q", name=None)]
    assert set(dataset.features["chosen"].feature) == {"role", "content", "name"}


def test_text_that_looks_like_json_stays_text(tmp_path):
    rows = [
        {"chosen": "12", "note": "12"},
        {"chosen": '{"a": 1}', "note": ["12"]},
        {"chosen": "null", "note": 12},
    ]
    assert list(load_files([write(tmp_path / "a.jsonl", rows)])) == rows


@pytest.mark.parametrize("streaming", [False, True])
def test_tools_become_json_text_with_their_nulls(tmp_path, streaming):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"default": None, "é": 1}}}]
    rows = [
        {"tools": tools, "chat_template_kwargs": {"think": False}},
        {"tools": None},
        {"tools": json.dumps(tools)},
    ]
    read = list(load_files([write(tmp_path / "a.jsonl", rows)], streaming=streaming))
    assert [row["tools"] and json.loads(row["tools"]) for row in read] == [tools, None, tools]
    assert json.loads(read[0]["chat_template_kwargs"]) == {"think": False}


def test_numbers_that_would_be_lost_are_refused(tmp_path):
    rows = [{"chosen": [call(x=1)]}, {"chosen": [call(x=2**70)]}]
    with pytest.raises(DataError) as caught:
        load_files([write(tmp_path / "a.jsonl", rows)])
    assert (caught.value.row, caught.value.field) == (1, "chosen[0]")


def test_numbers_that_are_rounded_are_said(tmp_path, caplog):
    numbers = [0.1, 0.5017486961578577, 1e-7]
    rows = [{"chosen": [call(x=number)]} for number in numbers]
    read = list(load_files([write(tmp_path / "a.jsonl", rows)]))
    got = [row["chosen"][0]["tool_calls"][0]["function"]["arguments"]["x"] for row in read]
    assert got == pytest.approx(numbers, rel=1e-14)
    changed = sum(one != other for one, other in zip(got, numbers, strict=True))
    assert (f"{changed} values with long decimal numbers" in caplog.text) == (changed > 0)


def test_a_mixture_of_forms_reaches_the_reader_unchanged(tmp_path):
    rows = [{"chosen": "text"}, {"chosen": [message("user", "q")]}, {"chosen": None}]
    assert list(load_files([write(tmp_path / "a.jsonl", rows)])) == rows


# --- CSV -------------------------------------------------------------------------------------------------


def csv_rows(tmp_path, text, name="a.csv", streaming=False):
    path = tmp_path / name
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return list(load_files([path], streaming=streaming))


@pytest.mark.parametrize("streaming", [False, True])
def test_csv_text(tmp_path, streaming):
    text = 'prompt,chosen,rejected,margin\n"1+1=\n","2, two","",0.5\nx,001,null,1\n'
    assert csv_rows(tmp_path, text, streaming=streaming) == [
        {"prompt": "1+1=\n", "chosen": "2, two", "rejected": "", "margin": 0.5},
        {"prompt": "x", "chosen": "001", "rejected": "null", "margin": 1.0},
    ]


def test_tsv_and_gzip(tmp_path):
    assert csv_rows(tmp_path, "chosen\trejected\na, b\tc\n", "a.tsv.gz") == [{"chosen": "a, b", "rejected": "c"}]


def test_an_empty_tie_in_a_csv_file_is_none(tmp_path):
    path = tmp_path / "ties.csv"
    path.write_text("chosen,rejected,tie\na,b,true\nc,d,\ne,f,no\n")
    assert load_files([path])["tie"][:] == [True, None, False]


@pytest.mark.parametrize("dump", [json.dumps, repr])
def test_csv_cells_with_messages_and_ids(tmp_path, dump):
    messages = [message("user", "it's"), message("assistant", 'a "b"')]
    quoted = dump(messages).replace('"', '""')
    text = f'prompt,chosen,chosen_ids\n[1] see below,"{quoted}","[1, 2]"\n'
    assert csv_rows(tmp_path, text) == [{"prompt": "[1] see below", "chosen": messages, "chosen_ids": [1, 2]}]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("chosen,rejected\na,b\nc\n", r"a.csv, line 3: has 1 cells, but the header names 2"),
        ("chosen,rejected\na,b,c\n", r"a.csv, line 2: has 3 cells"),
        ("chosen,margin\na,high\n", r"a.csv, line 2: `margin` is not a number"),
        ("chosen,margin\na,\n", r"a.csv, line 2: `margin` is not a number"),
        ("chosen_ids\n5\n", r"a.csv, line 2: `chosen_ids` is not a list of token ids"),
        (
            'chosen\n"[{""role"": ""user""}]"\nplain\n',
            r"a.csv, line 3: `chosen` is not a JSON list of messages",
        ),
        ('chosen\n"open\n', r"a.csv, line \d: is not valid CSV"),
        ("chosen,rejected\n", r"a.csv: has no rows"),
        ("", r"a.csv: has no rows"),
    ],
)
def test_bad_csv(tmp_path, text, problem):
    with pytest.raises(DataError, match=problem):
        csv_rows(tmp_path, text)


# --- bad files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"a": 1}\n\n{"a": 2,}\n', r"a.jsonl, line 3: is not valid JSON: .*column"),
        (b'{"a": 1}\n[1]\n', r"a.jsonl, line 2: holds a list, not an object"),
        (b'[{"a": 1},\n {"a": }]', r"a.jsonl, line 2: is not valid JSON"),
        (b'[{"a": 1}, 5]', r"a.jsonl: item 1 is a int, not an object"),
        (b'{\n  "a": 1\n}', r"a.jsonl, line 1: is not valid JSON"),
        (b'{"a": "b"}\n{"a": "\xff"}\n', r"a.jsonl, line 2: is not UTF-8"),
        (b"", r"a.jsonl: has no rows"),
        (b"\n \n", r"a.jsonl: has no rows"),
        (b"[]", r"a.jsonl: has no rows"),
    ],
)
def test_bad_json(tmp_path, content, problem):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem):
        load_files([path])


def test_a_stream_names_the_broken_line_when_it_comes_to_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a"\n')
    rows = iter(load_files([path], streaming=True))
    assert next(rows) == {"a": 1}
    with pytest.raises(DataError, match=r"a.jsonl, line 2"):
        next(rows)


def test_broken_archives_and_parquet_files(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(b"no archive")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() * 50)[:-9])
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        with pytest.raises(DataError, match="cannot be decompressed"):
            load_files([tmp_path / name])
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="no Parquet file"):
        load_files([tmp_path / "a.parquet"])
    Dataset.from_dict({"chosen": []}).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="has no rows"):
        load_files([tmp_path / "empty.parquet"])


def test_kinds(tmp_path):
    names = ["a.json", "a.CSV.GZ", "a.tsv", "a.parquet", "a.gz", "a", "a.xlsx"]
    assert [kind_of_file(tmp_path / name) for name in names] == [
        "json",
        "csv",
        "csv",
        "parquet",
        None,
        None,
        None,
    ]


@pytest.mark.parametrize("streaming", [False, True])
def test_two_columns_of_one_name_are_refused(tmp_path, streaming):
    path = tmp_path / "a.csv"
    path.write_text("chosen,rejected,chosen\na,b,c\n")
    with pytest.raises(DataError) as caught:
        list(load_files([path], streaming=streaming))
    assert "several columns named `chosen`" in caught.value.message
    path.write_text("chosen,rejected,,\na,b,,\n")  # a spreadsheet's empty columns
    assert [row["chosen"] for row in load_files([path], streaming=streaming)] == ["a"]


@pytest.mark.parametrize("streaming", [False, True])
def test_two_parquet_columns_of_one_name_are_refused(tmp_path, streaming):
    columns = [pa.array([text]) for text in "abc"]
    pq.write_table(pa.Table.from_arrays(columns, names=["chosen", "rejected", "chosen"]), tmp_path / "a.parquet")
    with pytest.raises(DataError) as caught:
        load_files([tmp_path / "a.parquet"], streaming=streaming)
    assert "several columns named `chosen`" in caught.value.message
