"""Rankings, ratings, labels and ties on the command line: what it trains, says before, and says after."""

import csv
import json
import re

import pytest

from plaudit.cli import build
from plaudit.cli.build import TRAIN
from plaudit.cli.train import longest_row

WORDS = ("good", "bad", "fine", "poor", "quite good and long indeed")


def rows_of(kind, count=12):
    rows = []
    for n in range(count):
        texts = [f"{WORDS[(n + index) % 5]} {index}" for index in range(2 + n % 4)]
        row = {"prompt": f"Question {n}. "}
        if kind in ("scores", "ranks"):
            row |= {"responses": texts, kind: [float((index * 3 + n) % 4) for index in range(len(texts))]}
            if kind == "ranks":
                row["ranks"] = [index + 1 for index in range(len(texts))]
        elif kind in ("score", "label"):
            row |= {"response": texts[0], kind: n % 5 if kind == "score" else n % 2 == 0}
        else:
            row |= {"chosen": texts[0], "rejected": texts[1], "tie": n % 2 == 0}
        rows.append(row)
    return rows


@pytest.fixture
def data(tmp_path):
    """Write rows of a kind into a file of a kind."""

    def write(kind, suffix, rows=None):
        rows = rows or rows_of(kind)
        path = tmp_path / f"{kind}.{suffix}"
        if suffix == "jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
            return path
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            for row in rows:
                writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
        return path

    return write


RANKING = {"Accuracy", "Best of N", "Kendall's tau", "Margin"}


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
@pytest.mark.parametrize(
    ("kind", "objective", "called", "titles"),
    [
        ("scores", "bradley_terry", "preferences", RANKING),
        ("ranks", "bradley_terry", "preferences", RANKING),
        ("score", "regression", "rated responses", {"Mean squared error", "Correlation"}),
        ("label", "binary_cross_entropy", "labelled responses", {"Accuracy"}),
        ("tie", "rao_kupper", "preferences", {"Accuracy", "Tie accuracy", "Margin"}),
    ],
)
def test_the_summary_shows_the_metrics_that_there_are(train, data, suffix, kind, objective, called, titles):
    code, out, err = train("--eval_fraction", "0.34", data=data(kind, suffix))
    assert code == 0, err
    assert f"Objective: {objective} (" in err
    assert re.search(rf"Objective +{objective} ", out)
    assert f"tiny on 8 {called}, 2 steps" in out
    shown = re.findall(r"^([A-Z][\w' ]*?) +-?\d\.\d{3,4}", out, flags=re.MULTILINE)
    assert set(shown) == {*titles, "Loss"}
    first = next(line for line in out.splitlines() if line.startswith(shown[0]))
    assert "on 4 held-out rows" in first


def test_intervals_count_what_is_independent(train, data):
    """Comparisons of one row are not: the interval is that of the rows; ties are no trials of the accuracy."""
    _, out, _ = train("--eval_fraction", "0.34", data=data("scores", "jsonl"))
    assert re.search(r"Accuracy +\d\.\d{3} on", out)
    assert re.search(r"Best of N +\d\.\d{3} \(95% interval", out)
    rows = [row | {"tie": n not in (0, 4)} for n, row in enumerate(rows_of("tie", 8))]
    _, out, _ = train("--dataset_test_split", "train", data=data("tie", "jsonl", rows))
    share, low, high = re.search(r"Accuracy +(\S+) \(95% interval (\S+) to (\S+)\) on 8 ", out).groups()
    # Wilson's interval of 0, 1 and 2 of 2.
    known = {"0.000": ("0.000", "0.658"), "0.500": ("0.095", "0.905"), "1.000": ("0.342", "1.000")}
    assert (low, high) == known[share]


