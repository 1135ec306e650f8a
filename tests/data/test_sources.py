"""Data sets by name: files, folders, saved data sets, the Hub, and splits of them all."""

from __future__ import annotations

import json

import datasets.config
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from datasets.exceptions import DatasetNotFoundError

from plaudit.data import load as sources
from plaudit.data.load import load_preference_dataset
from plaudit.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def rows(*names):
    return [{"chosen": name, "rejected": "bad"} for name in names]


def write(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows(*names))), encoding="utf-8")
    return path


def chosen(dataset):
    return [row["chosen"] for row in dataset]


# --- files -----------------------------------------------------------------------------------------------


def test_a_file(tmp_path, monkeypatch):
    path = write(tmp_path / "a.jsonl", "x", "y")
    assert chosen(load_preference_dataset(path)) == ["x", "y"]
    monkeypatch.chdir(tmp_path)
    assert chosen(load_preference_dataset("a.jsonl")) == ["x", "y"]
    stream = load_preference_dataset("a.jsonl", streaming=True)
    assert isinstance(stream, IterableDataset)
    assert chosen(stream) == ["x", "y"]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train[:2]", "ab"),
        ("train[2:]", "cd"),
        ("train[-1:]", "d"),
        ("train[:50%]", "ab"),
        ("train[3:]+train[:1]", "da"),
    ],
)
def test_slices(tmp_path, split, expected):
    path = write(tmp_path / "a.jsonl", *"abcd")
    assert chosen(load_preference_dataset(path, split=split)) == list(expected)


@pytest.mark.parametrize(
    ("split", "problem"),
    [
        ("test", "(?s)no split 'test'.*It has: train"),
        ("train+dev", "no split 'dev'"),
        ("train[4:]", "has no rows"),
        ("train[a:]", "cannot be read"),
        ("train[:2", "cannot be read"),
    ],
)
def test_splits_that_do_not_exist(tmp_path, split, problem):
    path = write(tmp_path / "a.jsonl", *"abcd")
    with pytest.raises(DataError, match=problem):
        load_preference_dataset(path, split=split)


def test_a_stream_cannot_be_sliced(tmp_path):
    with pytest.raises(DataError, match="a stream cannot be cut"):
        load_preference_dataset(write(tmp_path / "a.jsonl", "x"), split="train[:1]", streaming=True)


def test_missing_files_name_near_misses(tmp_path):
    write(tmp_path / "pairs.jsonl", "x")
    with pytest.raises(DataError, match=r"(?s)no such file.*Did you mean '.*pairs\.jsonl'"):
        load_preference_dataset(tmp_path / "pair.json")
    with pytest.raises(DataError, match=r"(?s)In '.*' there are: pairs\.jsonl"):
        load_preference_dataset(tmp_path / "quite-another-name.csv")
    with pytest.raises(DataError, match="does not exist either"):
        load_preference_dataset(tmp_path / "nowhere" / "pairs.jsonl")


def test_files_that_cannot_be_what_is_asked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"(?s)extension.*\.jsonl"):
        load_preference_dataset(tmp_path / "notes.txt")
    with pytest.raises(DataError, match="no configuration 'en'"):
        load_preference_dataset(write(tmp_path / "a.jsonl", "x"), config="en")


# --- folders ---------------------------------------------------------------------------------------------


def test_files_named_after_their_splits(tmp_path):
    write(tmp_path / "train-00000-of-00002.jsonl", "a")
    write(tmp_path / "train-00001-of-00002.jsonl", "b")
    write(tmp_path / "validation.jsonl", "c")
    write(tmp_path / "test" / "part.jsonl", "d")
    write(tmp_path / "extra.jsonl", "e")
    write(tmp_path / ".hidden" / "train.jsonl", "f")
    (tmp_path / "README.md").write_text("about")
    splits = {"train": "ab", "validation": "c", "test": "d", "extra": "e", "train+extra": "abe"}
    for split, expected in splits.items():
        assert chosen(load_preference_dataset(tmp_path, split=split)) == list(expected)
    with pytest.raises(DataError, match="It has: extra, test, train, validation"):
        load_preference_dataset(tmp_path, split="dev")


def test_a_folder_without_split_names_is_for_training(tmp_path):
    folder = tmp_path / "data"
    write(folder / "one.jsonl", "a")
    write(folder / "two.jsonl", "b")
    assert chosen(load_preference_dataset(folder)) == ["a", "b"]
    assert chosen(load_preference_dataset(folder, streaming=True)) == ["a", "b"]


def test_folders_that_cannot_be_read(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match=r"holds no data file \(it holds nothing\)"):
        load_preference_dataset(empty)
    (empty / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"it holds notes\.txt"):
        load_preference_dataset(empty)
    mixed = tmp_path / "mixed"
    write(mixed / "a.jsonl", "x")
    Dataset.from_list(rows("y")).to_parquet(mixed / "b.parquet")
    with pytest.raises(DataError, match="mixes Parquet"):
        load_preference_dataset(mixed)


