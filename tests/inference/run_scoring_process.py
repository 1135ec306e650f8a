"""One of two processes that score one file; started by test_files_processes.py. Writes what it saw as JSON."""

import json
import sys
from pathlib import Path

from plaudit import PlauditError, RewardModel
from plaudit.inference import files


def told(call):
    """The error of a call, or its result."""
    try:
        return repr(call())
    except PlauditError as error:
        return f"{type(error).__name__}: {error}"


def main(folder, rank):
    """Score a file together; then with a row that rank 1 cannot score; then without rank 1."""
    model = RewardModel.from_pretrained(folder / "model", device="cpu")
    said = {}
    rows, settings = folder / "rows.jsonl", {"chunk_size": 4}
    said["scored"] = told(lambda: files.score_file(model, rows, folder / "scored.jsonl", **settings))
    said["differing"] = told(
        lambda: files.score_file(model, folder / f"rows{rank or ''}.jsonl", folder / "differing.jsonl", **settings)
    )
    said["exists"] = told(lambda: files.score_file(model, rows, folder / "scored.jsonl", **settings))
    said["broken"] = told(lambda: files.score_file(model, folder / "broken.jsonl", folder / "b.jsonl", **settings))
    if rank:
        files._score_chunks = lambda *args, **settings: None  # gone, as if killed
    said["alone"] = told(lambda: files.score_file(model, rows, folder / "alone.jsonl", patience=2.0, **settings))
    (folder / f"{rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
