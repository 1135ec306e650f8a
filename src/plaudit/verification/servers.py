"""Sends the golden rows to a running server: Plaudit's, vLLM, SGLang, or an OpenRLHF reward server."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any, Literal, TypeAlias, get_args
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from transformers import PreTrainedTokenizerBase

from plaudit.errors import ConfigError
from plaudit.model.calibration import RewardCalibration
from plaudit.model.golden import GoldenRows
from plaudit.verification.diagnosis import Observation
from plaudit.verification.local_paths import NO_TEXT, needs_special_tokens, row_to_score, text_ids

ServerKind: TypeAlias = Literal["auto", "plaudit", "vllm", "sglang", "openrlhf"]
"""The server program; ``"auto"`` reads it off the server's routes."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    url: str  # without the route
    kind: ServerKind = "auto"
    api_key: str | None = None  # sent as a bearer token
    timeout: float = 120.0  # seconds to wait for an answer

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise ConfigError(f"{self.url!r} is no URL of a server", fix="Write it as http://127.0.0.1:8000.")
        if self.kind not in get_args(ServerKind):
            raise ConfigError(f"`server` is {self.kind!r}", fix=f"Use one of {', '.join(get_args(ServerKind))}.")

    def ask(self, route: str, body: Any = None) -> Any:
        """Returns the JSON answer of a route, to which `body` is posted; raises `ConfigError` on failure."""
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        url = self.url.rstrip("/") + route
        try:
            with urlopen(Request(url, data, headers), timeout=self.timeout) as answer:
                return json.load(answer)
        except HTTPError as error:
            reason = error.read(500).decode(errors="replace").strip()
            key = " See --api_key." if error.code in (401, 403) else ""
            raise ConfigError(
                f"{url} answers {error.code}: {reason}", fix=f"See the log of the server.{key}"
            ) from error
        except (OSError, HTTPException, ValueError) as error:
            raise ConfigError(
                f"{url} gives no answer that can be read ({type(error).__name__}: {error})",
                fix="Check that the server runs, and its address.",
            ) from error


def kind_of_server(server: Server) -> ServerKind:
    """Recognises a server by the routes in its OpenAPI description; raises `ConfigError` where it is unknown."""
    if server.kind != "auto":
        return server.kind
    description = server.ask("/openapi.json")
    if not isinstance(description, dict) or not isinstance(description.get("paths"), dict):
        raise ConfigError(f"{server.url}/openapi.json is no OpenAPI description", fix="Name the server with --server.")
    title, routes = str((description.get("info") or {}).get("title", "")), frozenset(description["paths"])
    if title == "Plaudit" or {"/score", "/rank", "/get_reward"} <= routes:
        return "plaudit"
    if routes & {"/get_model_info", "/model_info", "/get_server_info"}:
        return "sglang"
    if routes & {"/classify", "/pooling"} and "/v1/models" in routes:
        return "vllm"
    if "/get_reward" in routes:
        return "openrlhf"
    raise ConfigError(
        f"{server.url} has no known route ({', '.join(sorted(routes)[:8]) or 'none'})",
        fix="Name the server with --server plaudit, vllm, sglang or openrlhf; vLLM needs `--runner pooling`.",
    )


@dataclass(frozen=True)
class Conversation:
    """The golden rows, and the server they are sent to."""

    server: Server
    golden: GoldenRows
    tokenizer: PreTrainedTokenizerBase
    calibration: RewardCalibration | None = None  # applied by Plaudit's server

    @property
    def every(self) -> range:
        """Indices of all golden rows."""
        return range(len(self.golden.rows))

    @property
    def with_text(self) -> tuple[int, ...]:
        """Indices of the golden rows whose text is known."""
        return tuple(index for index in self.every if self.golden.rows[index].text is not None)

    @property
    def ids(self) -> list[list[int]]:
        """Token ids of all golden rows."""
        return [list(row.ids) for row in self.golden.rows]

    def observe(
        self, path: str, rows: Sequence[int], ask: Callable[[], Sequence[Any]], *, calibrated: bool = False
    ) -> Observation:
        """Returns the rewards that `ask` gets for golden rows, or why there are none."""
        path, rows = f"{self.server.kind} {path}", tuple(rows)
        if not rows:
            return Observation(path, skipped=NO_TEXT)
        try:
            rewards = tuple(_number(value) for value in ask())
        except ConfigError as error:
            return Observation(path, rows, problem=str(error))
        except (KeyError, IndexError, TypeError) as error:
            return Observation(path, rows, problem=f"its answer has another form ({type(error).__name__}: {error})")
        if len(rewards) != len(rows):
            return Observation(path, rows, problem=f"{len(rewards)} rewards came for {len(rows)} rows")
        expected = None
        if calibrated and self.calibration is not None and self.calibration.changes_rewards:
            expected = tuple(self.calibration.reward(self.golden.rows[row].reward) for row in rows)
        dtype = self.golden.dtype  # the precision of other servers is unknown
        if self.server.kind == "plaudit":
            dtype = str(self.server.ask("/health").get("dtype", dtype))
        return Observation(path, rows, rewards, expected=expected, dtype=dtype)


