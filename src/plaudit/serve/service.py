"""Answers a request: reads its body, prepares and queues its rows, and computes their rewards."""

from __future__ import annotations

import asyncio
import contextlib
import json
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from plaudit.data.prepare import PreparedRow, RowPreparer
from plaudit.errors import ConfigError
from plaudit.inference.reward_model import RewardModel
from plaudit.model.load import embedding_rows
from plaudit.model.peft import base_model_of
from plaudit.prefix_tree import common_prefix_length
from plaudit.serve.batching import Batcher, QueuedRow, ServerMetrics
from plaudit.serve.errors import RequestError, stopping
from plaudit.serve.handlers import WORD_BYTES, Question, Scored, Served, WholeTexts
from plaudit.serve.settings import ServerSettings

_DRAIN_SECONDS = 2.0


async def read_body(request: Request, *, max_bytes: int, timeout: float, hold: Callable[[int], object]) -> bytes:
    """Reads a body; stops reading once it is too large."""
    too_large = RequestError(
        413,
        f"the body has more than {max_bytes:,} bytes",
        fix="Send fewer rows at a time, or start the server with a larger --max_body_mb.",
        headers={"Connection": "close"},
    )
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise RequestError(415, f"the body is compressed ({encoding})", fix="Send it as it is.")
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > max_bytes:
        await _drain(request, max_bytes, 0 if int(declared) > 4 * max_bytes else int(declared))
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(timeout):
            async for part in request.stream():
                size += len(part)
                if size > max_bytes:
                    break
                hold(len(part))
                parts.append(part)
    except TimeoutError:
        raise RequestError(
            408, f"the body did not arrive within {timeout:g} seconds", headers={"Connection": "close"}
        ) from None
    if size > max_bytes:
        parts.clear()
        await _drain(request, max_bytes, max_bytes)
        raise too_large
    return b"".join(parts)


async def _drain(request: Request, max_bytes: int, expected: int) -> None:
    """Throw away a little more of a body: a client that still sends does not read the answer."""
    if "expect" in request.headers or not expected:
        return
    left = min(expected, 4 * max_bytes)
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            # Not `request.stream()`, which cannot be read again once it was left.
            while left > 0:
                message = await request.receive()
                left -= len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return


