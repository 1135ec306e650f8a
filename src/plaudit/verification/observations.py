"""What came out on one way of running a reward model, and how far from the golden rewards it may be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from plaudit.export.export import TOLERANCE
from plaudit.model.golden import GoldenRows

TOLERANCES = {**TOLERANCE, "tf32": 1e-2, "quantized": 1e-1}
"""Most that rewards may differ, by what they were computed in; in reward units, or as a part of the largest reward."""


@dataclass(frozen=True)
class Observation:
    """What came out on one way of running the model.

    Attributes:
        path: The way, in words.
        rows: Which of the golden rows were sent that way.
        rewards: Reward of each of them (None: this way has none, or it failed).
        ids: Token ids that were made of each (None: the golden ones were sent).
        expected: What each reward should be (None: the golden one).
        dtype: What was computed in; see `GoldenRows`.
        chat_template: Hash of the chat template in use, where one was.
        problem: Why it failed (empty: it did not).
        skipped: Why it was not tried (empty: it was).
    """

    path: str
    rows: tuple[int, ...] = ()
    rewards: tuple[float, ...] | None = None
    ids: tuple[tuple[int, ...], ...] | None = None
    expected: tuple[float, ...] | None = None
    dtype: str = "float32"
    chat_template: str | None = field(default=None, repr=False)
    problem: str = ""
    skipped: str = ""

    def wanted(self, golden: GoldenRows) -> list[float]:
        """What the reward of each row should be.

        Args:
            golden: The golden rows.
        """
        return [golden.rows[row].reward for row in self.rows] if self.expected is None else list(self.expected)

    def wanted_ids(self, golden: GoldenRows) -> list[tuple[int, ...]]:
        """The golden token ids of each row.

        Args:
            golden: The golden rows.
        """
        return [golden.rows[row].ids for row in self.rows]


def tolerance_for(golden: GoldenRows, seen: Observation) -> float:
    """Most that a reward may differ, in reward units: by the coarser of the two dtypes, and by the largest reward.

    Args:
        golden: The golden rows.
        seen: What came out.

    >>> from plaudit.model.golden import GoldenRow
    >>> golden = GoldenRows((GoldenRow((5, 6), 20.0),))
    >>> round(tolerance_for(golden, Observation("here", (0,), (20.0,))), 6)
    0.002
    """
    part = max(TOLERANCES.get(dtype, TOLERANCES["bfloat16"]) for dtype in (golden.dtype, seen.dtype))
    return part * scale_of(seen.wanted(golden))


def scale_of(rewards: Iterable[float]) -> float:
    """What rounding is measured by: the largest reward, and at least 1.

    Args:
        rewards: Some rewards.
    """
    return max([1.0, *(abs(float(one)) for one in rewards)])
