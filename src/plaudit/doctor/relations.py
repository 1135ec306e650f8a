"""Finds what rows have in common: prompts of other data sets, duplicates, contradictions and cycles."""

from __future__ import annotations

import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from plaudit.data.load import DataLike, open_data
from plaudit.data.report import Flag
from plaudit.doctor.rows import PEEK, CheckedRow, RowReader, key_of, message_text, normalized, open_rows, prompt_key_of
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
    """Prompts of evaluation data, or those of a benchmark also as runs of :data:`GRAM` words; and rows that have them.

    `exact` and `near` hold the number of each such row and that of the prompt's row in the other data set.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.exact: list[tuple[int, int]] = []
        self.near: list[tuple[int, int]] = []
        self.row_of: dict[int, int] = {}
        self._is_benchmark = False
        self._rows_of_gram: dict[int, array[int]] = {}
        self._gram_counts: Counter[int] = Counter()  # by row: runs of words that are not common

    @classmethod
    def of_evaluation(cls, dataset: DataLike, *, config: str | None = None, split: str = "train") -> Prompts:
        """Reads the prompts of preferences."""
        name = None if isinstance(dataset, str | os.PathLike) else "eval"
        source = open_rows(dataset, name=name, config=config, split=split)
        prompts = cls(source.name)
        for row in RowReader(source):
            if row.error is None:
                prompts.row_of.setdefault(row.prompt_key, row.number)
        return prompts

    @classmethod
    def of_benchmark(cls, dataset: DataLike) -> Prompts:
        """Reads the prompts of a benchmark."""
        prompts = cls(str(dataset) if isinstance(dataset, str | os.PathLike) else "the benchmark")
        prompts._is_benchmark = True
        for number, texts in _benchmark_prompts(dataset, prompts.name):
            key = key_of("prompt", [normalized(text) for text in texts])
            if prompts.row_of.setdefault(key, number) == number:
                for gram in grams_of(texts):
                    rows = prompts._rows_of_gram.setdefault(gram, array("q"))
                    if len(rows) <= COMMON_GRAM:
                        rows.append(number)
        if not prompts.row_of:
            raise DataError("has no prompts", dataset=prompts.name, fix="Name a file with a column `prompt`.")
        prompts._rows_of_gram = {gram: rows for gram, rows in prompts._rows_of_gram.items() if len(rows) <= COMMON_GRAM}
        for rows in prompts._rows_of_gram.values():
            prompts._gram_counts.update(rows)
        return prompts

    def look_up(self, row: CheckedRow) -> None:
        """Looks for the prompt of a row."""
        index, parts = self.row_of.get(row.prompt_key), row.parts
        shared = Counter[int]()
        if index is None and self._is_benchmark and parts is not None and parts.prompt is not None:
            if parts.system:
                index = self.row_of.get(prompt_key_of(parts, row.keys, system=False))
            if index is None and self._rows_of_gram:
                grams = grams_of(parts.prompt)
                shared.update(number for gram in grams for number in self._rows_of_gram.get(gram, ()))
        if index is not None:
            self.exact.append((row.number, index))
        elif near := [number for number in shared if shared[number] >= SHARED_GRAMS * self._gram_counts[number]]:
            self.near.append((row.number, min(near)))


def grams_of(texts: Sequence[str]) -> set[int]:
    """Numbers for the runs of :data:`GRAM` words in a prompt; they hold within this process."""
    words = _WORD.findall(normalized(" ".join(texts)))
    return {hash(tuple(words[start : start + GRAM])) for start in range(len(words) - GRAM + 1)}


def _benchmark_prompts(dataset: DataLike, name: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Iterates over row numbers and prompts of a benchmark, without system messages."""
    source = open_data(dataset, name=name, check=False, peek=PEEK)
    if row_kinds_of(source.columns) and not is_tokenized(source.columns):
        for row in RowReader(source):
            if row.parts is not None and row.parts.prompt is not None:
                yield row.number, row.parts.prompt[row.parts.system :]
        return
    column = next((column for column in _PROMPT_COLUMNS if column in source.columns), None)
    if column is None:
        names = ", ".join(f"`{column}`" for column in source.columns)
        fix = f"Rename the column of the prompts to `prompt`; its columns are {names}."
        raise DataError("has no column of prompts", dataset=name, fix=fix)
    for number, values in enumerate(source.whole_rows()):
        prompt = values.get(column)
        if isinstance(prompt, str):
            yield number, (prompt,)
        elif isinstance(prompt, list) and all(isinstance(message, Mapping) for message in prompt):
            questions = [message for message in prompt if message.get("role") not in ("system", "assistant")]
            yield number, tuple(message_text(message) for message in questions)


_SILENT, _COMPARES, _LABEL = 0, 1, 2
"""Whether a row takes part in contradictions: not at all, with its comparisons, with its label."""


