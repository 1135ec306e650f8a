"""Reads public preference data as it was published: a table of schemas, each a set of columns and a reading.

A schema turns a row as its authors published it into the columns of :mod:`plaudit.schema`. To add one, write a function
of a row and a line of `SCHEMAS`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from plaudit.data.parse import begins_with, is_long_enough, without_nulls
from plaudit.errors import ConfigError, DataError
from plaudit.schema import PAIR_COLUMNS, RAW_COLUMNS, is_tokenized, quoted

Row: TypeAlias = Mapping[str, Any]
Columns: TypeAlias = dict[str, Any]
FIRST_ROWS = 100
"""Rows at the beginning of a data set by which its schema is chosen."""
_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool", "bot": "assistant"}
_TURN = re.compile(r"\n\n(Human|Assistant):")
_HELPSTEER_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


@dataclass(frozen=True)
class PublicSchema:
    """How the rows of a public data set are read."""

    title: str  # the data sets that have it
    columns: str  # those that it needs, separated by blanks
    read: Callable[[Row], Columns]
    # Tells whether a row is of this schema, where columns do not decide; None where the row does not tell.
    matches: Callable[[Row], bool | None] = lambda row: True
    optional: str = ""  # columns that are read where they are there

    @property
    def reads(self) -> set[str]:
        """The columns that are read."""
        return {*self.columns.split(), *self.optional.split(), *_BESIDE}


# --- texts, turns and messages ------------------------------------------------------------------------------------


def _user(text: Any, system: Any = None, history: Iterable[Sequence[str]] = ()) -> list[Columns]:
    """Returns a prompt of messages: a system message, earlier turns, and the user's text, which may hold turns."""
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in history:
        messages += [{"role": "user", "content": question}, *_assistant(answer)]
    if is_conversation(text):
        return [*messages, *text]
    if _is_transcript(text):
        turns = turns_of(text)
        return messages + (turns[:-1] if turns[-1] == _assistant("")[0] else turns)  # it ends where answers begin
    start, *parts = _HELPSTEER_TURN.split(text)
    return [*messages, {"role": "user", "content": start}, *_turns(parts)]


def _assistant(text: Any) -> list[Any]:
    """Returns a response of messages, given its text, its message, or itself."""
    if isinstance(text, str):
        return [{"role": "assistant", "content": text}]
    return [text] if isinstance(text, Mapping) else text


def _turns(parts: Sequence[str]) -> list[Columns]:
    """Returns the messages of texts that follow the names of their speakers."""
    roles = {"Human": "user", "User": "user", "Assistant": "assistant"}
    speakers_and_texts = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[speaker], "content": text.strip()} for speaker, text in speakers_and_texts]


def turns_of(text: str) -> list[Columns]:
    """Splits a transcript of ``Human:`` and ``Assistant:`` turns into messages.

    >>> turns_of("\\n\\nHuman: Hi\\n\\nAssistant: Hello!")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Hello!'}]
    """
    start, *parts = _TURN.split(text)
    if start.strip() or not parts:
        raise ValueError("the text does not begin with a turn of `Human:` or `Assistant:`")
    return _turns(parts)


def _is_transcript(text: Any) -> bool:
    return isinstance(text, str) and text.startswith("\n\nHuman:") and "\n\nAssistant:" in text


def is_conversation(value: Any, role: str = "role") -> bool:
    """Tells whether a value is a list of messages."""
    is_list = isinstance(value, list | tuple) and len(value) > 0
    return is_list and all(isinstance(message, Mapping) and role in message for message in value)


def _sharegpt(messages: Iterable[Row]) -> list[Columns]:
    return [{"role": _ROLES.get(turn["from"], turn["from"]), "content": turn["value"]} for turn in messages]


