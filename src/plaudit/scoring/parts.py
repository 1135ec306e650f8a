"""The work folder of a file that is being scored: its finished windows, and what they were computed from."""

from __future__ import annotations

import json
import logging
import math
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plaudit.errors import ConfigError, DataError, PlauditError
from plaudit.scoring.outputs import write_whole
from plaudit.scoring.preparation import PreparedRow
from plaudit.scoring.rows import Score, Shape

logger = logging.getLogger("plaudit")

_VERSION = 1
_LETTERS: dict[Shape, str] = {"one": "o", "list": "l", "pair": "p"}
_SHAPES: dict[str, Shape] = {letter: shape for shape, letter in _LETTERS.items()}
_NAMES = {
    "weights": "the model's weights",
    "configuration": "the model's configuration",
    "tokenizer": "the tokenizer or its chat template",
    "input": "the input",
    "window": "`window`",
    "max_length": "`max_length`",
    "overlong": "`overlong`",
    "calibration": "the calibration",
    "uncertainty": "whether uncertainty is written, and how cautiously,",
}


@dataclass
class Part:
    """Rewards of one window.

    Attributes:
        start: Number of its first row.
        shapes: Shape of each row's rewards.
        scores: Rewards of each row (None: it could not be scored).
        lost: Rows that could not be scored: number, error, and whether that is because they are too long.
        cut: Numbers of rows that were too long and cut.
        suspicious: Numbers of suspicious rows, with what is, a :class:`~plaudit.data.report.Flag`.
        beside: Spread and lower bound of each row, of pairs those of their margin; empty where they are not written.
    """

    start: int
    shapes: list[Shape] = field(default_factory=list)
    scores: list[Any] = field(default_factory=list)
    lost: list[tuple[int, str, bool]] = field(default_factory=list)
    cut: list[int] = field(default_factory=list)
    suspicious: list[tuple[int, int]] = field(default_factory=list)
    beside: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, start: int, scored: Iterable[tuple[PreparedRow, Any]], caution: float | None = None) -> Part:
        """Collect the rewards of a window.

        Args:
            start: Number of its first row.
            scored: Its rows with their rewards; with a caution, how sure these are.
            caution: How many spreads below the mean the lower bound of a margin is.
        """
        part = cls(start)
        for number, (row, score) in enumerate(scored, start=start):
            if caution is not None:
                about = score.margin(caution) if row.shape == "pair" else score
                part.beside.append([_without_nan(about.spread), _without_nan(about.lower)])
                score = score.mean
            part.shapes.append(row.shape)
            part.scores.append(None if row.error is not None else _without_nan(score))
            if row.error is not None:
                part.lost.append((number, str(row.error), row.overlong))
            if row.cut:
                part.cut.append(number)
            if row.flags:
                part.suspicious.append((number, int(row.flags)))
        return part


def _without_nan(score: Score) -> Any:
    if isinstance(score, list | tuple):
        return [None if math.isnan(one) else one for one in score]
    return None if math.isnan(score) else score


