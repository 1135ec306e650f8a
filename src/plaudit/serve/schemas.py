"""What the OpenAPI page says of the routes that take rows."""

from __future__ import annotations

import ipaddress
import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, Literal, TypeAlias, get_args

from transformers import PreTrainedTokenizerBase

from plaudit.data.encode import ConversationEncoder
from plaudit.data.fast_encode import RENDER_ERRORS
from plaudit.data.parse import is_one_row, kind_of
from plaudit.errors import ConfigError
from plaudit.serve.errors import RequestError

TextForm: TypeAlias = Literal["auto", "rendered", "plain"]
"""What whole texts are: written by the chat template, or plain; ``auto`` looks for the template's marks."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        api_key: What clients must send (None: anyone may ask).
        name: What the model is called in answers (None: as it was loaded).
        max_wait_ms: How long the first request of a batch waits for others, in milliseconds.
        max_queue: Most responses that wait.
        max_body_bytes: Largest body of a request, in bytes.
        read_timeout: Longest time that a body may take to arrive, in seconds.
        stop_timeout: Longest time that accepted requests get when the server stops, in seconds.
        texts: What the texts of ``/get_reward`` and ``/classify`` are.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    name: str | None = None
    max_wait_ms: float = 2.0
    max_queue: int = 4096
    max_body_bytes: int = 8 * 2**20
    read_timeout: float = 30.0
    stop_timeout: float = 60.0
    texts: TextForm = "auto"

    def __post_init__(self) -> None:
        for name in ("max_queue", "max_body_bytes", "read_timeout", "stop_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` is {getattr(self, name)}", fix="Use a positive number.")
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"`port` is {self.port}", fix="Use a number from 0 to 65535; 0 takes a free port.")
        if not 0 <= self.max_wait_ms <= 10_000:
            raise ConfigError(f"`max_wait_ms` is {self.max_wait_ms}", fix="Use some milliseconds, or 0.")
        if self.texts not in get_args(TextForm):
            raise ConfigError(f"`texts` is {self.texts!r}", fix=f"Use one of {', '.join(get_args(TextForm))}.")
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("`api_key` is empty", fix="Give a key, or none at all.")

    @property
    def is_local(self) -> bool:
        """Whether only programs on the same machine can ask."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return False


WORD_BYTES = 4 * 2**20
"""What the words of earlier requests may take: a server runs for months, and others' texts bring new ones for ever."""
_USER, _ASSISTANT = "Zu7q", "Za7q"


class WholeTexts:
    """Turns a whole text into a row that gets the reward of the conversation or the plain text that it is.

    A text rendered by the chat template is tokenised as it stands: its special tokens are in it, and none is added.
    What the template prints after the last answer is completed: a policy stops at its end token, before the line
    break that many templates print after it, and the reward would be read at another token than in training. A
    plain text gets one eos token at its end, as in training, also if it has one already.

    Args:
        tokenizer: The model's tokenizer.
        form: What texts are; ``"auto"`` takes a text for rendered if the template's beginning of an answer is in it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: TextForm = "auto") -> None:
        self._form = form
        self._header, self._ending = _marks_of(tokenizer)
        self._encoder = ConversationEncoder(tokenizer)
        self._encoder.cache_bytes = WORD_BYTES
        self._bos, self._eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")

    def row(self, text: str) -> Any:
        """The row to score for a text.

        Args:
            text: A prompt with its response.
        """
        if not self._is_rendered(text):
            return text.removeprefix(self._bos).removesuffix(self._eos)
        if self._eos not in self._ending:
            text = text.removesuffix(self._eos)
        return {"response_ids": self._encoder.tokenize([text + self._missing_ending(text)])}

    def _is_rendered(self, text: str) -> bool:
        if self._form == "auto":
            return bool(self._header) and self._header in text
        return self._form == "rendered"

    def _missing_ending(self, text: str) -> str:
        there = next(size for size in range(len(self._ending), -1, -1) if text.endswith(self._ending[:size]))
        return self._ending[there:]


def _marks_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template prints before an answer, however it goes on, and after the last one."""
    if not tokenizer.chat_template:
        return "", ""
    question = {"role": "user", "content": _USER}
    try:
        whole = str(
            tokenizer.apply_chat_template([question, {"role": "assistant", "content": _ASSISTANT}], tokenize=False)
        )
        asked = str(tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True))
    except RENDER_ERRORS:
        return "", ""
    before, found, ending = whole.rpartition(_ASSISTANT)
    if not found or _USER not in before or _USER not in asked:
        return "", ""
    between, prompt = before.rpartition(_USER)[2], asked.rpartition(_USER)[2]
    # Templates may print more before an answer than before a generation, an empty thought for one.
    same = takewhile(lambda pair: pair[0] == pair[1], zip(between, prompt, strict=False))
    return "".join(one for one, _ in same).strip(), ending


