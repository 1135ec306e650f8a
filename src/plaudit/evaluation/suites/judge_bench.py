"""JudgeBench: pairs of a correct and an incorrect answer to hard questions."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from plaudit.evaluation.results import SuiteResult
from plaudit.evaluation.suites.base import (
    SourceRow,
    Suite,
    SuiteRow,
    by_row,
    conversation_pair,
    pair_outcomes,
    read_source,
    require_rows,
    slice_result,
    suite_rows,
)
from plaudit.evaluation.table import ScoredSet

DOMAINS = {
    "mmlu-pro": "Knowledge",
    "livebench-reasoning": "Reasoning",
    "livebench-math": "Math",
    "livecodebench": "Coding",
}
"""Beginning of ``source`` -> domain."""


class JudgeBench(Suite):
    """JudgeBench.

    Rows: ``pair_id``, ``source``, ``question``, ``response_A``, ``response_B`` and ``label`` (``A>B`` or ``B>A``); on
    the Hub in the splits ``gpt`` (350 pairs, the default) and ``claude`` (270).

    Source: Tan et al. (2024), JudgeBench, arXiv 2410.12784, sections 3 and 4; README, ``utils/metrics.py`` and
    ``utils/judges.py`` of github.com/ScalerLab/JudgeBench. There a reward model that gives both answers the same
    reward is taken to prefer B; here, as the paper has it for judges, such a tie is not right.
    """

    name: ClassVar[str] = "judgebench"
    title: ClassVar[str] = "JudgeBench"
    hub_id: ClassVar[str] = "ScalerLab/JudgeBench"
    hub_split: ClassVar[str] = "gpt"
    rule: ClassVar[str] = (
        "A pair is right if the correct answer has the higher reward. Domain: accuracy over its pairs, by the data "
        "set that the question comes from. Score: accuracy over all pairs."
    )
    reference: ClassVar[str] = "Tan et al. (2024), arXiv 2410.12784; github.com/ScalerLab/JudgeBench"

    def read(self, place: str, split: str, start: int) -> list[SuiteRow]:
        """Read the rows of one source, like :meth:`Suite.read`."""
        columns = ["source", "question", "response_A", "response_B", "label"]
        return suite_rows(read_source(place, split=split, columns=columns), _convert, start)

    def score(self, scored: ScoredSet) -> SuiteResult:
        """Apply the rule, like :meth:`Suite.score`."""
        require_rows(scored, self.name)
        slices = []
        outcomes = by_row(scored, pair_outcomes(scored, self.name))
        for domain, part in scored.sliced("domain").items():
            slices.append(slice_result(domain, part, [outcomes[row.row] for row in part]))
        missing = [name for name in DOMAINS.values() if name not in {one.name for one in slices}]
        notes = [f"No rows of {', '.join(missing)}."] if missing else []
        score = float(np.mean(list(outcomes.values())))
        return self.result(scored, score, slices, outcomes, slice_column="domain", notes=notes)


def _convert(row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
    source = row.text("source")
    domain = next((domain for start, domain in DOMAINS.items() if source.startswith(start)), None)
    if domain is None:
        row.refuse("source", f"is {source!r}", f"It must begin with one of: {', '.join(DOMAINS)}.")
    answers = [row.text("response_A"), row.text("response_B")]
    if row.choice("label", ("A>B", "B>A")) == "B>A":
        answers.reverse()
    columns = {"domain": domain, "source": source, "response_model": row.values.get("response_model")}
    return str(row.values.get("pair_id", row.row)), conversation_pair(row.text("question"), *answers), columns
