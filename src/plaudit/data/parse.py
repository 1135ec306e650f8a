"""Reads one raw row of preference data, in any supported form, and says what is wrong with a broken one."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, IterableDataset

from plaudit.data.report import Flag
from plaudit.errors import DataError
from plaudit.schema import (
    PAIR_COLUMNS,
    RAW_COLUMNS,
    RESPONSE_COLUMNS,
    ROW_KIND_COLUMNS,
    TOKENIZED_COLUMNS,
    TOKENIZED_LIST_COLUMNS,
    EncodedExample,
    Example,
    Label,
    RowKind,
    Text,
    is_tokenized,
    quoted,
    response_field,
    row_kind_of,
    row_kinds_of,
)

_COMPARED: frozenset[RowKind] = frozenset(("pairs", "scores", "ranks"))
"""Forms that one objective can read together."""


def survey(dataset: Dataset | IterableDataset) -> tuple[frozenset[RowKind], frozenset[str]]:
    """Say in which forms a data set judges responses, and which of the pairs' further columns say something.

    Args:
        dataset: Raw or tokenised rows. A table is looked through; of a stream the first row speaks for all, by what
            it holds and by the columns that it has for others.

    Returns:
        The forms, none where the rows are lists of token ids, which may be of any form; and those of ``margin``,
        ``preference_prob`` and ``tie``.
    """
    dataset = dataset.with_format(None)
    if dataset.column_names:
        # The others may hold pictures, or anything else that is slow to read.
        read = {*RAW_COLUMNS, *TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS}
        dataset = dataset.select_columns([name for name in dataset.column_names if name in read])
    row: Mapping[str, Any] = next(iter(dataset.take(1)), {})
    if not is_tokenized(row):
        row_kinds = row_kinds_in(dataset, row)
        return row_kinds, pair_columns_in(dataset, row) if "pairs" in row_kinds else frozenset()
    return frozenset() if "response_ids" in row else frozenset(["pairs"]), pair_columns_in(dataset, row)


def row_kinds_in(dataset: Dataset | IterableDataset, first_row: Mapping[str, Any]) -> frozenset[RowKind]:
    """Name the forms of the rows of a raw data set.

    Args:
        dataset: A table, which is looked through, or a stream, of which the first row speaks for all: columns that
            are null there are those of rows to come.
        first_row: Its first row.

    >>> pair, ranking = {"chosen": "a", "rejected": "b"}, {"responses": ["a", "b"], "ranks": [1, 2]}
    >>> nothing = dict.fromkeys([*pair, *ranking])
    >>> rows = Dataset.from_list([nothing | pair, nothing | ranking])
    >>> sorted(row_kinds_in(rows, rows[0]))
    ['pairs', 'ranks']
    """
    if isinstance(dataset, IterableDataset):
        row_kind = row_kind_of(first_row)
        to_come = row_kinds_of(name for name, value in first_row.items() if value is None)
        return frozenset([row_kind, *(other for other in to_come if {row_kind, other} <= _COMPARED)])
    if "chosen" in dataset.column_names and not _nulls(dataset, "chosen").any():
        return frozenset(["pairs"])
    if len(dataset) and len(row_kinds_of(dataset.column_names)) == 1:
        return frozenset(row_kinds_of(dataset.column_names))
    judging = {name for columns in ROW_KIND_COLUMNS.values() for name in columns} | {"score"}
    filled = {name: ~_nulls(dataset, name) for name in judging & set(dataset.column_names)}
    patterns = set(zip(*(column.tolist() for column in filled.values()), strict=True))
    return frozenset(
        row_kind_of({name: one or None for name, one in zip(filled, row, strict=True)}) for row in patterns
    )


def pair_columns_in(dataset: Dataset | IterableDataset, first_row: Mapping[str, Any]) -> frozenset[str]:
    """Name those of the columns ``margin``, ``preference_prob`` and ``tie`` that say something.

    Args:
        dataset: A table, which is looked through, or a stream, of which the first row speaks for all.
        first_row: Its first row.

    >>> rows = Dataset.from_dict({"chosen": ["a"], "rejected": ["b"], "tie": [False], "margin": [1.0]})
    >>> sorted(pair_columns_in(rows, rows[0]))
    ['margin']
    """
    found = {name for name in PAIR_COLUMNS if name in first_row}
    if isinstance(dataset, Dataset):
        found = {name for name in found if not _nulls(dataset, name).all()}
        found -= {name for name, nothing in _SAYS_NOTHING.items() if name in found and _all(dataset, name, nothing)}
    return frozenset(found)


_SAYS_NOTHING = {"tie": 0, "preference_prob": 1}
"""What a pair that has the column says by this value is what one without it says."""


def _all(dataset: Dataset, name: str, value: float) -> bool:
    """Whether a column holds one number, or null, throughout; false for anything but numbers and truth values."""
    column = _column(dataset, name)
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return False
    return not pc.any(pc.not_equal(column, value)).as_py()


def most_responses(dataset: Dataset) -> int:
    """Most responses of a row of a prepared data set.

    Args:
        dataset: Prepared rows.

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


