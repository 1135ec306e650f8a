"""What to look at: the most confident mistakes with their texts, and how rewards are spread."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from plaudit.data.parse import content_text, prompt_of
from plaudit.evaluation.results import Histogram, Margins, Mistake
from plaudit.evaluation.suites.base import SuiteRow
from plaudit.evaluation.suites.registry import LoadedSuite
from plaudit.evaluation.table import ScoredRow, ScoredSet
from plaudit.schema import comparisons_of

_LONGEST_OF_MISTAKES = 4000
_CUT = " […] "


def shortened(text: str, longest: int = _LONGEST_OF_MISTAKES) -> str:
    """A text, its middle cut out if it is very long.

    Args:
        text: The text.
        longest: Most characters.

    >>> shortened("abcdefghijklmnop", 11)
    'abc […] nop'
    """
    if len(text) <= longest:
        return text
    half = (longest - len(_CUT)) // 2
    return text[:half] + _CUT + text[len(text) - half :]


BINS = 40
POINTS = 2000


def confident_mistakes(
    scored: ScoredSet, suite: LoadedSuite, *, most: int, temperature: float = 1.0
) -> tuple[Mistake, ...]:
    """The mistakes that a model is surest of, one a row, the surest first.

    Args:
        scored: The rows, scored, with their texts.
        suite: The same rows as they were read.
        most: How many to return.
        temperature: What margins are divided by to make them probabilities.
    """
    wrong = []
    for row in scored:
        margin, better, worse = _worst(row)
        if margin < 0:
            wrong.append((margin, row.row, row, better, worse))
    wrong.sort(key=lambda one: one[:2])
    read = {row.row: row for row in suite.rows}
    return tuple(
        _mistake(row, read[row.row], suite, (margin, better, worse), temperature)
        for margin, _, row, better, worse in wrong[:most]
    )


def _worst(row: ScoredRow) -> tuple[float, int | None, int | None]:
    """The most wrong comparison of a row: its margin, and which responses it compares."""
    if row.row_kind == "labels":
        good = row.label.ratings[0] > 0.5
        return (row.rewards[0], 0, None) if good else (-row.rewards[0], None, 0)
    pairs = comparisons_of(row.ratings)
    if not pairs:
        return 0.0, None, None
    return min((row.rewards[better] - row.rewards[worse], better, worse) for better, worse in pairs)


def _mistake(
    row: ScoredRow,
    read: SuiteRow,
    suite: LoadedSuite,
    worst: tuple[float, int | None, int | None],
    temperature: float,
) -> Mistake:
    margin, better, worse = worst

    def of(values: Any, place: int | None) -> Any:
        return None if place is None or values is None else values[place]

    texts = [shortened(text) for text in row.texts or ()]
    return Mistake(
        row=suite.number_in_source(read),
        id=row.id,
        source=read.source,
        kind="label" if row.row_kind == "labels" else "comparison",
        margin=margin,
        confidence=1 / (1 + math.exp(max(margin / temperature, -700.0))),
        prompt=shortened(prompt_text(read.raw)),
        better=of(texts, better),
        worse=of(texts, worse),
        better_reward=of(row.rewards, better),
        worse_reward=of(row.rewards, worse),
        better_tokens=of(row.tokens, better),
        worse_tokens=of(row.tokens, worse),
        columns=_short_columns(row.columns),
    )


def _short_columns(columns: Mapping[str, Any]) -> dict[str, str]:
    short = {name: str(value) for name, value in columns.items() if isinstance(value, str | int | float | bool)}
    return {name: value for name, value in short.items() if len(value) <= 80}


def prompt_text(raw: Mapping[str, Any]) -> str:
    """What a raw row's responses answer, to be read by people; empty where it cannot be told.

    Args:
        raw: The row.

    >>> prompt_text({"prompt": [{"role": "user", "content": "2+2?"}], "chosen": "4", "rejected": "5"})
    'user: 2+2?'
    """
    prompt = prompt_of(raw)
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list | tuple):
        return ""
    lines = []
    for message in prompt:
        said = content_text(message.get("content") or "")
        calls = message.get("tool_calls")
        said += json.dumps(calls, ensure_ascii=False, default=str) if calls else ""
        lines.append(f"{message.get('role')}: {said}")
    return "\n".join(lines)


def reward_histogram(scored: ScoredSet) -> Histogram | None:
    """How rewards of better and of worse responses are spread; None where there are none.

    Args:
        scored: The rows.
    """
    better, worse = list(scored.rewards_N[scored.better_P]), list(scored.rewards_N[scored.worse_P])
    for row in scored:
        if row.row_kind == "labels":
            (better if row.label.ratings[0] > 0.5 else worse).append(row.rewards[0])
    if not better and not worse:
        return None
    edges = _edges(np.array([*better, *worse]))
    return Histogram(tuple(edges.tolist()), _counts(better, edges), _counts(worse, edges))


def margin_histogram(scored: ScoredSet) -> Margins | None:
    """How margins are spread; None without comparisons.

    Args:
        scored: The rows.
    """
    if not len(scored.margin_P):
        return None
    edges = _edges(scored.margin_P)
    return Margins(tuple(edges.tolist()), _counts(scored.margin_P, edges))


def _edges(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    # Rounding could leave no room for the bins between two numbers that are nearly equal.
    if high - low <= 1e-6 * max(abs(low), abs(high), 1e-6):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, BINS + 1)


def _counts(values: Any, edges: np.ndarray) -> tuple[int, ...]:
    return tuple(int(count) for count in np.histogram(values, bins=edges)[0])


def length_points(scored: ScoredSet, *, most: int = POINTS, seed: int = 0) -> tuple[tuple[int, float, str], ...]:
    """Length, reward and quality of responses: ``"better"``, ``"worse"``, or ``"other"``.

    Args:
        scored: The rows, with tokens.
        most: How many responses to return; more are drawn from at random.
        seed: Decides which.
    """
    points = []
    for row in scored:
        if row.tokens is None:
            continue
        for index, (tokens, reward) in enumerate(zip(row.tokens, row.rewards, strict=True)):
            points.append((int(tokens), float(reward), _quality(row, index)))
    if len(points) <= most:
        return tuple(points)
    drawn = np.random.default_rng(seed).permutation(len(points))[:most]
    return tuple(points[place] for place in sorted(drawn.tolist()))


def _quality(row: ScoredRow, index: int) -> str:
    if row.row_kind == "labels":
        return "better" if row.label.ratings[0] > 0.5 else "worse"
    best, worst = max(row.ratings), min(row.ratings)
    if best == worst or worst < row.ratings[index] < best:
        return "other"
    return "better" if row.ratings[index] == best else "worse"