class Ledger:
    """Four numbers for each row and two for each response: about 60 bytes for a pair, five times that at the end."""

    def __init__(self) -> None:
        self._rows, self._row_keys, self._ends = array("q"), array("Q"), array("q")
        self._keys, self._ratings, self._kinds = array("Q"), array("d"), array("b")

    def add(self, row: CheckedRow) -> None:
        """Remembers a row."""
        self._rows.append(row.number)
        self._row_keys.append(row.row_key)
        self._keys.extend(row.keys)
        self._ratings.extend(row.ratings)
        self._ends.append(len(self._keys))
        # One response with several ratings is nothing unusual; labels for it are a contradiction.
        silent = row.row_kind == "ratings" or bool(row.flags & Flag.IDENTICAL)
        self._kinds.append(_SILENT if silent else _LABEL if row.row_kind == "labels" else _COMPARES)

    def relations(self) -> dict[str, tuple[np.ndarray, list[tuple[int, ...]]]]:
        """Returns, for each kind of fault, the rows that have it, and the groups of rows that clash."""
        rows, row_keys = np.asarray(self._rows), np.asarray(self._row_keys)
        _, first, inverse = np.unique(row_keys, return_index=True, return_inverse=True)
        earliest = first[inverse]
        repeated = np.flatnonzero(earliest != np.arange(len(rows)))
        better, worse, owner = self._comparisons(np.unique(first))
        # One number for the two responses of a comparison, of which there are fewer than 2 ** 32.
        pair, ascending = (np.minimum(better, worse) << 32) + np.maximum(better, worse), better < worse
        opposed = np.isin(pair, np.intersect1d(pair[ascending], pair[~ascending]))
        contradicting: dict[int, set[int]] = {}
        for number, row in zip(pair[opposed].tolist(), owner[opposed].tolist(), strict=True):
            contradicting.setdefault(number, set()).add(row)
        in_contradiction = np.isin(inverse, inverse[np.concatenate([owner[opposed], self._self_contradictory()])])
        kept = ~opposed & (better >= 0) & (worse >= 0)
        cycles = _cycles(better[kept], worse[kept], owner[kept])
        cyclic = np.concatenate([*cycles, np.zeros(0, dtype=np.int64)])

        def named(groups: Iterable[Iterable[int]]) -> list[tuple[int, ...]]:
            return sorted(tuple(sorted(int(rows[index]) for index in group)) for group in groups)

        pairs = zip(rows[earliest[repeated]].tolist(), rows[repeated].tolist(), strict=True)
        return {
            "duplicate": (rows[repeated], list(pairs)),
            "contradictory": (rows[in_contradiction], named(set(map(frozenset, contradicting.values())))),
            "cycle": (np.unique(rows[cyclic]), named(cycles)),
        }

    def _comparisons(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Comparisons between responses that several rows have: better and worse (-1: a doubtful one), and the row.

        Other responses can take part in no contradiction.
        """
        keys, ends = np.asarray(self._keys), np.asarray(self._ends)
        row_of = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        kept = np.isin(row_of, indices) & (np.asarray(self._kinds)[row_of] != _SILENT)
        nodes, node_of = np.unique(keys, return_inverse=True)
        pairs = np.unique(np.stack([node_of[kept], row_of[kept]], axis=1), axis=0)
        shared = np.bincount(pairs[:, 0], minlength=len(nodes)) > 1
        better, worse, owner = array("q"), array("q"), array("q")
        for row in np.unique(row_of[kept & shared[node_of]]).tolist():
            span = self._responses(row)
            rated = zip(node_of[span].tolist(), self._ratings[span], strict=True)
            ratings = [(node, rating) for node, rating in rated if shared[node]]
            if self._kinds[row] == _LABEL:
                # A label says that a response is better, or worse, than a doubtful one.
                ratings.append((-1, 0.5))
            for node, rating in ratings:
                for other_node, other_rating in ratings:
                    if rating > other_rating and node != other_node:
                        better.append(node)
                        worse.append(other_node)
                        owner.append(row)
        return np.asarray(better), np.asarray(worse), np.asarray(owner)

    def _self_contradictory(self) -> np.ndarray:
        """Rows that give one and the same response two ratings."""
        contradictory = array("q")
        several = (np.diff(np.asarray(self._ends), prepend=0) > 2) & (np.asarray(self._kinds) == _COMPARES)
        for row in np.flatnonzero(several).tolist():
            span = self._responses(row)
            ratings = set(zip(self._keys[span], self._ratings[span], strict=True))
            if len(ratings) > len(set(self._keys[span])):
                contradictory.append(row)
        return np.asarray(contradictory)

    def _responses(self, row: int) -> slice:
        return slice(self._ends[row - 1] if row else 0, self._ends[row])


def _cycles(better: np.ndarray, worse: np.ndarray, owner: np.ndarray) -> list[np.ndarray]:
    """Rows of each strongly connected component of at least three responses."""
    if len(better) < 3:
        return []
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, ends = np.unique(np.concatenate([better, worse]), return_inverse=True)
    start, end = np.split(ends, 2)
    graph = coo_array((np.ones(len(start), dtype=np.int8), (start, end)), shape=(len(nodes), len(nodes)))
    _, component = connected_components(graph.tocsr(), directed=True, connection="strong")
    inside = component[start] == component[end]
    order = np.argsort(component[start[inside]], kind="stable")
    bounds = np.flatnonzero(np.diff(component[start[inside]][order])) + 1
    return [np.unique(rows) for rows in np.split(owner[inside][order], bounds) if len(rows)]
