"""Remembers every row in a few numbers, and finds duplicates, contradictions and cycles among all of them."""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plaudit.data.load import DataLike, load_preference_dataset
from plaudit.data.report import Flag
from plaudit.doctor.rows import (
    CheckedRow,
    RowReader,
    key_of,
    message_text,
    normalized,
    open_rows,
    plan_reading,
    prompt_key_of,
)
from plaudit.errors import DataError
from plaudit.schema import is_tokenized, row_kinds_of

GRAM = 13
"""Words in a row that a prompt shares with a benchmark's: the length usual since GPT-3 (Brown et al. 2020)."""
SHARED_GRAMS = 0.5
"""Share of a benchmark prompt's runs of words that must be in a row's prompt to count as the same."""
COMMON_GRAM = 3
"""A run of words in more benchmark prompts than this is an instruction, not the question."""
_PROMPT_COLUMNS = ("prompt", "question", "instruction", "problem", "query", "input", "messages", "text")
_WORD = re.compile(r"\w+")


class Prompts:
    """The prompts of another data set, and which of them were met."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._row_of: dict[int, int] = {}
        self._met: set[int] = set()
        self.hits: list[tuple[int, int]] = []

    @classmethod
    def of(cls, dataset: DataLike, *, config: str | None = None, split: str = "train") -> Prompts:
        """Read the prompts of preferences."""
        name = None if isinstance(dataset, str | os.PathLike) else "eval"
        source = open_rows(dataset, name=name, config=config, split=split)
        prompts = cls(source.name)
        for row in RowReader(source, plan_reading(source), None, None):
            if row.error is None:
                prompts._row_of.setdefault(row.prompt_key, row.number)
        return prompts

    def add(self, row: CheckedRow) -> None:
        """Look for the prompt of a row."""
        other = self._row_of.get(row.prompt_key)
        if other is not None:
            self.hits.append((row.number, other))
            self._met.add(row.prompt_key)

    @property
    def met(self) -> str:
        """How many of the prompts were met, such as ``"3 of 100 prompts"``."""
        return f"{len(self._met):,} of {len(self._row_of):,} prompts"


class Benchmark:
    """The prompts of a benchmark: whole, and as runs of :data:`GRAM` words."""

    def __init__(self, path: DataLike) -> None:
        self.name = str(path) if isinstance(path, str | os.PathLike) else "the benchmark"
        self.exact: list[tuple[int, int]] = []
        self.near: list[tuple[int, int]] = []
        self._row_of: dict[int, int] = {}
        self._rows_of_gram: dict[int, array[int]] = {}
        self._grams: dict[int, int] = {}
        for number, texts in _prompts_in(path):
            self._remember(number, texts)
        if not self._row_of:
            raise DataError("has no prompts", dataset=self.name, fix="Name a file with a column `prompt`.")
        for rows in self._rows_of_gram.values():
            if len(rows) <= COMMON_GRAM:
                for number in rows:
                    self._grams[number] = self._grams.get(number, 0) + 1

    def _remember(self, number: int, texts: Sequence[str]) -> None:
        key = key_of("prompt", [normalized(text) for text in texts])
        if key in self._row_of:
            return
        self._row_of[key] = number
        for gram in grams_of(texts):
            rows = self._rows_of_gram.setdefault(gram, array("q"))
            if len(rows) <= COMMON_GRAM:
                rows.append(number)

    def add(self, row: CheckedRow) -> None:
        """Look for the prompt of a row."""
        if row.parts is None or row.parts.prompt is None:
            return
        other = self._row_of.get(row.prompt_key)
        if other is None and row.parts.system:
            other = self._row_of.get(prompt_key_of(row.parts, row.keys, system=False))
        if other is not None:
            self.exact.append((row.number, other))
            return
        shared: dict[int, int] = {}
        for gram in grams_of(row.parts.prompt) if self._grams else ():
            rows = self._rows_of_gram.get(gram, ())
            for number in rows if len(rows) <= COMMON_GRAM else ():
                shared[number] = shared.get(number, 0) + 1
        near = [number for number, count in shared.items() if count >= SHARED_GRAMS * self._grams[number]]
        if near:
            self.near.append((row.number, min(near)))


def grams_of(texts: Sequence[str]) -> set[int]:
    """Numbers for the runs of :data:`GRAM` words in a prompt; they hold within this process."""
    words = _WORD.findall(normalized(" ".join(texts)))
    return {hash(tuple(words[start : start + GRAM])) for start in range(len(words) - GRAM + 1)}


def _prompts_in(path: DataLike) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Row numbers and prompts of a benchmark, without system messages."""
    rows: Any = load_preference_dataset(path) if isinstance(path, str | os.PathLike) else path
    columns = list(getattr(rows, "column_names", None) or dict.fromkeys(name for row in rows for name in row))
    if row_kinds_of(columns) and not is_tokenized(columns):
        source = open_rows(path)
        for row in RowReader(source, plan_reading(source), None, None):
            if row.parts is not None and row.parts.prompt is not None:
                yield row.number, row.parts.prompt[row.parts.system :]
        return
    column = next((name for name in _PROMPT_COLUMNS if name in columns), None)
    if column is None:
        found = ", ".join(f"`{name}`" for name in columns)
        fix = f"Rename the column of the prompts to `prompt`; its columns are {found}."
        raise DataError("has no column of prompts", dataset=str(path), fix=fix)
    for number, row in enumerate(rows):
        value = row[column]
        if isinstance(value, str):
            yield number, (value,)
        elif isinstance(value, list) and all(isinstance(one, Mapping) for one in value):
            asked = [one for one in value if one.get("role") not in ("system", "assistant")]
            yield number, tuple(message_text(one) for one in asked)


