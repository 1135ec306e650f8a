"""One process of a run with FSDP2 through the Trainer; started by fsdp2_runs.py. Writes what it saw as JSON."""

import json
import os
import shutil
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset
from torch.distributed.tensor import DTensor

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import RewardConfig, RewardTrainer
from plaudit.training.artifacts import newest_complete_checkpoint

DATASET = Dataset.from_list(conversation_rows(16))


def build(folder, layout, batch_size, use_cpu):
    """A trainer of three steps."""
    tokenizer = tiny_tokenizer()
    config = RewardConfig(
        str(folder),
        use_cpu=use_cpu,
        batch_layout=layout,
        max_steps=3,
        logging_steps=1,
        save_strategy="steps",
        save_steps=2,
        learning_rate=1e-3,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        report_to=[],
        disable_tqdm=True,
    )
    config._n_gpu = min(config.n_gpu, 1)
    return RewardTrainer(tiny_model(tokenizer), config, train_dataset=DATASET, processing_class=tokenizer)


def train(folder, layout, batch_size, use_cpu):
    """Train, save, and return losses and rewards."""
    trainer = build(folder, layout, batch_size, use_cpu)
    trainer.train()
    parameters = list(trainer.model_wrapped.parameters())
    trainer.save_model(str(folder / "final"))
    return {
        "is_fsdp2": bool(trainer.accelerator.is_fsdp2),
        "sharded": all(isinstance(parameter, DTensor) for parameter in parameters),
        "share": sum(p.to_local().numel() if isinstance(p, DTensor) else p.numel() for p in parameters)
        / sum(p.numel() for p in parameters),
        "layout": trainer.batch_layout,
        "complete": newest_complete_checkpoint(folder).name,
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "rewards": trainer.predict(DATASET).predictions.tolist(),
    }


def resume(folder, stopped, layout, batch_size, use_cpu):
    """Go on from the second step in another folder; return the rewards at the end."""
    if PartialState().is_main_process:
        shutil.copytree(folder / "checkpoint-2", stopped / "checkpoint-2")
    PartialState().wait_for_everyone()
    trainer = build(stopped, layout, batch_size, use_cpu)
    trainer.train(resume_from_checkpoint=True)
    return trainer.predict(DATASET).predictions.tolist()


def let_accelerate_shard_on_a_cpu():
    """Without a GPU accelerate quietly runs DDP when FSDP is asked for, though torch shards on gloo as well."""
    init = PartialState.__init__

    def pretending(state, *args, **kwargs):
        init(state, *args, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = pretending


def main(target, rank, batch_size):
    """Train in both layouts and write what came out."""
    use_cpu = not torch.cuda.is_available()
    if use_cpu:
        let_accelerate_shard_on_a_cpu()
    results = {}
    for layout in ("padded", "shared_prefix"):
        results[layout] = train(target / layout, layout, batch_size, use_cpu)
        stopped = target / f"{layout}-stopped"
        results[layout]["resumed"] = resume(target / layout, stopped, layout, batch_size, use_cpu)
    (target / f"{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
    sys.stdout.flush()
    os._exit(0)  # while Python shuts down, torch's gloo may abort a process that has finished
