"""Micro-batches: a fixed number of rows, or as many as fit under a number of tokens.

Every process gets the same number of micro-batches; where rows run out, fillers of weight 0 even them out. (The
Trainer's own sampler would refill the last batch with early rows, which then count twice in evaluation.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

WeightedRow = tuple[int, float]
"""Index of a row, and its weight: 1, or 0 for a filler."""
Order = Callable[[int], Sequence[int]]
"""Returns the order of the rows in an epoch."""
_STRETCH = 1000  # rows among which those of similar width are put together


class ExampleBatchSampler(Sampler[list[WeightedRow]]):
    """Yields the micro-batches of one process, `batch_size` rows each, as lists of row indices with weights.

    `drop_last` drops the rows that do not fill a batch on every process.

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
        order: Order | None = None,
        drop_last: bool = False,
    ) -> None:
        self.num_rows, self.batch_size = num_rows, batch_size
        self.process_index, self.num_processes = process_index, num_processes
        self.order = order or (lambda epoch: range(num_rows))
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        step = self.batch_size * self.num_processes
        return self.num_rows // step if self.drop_last else -(-self.num_rows // step)

    def __iter__(self) -> Iterator[list[WeightedRow]]:
        rows = list(self.order(self.epoch))
        step = self.batch_size * self.num_processes
        for start in range(0, len(self) * step, step):
            block = rows[start : start + step]
            share = -(-len(block) // self.num_processes)  # the last block may be short: smaller shares, all alike
            mine = block[self.process_index * share : (self.process_index + 1) * share]
            yield [(row, 1.0) for row in mine] + [(block[-1], 0.0)] * (share - len(mine))


class WeightedRows(Dataset[dict[str, Any]]):
    """A prepared `datasets.Dataset`, read at the rows that a sampler yields, with each row's weight added.

    Loaders that skip batches on a resume replace their sampler but keep their data set, which passes the epoch on.
    """

    def __init__(self, rows: Any, sampler: Any) -> None:
        self.rows, self.sampler = rows, sampler

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, weighted: Sequence[WeightedRow]) -> list[dict[str, Any]]:
        columns = self.rows[[row for row, _ in weighted]]
        return [
            {**{name: values[index] for name, values in columns.items()}, "example_weight": weight}
            for index, (_, weight) in enumerate(weighted)
        ]

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the sampler."""
        self.sampler.set_epoch(epoch)


def shuffled(num_rows: int, seed: int) -> Order:
    """Returns a random order that is drawn afresh each epoch."""

    def order(epoch: int) -> Sequence[int]:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(num_rows, generator=generator).tolist()

    return order


def grouped_by_prompt(prompts: Sequence[int], seed: int) -> Order:
    """Returns an order in which rows with equal numbers of their prompts follow each other; prompts are shuffled.

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


def grouped_by_length(lengths: Sequence[int], batch_size: int, seed: int) -> Order:
    """Returns an order of random batches of rows of similar length, the longest first so that memory fails early."""

    def order(epoch: int) -> Sequence[int]:
        rows = torch.tensor(shuffled(len(lengths), seed)(epoch))
        key = torch.tensor(lengths)
        stretches = rows.split(50 * batch_size)  # sorted each, as transformers does: batches stay random enough
        stretches = [stretch[key[stretch].argsort(descending=True, stable=True)] for stretch in stretches]
        batches = [batch for stretch in stretches for batch in stretch.split(batch_size)]
        full = [batch for batch in batches if len(batch) == batch_size]
        short = [batch for batch in batches if len(batch) < batch_size]
        mixed = [full[index] for index in shuffled(len(full), seed + 1)(epoch)]
        longest = max(range(len(mixed)), key=lambda index: int(key[mixed[index]].max()), default=None)
        if longest is not None:
            mixed.insert(0, mixed.pop(longest))
        return torch.cat([*mixed, *short]).tolist()

    return order


@dataclass(frozen=True)
class RowCost:
    """What rows cost to compute."""

    tokens: Sequence[int]  # of each row, with its prompt computed once
    widths: Sequence[int]  # longest response of each row
    responses: Sequence[int]  # number of responses of each row
    padded: bool  # whether batches are rectangles

    def of(self, rows: Sequence[int]) -> int:
        """Returns the tokens of a batch of rows, padding included.

        >>> cost = RowCost(tokens=[5, 7], widths=[4, 6], responses=[2, 2], padded=True)
        >>> cost.of([0, 1]), RowCost([5, 7], [4, 6], [2, 2], padded=False).of([0, 1])
        (24, 12)
        """
        if self.padded:
            return max(self.widths[row] for row in rows) * sum(self.responses[row] for row in rows)
        return sum(self.tokens[row] for row in rows)


class TokenBatchSampler(Sampler[list[WeightedRow]]):
    """Yields the micro-batches of one process, each under `max_tokens`, as lists of row indices with weights.

    The seed decides once which rows go together, and in each epoch anew when each batch comes: all epochs have as many
    steps, on all processes alike, and a run resumes where it stopped. The batches of a step have similar sizes, so that
    no process waits long. A row of more tokens makes a batch of its own. A seed of None keeps the order of the rows;
    `order` is the order in which they are put together, by default shuffled.

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
        if order is None:
            order = range(len(cost.tokens)) if seed is None else shuffled(len(cost.tokens), seed)(0)
            if cost.padded and seed is not None:
                # Rows of similar width side by side: a rectangle is padded to the longest.
                stretches = [order[start : start + _STRETCH] for start in range(0, len(order), _STRETCH)]
                order = [row for rows in stretches for row in sorted(rows, key=cost.widths.__getitem__, reverse=True)]
        self.steps = _steps(cost, order, max_tokens, num_processes, in_order=seed is None)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[WeightedRow]]:
        order: Sequence[int] = range(len(self.steps))
        if self.seed is not None:
            order = shuffled(len(self.steps), self.seed + 1)(self.epoch)
        for step in order:
            yield self.steps[step][self.process_index]


def _steps(
    cost: RowCost, order: Sequence[int], max_tokens: int, processes: int, *, in_order: bool
) -> list[list[list[WeightedRow]]]:
    """Returns one batch per step and process: halves the largest, or adds fillers, until their number is even."""
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
    while len(batches) % processes:
        largest = max(range(len(batches)), key=lambda index: (len(batches[index]) > 1, cost.of(batches[index])))
        rows = batches[largest]
        if len(rows) == 1:
            break
        batches[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    if not in_order:
        batches = sorted(batches, key=cost.of, reverse=True)
    weighted = [[(row, 1.0) for row in rows] for rows in batches]
    weighted += [[(batches[-1][-1], 0.0)]] * (-len(weighted) % processes)
    return [weighted[start : start + processes] for start in range(0, len(weighted), processes)]
