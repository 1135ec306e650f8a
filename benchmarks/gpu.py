"""Training on a GPU: tokens a second and model FLOP utilisation of both layouts and of each attention backend.

    python benchmarks/gpu.py --data preferences.jsonl.gz

A Qwen3 of 0.6B parameters with random weights, in bfloat16; token ids are random, their lengths and shared prompts
those of the real rows (tokenised with the embedded model's tokenizer). Every run takes a few steps of Plaudit's own
trainer, the first ones not counted, the device synchronised after each; runs take turns. Model FLOPs count what a
layout computes without padding. --smoke runs a tiny model on the CPU, to test the arithmetic.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from drawing import draw_rows
from inputs import read_rows, usable_rows
from machine import describe_commit, describe_machine
from model_flops import peak_of, row_work, training_flops
from summary import spread
from trainers import responses_of, shared_prefix_length
from transformers import AutoModelForSequenceClassification, Qwen3Config, TrainerCallback

FOLDER = Path(__file__).resolve().parent
QWEN3_06B = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
VOCABULARY = 151_936
RUNS = {
    "padded": {"batch_layout": "padded"},
    "shared_prefix": {"batch_layout": "shared_prefix"},
    "shared_prefix-varlen": {"batch_layout": "shared_prefix", "attention_backend": "varlen"},
    "shared_prefix-flash_attn": {"batch_layout": "shared_prefix", "attention_backend": "flash_attn"},
    "shared_prefix-sdpa": {"batch_layout": "shared_prefix", "attention_backend": "sdpa"},
}


class StepClock(TrainerCallback):
    """Seconds from the end of one step to the end of the next, collating included, the device having caught up."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._mark = _now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = _now()
        self.seconds.append(now - self._mark)
        self._mark = now


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def random_ids(responses: list[list[int]], vocabulary: int, generator: random.Random) -> list[list[int]]:
    """Responses of the same lengths and the same shared prefix, of random ids.

    >>> a, b = random_ids([[5, 6, 7], [5, 6, 8, 9]], 1000, random.Random(0))
    >>> len(a), len(b), a[:2] == b[:2], a[2] == b[2]
    (3, 4, True, False)
    """
    prefix = shared_prefix_length(responses)
    prompt = [generator.randrange(vocabulary) for _ in range(prefix)]
    firsts = generator.sample(range(vocabulary), len(responses))
    tails = [[generator.randrange(vocabulary) for _ in range(len(ids) - prefix - 1)] for ids in responses]
    return [[*prompt, first, *tail] for first, tail in zip(firsts, tails, strict=True)]


def make_rows(settings: argparse.Namespace, tokenizer: Any, vocabulary: int) -> list[list[list[int]]]:
    """Random token ids in the shape of real rows, in the order in which they are trained on."""
    from datasets import Dataset

    from plaudit.data.prepare import prepare_dataset

    everything = list(read_rows(settings.data))
    random.Random(settings.seed).shuffle(everything)
    usable = usable_rows(everything[:4000], tokenizer, settings.max_length, 1)
    drawn = draw_rows(usable, "rows", settings.steps, settings.batch_size, settings.seed)
    fields = [dict(row.fields) for row in drawn]
    prepared, _ = prepare_dataset(Dataset.from_list(fields), tokenizer, max_length=None)
    generator = random.Random(settings.seed)
    return [random_ids(responses_of(row), vocabulary, generator) for row in prepared]


def measure(name: str, rows: list[list[list[int]]], tokenizer: Any, settings: argparse.Namespace) -> dict[str, Any]:
    """Train one run and return its times, memory and what they come to."""
    from datasets import Dataset

    from plaudit import RewardConfig, RewardTrainer

    torch.manual_seed(settings.seed)
    size, cpu = (TINY if settings.smoke else QWEN3_06B), settings.smoke
    vocabulary = len(tokenizer) if settings.smoke else VOCABULARY
    config = Qwen3Config(vocab_size=vocabulary, num_labels=1, pad_token_id=0, tie_word_embeddings=True, **size)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32 if cpu else torch.bfloat16)
    clock = StepClock()
    with tempfile.TemporaryDirectory(prefix="plaudit-bench-") as folder:
        args = RewardConfig(
            folder,
            per_device_train_batch_size=settings.batch_size,
            max_steps=settings.warm_up + settings.steps,
            train_sampling_strategy="sequential",
            gradient_checkpointing=False,
            logging_nan_inf_filter=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=cpu,
            bf16=not cpu,
            **RUNS[name],
        )
        data = Dataset.from_list([{"chosen_ids": row[0], "rejected_ids": row[1]} for row in rows])
        trainer = RewardTrainer(
            model=model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[clock]
        )
        if not cpu:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    memory = None if cpu else torch.cuda.max_memory_allocated()
    return describe(clock.seconds[settings.warm_up :], rows, config, trainer.batch_layout, settings) | {
        "peak_memory_bytes": memory
    }


