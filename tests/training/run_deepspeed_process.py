"""One of two processes that train with DeepSpeed ZeRO on the CPU; started by test_deepspeed.py."""

import json
import os
import shutil
import sys
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset

from builders import tiny_tokenizer
from model_builders import conversation_rows
from plaudit import RewardConfig, RewardTrainer
from plaudit.training.artifacts import newest_complete_checkpoint

ROWS = [{**row, "margin": 1.001 + n} for n, row in enumerate(conversation_rows(8))]
"""Margins that bfloat16 does not have."""
DATASET = Dataset.from_list(ROWS)


def build(model, folder, layout, batch_size, deepspeed=None, **settings):
    """A trainer of three steps that starts from the model of a folder."""
    config = RewardConfig(
        str(folder),
        use_cpu=True,
        deepspeed=deepspeed,
        batch_layout=layout,
        max_steps=3,
        logging_steps=1,
        save_strategy="steps",
        save_steps=2,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        learning_rate=1e-3,
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    return RewardTrainer(str(model), config, train_dataset=DATASET, processing_class=tiny_tokenizer())


def train(model, folder, layout, batch_size, deepspeed=None, **settings):
    """Train; return losses, rewards and what was saved."""
    trainer = build(model, folder, layout, batch_size, deepspeed, **settings)
    trainer.train()
    predictions = trainer.predict(DATASET).predictions
    evaluation = trainer.evaluate(DATASET)
    trainer.save_model(str(folder / "final"))
    return {
        "losses": [log["loss"] for log in trainer.state.log_history if "loss" in log],
        "rewards": predictions.tolist(),
        "eval_loss": evaluation["eval_loss"],
        "layout": trainer.batch_layout,
        "engine": type(trainer.model_wrapped).__name__,
        "sharded": all(hasattr(parameter, "ds_id") for parameter in trainer.model.parameters()),
        "complete": newest_complete_checkpoint(folder).name,
    }


def resume(model, whole, stopped, *args, **settings):
    """Go on from the second step in another folder; return the rewards at the end."""
    if PartialState().is_main_process:
        shutil.copytree(whole / "checkpoint-2", stopped / "checkpoint-2")
    PartialState().wait_for_everyone()
    trainer = build(model, stopped, *args, **settings)
    trainer.train(resume_from_checkpoint=True)
    return trainer.predict(DATASET).predictions.tolist()


def zero(stage, bf16):
    """A configuration as users write them."""
    settings = {"stage": stage}
    if stage == 3:
        settings["stage3_gather_16bit_weights_on_model_save"] = True
        settings["stage3_param_persistence_threshold"] = 0  # shard small parameters too
    return {
        "zero_optimization": settings,
        "bf16": {"enabled": bf16},
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
    }


def main(target, rank, stage, bf16):
    """Train in both layouts and write what came out."""
    results = {}
    for layout in ("padded", "shared_prefix"):
        run = (layout, 2, zero(stage, bf16))
        results[layout] = train(target / "model", target / layout, *run, bf16=bf16)
        stopped = target / f"{layout}-stopped"
        results[layout]["resumed"] = resume(target / "model", target / layout, stopped, *run, bf16=bf16)
    (target / f"{rank}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4] == "bf16")
    sys.stdout.flush()
    os._exit(0)  # while Python shuts down, torch's gloo may abort a process that has finished
