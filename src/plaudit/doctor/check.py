"""``check_dataset``: goes through a data set once, and says what is wrong with it."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from plaudit.data.load import DataLike, DataSource
from plaudit.doctor.checks import Check, Endings, Flagged, Marks, Overlaps, Relations, Unreadable
from plaudit.doctor.findings import KINDS, DataCheck, Finding, TokenLengths, in_order, token_lengths, with_texts
from plaudit.doctor.fix import check_target, write_fixed
from plaudit.doctor.leaks import Leak
from plaudit.doctor.relations import Benchmark, Prompts
from plaudit.doctor.rows import CheckedRow, ReadPlan, RowReader, Sample, open_rows, plan_reading
from plaudit.doctor.shortcuts import Lengths, Shortcut, distinct, read_words
from plaudit.errors import ConfigError

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Told what is being done, how many rows are done, and how many there are (None: unknown)."""
REMOVABLE = tuple(name for name, kind in KINDS.items() if kind.removable)
"""Kinds of faults that a cleaned copy leaves out: those that are certain."""
SAMPLE_ROWS = 10_000
"""Rows that the bag of words is fitted to, at most."""
_STEP = 500
_WORDS_SOLVE, _LENGTH_SOLVES = 0.9, 0.7


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
        remove: Kinds of faults that `fix` leaves out.
        config: Configuration of a data set on the Hub.
        split: Which split of a named data set.
        eval_split: Which split of a named `eval_dataset`.
        streaming: Read a named data set row by row, without the cache of `datasets`.
        words: Fit the bag of words, which takes most of the time of small sets.
        sample_rows: Rows to fit it to at most, drawn at random.
        seed: Decides which.
        progress: Told about the progress.

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
    source = open_rows(dataset, config=config, split=split, streaming=streaming)
    plan = plan_reading(source)
    if max_length is not None and tokenizer is None and not plan.tokenized:
        raise ConfigError("`max_length` counts tokens, and there is no tokenizer", fix="Name the model as well.")
    # The configuration is one of the data set: other files have none.
    other_config = config if isinstance(eval_dataset, str) and eval_dataset == str(dataset) else None
    eval_prompts = None if eval_dataset is None else Prompts.of(eval_dataset, config=other_config, split=eval_split)
    overlaps = Overlaps(eval_prompts, [Benchmark(one) for one in benchmarks])
    reader = RowReader(source, plan, tokenizer, max_length)
    scan = _Scan.of(tokenizer, max_length, overlaps, Sample(sample_rows if words else 0, seed))
    scan.run(reader, source.length, progress)
    check = _conclude(scan, source, plan, reader, seed=seed, words=words, progress=progress)
    if fix is not None and reader.broken is None:
        fixed = write_fixed(source, check.findings, Path(fix), kinds=remove, total=check.rows)
        check = replace(check, fixed=fixed)
    elif fix is not None:
        check.notes.append("No cleaned copy was written: it would lack all rows after the break.")
    return replace(check, seconds=time.monotonic() - start)


@dataclass
class _Scan:
    """Everything that looks at each row."""

    checks: list[Check]
    marks: Marks
    sample: Sample
    lengths: Lengths
    row_kinds: Counter[str]
    tokens: np.ndarray
    rows: int = 0

    @classmethod
    def of(cls, tokenizer: Any, max_length: int | None, overlaps: Overlaps, sample: Sample) -> _Scan:
        marks = Marks(tokenizer.all_special_tokens if tokenizer is not None else ())
        checks: list[Check] = [Unreadable(), Flagged(max_length), Relations(), Endings(), marks, overlaps]
        return cls(checks, marks, sample, Lengths(), Counter(), np.zeros(1024, dtype=np.int64))

    def run(self, reader: RowReader, total: int | None, progress: Progress | None) -> None:
        for row in reader:
            self._add(row)
            if progress is not None and self.rows % _STEP == 0:
                progress("Reading", self.rows, total)
        if progress is not None:
            progress("Reading", self.rows, self.rows)

    def _add(self, row: CheckedRow) -> None:
        self.rows += 1
        for check in self.checks:
            check.add(row)
        if row.error is not None:
            return
        self.row_kinds[row.row_kind] += 1
        self.sample.add(row)
        self.lengths.add(row)
        for length in row.lengths:
            if length >= len(self.tokens):
                self.tokens = np.concatenate([self.tokens, np.zeros(length, dtype=np.int64)])
            self.tokens[length] += 1

    def token_lengths(self) -> TokenLengths | None:
        return token_lengths(self.tokens.tolist())


