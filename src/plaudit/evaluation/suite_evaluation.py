"""One model on one suite: everything that is said about its rewards."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from plaudit.errors import DataError
from plaudit.evaluation.baselines import BagOfWordsBaseline
from plaudit.evaluation.best_of_n import best_of_n_curve
from plaudit.evaluation.bias import format_bias, length_bias
from plaudit.evaluation.calibration import Calibration, calibrate
from plaudit.evaluation.compare import Difference, compare
from plaudit.evaluation.invariance import sanity_checks
from plaudit.evaluation.mistakes import confident_mistakes, length_points, margin_histogram, reward_histogram
from plaudit.evaluation.results import ModelComparison, SuiteEvaluation, rewards_of
from plaudit.evaluation.row_scoring import Scoring, ScoringSettings, score_rows
from plaudit.evaluation.scored import ScoredSet
from plaudit.evaluation.statistics import by_slice, statistics_of
from plaudit.evaluation.suite_sources import LoadedSuite, SuiteSource
from plaudit.evaluation.suites.base import Suite, SuiteResult, compare_results
from plaudit.evaluation.suites.preferences import Preferences
from plaudit.scoring.reward_model import RewardModel

logger = logging.getLogger("plaudit")


@dataclass(frozen=True)
class EvaluationSettings:
    """How suites are evaluated.

    Attributes:
        scoring: How rows are scored.
        slices: Columns to slice by, where a suite has them.
        max_rows: Most rows of a suite, drawn at random (None: all).
        seed: Decides what is drawn.
        sanity_rows: Rows that are scored again to check that rewards depend on the texts only.
        mistakes: Most mistakes to keep.
    """

    scoring: ScoringSettings
    slices: tuple[str, ...] = ()
    max_rows: int | None = None
    seed: int = 0
    sanity_rows: int = 16
    mistakes: int = 10

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        own = {
            "slices": list(self.slices),
            "max_rows": self.max_rows,
            "seed": self.seed,
            "sanity_rows": self.sanity_rows,
            "mistakes": self.mistakes,
        }
        scoring = self.scoring
        return {**own, "max_length": scoring.max_length, "overlong": scoring.overlong, "errors": scoring.errors}


def evaluate_suite(
    model: RewardModel,
    source: SuiteSource,
    suite: LoadedSuite,
    settings: EvaluationSettings,
    *,
    fingerprint: str = "",
    done: Callable[[int], object] = lambda count: None,
) -> SuiteEvaluation:
    """Score a suite with a model, and say all there is to say.

    Args:
        model: The reward model.
        source: The suite.
        suite: Its rows.
        settings: How.
        fingerprint: Stands for model, rows and settings.
        done: Told how many rows are through, time and again.

    Raises:
        DataError: A row cannot be scored, or nothing is left to be judged.
    """
    start = time.perf_counter()
    scoring = score_rows(model, suite, settings.scoring, done=done)
    seconds = time.perf_counter() - start
    scored = ScoredSet(scoring.rows)
    if not len(scored):
        reasons = ", ".join(f"{one.count} {one.reason}" for one in scoring.dropped)
        fix = "Raise `max_length`, or cut long rows with `overlong`."
        raise DataError(f"has no row that could be scored ({reasons})", dataset=source.label, fix=fix)
    columns = suite.columns(settings.slices)
    temperature = model.calibration.temperature if model.calibration is not None else 1.0
    result = rule_of(source.suite, columns).score(scored)
    compared = len(scored.margin_P) > 0
    return SuiteEvaluation(
        name=source.label,
        suite=source.suite.name,
        title=source.suite.title,
        sources=tuple(suite.starts),
        rows_in_source=suite.total,
        rows_left_out=suite.total - len(suite.rows),
        rows=len(scored),
        responses=len(scored.rewards_N),
        dropped=scoring.dropped,
        seconds=seconds,
        result=result,
        statistics=statistics_of(scored, seed=settings.seed),
        slices=by_slice(scored, columns, seed=settings.seed),
        calibration=_calibration(scored, temperature, settings.seed),
        length=length_bias(scored, seed=settings.seed) if compared else None,
        format=format_bias(scored, seed=settings.seed) if compared else (),
        checks=sanity_checks(model, suite, scored, settings.scoring, rows=settings.sanity_rows, seed=settings.seed),
        best_of_n=best_of_n_curve(scored, seed=settings.seed),
        mistakes=confident_mistakes(scored, suite, most=settings.mistakes, temperature=temperature),
        histogram=reward_histogram(scored),
        margins=margin_histogram(scored),
        points=length_points(scored, seed=settings.seed),
        notes=_notes(scoring, suite, result, [name for name in settings.slices if name not in columns]),
        fingerprint=fingerprint,
        rewards=rewards_of(scored, _numbers(suite), columns),
        scored=without_texts(scored),
    )


def say_dropped(found: SuiteEvaluation) -> None:
    """Log which rows were left out.

    Args:
        found: The results.
    """
    for one in found.dropped:
        first = ", ".join(map(str, one.rows)) + (", ..." if one.count > len(one.rows) else "")
        logger.warning("%s: %d rows are left out: %s (rows %s).", found.name, one.count, one.reason, first)


def rule_of(suite: Suite, columns: Sequence[str]) -> Suite:
    """The suite, which slices by some columns if it has no slices of its own.

    Args:
        suite: It.
        columns: The columns.
    """
    return Preferences(columns) if isinstance(suite, Preferences) else suite


def without_texts(scored: ScoredSet) -> ScoredSet:
    """The rows without the texts of their responses, which take most of the memory.

    Args:
        scored: The rows.
    """
    return ScoredSet(replace(row, texts=None) for row in scored)


def rebuilt(found: SuiteEvaluation, suite: LoadedSuite) -> SuiteEvaluation:
    """Results that were loaded, with their rows scored as they were.

    Args:
        found: The results.
        suite: The rows that they are of.
    """
    rewards = {(one.source, one.row): one for one in found.rewards}
    rows = []
    for row in suite.rows:
        one = rewards.get((row.source, suite.number_in_source(row)))
        if one is not None:
            rows.append(row.scored(one.rewards, tokens=one.tokens))
    return replace(found, scored=without_texts(ScoredSet(rows)))


def compare_models(
    names: tuple[str, str],
    source: SuiteSource,
    first: SuiteEvaluation,
    second: SuiteEvaluation,
    settings: EvaluationSettings,
) -> ModelComparison:
    """Compare two models on the rows of a suite that both have scored.

    Args:
        names: Of the models.
        source: The suite.
        first: Results of the first model.
        second: Results of the second.
        settings: How they were evaluated.
    """
    one, other = first.scored or ScoredSet(()), second.scored or ScoredSet(())
    common = {row.row for row in one} & {row.row for row in other}
    left_out = len({row.row for row in one} | {row.row for row in other}) - len(common)
    one, other = (part.where(lambda row: row.row in common) for part in (one, other))
    columns = [name for name in settings.slices if name in first.slices]
    overall, slices = _differences(names, source.suite, one, other, columns, settings.seed)
    return ModelComparison(names, source.label, len(common), left_out, overall, slices)


def compare_with_baseline(
    name: str,
    baseline: BagOfWordsBaseline,
    source: SuiteSource,
    suite: LoadedSuite,
    found: SuiteEvaluation,
    settings: EvaluationSettings,
) -> ModelComparison:
    """Hold a model against a bag of words on the rows of a suite that the model has scored.

    Args:
        name: Of the model.
        baseline: The bag of words.
        source: The suite.
        suite: Its rows.
        found: Results of the model.
        settings: How it was evaluated.
    """
    own = found.scored or ScoredSet(())
    other = baseline.scored(suite, {row.row for row in own})
    names = (name, baseline.name)
    columns = [column for column in settings.slices if column in found.slices]
    overall, slices = _differences(names, source.suite, own, other, columns, settings.seed)
    return ModelComparison(names, source.label, len(own), 0, overall, slices, baseline=True)


def _differences(
    names: tuple[str, str], suite: Suite, one: ScoredSet, other: ScoredSet, columns: Sequence[str], seed: int
) -> tuple[Difference, dict[str, Mapping[str, Difference]]]:
    """Over all rows by the rule of the suite, and by slice."""
    rule = rule_of(suite, ())
    found = compare_results(rule.score(one), rule.score(other), names=names)
    slices = dict(found.slices) if not isinstance(rule, Preferences) else {}
    if columns and len(one.margin_P):
        slices |= dict(compare(one, other, names=names, columns=columns, seed=seed).slices)
    return found.overall, slices


def _calibration(scored: ScoredSet, temperature: float, seed: int) -> Calibration | None:
    if temperature == 1.0:
        return calibrate(scored, seed=seed)
    scaled = (replace(row, rewards=tuple(reward / temperature for reward in row.rewards)) for row in scored)
    return calibrate(ScoredSet(scaled), seed=seed)


def _numbers(suite: LoadedSuite) -> Mapping[int, tuple[int, str]]:
    return {row.row: (suite.number_in_source(row), row.source) for row in suite.rows}


def _notes(scoring: Scoring, suite: LoadedSuite, result: SuiteResult, missing: Sequence[str]) -> tuple[str, ...]:
    notes = [f"{one.count} rows are left out: {one.reason}." for one in scoring.dropped]
    if suite.total > len(suite.rows):
        notes.append(
            f"{len(suite.rows)} of {suite.total} rows, drawn at random: not the published score, and less certain."
        )
    notes += [f"No column `{name}` to slice by." for name in missing]
    return (*notes, *scoring.notes, *result.notes)
