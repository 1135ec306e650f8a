"""What the rewards would be if known mistakes were made: the golden rows with a token more or less, scored here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from plaudit.data.template_sketches import RENDER_ERRORS
from plaudit.model.golden_rows import GoldenRow, GoldenRows
from plaudit.verification.diagnosis import _ADDED_BOS, _MISSING_BOS, Finding, Suspect, second_bos

Ids = tuple[int, ...]


def suspects_of(
    golden: GoldenRows, tokenizer: PreTrainedTokenizerBase, score: Callable[[list[list[int]]], list[float]]
) -> list[Suspect]:
    """Rewards of the golden rows under each mistake that would change them.

    Args:
        golden: The golden rows.
        tokenizer: The model's tokenizer.
        score: Gives rewards of token ids, read at their last token.
    """
    found = []
    for finding, ids in mistakes(golden, tokenizer):
        changed = [place for place, row in enumerate(golden.rows) if ids[place] != row.ids]
        rewards = golden.rewards
        for place, reward in zip(changed, score([list(ids[place]) for place in changed]), strict=True):
            rewards[place] = reward
        found.append(Suspect(finding, tuple(rewards)))
    return found


def mistakes(golden: GoldenRows, tokenizer: PreTrainedTokenizerBase) -> list[tuple[Finding, list[Ids]]]:
    """The golden rows under each known mistake that changes at least one of them.

    Args:
        golden: The golden rows.
        tokenizer: The model's tokenizer.
    """
    rows = golden.rows
    bos: Any = tokenizer.bos_token_id
    eos: Any = tokenizer.eos_token_id
    found: list[tuple[Finding, list[Ids]]] = [
        (_last_token_lost(rows, tokenizer), [row.ids[:-1] or row.ids for row in rows])
    ]
    pads = {golden.pad_token_id, tokenizer.pad_token_id, eos} - {None}
    found.append((_last_token_lost(rows, tokenizer), [_without_end(row.ids, pads) for row in rows]))
    if bos is not None:
        first = [row.ids[:1] == (bos,) for row in rows]
        found += [
            (second_bos(), [(bos, *row.ids) if there else row.ids for row, there in zip(rows, first, strict=True)]),
            (Finding("added_bos", _ADDED_BOS), [row.ids if row.ids[0] == bos else (bos, *row.ids) for row in rows]),
            (Finding("missing_bos", _MISSING_BOS), [row.ids[1:] if row.ids[:1] == (bos,) else row.ids for row in rows]),
        ]
    if eos is not None:
        cut = [row.ids[: _last(row.ids, eos) + 1] if eos in row.ids else row.ids for row in rows]
        found += [
            (
                Finding("added_eos", "An EOS token was added at the end. Send token ids, or the text without it."),
                [(*row.ids, eos) for row in rows],
            ),
            (
                Finding(
                    "cut_after_eos",
                    "What the chat template prints after the last EOS token is missing. Send the text as the chat "
                    "template renders it, to its end.",
                ),
                cut,
            ),
        ]
    found.append((_GENERATION_PROMPT, [_with_generation_prompt(row, tokenizer) for row in rows]))
    return [(finding, ids) for finding, ids in found if any(one != row.ids for one, row in zip(ids, rows, strict=True))]


_GENERATION_PROMPT = Finding(
    "generation_prompt",
    "The chat template was rendered with the beginning of another answer at the end. Render with "
    "add_generation_prompt=False.",
)


def _last_token_lost(rows: Sequence[GoldenRow], tokenizer: PreTrainedTokenizerBase) -> Finding:
    last = sorted({str(tokenizer.decode([row.ids[-1]])) for row in rows})
    return Finding(
        "pad_is_eos",
        f"The reward is read before the last token ({', '.join(map(repr, last[:3]))}): that is taken for padding "
        "(pad = eos), or missing from the text. Give the model a padding token that no text contains, in config.json "
        "and the tokenizer (`plaudit export` does), or send the whole text.",
    )


def _without_end(ids: Ids, unwanted: set[int]) -> Ids:
    end = len(ids)
    while end > 1 and ids[end - 1] in unwanted:
        end -= 1
    return ids[:end]


def _last(ids: Ids, token: int) -> int:
    return len(ids) - 1 - ids[::-1].index(token)


def _with_generation_prompt(row: GoldenRow, tokenizer: PreTrainedTokenizerBase) -> Ids:
    if row.messages is None:
        return row.ids
    variables = {**row.chat_template_kwargs, "add_generation_prompt": True}
    render: Any = tokenizer.apply_chat_template
    try:
        text = render(list(row.messages), tools=row.tools, tokenize=False, **variables)
    except RENDER_ERRORS:
        return row.ids
    ids: Any = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return tuple(ids) or row.ids
