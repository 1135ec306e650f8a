"""JudgeBench: pairs of a correct and an incorrect answer to hard questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plaudit.evaluation.results import SliceResult
from plaudit.evaluation.suites.base import Headline, SourceRow, Suite, conversation_pair, missing_parts
from plaudit.evaluation.table import ScoredSet

# Beginning of the column `source` -> domain.
DOMAINS = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}


class JudgeBench(Suite):
    """JudgeBench, in the splits ``gpt`` (350 pairs, the default) and ``claude`` (270).

    Source: Tan et al. (2024), JudgeBench, arXiv 2410.12784, sections 3 and 4; README, ``utils/metrics.py`` and
    ``utils/judges.py`` of github.com/ScalerLab/JudgeBench. There a reward model with equal rewards is taken to prefer
    B; here, as in the paper's rule for judges, such a tie is not right.
    """

    name = "judgebench"
    title = "JudgeBench"
    hub_id = "ScalerLab/JudgeBench"
    hub_split = "gpt"
    rule = (
        "A pair is right if the correct answer has the higher reward. Domain: accuracy over its pairs, by the data "
        "set that the question comes from. Score: accuracy over all pairs."
    )
    reference = "Tan et al. (2024), arXiv 2410.12784; github.com/ScalerLab/JudgeBench"
    columns = ("source", "question", "response_A", "response_B", "label")
    slice_column = "domain"

    def convert(self, row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Puts the correct answer first, and names the domain."""
        source = row.text("source")
        domain = next((domain for start, domain in DOMAINS.items() if source.startswith(start)), None)
        if domain is None:
            row.refuse("source", f"is {source!r}", f"Use a source that begins with one of: {', '.join(DOMAINS)}.")
        answers = [row.text("response_A"), row.text("response_B")]
        if row.choice("label", ("A>B", "B>A")) == "B>A":
            answers.reverse()
        columns = {"domain": domain, "source": source, "response_model": row.values.get("response_model")}
        return str(row.values.get("pair_id", row.row)), conversation_pair(row.text("question"), *answers), columns

    def headline(self, scored: ScoredSet, slices: Sequence[SliceResult], outcomes: Mapping[int, float]) -> Headline:
        """Accuracy over all pairs."""
        notes = missing_parts(list(DOMAINS.values()), slices, "No rows of {}.")
        return Headline(float(np.mean(list(outcomes.values()))), {}, notes)
