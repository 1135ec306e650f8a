"""Turns rows into examples, whatever form they have, and names what is wrong with a broken row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from plaudit.data.report import Flag
from plaudit.errors import DataError
from plaudit.schema import (
    PAIR_COLUMNS,
    READ_COLUMNS,
    RESPONSE_COLUMNS,
    ROW_KIND_COLUMNS,
    TOKENIZED_COLUMNS,
    Example,
    Label,
    RowKind,
    Shape,
    Text,
    columns_read,
    is_tokenized,
    quoted,
    response_field,
    row_kind_of,
    row_kinds_of,
)

# Arguments of `apply_chat_template` that decide the form of its result, not the text of the template.
_RESERVED_TEMPLATE_KWARGS = frozenset(
    ("conversation", "tools", "tokenize", "padding", "truncation", "max_length", "return_tensors")
) | {"return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"}
_SINGLE_RESPONSE = ("response", "completion", "messages")
_SCORABLE = (
    "Pass a text, a list of messages, or a mapping with `response`, `responses`, or `chosen` and `rejected`, and "
    "optionally `prompt`, `tools` and `chat_template_kwargs`."
)


@dataclass(frozen=True)
class Place:
    """The row that is being read, for error messages and for the types of its columns."""

    row: int
    dataset: str | None = None
    features: Mapping[str, Any] | None = None

    def refuse(self, field: str, message: str, fix: str) -> NoReturn:
        """Raises the error about a field of the row."""
        raise DataError(message, row=self.row, field=field, dataset=self.dataset, fix=fix)

    def feature(self, field: str) -> Any:
        """Returns the declared type of a column, or of an item such as ``responses[2]``; None if unknown."""
        name, bracket, _ = field.partition("[")
        feature = (self.features or {}).get(name)
        return item_feature(feature) if bracket else feature


# --- rows -----------------------------------------------------------------------------------------------------


def read_example(
    row: Any,
    *,
    row_number: int,
    dataset_name: str | None = None,
    labels: bool = True,
    tokenized: bool | None = None,
    conversational: bool | None = None,
    features: Mapping[str, Any] | None = None,
) -> Example:
    """Turns one row into an example: whole responses, and the label where it is asked for.

    Training, scoring, evaluation, ``plaudit check`` and the server all read rows here.

    Args:
        row: The columns of the row; those in :data:`~plaudit.schema.RAW_COLUMNS` are read. Without labels it may also
            be a text, a list of messages, or a mapping with ``completion`` or ``messages``.
        row_number: Its index in the data set as it was passed in, counted from 0.
        dataset_name: Which data set it is, for messages.
        labels: Whether to read what the row says about its responses. Scoring does not need it.
        tokenized: Whether the row holds token ids (None: decided by its columns).
        conversational: What the first row was (True: messages, False: text); None accepts both.
        features: Types of the columns as `datasets` declares them. They tell nulls that Arrow filled in, which are
            removed, from those inside a JSON value, which are kept. None removes all.

    Raises:
        DataError: The row cannot be read.

    >>> read_example({"prompt": "2+2=", "chosen": "4", "rejected": "5"}, row_number=0).responses
    ('2+2=4', '2+2=5')
    >>> row = {"prompt": "2+2=", "responses": ["4", "22", "5"], "ranks": [1, 3, 2]}
    >>> read_example(row, row_number=0).label.ratings
    (-1.0, -3.0, -2.0)
    >>> read_example("2+2=4", row_number=0, labels=False).responses
    ('2+2=4',)
    """
    place = Place(row_number, dataset_name, features)
    if not labels:
        return _read_unlabelled(row, place)
    if is_tokenized(row) if tokenized is None else tokenized:
        return _read_token_ids(row, place)
    row_kind = row_kind_of(row)
    return _read_texts(row, row_kind, _responses_of(row, row_kind, place), place, conversational)


def _read_unlabelled(row: Any, place: Place) -> Example:
    if isinstance(row, str | list | tuple):
        row = {"messages": row}
    if not isinstance(row, Mapping):
        raise DataError(f"is {kind_of(row)}, nothing that can be scored", row=place.row, fix=_SCORABLE)
    filled = {name for name, value in row.items() if value is not None}
    if set(TOKENIZED_COLUMNS) <= filled:
        return _read_token_ids({name: row[name] for name in TOKENIZED_COLUMNS}, place, labels=False)
    if "response_ids" in filled:
        return _read_token_ids({"response_ids": row["response_ids"]}, place, labels=False)
    row_kind: RowKind = "ratings"
    if filled & {*RESPONSE_COLUMNS, "responses"}:
        row_kind = "pairs" if filled & {*RESPONSE_COLUMNS} else "scores"
        return _read_texts(row, row_kind, _responses_of(row, row_kind, place), place, labels=False)
    name = next((name for names in (filled, row) for name in _SINGLE_RESPONSE if name in names), None)
    if name is None:
        found = quoted(map(str, row)) if row else "no columns"
        raise DataError(f"holds nothing to score; it has {found}", row=place.row, fix=_SCORABLE)
    if name == "messages":  # the whole conversation, whatever else a data set keeps beside it
        row = {column: value for column, value in row.items() if column != "prompt"}
    return _read_texts(row, row_kind, {name: row[name]}, place, labels=False)


def _responses_of(row: Mapping[str, Any], row_kind: RowKind, place: Place) -> dict[str, Any]:
    """Returns field -> response, not yet read."""
    if row_kind not in ("scores", "ranks"):
        return {name: row.get(name) for name in (RESPONSE_COLUMNS if row_kind == "pairs" else ("response",))}
    responses = row["responses"]
    if not isinstance(responses, list | tuple):
        fix = "Give a list of responses, each a text or a list of messages."
        place.refuse("responses", f"is {kind_of(responses)}, not a list of responses", fix)
    if not responses:
        place.refuse("responses", "is an empty list", "Drop the row, or add the responses.")
    return {response_field(row_kind, index): response for index, response in enumerate(responses)}


def _read_texts(
    row: Mapping[str, Any],
    row_kind: RowKind,
    fields: Mapping[str, Any],
    place: Place,
    conversational: bool | None = None,
    *,
    labels: bool = True,
) -> Example:
    texts = {field: read_text(value, field, place) for field, value in fields.items()}
    responses: list[Any] = list(texts.values())
    prompt: Any = None
    if "prompt" in row:
        prompt = texts["prompt"] = read_text(row["prompt"], "prompt", place)
    _check_one_form(texts, conversational, place)
    return Example(
        responses=tuple(responses if prompt is None else (prompt + response for response in responses)),
        row_kind=row_kind,
        label=read_label(row, row_kind, len(responses), place) if labels else Label(),
        tools=_read_tools(row.get("tools"), place),
        chat_template_kwargs=_read_template_kwargs(row.get("chat_template_kwargs"), place),
        fields=tuple(fields),
        flags=_flags_of(responses),
    )


def _check_one_form(texts: Mapping[str, Text], conversational: bool | None, place: Place) -> None:
    """Refuses a row that mixes plain text and messages, or differs from the first row; responses come before prompt."""
    forms = {field: not isinstance(text, str) for field, text in texts.items()}
    if len({*forms.values()}) == 1 and conversational in (None, *forms.values()):
        return
    name = {True: "a list of messages", False: "plain text"}
    reference, expected = next(iter(forms.items()))
    for field, form in forms.items():
        if form != expected:
            fix = f"Give {quoted(forms)} in one form: all plain text, or all lists of messages."
            place.refuse(field, f"is {name[form]}, but `{reference}` is {name[expected]}", fix)
    if conversational is not None and expected != conversational:
        message = f"is {name[expected]}, but the first row of the data set has {name[conversational]}"
        place.refuse(reference, message, "Give all rows of a data set in one form, or split it into two data sets.")


def _flags_of(responses: Sequence[Text]) -> int:
    """Returns what is suspicious about the responses, as the sum of the values of :class:`Flag`."""
    flags = 0
    if len(responses) > 1 and all(response == responses[0] for response in responses):
        flags |= Flag.IDENTICAL
    for response in responses:
        if isinstance(response, str):
            if not response.strip():
                flags |= Flag.EMPTY_RESPONSE
            continue
        last = response[-1]
        if last["role"] != "assistant":
            flags |= Flag.LAST_MESSAGE_NOT_ASSISTANT
        elif not last.get("tool_calls") and not content_text(last["content"]).strip():
            flags |= Flag.EMPTY_RESPONSE
    return flags


def _read_token_ids(row: Mapping[str, Any], place: Place, *, labels: bool = True) -> Example:
    """Reads ``chosen_ids`` and ``rejected_ids``, or ``response_ids``; a mixture of both kinds has all columns."""
    if row.get("response_ids") is None and ("response_ids" not in row or row.get("chosen_ids") is not None):
        ids = tuple(_read_ids(row.get(field), field, place) for field in TOKENIZED_COLUMNS)
        label = read_label(row, "pairs", 2, place) if labels else Label()
        return Example((), label=label, fields=TOKENIZED_COLUMNS, flags=_flags_of_ids(ids), response_ids=ids)
    values = row["response_ids"]
    if not isinstance(values, list | tuple) or not values:
        place.refuse("response_ids", "is no list of responses", "Give a list with the token ids of each response.")
    fields = tuple(f"response_ids[{index}]" for index in range(len(values)))
    ids = tuple(_read_ids(value, field, place) for field, value in zip(fields, values, strict=True))
    label = Label()
    if labels:
        pair = {name: row[name] for name in ("margin", "preference_prob") if row.get(name) is not None}
        label = Label(
            read_numbers(row.get("scores"), "scores", len(ids), place),
            margin=read_number(pair["margin"], "margin", place) if "margin" in pair else None,
            preference_prob=_read_probability(pair["preference_prob"], place) if "preference_prob" in pair else None,
            weight=_read_weight(row, place),
        )
    return Example((), "scores", label, fields=fields, flags=_flags_of_ids(ids), response_ids=ids)


def _flags_of_ids(ids: Sequence[Sequence[int]]) -> int:
    return Flag.IDENTICAL if len(ids) > 1 and all(response == ids[0] for response in ids) else 0


def _read_ids(value: Any, field: str, place: Place) -> list[int]:
    fix = "Give a non-empty list of token ids: whole numbers from 0 on."
    ids = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(ids, list | tuple):
        place.refuse(field, "is null" if ids is None else f"is {kind_of(ids)}, not a list of token ids", fix)
    if not ids:
        place.refuse(field, "is empty", fix)
    if set(map(type, ids)) == {int} and min(ids) >= 0:
        return list(ids)
    for index, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, Integral) or token < 0:
            place.refuse(f"{field}[{index}]", f"is {token!r}, not a token id", fix)
    return [int(token) for token in ids]


def shape_of(row: Any) -> tuple[Shape, int]:
    """Returns the shape of a row's rewards and its number of responses, also where the row cannot be read.

    >>> shape_of({"chosen": None, "rejected": "b"}), shape_of({"responses": ["a", None]}), shape_of(3)
    (('pair', 2), ('list', 2), ('one', 1))
    """
    if isinstance(row, Mapping):
        if any(row.get(name) is not None for name in RESPONSE_COLUMNS + TOKENIZED_COLUMNS):
            return "pair", 2
        for name in ("response_ids", "responses"):
            if row.get(name) is not None:
                return "list", len(row[name]) if isinstance(row[name], list | tuple) else 0
    return "one", 1


def is_one_row(rows: Any) -> bool:
    """Tells a single row (a text, a mapping, or one conversation) from several.

    >>> is_one_row("a text"), is_one_row([{"role": "user", "content": "Hi"}]), is_one_row([{"response": "Hi"}])
    (True, True, False)
    """
    if isinstance(rows, list | tuple) and rows:
        return all(isinstance(row, Mapping) and "role" in row for row in rows)
    return isinstance(rows, str | Mapping)


def prompt_of(row: Mapping[str, Any]) -> Any:
    """Returns the prompt of a raw row, which tells rows that share one; the row itself if it has none.

    The prompt is the column ``prompt``, or the messages that all conversations begin with, up to the last user turn.
    """
    if row.get("prompt") is not None:
        return row["prompt"]
    if is_tokenized(row):
        return row
    row_kind = row_kind_of(row)
    # The columns of other kinds may hold anything beside a pair.
    row = {name: row[name] for name in columns_read(row_kind) if name in row}
    columns = RESPONSE_COLUMNS if row_kind == "pairs" else ("response",)
    responses: list[Any] = row.get("responses") or [row.get(name) for name in columns]
    for response in responses:
        if not isinstance(response, list) or not all(isinstance(message, Mapping) for message in response):
            return row
    shared = 0
    while all(shared < len(response) and response[shared] == responses[0][shared] for response in responses):
        shared += 1
    first = responses[0]
    user_turns = [index for index in range(shared) if first[index].get("role") == "user"]
    return first[: user_turns[-1] + 1] if user_turns else row


# --- texts and messages -----------------------------------------------------------------------------------------


def read_text(value: Any, field: str, place: Place) -> Text:
    """Returns plain text, or a list of messages without the nulls that Arrow fills in."""
    if isinstance(value, str):
        return value
    if value is None:
        fix = "Drop the row, or put an empty text there if the response is empty."
        if field == "prompt":
            fix = "Fill it in; if the responses hold the whole conversation, remove the column `prompt`."
        place.refuse(field, "is null", fix)
    if not isinstance(value, list | tuple):
        fix = 'Give plain text, or a list of messages such as [{"role": "user", "content": "Hello"}].'
        if isinstance(value, Mapping) and "role" in value:
            fix = "Put the message into a list; if it was one, declare the column as a `List` of messages."
        place.refuse(field, f"is {kind_of(value)}, not text or a list of messages", fix)
    if not value:
        place.refuse(field, "is a list without messages", "Drop the row, or add the messages.")
    feature = item_feature(place.feature(field))
    return [
        # Most messages are a role and a text: there is nothing to clean or to refuse.
        message if _is_plain(message) else _read_message(message, f"{field}[{index}]", place, feature)
        for index, message in enumerate(value)
    ]


def _is_plain(message: Any) -> bool:
    return (
        type(message) is dict
        and len(message) == 2
        and type(message.get("content")) is str
        and type(message.get("role")) is str
        and message["role"] != ""
    )


def _read_message(message: Any, field: str, place: Place, feature: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        fix = 'Write each message as {"role": "user", "content": "Hello"}.'
        place.refuse(field, f"is {kind_of(message)}, not a message", fix)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        fix = "Give each message a `role`, such as `user` or `assistant`."
        if "from" in message and "value" in message:
            fix = "Rename `from` to `role` and `value` to `content` (this looks like ShareGPT data)."
        problem = "is missing" if role is None else f"is {kind_of(role)}, not the name of a role"
        place.refuse(f"{field}.role", problem, fix)
    content = message.get("content")
    if not isinstance(content, str):
        _check_content(message, f"{field}.content", place)
    clean = {
        key: value if isinstance(value, str) else without_nulls(value, _key_feature(feature, key))
        for key, value in message.items()
        if value is not None
    }
    if content is None:
        # Many templates print "None" or fail where a tool call has no text beside it.
        clean["content"] = ""
    return clean


def _check_content(message: Mapping[str, Any], field: str, place: Place) -> None:
    content = message.get("content")
    if content is None and message.get("tool_calls"):
        return
    if content is None:
        fix = "Fill in the text (it may be empty), or drop the row; only `tool_calls` can stand alone."
        place.refuse(field, "is null" if "content" in message else "is missing", fix)
    if not isinstance(content, list | tuple):
        place.refuse(field, f"is {kind_of(content)}, not text", "Turn the content into text.")
    for index, part in enumerate(content):
        item = f"{field}[{index}]"
        if not isinstance(part, Mapping):
            place.refuse(item, f"is {kind_of(part)}, not a part", 'Write {"type": "text", "text": "..."}.')
        if part.get("type") != "text":
            found = f"is {part.get('type')!r}: only text can be read"
            place.refuse(f"{item}.type", found, "Drop rows with other content.")
        if not isinstance(part.get("text"), str):
            place.refuse(f"{item}.text", f"is {kind_of(part.get('text'))}, not text", "Fill in the text.")


def content_text(content: Any) -> str:
    """Returns the text of a message's content, which may be a list of text parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _read_tools(value: Any, place: Place) -> list[Any] | None:
    fix = "Give a list of JSON schemas, or a JSON string that holds one."
    tools = _read_json(value, "tools", fix, place)
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list | tuple):
        place.refuse("tools", f"is {kind_of(tools)}, not a list", fix)
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            place.refuse(f"tools[{index}]", f"is {kind_of(tool)}, not the JSON schema of a tool", fix)
    return list(tools)