def describe(
    seconds: list[float], rows: list[list[list[int]]], config: Any, layout: str, settings: argparse.Namespace
) -> dict[str, Any]:
    """From seconds to rates; the counted steps are one pass over the rows, from wherever the warm-up ended."""
    work = [row_work(responses, shared_prefix_length(responses)) for responses in rows]
    flops = sum(training_flops(config, *one[layout]) for one in work)
    real = sum(one["padded"][0] for one in work)
    total = sum(seconds)
    return {
        "layout": layout,
        "step_seconds": spread(seconds),
        "rows_per_second": len(rows) / total,
        "tokens_per_second": real / total,
        "computed_tokens_per_second": sum(one[layout][0] for one in work) / total,
        "model_flops_per_second": flops / total,
        "model_flop_utilisation": flops / total / settings.peak if settings.peak else None,
    }


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", metavar="PATH", help="pairs whose lengths are taken (default: the bundled ones)")
    add("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help=f"of {', '.join(RUNS)}")
    add("--batch-size", type=int, default=32, metavar="N", help="rows of a step (default: %(default)s)")
    add("--steps", type=int, default=20, metavar="N", help="counted steps, one pass (default: %(default)s)")
    add("--warm-up", type=int, default=5, metavar="N", help="steps before (default: %(default)s)")
    add("--rounds", type=int, default=2, metavar="N", help="turns of each run (default: %(default)s)")
    add("--max-length", type=int, default=1024, metavar="N", help="longer rows are left out (default: %(default)s)")
    add("--peak", type=float, metavar="X", help="peak FLOP/s of the device (default: by its name)")
    add("--seed", type=int, default=0, metavar="N", help="(default: %(default)s)")
    add("--smoke", action="store_true", help="a tiny model on the CPU; its figures say nothing")
    add("--results", type=Path, default=FOLDER / "results", metavar="FOLDER", help="(default: benchmarks/results)")
    settings = parser.parse_args(arguments)
    if not settings.smoke and not torch.cuda.is_available():
        parser.error("this benchmark needs a CUDA GPU, and torch sees none; --smoke tests its arithmetic on the CPU")
    return settings


def main() -> None:
    from plaudit.demo import embedded_model_path
    from plaudit.errors import ConfigError
    from plaudit.model.load import load_tokenizer

    settings = parse_arguments()
    device = "cpu" if settings.smoke else torch.cuda.get_device_name()
    settings.peak = settings.peak or peak_of(device)
    tokenizer = load_tokenizer(str(embedded_model_path()))
    rows = make_rows(settings, tokenizer, len(tokenizer) if settings.smoke else VOCABULARY)
    found: dict[str, Any] = {name: [] for name in settings.runs}
    for _ in range(settings.rounds):
        for name in list(found):
            try:
                found[name].append(measure(name, rows, tokenizer, settings))
            except ConfigError as error:
                print(f"{name}: left out, {error}")
                del found[name]
    for name, rounds in found.items():
        for one in rounds:
            used = one["model_flop_utilisation"]
            share = "" if used is None else f"  utilisation {used:.1%}"
            print(f"{name:<26} {one['tokens_per_second']:12,.0f} tokens/s  {one['rows_per_second']:8.2f} rows/s{share}")
    data = Path(settings.data).name.split(".")[0] if settings.data else "bundled"
    result = {
        "machine": {**describe_machine(), "device": device, "peak_flops_per_second": settings.peak},
        "commit": describe_commit(),
        "torch": torch.__version__,
        "settings": {**vars(settings), "data": data, "results": None},
        "runs": found,
    }
    settings.results.mkdir(parents=True, exist_ok=True)
    path = settings.results / f"gpu-{data}{'-smoke' if settings.smoke else ''}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
