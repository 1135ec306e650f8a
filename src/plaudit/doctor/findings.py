"""Results of the data doctor: kinds of faults, their severity, and their rows."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from datasets import IterableDataset

from plaudit.data.load import DataSource
from plaudit.doctor.leaks import Leak, percent
from plaudit.doctor.rows import excerpt, message_text
from plaudit.doctor.shortcuts import Shortcut, Suspect
from plaudit.errors import DataError

FARTHEST = 200_000
"""Row up to which a stream is read again."""
_WIDTH = 60


def with_texts(source: DataSource, findings: Sequence[Finding]) -> list[Finding]:
    """Fills in the text of examples that have none with a summary of their row."""
    indices = sorted({example.rows[0] for finding in findings for example in finding.examples if not example.text})
    dataset: Any = source.dataset
    texts: dict[int, str] = {}
    if not isinstance(dataset, IterableDataset):
        texts = {index: summary(dataset[int(index)]) for index in indices}
    elif near := [index for index in indices if index < FARTHEST]:
        # A stream that breaks off was reported already: its rows up to there have texts.
        with contextlib.suppress(DataError):
            for index, row in enumerate(itertools.islice(source.whole_rows(), near[-1] + 1)):
                if index in near:
                    texts[index] = summary(row)
    return [
        replace(
            finding,
            examples=tuple(
                example if example.text else replace(example, text=texts.get(example.rows[0], ""))
                for example in finding.examples
            ),
        )
        for finding in findings
    ]


def summary(row: Mapping[str, Any]) -> str:
    """Shortens prompt and responses of a raw row to one line.

    >>> summary({"prompt": "2+2=", "chosen": "4", "rejected": "5"})
    '"2+2=" chosen: "4" rejected: "5"'
    """
    parts = []
    if row.get("prompt") is not None:
        parts.append(f'"{excerpt(_text(row["prompt"]), _WIDTH)}"')
    for name in ("chosen", "rejected", "response"):
        if row.get(name) is not None:
            parts.append(f'{name}: "{excerpt(_text(row[name]), _WIDTH, end="prompt" not in row)}"')
    if not parts[1:] and isinstance(row.get("responses"), list):
        responses = row["responses"][:2]
        parts += [f'"{excerpt(_text(response), _WIDTH)}"' for response in responses] + ["…"] * (
            len(row["responses"]) > 2
        )
    return " ".join(parts)


def _text(value: Any) -> str:
    """Returns a text, or the last message of a conversation even if the row is otherwise malformed."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and isinstance(value[-1], Mapping):
        message = value[-1]
        content = message.get("content")
        return message_text(message) if isinstance(content, str) else str(content)
    return str(value)


