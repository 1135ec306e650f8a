"""One side of the benchmark: a process that trains a block of steps whenever it is told to.

It runs under either side's Python and imports only that side's library. Each line on its standard input
starts a block; it answers with one JSON line on its standard output. Whatever the libraries print goes to the
standard error stream. It ends when its input does.

The library's own ``train()`` runs, once and unchanged; the process only waits between two of its steps.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import os
import platform
import resource
import sys
import time
from pathlib import Path
from typing import IO, Any

import torch
from datasets import Dataset
from transformers import TrainerCallback

PACKAGES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "tokenizers",
    "numpy",
    "trl",
    "plaudit",
)


class BlockCallback(TrainerCallback):
    """Times the steps, reports a block when it is complete, and waits for the next command."""

    def __init__(self, spec: dict[str, Any], commands: IO[str], answers: IO[str]) -> None:
        self.steps_per_block, self.commands, self.answers = spec["steps_per_block"], commands, answers
        self.release_memory = spec["release_memory"]
        self.losses: list[torch.Tensor] = []
        self._seconds: list[float] = []
        self._blocks = 0

    def wait_for_command(self) -> None:
        if not self.commands.readline():
            sys.exit(0)
        self._usage = resource.getrusage(resource.RUSAGE_SELF)
        self._mark = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self._seconds.append(now - self._mark)
        self._mark = now
        if len(self._seconds) < self.steps_per_block:
            return
        usage = resource.getrusage(resource.RUSAGE_SELF)
        if self.release_memory:
            return_free_memory()
        answer(
            self.answers,
            event="block",
            step_seconds=self._seconds,
            losses=[float(loss) for loss in self.losses],
            user_seconds=usage.ru_utime - self._usage.ru_utime,
            system_seconds=usage.ru_stime - self._usage.ru_stime,
            peak_memory_bytes=peak_memory(),
            resting_memory_bytes=resting_memory(),
        )
        self._seconds, self._blocks = [], self._blocks + 1
        self.losses.clear()
        if state.global_step < state.max_steps:
            self.wait_for_command()


def answer(stream: IO[str], **fields: Any) -> None:
    stream.write(json.dumps(fields) + "\n")
    stream.flush()


def peak_memory() -> int:
    """Largest resident set of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def resting_memory() -> int | None:
    """Resident set of this process now, between two steps, in bytes; None where the system does not say."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else None


def return_free_memory() -> None:
    """Hand memory that nothing uses back to the kernel, where the C library knows how."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def volunteer_for_death() -> None:
    """Where memory runs out, let the kernel end this process rather than somebody else's."""
    score = Path("/proc/self/oom_score_adj")
    if score.exists():
        score.write_text("1000")


def installed_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def build_trainer(spec: dict[str, Any], callback: BlockCallback) -> Any:
    """The library's trainer on the given rows, with every setting that both sides share."""
    if spec["library"] == "reference":
        from trl import RewardConfig, RewardTrainer
    else:
        from plaudit import RewardConfig, RewardTrainer

    class RecordingTrainer(RewardTrainer):
        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            callback.losses.append(loss.detach())
            return loss

    config = RewardConfig(
        output_dir=spec["output_dir"],
        per_device_train_batch_size=spec["batch_size"],
        max_length=spec["max_length"],
        max_steps=spec["total_steps"],
        learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant",
        train_sampling_strategy="sequential",
        seed=spec["seed"],
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **spec["options"],
    )
    rows = [json.loads(line) for line in Path(spec["rows"]).read_text(encoding="utf-8").splitlines()]
    trainer = RecordingTrainer(
        model=spec["model"], args=config, train_dataset=Dataset.from_list(rows), callbacks=[callback]
    )
    wanted = spec["distinct_rows"]
    if len(trainer.train_dataset) < wanted:
        raise SystemExit(f"only {len(trainer.train_dataset)} of {len(rows)} rows are usable, {wanted} are needed")
    # Both libraries drop rows, over-long ones for instance, so more were handed over than are needed.
    trainer.train_dataset = trainer.train_dataset.select(range(wanted))
    return trainer


def describe_data(trainer: Any, batch_size: int) -> dict[str, Any]:
    """What is trained on, in the order of training: a digest of the token ids, and for each batch its tokens.

    ``tokens_per_batch`` counts both responses with their prompts, ``padded_tokens_per_batch`` the cells of the
    rectangle, ``shared_tokens_per_batch`` the tokens of a layout in which each prompt is there once.
    """
    pairs = [(list(row["chosen_ids"]), list(row["rejected_ids"])) for row in trainer.train_dataset]
    batches = [pairs[start : start + batch_size] for start in range(0, len(pairs), batch_size)]
    tokens = [[len(chosen) + len(rejected) for chosen, rejected in batch] for batch in batches]
    return {
        "token_ids_sha256": hashlib.sha256(json.dumps(pairs).encode()).hexdigest(),
        "tokens_per_batch": [sum(lengths) for lengths in tokens],
        "padded_tokens_per_batch": [
            2 * len(batch) * max(len(ids) for pair in batch for ids in pair) for batch in batches
        ],
        "shared_tokens_per_batch": [
            sum(lengths) - sum(shared_prefix_length(*pair) for pair in batch)
            for lengths, batch in zip(tokens, batches, strict=True)
        ],
    }


def shared_prefix_length(chosen: list[int], rejected: list[int]) -> int:
    """Tokens that both start with, leaving each at least one of its own."""
    limit = min(len(chosen), len(rejected)) - 1
    return next((t for t in range(limit) if chosen[t] != rejected[t]), limit)


def describe_weights(model: torch.nn.Module) -> str:
    """A digest of every weight that is trained, so that both sides are known to start from the same point."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(f"{name} {parameter.dtype}".encode())
        digest.update(parameter.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    spec = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    volunteer_for_death()
    callback = BlockCallback(spec, sys.stdin, answers)
    trainer = build_trainer(spec, callback)
    answer(
        answers,
        event="ready",
        versions=installed_versions(),
        threads=torch.get_num_threads(),
        attention=trainer.model.config._attn_implementation,
        layout=getattr(trainer, "batch_layout", "padded"),
        gradient_checkpointing=bool(trainer.args.gradient_checkpointing),
        optimizer=str(getattr(trainer.args.optim, "value", trainer.args.optim)),
        weights_sha256=describe_weights(trainer.model),
        peak_memory_bytes=peak_memory(),
        **describe_data(trainer, spec["batch_size"]),
    )
    callback.wait_for_command()
    trainer.train()


if __name__ == "__main__":
    main()
