"""Makes what all variants start from: one model folder, its reward head drawn once, and files of rows.

Runs as a process of its own, so that the driver stays small: ``python inputs.py <folder> <JSON>``.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from drawing import Row, draw_rows, pairs_of

COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "responses",
    "scores",
    "ranks",
    "tools",
    "chat_template_kwargs",
    "margin",
    "chosen_ids",
    "rejected_ids",
)
# Of a larger data set so many rows, drawn at random, stand for it.
MOST_ROWS = 4000


def read_rows(data: str | None) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL(.gz) file in its order, or of the bundled preferences."""
    if data is None:
        from plaudit.demo import load_preferences

        yield from load_preferences("train")
        return
    with gzip.open(data, "rt", encoding="utf-8") if data.endswith(".gz") else open(data, encoding="utf-8") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def common_columns(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the columns that training reads and all of them fill in: the reference takes no empty margin."""
    names = [name for name in COLUMNS if all(row.get(name) is not None for row in rows)]
    return [{name: row[name] for name in names} for row in rows]


def usable_rows(rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int, pairs_per_row: int) -> list[Row]:
    """The rows that both libraries train on, with their lengths.

    Pairs of equal responses are left out, because Plaudit drops them and the reference does not, and so are rows that
    are too long, and rows of many responses that have fewer comparisons than the reference is to get of each.
    """
    from datasets import Dataset
    from trainers import responses_of

    from plaudit.data.prepare import prepare_dataset

    rows = common_columns([row for row in rows if "chosen" not in row or row["chosen"] != row["rejected"]])
    if rows and "responses" in rows[0]:
        rows = [row for row in rows if len(pairs_of(row, pairs_per_row, "")) == pairs_per_row]
    if not rows:
        return []
    prepared, _ = prepare_dataset(Dataset.from_list(rows), tokenizer, max_length=max_length, purpose="predict")
    return [
        Row(rows[found["row"]], max(map(len, responses_of(found))), json.dumps(rows[found["row"]].get("prompt")))
        for found in prepared
    ]


def tokenized_pairs(rows: Sequence[dict[str, Any]], tokenizer: Any) -> list[dict[str, Any]]:
    """Pairs as token ids, for a library whose tokenizers are too old to read a chat template of today."""
    from datasets import Dataset

    from plaudit.data.prepare import prepare_dataset

    prepared, _ = prepare_dataset(Dataset.from_list(list(rows)), tokenizer, max_length=None)
    return [{name: row[name] for name in ("chosen_ids", "rejected_ids")} for row in prepared]


def write_inputs(folder: Path, settings: dict[str, Any]) -> None:
    """Write the model and the rows that all variants start from.

    Args:
        folder: Where to: ``model/``, ``rows.jsonl``, and for rows of many responses ``pairs.jsonl``.
        settings: ``data``, ``model``, ``seed``, ``draw``, ``distinct_batches``, ``batch_size``, ``max_length`` and
            ``pairs_per_row``.
    """
    tokenizer = write_model(settings["model"], settings["seed"], folder / "model")
    everything = list(read_rows(settings["data"]))
    random.Random(settings["seed"]).shuffle(everything)
    rows = usable_rows(everything[:MOST_ROWS], tokenizer, settings["max_length"], settings["pairs_per_row"])
    drawn = draw_rows(rows, settings["draw"], settings["distinct_batches"], settings["batch_size"], settings["seed"])
    pairs = [dict(row.fields) for row in drawn]
    write_rows(pairs, folder / "rows.jsonl")
    if "responses" in pairs[0]:
        rows_and_seeds = [(row, f"{settings['seed']} {place}") for place, row in enumerate(pairs)]
        pairs = [pair for row, seed in rows_and_seeds for pair in pairs_of(row, settings["pairs_per_row"], seed)]
        write_rows(pairs, folder / "pairs.jsonl")
    write_rows(tokenized_pairs(pairs, tokenizer), folder / "tokenized.jsonl")


def write_rows(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One row a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_model(model: str | None, seed: int, folder: Path) -> Any:
    """Save a reward model with a fresh head, and its tokenizer, in float32; return the tokenizer."""
    from plaudit.demo import embedded_model_path
    from plaudit.model.load import load_model, load_tokenizer

    name = model if model is not None else str(embedded_model_path())
    load_model(name, seed=seed).save_pretrained(folder)
    tokenizer = load_tokenizer(name)
    tokenizer.save_pretrained(folder)
    return tokenizer


def main() -> None:
    write_inputs(Path(sys.argv[1]), json.loads(sys.argv[2]))


if __name__ == "__main__":
    main()
