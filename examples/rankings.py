"""Train on rankings of several responses, and pick the best of N.

    python examples/rankings.py
    python examples/rankings.py --objective plackett_luce
    python examples/rankings.py --dataset rankings.jsonl --max_steps 1000

A row has a `prompt`, its `responses` and their `ranks`: 1 is best, equal ranks are ties. (Or `scores`, higher is
better.) The model learns all comparisons of a row together and computes the prompt once. Without `--dataset` the rows
are made of the bundled preferences: the chosen response, the rejected one, and two responses to other prompts, which
share the last rank.

Prints the objective that `auto` chooses for such rows. On held-out prompts it prints the share of comparisons ordered
correctly, the agreement of the orders (Kendall's tau, 1 is perfect) and how often a best response has the highest
reward. Then it prints the responses to one of these prompts, the best of N first:

    objective: bradley_terry, 468 rows of up to 4 responses
    held out, 52 rows: accuracy 0.850, Kendall's tau 0.639, best of N 0.500
    Why do tomatoes split after heavy rain?
      reward  1.21, rank 1: The roots take up water so fast that the fruit swells quicker than its skin can s...
      reward -2.23, rank 2: Yellow lower leaves often mean the plant lacks nitrogen, so feed it with a balanc...
      reward -4.64, rank 3: Two people, though it's snug with bags.
      reward -4.99, rank 3: Dominoes is quick to learn and good for a pair.
"""

import argparse

from datasets import Dataset

from plaudit import RewardConfig, RewardTrainer
from plaudit.data.load import load_preference_dataset, split_by_prompt
from plaudit.demo import embedded_model_path, load_preferences


def make_rankings() -> Dataset:
    """Returns four responses per bundled prompt; the last two, to prompts on other topics, are equally bad."""
    rows = [row for row in load_preferences() if row["tools"] is None]
    rankings = []
    for index, row in enumerate(rows):
        strangers = [rows[(index + step) % len(rows)]["chosen"] for step in (100, 200)]
        responses = [row["chosen"], row["rejected"], *strangers]
        rankings.append({"prompt": row["prompt"], "responses": responses, "ranks": [1, 2, 3, 3]})
    return Dataset.from_list(rankings)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or model id (default: the embedded chat model)")
    parser.add_argument("--dataset", help="file, folder or name on the Hub (default: made of the bundled rows)")
    parser.add_argument("--objective", default="auto", help="auto, plackett_luce, rao_kupper, davidson or hinge")
    parser.add_argument("--output_dir", default="runs/rankings")
    parser.add_argument("--max_steps", type=int, default=20)
    args = parser.parse_args(arguments)

    dataset = load_preference_dataset(args.dataset) if args.dataset else make_rankings()
    train, held_out = split_by_prompt(dataset, 0.1)
    config = RewardConfig(
        args.output_dir,
        objective=args.objective,
        max_steps=args.max_steps,
        per_device_train_batch_size=4,  # rows of several responses each
        learning_rate=5e-5,
        gradient_checkpointing="auto",
        save_strategy="no",
    )
    model = args.model or str(embedded_model_path())
    trainer = RewardTrainer(model, config, train_dataset=train, eval_dataset=held_out)
    most = max(len(responses) for responses in train["responses"])
    print(f"objective: {trainer.training_objective.name}, {len(train)} rows of up to {most} responses")
    trainer.train()
    metrics = trainer.evaluate()
    print(
        f"held out, {len(held_out)} rows: accuracy {metrics['eval_accuracy']:.3f}, "
        f"Kendall's tau {metrics['eval_kendall_tau']:.3f}, best of N {metrics['eval_best_of_n_accuracy']:.3f}"
    )
    trainer.save_model()

    row = held_out[0]
    # One row of rewards for each row of the data, in its order; NaN where other rows have more responses.
    (rewards,) = trainer.predict(held_out.select([0])).predictions
    column = "ranks" if "ranks" in row else "scores"
    best_first = sorted(zip(rewards, row[column], row["responses"], strict=False), key=lambda scored: -scored[0])
    print(text_of(row["prompt"]))
    for reward, label, response in best_first:
        print(f"  reward {reward:5.2f}, {column.removesuffix('s')} {label:g}: {text_of(response)}")


def text_of(value: str | list[dict[str, str]]) -> str:
    """Plain text, or the last message of a conversation, on one line."""
    return " ".join((value if isinstance(value, str) else value[-1]["content"]).split())


if __name__ == "__main__":
    main()
