"""Load on a server: requests by the thousand from many clients at a time, every answer checked.

    python benchmarks/serving_load.py --requests 10000 --output benchmarks/results/serving_load.json

The server is `plaudit serve` in a process of its own, with a tiny random model unless `--model` names another, so that
what is measured is the serving around it. Each request has a text that no other has, and its answer is compared with
what `RewardModel.score` gives in this process: an answer that went to the wrong client, or none, would be counted.
Loops are closed and bounded: each client sends its next request when it has its answer. One unmeasured stage goes
first. The memory of the server is read after each stage, and then after each of some rounds of as many requests again,
from 16 clients: what grows in the first rounds and not in the last ones is caches that fill, and no leak.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from machine import describe_commit, describe_machine, load_average
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from plaudit import RewardModel

TOLERANCE = 1e-4
WORDS = (
    "the",
    "sky",
    "is",
    "blue",
    "and",
    "grass",
    "grows",
    "green",
    "while",
    "rivers",
    "run",
    "down",
    "to",
    "a",
    "sea",
)


@dataclass(frozen=True)
class Settings:
    """What to send.

    Attributes:
        requests: Requests in all, over all stages.
        clients: Clients at a time, one number a stage.
        model: Folder of the model; None for a tiny one.
        threads: Threads of the server's computing.
        arguments: Further settings of the server.
        rounds: How often as many requests again are sent, to see whether its memory levels off.
    """

    requests: int = 10_000
    clients: tuple[int, ...] = (1, 4, 16, 64)
    model: str | None = None
    threads: int = 1
    arguments: tuple[str, ...] = ()
    rounds: int = 0


def save_tiny_model(folder: str) -> None:
    """Save a random reward model of two small layers, with a tokenizer that reads one token a byte."""
    names = ["<|pad|>", "<|eos|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<|pad|>", eos_token="<|eos|>")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"vocab_size": len(names), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", num_labels=1, num_key_value_heads=2, **sizes, **ids)
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)  # rewards must differ
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextlib.contextmanager
def running_server(folder: str, settings: Settings) -> Iterator[tuple[int, psutil.Process]]:
    """A server in a process of its own; gives its port and process, and ends it as an operator would."""
    command = [sys.executable, "-m", "plaudit", "serve"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(settings.threads)}
    process = subprocess.Popen(
        [*command, folder, "--port", "0", *settings.arguments], stderr=subprocess.PIPE, text=True, env=environment
    )
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in process.stderr or ()], daemon=True).start()
    try:
        yield _port(lines), psutil.Process(process.pid)
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            raise RuntimeError(f"the server ended with {process.returncode}")
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def _port(lines: queue.Queue[str]) -> int:
    deadline, said = time.monotonic() + 120, ""
    while time.monotonic() < deadline:
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=1)
            said += line
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                return int(found[1])
    raise RuntimeError(f"the server did not start: {said}")


def texts(count: int) -> list[str]:
    """Texts of 2 to 25 words, each with a number of its own."""
    drawn = random.Random(0)
    return [f"{number}: {' '.join(drawn.choices(WORDS, k=drawn.randint(2, 25)))}" for number in range(count)]


class Client:
    """One connection that is kept: what a client of the server costs should be next to nothing."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def request(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Status and body of the answer."""
        method = "GET" if body is None else "POST"
        length = len(body or b"")
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n".encode())
        self.writer.write(body or b"")
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(re.search(r"content-length: (\d+)", head)[1])
        return int(head.split()[1]), await self.reader.readexactly(size)


async def stage(port: int, work: list[tuple[str, float]], clients: int) -> dict[str, Any]:
    """Send some texts from some clients at a time, each text once, and compare the answers."""
    todo = iter(work)
    seconds: list[float] = []
    lost = mixed_up = 0
    worst = 0.0

    async def one_client() -> None:
        nonlocal lost, mixed_up, worst
        async with Client(port) as client:
            for text, expected in todo:
                start = time.perf_counter()
                status, answer = await client.request("/score", json.dumps(text).encode())
                seconds.append(time.perf_counter() - start)
                if status != 200:
                    lost += 1
                    continue
                off = abs(json.loads(answer)["rewards"] - expected)
                worst = max(worst, off)
                mixed_up += off > TOLERANCE

    start = time.perf_counter()
    await asyncio.wait_for(asyncio.gather(*(one_client() for _ in range(clients))), 600)
    wall = time.perf_counter() - start
    ordered = sorted(seconds)
    return {
        "clients": clients,
        "requests": len(work),
        "answered": len(seconds) - lost,
        "refused": lost,
        "mixed_up": mixed_up,
        "largest_difference": worst,
        "requests_per_second": round(len(seconds) / wall, 1),
        "milliseconds": {f"p{share}": _at(ordered, share / 100) for share in (50, 95, 99)},
    }


