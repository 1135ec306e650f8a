"""LLMBar: does an evaluator see which output follows the instruction, also where the other one looks better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plaudit.evaluation.results import SliceResult
from plaudit.evaluation.suites.base import Headline, SourceRow, Suite, conversation_pair, missing_parts
from plaudit.evaluation.table import ScoredSet
from plaudit.schema import quoted

SUBSETS = ("Natural", "Neighbor", "GPTInst", "GPTOut", "Manual")  # the last four are adversarial


class LLMBar(Suite):
    """LLMBar, as published (``dataset.json`` in a folder for each subset), or as pairs with a column ``subset``.

    Source: Zeng et al. (2023), LLMBar, arXiv 2310.07641, sections 3 and 4; README of github.com/princeton-nlp/LLMBar.
    """

    name = "llmbar"
    title = "LLMBar"
    rule = (
        "A pair is right if the better output has the higher reward. Adversarial: mean of the accuracies of its four "
        "subsets. Score: mean of the accuracies of all five subsets. Beside it: accuracy over all pairs."
    )
    reference = "Zeng et al. (2023), arXiv 2310.07641; github.com/princeton-nlp/LLMBar (Dataset/LLMBar/*/dataset.json)"
    columns = ("input", "output_1", "output_2", "label")
    pair_columns = ("prompt", "chosen", "rejected")
    slice_column = "subset"

    def files_in(self, place: str) -> Sequence[str]:
        """Returns the published files in a folder."""
        folder = Path(place).expanduser()
        found = folder.rglob("dataset.json") if folder.is_dir() else ()
        return sorted(str(file) for file in found if subset_of(file.parent.name) is not None) or [place]

    def columns_of(self, source: str, names: Sequence[str]) -> Sequence[str]:
        """Returns the published columns, or those of pairs; ``subset`` where the folder does not name it."""
        columns = self.columns if _is_published(names) else self.pair_columns
        return columns if subset_of(Path(source).parent.name) else (*columns, "subset")

    def convert(self, row: SourceRow) -> tuple[str, dict[str, Any], dict[str, Any]]:
        """Puts the better output first."""
        subset = subset_of(Path(row.source).parent.name)
        if subset is None or row.values.get("subset") is not None:
            subset = subset_of(row.text("subset"))
        if subset is None:
            row.refuse("subset", f"is {row.values['subset']!r}", f"Use one of {quoted(SUBSETS)}.")
        if not _is_published(row.values):
            return f"{subset}:{row.row}", {name: row.values[name] for name in self.pair_columns}, {"subset": subset}
        outputs = [row.text("output_1"), row.text("output_2")]
        if int(row.choice("label", (1, 2, "1", "2"))) == 2:
            outputs.reverse()
        return f"{subset}:{row.row}", conversation_pair(row.text("input"), *outputs), {"subset": subset}

    def group_of(self, name: str) -> str:
        """Natural or Adversarial."""
        return "Natural" if name == "Natural" else "Adversarial"

    def headline(self, scored: ScoredSet, slices: Sequence[SliceResult], outcomes: Mapping[int, float]) -> Headline:
        """Mean of the accuracies of the subsets."""
        scores = {"accuracy over all pairs": float(np.mean(list(outcomes.values())))}
        for group in ("Natural", "Adversarial"):
            parts = [part.score for part in slices if part.group == group]
            scores |= {group: float(np.mean(parts))} if parts else {}
        notes = missing_parts(SUBSETS, slices, "No rows of {}: the means leave them out.")
        return Headline(float(np.mean([part.score for part in slices])), scores, notes)


def _is_published(names: Sequence[str] | Mapping[str, Any]) -> bool:
    return "output_1" in names or "input" in names


def subset_of(name: str) -> str | None:
    """Returns the paper's name of a subset; None if it is not one.

    >>> [subset_of(name) for name in ("natural", "adv_gptinst", "llmbar-adver-neighbor", "Base_9")]
    ['Natural', 'GPTInst', 'Neighbor', None]
    """
    last = name.lower().replace("_", "-").split("-")[-1]
    return next((subset for subset in SUBSETS if subset.lower() == last), None)