@pytest.mark.parametrize("kind", ["score", "scores", "tie"])
def test_the_last_evaluation_is_not_repeated_without_an_accuracy(train, data, monkeypatch, kind):
    calls = []
    evaluate = build.RewardTrainer.evaluate
    monkeypatch.setattr(
        build.RewardTrainer, "evaluate", lambda self, *a, **k: calls.append(1) or evaluate(self, *a, **k)
    )
    code, _, err = train(
        "--eval_fraction", "0.34", "--eval_strategy", "steps", "--eval_steps", "1", data=data(kind, "jsonl")
    )
    assert code == 0, err
    assert len(calls) == 2  # once a step


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        (
            "ranks",
            [
                r"objective +bradley_terry \(auto: the data has ranks\)",
                r"rows +ranked responses \(`responses`, `ranks`\)",
                r"responses +42 in 12 rows, 2 to 5 per row",
                r"Response 1 of \d \(rank 1\): \d+ tokens, \d+ with the prompt",
            ],
        ),
        (
            "score",
            [
                r"objective +regression \(auto: the data has ratings\)",
                r"rows +rated responses \(`response`, `scores`\)",
                r"responses +12 in 12 rows, 1 per row",
                r"Response \(rating \d\): \d+ tokens with the prompt",
            ],
        ),
        (
            "tie",
            [
                r"objective +rao_kupper \(auto: the data has pairs and `tie`\)",
                r"rows +pairs \(`chosen`, `rejected`\), with `tie`",
                r"responses +24 in 12 rows, 2 per row",
            ],
        ),
    ],
)
def test_the_dry_run_says_what_would_be_learned_from_what(train, data, kind, lines):
    code, out, err = train("--dry_run", data=data(kind, "jsonl"))
    assert code == 0, err
    for line in lines:
        assert re.search(line, out), f"{line} not in:\n{out}"


def test_the_dry_run_names_what_was_asked_for(train, data):
    settings = ("--objective", "plackett_luce", "--plackett_luce_top_k", "2", "--center_rewards_coefficient", "0.01")
    code, out, err = train("--dry_run", *settings, data=data("scores", "jsonl"))
    assert code == 0, err
    assert "plackett_luce (set by `objective`)" in out
    assert "plackett_luce_top_k 2, center_rewards_coefficient 0.01" in out


def test_the_dry_run_shows_some_of_many_responses(train, data):
    row = {"prompt": "q ", "responses": [f"answer {n}" for n in range(7)], "scores": [0.5 * n for n in range(7)]}
    code, out, err = train("--dry_run", data=data("scores", "jsonl", [row] * 8))
    assert code == 0, err
    assert "Response 4 of 7 (score 1.5)" in out
    assert "Response 5 of 7" not in out
    assert "... 3 more responses" in out


def test_a_stream_of_rankings(train, data):
    code, out, err = train("--dataset_streaming", data=data("ranks", "jsonl"))
    assert code == 0, err
    code, out, err = train("--dry_run", "--dataset_streaming", data=data("ranks", "jsonl"))
    assert code == 0, err
    assert "ranked responses" in out


def test_presets_train_rankings(train, data):
    pytest.importorskip("peft")
    code, out, err = train("--preset", "quick", "--eval_fraction", "0.34", data=data("scores", "jsonl"))
    assert code == 0, err
    assert "Best of N" in out


def test_an_objective_that_does_not_fit_is_refused_with_those_that_do(train, data, tmp_path):
    code, _, err = train("--objective", "hinge", data=data("label", "jsonl"))
    assert code == 2
    assert "hinge cannot learn from labelled responses" in err
    assert "binary_cross_entropy" in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_the_longest_row_is_found_among_rankings(data, train, monkeypatch):
    trainers = []
    monkeypatch.setattr("plaudit.cli.train.print_summary", lambda trainer, *rest: trainers.append(trainer))
    rows = rows_of("scores")
    rows[5]["responses"][1] = "long " * 20
    rows[9]["responses"][0] = "long " * 19
    assert train(data=data("scores", "jsonl", rows))[0] == 0
    # One byte is a token: the prompt, the answer, and the end of the text.
    assert longest_row(trainers[0]) == (
        f"the longest row, row 5 of the train data, has a response of {len('Question 5. ') + 100 + 1} tokens"
    )


def test_the_help_has_them_in_a_section_of_their_own():
    (objective,) = [section for section in TRAIN.sections if section.heading.startswith("Objective")]
    names = [setting.name for setting in objective.settings]
    assert set(names) & set(TRAIN.settings) == set(names)
    assert "objective" in names
    assert {"label_smoothing_factor", "plackett_luce_top_k", "center_rewards_coefficient"} < set(names)
    assert {"length_penalty_coefficient", "length_head_coefficient", "lm_loss_coefficient"} < set(names)
    assert len(names) == 8
