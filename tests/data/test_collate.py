"""Both layouts say the same about the same rows, and the reference's collator gives the reference's tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit import DataCollatorForPreference
from plaudit.data.collate import ForeignCollator, PaddedCollator, SharedPrefixCollator, pad_right, shortest_examples
from plaudit.model.head import expand_to_padded
from plaudit.prefix_tree import common_prefix_length

ids = st.lists(st.integers(1, 4), min_size=1, max_size=6)
rows = st.lists(st.fixed_dictionaries({"chosen_ids": ids, "rejected_ids": ids}), min_size=1, max_size=4)


def test_reference_collator_output():
    collator = DataCollatorForPreference(pad_token_id=0)
    batch = collator(
        [
            {"chosen_ids": [1, 2, 3], "rejected_ids": [4, 5], "margin": 0.5},
            {"chosen_ids": [6, 7], "rejected_ids": [8], "margin": 0.0},
        ]
    )
    assert list(batch) == ["input_ids", "attention_mask", "margin"]
    assert batch["input_ids"].tolist() == [[1, 2, 3], [6, 7, 0], [4, 5, 0], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 0, 0]]
    assert batch["margin"].tolist() == [0.5, 0.0]
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == torch.int64


def test_reference_collator_pads_to_a_multiple():
    batch = DataCollatorForPreference(pad_token_id=9, pad_to_multiple_of=4)(
        [{"chosen_ids": [1] * 5, "rejected_ids": [2]}]
    )
    assert batch["input_ids"].tolist() == [[1, 1, 1, 1, 1, 9, 9, 9], [2, 9, 9, 9, 9, 9, 9, 9]]


def test_shared_prefix_row_by_hand():
    batch = SharedPrefixCollator()(
        [{"chosen_ids": [1, 2, 3], "rejected_ids": [1, 2, 4, 5]}, {"chosen_ids": [6], "rejected_ids": [7, 8]}]
    )
    #                                     P     R1 R2    | R1 R2
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 6, 7, 8]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 2, 3, 0, 0, 1]]
    assert batch["nodes"] == ((2, -1, 2), (1, 0, 1), (2, 0, 1), (1, -1, 1), (2, -1, 1))
    assert batch["response_lengths"].tolist() == [3, 4, 1, 2]
    assert batch["reward_positions"].tolist() == [2, 4, 5, 7]
    assert (batch["better"].tolist(), batch["worse"].tolist()) == ([0, 2], [1, 3])
    assert batch["attention_mask"].shape == (1, 1, 1, 1)


@given(a=ids, b=ids)
def test_every_response_keeps_a_token_of_its_own(a, b):
    prefix = common_prefix_length([a, b])
    assert 0 <= prefix < min(len(a), len(b))
    assert a[:prefix] == b[:prefix]
    # and the prefix is the longest possible one
    assert prefix == min(len(a), len(b)) - 1 or a[prefix] != b[prefix]


@settings(max_examples=60)
@given(rows=rows)
def test_expanding_the_shared_row_gives_the_responses_back(rows):
    batch = SharedPrefixCollator()(rows)
    input_ids, mask, places = expand_to_padded(batch["input_ids"], batch["nodes"], 0)
    expected = [row[key] for row in rows for key in ("chosen_ids", "rejected_ids")]
    texts = [r[m.bool()].tolist() for r, m in zip(input_ids, mask, strict=True)]
    width = input_ids.shape[1]
    found = [divmod(place, width) for place in places[batch["reward_positions"]].tolist()]
    assert [texts[row][: column + 1] for row, column in found] == expected
    assert set(map(tuple, texts)) == set(map(tuple, expected))
    assert input_ids.flatten()[places].tolist() == batch["input_ids"][0].tolist()


@settings(max_examples=60)
@given(rows=rows)
def test_both_layouts_read_the_same_tokens_for_the_same_comparisons(rows):
    read = []
    for collator in (PaddedCollator(pad_token_id=0), SharedPrefixCollator()):
        batch = collator(rows)
        last = batch["input_ids"].flatten()[batch["reward_positions"]]
        lengths, owner = batch["response_lengths"], batch["example_of_response"]
        better, worse = batch["better"], batch["worse"]
        assert owner[better].tolist() == owner[worse].tolist() == list(range(len(rows)))
        read.append([t[i].tolist() for t in (last, lengths) for i in (better, worse)])
        assert next(iter(batch.values())).shape[0] == len(rows)  # whoever asks for the batch size gets examples
    assert read[0] == read[1]


def test_margin_only_where_the_data_has_one():
    pair = {"chosen_ids": [1, 2], "rejected_ids": [1, 3]}
    for collator in (PaddedCollator(pad_token_id=0), SharedPrefixCollator()):
        assert "margin" not in collator([pair])
        assert collator([{**pair, "margin": 0.25}, {**pair, "margin": 2}])["margin"].tolist() == [0.25, 2.0]


@pytest.mark.parametrize("side", ["right", "left"])
def test_foreign_batches_are_read_at_the_last_attended_token(side):
    def pad(values):
        fill = [0] * (4 - len(values))
        return values + fill if side == "right" else fill + values

    def own_collator(rows):
        responses = [row[key] for key in ("chosen_ids", "rejected_ids") for row in rows]
        return {
            "input_ids": torch.tensor([pad(list(r)) for r in responses]),
            "attention_mask": torch.tensor([pad([1] * len(r)) for r in responses]),
        }

    batch = ForeignCollator(own_collator)([{"chosen_ids": [1, 2, 3], "rejected_ids": [4]}])
    assert batch["input_ids"].flatten()[batch["reward_positions"]].tolist() == [3, 4]
    assert batch["response_lengths"].tolist() == [3, 1]


def test_shortest_examples_keep_their_tokens():
    rows = [
        {"chosen_ids": [1, 2, 3, 4, 5], "rejected_ids": [1, 2, 6]},
        {"chosen_ids": [11, 7], "rejected_ids": [11, 8]},
        {"chosen_ids": [9], "rejected_ids": [10]},  # shares nothing: no test of sharing
        {"chosen_ids": [12, 2, 3], "rejected_ids": [12, 2, 4]},
    ]
    batch = shortest_examples(SharedPrefixCollator()(rows))
    expected = SharedPrefixCollator()([rows[1], rows[3]])
    assert batch["nodes"] == expected["nodes"]
    for key in ("input_ids", "position_ids", "response_lengths", "reward_positions"):
        assert batch[key].tolist() == expected[key].tolist()


# --- any number of responses

listed_rows = st.lists(
    st.lists(st.tuples(ids, st.integers(0, 2)), min_size=1, max_size=4).map(
        lambda pairs: {"response_ids": [ids for ids, _ in pairs], "scores": [float(score) for _, score in pairs]}
    ),
    min_size=1,
    max_size=4,
)


def expected_comparisons(row, ties):
    """Pairs of places and what each counts for, by brute force."""
    s = row["scores"]
    decided = [(i, j, 1.0) for i in range(len(s)) for j in range(len(s)) if s[i] > s[j]]
    tied = [(i, j, 0.5) for i in range(len(s)) for j in range(i + 1, len(s)) if s[i] == s[j]] if ties else []
    return decided + tied


@settings(max_examples=100)
@given(rows=listed_rows, ties=st.booleans())
def test_listed_rows_are_compared_alike_in_both_layouts(rows, ties):
    for collator in (PaddedCollator(pad_token_id=0, ties=ties), SharedPrefixCollator(ties=ties)):
        batch = collator(rows)
        assert next(iter(batch)) == "example_weight"
        assert batch["listed"] is True
        owner = batch["example_of_response"].tolist()
        # Responses of an example come in the order of its row.
        places = [owner[:index].count(g) for index, g in enumerate(owner)]
        last = batch["input_ids"].flatten()[batch["reward_positions"]].tolist()
        for index, (g, n) in enumerate(zip(owner, places, strict=True)):
            assert last[index] == rows[g]["response_ids"][n][-1]
            assert batch["response_lengths"][index] == len(rows[g]["response_ids"][n])
            assert batch["scores"][index] == rows[g]["scores"][n]
        preference_prob = batch.get("preference_prob", torch.ones(len(batch["better"]))).tolist()
        share = batch.get("comparison_share", torch.ones(len(batch["better"]))).tolist()
        found = {g: [] for g in range(len(rows))}
        for better, worse, p, part in zip(
            batch["better"].tolist(), batch["worse"].tolist(), preference_prob, share, strict=True
        ):
            assert owner[better] == owner[worse]
            found[owner[better]].append((places[better], places[worse], p))
            assert part == pytest.approx(1 / len(expected_comparisons(rows[owner[better]], ties)))
        for g, row in enumerate(rows):
            assert found[g] == expected_comparisons(row, ties)


def predictions(batch):
    """What each text position reads and is to predict, with all that comes before it."""
    flat = batch["input_ids"].flatten().tolist()
    return sorted(
        (g, flat[place], target)
        for place, target, g in zip(
            batch["text_positions"].tolist(),
            batch["text_targets"].tolist(),
            batch["text_example"].tolist(),
            strict=True,
        )
    )


@settings(max_examples=100)
@given(rows=listed_rows)
def test_text_positions_read_the_best_response_in_both_layouts(rows):
    expected = []
    for g, row in enumerate(rows):
        best = row["response_ids"][row["scores"].index(max(row["scores"]))]
        # A single response cannot be told from its prompt: all of it is text.
        start = common_prefix_length(row["response_ids"]) if len(row["response_ids"]) > 1 else 0
        expected += [(g, best[t - 1], best[t]) for t in range(max(start, 1), len(best))]
    batches = [PaddedCollator(pad_token_id=0, text=True)(rows), SharedPrefixCollator(text=True)(rows)]
    for batch in batches:
        assert predictions(batch) == sorted(expected)
    # Falling back to the padded layout finds the same tokens again.
    shared = batches[1]
    padded, _, places = expand_to_padded(shared["input_ids"], shared["nodes"], 0)
    found = {"input_ids": padded, "text_positions": places[shared["text_positions"]]}
    assert predictions(shared | found) == sorted(expected)


@pytest.mark.parametrize("collator", [PaddedCollator(pad_token_id=0, text=True), SharedPrefixCollator(text=True)])
def test_own_tokens_by_hand(collator):
    batch = collator(
        [
            {"response_ids": [[5, 6, 7, 8], [5, 6, 9]], "scores": [0.0, 1.0]},
            {"response_ids": [[3, 4, 2]], "scores": [1.0]},
        ]
    )
    tokens = dict.fromkeys(range(3), 0)
    owner = batch["example_of_response"].tolist()
    for index, (g, count) in enumerate(zip(owner, batch["response_tokens"].tolist(), strict=True)):
        tokens[2 * g + owner[:index].count(g)] = count
    assert tokens == {0: 2, 1: 1, 2: 3}
    assert predictions(batch) == [(0, 6, 9), (1, 3, 4), (1, 4, 2)]


@pytest.mark.parametrize("collator", [PaddedCollator(pad_token_id=0, text=True), SharedPrefixCollator(text=True)])
def test_a_strength_says_which_response_is_better(collator):
    rows = [{"chosen_ids": [1, 2], "rejected_ids": [1, 3], "preference_prob": p} for p in (0.25, 0.5, 1.0)]
    batch = collator(rows)
    assert batch["scores"][batch["better"]].tolist() == [0.25, 0.5, 1.0]
    assert batch["scores"][batch["worse"]].tolist() == [0.75, 0.5, 0.0]
    assert batch["preference_prob"].tolist() == [0.25, 0.5, 1.0]
    assert predictions(batch) == [(0, 1, 3), (1, 1, 2), (2, 1, 2)]


def test_what_only_some_rows_say_has_a_neutral_value_for_the_others():
    rows = [
        {"response_ids": [[1], [2]], "scores": [1.0, 0.0], "margin": 0.5, "preference_prob": None, "weight": 2.0},
        {
            "response_ids": [[1], [2], [3]],
            "scores": [2.0, 0.0, 1.0],
            "margin": None,
            "preference_prob": None,
            "weight": None,
        },
    ]
    batch = SharedPrefixCollator()(rows)
    assert batch["margin"].isnan().tolist() == [False, True, True, True]
    assert batch["weight"].tolist() == [2.0, 1.0]
    assert "preference_prob" not in batch
    assert batch["comparison_share"].tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])


def test_foreign_batches_keep_strengths_and_weights():
    def own_collator(rows):
        responses = [row[key] for key in ("chosen_ids", "rejected_ids") for row in rows]
        return dict(zip(("input_ids", "attention_mask"), pad_right(responses, 0), strict=True))

    rows = [{"chosen_ids": [1], "rejected_ids": [2], "preference_prob": p, "weight": 2 * p} for p in (0.5, 1.0)]
    batch = ForeignCollator(own_collator)(rows)
    assert (batch["preference_prob"].tolist(), batch["weight"].tolist()) == ([0.5, 1.0], [1.0, 2.0])
    assert (
        not {"preference_prob", "weight"}
        & ForeignCollator(own_collator)([{"chosen_ids": [1], "rejected_ids": [2]}]).keys()
    )