Severity: TypeAlias = Literal["error", "warning", "note"]
"""``error``: certainly wrong. ``warning``: likely to do harm, or dropped by training. ``note``: good to know."""
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""All severities, the worst first."""
ROWS_LISTED = 1000
"""Row numbers per finding written to JSON."""


@dataclass(frozen=True)
class Kind:
    """One kind of finding."""

    name: str  # its name in JSON and in lists of removed rows
    severity: Severity  # how bad it is
    title: str  # what is wrong, as it follows a number of rows
    removable: bool = False  # whether `fix` removes such rows: only where the fault is certain


KINDS = {
    kind.name: kind
    for kind in (
        Kind("broken_file", "error", "the file breaks off"),
        Kind("no_objective", "error", "no objective reads all rows"),
        Kind("unreadable", "error", "unreadable", removable=True),
        Kind("empty", "error", "an empty response", removable=True),
        Kind("identical", "error", "identical responses", removable=True),
        Kind("contradictory", "error", "contradictory: A over B here, B over A there", removable=True),
        Kind("in_eval", "error", "prompt is in the evaluation data", removable=True),
        Kind("in_benchmark", "error", "prompt is in a benchmark", removable=True),
        Kind("duplicate", "warning", "exact duplicates of an earlier row", removable=True),
        Kind("overlong", "warning", "over-long", removable=True),
        Kind("cycle", "warning", "preference cycles: A over B over C over A"),
        Kind("nothing_to_compare", "warning", "nothing to compare: no two responses differ in score"),
        Kind("same_rendering", "warning", "different responses, same tokens"),
        Kind("same_words", "warning", "responses differ only in white space"),
        Kind("last_message", "warning", "last message is not the assistant's"),
        Kind("special_token", "warning", "a special token written out in a response"),
        Kind("near_benchmark", "warning", "prompt overlaps a benchmark's"),
        Kind("truncated", "warning", "a response that seems to break off"),
        Kind("leak", "warning", "marks of one side: they give the label away"),
        Kind("lean", "note", "marks that lean to one side"),
        Kind("shortcut", "warning", "a shortcut solves the data"),
    )
}
"""Every kind, in the order in which findings are shown. A row that has several is removed for the first of them."""


@dataclass(frozen=True)
class Occurrence:
    """A row that shows a finding."""

    rows: tuple[int, ...]  # its number, with those of the rows that it clashes with
    text: str = ""  # what there is to see; empty until the row is looked up


@dataclass(frozen=True)
class Finding:
    """One kind of fault, and the rows that have it."""

    kind: str  # which; a key of :data:`KINDS`
    # all their numbers, ascending, counted from 0; empty where the fault is one of the whole data set
    rows: Sequence[int] = field(default=(), repr=False)
    detail: str = ""  # the fault in words, where there is more to say
    lines: tuple[str, ...] = ()  # further lines, such as one for each reason
    examples: tuple[Occurrence, ...] = ()  # some of the rows
    advice: str = ""  # what to do about it

    @property
    def severity(self) -> Severity:
        """Severity of this kind of fault."""
        return KINDS[self.kind].severity

    @property
    def title(self) -> str:
        """Description of the fault, as it follows a number of rows."""
        return KINDS[self.kind].title

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.rows)

    def to_dict(self, total: int) -> dict[str, Any]:
        """Returns the finding as plain values."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "title": self.title,
            "detail": self.detail,
            "lines": list(self.lines),
            "count": self.count,
            "share": self.count / total if total else 0.0,
            "rows": [int(row) for row in self.rows[:ROWS_LISTED]],
            "examples": [{"rows": list(example.rows), "text": example.text} for example in self.examples],
            "advice": self.advice,
            "removable": KINDS[self.kind].removable,
        }


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """Sorts findings: the worst first, then in the order of :data:`KINDS`."""
    indices = {name: index for index, name in enumerate(KINDS)}
    return sorted(findings, key=lambda finding: (SEVERITIES.index(finding.severity), indices[finding.kind]))


def row_names(rows: Sequence[int], limit: int = 5) -> str:
    """Lists the first row numbers as text.

    >>> row_names([3, 18]), row_names([7]), row_names(range(9))
    ('rows 3, 18', 'row 7', 'rows 0, 1, 2, 3, 4, ...')
    """
    names = ", ".join(str(row) for row in rows[:limit]) + (", ..." if len(rows) > limit else "")
    return f"row {names}" if len(rows) == 1 else f"rows {names}"


@dataclass(frozen=True)
class TokenLengths:
    """Lengths of single responses with their prompts, in tokens."""

    shortest: int  # that of the shortest
    median: int  # half of them are no longer
    most: int  # 95% of them are no longer
    longest: int  # that of the longest


@dataclass(frozen=True)
class Fixed:
    """A cleaned copy that was written."""

    path: str  # the copy
    removed_path: str  # the list of what was removed and why
    kept: int  # number of rows in the copy
    removed: dict[str, int]  # kind of fault -> rows removed for it; a row is counted once


