"""The bundled preferences: short pairs over everyday topics, written for this package, split by topic."""

import importlib.resources
import json
from typing import Any, Literal

from datasets import Dataset, Features, List, Value

from plaudit.errors import ConfigError

_CALL = {"type": Value("string"), "function": {"name": Value("string"), "arguments": Value("string")}}
_MESSAGES = List({"role": Value("string"), "content": Value("string"), "tool_calls": List(_CALL)})
# Written down, so that a split without tool rows has the same columns as one with them.
_FEATURES = Features(
    {
        "topic": Value("string"),
        "skill": Value("string"),
        "split": Value("string"),
        "prompt": _MESSAGES,
        "chosen": _MESSAGES,
        "rejected": _MESSAGES,
        "tools": Value("string"),
    }
)


def load_preferences(split: Literal["train", "test"] | None = None) -> Dataset:
    """Load the bundled preferences as conversational rows with an explicit prompt.

    The columns ``prompt``, ``chosen`` and ``rejected`` are lists of messages (``role``, ``content`` and
    ``tool_calls``, which is None where a message has none; call arguments are JSON strings), ``tools`` is a
    list of function schemas as a JSON string, or None, ``topic`` and ``skill`` say what a row is about.
    No topic is in both splits.

    Args:
        split: ``"train"``, ``"test"``, or None for all rows.

    Raises:
        ConfigError: If there is no such split.

    >>> rows = load_preferences("test")
    >>> rows[0]["prompt"][-1]["role"] in ("user", "tool")
    True
    """
    if split not in ("train", "test", None):
        raise ConfigError(f"the bundled preferences have no split {split!r}", fix='use "train", "test" or None')
    lines = importlib.resources.files("plaudit.demo").joinpath("preferences.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    return Dataset.from_list(
        [_with_all_keys(row) for row in rows if split is None or row["split"] == split], features=_FEATURES
    )


def _with_all_keys(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _full(row.get(name)) for name in _FEATURES}


def _full(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    return [{"tool_calls": None, **message} for message in value]
