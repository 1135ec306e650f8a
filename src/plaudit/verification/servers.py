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

from plaudit.errors import ConfigError
from plaudit.model.calibration import load_calibration
from plaudit.verification.diagnosis import Observation
from plaudit.verification.local_paths import NO_TEXT, Subject, needs_special_tokens, row_to_score, text_ids

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


Forms: TypeAlias = Iterator[tuple[str, Sequence[int], Callable[[], Sequence[Any]]]]
"""Ways to send golden rows to a server: a name, the rows, and a function that sends them and returns the rewards."""


def server_paths(server: Server, subject: Subject) -> Iterator[Observation]:
    """Sends the golden rows in every form that the server takes; observes the rewards, or why there are none."""
    golden, calibration = subject.golden, load_calibration(subject.source.name, subject.source.revision)
    for form, indices, send in _FORMS[server.kind](server, subject):
        path, rows = f"{server.kind} {form}", tuple(indices)
        if not rows:
            yield Observation(path, skipped=_ONLY_IDS if subject.rows_with_text else NO_TEXT)
            continue
        try:
            rewards = tuple(_number(value) for value in send())
            problem = "" if len(rewards) == len(rows) else f"{len(rewards)} rewards came for {len(rows)} rows"
        except ConfigError as error:
            problem = str(error)
        except (KeyError, IndexError, TypeError) as error:
            problem = f"its answer has another form ({type(error).__name__}: {error})"
        if problem:
            yield Observation(path, rows, problem=problem)
            continue
        expected = None
        if server.kind in ("plaudit", "openrlhf") and calibration is not None and calibration.changes_rewards:
            expected = tuple(calibration.reward(golden.rows[row].reward) for row in rows)
        # The precision of other servers is unknown.
        dtype = str(server.ask("/health").get("dtype", golden.dtype)) if server.kind == "plaudit" else golden.dtype
        yield Observation(path, rows, rewards, expected=expected, dtype=dtype)


def _number(value: Any) -> float:
    if isinstance(value, list):
        (value,) = value  # one output per row
    if value is None:
        return math.nan  # which JSON cannot hold
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no reward")
    return float(value)


def _plaudit(server: Server, subject: Subject) -> Forms:
    ids = [list(row.ids) for row in subject.golden.rows]
    rows = [row_to_score(subject.golden.rows[index]) for index in subject.rows_with_text]
    of_ids = [{"response_ids": [row_ids]} for row_ids in ids]
    yield "/score, token ids", subject.rows, lambda: [rewards[0] for rewards in server.ask("/score", of_ids)["rewards"]]
    yield "/score, messages or text", subject.rows_with_text, lambda: server.ask("/score", rows)["rewards"]
    yield "/classify, token ids", subject.rows, lambda: _probs(server.ask("/classify", {"input": ids}))
    yield from _openrlhf(server, subject)


def _vllm(server: Server, subject: Subject) -> Forms:
    ids = [list(row.ids) for row in subject.golden.rows]

    def classify(body: Mapping[str, Any]) -> list[Any]:
        model = server.ask("/v1/models")["data"][0]["id"]
        return _probs(server.ask("/classify", {"model": model, "input": ids, **body}))

    raw = {"use_activation": False}

    def of_texts() -> list[Any]:
        rewards = []
        for row in (subject.golden.rows[index] for index in subject.rows_with_text):
            special = needs_special_tokens(row, subject.tokenizer)
            rewards += classify({"input": [row.text], "add_special_tokens": special, **raw})
        return rewards

    yield "/classify, token ids", subject.rows, lambda: classify({})
    yield "/classify, token ids, use_activation false", subject.rows, lambda: classify(raw)
    yield "/classify, texts, use_activation false", subject.rows_with_text, of_texts


_ONLY_IDS = "SGLang adds special tokens to every text, and these have theirs already: send token ids"


def _sglang(server: Server, subject: Subject) -> Forms:
    def classify(body: Mapping[str, Any]) -> list[Any]:
        answer = server.ask("/classify", body)
        return [entry["embedding"] for entry in (answer if isinstance(answer, list) else [answer])]

    rows, tokenizer = subject.golden.rows, subject.tokenizer
    # SGLang always lets the tokenizer add its special tokens.
    fitting = [index for index in subject.rows_with_text if text_ids(rows[index], tokenizer, True) == rows[index].ids]
    texts = [rows[index].text for index in fitting]
    yield "/classify, token ids", subject.rows, lambda: classify({"input_ids": [list(row.ids) for row in rows]})
    yield "/classify, texts", fitting, lambda: classify({"text": texts})


def _openrlhf(server: Server, subject: Subject) -> Forms:
    texts = [subject.golden.rows[index].text for index in subject.rows_with_text]
    body = {"query": texts, "prompts": texts, "labels": [""] * len(texts)}
    yield "/get_reward, texts", subject.rows_with_text, lambda: server.ask("/get_reward", body)["rewards"]


_FORMS: dict[ServerKind, Callable[[Server, Subject], Forms]] = {
    "plaudit": _plaudit,
    "vllm": _vllm,
    "sglang": _sglang,
    "openrlhf": _openrlhf,
}


def _probs(answer: Any) -> list[Any]:
    return [entry["probs"] for entry in sorted(answer["data"], key=lambda entry: entry.get("index", 0))]