def _read_template_kwargs(value: Any, place: Place) -> Mapping[str, Any]:
    field = "chat_template_kwargs"
    fix = 'Give a mapping of names to values, such as {"enable_thinking": false}, or a JSON string of one.'
    kwargs = _read_json(value, field, fix, place)
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        place.refuse(field, f"is {kind_of(kwargs)}, not a mapping", fix)
    for name in kwargs:
        if name in _RESERVED_TEMPLATE_KWARGS:
            fix = "Remove it: it is not a variable of the template."
            place.refuse(f"{field}.{name}", "cannot be set for a single row", fix)
    return kwargs


def _read_json(value: Any, field: str, fix: str, place: Place) -> Any:
    # The nulls of JSON text are the author's own; Arrow adds nulls to other values.
    if not isinstance(value, str):
        return without_nulls(value, place.feature(field))
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        place.refuse(field, f"is not valid JSON: {error}", fix)


def without_nulls(value: Any, feature: Any = None) -> Any:
    """Copies a nested value without the keys that hold None.

    Arrow gives all mappings of a column the same keys and fills those that a row lacks with None. Values whose
    `feature` is ``Json`` are left as they are: Arrow fills in nothing there.

    >>> without_nulls({"name": "f", "arguments": {"city": "Bonn", "days": None}, "enum": [1, None]})
    {'name': 'f', 'arguments': {'city': 'Bonn'}, 'enum': [1, None]}
    """
    if _is_json(feature):
        return value
    if isinstance(value, Mapping):
        return {key: without_nulls(item, _key_feature(feature, key)) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        inner = item_feature(feature)
        return [without_nulls(item, inner) for item in value]
    return value


def _is_json(feature: Any) -> bool:
    return getattr(feature, "_type", None) == "Json"


def item_feature(feature: Any) -> Any:
    """Returns the type of a list's items; the parts of a JSON value are JSON."""
    return feature if _is_json(feature) else getattr(feature, "feature", None)


def _key_feature(feature: Any, key: str) -> Any:
    if _is_json(feature):
        return feature
    return feature.get(key) if isinstance(feature, Mapping) else None


def kind_of(value: Any) -> str:
    """Names the type of a value for an error message.

    >>> kind_of([1]), kind_of(2.5), kind_of(None)
    ('a list', 'the number 2.5', 'null')
    """
    if value is None:
        return "null"
    names = {str: "text", bool: "a truth value", dict: "a mapping", list: "a list"}
    if type(value) in names:
        return names[type(value)]
    return f"the number {value}" if isinstance(value, Real) else f"a {type(value).__name__}"


# --- labels -----------------------------------------------------------------------------------------------------


def read_label(row: Mapping[str, Any], row_kind: RowKind, num_responses: int, place: Place) -> Label:
    """Returns the label of a row, or raises `DataError` naming the field that cannot be read."""
    weight = _read_weight(row, place)
    if row_kind == "pairs":
        return _read_pair(row, weight, place)
    if row_kind == "labels":
        return Label((float(_read_flag(row.get("label"), "label", place)),), weight=weight)
    if row_kind == "ranks":
        return Label(_read_ranks(row.get("ranks"), num_responses, place), weight=weight)
    if row_kind == "ratings":
        return Label(_read_rating(row, place), weight=weight)
    return Label(read_numbers(row.get("scores"), "scores", num_responses, place), weight=weight)


def _read_pair(row: Mapping[str, Any], weight: float | None, place: Place) -> Label:
    margin = read_number(row["margin"], "margin", place) if "margin" in row else None
    tie = row.get("tie") is not None and _read_flag(row["tie"], "tie", place)
    preference_prob = row.get("preference_prob")
    if "preference_prob" in row and not (tie and preference_prob is None):
        preference_prob = _read_probability(preference_prob, place)
    if tie and preference_prob not in (None, 0.5):
        fix = "Set it to 0.5 or null, or set `tie` to false."
        place.refuse("preference_prob", f"is {preference_prob:g}, but the row is a tie", fix)
    return Label(margin=margin, preference_prob=0.5 if tie else preference_prob, weight=weight)


def _read_weight(row: Mapping[str, Any], place: Place) -> float | None:
    return read_number(row["weight"], "weight", place, at_least=0.0) if "weight" in row else None


def _read_probability(value: Any, place: Place) -> float:
    return read_number(value, "preference_prob", place, at_least=0.0, at_most=1.0)


def read_number(
    value: Any, field: str, place: Place, *, at_least: float = -math.inf, at_most: float = math.inf
) -> float:
    """Returns a finite number within bounds; null, truth values, text, NaN and infinity raise `DataError`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        found = value if isinstance(value, float) else kind_of(value)
        fix = f"Use a number in every row, or remove the column `{field.partition('[')[0]}`."
        place.refuse(field, f"is {found}, not a finite number", fix)
    number = float(value)
    if not at_least <= number <= at_most:
        allowed = f"{at_least:g} or more" if at_most == math.inf else f"between {at_least:g} and {at_most:g}"
        fix = f"Use a number that is {allowed}. To reverse a preference, swap `chosen` and `rejected`."
        place.refuse(field, f"is {number:g}", fix)
    return number


def read_numbers(values: Any, field: str, count: int, place: Place) -> tuple[float, ...]:
    """Returns one finite number per response."""
    values = values.tolist() if hasattr(values, "tolist") else values
    fix = "Use one number per response, in the same order."
    if not isinstance(values, list | tuple):
        place.refuse(field, f"is {kind_of(values)}, not a list of numbers", fix)
    if len(values) != count:
        place.refuse(field, f"has {len(values)} numbers for {count} response{'s'[: count != 1]}", fix)
    return tuple(read_number(value, f"{field}[{index}]", place) for index, value in enumerate(values))


def _read_flag(value: Any, field: str, place: Place) -> bool:
    if isinstance(value, Real) and value in (0, 1):  # includes False and True
        return bool(value)
    place.refuse(field, f"is {kind_of(value)}, not true or false", "Use true or false.")


def _read_rating(row: Mapping[str, Any], place: Place) -> tuple[float, ...]:
    field = "scores" if row.get("scores") is not None else "score"
    value = row.get(field)
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    elif isinstance(value, list | tuple):
        place.refuse(field, f"has {len(value)} numbers for 1 response", "Use one number.")
    return (read_number(value, field, place),)


def _read_ranks(values: Any, num_responses: int, place: Place) -> tuple[float, ...]:
    """Returns the ranks negated, so that higher is better everywhere."""
    ranks = read_numbers(values, "ranks", num_responses, place)
    for index, rank in enumerate(ranks):
        if rank < 1 or rank != int(rank):
            place.refuse(f"ranks[{index}]", f"is {rank:g}", "Use whole numbers from 1, the best.")
    previous = 0.0
    for position, rank in enumerate(sorted(ranks), start=1):
        # Both conventions for what follows a tie are in use: 1, 2, 2, 3 and, as in sports, 1, 2, 2, 4.
        if rank not in (previous, previous + 1, position):
            fix = "Number the ranks without gaps; responses that are equally good share a rank."
            place.refuse("ranks", f"has a {rank:g} but no {previous + 1:g}", fix)
        previous = rank
    return tuple(-rank for rank in ranks)


# --- data sets --------------------------------------------------------------------------------------------------

_TRAINED_TOGETHER: frozenset[RowKind] = frozenset(("pairs", "scores", "ranks"))
_NEUTRAL = {"tie": 0, "preference_prob": 1}  # what a pair without the column says


def survey(dataset: Dataset | IterableDataset) -> tuple[frozenset[RowKind], frozenset[str]]:
    """Returns the kinds of rows of a data set, and which of ``margin``, ``preference_prob`` and ``tie`` carry a value.

    A table is looked through; a stream is judged by its first row. Lists of token ids may be of any kind: no kinds
    are returned for them.
    """
    dataset = dataset.with_format(None)
    if dataset.column_names:
        # Other columns may hold pictures, or anything else that is slow to read.
        dataset = dataset.select_columns([name for name in dataset.column_names if name in READ_COLUMNS])
    row: Mapping[str, Any] = next(iter(dataset.take(1)), {})
    if is_tokenized(row):
        return frozenset() if "response_ids" in row else frozenset(["pairs"]), pair_columns_in(dataset, row)
    row_kinds = row_kinds_in(dataset, row)
    return row_kinds, pair_columns_in(dataset, row) if "pairs" in row_kinds else frozenset()


def row_kinds_in(dataset: Dataset | IterableDataset, first_row: Mapping[str, Any]) -> frozenset[RowKind]:
    """Returns the kinds of the rows of a raw data set; columns that are null in a stream's first row may come later.

    >>> pair, ranking = {"chosen": "a", "rejected": "b"}, {"responses": ["a", "b"], "ranks": [1, 2]}
    >>> nothing = dict.fromkeys([*pair, *ranking])
    >>> rows = Dataset.from_list([nothing | pair, nothing | ranking])
    >>> sorted(row_kinds_in(rows, rows[0]))
    ['pairs', 'ranks']
    """
    if isinstance(dataset, IterableDataset):
        row_kind = row_kind_of(first_row)
        later = row_kinds_of(name for name, value in first_row.items() if value is None)
        return frozenset([row_kind, *(kind for kind in later if {row_kind, kind} <= _TRAINED_TOGETHER)])
    if "chosen" in dataset.column_names and not _nulls(dataset, "chosen").any():
        return frozenset(["pairs"])
    if len(dataset) and len(row_kinds_of(dataset.column_names)) == 1:
        return frozenset(row_kinds_of(dataset.column_names))
    deciding = {name for columns in ROW_KIND_COLUMNS.values() for name in columns} | {"score"}
    filled = {name: ~_nulls(dataset, name) for name in deciding & set(dataset.column_names)}
    patterns = set(zip(*(column.tolist() for column in filled.values()), strict=True))
    return frozenset(
        row_kind_of({name: has or None for name, has in zip(filled, row, strict=True)}) for row in patterns
    )


def pair_columns_in(dataset: Dataset | IterableDataset, first_row: Mapping[str, Any]) -> frozenset[str]:
    """Returns those of ``margin``, ``preference_prob`` and ``tie`` that carry a value in some row.

    >>> rows = Dataset.from_dict({"chosen": ["a"], "rejected": ["b"], "tie": [False], "margin": [1.0]})
    >>> sorted(pair_columns_in(rows, rows[0]))
    ['margin']
    """
    names = {name for name in PAIR_COLUMNS if name in first_row}
    if isinstance(dataset, Dataset):
        names = {name for name in names if not _nulls(dataset, name).all()}
        names -= {name for name, value in _NEUTRAL.items() if name in names and _is_constant(dataset, name, value)}
    return frozenset(names)


def _is_constant(dataset: Dataset, name: str, value: float) -> bool:
    column = _column(dataset, name)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return False
    return not pc.any(pc.not_equal(column, value)).as_py()


def most_responses(dataset: Dataset) -> int:
    """Returns the largest number of responses in a row of a prepared data set.

    >>> most_responses(Dataset.from_dict({"response_ids": [[[1]], [[1], [2], [3]]], "scores": [[1.0], [1.0] * 3]}))
    3
    """
    if "response_ids" not in dataset.column_names:
        return 2
    return int(pc.max(pc.list_value_length(_column(dataset, "scores"))).as_py())


def _column(dataset: Dataset, name: str) -> pa.ChunkedArray:
    return dataset.select_columns([name]).with_format("arrow")[:][name]


def _nulls(dataset: Dataset, name: str) -> np.ndarray:
    if dataset.data.column(name).null_count == 0:
        return np.zeros(len(dataset), dtype=bool)
    return np.asarray(_column(dataset, name).is_null())
