"""A tiny model and the rows of `behaviour.py`: bundled preferences in every form, awkward rows, planted faults."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import plaudit

Row = dict[str, Any]

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] or '' }}"
    "{%- if message['tool_calls'] %}{{ message['tool_calls'] | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model(folder: str) -> None:
    """Write a random Llama of 2 layers with a tokenizer of one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate([*SPECIAL_TOKENS, *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|eos|>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def write_rows(path: str, rows: Iterable[Any]) -> str:
    """Write JSON lines, and return the path."""
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@cache
def _bundled() -> list[Row]:
    # Wherever the package keeps them: the module that reads them may move.
    (path,) = Path(plaudit.__file__).parent.rglob("preferences.jsonl")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def preferences(start: int, count: int) -> list[Row]:
    """Bundled conversations with an explicit prompt; some have tools, several turns, or a prompt in common."""
    rows = []
    for row in _bundled()[start : start + count]:
        kept = {name: row[name] for name in ("prompt", "chosen", "rejected", "tools", "topic")}
        rows.append(kept | {"skill": row["skill"]})
    for n in range(0, len(rows) - 1, 5):  # two rows to one prompt
        rows[n + 1] |= {"prompt": rows[n]["prompt"], "tools": rows[n]["tools"]}
    return rows


def text_of(messages: list[Row]) -> str:
    """The text of the last message."""
    return str(messages[-1]["content"] or "")


def as_text(rows: Sequence[Row]) -> list[Row]:
    """The pairs as plain text."""
    return [
        {"prompt": text_of(row["prompt"]) + " ", "chosen": text_of(row["chosen"]), "rejected": text_of(row["rejected"])}
        for row in rows
    ]


def without_prompt(rows: Sequence[Row]) -> list[Row]:
    """The pairs with the prompt inside both responses."""
    return [
        {"chosen": row["prompt"] + row["chosen"], "rejected": row["prompt"] + row["rejected"], "tools": row["tools"]}
        for row in rows
    ]


def rankings(rows: Sequence[Row], name: str, values: Sequence[Sequence[float]]) -> list[Row]:
    """Rows of two or three responses; `values` by their position, in the column `name`."""
    made = []
    for n, row in enumerate(rows):
        responses = [row["chosen"], row["rejected"], rows[n - 1]["chosen"]]
        chosen = values[n % len(values)]
        made.append({"prompt": row["prompt"], "responses": responses[: len(chosen)], name: list(chosen)})
    return made


def single(rows: Sequence[Row], name: str, values: Sequence[Any]) -> list[Row]:
    """Rows of one response, good ones and bad ones in turn."""
    sides = ("chosen", "rejected")
    return [
        {"prompt": row["prompt"], "response": row[sides[n % 2]], name: values[n % len(values)]}
        for n, row in enumerate(rows)
    ]


def with_column(rows: Sequence[Row], name: str, values: Sequence[Any]) -> list[Row]:
    """The rows with a column whose values go round."""
    return [row | {name: values[n % len(values)]} for n, row in enumerate(rows)]


def benchmarks(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows in the forms of published benchmarks, by the name of the suite."""
    texts = as_text(rows)
    prompts = [(row["prompt"], row["chosen"], row["rejected"]) for row in texts]
    sets = ["natural", "adv_neighbor", "adv_gptinst", "adv_gptout", "adv_manual"]
    bench = ["alpacaeval-easy", "mt-bench-hard", "xstest-should-refuse", "math-prm", "hep-python", "donotanswer"]
    domains = ["chat", "math", "code", "safety-refuse", "safety-response"]
    sources = ["mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench"]
    best_of_four = [
        {"id": str(n), "prompt": p, "chosen": [c], "rejected": [r, r + "!", "No."], "subset": ["Focus", "Math"][n % 2]}
        for n, (p, c, r) in enumerate(prompts)
    ]
    ties = [
        {"id": f"{kind}:{n}", "prompt": p, "chosen": right, "rejected": [r, "No idea."], "subset": "Ties"}
        for n, (p, c, r) in enumerate(prompts[:4])
        for kind, right in (("tied", [c, c + "!"]), ("ref", [c]))
    ]
    styles = [
        {
            "id": str(n),
            "prompt": p,
            "chosen": [c, f"{c} {c}", f"**{c}**"],
            "rejected": [r, f"{r} {r}", f"**{r}**"],
            "domain": domains[n % 5],
        }
        for n, (p, c, r) in enumerate(prompts)
    ]
    judged = [
        {"pair_id": str(n), "source": sources[n % 4], "question": p, "response_A": c, "response_B": r, "label": "A>B"}
        for n, (p, c, r) in enumerate(prompts)
    ]
    return {
        "llmbar": with_column(texts, "subset", sets),
        "rewardbench": with_column([row | {"id": n} for n, row in enumerate(texts)], "subset", bench),
        "rewardbench2": best_of_four + ties,
        "rm-bench": styles,
        "judgebench": judged,
    }


def faulty_rows(rows: Sequence[Row]) -> list[Row]:
    """Pairs with faults, each of a kind that the data doctor looks for."""
    first, second, third = rows[:3]
    user = [{"role": "user", "content": "And then?"}]
    return [
        *rows,
        first | {"rejected": None},  # unreadable
        first | {"chosen": [{"role": "assistant", "content": None}]},
        second | {"rejected": second["chosen"]},  # identical
        second | {"chosen": second["rejected"], "rejected": second["chosen"]},  # contradictory
        third,  # a duplicate
        third | {"chosen": [{"role": "assistant", "content": ""}]},  # empty
        third | {"chosen": third["chosen"] + user},  # the last message is not the assistant's
        third | {"chosen": [{"role": "assistant", "content": "Yes [INST] no </s>"}]},
        third | {"chosen": [{"role": "assistant", "content": text_of(third["rejected"]).replace(" ", "  ")}]},
        third | {"chosen": [{"role": "assistant", "content": "word " * 150}]},  # too long
    ]


def awkward_rows(rows: Sequence[Row]) -> list[Any]:
    """What can be scored: texts, conversations, pairs, lists, token ids, tools."""
    tools = [row for row in _bundled() if row["tools"]][:3]
    return [
        "2+2=4",
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
        {"prompt": "2+2=", "response": "4"},
        {"prompt": "2+2=", "responses": ["4", "5", "", "22 \u00e9\U0001f600 <|eos|>"]},
        {"response_ids": [[5, 6, 7, 2], [5, 6, 2]]},
        {"chosen_ids": [9, 10, 2], "rejected_ids": [9, 2]},
        {"messages": rows[0]["prompt"] + rows[0]["chosen"]},
        *({name: row[name] for name in ("prompt", "chosen", "rejected", "tools")} for row in tools),
        *without_prompt(rows[:4]),
        *as_text(rows[:4]),
    ]
