"""Time and memory of Plaudit's two layouts as batch, prompt and number of responses grow, beside what theory says.

    python benchmarks/scaling.py

Random token ids, a small Llama with random weights, forward and backward on the CPU in float32. All K responses of a
row have R tokens of their own after a prompt of P. The padded layout computes K(P+R) tokens a row, the shared one
P+KR, so that K(P+R)/(P+KR) is what sharing would gain if a step were nothing but work on tokens. Equal lengths leave
no padding: what raggedness adds for real rows is not in these figures. A few minutes; writes a result and the picture.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from machine import describe_commit, describe_machine, load_average
from memory import forget_peak, peak_memory, resting_memory, return_free_memory
from scaling_picture import draw_picture

FOLDER = Path(__file__).resolve().parent
PICTURE = FOLDER.parent / "docs" / "images" / "scaling.svg"
LAYOUTS = ("shared_prefix", "padded")


@dataclass(frozen=True)
class Point:
    """One shape of batch.

    Attributes:
        rows: Rows of the batch.
        prompt: Tokens of each prompt, P.
        response: Tokens of each response after it, R.
        responses: Responses of each row, K.
    """

    rows: int = 4
    prompt: int = 256
    response: int = 64
    responses: int = 2

    @property
    def theory(self) -> float:
        """Tokens of the padded layout over those of the shared one: K(P+R)/(P+KR).

        >>> Point(prompt=300, response=100, responses=2).theory
        1.6
        """
        together = self.prompt + self.response
        return self.responses * together / (self.prompt + self.responses * self.response)


SWEEPS: dict[str, tuple[str, Sequence[Point]]] = {
    "batch": ("rows", [Point(rows=rows) for rows in (1, 2, 4, 8, 16)]),
    "prompt": ("prompt", [Point(prompt=prompt) for prompt in (32, 64, 128, 256, 512, 960)]),
    "K": ("responses", [Point(rows=2, responses=responses) for responses in (2, 4, 8, 16, 32)]),
}


def make_rows(point: Point, vocabulary: int, seed: int) -> list[dict[str, Any]]:
    """Rows of random token ids, prepared for the collators; the first token after the prompt differs."""
    generator = random.Random(seed)
    rows = []
    for _ in range(point.rows):
        prompt = [generator.randrange(vocabulary) for _ in range(point.prompt)]
        firsts = generator.sample(range(vocabulary), point.responses)
        tails = [[generator.randrange(vocabulary) for _ in range(point.response - 1)] for _ in firsts]
        responses = [[*prompt, first, *tail] for first, tail in zip(firsts, tails, strict=True)]
        scores = [float(point.responses - place) for place in range(point.responses)]
        rows.append({"response_ids": responses, "scores": scores, "example_weight": 1.0})
    return rows


def make_trainer(layout: str, tokenizer: Any, size: dict[str, int], folder: str) -> Any:
    """A trainer around a small model with random weights; its embeddings are frozen, being out of proportion."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    from plaudit import RewardConfig, RewardTrainer

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), num_labels=1, pad_token_id=tokenizer.pad_token_id, **size)
    model = AutoModelForSequenceClassification.from_config(config)
    model.get_input_embeddings().requires_grad_(False)
    rows = make_rows(Point(rows=1, prompt=4, response=4), 100, seed=0)
    data = Dataset.from_list([{name: row[name] for name in ("response_ids", "scores")} for row in rows])
    args = RewardConfig(folder, batch_layout=layout, gradient_checkpointing=False, report_to=[], use_cpu=True)
    return RewardTrainer(model=model, args=args, train_dataset=data, processing_class=tokenizer)


def measure(trainer: Any, rows: list[dict[str, Any]], repeats: int) -> dict[str, Any]:
    """Seconds and memory of forward and backward; a first time, which is not counted, makes room."""
    batch = trainer.data_collator(rows)
    seconds, peaks = [], []
    trainer.model.train()
    for _ in range(repeats + 1):
        return_free_memory()
        can_forget, before = forget_peak(), resting_memory()
        start = time.perf_counter()
        trainer.compute_loss(trainer.model, batch).backward()
        seconds.append(time.perf_counter() - start)
        peaks.append(peak_memory() - before if can_forget and before is not None else None)
        trainer.model.zero_grad(set_to_none=False)
    memory = [peak for peak in peaks[1:] if peak is not None]
    return {
        "seconds": seconds[1:],
        "median_seconds": statistics.median(seconds[1:]),
        "memory_bytes": statistics.median(memory) if memory else None,
        "tokens_computed": batch["input_ids"].numel(),
    }


def measure_sweeps(settings: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Every point of every sweep, both layouts in turn."""
    from plaudit.demo import embedded_model_path
    from plaudit.model.load import load_tokenizer

    tokenizer = load_tokenizer(str(embedded_model_path()))
    tokenizer.pad_token_id = tokenizer.pad_token_id or 0
    size = {
        "hidden_size": settings.hidden_size,
        "intermediate_size": 8 * settings.hidden_size // 3,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.hidden_size // 64,
        "num_key_value_heads": settings.hidden_size // 64,
    }
    trainers = {layout: make_trainer(layout, tokenizer, size, folder) for layout in LAYOUTS}
    sweeps: dict[str, Any] = {}
    for name, (varied, points) in SWEEPS.items():
        measured = []
        for point in points[: settings.points]:
            rows = make_rows(point, vocabulary=1000, seed=1)
            layouts = {layout: measure(trainers[layout], rows, settings.repeats) for layout in LAYOUTS}
            measured.append({**asdict(point), "theory": point.theory, "layouts": layouts})
            ratio = layouts["padded"]["median_seconds"] / layouts["shared_prefix"]["median_seconds"]
            print(f"{name:<8} {asdict(point)}: {ratio:.2f} times as fast, in theory {point.theory:.2f}", flush=True)
        sweeps[name] = {"varied": varied, "points": measured}
    return {"model": size, "sweeps": sweeps}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--repeats", type=int, default=3, metavar="N", help="counted repeats of a point (default: %(default)s)")
    add("--points", type=int, metavar="N", help="the first so many points of each sweep (default: all)")
    add("--hidden-size", type=int, default=384, metavar="N", help="a multiple of 64 (default: %(default)s)")
    add("--layers", type=int, default=6, metavar="N", help="(default: %(default)s)")
    add("--results", type=Path, default=FOLDER / "results", metavar="FOLDER", help="(default: benchmarks/results)")
    add("--picture", type=Path, default=PICTURE, metavar="PATH", help="(default: docs/images/scaling.svg)")
    settings = parser.parse_args(arguments)
    if settings.hidden_size % 64 or settings.repeats < 1:
        parser.error("--hidden-size must be a multiple of 64, --repeats at least 1")
    return settings


def main() -> None:
    settings = parse_arguments()
    result: dict[str, Any] = {
        "machine": describe_machine(),
        "commit": describe_commit(),
        "load_average_before": load_average(),
        "threads": torch.get_num_threads(),
        "repeats": settings.repeats,
    }
    with tempfile.TemporaryDirectory(prefix="plaudit-bench-") as folder:
        result |= measure_sweeps(settings, folder)
    settings.results.mkdir(parents=True, exist_ok=True)
    path = settings.results / "scaling.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    draw_picture(result, settings.picture)
    print(f"{path}\n{settings.picture}")


if __name__ == "__main__":
    main()