@dataclass(frozen=True)
class Repeats:
    """What rows say about each other."""

    duplicates: np.ndarray  # rows that say exactly what an earlier row says
    first_of: np.ndarray  # for each of these, the earlier row
    contradictory: np.ndarray  # rows of which another row (or the row itself) says the opposite
    contradictions: list[tuple[int, ...]]  # groups of rows that contradict each other
    cyclic: np.ndarray  # rows of preference cycles of three and more responses
    cycles: list[tuple[int, ...]]  # the rows of each cycle


_SILENT, _COMPARES, _LABEL = 0, 1, 2
"""Whether a row takes part in contradictions: not at all, with its comparisons, with its label."""


class Ledger:
    """Four numbers for each row and two for each response: about 60 bytes for a pair, five times that in `repeats`."""

    def __init__(self) -> None:
        self._rows, self._row_keys, self._ends = array("q"), array("Q"), array("q")
        self._keys, self._ratings, self._kinds = array("Q"), array("d"), array("b")

    def add(self, row: CheckedRow) -> None:
        """Remember a row."""
        self._rows.append(row.number)
        self._row_keys.append(row.row_key)
        self._keys.extend(row.keys)
        self._ratings.extend(row.ratings)
        self._ends.append(len(self._keys))
        # One response with several ratings is nothing unusual; labels for it are a contradiction.
        silent = row.row_kind == "ratings" or bool(row.flags & Flag.IDENTICAL)
        self._kinds.append(_SILENT if silent else _LABEL if row.row_kind == "labels" else _COMPARES)

    def repeats(self) -> Repeats:
        """Find duplicates, contradictions and cycles."""
        rows, row_keys = np.asarray(self._rows), np.asarray(self._row_keys)
        _, first, inverse = np.unique(row_keys, return_index=True, return_inverse=True)
        earliest = first[inverse]
        repeated = np.flatnonzero(earliest != np.arange(len(rows)))
        edges = self._edges(np.unique(first))
        opposed = edges.opposed()
        contradictory = {int(inverse[index]) for index in edges.index[opposed]} | self._self_contradictory(inverse)
        in_contradiction = np.isin(inverse, np.fromiter(contradictory, dtype=np.int64, count=len(contradictory)))
        components = edges.without(opposed).cycles()
        return Repeats(
            duplicates=rows[repeated],
            first_of=rows[earliest[repeated]],
            contradictory=rows[in_contradiction],
            contradictions=[tuple(int(rows[index]) for index in group) for group in edges.groups(opposed)],
            cyclic=np.unique(rows[np.concatenate([*components, np.zeros(0, dtype=np.int64)]).astype(np.int64)]),
            cycles=[tuple(sorted(int(rows[index]) for index in one)) for one in components],
        )

    def _responses(self, index: int) -> slice:
        return slice(self._ends[index - 1] if index else 0, self._ends[index])

    def _edges(self, indices: np.ndarray) -> _Edges:
        """The comparisons between responses that several rows have; others can take part in no contradiction."""
        keys, ends = np.asarray(self._keys), np.asarray(self._ends)
        counts = np.diff(ends, prepend=0)
        owner = np.repeat(np.arange(len(ends)), counts)
        kept = np.isin(owner, indices) & (np.asarray(self._kinds)[owner] != _SILENT)
        nodes, node_of = np.unique(keys, return_inverse=True)
        pairs = np.unique(np.stack([node_of[kept], owner[kept]], axis=1), axis=0)
        shared = np.bincount(pairs[:, 0], minlength=len(nodes)) > 1
        candidates = np.unique(owner[kept & shared[node_of]])
        better, worse, place_of = array("q"), array("q"), array("q")
        for index in candidates.tolist():
            span = self._responses(index)
            said = [
                (int(node), good) for node, good in zip(node_of[span], self._ratings[span], strict=True) if shared[node]
            ]
            if self._kinds[index] == _LABEL:
                # A label says that a response is better, or worse, than a doubtful one.
                said.append((-1, 0.5))
            for one, good in said:
                for other, less in said:
                    if good > less and one != other:
                        better.append(one)
                        worse.append(other)
                        place_of.append(index)
        return _Edges(np.asarray(better), np.asarray(worse), np.asarray(place_of))

    def _self_contradictory(self, inverse: np.ndarray) -> set[int]:
        """Rows that give one and the same response two scores."""
        found = set()
        several = (np.diff(np.asarray(self._ends), prepend=0) > 2) & (np.asarray(self._kinds) == _COMPARES)
        for index in np.flatnonzero(several):
            span = self._responses(int(index))
            scores: dict[int, float] = {}
            for key, good in zip(self._keys[span], self._ratings[span], strict=True):
                if scores.setdefault(key, good) != good:
                    found.add(int(inverse[index]))
        return found