@pytest.mark.parametrize("streaming", [False, True])
def test_saved_data_sets(tmp_path, streaming):
    both = DatasetDict(train=Dataset.from_list(rows("a")), test=Dataset.from_list(rows("b")))
    both.save_to_disk(tmp_path / "both")
    assert chosen(load_preference_dataset(tmp_path / "both", split="test", streaming=streaming)) == ["b"]
    Dataset.from_list(rows("c")).save_to_disk(tmp_path / "one")
    assert chosen(load_preference_dataset(tmp_path / "one", streaming=streaming)) == ["c"]
    with pytest.raises(DataError, match=r"(?s)no split 'dev'.*It has: train, test"):
        load_preference_dataset(tmp_path / "both", split="dev")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_preference_dataset(tmp_path / "one")


# --- the Hub ---------------------------------------------------------------------------------------------


def test_other_names_go_to_the_hub(monkeypatch):
    calls = []
    monkeypatch.setattr(sources, "load_dataset", lambda *given, **settings: calls.append((given, settings)))
    load_preference_dataset("owner/name", config="en", split="test", streaming=True)
    assert calls == [(("owner/name", "en"), {"split": "test", "streaming": True})]


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (DatasetNotFoundError("no owner/name"), "no such data set on the Hub"),
        (ConnectionError("Couldn't reach it\nat all"), r"(?s)cannot be reached .*reach it\n.*HF_HUB_OFFLINE"),
        (ValueError("Unknown split \"dev\". Should be one of ['train']."), r"Should be one of \['train'\]"),
    ],
)
def test_what_the_hub_can_answer(monkeypatch, error, problem):
    def fail(*given, **settings):
        raise error

    monkeypatch.setattr(sources, "load_dataset", fail)
    with pytest.raises(DataError, match=problem):
        load_preference_dataset("owner/name")


def test_what_exists_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "owner" / "name" / "train.jsonl", "a")
    assert chosen(load_preference_dataset("owner/name")) == ["a"]


# --- files inside -----------------------------------------------------------------------------------------


def test_files_and_folders_inside_a_folder(tmp_path):
    for name in ("one/a.jsonl", "one/b.jsonl", "two/train.jsonl", "two/test.jsonl"):
        write(tmp_path / name, name)
    load = load_preference_dataset
    assert chosen(load(tmp_path, data_dir="one")) == ["one/a.jsonl", "one/b.jsonl"]
    assert chosen(load(tmp_path, data_dir="two", split="test")) == ["two/test.jsonl"]
    assert chosen(load(tmp_path, data_files="one/b.jsonl")) == ["one/b.jsonl"]
    assert chosen(load(tmp_path, data_dir="one", data_files=["b.jsonl", "a.*"])) == ["one/b.jsonl", "one/a.jsonl"]
    by_split = {"train": "two/tr*.jsonl", "dev": ["one/a.jsonl"]}
    assert chosen(load(tmp_path, data_files=by_split, split="dev+train")) == ["one/a.jsonl", "two/train.jsonl"]


def test_any_files_by_the_name_of_their_reader(tmp_path, monkeypatch):
    write(tmp_path / "data" / "a.jsonl", "x")
    write(tmp_path / "data" / "b.jsonl", "y")
    for pattern in ("data/*.jsonl", str(tmp_path / "data" / "*.jsonl")):
        monkeypatch.chdir(tmp_path)
        assert chosen(load_preference_dataset("json", data_files=pattern)) == ["x", "y"]
    assert chosen(load_preference_dataset("json", data_dir="data", streaming=True)) == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "inside", "message"),
    [
        ("data", {"data_files": "c.jsonl"}, "(?s)c.jsonl: there is no such file.*a.jsonl"),
        ("data", {"data_dir": "none"}, "there is no folder"),
        ("data", {"data_files": {"dev": "a.jsonl"}}, "(?s)no split 'train'.*It has: dev"),
        ("data", {"data_files": "notes.txt"}, "extension that does not tell"),
        ("data/a.jsonl", {"data_files": "a.jsonl"}, "is a single file"),
        ("./gone", {"data_files": "a.jsonl"}, "there is no such file or folder"),
    ],
)
def test_files_inside_that_are_not_there(tmp_path, monkeypatch, name, inside, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "data" / "a.jsonl", "x")
    (tmp_path / "data" / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=message):
        load_preference_dataset(name, **inside)


def test_files_inside_a_data_set_on_the_hub(monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "load_dataset", lambda *args, **more: asked.append((args, more)) or "rows")
    assert load_preference_dataset("owner/name", config="c", data_dir="d", data_files="*.parquet") == "rows"
    assert load_preference_dataset("json", data_files="https://example.com/a.jsonl") == "rows"
    settings = {"split": "train", "streaming": False}
    assert asked == [
        (("owner/name", "c"), {**settings, "data_dir": "d", "data_files": "*.parquet"}),
        (("json", None), {**settings, "data_dir": None, "data_files": "https://example.com/a.jsonl"}),
    ]


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_not_the_current_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", "x")
    for opened in (load_preference_dataset, sources.open_data):
        with pytest.raises(ConfigError) as caught:
            opened(name)
        assert caught.value.fix
