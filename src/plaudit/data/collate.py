"""Collators: from tokenised examples to one batch, in either of the two layouts.

Both layouts carry the same keys beside the model's inputs, so that nothing after the model knows which it was:

=======================  ========  ==============================================================
key                      shape     meaning
=======================  ========  ==============================================================
``example_weight``       (G,)      1 for real examples, 0 for fillers. First key on purpose: whoever
                                   asks a batch for its size reads the number of examples.
``margin``               (P,)      margin of each comparison, NaN where its row has none; only if the data has one
``preference_prob``      (P,)      probability that ``better`` is better, 0.5 for a tie; only if data or ties need it
``weight``               (G,)      how much each example counts, only if the data has it
``content``              (G,)      with `content` only: a hash of each example, see `content_of`
``input_ids``                      see below
``attention_mask``                 see below
``reward_positions``     (N,)      where each reward is read, in the flattened ``input_ids``
``response_lengths``     (N,)      tokens of each response, prompt included
``response_tokens``      (N,)      those of them that the others of its example do not share; of a single one all
``example_of_response``  (N,)      index of the example that a response belongs to
``scores``               (N,)      higher is better: 1 and 0 for pairs and labels, minus the rank for ranks; of a pair
                                   with a preference_prob p, p and 1 - p
``better``, ``worse``    (P,)      indices of the two responses of each comparison
``listed``               --        True where rows have any number of responses, and absent for pairs
``comparison_share``     (P,)      1 / number of comparisons of the example, where it is not 1
``text_positions``       (S,)      with `text` only: where the tokens of each example's best response are predicted
``text_targets``         (S,)      the tokens predicted there
``text_example``         (S,)      the example that each belongs to
=======================  ========  ==============================================================

``padded``: ``input_ids`` and ``attention_mask`` (N, T), of pairs the preferred responses first, padded on the right.

``shared_prefix``: one row without padding, each prompt once: ``input_ids`` and ``position_ids`` (1, T) laid out
``[P R1 R2 | P R1 R2 R3 | ...]``, and what prompts have in common once before them; ``attention_mask`` (1, 1, 1, 1), a
placeholder; ``nodes``, the nodes of the row's :class:`plaudit.prefix_tree.PrefixTree` as plain numbers, so that nobody
has to read them back from a GPU.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import numpy as np
import torch

from plaudit.prefix_tree import PrefixTree, common_prefix_length, share_prefixes
from plaudit.schema import Batch, EncodedExample, Label, comparisons_of, ratings_of, ties_of

Response: TypeAlias = tuple[int, int]
"""Number of an example in a batch, and of the response in the example."""
IndexOf: TypeAlias = Callable[[int, int, int], int]
"""Returns the index of token t of response n of example g in the flattened ``input_ids``."""
Layout: TypeAlias = tuple[Batch, list[Response], IndexOf]
"""The model's inputs, the order of the responses in them, and where their tokens are."""


@dataclass
class DataCollatorForPreference:
    """The reference library's collator: chosen rows, then rejected rows, padded on the right.

    Args:
        pad_token_id: Token id to pad ``input_ids`` with.
        pad_to_multiple_of: Pad the width to a multiple of this.
        return_tensors: Only ``"pt"``.

    Returns (when called on a list of rows with ``chosen_ids``, ``rejected_ids`` and maybe ``margin``):
        ``input_ids`` and ``attention_mask`` of shape (2G, T), and ``margin`` (G,) if the rows have one.

    >>> batch = DataCollatorForPreference(pad_token_id=0)([{"chosen_ids": [1, 2], "rejected_ids": [3]}])
    >>> batch["input_ids"].tolist(), batch["attention_mask"].tolist()
    ([[1, 2], [3, 0]], [[1, 1], [1, 0]])
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    return_tensors: str = "pt"

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Batch:
        """Collates rows with ``chosen_ids``, ``rejected_ids`` and maybe ``margin``."""
        if self.return_tensors != "pt":
            raise ValueError(f'return_tensors must be "pt", got {self.return_tensors!r}')
        rows = [example["chosen_ids"] for example in examples] + [example["rejected_ids"] for example in examples]
        input_ids, attention_mask = pad_right(rows, self.pad_token_id, self.pad_to_multiple_of)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "margin" in examples[0]:
            batch["margin"] = torch.tensor([example["margin"] for example in examples], dtype=torch.float)
        return batch


@dataclass(kw_only=True)
class _LayoutCollator:
    """Lays examples out, and adds the keys that both layouts share."""

    ties: bool = False  # compare responses of equal scores, as ties
    text: bool = False  # add which positions predict the tokens of the best response
    content: bool = False  # add `content_of` each example

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Collates prepared rows."""
        examples = [tokenized_example(row) for row in rows]
        responses = [(g, n) for g, example in enumerate(examples) for n in range(len(example.response_ids))]
        inputs, order, index_of = self._lay_out(examples, responses)
        ids_of = [example.response_ids for example in examples]
        shared = [common_prefix_length(ids) if len(ids) > 1 else 0 for ids in ids_of]
        own_starts = [example.own_starts or [shared[g]] * len(ids_of[g]) for g, example in enumerate(examples)]
        sized = [(g, n, len(examples[g].response_ids[n])) for g, n in order]
        batch: Batch = {
            "example_weight": _example_weights(rows),
            **({"listed": True} if "response_ids" in rows[0] else {}),
            **inputs,
            "reward_positions": torch.tensor([index_of(g, n, length - 1) for g, n, length in sized]),
            "response_lengths": torch.tensor([length for _, _, length in sized]),
            "response_tokens": torch.tensor([length - own_starts[g][n] for g, n, length in sized]),
            "example_of_response": torch.tensor([g for g, _ in order]),
            **_labels(examples, order, ties=self.ties),
        }
        if self.text:
            batch |= _text(examples, own_starts, index_of)
        if self.content:
            batch["content"] = torch.tensor([content_of(example) for example in examples])
        return batch

    def _lay_out(self, examples: Sequence[EncodedExample], responses: list[Response]) -> Layout:
        raise NotImplementedError


