"""``datasets``: a mixture in YAML or on the command line, and streams through the command line."""

from __future__ import annotations

import json
import os

import pytest

from model_builders import conversation_rows
from plaudit.cli.build import parse_arguments, read_part
from plaudit.data.mixture import DatasetPart
from plaudit.errors import ConfigError


@pytest.fixture
def more_pairs(tmp_path):
    """Whole conversations, without a column of prompts."""
    rows = [
        {key: row["prompt"] + row[key] for key in ("chosen", "rejected")} | {"note": number}
        for number, row in enumerate(conversation_rows(20)[12:])
    ]
    path = tmp_path / "more.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "train.yaml"
        path.write_text(text, encoding="utf-8")
        return ["--config", str(path)]

    return write


# --- reading ------------------------------------------------------------------------------------------------


def test_every_field_of_a_part():
    fields = {
        "path": "owner/name",
        "name": "c",
        "data_dir": "d",
        "data_files": ["a.jsonl"],
        "split": "dev",
        "columns": ["chosen", "rejected"],
        "fraction": 0.5,
    }
    part = DatasetPart(**fields)
    assert read_part(fields, 1) == part
    assert read_part(json.dumps(fields), 1) == part
    assert read_part({"path": "a", "name": None, "rows": 3}, 1) == DatasetPart("a", rows=3)
    assert read_part("a.jsonl", 1) == DatasetPart("a.jsonl")


@pytest.mark.parametrize(
    ("value", "message", "fix"),
    [
        ({"pth": "a"}, "`pth`", "Did you mean `path`"),
        ({"weight": 1}, "`weight`", "`fraction`"),
        ({"name": "a"}, "`path`", "file"),
        ({"path": "a", "rows": 0}, "`rows` is 0", "whole number"),
        ({"path": "a", "rows": True}, "`rows` is True", "whole number"),
        ({"path": "a", "rows": 1.5}, "`rows` is 1.5", "whole number"),
        ({"path": "a", "fraction": -1}, "`fraction` is -1", "above 0"),
        ({"path": "a", "rows": 1, "fraction": 1}, "both `fraction` and `rows`", "Remove one"),
        ({"path": "a", "columns": "chosen"}, "`columns` is 'chosen'", "list of columns"),
        ({"path": "a", "columns": []}, "`columns` is []", "list of columns"),
        ({"path": 3}, "`path` is 3", "file"),
        (["a"], "['a']", "`- path: pairs.jsonl`"),
        ('{"path": ', "JSON", '{"path": "pairs.jsonl", "rows": 1000}'),
    ],
)
def test_parts_that_cannot_be_read(value, message, fix):
    with pytest.raises(ConfigError) as error:
        read_part(value, 2)
    assert error.value.message.startswith("`datasets`, part 2: ")
    assert message in error.value.message
    assert fix in error.value.fix


REFERENCE_YAML = """
env:
  PLAUDIT_TEST_VARIABLE: 1
datasets:
  - path: a.jsonl
    columns: [chosen, rejected]
  - path: owner/name
    name: config
    split: train[:100]
streaming: true
test_split_size: 0.2
max_steps: 5
"""


def test_the_references_names_in_yaml_and_on_the_command_line(config, monkeypatch):
    monkeypatch.setenv("PLAUDIT_TEST_VARIABLE", "0")
    data = parse_arguments([*config(REFERENCE_YAML), "--use_cpu"])
    assert [part["path"] for part in data.datasets] == ["a.jsonl", "owner/name"]
    assert (data.dataset_streaming, data.eval_fraction) == (True, 0.2)
    assert os.environ["PLAUDIT_TEST_VARIABLE"] == "1"
    flags = ["--datasets", "a.jsonl", '{"path": "b.jsonl"}', "--streaming", "false", "--test-split-size=0.3"]
    data = parse_arguments([*config(REFERENCE_YAML), *flags, "--use_cpu"])
    assert data.datasets == ["a.jsonl", '{"path": "b.jsonl"}']
    assert (data.dataset_streaming, data.eval_fraction) == (False, 0.3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("streaming: true\ndataset_streaming: true", "`dataset_streaming` sets `dataset_streaming` a second time"),
        ("datasets: {path: a}", "`datasets` cannot be a mapping"),
        ("env: [a]", "`env` is not a mapping"),
        ("env: {a: [1]}", "`env` is not a mapping"),
    ],
)
def test_files_that_cannot_be_read(config, text, message):
    with pytest.raises(ConfigError) as error:
        parse_arguments([*config(text), "--use_cpu"])
    assert message in error.value.message


