"""The nouns of the data: rows, examples and labels, the kinds of rows, and the columns that they are read from."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from plaudit.errors import DataError

Message: TypeAlias = Mapping[str, Any]
"""One chat message: a mapping with ``role`` and ``content`` (and, for tools, ``tool_calls`` and the like)."""
Text: TypeAlias = str | Sequence[Message]
"""Plain text, or a list of chat messages."""
RowKind: TypeAlias = Literal["pairs", "scores", "ranks", "ratings", "labels"]
"""How a row labels its responses.

``pairs``: ``chosen`` and ``rejected``. ``scores``: several ``responses`` with a score each. ``ranks``: several
``responses`` with a rank each. ``ratings``: one ``response`` with a rating. ``labels``: one ``response`` that is
good or bad.
"""
Shape: TypeAlias = Literal["one", "list", "pair"]
"""Shape of the rewards of a row: one reward, a list of them, or those of ``chosen`` and ``rejected``."""
Score: TypeAlias = float | list[float] | tuple[float, float]
"""Rewards of a row, shaped like the row."""


@dataclass(frozen=True)
class Label:
    """What a row says about its responses."""

    # One number per response, higher is better, equal numbers are a tie: (1, 0) for a pair, -r for rank r,
    # 1 for a good response and 0 for a bad one.
    ratings: tuple[float, ...] = (1.0, 0.0)
    # How much better the chosen response of a pair should be, in reward units.
    margin: float | None = None
    # Probability that the chosen response of a pair is the better one, 0.5 for a tie.
    preference_prob: float | None = None
    # How much the row counts.
    weight: float | None = None


def ratings_of(label: Label) -> tuple[float, ...]:
    """Returns how good each response is, higher is better: its rating, or the probability that it is preferred.

    >>> ratings_of(Label((2.0, 0.0, 1.0))), ratings_of(Label(preference_prob=0.25))
    ((2.0, 0.0, 1.0), (0.25, 0.75))
    """
    ratings, preference_prob = label.ratings, label.preference_prob
    if preference_prob is None or len(ratings) != 2 or ratings[0] == ratings[1]:
        return ratings
    return (preference_prob, 1 - preference_prob) if ratings[0] > ratings[1] else (1 - preference_prob, preference_prob)


def comparisons_of(ratings: Sequence[float]) -> list[tuple[int, int]]:
    """Returns the pairs ``(better, worse)`` of indices of responses with different ratings.

    >>> comparisons_of([0.0, 2.0, 0.0])
    [(1, 0), (1, 2)]
    """
    indices = range(len(ratings))
    return [(i, j) for i in indices for j in indices if ratings[i] > ratings[j]]


def ties_of(ratings: Sequence[float]) -> list[tuple[int, int]]:
    """Returns the pairs of indices of responses with equal ratings."""
    return [(i, j) for i in range(len(ratings)) for j in range(i + 1, len(ratings)) if ratings[i] == ratings[j]]


@dataclass(frozen=True)
class Example:
    """A parsed row: N responses, and what the row says about them."""

    # The N responses, each with its prompt: whole texts, or whole lists of messages. Empty for token ids.
    responses: tuple[Text, ...]
    row_kind: RowKind = "pairs"
    label: Label = Label()
    tools: Sequence[Any] | None = None  # JSON schemas of the tools that the conversation may call
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    fields: tuple[str, ...] = field(default=(), compare=False)  # where each response is in the row, for messages
    flags: int = field(default=0, compare=False)  # sum of the values of `plaudit.data.report.Flag`
    prompt_size: int = field(default=0, compare=False)  # characters or messages of its prompt
    response_ids: tuple[Sequence[int], ...] | None = None  # where the row holds token ids

    @property
    def conversational(self) -> bool:
        """Whether the responses are chat messages rather than plain text."""
        return not isinstance(self.responses[0], str)


@dataclass(frozen=True)
class EncodedExample:
    """An example as token ids: what the collators read."""

    response_ids: tuple[Sequence[int], ...]  # of each of the N responses, prompt included
    label: Label = Label()
    own_starts: Sequence[int] | None = None  # tokens that each shares with the others, where their ids do not tell


@dataclass(frozen=True)
class RowSchema:
    """What all rows of a data set have in common, as its columns and its first rows show it."""

    tokenized: bool = False  # rows hold token ids
    pairs: bool = True  # every row is a pair
    conversational: bool | None = None  # rows hold messages (True) or text (False); None: either
    optional: frozenset[str] = frozenset()  # those of `prompt`, `margin`, `preference_prob`, `tie`, `weight` in use


Batch: TypeAlias = dict[str, Any]
"""What a collator returns. The keys are listed in :mod:`plaudit.data.collate`."""
RESPONSE_COLUMNS = ("chosen", "rejected")
TOKENIZED_COLUMNS = ("chosen_ids", "rejected_ids")
TOKENIZED_LIST_COLUMNS = ("response_ids", "scores")
# The columns that make a row of each kind. The first kind whose columns are filled in counts.
ROW_KIND_COLUMNS: dict[RowKind, tuple[str, ...]] = {
    "pairs": RESPONSE_COLUMNS,
    "scores": ("responses", "scores"),
    "ranks": ("responses", "ranks"),
    "ratings": ("response", "scores"),
    "labels": ("response", "label"),
}
LEGACY_COLUMNS = {"chosen_input_ids": "chosen_ids", "rejected_input_ids": "rejected_ids"}
PAIR_COLUMNS = ("margin", "preference_prob", "tie")
OPTIONAL_COLUMNS = ("prompt", *PAIR_COLUMNS, "weight")
# Every column that a raw row is read from; others are ignored.
RAW_COLUMNS = (
    "prompt",
    *RESPONSE_COLUMNS,
    "responses",
    "response",
    "scores",
    "score",
    "ranks",
    "label",
    "tools",
    "chat_template_kwargs",
    *PAIR_COLUMNS,
    "weight",
)
READ_COLUMNS = tuple(dict.fromkeys((*RAW_COLUMNS, *TOKENIZED_COLUMNS, *TOKENIZED_LIST_COLUMNS)))
_SINGLE = "rename `completion` to `response`, for single responses that are good or bad"
_ALONE = "there is no second response to compare with"
_NEAR_MISSES = (
    ("response_a response_b", "put the better one into `chosen`, the other into `rejected`, and leave ties out"),
    ("prompt completion label", _SINGLE),
    ("responses", "say which are better in a column `scores` (higher is better) or `ranks` (1 is best)"),
    ("response", "say how good it is in a column `scores` (a rating) or `label` (true or false)"),
    ("prompt completion", _ALONE),
    ("messages", _ALONE),
)
_SYNONYMS = {
    "chosen": ("preferred", "accepted", "winner", "win", "y_w", "response_j", "chosen_response", "better"),
    "rejected": ("dispreferred", "loser", "lose", "y_l", "response_k", "rejected_response", "worse"),
}


def is_tokenized(column_names: Iterable[str]) -> bool:
    """Tells whether rows come as token ids.

    >>> is_tokenized(["chosen_ids", "rejected_ids", "margin"]), is_tokenized(["chosen", "rejected"])
    (True, False)
    """
    names = set(column_names)
    ids = names & set(TOKENIZED_COLUMNS)
    # A stray column of ids beside complete raw rows is not meant to be read.
    if names >= set(TOKENIZED_LIST_COLUMNS) and not names >= set(RESPONSE_COLUMNS):
        return True
    return len(ids) == len(TOKENIZED_COLUMNS) or (bool(ids) and not names >= set(RESPONSE_COLUMNS))


def row_kinds_of(filled: Iterable[str]) -> list[RowKind]:
    """Returns the kinds of rows that columns can hold, given those that exist or that one row has filled in.

    >>> row_kinds_of(["prompt", "response", "label"]), row_kinds_of(["chosen", "rejected", "responses", "ranks"])
    (['labels'], ['pairs', 'ranks'])
    """
    names = set(filled)
    row_kinds = [row_kind for row_kind, columns in ROW_KIND_COLUMNS.items() if names >= set(columns)]
    if names >= {"response", "score"} and "ratings" not in row_kinds:
        row_kinds.append("ratings")
    return row_kinds


def row_kind_of(row: Mapping[str, Any]) -> RowKind:
    """Returns the kind of a raw row: the first whose columns are filled in, or begun.

    >>> row_kind_of({"chosen": None, "responses": ["a", "b"], "ranks": [1, 2]}), row_kind_of({"chosen": None})
    ('ranks', 'pairs')
    """
    filled = [name for name, value in row.items() if value is not None]
    if "chosen" in filled or "rejected" in filled:
        return "pairs"
    begun = [row_kind for row_kind, columns in ROW_KIND_COLUMNS.items() if columns[0] in filled]
    possible = row_kinds_of(row)
    both = [row_kind for row_kind in possible if row_kind in begun]
    return next(iter([*row_kinds_of(filled), *both, *begun, *possible, "pairs"]))


def columns_read(row_kind: RowKind) -> list[str]:
    """Returns the columns that rows of a kind are read from; other columns may hold anything.

    >>> [name for name in columns_read("labels") if name not in ("prompt", "tools", "chat_template_kwargs")]
    ['response', 'label', 'weight']
    """
    unread = {name for columns in ROW_KIND_COLUMNS.values() for name in columns} - set(ROW_KIND_COLUMNS[row_kind])
    unread |= set() if row_kind == "ratings" else {"score"}
    unread |= set() if row_kind == "pairs" else set(PAIR_COLUMNS)
    return [name for name in RAW_COLUMNS if name not in unread]


def response_field(row_kind: RowKind, index: int) -> str:
    """Names a response in its row, for messages.

    >>> response_field("pairs", 1), response_field("scores", 3), response_field("labels", 0)
    ('rejected', 'responses[3]', 'response')
    """
    if row_kind == "pairs":
        return RESPONSE_COLUMNS[index]
    return f"responses[{index}]" if row_kind in ("scores", "ranks") else "response"


def legacy_columns(column_names: Iterable[str]) -> dict[str, str]:
    """Returns old name -> new name for the columns that older libraries wrote, and warns about them."""
    names = set(column_names)
    renames = {old: new for old, new in LEGACY_COLUMNS.items() if old in names and new not in names}
    if renames:
        warnings.warn(
            f"The columns {quoted(renames)} are read as {quoted(renames.values())}. "
            "The old names will not be supported in v1: rename the columns.",
            FutureWarning,
            stacklevel=3,
        )
    return renames


def check_columns(column_names: Iterable[str], dataset_name: str | None = None) -> None:
    """Raises `DataError` if a column is missing that preferences need; names the columns found and near misses."""
    names = list(column_names)
    if not is_tokenized(names) and row_kinds_of(names):
        return
    needed = TOKENIZED_COLUMNS if is_tokenized(names) and "response_ids" not in names else RESPONSE_COLUMNS
    if "response_ids" in names:
        needed = TOKENIZED_LIST_COLUMNS
    missing = [name for name in needed if name not in names]
    if missing:
        message = f"has no column {quoted(missing)}; its columns are {quoted(names) if names else '(none)'}"
        raise DataError(message, dataset=dataset_name, fix=_column_advice(names, missing))


def _column_advice(names: Sequence[str], missing: Sequence[str]) -> str:
    lowered = {name.lower(): name for name in reversed(names)}
    renames = []
    for column in missing:
        close = [name for name in _SYNONYMS.get(column, ()) if name in lowered]
        close += difflib.get_close_matches(column, list(lowered), n=1, cutoff=0.75)
        if close and lowered[close[0]] not in TOKENIZED_COLUMNS + RESPONSE_COLUMNS:
            renames.append(f"`{lowered[close[0]]}` to `{column}`")
    if len(renames) == len(missing):  # one of two may be the name of the winner
        return f"Rename {' and '.join(renames)} (`dataset.rename_column`), if that is what they hold."
    for columns, advice in _NEAR_MISSES:
        if set(columns.split()) <= set(lowered):
            return f"With {quoted(columns.split())}: {advice}."
    return (
        "Preference data has `chosen` and `rejected` (text, or lists of messages), or `responses` with `scores` or "
        "`ranks`, or `response` with `scores` or `label`; and optionally `prompt`, `tools`, `chat_template_kwargs`, "
        "`margin`, `preference_prob`, `tie` and `weight`. Token ids come in `chosen_ids` and `rejected_ids`, or in "
        "`response_ids` with `scores`."
    )


def quoted(names: Iterable[str]) -> str:
    """Writes names as a list of code words."""
    return ", ".join(f"`{name}`" for name in names)
