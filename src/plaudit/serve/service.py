"""Answers a request: reads its body, prepares and queues its rows, and computes their rewards."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from plaudit.data.prepare import PreparedRow, RowPreparer
from plaudit.data.schemas import rows_to_score
from plaudit.errors import ConfigError, DataError
from plaudit.inference.reward_model import RewardModel
from plaudit.model.load import embedding_rows
from plaudit.model.peft import base_model_of
from plaudit.prefix_tree import common_prefix_length
from plaudit.serve.batching import Batcher, QueuedRow, ServerMetrics
from plaudit.serve.errors import RequestError, stopping
from plaudit.serve.handlers import WORD_BYTES, Question, Scored, Served
from plaudit.serve.settings import ServerSettings

Handler: TypeAlias = Callable[[Any, Served], Question]
_DRAIN_SECONDS = 2.0
_HUNG_UP = 499
"""Status in the metrics of a request whose client disconnected: nobody reads the answer."""
_BODIES = 16
"""Bodies of full size that may be in memory at a time."""
_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def parse_json(body: bytes) -> Any:
    """Parses a body; raises an error of status 422 where it is not JSON in UTF-8.

    >>> parse_json(b'{"query": []}')
    {'query': []}
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    try:
        text = body.decode("utf-8")
        value = json.loads(text, parse_constant=refuse)
        if "\\u" in text:
            _refuse_half_characters(value, "")
        return value
    except UnicodeDecodeError as error:
        message = f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}"
    except json.JSONDecodeError as error:
        message = f"the body is not JSON: {error.msg} (line {error.lineno}, column {error.colno})"
        message = message if body.strip() else "the body is empty"
    except RecursionError:
        message = "the body is nested too deeply"
    except ValueError as error:  # NaN, or a number of thousands of digits
        message = f"the body cannot be read: {error}"
    raise RequestError(422, message, fix="Send JSON in UTF-8; /docs has examples.")


