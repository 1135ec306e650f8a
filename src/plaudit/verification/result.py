"""What a verification found: one line for each way of running the model, and what to make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from plaudit.model.golden_rows import GoldenRows
from plaudit.verification.diagnosis import Finding, Suspect, diagnose
from plaudit.verification.observations import Observation, tolerance_for

Verdict: TypeAlias = Literal["same", "differs", "failed", "skipped"]
"""``failed``: there are no rewards to compare; ``skipped``: it does not apply here."""


@dataclass(frozen=True)
class PathResult:
    """One way of running the model.

    Attributes:
        path: The way, in words.
        verdict: Whether its rewards are those of the golden rows.
        rows: How many golden rows were sent.
        largest: Largest difference, in reward units (None: there are no rewards).
        mean: Mean of the absolute differences.
        tolerance: Most that was allowed.
        finding: What a difference looks like.
        note: Why it failed or was skipped, or how many rows have other token ids.
    """

    path: str
    verdict: Verdict
    rows: int = 0
    largest: float | None = None
    mean: float | None = None
    tolerance: float | None = None
    finding: Finding | None = None
    note: str = ""


@dataclass(frozen=True)
class Verification:
    """What a verification found.

    Attributes:
        model: What was verified.
        golden: Its golden rows.
        results: One for each way of running it.
    """

    model: str
    golden: GoldenRows
    results: tuple[PathResult, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Whether every way that applies gives the golden rewards, and at least one of them was tried."""
        verdicts = {one.verdict for one in self.results}
        return "same" in verdicts and not verdicts & {"differs", "failed"}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the differences look like, each kind once."""
        return tuple(dict.fromkeys(one.finding for one in self.results if one.finding is not None))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "model": self.model,
            "passed": self.passed,
            "rows": len(self.golden.rows),
            "dtype": self.golden.dtype,
            "results": [
                {
                    **{name: value for name, value in vars(one).items() if name != "finding"},
                    "trap": None if one.finding is None else one.finding.trap,
                    "message": None if one.finding is None else one.finding.message,
                }
                for one in self.results
            ],
        }

    def __str__(self) -> str:
        return "\n".join(lines_of(self))


def judged(golden: GoldenRows, seen: Observation, suspects: Sequence[Suspect], tolerance: float | None) -> PathResult:
    """The verdict on one way of running the model.

    Args:
        golden: The golden rows.
        seen: What came out.
        suspects: What would come out if known mistakes were made.
        tolerance: Most that a reward may differ (None: what its dtype allows).
    """
    if seen.skipped:
        return PathResult(seen.path, "skipped", note=seen.skipped)
    if seen.problem:
        return PathResult(seen.path, "failed", len(seen.rows), note=seen.problem)
    allowed = tolerance_for(golden, seen) if tolerance is None else tolerance
    finding = diagnose(golden, seen, suspects, tolerance=allowed)
    differences = (
        []
        if seen.rewards is None
        else [abs(got - wanted) for got, wanted in zip(seen.rewards, seen.wanted(golden), strict=True)]
    )
    note = ""
    if seen.ids is not None:
        other = sum(got != wanted for got, wanted in zip(seen.ids, seen.wanted_ids(golden), strict=True))
        note = f"other token ids in {other} of {len(seen.rows)} rows" if other else ""
    within = all(one <= allowed for one in differences)  # NaN is not
    return PathResult(
        seen.path,
        "same" if within and not note else "differs",
        len(seen.rows),
        max(differences, key=lambda one: float("inf") if one != one else one) if differences else None,
        sum(differences) / len(differences) if differences else None,
        allowed,
        finding,
        note,
    )


def number(value: float | None) -> str:
    """A difference for people.

    Args:
        value: It, in reward units (None: there is none).

    >>> number(0.00012), number(0.0), number(None)
    ('1.2e-04', '0', '')
    """
    return "" if value is None else "0" if value == 0 else f"{value:.1e}"


def sayings(verification: Verification) -> list[tuple[list[str], str]]:
    """What is to be said about ways that are not the same: their names, and it; alike ones together.

    Args:
        verification: What was found.
    """
    found: dict[str, list[str]] = {}
    for one in verification.results:
        note = f"{one.note.rstrip('.')}." if one.note else ""
        said = " ".join(part for part in (note, one.finding.message if one.finding else "") if part)
        if said and one.verdict != "same":
            found.setdefault(said, []).append(one.path)
    return [(paths, said) for said, paths in found.items()]


def lines_of(verification: Verification) -> list[str]:
    """A verification as lines of text.

    Args:
        verification: It.
    """
    width = max((len(one.path) for one in verification.results), default=3)
    lines = [f"{'way':{width}}  rows  largest     mean  allowed  verdict"]
    for one in verification.results:
        numbers = "  ".join(f"{number(value):>7}" for value in (one.largest, one.mean, one.tolerance))
        lines.append(f"{one.path:{width}}  {one.rows or '':>4}  {numbers}  {one.verdict}")
    for paths, said in sayings(verification):
        lines += ["", f"{', '.join(paths)}: {said}"]
    return lines
