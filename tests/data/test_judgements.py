"""Every form of label is read, plain and conversational; every broken value is named with its row and a fix."""

import pytest
from datasets import Dataset, IterableDataset

from plaudit.data.parse import read_example
from plaudit.data.prepare import prepare_dataset
from plaudit.errors import DataError
from plaudit.objectives import make_objective
from plaudit.schema import Label, ratings_of

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
ANSWERS = ["Blue.", "Green.", "Red."]
PAIR = {"chosen": "Blue.", "rejected": "Green."}
FORMS = [
    (PAIR, "pairs", Label()),
    ({**PAIR, "margin": 2}, "pairs", Label(margin=2.0)),
    ({**PAIR, "preference_prob": 0.7}, "pairs", Label(preference_prob=0.7)),
    ({**PAIR, "preference_prob": 1}, "pairs", Label(preference_prob=1.0)),
    ({**PAIR, "tie": True}, "pairs", Label(preference_prob=0.5)),
    ({**PAIR, "tie": 1, "preference_prob": None}, "pairs", Label(preference_prob=0.5)),
    ({**PAIR, "tie": True, "preference_prob": 0.5}, "pairs", Label(preference_prob=0.5)),
    ({**PAIR, "tie": False, "preference_prob": 0.9}, "pairs", Label(preference_prob=0.9)),
    ({**PAIR, "tie": None}, "pairs", Label()),
    ({**PAIR, "weight": 0}, "pairs", Label(weight=0.0)),
    ({"responses": ANSWERS, "scores": [1, 2.5, -1]}, "scores", Label((1.0, 2.5, -1.0))),
    ({"responses": ANSWERS, "scores": [1, 1, 0], "weight": 3}, "scores", Label((1.0, 1.0, 0.0), weight=3.0)),
    ({"responses": ANSWERS[:1], "scores": [4]}, "scores", Label((4.0,))),
    ({"responses": ANSWERS, "ranks": [2, 1, 3]}, "ranks", Label((-2.0, -1.0, -3.0))),
    ({"responses": ANSWERS, "ranks": [1, 1, 3]}, "ranks", Label((-1.0, -1.0, -3.0))),
    ({"responses": ANSWERS, "ranks": [1.0, 1.0, 2.0]}, "ranks", Label((-1.0, -1.0, -2.0))),
    ({"response": "Blue.", "scores": 4}, "ratings", Label((4.0,))),
    ({"response": "Blue.", "scores": [4.5]}, "ratings", Label((4.5,))),
    ({"response": "Blue.", "score": -1}, "ratings", Label((-1.0,))),
    ({"response": "Blue.", "label": True}, "labels", Label((1.0,))),
    ({"response": "Blue.", "label": 0}, "labels", Label((0.0,))),
]


def said(text):
    return [{"role": "assistant", "content": text}]


def in_messages(row):
    texts = {name: said(row[name]) for name in ("chosen", "rejected", "response") if name in row}
    if "responses" in row:
        texts["responses"] = [said(text) for text in row["responses"]]
    return {**row, **texts, "prompt": [{"role": "user", "content": "Sky?"}], "tools": TOOLS}


@pytest.mark.parametrize(("row", "row_kind", "label"), FORMS)
def test_forms_of_plain_text(row, row_kind, label):
    example = read_example({"prompt": "Sky? ", **row}, row_number=0)
    assert (example.row_kind, example.label) == (row_kind, label)
    assert example.responses == tuple(f"Sky? {text}" for text in ANSWERS)[: len(example.responses)]
    assert len(example.responses) == len(label.ratings)


@pytest.mark.parametrize(("row", "row_kind", "label"), FORMS)
def test_forms_of_conversations_with_tools(row, row_kind, label):
    example = read_example(in_messages(row), row_number=0)
    assert (example.row_kind, example.label, example.tools) == (row_kind, label, TOOLS)
    texts = [[message["content"] for message in response] for response in example.responses]
    assert texts == [["Sky?", text] for text in ANSWERS][: len(texts)]


