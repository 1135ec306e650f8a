"""Micro-batches of about equal work: as many rows as fit under a number of tokens, the same number on every process.

Which rows go together is decided once, by the seed; which of these batches come when, each epoch anew. So every epoch
has the same number of steps, on all processes alike, and a run resumes where it stopped. A step takes one batch a
process; batches of similar size go into the same step, so that nobody waits long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

Place = tuple[int, float]
"""Index of a row, and its weight: 1, or 0 for a filler."""


class ExampleBatchSampler(Sampler[list[Place]]):
    """Yields the micro-batches of one process as lists of row indices with weights.

    Args:
        num_rows: Rows of the data set.
        batch_size: Rows of a micro-batch.
        process_index: Which process this is.
        num_processes: How many there are.
        order: From the epoch, the order of the rows; by default that of the data set.
        drop_last: Leave out what does not fill a batch on every process.

    >>> list(ExampleBatchSampler(3, 1, process_index=1, num_processes=2))
    [[(1, 1.0)], [(2, 0.0)]]
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        *,
        process_index: int = 0,
        num_processes: int = 1,
        order: Callable[[int], Sequence[int]] | None = None,
        drop_last: bool = False,
    ) -> None:
        self.num_rows, self.batch_size = num_rows, batch_size
        self.process_index, self.num_processes = process_index, num_processes
        self.order = order or (lambda epoch: range(num_rows))
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch that the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        together = self.batch_size * self.num_processes
        return self.num_rows // together if self.drop_last else -(-self.num_rows // together)

    def __iter__(self) -> Iterator[list[Place]]:
        rows = list(self.order(self.epoch))
        together = self.batch_size * self.num_processes
        for start in range(0, len(self) * together, together):
            block = rows[start : start + together]
            share = -(-len(block) // self.num_processes)  # the last block may be short: smaller shares, all alike
            mine = block[self.process_index * share : (self.process_index + 1) * share]
            yield [(row, 1.0) for row in mine] + [(block[-1], 0.0)] * (share - len(mine))


class WeightedRows(Dataset[dict[str, Any]]):
    """A prepared data set read at the places that a sampler yields, with each row's weight added.

    Args:
        rows: A `datasets.Dataset`.
        sampler: Told the epoch; loaders that skip batches on a resume replace their sampler, but keep their data set.
    """

    def __init__(self, rows: Any, sampler: Any) -> None:
        self.rows, self.sampler = rows, sampler

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[Place]) -> list[dict[str, Any]]:
        columns = self.rows[[row for row, _ in places]]
        return [
            {**{name: values[index] for name, values in columns.items()}, "example_weight": weight}
            for index, (_, weight) in enumerate(places)
        ]

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the sampler."""
        self.sampler.set_epoch(epoch)


def shuffled(num_rows: int, seed: int) -> Callable[[int], Sequence[int]]:
    """An order for `ExampleBatchSampler` that is drawn afresh each epoch."""

    def order(epoch: int) -> Sequence[int]:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(num_rows, generator=generator).tolist()

    return order


def grouped_by_prompt(prompts: Sequence[int], seed: int) -> Callable[[int], Sequence[int]]:
    """An order in which rows of one prompt follow each other; prompts come in an order drawn afresh each epoch.

    Args:
        prompts: For each row a number that is equal for equal prompts.
        seed: Draws the order.

    >>> order = grouped_by_prompt([7, 8, 7, 9], seed=0)(0)
    >>> abs(order.index(0) - order.index(2)), sorted(order)
    (1, [0, 1, 2, 3])
    """
    groups: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(row)
    members = list(groups.values())

    def order(epoch: int) -> Sequence[int]:
        return [row for group in shuffled(len(members), seed)(epoch) for row in members[group]]

    return order


def grouped_by_length(lengths: Sequence[int], batch_size: int, seed: int) -> Callable[[int], Sequence[int]]:
    """An order of random batches of rows of similar length, the longest first so that memory fails early.

    Args:
        lengths: Length of each row in tokens.
        batch_size: Rows that go into one step.
        seed: Draws which batches come when.
    """

    def order(epoch: int) -> Sequence[int]:
        rows = torch.tensor(shuffled(len(lengths), seed)(epoch))
        stretch = 50 * batch_size  # sorted stretches, as transformers does: batches stay random enough
        key = torch.tensor(lengths)
        parts = [part[key[part].argsort(descending=True, stable=True)] for part in rows.split(stretch)]
        batches = [batch for part in parts for batch in part.split(batch_size)]
        full = [batch for batch in batches if len(batch) == batch_size]
        short = [batch for batch in batches if len(batch) < batch_size]
        mixed = [full[index] for index in shuffled(len(full), seed + 1)(epoch)]
        longest = max(range(len(mixed)), key=lambda index: int(key[mixed[index]].max()), default=None)
        if longest is not None:
            mixed.insert(0, mixed.pop(longest))
        return torch.cat([*mixed, *short]).tolist()

    return order


_STRETCH = 1000  # rows among which those of similar width are put together


@dataclass(frozen=True)
class RowCost:
    """What rows cost to compute.

    Attributes:
        tokens: Tokens of each row with its prompt computed once, G numbers.
        widths: Longest response of each row.
        responses: Number of responses of each row.
        padded: Whether batches are rectangles.
    """

    tokens: Sequence[int]
    widths: Sequence[int]
    responses: Sequence[int]
    padded: bool

    def of(self, rows: Sequence[int]) -> int:
        """Tokens of a batch, padding included.

        Args:
            rows: Indices of its rows.

        >>> cost = RowCost(tokens=[5, 7], widths=[4, 6], responses=[2, 2], padded=True)
        >>> cost.of([0, 1]), RowCost([5, 7], [4, 6], [2, 2], padded=False).of([0, 1])
        (24, 12)
        """
        if self.padded:
            return max(self.widths[row] for row in rows) * sum(self.responses[row] for row in rows)
        return sum(self.tokens[row] for row in rows)


class TokenBatchSampler(Sampler[list[Place]]):
    """Yields the micro-batches of one process as lists of row indices with weights.

    Args:
        cost: What the rows cost.
        max_tokens: Most tokens of a batch; a row that has more makes a batch of its own.
        process_index: Which process this is.
        num_processes: How many there are.
        seed: Decides which rows go together, and when; None keeps the order of the rows.
        order: Order in which rows are put together; by default shuffled by the seed.

    >>> cost = RowCost(tokens=[4, 4, 4, 9], widths=[3, 3, 3, 8], responses=[2, 2, 2, 2], padded=False)
    >>> list(TokenBatchSampler(cost, max_tokens=8, seed=None))
    [[(0, 1.0), (1, 1.0)], [(2, 1.0)], [(3, 1.0)]]
    """

    def __init__(
        self,
        cost: RowCost,
        max_tokens: int,
        *,
        process_index: int = 0,
        num_processes: int = 1,
        seed: int | None = 0,
        order: Sequence[int] | None = None,
    ) -> None:
        self.process_index, self.seed = process_index, seed
        self.epoch = 0
        given = order is not None
        if order is None:
            order = range(len(cost.tokens)) if seed is None else shuffled(len(cost.tokens), seed)(0)
        batches = _fill(
            cost, _by_width(cost, order) if cost.padded and seed is not None and not given else order, max_tokens
        )
        self.steps = _deal(cost, batches, num_processes, in_order=seed is None)

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch that the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[Place]]:
        order: Sequence[int] = range(len(self.steps))
        if self.seed is not None:
            order = shuffled(len(self.steps), self.seed + 1)(self.epoch)
        for step in order:
            yield self.steps[step][self.process_index]


def _by_width(cost: RowCost, order: Sequence[int]) -> list[int]:
    """Put rows of similar width side by side within stretches; else a rectangle would be padded to the longest."""
    rows: list[int] = []
    for start in range(0, len(order), _STRETCH):
        rows += sorted(order[start : start + _STRETCH], key=lambda row: cost.widths[row], reverse=True)
    return rows


def _fill(cost: RowCost, order: Sequence[int], max_tokens: int) -> list[list[int]]:
    batches: list[list[int]] = []
    tokens = width = responses = 0
    for row in order:
        tokens += cost.tokens[row]
        width, responses = max(width, cost.widths[row]), responses + cost.responses[row]
        if batches and (width * responses if cost.padded else tokens) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
            tokens, width, responses = cost.tokens[row], cost.widths[row], cost.responses[row]
    return batches


def _deal(cost: RowCost, batches: list[list[int]], processes: int, *, in_order: bool) -> list[list[list[Place]]]:
    """One batch a process and step: the largest are cut in two, or fillers added, until the number comes out even."""
    while len(batches) % processes:
        largest = max(range(len(batches)), key=lambda index: (len(batches[index]) > 1, cost.of(batches[index])))
        rows = batches[largest]
        if len(rows) == 1:
            break
        batches[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    if not in_order:
        batches = sorted(batches, key=cost.of, reverse=True)
    places = [[(row, 1.0) for row in rows] for rows in batches]
    while len(places) % processes:
        places.append([(batches[-1][-1], 0.0)])
    return [places[start : start + processes] for start in range(0, len(places), processes)]
