"""Shortcuts: values against independent computations, and no prompt on both sides of a fold."""

from __future__ import annotations

import random

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from doctor.clean_sets import WORDS, clean_rows, said
from plaudit import check_dataset
from plaudit.doctor import shortcuts as bag_of_words
from plaudit.doctor.rows import Sample
from plaudit.doctor.shortcuts import BagOfWords, count_words, fit_bradley_terry, out_of_fold
from plaudit.intervals import wilson_interval


def text(row, name):
    return row[name][0]["content"]


def test_always_longer_counts_characters_and_halves_ties():
    rows = clean_rows(301)
    rows[5]["chosen"] = said("x" * len(text(rows[5], "rejected")))
    wins = [len(text(row, "chosen")) > len(text(row, "rejected")) for row in rows]
    ties = [len(text(row, "chosen")) == len(text(row, "rejected")) for row in rows]
    expected = (sum(wins) + 0.5 * sum(ties)) / 301
    shortcut = check_dataset(rows, words=False).shortcuts[0]
    assert shortcut.accuracy == pytest.approx(expected)
    assert (shortcut.low, shortcut.high) == wilson_interval(expected * 301, 301)
    assert shortcut.rows == 301


def test_rankings_count_each_row_once():
    rows = [
        {"prompt": "a", "responses": ["xxx", "xx", "x"], "scores": [3, 2, 1]},
        {"prompt": "b", "responses": ["x", "xx"], "scores": [1, 0]},
        {"prompt": "c", "responses": ["x", "xx"], "scores": [1, 1]},
        {"prompt": "d", "responses": ["xxx", "x", "xx"], "scores": [1, 0.5, 0]},
    ]
    shortcut = check_dataset(rows).shortcuts[0]
    assert shortcut.rows == 3
    assert shortcut.accuracy == pytest.approx((1 + 0 + 2 / 3) / 3)


def test_a_prompt_does_not_count_as_length():
    rows = [
        {"chosen": f"Human: {'x' * n}\n\nAssistant: ab", "rejected": f"Human: {'x' * n}\n\nAssistant: a"}
        for n in range(9)
    ]
    assert check_dataset(rows).shortcuts[0].accuracy == 1.0


def informative(count, seed=0):
    """Pairs whose better answer has the word gold somewhat more often."""
    draw = random.Random(seed)
    rows = clean_rows(count, seed)
    for row in rows:
        for name, chance in (("chosen", 0.7), ("rejected", 0.3)):
            if draw.random() < chance:
                row[name] = said(f"{text(row, name)} gold")
    return rows


def test_out_of_fold_probabilities_are_those_of_a_model_fitted_on_the_other_folds(monkeypatch):
    monkeypatch.setattr(bag_of_words, "STRENGTHS", (0.1,))
    rows = informative(60)
    better, worse = ([text(row, name) for row in rows] for name in ("chosen", "rejected"))
    _, better_counts, worse_counts = count_words(better, worse)
    vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=r"[^\s]+", min_df=2).fit(better + worse)
    differences = (vectorizer.transform(better) - vectorizer.transform(worse)).toarray()
    assert np.array_equal((better_counts - worse_counts).toarray(), differences)
    groups = np.repeat(np.arange(20), 3)
    found = out_of_fold(csr_matrix(differences), groups, folds=4)
    from sklearn.model_selection import GroupKFold

    for fit, judge in GroupKFold(4).split(differences, groups=groups):
        # Mirrored data has the same optimum as each row once in both directions, at half the penalty's weight.
        both = np.concatenate([differences[fit], -differences[fit]])
        labels = np.repeat([1, -1], len(fit))
        model = LogisticRegression(C=0.05, fit_intercept=False, tol=1e-8, max_iter=5000).fit(both, labels)
        expected = model.predict_proba(differences[judge])[:, 1]
        assert found[judge] == pytest.approx(expected, abs=5e-3)


def test_the_bag_of_words_finds_what_there_is_to_find():
    rows = informative(800)
    found = check_dataset(rows).shortcuts[1]
    golds = [(text(row, "chosen").count("gold"), text(row, "rejected").count("gold")) for row in rows]
    best = np.mean([(a > b) + 0.5 * (a == b) for a, b in golds])
    assert abs(found.accuracy - best) < 0.06
    assert found.low > 0.6


def test_prompts_are_never_on_both_sides_of_a_fold():
    draw = random.Random(0)
    rows = []
    for prompt in range(40):
        names = draw.sample(WORDS, 2)
        # Within a prompt one word decides; over prompts no word means anything.
        rows += [
            {
                "prompt": f"prompt {prompt}",
                "chosen": f"{names[0]}{prompt} is it.",
                "rejected": f"{names[1]}{prompt} is it.",
            }
        ] * 6
    found = check_dataset(rows).shortcuts[1]
    assert 0.3 < found.accuracy < 0.7


def test_rewards_of_a_bag_of_words_are_those_of_the_fitted_model():
    rows = informative(400)
    pairs = [(text(row, "chosen"), text(row, "rejected")) for row in rows]
    better, worse = zip(*pairs, strict=True)
    words = BagOfWords.fit(better[:300], worse[:300], list(range(300)))
    margins = words.rewards(better[300:]) - words.rewards(worse[300:])
    vectorizer = CountVectorizer(ngram_range=(1, 2), token_pattern=r"[^\s]+", min_df=2)
    vectorizer.fit([one for pair in pairs[:300] for one in pair])
    sides = [vectorizer.transform([pair[side] for pair in pairs]) for side in (0, 1)]
    model = fit_bradley_terry((sides[0] - sides[1])[:300], list(range(300)))
    assert margins == pytest.approx(model.decision_function((sides[0] - sides[1])[300:]), abs=1e-9)
    assert words.comparisons == 300


def test_the_cap_on_rows_is_kept_and_said():
    rows = informative(400)
    shortcut = check_dataset(rows, sample_rows=100).shortcuts[1]
    assert shortcut.rows == 100
    assert "on 100 of 400 rows, drawn at random" in shortcut.note
    assert check_dataset(rows, sample_rows=100, seed=1).shortcuts[1].accuracy != shortcut.accuracy
    assert check_dataset(rows, sample_rows=100).shortcuts[1] == shortcut


def test_too_little_to_say_anything():
    check = check_dataset(clean_rows(10))
    assert [one.name for one in check.shortcuts] == ["always the longer"]
    assert "Too few comparisons, prompts or words for a bag of words." in check.notes


def test_the_sample_is_fair():
    from plaudit.doctor.rows import CheckedRow, Parts

    parts = Parts(("p",), 0, ("a", "b"), (False, False))
    drawn = np.zeros(50)
    for seed in range(400):
        sample = Sample(10, seed)
        for number in range(50):
            sample.add(CheckedRow(number, ratings=(1.0, 0.0), parts=parts))
        pairs = sample.comparisons()
        assert [(pair.better, pair.worse) for pair in pairs] == [("a", "b")] * 10
        for pair in pairs:
            drawn[pair.row] += 1
    # Each of 50 rows is drawn with probability 1/5: 80 times of 400, give or take 8.
    assert np.all(np.abs(drawn - 80) < 35)


def test_a_length_that_decides_is_a_warning():
    rows = [row | {"rejected": said(text(row, "chosen") + " more words here.")} for row in clean_rows(100)]
    check = check_dataset(rows, words=False)
    assert check.finding("shortcut").lines == ("the shorter response is the better one in 100%",)
    assert check.ok
