"""Scores a file in children that kill themselves at random moments; started by test_files_killed.py.

The children are forks: nothing is imported or loaded again. Says as JSON how many were killed and what was wrong.
"""

import json
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path

import torch

from plaudit import RewardModel
from plaudit.inference.files import score_file

KILLS = 20


def run_child(model, rows, output, delay):
    """Score in a fork that kills itself after a delay, if it has one; returns how it ended."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    code = 1
    try:
        if delay is not None:
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        score_file(model, rows, output, chunk_size=8)
        code = 0
    finally:
        os._exit(code)


def main(folder, seed):
    """Kill children until enough were, starting over whenever one comes to its end."""
    torch.set_num_threads(1)
    model = RewardModel.from_pretrained(folder / "model", device="cpu")
    rows = folder / "rows.jsonl"
    started = time.monotonic()
    assert run_child(model, rows, folder / "whole.jsonl", None) == 0
    seconds = time.monotonic() - started
    whole = (folder / "whole.jsonl").read_bytes()
    draw, kills, ended, progress, wrong = random.Random(seed), 0, 0, [], []
    output = folder / "0.jsonl"
    while kills < KILLS:
        status = run_child(model, rows, output, draw.uniform(0, seconds / 4))
        chunks = output.with_name(f"{output.name}.chunks")
        if os.WIFSIGNALED(status):
            kills += 1
            progress.append(len(list(chunks.glob("chunk-*.json"))) if chunks.is_dir() else -1)
        elif status:
            wrong.append(f"status {status} after {kills} kills")
            break
        if output.exists():
            if output.read_bytes() != whole:
                wrong.append(f"{output.name} is half a file, or another")
            if not status or not chunks.is_dir():
                ended += 1
                output = folder / f"{ended}.jsonl"
    if not output.exists() and run_child(model, rows, output, None):
        wrong.append("the last run failed")
    if output.read_bytes() != whole:
        wrong.append("the last run gave something else")
    print(json.dumps({"kills": kills, "ended": ended, "progress": progress, "wrong": wrong, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
