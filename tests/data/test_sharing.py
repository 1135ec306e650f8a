"""What a batch computes once: common prefixes, within an example and across examples, and equal responses."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data.collate import PaddedCollator, SharedPrefixCollator
from plaudit.prefix_tree import SHORTEST_NODE, share_prefixes
from plaudit.schema import EncodedExample, Label

beginnings = st.sampled_from([(), (1,) * 5, (1,) * 9, (1,) * 9 + (2,) * 9, (3,) * 30])
token_lists = st.builds(
    lambda start, rest: [*start, *rest], beginnings, st.lists(st.integers(1, 3), min_size=1, max_size=6)
)
examples_of = st.lists(
    st.lists(token_lists, min_size=1, max_size=4).map(
        lambda ids: EncodedExample(tuple(ids), Label(tuple(float(n) for n in range(len(ids)))))
    ),
    min_size=1,
    max_size=6,
)


def common(a, b):
    return next((t for t, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


@settings(max_examples=200, derandomize=True, deadline=None)
@given(examples=examples_of)
def test_every_response_is_there_and_common_prefixes_are_there_once(examples):
    row = share_prefixes(examples)
    tree = row.tree
    assert len(row.input_ids) == tree.tokens
    texts = []
    for path in tree.paths:
        texts.append([row.input_ids[tree.starts[node] + t] for node in path for t in range(tree.lengths[node])])
    leaves = [path[-1] for path in tree.paths]
    wanted = {(g, n): list(ids) for g, example in enumerate(examples) for n, ids in enumerate(example.response_ids)}
    assert {place: texts[leaves.index(leaf)] for place, leaf in row.leaves.items()} == wanted
    assert [
        [row.input_ids[tree.index_of(leaf, t)] for t in range(len(wanted[place]))] for place, leaf in row.leaves.items()
    ] == list(wanted.values())
    # Each node counts the responses that run through it; no response is there twice; each node follows its parent.
    for node, (length, parent, copies) in enumerate(tree.nodes):
        through = [leaf for leaf in row.leaves.values() if node in tree.paths[leaves.index(leaf)]]
        assert length >= 1
        assert copies == len(through)
        assert parent < node
        children = [child for child, (_, above, _) in enumerate(tree.nodes) if above == node]
        assert not children or (len(children) >= 2 and children[0] == node + 1)
    assert len({tuple(text) for text in texts}) == len(texts)
    # Neighbours share all they have in common, but for nodes that are too short to branch.
    for (text, path), (next_text, next_path) in pairwise(zip(texts, tree.paths, strict=True)):
        shared = sum(tree.lengths[node] for node in set(path) & set(next_path))
        most = min(common(text, next_text), len(text) - 1, len(next_text) - 1)
        assert most - SHORTEST_NODE < shared <= most


def test_one_prompt_in_many_rows_is_computed_once():
    prompt = list(range(10, 40))
    rows = [{"chosen_ids": [*prompt, 1, i], "rejected_ids": [*prompt, 2, i]} for i in range(1, 5)]
    unrelated = {"chosen_ids": [5, 6, 7], "rejected_ids": [5, 6, 8]}
    batch = SharedPrefixCollator()([rows[0], unrelated, *rows[1:]])
    assert batch["nodes"] == ((2, -1, 2), (1, 0, 1), (1, 0, 1), (30, -1, 8), *[(2, 3, 1)] * 8)
    assert batch["input_ids"].shape == (1, 30 + 16 + 4)
    # Two rows with an answer in common, and a filler that repeats a row.
    rows = [
        {"chosen_ids": [*prompt, 1], "rejected_ids": [*prompt, 2]},
        {"chosen_ids": [*prompt, 2], "rejected_ids": [*prompt, 3]},
    ]
    batch = SharedPrefixCollator()([*rows, {**rows[1], "example_weight": 0.0}])
    assert batch["nodes"] == ((30, -1, 6), (1, 0, 1), (1, 0, 3), (1, 0, 2))
    last = batch["input_ids"][0][batch["reward_positions"]].tolist()
    assert last == [1, 2, 2, 3, 2, 3]
    assert batch["example_weight"].tolist() == [1, 1, 0]


def test_prompts_share_what_they_have_in_common_and_so_do_responses():
    system = list(range(100, 120))
    rows = [{"chosen_ids": [*system, *[k] * 10, 7], "rejected_ids": [*system, *[k] * 10, 8, 8]} for k in (3, 4)]
    nodes = SharedPrefixCollator()(rows)["nodes"]
    assert nodes == ((20, -1, 4), (10, 0, 2), (1, 1, 1), (2, 1, 1), (10, 0, 2), (1, 4, 1), (2, 4, 1))
    # Too short a question to branch again: it is computed for both of its answers, the system prompt once.
    rows = [{"chosen_ids": [*system, k, k, 7], "rejected_ids": [*system, k, k, 8]} for k in (3, 4)]
    assert SharedPrefixCollator()(rows)["nodes"] == ((20, -1, 4), *[(3, 0, 1)] * 4)
    # Answers that begin alike; the third does not.
    responses = [[*system, *[5] * 12, 1], [*system, *[5] * 12, 2], [*system, 6]]
    batch = SharedPrefixCollator()([{"response_ids": responses, "scores": [2.0, 1.0, 0.0]}])
    assert batch["nodes"] == ((20, -1, 3), (12, 0, 2), (1, 1, 1), (1, 1, 1), (1, 0, 1))
    assert batch["response_tokens"].tolist() == [13, 13, 1]


def test_a_short_common_start_of_prompts_is_not_worth_a_branch():
    # Every text starts with the same token; each pair shares its own prompt, however short.
    rows = [{"chosen_ids": [1, k, k, 7], "rejected_ids": [1, k, k, 8]} for k in (3, 4)]
    assert SharedPrefixCollator()(rows)["nodes"] == (
        (3, -1, 2),
        (1, 0, 1),
        (1, 0, 1),
        (3, -1, 2),
        (1, 3, 1),
        (1, 3, 1),
    )


@settings(max_examples=60, derandomize=True, deadline=None)
@given(examples=examples_of)
def test_both_layouts_predict_the_same_tokens_and_count_the_same_lengths(examples):
    rows = [
        {"response_ids": [list(ids) for ids in example.response_ids], "scores": list(example.label.ratings)}
        for example in examples
    ]
    read = []
    for collator in (PaddedCollator(pad_token_id=0, text=True), SharedPrefixCollator(text=True)):
        batch = collator(rows)
        flat = batch["input_ids"].flatten()
        order = sorted(range(len(batch["scores"])), key=lambda i: (batch["example_of_response"][i], batch["scores"][i]))
        read.append(
            [
                flat[batch["text_positions"]].tolist(),
                batch["text_targets"].tolist(),
                batch["text_example"].tolist(),
                batch["response_tokens"][order].tolist(),
                flat[batch["reward_positions"]][order].tolist(),
            ]
        )
    assert read[0] == read[1]
