"""Suites read their published files and follow their published rules, by small tables worked out by hand."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evaluation.refusals import refused
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation.compare import compare
from plaudit.evaluation.results import to_plain
from plaudit.evaluation.suites.base import Preferences
from plaudit.evaluation.suites.benchmarks import SECTIONS
from plaudit.evaluation.suites.registry import SUITES, find_suite
from plaudit.evaluation.table import ScoredSet


def write(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def scored(rows, rewards) -> ScoredSet:
    """Rewards are lists for rows, or a function of a response's text."""
    if callable(rewards):
        per_row = [[rewards(text) for text in texts_of(row.raw)] for row in rows]
        return ScoredSet(row.scored(one) for row, one in zip(rows, per_row, strict=True))
    return ScoredSet(row.scored(one) for row, one in zip(rows, rewards, strict=True))


def texts_of(raw):
    responses = raw.get("responses") or [raw["chosen"], raw["rejected"]]
    return [one if isinstance(one, str) else one[-1]["content"] for one in responses]


def load(name, *sources):
    suite, source = find_suite(f"{name}={sources[0]}")
    return suite, suite.load(list(sources)) if len(sources) > 1 else suite.load(source)


# --- RewardBench ----------------------------------------------------------------------------------------------


def rb(subset, number=0):
    names = {"prompt": f"question {subset} {number}", "chosen": "good", "rejected": "bad"}
    return names | {"chosen_model": "a", "rejected_model": "b", "subset": subset, "id": number}


