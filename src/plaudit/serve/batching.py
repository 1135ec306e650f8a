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
from functools import partial
from typing import TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from plaudit.serve.errors import RequestError, stopping

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_POWERS = tuple(float(2**power) for power in range(18))


class ServerMetrics:
    """Counters, gauges and histograms of one server, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        counter = partial(Counter, registry=self._registry)
        seconds = partial(Histogram, buckets=_SECONDS, registry=self._registry)
        powers = partial(Histogram, registry=self._registry)
        self.requests = counter("plaudit_requests", "Requests answered, by route and status.", ["route", "status"])
        self.request_seconds = seconds("plaudit_request_seconds", "From request to answer.", ["route"])
        self.queue_seconds = seconds("plaudit_queue_seconds", "Time that rows waited for their batch.")
        self.batch_seconds = seconds("plaudit_batch_seconds", "Time to compute a batch.")
        tokens = "Tokens of a batch, what the responses of a row share counted once."
        self.batch_tokens = powers("plaudit_batch_tokens", tokens, buckets=_POWERS)
        self.batch_requests = powers("plaudit_batch_requests", "Requests in a batch.", buckets=_POWERS[:11])
        self.responses = counter("plaudit_responses", "Responses scored.")
        self.tokens = counter("plaudit_tokens", "Their tokens, prompts included.")
        self.truncated = counter("plaudit_truncated_rows", "Rows cut to `max_length`.")
        self.dropped = counter("plaudit_dropped_rows", "Rows dropped: their client hung up.")
        self.failures = counter("plaudit_failed_batches", "Batches whose computation failed.")
        self.queue_responses = Gauge("plaudit_queue_responses", "Responses that wait.", registry=self._registry)

    def text(self) -> bytes:
        """Returns all of them in the text format of Prometheus."""
        return generate_latest(self._registry)


logger = logging.getLogger("plaudit")
Ids: TypeAlias = Sequence[int]
Compute: TypeAlias = Callable[[list[Sequence[Ids]]], list[list[float]]]
"""Rewards of the responses of some rows, in their order."""


@dataclass(frozen=True)
class QueuedRow:
    """One row that waits."""

    ids: Sequence[Ids]  # token ids of its responses
    tokens: int  # to compute for it


@dataclass
class Job:
    """The rows of one request, which are computed in their order."""

    rows: int
    done: asyncio.Future[list[list[float]]]  # their rewards, once all are computed
    arrived: float  # when they were queued, on the monotonic clock
    rewards: list[list[float]] = field(default_factory=list)  # of the rows that are computed

    def fail(self, error: BaseException) -> None:
        """Reports an error, unless the rewards are complete or nobody waits for them."""
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
        self._queue: deque[tuple[Job, QueuedRow]] = deque()
        self._running: list[tuple[Job, QueuedRow]] = []
        self.responses = self._tokens = 0  # that wait
        self._tokens_per_second = 0.0
        self._filled, self._full = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plaudit-compute")
        metrics.queue_responses.set_function(lambda: self.responses)

    def start(self) -> None:
        """Starts to compute."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stops computing; requests that still wait get an error."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        for job, _ in (*self._running, *self._queue):
            job.fail(stopping())
        self._queue.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def refuse_if_full(self, more: int = 1) -> None:
        """Raises `RequestError` for a request that would have to wait too long."""
        if more > self._max_queue:
            raise RequestError(
                413,
                f"the request has {more:,} responses; the queue holds {self._max_queue:,}",
                fix="Send them in parts, or start the server with a larger --max_queue.",
            )
        if self.responses + more > self._max_queue:
            seconds = self._tokens / self._tokens_per_second if self._tokens_per_second else 1.0
            raise RequestError(
                429,
                f"the queue is full: {self.responses:,} responses wait, and at most {self._max_queue:,} may",
                fix="Try again later.",
                headers={"Retry-After": str(min(max(math.ceil(seconds), 1), 60))},
            )

    def submit(self, rows: Sequence[QueuedRow]) -> Job:
        """Queues the rows of a request."""
        self.refuse_if_full(sum(len(row.ids) for row in rows))
        job = Job(len(rows), asyncio.get_running_loop().create_future(), time.monotonic())
        for row in rows:
            self._queue.append((job, row))
            self._count(row, +1)
        self._filled.set()
        return job

    def drop(self, job: Job) -> None:
        """Removes the rows of a request that nobody waits for from the queue."""
        job.done.cancel()
        dropped = self._forget(job)
        if dropped:
            self._metrics.dropped.inc(dropped)
            logger.info("A client hung up: %d rows that were not computed yet are dropped.", dropped)

    def _forget(self, job: Job) -> int:
        rows = [row for waiting, row in self._queue if waiting is job]
        self._queue = deque(entry for entry in self._queue if entry[0] is not job)
        for row in rows:
            self._count(row, -1)
        return len(rows)

    def _count(self, row: QueuedRow, sign: int) -> None:
        self.responses += sign * len(row.ids)
        self._tokens += sign * row.tokens
        if self._tokens >= self._max_tokens:
            self._full.set()
        else:
            self._full.clear()

    async def _run(self) -> None:
        while True:
            await self._filled.wait()
            left = self._queue[0][0].arrived + self._max_wait - time.monotonic() if self._queue else 0.0
            if left > 0 and not self._full.is_set():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), left)
            tokens, now = 0, time.monotonic()
            while self._queue and (not self._running or tokens + self._queue[0][1].tokens <= self._max_tokens):
                job, row = self._queue.popleft()
                self._count(row, -1)
                tokens += row.tokens
                self._running.append((job, row))
                self._metrics.queue_seconds.observe(now - job.arrived)
            if not self._queue:
                self._filled.clear()
            if self._running:
                await self._compute_batch(self._running)
            self._running = []

    async def _compute_batch(self, batch: Sequence[tuple[Job, QueuedRow]]) -> None:
        rows = [row for _, row in batch]
        jobs = list({id(job): job for job, _ in batch}.values())
        start = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._thread, self._compute, [row.ids for row in rows])
        # An error goes to the requests of this batch, and must not end the loop.
        (result,) = await asyncio.gather(running, return_exceptions=True)
        if isinstance(result, BaseException):
            self._metrics.failures.inc()
            logger.error("Computing a batch of %d requests failed.", len(jobs), exc_info=result)
            if len(jobs) == 1:
                self._forget(jobs[0])
                message = f"the model could not compute this: {type(result).__name__}"
                jobs[0].fail(RequestError(500, message, fix="See the log."))
                return
            # Either one request is at fault, or the batch is too large: compute each request alone.
            for job in jobs:
                await self._compute_batch([entry for entry in batch if entry[0] is job])
            return
        seconds, tokens = time.monotonic() - start, sum(row.tokens for row in rows)
        rate = tokens / max(seconds, 1e-6)
        self._tokens_per_second = rate if not self._tokens_per_second else 0.8 * self._tokens_per_second + 0.2 * rate
        self._metrics.batch_seconds.observe(seconds)
        self._metrics.batch_tokens.observe(tokens)
        self._metrics.batch_requests.observe(len(jobs))
        self._metrics.responses.inc(sum(len(row.ids) for row in rows))
        self._metrics.tokens.inc(sum(len(ids) for row in rows for ids in row.ids))
        for (job, _), rewards in zip(batch, result, strict=True):
            job.rewards.append(rewards)
            if len(job.rewards) == job.rows and not job.done.done():
                job.done.set_result(job.rewards)
