"""Names the known cause of a difference between rewards. Pure functions of golden rows and observations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from plaudit.data.fast_encode import RENDER_ERRORS
from plaudit.export.export import TOLERANCE
from plaudit.model.golden import GoldenRow, GoldenRows

TOLERANCES = {**TOLERANCE, "tf32": 1e-2, "quantized": 1e-1}
"""Largest allowed difference by computing precision: in reward units, or relative to the largest reward above 1."""
TRAPS = (
    *("not_finite", "constant", "softmax", "sigmoid", "rescaled", "dtype", "lost_head", "unknown"),
    *("pad_is_eos", "second_bos", "added_bos", "missing_bos", "added_eos", "cut_after_eos", "generation_prompt"),
    *("chat_template", "tokenizer", "truncated", "padding"),
)
"""Names of the known ways to get other rewards from the same weights."""


@dataclass(frozen=True)
class Finding:
    """The cause of a difference."""

    trap: str  # one of TRAPS
    message: str  # what it is, and what to do


@dataclass(frozen=True)
class Suspect:
    """The rewards of all golden rows if a known mistake were made."""

    finding: Finding
    rewards: tuple[float, ...]


@dataclass(frozen=True)
class Observation:
    """The outcome of one way of running the model."""

    path: str  # the way, in words
    rows: tuple[int, ...] = ()  # which golden rows were sent
    rewards: tuple[float, ...] | None = None  # None: this way has none, or it failed
    ids: tuple[tuple[int, ...], ...] | None = None  # token ids made of each row; None: the golden ones were sent
    expected: tuple[float, ...] | None = None  # what each reward should be; None: the golden one
    dtype: str = "float32"  # computing precision, see `GoldenRows`
    chat_template: str | None = field(default=None, repr=False)  # hash of the chat template in use
    problem: str = ""  # why it failed
    skipped: str = ""  # why it was not tried

    def expected_rewards(self, golden: GoldenRows) -> list[float]:
        """Returns the reward that each row should have."""
        return [golden.rows[row].reward for row in self.rows] if self.expected is None else list(self.expected)

    def expected_ids(self, golden: GoldenRows) -> list[tuple[int, ...]]:
        """Returns the golden token ids of each row."""
        return [golden.rows[row].ids for row in self.rows]


def tolerance_for(golden: GoldenRows, seen: Observation) -> float:
    """Returns the largest allowed difference, in reward units: by the coarser dtype and the largest reward.

    >>> golden = GoldenRows((GoldenRow((5, 6), 20.0),))
    >>> round(tolerance_for(golden, Observation("here", (0,), (20.0,))), 6)
    0.002
    """
    relative = max(TOLERANCES.get(dtype, TOLERANCES["bfloat16"]) for dtype in (golden.dtype, seen.dtype))
    return relative * scale_of(seen.expected_rewards(golden))


def scale_of(rewards: Iterable[float]) -> float:
    """Returns the scale of rounding errors: the largest absolute reward, and at least 1."""
    return max([1.0, *(abs(float(reward)) for reward in rewards)])


def diagnose(
    golden: GoldenRows, seen: Observation, suspects: Sequence[Suspect] = (), *, tolerance: float
) -> Finding | None:
    """Names the cause of a difference; None where there is none."""
    of_ids = None if seen.ids is None else diagnose_ids(golden, seen)
    if of_ids is not None or seen.rewards is None:
        return of_ids
    wanted, got = np.array(seen.expected_rewards(golden)), np.array(seen.rewards)
    if not np.isfinite(got).all():
        return Finding("not_finite", "A reward is no finite number: an overflow, in half precision perhaps.")
    if np.abs(got - wanted).max() <= tolerance:
        return None
    loose = max(tolerance, TOLERANCES["bfloat16"] * scale_of(wanted))
    places = list(seen.rows)
    hypotheses = _hypotheses(wanted, [(one.finding, np.array(one.rewards)[places]) for one in suspects], tolerance)
    residuals = [(float(np.abs(got - rewards).max()), finding) for finding, rewards in hypotheses]
    exact = [finding for residual, finding in residuals if residual <= tolerance]
    lengths = np.array([len(golden.rows[row].ids) for row in places])
    return (
        _constant(wanted, got, tolerance)
        or (exact[0] if exact else None)
        or _of_some_rows(np.abs(got - wanted) > tolerance, lengths)
        or _rescaled(wanted, got, tolerance)
        or _rounded(wanted, got, residuals)
        or _nearly(residuals, loose)
        or _rescaled(wanted, got, loose)
        or _unrelated(wanted, got)
    )


def diagnose_ids(golden: GoldenRows, seen: Observation) -> Finding | None:
    """Names the cause of other token ids; None where they are the golden ones."""
    pairs = list(zip(seen.ids or (), seen.expected_ids(golden), strict=True))
    different = [(index, got, wanted) for index, (got, wanted) in enumerate(pairs) if tuple(got) != tuple(wanted)]
    if not different:
        return None
    if all(got[1:] == wanted for _, got, wanted in different):
        if all(got[:1] == wanted[:1] for _, got, wanted in different):
            return _SECOND_BOS
        return _ADDED_BOS
    if all(got == wanted[1:] for _, got, wanted in different):
        return _MISSING_BOS
    if all(len(got) < len(wanted) and got in (wanted[: len(got)], wanted[-len(got) :]) for _, got, wanted in different):
        return Finding("truncated", f"Rows are truncated to {max(len(got) for _, got, _ in different)} tokens.")
    index, got, wanted = different[0]
    first = next((n for n, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    where = (
        f"{len(different)} of {len(pairs)} rows give other token ids; golden row {seen.rows[index]} from token {first} "
        f"on ({len(got)} tokens instead of {len(wanted)})"
    )
    if golden.chat_template is not None and seen.chat_template != golden.chat_template:
        return Finding(
            "chat_template",
            f"The chat template is not the one that the model was trained with: {where}. Put the old one back, or "
            "train with the new one.",
        )
    return Finding(
        "tokenizer",
        f"The tokenizer reads the same text differently: {where}. Its files have changed, it is another one, or its "
        "chat template prints today's date.",
    )


_ADDED_BOS = Finding(
    "added_bos", "A BOS token was put before the text. Send token ids, or send add_special_tokens=False with the text."
)
_MISSING_BOS = Finding(
    "missing_bos", "The BOS token at the beginning is missing. Let the tokenizer add its special tokens."
)


_SECOND_BOS = Finding(
    "second_bos",
    "The BOS token is there twice: the text has one already, and tokenising adds another. Send token ids, or send "
    "add_special_tokens=False with the text.",
)


def _hypotheses(
    wanted: np.ndarray, suspects: Sequence[tuple[Finding, np.ndarray]], tolerance: float
) -> list[tuple[Finding, np.ndarray]]:
    """Returns the rewards that known mistakes would give, where they differ from the golden ones."""
    sigmoid = "A sigmoid was applied to the rewards"
    fix = (
        'Set problem_type to "regression" in config.json, call the pipeline with function_to_apply="none", or vLLM '
        'with "use_activation": false.'
    )
    found = [(Finding("sigmoid", f"{sigmoid}. {fix}"), _sigmoid(wanted))]
    found.append((Finding("softmax", f"A softmax over the rows was applied to the rewards. {fix}"), _softmax(wanted)))
    found += suspects
    found += [
        (Finding("sigmoid", f"{sigmoid}, and: {finding.message} {fix}"), _sigmoid(rewards))
        for finding, rewards in suspects
    ]
    return [(finding, rewards) for finding, rewards in found if np.abs(rewards - wanted).max() > tolerance]


def _sigmoid(rewards: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(rewards, -700, 700)))


def _softmax(rewards: np.ndarray) -> np.ndarray:
    weights = np.exp(rewards - rewards.max())
    return weights / weights.sum()


def _constant(wanted: np.ndarray, got: np.ndarray, tolerance: float) -> Finding | None:
    if len(got) < 2 or np.ptp(got) > 1e-6 or np.ptp(wanted) <= tolerance:
        return None
    if abs(got[0] - 1) < 1e-6:
        return Finding(
            "softmax",
            "Every reward is 1: a softmax over a single output was applied. Set problem_type to "
            '"regression" in config.json, or ask the server for raw outputs ("use_activation": false).',
        )
    return Finding(
        "constant", f"Every row gets the same reward, {got[0]:.4g}: the head is empty, or texts do not arrive."
    )


def _of_some_rows(wrong: np.ndarray, lengths: np.ndarray) -> Finding | None:
    """Detects differences in the long rows only (truncation), or in the padded rows only."""
    if wrong.all() or not wrong.any():
        return None
    if lengths[wrong].min() > lengths[~wrong].max():
        return Finding(
            "truncated",
            f"Only rows of {lengths[wrong].min()} tokens or more differ: they are truncated, at a length from "
            f"{lengths[~wrong].max()} tokens on. Raise the limit (max_length, --max-model-len), or send less.",
        )
    if (wrong == (lengths < lengths.max())).all():
        return Finding(
            "padding",
            "Only rows that are padded differ, the longest does not: the reward is read at padding, or the padding is "
            "on the wrong side. Set `pad_token_id` in config.json and pad on the right.",
        )
    return None


def _rescaled(wanted: np.ndarray, got: np.ndarray, tolerance: float) -> Finding | None:
    spread = wanted.std()
    if len(set(wanted.tolist())) < 3 or spread < 1e-6:
        return None
    scale, shift = np.polyfit(wanted, got, 1)
    residual = np.abs(scale * wanted + shift - got).max()
    if residual > min(tolerance, 0.02 * abs(scale) * spread) or scale == 0:
        return None
    if scale < 0:
        return Finding("rescaled", f"Rewards have the opposite sign: they are {scale:.3g} times the golden ones.")
    plus = "" if abs(shift) <= tolerance else f" {'+' if shift > 0 else '-'} {abs(shift):.3g}"
    return Finding(
        "rescaled",
        f"Rewards are {scale:.3g} times the golden ones{plus}: a calibration or normalisation is applied here and not "
        "there, or the other way round. See reward_calibration.json, and `plaudit serve --calibration none`.",
    )


def _rounded(wanted: np.ndarray, got: np.ndarray, residuals: Sequence[tuple[float, Finding]]) -> Finding | None:
    difference, scale = float(np.abs(got - wanted).max()), scale_of(wanted)
    if difference > TOLERANCES["bfloat16"] * scale or any(residual < difference / 3 for residual, _ in residuals):
        return None
    dtype = "float16 or tf32" if difference <= TOLERANCES["float16"] * scale else "bfloat16"
    return Finding(
        "dtype",
        f"Differences are of the size that computing in {dtype} makes. Run it in float32 (--dtype float32) to see that "
        "nothing else is wrong, or allow for it with --tolerance.",
    )


def _nearly(residuals: Sequence[tuple[float, Finding]], loose: float) -> Finding | None:
    """Returns the nearest known mistake, where the remainder is of the size of rounding."""
    near = [(residual, finding) for residual, finding in residuals if residual <= loose]
    return min(near, key=lambda pair: pair[0])[1] if near else None


def _unrelated(wanted: np.ndarray, got: np.ndarray) -> Finding:
    if len(wanted) < 3 or min(wanted.std(), got.std()) < 1e-6:
        return Finding("unknown", "There are too few different rows to tell why. Verify with more (--rows FILE).")
    correlation = float(np.corrcoef(wanted, got)[0, 1])
    if math.isfinite(correlation) and correlation < 0.9:
        return Finding(
            "lost_head",
            f"Rewards have little to do with the golden ones (correlation {correlation:.2f}): the head is another one, "
            "lost when the model was saved or merged and drawn afresh. See whether the weights hold `score.weight`.",
        )
    return Finding(
        "unknown",
        f"Rewards go along with the golden ones (correlation {correlation:.2f}) and still differ: other weights, a "
        "later checkpoint, or other texts.",
    )


Ids = tuple[int, ...]


def suspects_of(
    golden: GoldenRows, tokenizer: PreTrainedTokenizerBase, score: Callable[[list[list[int]]], list[float]]
) -> list[Suspect]:
    """Computes the rewards of the golden rows under each known mistake that changes them."""
    suspects = []
    for finding, ids in mistakes(golden, tokenizer):
        changed = [index for index, row in enumerate(golden.rows) if ids[index] != row.ids]
        rewards = golden.rewards
        for index, reward in zip(changed, score([list(ids[index]) for index in changed]), strict=True):
            rewards[index] = reward
        suspects.append(Suspect(finding, tuple(rewards)))
    return suspects


def mistakes(golden: GoldenRows, tokenizer: PreTrainedTokenizerBase) -> list[tuple[Finding, list[Ids]]]:
    """Returns the token ids of the golden rows under each known mistake that changes at least one row."""
    rows = golden.rows
    bos: Any = tokenizer.bos_token_id
    eos: Any = tokenizer.eos_token_id
    found: list[tuple[Finding, list[Ids]]] = [
        (_last_token_lost(rows, tokenizer), [row.ids[:-1] or row.ids for row in rows])
    ]
    pads = {golden.pad_token_id, tokenizer.pad_token_id, eos} - {None}
    found.append((_last_token_lost(rows, tokenizer), [_without_end(row.ids, pads) for row in rows]))
    if bos is not None:
        first = [row.ids[:1] == (bos,) for row in rows]
        found += [
            (_SECOND_BOS, [(bos, *row.ids) if there else row.ids for row, there in zip(rows, first, strict=True)]),
            (_ADDED_BOS, [row.ids if row.ids[0] == bos else (bos, *row.ids) for row in rows]),
            (_MISSING_BOS, [row.ids[1:] if row.ids[:1] == (bos,) else row.ids for row in rows]),
        ]
    if eos is not None:
        cut = [row.ids[: len(row.ids) - row.ids[::-1].index(eos)] if eos in row.ids else row.ids for row in rows]
        found += [
            (
                Finding("added_eos", "An EOS token was added at the end. Send token ids, or the text without it."),
                [(*row.ids, eos) for row in rows],
            ),
            (
                Finding(
                    "cut_after_eos",
                    "What the chat template prints after the last EOS token is missing. Send the text as the chat "
                    "template renders it, to its end.",
                ),
                cut,
            ),
        ]
    found.append((_GENERATION_PROMPT, [_with_generation_prompt(row, tokenizer) for row in rows]))
    return [(finding, ids) for finding, ids in found if list(ids) != [row.ids for row in rows]]


_GENERATION_PROMPT = Finding(
    "generation_prompt",
    "The chat template was rendered with the beginning of another response at the end. Render with "
    "add_generation_prompt=False.",
)


def _last_token_lost(rows: Sequence[GoldenRow], tokenizer: PreTrainedTokenizerBase) -> Finding:
    last = sorted({str(tokenizer.decode([row.ids[-1]])) for row in rows})
    return Finding(
        "pad_is_eos",
        f"The reward is read before the last token ({', '.join(map(repr, last[:3]))}): that is taken for padding "
        "(pad = eos), or missing from the text. Give the model a padding token that no text contains, in config.json "
        "and the tokenizer (`plaudit export` does), or send the whole text.",
    )


def _without_end(ids: Ids, unwanted: set[int]) -> Ids:
    end = len(ids)
    while end > 1 and ids[end - 1] in unwanted:
        end -= 1
    return ids[:end]


def _with_generation_prompt(row: GoldenRow, tokenizer: PreTrainedTokenizerBase) -> Ids:
    if row.messages is None:
        return row.ids
    variables = {**row.chat_template_kwargs, "add_generation_prompt": True}
    render: Any = tokenizer.apply_chat_template
    try:
        text = render(list(row.messages), tools=row.tools, tokenize=False, **variables)
    except RENDER_ERRORS:
        return row.ids
    ids: Any = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(ids) or row.ids
