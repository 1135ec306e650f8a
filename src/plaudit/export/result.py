"""What an export did, as plain values, lines for people and JSON."""

from __future__ import annotations

import datetime
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import transformers

from plaudit.model.calibration import FILE_NAME as CALIBRATION_FILE
from plaudit.model.calibration import RewardCalibration
from plaudit.version import __version__

EXPORT_RECORD = "plaudit_export.json"
"""Name of the file in an exported folder that says what was done."""

FORMAT, VERSION = "plaudit export", 1

Adapter: TypeAlias = Literal["none", "merged", "kept"]
"""What became of the adapter: there was none, it was merged into the weights, or it is still one."""


@dataclass(frozen=True)
class ExportCheck:
    """Rewards of some responses before and after.

    Attributes:
        before: What the head of the source says.
        after: What the head of the exported model says, loaded again from its folder.
        largest_difference: Largest distance between `after` and the rewards that are wanted.
        allowed: Most that it may be.
        golden: How many of the responses are golden rows of the source.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    largest_difference: float
    allowed: float
    golden: int = 0


@dataclass(frozen=True)
class ExportResult:
    r"""What was exported, and what was done to its rewards.

    .. math:: r' = a r + b = (a_\text{folded} r + b_\text{folded}) \cdot a_\text{beside} + b_\text{beside}

    Attributes:
        folder: Where the model is.
        source: What it was made from: a model id, or the name of a folder.
        architecture: Name of the model's class.
        parameters: How many it has, those of a kept adapter among them.
        adapter: What became of the adapter.
        dtype: What the weights are stored in; the head is stored in float32.
        head: Name of the layer that scale and shift were folded into (None: the head is no plain linear layer).
        rewards: The whole change of rewards: scale a, shift b, and the temperature that goes with the new rewards.
        scale: Factor that is folded into the weights, which every server gives.
        shift: Summand that is folded into them.
        calibration: What lies beside the model, and only Plaudit applies (None: nothing).
        check: Rewards before and after.
        golden_rows: How many golden rows lie beside the model.
        carried: Files of the source that were copied.
        left_behind: Files and folders of the source that were not.
        notes: What a user must know; the log has said it as warnings.
    """

    folder: Path
    source: str
    architecture: str
    parameters: int
    adapter: Adapter
    dtype: str
    head: str | None
    rewards: RewardCalibration
    scale: float
    shift: float
    calibration: RewardCalibration | None
    check: ExportCheck
    golden_rows: int = 0
    carried: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def lines(self) -> list[tuple[str, str]]:
        """What was done, for people: titles and texts."""
        weights = {
            "none": f"stored in {self.dtype}",
            "merged": f"adapter merged in float32, stored in {self.dtype}",
            "kept": f"an adapter, stored in {self.dtype}; it needs the model that it was trained on",
        }[self.adapter]
        kind = "adapter of " if self.adapter == "kept" else ""
        golden = f", {self.check.golden} of them golden rows" if self.check.golden else ""
        found = [
            ("Model", f"{kind}{self.architecture}, {self.parameters:,} parameters, from {self.source}"),
            ("Weights", f"{weights}; the head in float32"),
            ("Rewards", self._reward_line()),
            *([("How", self.rewards.how)] if self.rewards.how else []),
            ("In the weights", self._folded_line()),
            *([("Beside them", self._beside_line())] if self.calibration is not None else []),
            (
                "Check",
                f"{len(self.check.after)} responses scored before and after{golden}: largest difference "
                f"{self.check.largest_difference:.2g} (allowed {self.check.allowed:.2g})",
            ),
        ]
        if self.golden_rows:
            scaled = " with their rewards as they are now" if (self.scale, self.shift) != (1.0, 0.0) else ""
            found.append(("Golden rows", f"{self.golden_rows} carried along{scaled}"))
        if self.carried:
            found.append(("Carried along", ", ".join(self.carried)))
        if self.left_behind:
            found.append(("Left behind", ", ".join(self.left_behind)))
        return found

    def _reward_line(self) -> str:
        if not self.rewards.changes_rewards:
            return "as they were"
        return f"{formula(self.rewards.scale, self.rewards.shift)}, where `reward` is what the head said before"

    def _folded_line(self) -> str:
        if (self.scale, self.shift) == (1.0, 0.0):
            return "nothing folded: every server gives the rewards that the head gave before"
        return f"{formula(self.scale, self.shift)}, folded into `{self.head}`: what every server gives"

    def _beside_line(self) -> str:
        assert self.calibration is not None
        parts = []
        if self.calibration.changes_rewards:
            only_shift = self.calibration.scale == 1
            change = formula(self.calibration.scale, self.calibration.shift)
            parts.append(f"a shift of {self.calibration.shift:+.6g}" if only_shift else f"the change to {change}")
        if self.calibration.temperature != 1:
            parts.append(f"a temperature of {self.calibration.temperature:.6g} for probabilities")
        return f"{' and '.join(parts) or 'nothing that changes them'}, in {CALIBRATION_FILE}: only Plaudit applies it"

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON; without the folder, which may be moved."""
        values = asdict(self)
        del values["folder"]
        versions = {"plaudit": __version__, "transformers": transformers.__version__, "torch": torch.__version__}
        return {"format": FORMAT, "version": VERSION, **values, "versions": versions}

    def save_record(self, folder: Path) -> None:
        """Write `plaudit_export.json`.

        Args:
            folder: Where to.
        """
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        text = json.dumps({**self.to_dict(), "saved": now}, indent=1, ensure_ascii=False, allow_nan=False)
        (folder / EXPORT_RECORD).write_text(text + "\n", encoding="utf-8")


def formula(scale: float, shift: float) -> str:
    """Write down a scale and a shift.

    Args:
        scale: The factor.
        shift: The summand.

    >>> formula(2.0, 0.0), formula(0.5, -1.25), formula(1.0, 3.0)
    ('2 * reward', '0.5 * reward - 1.25', 'reward + 3')
    """
    factor = "reward" if scale == 1 else f"{scale:.6g} * reward"
    return factor if shift == 0 else f"{factor} {'-' if shift < 0 else '+'} {abs(shift):.6g}"
