"""Length and format bias against brute force, SciPy and scikit-learn."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from evaluation.refusals import refused
from evaluation.scored_rows import pairs
from plaudit.errors import DataError
from plaudit.evaluation.bias import correlate, format_bias, length_bias, length_controlled_accuracy, markdown_counts
from plaudit.evaluation.table import ScoredRow, ScoredSet


@pytest.fixture
def scored(random):
    """Rewards that follow length a little, prompts that occur twice."""
    tokens = random.integers(1, 40, size=(120, 2))
    rewards = random.normal(size=(120, 2)) + 0.05 * tokens
    rewards[:5] = 0
    tokens[5:10] = 7
    return pairs(rewards, tokens=tokens, prompts=[n // 2 for n in range(120)])


def test_correlation_overall_and_within_prompts(scored):
    found = length_bias(scored).correlation
    rewards, lengths, cluster = scored.rewards_N, np.array(scored.each("tokens")), scored.cluster_N
    assert found.pearson == pytest.approx(stats.pearsonr(rewards, lengths).statistic)
    assert found.spearman == pytest.approx(stats.spearmanr(rewards, lengths).statistic)
    centred = [one - np.array([one[cluster == own].mean() for own in cluster]) for one in (rewards, lengths)]
    assert found.within == pytest.approx(stats.pearsonr(*centred).statistic)
    for value, interval in ((found.pearson, found.pearson_interval), (found.within, found.within_interval)):
        assert interval.low < value < interval.high


def test_within_prompts_longer_prompts_with_better_answers_do_not_count():
    """Over all responses longer is better; for one and the same prompt it is worse."""
    rewards = [(10.0 * n + 1, 10.0 * n) for n in range(20)]
    tokens = [(10 * n + 1, 10 * n + 3) for n in range(20)]
    found = length_bias(pairs(rewards, tokens=tokens)).correlation
    assert found.pearson > 0.99
    assert found.within == pytest.approx(-1)


def test_the_interval_of_a_correlation_is_that_of_drawing_prompts(random):
    x, y = random.normal(1000, 1, size=(2, 300))
    y += x
    low, high = correlate(x, y, np.arange(300)).pearson_interval
    drawn = [random.integers(300, size=300) for _ in range(2000)]
    expected = np.quantile([stats.pearsonr(x[one], y[one]).statistic for one in drawn], [0.025, 0.975])
    assert (low, high) == pytest.approx(expected, abs=0.02)


def test_accuracy_where_the_longer_response_is_right_and_wrong(scored):
    found = length_bias(scored)
    tokens = np.array([row.tokens for row in scored])
    right, longer = scored.margin_P > 0, tokens[:, 0] > tokens[:, 1]
    apart = tokens[:, 0] != tokens[:, 1]
    assert found.longer_right.value == np.mean(longer[apart])
    assert found.accuracy_longer_right.value == np.mean(right[longer])
    assert found.accuracy_longer_wrong.value == np.mean(right[apart & ~longer])
    assert found.accuracy_longer_right.n + found.accuracy_longer_wrong.n == apart.sum() < 120
    assert found.balanced_accuracy == pytest.approx((np.mean(right[longer]) + np.mean(right[apart & ~longer])) / 2)
    picked = np.where(scored.margin_P > 0, longer, (scored.margin_P < 0) & ~longer)
    assert found.longer_preferred.value == np.mean(picked[apart])


def test_taking_the_longer_one_is_balanced_to_one_half():
    tokens = [(9, 3), (8, 2), (7, 1), (2, 5)]
    found = length_bias(pairs([(float(a), float(b)) for a, b in tokens], tokens=tokens))
    assert found.longer_right.value == 0.75
    assert (found.accuracy_longer_right.value, found.accuracy_longer_wrong.value) == (1, 0)
    assert found.balanced_accuracy == 0.5
    assert found.longer_preferred.value == 1
    assert found.correlation.pearson == pytest.approx(1)


def test_bins_of_length_difference_hold_each_comparison_once(scored):
    found = length_bias(scored, bins=5).bins
    difference = np.array([row.tokens[0] - row.tokens[1] for row in scored])
    assert sum(one.accuracy.n for one in found) == 120
    first = (difference >= found[0].low) & (difference <= found[0].high)
    assert found[0].accuracy.n == first.sum()
    for one in found[1:]:
        inside = (difference > one.low) & (difference <= one.high)
        assert one.accuracy.n == inside.sum()
        assert one.accuracy.value == np.mean((scored.margin_P > 0)[inside])


@pytest.fixture
def outcomes(random):
    difference = random.normal(5, 20, size=400)
    right = random.random(400) < expit(0.4 + 1.5 * np.tanh(difference / 20))
    return right, difference


@pytest.mark.parametrize("ridge", [1.0, 10.0])
def test_the_regression_is_that_of_scikit_learn(outcomes, ridge):
    right, difference = outcomes
    found = length_controlled_accuracy(right, difference, np.arange(400), ridge=ridge)
    model = LogisticRegression(C=1 / ridge, tol=1e-10, max_iter=1000)
    model.fit(np.tanh(difference / difference.std())[:, None], right)
    assert found.accuracy == pytest.approx(expit(model.intercept_[0]), abs=1e-6)
    assert found.length_effect == pytest.approx(model.coef_[0, 0], abs=1e-4)


def test_the_regression_and_its_clustered_variance_are_those_of_statsmodels(outcomes):
    right, difference = outcomes
    cluster = np.arange(400) // 4
    found = length_controlled_accuracy(right, difference, cluster, ridge=0.0)
    design = sm.add_constant(np.tanh(difference / difference.std()))
    model = sm.GLM(right.astype(float), design, family=sm.families.Binomial())
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": cluster, "use_correction": False})
    assert found.accuracy == pytest.approx(expit(fit.params[0]))
    assert found.length_effect == pytest.approx(fit.params[1])
    assert tuple(found.interval) == pytest.approx(expit(fit.conf_int()[0]))


def test_length_control_takes_out_what_length_brings(random):
    """A model that takes the longer one, the surer the more: right in most pairs, but not beyond length."""
    difference = random.normal(15, 20, size=4000)
    right = random.random(4000) < expit(difference / 5)
    found = length_controlled_accuracy(right, difference, np.arange(4000))
    assert np.mean(right) > 0.7
    assert found.accuracy == pytest.approx(0.5, abs=0.05)
    assert found.interval.high < 0.6
    assert found.length_effect > 3


def test_length_control_changes_nothing_where_length_says_nothing():
    right = np.array([1, 1, 1, 0] * 10)
    found = length_controlled_accuracy(right, np.zeros(40), np.arange(40))
    assert (found.accuracy, found.length_effect) == (pytest.approx(0.75), 0)
    assert length_controlled_accuracy(np.ones(5), np.arange(5.0), np.arange(5)).accuracy == 1
    assert length_controlled_accuracy(np.ones(5), np.arange(5.0), np.arange(5)).interval is None
    assert length_controlled_accuracy(np.ones(0), np.ones(0), np.ones(0)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain # text - with * signs | and 3. marks", {}),
        ("## One\n\ntext\n###### Two\n#hashtag\n####### seven", {"headers": 2}),
        ("**a** and __b__ and ** not bold ** and 2**3**4", {"bold": 3}),
        ("- a\n* b\n+ c\n1. d\n  2) e\n-no item\n---\n", {"lists": 5}),
        ("```python\n# no header\n- no item\n**no bold**\n```\nand `inline` code", {"code": 2}),
        ("~~~\n| a |\n|---|\n~~~", {"code": 1}),
        ("```\nnever closed\n# no header", {"code": 1}),
        ("| a | b |\n| :-- | --: |\n| 1 | 2 |\n\na | b\n--- | ---\n1 | 2\n", {"tables": 2}),
        ("a heading | with a bar\n---\n", {}),
        ("", {}),
    ],
)
def test_markdown_is_counted(text, expected):
    counts = markdown_counts(text)
    assert {name: count for name, count in counts.items() if count} == expected


def test_the_format_that_a_model_likes_shows():
    """Bold is worse in three of four pairs, and always preferred."""
    texts = [("**a** b", "a"), ("a", "**a**"), ("a", "**a** **b**"), ("a", "**a**")]
    rewards = [(1, 0), (0, 1), (0, 2), (0, 1)]
    found = {one.feature: one for one in format_bias(pairs(rewards, texts=texts))}
    assert found["bold"].more_right.value == 0.25
    assert found["bold"].more_preferred.value == 1
    assert found["bold"].share == 0.5
    counts, values = [1, 0, 0, 1, 0, 2, 0, 1], [1, 0, 0, 1, 0, 2, 0, 1]
    assert found["bold"].correlation.pearson == pytest.approx(stats.pearsonr(counts, values).statistic)
    assert found["tables"].correlation.pearson is None
    assert (found["tables"].more_right.n, found["tables"].more_right.value) == (0, None)


def test_rows_without_lengths_or_texts_are_refused_by_number():
    scored = ScoredSet([ScoredRow(0, (1.0, 0.0), tokens=(1, 2)), ScoredRow(5, (1.0, 0.0))])
    with refused(DataError, "tokens", row=5):
        length_bias(scored)
    with refused(DataError, "texts", row=0):
        format_bias(scored)
    empty = length_bias(ScoredSet([]))
    assert (empty.bins, empty.controlled, empty.longer_right.value) == ((), None, None)