def _from_json(column: str, value: Any) -> Any:
    """Returns the messages that a text holds as JSON, or the list of a column that holds lists; else the value."""
    if column == "responses" and isinstance(value, list | tuple):
        items = [_from_json("response", item) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        parsed = json.loads(value)
    except ValueError:
        return value
    if column in ("responses", "scores", "ranks") and isinstance(parsed, list):
        return _from_json(column, parsed)
    messages = parsed if isinstance(parsed, list) else [parsed]
    return parsed if is_conversation(messages) or is_conversation(messages, "from") else value


# --- readings -----------------------------------------------------------------------------------------------------


def _pair(prompt: Any, better: Any, worse: Any) -> Columns:
    columns: Columns = {} if prompt is None else {"prompt": prompt}
    return columns | {"chosen": _assistant(better), "rejected": _assistant(worse)}


def _winner(prompt: Any, first: Any, second: Any, difference: float) -> Columns:
    """Returns the pair of two responses; the first is better where `difference` is positive, 0 is a tie."""
    better, worse = (second, first) if difference < 0 else (first, second)
    return {**_pair(prompt, better, worse), "tie": difference == 0}


def _texts(title: str, columns: str, others: str = "") -> PublicSchema:
    """Returns a schema of pairs of texts, given the columns of the prompt, the better and the worse response."""
    prompt, better, worse = columns.split()
    return PublicSchema(
        title, f"{columns} {others}", lambda row: _pair(_user(row[prompt]), row[better], row[worse]), _is_text(better)
    )


def _compared(title: str, columns: str, difference: Callable[[Any], float]) -> PublicSchema:
    """Returns a schema of two texts, given the columns of prompt, both responses and what tells the better one."""
    prompt, first, second, verdict = columns.split()
    return PublicSchema(
        title, columns, lambda row: _winner(_user(row[prompt]), row[first], row[second], difference(row[verdict]))
    )


def _listed(title: str, columns: str, text: str, value: str, others: str = "") -> PublicSchema:
    """Returns a schema of several answers with scores or ranks, given the columns of the prompt and of the answers."""
    prompt, answers = columns.split()

    def read(row: Row) -> Columns:
        rated = [answer for answer in row[answers] if answer.get(value) is not None]  # nothing is said of the others
        values, order = [answer[value] for answer in rated], sorted({answer[value] for answer in rated})
        ranks, scores = [order.index(rank) + 1 for rank in values], [float(score) for score in values]
        said = {"ranks": ranks} if value == "rank" else {"scores": scores}
        return {"prompt": _user(row[prompt]), "responses": [_assistant(answer[text]) for answer in rated], **said}

    return PublicSchema(title, f"{columns} {others}", read)


def _is_text(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row[name], str) for name in columns)


def _read_arena(row: Row) -> Columns:
    winner = str(row["winner"])
    if winner not in ("model_a", "model_b", "both_bad") and not winner.startswith("tie"):
        raise ValueError(f"`winner` is {winner!r}")
    return _winner(None, row["conversation_a"], row["conversation_b"], (winner != "model_b") - (winner != "model_a"))


def _read_arena_55k(row: Row) -> Columns:
    def texts(name: str) -> list[str]:
        return [text or "" for text in (json.loads(row[name]) if isinstance(row[name], str) else row[name])]

    def conversation(name: str) -> list[Columns]:
        turns = zip(texts("prompt"), texts(name), strict=True)
        return [message for question, answer in turns for message in (*_user(question), *_assistant(answer))]

    difference = int(row["winner_model_a"]) - int(row["winner_model_b"])
    return _winner(None, conversation("response_a"), conversation("response_b"), difference)


def _begin_with_prompt(row: Row) -> bool | None:
    begin = all(begins_with(row[name], row["prompt"]) for name in ("chosen", "rejected"))
    by_chance = isinstance(row["chosen"], str) and not is_long_enough(row["prompt"])
    return None if begin and by_chance else begin


def _read_whole(row: Row) -> Columns:
    """Reads responses that begin with their prompt so that it is there once; others keep it."""
    prompt, responses = row["prompt"], [row["chosen"], row["rejected"]]
    if isinstance(prompt, str) and is_conversation(responses[0]):
        if not all(begins_with(response, prompt) or response[0]["role"] == "assistant" for response in responses):
            raise ValueError("the responses do not begin with `prompt`")
        better, worse = (text if begins_with(text, prompt) else [*_user(prompt), *text] for text in responses)
        return _pair(None, better, worse)
    better, worse = (text[len(prompt) :] if begins_with(text, prompt) else text for text in responses)
    if isinstance(prompt, str) and _is_transcript(prompt + better) and _is_transcript(prompt + worse):
        return _pair(None, turns_of(prompt + better), turns_of(prompt + worse))
    return {"prompt": prompt, "chosen": better, "rejected": worse}


