"""Turns rows into examples, whatever form they have, and names what is wrong with a broken row."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from plaudit import schema
from plaudit.data.report import Flag
from plaudit.errors import DataError
from plaudit.schema import RESPONSE_COLUMNS, TOKENIZED_COLUMNS, Example, Label, RowKind, Shape, Text, quoted

# Arguments of `apply_chat_template` that decide the form of its result, not the text of the template.
_RESERVED_TEMPLATE_KWARGS = frozenset(
    ("conversation", "tools", "tokenize", "padding", "truncation", "max_length", "return_tensors")
) | {"return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"}
_SINGLE_RESPONSE = ("response", "completion", "messages")
_SCORABLE = (
    "Pass a text, a list of messages, or a mapping with `response`, `responses`, or `chosen` and `rejected`, and "
    "optionally `prompt`, `tools` and `chat_template_kwargs`."
)
_BOUNDS = {"weight": (0.0, math.inf), "preference_prob": (0.0, 1.0)}


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

    Training, scoring, evaluation, ``plaudit check`` and the server all read rows here. Without `labels` a row may also
    be a text, a list of messages, or a mapping with ``completion`` or ``messages``. `tokenized` and `conversational`
    say what all rows hold (None: each row decides). `features`, the types of the columns, tell nulls that Arrow filled
    in, which are removed, from those inside a JSON value, which are kept; without them all are removed.

    >>> read_example({"prompt": "2+2=", "chosen": "4", "rejected": "5"}, row_number=0).responses
    ('2+2=4', '2+2=5')
    >>> row = {"prompt": "2+2=", "responses": ["4", "22", "5"], "ranks": [1, 3, 2]}
    >>> read_example(row, row_number=0).label.ratings
    (-1.0, -3.0, -2.0)
    >>> read_example("2+2=4", row_number=0, labels=False).responses
    ('2+2=4',)
    """
    reader = _RowReader(row_number, dataset_name, features or {})
    if not labels:
        row, row_kind, columns = reader.part_to_score(row)
        tokenized, conversational = columns[0].endswith("_ids"), None
    elif schema.is_tokenized(row) if tokenized is None else tokenized:
        # A mixture of pairs and lists has the columns of both.
        lists = row.get("response_ids") is not None or ("response_ids" in row and row.get("chosen_ids") is None)
        row_kind, columns = ("scores", ("response_ids",)) if lists else ("pairs", TOKENIZED_COLUMNS)
        tokenized = True
    else:
        tokenized, row_kind = False, schema.row_kind_of(row)
        columns = schema.ROW_KIND_COLUMNS[row_kind][: 2 if row_kind == "pairs" else 1]
    responses = reader.responses(row, columns)
    if tokenized:
        return reader.example_of_ids(row, row_kind, responses, labels)
    texts = {field: reader.text(value, field) for field, value in responses.items()}
    if "prompt" in row:
        texts["prompt"] = reader.text(row["prompt"], "prompt")
    reader.check_one_form(texts, conversational)
    prompt: Any = texts.pop("prompt", None)
    label = reader.label(row, row_kind, len(texts)) if labels else Label()
    tools, template_kwargs = reader.template_settings(row)
    return Example(
        responses=tuple(text if prompt is None else prompt + text for text in texts.values()),
        row_kind=row_kind,
        label=label,
        tools=tools,
        chat_template_kwargs=template_kwargs,
        fields=tuple(texts),
        flags=_flags_of([*texts.values()], prompt),
        prompt_size=0 if prompt is None else len(prompt),
    )


def begins_with(response: Any, prompt: Any) -> bool:
    """Tells whether a response holds its prompt: it begins with it, or a user of its messages asks it."""
    if isinstance(prompt, str) and not isinstance(response, str):
        asked = (turn.get("content") for turn in response[:-1] if turn["role"] == "user")
        return any(isinstance(text, str) and text.strip() == prompt.strip() for text in asked)
    return bool(prompt) and response[: len(prompt)] == prompt


def is_long_enough(prompt: Any) -> bool:
    """Tells whether no response begins with a prompt by chance."""
    return not isinstance(prompt, str) or len(prompt.strip()) >= 20


