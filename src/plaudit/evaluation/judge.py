"""Judges a scored table: pure functions of rewards and of what the data says, free of torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pyarrow as pa

from plaudit.data.parse import prompt_of
from plaudit.data.report import DataReport
from plaudit.errors import ConfigError, DataError
from plaudit.evaluation import results
from plaudit.evaluation.bias import format_bias, length_bias
from plaudit.evaluation.checks import sanity_checks
from plaudit.evaluation.compare import compare
from plaudit.evaluation.results import Histogram, Margins, Mistake, ModelComparison, SuiteEvaluation
from plaudit.evaluation.stats import best_of_n_curve, by_slice, calibrate, statistics_of
from plaudit.evaluation.suites.base import Preferences
from plaudit.evaluation.suites.registry import LoadedSuite
from plaudit.evaluation.table import ScoredRow, ScoredSet, message_parts
from plaudit.schema import comparisons_of

Overlong: TypeAlias = Literal["drop", "truncate_left", "truncate_right", "error"]
"""Treatment of a row with a response of more than ``max_length`` tokens."""
OnBroken: TypeAlias = Literal["raise", "drop"]
"""Treatment of a row that cannot be scored, such as one that the chat template refuses."""
BINS = 40
POINTS = 2000


@dataclass(frozen=True)
class EvaluationSettings:
    """How suites are scored and judged, as for :func:`plaudit.evaluate`."""

    slices: tuple[str, ...] = ()
    max_rows: int | None = None
    seed: int = 0
    sanity_rows: int = 16
    mistakes: int = 10
    max_length: int | None = None
    overlong: Overlong = "drop"
    errors: OnBroken = "raise"

    def __post_init__(self) -> None:
        for name, choices in (("overlong", get_args(Overlong)), ("errors", get_args(OnBroken))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"`{name}` is {getattr(self, name)!r}", fix=f"Use one of: {', '.join(choices)}.")
        for name in ("max_length", "max_rows"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"`{name}` is {getattr(self, name)}", fix="Use at least 1, or None.")


def judge(
    table: pa.Table,
    suite: LoadedSuite,
    settings: EvaluationSettings,
    *,
    temperature: float = 1.0,
    dtype: str = "float32",
) -> SuiteEvaluation:
    """Judges the scored responses of a suite.

    Margins are divided by `temperature` to make them probabilities; `dtype` is that in which the model computes, and
    decides the tolerance of sanity checks. A table without a scored row raises `DataError`.
    """
    report = DataReport(suite.label, settings.max_length, settings.overlong, "score")
    lines = (table.column(name).to_pylist() for name in ("row", "response", "variant", "flags", "error"))
    for number, response, variant, flags, error in zip(*lines, strict=True):
        if response == 0 and not variant:
            report.add(number, flags, None if error is None else DataError(error.partition("\n")[0]))
    scored = suite.joined(table)
    if not len(scored):
        reasons = ", ".join(report.descriptions(dropped=True))
        fix = "Raise `max_length`, or truncate long rows with `overlong`."
        raise DataError(f"has no row that could be scored ({reasons})", dataset=suite.label, fix=fix)
    seed, columns = settings.seed, suite.columns(settings.slices)
    rule = Preferences(columns) if isinstance(suite.suite, Preferences) else suite.suite
    result = rule.score(scored)
    compared, scaled = len(scored.margin_P) > 0, scored
    if temperature != 1.0:
        scaled = ScoredSet(
            replace(row, rewards=tuple(reward / temperature for reward in row.rewards)) for row in scored
        )
    unit: results.LengthUnit = "characters" if any(row.tokens is None for row in scored) else "tokens"
    notes = [f"Not scored: {text}." for text in report.descriptions(dropped=True)]
    if suite.total > len(suite.rows):
        drawn = f"{len(suite.rows)} of {suite.total} rows, drawn at random"
        notes.append(f"{drawn}: not the published score, and less certain.")
    notes += [f"No column `{name}` to slice by." for name in settings.slices if name not in columns]
    suspicious = [f"Scored but suspicious: {text}." for text in report.descriptions(dropped=False)]
    return SuiteEvaluation(
        name=suite.label,
        suite=suite.suite.name,
        title=suite.suite.title,
        sources=suite.sources,
        rows_in_source=suite.total,
        rows_left_out=suite.total - len(suite.rows),
        rows=len(scored),
        responses=len(scored.rewards_N),
        dropped=report.dropped,
        seconds=0.0,
        result=result,
        statistics=statistics_of(scored, seed=seed),
        slices=by_slice(scored, columns, seed=seed),
        calibration=calibrate(scaled, seed=seed),
        length=length_bias(scored, unit=unit, seed=seed) if compared else None,
        format=format_bias(scored, seed=seed) if compared else (),
        checks=sanity_checks(table, suite, scored, dtype=dtype),
        best_of_n=best_of_n_curve(scored, seed=seed),
        mistakes=confident_mistakes(scored, suite, most=settings.mistakes, temperature=temperature),
        histogram=reward_histogram(scored),
        margins=margin_histogram(scored),
        points=length_points(scored, seed=seed),
        notes=(*notes, *suspicious, *result.notes),
        table=table,
    )


def compare_models(
    names: tuple[str, str],
    suite: LoadedSuite,
    first: ScoredSet,
    second: ScoredSet,
    settings: EvaluationSettings,
    *,
    baseline: bool = False,
) -> ModelComparison:
    """Compares two models on the rows of a suite that both have scored, by the suite's rule and by slice."""
    everywhere = {row.row for row in first} | {row.row for row in second}
    common = {row.row for row in first} & {row.row for row in second}
    first, second = (scored.where(lambda row: row.row in common) for scored in (first, second))
    rule = suite.suite
    by_rule = compare(first, second, names=names, rule=rule, columns=filter(None, [rule.slice_column]))
    slices = {"slice": by_rule.slices[rule.slice_column]} if rule.slice_column else {}
    columns = suite.columns(settings.slices)
    if columns and len(first.margin_P):
        slices |= compare(first, second, names=names, columns=columns, seed=settings.seed).slices
    left_out = len(everywhere) - len(common)
    return ModelComparison(names, suite.label, len(common), left_out, by_rule.overall, slices, baseline)