def _read_dpo(row: Row) -> Columns:
    texts = dict.fromkeys(row[name] for name in ("question", "instruction", "prompt", "input") if row.get(name))
    if not texts:
        raise ValueError("there is no question")
    return _pair(_user("\n".join(texts), row.get("system"), row.get("history") or ()), row["chosen"], row["rejected"])


def _read_openai(row: Row) -> Columns:
    tools = row["input"].get("tools")
    pair = _pair(row["input"]["messages"], row["preferred_output"], row["non_preferred_output"])
    return pair | {"tools": json.dumps(tools) if tools else ""}


def _read_sharegpt(row: Row) -> Columns:
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    return _pair(system + _sharegpt(row["conversations"]), _sharegpt([row["chosen"]]), _sharegpt([row["rejected"]]))


def _read_swift(row: Row) -> Columns:
    messages = list(row["messages"])
    other = row.get("rejected_messages") or [*messages[:-1], *_assistant(row["rejected_response"])]
    return _pair(None, messages, other)


def _read_summaries(row: Row) -> Columns:
    info, (first, second) = row["info"], (summary["text"] for summary in row["summaries"])
    heading = f"SUBREDDIT: r/{info['subreddit']}\nTITLE: {info['title']}\nPOST: " if info.get("post") else ""
    article = info["post"] if info.get("post") else info["article"]
    return _winner(_user(f"{heading}{article}\nTL;DR:"), first, second, 1 - 2 * int(row["choice"]))


def _read_helpsteer(row: Row) -> Columns:
    response, rating = _assistant(row["response"]), float(row["helpfulness"])
    return {"prompt": _user(row["prompt"]), "response": response, "scores": rating}


def _read_reward_bench_2(row: Row) -> Columns:
    responses = [_assistant(text) for text in (*row["chosen"], *row["rejected"])]
    scores = [1.0] * len(row["chosen"]) + [0.0] * len(row["rejected"])
    return {"prompt": _user(row["prompt"]), "responses": responses, "scores": scores}