_ROW = (
    "Send a row, or a list of rows: a text, a list of messages, or an object with `response`, `responses`, or `chosen` "
    "and `rejected`, and maybe `prompt`."
)
_RANK = 'Send {"prompt": ..., "responses": [...]}.'
_QUERY = 'Send {"query": ["prompt and response", ...]}; `prompts` and `labels` may come with it.'
_INPUT = 'Send {"input": "a text"}, a list of texts, token ids, or {"messages": [...]}.'


@dataclass(frozen=True)
class Scored:
    """What came out for one row.

    Attributes:
        rewards: Shaped like the row.
        tokens: Tokens of its responses, prompts included.
        cut: Whether it was too long and is cut.
    """

    rewards: float | list[float] | tuple[float, float]
    tokens: int
    cut: bool = False

    @property
    def single(self) -> float:
        """The reward of a row with one response."""
        return self.rewards if isinstance(self.rewards, float) else self.rewards[0]


@dataclass(frozen=True)
class Question:
    """What a request asks.

    Attributes:
        rows: The rows to score.
        place: Where in the body row ``g`` and a field of it are.
        answer: Makes the answer of what came out.
    """

    rows: list[Any]
    place: Callable[[int | None, str | None], str | None]
    answer: Callable[[Sequence[Scored]], dict[str, Any]]


@dataclass(frozen=True)
class Served:
    """What forms need to know of the model.

    Attributes:
        name: What it is called.
        label: Name of its only output.
        texts: Turns whole texts into rows.
    """

    name: str
    label: str
    texts: WholeTexts


def number(reward: float) -> float | None:
    """A reward as JSON: null where it is no finite number.

    Args:
        reward: It.

    >>> number(0.5), number(float("nan"))
    (0.5, None)
    """
    return reward if math.isfinite(reward) else None


def _required_number(scored: Scored, place: str) -> float:
    if math.isfinite(scored.single):
        return scored.single
    raise RequestError(500, "the model's reward is no finite number", field=place, fix="Use /score, which gives null.")


def _with_cuts(answer: dict[str, Any], scored: Sequence[Scored]) -> dict[str, Any]:
    """Add what was done to rows without being asked for in the request."""
    cut = [index for index, one in enumerate(scored) if one.cut]
    return {**answer, "truncated": cut} if cut else answer


def score(body: Any, served: Served) -> Question:
    """The form of ``/score``: a row or a list of rows.

    Args:
        body: The request.
        served: The model.

    Raises:
        RequestError: It is neither.
    """
    one = is_one_row(body)
    rows = [body] if one else body
    if not isinstance(rows, list):
        raise RequestError(422, f"the body is {kind_of(body)}, nothing that can be scored", fix=_ROW)
    if not rows:
        raise RequestError(422, "the body is an empty list", fix=_ROW)

    def place(row: int | None, field: str | None) -> str | None:
        if one or row is None:
            return field
        return f"[{row}].{field}" if field else f"[{row}]"

    def answer(scored: Sequence[Scored]) -> dict[str, Any]:
        rewards = [
            number(row.rewards) if isinstance(row.rewards, float) else [number(one) for one in row.rewards]
            for row in scored
        ]
        told = {"model": served.name, "rewards": rewards[0] if one else rewards}
        return _with_cuts({**told, "tokens": sum(row.tokens for row in scored)}, scored)

    return Question(rows, place, answer)