def _conclude(
    scan: _Scan,
    source: DataSource,
    plan: ReadPlan,
    reader: RowReader,
    *,
    seed: int,
    words: bool,
    progress: Progress | None,
) -> DataCheck:
    notes: list[str] = []
    findings = [finding for check in scan.checks for finding in check.findings()]
    if reader.broken is not None:
        advice = reader.broken.fix or ""
        findings.append(
            Finding("broken_file", (), f"after row {scan.rows - 1}: {reader.broken.message}", (), (), advice)
        )
    if plan.objective_problem is not None:
        findings.append(Finding("no_objective", (), plan.objective_problem))
    shortcut = scan.lengths.shortcut()
    shortcuts = [shortcut] if shortcut is not None else []
    leaks, suspects = scan.marks.counts.leaks(), []
    if plan.tokenized:
        notes.append("The rows hold token ids: texts were not looked at.")
    elif shortcut is None:
        notes.append("No row compares two responses: no shortcuts were computed.")
    elif words:
        if progress is not None:
            progress("Fitting a bag of words", scan.rows, scan.rows)
        found = read_words(scan.sample, seed=seed)
        if found is None:
            notes.append("Too few comparisons, prompts or words for a bag of words.")
        else:
            shortcuts.append(found.shortcut)
            leaks, suspects = distinct([*leaks, *found.leaks]), found.suspects
    if scan.token_lengths() is None and not plan.tokenized:
        notes.append("Lengths in tokens were not checked: name a model.")
    findings += [*_leak_findings(leaks), *_shortcut_findings(shortcuts)]
    findings = with_texts(source, in_order(findings))
    return DataCheck(
        source.name,
        scan.rows,
        dict(scan.row_kinds),
        findings,
        shortcuts,
        leaks,
        suspects,
        scan.token_lengths(),
        notes,
    )


def _leak_findings(leaks: Sequence[Leak]) -> list[Finding]:
    sides = {"leak": [one for one in leaks if one.one_sided], "lean": [one for one in leaks if not one.one_sided]}
    advice = {"leak": "A reward model learns these first: make both sides alike, or take such rows out."}
    return [
        Finding(
            kind,
            (),
            f"{len(found)} mark{'s' * (len(found) > 1)}",
            tuple(one.sentence() for one in found),
            (),
            advice.get(kind, ""),
        )
        for kind, found in sides.items()
        if found
    ]


def _shortcut_findings(shortcuts: Sequence[Shortcut]) -> list[Finding]:
    lines = []
    for one in shortcuts:
        if one.name == "bag of words" and one.low > _WORDS_SOLVE:
            lines.append(f"a bag of words is right in {one.accuracy:.0%}: it takes no understanding")
        elif one.name != "bag of words" and one.low > _LENGTH_SOLVES:
            lines.append(f"the longer response is the better one in {one.accuracy:.0%}")
        elif one.name != "bag of words" and one.high < 1 - _LENGTH_SOLVES:
            lines.append(f"the shorter response is the better one in {1 - one.accuracy:.0%}")
    advice = "A high accuracy on this data shows little; judge the model on other data too."
    return [Finding("shortcut", (), "", tuple(lines), (), advice)] if lines else []
