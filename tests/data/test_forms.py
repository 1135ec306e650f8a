"""A survey says which forms a data set has, whatever shape it comes in, and looks at no column that it need not."""

import json

import datasets
import pytest
from datasets import Dataset, IterableDataset

from plaudit.data.load import split_by_prompt
from plaudit.data.mixture import DatasetPart, load_mixture
from plaudit.data.parse import most_responses, survey
from plaudit.data.prepare import prepare_dataset
from plaudit.data.readers import load_files
from plaudit.errors import DataError

PAIR = {"chosen": "a", "rejected": "b"}
RANKED = {"responses": ["a", "b"], "ranks": [1, 2]}
SCORED = {"responses": ["a", "b"], "scores": [1.0, 2.0]}
GRADED = {"response": "a", "scores": [4.0]}
LABELLED = {"response": "a", "label": True}


def table(*rows):
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_list([{**dict.fromkeys(names), **row} for row in rows])


@pytest.mark.parametrize(
    ("rows", "row_kinds", "columns"),
    [
        ([PAIR], {"pairs"}, set()),
        ([RANKED], {"ranks"}, set()),
        ([SCORED], {"scores"}, set()),
        ([GRADED], {"ratings"}, set()),
        ([{"response": "a", "score": 4.0}], {"ratings"}, set()),
        ([LABELLED], {"labels"}, set()),
        ([PAIR, RANKED, SCORED], {"pairs", "ranks", "scores"}, set()),
        ([SCORED, GRADED, LABELLED], {"scores", "ratings", "labels"}, set()),
        ([PAIR | {"margin": 1.0, "tie": True}], {"pairs"}, {"margin", "tie"}),
        ([PAIR | {"tie": False}], {"pairs"}, set()),
        ([PAIR | {"tie": 0}, PAIR | {"tie": None}], {"pairs"}, set()),
        ([PAIR | {"tie": 0}, PAIR | {"tie": 1}], {"pairs"}, {"tie"}),
        ([PAIR | {"preference_prob": 1.0}], {"pairs"}, set()),
        ([PAIR | {"preference_prob": 1.0}, PAIR | {"preference_prob": 0.9}], {"pairs"}, {"preference_prob"}),
        ([PAIR | {"margin": None}], {"pairs"}, set()),
        ([RANKED | {"margin": 1.0, "tie": True}], {"ranks"}, set()),
        ([PAIR | LABELLED | SCORED], {"pairs"}, set()),
        ([{"chosen_ids": [1], "rejected_ids": [2], "margin": 1.0}], {"pairs"}, {"margin"}),
        ([{"response_ids": [[1], [2]], "scores": [1.0, 0.0]}], set(), set()),
        ([{"response_ids": [[1], [2]], "scores": [1.0, 0.0], "preference_prob": 0.7}], set(), {"preference_prob"}),
        ([PAIR | {"response_ids": [[1]], "scores": [1.0]}], {"pairs"}, set()),
        ([{"chosen_input_ids": [1], "rejected_input_ids": [2]}], set(), set()),
        ([{"chosen": "a"}], {"pairs"}, set()),
    ],
)
def test_forms_and_columns(rows, row_kinds, columns):
    assert survey(table(*rows)) == (row_kinds, columns)


def test_only_the_rows_that_are_left_count():
    rows = table(PAIR | {"tie": True}, PAIR | {"tie": False}, LABELLED, RANKED)
    assert survey(rows.select([1])) == ({"pairs"}, set())
    assert survey(rows.filter(lambda row: row["chosen"] is None)) == ({"labels", "ranks"}, set())
    assert survey(rows.select([3, 0])) == ({"pairs", "ranks"}, {"tie"})


def test_of_a_stream_the_first_row_speaks():
    rows = [PAIR | {"tie": False}, LABELLED]
    assert survey(IterableDataset.from_generator(lambda: iter(rows))) == ({"pairs"}, {"tie"})
    mixed = [dict.fromkeys((*PAIR, *RANKED)) | row for row in (PAIR, RANKED)]
    assert survey(table(*mixed).to_iterable_dataset()) == ({"pairs", "ranks"}, set())
    assert survey(table(*mixed[::-1]).to_iterable_dataset()) == ({"pairs", "ranks"}, set())
    noise = IterableDataset.from_generator(lambda: iter([PAIR | {"response": None, "label": None}]))
    assert survey(noise) == ({"pairs"}, set())
    assert survey(table(LABELLED).to_iterable_dataset().filter(lambda row: True)) == ({"labels"}, set())


def test_formats_and_empty_tables_change_nothing():
    assert survey(table(PAIR | {"margin": 1.0}).with_format("numpy")) == ({"pairs"}, {"margin"})
    assert survey(table(PAIR).select([])) == ({"pairs"}, set())


def test_other_columns_are_not_even_decoded(monkeypatch):
    """A recording beside the texts would need a library to be read."""

    def refuse(self, *args, **kwargs):
        raise AssertionError("decoded")

    monkeypatch.setattr(datasets.Audio, "decode_example", refuse)
    rows = table(PAIR | {"sound": {"bytes": b"", "path": None}}).cast_column("sound", datasets.Audio())
    with pytest.raises(AssertionError, match="decoded"):
        rows[0]
    assert survey(rows) == ({"pairs"}, set())


