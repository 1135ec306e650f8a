"""The configurations for `accelerate launch`: accelerate knows every key, and they mean what the page says."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils import launch as launching

EXAMPLES = Path(__file__).parents[2] / "examples"
CONFIGS = sorted((EXAMPLES / "accelerate").glob("*.yaml"))
FSDP = ["one_node_fsdp2", "many_nodes_fsdp2"]


def config_path(name):
    return str(EXAMPLES / "accelerate" / f"{name}.yaml")


@pytest.fixture
def launched(monkeypatch):
    """Put the environment that `accelerate launch` would give to each process in place; returns its arguments."""
    monkeypatch.setattr(launching, "is_port_in_use", lambda port: False)

    def launch(name, *options):
        args = launch_command_parser().parse_args(["--config_file", config_path(name), *options, "script.py"])
        args, defaults, _ = _validate_launch_command(args)
        if args.use_deepspeed:
            args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
            environment = launching.prepare_deepspeed_cmd_env(args)[1]
        else:
            environment = launching.prepare_multi_gpu_env(args)
        for key, value in environment.items():
            if os.environ.get(key) != value:
                monkeypatch.setenv(key, value)
        return args

    return launch


def test_they_are_all_there():
    expected = ["deepspeed_zero2", "deepspeed_zero3", "many_nodes_fsdp2", "one_node_ddp", "one_node_fsdp2"]
    assert [path.stem for path in CONFIGS] == [*expected, "two_cpu_processes"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_knows_every_key(path):
    config = load_config_from_file(str(path))  # refuses unknown keys of the first level itself
    known = vars(launch_command_parser().parse_args(["script.py"]))
    for nested in (config.fsdp_config, config.deepspeed_config):
        assert set(nested) <= known.keys()
    assert config.mixed_precision == ("no" if config.use_cpu else "bf16")
    command = f"accelerate launch --config_file examples/accelerate/{path.name}"
    assert command in path.read_text(), "the file says how it is used"


@pytest.mark.parametrize("name", FSDP)
def test_fsdp_shards_layer_by_layer_and_saves_one_file(launched, name):
    launched(name)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    # None: the model's own `_no_split_modules`, whatever its family.
    assert plugin.transformer_cls_names_to_wrap is None
    # The settings' `gradient_checkpointing` is on by default, and the Trainer refuses both together.
    assert plugin.activation_checkpointing is False


def test_many_nodes_differ_from_one_in_the_machines_only(launched):
    one, many = (yaml.safe_load(Path(config_path(name)).read_text()) for name in FSDP)
    assert one["fsdp_config"] == many["fsdp_config"]
    args = launched("many_nodes_fsdp2", "--machine_rank", "1", "--main_process_ip", "192.0.2.7")
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "192.0.2.7:29500")


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_takes_the_rest_from_the_settings(launched, stage):
    launched(f"deepspeed_zero{stage}")
    assert os.environ["ACCELERATE_USE_DEEPSPEED"] == "true"
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == stage
    assert plugin.zero3_init_flag is (stage == 3)
    config = plugin.deepspeed_config
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        assert config[key] == "auto"
    assert config["gradient_clipping"] == "auto"
    assert config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] is (stage == 3)


@pytest.mark.parametrize("name", ["one_node_ddp", "two_cpu_processes"])
def test_plain_data_parallel_is_started_with_torchrun(launched, name):
    args = launched(name)
    # Anything else goes to the launcher that starts one process, or as many as mpirun is told to.
    assert args.multi_gpu
    assert not args.cpu
    assert int(args.nproc_per_node) == args.num_processes >= 2


@pytest.mark.slow
def test_two_processes_on_a_cpu(tmp_path, model_folder, pairs):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config_path("two_cpu_processes")]
    command += ["--main_process_port", str(port), str(Path(__file__).with_name("run_example.py"))]
    command += [str(EXAMPLES / "multi_process.py")]
    command += ["--model", str(model_folder), "--dataset", str(pairs), "--output_dir", str(tmp_path / "out")]
    command += ["--max_steps", "2", "--disable_tqdm", "true"]
    hidden = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        command, env={**os.environ, **hidden}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("2 processes, 8 pairs per step") == 1
    assert done.stdout.count("held-out accuracy: ") == 1
    assert (tmp_path / "out" / "model.safetensors").exists()
