"""Train a reward model, evaluate it on held-out prompts, and score two responses.

    python examples/quick_start.py
    python examples/quick_start.py --model Qwen/Qwen3-0.6B --dataset trl-lib/ultrafeedback_binarized --max_steps 1000

Prints the share of held-out pairs that the model orders correctly, and the reward of each response, computed with plain
transformers:

    held-out accuracy: 0.574 (54 pairs)
    reward -0.23: It is blue.
    reward -2.10: Fry the onions first.
"""

import argparse

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from plaudit import RewardConfig, RewardTrainer
from plaudit.data.load import load_preference_dataset, split_by_prompt
from plaudit.demo import embedded_model_path, load_preferences

PROMPT = "What color is the sky?"
RESPONSES = ("It is blue.", "Fry the onions first.")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or model id (default: the embedded chat model)")
    parser.add_argument("--dataset", help="file, folder or name on the Hub (default: the bundled preferences)")
    parser.add_argument("--output_dir", default="runs/quick_start")
    parser.add_argument("--max_steps", type=int, default=20)
    args = parser.parse_args(arguments)

    dataset = load_preference_dataset(args.dataset) if args.dataset else load_preferences()
    train, held_out = split_by_prompt(dataset, 0.1)
    config = RewardConfig(
        args.output_dir,
        max_steps=args.max_steps,
        learning_rate=5e-5,
        gradient_checkpointing="auto",  # only where memory is scarce
        save_strategy="no",
    )
    model = args.model or str(embedded_model_path())
    trainer = RewardTrainer(model, config, train_dataset=train, eval_dataset=held_out)
    trainer.train()
    print(f"held-out accuracy: {trainer.evaluate()['eval_accuracy']:.3f} ({len(held_out)} pairs)")
    trainer.save_model()

    tokenizer = AutoTokenizer.from_pretrained(args.output_dir)
    reward_model = AutoModelForSequenceClassification.from_pretrained(args.output_dir)
    for response in RESPONSES:
        conversation = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": response}]
        inputs = tokenizer.apply_chat_template(conversation, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            print(f"reward {reward_model(**inputs).logits.item():.2f}: {response}")


if __name__ == "__main__":
    main()
