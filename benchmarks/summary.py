"""From raw blocks to the numbers of a result: throughput, ratios, agreement of losses. Pure functions."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from typing import Any

Block = dict[str, Any]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    {'min': 1.0, 'q1': 2.0, 'median': 3.0, 'q3': 4.0, 'max': 5.0}
    """
    ordered = sorted(values)
    if len(ordered) == 1:
        q1 = median = q3 = ordered[0]
    else:
        q1, median, q3 = statistics.quantiles(ordered, n=4, method="inclusive")
    return {"min": ordered[0], "q1": q1, "median": median, "q3": q3, "max": ordered[-1]}


def block_seconds(block: Block) -> float:
    return sum(block["step_seconds"])


def block_tokens(tokens_per_batch: Sequence[int], block_index: int, steps: int) -> int:
    """Tokens of the responses, prompts included, that a block trains on; batches come round again.

    >>> block_tokens([10, 20, 30], block_index=1, steps=2)
    40
    """
    return sum(
        tokens_per_batch[step % len(tokens_per_batch)] for step in range(block_index * steps, (block_index + 1) * steps)
    )


def throughput(blocks: Sequence[Block], batch_size: int, tokens_per_batch: Sequence[int]) -> dict[str, Any]:
    """Rows and tokens a second over the counted blocks; the first block is a warm-up."""
    counted = blocks[1:]
    seconds = [block_seconds(block) for block in counted]
    rows = [len(block["step_seconds"]) * batch_size for block in counted]
    tokens = [
        block_tokens(tokens_per_batch, index, len(block["step_seconds"]))
        for index, block in enumerate(counted, start=1)
    ]
    return {
        "step_seconds": spread([second for block in counted for second in block["step_seconds"]]),
        "rows_per_second": rates(rows, seconds),
        "tokens_per_second": rates(tokens, seconds),
    }


def rates(amounts: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """Spread over the blocks of amount a second, and ``overall``: everything divided by all the time.

    >>> rates([8, 8], [1.0, 3.0])["overall"]
    4.0
    """
    return {**spread([a / s for a, s in zip(amounts, seconds, strict=True)]), "overall": sum(amounts) / sum(seconds)}


def speed_ratio(baseline: Sequence[Block], other: Sequence[Block]) -> dict[str, Any]:
    """How many times the baseline's throughput: block by block, on the same rows, the warm-up left out.

    >>> slow, fast = [[{"step_seconds": [s]} for s in run] for run in ((9.0, 4.0, 8.0), (9.0, 2.0, 2.0))]
    >>> ratio = speed_ratio(slow, fast)
    >>> ratio["per_block"], ratio["overall"]
    ([2.0, 4.0], 3.0)
    """
    pairs = [(block_seconds(a), block_seconds(b)) for a, b in zip(baseline[1:], other[1:], strict=True)]
    per_block = [a / b for a, b in pairs]
    return {
        **spread(per_block),
        "overall": sum(a for a, _ in pairs) / sum(b for _, b in pairs),
        "per_block": per_block,
    }


def losses_of(blocks: Sequence[Block], steps: int) -> list[float]:
    """Losses of the first steps, the warm-up included."""
    return [loss for block in blocks for loss in block["losses"]][:steps]


def loss_agreement(baseline: Sequence[float], other: Sequence[float], tolerance: float) -> dict[str, Any]:
    """Compare losses step by step.

    >>> loss_agreement([0.5, 0.25], [0.5, 0.375], tolerance=1e-3)["agrees"]
    False
    """
    differences = [abs(a - b) for a, b in zip(baseline, other, strict=True)]
    # Not "max > tolerance": a loss that is NaN agrees with nothing.
    agrees = all(difference <= tolerance for difference in differences)
    return {"largest_difference": max(differences), "differences": differences, "agrees": agrees}


def summarise(
    measured: dict[str, Any], tokens_per_batch: Sequence[int], settings: argparse.Namespace
) -> dict[str, Any]:
    """Everything that is derived from the raw blocks; throughput is added to ``measured``.

    Args:
        measured: For each variant its ``library`` and its ``blocks``.
        tokens_per_batch: Tokens of each batch of the data.
        settings: ``batch_size``, ``loss_steps`` and ``loss_tolerance``.
    """
    references = [name for name, side in measured.items() if side["library"] == "reference"]
    for side in measured.values():
        side.update(throughput(side["blocks"], settings.batch_size, tokens_per_batch))
    ratios = {
        baseline: {
            name: speed_ratio(measured[baseline]["blocks"], side["blocks"])
            for name, side in measured.items()
            if name != baseline
        }
        for baseline in references
    }
    losses = {name: losses_of(side["blocks"], settings.loss_steps) for name, side in measured.items()}
    against = references[0] if references else next(iter(measured))
    return {
        "times_throughput_of": ratios,
        "losses": {
            "compared_steps": len(losses[against]),
            "tolerance": settings.loss_tolerance,
            "against": against,
            "of_each_step": losses,
            "agreement": {
                name: loss_agreement(losses[against], values, settings.loss_tolerance)
                for name, values in losses.items()
                if name != against
            },
        },
    }