def rank(body: Any, served: Served) -> Question:
    """The form of ``/rank``: several responses to one prompt.

    Args:
        body: The request.
        served: The model.

    Raises:
        RequestError: It is none.
    """
    fields = _object(body, "responses", _RANK)
    responses = _filled_list(fields["responses"], "responses", _RANK)
    # To a prompt of messages, a text is what the assistant says.
    asked = isinstance(fields.get("prompt"), list)
    replies = [[{"role": "assistant", "content": one}] if asked and isinstance(one, str) else one for one in responses]
    beside = _beside(fields, "prompt")

    def answer(scored: Sequence[Scored]) -> dict[str, Any]:
        (row,) = scored
        rewards = list(row.rewards) if not isinstance(row.rewards, float) else [row.rewards]
        # A reward that is no number is neither above nor below anything: last.
        order = sorted(
            range(len(rewards)), key=lambda n: (math.isnan(rewards[n]), 0.0 if math.isnan(rewards[n]) else -rewards[n])
        )
        ranking = [{"position": n, "reward": number(rewards[n]), "response": responses[n]} for n in order]
        return _with_cuts({"model": served.name, "order": order, "ranking": ranking, "tokens": row.tokens}, scored)

    return Question([{**beside, "responses": replies}], lambda row, field: field, answer)


def get_reward(body: Any, served: Served) -> Question:
    """The form of ``/get_reward``, which OpenRLHF calls: whole texts, prompt and response together.

    Args:
        body: The request; ``prompts`` and ``labels`` belong to it and are not needed.
        served: The model.

    Raises:
        RequestError: It is none.
    """
    fields = _object(body, "query", _QUERY)
    query = fields["query"] if not isinstance(fields["query"], str) else [fields["query"]]
    texts = _texts(_filled_list(query, "query", _QUERY), "query", _QUERY)
    for name in ("prompts", "labels"):
        beside = fields.get(name)
        if isinstance(beside, list) and len(beside) != len(texts):
            raise RequestError(422, f"has {len(beside)} entries for {len(texts)} queries", field=name, fix=_QUERY)

    def answer(scored: Sequence[Scored]) -> dict[str, Any]:
        rewards = [_required_number(one, f"query[{index}]") for index, one in enumerate(scored)]
        return {"rewards": rewards, "scores": rewards, "extra_logs": {}}

    return Question([served.texts.row(text) for text in texts], _numbered("query"), answer)


def classify(body: Any, served: Served) -> Question:
    """The form of ``/classify``, as vLLM has it, with the raw reward as the only entry of ``probs``.

    Args:
        body: The request.
        served: The model.

    Raises:
        RequestError: It is none, asks for another model (404), or for what is not done here.
    """
    fields = _object(body, "messages" if isinstance(body, dict) and "messages" in body else "input", _INPUT)
    if fields.get("model") not in (None, served.name):
        raise RequestError(
            404,
            f"there is no model {fields['model']!r} here, only {served.name!r}",
            field="model",
            fix="Name that one.",
        )
    for name in ("use_activation", "activation", "softmax", "truncate_prompt_tokens"):
        if fields.get(name):
            raise RequestError(
                422,
                f"is {fields[name]!r}: rewards are raw and whole here",
                field=name,
                fix="Leave it out, and apply a function such as the logistic one to differences of rewards.",
            )
    rows, place = _classify_rows(fields, served)

    def answer(scored: Sequence[Scored]) -> dict[str, Any]:
        data = [
            {
                "index": index,
                "label": served.label,
                "probs": [_required_number(one, f"input[{index}]")],
                "num_classes": 1,
            }
            for index, one in enumerate(scored)
        ]
        tokens = sum(one.tokens for one in scored)
        return {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": served.name,
            "data": data,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
        }

    return Question(rows, place, answer)