def _number(value: Any) -> float:
    if isinstance(value, list):
        (value,) = value  # one output per row
    if value is None:
        return math.nan  # which JSON cannot hold
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no reward")
    return float(value)


def server_paths(talk: Conversation) -> Iterator[Observation]:
    """Sends the golden rows in every form that the server takes."""
    yield from _PATHS[talk.server.kind](talk)


def _plaudit(talk: Conversation) -> Iterator[Observation]:
    ask = talk.server.ask

    def of_ids() -> list[Any]:
        return [rewards[0] for rewards in ask("/score", [{"response_ids": [ids]} for ids in talk.ids])["rewards"]]

    def of_rows() -> list[Any]:
        return list(ask("/score", [row_to_score(talk.golden.rows[row]) for row in talk.with_text])["rewards"])

    def classify() -> list[Any]:
        return _probs(ask("/classify", {"input": talk.ids}))

    yield talk.observe("/score, token ids", talk.every, of_ids, calibrated=True)
    yield talk.observe("/score, messages or text", talk.with_text, of_rows, calibrated=True)
    yield talk.observe("/classify, token ids", talk.every, classify, calibrated=True)
    yield from _openrlhf(talk)


def _vllm(talk: Conversation) -> Iterator[Observation]:
    def classify(body: Mapping[str, Any]) -> list[Any]:
        model = talk.server.ask("/v1/models")["data"][0]["id"]
        return _probs(talk.server.ask("/classify", {"model": model, "input": talk.ids, **body}))

    raw = {"use_activation": False}

    def of_texts() -> list[Any]:
        rewards = []
        for row in (talk.golden.rows[index] for index in talk.with_text):
            special = needs_special_tokens(row, talk.tokenizer)
            rewards += classify({"input": [row.text], "add_special_tokens": special, **raw})
        return rewards

    yield talk.observe("/classify, token ids", talk.every, lambda: classify({}))
    yield talk.observe("/classify, token ids, use_activation false", talk.every, lambda: classify(raw))
    yield talk.observe("/classify, texts, use_activation false", talk.with_text, of_texts)


def _sglang(talk: Conversation) -> Iterator[Observation]:
    def classify(body: Mapping[str, Any]) -> list[Any]:
        answer = talk.server.ask("/classify", body)
        return [entry["embedding"] for entry in (answer if isinstance(answer, list) else [answer])]

    yield talk.observe("/classify, token ids", talk.every, lambda: classify({"input_ids": talk.ids}))
    # SGLang always lets the tokenizer add its special tokens.
    rows = talk.golden.rows
    fitting = [index for index in talk.with_text if text_ids(rows[index], talk.tokenizer, True) == rows[index].ids]
    if talk.with_text and not fitting:
        reason = "SGLang adds special tokens to every text, and these have theirs already: send token ids"
        yield Observation("sglang /classify, texts", skipped=reason)
        return
    texts = [rows[index].text for index in fitting]
    yield talk.observe("/classify, texts", fitting, lambda: classify({"text": texts}))


def _openrlhf(talk: Conversation) -> Iterator[Observation]:
    texts = [talk.golden.rows[index].text for index in talk.with_text]
    body = {"query": texts, "prompts": texts, "labels": [""] * len(texts)}

    def get_reward() -> list[Any]:
        return list(talk.server.ask("/get_reward", body)["rewards"])

    yield talk.observe("/get_reward, texts", talk.with_text, get_reward, calibrated=True)


_PATHS: dict[ServerKind, Callable[[Conversation], Iterator[Observation]]] = {
    "plaudit": _plaudit,
    "vllm": _vllm,
    "sglang": _sglang,
    "openrlhf": _openrlhf,
}


def _probs(answer: Any) -> list[Any]:
    return [entry["probs"] for entry in sorted(answer["data"], key=lambda entry: entry.get("index", 0))]
