"""What a user must know about an export: what other servers do not apply, and what had to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from plaudit.export.checking import TOLERANCE, SampleRows
from plaudit.export.result import formula
from plaudit.model.calibration import FILE_NAME as CALIBRATION_FILE
from plaudit.model.calibration import RewardCalibration
from plaudit.model.golden_rows import GoldenRows
from plaudit.model.loading import eos_token_ids
from plaudit.model.training_heads import ensemble_in


def notes_on_rewards(
    rewards: RewardCalibration, scale: float, shift: float, beside: RewardCalibration | None, *, raw: bool
) -> list[str]:
    """What of the change of rewards could not be folded into the weights, and what follows from that.

    Args:
        rewards: The whole change.
        scale: Factor that was folded.
        shift: Summand that was folded.
        beside: What lies beside the model.
        raw: Whether rewards were to be left as they are.
    """
    if beside is None or not beside.changes_rewards:
        return []
    where = f"It lies in {CALIBRATION_FILE}, which only Plaudit applies"
    if raw:
        return [
            f"Rewards are left as they are, and the calibration ({formula(beside.scale, beside.shift)}) with them. "
            f"{where}: other servers give the head's own rewards."
        ]
    if scale == rewards.scale and beside.scale == 1:
        direction = "lower" if beside.shift > 0 else "higher"
        return [
            f"The head has no bias, so the shift of {beside.shift:+.6g} could not be folded into the weights. {where}: "
            f"other servers give rewards that are {direction} by {abs(beside.shift):.6g}, all of them alike. Rankings, "
            "margins and probabilities are the same there; only a fixed threshold has to be moved."
        ]
    return [
        "No plain linear layer that is exported gives the reward, so the change of rewards "
        f"({formula(rewards.scale, rewards.shift)}) could not be folded into the weights. {where}: other servers give "
        "the head's own rewards. Rankings are the same there; margins and thresholds are not."
    ]


def notes_on_padding(before: PreTrainedTokenizerBase, after: PreTrainedTokenizerBase, base_model: Any) -> list[str]:
    """What changed about the padding token.

    Args:
        before: The tokenizer of the source.
        after: That of the export.
        base_model: The exported model.
    """
    config = base_model.config.get_text_config()
    if after.pad_token_id in eos_token_ids(after, config):
        return [
            f"The padding token {after.pad_token!r} is also an eos token, and an adapter cannot get a new one: "
            "software that looks for the last token that is not padding reads another reward. Merge the adapter to "
            "mend it."
        ]
    if before.pad_token == after.pad_token:
        return []
    return [
        f"The padding token is now {after.pad_token!r} (it was {before.pad_token!r}), so that all servers read the "
        "reward at the same token."
    ]


def notes_on_golden_rows(golden: GoldenRows | None, sample: SampleRows, before: list[float]) -> list[str]:
    """Whether the source still gives the rewards that were saved with it.

    Args:
        golden: Its golden rows, if it has any.
        sample: Responses that were scored, golden rows first.
        before: Their rewards now.
    """
    if golden is None or not sample.golden:
        return []
    difference = max(abs(one - other) for one, other in zip(sample.golden, before, strict=False))
    allowed = TOLERANCE.get(golden.dtype, TOLERANCE["bfloat16"]) * max(1.0, *map(abs, sample.golden))
    if difference <= allowed:
        return []
    return [
        f"The source does not give the rewards that were saved with it: its golden rows differ by up to "
        f"{difference:.3g} ({allowed:.2g} would be rounding). It was changed since, or trained on quantised weights; "
        "the export gives what the source gives now. `plaudit verify` says more."
    ]


def notes_on_ensemble(path: Path | None) -> list[str]:
    """Whether an ensemble stays behind.

    Args:
        path: File of the heads beside the source, if it has any.
    """
    if path is None or ensemble_in(path) is None:
        return []
    return [
        f"The ensemble that tells how sure rewards are stays behind ({path.name}): the export has the one head that "
        "every server reads. Use the source for `uncertainty=True`."
    ]
