"""Golden rows: a few responses beside a model with the rewards it gave them, against which servers are verified."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from plaudit.errors import ConfigError
from plaudit.files import write_atomically
from plaudit.model import find_file

FILE_NAME = "golden_rows.json"
FORMAT, VERSION = "plaudit golden rows", 1
_FIX = "Write them anew with `plaudit verify MODEL --rows FILE --save`."


@dataclass(frozen=True)
class GoldenRow:
    """One response with its reward."""

    ids: tuple[int, ...]  # its token ids, prompt included
    reward: float  # the model's output in float32, before any calibration
    example: int = 0  # rows with the same number have the same prompt
    text: str | None = None  # what was tokenised: the rendered conversation, or plain text with its eos token
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.ids or any(isinstance(i, bool) or not isinstance(i, int) or i < 0 for i in self.ids):
            raise ConfigError("a golden row has no token ids, or ids that are not whole numbers from 0", fix=_FIX)
        if isinstance(self.reward, bool) or not isinstance(self.reward, int | float) or not math.isfinite(self.reward):
            raise ConfigError(f"the reward of a golden row is {self.reward!r}, not a finite number", fix=_FIX)


@dataclass(frozen=True)
class GoldenRows:
    """A few responses with the rewards that a model gave them when it was saved.

    >>> golden = GoldenRows((GoldenRow((5, 6), 0.5),))
    >>> golden.rescaled(2.0, -1.0).rewards, golden.rescaled(2.0, -1.0).rows[0].ids
    ([0.0], (5, 6))
    """

    rows: tuple[GoldenRow, ...]
    dtype: str = "float32"  # of the model below the head; "tf32" where matrices were multiplied in it
    chat_template: str | None = None  # hash of the chat template that rendered the conversations
    pad_token_id: int | None = None
    how: str = ""  # where rows and rewards come from, in words
    versions: Mapping[str, str] = field(default_factory=dict)  # of the software that computed the rewards

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError("there is no golden row", fix=_FIX)

    @property
    def rewards(self) -> list[float]:
        """Reward of each row."""
        return [row.reward for row in self.rows]

    def rescaled(self, scale: float, shift: float) -> GoldenRows:
        """Returns the rows of a model whose rewards are ``scale`` times as large, plus ``shift``."""
        return replace(self, rows=tuple(replace(row, reward=scale * row.reward + shift) for row in self.rows))

    def with_rewards(self, rewards: Sequence[float], dtype: str) -> GoldenRows:
        """Returns the same rows with rewards that were computed in another dtype."""
        rows = tuple(replace(row, reward=reward) for row, reward in zip(self.rows, rewards, strict=True))
        return replace(self, rows=rows, dtype=dtype)

    def save(self, folder: str | Path) -> Path:
        """Writes `golden_rows.json` into a model's folder and returns its path."""
        path = Path(folder) / FILE_NAME
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        # One line per row: token ids on lines of their own would fill pages.
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in values.pop("rows"))
        head = json.dumps(values, ensure_ascii=False, indent=1).removesuffix("\n}")
        write_atomically(path, f'{head},\n "rows": [\n{rows}\n ]\n}}\n')
        return path


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns the hash of a tokenizer's chat template; None where it has none."""
    template = tokenizer.chat_template
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_golden_rows(name_or_path: str, revision: str | None = None) -> GoldenRows | None:
    """Reads the golden rows beside a model; None where there are none."""
    path = find_file(name_or_path, FILE_NAME, revision)
    return None if path is None else read_golden_rows(path)


def read_golden_rows(path: str | Path) -> GoldenRows:
    """Reads a file of golden rows; raises `ConfigError` where it cannot be read or is something else."""
    try:
        values: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error})", fix=_FIX) from error
    if not isinstance(values, dict) or (values.pop("format", None), values.pop("version", None)) != (FORMAT, VERSION):
        raise ConfigError(f"{path} holds no golden rows of version {VERSION}", fix=_FIX)
    try:
        rows = tuple(GoldenRow(**{**row, "ids": tuple(row["ids"])}) for row in values.pop("rows"))
        return GoldenRows(rows, **values)
    except (TypeError, KeyError) as error:  # fields that are missing, unknown, or of another type
        raise ConfigError(f"{path} holds no golden rows of version {VERSION} ({error})", fix=_FIX) from error