@dataclass(frozen=True)
class DataCheck:
    """Result of :func:`~plaudit.check_dataset`."""

    name: str  # what was checked
    rows: int  # number of rows read
    row_kinds: dict[str, int]
    findings: list[Finding]  # the faults, the worst first
    shortcuts: list[Shortcut] = field(default_factory=list)  # what a reward model must beat
    leaks: list[Leak] = field(default_factory=list)  # marks that lean to one side, the clearest first
    # rows most likely labelled the wrong way round, the likeliest first
    suspects: list[Suspect] = field(default_factory=list)
    lengths: TokenLengths | None = None  # token lengths (None: no tokenizer)
    notes: list[str] = field(default_factory=list)  # what was not checked, and why
    seconds: float = 0.0  # time it took
    fixed: Fixed | None = None  # the cleaned copy (None: not asked for)

    @property
    def ok(self) -> bool:
        """Whether no finding is an error."""
        return not self.of("error")

    def of(self, severity: Severity) -> list[Finding]:
        """Returns the findings of a severity."""
        return [finding for finding in self.findings if finding.severity == severity]

    def finding(self, kind: str) -> Finding | None:
        """Returns the finding of a kind, or None."""
        return next((finding for finding in self.findings if finding.kind == kind), None)

    @property
    def verdict(self) -> str:
        """Summary in one line."""
        counts = {severity: len(self.of(severity)) for severity in SEVERITIES}
        words = [f"{count} {severity}{'s' * (count > 1)}" for severity, count in counts.items() if count]
        if not counts["error"] and not counts["warning"]:
            words = ["no faults found", *words]
        return f"{', '.join(words)} in {self.rows:,} rows"

    def to_dict(self) -> dict[str, Any]:
        """Returns the result as plain values for JSON."""
        return {
            "name": self.name,
            "ok": self.ok,
            "verdict": self.verdict,
            "rows": self.rows,
            "row_kinds": self.row_kinds,
            "seconds": round(self.seconds, 3),
            "findings": [finding.to_dict(self.rows) for finding in self.findings],
            "shortcuts": [asdict(shortcut) for shortcut in self.shortcuts],
            "leaks": [leak.to_dict() for leak in self.leaks],
            "suspects": [asdict(suspect) for suspect in self.suspects],
            "token_lengths": asdict(self.lengths) if self.lengths else None,
            "notes": self.notes,
            "fixed": asdict(self.fixed) if self.fixed else None,
        }

    def to_markdown(self) -> str:
        """Returns the result as Markdown, for a data set card or a review comment."""
        lines = [f"# Data check: {self.name}", "", f"**{self.verdict[0].upper()}{self.verdict[1:]}.**", ""]
        if self.findings:
            lines += ["| | found | rows | share | first rows |", "|---|---|---:|---:|---|"]
            for finding in self.findings:
                cells = finding_cells(finding, self.rows)
                lines.append(f"| {finding.severity} | " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
            lines.append("")
        for finding in self.findings:
            if finding.lines:
                title = f"**{finding.title[0].upper()}{finding.title[1:]}**"
                lines += [title, "", *(f"- {line}" for line in finding.lines), ""]
        if self.shortcuts:
            lines += ["| shortcut | accuracy | 95% interval | rows |", "|---|---:|---|---:|"]
            lines += [
                f"| {rule.name} | {rule.accuracy:.1%} | {rule.low:.1%} to {rule.high:.1%} | {rule.rows:,} |"
                for rule in self.shortcuts
            ]
            lines.append("")
        return "\n".join([*lines, *(f"- {note}" for note in self.notes), ""]).rstrip() + "\n"


def finding_cells(finding: Finding, total: int) -> list[str]:
    """Returns the cells of a table line: fault, rows, share and first rows."""
    what = finding.title + (f" ({finding.detail})" if finding.detail else "")
    if not finding.count:
        return [what, "", "", ""]
    share = percent(finding.count / total) if total else ""
    return [what, f"{finding.count:,}", share, row_names(finding.rows).partition(" ")[2]]


def token_lengths(counts: Sequence[int]) -> TokenLengths | None:
    """Returns quantiles of lengths, given the count of each length.

    >>> token_lengths([0, 0, 3, 1])
    TokenLengths(shortest=2, median=2, most=3, longest=3)
    """
    total = sum(counts)
    if not total:
        return None
    ranks = [1, (total + 1) // 2, -(-95 * total // 100), total]
    return TokenLengths(*(int(length) for length in np.searchsorted(np.cumsum(counts), ranks)))
