"""Checks a data set in one pass and reports its faults (``check_dataset``)."""

from __future__ import annotations

import os
import re
import time
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from plaudit.data.load import DataLike
from plaudit.data.report import Flag, row_names
from plaudit.data.schemas import read_as
from plaudit.doctor.findings import EXAMPLES, KINDS, DataCheck, Finding, Findings, Occurrence, add_texts, token_lengths
from plaudit.doctor.fix import check_target, write_fixed
from plaudit.doctor.leaks import Leak, Marker, breaks_off, lacks_end, percent, two_proportions
from plaudit.doctor.relations import Ledger, Prompts
from plaudit.doctor.rows import CheckedRow, Parts, RowReader, Sample, excerpt, open_rows
from plaudit.doctor.shortcuts import Lengths, Shortcut, Suspect, distinct, read_words
from plaudit.errors import ConfigError, DataError
from plaudit.schema import response_field

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with the current step, the number of rows done, and the number of rows in all (None: unknown)."""
REMOVABLE = tuple(name for name, kind in KINDS.items() if kind.removable)
"""Kinds of faults that a cleaned copy drops: those that are certain."""
SAMPLE_ROWS = 10_000
"""Maximum number of rows to fit the bag of words to."""
REASONS = 8
"""Distinct reasons for unreadable rows that are listed."""
STYLE_SHARE = 0.9
"""Where this share of long responses ends with a full stop, one without it seems to break off."""
_STEP = 500
_WORDS_SOLVE, _LENGTH_SOLVES = 0.9, 0.7
_KIND_OF_FLAG = {
    Flag.EMPTY_RESPONSE: "empty",
    Flag.IDENTICAL: "identical",
    Flag.NOTHING_TO_COMPARE: "nothing_to_compare",
    Flag.SAME_RENDERING: "same_rendering",
    Flag.LAST_MESSAGE_NOT_ASSISTANT: "last_message",
    Flag.OVERLONG: "overlong",
    Flag.BEGINS_WITH_PROMPT: "begins_with_prompt",
}


def check_dataset(
    dataset: DataLike,
    *,
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
    max_length: int | None = None,
    eval_dataset: DataLike | None = None,
    benchmarks: Sequence[DataLike] = (),
    fix: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    remove: Collection[str] = REMOVABLE,
    config: str | None = None,
    split: str = "train",
    eval_split: str = "train",
    streaming: bool = False,
    schema: str = "auto",
    words: bool = True,
    sample_rows: int = SAMPLE_ROWS,
    seed: int = 0,
    progress: Progress | None = None,
) -> DataCheck:
    """Check preference data: broken and useless rows, contradictions, leaks, overlaps, and shortcuts to beat.

    Rows are read as training reads them, one after the other; of each only some numbers are remembered.

    Args:
        dataset: A `Dataset`, an `IterableDataset`, a list of mappings, or a file, folder or Hub name as for training.
        tokenizer: The model's tokenizer, or the name of the model: counts tokens, and renders the chat template.
        max_length: Limit for one response with its prompt, in tokens (None: no limit); needs a tokenizer.
        eval_dataset: Data whose prompts must not occur, in any form that `dataset` may have.
        benchmarks: Files of benchmarks whose prompts must not occur; preferences, or rows with a column `question`.
        fix: Write the rows without certain faults to this file, and the others to one beside it.
        overwrite: Let `fix` replace existing files.
        remove: Kinds of faults whose rows `fix` drops.
        config: Configuration of a data set on the Hub.
        split: Which split of a named data set.
        eval_split: Which split of a named `eval_dataset`.
        streaming: Read a named data set row by row, without the cache of `datasets`.
        schema: Public schema by which the rows are read; ``"auto"`` finds it, ``"none"`` reads them as they are.
        words: Fit the bag of words, which takes most of the time of small sets.
        sample_rows: Maximum number of rows to fit it to, drawn at random.
        seed: Seed of that draw.
        progress: Called with the step, the rows done and the rows in all.

    Raises:
        DataError: There is no such data set, or it has no columns of preferences.
        ConfigError: The settings do not go together.

    >>> rows = [{"prompt": "2+2=", "chosen": "4", "rejected": "5"}, {"prompt": "2+2=", "chosen": "5", "rejected": "4"}]
    >>> check = check_dataset(rows)
    >>> check.ok, check.verdict, list(check.finding("contradictory").rows)
    (False, '1 error in 2 rows', [0, 1])
    """
    start = time.monotonic()
    if fix is not None:
        check_target(Path(fix), dataset, overwrite=overwrite)
    unknown = sorted(set(remove) - set(REMOVABLE))
    if unknown:
        raise ConfigError(f"rows cannot be removed for {unknown[0]!r}", fix=f"There are: {', '.join(REMOVABLE)}.")
    if isinstance(tokenizer, str | os.PathLike):
        from plaudit.model.load import load_tokenizer

        tokenizer = load_tokenizer(os.fspath(tokenizer))
    source = open_rows(dataset, config=config, split=split, streaming=streaming, schema=schema)
    reader = RowReader(source, tokenizer, max_length)
    # The configuration is one of the data set: other files have none.
    other_config = config if isinstance(eval_dataset, str) and eval_dataset == str(dataset) else None
    eval_prompts = None
    if eval_dataset is not None:
        eval_prompts = Prompts.of_evaluation(eval_dataset, config=other_config, split=eval_split)
    checks = Checks(reader, eval_prompts, [Prompts.of_benchmark(benchmark) for benchmark in benchmarks])
    sample, lengths = Sample(sample_rows if words else 0, seed), Lengths()
    row_kinds, token_counts = Counter[str](), Counter[int]()
    num_rows = 0
    for num_rows, row in enumerate(reader, start=1):
        checks.add(row)
        if row.error is None:
            row_kinds[row.row_kind] += 1
            token_counts.update(row.lengths)
            sample.add(row)
            lengths.add(row)
        if progress is not None and num_rows % _STEP == 0:
            progress("Reading", num_rows, source.length)
    if progress is not None:
        progress("Reading", num_rows, num_rows)

    shortcuts, leaks, suspects = lengths.shortcuts(), checks.marker.leaks(), list[Suspect]()
    notes = [] if source.schema is None else [f"The {read_as(source.schema)}."]
    if reader.tokenized:
        notes.append("The rows hold token ids: texts were not looked at.")
    elif not shortcuts:
        notes.append("No row compares two responses: no shortcuts were computed.")
    elif words:
        if progress is not None:
            progress("Fitting a bag of words", num_rows, num_rows)
        bag_of_words = read_words(sample, seed=seed)
        if bag_of_words is None:
            notes.append("Too few comparisons, prompts or words for a bag of words.")
        else:
            shortcuts.append(bag_of_words[0])
            suspects = bag_of_words[1]
            leaks = distinct([*leaks, *bag_of_words[2]])
    tokens = token_lengths(token_counts)
    if tokens is None and not reader.tokenized:
        why = "name a model" if tokenizer is None else "no row could be read with the tokenizer"
        notes.append(f"Lengths in tokens were not checked: {why}.")
    findings = checks.finish(num_rows, leaks, shortcuts)
    add_texts(source, findings)
    fixed = None
    if fix is not None and reader.broken is None:
        fixed = write_fixed(source, findings, Path(fix), kinds=remove, total=num_rows)
    elif fix is not None:
        notes.append("No cleaned copy was written: it would lack all rows after the break.")
    seconds = time.monotonic() - start
    return DataCheck(
        source.name,
        num_rows,
        dict(row_kinds),
        findings,
        shortcuts,
        leaks,
        suspects,
        schema=source.schema,
        lengths=tokens,
        notes=notes,
        seconds=seconds,
        fixed=fixed,
    )


class Checks:
    """Finds the faults of rows that are added one after the other."""

    def __init__(self, reader: RowReader, eval_prompts: Prompts | None, benchmarks: Sequence[Prompts]) -> None:
        self._reader, self._eval, self._benchmarks = reader, eval_prompts, benchmarks
        self._findings, self._ledger = Findings(), Ledger()
        self.marker = Marker(reader.tokenizer.all_special_tokens if reader.tokenizer is not None else ())
        self._rows_by_reason: dict[str, array[int]] = {}
        self._fixes: dict[str, None] = {}
        self._unended = Finding("truncated")
        self._sides = Counter[str](), Counter[str]()  # endings of a best and of a worst response of each row
        self._long = self._endless = 0

    def add(self, row: CheckedRow) -> None:
        """Checks a row, which may be an unreadable one."""
        if row.error is not None:
            self._add_unreadable(row.number, row.error)
            return
        self._ledger.add(row)
        for prompts in (self._eval, *self._benchmarks):
            if prompts is not None:
                prompts.look_up(row)
        self._check_flags(row)
        if row.parts is not None:
            self._count_marks(row, row.parts.responses)
            if not row.flags & Flag.IDENTICAL:
                self._check_ends(row, row.parts)

    def _add_unreadable(self, number: int, error: DataError) -> None:
        field = re.sub(r"\[\d+\]", "[…]", error.field or "")
        reason = f"`{field}`: {error.message}" if field else error.message
        example = None if reason in self._rows_by_reason else f"`{error.field}` {error.message}"
        if example is not None and len(self._rows_by_reason) >= REASONS:
            reason, example = "other reasons", None
        self._findings["unreadable"].add(number, example)
        self._rows_by_reason.setdefault(reason, array("q")).append(number)
        if error.fix and len(self._fixes) < 2:
            self._fixes[error.fix] = None

    def _check_flags(self, row: CheckedRow) -> None:
        kinds = [kind for flag, kind in _KIND_OF_FLAG.items() if row.flags & flag]
        responses = row.parts.responses if row.parts is not None else ()
        if len(responses) > 1 and not {"identical", "empty"} & set(kinds):
            kinds += ["same_words"] * (len({" ".join(response.split()) for response in responses}) == 1)
        for kind in kinds:
            text = f"{max(row.lengths):,} tokens" if kind == "overlong" else ""
            if kind == "empty":
                blank = (index for index, response in enumerate(responses) if not response.strip())
                text = ", ".join(f"`{response_field(row.row_kind, index)}` is empty" for index in blank)
            elif kind == "identical" and responses:
                text = excerpt(responses[0])
            self._findings[kind].add(row.number, text)

    def _count_marks(self, row: CheckedRow, responses: Sequence[str]) -> None:
        if row.row_kind == "labels":
            self.marker.count(responses[0], preferred=row.ratings[0] > 0.5)
        for preferred, index in zip((True, False), row.sides or (), strict=False):
            self.marker.count(responses[index], preferred=preferred)
        for index, response in enumerate(responses):
            token = self.marker.special_token(response)
            if token is not None:
                self._findings["special_token"].add(row.number, f"`{response_field(row.row_kind, index)}` has {token}")
                break

    def _check_ends(self, row: CheckedRow, parts: Parts) -> None:
        reasons, unended = {}, []
        for index, (response, call) in enumerate(zip(parts.responses, parts.calls, strict=True)):
            if call or not response.strip():
                continue
            reason, endless = breaks_off(response), lacks_end(response)
            self._long += endless is not None
            self._endless += bool(endless)
            if reason is not None:
                reasons[index] = reason
            elif endless:
                unended.append(index)
        for counts, index in zip(self._sides, row.sides or (), strict=False):
            counts.update({"breaks off": index in reasons, "unended": index in unended, "all": 1})
        if indices := [*reasons, *unended]:
            index, finding = indices[0], self._findings["truncated"] if reasons else self._unended
            why = reasons.get(index, "has no full stop")
            end = excerpt(parts.responses[index], 70, end=True)
            finding.add(row.number, f"`{response_field(row.row_kind, index)}` {why}: {end}")

    def finish(self, num_rows: int, leaks: Iterable[Leak], shortcuts: Iterable[Shortcut]) -> list[Finding]:
        """Returns the findings after the last row, the worst first."""
        findings, reader = self._findings, self._reader
        if reader.broken is not None:
            findings["broken_file"].detail = f"after row {num_rows - 1}: {reader.broken.message}"
            findings["broken_file"].advice = reader.broken.fix or ""
        if reader.objective_problem is not None:
            findings["no_objective"].detail = reader.objective_problem
        if self._rows_by_reason:
            reasons = sorted(self._rows_by_reason.items(), key=lambda item: -len(item[1]))
            lines = tuple(f"{len(rows):,}: {reason} ({row_names(rows)})" for reason, rows in reasons)
            findings["unreadable"].lines, findings["unreadable"].advice = lines, " ".join(self._fixes)
        if "overlong" in findings:
            findings["overlong"].detail = f"more than {reader.max_length:,} tokens" if reader.max_length else ""
        for kind, (rows, groups) in self._ledger.relations().items():
            if len(rows):
                findings[kind].rows = rows.tolist()
                findings[kind].examples = [Occurrence(group) for group in groups[:EXAMPLES]]
                if kind == "cycle" or (kind == "contradictory" and len(groups) > 1):
                    noun = "contradictions" if kind == "contradictory" else "cycle" if len(groups) == 1 else "cycles"
                    findings[kind].detail = f"{len(groups):,} {noun}"
        self._finish_overlaps()
        self._finish_endings()
        for leak in leaks:
            findings["leak" if leak.one_sided else "lean"].lines += (leak.sentence(),)
        for kind in {"leak", "lean"} & set(findings):
            count = len(findings[kind].lines)
            findings[kind].detail = f"{count} mark{'s' * (count > 1)}"
        for shortcut in shortcuts:
            if line := _what_solves(shortcut):
                findings["shortcut"].lines += (line,)
        return findings.in_order()

    def _finish_overlaps(self) -> None:
        exact = [(prompts.name, prompts.exact) for prompts in self._benchmarks]
        near = [(prompts.name, prompts.near) for prompts in self._benchmarks]
        of_eval = [(self._eval.name, self._eval.exact)] if self._eval is not None else []
        for kind, sets in (("in_eval", of_eval), ("in_benchmark", exact), ("near_benchmark", near)):
            sets = [(name, hits) for name, hits in sets if hits]
            if not sets:
                continue
            finding = self._findings[kind]
            finding.rows = sorted({row for _, hits in sets for row, _ in hits})
            first = [(row, index, name) for name, hits in sets for row, index in hits[:EXAMPLES]][:EXAMPLES]
            finding.examples = [Occurrence((row,), f"row {index} of {name}") for row, index, name in first]
            finding.detail = "; ".join(f"{name}: {len(hits):,}" for name, hits in sets)
            if self._eval is not None and kind == "in_eval":
                met = len({index for _, index in self._eval.exact})
                finding.detail = f"{met:,} of {len(self._eval.row_of):,} prompts of it"

    def _finish_endings(self) -> None:
        """Adds single sentences without a full stop where others have theirs, and compares both sides."""
        others_end = self._long >= 50 and self._endless < (1 - STYLE_SHARE) * self._long
        unended = self._unended if others_end else Finding("truncated")
        if not unended.rows and "truncated" not in self._findings:
            return
        finding = self._findings["truncated"]
        finding.rows = sorted([*finding.rows, *unended.rows])
        finding.examples = [*finding.examples, *unended.examples][:EXAMPLES]
        chosen, rejected = (counts["breaks off"] + counts["unended"] * others_end for counts in self._sides)
        num_chosen, num_rejected = (counts["all"] for counts in self._sides)
        if num_chosen and num_rejected:
            shares = percent(chosen / num_chosen), percent(rejected / num_rejected)
            finding.detail = f"{shares[0]} of chosen, {shares[1]} of rejected responses"
            counts = np.array([float(chosen)]), num_chosen, np.array([float(rejected)]), num_rejected
            if two_proportions(*counts)[0] < 0.01:
                finding.detail += ": a difference that a model can learn instead"


def _what_solves(shortcut: Shortcut) -> str:
    """Says in one line how a shortcut solves the data; empty if it does not."""
    if shortcut.name == "bag of words":
        if shortcut.low > _WORDS_SOLVE:
            return f"a bag of words is right in {shortcut.accuracy:.0%}: it takes no understanding"
    elif shortcut.low > _LENGTH_SOLVES:
        return f"the longer response is the better one in {shortcut.accuracy:.0%}"
    elif shortcut.high < 1 - _LENGTH_SOLVES:
        return f"the shorter response is the better one in {1 - shortcut.accuracy:.0%}"
    return ""