SCHEMAS: dict[str, PublicSchema] = {
    "ultrafeedback": _listed("UltraFeedback", "instruction completions", "response", "overall_score"),
    "reward_bench": _texts("RewardBench", "prompt chosen rejected", "chosen_model rejected_model subset"),
    "binarized": PublicSchema(
        "UltraFeedback binarized (H4, Argilla), Tulu 3 preferences: responses that begin with their prompt",
        "prompt chosen rejected",
        _read_whole,
        _begin_with_prompt,
        "messages instruction",
    ),
    "ultrafeedback_argilla": _texts(
        "UltraFeedback binarized (Argilla, texts)", "instruction chosen_response rejected_response"
    ),
    "hh": PublicSchema(
        "Anthropic HH",
        "chosen rejected",
        lambda row: _pair(None, turns_of(row["chosen"]), turns_of(row["rejected"])),
        lambda row: _is_transcript(row["chosen"]) and _is_transcript(row["rejected"]) and not row.get("prompt"),
    ),
    "helpsteer2": PublicSchema(
        "HelpSteer and HelpSteer2 (the rating is `helpfulness`)",
        "prompt response helpfulness correctness coherence",
        _read_helpsteer,
    ),
    "helpsteer2_preference": _compared(
        "HelpSteer2 preference", "prompt response_1 response_2 preference_strength", lambda strength: -strength
    ),
    "helpsteer3": _compared(
        "HelpSteer3", "context response1 response2 overall_preference", lambda preference: -preference
    ),
    "nectar": _listed("Nectar", "prompt answers", "answer", "rank", "num_responses"),
    "arena": PublicSchema(
        "Chatbot Arena (33k, 100k, 140k)",
        "model_a model_b winner conversation_a conversation_b",
        _read_arena,
        optional="full_conversation",
    ),
    "arena_55k": PublicSchema(
        "Chatbot Arena (55k)", "prompt response_a response_b winner_model_a winner_model_b", _read_arena_55k
    ),
    "safe_rlhf": _compared(
        "PKU-SafeRLHF (the better response; `safer_response_id` is not read)",
        "prompt response_0 response_1 better_response_id",
        lambda better: 1 - 2 * int(better),
    ),
    "webgpt": PublicSchema(
        "WebGPT comparisons",
        "question answer_0 answer_1 score_0 score_1",
        lambda row: _winner(
            _user(row["question"]["full_text"]), row["answer_0"], row["answer_1"], row["score_0"] - row["score_1"]
        ),
    ),
    "summaries": PublicSchema("summarize-from-feedback comparisons", "info summaries choice", _read_summaries),
    "shp": _compared("SHP", "history human_ref_A human_ref_B labels", lambda first: 2 * int(first) - 1),
    "openai": PublicSchema(
        "OpenAI preference fine-tuning", "input preferred_output non_preferred_output", _read_openai
    ),
    "dpo": PublicSchema(
        "Orca, Alpaca and truthy DPO pairs",
        "chosen rejected",
        _read_dpo,
        lambda row: (
            any(isinstance(row.get(name), str) for name in ("question", "instruction", "system"))
            and _is_text("chosen", "rejected")(row)
            and isinstance(row.get("prompt"), str | None)
        ),
        "question instruction prompt input system history",
    ),
    "sharegpt": PublicSchema(
        "ShareGPT DPO (LLaMA-Factory)",
        "conversations chosen rejected",
        _read_sharegpt,
        lambda row: is_conversation(row["conversations"], "from") and isinstance(row["chosen"], Mapping),
        "system",
    ),
    "continuations": PublicSchema(
        "a conversation beside its two continuations (axolotl `chat_template.default`)",
        "messages chosen rejected",
        lambda row: _pair(row["messages"], row["chosen"], row["rejected"]),
        lambda row: is_conversation(row["messages"]) and isinstance(row["chosen"], Mapping),
    ),
    "swift": PublicSchema(
        "ms-swift (`rejected_messages` or `rejected_response`)",
        "messages",
        _read_swift,
        lambda row: bool(row.get("rejected_messages") or row.get("rejected_response")),
        "rejected_messages rejected_response",
    ),
    "nemo": _listed("NeMo RL preferences", "context completions", "completion", "rank"),
    "kto": PublicSchema(
        "KTO",
        "prompt completion label",
        lambda row: {"prompt": row["prompt"], "response": row["completion"], "label": row["label"]},
    ),
    "stack_exchange": _listed("Stack Exchange preferences", "question answers", "text", "pm_score", "qid"),
    "stack_exchange_paired": _texts("Stack Exchange pairs", "question response_j response_k"),
    "reward_bench_2": PublicSchema(
        "RewardBench 2",
        "prompt chosen rejected",
        _read_reward_bench_2,
        lambda row: isinstance(row["chosen"], list) and isinstance(row["rejected"][0], str),
    ),
    "json": PublicSchema(
        "conversations written as JSON text",
        "",
        lambda row: {name: value for name, value in row.items() if name != "prompt" or value},
        lambda row: None,  # see `choose_schema`: the texts are parsed before any schema sees them
        " ".join((*RAW_COLUMNS, "completion", "messages")),
    ),
}
"""Every schema by its name; the first whose columns are there and that matches the first rows is taken."""
_BESIDE = ("tools", "chat_template_kwargs", *PAIR_COLUMNS, "weight")  # read beside those of any schema


# --- choosing -----------------------------------------------------------------------------------------------------

