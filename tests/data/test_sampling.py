"""Every row once, equal numbers of micro-batches on every process, and the same steps however many there are."""

from hypothesis import given
from hypothesis import strategies as st

from plaudit.data.samplers import ExampleBatchSampler, WeightedRows, grouped_by_length, shuffled

sizes = {"num_rows": st.integers(1, 40), "batch_size": st.integers(1, 5), "processes": st.integers(1, 4)}


def all_processes(num_rows, batch_size, processes, **settings):
    return [
        ExampleBatchSampler(num_rows, batch_size, process_index=rank, num_processes=processes, **settings)
        for rank in range(processes)
    ]


@given(**sizes, seed=st.integers(0, 5))
def test_every_row_counts_exactly_once_and_ranks_stay_in_step(num_rows, batch_size, processes, seed):
    samplers = all_processes(num_rows, batch_size, processes, order=shuffled(num_rows, seed))
    dealt = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in dealt} == {len(samplers[0])}
    for step in zip(*dealt, strict=True):
        assert len({len(batch) for batch in step}) == 1
        assert all(batch for batch in step)
    real = sorted(row for batches in dealt for batch in batches for row, weight in batch if weight == 1)
    assert real == list(range(num_rows))


@given(**sizes)
def test_gathered_rows_come_in_order_with_fillers_last(num_rows, batch_size, processes):
    dealt = [list(sampler) for sampler in all_processes(num_rows, batch_size, processes)]
    gathered = [place for step in zip(*dealt, strict=True) for batch in step for place in batch]
    assert [row for row, weight in gathered if weight] == list(range(num_rows))
    assert [weight for _, weight in gathered] == sorted((weight for _, weight in gathered), reverse=True)


@given(batch_size=st.integers(1, 3), num_rows=st.integers(1, 30), epoch=st.integers(0, 3))
def test_a_step_holds_the_same_rows_however_many_processes_share_it(batch_size, num_rows, epoch):
    def steps(processes):
        samplers = all_processes(num_rows, 4 // processes * batch_size, processes, order=shuffled(num_rows, 7))
        for sampler in samplers:
            sampler.set_epoch(epoch)
        return [[row for batch in step for row, w in batch if w] for step in zip(*samplers, strict=True)]

    assert steps(1) == steps(2) == steps(4)


@given(**sizes)
def test_dropping_the_last_leaves_full_batches_only(num_rows, batch_size, processes):
    for sampler in all_processes(num_rows, batch_size, processes, drop_last=True):
        batches = list(sampler)
        assert len(batches) == len(sampler) == num_rows // (batch_size * processes)
        assert all(len(batch) == batch_size and all(weight for _, weight in batch) for batch in batches)


def test_epochs_and_seeds_differ_and_repeat():
    first, again, second = shuffled(50, 1), shuffled(50, 1), shuffled(50, 2)
    assert first(0) == again(0)
    assert first(0) != first(1)
    assert first(0) != second(0)


@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=300), batch_size=st.integers(1, 6))
def test_grouping_by_length_keeps_every_row_and_starts_with_the_longest(lengths, batch_size):
    order = grouped_by_length(lengths, batch_size, seed=3)(0)
    assert sorted(order) == list(range(len(lengths)))
    if len(lengths) >= batch_size:
        assert max(lengths[row] for row in order[:batch_size]) == max(
            lengths[row] for row in order[: len(order) // batch_size * batch_size]
        )


def test_grouping_by_length_saves_padding():
    lengths = [(n * 37) % 101 for n in range(400)]

    def padding(order):
        batches = [[lengths[row] for row in order[i : i + 8]] for i in range(0, 400, 8)]
        return sum(len(batch) * max(batch) - sum(batch) for batch in batches)

    assert padding(grouped_by_length(lengths, 8, 0)(0)) < 0.1 * padding(shuffled(400, 0)(0))


def test_rows_are_read_with_their_weight():
    rows = WeightedRows({"a": [10, 11]}, ExampleBatchSampler(2, 1))

    class Columns:
        def __getitem__(self, indices):
            return {"a": [10 + index for index in indices]}

        def __len__(self):
            return 2

    rows.rows = Columns()
    assert rows.__getitems__([(1, 1.0), (0, 0.0)]) == [
        {"a": 11, "example_weight": 1.0},
        {"a": 10, "example_weight": 0.0},
    ]
    rows.set_epoch(4)
    assert rows.sampler.epoch == 4
