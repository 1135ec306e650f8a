"""Objectives fitted to labels drawn from known rewards: order, probabilities and tie parameters come back.

The figures of the documentation come from the same functions, with more items and seeds. Likelihoods are computed
in NumPy, apart from `plaudit.losses`.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from plaudit.objectives import make_objective

ROOT = Path(__file__).parents[1]
SEED, ITEMS, HELD_OUT, SCALE = 4, 12, 4000, 0.3

# Held-out nats that the objective is ahead of plain Bradley-Terry on the same labels: at least half of what it is.
GAINS = [
    ("shares", "the majority's choice", 0.06),
    ("noise_few", "plain Bradley-Terry", 0.1),
    ("rao_kupper", "ties dropped", 0.004),
    ("rao_kupper", "ties decided by a coin", 0.002),
    ("davidson", "ties dropped", 0.003),
    ("davidson", "ties decided by a coin", 0.001),
    ("head_start", "plain Bradley-Terry", 0.01),
    ("how_much", "plain Bradley-Terry", 0.0001),
    ("rankings", "one pair of each", 0.08),
    ("rankings", "all pairs", 0.0005),
    ("best_two", "one pair of each", 0.02),
    ("best_two", "all pairs", 0.007),
    ("careless", "one pair of each", 0.08),
    ("careless", "all pairs", 0.08),
    ("ratings", "all pairs", 0.004),
    ("labels", "an up against a down", 0.0005),
]
# Independent units that the maximum-likelihood fits learn from: comparisons, votes, rankings, ratings, labels.
UNITS = {
    "pairs": 900,
    "shares": 300 * 5,
    "rao_kupper": 900,
    "davidson": 900,
    "head_start": 900,
    "rankings": 180,
    "best_two": 300,
    "careless": 300,
    "ratings": 150 * 4,
    "labels": 1800,
}
RECOVERING = [*UNITS, "noise", "how_much"]


@pytest.fixture(scope="module")
def simulation():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("simulate_objectives")


@pytest.fixture(scope="module")
def cases(simulation):
    return {case.name: case for case in simulation.make_cases(SCALE)}


@pytest.fixture(scope="module")
def found(simulation, cases):
    evenly = np.linspace(-2.25, 2.25, ITEMS)
    return {
        name: simulation.simulate(case, np.random.default_rng(SEED), case.offset + evenly, HELD_OUT)
        for name, case in cases.items()
    }


def fits_of(case, role):
    return [fit for fit in case.fits if fit.role == role]


@pytest.mark.parametrize("name", RECOVERING)
def test_objectives_recover_the_order(cases, found, name):
    fits = [fit.name for role in ("objective", "also") for fit in fits_of(cases[name], role)]
    assert fits
    for fit in fits:
        assert found[name][fit]["spearman"] >= 0.95, fit


@pytest.mark.parametrize(("name", "plain", "least"), GAINS)
def test_objectives_beat_plain_bradley_terry_on_fresh_labels(cases, found, name, plain, least):
    (objective,) = fits_of(cases[name], "objective")
    (baseline,) = [fit for fit in fits_of(cases[name], "plain") if fit.name.endswith(plain)]
    assert found[name][baseline.name]["nll"] - found[name][objective.name]["nll"] >= least


def test_every_gain_that_is_claimed_is_tested(cases):
    claimed = {(case.name, fit.name) for case in cases.values() if case.should_gain for fit in fits_of(case, "plain")}
    assert {(name, plain.removeprefix("plain Bradley-Terry").removeprefix(", ")) for name, plain, _ in GAINS} == {
        (name, plain.removeprefix("plain Bradley-Terry").removeprefix(", ")) for name, plain in claimed
    }


@pytest.mark.parametrize("name", UNITS)
def test_likelihoods_are_as_near_the_truth_as_their_number_of_parameters_allows(cases, found, name):
    (fit,) = fits_of(cases[name], "plain" if name == "pairs" else "objective")
    # Maximum likelihood of q parameters and n units ends about q / 2n above the truth.
    expected = ITEMS / (2 * UNITS[name])
    assert found[name][fit.name]["nll"] - found[name]["true_nll"] <= 2 * expected


@pytest.mark.parametrize(("name", "tolerance"), [("rao_kupper", 0.1), ("davidson", 0.2)])
def test_tie_parameters_are_recovered(cases, found, name, tolerance):
    assert found[name][name]["tie"] == pytest.approx(cases[name].link.tie, abs=tolerance)


def test_label_smoothing_costs_likelihood_where_there_are_pairs_enough(found):
    plain, smoothed = found["noise"]["plain Bradley-Terry"], found["noise"]["bradley_terry with label smoothing"]
    assert smoothed["nll"] - plain["nll"] >= 0.03
    assert smoothed["spearman"] == pytest.approx(plain["spearman"], abs=0.02)


def test_hinge_costs_likelihood_even_with_its_scale_fitted(found):
    assert found["pairs"]["hinge"]["nll"] - found["pairs"]["plain Bradley-Terry"]["nll"] >= 0.005


def test_ties_in_lists_teach_what_tied_pairs_do(simulation, cases):
    rng = np.random.default_rng(SEED)
    data = cases["davidson"].draw(rng, np.linspace(-1, 1, 5), 200)
    pairs = simulation.fit_rewards(make_objective("davidson"), cases["davidson"].fits[-1].rows(rng, data), 5)
    lists = [
        {"response_ids": [[0, i + 1], [0, j + 1]], "scores": [float(outcome), 1 - float(outcome)]}
        for i, j, outcome in zip(data.first, data.second, data.outcome, strict=True)
    ]
    rewards, tie = simulation.fit_rewards(make_objective("davidson"), lists, 5)
    np.testing.assert_allclose(rewards, pairs[0], atol=1e-4)
    assert tie == pytest.approx(pairs[1], abs=1e-4)


def test_the_benchmark_writes_figures_and_picture(simulation, tmp_path, monkeypatch, capsys):
    result, picture = tmp_path / "new" / "result.json", tmp_path / "picture.svg"
    small = ["--seeds", "2", "--items", "6", "--held_out", "200", "--scale", "0.05", "--cases", "labels", "pairs"]
    monkeypatch.setattr(sys, "argv", ["simulate", *small, "--output", str(result), "--picture", str(picture)])
    simulation.main()
    recorded = json.loads(result.read_text(encoding="utf-8"))
    assert [case["name"] for case in recorded["cases"]] == ["pairs", "labels"]
    fits = recorded["cases"][1]["fits"]
    gain = fits["binary_cross_entropy"]["gain_over"]["plain Bradley-Terry, an up against a down"]["mean"]
    plain = fits["plain Bradley-Terry, an up against a down"]["nll"]["mean"]
    assert gain == pytest.approx(plain - fits["binary_cross_entropy"]["nll"]["mean"], abs=2e-6)
    assert "Good and bad labels (300)" in capsys.readouterr().out
    assert picture.read_text(encoding="utf-8").count("<svg") == 1


def test_the_published_figures_are_of_these_cases(simulation):
    published = json.loads(simulation.RESULT.read_text(encoding="utf-8"))
    now = simulation.make_cases()
    assert [case["name"] for case in published["cases"]] == [case.name for case in now]
    assert [list(case["fits"]) for case in published["cases"]] == [[fit.name for fit in case.fits] for case in now]
    assert simulation.PICTURE.exists()