def test_reward_bench_weighs_subsets_by_prompts_and_math_by_984(tmp_path):
    rows = [rb(subset, number) for subsets in SECTIONS.values() for subset in subsets for number in range(2)]
    suite, read = load("rewardbench", write(tmp_path / "filtered.parquet", rows))
    assert read[0].raw["prompt"] == [{"role": "user", "content": "question alpacaeval-easy 0"}]
    right = {"alpacaeval-easy": 2, "mt-bench-hard": 1, "xstest-should-respond": 2, "math-prm": 2, "hep-go": 1}
    rewards = [
        [1.0, 0.0] if number < right.get(row.columns["subset"], 0) else [0.0, number * 1.0]
        for number, row in zip([0, 1] * (len(rows) // 2), read, strict=True)
    ]
    found = suite.score(scored(read, rewards))
    sections = {
        "Chat": 100 / 358,
        "Chat Hard": 0.5 * 37 / 456,
        "Safety": 250 / 740,
        "Reasoning": (984 + 0.5 * 164) / (984 + 6 * 164),
    }
    assert {name: found.scores[name] for name in sections} == pytest.approx(sections)
    assert found.score == pytest.approx(np.mean(list(sections.values())))
    assert found.scores["Safety (weights of the published code)"] == pytest.approx(154 / 740)
    assert found.notes == ()
    assert len(found.slices) == 23
    easy = next(one for one in found.slices if one.name == "alpacaeval-easy")
    assert (easy.n, easy.score, easy.margin, easy.group) == (2, 1.0, 1.0, "Chat")
    assert to_plain(found)["slices"][0]["interval"] == list(found.slices[0].interval)


def test_reward_bench_of_a_published_run(tmp_path):
    """Counts that a model's authors reported in pull request 206 of allenai/reward-bench."""
    right = [
        "99",
        "90",
        "90",
        "28",
        "39",
        "33",
        "95",
        "121",
        "89",
        "41",
        "39",
        "96",
        "99",
        "147",
        "239",
        "105",
        "446",
        "161",
        "160",
        "163",
        "163",
        "160",
        "156",
    ]
    order = [
        *("alpacaeval-easy", "alpacaeval-length", "alpacaeval-hard", "mt-bench-easy", "mt-bench-med", "mt-bench-hard"),
        *(f"llmbar-{name}" for name in ("natural", "adver-neighbor", "adver-GPTInst", "adver-GPTOut", "adver-manual")),
        *("refusals-dangerous", "refusals-offensive", "xstest-should-refuse", "xstest-should-respond", "donotanswer"),
        *("math-prm", "hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"),
    ]
    sizes = {name: weight for subsets in SECTIONS.values() for name, weight in subsets.items()} | {"math-prm": 447}
    assert sum(sizes.values()) == 2985  # rows of the split `filtered`
    rows, rewards = [], []
    for subset, count in zip(order, map(int, right), strict=True):
        rows += [rb(subset, number) for number in range(sizes[subset])]
        rewards += [[1.0, 0.0] if number < count else [0.0, 1.0] for number in range(sizes[subset])]
    suite, read = load("rewardbench", write(tmp_path / "filtered.jsonl", rows))
    found = suite.score(scored(read, rewards))
    assert found.scores["Chat"] == pytest.approx((99 + 90 + 90 + 28 + 39) / 358)
    assert found.scores["Chat Hard"] == pytest.approx((33 + 95 + 121 + 89 + 41 + 39) / 456)
    assert found.scores["Safety"] == pytest.approx((96 + 99 + 147 + 239 + 105) / 740)
    code = (161 + 160 + 163 + 163 + 160 + 156) / 984
    assert found.scores["Reasoning"] == pytest.approx((446 / 447 + code) / 2)


def test_prior_sets_count_half_and_only_the_four_of_them(tmp_path):
    core = write(tmp_path / "core.jsonl", [rb("alpacaeval-easy"), rb("donotanswer")])
    prompt = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
    prompt.append({"role": "user", "content": "why"})
    prior = [{"prompt": prompt, "chosen": "good", "rejected": "bad", "subset": "helpful", "id": 0}]
    shp = write(tmp_path / "shp-00000-of-00001.parquet", prior)
    other = write(tmp_path / "other.jsonl", [prior[0] | {"subset": name} for name in ("summarize", "pku_safer")])
    suite, read = load("rewardbench", core, shp, other)
    assert [row.row for row in read] == [0, 1, 2, 3, 4]
    found = suite.score(scored(read, [[1, 0], [1, 0], [1, 0], [0, 1], [1, 0]]))
    assert found.scores["Prior Sets"] == 0.5
    assert found.score == pytest.approx((1 + 1 + 0.5 * 0.5) / 2.5)
    assert "1 rows of `pku_safer` count nowhere." in found.notes
    assert "The prior sets lack anthropic_helpful, anthropic_hhh." in found.notes
    assert any(note.startswith("No rows of Reasoning") for note in found.notes)
    assert found.rows == 4


# --- RewardBench 2 --------------------------------------------------------------------------------------------


def rb2(row_id, subset, right=1, wrong=3):
    return {
        "id": row_id,
        "prompt": f"question {row_id}",
        "chosen": [f"right {n}" for n in range(right)],
        "rejected": [f"wrong {n}" for n in range(wrong)],
        "num_correct": right,
        "num_incorrect": wrong,
        "total_completions": right + wrong,
        "models": ["m"] * (right + wrong),
        "subset": subset,
        "additional_metadata": {"category": None, "correct": "x"},
    }


def test_reward_bench_2_best_of_four_shares_equal_rewards(tmp_path):
    rows = [rb2(str(n), "Math") for n in range(4)]
    suite, read = load("rewardbench2", write(tmp_path / "test.parquet", rows))
    rewards = [[3, 2, 1, 0], [2, 2, 1, 0], [1, 1, 1, 1], [0, 1, 0, 0]]
    found = suite.score(scored(read, rewards))
    assert found.score == pytest.approx((1 + 1 / 2 + 1 / 4 + 0) / 4)
    assert found.slices[0].n == 4
    assert any(note.startswith("No score of Factuality, Precise IF") for note in found.notes)


def ties_by_hand(tied, ref):
    """The published formula for one question, from rewards (right, wrong)."""
    spread = max(tied[0]) - min(tied[0])
    gap_tied, gap_ref = min(tied[0]) - max(tied[1]), min(ref[0]) - max(ref[1])
    smaller = min(gap_tied, gap_ref)
    margin = math.tanh(smaller / spread - 1) if spread else (math.copysign(1, smaller) if smaller else 0.0)
    return [gap_tied > 0, gap_ref > 0, gap_tied > spread, smaller > spread, margin]


def test_reward_bench_2_ties(tmp_path):
    questions = [
        (([5.0, 4.0], [1.0, 0.0]), ([4.5], [2.0, 0.0])),  # all right, gaps above the spread
        (([5.0, 2.0], [1.0, 0.0]), ([4.5], [2.0, 0.0])),  # gap below the spread
        (([5.0, 4.0], [1.0, 0.0]), ([1.0], [0.5, 0.9])),  # the reference has the smaller gap
        (([3.0, 3.0], [3.5, 0.0]), ([0.0], [2.0, 0.0])),  # wrong, no spread
        (([3.0, 3.0], [3.0, 0.0]), ([2.0], [2.0, 0.0])),  # no gap and no spread
    ]
    rows, rewards = [], []
    for number, (tied, ref) in enumerate(questions):
        for kind, (right, wrong) in (("tied", tied), ("ref", ref)):
            rows.append(rb2(f"{kind}:{number}", "Ties", len(right), len(wrong)))
            rewards.append(right + wrong)
    suite, read = load("rewardbench2", write(tmp_path / "test.jsonl", [*rows, rb2("a", "Math")]))
    assert read[0].columns == {"subset": "Ties", "kind": "tied", "question": "0"}
    found = suite.score(scored(read, [*rewards, [1, 0, 0, 0]]))
    means = np.mean([ties_by_hand(*one) for one in questions], axis=0)
    expected = 0.3 * means[0] + 0.3 * means[1] + 0.2 * means[2] + 0.2 * means[3] + 0.01 * means[4]
    ties = next(one for one in found.slices if one.name == "Ties")
    assert ties.score == pytest.approx(expected)
    assert found.scores["Ties: preferred_hard"] == pytest.approx(means[3]) == 0.2
    assert ties.interval.low < ties.score < ties.interval.high
    assert found.score == pytest.approx((expected + 1) / 2)


def test_ties_without_their_reference_are_left_out_aloud(tmp_path):
    rows = [rb2("tied:1", "Ties", 2), rb2("ref:2", "Ties", 1), rb2("a", "Math")]
    suite, read = load("rewardbench2", write(tmp_path / "test.jsonl", rows))
    found = suite.score(scored(read, [[2, 2, 1, 1, 1], [1, 0, 0, 0], [0, 1, 1, 1]]))
    assert found.score == 0
    assert any("no question in both forms" in note for note in found.notes)


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        (rb2("x", "Ties"), "id", "'x'"),
        (rb2("tied:1", "Ties"), "chosen", "single"),
        (rb2("x", "Math", right=2), "chosen", "2 answers"),
        (rb2("x", "Math") | {"rejected": []}, "rejected", "list of 0"),
        (rb2("x", "Math") | {"chosen": [None]}, "chosen[0]", "null"),
        (rb2("x", "Math") | {"prompt": None}, "prompt", "null"),
    ],
)
def test_broken_rows_of_reward_bench_2(tmp_path, row, field, value):
    with refused(DataError, value, row=1, field=field):
        load("rewardbench2", write(tmp_path / "test.jsonl", [rb2("a", "Math"), row]))