@dataclass(frozen=True)
class WorkFolder:
    """The folder ``OUT.parts`` beside a file that is being scored.

    Attributes:
        path: The folder.
        run: Tells its parts from those of a run that was started over.
    """

    path: Path
    run: str = ""

    @property
    def merged(self) -> Path:
        """The result before it has its own name."""
        return self.path / "merged.tmp"

    @property
    def result(self) -> Path:
        """What is to be said about the result; there once it is whole."""
        return self.path / "result.json"

    def open(self, made_from: Mapping[str, Any], *, finished: bool = False) -> WorkFolder:
        """Make the folder, or go on with it.

        Args:
            made_from: Everything that decides about rewards: digests and settings.
            finished: Whether the result has its name already.

        Raises:
            ConfigError: The folder holds windows of something else.
        """
        manifest = self.path / "manifest.json"
        if manifest.exists():
            known = _read_json(manifest)
            if known is None or known.get("version") != _VERSION:
                raise ConfigError(f"{str(manifest)!r} cannot be read", fix=_start_over(self.path, 0))
            changed = _changes(known["made_from"], made_from)
            if changed:
                raise ConfigError(
                    f"{' and '.join(changed)} changed since {str(self.path)!r} was begun",
                    fix=f"{_start_over(self.path, self.count())}, or put it back as it was to go on.",
                )
            run = known["run"]
        else:
            if self.path.exists() and any(one.name.startswith("window-") for one in self.path.iterdir()):
                raise ConfigError(f"{str(self.path)!r} has no manifest", fix=_start_over(self.path, self.count()))
            self.path.mkdir(exist_ok=True)
            run = uuid.uuid4().hex
        if not finished:
            self.result.unlink(missing_ok=True)
        for stale in [*self.path.glob("rank-*"), *self.path.glob("*.tmp")]:
            stale.unlink(missing_ok=True)
        write_whole(manifest, json.dumps({"version": _VERSION, "run": run, "made_from": made_from}, indent=1))
        return WorkFolder(self.path, run)

    def _file(self, index: int) -> Path:
        return self.path / f"window-{index:08d}.json"

    def write(self, index: int, part: Part) -> None:
        """Keep the rewards of a window.

        Args:
            index: Number of the window.
            part: Its rewards.
        """
        shapes = "".join(_LETTERS[shape] for shape in part.shapes)
        write_whole(self._file(index), json.dumps({"run": self.run, **asdict(part), "shapes": shapes}))

    def read(self, index: int) -> Part | None:
        """Rewards of a window; None where they are not there yet, or of a run that was started over.

        Args:
            index: Number of the window.
        """
        values = _read_json(self._file(index))
        if values is None or values.pop("run", None) != self.run:
            return None
        values["shapes"] = [_SHAPES[letter] for letter in values["shapes"]]
        return Part(**values)

    def has(self, index: int, rows: int) -> bool:
        """Whether a window is there.

        Args:
            index: Its number.
            rows: How many rows it must have.

        Raises:
            DataError: It has another number of rows.
        """
        part = self.read(index)
        if part is not None and len(part.scores) != rows:
            raise DataError(
                f"window {index} has {len(part.scores)} rows in {str(self.path)!r}, and {rows} in the input",
                fix="The input changed meanwhile: start over with --restart.",
            )
        return part is not None

    def count(self) -> int:
        """How many windows are finished."""
        return sum(1 for _ in self.path.glob("window-*.json"))

    def is_finished(self) -> bool:
        """Whether the result is whole and has its name, and only this folder is left."""
        return self.result.exists() and not self.merged.exists()

    def remove(self) -> None:
        """Remove the folder; that the result is whole is forgotten last."""
        last = (self.path / "manifest.json", self.result)
        for _ in range(50):
            if not self.path.is_dir():
                return
            for entry in self.path.iterdir():
                if entry not in last:
                    entry.unlink(missing_ok=True)
            for entry in last:
                entry.unlink(missing_ok=True)
            try:
                self.path.rmdir()
            except OSError:  # another process shows a last sign of life
                time.sleep(0.1)
        if self.path.is_dir():
            logger.warning("%s cannot be removed; nothing in it is needed any more.", self.path)

    def say_failed(self, rank: int, error: BaseException) -> None:
        """Tell the process that merges that this one has failed.

        Args:
            rank: Which process.
            error: Why.
        """
        text = str(error) if isinstance(error, PlauditError) else f"{type(error).__name__}: {error}"
        write_whole(self.path / f"rank-{rank:05d}.failed", text)

    def failure(self) -> str | None:
        """Why another process failed, if one did."""
        for file in sorted(self.path.glob("rank-*.failed")):
            return f"process {int(file.stem.split('-')[1])} failed: {file.read_text(encoding='utf-8')}"
        return None


def _start_over(path: Path, windows: int) -> str:
    return f"Start over with --restart, which throws away {windows} finished windows in {str(path)!r}"


def _changes(known: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changed = []
    for name in [*known, *(name for name in now if name not in known)]:
        if known.get(name) == now.get(name):
            continue
        if name == "overlong" and known.get(name) == "error":
            continue  # finished windows have no row that is too long
        values = (
            f" ({known.get(name)!r}, now {now.get(name)!r})" if name in ("window", "max_length", "overlong") else ""
        )
        changed.append(f"{_NAMES.get(name, name)}{values}")
    return changed


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
