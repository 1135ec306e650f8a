"""Folders with the structure of a data set on the Hub: the same splits and rows as `load_dataset` reads there."""

from __future__ import annotations

import json
import logging

import pytest
from datasets import Dataset, load_dataset

from plaudit.data.load import load_preference_dataset, open_data
from plaudit.errors import DataError

CONFIGS = """---
license: mit
configs:
- config_name: default
  data_files:
  - split: train
    path: data/train_sft-*
  - split: held_out
    path: ["data/test_*"]
- config_name: prefs
  data_files:
  - split: train
    path: data/train_prefs-*
---
# About
"""


def write(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"chosen": name, "rejected": "bad"} for name in names]
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture(params=["parquet", "jsonl"])
def folder(tmp_path, request):
    for split in ("train_prefs", "train_sft", "test_prefs", "test_sft"):
        for shard in range(2):
            write(tmp_path / "data" / f"{split}-0000{shard}-of-00002.{request.param}", f"{split} {shard}")
    return tmp_path


def chosen(rows):
    return [row["chosen"] for row in rows]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("split", ["train_prefs", "train_sft", "test_prefs", "test_sft"])
def test_each_split_keeps_its_own_name(folder, split, streaming):
    expected = chosen(load_dataset(str(folder), split=split))
    assert expected == [f"{split} 0", f"{split} 1"]
    assert chosen(load_preference_dataset(folder, split=split, streaming=streaming)) == expected
    assert chosen(open_data(folder, split=split, any_split=True).rows()) == expected


def test_splits_are_not_merged_into_one_that_is_not_there(folder):
    with pytest.raises(DataError) as caught:
        load_preference_dataset(folder)
    assert "no split 'train'" in caught.value.message
    assert "train_prefs, train_sft" in caught.value.fix
    with pytest.raises(ValueError, match="train"):
        load_dataset(str(folder), split="train")


@pytest.mark.parametrize(
    ("config", "split"), [(None, "train"), (None, "held_out"), ("default", "train"), ("prefs", "train")]
)
def test_the_card_names_configurations_and_their_files(folder, config, split):
    (folder / "README.md").write_text(CONFIGS)
    expected = chosen(load_dataset(str(folder), config, split=split))
    assert chosen(load_preference_dataset(folder, config=config, split=split)) == expected
    assert chosen(open_data(folder, config=config, split=split, any_split=True).rows()) == expected


def test_a_configuration_that_is_missing_or_must_be_named(folder):
    (folder / "README.md").write_text(CONFIGS.replace("name: default", "name: sft"))
    with pytest.raises(DataError) as caught:
        load_preference_dataset(folder)
    assert "sft" in caught.value.message
    with pytest.raises(DataError):
        load_preference_dataset(folder, config="other")
    with pytest.raises(DataError, match="no split 'dev'"):
        load_preference_dataset(folder, config="sft", split="dev")


def test_files_that_merge_into_one_split_are_named(tmp_path, caplog):
    for name in ("train_prefs", "train_sft", "test_0", "test_1"):
        write(tmp_path / f"{name}.jsonl", name)
    with caplog.at_level(logging.WARNING, "plaudit"):
        assert chosen(load_preference_dataset(tmp_path, split="test")) == ["test_0", "test_1"]
        assert not caplog.records
        for _ in range(2):
            assert chosen(load_preference_dataset(tmp_path)) == chosen(load_dataset(str(tmp_path), split="train"))
    assert len(caplog.records) == 1
    assert "train_prefs.jsonl, train_sft.jsonl" in caplog.text
