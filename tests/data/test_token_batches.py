"""Batches by tokens: under the limit, every row once, in step on every process, the same number every epoch."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.data.samplers import RowCost, TokenBatchSampler


def cost_of(seed, rows, padded):
    draw = random.Random(seed)
    widths = [draw.randint(1, 40) for _ in range(rows)]
    responses = [draw.randint(1, 4) for _ in range(rows)]
    tokens = [width + draw.randint(0, width * (n - 1)) for width, n in zip(widths, responses, strict=True)]
    return RowCost(tokens, widths, responses, padded)


@settings(max_examples=80, derandomize=True, deadline=None)
@given(
    data=st.integers(0, 99),
    rows=st.integers(1, 60),
    limit=st.integers(20, 200),
    processes=st.integers(1, 4),
    padded=st.booleans(),
    shuffle=st.booleans(),
)
def test_every_row_once_under_the_limit_and_all_processes_in_step(data, rows, limit, processes, padded, shuffle):
    cost = cost_of(data, rows, padded)
    samplers = [
        TokenBatchSampler(cost, limit, process_index=rank, num_processes=processes, seed=3 if shuffle else None)
        for rank in range(processes)
    ]
    for epoch in (0, 1):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        dealt = [list(sampler) for sampler in samplers]
        assert {len(batches) for batches in dealt} == {len(samplers[0])}
        assert all(batch for batches in dealt for batch in batches)
        real = sorted(row for batches in dealt for batch in batches for row, weight in batch if weight)
        assert real == list(range(rows))
        for batches in dealt:
            for batch in batches:
                assert len(batch) == 1 or cost.of([row for row, _ in batch]) <= limit


def test_epochs_differ_in_order_only_and_repeat():
    cost = cost_of(1, 200, padded=False)
    sampler, again = TokenBatchSampler(cost, 150, seed=5), TokenBatchSampler(cost, 150, seed=5)
    first = list(sampler)
    assert first == list(again)
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != second
    assert sorted(map(sorted, first)) == sorted(map(sorted, second))
    assert list(TokenBatchSampler(cost, 150, seed=6)) != first


def test_batches_are_nearly_full_and_alike_within_a_step():
    cost = cost_of(2, 400, padded=False)
    samplers = [TokenBatchSampler(cost, 600, process_index=rank, num_processes=4) for rank in range(4)]
    sizes = [[cost.of([row for row, _ in batch]) for batch in sampler] for sampler in samplers]
    total = sum(cost.tokens)
    assert len(samplers[0]) <= total / (4 * 600) * 1.15 + 1
    for step in zip(*sizes, strict=True):
        assert max(step) - min(step) <= 150


def test_rectangles_hold_rows_of_similar_width():
    cost = cost_of(3, 500, padded=True)
    mixed = TokenBatchSampler(cost, 400, seed=None)
    grouped = TokenBatchSampler(cost, 400, seed=0)
    assert len(grouped) < 0.8 * len(mixed)