def _refuse_half_characters(value: Any, path: str) -> None:
    """Refuses text with half of a pair of surrogates: JSON can write that, tokenizers cannot read it."""
    if isinstance(value, str) and (half := _HALF_CHARACTER.search(value)):
        message = f"holds half a character at {half.start()} (a lone surrogate)"
        raise RequestError(422, message, field=path or None, fix="Send whole characters.")
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_half_characters(name, path)
            _refuse_half_characters(item, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _refuse_half_characters(item, f"{path}[{index}]")


class ScoringService:
    """Answers requests with the rewards of a model, which nothing else may use meanwhile."""

    def __init__(self, model: RewardModel, settings: ServerSettings) -> None:
        self._model, self._settings = model, settings
        self.preparer = RowPreparer(model.processing_class, model.max_length, model.overlong, WORD_BYTES)
        base_model = base_model_of(model.model)
        self._vocabulary = embedding_rows(base_model)
        label = str(dict(base_model.config.id2label or {}).get(0, "reward"))
        name = settings.served_model_name or model.name
        self.served = Served(name, label, model.processing_class, settings.texts)
        self.metrics = ServerMetrics()
        self.batcher = Batcher(
            lambda rows: model.score([{"response_ids": [*ids]} for ids in rows]),
            max_tokens=model.max_tokens_per_batch,
            max_wait=settings.max_wait_ms / 1000,
            max_queue=settings.max_queue,
            metrics=self.metrics,
        )
        # One thread: tokenizers are not made to be called by two at a time.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="plaudit-prepare")
        self.stopping = False
        self.active = 0
        self.body_bytes: dict[Request, int] = {}  # of the bodies that are being read or prepared

    async def start(self) -> None:
        """Starts to compute, and computes once, so that the first request does not wait for what happens once."""
        self.batcher.start()
        prompt: Any = "What is two plus two?"
        responses: list[Any] = ["Two plus two is four.", "I had rather not say."]
        if self._model.processing_class.chat_template:
            prompt = [{"role": "user", "content": prompt}]
            responses = [[{"role": "assistant", "content": response}] for response in responses]
        rows = [{"prompt": prompt, "responses": responses}]
        await asyncio.get_running_loop().run_in_executor(self._thread, lambda: self._model.score(rows, errors="nan"))

    async def stop(self) -> None:
        """Ends the threads."""
        self.stopping = True
        await self.batcher.stop()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def answer(self, request: Request, handler: Handler) -> Response:
        """Answers a request."""
        if self.stopping:
            raise stopping()
        self.batcher.refuse_if_full()
        self.active += 1
        try:
            body = await self._read_body(request)
            if self.stopping:
                raise stopping()
            loop = asyncio.get_running_loop()
            question, rows = await loop.run_in_executor(self._thread, self._prepare, body, handler)
            self.body_bytes.pop(request, None)
            queued = [QueuedRow(row.ids, self._tokens_of(row.ids)) for row in rows if row.ids is not None]
            rewards: list[list[float]] = []
            if queued:
                job = self.batcher.submit(queued)
                if not await _done_or_hung_up(job.done, request):
                    self.batcher.drop(job)
                    return Response(status_code=_HUNG_UP)
                rewards = job.done.result()
        except ClientDisconnect:
            return Response(status_code=_HUNG_UP)
        finally:
            self.body_bytes.pop(request, None)
            self.active -= 1
        self.metrics.truncated.inc(sum(row.truncated for row in rows))
        computed = iter(rewards)
        scored = [
            Scored(
                [math.nan] * row.responses if row.ids is None else next(computed),
                row.shape == "one",
                sum(map(len, row.ids or ())),
                row.truncated,
            )
            for row in rows
        ]
        answer = question.answer(scored).model_dump_json(exclude_unset=True)
        return Response(answer, media_type="application/json")

    async def _read_body(self, request: Request) -> bytes:
        """Reads a body; stops reading once it, or all bodies together, are too large."""
        most, timeout = self._settings.max_body_bytes, self._settings.read_timeout
        close = {"Connection": "close"}
        fix = "Send fewer rows at a time, or start the server with a larger --max_body_mb."
        too_large = RequestError(413, f"the body has more than {most:,} bytes", fix=fix, headers=close)
        encoding = request.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise RequestError(415, f"the body is compressed ({encoding})", fix="Send it as it is.")
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > most:
            await _drain(request, 0 if int(declared) > 4 * most else int(declared))
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(timeout):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        break
                    if sum(self.body_bytes.values()) + len(part) > _BODIES * most:
                        message = f"the server reads bodies of {_BODIES * most:,} bytes in all, and may hold no more"
                        headers = {"Retry-After": "1", **close}
                        raise RequestError(429, message, fix="Try again later.", headers=headers)
                    self.body_bytes[request] = size
                    parts.append(part)
        except TimeoutError:
            message = f"the body did not arrive within {timeout:g} seconds"
            raise RequestError(408, message, headers=close) from None
        if size > most:
            parts.clear()
            await _drain(request, most)
            raise too_large
        return b"".join(parts)

    def _prepare(self, body: bytes, handler: Handler) -> tuple[Question, list[PreparedRow]]:
        question = handler(parse_json(body), self.served)
        for index, row in enumerate(question.rows):
            # Templates that come with a request are programs, and would change what a reward means.
            variables = row.get("chat_template_kwargs") if isinstance(row, Mapping) else None
            field = question.locate(index, "chat_template_kwargs")
            if isinstance(variables, str):
                raise RequestError(422, "is a text, not an object", field=field, fix="Send an object.")
            if isinstance(variables, Mapping) and "chat_template" in variables:
                own = "Leave `chat_template` out: the model's own is used."
                raise RequestError(422, "brings a chat template", field=field, fix=own)
        try:
            given = rows_to_score(question.rows, self._model.schema) if question.free else question.rows
            rows = [row for window in self.preparer.windows(given) for row in window]
        except ConfigError as error:
            raise RequestError(422, error.summary, fix=error.fix) from error
        except DataError as error:  # about all rows
            field = question.locate(error.row or 0, error.field)
            raise RequestError(422, error.message, field=field, fix=error.fix) from error
        for index, prepared in enumerate(rows):
            if prepared.error is not None and not (prepared.overlong and self._model.overlong == "nan"):
                shorten = "Shorten it, or start the server with --overlong truncate_left."
                fix = shorten if prepared.overlong else prepared.error.fix
                field = question.locate(index, prepared.error.field)
                raise RequestError(422, prepared.error.message, field=field, fix=fix)
            largest = max((max(ids) for ids in prepared.ids or ()), default=0)
            if largest >= self._vocabulary:
                message = f"has token id {largest}; the model has {self._vocabulary} tokens"
                field = question.locate(index, None)
                raise RequestError(422, message, field=field, fix="Use this model's tokenizer.")
        return question, rows

    def _tokens_of(self, ids: Sequence[Sequence[int]]) -> int:
        """Returns how many tokens are computed for the responses of a row."""
        if self._model.batch_layout == "padded":
            return max(map(len, ids)) * len(ids)
        return sum(map(len, ids)) - (len(ids) - 1) * (common_prefix_length(list(ids)) if len(ids) > 1 else 0)


async def _drain(request: Request, expected: int) -> None:
    """Reads a little more of a body: a client that still sends does not read the answer."""
    left = 0 if "expect" in request.headers else expected
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


async def _done_or_hung_up(done: asyncio.Future[Any], request: Request) -> bool:
    """Waits for rewards, or for the client to hang up; returns whether the rewards are there."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    watch = asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait({done, watch}, return_when=asyncio.FIRST_COMPLETED)
        return done.done()
    finally:
        watch.cancel()
