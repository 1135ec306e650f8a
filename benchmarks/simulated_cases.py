"""What is simulated: which labels are drawn, and how each side reads them.

The plain side of every case is Bradley-Terry on pairs, as a trainer of `chosen` and `rejected` alone would have it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import preference_models as models
import simulated_rows as rows
from preference_models import Link, Numbers
from simulated_rows import Row

from plaudit.objectives import Objective, make_objective

Draw = Callable[[np.random.Generator, Numbers, int], Any]
Likelihood = Callable[[Any, Numbers, Link], float]

TIE_THRESHOLD = 0.9
LOG_TIE_WEIGHT = 0.7
NOISE = 0.2
GRADE_NOISE = 1.5
_PLAIN = make_objective("bradley_terry")


@dataclass(frozen=True)
class Fit:
    """One side of a comparison.

    Attributes:
        name: Says which objective, and what it reads.
        role: ``plain`` Bradley-Terry; the ``objective`` that fits the data; or ``also``, another that can read it.
        objective: What is minimised.
        rows: From what was drawn to prepared rows.
        afterwards: What the likelihood needs and the objective does not learn: see `simulate_objectives.adapt`.
    """

    name: str
    role: Literal["plain", "objective", "also"]
    objective: Objective
    rows: Callable[[np.random.Generator, Any], list[Row]]
    afterwards: tuple[str, ...] = ()


@dataclass(frozen=True)
class Case:
    """One way in which people judge.

    Attributes:
        name: For the command line and the result.
        title: For people.
        count: Judgements to learn from.
        unit: What the held-out likelihood is of.
        draw: Draws the training data, and the held-out data unless `fresh` does.
        nll: Mean negative log-likelihood of held-out data.
        fits: The sides.
        link: The true values beside the rewards.
        spread: Standard deviation of the true rewards.
        offset: Their mean.
        fresh: Draws the held-out data where it differs.
        should_gain: Whether the objective should beat plain Bradley-Terry on held-out likelihood.
    """

    name: str
    title: str
    count: int
    unit: str
    draw: Draw
    nll: Likelihood
    fits: tuple[Fit, ...]
    link: Link = field(default_factory=Link)
    spread: float = 1.5
    offset: float = 0.0
    fresh: Draw | None = None
    should_gain: bool = True


def make_cases(scale: float = 1.0) -> list[Case]:
    """All cases.

    Args:
        scale: Factor on the number of labels to learn from.
    """
    return [*pair_cases(scale), *tie_cases(scale), *margin_cases(scale), *ranking_cases(scale), *single_cases(scale)]


def pair_cases(scale: float) -> list[Case]:
    """Shares of votes, noise, and nothing but pairs."""
    plain = Fit("plain Bradley-Terry", "plain", _PLAIN, rows.winners)
    majority = Fit("plain Bradley-Terry, the majority's choice", "plain", _PLAIN, rows.majority)
    smoothed = Fit(
        "bradley_terry with label smoothing",
        "objective",
        make_objective("bradley_terry", label_smoothing=NOISE),
        rows.winners,
    )
    hinge = Fit("hinge", "objective", make_objective("hinge"), rows.winners, ("scale",))
    flipped = partial(models.draw_flipped, noise=NOISE)
    vote = "comparison"
    return [
        Case(
            "pairs",
            "Pairs",
            round(3000 * scale),
            vote,
            models.draw_pairs,
            models.bradley_terry_nll,
            (plain, hinge),
            should_gain=False,
        ),
        Case(
            "shares",
            "Shares of five votes",
            round(1000 * scale),
            vote,
            partial(models.draw_votes, votes=5),
            models.bradley_terry_nll,
            (majority, Fit("bradley_terry with preference_prob", "objective", _PLAIN, rows.shares)),
        ),
        Case(
            "noise",
            "Pairs, 20% swapped",
            round(5000 * scale),
            vote,
            flipped,
            models.bradley_terry_nll,
            (plain, smoothed),
            fresh=models.draw_pairs,
            should_gain=False,
        ),
        Case(
            "noise_few",
            "20% swapped, few pairs",
            round(240 * scale),
            vote,
            flipped,
            models.bradley_terry_nll,
            (plain, smoothed),
            fresh=models.draw_pairs,
        ),
    ]


def tie_cases(scale: float) -> list[Case]:
    """Ties, by either model."""
    cases = []
    for name, title, draw, nll, tie in (
        (
            "rao_kupper",
            "Ties (Rao-Kupper)",
            partial(models.draw_rao_kupper, threshold=TIE_THRESHOLD),
            models.rao_kupper_nll,
            TIE_THRESHOLD,
        ),
        (
            "davidson",
            "Ties (Davidson)",
            partial(models.draw_davidson, log_weight=LOG_TIE_WEIGHT),
            models.davidson_nll,
            LOG_TIE_WEIGHT,
        ),
    ):
        fits = (
            Fit("plain Bradley-Terry, ties dropped", "plain", _PLAIN, rows.decided, ("scale", "tie")),
            Fit("plain Bradley-Terry, ties decided by a coin", "plain", _PLAIN, rows.coin, ("scale", "tie")),
            Fit(name, "objective", make_objective(name), rows.winners),
        )
        cases.append(Case(name, title, round(3000 * scale), "comparison", draw, nll, fits, Link(tie=tie)))
    return cases


def margin_cases(scale: float) -> list[Case]:
    """Margins: known head starts, and how much better the winner is."""
    plain = Fit("plain Bradley-Terry", "plain", _PLAIN, rows.winners)
    head_start = (plain, Fit("bradley_terry with margin", "objective", _PLAIN, rows.head_starts))
    how_much = (
        Fit("plain Bradley-Terry", "plain", _PLAIN, rows.winners, ("scale",)),
        Fit(
            "scaled_bradley_terry",
            "objective",
            make_objective("scaled_bradley_terry"),
            rows.how_much_better,
            ("scale",),
        ),
        Fit("bradley_terry with margin", "also", _PLAIN, rows.how_much_better, ("scale",)),
        Fit("hinge with margin", "also", make_objective("hinge"), rows.how_much_better, ("scale",)),
    )
    return [
        Case(
            "head_start",
            "Known head starts",
            round(3000 * scale),
            "comparison",
            partial(models.draw_head_start, spread=2.0),
            models.head_start_nll,
            head_start,
        ),
        Case(
            "how_much",
            "How much better, 1 to 3",
            round(2000 * scale),
            "comparison",
            partial(models.draw_how_much, cuts=(1.0, 2.5)),
            models.bradley_terry_nll,
            how_much,
        ),
    ]


def ranking_cases(scale: float) -> list[Case]:
    """Rankings: whole ones, the best two, and those with a careless end."""
    whole, best = models.plackett_luce_nll, partial(models.plackett_luce_nll, places=2)
    pair = Fit("plain Bradley-Terry, one pair of each", "plain", _PLAIN, rows.one_pair)
    pairs = Fit("plain Bradley-Terry, all pairs", "plain", _PLAIN, rows.all_pairs)
    normalised = Fit("bradley_terry, rows count as one", "also", _PLAIN, rows.listed)
    full = Fit("plackett_luce", "objective", make_objective("plackett_luce"), rows.listed)
    top = Fit("plackett_luce with top_k=2", "objective", make_objective("plackett_luce", top_k=2), rows.listed)
    draw, sizes = models.draw_rankings, (3, 8)
    careless = Fit("plackett_luce", "also", make_objective("plackett_luce"), rows.listed)
    return [
        Case(
            "rankings",
            "Rankings of 3 to 8",
            round(600 * scale),
            "ranking",
            partial(draw, sizes=sizes),
            whole,
            (pair, pairs, full, normalised),
        ),
        Case(
            "best_two",
            "Best two of 3 to 8",
            round(1000 * scale),
            "first two places",
            partial(models.draw_best, sizes=sizes, best=2),
            best,
            (pair, pairs, top, normalised),
        ),
        Case(
            "careless",
            "Rankings, random after two",
            round(1000 * scale),
            "first two places",
            partial(draw, sizes=sizes, careful=2),
            best,
            (pair, pairs, top, careless),
        ),
    ]


def single_cases(scale: float) -> list[Case]:
    """Ratings and labels."""
    return [
        Case(
            "ratings",
            "Noisy ratings, four each",
            round(500 * scale),
            "rating",
            partial(models.draw_grades, size=4, noise=GRADE_NOISE),
            models.grades_nll,
            (
                Fit(
                    "plain Bradley-Terry, all pairs", "plain", _PLAIN, rows.all_pairs, ("scale", "offset", "log_noise")
                ),
                Fit("regression", "objective", make_objective("regression"), rows.listed, ("log_noise",)),
                Fit("bradley_terry, rows count as one", "also", _PLAIN, rows.listed, ("scale", "offset", "log_noise")),
            ),
            Link(log_noise=float(np.log(GRADE_NOISE))),
            offset=3.0,
        ),
        Case(
            "labels",
            "Good and bad labels",
            round(6000 * scale),
            "label",
            models.draw_thumbs,
            models.thumbs_nll,
            (
                Fit("plain Bradley-Terry, an up against a down", "plain", _PLAIN, rows.up_against_down, ("offset",)),
                Fit("binary_cross_entropy", "objective", make_objective("binary_cross_entropy"), rows.listed),
            ),
            offset=1.0,
        ),
    ]