NAN = float("nan")
K = {"responses": ANSWERS}
ONE = {"response": "Blue."}
BROKEN = [
    ({**PAIR, "margin": None}, "margin", "null"),
    ({**PAIR, "margin": NAN}, "margin", "nan"),
    ({**PAIR, "preference_prob": -0.1}, "preference_prob", "-0.1"),
    ({**PAIR, "preference_prob": 1.01}, "preference_prob", "1.01"),
    ({**PAIR, "preference_prob": NAN}, "preference_prob", "nan"),
    ({**PAIR, "preference_prob": True}, "preference_prob", "a truth value"),
    ({**PAIR, "preference_prob": None, "tie": False}, "preference_prob", "null"),
    ({**PAIR, "preference_prob": 0.8, "tie": True}, "preference_prob", "is a tie"),
    ({**PAIR, "tie": "yes"}, "tie", "text"),
    ({**PAIR, "tie": 2}, "tie", "2"),
    ({**PAIR, "weight": -1}, "weight", "-1"),
    ({**PAIR, "weight": None}, "weight", "null"),
    ({**K, "scores": [1, 2]}, "scores", "2 numbers for 3 responses"),
    ({**K, "scores": [1, None, 0]}, "scores[1]", "null"),
    ({**K, "scores": [1, 2, float("inf")]}, "scores[2]", "inf"),
    ({**K, "scores": [1, "2", 0]}, "scores[1]", "text"),
    ({**K, "scores": [True, False, True]}, "scores[0]", "a truth value"),
    ({**K, "scores": 3}, "scores", "not a list"),
    ({**K, "scores": None}, "scores", "null"),
    (K, "scores", "null"),
    ({**K, "ranks": None}, "ranks", "null"),
    ({**K, "ranks": [1, 2]}, "ranks", "2 numbers for 3 responses"),
    ({**K, "ranks": [0, 1, 2]}, "ranks[0]", "0"),
    ({**K, "ranks": [1, 2.5, 3]}, "ranks[1]", "2.5"),
    ({**K, "ranks": [1, 2, 4]}, "ranks", "a 4 but no 3"),
    ({**K, "ranks": [2, 2, 3]}, "ranks", "a 2 but no 1"),
    ({"responses": [], "scores": []}, "responses", "empty"),
    ({"responses": "Blue.", "scores": [1]}, "responses", "text"),
    ({"responses": ["Blue.", None], "scores": [1, 0]}, "responses[1]", "null"),
    ({**ONE, "scores": NAN}, "scores", "nan"),
    ({**ONE, "scores": [1, 2]}, "scores", "2 numbers for 1 response"),
    ({**ONE, "score": None}, "score", "null"),
    ({**ONE, "score": "good"}, "score", "text"),
    ({**ONE, "label": None}, "label", "null"),
    ({**ONE, "label": 0.5}, "label", "0.5"),
    ({**ONE, "label": "good"}, "label", "text"),
    ({"response": None, "label": True}, "response", "null"),
]


@pytest.mark.parametrize(("row", "field", "says"), BROKEN)
def test_broken_values_are_named(row, field, says):
    with pytest.raises(DataError) as caught:
        read_example({"prompt": "Sky? ", **row}, row_number=7, dataset_name="train")
    error = caught.value
    assert (error.row, error.field, error.dataset) == (7, field, "train")
    assert says in error.message
    assert error.fix


def test_a_pair_is_a_pair_whatever_stands_beside_it():
    noise = {"responses": 3, "scores": "x", "ranks": None, "response": 1, "label": "spam", "score": "n/a"}
    example = read_example({"prompt": "Sky? ", **PAIR, **noise}, row_number=0)
    assert (example.row_kind, example.responses) == ("pairs", ("Sky? Blue.", "Sky? Green."))


@pytest.mark.parametrize(
    ("label", "ratings"),
    [
        (Label(), (1.0, 0.0)),
        (Label(preference_prob=0.5), (0.5, 0.5)),
        (Label(preference_prob=0.25), (0.25, 0.75)),
        (Label((0.0, 1.0), preference_prob=0.75), (0.25, 0.75)),
        (Label((2.0, 1.0, 3.0)), (2.0, 1.0, 3.0)),
    ],
)
def test_goodness_follows_the_strength(label, ratings):
    assert ratings_of(label) == ratings


# --- rows of token ids


