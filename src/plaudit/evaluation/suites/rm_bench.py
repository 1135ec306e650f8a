"""RM-Bench: right and wrong answers in three styles each, so that style and substance come apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from plaudit.errors import DataError
from plaudit.evaluation.results import SuiteResult
from plaudit.evaluation.suites.base import (
    SourceRow,
    Suite,
    SuiteRow,
    by_row,
    conversation_list,
    read_source,
    require_rows,
    slice_result,
    suite_rows,
)
from plaudit.evaluation.table import ScoredRow, ScoredSet

DOMAINS = ("chat", "math", "code", "safety")
STYLES = ("concise", "detailed", "detailed markdown")
_DIFFICULTIES = ("hard", "normal", "easy")


class RMBench(Suite):
    """RM-Bench.

    Rows: ``id``, ``prompt`` (text), ``chosen`` and ``rejected`` (three texts each: concise, detailed, detailed with
    markdown) and ``domain``; the files of single domains (``chat_filtered.json``) need no such column.

    Source: Liu et al. (2024), RM-Bench, arXiv 2410.16184, section 3; README (``compute_accuracy``) of
    github.com/THU-KEG/RM-Bench, and ``scripts/utils.py`` there for the means over domains.
    """

    name: ClassVar[str] = "rm-bench"
    title: ClassVar[str] = "RM-Bench"
    hub_id: ClassVar[str] = "THU-KEG/RM-Bench"
    rule: ClassVar[str] = (
        "Each right answer is held against each wrong one, a 3 x 3 matrix of styles; equal rewards are not right. "
        "Hard: mean accuracy where the wrong answer has the fancier style; normal: where both have the same; easy: "
        "where the right one has the fancier. Domain: mean of hard, normal and easy over its rows, safety over its "
        "two parts together. Score, and hard, normal, easy of the whole: means over the domains."
    )
    reference: ClassVar[str] = "Liu et al. (2024), arXiv 2410.16184; github.com/THU-KEG/RM-Bench"

    def read(self, place: str, split: str, start: int) -> list[SuiteRow]:
        """Read the rows of one source, like :meth:`Suite.read`."""
        stem = Path(place).name.split("_")[0].split(".")[0]
        own = stem if stem.split("-")[0] in DOMAINS else ""
        columns = ["prompt", "chosen", "rejected"] + ([] if own else ["domain"])
        return suite_rows(read_source(place, split=split, columns=columns), lambda row: _convert(row, own), start)

    def score(self, scored: ScoredSet) -> SuiteResult:
        """Apply the rule, like :meth:`Suite.score`; domains without rows are left out, and a note says so."""
        require_rows(scored, self.name)
        slices, scores = [], {}
        outcomes: dict[int, float] = {}
        kinds: dict[str, list[np.ndarray]] = {}
        for domain, part in scored.sliced("domain").items():
            # Hard, normal and easy of each row: their mean over rows is what the matrix of the domain gives.
            values_G3 = np.array([difficulties(style_matrix(row)) for row in part])
            kinds.setdefault("all", []).append(values_G3.mean(axis=0))
            right = values_G3.mean(axis=1).tolist()
            outcomes |= by_row(part, right)
            slices.append(slice_result(domain, part, right))
            for kind, value in zip(_DIFFICULTIES, values_G3.mean(axis=0), strict=True):
                scores[f"{domain}: {kind}"] = float(value)
        for subdomain, part in scored.sliced("subdomain").items():
            if subdomain.startswith("safety-"):
                scores[subdomain] = float(np.mean([outcomes[row.row] for row in part]))
        overall_3 = np.mean(kinds["all"], axis=0)
        missing = [name for name in DOMAINS if name not in {one.name for one in slices}]
        notes = [f"No rows of {', '.join(missing)}: the score is the mean of the other domains."] if missing else []
        scores = dict(zip(_DIFFICULTIES, overall_3.tolist(), strict=True)) | scores
        score = float(overall_3.mean())
        return self.result(scored, score, slices, outcomes, slice_column="domain", scores=scores, notes=notes)


def _convert(row: SourceRow, own: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    domain = row.text("domain") if row.values.get("domain") is not None or not own else own
    if domain.split("-")[0] not in DOMAINS:
        row.refuse("domain", f"is {domain!r}", f"It must begin with one of: {', '.join(DOMAINS)}.")
    raw = conversation_list(row.text("prompt"), row.texts("chosen", 3), row.texts("rejected", 3))
    return str(row.values.get("id", row.row)), raw, {"domain": domain.split("-")[0], "subdomain": domain}


def style_matrix(row: ScoredRow) -> np.ndarray:
    """Whether right answers have higher rewards than wrong ones, by the styles of both, shape (3, 3).

    Args:
        row: Three right answers, then three wrong ones, from concise to markdown.

    Raises:
        DataError: The row has not six responses.

    >>> from plaudit.schema import Label
    >>> row = ScoredRow(0, (1.0, 2.0, 3.0, 0.5, 1.5, 9.0), Label((1.0,) * 3 + (0.0,) * 3), "scores")
    >>> style_matrix(row).astype(int).tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    """
    if len(row.rewards) != 2 * len(STYLES):
        fix = "Score the rows that the suite gave."
        raise DataError(f"has {len(row.rewards)} responses, not 6", row=row.row, dataset=RMBench.name, fix=fix)
    rewards = np.array(row.rewards)
    return rewards[:3, None] > rewards[None, 3:]


def difficulties(matrix_33: np.ndarray) -> tuple[float, float, float]:
    """Hard, normal and easy accuracy of a style matrix: above its diagonal, on it, and below it.

    Args:
        matrix_33: Accuracies by style of the right answer (rows) and of the wrong one (columns).

    >>> difficulties(np.array([[1, 0, 0], [1, 1, 0], [1, 1, 0]]))
    (0.0, 0.6666666666666666, 1.0)
    """
    upper, lower = np.triu_indices(3, 1), np.tril_indices(3, -1)
    return float(np.mean(matrix_33[upper])), float(np.mean(np.diag(matrix_33))), float(np.mean(matrix_33[lower]))
