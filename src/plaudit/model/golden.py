"""Golden rows: a few responses beside a model with the rewards it gave them, so that others can be held to them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from plaudit.errors import ConfigError

FILE_NAME = "golden_rows.json"
FORMAT, VERSION = "plaudit golden rows", 1
_FIX = "Write them anew with `plaudit verify MODEL --rows FILE --save`."


@dataclass(frozen=True)
class GoldenRow:
    """One response with its reward.

    Attributes:
        ids: Its token ids, prompt included.
        reward: What the model's head says, in float32, before any calibration.
        example: Rows with the same number answer the same prompt.
        text: What was tokenised: the conversation as the chat template renders it, or the plain text with its eos
            token (None: the data brought token ids).
        messages: The conversation (None: it was plain text, or token ids).
        tools: JSON schemas of the tools that the conversation may call.
        chat_template_kwargs: Further variables for the chat template.
    """

    ids: tuple[int, ...]
    reward: float
    example: int = 0
    text: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        whole = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in self.ids)
        if not self.ids or not whole:
            raise ConfigError("a golden row has no token ids, or ids that are no whole numbers from 0", fix=_FIX)
        if isinstance(self.reward, bool) or not isinstance(self.reward, int | float) or not math.isfinite(self.reward):
            raise ConfigError(f"the reward of a golden row is {self.reward!r}, not a finite number", fix=_FIX)


@dataclass(frozen=True)
class GoldenRows:
    """A few responses with the rewards that a model gave them when it was saved.

    Attributes:
        rows: The responses.
        dtype: What the rewards were computed in below the head: ``"float32"``, ``"bfloat16"``, ``"float16"``, or
            ``"tf32"`` where matrices were multiplied in it.
        chat_template: Hash of the chat template that rendered the conversations (None: there was none).
        pad_token_id: The padding token of the model.
        how: Where rows and rewards come from, in words.
        versions: Versions of the software that computed the rewards, by name.

    Raises:
        ConfigError: There is no row.

    >>> golden = GoldenRows((GoldenRow((5, 6), 0.5),))
    >>> golden.rescaled(2.0, -1.0).rewards, golden.rescaled(2.0, -1.0).rows[0].ids
    ([0.0], (5, 6))
    """

    rows: tuple[GoldenRow, ...]
    dtype: str = "float32"
    chat_template: str | None = None
    pad_token_id: int | None = None
    how: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            raise ConfigError("there is no golden row", fix=_FIX)

    @property
    def rewards(self) -> list[float]:
        """Reward of each row."""
        return [row.reward for row in self.rows]

    def rescaled(self, scale: float, shift: float) -> GoldenRows:
        """The same rows of a model whose rewards are ``scale`` times as large, plus ``shift``.

        Args:
            scale: Factor of the rewards.
            shift: What is added, in reward units.
        """
        return replace(self, rows=tuple(replace(row, reward=scale * row.reward + shift) for row in self.rows))

    def with_rewards(self, rewards: Sequence[float], dtype: str) -> GoldenRows:
        """The same rows with other rewards.

        Args:
            rewards: One for each row.
            dtype: What they were computed in.
        """
        rows = tuple(replace(row, reward=one) for row, one in zip(self.rows, rewards, strict=True))
        return replace(self, rows=rows, dtype=dtype)

    def save(self, folder: str | Path) -> Path:
        """Write the rows beside a model.

        Args:
            folder: The model's folder.

        Returns:
            The file, `golden_rows.json`.
        """
        path = Path(folder) / FILE_NAME
        values = {"format": FORMAT, "version": VERSION, **asdict(self)}
        # One line a row: token ids on lines of their own would fill pages.
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in values.pop("rows"))
        head = json.dumps(values, ensure_ascii=False, indent=1).removesuffix("\n}")
        # Renamed when it is whole: a process may be killed at any time.
        unfinished = path.with_suffix(".json.part")
        unfinished.write_text(f'{head},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")
        unfinished.replace(path)
        return path


def chat_template_hash(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Hash of a tokenizer's chat template; None where it has none.

    Args:
        tokenizer: The tokenizer.
    """
    template = tokenizer.chat_template
    if not template:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def load_golden_rows(name_or_path: str, revision: str | None = None) -> GoldenRows | None:
    """Read the golden rows beside a model; None where there are none.

    Args:
        name_or_path: The model's folder, or its id on the Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        ConfigError: The file cannot be read, or is something else.
    """
    try:
        found: str | None = cached_file(
            name_or_path, FILE_NAME, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError:  # not on the Hub, or no way there: the model itself says so
        return None
    return None if found is None else read_golden_rows(found)


def read_golden_rows(path: str | Path) -> GoldenRows:
    """Read a file of golden rows.

    Args:
        path: The file.

    Raises:
        ConfigError: The file cannot be read, or is something else.
    """
    try:
        values: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error})", fix=_FIX) from error
    if not isinstance(values, dict) or (values.pop("format", None), values.pop("version", None)) != (FORMAT, VERSION):
        raise ConfigError(f"{path} holds no golden rows of version {VERSION}", fix=_FIX)
    try:
        rows = tuple(GoldenRow(**{**row, "ids": tuple(row["ids"])}) for row in values.pop("rows"))
        return GoldenRows(rows, **values)
    except (TypeError, KeyError) as error:  # fields that are missing, unknown, or of another kind
        raise ConfigError(f"{path} holds no golden rows of version {VERSION} ({error})", fix=_FIX) from error
