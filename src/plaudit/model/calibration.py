"""The calibration that may lie beside a reward model: how its raw rewards become the ones that are reported."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plaudit.errors import ConfigError
from plaudit.model import find_file

FILE_NAME = "reward_calibration.json"
_VERSION = 1


@dataclass(frozen=True)
class RewardCalibration:
    r"""Turns raw rewards r of a model into reported ones r', and their differences into probabilities.

    .. math:: r' = a r + b, \qquad P(i \succ j) = \sigma((r'_i - r'_j) / t)

    Attributes:
        scale: The factor a, above 0, so that no order changes.
        shift: The summand b, in reward units.
        temperature: The divisor t of differences, above 0, in units of the scaled reward.
        how: How these numbers were found, in words: on which data, by what.

    Raises:
        ConfigError: A number is not finite, or `scale` or `temperature` is not above 0.

    >>> RewardCalibration(scale=2.0, shift=-1.0, temperature=4.0).reward(1.5)
    2.0
    >>> RewardCalibration(temperature=2.0).probability(0.0)
    0.5
    """

    scale: float = 1.0
    shift: float = 0.0
    temperature: float = 1.0
    how: str = ""

    def __post_init__(self) -> None:
        for name in ("scale", "shift", "temperature"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise ConfigError(f"the calibration's `{name}` is {value!r}", field=name, fix="Use a finite number.")
            if name != "shift" and value <= 0:
                raise ConfigError(f"the calibration's `{name}` is {value}", field=name, fix="Use a number above 0.")

    def reward(self, raw: float) -> float:
        """Returns the reported reward of a raw one."""
        return self.scale * raw + self.shift

    def probability(self, margin: float) -> float:
        """Returns the probability that the first of two responses is better, from its lead in reported reward."""
        x = margin / self.temperature
        # Written so that neither branch overflows.
        return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)) if x < 0 else math.nan

    @property
    def changes_rewards(self) -> bool:
        """Whether reported rewards differ from raw ones."""
        return (self.scale, self.shift) != (1.0, 0.0)

    def save(self, folder: str | Path) -> Path:
        """Writes `reward_calibration.json` into a model's folder and returns its path."""
        path = Path(folder) / FILE_NAME
        path.write_text(json.dumps({"version": _VERSION, **asdict(self)}, indent=2) + "\n", encoding="utf-8")
        return path


def load_calibration(name_or_path: str, revision: str | None = None) -> RewardCalibration | None:
    """Reads the calibration beside a model; None where there is none."""
    path = find_file(name_or_path, FILE_NAME, revision)
    if path is None:
        return None
    fix = "Write it with `RewardCalibration(...).save(folder)`, or pass `calibration=None` for raw rewards."
    try:
        values: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error})", fix=fix) from error
    known = {"version", "scale", "shift", "temperature", "how"}
    if not isinstance(values, dict) or values.get("version") != _VERSION or set(values) - known:
        # A later version may mean something else by the same numbers.
        raise ConfigError(f"{path} is no calibration of version {_VERSION}", fix=fix)
    return RewardCalibration(**{name: value for name, value in values.items() if name != "version"})
