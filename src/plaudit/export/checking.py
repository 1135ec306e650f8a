"""Holds the exported model to the rewards of its source."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from plaudit.errors import ConfigError
from plaudit.export.result import ExportCheck
from plaudit.model.golden_rows import GoldenRows
from plaudit.scoring.preparation import RowPreparation

TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
"""Most that rewards may differ for rounding weights, in units of the source's rewards, or as a part of the largest."""

_TURNS = (
    (("What is 2 + 2?", "4"),),
    (("What is 2 + 2?", "It is 5, as everybody knows."),),
    (("Name three colors of the rainbow.", "Red, green and blue."),),
    (("Name three colors of the rainbow.", "No."),),
    (("Write one line about the sea.", "The sea keeps no road open behind a ship."), ("Shorter!", "The sea forgets.")),
    (("How do I boil an egg?", "Put it into boiling water for eight minutes, then into cold water."),),
)


@dataclass(frozen=True)
class SampleRows:
    """Responses that are scored before and after.

    Attributes:
        ids: Token ids of each, golden rows first.
        golden: Rewards that were saved for the first of them, the golden rows.
    """

    ids: tuple[tuple[int, ...], ...]
    golden: tuple[float, ...] = ()


def sample_rows(tokenizer: PreTrainedTokenizerBase, max_length: int | None, golden: GoldenRows | None) -> SampleRows:
    """The golden rows of a model, and a few short conversations (or texts, without a chat template).

    Args:
        tokenizer: Its tokenizer.
        max_length: Most tokens that it reads.
        golden: Its golden rows, if it has any.
    """
    saved = [row for row in golden.rows if len(row.ids) <= (max_length or len(row.ids))] if golden else []
    own = built_in_ids(tokenizer, max_length)
    return SampleRows((*(row.ids for row in saved), *own), tuple(row.reward for row in saved))


def built_in_ids(tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> list[tuple[int, ...]]:
    """Token ids of a few short conversations as a tokenizer renders them, or of texts where it has no chat template.

    Args:
        tokenizer: It.
        max_length: What is longer is cut.
    """
    texts: list[Any] = ["\n".join(f"{asked}\n{said}" for asked, said in turns) for turns in _TURNS]
    rows = texts
    if tokenizer.chat_template:
        rows = [
            [
                {"role": role, "content": text}
                for turn in turns
                for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            for turns in _TURNS
        ]
    preparation = RowPreparation(tokenizer, max_length, "truncate_right")
    prepared = [row for window in preparation.windows(rows) for row in window]
    if all(row.ids is None for row in prepared):  # a template of its own kind
        prepared = [row for window in preparation.windows(texts) for row in window]
    return [tuple(ids) for row in prepared if row.ids is not None for ids in row.ids]


def plain_rewards(model: Any, ids: Sequence[Sequence[int]]) -> list[float]:
    """Rewards as plain transformers gives them: the stock forward, one response at a time.

    Args:
        model: A sequence-classification model as `from_pretrained` returns it.
        ids: Token ids of each response.
    """
    rewards = []
    with torch.inference_mode():
        for one in ids:
            input_ids = torch.tensor([list(one)], device=model.device)
            outputs = model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
            rewards.append(float(outputs.logits.flatten()[0]))
    return rewards


def compare(
    before: Sequence[float],
    after: Sequence[float],
    *,
    scale: float,
    shift: float,
    tolerance: float,
    golden: int = 0,
    what: str,
) -> ExportCheck:
    """Hold rewards to those that they should be.

    Args:
        before: Rewards of the source.
        after: Rewards to be judged.
        scale: Factor from one to the other.
        shift: Summand.
        tolerance: As in `TOLERANCE`.
        golden: How many of the responses are golden rows.
        what: What may be to blame, in words.

    Raises:
        ConfigError: They differ by more than is allowed, or are no numbers.
    """
    allowed = tolerance * scale * max(1.0, *(abs(one) for one in before))
    wanted = [scale * one + shift for one in before]
    differences = [abs(one - other) for one, other in zip(after, wanted, strict=True)]
    wrong = [index for index, one in enumerate(differences) if not one <= allowed]  # also where it is NaN
    if wrong:
        index = max(wrong, key=lambda place: math.inf if math.isnan(differences[place]) else differences[place])
        raise ConfigError(
            f"the exported model gives other rewards than its source: {after[index]:.6g} instead of "
            f"{wanted[index]:.6g} (response {index} of {len(before)}; {len(wrong)} differ by more than the "
            f"{allowed:.2g} that are allowed). Nothing was written",
            fix=what,
        )
    return ExportCheck(tuple(before), tuple(after), max(differences), allowed, golden)
