"""Calibration against scikit-learn and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as sklearn_log_loss

from evaluation.scored_rows import pairs
from plaudit.evaluation.stats import calibrate, calibration_scores, fit_temperature, halves, log_loss, reliability
from plaudit.evaluation.table import ScoredRow, ScoredSet
from plaudit.schema import Label


@pytest.fixture
def margins(random):
    """Margins of a model that is twice too sure."""
    true = random.normal(0, 1.5, size=3000)
    side = np.where(random.random(3000) < expit(true), 1, -1)
    return 2 * true * side


def both_orders(margins):
    return np.concatenate((margins, -margins)), np.repeat([1, 0], len(margins))


def test_scores_are_those_of_scikit_learn_over_both_orders(margins):
    found = calibration_scores(margins, np.arange(3000))
    signed, label = both_orders(margins)
    assert found.brier == pytest.approx(brier_score_loss(label, expit(signed)))
    assert found.log_loss == pytest.approx(sklearn_log_loss(label, expit(signed)))


def test_the_calibration_error_is_that_of_both_orders(margins):
    """Ten bins from one half up are the upper ten of twenty over both orders, and the lower ten are their mirror."""
    signed, label = both_orders(margins)
    p = expit(signed)
    bins = np.clip(np.ceil(p * 20).astype(int) - 1, 0, 19)
    error = sum(np.mean(bins == b) * abs(label[bins == b].mean() - p[bins == b].mean()) for b in np.unique(bins))
    assert calibration_scores(margins, np.arange(3000)).ece == pytest.approx(error)


def test_the_curve_is_that_of_scikit_learn(margins):
    confidence, right = expit(np.abs(margins)), (margins > 0).astype(float)
    curve = [one for one in reliability(confidence, right, np.arange(3000)) if one.n]
    accuracy, mean = calibration_curve(right, 2 * confidence - 1, n_bins=10)
    assert [one.accuracy for one in curve] == pytest.approx(accuracy)
    assert [2 * one.confidence - 1 for one in curve] == pytest.approx(mean)
    assert all(one.interval.low <= one.accuracy <= one.interval.high for one in curve)


def test_bins_of_equal_mass_hold_equally_many(margins):
    found = calibration_scores(margins, np.arange(3000))
    assert [one.n for one in found.curve_mass] == pytest.approx([300] * 10, abs=1)
    assert sum(one.n for one in found.curve) == 3000
    assert sum(one.n * abs(one.accuracy - one.confidence) for one in found.curve_mass) / 3000 == pytest.approx(
        found.ece_mass
    )


def test_equal_confidences_stay_together():
    curve = reliability(np.array([0.7] * 9 + [0.9]), np.ones(10), np.arange(10), binning="mass")
    assert sorted(one.n for one in curve) in ([1, 9], [10])
    assert sum(one.n for one in reliability(np.full(4, 0.5), np.ones(4), np.arange(4), binning="mass")) == 4


def test_the_temperature_is_that_of_a_logistic_regression(margins):
    temperature, at_bound = fit_temperature(margins)
    signed, label = both_orders(margins)
    model = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10).fit(signed[:, None], label)
    assert temperature == pytest.approx(1 / model.coef_[0, 0], rel=1e-4)
    assert temperature == pytest.approx(2.0, rel=0.1)
    assert not at_bound


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_temperature_scales_with_the_margins(margins, scale):
    assert fit_temperature(margins * scale)[0] == pytest.approx(fit_temperature(margins)[0] * scale, rel=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
def test_margins_all_right_or_all_wrong_have_no_temperature_but_a_bound(sign):
    temperature, at_bound = fit_temperature(sign * np.array([0.5, 1.0, 2.0]))
    assert at_bound
    assert np.isfinite(temperature)


def test_a_temperature_is_fitted_on_one_half_of_the_prompts_and_tested_on_the_other(margins):
    rows = [(margin, 0.0) for margin in margins]
    scored = pairs(rows, prompts=[n // 3 for n in range(3000)])
    train, test = halves(scored)
    assert not {row.prompt for row in train} & {row.prompt for row in test}
    assert len({row.prompt for row in train}) == 500
    found = calibrate(scored)
    assert found.temperature == pytest.approx(fit_temperature(train.margin_P)[0])
    assert found.before.n == found.after.n == len(test)
    assert found.after.log_loss == pytest.approx(log_loss(test.margin_P, found.temperature))
    assert found.after.log_loss < found.before.log_loss
    assert found.after.ece < found.before.ece
    shuffled = ScoredSet(list(scored)[::-1])
    assert calibrate(shuffled).temperature == pytest.approx(found.temperature)
    assert calibrate(scored, seed=1).temperature != found.temperature


def test_the_strength_of_a_preference_is_what_should_be_predicted():
    margin = float(np.log(3))  # a probability of 0.75
    rows = [ScoredRow(n, (margin, 0.0), Label(preference_prob=0.75)) for n in range(8)]
    found = calibrate(ScoredSet(rows))
    assert found.scores.ece == pytest.approx(0, abs=1e-12)
    assert found.scores.brier == pytest.approx(0.75 * 0.25)
    assert found.temperature == pytest.approx(1.0, rel=1e-3)
    turned = [ScoredRow(n, (0.0, margin), Label(preference_prob=0.25)) for n in range(8)]
    assert calibrate(ScoredSet(turned)).scores.brier == pytest.approx(found.scores.brier)


def test_nothing_to_calibrate():
    assert calibrate(ScoredSet([])) is None
    assert calibrate(pairs([(1.0, 0.0)])).temperature is None
    constant = calibrate(pairs([(1.0, 1.0)] * 6))
    assert (constant.scores.log_loss, constant.temperature) == (pytest.approx(np.log(2)), None)


@settings(max_examples=30)
@given(st.lists(st.floats(-50, 50), min_size=1, max_size=30))
def test_bounds_of_the_scores(values):
    found = calibration_scores(np.array(values), np.arange(len(values)))
    assert 0 <= found.ece <= 1
    assert 0 <= found.brier <= 1
    assert found.log_loss >= 0
    assert sum(one.n for one in found.curve) == sum(one.n for one in found.curve_mass) == len(values)
