"""Collators: from tokenised examples to one batch, in either of the two layouts.

Both layouts carry the same keys beside the model's inputs, so that nothing after the model knows which it was:

=======================  ========  ==============================================================
key                      shape     meaning
=======================  ========  ==============================================================
``example_weight``       (G,)      1 for real examples, 0 for fillers. First key on purpose: whoever
                                   asks a batch for its size reads the number of examples.
``margin``               (P,)      margin of each comparison, only if the data has one; NaN where the
                                   row has none
``preference_prob``             (P,)      probability that ``better`` is better, only if the data or ties need
                                   it; exactly 0.5 is a tie
``weight``               (G,)      how much each example counts, only if the data has it
``content``              (G,)      with `content` only: a number made from what each example says, see `content_of`
``input_ids``            see below
``attention_mask``       see below
``reward_positions``     (N,)      where each reward is read, in the flattened ``input_ids``
``response_lengths``     (N,)      tokens of each response, prompt included
``response_tokens``      (N,)      tokens of each response that the others of its example do not share; of a single
                                   response all, with its prompt
``example_of_response``  (N,)      index of the example that a response belongs to
``scores``               (N,)      higher is better: 1 and 0 for pairs and labels, minus the rank for ranks; of a pair
                                   with a preference_prob p, p and 1 - p
``better``, ``worse``    (P,)      indices of the two responses of each comparison
``listed``               --        True where rows have any number of responses, and absent for pairs
``comparison_share``     (P,)      1 / number of comparisons of the example, where it is not 1
``text_positions``       (S,)      with `text` only: places in the flattened ``input_ids`` that predict the
                                   tokens of the best response of each example
``text_targets``         (S,)      the tokens predicted there
``text_example``         (S,)      the example that each belongs to
=======================  ========  ==============================================================

``padded``: ``input_ids`` and ``attention_mask`` (N, T), of pairs the preferred responses first, padded on the right.

``shared_prefix``: one row without padding, each prompt once: ``input_ids`` and ``position_ids`` (1, T) laid out
``[P R1 R2 | P R1 R2 R3 | ...]``, and what prompts have in common once before them; ``attention_mask`` (1, 1, 1, 1), a
placeholder that tells model code to build no mask of its own; ``nodes``, what the row is made of as in
:class:`plaudit.prefix_tree.PrefixTree`, as plain numbers, so that nobody has to read them back from a GPU.
"""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from plaudit.prefix_tree import PrefixTree, common_prefix_length, share_prefixes
from plaudit.schema import Batch, EncodedExample, Label, comparisons_of, ratings_of, ties_of


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
        """Collate rows with ``chosen_ids``, ``rejected_ids`` and maybe ``margin``."""
        if self.return_tensors != "pt":
            raise ValueError(f'return_tensors must be "pt", got {self.return_tensors!r}')
        rows = [example["chosen_ids"] for example in examples] + [example["rejected_ids"] for example in examples]
        input_ids, attention_mask = pad_right(rows, self.pad_token_id, self.pad_to_multiple_of)
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if "margin" in examples[0]:
            batch["margin"] = torch.tensor([example["margin"] for example in examples], dtype=torch.float)
        return batch


@dataclass
class PaddedCollator:
    """Lays examples out as a padded rectangle, with the bookkeeping that both layouts share.

    Args:
        pad_token_id: Token id to pad with.
        pad_to_multiple_of: Pad the width to a multiple of this.
        ties: Whether responses of equal scores are compared, as ties.
        text: Whether to say which positions predict the tokens of the best response.
        content: Whether to add a number made from what each example says.
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None
    ties: bool = False
    text: bool = False
    content: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Collate prepared rows."""
        examples = [tokenized_example(row) for row in rows]
        # Rank by rank, so that the preferred responses of pairs come first: the rectangle of the reference.
        order = sorted(
            ((g, n) for g, example in enumerate(examples) for n in range(len(example.response_ids))),
            key=lambda place: (place[1], place[0]),
        )
        input_ids, attention_mask = pad_right(
            [examples[g].response_ids[n] for g, n in order], self.pad_token_id, self.pad_to_multiple_of
        )
        width = input_ids.shape[1]
        row_of = {place: row for row, place in enumerate(order)}

        def position(g: int, n: int, t: int) -> int:
            return row_of[g, n] * width + t

        batch = {
            **_of_rows(rows),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            **_bookkeeping(examples, order, position),
            **_labels(examples, order, ties=self.ties),
        }
        if self.text:
            batch |= _text(examples, position)
        if self.content:
            batch |= _content(examples)
        return batch


