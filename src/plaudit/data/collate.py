"""Collators: from tokenised examples to one batch, in either of the two layouts.

Both layouts carry the same keys beside the model's inputs, so that nothing after the model knows which it was:

=======================  ========  ==============================================================
key                      shape     meaning
=======================  ========  ==============================================================
``example_weight``       (G,)      1 for real examples, 0 for fillers. First key on purpose: whoever
                                   asks a batch for its size reads the number of examples.
``margin``               (P,)      margin of each comparison, only if the data has one
``input_ids``            see below
``attention_mask``       see below
``reward_positions``     (N,)      where each reward is read, in the flattened ``input_ids``
``response_lengths``     (N,)      tokens of each response, prompt included
``example_of_response``  (N,)      index of the example that a response belongs to
``better``, ``worse``    (P,)      indices of the two responses of each comparison
=======================  ========  ==============================================================

``padded``: ``input_ids`` and ``attention_mask`` (N, T), the preferred responses first, padded on the right.

``shared_prefix``: one row without padding, the prompt of each example once: ``input_ids`` and ``position_ids``
(1, T) laid out ``[P R1 R2 | P R1 R2 | ...]``; ``attention_mask`` (1, 1, 1, 1), a placeholder that tells model code
to build no mask of its own; ``segments``, for each example the lengths of ``P, R1, R2, ...`` as plain numbers, so that
nobody has to read them back from a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from plaudit.types import Batch, TokenizedExample


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
    """

    pad_token_id: int
    pad_to_multiple_of: int | None = None

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
        lengths = [len(examples[g].response_ids[n]) for g, n in order]
        width = input_ids.shape[1]
        positions = [row * width + length - 1 for row, length in enumerate(lengths)]
        return {
            "example_weight": _example_weight(rows),
            **_margin(rows, examples),
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            **_bookkeeping(examples, order, lengths, positions),
        }


@dataclass
class SharedPrefixCollator:
    """Lays examples out as one row without padding, in which the responses of an example share their prompt.

    The prompt is found as the longest common prefix of the token ids, so implicit prompts are shared too; every
    response keeps at least one token of its own, at which its reward is read.
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Collate prepared rows."""
        examples = [tokenized_example(row) for row in rows]
        return {
            "example_weight": _example_weight(rows),
            **_margin(rows, examples),
            **self._lay_out(examples),
        }

    @staticmethod
    def _lay_out(examples: Sequence[TokenizedExample]) -> Batch:
        prefix_lengths = [common_prefix_length(example.response_ids) for example in examples]
        input_ids: list[int] = []
        position_ids: list[int] = []
        order, lengths, positions = [], [], []
        for g, (example, prefix) in enumerate(zip(examples, prefix_lengths, strict=True)):
            input_ids.extend(example.response_ids[0][:prefix])
            position_ids.extend(range(prefix))
            for n, ids in enumerate(example.response_ids):
                input_ids.extend(ids[prefix:])
                position_ids.extend(range(prefix, len(ids)))
                order.append((g, n))
                lengths.append(len(ids))
                positions.append(len(input_ids) - 1)
        return {
            "input_ids": torch.tensor([input_ids]),
            "position_ids": torch.tensor([position_ids]),
            "attention_mask": torch.ones(1, 1, 1, 1),
            "segments": tuple(
                (prefix, *(len(ids) - prefix for ids in example.response_ids))
                for prefix, example in zip(prefix_lengths, examples, strict=True)
            ),
            **_bookkeeping(examples, order, lengths, positions),
        }