# --- training -----------------------------------------------------------------------------------------------


def test_a_mixture_is_trained_on_evaluated_and_counted(train, config, pairs, more_pairs):
    text = f"datasets:\n  - path: {pairs}\n  - path: {more_pairs}\n    rows: 5\neval_fraction: 0.25"
    code, out, err = train(*config(text), data=None)
    assert code == 0, err
    assert f"Mixture of 17 rows: 12 rows from {pairs}, 5 of 8 rows from {more_pairs}." in err
    assert "train data: 13 rows read, 13 kept" in err
    assert "eval data: 4 rows read, 4 kept" in err
    assert "on 13 preferences, 2 steps" in out
    assert "on 4 held-out rows" in out


def test_a_mixture_on_the_command_line(train, pairs, more_pairs):
    code, out, err = train("--datasets", str(pairs), json.dumps({"path": str(more_pairs), "rows": 3}), data=None)
    assert code == 0, err
    assert "on 15 preferences" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("datasets: []", "`datasets` is empty"),
        ("datasets: [{path: gone.jsonl}]", "gone.jsonl: there is no such file"),
        ("datasets: [{path: PAIRS, rows: 13}]", "has 12 rows, not 13"),
        ("datasets: [{path: PAIRS, column: [a]}]", "Did you mean `columns`?"),
        ("datasets: [{path: PAIRS}, {path: PLAIN}]", "field `chosen`: is plain text"),
        ("datasets: [{path: PAIRS}, {path: BROKEN}]", "broken.jsonl data set, row 1, field `rejected`: is null"),
        ("datasets: [{path: PAIRS}]\ndataset_name: PAIRS", "`datasets` and `dataset_name` exclude each other"),
        ("datasets: [{path: PAIRS}]\ndataset_config: x", "Give the parts that need a configuration a `name`"),
        ("datasets: [{path: PAIRS}]\ndataset_train_split: dev", "Give each part its own `split`"),
        ("datasets: [{path: PAIRS}]\ndataset_test_split: test", "`eval_fraction`"),
        ("datasets: [{path: PAIRS}]\neval_strategy: steps", "--eval_fraction 0.1"),
        ("datasets: [{path: PAIRS}]\nstreaming: true\nmax_steps: -1", "--max_steps 1000"),
    ],
)
def test_errors_leave_no_folder(train, config, tmp_path, pairs, text, message):
    rows = conversation_rows(2)
    rows[1]["rejected"] = None
    (tmp_path / "plain.jsonl").write_text('{"chosen": "a", "rejected": "b"}')
    (tmp_path / "broken.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in ("plain", "broken"):
        text = text.replace(name.upper(), str(tmp_path / f"{name}.jsonl"))
    arguments = ["--output_dir", str(tmp_path / "out"), "--use_cpu"]
    code, out, err = train(*config(text.replace("PAIRS", str(pairs))), *arguments, data=None, defaults=False)
    assert code == 2
    assert message in err
    assert err.splitlines()[-1].startswith("  Fix:")
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_a_mixture_of_streams_trains(train, config, pairs, more_pairs):
    code, out, err = train(*config(f"datasets: [{pairs}, {more_pairs}]\nstreaming: true"), data=None)
    assert code == 0, err
    assert "on a stream of preferences, 2 steps" in out


def test_a_stream_is_trained_and_evaluated(train, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("train", 12), ("test", 5)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, conversation_rows(count))))
    arguments = ["--dataset_streaming", "--dataset_test_split", "test", "--per_device_train_batch_size", "4"]
    code, out, err = train(*arguments, "--eval_strategy", "steps", "--eval_steps", "1", data=folder)
    assert code == 0, err
    assert "on a stream of preferences, 2 steps" in out
    assert "Accuracy" in out
