"""The routes that take rows. Each declares its request, its answer, and how one becomes the other; see `ROUTES`."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema
from transformers import PreTrainedTokenizerBase

from plaudit.data.encode import ConversationEncoder
from plaudit.data.fast_encode import RENDER_ERRORS
from plaudit.data.parse import is_one_row, kind_of
from plaudit.serve.errors import RequestError
from plaudit.serve.settings import TextForm

SchemaT = TypeVar("SchemaT", bound=BaseModel)
WORD_BYTES = 4 * 2**20
"""Maximum size of the tokenizer cache: a server runs for months, and requests hold ever new words."""
_USER, _ASSISTANT = "Zu7q", "Za7q"


class Served:
    """What handlers need to know of the model: its name, the label of its only output, and the row of a whole text."""

    def __init__(self, name: str, label: str, tokenizer: PreTrainedTokenizerBase, texts: TextForm = "auto") -> None:
        self.name, self.label, self._texts = name, label, texts
        self._header, self._ending = _template_marks(tokenizer)
        self.encoder = ConversationEncoder(tokenizer)
        self.encoder.cache_bytes = WORD_BYTES
        self._bos, self._eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")

    def row(self, text: str) -> Any:
        """Returns a row with the reward of the conversation, or the plain text, that prompt and response are together.

        A text rendered by the chat template is tokenised as it stands: it holds its special tokens, and none is added.
        What the template prints after the last response is completed: a policy stops at its end token, before the line
        break that many templates print after it, and the reward would be read at another token than in training. A
        plain text gets one eos token at its end, as in training, also if it has one already.
        """
        rendered = bool(self._header) and self._header in text if self._texts == "auto" else self._texts == "rendered"
        if not rendered:
            return text.removeprefix(self._bos).removesuffix(self._eos)
        if self._eos not in self._ending:
            text = text.removesuffix(self._eos)
        present = next(size for size in range(len(self._ending), -1, -1) if text.endswith(self._ending[:size]))
        return {"response_ids": self.encoder.tokenize([text + self._ending[present:]])}


def _template_marks(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Returns what the chat template prints before any response, and after the last one."""
    if not tokenizer.chat_template:
        return "", ""
    prompt = [{"role": "user", "content": _USER}]
    conversation = [*prompt, {"role": "assistant", "content": _ASSISTANT}]
    try:
        whole = str(tokenizer.apply_chat_template(conversation, tokenize=False))
        generation = str(tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True))
    except RENDER_ERRORS:
        return "", ""
    before, mark, ending = whole.rpartition(_ASSISTANT)
    if not mark or _USER not in before or _USER not in generation:
        return "", ""
    # Templates may print more before a response than before a generation: an empty thought, for example.
    characters = zip(before.rpartition(_USER)[2], generation.rpartition(_USER)[2], strict=False)
    return "".join(first for first, _ in takewhile(lambda pair: pair[0] == pair[1], characters)).strip(), ending


@dataclass(frozen=True)
class Scored:
    """The rewards of one row."""

    rewards: list[float]  # of its responses; NaN where they are too long to be scored
    single: bool  # whether the row has one response, rather than a list of them
    tokens: int  # of its responses, prompts included
    truncated: bool = False

    def finite(self, field: str) -> float:
        """Returns the reward of a row with one response; raises `RequestError` where it is no number."""
        if math.isfinite(self.rewards[0]):
            return self.rewards[0]
        message = "the model's reward is no finite number"
        raise RequestError(500, message, field=field, fix="Use /score, which gives null.")


@dataclass(frozen=True)
class Question:
    """A request, as rows to score and a way to answer."""

    rows: list[Any]
    locate: Callable[[int, str | None], str | None]  # path in the body of row g, or of a field of it
    answer: Callable[[Sequence[Scored]], BaseModel]
    free: bool = False  # whether the rows have the columns of the client's data


def _counts(scored: Sequence[Scored]) -> dict[str, Any]:
    truncated = [index for index, row in enumerate(scored) if row.truncated]
    return {"tokens": sum(row.tokens for row in scored), **({"truncated": truncated} if truncated else {})}


