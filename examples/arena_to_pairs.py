"""Turn Chatbot Arena votes (lmarena-ai/arena-human-preference-55k) into pairs that a reward model can be trained on.

    python examples/arena_to_pairs.py --output arena.jsonl
    plaudit train --dataset_name arena.jsonl --eval_fraction 0.05 --output_dir runs/arena

A row of the source holds `prompt`, `response_a` and `response_b`, each a JSON list with one text per turn, and
`winner_model_a`, `winner_model_b` and `winner_tie`, one of which is 1. People voted on the whole conversation, so all
its turns are kept, not only the first. Ties and conversations with a missing turn are dropped. For a file of six votes
the script prints:

    6 votes; dropped: 1 without a winner, 1 with a missing turn; 4 pairs in arena.jsonl
"""

import argparse
import json
from typing import Any

from plaudit.data.load import load_preference_dataset


def read_turns(text: str) -> list[str | None]:
    """'["Hi", "Bye"]' -> ["Hi", "Bye"]; half emojis (lone surrogates), which no file can hold, become "?"."""
    return [None if turn is None else turn.encode("utf-8", "replace").decode() for turn in json.loads(text)]


def has_winner(row: dict[str, Any]) -> bool:
    return row["winner_tie"] == 0 and row["winner_model_a"] != row["winner_model_b"]


def is_complete(row: dict[str, Any]) -> bool:
    prompts, *responses = (read_turns(row[column]) for column in ("prompt", "response_a", "response_b"))
    return all(len(turns) == len(prompts) and None not in turns for turns in (prompts, *responses))


def to_pair(row: dict[str, Any]) -> dict[str, list[dict[str, str]]]:
    """The two conversations, the winner's as `chosen`; Plaudit finds the part that they share by itself."""
    winner, loser = ("response_a", "response_b") if row["winner_model_a"] else ("response_b", "response_a")
    return {"chosen": to_messages(row["prompt"], row[winner]), "rejected": to_messages(row["prompt"], row[loser])}


def to_messages(prompts: str, responses: str) -> list[dict[str, str]]:
    turns = zip(read_turns(prompts), read_turns(responses), strict=True)
    return [
        {"role": role, "content": content}
        for turn in turns
        for role, content in zip(("user", "assistant"), turn, strict=True)
    ]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="lmarena-ai/arena-human-preference-55k", help="name on the Hub, or a file")
    parser.add_argument("--output", default="arena.jsonl", help="JSON lines file to write")
    args = parser.parse_args(arguments)

    votes = load_preference_dataset(args.dataset)
    decided = votes.filter(has_winner)
    complete = decided.filter(is_complete)
    pairs = complete.map(to_pair, remove_columns=complete.column_names)
    pairs.to_json(args.output)
    print(
        f"{len(votes):,} votes; dropped: {len(votes) - len(decided):,} without a winner, "
        f"{len(decided) - len(complete):,} with a missing turn; {len(pairs):,} pairs in {args.output}"
    )


if __name__ == "__main__":
    main()