# Columns that hold a part of a conversation in the data sets of others.
_TEXT_COLUMNS = (
    *("question", "instruction", "input", "query", "system", "system_prompt", "user_prompt", "context", "history"),
    *("conversation", "conversations", "messages", "dialogue", "dialog", "turns", "passage", "article", "prompt"),
    *("human", "post", "problem", "request", "user_input", "user_message", "user_query"),
)
_MEDIA_COLUMNS = ("image", "images", "audio", "audios", "video", "videos")
_RESPONSES = {"chosen", "rejected", "responses", "response", "completion", "messages"}


def find_schema(
    column_names: Iterable[str], rows: Sequence[Row], name: str = "auto", dataset_name: str | None = None
) -> str | None:
    """Returns what `choose_schema` does, and raises what `check_unread` does, unless the name is ``"none"``."""
    names = list(column_names)
    found = choose_schema(names, rows, name)
    if name != "none":
        check_unread(names, rows, found, dataset_name)
    return found


def choose_schema(column_names: Iterable[str], rows: Sequence[Row], name: str = "auto") -> str | None:
    """Returns the schema of that name, or with ``"auto"`` the first that fits; None: rows are read as they are.

    Raises `ConfigError` if there is no such schema, or the data lacks columns that it needs.

    >>> choose_schema(["question", "chosen", "rejected"], [{"question": "2+2", "chosen": "4", "rejected": "5"}])
    'dpo'
    """
    names = set(column_names)
    if name not in ("auto", "none"):
        if name not in SCHEMAS:
            fix = f"Use auto, none or one of: {', '.join(SCHEMAS)}."
            raise ConfigError(f"{name!r} is no schema", field="schema", fix=fix)
        missing = [column for column in SCHEMAS[name].columns.split() if column not in names]
        if missing:
            message = f"{name!r} needs the columns {quoted(missing)}; the data has {quoted(sorted(names))}"
            raise ConfigError(message, field="schema", fix="Use another schema, or `auto`.")
        return name
    if name == "none" or not rows or is_tokenized(names):
        return None
    parsed = [{column: _from_json(column, value) for column, value in row.items()} for row in rows]
    for key, schema in SCHEMAS.items():
        if names >= set(schema.columns.split()):
            verdicts = [_matches(schema, row) for row in parsed]
            if True in verdicts and False not in verdicts:
                return key
    for column in SCHEMAS["json"].reads & names:
        pairs = [(row.get(column), new.get(column)) for row, new in zip(rows, parsed, strict=True)]
        if any(old is not new for old, new in pairs) and all(old is None or old is not new for old, new in pairs):
            return "json"
    return None


def _matches(schema: PublicSchema, row: Row) -> bool | None:
    try:
        return row.keys() >= set(schema.columns.split()) and schema.matches(row)
    except (LookupError, TypeError, AttributeError):
        return False


def check_unread(
    column_names: Iterable[str], rows: Sequence[Row], name: str | None, dataset_name: str | None = None
) -> None:
    """Raises `DataError` for a column that looks like a part of the conversation and that nothing reads.

    What it holds may stand in the columns that are read: then nothing is lost.
    """
    names = list(column_names)
    responses = _RESPONSES & set(names)
    if is_tokenized(names) or (name is None and not responses):
        return
    read = {*RAW_COLUMNS, "completion"} if name is None else SCHEMAS[name].reads

    def is_unread(row: Row, column: str) -> bool:
        # Messages without a response beside them are the whole conversation, which is scored.
        scored = name is None and column == "messages" and all(row.get(key) is None for key in responses - {column})
        return not scored and _says_more(row, column, read)

    unread = [column for column in names if column not in read and any(is_unread(row, column) for row in rows)]
    if not unread:
        return
    fix = 'Pass `schema="none"` (`--schema none`) to ignore what they hold.'
    if "prompt" not in names and name is None:
        fix = f"Rename `{unread[0]}` to `prompt` if it is what the responses answer. {fix}"
    else:
        fix = f"Put it into `prompt`, as text or as messages. {fix}"
    looks = "looks like a part of the conversation, and nothing reads it"
    looks = looks if len(unread) == 1 else "look like parts of the conversation, and nothing reads them"
    message = f"{quoted(unread)} {looks}"
    raise DataError(message, field=unread[0], dataset=dataset_name, fix=fix)