def shortest_examples(batch: Batch, count: int = 2) -> Batch:
    """The shortest examples of a shared-prefix batch as a batch of their own, on the same device.

    Args:
        batch: A shared-prefix batch.
        count: How many examples to take; those with a shared prompt come first.
    """
    ids = iter(batch["input_ids"][0].split([length for segment in batch["segments"] for length in segment]))
    responses: list[list[list[int]]] = []
    for _, *suffixes in batch["segments"]:
        prompt = next(ids).tolist()
        responses.append([prompt + next(ids).tolist() for _ in suffixes])
    prefixes = [prefix for prefix, *_ in batch["segments"]]
    order = sorted(range(len(prefixes)), key=lambda g: (prefixes[g] == 0, sum(map(len, responses[g]))))[:count]
    examples = [TokenizedExample(tuple(responses[g]), comparisons=()) for g in order]
    laid_out = SharedPrefixCollator._lay_out(examples)
    device = batch["input_ids"].device
    return {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in laid_out.items()}


@dataclass
class ForeignCollator:
    """Adds the shared bookkeeping to a user's own collator that yields a padded pair batch.

    Args:
        collator: Returns ``input_ids`` and ``attention_mask`` (2G, T), preferred rows first, and maybe ``margin``.
    """

    collator: Any

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Collate prepared rows."""
        weight = _example_weight(rows)
        batch = self.collator([{key: value for key, value in row.items() if key != "example_weight"} for row in rows])
        if "reward_positions" in batch:
            return batch
        input_ids, attention_mask = batch["input_ids"], batch["attention_mask"]
        count, width = input_ids.shape
        if count % 2:
            raise ValueError(f"a preference batch has an even number of rows, preferred first; got {count}")
        pairs = torch.arange(count // 2)
        # The last attended token, wherever the padding is.
        last = width - 1 - attention_mask.flip(-1).argmax(-1)
        return {
            "example_weight": weight,
            **batch,
            "reward_positions": torch.arange(count) * width + last,
            "response_lengths": attention_mask.sum(-1),
            "example_of_response": pairs.repeat(2),
            "better": pairs,
            "worse": pairs + count // 2,
        }


def tokenized_example(row: Mapping[str, Any]) -> TokenizedExample:
    """Read a prepared row: a pair in the columns ``chosen_ids`` and ``rejected_ids``."""
    margin = row.get("margin")
    return TokenizedExample(
        response_ids=(row["chosen_ids"], row["rejected_ids"]), margin=0.0 if margin is None else float(margin)
    )


def common_prefix_length(response_ids: Sequence[Sequence[int]]) -> int:
    """Length of the longest common prefix that leaves every response at least one token of its own.

    >>> common_prefix_length([[1, 2, 3], [1, 2, 4, 5]]), common_prefix_length([[1, 2], [1, 2]])
    (2, 1)
    """
    limit = min(len(ids) for ids in response_ids) - 1
    first = response_ids[0]
    for ids in response_ids[1:]:
        if list(first[:limit]) != list(ids[:limit]):
            limit = next(t for t in range(limit) if first[t] != ids[t])
    return limit


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


def _example_weight(rows: Sequence[Mapping[str, Any]]) -> torch.Tensor:
    return torch.tensor([float(row.get("example_weight", 1.0)) for row in rows])


def _margin(rows: Sequence[Mapping[str, Any]], examples: Sequence[TokenizedExample]) -> Batch:
    if not any("margin" in row for row in rows):
        return {}
    return {"margin": torch.tensor([example.margin for example in examples for _ in example.comparisons])}


def _bookkeeping(
    examples: Sequence[TokenizedExample],
    order: Sequence[tuple[int, int]],
    lengths: Sequence[int],
    positions: Sequence[int],
) -> Batch:
    index_of = {place: index for index, place in enumerate(order)}
    comparisons = [
        (index_of[g, better], index_of[g, worse])
        for g, example in enumerate(examples)
        for better, worse in example.comparisons
    ]
    return {
        "reward_positions": torch.tensor(positions),
        "response_lengths": torch.tensor(lengths),
        "example_of_response": torch.tensor([g for g, _ in order]),
        "better": torch.tensor([better for better, _ in comparisons], dtype=torch.int64),
        "worse": torch.tensor([worse for _, worse in comparisons], dtype=torch.int64),
    }
