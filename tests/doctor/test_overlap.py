"""Prompts shared with evaluation data and benchmarks."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset

from doctor.clean_sets import clean_rows, said
from plaudit import DataError, check_dataset


def asked(text, *before):
    return [*before, {"role": "user", "content": text}]


def pairs(*prompts):
    return [
        {"prompt": prompt, "chosen": said(f"yes {n}"), "rejected": said(f"no {n}")} for n, prompt in enumerate(prompts)
    ]


def rows_of(check, kind):
    finding = check.finding(kind)
    return [] if finding is None else list(finding.rows)


def test_prompts_are_equal_up_to_case_width_and_white_space():
    train = pairs(asked("What is  2+2?\n"), asked("WHAT IS 2+2?"), asked("what is \uff12+2?"), asked("What is 2+3?"))
    check = check_dataset(train, eval_dataset=pairs(asked("What is 2+2?")))
    assert rows_of(check, "in_eval") == [0, 1, 2]
    assert check.finding("in_eval").detail == "1 of 1 prompts of it"
    assert not check.ok


def test_a_conversation_is_its_whole_prompt():
    hello = {"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}
    train = pairs(asked("Why?", *hello), asked("Why?"))
    assert rows_of(check_dataset(train, eval_dataset=pairs(asked("Why?"))), "in_eval") == [1]


def test_text_and_messages_are_compared_by_their_text():
    train = [{"prompt": "What is 2+2?", "chosen": "4", "rejected": "5"}]
    assert rows_of(check_dataset(train, eval_dataset=pairs(asked("what is 2+2?"))), "in_eval") == [0]


def test_prompts_inside_the_responses():
    messages = [{"chosen": asked("Q") + said("a"), "rejected": asked("Q") + said("b")}]
    texts = [{"chosen": "Human: Q\n\nAssistant: a", "rejected": "Human: Q\n\nAssistant: b"}]
    other = [{"chosen": "Human: q\n\nAssistant: c", "rejected": "Human: q\n\nAssistant: d"}]
    assert rows_of(check_dataset(messages, eval_dataset=pairs(asked("Q"))), "in_eval") == [0]
    assert rows_of(check_dataset(texts, eval_dataset=other), "in_eval") == [0]


def test_rows_without_a_prompt_are_compared_whole():
    train = [{"chosen": "red", "rejected": "blue"}, {"chosen": "red", "rejected": "green"}]
    other = [{"chosen": "green", "rejected": "red"}]
    assert rows_of(check_dataset(train, eval_dataset=other), "in_eval") == [1]


def test_a_benchmark_of_questions(tmp_path):
    path = tmp_path / "bench.jsonl"
    long = "A farmer has 17 sheep and all but 9 run away during the night, so how many sheep are left on the farm?"
    path.write_text("\n".join(json.dumps({"question": text, "answer": "x"}) for text in ("Why?", long)))
    system = {"role": "system", "content": "Be brief."}
    train = pairs(
        asked("why?"),
        asked(long, system),
        asked(f"Solve this. {long} Think well."),
        asked("A farmer has 17 goats and all but 9 come home in the evening, so how many goats are there in the barn?"),
        asked("Something else entirely."),
    )
    check = check_dataset(train, benchmarks=[path])
    assert rows_of(check, "in_benchmark") == [0, 1]
    assert rows_of(check, "near_benchmark") == [2]
    assert check.finding("near_benchmark").severity == "warning"
    assert check.finding("in_benchmark").examples[0].text == f"row 0 of {path}"


def test_a_benchmark_of_preferences_and_one_of_messages():
    row = clean_rows(1)[0]
    assert rows_of(check_dataset([row], benchmarks=[Dataset.from_list([row])]), "in_benchmark") == [0]
    messages = [{"messages": row["prompt"] + said("the answer")}]
    assert rows_of(check_dataset([row], benchmarks=[messages]), "in_benchmark") == [0]


def test_an_instruction_that_all_share_is_no_overlap():
    head = "Answer the question below with the help of the three passages which follow it and name each source used. "
    bench = [{"prompt": f"{head}{' '.join(f'w{n}x{k}' for k in range(14))}"} for n in range(10)]
    train = pairs(*(asked(f"{head}{' '.join(f'v{n}y{k}' for k in range(14))}") for n in range(10)))
    assert rows_of(check_dataset(train, benchmarks=[bench]), "near_benchmark") == []


def test_a_benchmark_without_prompts():
    with pytest.raises(DataError) as error:
        check_dataset(clean_rows(2), benchmarks=[[{"id": 1}]])
    assert error.value.row is None
    assert error.value.dataset is not None


def test_an_eval_file_with_a_broken_row_still_counts():
    other = pairs(asked("Q"), asked("R"))
    other[0]["chosen"] = None
    assert rows_of(check_dataset(pairs(asked("R")), eval_dataset=other), "in_eval") == [0]