@dataclass
class PaddedCollator(_LayoutCollator):
    """Lays examples out as a padded rectangle."""

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def _lay_out(self, examples: Sequence[EncodedExample], responses: list[Response]) -> Layout:
        # Rank by rank, so that the preferred responses of pairs come first: the rectangle of the reference.
        order = sorted(responses, key=lambda response: (response[1], response[0]))
        ids = [examples[g].response_ids[n] for g, n in order]
        input_ids, attention_mask = pad_right(ids, self.pad_token_id, self.pad_to_multiple_of)
        width = input_ids.shape[1]
        start_of = {response: row * width for row, response in enumerate(order)}
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        return inputs, order, lambda g, n, t: start_of[g, n] + t


@dataclass
class SharedPrefixCollator(_LayoutCollator):
    """Lays examples out as one row without padding, in which all responses to a prompt share it.

    The prompt is found as the longest common prefix of the token ids, so implicit prompts are shared too; examples
    share what their prompts have in common, if only a system prompt, and equal responses are computed once. Every
    response keeps at least one token of its own, at which its reward is read.
    """

    def _lay_out(self, examples: Sequence[EncodedExample], responses: list[Response]) -> Layout:
        row = share_prefixes(examples)
        tree, leaves = row.tree, row.leaves
        spans = [range(depth, depth + length) for length, depth in zip(tree.lengths, tree.depths, strict=True)]
        inputs = {
            "input_ids": torch.tensor([row.input_ids]),
            "position_ids": torch.tensor([[*chain.from_iterable(spans)]]),
            # Restarting positions without a mask make transformers build a T x T mask, and synchronise with the host.
            # A 4-D mask of this shape is passed on untouched and nothing is built.
            "attention_mask": torch.ones(1, 1, 1, 1),
            "nodes": tree.nodes,
        }
        return inputs, responses, lambda g, n, t: tree.index_of(leaves[g, n], t)


def shortest_examples(batch: Batch, count: int = 2) -> Batch:
    """Returns the shortest examples of a shared-prefix batch as a batch; those with a shared prompt come first."""
    tree = PrefixTree(batch["nodes"])
    ids = [node.tolist() for node in batch["input_ids"][0].split(tree.lengths)]
    # The responses that branch off from one node; those without a prompt have keys below 0.
    prompts: dict[int, list[list[int]]] = {}
    for path in tree.paths:
        key = path[-2] if len(path) > 1 else -1 - path[-1]
        prompts.setdefault(key, []).append([token for node in path for token in ids[node]])
    order = sorted(prompts, key=lambda key: (key < 0, sum(map(len, prompts[key]))))[:count]
    rows = [{"response_ids": prompts[key], "scores": [0.0] * len(prompts[key])} for key in order]
    laid_out = SharedPrefixCollator()(rows)
    device = batch["input_ids"].device
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in laid_out.items()}


