"""From simulated labels to prepared rows, as each objective, or a plain trainer of pairs, would read them.

All responses answer one prompt, the token 0; the response that stands for item i is the token i + 1.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from preference_models import Lists, Numbers, Pairs

Row = dict[str, Any]


def winners(rng: np.random.Generator, data: Pairs) -> list[Row]:
    """The winner chosen, the loser rejected; a tie as preference_prob 0.5, as data preparation has it."""
    won = data.outcome >= 0.5
    rows = _pairs(np.where(won, data.first, data.second), np.where(won, data.second, data.first))
    if not (data.outcome == 0.5).any():
        return rows
    return [row | {"preference_prob": 0.5 if one == 0.5 else 1.0} for row, one in zip(rows, data.outcome, strict=True)]


def decided(rng: np.random.Generator, data: Pairs) -> list[Row]:
    """Only what has a winner."""
    kept = data.outcome != 0.5
    return winners(rng, Pairs(data.first[kept], data.second[kept], data.outcome[kept]))


def coin(rng: np.random.Generator, data: Pairs) -> list[Row]:
    """A coin decides ties."""
    tossed = rng.integers(0, 2, len(data.outcome)).astype(float)
    return winners(rng, Pairs(data.first, data.second, np.where(data.outcome == 0.5, tossed, data.outcome)))


def majority(rng: np.random.Generator, data: Pairs) -> list[Row]:
    """What most voted for."""
    return winners(rng, Pairs(data.first, data.second, np.round(data.outcome)))


def shares(rng: np.random.Generator, data: Pairs) -> list[Row]:
    """What most voted for, with their share as preference_prob."""
    share = np.maximum(data.outcome, 1 - data.outcome).tolist()
    return [row | {"preference_prob": one} for row, one in zip(majority(rng, data), share, strict=True)]


def head_starts(rng: np.random.Generator, data: Pairs) -> list[Row]:
    """The head start of the rejected as margin: negative where the winner had it."""
    margin = np.where(data.outcome == 1, -data.said, data.said).tolist()
    return [row | {"margin": one} for row, one in zip(winners(rng, data), margin, strict=True)]


def how_much_better(rng: np.random.Generator, data: Pairs) -> list[Row]:
    """How much better the winner is, as margin."""
    return [row | {"margin": one} for row, one in zip(winners(rng, data), data.said.tolist(), strict=True)]


def listed(rng: np.random.Generator, data: Lists) -> list[Row]:
    """Lists as they are, in random order."""
    rows = []
    for items, scores in zip(data.items, data.scores, strict=True):
        order = rng.permutation(len(items))
        rows.append({"response_ids": [_ids(item) for item in items[order]], "scores": scores[order].tolist()})
    return rows


def all_pairs(rng: np.random.Generator, data: Lists) -> list[Row]:
    """Every comparison of a list as a row of its own, all with equal weight."""
    return [pair for items, scores in zip(data.items, data.scores, strict=True) for pair in _compared(items, scores)]


def one_pair(rng: np.random.Generator, data: Lists) -> list[Row]:
    """One comparison of each list, by chance."""
    compared = [_compared(items, scores) for items, scores in zip(data.items, data.scores, strict=True)]
    return [pairs[rng.integers(len(pairs))] for pairs in compared]


def up_against_down(rng: np.random.Generator, data: Lists) -> list[Row]:
    """Each label up against a label down, by chance, until one kind is used up."""
    items, up = np.concatenate(data.items), np.concatenate(data.scores) == 1
    good, bad = rng.permutation(items[up]), rng.permutation(items[~up])
    count = min(len(good), len(bad))
    different = good[:count] != bad[:count]
    return _pairs(good[:count][different], bad[:count][different])


def _compared(items: Numbers, scores: Numbers) -> list[Row]:
    ordered = [(i, j) if scores[i] > scores[j] else (j, i) for i, j in combinations(range(len(items)), 2)]
    decisive = [(i, j) for i, j in ordered if scores[i] != scores[j]]
    return [{"chosen_ids": _ids(items[i]), "rejected_ids": _ids(items[j])} for i, j in decisive]


def _pairs(chosen: Numbers, rejected: Numbers) -> list[Row]:
    return [{"chosen_ids": _ids(i), "rejected_ids": _ids(j)} for i, j in zip(chosen, rejected, strict=True)]


def _ids(item: int | np.integer[Any]) -> list[int]:
    return [0, int(item) + 1]