def _classify_rows(
    fields: Mapping[str, Any], served: Served
) -> tuple[list[Any], Callable[[int | None, str | None], str | None]]:
    if "messages" in fields:
        messages = _filled_list(fields["messages"], "messages", _INPUT)
        return [{**_beside(fields), "messages": messages}], lambda row, field: field
    given = fields["input"]
    if isinstance(given, str):
        given = [given]
    given = _filled_list(given, "input", _INPUT)
    if all(isinstance(one, int) and not isinstance(one, bool) for one in given):
        given = [given]
    if all(isinstance(one, list) for one in given):
        return [{"response_ids": [ids]} for ids in given], _numbered("input")
    return [served.texts.row(text) for text in _texts(given, "input", _INPUT)], _numbered("input")


def _object(body: Any, required: str, fix: str) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise RequestError(422, f"the body is {kind_of(body)}, not an object", fix=fix)
    if body.get(required) is None:
        problem = "is null" if required in body else "is missing"
        raise RequestError(422, problem, field=required, fix=fix)
    return body


def _beside(fields: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """What belongs to responses beside them."""
    return {name: fields[name] for name in (*more, "tools", "chat_template_kwargs") if fields.get(name) is not None}


def _filled_list(value: Any, field: str, fix: str) -> list[Any]:
    if not isinstance(value, list):
        raise RequestError(422, f"is {kind_of(value)}, not a list", field=field, fix=fix)
    if not value:
        raise RequestError(422, "is an empty list", field=field, fix=fix)
    return value


def _texts(values: Sequence[Any], field: str, fix: str) -> list[str]:
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise RequestError(422, f"is {kind_of(value)}, not a text", field=f"{field}[{index}]", fix=fix)
        if not value:
            raise RequestError(422, "is an empty text", field=f"{field}[{index}]", fix=fix)
    return list(values)


def _numbered(name: str) -> Callable[[int | None, str | None], str | None]:
    return lambda row, field: name if row is None else f"{name}[{row}]"


DESCRIPTION = (
    "Rewards of a reward model, the same as `RewardModel.score` gives in Python: raw, higher is better, and only "
    "differences between responses to the same prompt mean something. Requests that arrive together are computed "
    'together. Every error has the body `{"error": {"message", "field", "fix"}}`.'
)
_CHAT = [{"role": "user", "content": "What color is the sky?"}, {"role": "assistant", "content": "It is blue."}]
_TEXT = {"type": "string"}
_MESSAGES = {
    "type": "array",
    "items": {"type": "object", "required": ["role"], "properties": {"role": _TEXT, "content": {}}},
}
_SAID = {"anyOf": [_TEXT, _MESSAGES]}
_IDS = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_BESIDE = {
    "prompt": _SAID,
    "tools": {"type": "array", "items": {"type": "object"}},
    "chat_template_kwargs": {"type": "object"},
}
_ROW_OF_OPENAPI = {
    "anyOf": [
        _TEXT,
        _MESSAGES,
        {
            "type": "object",
            "properties": {
                **_BESIDE,
                "messages": _MESSAGES,
                "response": _SAID,
                "responses": {"type": "array", "items": _SAID, "minItems": 1},
                "chosen": _SAID,
                "rejected": _SAID,
                "response_ids": {"type": "array", "items": _IDS, "minItems": 1},
                "chosen_ids": _IDS,
                "rejected_ids": _IDS,
            },
        },
    ]
}


@dataclass(frozen=True)
class Body:
    """What a route takes and gives.

    Attributes:
        summary: In a line.
        description: In a paragraph.
        content: JSON schema of the request.
        examples: Requests by name; all can be sent.
        answer: What the first of them gets, say.
    """

    summary: str
    description: str
    content: dict[str, Any]
    examples: dict[str, Any]
    answer: Any

    def schema(self) -> dict[str, Any]:
        """The request body as OpenAPI has it."""
        examples = {name: {"value": value} for name, value in self.examples.items()}
        return {"required": True, "content": {"application/json": {"schema": self.content, "examples": examples}}}


BODIES = {
    "/score": Body(
        "Rewards of rows",
        "A row or a list of rows in any form of the data formats. The rewards have the shape of the rows: a number, a "
        "list for `responses`, two numbers for `chosen` and `rejected`. A reward that is no number is null.",
        {"anyOf": [_ROW_OF_OPENAPI, {"type": "array", "items": _ROW_OF_OPENAPI, "minItems": 1}]},
        {
            "a response": {"prompt": "2+2=", "response": "4"},
            "several responses": {"prompt": "2+2=", "responses": ["4", "5", "22"]},
            "a pair": {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
            "a conversation": {"messages": _CHAT},
            "several rows": [{"prompt": "2+2=", "response": "4"}, {"prompt": "2+2=", "chosen": "4", "rejected": "5"}],
        },
        {"model": "runs/first", "rewards": 0.71, "tokens": 6},
    ),
    "/rank": Body(
        "Responses to a prompt, the best first",
        "`order` has the positions of the responses, the best first, equal ones in the order given. To a prompt of "
        "messages, a text is what the assistant says.",
        {
            "type": "object",
            "required": ["responses"],
            "properties": {**_BESIDE, "responses": {"type": "array", "items": _SAID, "minItems": 1}},
        },
        {
            "texts": {"prompt": "2+2=", "responses": ["5", "4"]},
            "messages": {"prompt": _CHAT[:1], "responses": ["It is green.", "It is blue."]},
        },
        {
            "model": "runs/first",
            "order": [1, 0],
            "ranking": [
                {"position": 1, "reward": 0.71, "response": "4"},
                {"position": 0, "reward": -0.2, "response": "5"},
            ],
            "tokens": 12,
        },
    ),
    "/get_reward": Body(
        "The remote reward model that OpenRLHF calls",
        "`query` has whole texts, prompt and response together; `prompts` and `labels` may come with it. "
        "Texts that the chat template rendered are taken as they are, others as plain text.",
        {
            "type": "object",
            "required": ["query"],
            "properties": {
                "query": {"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]},
                "prompts": {"type": "array"},
                "labels": {"type": "array"},
            },
        },
        {"two": {"query": ["2+2=4", "2+2=5"], "prompts": ["2+2=", "2+2="], "labels": [None, None]}},
        {"rewards": [0.71, -0.2], "scores": [0.71, -0.2], "extra_logs": {}},
    ),
    "/classify": Body(
        "The classification route of vLLM",
        "`probs` has one entry, the raw reward: no sigmoid and no softmax is applied.",
        {
            "type": "object",
            "properties": {
                "model": _TEXT,
                "input": {"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": [_TEXT, _IDS]}}, _IDS]},
                "messages": _MESSAGES,
            },
        },
        {"texts": {"input": ["2+2=4", "2+2=5"]}, "a conversation": {"messages": _CHAT}},
        {
            "id": "classify-0",
            "object": "list",
            "created": 1767225600,
            "model": "runs/first",
            "data": [{"index": 0, "label": "reward", "probs": [0.71], "num_classes": 1}],
            "usage": {"prompt_tokens": 6, "total_tokens": 6, "completion_tokens": 0},
        },
    ),
}
"""Request and answer of each route that takes rows."""


def error_answers() -> dict[int | str, dict[str, Any]]:
    """The errors that each of these routes may answer with."""
    reasons = {
        401: "The API key is missing or wrong.",
        413: "The body is too large, or the request larger than the queue.",
        422: "The body is not JSON in UTF-8, or something in it cannot be scored: `field` says what.",
        429: "The queue is full; `Retry-After` says when to try again.",
        500: "The model could not compute it.",
        503: "The server is stopping.",
    }
    example = {"error": {"message": "what is wrong", "field": "where", "fix": "what to do"}}
    return {
        status: {"description": reason, "content": {"application/json": {"example": example}}}
        for status, reason in reasons.items()
    }
