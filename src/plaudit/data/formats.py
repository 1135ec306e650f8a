"""Reads one raw row of preference data, in any supported form, and says what is wrong with a broken one."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from plaudit.data.columns import (
    RAW_COLUMNS,
    RESPONSE_COLUMNS,
    TOKENIZED_COLUMNS,
    check_columns,
    is_tokenized,
    legacy_columns,
    quoted,
)
from plaudit.data.report import Flag
from plaudit.errors import DataError
from plaudit.types import PreferenceExample, Text, TokenizedExample

__all__ = [
    "RAW_COLUMNS",
    "RESPONSE_COLUMNS",
    "TOKENIZED_COLUMNS",
    "check_columns",
    "is_tokenized",
    "legacy_columns",
    "read_example",
    "read_flagged_example",
    "read_tokenized_example",
    "without_nulls",
]

# Arguments of `apply_chat_template` which decide the result's form, not the template's text.
_RESERVED_TEMPLATE_KWARGS = frozenset(
    ("conversation", "tools", "tokenize", "padding", "truncation", "max_length", "return_tensors")
) | {"return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"}


@dataclass(frozen=True)
class _Place:
    """Where in the data set we are, for error messages."""

    row: int
    dataset: str | None
    features: Mapping[str, Any]

    def refuse(self, field: str, message: str, fix: str) -> NoReturn:
        raise DataError(message, row=self.row, field=field, dataset=self.dataset, fix=fix)


def read_example(
    row: Mapping[str, Any],
    *,
    row_number: int,
    dataset_name: str | None = None,
    conversational: bool | None = None,
    features: Mapping[str, Any] | None = None,
) -> PreferenceExample:
    """Read one raw row, in any of the supported forms, as a preference between whole responses.

    Args:
        row: The columns of the row; those in :data:`RAW_COLUMNS` are read, others ignored.
        row_number: Its index in the data set as it was passed in, counted from 0.
        dataset_name: Which data set it is.
        conversational: What the first row was (True: messages, False: text); None accepts both.
        features: Types of the columns as `datasets` declares them: they tell nulls that Arrow filled in,
            which are removed, from those inside a JSON value, which are the author's. None removes all.

    Raises:
        DataError: The row cannot be read as a preference.

    >>> read_example({"prompt": "2+2=", "chosen": "4", "rejected": "5"}, row_number=0).responses
    ('2+2=4', '2+2=5')
    """
    return read_flagged_example(
        row,
        row_number=row_number,
        dataset_name=dataset_name,
        conversational=conversational,
        features=features,
    )[0]


def read_flagged_example(
    row: Mapping[str, Any],
    *,
    row_number: int,
    dataset_name: str | None = None,
    conversational: bool | None = None,
    features: Mapping[str, Any] | None = None,
) -> tuple[PreferenceExample, int]:
    """Read one raw row like :func:`read_example`, and say what is suspicious about it.

    Args:
        row: The columns of the row.
        row_number: Its index in the data set as it was passed in, counted from 0.
        dataset_name: Which data set it is.
        conversational: What the first row was (True: messages, False: text); None accepts both.
        features: Types of the columns as `datasets` declares them: they tell nulls that Arrow filled in,
            which are removed, from those inside a JSON value, which are the author's. None removes all.

    Returns:
        The example, and the sum of the values of its :class:`~plaudit.data.report.Flag`.

    Raises:
        DataError: The row cannot be read as a preference.
    """
    place = _Place(row_number, dataset_name, features or {})
    fields = ("prompt", *RESPONSE_COLUMNS) if "prompt" in row else RESPONSE_COLUMNS
    texts = {field: _read_text(row.get(field), field, place) for field in fields}
    _check_one_form(texts, conversational, place)
    prompt: Any = texts.get("prompt")
    responses: list[Any] = [texts[field] for field in RESPONSE_COLUMNS]
    example = PreferenceExample(
        responses=tuple(responses if prompt is None else (prompt + response for response in responses)),
        margin=_read_margin(row["margin"], place) if "margin" in row else None,
        tools=_read_tools(row.get("tools"), place),
        chat_template_kwargs=_read_template_kwargs(row.get("chat_template_kwargs"), place),
    )
    return example, _suspicions(responses)


def read_tokenized_example(
    row: Mapping[str, Any], *, row_number: int, dataset_name: str | None = None
) -> TokenizedExample:
    """Read one row that comes as token ids.

    Args:
        row: The columns of the row: ``chosen_ids``, ``rejected_ids`` and optionally ``margin``.
        row_number: Its index in the data set as it was passed in, counted from 0.
        dataset_name: Which data set it is.

    Raises:
        DataError: The ids are not non-empty lists of non-negative whole numbers, or the margin is no number.

    >>> read_tokenized_example({"chosen_ids": [1, 2], "rejected_ids": [1, 3]}, row_number=0).response_ids
    ([1, 2], [1, 3])
    """
    place = _Place(row_number, dataset_name, {})
    ids = tuple(_read_ids(row.get(field), field, place) for field in TOKENIZED_COLUMNS)
    margin = _read_margin(row["margin"], place) if "margin" in row else 0.0
    return TokenizedExample(response_ids=ids, margin=margin)


def _check_one_form(texts: Mapping[str, Text], conversational: bool | None, place: _Place) -> None:
    forms = {field: not isinstance(text, str) for field, text in texts.items()}
    name = {True: "a list of messages", False: "plain text"}
    for field, form in forms.items():
        if form != forms["chosen"]:
            place.refuse(
                field,
                f"is {name[form]}, but `chosen` is {name[forms['chosen']]}",
                f"Give {quoted(forms)} in one form: all plain text, or all lists of messages.",
            )
    if conversational is not None and forms["chosen"] != conversational:
        place.refuse(
            "chosen",
            f"is {name[forms['chosen']]}, but the first row of the data set has {name[conversational]}",
            "Give all rows of a data set in one form, or split it into two data sets.",
        )


def _read_text(value: Any, field: str, place: _Place) -> Text:
    if isinstance(value, str):
        return value
    if value is None:
        fix = "Drop the row, or put an empty text there if the answer is empty."
        if field == "prompt":
            fix = "Fill it in; if the responses hold the whole conversation, remove the column `prompt`."
        place.refuse(field, "is null", fix)
    if not isinstance(value, (list, tuple)):
        fix = 'Give plain text, or a list of messages such as [{"role": "user", "content": "Hello"}].'
        if isinstance(value, Mapping) and "role" in value:
            fix = "Put the message into a list; if it was one, declare the column as a `List` of messages."
        place.refuse(field, f"is {_kind(value)}, not text or a list of messages", fix)
    if not value:
        place.refuse(field, "is a list without messages", "Drop the row, or add the messages.")
    feature = _item_feature(place.features.get(field))
    return [_read_message(message, f"{field}[{index}]", place, feature) for index, message in enumerate(value)]


def _read_message(message: Any, field: str, place: _Place, feature: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        place.refuse(
            field,
            f"is {_kind(message)}, not a message",
            'Write each message as {"role": "user", "content": "Hello"}.',
        )
    role = message.get("role")
    if not isinstance(role, str) or not role:
        fix = "Give each message a `role`, such as `user` or `assistant`."
        if "from" in message and "value" in message:
            fix = "Rename `from` to `role` and `value` to `content` (this looks like ShareGPT data)."
        place.refuse(
            f"{field}.role",
            "is missing" if role is None else f"is {_kind(role)}, not the name of a role",
            fix,
        )
    content = message.get("content")
    if not isinstance(content, str):
        _check_content(message, content, f"{field}.content", place)
    clean = {
        key: value if isinstance(value, str) else without_nulls(value, _key_feature(feature, key))
        for key, value in message.items()
        if value is not None
    }
    if content is None:
        # Many templates print "None" or fail where a call has no text beside it.
        clean["content"] = ""
    return clean


def _check_content(message: Mapping[str, Any], content: Any, field: str, place: _Place) -> None:
    if content is None:
        if not message.get("tool_calls"):
            place.refuse(
                field,
                "is null" if "content" in message else "is missing",
                "Fill in the text (it may be empty), or drop the row; only `tool_calls` can stand alone.",
            )
        return
    if not isinstance(content, (list, tuple)):
        place.refuse(field, f"is {_kind(content)}, not text", "Turn the content into text.")
    for index, part in enumerate(content):
        where = f"{field}[{index}]"
        if not isinstance(part, Mapping):
            place.refuse(where, f"is {_kind(part)}, not a part", 'Write {"type": "text", "text": "..."}.')
        if part.get("type") != "text":
            place.refuse(
                f"{where}.type",
                f"is {part.get('type')!r}: only text can be read",
                "Drop rows with other content.",
            )
        if not isinstance(part.get("text"), str):
            place.refuse(f"{where}.text", f"is {_kind(part.get('text'))}, not text", "Fill in the text.")


def _read_margin(value: Any, place: _Place) -> float:
    fix = "Give every row a finite number, or remove the column `margin`."
    if value is None:
        place.refuse("margin", "is null", fix)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        place.refuse("margin", f"is {_kind(value)}, not a number", fix)
    if not math.isfinite(value):
        place.refuse("margin", f"is {float(value)}, not a finite number", fix)
    return float(value)


def _read_tools(value: Any, place: _Place) -> list[Any] | None:
    fix = "Give a list of JSON schemas, or a JSON string that holds one."
    tools = _read_json(value, "tools", fix, place)
    if tools is None or tools == []:
        return None
    if not isinstance(tools, (list, tuple)):
        place.refuse("tools", f"is {_kind(tools)}, not a list", fix)
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            place.refuse(f"tools[{index}]", f"is {_kind(tool)}, not the JSON schema of a tool", fix)
    return list(tools)


def _read_template_kwargs(value: Any, place: _Place) -> Mapping[str, Any]:
    field = "chat_template_kwargs"
    fix = 'Give a mapping of names to values, such as {"enable_thinking": false}, or a JSON string of one.'
    kwargs = _read_json(value, field, fix, place)
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        place.refuse(field, f"is {_kind(kwargs)}, not a mapping", fix)
    for name in kwargs:
        if name in _RESERVED_TEMPLATE_KWARGS:
            place.refuse(
                f"{field}.{name}",
                "cannot be set for a single row",
                "Remove it: it is no variable of the template.",
            )
    return kwargs


def _read_json(value: Any, field: str, fix: str, place: _Place) -> Any:
    """Parse JSON text, whose nulls are the author's own; drop the nulls that Arrow adds to other values."""
    if not isinstance(value, str):
        return without_nulls(value, place.features.get(field))
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        place.refuse(field, f"is not valid JSON: {error}", fix)