def _says_more(row: Row, column: str, read: Iterable[str]) -> bool:
    value = row.get(column)
    if column.lower() in _MEDIA_COLUMNS:
        return value not in (None, "", [], {})
    value = _from_json(column, value)
    if not (column.lower() in _TEXT_COLUMNS or is_conversation(value) or is_conversation(value, "from")):
        return False
    read_texts = "\n".join(text for name in read for text in _texts_of(_from_json(name, row.get(name))))
    return any(text not in read_texts for text in _texts_of(value))


def _texts_of(value: Any) -> list[str]:
    """Returns the texts inside a value, without those that name a role."""
    if isinstance(value, str):
        return [value.strip()] if value.strip() else []
    if isinstance(value, Mapping):
        return [text for key, item in value.items() if key not in ("role", "from") for text in _texts_of(item)]
    return [text for item in value for text in _texts_of(item)] if isinstance(value, list | tuple) else []


# --- reading ------------------------------------------------------------------------------------------------------


def read_as(name: str) -> str:
    """Says how the rows of a schema are read."""
    return f"rows are read as {SCHEMAS[name].title} (schema {name})"


def read_row(
    row: Row,
    index: int | None,
    name: str,
    dataset_name: str | None = None,
    features: Mapping[str, Any] | None = None,
) -> Columns:
    """Returns a row of a schema in the columns that Plaudit reads; raises `DataError` where it does not fit.

    The nulls that Arrow filled in are removed; `features`, the types of the columns, tell where there are none.
    """
    schema, features = SCHEMAS[name], features or {}
    names = (column for column in row if column in schema.reads)  # pictures beside them are not decoded
    values = {column: _from_json(column, without_nulls(row[column], features.get(column))) for column in names}
    try:
        return {column: values[column] for column in _BESIDE if column in values} | schema.read(values)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        problem = f"cannot be read as {schema.title} ({type(error).__name__}: {error})"
        fix = f"Correct or drop the row, or choose how rows are read with `--schema` (here {name!r}, or none)."
        raise DataError(problem, row=index, dataset=dataset_name, fix=fix) from error


def read_rows(
    rows: Iterable[Row],
    name: str,
    *,
    dataset_name: str | None = None,
    features: Mapping[str, Any] | None = None,
    first_row: int = 0,
    whole: bool = False,
    errors: bool = False,
) -> Iterator[Any]:
    """Yields rows in the columns that Plaudit reads.

    With `whole`, columns that it does not know stay beside them; with `errors`, a row that does not fit is its error.
    """
    for index, row in enumerate(rows, start=first_row):
        try:
            columns = read_row(row, index, name, dataset_name, features)
        except DataError as error:
            if not errors:
                raise
            yield error
            continue
        yield {**{key: value for key, value in row.items() if whole and key not in RAW_COLUMNS}, **columns}


def rows_to_score(rows: Iterable[Any], schema: str = "auto") -> Iterable[Any]:
    """Returns rows of any form in the columns that Plaudit reads: those of a schema as `read_rows`, others as given.

    The first row of an iterator decides, and the first `FIRST_ROWS` of rows that can be read again.
    """
    if schema == "none":
        return rows
    if iter(rows) is rows:
        return _iterator_to_score(iter(rows), schema)
    first = list(itertools.islice(rows, FIRST_ROWS))
    if not first or not all(isinstance(row, Mapping) and "response_ids" not in row for row in first):
        return rows
    found = find_schema(dict.fromkeys(name for row in first for name in row), first, schema)
    return rows if found is None else read_rows(rows, found, features=getattr(rows, "features", None), errors=True)


def _iterator_to_score(rows: Iterator[Any], schema: str) -> Iterator[Any]:
    first = list(itertools.islice(rows, 1))  # no sooner than somebody asks for it
    read = rows_to_score(first, schema)
    if read is first:
        yield from itertools.chain(first, rows)
        return
    found = find_schema(first[0], first, schema)
    yield from read_rows(itertools.chain(first, rows), str(found), errors=True)
