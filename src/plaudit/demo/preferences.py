"""Loads the bundled preferences: short pairs on everyday topics, written for this package and split by topic."""

import importlib.resources
import json
from typing import Any, Literal

from datasets import Dataset, Features, List, Value

from plaudit.errors import ConfigError

_CALL = {"type": Value("string"), "function": {"name": Value("string"), "arguments": Value("string")}}
_MESSAGES = List({"role": Value("string"), "content": Value("string"), "tool_calls": List(_CALL)})
# Declared, so that a split without tool rows has the same columns as one with them.
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
    """Loads the bundled preferences as conversational rows with an explicit prompt.

    ``prompt``, ``chosen`` and ``rejected`` are lists of messages with ``role``, ``content`` and ``tool_calls`` (None,
    or calls whose arguments are JSON strings). ``tools`` is None, or a list of function schemas as a JSON string.
    ``topic`` and ``skill`` classify a row; no topic is in both splits.

    Args:
        split: ``"train"``, ``"test"``, or None for all rows.

    Raises:
        ConfigError: There is no such split.

    >>> rows = load_preferences("test")
    >>> rows[0]["prompt"][-1]["role"] in ("user", "tool")
    True
    """
    if split not in ("train", "test", None):
        raise ConfigError(f"the bundled preferences have no split {split!r}", fix='Use "train", "test" or None.')
    lines = importlib.resources.files("plaudit.demo").joinpath("preferences.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in lines.splitlines()]
    return Dataset.from_list(
        [
            {name: _with_tool_calls(row.get(name)) for name in _FEATURES}
            for row in rows
            if split is None or row["split"] == split
        ],
        features=_FEATURES,
    )


def _with_tool_calls(value: Any) -> Any:
    return [{"tool_calls": None, **message} for message in value] if isinstance(value, list) else value
