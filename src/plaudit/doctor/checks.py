"""Checks that read one row after the other and return findings at the end."""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from plaudit.data.report import Flag
from plaudit.doctor.findings import Finding, Occurrence, row_names
from plaudit.doctor.leaks import MarkCounts, Marker, breaks_off, lacks_end, percent, two_proportions
from plaudit.doctor.relations import Benchmark, Ledger, Prompts, shorten
from plaudit.doctor.rows import CheckedRow, excerpt
from plaudit.schema import response_field

EXAMPLES = 3
"""Examples kept per finding."""
REASONS = 8
"""Distinct reasons for unreadable rows that are listed."""
STYLE_SHARE = 0.9
"""Where this share of long responses ends with a full stop, one without it seems to break off."""


class Check(Protocol):
    """Collects findings from a pass over all rows."""

    def add(self, row: CheckedRow) -> None:
        """Reads a row, which may be an unreadable one."""

    def findings(self) -> list[Finding]:
        """Returns the findings after the last row."""


class Unreadable:
    """Collects rows that training rejects, by reason."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._reasons: dict[str, array[int]] = {}
        self._examples: list[Occurrence] = []
        self._fixes: dict[str, None] = {}

    def add(self, row: CheckedRow) -> None:
        """Counts an unreadable row."""
        if row.error is None:
            return
        self._rows.append(row.number)
        error = row.error
        field = re.sub(r"\[\d+\]", "[…]", error.field or "")
        reason = f"`{field}`: {error.message}" if field else error.message
        if reason not in self._reasons and len(self._reasons) >= REASONS:
            reason = "other reasons"
        elif len(self._examples) < EXAMPLES and reason not in self._reasons:
            self._examples.append(Occurrence((row.number,), f"`{error.field}` {error.message}"))
        self._reasons.setdefault(reason, array("q")).append(row.number)
        if error.fix and len(self._fixes) < 2:
            self._fixes[error.fix] = None

    def findings(self) -> list[Finding]:
        """Returns one finding with a line per reason."""
        if not self._rows:
            return []
        ordered = sorted(self._reasons.items(), key=lambda reason_and_rows: -len(reason_and_rows[1]))
        lines = tuple(f"{len(rows):,}: {reason} ({row_names(rows)})" for reason, rows in ordered)
        return [Finding("unreadable", self._rows, "", lines, tuple(self._examples), " ".join(self._fixes))]


_FLAGS = {
    Flag.EMPTY_RESPONSE: "empty",
    Flag.IDENTICAL: "identical",
    Flag.NOTHING_TO_COMPARE: "nothing_to_compare",
    Flag.SAME_RENDERING: "same_rendering",
    Flag.LAST_MESSAGE_NOT_ASSISTANT: "last_message",
    Flag.OVERLONG: "overlong",
}


class Flagged:
    """Collects rows that training flags as suspicious."""

    def __init__(self, max_length: int | None) -> None:
        self._max_length = max_length
        self._rows: dict[str, array[int]] = {}
        self._examples: dict[str, list[Occurrence]] = {}

    def add(self, row: CheckedRow) -> None:
        """Counts the flags of a row."""
        if row.error is not None:
            return
        kinds = [kind for flag, kind in _FLAGS.items() if row.flags & flag]
        if row.parts is not None and len(row.parts.responses) > 1 and "identical" not in kinds:
            responses = {" ".join(response.split()) for response in row.parts.responses}
            kinds += ["same_words"] if len(responses) == 1 and "empty" not in kinds else []
        for kind in kinds:
            self._rows.setdefault(kind, array("q")).append(row.number)
            examples = self._examples.setdefault(kind, [])
            if len(examples) < EXAMPLES:
                examples.append(Occurrence((row.number,), self._words(kind, row)))

    def _words(self, kind: str, row: CheckedRow) -> str:
        if kind == "overlong":
            return f"{max(row.lengths):,} tokens"
        if row.parts is None:
            return ""
        if kind == "empty":
            blank = [n for n, response in enumerate(row.parts.responses) if not response.strip()]
            return ", ".join(f"`{response_field(row.row_kind, index)}` is empty" for index in blank)
        return excerpt(row.parts.responses[0]) if kind == "identical" else ""

    def findings(self) -> list[Finding]:
        """Returns one finding per kind."""
        advice = {
            "overlong": "Training drops them; raise `max_length`, or cut them with `overlong`.",
            "same_rendering": "The chat template leaves out what tells them apart.",
        }
        details = {"overlong": f"more than {self._max_length:,} tokens" if self._max_length else ""}
        return [
            Finding(kind, rows, details.get(kind, ""), (), tuple(self._examples[kind]), advice.get(kind, ""))
            for kind, rows in self._rows.items()
        ]


class Relations:
    """Finds duplicates, contradictions and cycles among all rows."""

    def __init__(self) -> None:
        self._ledger = Ledger()

    def add(self, row: CheckedRow) -> None:
        """Records a row."""
        if row.error is None:
            self._ledger.add(row)

    def findings(self) -> list[Finding]:
        """Returns one finding per kind."""
        repeats = self._ledger.repeats()
        pairs = zip(repeats.first_of.tolist(), repeats.duplicates.tolist(), strict=True)
        duplicates = [(first, again) for _, (first, again) in zip(range(EXAMPLES), pairs, strict=False)]
        findings = [
            Finding("duplicate", repeats.duplicates.tolist(), examples=tuple(map(Occurrence, duplicates))),
            Finding(
                "contradictory",
                repeats.contradictory.tolist(),
                f"{len(repeats.contradictions):,} contradictions" if len(repeats.contradictions) > 1 else "",
                examples=tuple(map(Occurrence, shorten(repeats.contradictions, EXAMPLES))),
                advice="Find out which label is right; --fix removes all of them.",
            ),
            Finding(
                "cycle",
                repeats.cyclic.tolist(),
                f"{len(repeats.cycles):,} {'cycle' if len(repeats.cycles) == 1 else 'cycles'}",
                examples=tuple(map(Occurrence, shorten(repeats.cycles, EXAMPLES))),
                advice="At least one row of each cycle is wrong; nothing tells which.",
            ),
        ]
        return [finding for finding in findings if finding.count]


class Endings:
    """Counts responses that seem to break off, on both sides."""

    def __init__(self) -> None:
        self._rows, self._style_rows = array("q"), array("q")
        self._examples: list[Occurrence] = []
        self._style_examples: list[Occurrence] = []
        self._sides = {True: [0, 0, 0], False: [0, 0, 0]}  # break off, lack an end, all
        self._long, self._endless = 0, 0

    def add(self, row: CheckedRow) -> None:
        """Checks the end of each response."""
        if row.parts is None or bool(row.flags & Flag.IDENTICAL):
            return
        reasons, styles = {}, []
        for index, (response, call) in enumerate(zip(row.parts.responses, row.parts.calls, strict=True)):
            if call or not response.strip():
                continue
            reason = breaks_off(response)
            if reason is not None:
                reasons[index] = reason
            style = lacks_end(response)
            if style is not None:
                self._long += 1
                self._endless += style
                styles += [index] if style and reason is None else []
        for preferred, index in zip((True, False), row.sides or (), strict=False):
            counts = self._sides[preferred]
            counts[0] += index in reasons
            counts[1] += index in styles
            counts[2] += 1
        for indices, rows, examples in (
            (list(reasons), self._rows, self._examples),
            ([] if reasons else styles, self._style_rows, self._style_examples),
        ):
            if indices:
                rows.append(row.number)
                if len(examples) < EXAMPLES:
                    field = response_field(row.row_kind, indices[0])
                    why = reasons.get(indices[0], "has no full stop")
                    text = f"`{field}` {why}: {excerpt(row.parts.responses[indices[0]], 70, end=True)}"
                    examples.append(Occurrence((row.number,), text))

    def findings(self) -> list[Finding]:
        """Returns one finding with the share on both sides."""
        stylish = self._long >= 50 and self._endless < (1 - STYLE_SHARE) * self._long
        rows = sorted([*self._rows, *self._style_rows]) if stylish else self._rows
        if not rows:
            return []
        examples = [*self._examples, *(self._style_examples if stylish else [])][:EXAMPLES]
        totals = {side: counts[2] for side, counts in self._sides.items()}
        broken = {side: counts[0] + (counts[1] if stylish else 0) for side, counts in self._sides.items()}
        detail = ""
        if all(totals.values()):
            shares = {side: broken[side] / totals[side] for side in totals}
            detail = f"{percent(shares[True])} of chosen, {percent(shares[False])} of rejected responses"
            chance = two_proportions(
                *(np.array([broken[True]], float), totals[True]), *(np.array([broken[False]], float), totals[False])
            )
            if chance[0] < 0.01:
                detail += ": a difference that a model can learn instead"
        advice = "Often a limit on new tokens when the responses were generated: generate them again with a higher one."
        return [Finding("truncated", rows, detail, (), tuple(examples), advice)]


class Marks:
    """Counts stock phrases, formatting and special tokens."""

    def __init__(self, special_tokens: Sequence[str] = ()) -> None:
        self._marker = Marker(special_tokens)
        self.counts = MarkCounts(self._marker.names)
        self._special, self._examples = array("q"), list[Occurrence]()

    def add(self, row: CheckedRow) -> None:
        """Counts the marks of a row's responses."""
        if row.parts is None:
            return
        responses = row.parts.responses
        if row.row_kind == "labels":
            self.counts.add(self._marker.marks(responses[0]), preferred=row.ratings[0] > 0.5)
        elif row.sides is not None:
            for preferred, index in zip((True, False), row.sides, strict=True):
                self.counts.add(self._marker.marks(responses[index]), preferred=preferred)
        for index, response in enumerate(responses):
            token = self._marker.special_token(response)
            if token is not None:
                self._special.append(row.number)
                if len(self._examples) < EXAMPLES:
                    self._examples.append(
                        Occurrence((row.number,), f"`{response_field(row.row_kind, index)}` has {token}")
                    )
                break

    def findings(self) -> list[Finding]:
        """Returns the rows with special tokens; leaks are reported together with those of words."""
        if not self._special:
            return []
        advice = "A tokenizer turns them into the real tokens; take them out of the texts."
        return [Finding("special_token", self._special, examples=tuple(self._examples), advice=advice)]


