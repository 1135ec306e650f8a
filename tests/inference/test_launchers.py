"""``python -m plaudit score`` under the launchers that people use: one merged result, equal to that of one process."""

import json
import os
import subprocess
import sys

import pytest

from plaudit import RewardModel
from plaudit.inference.files import score_file
from tolerances import REWARD

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
# Without MPI, accelerate starts two processes on a CPU only if it is told to treat them as several GPUs.
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
ACCELERATE_CPU = ["accelerate.commands.launch", "--cpu", "--num_processes", "2"]

pytestmark = pytest.mark.slow


def launch(launcher, *arguments):
    """Exit code and everything that was said."""
    # The launchers are modules, which their commands in a virtual environment's folder call as well.
    command = [sys.executable, "-m", *launcher, "-m", "plaudit", "score", *map(str, arguments), "--device", "cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def rows():
    return [{"n": n, "response": "a" * (n % 7 + 1)} for n in range(30)]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE, ACCELERATE_CPU], ids=["torchrun", "accelerate", "cpu"])
def test_one_merged_result_equal_to_one_process(launcher, folder, rows, tmp_path):
    source = write(tmp_path / "rows.jsonl", rows)
    code, said = launch(launcher, folder, source, "--output", tmp_path / "two.jsonl", "--chunk_size", "4")
    assert code == 0, said
    assert said.count("Scored 30 rows (30 rewards") == 1
    score_file(RewardModel.from_pretrained(folder, device="cpu"), source, tmp_path / "one.jsonl")
    together, alone = (
        [json.loads(line) for line in (tmp_path / name).read_text().splitlines()] for name in ("two.jsonl", "one.jsonl")
    )
    assert [row["n"] for row in together] == list(range(30))
    for row, other in zip(together, alone, strict=True):
        assert row["reward"] == REWARD.approx(other["reward"])
    assert not (tmp_path / "two.jsonl.chunks").exists()


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_the_processes_share_the_rows(launcher, folder, rows, tmp_path):
    # Row 5 is in the second chunk, which is for the second process; nobody else reads it.
    source = write(tmp_path / "rows.jsonl", [*rows[:5], {"n": 5, "response": None}, *rows[6:]])
    code, said = launch(launcher, folder, source, "--output", tmp_path / "two.jsonl", "--chunk_size", "4")
    assert code != 0
    assert "process 1 failed: row 5" in said
    assert not (tmp_path / "two.jsonl").exists()
