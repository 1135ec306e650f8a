"""Load a saved adapter and continue its training, on other data if you like.

    python examples/train_adapter.py
    python examples/continue_adapter.py --adapter runs/adapter

The adapter's folder names its base model and holds its reward head, so nothing else is needed. Prints its accuracy on
held-out pairs before and after:

    held-out accuracy: 0.61 before, 0.61 after
    adapter in runs/adapter-continued
"""

import argparse

from peft import AutoPeftModelForSequenceClassification
from transformers import AutoTokenizer

from plaudit import RewardConfig, RewardTrainer
from plaudit.data.load import load_preference_dataset, split_by_prompt
from plaudit.demo import load_preferences


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", default="runs/adapter", help="folder or model id of a saved adapter")
    parser.add_argument("--dataset", help="file, folder or name on the Hub (default: bundled preferences)")
    parser.add_argument("--output_dir", default="runs/adapter-continued")
    parser.add_argument("--max_steps", type=int, default=10)
    args = parser.parse_args(arguments)

    # An adapter is loaded to be used unless `is_trainable` is set. One output, and float32 like the first training.
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        args.adapter, is_trainable=True, num_labels=1, dtype="float32"
    )
    # By default the bundled pairs that train_adapter.py does not see.
    dataset = load_preference_dataset(args.dataset) if args.dataset else load_preferences("test")
    train, held_out = split_by_prompt(dataset, 0.4)
    config = RewardConfig(
        args.output_dir,
        max_steps=args.max_steps,
        learning_rate=1e-4,  # lower than the first time
        gradient_checkpointing="auto",
        save_strategy="no",
    )
    trainer = RewardTrainer(
        model,
        config,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=AutoTokenizer.from_pretrained(args.adapter),
    )
    before = trainer.evaluate()["eval_accuracy"]
    trainer.train()
    after = trainer.evaluate()["eval_accuracy"]
    trainer.save_model()
    print(f"held-out accuracy: {before:.2f} before, {after:.2f} after")
    print(f"adapter in {args.output_dir}")


if __name__ == "__main__":
    main()