def _validated(schema: type[SchemaT], body: Any, fix: str) -> SchemaT:
    """Returns a body as its request schema; raises `RequestError` with the field of the first problem."""
    if not isinstance(body, dict):
        raise RequestError(422, f"the body is {kind_of(body)}, not an object", fix=fix)
    try:
        return schema.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        value = first["input"]
        messages = {
            "missing": "is missing",
            "list_type": f"is {kind_of(value)}, not a list",
            "string_type": f"is {kind_of(value)}, not a text",
            "too_short": "is an empty list",
            "string_too_short": "is an empty text",
        }
        message = "is null" if value is None else messages.get(first["type"], first["msg"])
        names = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise RequestError(422, message, field="".join(names).removeprefix("."), fix=fix) from None


# ---- parts of requests: rows are checked by the row preparer, as in training, and only described here

_CHAT = [{"role": "user", "content": "What color is the sky?"}, {"role": "assistant", "content": "It is blue."}]
_MESSAGE_SCHEMA = {"type": "object", "required": ["role"], "properties": {"role": {"type": "string"}, "content": {}}}
_MESSAGES_SCHEMA = {"type": "array", "items": _MESSAGE_SCHEMA}
_STRING_SCHEMA = {"type": "string"}
_TEXT_SCHEMA = {"anyOf": [_STRING_SCHEMA, _MESSAGES_SCHEMA]}
_IDS_SCHEMA = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_INPUT_SCHEMA = {"anyOf": [_STRING_SCHEMA, {"type": "array", "items": {"anyOf": [_IDS_SCHEMA, _STRING_SCHEMA]}}]}
Messages = Annotated[Any, WithJsonSchema(_MESSAGES_SCHEMA)]
Text = Annotated[Any, WithJsonSchema(_TEXT_SCHEMA)]
Texts = Annotated[Any, WithJsonSchema({"type": "array", "items": _TEXT_SCHEMA, "minItems": 1})]
Ids = Annotated[Any, WithJsonSchema(_IDS_SCHEMA)]
Tools = Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "object"}})]
Variables = Annotated[Any, WithJsonSchema({"type": "object"})]
WholeText = Annotated[str, Field(strict=True, min_length=1)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class _Conversation(BaseModel):
    tools: Tools = None
    chat_template_kwargs: Variables = None

    def beside(self, *names: str) -> dict[str, Any]:
        """Returns what belongs to the responses beside them."""
        values = {name: getattr(self, name) for name in (*names, "tools", "chat_template_kwargs")}
        return {name: value for name, value in values.items() if value is not None}


class RowSchema(_Conversation):
    """A row in any form of the data formats."""

    prompt: Text = None
    messages: Messages = None
    response: Text = None
    responses: Texts = None
    chosen: Text = None
    rejected: Text = None
    response_ids: Annotated[Any, WithJsonSchema({"type": "array", "items": _IDS_SCHEMA, "minItems": 1})] = None
    chosen_ids: Ids = None
    rejected_ids: Ids = None


_ROW_SCHEMA = {"anyOf": [*_TEXT_SCHEMA["anyOf"], RowSchema.model_json_schema()]}


# ---- /score


class ScoreAnswer(BaseModel):
    """Rewards in the shape of the rows."""

    model: str
    rewards: float | list[float | list[float | None] | None] | None
    tokens: int
    truncated: list[int] = []  # rows that were truncated


def score(body: Any, served: Served) -> Question:
    """Handles /score: a row or a list of rows."""
    fix = (
        "Send a row, or a list of rows: a text, a list of messages, or an object with `response`, `responses`, or "
        "`chosen` and `rejected`, and maybe `prompt`."
    )
    single = is_one_row(body)
    rows = [body] if single else body
    if not isinstance(rows, list):
        raise RequestError(422, f"the body is {kind_of(body)}, nothing that can be scored", fix=fix)
    if not rows:
        raise RequestError(422, "the body is an empty list", fix=fix)

    def locate(row: int, field: str | None) -> str | None:
        return field if single else f"[{row}].{field}" if field else f"[{row}]"

    def answer(scored: Sequence[Scored]) -> ScoreAnswer:
        rewards: list[Any] = [row.rewards[0] if row.single else row.rewards for row in scored]
        return ScoreAnswer(model=served.name, rewards=rewards[0] if single else rewards, **_counts(scored))

    return Question(rows, locate, answer, free=True)


# ---- /rank


class RankRequest(_Conversation):
    """Several responses to one prompt."""

    prompt: Text = None
    responses: Annotated[list[Text], Field(strict=True, min_length=1)]


class RankedResponse(BaseModel):
    """A response with its position in the request."""

    position: int
    reward: float | None
    response: Any


class RankAnswer(BaseModel):
    """Positions of the responses, the best first."""

    model: str
    order: list[int]
    ranking: list[RankedResponse]
    tokens: int
    truncated: list[int] = []


def rank(body: Any, served: Served) -> Question:
    """Handles /rank: several responses to one prompt."""
    request = _validated(RankRequest, body, 'Send {"prompt": ..., "responses": [...]}.')
    given, chat = request.responses, isinstance(request.prompt, list)
    # To a prompt of messages, a text is what the assistant says.
    responses = [[{"role": "assistant", "content": r}] if chat and isinstance(r, str) else r for r in given]

    def answer(scored: Sequence[Scored]) -> RankAnswer:
        rewards = scored[0].rewards
        # A reward that is no number is neither above nor below anything: last.
        order = sorted(range(len(rewards)), key=lambda n: (math.isnan(rewards[n]), -rewards[n]))
        ranking = [RankedResponse(position=n, reward=rewards[n], response=given[n]) for n in order]
        return RankAnswer(model=served.name, order=order, ranking=ranking, **_counts(scored))

    return Question([{**request.beside("prompt"), "responses": responses}], lambda row, field: field, answer)


# ---- /get_reward


class GetRewardRequest(BaseModel):
    """Whole texts, prompt and response together, as OpenRLHF sends them."""

    query: Annotated[list[WholeText], BeforeValidator(_as_list), Field(strict=True, min_length=1)]
    prompts: Annotated[Any, WithJsonSchema({"type": "array"})] = None  # sent by OpenRLHF, and not needed
    labels: Annotated[Any, WithJsonSchema({"type": "array"})] = None  # likewise


class GetRewardAnswer(BaseModel):
    """Rewards as OpenRLHF reads them."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, Any]


def get_reward(body: Any, served: Served) -> Question:
    """Handles /get_reward, which OpenRLHF calls."""
    fix = 'Send {"query": ["prompt and response", ...]}; `prompts` and `labels` may come with it.'
    request = _validated(GetRewardRequest, body, fix)
    for name, beside in (("prompts", request.prompts), ("labels", request.labels)):
        if isinstance(beside, list) and len(beside) != len(request.query):
            message = f"has {len(beside)} entries for {len(request.query)} queries"
            raise RequestError(422, message, field=name, fix=fix)

    def answer(scored: Sequence[Scored]) -> GetRewardAnswer:
        rewards = [row.finite(f"query[{index}]") for index, row in enumerate(scored)]
        return GetRewardAnswer(rewards=rewards, scores=rewards, extra_logs={})

    return Question([served.row(text) for text in request.query], lambda row, field: f"query[{row}]", answer)


# ---- /classify


class ClassifyRequest(_Conversation):
    """Texts, token ids or a conversation, as vLLM takes them."""

    model_config = ConfigDict(extra="allow")
    model: Any = None
    input: Annotated[Any, WithJsonSchema(_INPUT_SCHEMA)] = None
    messages: Messages = None


class ClassifiedRow(BaseModel):
    """The reward of a row, as the only entry of `probs`."""

    index: int
    label: str
    probs: list[float]
    num_classes: int = 1


class Usage(BaseModel):
    """Number of tokens."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0


class ClassifyAnswer(BaseModel):
    """Raw rewards in the form of vLLM's classification route."""

    id: str
    object: str = "list"
    created: int
    model: str
    data: list[ClassifiedRow]
    usage: Usage


class _Input(BaseModel):
    input: Annotated[list[Any], BeforeValidator(_as_list), Field(strict=True, min_length=1)]


class _TextInput(BaseModel):
    input: list[WholeText]


class _ChatInput(BaseModel):
    messages: Annotated[list[Any], Field(strict=True, min_length=1)]


def classify(body: Any, served: Served) -> Question:
    """Handles /classify as vLLM does, with the raw reward as the only entry of `probs`."""
    fix = 'Send {"input": "a text"}, a list of texts, token ids, or {"messages": [...]}.'
    request = _validated(ClassifyRequest, body, fix)
    if request.model not in (None, served.name):
        message = f"there is no model {request.model!r} here, only {served.name!r}"
        raise RequestError(404, message, field="model", fix="Name that one.")
    for name in ("use_activation", "activation", "softmax", "truncate_prompt_tokens"):
        if body.get(name):
            message = f"is {body[name]!r}: rewards are raw and whole here"
            fix = "Remove it, and apply a function such as the logistic one to differences of rewards."
            raise RequestError(422, message, field=name, fix=fix)
    chat = "messages" in body
    if chat:
        rows = [{**request.beside(), "messages": _validated(_ChatInput, body, fix).messages}]
    else:
        given = _validated(_Input, body, fix).input
        if all(isinstance(value, int) and not isinstance(value, bool) for value in given):
            given = [given]
        if all(isinstance(value, list) for value in given):
            rows = [{"response_ids": [ids]} for ids in given]
        else:
            rows = [served.row(text) for text in _validated(_TextInput, {"input": given}, fix).input]

    def answer(scored: Sequence[Scored]) -> ClassifyAnswer:
        tokens = _counts(scored)["tokens"]
        return ClassifyAnswer(
            id=f"classify-{uuid.uuid4().hex}",
            object="list",
            created=int(time.time()),
            model=served.name,
            data=[
                ClassifiedRow(index=index, label=served.label, probs=[row.finite(f"input[{index}]")], num_classes=1)
                for index, row in enumerate(scored)
            ],
            usage=Usage(prompt_tokens=tokens, total_tokens=tokens, completion_tokens=0),
        )

    return Question(rows, lambda row, field: field if chat else f"input[{row}]", answer)


# ---- the table of routes


@dataclass(frozen=True)
class Route:
    """A route that takes rows: its handler, and its part of the OpenAPI page."""

    handler: Callable[[Any, Served], Question]
    summary: str
    description: str
    request: Mapping[str, Any]  # JSON schema
    answer: type[BaseModel]
    examples: Mapping[str, Any]  # requests by name; all can be sent
    example_answer: Mapping[str, Any]  # to the first of them


ROUTES = {
    "/score": Route(
        score,
        "Rewards of rows",
        "A row or a list of rows in any form of the data formats. The rewards have the shape of the rows: a number, a "
        "list for `responses`, two numbers for `chosen` and `rejected`. A reward that is no number is null.",
        {"anyOf": [_ROW_SCHEMA, {"type": "array", "items": _ROW_SCHEMA, "minItems": 1}]},
        ScoreAnswer,
        {
            "a response": {"prompt": "2+2=", "response": "4"},
            "several responses": {"prompt": "2+2=", "responses": ["4", "5", "22"]},
            "a pair": {"prompt": "2+2=", "chosen": "4", "rejected": "5"},
            "a conversation": {"messages": _CHAT},
            "several rows": [{"prompt": "2+2=", "response": "4"}, {"prompt": "2+2=", "chosen": "4", "rejected": "5"}],
        },
        {"model": "runs/first", "rewards": 0.71, "tokens": 6},
    ),
    "/rank": Route(
        rank,
        "Responses to a prompt, the best first",
        "`order` has the positions of the responses, the best first, equal ones in the order given. To a prompt of "
        "messages, a text is what the assistant says.",
        RankRequest.model_json_schema(),
        RankAnswer,
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
    "/get_reward": Route(
        get_reward,
        "The remote reward model that OpenRLHF calls",
        "`query` has whole texts, prompt and response together; `prompts` and `labels` may come with it. "
        "Texts that the chat template rendered are taken as they are, others as plain text.",
        GetRewardRequest.model_json_schema(),
        GetRewardAnswer,
        {"two": {"query": ["2+2=4", "2+2=5"], "prompts": ["2+2=", "2+2="], "labels": [None, None]}},
        {"rewards": [0.71, -0.2], "scores": [0.71, -0.2], "extra_logs": {}},
    ),
    "/classify": Route(
        classify,
        "The classification route of vLLM",
        "`probs` has one entry, the raw reward: no sigmoid and no softmax is applied.",
        ClassifyRequest.model_json_schema(),
        ClassifyAnswer,
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
"""The routes that take rows; to add one, add its entry here."""
