"""RewardBench 2: the best of four answers in five subsets, and a subset of questions with several right answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plaudit.errors import DataError
from plaudit.evaluation.results import SliceResult
from plaudit.evaluation.stats import cluster_bootstrap
from plaudit.evaluation.suites.base import Headline, SourceRow, Suite, conversation_list, mean_margin, missing_parts
from plaudit.evaluation.table import ScoredRow, ScoredSet

SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")
_WEIGHTS = {"tied": 0.3, "ref": 0.3, "preferred": 0.2, "preferred_hard": 0.2, "margin": 0.01}
_COUNTS = (5, 6, 7, 7, 7)  # columns of `_question` that the five numbers are divided by


class RewardBench2(Suite):
    """RewardBench 2. In the subset Ties the id is ``ref:N`` (one right answer) or ``tied:N`` (several).

    Source: Malik et al. (2025), RewardBench 2, arXiv 2506.01937; the data card of allenai/reward-bench-2;
    ``reroll_and_score_dataset`` and ``process_single_model`` in ``rewardbench/utils.py``, and ``scripts/run_v2.py``,
    of github.com/allenai/reward-bench.
    """

    name = "rewardbench2"
    title = "RewardBench 2"
    hub_id = "allenai/reward-bench-2"
    hub_split = "test"
    rule = (
        "Best of four: a row counts 1 if the chosen answer alone has the highest reward, 1/k if it shares it with "
        "k - 1 others, else 0. Ties: 0.3 x share of tied questions whose right answers all beat all wrong ones + 0.3 "
        "x the same share of reference questions + 0.2 x share of questions whose gap between right and wrong exceeds "
        "the spread of the right ones + 0.2 x the same with the smaller gap of the question and its reference + 0.01 "
        "x mean tanh(smaller gap / spread - 1). Score: mean of the six subsets."
    )
    reference = "Malik et al. (2025), arXiv 2506.01937; github.com/allenai/reward-bench"
    columns = ("id", "prompt", "chosen", "rejected", "subset")
    slice_column = "subset"

    def convert(self, row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Lists the right answers first."""
        chosen, rejected, subset = row.texts("chosen"), row.texts("rejected"), row.text("subset")
        row_id = str(row.values.get("id"))
        columns: dict[str, Any] = {"subset": subset}
        if _is_ties(subset):
            kind, _, question = row_id.partition(":")
            if kind not in ("ref", "tied") or not question:
                row.refuse("id", f"is {row_id!r}", "Use the ids `ref:N` and `tied:N` in the subset Ties.")
            if kind == "tied" and len(chosen) < 2:
                row.refuse("chosen", "holds a single right answer", "Give `tied:N` several; `ref:N` has one.")
            columns |= {"kind": kind, "question": question}
        elif len(chosen) != 1:
            row.refuse("chosen", f"holds {len(chosen)} answers", "Give one right answer outside of Ties.")
        return row_id, conversation_list(row.text("prompt"), chosen, rejected), columns

    def outcome(self, row: ScoredRow) -> float:
        """Best of four; in Ties whether all right answers beat all wrong ones."""
        return float(_gap(row) > 0) if _is_ties(row.columns["subset"]) else best_of_four(row)

    def slice_result(self, name: str, part: ScoredSet, outcomes: Sequence[float]) -> SliceResult | None:
        """Ties has a score of its own, from about 0 to 1.01."""
        if not _is_ties(name):
            return super().slice_result(name, part, outcomes)
        values = question_values(part)
        if not values[:, 7].any():
            return None
        score = float(_weighted(values.sum(axis=0, keepdims=True))[0])
        interval = cluster_bootstrap(values, np.arange(len(values)), _weighted)
        return SliceResult("Ties", len(part), score, interval, mean_margin(part))

    def headline(self, scored: ScoredSet, slices: Sequence[SliceResult], outcomes: Mapping[int, float]) -> Headline:
        """Mean of the subsets; beside it, the five numbers that Ties is made of."""
        scores: dict[str, float] = {}
        notes: list[str] = []
        ties = scored.where(lambda row: _is_ties(row.columns["subset"]))
        if len(ties):
            totals = question_values(ties).sum(axis=0)
            for index, (name, count) in enumerate(zip(_WEIGHTS, _COUNTS, strict=True)):
                scores |= {f"Ties: {name}": float(totals[index] / totals[count])} if totals[count] else {}
            if not totals[7]:
                notes.append("Ties has no question in both forms, `ref` and `tied`: the score leaves it out.")
        if not slices:
            raise DataError("has no subset that can be scored", dataset=self.name, fix="Score all rows of the suite.")
        notes += missing_parts(SUBSETS, slices, "No score of {}: the headline is the mean of the rest.")
        return Headline(float(np.mean([part.score for part in slices])), scores, notes)


def _is_ties(subset: Any) -> bool:
    return str(subset).lower() == "ties"


def best_of_four(row: ScoredRow) -> float:
    """Returns 1 if the first response alone has the highest reward, 1/k if it shares it with k - 1 others, else 0.

    >>> from plaudit.schema import Label
    >>> best_of_four(ScoredRow(0, (2.0, 2.0, 1.0, 0.0), Label((1.0, 0.0, 0.0, 0.0)), "scores"))
    0.5
    """
    highest = max(row.rewards)
    return 1 / row.rewards.count(highest) if row.rewards[0] == highest else 0.0


def _right(row: ScoredRow) -> list[float]:
    return [reward for reward, good in zip(row.rewards, row.label.ratings, strict=True) if good > 0]


def _gap(row: ScoredRow) -> float:
    wrong = [reward for reward, good in zip(row.rewards, row.label.ratings, strict=True) if good <= 0]
    return min(_right(row)) - max(wrong)


def question_values(ties: ScoredSet) -> np.ndarray:
    """Returns the summands of each question of Ties, shape (questions, 8).

    They are the five numbers named in the weights, then whether the question has the tied form, the reference, both.
    """
    by_kind: dict[str, dict[str, ScoredRow]] = {"ref": {}, "tied": {}}
    for row in ties:
        by_kind[row.columns["kind"]][str(row.columns["question"])] = row
    questions = sorted(set(by_kind["ref"]) | set(by_kind["tied"]))
    return np.array([_question(by_kind["ref"].get(name), by_kind["tied"].get(name)) for name in questions])


def _question(ref: ScoredRow | None, tied: ScoredRow | None) -> list[float]:
    values = [0.0] * 8
    if tied is not None:
        values[0], values[5] = float(_gap(tied) > 0), 1.0
    if ref is not None:
        values[1], values[6] = float(_gap(ref) > 0), 1.0
    if tied is not None and ref is not None:
        spread, smaller = max(_right(tied)) - min(_right(tied)), min(_gap(ref), _gap(tied))
        with np.errstate(divide="ignore", invalid="ignore"):
            # Without a spread: the limit where there is a gap, and 0 where there is none either.
            closeness = float(np.nan_to_num(np.tanh(np.float64(smaller) / spread - 1), nan=0.0))
        values[2:] = [float(_gap(tied) > spread), float(smaller > spread), closeness, values[5], values[6], 1.0]
    return values


def _weighted(sums_BK: np.ndarray) -> np.ndarray:
    means = (np.divide(sums_BK[:, index], sums_BK[:, count]) for index, count in enumerate(_COUNTS))
    return np.sum([weight * mean for weight, mean in zip(_WEIGHTS.values(), means, strict=True)], axis=0)
