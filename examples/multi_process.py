"""Train with one process or with many, with the same script.

    python examples/multi_process.py
    torchrun --nproc_per_node 2 examples/multi_process.py
    accelerate launch --config_file examples/accelerate/one_node_fsdp2.yaml examples/multi_process.py \
        --model Qwen/Qwen3-4B --dataset trl-lib/ultrafeedback_binarized --max_steps 1000

Every setting of `RewardConfig` is an option here. Each process computes `per_device_train_batch_size` pairs per
step; losses and metrics are over all processes, and no pair counts twice. Only the first process prints:

    2 processes, 8 pairs per step
    held-out accuracy: 0.48
"""

from dataclasses import dataclass, field

from transformers import HfArgumentParser

from plaudit import RewardConfig, RewardTrainer
from plaudit.data.load import load_preference_dataset, split_by_prompt
from plaudit.demo import embedded_model_path, load_preferences


@dataclass
class ScriptArguments:
    """Options of this script beside the settings of the training."""

    model: str | None = field(default=None, metadata={"help": "Folder or model id; by default the embedded model."})
    dataset: str | None = field(default=None, metadata={"help": "File, folder or name; by default the bundled pairs."})


def main(arguments: list[str] | None = None) -> None:
    parser = HfArgumentParser((ScriptArguments, RewardConfig))
    parser.set_defaults(
        output_dir="runs/multi_process",
        max_steps=10,
        per_device_train_batch_size=4,
        save_strategy="no",
    )
    script, config = parser.parse_args_into_dataclasses(arguments)

    dataset = load_preference_dataset(script.dataset) if script.dataset else load_preferences()
    train, held_out = split_by_prompt(dataset, 0.1)
    model = script.model or str(embedded_model_path())
    trainer = RewardTrainer(model, config, train_dataset=train, eval_dataset=held_out)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        pairs = config.train_batch_size * config.gradient_accumulation_steps * config.world_size
        print(f"{config.world_size} processes, {pairs} pairs per step")
        print(f"held-out accuracy: {metrics['eval_accuracy']:.2f}")


if __name__ == "__main__":
    main()