def _flags_of(responses: Sequence[Text], prompt: Any = None) -> int:
    """Returns what is suspicious about the responses, as the sum of the values of :class:`Flag`."""
    flags = Flag.IDENTICAL * all_equal(responses)
    if prompt and is_long_enough(prompt) and all(begins_with(response, prompt) for response in responses):
        flags |= Flag.BEGINS_WITH_PROMPT
    for response in responses:
        last: Any = {"role": "assistant", "content": response} if isinstance(response, str) else response[-1]
        if last["role"] != "assistant":
            flags |= Flag.LAST_MESSAGE_NOT_ASSISTANT
        elif not last.get("tool_calls") and not content_text(last["content"]).strip():
            flags |= Flag.EMPTY_RESPONSE
    return flags


def all_equal(responses: Sequence[Any]) -> bool:
    """Tells whether there are several responses, all of them equal."""
    return len(responses) > 1 and all(response == responses[0] for response in responses)


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
    if schema.is_tokenized(row):
        return row
    row_kind = schema.row_kind_of(row)
    # The columns of other kinds may hold anything beside a pair.
    row = {name: row[name] for name in schema.columns_read(row_kind) if name in row}
    columns = RESPONSE_COLUMNS if row_kind == "pairs" else ("response",)
    responses: list[Any] = row.get("responses") or [row.get(name) for name in columns]
    for response in responses:
        if not isinstance(response, list) or not all(isinstance(message, Mapping) for message in response):
            return row
    shared: list[Any] = []
    for first, *others in zip(*responses, strict=False):
        if any(message != first for message in others):
            break
        shared.append(first)
    while shared and shared[-1].get("role") != "user":
        shared.pop()
    return shared or row