def parse_json(body: bytes) -> Any:
    """Parses a body; raises an error of status 422 where it is not JSON in UTF-8.

    >>> parse_json(b'{"query": []}')
    {'query': []}
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _malformed(f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}") from None
    if not text.strip():
        raise _malformed("the body is empty")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _malformed(f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise _malformed("the body is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise _malformed(f"the body cannot be read: {error}") from None
    if "\\u" in text:
        _refuse_half_characters(value, "")
    return value


def _malformed(message: str) -> RequestError:
    return RequestError(422, message, fix="Send JSON in UTF-8; /docs has examples.")


def _refuse_constant(name: str) -> NoReturn:
    raise _malformed(f"the body is not JSON: it has {name}")


def _refuse_half_characters(value: Any, path: str) -> None:
    """Refuse text with half of a pair of surrogates: JSON can write that, tokenizers cannot read it."""
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                422,
                f"holds half a character at {error.start} (a lone surrogate)",
                field=path or None,
                fix="Send whole characters.",
            ) from None
    elif isinstance(value, dict):
        for name, item in value.items():
            _refuse_half_characters(name, path)
            _refuse_half_characters(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_half_characters(item, f"{path}[{index}]")


Handler: TypeAlias = Callable[[Any, Served], Question]
_HUNG_UP = 499
"""What the metrics call a request whose client did not wait; nobody is told."""
_BODIES = 16
"""Bodies of full size that may be in memory at a time."""


class ScoringService:
    """Answers requests with the rewards of a model, which nothing else may use meanwhile."""

    def __init__(self, model: RewardModel, settings: ServerSettings) -> None:
        self._model, self._settings = model, settings
        self._preparation = RowPreparer(model.processing_class, model.max_length, model.overlong, WORD_BYTES)
        base_model = base_model_of(model.model)
        self._vocabulary = embedding_rows(base_model)
        label = dict(base_model.config.id2label or {}).get(0, "reward")
        self.served = Served(
            settings.served_model_name or model.name, str(label), WholeTexts(model.processing_class, settings.texts)
        )
        self.metrics = ServerMetrics(lambda: float(self.batcher.responses))
        self.batcher = Batcher(
            self._rewards,
            max_tokens=model.max_tokens_per_batch,
            max_wait=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            metrics=self.metrics,
        )
        # One thread: tokenizers are not made to be called by two at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plaudit-prepare")
        self.stopping = False
        self.active = 0
        self._bytes = 0

    # ---- life -------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Compute once, so that the first request does not wait for what happens once, and begin to compute."""
        self.batcher.start()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._warm_up)

    async def stop(self) -> None:
        """Ends the threads."""
        self.stopping = True
        await self.batcher.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _warm_up(self) -> None:
        question, replies = "What is two plus two?", ("Two plus two is four.", "I had rather not say.")
        if self._model.processing_class.chat_template:
            asked: Any = [{"role": "user", "content": question}]
            responses: Any = [[{"role": "assistant", "content": reply}] for reply in replies]
        else:
            asked, responses = question, list(replies)
        self._model.score([{"prompt": asked, "responses": responses}], errors="nan")

    # ---- one request ------------------------------------------------------------------------------------------

    async def answer(self, request: Request, handler: Handler) -> Response:
        """Answers a request."""
        if self.stopping:
            raise stopping()
        self.batcher.refuse_if_full()
        self.active += 1
        try:
            return await self._answer(request, handler)
        except ClientDisconnect:
            return Response(status_code=_HUNG_UP)
        finally:
            self.active -= 1

    async def _answer(self, request: Request, handler: Handler) -> Response:
        with self._memory_for_a_body() as hold:
            limits = self._settings
            body = await read_body(request, max_bytes=limits.max_body_bytes, timeout=limits.read_timeout, hold=hold)
            if self.stopping:
                raise stopping()
            question, rows = await asyncio.get_running_loop().run_in_executor(
                self._thread, self._prepare, body, handler
            )
        queued = [QueuedRow(row.ids, self._tokens_of(row.ids)) for row in rows if row.ids is not None]
        rewards: list[list[float]] = []
        if queued:
            job = self.batcher.submit(queued)
            if not await _done_or_hung_up(job.done, request):
                self.batcher.drop(job)
                return Response(status_code=_HUNG_UP)
            rewards = job.done.result()
        self.metrics.truncated.inc(sum(row.truncated for row in rows))
        answer = question.answer(_scored(rows, rewards)).model_dump_json(exclude_unset=True)
        return Response(answer, media_type="application/json")

    @contextlib.contextmanager
    def _memory_for_a_body(self) -> Iterator[Callable[[int], None]]:
        """Bound what all bodies that are being read or prepared take of the memory."""
        held, most = 0, _BODIES * self._settings.max_body_bytes

        def hold(more: int) -> None:
            nonlocal held
            if self._bytes + more > most:
                raise RequestError(
                    429,
                    f"the server is reading bodies of {most:,} bytes in all, and may hold no more",
                    fix="Try again later.",
                    headers={"Retry-After": "1", "Connection": "close"},
                )
            held += more
            self._bytes += more

        try:
            yield hold
        finally:
            self._bytes -= held

    def _prepare(self, body: bytes, handler: Handler) -> tuple[Question, list[PreparedRow]]:
        question = handler(parse_json(body), self.served)
        for index, row in enumerate(question.rows):
            _refuse_template(row, index, question)
        try:
            rows = [row for window in self._preparation.windows(question.rows) for row in window]
        except ConfigError as error:
            raise RequestError(422, error.summary, fix=error.fix) from error
        for index, row in enumerate(rows):
            self._check(row, index, question)
        return question, rows

    def _check(self, row: PreparedRow, index: int, question: Question) -> None:
        if row.error is not None and not (row.overlong and self._model.overlong == "nan"):
            fix = row.error.fix
            if row.overlong:
                fix = "Shorten it, or start the server with --overlong truncate_left."
            raise RequestError(422, row.error.message, field=question.locate(index, row.error.field), fix=fix)
        for ids in row.ids or ():
            if max(ids) >= self._vocabulary:
                raise RequestError(
                    422,
                    f"has token id {max(ids)}; the model has {self._vocabulary} tokens",
                    field=question.locate(index, None),
                    fix="Use this model's tokenizer.",
                )

    def _tokens_of(self, ids: Sequence[Sequence[int]]) -> int:
        """Tokens to compute for the responses of a row."""
        if self._model.batch_layout == "padded":
            return max(map(len, ids)) * len(ids)
        return sum(map(len, ids)) - (len(ids) - 1) * (common_prefix_length(list(ids)) if len(ids) > 1 else 0)

    def _rewards(self, rows: list[Sequence[Sequence[int]]]) -> list[list[float]]:
        rewards: list[list[float]] = self._model.score([{"response_ids": [*ids]} for ids in rows])
        return rewards


async def _done_or_hung_up(done: asyncio.Future[Any], request: Request) -> bool:
    """Wait for rewards, or for the client to hang up; says whether the rewards are there."""
    watch = asyncio.ensure_future(_hang_up(request))
    try:
        await asyncio.wait({done, watch}, return_when=asyncio.FIRST_COMPLETED)
        return done.done()
    finally:
        watch.cancel()


async def _hang_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _refuse_template(row: Any, index: int, question: Question) -> None:
    """Refuse templates that come with a request: they are programs, and would change what a reward means."""
    settings = row.get("chat_template_kwargs") if isinstance(row, Mapping) else None
    field = question.locate(index, "chat_template_kwargs")
    if isinstance(settings, str):
        raise RequestError(422, "is a text, not an object", field=field, fix="Send an object.")
    if isinstance(settings, Mapping) and "chat_template" in settings:
        raise RequestError(
            422, "brings a chat template", field=field, fix="Leave `chat_template` out: the model's own is used."
        )


def _scored(rows: Sequence[PreparedRow], rewards: Sequence[list[float]]) -> list[Scored]:
    """Rewards of all rows, NaN for those that are too long to be scored."""
    there = iter(rewards)
    scored = []
    for row in rows:
        row_rewards = next(there) if row.ids is not None else [float("nan")] * row.responses
        tokens = sum(map(len, row.ids or (array("i"),)))
        scored.append(Scored(row_rewards[0] if row.shape == "one" else list(row_rewards), tokens, row.truncated))
    return scored
