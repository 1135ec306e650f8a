"""A cleaned copy: exactly the faulty rows are left out, nothing else changes, and nothing is lost by an error."""

from __future__ import annotations

import gzip
import hashlib
import json

import pytest
from datasets import Dataset

from doctor.clean_sets import clean_rows, said
from plaudit import ConfigError, DataError, check_dataset


def lines(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def faulty():
    rows = [row | {"id": number, "note": None} for number, row in enumerate(clean_rows(40))]
    rows[3]["rejected"] = None
    rows[5]["rejected"] = rows[5]["chosen"]
    rows[8]["chosen"] = said("")
    rows[12] = rows[11] | {"id": 12}
    rows[20] = rows[21] | {"id": 20, "chosen": rows[21]["rejected"], "rejected": rows[21]["chosen"]}
    return rows


EXPECTED = {3: "unreadable", 5: "identical", 8: "empty", 12: "duplicate", 20: "contradictory", 21: "contradictory"}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, faulty())))
    return path


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("name", ["clean.jsonl", "clean.jsonl.gz"])
def test_round_trip(data, tmp_path, streaming, name):
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    check = check_dataset(data, fix=tmp_path / name, streaming=streaming)
    kept, removed = lines(tmp_path / name), lines(tmp_path / name.replace(".jsonl", ".removed.jsonl"))
    rows = faulty()
    assert kept == [row for row in rows if row["id"] not in EXPECTED]
    assert {one["row"]: one["reason"] for one in removed} == EXPECTED
    assert all(one["data"] == rows[one["row"]] for one in removed)
    assert check.fixed.kept == len(kept) == 34
    assert check.fixed.removed == {"unreadable": 1, "identical": 1, "empty": 1, "duplicate": 1, "contradictory": 2}
    assert hashlib.sha256(data.read_bytes()).hexdigest() == digest
    assert sorted(path.name for path in tmp_path.iterdir() if not path.is_dir()) == sorted(
        ["pairs.jsonl", name, name.replace(".jsonl", ".removed.jsonl")]
    )
    again = check_dataset(tmp_path / name)
    assert [one.kind for one in again.findings] == []


def test_a_table_with_messages_of_different_keys(tmp_path):
    rows = clean_rows(6)
    rows[2]["chosen"] = [rows[2]["chosen"][0] | {"name": "bob"}]
    rows[4]["rejected"] = rows[4]["chosen"]
    check_dataset(Dataset.from_list(rows), fix=tmp_path / "c.jsonl")
    assert lines(tmp_path / "c.jsonl") == [row for number, row in enumerate(rows) if number != 4]


def test_only_the_kinds_asked_for_go(data, tmp_path):
    check = check_dataset(data, fix=tmp_path / "c.jsonl", remove=["duplicate", "empty"])
    assert check.fixed.removed == {"empty": 1, "duplicate": 1}
    assert check.fixed.kept == 38


def test_over_long_and_shared_rows_go(tmp_path, tokenizer):
    rows = clean_rows(50)
    rows[7]["chosen"] = said("word " * 400 + "end.")
    target = tmp_path / "c.jsonl"
    check = check_dataset(rows, tokenizer=tokenizer, max_length=1500, eval_dataset=rows[10:12], fix=target)
    assert {one["row"]: one["reason"] for one in lines(tmp_path / "c.removed.jsonl")} == {
        7: "overlong",
        10: "in_eval",
        11: "in_eval",
    }
    assert check.fixed.kept == 47


def test_existing_files_are_left_alone_unless_allowed(data, tmp_path):
    target = tmp_path / "c.jsonl"
    for existing in (target, tmp_path / "c.removed.jsonl"):
        existing.write_text("mine")
        with pytest.raises(ConfigError) as error:
            check_dataset(data, fix=target)
        assert existing.name in error.value.message
        assert "--overwrite" in error.value.fix
        assert existing.read_text() == "mine"
        existing.unlink()
    target.write_text("mine")
    check_dataset(data, fix=target, overwrite=True)
    assert len(lines(target)) == 34


def test_the_source_is_never_the_target(data, tmp_path):
    before = data.read_text()
    with pytest.raises(ConfigError) as error:
        check_dataset(data, fix=data, overwrite=True)
    assert str(data) in error.value.message
    twin = tmp_path / "x.removed.jsonl"
    data.rename(twin)
    with pytest.raises(ConfigError) as error:
        check_dataset(twin, fix=tmp_path / "x.jsonl", overwrite=True)
    assert str(twin) in error.value.message
    assert twin.read_text() == before


@pytest.mark.parametrize(("name", "value"), [("c.csv", "c.csv"), ("no/c.jsonl", "no")])
def test_targets_that_cannot_be_written(data, tmp_path, name, value):
    with pytest.raises(ConfigError) as error:
        check_dataset(data, fix=tmp_path / name)
    assert repr(str(tmp_path / value)) in error.value.message
    assert error.value.fix is not None


def test_an_error_leaves_no_file_behind(tmp_path):
    rows = [row | {"picture": b"\x00"} for row in clean_rows(5)]
    rows[1]["rejected"] = rows[1]["chosen"]
    (tmp_path / "c.jsonl").write_text("mine")
    with pytest.raises(DataError) as error:
        check_dataset(rows, fix=tmp_path / "c.jsonl", overwrite=True)
    assert error.value.row == 0
    assert "bytes" in error.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["c.jsonl"]
    assert (tmp_path / "c.jsonl").read_text() == "mine"


def test_a_copy_without_rows_is_not_written(tmp_path):
    rows = [row | {"rejected": row["chosen"]} for row in clean_rows(5)]
    with pytest.raises(DataError) as error:
        check_dataset(rows, fix=tmp_path / "c.jsonl")
    assert error.value.row is None
    assert error.value.fix is not None
    assert list(tmp_path.iterdir()) == []