def test_tokenised_lists_and_pairs_in_one_set():
    pair = {"chosen_ids": [1, 2], "rejected_ids": [1, 3], "response_ids": None, "scores": None}
    assert read_example(pair, row_number=0).response_ids == ([1, 2], [1, 3])
    ranked = {"chosen_ids": None, "rejected_ids": None, "response_ids": [[1], [2], [3]], "scores": [1, 1, 0]}
    example = read_example(ranked, row_number=0)
    assert (example.response_ids, example.label) == (([1], [2], [3]), Label((1.0, 1.0, 0.0)))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scores": [1, 2]}, "scores"),
        ({"scores": None}, "scores"),
        ({"response_ids": None}, "response_ids"),
        ({"response_ids": []}, "response_ids"),
        ({"response_ids": [[1], [], [2]]}, "response_ids[1]"),
        ({"response_ids": [[1], [-1], [2]]}, "response_ids[1][0]"),
        ({"margin": NAN}, "margin"),
        ({"margin": "wide"}, "margin"),
        ({"preference_prob": 2.0}, "preference_prob"),
        ({"weight": -1.0}, "weight"),
    ],
)
def test_broken_lists_of_token_ids_are_named(changes, field):
    row = {"response_ids": [[1], [2], [3]], "scores": [1, 0, 0], **changes}
    with pytest.raises(DataError) as caught:
        read_example(row, row_number=3)
    assert (caught.value.row, caught.value.field) == (3, field)


# --- what an objective cannot learn from


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("objective", "row", "field"),
    [
        ("scaled_bradley_terry", {"chosen_ids": [1], "rejected_ids": [2], "margin": -0.5}, "margin"),
        ("binary_cross_entropy", {"response_ids": [[1]], "scores": [4.0]}, "scores"),
    ],
)
def test_values_outside_the_range_of_an_objective(objective, row, field, streaming):
    rows = [row | {field: [1.0] if field == "scores" else 1.0}, row]
    data = IterableDataset.from_generator(lambda: iter(rows)) if streaming else Dataset.from_list(rows)

    def prepare(objective):
        return list(prepare_dataset(data, None, max_length=None, objective=objective, purpose="predict")[0])

    with pytest.raises(DataError) as caught:
        prepare(make_objective(objective))
    assert (caught.value.row, caught.value.field) == (1, field)
    assert len(prepare(make_objective("hinge"))) == 2


def test_ties_of_rows_that_are_no_pairs_are_nobodys_business(tokenizer):
    row = {"prompt": "Sky? ", "responses": ANSWERS, "scores": [1.0, 2.0, 0.0], "tie": True}
    prepared, _ = prepare_dataset(Dataset.from_list([row]), tokenizer, max_length=None)
    assert prepared["scores"][:] == [[1.0, 2.0, 0.0]]


def test_rows_of_a_mixed_set_may_lack_a_weight(tokenizer):
    pair, ranked = {**PAIR, "weight": 2.0}, {"responses": ANSWERS, "ranks": [1, 2, 3]}
    rows = [dict.fromkeys((*pair, *ranked)) | row for row in (pair, ranked)]
    prepared, _ = prepare_dataset(Dataset.from_list(rows), tokenizer, max_length=None)
    assert prepared["weight"][:] == [2.0, None]


def test_columns_beside_pairs_that_are_kept_come_through(tokenizer):
    """A collator of the caller's own may read them."""
    noise = {"label": "spam", "score": 3, "response": "x", "responses": ["y"], "ranks": [1]}
    prepared, _ = prepare_dataset(Dataset.from_list([PAIR | noise]), tokenizer, max_length=None, keep_columns=True)
    assert set(prepared.column_names) == {"chosen_ids", "rejected_ids", *noise}
    ranked = {"responses": ANSWERS, "scores": [1, 2, 3], "id": "a"}
    prepared, _ = prepare_dataset(Dataset.from_list([ranked]), tokenizer, max_length=None, keep_columns=True)
    assert set(prepared.column_names) == {"response_ids", "scores", "id"}


def test_one_cache_for_each_objective(tokenizer, tmp_path):
    Dataset.from_list([{**PAIR, "margin": -1.0}]).to_parquet(tmp_path / "rows.parquet")
    rows = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    prepare_dataset(rows, tokenizer, max_length=None, objective=make_objective("hinge"))
    with pytest.raises(DataError, match="multiplies by it"):
        prepare_dataset(rows, tokenizer, max_length=None, objective=make_objective("scaled_bradley_terry"))