# Arguments of `apply_chat_template` which decide the result's form, not the template's text.
_RESERVED_TEMPLATE_KWARGS = frozenset(
    ("conversation", "tools", "tokenize", "padding", "truncation", "max_length", "return_tensors")
) | {"return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "sanitize_control_tokens"}


@dataclass(frozen=True)
class Place:
    """Where in the data set we are, for error messages.

    Attributes:
        row: Index of the row in the data set as it was passed in, counted from 0.
        dataset: Which data set it is.
        features: Types of the columns as `datasets` declares them; empty where unknown.
    """

    row: int
    dataset: str | None
    features: Mapping[str, Any]

    def refuse(self, field: str, message: str, fix: str) -> NoReturn:
        """Raise the error about one field of the row."""
        raise DataError(message, row=self.row, field=field, dataset=self.dataset, fix=fix)


def check_one_form(texts: Mapping[str, Text], conversational: bool | None, place: Place) -> None:
    """Refuse a row that mixes plain text and messages, or that differs from the first row.

    Args:
        texts: Field -> its text, the responses before the prompt.
        conversational: What the first row was (True: messages, False: text); None accepts both.
        place: Where the row is.

    Raises:
        DataError: The row has another form.
    """
    row_kinds = {field: not isinstance(text, str) for field, text in texts.items()}
    if len({*row_kinds.values()}) == 1 and conversational in (None, *row_kinds.values()):
        return
    name = {True: "a list of messages", False: "plain text"}
    reference, expected = next(iter(row_kinds.items()))
    for field, row_kind in row_kinds.items():
        if row_kind != expected:
            place.refuse(
                field,
                f"is {name[row_kind]}, but `{reference}` is {name[expected]}",
                f"Give {quoted(row_kinds)} in one form: all plain text, or all lists of messages.",
            )
    if conversational is not None and expected != conversational:
        place.refuse(
            reference,
            f"is {name[expected]}, but the first row of the data set has {name[conversational]}",
            "Give all rows of a data set in one form, or split it into two data sets.",
        )


def read_text(value: Any, field: str, place: Place, feature: Any = None) -> Text:
    """Read plain text or a list of messages, without the nulls that Arrow fills in.

    Args:
        value: What the row holds.
        field: Where it is in the row.
        place: Where the row is.
        feature: Type of the value as `datasets` declares it, where known.

    Raises:
        DataError: It is neither.
    """
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
        place.refuse(field, f"is {kind_of(value)}, not text or a list of messages", fix)
    if not value:
        place.refuse(field, "is a list without messages", "Drop the row, or add the messages.")
    item = item_feature(feature)
    return [
        message if _is_plain(message) else _read_message(message, f"{field}[{index}]", place, item)
        for index, message in enumerate(value)
    ]


def _is_plain(message: Any) -> bool:
    """Whether a message is nothing but a role and a text, as most are: there is nothing to clean or to refuse."""
    return (
        type(message) is dict
        and len(message) == 2
        and type(message.get("content")) is str
        and type(message.get("role")) is str
        and message["role"] != ""
    )


def _read_message(message: Any, field: str, place: Place, feature: Any) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        place.refuse(
            field,
            f"is {kind_of(message)}, not a message",
            'Write each message as {"role": "user", "content": "Hello"}.',
        )
    role = message.get("role")
    if not isinstance(role, str) or not role:
        fix = "Give each message a `role`, such as `user` or `assistant`."
        if "from" in message and "value" in message:
            fix = "Rename `from` to `role` and `value` to `content` (this looks like ShareGPT data)."
        place.refuse(
            f"{field}.role",
            "is missing" if role is None else f"is {kind_of(role)}, not the name of a role",
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


def _check_content(message: Mapping[str, Any], content: Any, field: str, place: Place) -> None:
    if content is None:
        if not message.get("tool_calls"):
            place.refuse(
                field,
                "is null" if "content" in message else "is missing",
                "Fill in the text (it may be empty), or drop the row; only `tool_calls` can stand alone.",
            )
        return
    if not isinstance(content, (list, tuple)):
        place.refuse(field, f"is {kind_of(content)}, not text", "Turn the content into text.")
    for index, part in enumerate(content):
        where = f"{field}[{index}]"
        if not isinstance(part, Mapping):
            place.refuse(where, f"is {kind_of(part)}, not a part", 'Write {"type": "text", "text": "..."}.')
        if part.get("type") != "text":
            place.refuse(
                f"{where}.type",
                f"is {part.get('type')!r}: only text can be read",
                "Drop rows with other content.",
            )
        if not isinstance(part.get("text"), str):
            place.refuse(f"{where}.text", f"is {kind_of(part.get('text'))}, not text", "Fill in the text.")


def read_tools(value: Any, place: Place) -> list[Any] | None:
    """Read JSON schemas of tools, given as a list or as JSON text; None where there are none.

    Args:
        value: What the row holds.
        place: Where the row is.

    Raises:
        DataError: It holds no schemas.
    """
    fix = "Give a list of JSON schemas, or a JSON string that holds one."
    tools = _read_json(value, "tools", fix, place)
    if tools is None or tools == []:
        return None
    if not isinstance(tools, (list, tuple)):
        place.refuse("tools", f"is {kind_of(tools)}, not a list", fix)
    for index, tool in enumerate(tools):
        if not isinstance(tool, Mapping):
            place.refuse(f"tools[{index}]", f"is {kind_of(tool)}, not the JSON schema of a tool", fix)
    return list(tools)


def read_template_kwargs(value: Any, place: Place) -> Mapping[str, Any]:
    """Read variables for the chat template, given as a mapping or as JSON text.

    Args:
        value: What the row holds.
        place: Where the row is.

    Raises:
        DataError: It holds no such variables.
    """
    field = "chat_template_kwargs"
    fix = 'Give a mapping of names to values, such as {"enable_thinking": false}, or a JSON string of one.'
    kwargs = _read_json(value, field, fix, place)
    if kwargs is None:
        return {}
    if not isinstance(kwargs, Mapping):
        place.refuse(field, f"is {kind_of(kwargs)}, not a mapping", fix)
    for name in kwargs:
        if name in _RESERVED_TEMPLATE_KWARGS:
            place.refuse(
                f"{field}.{name}",
                "cannot be set for a single row",
                "Remove it: it is no variable of the template.",
            )
    return kwargs


def _read_json(value: Any, field: str, fix: str, place: Place) -> Any:
    """Parse JSON text, whose nulls are the author's own; drop the nulls that Arrow adds to other values."""
    if not isinstance(value, str):
        return without_nulls(value, place.features.get(field))
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        place.refuse(field, f"is not valid JSON: {error}", fix)


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
        inner = item_feature(feature)
        return [without_nulls(item, inner) for item in value]
    return value


def _is_json(feature: Any) -> bool:
    return getattr(feature, "_type", None) == "Json"


def item_feature(feature: Any) -> Any:
    """Type of the items of a list; a JSON value's parts are JSON.

    Args:
        feature: Type of the list.
    """
    return feature if _is_json(feature) else getattr(feature, "feature", None)


def _key_feature(feature: Any, key: str) -> Any:
    """Type of the value of one key; a JSON value's parts are JSON."""
    if _is_json(feature):
        return feature
    return feature.get(key) if isinstance(feature, Mapping) else None


def content_text(content: Any) -> str:
    """The text of a message's content, which may come in parts.

    Args:
        content: Text, or a list of text parts.
    """
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def kind_of(value: Any) -> str:
    """Name the type of a value for an error message.

    >>> kind_of([1]), kind_of(2.5), kind_of(None)
    ('a list', 'the number 2.5', 'null')
    """
    if value is None:
        return "null"
    names = {str: "text", bool: "a truth value", dict: "a mapping", list: "a list"}
    if type(value) in names:
        return names[type(value)]
    if isinstance(value, numbers.Real):
        return f"the number {value}"
    return f"a {type(value).__name__}"


def read_label(row: Mapping[str, Any], row_kind: RowKind, responses: int, place: Place) -> Label:
    """Read what one row says about its responses.

    Args:
        row: The columns of the row.
        form: Which of them say it.
        responses: How many responses the row has.
        place: Where the row is.

    Raises:
        DataError: It cannot be read.
    """
    weight = read_weight(row["weight"], place) if "weight" in row else None
    if row_kind == "pairs":
        return _read_pair(row, weight, place)
    if row_kind == "labels":
        return Label((_read_flag(row.get("label"), place),), weight=weight)
    if row_kind == "ranks":
        return Label(_read_ranks(row.get("ranks"), responses, place), weight=weight)
    if row_kind == "ratings":
        return Label(_read_rating(row, place), weight=weight)
    return Label(read_scores(row.get("scores"), "scores", responses, place), weight=weight)


def _read_pair(row: Mapping[str, Any], weight: float | None, place: Place) -> Label:
    margin = read_margin(row["margin"], place) if "margin" in row else None
    tie = _read_tie(row.get("tie"), place)
    preference_prob = row.get("preference_prob")
    if "preference_prob" in row and (preference_prob is not None or not tie):
        preference_prob = read_strength(preference_prob, place)
    if tie:
        if preference_prob not in (None, 0.5):
            place.refuse(
                "preference_prob",
                f"is {preference_prob}, but the row is a tie",
                "Put 0.5 or null there, or take back the tie.",
            )
        preference_prob = 0.5
    return Label(margin=margin, preference_prob=preference_prob, weight=weight)


def _read_number(value: Any, field: str, place: Place) -> float:
    fix = f"Give every row a finite number, or remove the column `{field.partition('[')[0]}`."
    if value is None:
        place.refuse(field, "is null", fix)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        place.refuse(field, f"is {kind_of(value)}, not a number", fix)
    if not math.isfinite(value):
        place.refuse(field, f"is {float(value)}, not a finite number", fix)
    return float(value)


def read_margin(value: Any, place: Place) -> float:
    """Read how much better the chosen response of a pair should be.

    Args:
        value: What the row holds.
        place: Where the row is.

    Raises:
        DataError: It is no finite number.
    """
    return _read_number(value, "margin", place)


def read_strength(value: Any, place: Place) -> float:
    """Read the probability that the chosen response is the better one.

    Args:
        value: What the row holds.
        place: Where the row is.

    Raises:
        DataError: It is no number from 0 to 1.
    """
    preference_prob = _read_number(value, "preference_prob", place)
    if not 0 <= preference_prob <= 1:
        place.refuse(
            "preference_prob",
            f"is {preference_prob}, not a probability",
            "Give the share of judges who prefer `chosen`, from 0 to 1.",
        )
    return preference_prob


def read_weight(value: Any, place: Place) -> float:
    """Read how much a row counts.

    Args:
        value: What the row holds.
        place: Where the row is.

    Raises:
        DataError: It is no number from 0 on.
    """
    weight = _read_number(value, "weight", place)
    if weight < 0:
        place.refuse(
            "weight", f"is {weight}", "Give 0 or more; to turn a preference round, swap `chosen` and `rejected`."
        )
    return weight


def _read_tie(value: Any, place: Place) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, numbers.Real) and value in (0, 1):
        return bool(value)
    place.refuse("tie", f"is {kind_of(value)}, not true or false", "Write true for a tie, and false or null otherwise.")


def _read_flag(value: Any, place: Place) -> float:
    fix = "Write true for a good response and false for a bad one."
    if isinstance(value, bool) or (isinstance(value, numbers.Real) and value in (0, 1)):
        return float(value)
    place.refuse("label", "is null" if value is None else f"is {kind_of(value)}, not true or false", fix)


def _read_rating(row: Mapping[str, Any], place: Place) -> tuple[float]:
    field = "scores" if row.get("scores") is not None else "score"
    value = row.get(field)
    if isinstance(value, list | tuple):
        if len(value) != 1:
            place.refuse(field, f"holds {len(value)} numbers for one response", "Give one number.")
        value = value[0]
    return (_read_number(value, field, place),)


def read_scores(value: Any, field: str, responses: int, place: Place) -> tuple[float, ...]:
    """Read one finite number for each response.

    Args:
        value: What the row holds.
        field: Where it is in the row.
        responses: How many there must be.
        place: Where the row is.

    Raises:
        DataError: It is no such list.
    """
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        place.refuse(field, f"is {kind_of(value)}, not a list of numbers", "Give one number for each response.")
    _check_count(value, field, responses, place)
    fix = "Give each response a finite number, or drop the response with its score."
    for index, score in enumerate(value):
        if isinstance(score, bool) or not isinstance(score, numbers.Real) or not math.isfinite(score):
            problem = f"is {float(score)}" if isinstance(score, float) else f"is {kind_of(score)}"
            place.refuse(f"{field}[{index}]", f"{problem}, not a finite number", fix)
    return tuple(float(score) for score in value)


def _read_ranks(value: Any, responses: int, place: Place) -> tuple[float, ...]:
    ranks = read_scores(value, "ranks", responses, place)
    for index, rank in enumerate(ranks):
        if rank != int(rank) or rank < 1:
            place.refuse(
                f"ranks[{index}]", f"is {rank:g}", "Ranks are whole numbers from 1, the best; equal ranks are ties."
            )
    present = sorted(ranks)
    # After a tie of n responses the next rank is one higher, or n higher as in sports.
    for place_of, (rank, after) in enumerate(zip([0.0, *present], present, strict=False)):
        if after not in (rank, rank + 1, place_of + 1):
            place.refuse(
                "ranks",
                f"has no rank {int(rank) + 1}, but has {after:g}",
                "Number the ranks without gaps; if a response was left out, rank the others anew.",
            )
    return tuple(-rank for rank in ranks)


def _check_count(value: Sequence[Any], field: str, responses: int, place: Place) -> None:
    if len(value) != responses:
        place.refuse(
            field,
            f"holds {len(value)} for {responses} response{'' if responses == 1 else 's'}",
            "Give each response exactly one, in the same order.",
        )


def read_example(
    row: Mapping[str, Any],
    *,
    row_number: int,
    dataset_name: str | None = None,
    conversational: bool | None = None,
    features: Mapping[str, Any] | None = None,
) -> Example:
    """Read one raw row, in any of the supported forms, as whole responses and what is said about them.

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
    >>> row = {"prompt": "2+2=", "responses": ["4", "22", "5"], "ranks": [1, 3, 2]}
    >>> read_example(row, row_number=0).label.ratings
    (-1.0, -3.0, -2.0)
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
) -> tuple[Example, int]:
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
    place = Place(row_number, dataset_name, features or {})
    row_kind = row_kind_of(row)
    texts = _read_responses(row, row_kind, place)
    responses: list[Any] = list(texts.values())
    prompt: Any = None
    if "prompt" in row:
        prompt = read_text(row["prompt"], "prompt", place, place.features.get("prompt"))
        texts["prompt"] = prompt
    check_one_form(texts, conversational, place)
    example = Example(
        responses=tuple(responses if prompt is None else (prompt + response for response in responses)),
        row_kind=row_kind,
        label=read_label(row, row_kind, len(responses), place),
        tools=read_tools(row.get("tools"), place),
        chat_template_kwargs=read_template_kwargs(row.get("chat_template_kwargs"), place),
    )
    return example, _suspicions(responses)


def _read_responses(row: Mapping[str, Any], row_kind: RowKind, place: Place) -> dict[str, Text]:
    """Field -> response, in order."""
    if row_kind in ("pairs", "ratings", "labels"):
        columns = RESPONSE_COLUMNS if row_kind == "pairs" else ("response",)
        return {name: read_text(row.get(name), name, place, place.features.get(name)) for name in columns}
    values = row["responses"]
    if not isinstance(values, list | tuple):
        fix = "Give a list of responses, each a text or a list of messages."
        place.refuse("responses", f"is {kind_of(values)}, not a list of responses", fix)
    if not values:
        place.refuse("responses", "is an empty list", "Drop the row, or add the responses.")
    feature = item_feature(place.features.get("responses"))
    return {
        field: read_text(value, field, place, feature)
        for field, value in ((response_field(row_kind, index), value) for index, value in enumerate(values))
    }


def read_tokenized_example(
    row: Mapping[str, Any], *, row_number: int, dataset_name: str | None = None
) -> EncodedExample:
    """Read one row that comes as token ids.

    Args:
        row: The columns of the row: ``chosen_ids`` and ``rejected_ids``, or ``response_ids`` and ``scores``; and
            optionally ``margin``, ``preference_prob`` and ``weight``.
        row_number: Its index in the data set as it was passed in, counted from 0.
        dataset_name: Which data set it is.

    Raises:
        DataError: The ids are not non-empty lists of non-negative whole numbers, or another value cannot be read.

    >>> read_tokenized_example({"chosen_ids": [1, 2], "rejected_ids": [1, 3]}, row_number=0).response_ids
    ([1, 2], [1, 3])
    """
    place = Place(row_number, dataset_name, {})
    # A mixture of tokenised pairs and lists has the columns of both.
    if row.get("response_ids") is None and ("response_ids" not in row or row.get("chosen_ids") is not None):
        ids = tuple(_read_ids(row.get(field), field, place) for field in TOKENIZED_COLUMNS)
        return EncodedExample(ids, read_label(row, "pairs", 2, place))
    values = row["response_ids"]
    if not isinstance(values, list | tuple) or not values:
        place.refuse("response_ids", "is no list of responses", "Give a list with the token ids of each response.")
    ids = tuple(_read_ids(value, f"response_ids[{index}]", place) for index, value in enumerate(values))
    optional = {name: row[name] for name in ("margin", "preference_prob") if row.get(name) is not None}
    label = Label(
        read_scores(row.get("scores"), "scores", len(ids), place),
        margin=read_margin(optional["margin"], place) if "margin" in optional else None,
        preference_prob=read_strength(optional["preference_prob"], place) if "preference_prob" in optional else None,
        weight=read_weight(row["weight"], place) if "weight" in row else None,
    )
    return EncodedExample(ids, label)


def _read_ids(value: Any, field: str, place: Place) -> list[int]:
    fix = "Give a non-empty list of token ids: whole numbers from 0 on."
    if value is None:
        place.refuse(field, "is null", fix)
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        place.refuse(field, f"is {kind_of(value)}, not a list of token ids", fix)
    if not value:
        place.refuse(field, "is empty", fix)
    ids = list(value)
    if set(map(type, ids)) == {int} and min(ids) >= 0:
        return ids
    for index, token in enumerate(ids):
        if isinstance(token, bool) or not isinstance(token, numbers.Integral) or token < 0:
            place.refuse(f"{field}[{index}]", f"is {token!r}, not a token id", fix)
    return [int(token) for token in ids]


def _suspicions(responses: Sequence[Text]) -> int:
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
