"""Choose the precision of weights and arithmetic; rewards stay exact in each.

    python examples/precision.py --precision float32
    python examples/precision.py --precision mixed
    python examples/precision.py --precision bfloat16

    float32   weights and arithmetic in float32: the most exact, and the only precision that is fast on most CPUs
    mixed     weights in float32, arithmetic in bfloat16: the default on GPUs that support it; much faster
    bfloat16  weights too: half the memory, but updates below 1/256 of a weight are rounded away. For models that do not
              fit otherwise, with a learning rate that is not too small

The reward head computes in float32 in all three: in bfloat16 close rewards become equal, and ties count as errors.
Prints:

    weights: bfloat16, 269 MB
    rewards: float32, 54 different ones of 54 (rounded to bfloat16 it would be 52)
"""

import argparse
from typing import Any

import torch

from plaudit import RewardConfig, RewardTrainer
from plaudit.data.load import load_preference_dataset, split_by_prompt
from plaudit.demo import embedded_model_path, load_preferences

SETTINGS: dict[str, dict[str, Any]] = {
    "float32": {"bf16": False},
    "mixed": {"bf16": True},
    "bfloat16": {"bf16": False, "model_init_kwargs": {"dtype": "bfloat16"}},
}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=SETTINGS, default="bfloat16")
    parser.add_argument("--model", help="folder or model id (default: the embedded chat model)")
    parser.add_argument("--dataset", help="file, folder or name on the Hub (default: the bundled preferences)")
    parser.add_argument("--output_dir", default="runs/precision")
    parser.add_argument("--max_steps", type=int, default=5)
    args = parser.parse_args(arguments)

    dataset = load_preference_dataset(args.dataset) if args.dataset else load_preferences()
    train, held_out = split_by_prompt(dataset, 0.05)
    config = RewardConfig(
        args.output_dir,
        max_steps=args.max_steps,
        gradient_checkpointing="auto",
        save_strategy="no",
        **SETTINGS[args.precision],
    )
    trainer = RewardTrainer(args.model or str(embedded_model_path()), config, train_dataset=train)
    trainer.train()
    rewards = torch.from_numpy(trainer.predict(held_out).predictions).flatten()
    trainer.save_model()

    weights = next(trainer.model.parameters())
    print(f"weights: {name_of(weights)}, {trainer.model.get_memory_footprint() / 1e6:.0f} MB")
    different, rounded = len(rewards.unique()), len(rewards.bfloat16().unique())
    print(
        f"rewards: {name_of(rewards)}, {different} different ones of {len(rewards)} "
        f"(rounded to bfloat16 it would be {rounded})"
    )


def name_of(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
