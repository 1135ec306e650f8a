"""Reads rows exactly as training does, and derives the fields that the checks read."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from plaudit import schema
from plaudit.data.load import DataSource, open_data, until_broken
from plaudit.data.parse import content_text, survey
from plaudit.data.prepare import PreparedRow, RowPreparer
from plaudit.errors import ConfigError, DataError
from plaudit.objectives import Objective, choose_objective, make_objective, objectives_for
from plaudit.schema import Example, RowKind, RowSchema, Text

BATCH = 500
PEEK = 1000
"""Rows at the start of a stream that decide which columns and which form its rows have."""
open_rows = partial(open_data, peek=PEEK, keep_readable=True)


def _plan_reading(source: DataSource) -> tuple[Objective, str | None, RowSchema]:
    """Decides how to read rows, by the columns of a table or list and by the first rows of a stream.

    Returns the objective that training would choose, why it cannot choose one, and what the rows have in common. If it
    cannot choose, the objective is the one that reads most rows.
    """
    first = [row for row in itertools.islice(until_broken(source.rows(errors=True)), PEEK) if isinstance(row, Mapping)]
    filled = Counter(name for row in first for name, value in row.items() if value is not None)
    # Most rows, not the first: one broken row should not be the measure of the others.
    usual = {name for name in source.columns if source.declared or 2 * filled[name] > len(first)}
    tokenized = schema.is_tokenized(source.columns)
    columns = frozenset({*schema.PAIR_COLUMNS} & filled.keys())
    if isinstance(source.dataset, Dataset) and not source.renames and source.schema is None:
        row_kinds, columns = survey(source.dataset)
    else:
        row_kinds = frozenset[RowKind](["pairs"] if tokenized else map(schema.row_kind_of, first))
    objective_problem = None
    try:
        name = choose_objective(row_kinds, columns)[0]
    except ConfigError as error:
        objective_problem = error.summary
        usual_kind = Counter(map(schema.row_kind_of, first)).most_common(1)[0][0]
        name = next(iter([*objectives_for([usual_kind], columns), *objectives_for([usual_kind], [])]))
    pairs = "response_ids" not in source.columns if tokenized else row_kinds == {"pairs"}
    optional = frozenset({*schema.OPTIONAL_COLUMNS} & usual - ({"prompt"} if tokenized else set()))
    return make_objective(name), objective_problem, RowSchema(tokenized, pairs, None, optional)


# The last of these in the text that responses share is where the responses begin.
_TURN = re.compile(
    r"(?:^|\n)[ \t#*]*(?:assistant|response|answer|output)[ \t*]*:[ \t*]*"
    r"|<\|im_start\|>assistant\n|<\|assistant\|>\n?|\[/INST\] ?|<start_of_turn>model\n"
    r"|<\|start_header_id\|>assistant<\|end_header_id\|>\n\n",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Parts:
    """A row's texts."""

    # text of each message of the prompt, the system message first if there is one; None where prompt and response
    # cannot be told apart
    prompt: tuple[str, ...] | None
    system: int  # how many of these are system messages
    responses: tuple[str, ...]  # text of each response, without the prompt
    calls: tuple[bool, ...]  # whether each response ends in a call of a tool


def take_apart(example: Example, prompt: Text | None) -> Parts:
    """Takes the responses of a row apart from its prompt.

    >>> row = Example(("Human: Hi\\n\\nAssistant: Hello!", "Human: Hi\\n\\nAssistant: Help!"))
    >>> take_apart(row, None).prompt, take_apart(row, None).responses
    (('Human: Hi\\n\\nAssistant: ',), ('Hello!', 'Help!'))
    """
    if isinstance(example.responses[0], str):
        texts = [str(response) for response in example.responses]
        start = _start_of_responses(texts) if prompt is None else len(prompt)
        # The beginning that responses share is a prompt only where it names a speaker.
        known = texts[0][:start] if prompt is not None or _TURN.search(texts[0], 0, start) else ""
        return Parts((known,) if known else None, 0, tuple(text[start:] for text in texts), (False,) * len(texts))
    responses: list[Any] = [response for response in example.responses if not isinstance(response, str)]
    count = 0 if prompt is None else len(prompt)
    if prompt is None:  # the messages that all responses begin with, up to the last question
        for index, messages in enumerate(zip(*responses, strict=False)):
            if any(message != messages[0] for message in messages):
                break
            if messages[0]["role"] == "user":
                count = index + 1
    head = responses[0][:count]
    return Parts(
        prompt=tuple(message_text(message) for message in head) if count else None,
        system=sum(message["role"] == "system" for message in head),
        responses=tuple("\n".join(message_text(message) for message in messages[count:]) for messages in responses),
        calls=tuple(bool(messages[-1].get("tool_calls")) for messages in responses),
    )