@dataclass
class SharedPrefixCollator:
    """Lays examples out as one row without padding, in which all responses to a prompt share it.

    The prompt is found as the longest common prefix of the token ids, so implicit prompts are shared too; examples
    share what their prompts have in common, if only a system prompt, and equal responses are computed once. Every
    response keeps at least one token of its own, at which its reward is read.

    Args:
        ties: Whether responses of equal scores are compared, as ties.
        text: Whether to say which positions predict the tokens of the best response.
        content: Whether to add a number made from what each example says.
    """

    ties: bool = False
    text: bool = False
    content: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Collate prepared rows."""
        return {**_of_rows(rows), **self.lay_out([tokenized_example(row) for row in rows])}

    def lay_out(self, examples: Sequence[EncodedExample]) -> Batch:
        """The batch of some examples, without their weights."""
        row = share_prefixes(examples)
        tree = row.tree
        position_ids = [
            depth + t for (length, *_), depth in zip(tree.nodes, tree.depths, strict=True) for t in range(length)
        ]

        def position(g: int, n: int, t: int) -> int:
            return tree.place(row.leaves[g, n], t)

        order = [(g, n) for g, example in enumerate(examples) for n in range(len(example.response_ids))]
        batch = {
            "input_ids": torch.tensor([row.input_ids]),
            "position_ids": torch.tensor([position_ids]),
            "attention_mask": torch.ones(1, 1, 1, 1),
            "nodes": tree.nodes,
            **_bookkeeping(examples, order, position),
            **_labels(examples, order, ties=self.ties),
        }
        if self.text:
            batch |= _text(examples, position)
        if self.content:
            batch |= _content(examples)
        return batch


def shortest_examples(batch: Batch, count: int = 2) -> Batch:
    """The shortest examples of a shared-prefix batch as a batch of their own, on the same device.

    Args:
        batch: A shared-prefix batch.
        count: How many examples to take; those with a shared prompt come first.
    """
    tree = PrefixTree(batch["nodes"])
    ids = [node.tolist() for node in batch["input_ids"][0].split(tree.lengths)]
    prompts: dict[int, list[list[int]]] = {}  # the responses that branch off from one node; those without a prompt
    for path in tree.paths:
        key = path[-2] if len(path) > 1 else -1 - path[-1]
        prompts.setdefault(key, []).append([token for node in path for token in ids[node]])
    order = sorted(prompts, key=lambda key: (key < 0, sum(map(len, prompts[key]))))[:count]
    examples = [EncodedExample(tuple(prompts[key]), Label((0.0,) * len(prompts[key]))) for key in order]
    laid_out = SharedPrefixCollator().lay_out(examples)
    device = batch["input_ids"].device
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in laid_out.items()}


@dataclass
class ForeignCollator:
    """Adds the shared bookkeeping to a user's own collator that yields a padded pair batch.

    Args:
        collator: Returns ``input_ids`` and ``attention_mask`` (2G, T), preferred rows first, and maybe ``margin``.
        content: Whether to add a number made from what each example says.
    """

    collator: Any
    content: bool = False

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Collate prepared rows."""
        weight = _of_rows(rows)["example_weight"]
        batch = self.collator([{key: value for key, value in row.items() if key != "example_weight"} for row in rows])
        if self.content:
            batch = {**batch, **_content([tokenized_example(row) for row in rows])}
        if "reward_positions" in batch:
            return batch
        input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
        count, width = input_ids.shape
        if count % 2:
            raise ValueError(f"a preference batch has an even number of rows, preferred first; got {count}")
        pairs = torch.arange(count // 2)
        said = [tokenized_example(row).label for row in rows]
        if any(judged.preference_prob not in (None, 1.0) for judged in said):
            preference_prob = [1.0 if judged.preference_prob is None else judged.preference_prob for judged in said]
            batch = {"preference_prob": torch.tensor(preference_prob), **batch}
        if any(judged.weight is not None for judged in said):
            batch = {"weight": torch.tensor([1.0 if one.weight is None else one.weight for one in said]), **batch}
        # The last attended token, wherever the padding is.
        last = width - 1 - attention_mask.flip(-1).argmax(-1)
        return {
            "example_weight": weight,
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
    """Read a prepared row: ``chosen_ids`` and ``rejected_ids``, or ``response_ids`` and ``scores``."""
    if "response_ids" in row:
        ids, scores = tuple(row["response_ids"]), tuple(row["scores"])
    else:
        ids, scores = (row["chosen_ids"], row["rejected_ids"]), (1.0, 0.0)
    said = {name: float(row[name]) for name in ("margin", "preference_prob", "weight") if row.get(name) is not None}
    return EncodedExample(ids, Label(scores, **said))


def content_of(example: EncodedExample) -> int:
    """A number made from the token ids of an example and from what is said about them: the same wherever it is met.

    Args:
        example: The example.

    Returns:
        A hash of 64 bits, as a signed number.

    >>> one, other = EncodedExample(([1, 2], [3])), EncodedExample(([3], [1, 2]))
    >>> content_of(one) == content_of(one), content_of(one) == content_of(other)
    (True, False)
    """
    judged = example.label
    said = [*judged.ratings, math.nan if judged.preference_prob is None else judged.preference_prob]
    digest = hashlib.blake2b(struct.pack(f"<{len(said)}d", *said), digest_size=8)
    for ids in example.response_ids:
        digest.update(struct.pack("<q", len(ids)))
        digest.update(np.asarray(ids, dtype="<i8").tobytes())
    return int.from_bytes(digest.digest(), "little", signed=True)


def _content(examples: Sequence[EncodedExample]) -> Batch:
    return {"content": torch.tensor([content_of(example) for example in examples])}


def own_start(example: EncodedExample) -> int:
    """Where the own tokens of an example's responses start: a single response cannot be told from its prompt.

    Args:
        example: The example.

    >>> own_start(EncodedExample(([1, 2, 3], [1, 4]))), own_start(EncodedExample(([1, 2, 3],)))
    (1, 0)
    """
    return common_prefix_length(example.response_ids) if len(example.response_ids) > 1 else 0


def pad_right(
    rows: Sequence[Sequence[int]], pad_token_id: int, pad_to_multiple_of: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token ids on the right; returns ``input_ids`` and ``attention_mask``, both (rows, T)."""
    width = max(len(row) for row in rows)
    if pad_to_multiple_of is not None:
        width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
    input_ids = torch.full((len(rows), width), pad_token_id)
    attention_mask = torch.zeros(len(rows), width, dtype=torch.int64)
    for index, row in enumerate(rows):
        input_ids[index, : len(row)] = torch.as_tensor(row)
        attention_mask[index, : len(row)] = 1
    return input_ids, attention_mask


def _of_rows(rows: Sequence[Mapping[str, Any]]) -> Batch:
    weight = torch.tensor([float(row.get("example_weight", 1.0)) for row in rows])
    return {"example_weight": weight, "listed": True} if "response_ids" in rows[0] else {"example_weight": weight}


Position: TypeAlias = Callable[[int, int, int], int]
"""Where token t of response n of example g lies in the flattened ``input_ids``."""


def _bookkeeping(examples: Sequence[EncodedExample], order: Sequence[tuple[int, int]], position: Position) -> Batch:
    starts = [own_start(example) for example in examples]
    lengths = [len(examples[g].response_ids[n]) for g, n in order]
    return {
        "reward_positions": torch.tensor(
            [position(g, n, length - 1) for (g, n), length in zip(order, lengths, strict=True)]
        ),
        "response_lengths": torch.tensor(lengths),
        "response_tokens": torch.tensor([length - starts[g] for (g, _), length in zip(order, lengths, strict=True)]),
        "example_of_response": torch.tensor([g for g, _ in order]),
    }


def _labels(examples: Sequence[EncodedExample], order: Sequence[tuple[int, int]], *, ties: bool) -> Batch:
    """What is compared with what, and what else is said about it."""
    index_of = {place: index for index, place in enumerate(order)}
    better, worse, margin, preference_prob, share = [], [], [], [], []
    for g, example in enumerate(examples):
        judged = example.label
        decided = comparisons_of(judged.ratings)
        tied = ties_of(judged.ratings) if ties else []
        pairs = decided + tied
        better += [index_of[g, one] for one, _ in pairs]
        worse += [index_of[g, other] for _, other in pairs]
        share += [1 / max(len(pairs), 1)] * len(pairs)
        margin += [math.nan if judged.margin is None else judged.margin] * len(pairs)
        preference_prob += [1.0 if judged.preference_prob is None else judged.preference_prob] * len(decided) + [
            0.5
        ] * len(tied)
    batch: Batch = {
        "scores": torch.tensor([ratings_of(examples[g].label)[n] for g, n in order]),
        "better": torch.tensor(better, dtype=torch.int64),
        "worse": torch.tensor(worse, dtype=torch.int64),
    }
    if any(one != 1 for one in share):
        batch["comparison_share"] = torch.tensor(share)
    if not all(math.isnan(one) for one in margin):
        batch["margin"] = torch.tensor(margin)
    if any(one != 1 for one in preference_prob):
        batch["preference_prob"] = torch.tensor(preference_prob)
    weights = [example.label.weight for example in examples]
    if any(weight is not None for weight in weights):
        batch["weight"] = torch.tensor([1.0 if weight is None else weight for weight in weights])
    return batch


def _text(examples: Sequence[EncodedExample], position: Position) -> Batch:
    """Which positions predict the own tokens of each example's best response."""
    positions: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for g, example in enumerate(examples):
        best = max(range(len(example.response_ids)), key=ratings_of(example.label).__getitem__)
        ids = example.response_ids[best]
        # Without a prompt nothing predicts the first token.
        first = max(1, own_start(example))
        positions += [position(g, best, t - 1) for t in range(first, len(ids))]
        targets += ids[first:]
        owners += [g] * (len(ids) - first)
    return {
        "text_positions": torch.tensor(positions, dtype=torch.int64),
        "text_targets": torch.tensor(targets, dtype=torch.int64),
        "text_example": torch.tensor(owners, dtype=torch.int64),
    }