@dataclass(frozen=True)
class _RowReader:
    """Reads the parts of one row, and names the row and the field where that fails."""

    row_number: int
    dataset_name: str | None
    features: Mapping[str, Any]  # types of the columns

    def refuse(self, field: str, message: str, fix: str) -> NoReturn:
        """Raises the error about a field of the row."""
        raise DataError(message, row=self.row_number, field=field, dataset=self.dataset_name, fix=fix)

    def part_to_score(self, row: Any) -> tuple[Mapping[str, Any], RowKind, tuple[str, ...]]:
        """Returns the columns that matter for a reward, the kind of the row, and which columns hold its responses."""
        if isinstance(row, str | list | tuple):
            row = {"messages": row}
        if not isinstance(row, Mapping):
            raise DataError(f"is {kind_of(row)}, nothing that can be scored", row=self.row_number, fix=_SCORABLE)
        filled = {name for name, value in row.items() if value is not None}
        if filled >= {*TOKENIZED_COLUMNS}:
            return row, "pairs", TOKENIZED_COLUMNS
        if "response_ids" in filled:
            return row, "scores", ("response_ids",)
        if filled & {*RESPONSE_COLUMNS}:
            return row, "pairs", RESPONSE_COLUMNS
        if "responses" in filled:
            return row, "scores", ("responses",)
        name = next((name for names in (filled, row) for name in _SINGLE_RESPONSE if name in names), None)
        if name is None:
            names = quoted(map(str, row)) if row else "no columns"
            raise DataError(f"holds nothing to score; it has {names}", row=self.row_number, fix=_SCORABLE)
        if name == "messages":  # the whole conversation, whatever else a data set keeps beside it
            row = {column: value for column, value in row.items() if column != "prompt"}
        return row, "ratings", (name,)

    def responses(self, row: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
        """Returns field -> response, not yet read."""
        column = columns[0]
        if column not in ("responses", "response_ids"):
            return {name: row.get(name) for name in columns}
        responses = row.get(column)
        if not isinstance(responses, list | tuple):
            form = "a text or a list of messages" if column == "responses" else "a list of token ids"
            fix = f"Give a list of responses, each {form}."
            self.refuse(column, f"is {kind_of(responses)}, not a list of responses", fix)
        if not responses:
            self.refuse(column, "is an empty list", "Drop the row, or add the responses.")
        return {f"{column}[{index}]": response for index, response in enumerate(responses)}

    def example_of_ids(
        self, row: Mapping[str, Any], row_kind: RowKind, responses: Mapping[str, Any], labels: bool
    ) -> Example:
        """Reads ``chosen_ids`` and ``rejected_ids``, or ``response_ids``."""
        ids = tuple(self.token_ids(value, field) for field, value in responses.items())
        label = self.label(row, row_kind, len(ids)) if labels else Label()
        if labels and row_kind == "scores":
            names = [name for name in ("margin", "preference_prob") if row.get(name) is not None]
            numbers: dict[str, Any] = {name: self.number(row[name], name) for name in names}
            label = replace(label, **numbers)
        flags = Flag.IDENTICAL * all_equal(ids)
        return Example((), row_kind, label, fields=tuple(responses), flags=flags, response_ids=ids)

    def token_ids(self, value: Any, field: str) -> list[int]:
        """Returns the token ids of a response."""
        fix = "Give a non-empty list of token ids: whole numbers from 0 on."
        ids = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(ids, list | tuple):
            self.refuse(field, "is null" if ids is None else f"is {kind_of(ids)}, not a list of token ids", fix)
        if not ids:
            self.refuse(field, "is empty", fix)
        if set(map(type, ids)) == {int} and min(ids) >= 0:
            return list(ids)
        for index, token in enumerate(ids):
            if isinstance(token, bool) or not isinstance(token, Integral) or token < 0:
                self.refuse(f"{field}[{index}]", f"is {token!r}, not a token id", fix)
        return [int(token) for token in ids]

    def text(self, value: Any, field: str) -> Text:
        """Returns plain text, or a list of messages without the nulls that Arrow fills in."""
        if isinstance(value, str):
            return value
        if value is None:
            fix = "Drop the row, or put an empty text there if the response is empty."
            if field == "prompt":
                fix = "Fill it in; if the responses hold the whole conversation, remove the column `prompt`."
            self.refuse(field, "is null", fix)
        if not isinstance(value, list | tuple):
            fix = 'Give plain text, or a list of messages such as [{"role": "user", "content": "Hello"}].'
            if isinstance(value, Mapping) and "role" in value:
                fix = "Put the message into a list; if it was one, declare the column as a `List` of messages."
            self.refuse(field, f"is {kind_of(value)}, not text or a list of messages", fix)
        if not value:
            self.refuse(field, "is a list without messages", "Drop the row, or add the messages.")
        column, bracket, _ = field.partition("[")
        feature = _inner_feature(self.features.get(column))
        feature = _inner_feature(feature) if bracket else feature
        messages = []
        for index, message in enumerate(value):
            # Most messages are a role and a text: there is nothing to clean or to refuse.
            plain = type(message) is dict and len(message) == 2 and message.get("role")
            if not (plain and type(message["role"]) is type(message.get("content")) is str):
                message = self.message(message, f"{field}[{index}]", feature)
            messages.append(message)
        return messages

    def message(self, message: Any, field: str, feature: Any) -> dict[str, Any]:
        """Returns a message of any kind without nulls, its content as one text."""
        if not isinstance(message, Mapping):
            fix = 'Write each message as {"role": "user", "content": "Hello"}.'
            self.refuse(field, f"is {kind_of(message)}, not a message", fix)
        role = message.get("role")
        if not isinstance(role, str) or not role:
            fix = "Give each message a `role`, such as `user` or `assistant`."
            if "from" in message and "value" in message:
                fix = "Rename `from` to `role` and `value` to `content` (this looks like ShareGPT data)."
            problem = "is missing" if role is None else f"is {kind_of(role)}, not the name of a role"
            self.refuse(f"{field}.role", problem, fix)
        self.check_content(message, f"{field}.content")
        # Many templates print "None" or fail where a tool call has no text beside it, and a list as Python writes it.
        content = {"content": content_text(message.get("content") or "")}
        filled = {key: value for key, value in message.items() if value is not None}
        return {key: without_nulls(value, _inner_feature(feature, key)) for key, value in filled.items()} | content

    def check_content(self, message: Mapping[str, Any], field: str) -> None:
        """Refuses a message whose content is neither text nor a list of text parts."""
        content = message.get("content")
        if isinstance(content, str) or (content is None and message.get("tool_calls")):
            return
        if content is None:
            fix = "Fill in the text (it may be empty), or drop the row; only `tool_calls` can stand alone."
            self.refuse(field, "is null" if "content" in message else "is missing", fix)
        if not isinstance(content, list | tuple):
            self.refuse(field, f"is {kind_of(content)}, not text", "Turn the content into text.")
        for index, part in enumerate(content):
            item = f"{field}[{index}]"
            if not isinstance(part, Mapping):
                self.refuse(item, f"is {kind_of(part)}, not a part", 'Write {"type": "text", "text": "..."}.')
            if part.get("type") != "text":
                problem = f"is {part.get('type')!r}: only text can be read"
                self.refuse(f"{item}.type", problem, "Drop rows with other content.")
            if not isinstance(part.get("text"), str):
                self.refuse(f"{item}.text", f"is {kind_of(part.get('text'))}, not text", "Fill in the text.")

    def check_one_form(self, texts: Mapping[str, Text], conversational: bool | None) -> None:
        """Refuses a row that mixes plain text and messages, or differs from the first row of the data set."""
        names = {True: "a list of messages", False: "plain text"}
        forms = {field: not isinstance(text, str) for field, text in texts.items()}
        reference, expected = next(iter(forms.items()))  # responses come before the prompt
        for field, form in forms.items():
            if form != expected:
                fix = f"Give {quoted(forms)} in one form: all plain text, or all lists of messages."
                self.refuse(field, f"is {names[form]}, but `{reference}` is {names[expected]}", fix)
        if conversational not in (None, expected):
            message = f"is {names[expected]}, but the first row of the data set has {names[not expected]}"
            self.refuse(reference, message, "Give all rows of a data set in one form, or split it into two data sets.")

    def template_settings(self, row: Mapping[str, Any]) -> tuple[list[Any] | None, Mapping[str, Any]]:
        """Returns the tools of a row and the variables of its chat template."""
        fix = "Give a list of JSON schemas, or a JSON string that holds one."
        tools = self.json(row.get("tools"), "tools", list | tuple, "a list", fix) or ()
        for index, tool in enumerate(tools):
            if not isinstance(tool, Mapping):
                self.refuse(f"tools[{index}]", f"is {kind_of(tool)}, not the JSON schema of a tool", fix)
        field = "chat_template_kwargs"
        fix = 'Give a mapping of names to values, such as {"enable_thinking": false}, or a JSON string of one.'
        kwargs = self.json(row.get(field), field, Mapping, "a mapping", fix) or {}
        for name in kwargs:
            if name in _RESERVED_TEMPLATE_KWARGS:
                fix = "Remove it: it is not a variable of the template."
                self.refuse(f"{field}.{name}", "cannot be set for a single row", fix)
        return list(tools) or None, kwargs

    def json(self, value: Any, field: str, expected: Any, name: str, fix: str) -> Any:
        """Returns a value of the expected type, which may be given as JSON text; None where there is none."""
        # The nulls of JSON text are the author's own; Arrow adds nulls to other values.
        if not isinstance(value, str):
            value = without_nulls(value, self.features.get(field))
        else:
            try:
                value = json.loads(value) if value.strip() else None
            except json.JSONDecodeError as error:
                self.refuse(field, f"is not valid JSON: {error}", fix)
        if value is not None and not isinstance(value, expected):
            self.refuse(field, f"is {kind_of(value)}, not {name}", fix)
        return value

    def label(self, row: Mapping[str, Any], row_kind: RowKind, num_responses: int) -> Label:
        """Returns what the row says about its responses."""
        weight = self.number(row["weight"], "weight") if "weight" in row else None
        if row_kind == "pairs":
            margin = self.number(row["margin"], "margin") if "margin" in row else None
            tie = row.get("tie") is not None and self.truth(row["tie"], "tie")
            preference_prob = row.get("preference_prob")
            if "preference_prob" in row and not (tie and preference_prob is None):
                preference_prob = self.number(preference_prob, "preference_prob")
            if tie and preference_prob not in (None, 0.5):
                fix = "Set it to 0.5 or null, or set `tie` to false."
                self.refuse("preference_prob", f"is {preference_prob:g}, but the row is a tie", fix)
            return Label(margin=margin, preference_prob=0.5 if tie else preference_prob, weight=weight)
        if row_kind == "labels":
            ratings: tuple[float, ...] = (float(self.truth(row.get("label"), "label")),)
        elif row_kind == "ratings":
            field = "scores" if row.get("scores") is not None else "score"
            values = row.get(field)
            values = values if isinstance(values, list | tuple) else [values]
            if len(values) != 1:
                self.refuse(field, f"has {len(values)} numbers for 1 response", "Use one number.")
            ratings = (self.number(values[0], field),)
        elif row_kind == "ranks":
            ratings = self.ranks(row.get("ranks"), num_responses)
        else:
            ratings = self.numbers(row.get("scores"), "scores", num_responses)
        return Label(ratings, weight=weight)

    def number(self, value: Any, field: str) -> float:
        """Returns a finite number within the bounds of its field; null, truth values, text, NaN and infinity fail."""
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            kind = value if isinstance(value, float) else kind_of(value)
            fix = f"Use a number in every row, or remove the column `{field.partition('[')[0]}`."
            self.refuse(field, f"is {kind}, not a finite number", fix)
        number = float(value)
        lowest, highest = _BOUNDS.get(field, (-math.inf, math.inf))
        if not lowest <= number <= highest:
            allowed = f"{lowest:g} or more" if highest == math.inf else f"between {lowest:g} and {highest:g}"
            fix = f"Use a number that is {allowed}. To reverse a preference, swap `chosen` and `rejected`."
            self.refuse(field, f"is {number:g}", fix)
        return number

    def numbers(self, values: Any, field: str, count: int) -> tuple[float, ...]:
        """Returns one finite number per response."""
        values = values.tolist() if hasattr(values, "tolist") else values
        fix = "Use one number per response, in the same order."
        if not isinstance(values, list | tuple):
            self.refuse(field, f"is {kind_of(values)}, not a list of numbers", fix)
        if len(values) != count:
            self.refuse(field, f"has {len(values)} numbers for {count} response{'s'[: count != 1]}", fix)
        return tuple(self.number(value, f"{field}[{index}]") for index, value in enumerate(values))

    def truth(self, value: Any, field: str) -> bool:
        """Returns a truth value, which may be given as 0 or 1."""
        if isinstance(value, Real) and value in (0, 1):  # includes False and True
            return bool(value)
        self.refuse(field, f"is {kind_of(value)}, not true or false", "Use true or false.")

    def ranks(self, values: Any, num_responses: int) -> tuple[float, ...]:
        """Returns the ranks negated, so that higher is better everywhere."""
        ranks = self.numbers(values, "ranks", num_responses)
        for index, rank in enumerate(ranks):
            if rank < 1 or rank != int(rank):
                self.refuse(f"ranks[{index}]", f"is {rank:g}", "Use whole numbers from 1, the best.")
        previous = 0.0
        for position, rank in enumerate(sorted(ranks), start=1):
            # Both conventions for what follows a tie are in use: 1, 2, 2, 3 and, as in sports, 1, 2, 2, 4.
            if rank not in (previous, previous + 1, position):
                fix = "Number the ranks without gaps; responses that are equally good share a rank."
                self.refuse("ranks", f"has a {rank:g} but no {previous + 1:g}", fix)
            previous = rank
        return tuple(-rank for rank in ranks)


# --- values -----------------------------------------------------------------------------------------------------


def content_text(content: Any) -> str:
    """Returns the text of a message's content, which may be a list of text parts."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def without_nulls(value: Any, feature: Any = None) -> Any:
    """Copies a nested value without the keys that hold None.

    Arrow gives all mappings of a column the same keys and fills those that a row lacks with None. Values whose
    `feature` is ``Json`` are left as they are: Arrow fills in nothing there.

    >>> without_nulls({"name": "f", "arguments": {"city": "Bonn", "days": None}, "enum": [1, None]})
    {'name': 'f', 'arguments': {'city': 'Bonn'}, 'enum': [1, None]}
    """
    if getattr(feature, "_type", None) == "Json":
        return value
    if isinstance(value, Mapping):
        filled = {key: item for key, item in value.items() if item is not None}
        return {key: without_nulls(item, _inner_feature(feature, key)) for key, item in filled.items()}
    if isinstance(value, list | tuple):
        inner = _inner_feature(feature)
        return [without_nulls(item, inner) for item in value]
    return value


def _inner_feature(feature: Any, key: str | None = None) -> Any:
    """Returns the type of a mapping's key, or of a list's items; the parts of a JSON value are JSON."""
    if getattr(feature, "_type", None) == "Json":
        return feature
    if key is None:
        return getattr(feature, "feature", None)
    return feature.get(key) if isinstance(feature, Mapping) else None


def kind_of(value: Any) -> str:
    """Names the type of a value for an error message.

    >>> kind_of([1]), kind_of(2.5), kind_of(None)
    ('a list', 'the number 2.5', 'null')
    """
    names = {type(None): "null", str: "text", bool: "a truth value", dict: "a mapping", list: "a list"}
    default = f"the number {value}" if isinstance(value, Real) else f"a {type(value).__name__}"
    return names.get(type(value), default)


# --- data sets --------------------------------------------------------------------------------------------------

_TRAINED_TOGETHER: frozenset[RowKind] = frozenset(("pairs", "scores", "ranks"))
_NEUTRAL = {"tie": 0, "preference_prob": 1}  # what a pair without the column says


def survey(dataset: Dataset | IterableDataset) -> tuple[frozenset[RowKind], frozenset[str]]:
    """Returns the kinds of rows of a data set, and which of ``margin``, ``preference_prob`` and ``tie`` carry a value.

    A table is looked through; a stream is judged by its first row. Lists of token ids may be of any kind: no kinds
    are returned for them.

    >>> kinds, columns = survey(Dataset.from_dict({"chosen": ["a"], "rejected": ["b"], "tie": [False], "margin": [1]}))
    >>> sorted(kinds), sorted(columns)
    (['pairs'], ['margin'])
    """
    dataset = dataset.with_format(None)
    if dataset.column_names:
        # Other columns may hold pictures, or anything else that is slow to read.
        dataset = dataset.select_columns([name for name in dataset.column_names if name in schema.READ_COLUMNS])
    row: Mapping[str, Any] = next(iter(dataset.take(1)), {})
    tokenized = schema.is_tokenized(row)
    if tokenized:
        row_kinds: frozenset[RowKind] = frozenset() if "response_ids" in row else frozenset(["pairs"])
    else:
        row_kinds = row_kinds_in(dataset, row)
    names = {name for name in schema.PAIR_COLUMNS if name in row and (tokenized or "pairs" in row_kinds)}
    if isinstance(dataset, Dataset):
        names = {name for name in names if not _nulls(dataset, name).all()}
        for name in names & _NEUTRAL.keys():
            column = _column(dataset, name)
            is_number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
            if not is_number and not pa.types.is_boolean(column.type):
                continue
            if not pc.any(pc.not_equal(column.cast(pa.float64()), _NEUTRAL[name])).as_py():
                names.remove(name)
    return row_kinds, frozenset(names)


def row_kinds_in(dataset: Dataset | IterableDataset, first_row: Mapping[str, Any]) -> frozenset[RowKind]:
    """Returns the kinds of the rows of a raw data set; columns that are null in a stream's first row may come later."""
    if isinstance(dataset, IterableDataset):
        row_kind = schema.row_kind_of(first_row)
        later = schema.row_kinds_of(name for name, value in first_row.items() if value is None)
        return frozenset([row_kind, *(kind for kind in later if {row_kind, kind} <= _TRAINED_TOGETHER)])
    if "chosen" in dataset.column_names and not _nulls(dataset, "chosen").any():
        return frozenset(["pairs"])
    possible = schema.row_kinds_of(dataset.column_names)
    if len(dataset) and len(possible) == 1:
        return frozenset(possible)
    deciding = {name for columns in schema.ROW_KIND_COLUMNS.values() for name in columns} | {"score"}
    filled = {name: ~_nulls(dataset, name) for name in deciding & set(dataset.column_names)}
    patterns = set(zip(*(column.tolist() for column in filled.values()), strict=True))
    rows = [{name: has or None for name, has in zip(filled, pattern, strict=True)} for pattern in patterns]
    return frozenset(map(schema.row_kind_of, rows))


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