@dataclass
class ForeignCollator:
    """Adds the bookkeeping to the batch of a user's own collator.

    That one returns ``input_ids`` and ``attention_mask`` (2G, T), preferred rows first, and maybe ``margin``.
    """

    collator: Any
    content: bool = False  # add `content_of` each example

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Collates prepared rows."""
        batch = self.collator([{key: value for key, value in row.items() if key != "example_weight"} for row in rows])
        examples = [tokenized_example(row) for row in rows]
        if self.content:
            batch = {**batch, "content": torch.tensor([content_of(example) for example in examples])}
        if "reward_positions" in batch:
            return batch
        input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
        count, width = input_ids.shape
        if count % 2:
            raise ValueError(f"a preference batch has an even number of rows, preferred first; got {count}")
        pairs = torch.arange(count // 2)
        labels = [example.label for example in examples]
        if any(label.preference_prob not in (None, 1.0) for label in labels):
            batch = {"preference_prob": _with_default([label.preference_prob for label in labels]), **batch}
        if any(label.weight is not None for label in labels):
            batch = {"weight": _with_default([label.weight for label in labels]), **batch}
        # The last attended token, wherever the padding is.
        last = width - 1 - attention_mask.flip(-1).argmax(-1)
        return {
            "example_weight": _example_weights(rows),
            **batch,
            "reward_positions": torch.arange(count) * width + last,
            "response_lengths": attention_mask.sum(-1),
            "response_tokens": attention_mask.sum(-1),
            "example_of_response": pairs.repeat(2),
            "scores": torch.tensor([1.0, 0.0]).repeat_interleave(count // 2),
            "better": pairs,
            "worse": pairs + count // 2,
        }


def tokenized_example(row: Mapping[str, Any]) -> EncodedExample:
    """Reads a prepared row: ``chosen_ids`` and ``rejected_ids``, or ``response_ids`` and ``scores``."""
    if "response_ids" in row:
        ids, ratings = tuple(row["response_ids"]), tuple(row["scores"])
    else:
        ids, ratings = (row["chosen_ids"], row["rejected_ids"]), (1.0, 0.0)
    optional = {name: float(row[name]) for name in ("margin", "preference_prob", "weight") if row.get(name) is not None}
    return EncodedExample(ids, Label(ratings, **optional), row.get("own_starts"))


def content_of(example: EncodedExample) -> int:
    """Returns a hash, as a signed number of 64 bits, of an example's token ids and label.

    >>> pair, swapped = EncodedExample(([1, 2], [3])), EncodedExample(([3], [1, 2]))
    >>> content_of(pair) == content_of(pair), content_of(pair) == content_of(swapped)
    (True, False)
    """
    label = example.label
    values = [*label.ratings, math.nan if label.preference_prob is None else label.preference_prob]
    digest = hashlib.blake2b(struct.pack(f"<{len(values)}d", *values), digest_size=8)
    for ids in example.response_ids:
        digest.update(struct.pack("<q", len(ids)))
        digest.update(np.asarray(ids, dtype="<i8").tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


def pad_right(
    rows: Sequence[Sequence[int]], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns ``input_ids`` and ``attention_mask`` (N, T) of rows of token ids.

    >>> pad_right([[1, 2], [3]], 9, pad_to_multiple_of=4)[0].tolist()
    [[1, 2, 9, 9], [3, 9, 9, 9]]
    """
    width = max(len(row) for row in rows)
    if pad_to_multiple_of is not None:
        width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.as_tensor(row)
        attention_mask[index, : len(row)] = 1
    return input_ids, attention_mask


def _example_weights(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    return torch.tensor([float(row.get("example_weight", 1.0)) for row in rows])


def _with_default(values: Sequence[float | None]) -> torch.Tensor:
    return torch.tensor([1.0 if value is None else value for value in values])


def _labels(examples: Sequence[EncodedExample], order: Sequence[Response], *, ties: bool) -> Batch:
    """Returns which responses are compared, and what the labels say about it."""
    number_of = {response: number for number, response in enumerate(order)}
    better, worse, margin, preference_prob, share = [], [], [], [], []
    for g, example in enumerate(examples):
        label = example.label
        decided = comparisons_of(label.ratings)
        tied = ties_of(label.ratings) if ties else []
        pairs = decided + tied
        better += [number_of[g, n] for n, _ in pairs]
        worse += [number_of[g, n] for _, n in pairs]
        share += [1 / max(len(pairs), 1)] * len(pairs)
        margin += [math.nan if label.margin is None else label.margin] * len(pairs)
        preference_prob += [1.0 if label.preference_prob is None else label.preference_prob] * len(decided)
        preference_prob += [0.5] * len(tied)
    batch: Batch = {
        "scores": torch.tensor([ratings_of(examples[g].label)[n] for g, n in order]),
        "better": torch.tensor(better, dtype=torch.int64),
        "worse": torch.tensor(worse, dtype=torch.int64),
    }
    if any(value != 1 for value in share):
        batch["comparison_share"] = torch.tensor(share)
    if not all(math.isnan(value) for value in margin):
        batch["margin"] = torch.tensor(margin)
    if any(value != 1 for value in preference_prob):
        batch["preference_prob"] = torch.tensor(preference_prob)
    if any(example.label.weight is not None for example in examples):
        batch["weight"] = _with_default([example.label.weight for example in examples])
    return batch


def _text(examples: Sequence[EncodedExample], own_starts: Sequence[Sequence[int]], index_of: IndexOf) -> Batch:
    """Returns which positions predict the own tokens of each example's best response."""
    columns: dict[str, list[int]] = {"text_positions": [], "text_targets": [], "text_example": []}
    for g, example in enumerate(examples):
        best = max(range(len(example.response_ids)), key=ratings_of(example.label).__getitem__)
        ids = example.response_ids[best]
        first = max(1, own_starts[g][best])  # nothing predicts the first token of a row without a prompt
        columns["text_positions"] += [index_of(g, best, t - 1) for t in range(first, len(ids))]
        columns["text_targets"] += ids[first:]
        columns["text_example"] += [g] * (len(ids) - first)
    return {name: torch.tensor(values, dtype=torch.int64) for name, values in columns.items()}
