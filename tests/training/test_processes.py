"""Two processes train, log and evaluate like one with the same global batch, also where rows do not divide evenly."""

import pytest
from run_one_process import CASES, LEARNING_RATE, train
from two_processes import run_two_processes

from tolerances import after_steps, weights_after

STEPS = 6  # 11 rows, 4 a step, 2 epochs
CLOSE = after_steps(STEPS)
SKIPPED = {"num_tokens_computed", "eval_num_tokens_computed"}  # fillers and padding depend on how rows are dealt out


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    return run_two_processes("run_one_process.py", folder, ACCELERATE_USE_CPU="true")


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one_with_the_same_global_batch(two_processes, tmp_path, case):
    one = train(tmp_path / "one", case, 4)
    for two in (results[case] for results in two_processes):
        assert len(two["logs"]) == len(one["logs"]) == STEPS
        for expected, log in zip(one["logs"], two["logs"], strict=True):
            for name in expected.keys() - SKIPPED:
                assert log[name] == CLOSE.approx(expected[name]), name
        for name in one["metrics"].keys() - SKIPPED:
            assert two["metrics"][name] == CLOSE.approx(one["metrics"][name]), name
        for weights, expected in zip(two["weights"], one["weights"], strict=True):
            assert weights == weights_after(STEPS, LEARNING_RATE).approx(expected)
        assert len(two["predictions"]) == 11
        for expected, prediction in zip(one["predictions"], two["predictions"], strict=True):
            assert prediction == CLOSE.approx(expected)
        assert two["labels"] == one["labels"]
