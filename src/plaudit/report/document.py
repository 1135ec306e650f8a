"""The document that a report is: typed blocks of text, numbers, tables and figures, and how values are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

from plaudit.evaluation.results import Interval, to_plain

Kind = Literal[
    "text", "count", "amount", "duration", "change", "number", "signed", "share", "interval", "share interval", "json"
]
"""How a value is written: an interval is two values, a share is a percentage."""
NOTHING = "–"  # noqa: RUF001
_MINUS = "−"  # noqa: RUF001
_ROWS_SHOWN = 400


def written(value: Any, kind: Kind) -> str:
    """Returns a value as text.

    >>> written(0.7123, "share"), written(-1.5, "signed"), written(12345, "count"), written(None, "number")
    ('71.2%', '−1.500', '12,345', '–')
    >>> written((0.5, 0.625), "share interval"), written((-1.0, 2.5), "interval")
    ('50.0% to 62.5%', '−1.000 to 2.500')
    """
    if value is None:
        return NOTHING
    if kind in ("interval", "share interval"):
        low, high = (written(bound, "share" if kind == "share interval" else "number") for bound in value)
        return f"{low} to {high}"
    if kind == "text":
        return str(value)
    if kind == "json":
        return _json_text(value)
    if not math.isfinite(value):
        return str(value)
    if kind == "duration":
        return _duration(value)
    if kind == "share":
        text = f"{value:.1%}"
    elif kind in ("number", "signed"):
        text = _number(value)
    else:
        text = _count(value, short=kind == "amount")
    if kind in ("change", "signed") and value > 0:
        text = f"+{text}"
    return text.replace("-", _MINUS) if not text.startswith("1e") else text


def _number(value: float) -> str:
    size = abs(value)
    if value == 0:
        return "0"
    if size < 0.001 or size >= 1e6:
        return f"{value:.2e}"
    return f"{value:,.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.3f}"


def _count(value: float, *, short: bool) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if short and abs(value) >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value:,.0f}" if float(value).is_integer() else _number(value)


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _json_text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {_json_text(entry)}" for name, entry in value.items()) or "{}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_json_text, value)) or "[]"
    return str(value)


def count_of(amount: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun.

    >>> count_of(1, "row"), count_of(1200, "row"), count_of(2, "entry", "entries")
    ('1 row', '1,200 rows', '2 entries')
    """
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def first_rows(rows: Sequence[int], count: int) -> str:
    """Names the first rows of `count`.

    >>> first_rows([3, 18], 2), first_rows([0, 1], 9)
    ('3, 18', '0, 1, ...')
    """
    return ", ".join(map(str, rows)) + (", ..." if count > len(rows) > 0 else "")


# ---- blocks: fields without repr are for display only and are not in the JSON file -------------------------------

Tone = Literal["empty", "note", "warning", "good"]
Heads: TypeAlias = tuple[tuple[str, Kind], ...]
"""Title of each column, and how its values are written."""


def heads(text: str) -> Heads:
    """Parses the head of a table.

    >>> heads("suite | rows: count")
    (('suite', 'text'), ('rows', 'count'))
    """
    columns = (column.strip().partition(": ") for column in text.split("|"))
    return tuple((title, kind or "text") for title, _, kind in columns)  # type: ignore[misc]


@dataclass(frozen=True)
class Paragraph:
    """Running text; `backticks` mark code, *stars* emphasis."""

    SAVED_PROPERTIES: ClassVar = ("type",)
    type: ClassVar[str] = "paragraph"

    text: str
    tone: Tone | None = None


@dataclass(frozen=True)
class Table:
    """A table of raw values, which are written only where they are shown."""

    SAVED_PROPERTIES: ClassVar = ("type", "columns")
    type: ClassVar[str] = "table"

    name: str  # in the JSON file, unique in its section
    title: str
    heads: Heads = field(repr=False)
    rows: Sequence[Sequence[Any]]
    folded: bool = field(default=False, repr=False, kw_only=True)  # shown on request only
    most_shown: int = field(default=_ROWS_SHOWN, repr=False, kw_only=True)

    @property
    def columns(self) -> list[str]:
        """Titles of the columns."""
        return [title for title, _ in self.heads]

    def cells(self) -> list[list[str]]:
        """Returns the rows that are shown, as text; of too many some from all over, the last among them."""
        rows, most = list(self.rows), self.most_shown
        if len(rows) > most:
            rows = [*(rows[index * len(rows) // most] for index in range(most - 1)), rows[-1]]
        return [[written(value, kind) for value, (_, kind) in zip(row, self.heads, strict=True)] for row in rows]


@dataclass(frozen=True)
class Figure(Table):
    """A picture with its numbers in a table."""

    type: ClassVar[str] = "figure"

    caption: str = field(kw_only=True)  # what it shows, and what to look for
    alternative: str = field(kw_only=True, repr=False)  # for readers who cannot see it
    svg: str = field(kw_only=True, repr=False)


@dataclass(frozen=True)
class Number:
    """A headline number."""

    label: str
    value: float | None
    kind: Kind = field(default="share", repr=False)
    interval: Interval | None = None  # 95%
    detail: str = ""  # what to compare it with

    @property
    def details(self) -> list[str]:
        """Interval and detail as text, where there are any."""
        kind: Kind = "share interval" if self.kind == "share" else "interval"
        interval = f"95% interval {written(self.interval, kind)}" if self.interval is not None else ""
        return [text for text in (interval, self.detail) if text]


@dataclass(frozen=True)
class Numbers:
    """Headline numbers, side by side."""

    SAVED_PROPERTIES: ClassVar = ("type",)
    type: ClassVar[str] = "numbers"

    name: str
    numbers: Sequence[Number]


@dataclass(frozen=True)
class Response:
    """A response of a mistake."""

    label: str  # better or worse; good or bad
    text: str | None
    reward: float | None
    tokens: int | None


@dataclass(frozen=True)
class Mistake:
    """A row that the model is wrong about."""

    title: str
    confidence: float | None  # probability that the model gives to its wrong opinion
    margin: float | None
    prompt: str
    responses: tuple[Response, ...]
    columns: dict[str, str] = field(default_factory=dict)

    @property
    def facts(self) -> list[str]:
        """What is known of the row, in a few words each."""
        facts = [self.title]
        if self.confidence is not None:
            facts.append(f"{written(self.confidence, 'share')} sure, and wrong")
        if self.margin is not None:
            facts.append(f"margin {written(self.margin, 'signed')}")
        return facts + [f"{name}: {value}" for name, value in self.columns.items()]


@dataclass(frozen=True)
class Mistakes:
    """Mistakes with their texts, the most confident first."""

    SAVED_PROPERTIES: ClassVar = ("type",)
    type: ClassVar[str] = "mistakes"

    name: str
    title: str
    mistakes: Sequence[Mistake]


Block: TypeAlias = Paragraph | Table | Numbers | Mistakes


@dataclass(frozen=True)
class Section:
    """A part of a document."""

    name: str  # in links and in the JSON file, unique in the document
    title: str
    blocks: Sequence[Block]
    lead: str = ""  # a line under the heading


@dataclass(frozen=True)
class Document:
    """A report."""

    FORMAT: ClassVar[str] = "plaudit report"
    VERSION: ClassVar[int] = 1

    title: str
    about: Sequence[str]  # facts under the title, in a few words each
    sections: Sequence[Section]
    made_by: str  # the program and its version

    def to_dict(self) -> dict[str, Any]:
        """Returns the document as plain values, for JSON."""
        return {"format": self.FORMAT, "version": self.VERSION, **to_plain(self)}