def _read_ids(value: Any, field: str, place: _Place) -> list[int]:
    fix = "Give a non-empty list of token ids: whole numbers from 0 on."
    if value is None:
        place.refuse(field, "is null", fix)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        place.refuse(field, f"is {_kind(value)}, not a list of token ids", fix)
    if not value:
        place.refuse(field, "is empty", fix)
    ids = list(value)
    if set(map(type, ids)) == {int} and min(ids) >= 0:
        return ids
    for index, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, numbers.Integral) or token < 0:
            place.refuse(f"{field}[{index}]", f"is {token!r}, not a token id", fix)
    return [int(token) for token in ids]


def without_nulls(value: Any, feature: Any = None) -> Any:
    """Copy a nested value without the keys that hold None.

    Arrow gives all mappings of a column the same keys and fills those that a row lacks with None.

    Args:
        value: Any nesting of mappings and lists.
        feature: Its type as `datasets` declares it: values of the type ``Json``, where Arrow fills
            in nothing, are left as they are.

    >>> without_nulls({"name": "f", "arguments": {"city": "Bonn", "days": None}, "enum": [1, None]})
    {'name': 'f', 'arguments': {'city': 'Bonn'}, 'enum': [1, None]}
    """
    if _is_json(feature):
        return value
    if isinstance(value, Mapping):
        return {k: without_nulls(item, _key_feature(feature, k)) for k, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        inner = _item_feature(feature)
        return [without_nulls(item, inner) for item in value]
    return value


def _is_json(feature: Any) -> bool:
    return getattr(feature, "_type", None) == "Json"


def _item_feature(feature: Any) -> Any:
    """Type of the items of a list; a JSON value's parts are JSON."""
    return feature if _is_json(feature) else getattr(feature, "feature", None)


def _key_feature(feature: Any, key: str) -> Any:
    """Type of the value of one key; a JSON value's parts are JSON."""
    if _is_json(feature):
        return feature
    return feature.get(key) if isinstance(feature, Mapping) else None


def _suspicions(responses: Sequence[Text]) -> int:
    flags = 0
    if responses[0] == responses[1]:
        flags |= Flag.IDENTICAL
    for response in responses:
        if isinstance(response, str):
            if not response.strip():
                flags |= Flag.EMPTY_RESPONSE
            continue
        last = response[-1]
        if last["role"] != "assistant":
            flags |= Flag.LAST_MESSAGE_NOT_ASSISTANT
        elif not last.get("tool_calls") and not _content_text(last["content"]).strip():
            flags |= Flag.EMPTY_RESPONSE
    return flags


def _content_text(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _kind(value: Any) -> str:
    """Name the type of a value for an error message."""
    if value is None:
        return "null"
    names = {str: "text", bool: "a truth value", dict: "a mapping", list: "a list"}
    if type(value) in names:
        return names[type(value)]
    if isinstance(value, numbers.Real):
        return f"the number {value}"
    return f"a {type(value).__name__}"
