"""How far apart two numbers may lie that are equal in exact arithmetic: the one table of tolerances of the tests.

Processors, thread counts, batch layouts and numbers of processes add the same terms in different orders. None of the
tolerances below is what some processor happened to give: each follows from the precision, from how many terms a sum
has, how many sums follow one another and how large the result is.

A sum of ``n`` terms of magnitude 1 is rounded ``n`` times. The roundings are as good as independent, so its relative
error grows like ``sqrt(n) * unit``, where ``unit`` is half the distance of 1 to the next number (Higham and Mary,
"A new approach to probabilistic rounding error analysis", 2019). A network is a chain of such sums whose errors add
up, and both numbers that are compared have such an error. ``SAFETY`` is the constant in front that makes the bound
hold with near certainty for each of many numbers (lambda of that paper, 4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch

UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of rounding one number."""
SAFETY = 4


def rounding(terms: int, sums: int = 1, dtype: torch.dtype = torch.float32) -> float:
    """Largest difference of two results of magnitude 1, each of ``sums`` sums in a row of ``terms`` terms each."""
    return 2 * SAFETY * sums * terms**0.5 * UNIT[dtype]


@dataclass(frozen=True)
class Tolerance:
    """A difference that is allowed: a share of the expected number, or of 1 where that is smaller."""

    share: float

    @property
    def close(self) -> dict[str, float]:
        """Arguments of ``assert_close`` of torch and of ``assert_allclose`` of NumPy."""
        return {"rtol": self.share, "atol": self.share}

    def approx(self, expected: Any) -> Any:
        """What ``==`` compares an actual number, a list or a dictionary of numbers with."""
        return pytest.approx(expected, rel=self.share, abs=self.share, nan_ok=True)

    def times(self, factor: float) -> Tolerance:
        """The tolerance of numbers that are that many times as large."""
        return Tolerance(self.share * factor)


TINY_TERMS = 64
"""Terms of the longest sums of the tiny models: 32 hidden, 48 inner dimensions, attention over some 50 tokens."""
TINY_SUMS = 3 * 7 + 2
"""Sums in a row: in each of three layers two norms, two of attention and three products; a last norm and the head."""

SUMMED = Tolerance(rounding(TINY_TERMS))
"""The mean, a metric or a loss of float32 rewards, or a product with them, computed from the very same rewards."""

REWARD = Tolerance(rounding(TINY_TERMS, TINY_SUMS))
"""Float32 rewards of a tiny model for the same tokens, and what is averaged over them: losses, margins, metrics."""

GRADIENT = Tolerance(rounding(TINY_TERMS, 3 * TINY_SUMS))
"""Gradients of a tiny model: the way forward and two products for each of its sums on the way back."""


ATTENTION = Tolerance(rounding(512, 3))
"""One attention over up to some 500 tokens in float32: scores, the sum under the softmax, values."""

BFLOAT16 = Tolerance(rounding(1, 1, torch.bfloat16))
"""One operation whose operands and result are rounded to bfloat16."""


def assert_gradients_close(found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Compare the gradients of a tiny model by name, each in its norm.

    Some are zero but for rounding (key biases cancel in the softmax), hence the part of the largest one.
    """
    assert found.keys() == expected.keys()
    largest = max(gradient.norm() for gradient in expected.values())
    for name, gradient in expected.items():
        allowed = GRADIENT.share * gradient.norm() + SUMMED.share * largest
        assert (found[name] - gradient).norm() <= allowed, name


def after_steps(steps: int) -> Tolerance:
    """Rewards and losses after optimizer steps of which each moves rewards by up to 1, as far as a gradient is exact.

    The steps of most tests move them by a hundredth or less: `REWARD` is enough there.
    """
    return Tolerance(REWARD.share + steps * GRADIENT.share)


def weights_after(steps: int, learning_rate: float) -> Tolerance:
    """Weights of magnitude 1 after steps of plain gradient descent: inexact gradients, and each sum is rounded.

    Not for Adam, which divides gradients by their size, also those that are nothing but rounding errors.
    """
    return Tolerance(steps * (learning_rate * GRADIENT.share + 2 * UNIT[torch.float32]))
