"""Ways in which people judge, as simulations: each draws labels of items whose rewards are known.

Every model has its own likelihood here, written in NumPy and apart from `plaudit.losses`, so that a fault in a loss
cannot hide in the yardstick. Likelihoods are means over held-out units, in nats; lower is better.

Letters: M items, n comparisons, rankings or labels, K responses of a ranking.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.special import expit, log_expit, logsumexp

Numbers = np.ndarray


@dataclass(frozen=True)
class Link:
    """What a likelihood needs beside rewards.

    Attributes:
        tie: Rao-Kupper's threshold, or the logarithm of Davidson's weight of ties.
        log_noise: Logarithm of the standard deviation of a rating.
    """

    tie: float = 0.0
    log_noise: float = 0.0


@dataclass(frozen=True)
class Pairs:
    """Comparisons of two items.

    Attributes:
        first, second: Which items, shape (n,).
        outcome: 1 where the first won, 0 where the second did, 0.5 for a tie; or the share of votes for the first.
        said: What else the annotator said: how much better (a rating), or a head start of the first, shape (n,).
    """

    first: Numbers
    second: Numbers
    outcome: Numbers
    said: Numbers = field(default_factory=lambda: np.zeros(0))


@dataclass(frozen=True)
class Lists:
    """Items that were judged together.

    Attributes:
        items: For each list its items, of rankings the best first.
        scores: For each list what its items were given; for rankings, higher is better.
    """

    items: list[Numbers]
    scores: list[Numbers]


def draw_pairs(rng: np.random.Generator, rewards: Numbers, count: int) -> Pairs:
    """Bradley-Terry: the first wins with probability sigma(difference)."""
    first, second = _two_items(rng, len(rewards), count)
    return Pairs(first, second, (rng.random(count) < expit(rewards[first] - rewards[second])).astype(float))


def draw_flipped(rng: np.random.Generator, rewards: Numbers, count: int, noise: float) -> Pairs:
    """Bradley-Terry whose outcome is swapped with probability `noise`."""
    drawn = draw_pairs(rng, rewards, count)
    flipped = rng.random(count) < noise
    return Pairs(drawn.first, drawn.second, np.where(flipped, 1 - drawn.outcome, drawn.outcome))


def draw_rao_kupper(rng: np.random.Generator, rewards: Numbers, count: int, threshold: float) -> Pairs:
    """A logistic difference is seen, and is a tie within the threshold."""
    first, second = _two_items(rng, len(rewards), count)
    seen = rewards[first] - rewards[second] + rng.logistic(size=count)
    return Pairs(first, second, np.where(np.abs(seen) < threshold, 0.5, seen > 0))


def draw_davidson(rng: np.random.Generator, rewards: Numbers, count: int, log_weight: float) -> Pairs:
    """Three outcomes with weights exp(r_i), exp(r_j) and nu times their geometric mean."""
    first, second = _two_items(rng, len(rewards), count)
    half = (rewards[first] - rewards[second]) / 2
    logits = np.stack([half, np.full(count, log_weight), -half])
    # The largest of logits with Gumbel noise is a draw from their softmax.
    place = (logits + rng.gumbel(size=logits.shape)).argmax(axis=0)
    return Pairs(first, second, np.array([1.0, 0.5, 0.0])[place])


def draw_votes(rng: np.random.Generator, rewards: Numbers, count: int, votes: int) -> Pairs:
    """The share of a number of independent Bradley-Terry votes."""
    first, second = _two_items(rng, len(rewards), count)
    return Pairs(first, second, rng.binomial(votes, expit(rewards[first] - rewards[second])) / votes)


def draw_head_start(rng: np.random.Generator, rewards: Numbers, count: int, spread: float) -> Pairs:
    """Bradley-Terry in which the first has a known advantage, positive or negative."""
    first, second = _two_items(rng, len(rewards), count)
    start = rng.normal(0, spread, count)
    wins = rng.random(count) < expit(rewards[first] - rewards[second] + start)
    return Pairs(first, second, wins.astype(float), start)


def draw_how_much(rng: np.random.Generator, rewards: Numbers, count: int, cuts: tuple[float, ...]) -> Pairs:
    """A logistic difference is seen; its sign is the winner, its size is said as a rating 1, 2, ... by the cuts."""
    first, second = _two_items(rng, len(rewards), count)
    seen = rewards[first] - rewards[second] + rng.logistic(size=count)
    return Pairs(first, second, (seen > 0).astype(float), 1.0 + np.digitize(np.abs(seen), cuts))


def draw_rankings(
    rng: np.random.Generator, rewards: Numbers, count: int, sizes: tuple[int, int], careful: int | None = None
) -> Lists:
    """Plackett-Luce rankings of random size; after the first `careful` places the order is a random one."""
    items, scores = [], []
    for _ in range(count):
        size = int(rng.integers(sizes[0], sizes[1] + 1))
        shown = rng.choice(len(rewards), size, replace=False)
        # Sorting rewards with Gumbel noise draws from Plackett-Luce.
        order = shown[np.argsort(-(rewards[shown] + rng.gumbel(size=size)))]
        if careful is not None:
            rng.shuffle(order[careful:])
        items.append(order)
        scores.append(np.arange(size, 0, -1.0))
    return Lists(items, scores)


def draw_best(rng: np.random.Generator, rewards: Numbers, count: int, sizes: tuple[int, int], best: int) -> Lists:
    """Plackett-Luce rankings of which only the best are told; the others share the lowest score."""
    drawn = draw_rankings(rng, rewards, count, sizes)
    return Lists(drawn.items, [np.maximum(one, len(one) - best) for one in drawn.scores])


def draw_grades(rng: np.random.Generator, rewards: Numbers, count: int, size: int, noise: float) -> Lists:
    """Every item of a list gets its reward plus Gaussian noise."""
    items = [rng.choice(len(rewards), size, replace=False) for _ in range(count)]
    return Lists(items, [rewards[one] + rng.normal(0, noise, size) for one in items])


def draw_thumbs(rng: np.random.Generator, rewards: Numbers, count: int) -> Lists:
    """Single items, up with probability sigma(reward)."""
    items = rng.integers(0, len(rewards), count)
    up = (rng.random(count) < expit(rewards[items])).astype(float)
    return Lists(list(items[:, None]), list(up[:, None]))


def bradley_terry_nll(data: Pairs, rewards: Numbers, link: Link) -> float:
    """Of single votes; a head start counts."""
    difference = rewards[data.first] - rewards[data.second]
    return float(-np.mean(data.outcome * log_expit(difference) + (1 - data.outcome) * log_expit(-difference)))


def head_start_nll(data: Pairs, rewards: Numbers, link: Link) -> float:
    """Bradley-Terry, given the head starts."""
    difference = rewards[data.first] - rewards[data.second] + data.said
    return float(-np.mean(np.where(data.outcome == 1, log_expit(difference), log_expit(-difference))))


def rao_kupper_nll(data: Pairs, rewards: Numbers, link: Link) -> float:
    """Of the three outcomes."""
    difference = rewards[data.first] - rewards[data.second]
    win, loss = expit(difference - link.tie), expit(-difference - link.tie)
    return _three_outcomes_nll(data.outcome, win, loss)


def davidson_nll(data: Pairs, rewards: Numbers, link: Link) -> float:
    """Of the three outcomes."""
    half = (rewards[data.first] - rewards[data.second]) / 2
    total = np.exp(half) + np.exp(-half) + np.exp(link.tie)
    return _three_outcomes_nll(data.outcome, np.exp(half) / total, np.exp(-half) / total)


def plackett_luce_nll(data: Lists, rewards: Numbers, link: Link, places: int | None = None) -> float:
    """Of a ranking, or of its first places."""
    width = max(map(len, data.items))
    ranked = np.full((len(data.items), width), -np.inf)
    for row, items in zip(ranked, data.items, strict=True):
        row[: len(items)] = rewards[items]
    chosen = [
        np.where(np.isfinite(ranked[:, k]), ranked[:, k] - _logsumexp_from(ranked, k), 0)
        for k in range(width if places is None else places)
    ]
    return float(-np.mean(np.sum(chosen, axis=0)))


def grades_nll(data: Lists, rewards: Numbers, link: Link) -> float:
    """Of Gaussian ratings; up to the constant log(2 pi) / 2."""
    error = np.concatenate(data.scores) - rewards[np.concatenate(data.items)]
    return float(np.mean(error**2) / (2 * np.exp(2 * link.log_noise)) + link.log_noise)


def thumbs_nll(data: Lists, rewards: Numbers, link: Link) -> float:
    """Of labels."""
    reward = rewards[np.concatenate(data.items)]
    return float(-np.mean(np.where(np.concatenate(data.scores) == 1, log_expit(reward), log_expit(-reward))))


def _two_items(rng: np.random.Generator, items: int, count: int) -> tuple[Numbers, Numbers]:
    first = rng.integers(0, items, count)
    return first, (first + rng.integers(1, items, count)) % items


def _three_outcomes_nll(outcome: Numbers, win: Numbers, loss: Numbers) -> float:
    tie = np.clip(1 - win - loss, 1e-300, None)
    return float(-np.mean(np.log(np.select([outcome == 1, outcome == 0], [win, loss], tie))))


def _logsumexp_from(ranked: Numbers, k: int) -> Numbers:
    # A list that has ended leaves nothing to choose from.
    left = ranked[:, k:].copy()
    left[~np.isfinite(left[:, 0]), 0] = 0.0
    return logsumexp(left, axis=1)