class Overlaps:
    """Finds prompts shared with evaluation data and benchmarks."""

    def __init__(self, eval_prompts: Prompts | None, benchmarks: Sequence[Benchmark]) -> None:
        self._eval, self._benchmarks = eval_prompts, benchmarks

    def add(self, row: CheckedRow) -> None:
        """Looks up the prompt of a row."""
        if row.error is not None:
            return
        if self._eval is not None:
            self._eval.add(row)
        for benchmark in self._benchmarks:
            benchmark.add(row)

    def findings(self) -> list[Finding]:
        """Returns one finding per kind, over all benchmarks."""
        findings = []
        if self._eval is not None and self._eval.hits:
            findings.append(self._finding("in_eval", {self._eval.name: self._eval.hits}, f"{self._eval.met} of it"))
        for kind in ("in_benchmark", "near_benchmark"):
            hits = {
                benchmark.name: matches
                for benchmark in self._benchmarks
                if (matches := benchmark.exact if kind == "in_benchmark" else benchmark.near)
            }
            if hits:
                detail = "; ".join(f"{name}: {len(matches):,}" for name, matches in hits.items())
                findings.append(self._finding(kind, hits, detail))
        return findings

    @staticmethod
    def _finding(kind: str, hits: dict[str, list[tuple[int, int]]], detail: str) -> Finding:
        rows = sorted({row for matches in hits.values() for row, _ in matches})
        examples = [
            Occurrence((row,), f"row {matching_row} of {name}")
            for name, matches in hits.items()
            for row, matching_row in matches[:EXAMPLES]
        ]
        return Finding(kind, rows, detail, (), tuple(examples[:EXAMPLES]))
