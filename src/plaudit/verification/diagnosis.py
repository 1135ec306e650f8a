"""Names the known cause of a difference between rewards. Pure functions of golden rows and observations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from scipy.special import expit, softmax
from transformers import PreTrainedTokenizerBase

from plaudit.data.fast_encode import RENDER_ERRORS
from plaudit.export.export import TOLERANCE
from plaudit.model.golden import GoldenRow, GoldenRows

TOLERANCES = {**TOLERANCE, "tf32": 1e-2, "quantized": 1e-1}
"""Largest allowed difference by computing precision: in reward units, or relative to the largest reward above 1."""
_RAW_OUTPUTS = (
    'Set problem_type to "regression" in config.json, call the pipeline with function_to_apply="none", or vLLM with '
    '"use_activation": false.'
)
_CAUSES = {
    "not_finite": "A reward is no finite number: an overflow, in half precision perhaps.",
    "constant": "Every row gets the same reward, {reward:.4g}: the head is empty, or texts do not arrive.",
    "softmax": f"A softmax over the rows was applied to the rewards. {_RAW_OUTPUTS}",
    "softmax/one output": "Every reward is 1: a softmax over a single output was applied. Set problem_type to "
    '"regression" in config.json, or ask the server for raw outputs ("use_activation": false).',
    "sigmoid": f"A sigmoid was applied to the rewards. {_RAW_OUTPUTS}",
    "sigmoid/and": f"A sigmoid was applied to the rewards, and: {{also}} {_RAW_OUTPUTS}",
    "rescaled": "Rewards are {scale:.3g} times the golden ones{shift}: a calibration or normalisation is applied here "
    "and not there, or the other way round. See reward_calibration.json, and `plaudit serve --calibration none`.",
    "rescaled/sign": "Rewards have the opposite sign: they are {scale:.3g} times the golden ones.",
    "dtype": "Differences are of the size that computing in {dtype} makes. Run it in float32 (--dtype float32) to see "
    "that nothing else is wrong, or allow for it with --tolerance.",
    "lost_head": "Rewards have little to do with the golden ones (correlation {correlation:.2f}): the head is another "
    "one, lost when the model was saved or merged and drawn afresh. See whether the weights hold `score.weight`.",
    "unknown": "Rewards go along with the golden ones (correlation {correlation:.2f}) and still differ: other weights, "
    "a later checkpoint, or other texts.",
    "unknown/few": "There are too few different rows to tell why. Verify with more (--rows FILE).",
    "pad_is_eos": "The reward is read before the last token ({last}): that is taken for padding (pad = eos), or "
    "missing from the text. Give the model a padding token that no text contains, in config.json and the tokenizer "
    "(`plaudit export` does), or send the whole text.",
    "second_bos": "The BOS token is there twice: the text has one already, and tokenising adds another. Send token "
    "ids, or send add_special_tokens=False with the text.",
    "added_bos": "A BOS token was put before the text. Send token ids, or send add_special_tokens=False with the text.",
    "missing_bos": "The BOS token at the beginning is missing. Let the tokenizer add its special tokens.",
    "added_eos": "An EOS token was added at the end. Send token ids, or the text without it.",
    "cut_after_eos": "What the chat template prints after the last EOS token is missing. Send the text as the chat "
    "template renders it, to its end.",
    "generation_prompt": "The chat template was rendered with the beginning of another response at the end. Render "
    "with add_generation_prompt=False.",
    "chat_template": "The chat template is not the one that the model was trained with: {where}. Put the old one back, "
    "or train with the new one.",
    "tokenizer": "The tokenizer reads the same text differently: {where}. Its files have changed, it is another one, "
    "or its chat template prints today's date.",
    "truncated": "Rows are truncated to {length} tokens.",
    "truncated/long rows": "Only rows of {length} tokens or more differ: they are truncated, at a length from {below} "
    "tokens on. Raise the limit (max_length, --max-model-len), or send less.",
    "padding": "Only rows that are padded differ, the longest does not: the reward is read at padding, or the padding "
    "is on the wrong side. Set `pad_token_id` in config.json and pad on the right.",
}
TRAPS = tuple(dict.fromkeys(cause.partition("/")[0] for cause in _CAUSES))
"""Names of the known ways to get other rewards from the same weights."""


@dataclass(frozen=True)
class Finding:
    """The cause of a difference."""

    trap: str  # one of TRAPS
    message: str  # what it is, and what to do


def _finding(cause: str, **values: Any) -> Finding:
    return Finding(cause.partition("/")[0], _CAUSES[cause].format(**values))


Suspect: TypeAlias = tuple[Finding, Sequence[float]]
"""A known mistake, and the rewards of all golden rows if it were made."""


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
        return _finding("not_finite")
    differences = np.abs(got - wanted)
    if differences.max() <= tolerance:
        return None
    if len(got) > 1 and np.ptp(got) <= 1e-6 and np.ptp(wanted) > tolerance:
        return _finding("softmax/one output") if abs(got[0] - 1) < 1e-6 else _finding("constant", reward=got[0])
    rows, size = list(seen.rows), scale_of(wanted)
    known = [(finding, np.array(rewards)[rows]) for finding, rewards in suspects]
    hypotheses = [(_finding("sigmoid"), expit(wanted)), (_finding("softmax"), softmax(wanted)), *known]
    hypotheses += [(_finding("sigmoid/and", also=finding.message), expit(rewards)) for finding, rewards in known]
    residuals = [
        (float(np.abs(got - rewards).max()), finding)
        for finding, rewards in hypotheses
        if np.abs(rewards - wanted).max() > tolerance
    ]
    exact = next((finding for residual, finding in residuals if residual <= tolerance), None)
    lengths = np.array([len(golden.rows[row].ids) for row in rows])
    cause = exact or _of_some_rows(differences > tolerance, lengths) or _rescaled(wanted, got, tolerance)
    if cause is not None:
        return cause
    largest, nearest = float(differences.max()), min(residuals, key=lambda entry: entry[0], default=(math.inf, None))
    if largest <= TOLERANCES["bfloat16"] * size and nearest[0] >= largest / 3:
        return _finding("dtype", dtype="float16 or tf32" if largest <= TOLERANCES["float16"] * size else "bfloat16")
    loose = max(tolerance, TOLERANCES["bfloat16"] * size)
    cause = (nearest[1] if nearest[0] <= loose else None) or _rescaled(wanted, got, loose)
    if cause is not None:
        return cause
    if len(wanted) < 3 or min(wanted.std(), got.std()) < 1e-6:
        return _finding("unknown/few")
    correlation = float(np.corrcoef(wanted, got)[0, 1])
    lost = math.isfinite(correlation) and correlation < 0.9
    return _finding("lost_head" if lost else "unknown", correlation=correlation)


def diagnose_ids(golden: GoldenRows, seen: Observation) -> Finding | None:
    """Names the cause of other token ids; None where they are the golden ones."""
    pairs = list(zip(seen.ids or (), seen.expected_ids(golden), strict=True))
    different = [(index, got, wanted) for index, (got, wanted) in enumerate(pairs) if tuple(got) != tuple(wanted)]
    if not different:
        return None
    if all(got[1:] == wanted for _, got, wanted in different):
        return _finding("second_bos" if all(got[:1] == wanted[:1] for _, got, wanted in different) else "added_bos")
    if all(got == wanted[1:] for _, got, wanted in different):
        return _finding("missing_bos")
    if all(len(got) < len(wanted) and got in (wanted[: len(got)], wanted[-len(got) :]) for _, got, wanted in different):
        return _finding("truncated", length=max(len(got) for _, got, _ in different))
    index, got, wanted = different[0]
    first = next((n for n, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
    where = (
        f"{len(different)} of {len(pairs)} rows give other token ids; golden row {seen.rows[index]} from token {first} "
        f"on ({len(got)} tokens instead of {len(wanted)})"
    )
    changed = golden.chat_template is not None and seen.chat_template != golden.chat_template
    return _finding("chat_template" if changed else "tokenizer", where=where)


def _of_some_rows(wrong: np.ndarray, lengths: np.ndarray) -> Finding | None:
    """Detects differences in the long rows only (truncation), or in the padded rows only."""
    if wrong.all() or not wrong.any():
        return None
    if lengths[wrong].min() > lengths[~wrong].max():
        return _finding("truncated/long rows", length=lengths[wrong].min(), below=lengths[~wrong].max())
    return _finding("padding") if (wrong == (lengths < lengths.max())).all() else None


def _rescaled(wanted: np.ndarray, got: np.ndarray, tolerance: float) -> Finding | None:
    deviation = wanted.std()
    if len(set(wanted.tolist())) < 3 or deviation < 1e-6:
        return None
    scale, shift = np.polyfit(wanted, got, 1)
    residual = np.abs(scale * wanted + shift - got).max()
    if residual > min(tolerance, 0.02 * abs(scale) * deviation) or scale == 0:
        return None
    plus = "" if abs(shift) <= tolerance else f" {'+' if shift > 0 else '-'} {abs(shift):.3g}"
    return _finding("rescaled/sign" if scale < 0 else "rescaled", scale=scale, shift=plus)


Ids: TypeAlias = tuple[int, ...]


def suspects_of(
    golden: GoldenRows, tokenizer: PreTrainedTokenizerBase, score: Callable[[list[list[int]]], list[float]]
) -> list[Suspect]:
    """Computes the rewards of the golden rows under each known mistake that changes at least one of them."""
    bos: Any = tokenizer.bos_token_id
    eos: Any = tokenizer.eos_token_id
    pads = {golden.pad_token_id, tokenizer.pad_token_id, eos} - {None}
    last = sorted({str(tokenizer.decode([row.ids[-1]])) for row in golden.rows})
    token_lost = _finding("pad_is_eos", last=", ".join(map(repr, last[:3])))
    mistakes: list[tuple[Finding, Callable[[Ids], Ids]]] = [
        (token_lost, lambda ids: ids[:-1]),
        (token_lost, lambda ids: ids[: max((n for n, i in enumerate(ids, 1) if i not in pads), default=1)]),
    ]
    if bos is not None:
        mistakes += [
            (_finding("second_bos"), lambda ids: (bos, *ids) if ids[0] == bos else ids),
            (_finding("added_bos"), lambda ids: ids if ids[0] == bos else (bos, *ids)),
            (_finding("missing_bos"), lambda ids: ids[1:] if ids[0] == bos else ids),
        ]
    if eos is not None:
        mistakes += [
            (_finding("added_eos"), lambda ids: (*ids, eos)),
            (_finding("cut_after_eos"), lambda ids: ids[: len(ids) - ids[::-1].index(eos)] if eos in ids else ids),
        ]
    changed_ids = [(finding, [change(row.ids) or row.ids for row in golden.rows]) for finding, change in mistakes]
    prompted = [_with_generation_prompt(row, tokenizer) for row in golden.rows]
    suspects: list[Suspect] = []
    for finding, ids in [*changed_ids, (_finding("generation_prompt"), prompted)]:
        changed = [index for index, row in enumerate(golden.rows) if ids[index] != row.ids]
        if changed:
            rewards = golden.rewards
            for index, reward in zip(changed, score([list(ids[index]) for index in changed]), strict=True):
                rewards[index] = reward
            suspects.append((finding, rewards))
    return suspects


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