def _start_of_responses(responses: Sequence[str]) -> int:
    """Finds where the responses begin: after the last turn marker that all share, or at the first differing word."""
    shared = len(os.path.commonprefix(responses))  # noqa: RUF071  (texts, not paths)
    turns = [match.end() for match in _TURN.finditer(responses[0], 0, shared)]
    if turns:
        return turns[-1]
    if len(responses) == 1:
        return 0
    while shared and not responses[0][shared - 1].isspace():
        shared -= 1
    return shared


def message_text(message: Mapping[str, Any]) -> str:
    """Text of one message, its calls of tools included."""
    text = content_text(message.get("content") or "")
    calls = message.get("tool_calls")
    return text if not calls else "\n".join([*([text] if text else []), json.dumps(calls, default=str)])


def normalized(text: str) -> str:
    """Brings a text into the form in which prompts are compared: letters' width, case and white space do not count.

    >>> normalized("  What is\\n2+2? ") == normalized("what is 2+2?")
    True
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def excerpt(text: str, width: int = 100, *, end: bool = False) -> str:
    """Shortens a text to one line.

    >>> excerpt("one two\\nthree", 8), excerpt("one two three", 8, end=True)
    ('one two…', '…o three')
    """
    line = " ".join(text[: 4 * width].split() if not end else text[-4 * width :].split())
    if len(line) <= width and len(text) <= 4 * width:
        return line
    return f"…{line[-width + 1 :]}" if end else f"{line[: width - 1]}…"


MOST_RESPONSES = 16
"""Responses kept of one row."""
MOST_CHARACTERS = 20_000
"""Characters kept of one response."""
MOST_COMPARISONS = 8
"""Comparisons drawn from one row."""


@dataclass(frozen=True)
class Comparison:
    """A better and a worse response."""

    row: int  # the row that says so
    prompt_key: int  # a number for its prompt
    better: str  # text of the better response
    worse: str  # text of the worse one


class Sample:
    """Draws rows with equal chances from a stream of unknown length (reservoir sampling, Vitter 1985)."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._random = size, random.Random(seed)
        self._rows: list[CheckedRow] = []
        self.seen = 0

    def add(self, row: CheckedRow) -> None:
        """Offers a row; of one that is drawn, :data:`MOST_RESPONSES` are kept, cut at :data:`MOST_CHARACTERS`."""
        if row.sides is None or row.parts is None:
            return
        self.seen += 1
        position = len(self._rows) if len(self._rows) < self._size else self._random.randrange(self.seen)
        if position >= self._size:
            return
        indices: Sequence[int] = range(len(row.ratings))
        if len(indices) > MOST_RESPONSES:
            others = [index for index in indices if index not in row.sides]
            indices = [*row.sides, *self._random.sample(others, MOST_RESPONSES - 2)]
        responses = tuple(row.parts.responses[index][:MOST_CHARACTERS] for index in indices)
        ratings = tuple(row.ratings[index] for index in indices)
        parts = Parts(None, 0, responses, ())
        self._rows[position : position + 1] = [
            CheckedRow(row.number, ratings=ratings, prompt_key=row.prompt_key, parts=parts)
        ]

    def comparisons(self) -> list[Comparison]:
        """Comparisons of the rows drawn: one of each row where there are many, several where there are few."""
        rows = sorted(self._rows, key=lambda row: row.number)  # in the order of the data set
        each = max(1, min(MOST_COMPARISONS, self._size // max(1, len(rows))))
        draw = random.Random(0)
        comparisons = []
        for row in rows:
            pairs = schema.comparisons_of(row.ratings)
            texts = row.parts.responses if row.parts is not None else ()
            for better, worse in pairs if len(pairs) <= each else draw.sample(pairs, each):
                comparisons.append(Comparison(row.number, row.prompt_key, texts[better], texts[worse]))
        return comparisons


def key_of(*parts: Any) -> int:
    """A number of 64 bits that stands for values: of ten million different ones two agree once in 400,000 data sets."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


@dataclass(frozen=True)
class CheckedRow:
    """A row as the checks see it."""

    number: int  # its index in the data set, counted from 0
    error: DataError | None = None  # why it cannot be read (None: it can)
    flags: int = 0  # sum of the values of its :class:`~plaudit.data.report.Flag`
    row_kind: RowKind = "pairs"
    ratings: tuple[float, ...] = ()  # how good each of its N responses is, higher is better
    keys: tuple[int, ...] = ()  # A number for each whole response, equal for equal ones
    row_key: int = 0  # A number for all that the row says
    prompt_key: int = 0  # A number for its prompt, up to case and white space; for the row where it has none
    lengths: tuple[int, ...] = ()  # tokens of each response; empty without a tokenizer
    parts: Parts | None = None  # its texts (None: it holds token ids)

    @property
    def sides(self) -> tuple[int, int] | None:
        """Indices of a best and a worst response; None where no two differ."""
        if len(self.ratings) < 2 or max(self.ratings) == min(self.ratings):
            return None
        return self.ratings.index(max(self.ratings)), self.ratings.index(min(self.ratings))


def prompt_key_of(parts: Parts, keys: Sequence[int], *, system: bool = True) -> int:
    """A number for a prompt, up to case and white space; for the whole row where no prompt is known."""
    if parts.prompt is None:
        return key_of("row", sorted(keys))
    return key_of("prompt", [normalized(text) for text in parts.prompt[0 if system else parts.system :]])


class RowReader:
    """Reads the rows of a source, one batch after the other."""

    def __init__(
        self, source: DataSource, tokenizer: PreTrainedTokenizerBase | None = None, max_length: int | None = None
    ) -> None:
        objective, self.objective_problem, self._schema = _plan_reading(source)
        self.tokenized = self._schema.tokenized
        if max_length is not None and tokenizer is None and not self.tokenized:
            raise ConfigError("`max_length` counts tokens, and there is no tokenizer", fix="Name the model as well.")
        self._source, self.broken = source, source.broken
        self.tokenizer, self.max_length = tokenizer, max_length
        self._most: bool | None = None
        self._preparer = RowPreparer(
            None if self.tokenized else tokenizer,
            max_length,
            "drop",
            objective=objective,
            schema=self._schema,
            dataset_name=source.name,
            features=source.features,
        )

    def __iter__(self) -> Iterator[CheckedRow]:
        rows = self._readable_rows()
        for start in itertools.count(step=BATCH):
            batch = list(itertools.islice(rows, BATCH))
            if not batch:
                return
            yield from self._check(batch, start)

    def _readable_rows(self) -> Iterator[dict[str, Any]]:
        try:
            yield from self._source.rows(errors=True)
        except DataError as error:
            self.broken = self.broken or error

    def _check(self, batch: Sequence[Mapping[str, Any]], start: int) -> Iterator[CheckedRow]:
        # A generator per batch: its prepared rows are freed before the next batch is read.
        rows = [self._preparer.read(raw, start + index) for index, raw in enumerate(batch)]
        if not self.tokenized:
            self._require_one_form(rows)
        self._preparer.encode(rows)
        for raw, row in zip(batch, rows, strict=True):
            if row.error is not None:
                yield CheckedRow(row.index, row.error)
                continue
            label, example = row.label, cast(Example, row.example)
            if example.response_ids is not None:
                parts, keys = None, tuple(key_of(ids) for ids in example.response_ids)
            else:
                parts = take_apart(example, raw.get("prompt") if "prompt" in self._schema.optional else None)
                beside = (example.tools, example.chat_template_kwargs)
                keys = tuple(key_of(response, beside) for response in example.responses)
            ratings = schema.ratings_of(label)
            yield CheckedRow(
                row.index,
                flags=int(row.flags),
                row_kind=row.row_kind,
                ratings=ratings,
                keys=keys,
                # The order in which a row lists its responses says nothing.
                row_key=key_of(
                    sorted(zip(keys, ratings, strict=True)), (label.margin, label.preference_prob, label.weight)
                ),
                prompt_key=row.prompt % 2**64 if parts is None else prompt_key_of(parts, keys),
                lengths=tuple(row.lengths),
                parts=parts,
            )

    def _require_one_form(self, rows: Sequence[PreparedRow]) -> None:
        """Refuses rows of another form than most of the first batch have."""
        forms = {row.index: row.example.conversational for row in rows if row.example is not None}
        if self._most is None:
            counts = Counter(forms.values())
            self._most = counts.most_common(1)[0][0] if counts else False
        names = ("plain text", "a list of messages")
        for row in rows:
            if forms.get(row.index, self._most) != self._most:
                message = f"is {names[forms[row.index]]}, but most rows have {names[self._most]}"
                fix = "Give all rows of a data set in one form, or split it into two data sets."
                row.error = DataError(message, row=row.index, field="chosen", dataset=self._source.name, fix=fix)
