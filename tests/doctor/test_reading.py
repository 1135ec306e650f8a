"""A row is judged as training would judge it, whatever the data comes in."""

from __future__ import annotations

import gzip
import json

import pytest
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import tiny_tokenizer
from doctor.clean_sets import clean_rows, said
from plaudit import ConfigError, DataError, check_dataset
from plaudit.data.prepare import prepare_dataset

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
VALUE = st.sampled_from(["a", "b", "", None, 3, ["x"], [], [{"role": "user", "content": "q"}]])


def trains(row):
    """What training says about a row among good ones, None if it takes it."""
    rows = [GOOD, row]
    stream = IterableDataset.from_generator(lambda: iter(rows))
    try:
        list(prepare_dataset(stream, tiny_tokenizer(), max_length=None)[0])
    except DataError as error:
        return error.message
    return None


@given(st.fixed_dictionaries({"prompt": VALUE, "chosen": VALUE, "rejected": VALUE}))
@settings(max_examples=60, deadline=None)
def test_a_row_is_unreadable_if_and_only_if_training_refuses_it(row):
    check = check_dataset([GOOD, GOOD | {"prompt": "q"}, row], words=False)
    finding = check.finding("unreadable")
    refused = trains(row)
    if refused is None:
        assert finding is None
    else:
        assert list(finding.rows) == [2]
        # A row of the other form has its own words here, which do not speak of the first row.
        assert refused in finding.lines[0] or "most rows" in finding.lines[0]


SOURCES = {
    "list": lambda rows, path: rows,
    "table": lambda rows, path: Dataset.from_list(rows),
    "stream": lambda rows, path: IterableDataset.from_generator(lambda: iter(rows)),
    "jsonl": lambda rows, path: write(path / "a.jsonl", "\n".join(map(json.dumps, rows))),
    "json": lambda rows, path: write(path / "a.json", json.dumps(rows)),
    "gz": lambda rows, path: write(path / "a.jsonl.gz", "\n".join(map(json.dumps, rows))),
    "parquet": lambda rows, path: parquet(path / "a.parquet", rows),
    "folder": lambda rows, path: parquet(path / "train.parquet", rows).parent,
}


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def parquet(path, rows):
    Dataset.from_list(rows).to_parquet(path)
    return path


def faulty_rows():
    rows = clean_rows(60)
    rows[7]["rejected"] = None
    rows[9]["chosen"] = rows[9]["rejected"]
    rows[20] = rows[19]
    rows[30]["chosen"] = said("")
    return rows


EXPECTED = {"unreadable": [7], "identical": [9], "duplicate": [20], "empty": [30]}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_findings(kind, tmp_path):
    dataset = SOURCES[kind](faulty_rows(), tmp_path)
    for streaming in (False, True) if kind in ("jsonl", "gz", "parquet", "folder") else (False,):
        check = check_dataset(dataset, streaming=streaming, words=False)
        assert {one.kind: list(one.rows) for one in check.findings} == EXPECTED
        assert (check.rows, check.row_kinds) == (60, {"pairs": 59})


