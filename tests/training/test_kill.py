"""SIGKILL while checkpoints are written and deleted: the newest whole one is found, and the run ends as if unbroken."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plaudit.training.artifacts import is_complete, newest_complete_checkpoint

HERE = Path(__file__).parent


class Run:
    """A training process in a folder, watched through what it says."""

    def __init__(self, folder, step=0, name="-"):
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        command = [sys.executable, str(HERE / "run_killed_process.py"), str(folder), str(step), name]
        self.errors = (folder.parent / f"{folder.name}.log").open("a")
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.said = []

    def wait_for(self, *words):
        """Read until the process says one of the words."""
        for line in self.process.stdout:
            self.said.append(line.strip())
            if self.said[-1] in words:
                return
        self.process.wait()
        pytest.fail(f"never said {words}: {self.said}\n{Path(self.errors.name).read_text()[-3000:]}")

    def kill(self):
        """Kill it without any chance to clean up."""
        self.process.send_signal(signal.SIGKILL)
        self.is_killed()

    def is_killed(self):
        """Wait for its violent end."""
        self.said += self.process.stdout.read().split("\n")
        assert self.process.wait() == -signal.SIGKILL
        self.close()

    def finish(self):
        """Let it come to its end."""
        self.wait_for("finished")
        assert self.process.wait() == 0
        self.close()

    def close(self):
        """Let go of the pipes."""
        self.process.stdout.close()
        self.errors.close()

    @property
    def resumed_from(self):
        """Step of the checkpoint it went on from, 0 if from the beginning."""
        return next((int(line.split("-")[1]) for line in self.said if line.startswith("resuming")), 0)


STOPS = [
    (1, "model.safetensors", 0),
    (2, "trainer_state.json", 1),
    (4, "model.safetensors", 3),
    (5, "optimizer.pt", 4),
    (6, "scheduler.pt", 5),
    (7, "rng_state.pth", 6),
    (8, "deletion", 8),
]
"""Step, file that is left half written, and the newest whole checkpoint then."""


@pytest.fixture
def start():
    """Start runs; none of them outlives the test."""
    runs = []

    def start(*args):
        runs.append(Run(*args))
        return runs[-1]

    yield start
    for run in runs:
        run.process.kill()
        run.process.wait()
        run.close()


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_never_was(tmp_path, start):
    whole = start(tmp_path / "whole")
    folder, newest = tmp_path / "killed", 0
    for step, name, left in STOPS:
        run = start(folder, step, name)
        run.wait_for("stopped")
        run.kill()
        assert run.resumed_from == newest
        newest = left
        if newest:
            assert newest_complete_checkpoint(folder).name == f"checkpoint-{newest}"
    draw = random.Random(0)
    for _ in range(2):  # and at any moment, whatever is being written then
        run = start(folder, newest + 1, f"after {draw.uniform(0, 40):.1f}")
        run.is_killed()
        assert run.resumed_from == newest
        last = int(newest_complete_checkpoint(folder).name.split("-")[1])
        assert newest <= last < 14
        newest = last
    last = start(folder)
    last.finish()
    assert last.resumed_from == newest
    whole.finish()
    assert_same_end(tmp_path / "whole", folder)


def assert_same_end(left, right):
    """The same weights to the last bit, and the same logs."""
    expected, got = (load_file(folder / "final" / "model.safetensors") for folder in (left, right))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    states = [json.loads((folder / "final" / "trainer_state.json").read_text()) for folder in (left, right)]
    expected, got = ([log for log in state["log_history"] if "loss" in log] for state in states)
    assert len(expected) == 4
    assert expected == got


def test_a_checkpoint_of_which_any_part_was_deleted_is_passed_over(model, dataset, make_trainer, tmp_path):
    make_trainer(model, dataset, save_strategy="steps", save_steps=1).train()
    newest = tmp_path / "out" / "checkpoint-2"
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"):
        shutil.move(newest / name, tmp_path / name)
        assert not is_complete(newest), name
        assert newest_complete_checkpoint(tmp_path / "out").name == "checkpoint-1"
        shutil.move(tmp_path / name, newest / name)
        assert is_complete(newest)


def test_weights_in_several_files_must_all_be_there(model, dataset, make_trainer, tmp_path):
    make_trainer(model, dataset, save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    (checkpoint / "model.safetensors").unlink()
    model.save_pretrained(checkpoint, max_shard_size="20KB")
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert is_complete(checkpoint)
    shards[0].unlink()
    assert not is_complete(checkpoint)


@pytest.mark.parametrize("adapter", [False, True])
def test_checkpoints_of_the_model_alone_are_whole(model, dataset, make_trainer, tmp_path, adapter):
    settings = {"save_strategy": "steps", "save_steps": 2, "save_only_model": not adapter}
    if adapter:
        peft = pytest.importorskip("peft")
        settings["peft_config"] = peft.LoraConfig(r=2, target_modules=["q_proj"])
    make_trainer(model, dataset, **settings).train()
    assert is_complete(tmp_path / "out" / "checkpoint-2")
