"""The golden rows through a running server: ours, vLLM, SGLang, or whatever answers as OpenRLHF's reward models do."""

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
from plaudit.verification.local_paths import row_to_score, special_tokens_wanted
from plaudit.verification.observations import Observation

ServerKind: TypeAlias = Literal["auto", "plaudit", "vllm", "sglang", "openrlhf"]
"""What a server is; ``"auto"`` asks it."""
_TIMEOUT = 120.0


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: Where it is, without the route.
        kind: What it is.
        api_key: Sent as a bearer token (None: none is sent).
        timeout: Seconds to wait for an answer.
    """

    url: str
    kind: ServerKind = "auto"
    api_key: str | None = None
    timeout: float = _TIMEOUT

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise ConfigError(f"{self.url!r} is no URL of a server", fix="Write it as http://127.0.0.1:8000.")
        if self.kind not in get_args(ServerKind):
            raise ConfigError(f"`server` is {self.kind!r}", fix=f"Use one of {', '.join(get_args(ServerKind))}.")

    def ask(self, route: str, body: Any = None) -> Any:
        """What the server answers.

        Args:
            route: Such as ``/score``.
            body: What is sent, as JSON (None: GET).

        Raises:
            ConfigError: It cannot be reached, refuses, or answers no JSON.
        """
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if self.api_key:
            headers["Authorization"] = f"Bearer {self.api_key}"
        data = None if body is None else json.dumps(body).encode()
        url = self.url.rstrip("/") + route
        try:
            with urlopen(Request(url, data, headers), timeout=self.timeout) as answer:
                return json.load(answer)
        except HTTPError as error:
            said = error.read(500).decode(errors="replace").strip()
            key = " See --api_key." if error.code in (401, 403) else ""
            raise ConfigError(f"{url} answers {error.code}: {said}", fix=f"See the log of the server.{key}") from error
        except (OSError, HTTPException, ValueError) as error:
            raise ConfigError(
                f"{url} gives no answer that can be read ({type(error).__name__}: {error})",
                fix="Check that the server runs, and its address.",
            ) from error

    def routes(self) -> tuple[str, frozenset[str]]:
        """Title and routes, as its OpenAPI description tells them.

        Raises:
            ConfigError: It cannot be reached, or has none.
        """
        found = self.ask("/openapi.json")
        if not isinstance(found, dict) or not isinstance(found.get("paths"), dict):
            raise ConfigError(f"{self.url}/openapi.json is no OpenAPI description", fix="Say what it is with --server.")
        return str((found.get("info") or {}).get("title", "")), frozenset(found["paths"])


def kind_of_server(server: Server) -> ServerKind:
    """What a server is, by its routes.

    Args:
        server: It.

    Raises:
        ConfigError: It cannot be reached, or is none of those that are known.
    """
    if server.kind != "auto":
        return server.kind
    title, routes = server.routes()
    if title == "Plaudit" or {"/score", "/rank", "/get_reward"} <= routes:
        return "plaudit"
    if routes & {"/get_model_info", "/model_info", "/get_server_info"}:
        return "sglang"
    if routes & {"/classify", "/pooling"} and "/v1/models" in routes:
        return "vllm"
    if "/get_reward" in routes:
        return "openrlhf"
    raise ConfigError(
        f"{server.url} has no route that is known ({', '.join(sorted(routes)[:8]) or 'none'})",
        fix="Say what it is with --server plaudit, vllm, sglang or openrlhf; vLLM needs `--runner pooling`.",
    )


@dataclass(frozen=True)
class Conversation:
    """What is asked of a server.

    Attributes:
        server: The server.
        golden: The golden rows.
        tokenizer: The model's tokenizer (None: only token ids are sent).
        calibration: What our server turns rewards into, unless it is told not to.
    """

    server: Server
    golden: GoldenRows
    tokenizer: PreTrainedTokenizerBase | None
    calibration: RewardCalibration | None = None

    @property
    def texts(self) -> tuple[int, ...]:
        """Places of the golden rows whose text is known."""
        return tuple(place for place, row in enumerate(self.golden.rows) if row.text is not None)

    def ids(self, rows: Sequence[int]) -> list[list[int]]:
        """Token ids of some golden rows."""
        return [list(self.golden.rows[row].ids) for row in rows]

    def observed(
        self, path: str, rows: Sequence[int], answer: Callable[[], Sequence[Any]], *, calibrated: bool = False
    ) -> Observation:
        """What a route answers, or why it does not.

        Args:
            path: The route and form, in words.
            rows: The golden rows that are sent.
            answer: Asks, and picks the rewards out of what comes.
            calibrated: Whether the calibration is applied there.
        """
        path, rows = f"{self.server.kind} {path}", tuple(rows)
        if not rows:
            return Observation(path, skipped="the golden rows are token ids without their text")
        try:
            rewards = tuple(_number(one) for one in answer())
        except ConfigError as error:
            return Observation(path, rows, problem=str(error))
        except (KeyError, IndexError, TypeError) as error:
            return Observation(path, rows, problem=f"its answer has another form ({type(error).__name__}: {error})")
        if len(rewards) != len(rows):
            return Observation(path, rows, problem=f"{len(rewards)} rewards came for {len(rows)} rows")
        expected = None
        if calibrated and self.calibration is not None and self.calibration.changes_rewards:
            expected = tuple(self.calibration.reward(self.golden.rows[row].reward) for row in rows)
        return Observation(path, rows, rewards, expected=expected, dtype=self._dtype())

    def _dtype(self) -> str:
        """What our server computes in; of others it is not known."""
        if self.server.kind != "plaudit":
            return self.golden.dtype
        return str(self.server.ask("/health").get("dtype", self.golden.dtype))


def _number(value: Any) -> float:
    if isinstance(value, list):
        (value,) = value  # one output a row
    if value is None:
        return math.nan  # JSON has no word for it
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no reward")
    return float(value)


def server_paths(talk: Conversation) -> Iterator[Observation]:
    """Every form in which the server takes rows.

    Args:
        talk: What is asked, of a server whose kind is known.
    """
    row_kinds: Mapping[str, Callable[[Conversation], Iterator[Observation]]] = {
        "plaudit": _plaudit,
        "vllm": _vllm,
        "sglang": _sglang,
        "openrlhf": _openrlhf,
    }
    yield from row_kinds[talk.server.kind](talk)


def _plaudit(talk: Conversation) -> Iterator[Observation]:
    every, ask = range(len(talk.golden.rows)), talk.server.ask

    def of_ids() -> list[Any]:
        return [one[0] for one in ask("/score", [{"response_ids": [ids]} for ids in talk.ids(every)])["rewards"]]

    def of_rows() -> list[Any]:
        answer = ask("/score", [row_to_score(talk.golden.rows[row]) for row in talk.texts])
        return list(answer["rewards"])

    yield talk.observed("/score, token ids", every, of_ids, calibrated=True)
    yield talk.observed("/score, messages or text", talk.texts, of_rows, calibrated=True)
    yield talk.observed(
        "/classify, token ids", every, lambda: _probs(ask("/classify", {"input": talk.ids(every)})), calibrated=True
    )
    yield _get_reward(talk)


def _vllm(talk: Conversation) -> Iterator[Observation]:
    every, ask = range(len(talk.golden.rows)), talk.server.ask

    def classify(rows: Sequence[int], more: Mapping[str, Any]) -> list[Any]:
        model = ask("/v1/models")["data"][0]["id"]
        return _probs(ask("/classify", {"model": model, "input": talk.ids(rows), **more}))

    def of_texts() -> list[Any]:
        found = []
        for place in talk.texts:
            row = talk.golden.rows[place]
            special = talk.tokenizer is None or special_tokens_wanted(row, talk.tokenizer)
            found += classify((), {"input": [row.text], "add_special_tokens": special, "use_activation": False})
        return found

    yield talk.observed("/classify, token ids", every, lambda: classify(every, {}))
    yield talk.observed(
        "/classify, token ids, use_activation false", every, lambda: classify(every, {"use_activation": False})
    )
    yield talk.observed("/classify, texts, use_activation false", talk.texts, of_texts)


def _sglang(talk: Conversation) -> Iterator[Observation]:
    every = range(len(talk.golden.rows))
    yield talk.observed(
        "/classify, token ids", every, lambda: _embeddings(talk.server.ask("/classify", {"input_ids": talk.ids(every)}))
    )
    # It always lets the tokenizer add its special tokens.
    fitting = [place for place in talk.texts if talk.tokenizer is not None and special_tokens_fit(talk, place)]
    path = "/classify, texts"
    if talk.texts and not fitting:
        reason = "SGLang adds special tokens to every text, and these have theirs already: send token ids"
        yield Observation(f"sglang {path}", skipped=reason)
        return
    texts = [talk.golden.rows[place].text for place in fitting]
    yield talk.observed(path, fitting, lambda: _embeddings(talk.server.ask("/classify", {"text": texts})))


def special_tokens_fit(talk: Conversation, place: int) -> bool:
    """Whether a text gives the golden token ids where special tokens are added to it.

    Args:
        talk: What is asked.
        place: Place of the golden row.
    """
    row, tokenizer = talk.golden.rows[place], talk.tokenizer
    if tokenizer is None:
        return False
    ids: Any = tokenizer(row.text or "", verbose=False)["input_ids"]
    return tuple(ids) == row.ids


def _openrlhf(talk: Conversation) -> Iterator[Observation]:
    yield _get_reward(talk)


def _get_reward(talk: Conversation) -> Observation:
    texts = [talk.golden.rows[place].text for place in talk.texts]
    body = {"query": texts, "prompts": texts, "labels": [""] * len(texts)}
    return talk.observed(
        "/get_reward, texts", talk.texts, lambda: list(talk.server.ask("/get_reward", body)["rewards"]), calibrated=True
    )


def _probs(answer: Any) -> list[Any]:
    entries = sorted(answer["data"], key=lambda one: one.get("index", 0))
    return [one["probs"] for one in entries]


def _embeddings(answer: Any) -> list[Any]:
    return [one["embedding"] for one in (answer if isinstance(answer, list) else [answer])]