@dataclass(frozen=True)
class _Edges:
    """Comparisons: responses as numbers from 0 on (-1: a doubtful one), and the places of their rows."""

    better: np.ndarray
    worse: np.ndarray
    index: np.ndarray

    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """A number for the two responses of each comparison, and which of them is the better."""
        low, high = np.minimum(self.better, self.worse), np.maximum(self.better, self.worse)
        _, pair = np.unique(np.stack([low, high], axis=1), axis=0, return_inverse=True)
        return pair.reshape(-1), self.better < self.worse

    def opposed(self) -> np.ndarray:
        """Which comparisons have an opposite one (a truth value for each)."""
        if not len(self.better):
            return np.zeros(0, dtype=bool)
        pair, direction = self._pairs()
        count = pair.max() + 1
        forth, back = (np.bincount(pair[which], minlength=count) for which in (direction, ~direction))
        return ((forth > 0) & (back > 0))[pair]

    def groups(self, opposed: np.ndarray) -> list[tuple[int, ...]]:
        """Places of the rows of each contradiction."""
        if not opposed.any():
            return []
        pair, _ = self._pairs()
        found: dict[int, set[int]] = {}
        for number, index in zip(pair[opposed].tolist(), self.index[opposed].tolist(), strict=True):
            found.setdefault(number, set()).add(index)
        return sorted({tuple(sorted(indices)) for indices in found.values()})

    def without(self, left_out: np.ndarray) -> _Edges:
        """The other comparisons."""
        kept = ~left_out & (self.better >= 0) & (self.worse >= 0) if len(self.better) else left_out
        return _Edges(self.better[kept], self.worse[kept], self.index[kept])

    def cycles(self) -> list[np.ndarray]:
        """Places of the rows of each strongly connected component of at least three responses."""
        if len(self.better) < 3:
            return []
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        names, ends = np.unique(np.concatenate([self.better, self.worse]), return_inverse=True)
        start, end = np.split(ends, 2)
        graph = coo_array((np.ones(len(start), dtype=np.int8), (start, end)), shape=(len(names), len(names)))
        _, component = connected_components(graph.tocsr(), directed=True, connection="strong")
        inside = component[start] == component[end]
        found = np.unique(component[start[inside]])
        order = np.argsort(component[start[inside]], kind="stable")
        grouped = np.split(
            self.index[inside][order], np.searchsorted(component[start[inside]][order], found, side="left")[1:]
        )
        return [np.unique(indices) for indices in grouped if len(indices)]


def shorten(groups: Sequence[tuple[int, ...]], limit: int) -> list[tuple[int, ...]]:
    """The first groups of rows, those with the lowest numbers."""
    return sorted(groups)[:limit]