# --- RM-Bench -------------------------------------------------------------------------------------------------


def rm(domain, number=0):
    sides = {side: [f"{side} {style}" for style in ("c", "d", "m")] for side in ("chosen", "rejected")}
    return {"id": number, "prompt": f"{domain} {number}", **sides, "domain": domain}


def test_rm_bench_reads_difficulty_off_the_style_matrix(tmp_path):
    rows = [rm("chat"), rm("chat", 1), rm("math"), rm("safety-refuse"), rm("safety-response")]
    suite, read = load("rm-bench", write(tmp_path / "total_dataset.json", rows))
    rewards = [
        [1, 2, 3, 0.5, 1.5, 2.5],  # the fancier the better, and right at equal style: hard 0, normal 1, easy 1
        [9, 9, 9, 0, 0, 0],  # all right
        [1, 1, 1, 1, 1, 1],  # equal rewards are not right
        [9, 9, 9, 0, 0, 0],
        [0, 0, 0, 9, 9, 9],
    ]
    found = suite.score(scored(read, rewards))
    assert (found.scores["chat: hard"], found.scores["chat: normal"], found.scores["chat: easy"]) == (0.5, 1, 1)
    assert {one.name: one.score for one in found.slices} == pytest.approx({"chat": 2.5 / 3, "math": 0, "safety": 0.5})
    assert found.scores["hard"] == pytest.approx((0.5 + 0 + 0.5) / 3)
    assert found.scores["easy"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert (found.scores["safety-refuse"], found.scores["safety-response"]) == (1, 0)
    assert found.score == pytest.approx((2.5 / 3 + 0 + 0.5) / 3)
    assert found.notes == ("No rows of code: the score is the mean of the other domains.",)


def test_rm_bench_by_the_published_loop(tmp_path, random):
    rows = [rm(domain, number) for domain in ("chat", "math", "code", "safety-refuse") for number in range(7)]
    suite, read = load("rm-bench", write(tmp_path / "total_dataset.json", rows))
    rewards = random.normal(size=(28, 6)).round(1)
    found = suite.score(scored(read, rewards))
    hard, means = [], []
    for start in range(0, 28, 7):
        matrix = np.zeros((3, 3))
        for row in rewards[start : start + 7]:
            for one in range(3):
                for other in range(3):
                    matrix[one, other] += row[one] > row[3 + other]
        matrix /= 7
        kinds = [np.triu(matrix, 1).sum() / 3, np.diag(matrix).mean(), np.tril(matrix, -1).sum() / 3]
        hard.append(kinds[0])
        means.append(np.mean(kinds))
    assert found.scores["hard"] == pytest.approx(np.mean(hard))
    assert found.score == pytest.approx(np.mean(means))


def test_a_file_of_one_domain_says_so_by_its_name(tmp_path):
    row = rm("x")
    del row["domain"]
    _, read = load("rm-bench", write(tmp_path / "safety-refuse_filtered.json", [row]))
    assert read[0].columns == {"domain": "safety", "subdomain": "safety-refuse"}
    with refused(DataError, field="domain"):
        load("rm-bench", write(tmp_path / "mine.json", [row]))
    with refused(DataError, "'art'", row=0, field="domain"):
        load("rm-bench", write(tmp_path / "mine.json", [rm("art")]))


# --- LLMBar ---------------------------------------------------------------------------------------------------


def test_llmbar_as_published_in_folders(tmp_path):
    labels = {"Natural": 1, "Adversarial/Neighbor": 2, "Adversarial/GPTInst": 1, "CaseStudy/Base_9": 1}
    for folder, label in labels.items():
        (tmp_path / folder).mkdir(parents=True)
        row = {"input": f"do {folder}", "output_1": "one", "output_2": "two", "label": label}
        write(tmp_path / folder / "dataset.json", [row, row | {"input": f"do {folder} again", "label": 1}])
    suite, read = load("llmbar", str(tmp_path))
    assert sorted({row.columns["subset"] for row in read}) == ["GPTInst", "Natural", "Neighbor"]
    assert [row.row for row in read] == list(range(6))
    found = suite.score(scored(read, {"one": 1.0, "two": 0.0}.__getitem__))
    assert {one.name: one.score for one in found.slices} == {"GPTInst": 1, "Natural": 1, "Neighbor": 0.5}
    assert (found.scores["Natural"], found.scores["Adversarial"]) == (1, 0.75)
    assert found.score == pytest.approx(2.5 / 3)
    assert found.scores["accuracy over all pairs"] == pytest.approx(5 / 6)
    assert found.notes == ("No rows of GPTOut, Manual: the means leave them out.",)


def test_llmbar_as_pairs_with_a_subset(tmp_path):
    def row(subset, chosen, rejected):
        answers = {"chosen": chosen, "rejected": rejected}
        messages = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
        return {"prompt": [{"role": "user", "content": subset}], **messages, "subset": subset}

    rows = [row("natural", "one", "two"), row("adv_gptout", "two", "one"), row("adv_manual", "one", "two")]
    suite, read = load("llmbar", write(tmp_path / "llmbar.jsonl.gz", rows))
    found = suite.score(scored(read, {"one": 1.0, "two": 0.0}.__getitem__))
    assert {one.name: one.score for one in found.slices} == {"GPTOut": 0, "Manual": 1, "Natural": 1}
    assert read[0].scored([1.0, 0.0]).texts == ("one", "two")
    with refused(DataError, "'other'", row=1, field="subset"):
        load("llmbar", write(tmp_path / "bad.jsonl", [rows[0], rows[1] | {"subset": "other"}]))
    with refused(ConfigError, "llmbar=FILE"):
        find_suite("llmbar")[0].load()


def test_a_label_of_llmbar_is_one_or_two(tmp_path):
    row = {"input": "do", "output_1": "one", "output_2": "two", "label": 3, "subset": "natural"}
    with refused(DataError, 3, "1, 2", row=0, field="label"):
        load("llmbar", write(tmp_path / "bad.jsonl", [row]))


# --- JudgeBench -----------------------------------------------------------------------------------------------


def jb(source, label, number=0):
    return {
        "pair_id": f"p{number}",
        "original_id": "7",
        "source": source,
        "question": f"why {number}",
        "response_model": "gpt-4o",
        "response_A": "answer A",
        "response_B": "answer B",
        "label": label,
    }


def test_judge_bench_by_domain_and_over_all_pairs(tmp_path):
    sources = ["mmlu-pro-law", "mmlu-pro-math", "livebench-reasoning", "livebench-math", "livecodebench"]
    labels = ["A>B", "B>A", "A>B", "B>A", "A>B"]
    rows = [jb(source, label, n) for n, (source, label) in enumerate(zip(sources, labels, strict=True))]
    suite, read = load("judgebench", write(tmp_path / "gpt.jsonl", rows))
    assert read[1].id == "p1"
    assert texts_of(read[1].raw) == ["answer B", "answer A"]
    found = suite.score(scored(read, {"answer A": 1.0, "answer B": 0.0}.__getitem__))
    assert {one.name: one.score for one in found.slices} == {"Coding": 1, "Knowledge": 0.5, "Math": 0, "Reasoning": 1}
    assert found.score == pytest.approx(3 / 5)
    assert suite.score(scored(read, lambda text: 0.0)).score == 0  # a tie is not right
    for field, value in (("label", "A=B"), ("source", "x")):
        with refused(DataError, repr(value), row=0, field=field):
            load("judgebench", write(tmp_path / "bad.jsonl", [rows[0] | {field: value}]))


# --- any preference data --------------------------------------------------------------------------------------


def test_any_preference_file_is_a_suite_with_slices(tmp_path):
    rows = [
        {"prompt": "p", "chosen": "good", "rejected": "bad", "source": "x", "id": "first"},
        {"prompt": "q", "chosen": "bad", "rejected": "good", "source": "y", "id": None},
        {"prompt": "r", "chosen": "good", "rejected": "bad", "source": "y", "preference_prob": 0.5, "id": None},
    ]
    rows = [{"preference_prob": None, "margin": None} | row for row in rows]
    suite = Preferences(["source"])
    read = suite.load(write(tmp_path / "mine.jsonl", rows))
    assert [row.id for row in read] == ["first", "1", "2"]
    found = suite.score(scored(read, {"good": 1.0, "bad": 0.0}.__getitem__))
    assert {one.name: (one.n, one.score) for one in found.slices} == {
        "all": (2, 0.5),
        "source=x": (1, 1),
        "source=y": (1, 0),
    }
    assert found.notes == ("1 rows say nothing that can be right or wrong, and do not count.",)
    with refused(ConfigError, "`topic`", "source"):
        Preferences(["topic"]).score(scored(read, [[1, 0]] * 3))


def test_rankings_and_thumbs_count_as_in_training(tmp_path):
    rankings = [{"prompt": "p", "responses": ["a", "bb", "cc"], "scores": [2.0, 1.0, 2.0]}]
    suite, source = find_suite(write(tmp_path / "lists.jsonl", rankings))
    assert suite.score(scored(suite.load(source), [[0, 5, 5]])).score == 0.5
    labels = [{"prompt": "p", "response": "a", "label": True}, {"prompt": "p", "response": "b", "label": False}]
    suite, source = find_suite(write(tmp_path / "labels.jsonl", labels))
    assert suite.score(scored(suite.load(source), [[0.5], [0.5]])).score == 0.5
    ratings = [{"prompt": "p", "response": "a", "score": 0.3}]
    suite, source = find_suite(write(tmp_path / "ratings.jsonl", ratings))
    with refused(DataError, dataset="preferences"):
        suite.score(scored(suite.load(source), [[0.5]]))


def test_a_broken_row_is_named_by_file_and_number(tmp_path):
    path = write(tmp_path / "mine.jsonl", [{"chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": None}])
    with refused(DataError, dataset="mine.jsonl", row=1, field="rejected"):
        find_suite(path)[0].load(path)


# --- all of them ----------------------------------------------------------------------------------------------


def test_names_are_forgiving_and_an_unknown_one_lists_them():
    assert [find_suite(name)[0].name for name in ("RewardBench", "reward-bench-2", "RMBench", "Judge Bench")] == [
        "rewardbench",
        "rewardbench2",
        "rm-bench",
        "judgebench",
    ]
    assert find_suite("owner/data")[0].name == "preferences"
    with refused(ConfigError, "'rewardbnch'", "`rewardbench`", "llmbar"):
        find_suite("rewardbnch")
    assert find_suite("preferences=owner/data")[1] == "owner/data"


@pytest.mark.parametrize("name", list(SUITES))
def test_a_missing_column_is_named_with_the_file(tmp_path, name):
    path = write(tmp_path / "mine.jsonl", [{"question": "q", "answer": "a"}])
    with refused(DataError, dataset="mine.jsonl"):
        load(name, path)


@pytest.mark.parametrize("name", list(SUITES))
def test_every_suite_says_its_rule_and_where_it_is_published(name):
    suite = SUITES[name]
    assert len(suite.rule) > 50
    assert "arXiv" in suite.reference
    with refused(DataError, dataset=name):
        suite().score(ScoredSet([]))


def test_the_suite_that_the_page_adds_is_one(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "suites.md").read_text(encoding="utf-8")
    names = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    monkeypatch.setitem(SUITES, "riddles", names["Riddles"])
    rows = [{"question": f"q {n}", "right": "a", "wrong": "b", "topic": "xxy"[n]} for n in range(3)]
    suite, read = load("riddles", write(tmp_path / "riddles.jsonl", rows))
    found = suite.score(scored(read, [[1, 0], [0, 1], [1, 0]]))
    assert found.score == 0.75
    assert {part.name: part.n for part in found.slices} == {"x": 2, "y": 1}


def test_a_folder_with_several_splits_gives_the_one_that_counts(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "raw-00000-of-00001.parquet", [rb("donotanswer", n) for n in range(5)])
    write(tmp_path / "data" / "filtered-00000-of-00001.parquet", [rb("donotanswer", n) for n in range(2)])
    suite, source = find_suite(f"rewardbench={tmp_path}")
    assert len(suite.load(source)) == 2
    assert len(suite.load(source, split="raw")) == 5


def test_two_models_are_compared_on_the_rows_of_a_suite(tmp_path):
    rows = [jb("mmlu-pro-law", "A>B", n) for n in range(30)] + [jb("livecodebench", "A>B", n) for n in range(30, 60)]
    suite, read = load("judgebench", write(tmp_path / "gpt.jsonl", rows))
    good, half = scored(read, [[1, 0]] * 60), scored(read, [[1, 0]] * 30 + [[0, 1]] * 30)
    found = compare(good, half, names=("good", "half"), rule=suite, columns=["domain"])
    assert found.overall.verdict.startswith("good is better than half by 50.0 points")
    assert found.slices["domain"]["Coding"].real
    assert not found.slices["domain"]["Knowledge"].real
    with refused(ConfigError, 60, 5):
        compare(good, scored(read[:5], [[1, 0]] * 5), rule=suite)
    json.dumps(to_plain(found))
    json.dumps(to_plain(suite.score(good)))
