"""Makes what both sides start from: one model folder, its reward head drawn once, and one file of rows.

Runs as a process of its own, so that the driver stays small: ``python inputs.py <folder> <JSON>``.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = (
    "prompt",
    "chosen",
    "rejected",
    "tools",
    "chat_template_kwargs",
    "margin",
    "chosen_ids",
    "rejected_ids",
)


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


def write_rows(data: str | None, wanted: int, seed: int, path: Path) -> None:
    """Draw rows at random, and some more than wanted: rows may still turn out too long.

    Args:
        data: The file to read, or None for the bundled preferences.
        wanted: Rows to train on.
        seed: Seed of the draw.
        path: Where to write them.
    """
    # The reference keeps pairs of equal responses and Plaudit drops them, so neither is given any.
    rows = [row for row in read_rows(data) if "chosen" not in row or row["chosen"] != row["rejected"]]
    if len(rows) < wanted:
        raise SystemExit(f"the data has {len(rows)} usable rows, and {wanted} are needed: use fewer batches")
    random.Random(seed).shuffle(rows)
    taken = [
        {name: row[name] for name in COLUMNS if row.get(name) is not None} for row in rows[: wanted + wanted // 4 + 16]
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in taken), encoding="utf-8")


def write_model(model: str | None, seed: int, folder: Path) -> None:
    """Save a reward model with a fresh head, and its tokenizer, in float32."""
    from plaudit.demo import embedded_model_path
    from plaudit.model.loading import load_model, load_tokenizer

    name = model if model is not None else str(embedded_model_path())
    load_model(name, seed=seed).save_pretrained(folder)
    load_tokenizer(name).save_pretrained(folder)


def main() -> None:
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    write_rows(settings["data"], settings["distinct_rows"], settings["seed"], folder / "rows.jsonl")
    write_model(settings["model"], settings["seed"], folder / "model")


if __name__ == "__main__":
    main()
