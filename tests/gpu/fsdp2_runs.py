"""Runs with FSDP2 through the Trainer, and what must be true of them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from run_fsdp2_trainer import DATASET, train
from transformers import AutoModelForSequenceClassification

from builders import tiny_tokenizer
from plaudit import RewardConfig, RewardTrainer

HERE = Path(__file__).parent
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}


def run_processes(folder, world, use_cpu):
    """Train in so many processes, each with its share of a global batch of four."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = []
    for rank in range(world):
        environment = {
            **os.environ,
            **FSDP2,
            "ACCELERATE_USE_CPU": str(use_cpu).lower(),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(world),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(HERE / "run_fsdp2_trainer.py"), str(folder), str(rank), str(4 // world)]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    try:
        outputs = [process.communicate(timeout=500)[0].decode() for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0] * world, "\n".join(outputs)[-6000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def assert_fsdp2_trains_like_one_process(folder, world, use_cpu):
    """FSDP2 is really on, trains like one process in both layouts, resumes, and saves a whole model."""
    one = train(folder / "one", "shared_prefix", 4, use_cpu=use_cpu)
    assert np.std(one["rewards"]) > 1e-2, "the rewards must differ for this to say anything"
    for results in run_processes(folder, world, use_cpu):
        for layout, seen in results.items():
            assert seen["is_fsdp2"]
            assert seen["sharded"]
            assert seen["share"] == pytest.approx(1 / world, abs=0.1)
            assert seen["layout"] == layout
            assert seen["complete"] == "checkpoint-3"
            assert seen["losses"] == pytest.approx(one["losses"], rel=1e-3)
            np.testing.assert_allclose(seen["rewards"], one["rewards"], atol=1e-3)
            np.testing.assert_allclose(seen["resumed"], seen["rewards"], atol=1e-5)
    for layout in ("padded", "shared_prefix"):
        assert_saved(folder / layout / "final", one["rewards"], use_cpu)


def assert_saved(folder, rewards, use_cpu):
    """The folder holds an ordinary model with these rewards."""
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]
    loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    config = RewardConfig(str(folder.parent / "again"), use_cpu=use_cpu, bf16=False, report_to=[], disable_tqdm=True)
    config._n_gpu = min(config.n_gpu, 1)
    trainer = RewardTrainer(loaded, config, train_dataset=DATASET, processing_class=tiny_tokenizer())
    np.testing.assert_allclose(trainer.predict(DATASET).predictions, rewards, atol=1e-3)
