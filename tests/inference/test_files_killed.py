"""SIGKILL at 20 random moments: the file ends with every row once, and equal to that of an undisturbed run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_file_whose_scoring_is_killed_20_times_is_that_of_an_undisturbed_run(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    rows = [{"n": n, "prompt": "Add ", "responses": [f"{n}", "a" * (n % 40)]} for n in range(400)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, str(HERE / "run_killed_scoring.py"), str(tmp_path), "0"]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=80, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = json.loads(ran.stdout)
    assert not said["wrong"]
    assert said["kills"] == 20
    assert len({count for count in said["progress"] if count > 0}) >= 3  # at different moments
    for file in tmp_path.glob("[0-9]*.jsonl"):
        assert [json.loads(line)["n"] for line in file.read_text().splitlines()] == list(range(400))
