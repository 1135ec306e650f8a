"""Results of the data doctor: kinds of faults, their severity, and their rows."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
from datasets import IterableDataset

from plaudit.data.load import DataSource, until_broken
from plaudit.data.report import row_names
from plaudit.doctor.leaks import Leak, percent
from plaudit.doctor.rows import excerpt, message_text
from plaudit.doctor.shortcuts import Shortcut, Suspect

FARTHEST = 200_000
"""Row up to which a stream is read again."""
_WIDTH = 60


def add_texts(source: DataSource, findings: Sequence[Finding]) -> None:
    """Gives examples that have no text a summary of their row."""
    examples = [example for finding in findings for example in finding.examples if not example.text]
    indices = {example.rows[0] for example in examples}
    texts: dict[int, str] = {}
    if not isinstance(source.dataset, IterableDataset):
        texts = {index: summary(source.row(index)) for index in indices}
    elif near := {index for index in indices if index < FARTHEST}:
        # A stream that breaks off was reported already: its rows up to there have texts.
        rows = until_broken(itertools.islice(source.rows(errors=True), max(near) + 1))
        texts = {index: summary(row) for index, row in enumerate(rows) if index in near}
    for example in examples:
        example.text = texts.get(example.rows[0], "")


def summary(row: Any) -> str:
    """Shortens prompt and responses of a raw row to one line; empty for the error of a row that cannot be read.

    >>> summary({"prompt": "2+2=", "chosen": "4", "rejected": "5"})
    '"2+2=" chosen: "4" rejected: "5"'
    """
    parts = []
    row = row if isinstance(row, Mapping) else {}
    for name in ("prompt", "chosen", "rejected", "response"):
        if row.get(name) is not None:
            title, end = ("", False) if name == "prompt" else (f"{name}: ", "prompt" not in row)
            parts.append(f'{title}"{excerpt(_text(row[name]), _WIDTH, end=end)}"')
    responses = row.get("responses")
    if not parts[1:] and isinstance(responses, list):
        parts += [f'"{excerpt(_text(response), _WIDTH)}"' for response in responses[:2]]
        parts += ["…"] * (len(responses) > 2)
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


EXAMPLES = 3
"""Examples kept per finding."""


@dataclass(frozen=True)
class Kind:
    """One kind of finding."""

    severity: Severity  # how bad it is
    title: str  # what is wrong, as it follows a number of rows
    removable: bool = False  # whether `fix` removes such rows: only where the fault is certain


KINDS = {
    "broken_file": Kind("error", "the file breaks off"),
    "no_objective": Kind("error", "no objective reads all rows"),
    "unreadable": Kind("error", "unreadable", removable=True),
    "empty": Kind("error", "an empty response", removable=True),
    "identical": Kind("error", "identical responses", removable=True),
    "contradictory": Kind("error", "contradictory: A over B here, B over A there", removable=True),
    "in_eval": Kind("error", "prompt is in the evaluation data", removable=True),
    "in_benchmark": Kind("error", "prompt is in a benchmark", removable=True),
    "duplicate": Kind("warning", "exact duplicates of an earlier row", removable=True),
    "overlong": Kind("warning", "over-long", removable=True),
    "cycle": Kind("warning", "preference cycles: A over B over C over A"),
    "nothing_to_compare": Kind("warning", "nothing to compare: no two responses differ in score"),
    "same_rendering": Kind("warning", "different responses, same tokens"),
    "begins_with_prompt": Kind("warning", "responses begin with their prompt, which is there twice"),
    "same_words": Kind("warning", "responses differ only in white space"),
    "last_message": Kind("warning", "last message is not the assistant's"),
    "special_token": Kind("warning", "a special token written out in a response"),
    "near_benchmark": Kind("warning", "prompt overlaps a benchmark's"),
    "truncated": Kind("warning", "a response that seems to break off"),
    "leak": Kind("warning", "marks of one side: they give the label away"),
    "lean": Kind("note", "marks that lean to one side"),
    "shortcut": Kind("warning", "a shortcut solves the data"),
}
"""Every kind, in the order in which findings are shown. A row that has several is removed for the first of them."""
_ADVICE = {
    "contradictory": "Find out which label is right; --fix removes all of them.",
    "overlong": "Training drops them; raise `max_length`, or cut them with `overlong`.",
    "cycle": "At least one row of each cycle is wrong; nothing tells which.",
    "same_rendering": "The chat template leaves out what tells them apart.",
    "special_token": "A tokenizer turns them into the real tokens; take them out of the texts.",
    "truncated": "Often a limit on new tokens when the responses were generated: "
    "generate them again with a higher one.",
    "leak": "A reward model learns these first: make both sides alike, or take such rows out.",
    "shortcut": "A high accuracy on this data shows little; judge the model on other data too.",
}


@dataclass
class Occurrence:
    """A row that shows a finding."""

    rows: tuple[int, ...]  # its number, with those of the rows that it clashes with
    text: str = ""  # what there is to see; empty until the row is looked up


@dataclass
class Finding:
    """One kind of fault, and the rows that have it."""

    kind: str  # which; a key of :data:`KINDS`
    # all their numbers, ascending, counted from 0; empty where the fault is one of the whole data set
    rows: Sequence[int] = field(default_factory=lambda: array("q"), repr=False)
    detail: str = ""  # the fault in words, where there is more to say
    lines: tuple[str, ...] = ()  # further lines, such as one for each reason
    examples: list[Occurrence] = field(default_factory=list)  # some of the rows
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

    def add(self, row: int, text: str | None = "") -> None:
        """Adds a row; the first few are examples, except those whose `text` is None."""
        assert isinstance(self.rows, array)
        self.rows.append(row)
        if text is not None and len(self.examples) < EXAMPLES:
            self.examples.append(Occurrence((row,), text))

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


class Findings(dict[str, Finding]):
    """A finding for each kind; one that is missing is made when it is asked for."""

    def __missing__(self, kind: str) -> Finding:
        self[kind] = Finding(kind, advice=_ADVICE.get(kind, ""))
        return self[kind]

    def in_order(self) -> list[Finding]:
        """Returns the findings, the worst first, then in the order of :data:`KINDS`."""
        findings = [self[kind] for kind in KINDS if kind in self]
        return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


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
    schema: str | None = None  # of public data, by which the rows were read; None: as they are
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
            "schema": self.schema,
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


def token_lengths(counts: Mapping[int, int]) -> TokenLengths | None:
    """Returns quantiles of lengths, given the count of each length.

    >>> token_lengths({3: 1, 2: 3})
    TokenLengths(shortest=2, median=2, most=3, longest=3)
    """
    total = sum(counts.values())
    if not total:
        return None
    lengths = sorted(counts)
    ranks = [1, (total + 1) // 2, -(-95 * total // 100), total]
    indices = np.searchsorted(np.cumsum([counts[length] for length in lengths]), ranks)
    return TokenLengths(*(lengths[index] for index in indices.tolist()))