def _at(ordered: list[float], share: float) -> float:
    return round(1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)], 2)


async def _batches(port: int) -> tuple[float, float]:
    """Requests and batches that the server has computed."""
    async with Client(port) as client:
        _, page = await client.request("/metrics")
    names = ("plaudit_batch_requests_sum", "plaudit_batch_requests_count")
    requests, batches = (float(re.search(rf"^{name} (\S+)$", page.decode(), re.MULTILINE)[1]) for name in names)
    return requests, batches


def measure(settings: Settings) -> dict[str, Any]:
    """Run all stages against a server; returns what was found, without where and when."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = settings.model or temporary
        if settings.model is None:
            save_tiny_model(temporary)
        share = settings.requests // len(settings.clients)
        rows = texts(share * (len(settings.clients) * (settings.rounds + 1) + 1))
        model = RewardModel.from_pretrained(folder, device="cpu")
        model.score(rows[:200])
        start = time.perf_counter()
        work = list(zip(rows, model.score(rows), strict=True))
        alone = len(rows) / (time.perf_counter() - start)
        with running_server(folder, settings) as (port, process):
            asyncio.run(stage(port, work[-share:], 16))  # unmeasured
            before, stages = process.memory_info().rss, []
            for index, clients in enumerate(settings.clients):
                counted = asyncio.run(_batches(port))
                found = asyncio.run(stage(port, work[index * share : (index + 1) * share], clients))
                requests, batches = (b - a for a, b in zip(counted, asyncio.run(_batches(port)), strict=True))
                found["requests_per_batch"] = round(requests / batches, 2)
                found["rss_bytes"] = process.memory_info().rss
                stages.append(found)
            rest = work[len(stages) * share : -share]
            rounds = _rounds(port, process, [rest[index :: settings.rounds] for index in range(settings.rounds)])
    return {
        "requests": share * len(settings.clients),
        "distinct_rewards": len({round(reward, 4) for _, reward in work}),
        "texts": len(work),
        "rss_bytes_before": before,
        "rss_growth_bytes": stages[-1]["rss_bytes"] - before,
        "python_score_rows_per_second": round(alone, 1),
        "stages": stages,
        "rounds": rounds,
    }


def _rounds(port: int, process: psutil.Process, parts: list[list[tuple[str, float]]]) -> list[dict[str, Any]]:
    """Memory of the server after each of some rounds, and what else was found."""
    rounds = []
    for part in parts:
        found = asyncio.run(stage(port, part, 16))
        rounds.append({**found, "rss_bytes": process.memory_info().rss})
    return rounds


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=Settings.requests)
    parser.add_argument("--clients", type=int, nargs="+", default=list(Settings.clients))
    parser.add_argument("--model", help="folder of a reward model; a tiny random one by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--server", nargs=argparse.REMAINDER, default=[], help="further settings of plaudit serve")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of as many requests again, to watch the memory")
    parser.add_argument("--output")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = Settings(
        given.requests, tuple(given.clients), given.model, given.threads, tuple(given.server), given.rounds
    )
    load_before = load_average()
    found = measure(settings)
    for one in found["stages"]:
        times = ", ".join(f"{name} {value} ms" for name, value in one["milliseconds"].items())
        print(
            f"{one['clients']:3} clients: {one['requests_per_second']:8.1f} requests/s, {times}, "
            f"{one['requests_per_batch']} a batch, {one['refused']} refused, {one['mixed_up']} mixed up"
        )
    print(
        f"memory of the server: {found['rss_bytes_before'] / 2**20:.0f} MiB, {found['rss_growth_bytes'] / 2**20:+.1f}"
    )
    for number, one in enumerate(found["rounds"], start=1):
        print(
            f"round {number}: {one['rss_bytes'] / 2**20:.1f} MiB, {one['requests_per_second']} requests/s, "
            f"{one['refused']} refused, {one['mixed_up']} mixed up"
        )
    if given.output:
        packages = ("plaudit", "torch", "transformers", "fastapi", "uvicorn", "starlette", "prometheus_client")
        result = {
            "what": "load on plaudit serve, a server in a second process",
            "command": " ".join(["python", "benchmarks/serving_load.py", *sys.argv[1:]]),
            "model": "given" if given.model else "tiny random llama, 2 layers of 32",
            "threads": given.threads,
            "machine": describe_machine(),
            "commit": describe_commit(),
            "load_average": {"before": load_before, "after": load_average()},
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
            **found,
        }
        Path(given.output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