def test_most_responses_of_the_rows_that_are_left():
    rows = Dataset.from_dict({"response_ids": [[[1]], [[1]] * 3, [[1]] * 5], "scores": [[1.0], [1.0] * 3, [1.0] * 5]})
    assert most_responses(rows) == 5
    assert most_responses(rows.select([0, 1])) == 3
    assert most_responses(Dataset.from_dict({"chosen_ids": [[1]], "rejected_ids": [[2]]})) == 2


# --- forms in files


def read_file(path, kind, rows):
    if kind == "parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif kind == "csv":
        names = list(rows[0])
        cells = [
            [json.dumps(row[name]) if isinstance(row[name], list) else row[name] for name in names] for row in rows
        ]
        Dataset.from_dict(dict(zip(names, zip(*cells, strict=True), strict=True))).to_csv(path)
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    return load_files([path])


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize(
    "row",
    [
        PAIR | {"tie": True, "weight": 0.5},
        PAIR | {"preference_prob": 0.75},
        SCORED,
        RANKED,
        {"response": "a", "scores": 4.0},
        {"response": "a", "score": 4.5},
        LABELLED,
        {"response": "a", "label": False},
    ],
)
def test_every_form_comes_out_of_a_file_as_it_went_in(kind, row, tmp_path):
    loaded = read_file(tmp_path / f"rows.{kind}", kind, [row, row])
    assert loaded[1] == row
    assert [type(value) for value in loaded[1].values()] == [type(value) for value in row.values()]
    assert survey(loaded) == survey(Dataset.from_list([row, row]))


# --- mixtures


def said(text):
    return [{"role": "assistant", "content": text}]


ASKED = [{"role": "user", "content": "Sky?"}]
PARTS = [
    [{"prompt": ASKED, "chosen": said("a"), "rejected": said("b"), "margin": 0.5}] * 2,
    [{"prompt": ASKED, "responses": [said("a"), said("b"), said("c")], "scores": [1, 3, 2], "weight": 2}] * 3,
    [{"responses": [ASKED + said("a"), ASKED + said("b")], "ranks": [2, 1]}] * 2,
]


@pytest.mark.parametrize("streaming", [False, True])
def test_forms_mix_and_prompts_find_their_answers(streaming, tokenizer, tmp_path):
    parts = []
    for number, rows in enumerate(PARTS):
        path = tmp_path / f"part{number}.jsonl"
        path.write_text("\n".join(json.dumps(row) for row in rows))
        parts.append(DatasetPart(str(path)))
    mixture, _ = load_mixture(parts, streaming=streaming)
    if not streaming:
        assert survey(mixture) == ({"pairs", "scores", "ranks"}, {"margin"})
    prepared, _ = prepare_dataset(mixture, tokenizer, max_length=None)
    found = sorted((row["scores"], row["weight"]) for row in prepared)
    expected = [([-2.0, -1.0], 1.0)] * 2 + [([1.0, 0.0], 1.0)] * 2 + [([1.0, 3.0, 2.0], 2.0)] * 3
    assert found == expected
    # The same conversation, whether or not the prompt had a column of its own.
    firsts = {tokenizer.decode(row["response_ids"][0]) for row in prepared}
    assert len(firsts) == 1


@pytest.mark.parametrize("others", [{}, {"responses": "metadata", "scores": "metadata"}])
def test_a_stream_of_pairs_takes_no_other_row_for_a_pair(others, tokenizer):
    """Its first two responses would become the chosen and the rejected one."""
    ranking = {"chosen": None, "rejected": None, "responses": ["a", "b", "c"], "scores": [1.0, 3.0, 2.0]}
    stream = IterableDataset.from_generator(lambda: iter([PAIR | others, ranking]))
    prepared, _ = prepare_dataset(stream, tokenizer, max_length=None)
    with pytest.raises(DataError, match="the first row is a pair") as caught:
        list(prepared)
    assert (caught.value.row, caught.value.field) == (1, "responses")


# --- splits


def chat(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]


@pytest.mark.parametrize(
    "row",
    [
        lambda q, i: {"prompt": q, "responses": [f"a{i}", "b"], "ranks": [1, 2]},
        lambda q, i: {"responses": [chat(q, f"a{i}"), chat(q, "b"), chat(q, "c")], "scores": [1.0, 0.0, 2.0]},
        lambda q, i: {"response": chat(q, f"a{i}"), "label": True},
        # What stands beside a pair does not decide its prompt.
        lambda q, i: {"chosen": chat(q, f"a{i}"), "rejected": chat(q, "b"), "responses": [f"x{i}"], "label": i},
    ],
)
def test_rows_of_one_prompt_stay_on_one_side(row):
    rows = Dataset.from_list([row(f"q{i % 4}", i) for i in range(12)])
    train, test = split_by_prompt(rows, 0.25)
    assert (len(train), len(test)) == (9, 3)
    assert len({json.dumps(list(rows)[index]) for index in range(12)}) == 12
    numbers = [index % 4 for index, one in enumerate(rows) if one in list(test)]
    assert len(set(numbers)) == 1


def test_what_stands_beside_plain_pairs_does_not_move_them():
    pairs = [{"chosen": f"q{i} yes", "rejected": f"q{i} no"} for i in range(20)]
    plain = split_by_prompt(Dataset.from_list(pairs), 0.3)[1]["chosen"][:]
    noisy = [pair | {"label": i, "score": 0.1 * i} for i, pair in enumerate(pairs)]
    assert split_by_prompt(Dataset.from_list(noisy), 0.3)[1]["chosen"][:] == plain
