"""Golden rows as a file: what was saved is read again, and what is no such file is refused."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import tiny_tokenizer
from plaudit import ConfigError
from plaudit.model.golden import FILE_NAME, GoldenRow, GoldenRows, chat_template_hash, load_golden_rows

MESSAGES = [{"role": "user", "content": "Größe?"}, {"role": "assistant", "content": "1 m 🐟"}]


@pytest.fixture
def golden():
    row = GoldenRow((3, 4, 5), 0.1234567891, 7, "Größe?", MESSAGES, [{"name": "f"}], {"thinking": False})
    return GoldenRows((row, GoldenRow((6,), -2.0)), "bfloat16", "abc", 0, "by hand", {"torch": "2"})


def test_what_is_saved_is_loaded(golden, tmp_path):
    assert golden.save(tmp_path) == tmp_path / FILE_NAME
    assert load_golden_rows(str(tmp_path)) == golden
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_rewards_keep_every_bit(tmp_path_factory, reward):
    folder = tmp_path_factory.mktemp("golden")
    GoldenRows((GoldenRow((1,), reward),)).save(folder)
    assert load_golden_rows(str(folder)).rewards == [reward]


def test_a_folder_without_them_has_none(tmp_path):
    assert load_golden_rows(str(tmp_path)) is None


def test_rescaled_rewards_belong_to_the_same_rows(golden):
    rescaled = golden.rescaled(-3.0, 0.5)
    assert rescaled.rewards == [-3.0 * 0.1234567891 + 0.5, 6.5]
    assert [row.ids for row in rescaled.rows] == [row.ids for row in golden.rows]
    assert golden.rewards == [0.1234567891, -2.0]


@pytest.mark.parametrize(
    "change",
    [
        {"format": "something else"},
        {"version": 2},
        {"rows": []},
        {"rows": [{"reward": 1.0}]},
        {"rows": [{"ids": [], "reward": 1.0}]},
        {"rows": [{"ids": [1.5], "reward": 1.0}]},
        {"rows": [{"ids": [-1], "reward": 1.0}]},
        {"rows": [{"ids": [1], "reward": "1"}]},
        {"rows": [{"ids": [1], "reward": math.nan}]},
        {"rows": [{"ids": [1], "reward": 1.0, "surprise": 2}]},
        {"rows": 3},
        {"surprise": 1},
    ],
)
def test_files_of_another_kind_raise(golden, tmp_path, change):
    path = golden.save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ConfigError) as error:
        load_golden_rows(str(tmp_path))
    assert error.value.fix is not None


@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe", b"{"])
def test_broken_files_raise(tmp_path, content):
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        load_golden_rows(str(tmp_path))
    assert FILE_NAME in error.value.message


def test_the_hash_is_that_of_the_chat_template():
    assert chat_template_hash(tiny_tokenizer(chat_template=False)) is None
    first, same, x = (chat_template_hash(tiny_tokenizer(chat_template=text)) for text in ("{{ 1 }}", "{{ 1 }}", "x"))
    assert first == same != x
