"""Train a LoRA adapter instead of the whole model, and merge it into a model that any server loads.

    python examples/train_adapter.py
    python examples/train_adapter.py --model Qwen/Qwen3-4B --dataset trl-lib/ultrafeedback_binarized --max_steps 1000

The reward head is always trained and saved with the adapter: without it, the adapter would feed a head of random
numbers. `continue_adapter.py` continues from the adapter saved here. Prints:

    trained: 4.9 of 139.4 million parameters
    held-out accuracy: 0.66 (38 pairs)
    adapter in runs/adapter, merged model in runs/adapter/merged
"""

import argparse

from peft import LoraConfig

from plaudit import RewardConfig, RewardTrainer
from plaudit.data.load import load_preference_dataset, split_by_prompt
from plaudit.demo import embedded_model_path, load_preferences


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or model id (default: the embedded chat model)")
    parser.add_argument("--dataset", help="file, folder or name on the Hub (default: the bundled preferences)")
    parser.add_argument("--output_dir", default="runs/adapter")
    parser.add_argument("--max_steps", type=int, default=20)
    args = parser.parse_args(arguments)

    adapter = LoraConfig(task_type="SEQ_CLS", r=16, lora_alpha=32, lora_dropout=0.05, target_modules="all-linear")
    config = RewardConfig(
        args.output_dir,
        max_steps=args.max_steps,
        learning_rate=1e-3,  # an adapter starts from zero, and wants some ten times what a whole model wants
        gradient_checkpointing="auto",
        save_strategy="no",
    )
    dataset = load_preference_dataset(args.dataset) if args.dataset else load_preferences("train")
    train, held_out = split_by_prompt(dataset, 0.1)
    model = args.model or str(embedded_model_path())
    trainer = RewardTrainer(model, config, train_dataset=train, eval_dataset=held_out, peft_config=adapter)
    trained, total = trainer.model.get_nb_trainable_parameters()
    print(f"trained: {trained / 1e6:.1f} of {total / 1e6:.1f} million parameters")
    trainer.train()
    print(f"held-out accuracy: {trainer.evaluate()['eval_accuracy']:.2f} ({len(held_out)} pairs)")
    trainer.save_model()

    merged_dir = f"{args.output_dir}/merged"
    trainer.model.merge_and_unload().save_pretrained(merged_dir)
    trainer.processing_class.save_pretrained(merged_dir)
    print(f"adapter in {args.output_dir}, merged model in {merged_dir}")


if __name__ == "__main__":
    main()
