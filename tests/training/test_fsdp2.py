"""A reward model sharded with FSDP2 over two processes gives the rewards, gradients and checkpoints of a whole one.

`fully_shard` is applied directly: on a CPU accelerate quietly runs DDP when FSDP is asked for, so a plain test through
the Trainer would prove nothing. That test is in tests/gpu; here it runs with accelerate told otherwise.
"""

from types import SimpleNamespace

import pytest
import torch
from fsdp2_runs import assert_fsdp2_trains_like_one_process
from torch.distributed.fsdp import MixedPrecisionPolicy
from two_processes import run_two_processes

from plaudit.training.setup import keep_outputs_exact


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fsdp2")
    return run_two_processes("run_fsdp2_process.py", folder, CUDA_VISIBLE_DEVICES="")


@pytest.mark.parametrize("case", ["padded", "shared_prefix", "checkpointed"])
def test_a_sharded_model_equals_a_whole_one(sharded, case):
    for seen in (results[case] for results in sharded):
        assert seen["all_sharded"]
        assert 0.4 < seen["local_share"] < 0.6, "each process must hold its half only"
        assert seen["same_names"]
        assert seen["spread"] > 1e-2, "the rewards must differ for this to say anything"
        assert seen["largest_gradient"] > 1e-2
        assert seen["learned"] > 1e-3
        for name in ("rewards", "loss", "gradients", "weights"):
            assert seen[name] <= 1e-5, name
    main = sharded[0][case]
    assert main["missing"] == []
    assert main["architectures"] == ["LlamaForSequenceClassification"]
    assert main["reloaded"] <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_the_head_of_a_sharded_model_computes_in_float32(sharded, layout):
    for seen in (results["half"][layout] for results in sharded):
        assert seen["states"] == "torch.bfloat16"
        assert seen["rewards"] == "torch.float32"
        assert seen["difference"] <= 1e-5
        assert seen["beyond_bfloat16"] > 0, "rewards were rounded"


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="tests/gpu does the same where there is a GPU")
def test_fsdp2_through_the_trainer(tmp_path):
    assert_fsdp2_trains_like_one_process(tmp_path, world=2, use_cpu=True)


def test_what_the_model_returns_is_not_rounded():
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, output_dtype=torch.bfloat16)
    plugin = SimpleNamespace(fsdp_version=2, mixed_precision_policy=policy)
    keep_outputs_exact(plugin)
    kept = plugin.mixed_precision_policy
    assert (kept.param_dtype, kept.output_dtype, policy.output_dtype) == (torch.bfloat16, None, torch.bfloat16)
    for nothing_to_do in (None, SimpleNamespace(fsdp_version=1, mixed_precision_policy=policy)):
        keep_outputs_exact(nothing_to_do)
    assert nothing_to_do.mixed_precision_policy is policy