def test_csv(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,chosen,rejected\np,a,b\np,b,a\nq,,x\n")
    check = check_dataset(path)
    assert {one.kind: list(one.rows) for one in check.findings} == {"contradictory": [0, 1], "empty": [2]}


def test_reasons_are_told_apart_with_their_rows():
    rows = clean_rows(30)
    for number in (3, 4):
        rows[number]["rejected"] = None
    rows[5]["chosen"][0]["content"] = None
    finding = check_dataset(rows).finding("unreadable")
    assert finding.lines == (
        "2: `rejected`: is null (rows 3, 4)",
        "1: `chosen[…].content`: is null (row 5)",
    )
    assert finding.examples[0].rows == (3,)
    assert "Drop the row" in finding.advice


def test_a_broken_first_row_does_not_condemn_the_others():
    rows = clean_rows(20)
    for broken in ({"prompt": None}, {"prompt": "text", "chosen": "text", "rejected": "other"}):
        for dataset in (
            [rows[0] | broken, *rows[1:]],
            IterableDataset.from_generator(lambda b=broken: iter([rows[0] | b, *rows[1:]])),
        ):
            check = check_dataset(dataset, words=False)
            assert list(check.finding("unreadable").rows) == [0]


def test_a_row_of_another_form_is_named_and_the_others_are_read():
    rows = [row | {"response": None, "label": None} for row in clean_rows(20)]
    rows[4] = {"prompt": rows[4]["prompt"], "response": said("yes"), "label": True}
    check = check_dataset(rows, words=False)
    assert list(check.finding("unreadable").rows) == [4]
    assert "labelled responses" in check.finding("unreadable").lines[0]
    assert check.finding("no_objective") is not None


def test_a_margin_that_is_missing_somewhere_is_called_what_training_calls_it():
    rows = [row | ({} if number % 2 else {"margin": 1.0}) for number, row in enumerate(clean_rows(10))]
    finding = check_dataset(Dataset.from_list(rows)).finding("unreadable")
    assert list(finding.rows) == [1, 3, 5, 7, 9]
    assert "remove the column `margin`" in finding.advice


def test_the_caller_keeps_the_rows_as_they_were():
    rows = faulty_rows()
    before = json.dumps(rows)
    check_dataset(rows)
    assert json.dumps(rows) == before


def test_over_long_rows_are_those_that_training_drops(tokenizer):
    rows = clean_rows(200)
    _, report = prepare_dataset(Dataset.from_list(rows), tokenizer, max_length=500)
    check = check_dataset(rows, tokenizer=tokenizer, max_length=500)
    finding = check.finding("overlong")
    assert finding.count == report.dropped["overlong"].count > 0
    assert list(finding.rows[:5]) == report.dropped["overlong"].first_rows
    assert (check.lengths.shortest, check.lengths.longest) == (report.lengths.shortest, report.lengths.longest)


def test_token_ids_are_checked_without_their_texts():
    rows = [{"chosen_ids": [1, 2, n + 3], "rejected_ids": [1, 2, 900]} for n in range(10)]
    rows[3]["rejected_ids"] = rows[3]["chosen_ids"]
    rows[5]["chosen_ids"] = list(range(1, 50))
    check = check_dataset(Dataset.from_list(rows), max_length=20)
    assert {one.kind: list(one.rows) for one in check.findings} == {"identical": [3], "overlong": [5]}
    assert check.notes == ["The rows hold token ids: texts were not looked at."]


def test_a_template_that_refuses_a_row_makes_it_unreadable():
    tokenizer = tiny_tokenizer(
        "{% for m in messages %}{% if m.role == 'odd' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    rows = clean_rows(10)
    rows[6]["chosen"] = [{"role": "odd", "content": "x"}]
    rows[8] = {name: [{"role": "user", "content": "same", "name": name}] for name in ("prompt", "chosen", "rejected")}
    check = check_dataset(rows, tokenizer=tokenizer)
    assert "the chat template refuses it" in check.finding("unreadable").lines[0]
    assert list(check.finding("unreadable").rows) == [6]
    assert list(check.finding("same_rendering").rows) == [8]


@pytest.mark.parametrize(
    ("dataset", "error", "words"),
    [
        ([], DataError, "has no rows"),
        ([{"text": "a"}], DataError, "has no column `chosen`, `rejected`"),
        (5, ConfigError, "not a data set"),
        ({"train": []}, ConfigError, "Pass one split"),
        ("missing.jsonl", DataError, "there is no such file"),
    ],
)
def test_what_cannot_be_checked_is_refused(dataset, error, words):
    with pytest.raises(error, match=words):
        check_dataset(dataset)


def test_settings_that_cannot_work():
    with pytest.raises(ConfigError, match="there is no tokenizer"):
        check_dataset(clean_rows(3), max_length=5)
    with pytest.raises(ConfigError, match="no chat template"):
        check_dataset(clean_rows(3), tokenizer=tiny_tokenizer(chat_template=False))
    with pytest.raises(ConfigError) as error:
        check_dataset(clean_rows(3), remove=["leak"])
    assert "'leak'" in error.value.message


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_that_breaks_off_is_checked_up_to_there(tmp_path, streaming):
    rows = clean_rows(30)
    rows[4]["rejected"] = rows[4]["chosen"]
    path = tmp_path / "torn.jsonl"
    path.write_text("\n".join([*map(json.dumps, rows), '{"prompt": [', json.dumps(rows[0])]))
    check = check_dataset(path, streaming=streaming, fix=tmp_path / "clean.jsonl")
    assert not check.ok
    assert check.rows == 30
    assert "line 31: is not valid JSON" in check.finding("broken_file").detail
    assert list(check.finding("identical").rows) == [4]
    assert check.fixed is None
    assert not (tmp_path / "clean.jsonl").exists()
    assert "No cleaned copy" in check.notes[-1]


def test_a_file_without_a_single_row_that_can_be_read_is_refused(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text("nothing here\n")
    with pytest.raises(DataError, match="line 1: is not valid JSON"):
        check_dataset(path)
