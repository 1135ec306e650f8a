"""Rows of many requests, computed together: a queue on the event loop, and one thread that computes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from plaudit.serve.errors import RequestError, stopping

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_POWERS = tuple(float(2**power) for power in range(0, 18, 1))


class ServerMetrics:
    """Counters, gauges and histograms of one server, in a registry of its own."""

    def __init__(self, waiting: Callable[[], float] = lambda: 0.0) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "plaudit_requests", "Requests answered, by route and status.", ["route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "plaudit_request_seconds", "From request to answer.", ["route"], buckets=_SECONDS, registry=registry
        )
        self.queue_seconds = Histogram(
            "plaudit_queue_seconds", "Time that rows waited for their batch.", buckets=_SECONDS, registry=registry
        )
        self.batch_seconds = Histogram(
            "plaudit_batch_seconds", "Time to compute a batch.", buckets=_SECONDS, registry=registry
        )
        self.batch_tokens = Histogram(
            "plaudit_batch_tokens",
            "Tokens of a batch, what the responses of a row share counted once.",
            buckets=_POWERS,
            registry=registry,
        )
        self.batch_requests = Histogram(
            "plaudit_batch_requests", "Requests in a batch.", buckets=_POWERS[:11], registry=registry
        )
        self.responses = Counter("plaudit_responses", "Responses scored.", registry=registry)
        self.tokens = Counter("plaudit_tokens", "Their tokens, prompts included.", registry=registry)
        self.truncated = Counter("plaudit_truncated_rows", "Rows cut to `max_length`.", registry=registry)
        self.dropped = Counter("plaudit_dropped_rows", "Rows dropped: their client hung up.", registry=registry)
        self.failures = Counter("plaudit_failed_batches", "Batches whose computation failed.", registry=registry)
        Gauge("plaudit_queue_responses", "Responses that wait.", registry=registry).set_function(waiting)

    def text(self) -> bytes:
        """All of them, in the text format of Prometheus."""
        return generate_latest(self.registry)


logger = logging.getLogger("plaudit")
Ids: TypeAlias = Sequence[int]
Compute: TypeAlias = Callable[[list[Sequence[Ids]]], list[list[float]]]
"""Rewards of the responses of some rows, in their order."""


@dataclass(frozen=True)
class QueuedRow:
    """One row that waits.

    Attributes:
        ids: Token ids of its responses.
        tokens: Tokens to compute for it.
    """

    ids: Sequence[Ids]
    tokens: int


@dataclass
class Job:
    """The rows of one request.

    Attributes:
        rows: All of them.
        done: Their rewards, once all are there.
        arrived: When they were queued, on the monotonic clock.
        rewards: Those that are there.
        left: How many are not.
    """

    rows: Sequence[QueuedRow]
    done: asyncio.Future[list[list[float]]]
    arrived: float
    rewards: list[list[float]] = field(default_factory=list)
    left: int = 0

    def __post_init__(self) -> None:
        self.rewards = [[] for _ in self.rows]
        self.left = len(self.rows)

    def put(self, index: int, rewards: list[float]) -> None:
        """Take the rewards of one row."""
        self.rewards[index] = rewards
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(self.rewards)

    def fail(self, error: BaseException) -> None:
        """Give up, unless the rewards are there."""
        if not self.done.done():
            self.done.set_exception(error)


class Batcher:
    """Collects rows into batches and has them computed, one batch at a time, first come first served.

    Rows that arrive while a batch runs go into the next one. All methods but the computing run on the event loop."""

    def __init__(
        self, compute: Compute, *, max_tokens: int, max_wait: float, max_queue: int, metrics: ServerMetrics
    ) -> None:
        self._compute, self._max_tokens, self._max_wait, self._max_queue = compute, max_tokens, max_wait, max_queue
        self._metrics = metrics
        self._queue: deque[tuple[Job, int]] = deque()
        self._running: list[tuple[Job, int]] = []
        self._responses = self._tokens = 0
        self._tokens_per_second = 0.0
        self._filled, self._full = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plaudit-compute")

    @property
    def responses(self) -> int:
        """How many responses wait."""
        return self._responses

    def start(self) -> None:
        """Begin to compute."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop computing; whoever still waits gets an error."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for job, _ in (*self._running, *self._queue):
            job.fail(stopping())
        self._queue.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def refuse_if_full(self, more: int = 1) -> None:
        """Refuse a request that would have to wait too long."""
        if more > self._max_queue:
            raise RequestError(
                413,
                f"the request has {more:,} responses; the queue holds {self._max_queue:,}",
                fix="Send them in parts, or start the server with a larger --max_queue.",
            )
        if self._responses + more > self._max_queue:
            seconds = self._tokens / self._tokens_per_second if self._tokens_per_second else 1.0
            raise RequestError(
                429,
                f"the queue is full: {self._responses:,} responses wait, and at most {self._max_queue:,} may",
                fix="Try again later.",
                headers={"Retry-After": str(min(max(math.ceil(seconds), 1), 60))},
            )

    def submit(self, rows: Sequence[QueuedRow]) -> Job:
        """Queue the rows of a request."""
        self.refuse_if_full(sum(len(row.ids) for row in rows))
        job = Job(rows, asyncio.get_running_loop().create_future(), time.monotonic())
        for index, row in enumerate(rows):
            self._queue.append((job, index))
            self._count(row, +1)
        self._filled.set()
        return job

    def drop(self, job: Job) -> None:
        """Take the rows of a request off the queue: nobody waits for them any more."""
        job.done.cancel()
        dropped = self._forget(job)
        if dropped:
            self._metrics.dropped.inc(dropped)
            logger.info("A client hung up: %d rows that were not computed yet are dropped.", dropped)

    def _forget(self, job: Job) -> int:
        waiting = [index for other, index in self._queue if other is job]
        if waiting:
            self._queue = deque(entry for entry in self._queue if entry[0] is not job)
        for index in waiting:
            self._count(job.rows[index], -1)
        return len(waiting)

    def _count(self, row: QueuedRow, sign: int) -> None:
        self._responses += sign * len(row.ids)
        self._tokens += sign * row.tokens
        if self._tokens >= self._max_tokens:
            self._full.set()
        else:
            self._full.clear()

    async def _run(self) -> None:
        while True:
            await self._filled.wait()
            await self._wait_for_others()
            self._running = self._take()
            if not self._queue:
                self._filled.clear()
            if self._running:
                await self._compute_batch(self._running)
            self._running = []

    async def _wait_for_others(self) -> None:
        if not self._queue:
            return
        left = self._queue[0][0].arrived + self._max_wait - time.monotonic()
        if left > 0 and not self._full.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._full.wait(), left)

    def _take(self) -> list[tuple[Job, int]]:
        batch: list[tuple[Job, int]] = []
        tokens, now = 0, time.monotonic()
        while self._queue:
            job, index = self._queue[0]
            row = job.rows[index]
            if batch and tokens + row.tokens > self._max_tokens:
                break
            self._queue.popleft()
            self._count(row, -1)
            tokens += row.tokens
            batch.append((job, index))
            self._metrics.queue_seconds.observe(now - job.arrived)
        return batch

    async def _compute_batch(self, batch: Sequence[tuple[Job, int]]) -> None:
        rows = [job.rows[index] for job, index in batch]
        jobs = {id(job): job for job, _ in batch}
        start = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._compute, [row.ids for row in rows])
        # Whatever goes wrong belongs to whoever waits for these rows, and must not end this loop.
        (result,) = await asyncio.gather(running, return_exceptions=True)
        if isinstance(result, BaseException):
            await self._failed(batch, list(jobs.values()), result)
            return
        self._observe(rows, len(jobs), time.monotonic() - start)
        for (job, index), rewards in zip(batch, result, strict=True):
            job.put(index, rewards)

    async def _failed(self, batch: Sequence[tuple[Job, int]], jobs: Sequence[Job], error: BaseException) -> None:
        self._metrics.failures.inc()
        logger.error("Computing a batch of %d requests failed.", len(jobs), exc_info=error)
        if len(jobs) == 1:
            self._forget(jobs[0])
            jobs[0].fail(
                RequestError(500, f"the model could not compute this: {type(error).__name__}", fix="See the log.")
            )
            return
        # One of them is to blame, or all together were too much: the others must not suffer.
        for job in jobs:
            await self._compute_batch([entry for entry in batch if entry[0] is job])

    def _observe(self, rows: Sequence[QueuedRow], requests: int, seconds: float) -> None:
        tokens = sum(row.tokens for row in rows)
        rate = tokens / max(seconds, 1e-6)
        self._tokens_per_second = rate if not self._tokens_per_second else 0.8 * self._tokens_per_second + 0.2 * rate
        self._metrics.batch_seconds.observe(seconds)
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.batch_requests.observe(requests)
        self._metrics.responses.inc(sum(len(row.ids) for row in rows))
        self._metrics.tokens.inc(sum(len(ids) for row in rows for ids in row.ids))