# ---- mistakes ----------------------------------------------------------------------------------------------------


def confident_mistakes(
    scored: ScoredSet, suite: LoadedSuite, *, most: int, temperature: float = 1.0
) -> tuple[Mistake, ...]:
    """Returns the most confident mistakes with their texts, at most one per row, the most confident first."""
    wrong: list[tuple[float, int | None, int | None, ScoredRow]] = []  # margin, which responses, row
    for row in scored:
        if row.row_kind == "labels":
            good = row.label.ratings[0] > 0.5
            wrong.append((row.rewards[0], 0, None, row) if good else (-row.rewards[0], None, 0, row))
        elif pairs := comparisons_of(row.ratings):
            wrong.append(
                (*min((row.rewards[first] - row.rewards[second], first, second) for first, second in pairs), row)
            )
    wrong = sorted((entry for entry in wrong if entry[0] < 0), key=lambda entry: (entry[0], entry[3].row))

    def of(values: Any, index: int | None) -> Any:
        return None if index is None or values is None else values[index]

    rows, mistakes = {row.row: row for row in suite.rows}, []
    for margin, better, worse, row in wrong[:most]:
        source, texts = rows[row.row], [results.shortened(text) for text in row.texts or ()]
        columns = {key: str(value) for key, value in source.columns.items() if isinstance(value, str | int | float)}
        mistakes.append(
            Mistake(
                row=source.number,
                id=row.id,
                source=source.source,
                kind="label" if row.row_kind == "labels" else "comparison",
                margin=margin,
                confidence=1 / (1 + math.exp(max(margin / temperature, -700.0))),
                prompt=results.shortened(prompt_text(source.raw)),
                better=of(texts, better),
                worse=of(texts, worse),
                better_reward=of(row.rewards, better),
                worse_reward=of(row.rewards, worse),
                better_tokens=of(row.tokens, better),
                worse_tokens=of(row.tokens, worse),
                columns={key: value for key, value in columns.items() if len(value) <= 80},
            )
        )
    return tuple(mistakes)


def prompt_text(raw: Mapping[str, Any]) -> str:
    """Returns the prompt of a raw row for people to read; empty where there is none.

    >>> prompt_text({"prompt": [{"role": "user", "content": "2+2?"}], "chosen": "4", "rejected": "5"})
    'user: 2+2?'
    """
    prompt = prompt_of(raw)
    if isinstance(prompt, str):
        return prompt
    messages = prompt if isinstance(prompt, list | tuple) else ()
    return "\n".join(f"{message.get('role')}: {''.join(message_parts(message))}" for message in messages)


# ---- distributions -----------------------------------------------------------------------------------------------


def reward_histogram(scored: ScoredSet) -> Histogram | None:
    """Returns the distribution of the rewards of better and of worse responses; None where there are none."""
    better, worse = list(scored.rewards_N[scored.better_P]), list(scored.rewards_N[scored.worse_P])
    for row in scored:
        if row.row_kind == "labels":
            (better if row.label.ratings[0] > 0.5 else worse).append(row.rewards[0])
    return Histogram(*_histograms(better, worse)) if better or worse else None


def margin_histogram(scored: ScoredSet) -> Margins | None:
    """Returns the distribution of margins; None without comparisons."""
    return Margins(*_histograms(scored.margin_P)) if len(scored.margin_P) else None


def _histograms(*groups: Sequence[float] | np.ndarray) -> tuple[Any, ...]:
    """Returns common edges, and the counts of each group between them."""
    values = np.concatenate(groups)
    low, high = float(values.min()), float(values.max())
    # Rounding could leave no room for the bins between two numbers that are nearly equal.
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-6):
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, BINS + 1)
    counts = (np.histogram(np.asarray(group), bins=edges)[0] for group in groups)
    return tuple(edges.tolist()), *(tuple(count.tolist()) for count in counts)


def length_points(scored: ScoredSet, *, most: int = POINTS, seed: int = 0) -> tuple[tuple[int, float, str], ...]:
    """Returns tokens, reward and quality ("better", "worse", "other") of at most `most` responses, drawn at random."""
    points = []
    for row in scored:
        ratings = row.label.ratings if row.row_kind == "labels" else row.ratings
        low, high = min(ratings), max(ratings)
        for tokens, reward, rating in zip(row.tokens or (), row.rewards, ratings, strict=False):
            if row.row_kind == "labels":
                quality = "better" if rating > 0.5 else "worse"
            else:
                quality = "other" if low == high or low < rating < high else "better" if rating == high else "worse"
            points.append((int(tokens), float(reward), quality))
    if len(points) <= most:
        return tuple(points)
    drawn = np.random.default_rng(seed).permutation(len(points))[:most]
    return tuple(points[index] for index in sorted(drawn.tolist()))
