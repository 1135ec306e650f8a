"""Rows set aside for evaluation: by prompt, the same every time."""

from __future__ import annotations

import pytest
from datasets import Dataset

from plaudit.data.load import split_by_prompt
from plaudit.errors import ConfigError, DataError


def message(role, content):
    return {"role": role, "content": content}


def explicit(count, prompts):
    return Dataset.from_list(
        [{"prompt": f"p{n % prompts}", "chosen": f"c{n}", "rejected": f"r{n}"} for n in range(count)]
    )


def test_rows_that_share_a_prompt_stay_together_and_in_order():
    dataset = explicit(60, prompts=15)
    train, test = split_by_prompt(dataset, 0.2)
    assert not set(train["prompt"]) & set(test["prompt"])
    assert len(train) + len(test) == 60
    assert len(test) == 12
    for part in (train, test):
        numbers = [int(text[1:]) for text in part["chosen"]]
        assert numbers == sorted(numbers)


def test_the_seed_decides_and_nothing_else():
    dataset = explicit(40, prompts=40)
    first = split_by_prompt(dataset, 0.25, seed=1)[1]["prompt"]
    assert list(split_by_prompt(dataset, 0.25, seed=1)[1]["prompt"]) == list(first)
    assert set(split_by_prompt(dataset, 0.25, seed=2)[1]["prompt"]) != set(first)
    shuffled = split_by_prompt(dataset.shuffle(seed=0), 0.25, seed=1)[1]["prompt"]
    assert set(shuffled) == set(first)


def test_conversations_without_prompt_share_what_comes_before_the_answers():
    def row(question, chosen, rejected, system="s"):
        start = [message("system", system), message("user", question)]
        return {
            "chosen": [*start, message("assistant", chosen)],
            "rejected": [*start, message("assistant", rejected)],
        }

    dataset = Dataset.from_list([row(f"q{n % 5}", f"c{n}", "same" if n % 2 else f"r{n}") for n in range(20)])
    train, test = split_by_prompt(dataset, 0.4)
    questions = [{one["chosen"][1]["content"] for one in part} for part in (train, test)]
    assert not questions[0] & questions[1]
    assert len(test) == 8


def test_the_same_answer_to_start_with_is_no_part_of_the_prompt():
    call = [message("assistant", "let me look"), message("tool", "42")]
    first = [message("user", "q")]
    rows = [
        {
            "chosen": [*first, *call, message("assistant", "a")],
            "rejected": [*first, *call, message("assistant", "b")],
        },
        {"chosen": [*first, message("assistant", "c")], "rejected": [*first, message("assistant", "d")]},
        {"chosen": [message("user", "z"), message("assistant", "c")], "rejected": [message("user", "z")]},
    ]
    train, test = split_by_prompt(Dataset.from_list(rows), 0.34)
    assert sorted([len(train), len(test)]) == [1, 2]
    assert len({row["chosen"][0]["content"] for row in train} & {row["chosen"][0]["content"] for row in test}) == 0


def test_plain_text_without_prompt_keeps_equal_rows_together():
    dataset = Dataset.from_list([{"chosen": f"c{n % 4}", "rejected": f"r{n % 4}"} for n in range(8)])
    train, test = split_by_prompt(dataset, 0.25)
    assert not set(train["chosen"]) & set(test["chosen"])
    assert len(test) == 2


def test_other_columns_do_not_matter():
    dataset = explicit(20, prompts=10)
    noted = dataset.add_column("note", list(range(20)))
    assert list(split_by_prompt(noted, 0.3)[1]["chosen"]) == list(split_by_prompt(dataset, 0.3)[1]["chosen"])


def test_large_groups_never_take_everything():
    dataset = Dataset.from_dict({"prompt": ["a"] * 9 + ["b"], "chosen": ["x"] * 10, "rejected": ["y"] * 10})
    train, test = split_by_prompt(dataset, 0.5)
    assert (len(train), len(test)) == (9, 1)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 5])
def test_fractions_must_be_between_0_and_1(fraction):
    with pytest.raises(ConfigError, match="eval_fraction"):
        split_by_prompt(explicit(4, 4), fraction)


def test_one_prompt_cannot_be_split():
    with pytest.raises(DataError, match="share one prompt"):
        split_by_prompt(explicit(4, 1), 0.5)
