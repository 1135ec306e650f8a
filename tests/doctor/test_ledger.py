"""Duplicates, contradictions and cycles, against a search by brute force."""

from __future__ import annotations

import itertools

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit import check_dataset
from plaudit.schema import comparisons_of

ANSWERS = ["red", "green", "blue", "grey"]
PAIR = st.tuples(st.sampled_from(["p", "q"]), st.sampled_from(ANSWERS), st.sampled_from(ANSWERS))


def found(rows):
    check = check_dataset(rows, words=False)
    return {one.kind: list(one.rows) for one in check.findings}


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@given(st.lists(PAIR, min_size=1, max_size=14))
@settings(max_examples=80, deadline=None)
def test_pairs_against_brute_force(pairs):
    result = found([pair(*one) for one in pairs])
    duplicates = [n for n, one in enumerate(pairs) if one in pairs[:n]]
    contradictory = [n for n, (p, a, b) in enumerate(pairs) if a != b and (p, b, a) in pairs]
    graph = networkx.DiGraph(((p, a), (p, b)) for n, (p, a, b) in enumerate(pairs) if a != b and n not in contradictory)
    component = {node: n for n, nodes in enumerate(networkx.strongly_connected_components(graph)) for node in nodes}
    # Of rows that say the same the first one stands for all.
    cyclic = [
        n
        for n, (p, a, b) in enumerate(pairs)
        if a != b and n not in contradictory and n not in duplicates and component[(p, a)] == component[(p, b)]
    ]
    assert result.get("duplicate", []) == duplicates
    assert result.get("contradictory", []) == contradictory
    assert result.get("cycle", []) == cyclic


RANKING = st.lists(st.integers(0, 3), min_size=4, max_size=4)


@given(st.lists(RANKING, min_size=1, max_size=4))
@settings(max_examples=80, deadline=None)
def test_rankings_against_brute_force(rankings):
    rows = [{"prompt": "p", "responses": ANSWERS, "scores": scores} for scores in rankings]
    result = found(rows)
    edges = [set(comparisons_of([float(score) for score in scores])) for scores in rankings]
    opposite = [{(j, i) for i, j in one} for one in edges]
    contradictory = [n for n, one in enumerate(edges) if any(one & other for m, other in enumerate(opposite) if m != n)]
    assert result.get("contradictory", []) == contradictory


def test_a_cycle_over_rankings_and_pairs():
    rows = [
        {"prompt": "p", "responses": ["a", "x", "b"], "scores": [3, 2, 1]},
        {"prompt": "p", "responses": ["b", "c"], "scores": [1, 0]},
        {"prompt": "p", "responses": ["c", "y", "a"], "scores": [5, 4, 3]},
        {"prompt": "other", "responses": ["c", "a"], "scores": [1, 0]},
    ]
    assert found(rows) == {"cycle": [0, 1, 2]}


def test_the_same_answers_to_another_prompt_are_no_contradiction():
    assert found([pair("p", "a", "b"), pair("q", "b", "a")]) == {}


def test_the_order_of_responses_and_the_form_do_not_hide_a_duplicate():
    rows = [
        {"prompt": "p", "responses": ["a", "b", "c"], "scores": [2, 1, 0]},
        {"prompt": "p", "responses": ["c", "a", "b"], "scores": [0, 2, 1]},
    ]
    assert found(rows) == {"duplicate": [1]}


def test_the_same_pair_with_another_margin_is_no_duplicate():
    rows = [pair("p", "a", "b") | {"margin": margin} for margin in (1.0, 2.0)]
    assert found(rows) == {}


def test_all_copies_of_a_contradiction_are_named():
    rows = [pair("p", "a", "b"), pair("p", "a", "b"), pair("p", "b", "a")]
    assert found(rows) == {"contradictory": [0, 1, 2], "duplicate": [1]}


def test_tools_belong_to_the_prompt():
    tools = ['[{"type": "function", "function": {"name": "f"}}]', None]
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "tools": tools[0]},
        {"prompt": "p", "chosen": "b", "rejected": "a", "tools": tools[1]},
    ]
    assert found(rows) == {}


@pytest.mark.parametrize(("labels", "expected"), [((True, False), [0, 1]), ((True, True), [])])
def test_a_thumb_up_and_a_thumb_down_contradict_each_other(labels, expected):
    rows = [
        {"prompt": "p", "response": "a", "label": label, "weight": w} for label, w in zip(labels, (1, 2), strict=True)
    ]
    assert found(rows).get("contradictory", []) == expected


def test_different_grades_of_one_response_do_not():
    rows = [{"prompt": "p", "response": "a", "score": score} for score in (1.0, 4.0)]
    assert found(rows) == {}


def test_a_strength_below_one_half_turns_a_pair_round():
    rows = [pair("p", "a", "b") | {"preference_prob": 0.2}, pair("p", "b", "a") | {"preference_prob": 0.9}]
    assert found(rows) == {}
    rows = [pair("p", "a", "b") | {"preference_prob": 0.8}, pair("p", "b", "a") | {"preference_prob": 0.9}]
    assert found(rows) == {"contradictory": [0, 1]}


def test_one_response_with_two_scores_in_a_row_contradicts_itself():
    rows = [{"prompt": "p", "responses": ["a", "a", "b"], "scores": [2, 1, 0]}]
    assert found(rows) == {"contradictory": [0]}


def test_contradictions_among_token_ids():
    one, other = [1, 2, 3], [1, 2, 4]
    rows = [{"chosen_ids": a, "rejected_ids": b} for a, b in itertools.permutations((one, other))]
    assert found(rows) == {"contradictory": [0, 1]}
