"""Checks a data set in one pass and reports its faults (``check_dataset``)."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
from transformers import PreTrainedTokenizerBase

from plaudit.data.load import DataLike, DataSource
from plaudit.doctor.checks import Check, Endings, Flagged, Marks, Overlaps, Relations, Unreadable
from plaudit.doctor.findings import KINDS, DataCheck, Finding, in_order, token_lengths, with_texts
from plaudit.doctor.fix import check_target, write_fixed
from plaudit.doctor.leaks import Leak
from plaudit.doctor.relations import Benchmark, Prompts
from plaudit.doctor.rows import ReadPlan, RowReader, Sample, open_rows, plan_reading
from plaudit.doctor.shortcuts import Lengths, Shortcut, distinct, read_words
from plaudit.errors import ConfigError

Progress: TypeAlias = Callable[[str, int, int | None], None]
"""Called with the current step, the number of rows done, and the number of rows in all (None: unknown)."""
REMOVABLE = tuple(name for name, kind in KINDS.items() if kind.removable)
"""Kinds of faults that a cleaned copy drops: those that are certain."""
SAMPLE_ROWS = 10_000
"""Maximum number of rows to fit the bag of words to."""
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
        remove: Kinds of faults whose rows `fix` drops.
        config: Configuration of a data set on the Hub.
        split: Which split of a named data set.
        eval_split: Which split of a named `eval_dataset`.
        streaming: Read a named data set row by row, without the cache of `datasets`.
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
    source = open_rows(dataset, config=config, split=split, streaming=streaming)
    plan = plan_reading(source)
    if max_length is not None and tokenizer is None and not plan.tokenized:
        raise ConfigError("`max_length` counts tokens, and there is no tokenizer", fix="Name the model as well.")
    # The configuration is one of the data set: other files have none.
    other_config = config if isinstance(eval_dataset, str) and eval_dataset == str(dataset) else None
    eval_prompts = None if eval_dataset is None else Prompts.of(eval_dataset, config=other_config, split=eval_split)
    overlaps = Overlaps(eval_prompts, [Benchmark(benchmark) for benchmark in benchmarks])
    reader = RowReader(source, plan, tokenizer, max_length)
    sample = Sample(sample_rows if words else 0, seed)
    check = _check_rows(source, plan, reader, overlaps, sample, seed=seed, words=words, progress=progress)
    if fix is not None and reader.broken is None:
        fixed = write_fixed(source, check.findings, Path(fix), kinds=remove, total=check.rows)
        check = replace(check, fixed=fixed)
    elif fix is not None:
        check.notes.append("No cleaned copy was written: it would lack all rows after the break.")
    return replace(check, seconds=time.monotonic() - start)


def _check_rows(
    source: DataSource,
    plan: ReadPlan,
    reader: RowReader,
    overlaps: Overlaps,
    sample: Sample,
    *,
    seed: int,
    words: bool,
    progress: Progress | None,
) -> DataCheck:
    """Passes each row to every check, then turns their counts into findings."""
    tokenizer, lengths = reader.tokenizer, Lengths()
    marks = Marks(tokenizer.all_special_tokens if tokenizer is not None else ())
    checks: list[Check] = [Unreadable(), Flagged(reader.max_length), Relations(), Endings(), marks, overlaps]
    row_kinds: Counter[str] = Counter()
    token_counts = np.zeros(1024, dtype=np.int64)
    num_rows = 0
    for num_rows, row in enumerate(reader, start=1):
        for check in checks:
            check.add(row)
        if row.error is None:
            row_kinds[row.row_kind] += 1
            sample.add(row)
            lengths.add(row)
            for length in row.lengths:
                if length >= len(token_counts):
                    token_counts = np.concatenate([token_counts, np.zeros(length, dtype=np.int64)])
                token_counts[length] += 1
        if progress is not None and num_rows % _STEP == 0:
            progress("Reading", num_rows, source.length)
    if progress is not None:
        progress("Reading", num_rows, num_rows)

    notes: list[str] = []
    findings = [finding for check in checks for finding in check.findings()]
    if reader.broken is not None:
        detail = f"after row {num_rows - 1}: {reader.broken.message}"
        findings.append(Finding("broken_file", detail=detail, advice=reader.broken.fix or ""))
    if plan.objective_problem is not None:
        findings.append(Finding("no_objective", detail=plan.objective_problem))
    length_shortcut = lengths.shortcut()
    shortcuts = [length_shortcut] if length_shortcut is not None else []
    leaks, suspects = marks.counts.leaks(), []
    if plan.tokenized:
        notes.append("The rows hold token ids: texts were not looked at.")
    elif length_shortcut is None:
        notes.append("No row compares two responses: no shortcuts were computed.")
    elif words:
        if progress is not None:
            progress("Fitting a bag of words", num_rows, num_rows)
        bag = read_words(sample, seed=seed)
        if bag is None:
            notes.append("Too few comparisons, prompts or words for a bag of words.")
        else:
            shortcuts.append(bag.shortcut)
            leaks, suspects = distinct([*leaks, *bag.leaks]), bag.suspects
    tokens = token_lengths(token_counts.tolist())
    if tokens is None and not plan.tokenized:
        notes.append("Lengths in tokens were not checked: name a model.")
    findings += [*_leak_findings(leaks), *_shortcut_findings(shortcuts)]
    findings = with_texts(source, in_order(findings))
    return DataCheck(source.name, num_rows, dict(row_kinds), findings, shortcuts, leaks, suspects, tokens, notes)


def _leak_findings(leaks: Sequence[Leak]) -> list[Finding]:
    """Returns a finding for the marks of one side, and another for those that lean to one."""
    findings = []
    for kind, advice in (
        ("leak", "A reward model learns these first: make both sides alike, or take such rows out."),
        ("lean", ""),
    ):
        lines = tuple(leak.sentence() for leak in leaks if leak.one_sided == (kind == "leak"))
        if lines:
            findings.append(Finding(kind, (), f"{len(lines)} mark{'s' * (len(lines) > 1)}", lines, (), advice))
    return findings


def _shortcut_findings(shortcuts: Sequence[Shortcut]) -> list[Finding]:
    """Returns a finding where a shortcut solves the data."""
    lines = []
    for shortcut in shortcuts:
        if shortcut.name == "bag of words":
            if shortcut.low > _WORDS_SOLVE:
                lines.append(f"a bag of words is right in {shortcut.accuracy:.0%}: it takes no understanding")
        elif shortcut.low > _LENGTH_SOLVES:
            lines.append(f"the longer response is the better one in {shortcut.accuracy:.0%}")
        elif shortcut.high < 1 - _LENGTH_SOLVES:
            lines.append(f"the shorter response is the better one in {1 - shortcut.accuracy:.0%}")
    advice = "A high accuracy on this data shows little; judge the model on other data too."
    return [Finding("shortcut", lines=tuple(lines), advice=advice)] if lines else []
