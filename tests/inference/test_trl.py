"""TRL's GRPO trainer takes a `RewardModel` as its reward function, in an environment that has TRL."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from model_builders import tiny_model
from plaudit import RewardModel
from tolerances import REWARD

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
ENVIRONMENTS = sorted((ROOT / "benchmarks" / ".envs").glob("trl-*/bin/python"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["conversations", "texts"])
def test_two_steps_of_the_real_trainer(tokenizer, tmp_path, kind):
    if importlib.util.find_spec("trl") is None and not ENVIRONMENTS:
        pytest.skip("TRL is not installed; `make bench` makes an environment that has it")
    python = sys.executable if importlib.util.find_spec("trl") else str(ENVIRONMENTS[-1])
    model = tiny_model(tokenizer, max_position_embeddings=512)
    model.save_pretrained(tmp_path / "reward")
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(model.config).save_pretrained(tmp_path / "policy")
    for folder in ("reward", "policy"):
        tokenizer.save_pretrained(tmp_path / folder)
    done = subprocess.run(
        [python, str(HERE / "run_grpo.py"), str(tmp_path), kind],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    result = json.loads(done.stdout.split("RESULT ")[1])
    assert result["steps"] == 2
    assert len(result["logged"]) == 2
    rewards = [one for call in result["calls"] for one in call["rewards"]]
    assert sum(result["logged"]) / 2 == REWARD.approx(sum(rewards) / len(rewards))
    # The trainer's answers, scored anew.
    again = RewardModel.from_pretrained(tmp_path / "reward", device="cpu")
    for call in result["calls"]:
        assert again.score(call["rows"]) == REWARD.approx(call["rewards"])
