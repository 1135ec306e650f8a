"""LLMBar: does an evaluator see which answer follows the instruction, also where the other looks better."""

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
    check_source_columns,
    conversation_pair,
    load_source,
    pair_outcomes,
    require_rows,
    slice_result,
    suite_rows,
)
from plaudit.evaluation.table import ScoredSet
from plaudit.schema import quoted

SUBSETS = ("Natural", "Neighbor", "GPTInst", "GPTOut", "Manual")
"""The natural set, and the four adversarial ones."""


class LLMBar(Suite):
    """LLMBar.

    Rows as published: ``input``, ``output_1``, ``output_2`` and ``label`` (1 or 2), in files ``dataset.json`` whose
    folder is named after the subset; a folder is searched for them. Or rows with ``prompt``, ``chosen``,
    ``rejected`` and ``subset`` (``natural``, ``adv_neighbor``, ``llmbar-adver-GPTInst``, ...).

    Source: Zeng et al. (2023), LLMBar, arXiv 2310.07641, sections 3 and 4; README of github.com/princeton-nlp/LLMBar.
    """

    name: ClassVar[str] = "llmbar"
    title: ClassVar[str] = "LLMBar"
    rule: ClassVar[str] = (
        "A pair is right if the better output has the higher reward. Adversarial: mean of the accuracies of its four "
        "subsets. Score: mean of the accuracies of all five subsets. Beside it: accuracy over all pairs."
    )
    reference: ClassVar[str] = (
        "Zeng et al. (2023), arXiv 2310.07641; github.com/princeton-nlp/LLMBar (Dataset/LLMBar/*/dataset.json)"
    )

    def read(self, place: str, split: str, start: int) -> list[SuiteRow]:
        """Read the rows of one source, like :meth:`Suite.read`."""
        rows: list[SuiteRow] = []
        for file in _files_in(place):
            rows += _read(file, split, start + len(rows))
        return rows

    def score(self, scored: ScoredSet) -> SuiteResult:
        """Apply the rule, like :meth:`Suite.score`; subsets without rows are left out, and a note says so."""
        require_rows(scored, self.name)
        slices = []
        outcomes: dict[int, float] = {}
        for subset, part in scored.sliced("subset").items():
            right = pair_outcomes(part, self.name)
            outcomes |= by_row(part, right)
            slices.append(slice_result(subset, part, right, group="Natural" if subset == "Natural" else "Adversarial"))
        scores = {"accuracy over all pairs": float(np.mean(list(outcomes.values())))}
        for group in ("Natural", "Adversarial"):
            parts = [one.score for one in slices if one.group == group]
            scores |= {group: float(np.mean(parts))} if parts else {}
        missing = [name for name in SUBSETS if name not in {one.name for one in slices}]
        notes = [f"No rows of {', '.join(missing)}: the means leave them out."] if missing else []
        score = float(np.mean([one.score for one in slices]))
        return self.result(scored, score, slices, outcomes, slice_column="subset", scores=scores, notes=notes)


def _files_in(place: str) -> list[str]:
    folder = Path(place).expanduser()
    if not folder.is_dir():
        return [place]
    found = sorted(str(file) for file in folder.rglob("dataset.json") if _subset_of(file.parent.name) is not None)
    return found or [place]


def _subset_of(name: str) -> str | None:
    """Name a subset as the paper does.

    >>> [_subset_of(name) for name in ("natural", "adv_gptinst", "llmbar-adver-neighbor", "Base_9")]
    ['Natural', 'GPTInst', 'Neighbor', None]
    """
    last = name.lower().replace("_", "-").split("-")[-1]
    return next((subset for subset in SUBSETS if subset.lower() == last), None)


def _read(file: str, split: str, start: int) -> list[SuiteRow]:
    dataset = load_source(file, split)
    names, own = dataset.column_names, _subset_of(Path(file).parent.name)
    published = "output_1" in names or "input" in names
    columns = ["input", "output_1", "output_2", "label"] if published else ["prompt", "chosen", "rejected"]
    check_source_columns(names, columns + ([] if own else ["subset"]), file)

    def convert(row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
        subset = own if own and row.values.get("subset") is None else _subset_of(row.text("subset"))
        if subset is None:
            known = quoted(SUBSETS)
            raise DataError(
                f"is {row.values['subset']!r}", row=row.row, field="subset", dataset=file, fix=f"Use one of {known}."
            )
        raw = _published(row) if published else {name: row.values[name] for name in columns}
        return f"{subset}:{row.row}", raw, {"subset": subset}

    return suite_rows((SourceRow(file, row, values) for row, values in enumerate(dataset)), convert, start)


def _published(row: SourceRow) -> dict[str, Any]:
    outputs = [row.text("output_1"), row.text("output_2")]
    better = row.choice("label", (1, 2, "1", "2"))
    chosen, rejected = outputs if int(better) == 1 else outputs[::-1]
    return conversation_pair(row.text("input"), chosen, rejected)
