"""The vocabulary shared by all of Plaudit: what a row is called on its way from data set to reward.

Letters used in shapes everywhere: G examples (groups), N responses, P comparisons, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

Message: TypeAlias = Mapping[str, Any]
"""One chat message: a mapping with ``role`` and ``content`` (and, for tools, ``tool_calls`` and the like)."""

Text: TypeAlias = str | Sequence[Message]
"""Plain text, or a list of chat messages."""


@dataclass(frozen=True)
class PreferenceExample:
    """One row, read: N whole conversations (or texts) and which of them is preferred to which.

    Attributes:
        responses: The N candidates, each *with* its prompt: whole texts, or whole lists of messages.
        comparisons: Pairs ``(better, worse)`` of indices into ``responses``; a pair row has ``((0, 1),)``.
        margin: How much better the better one should be, in reward units (None: not given).
        tools: JSON schemas of the tools that the conversation may call.
        chat_template_kwargs: Extra variables for the chat template.
    """

    responses: tuple[Text, ...]
    comparisons: tuple[tuple[int, int], ...] = ((0, 1),)
    margin: float | None = None
    tools: Sequence[Any] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def conversational(self) -> bool:
        """Whether the responses are chat messages rather than plain text."""
        return not isinstance(self.responses[0], str)


@dataclass(frozen=True)
class TokenizedExample:
    """One row as token ids: what the collators read.

    Attributes:
        response_ids: Token ids of each of the N responses, prompt included.
        comparisons: Pairs ``(better, worse)`` of indices into ``response_ids``.
        margin: Margin in reward units; 0.0 where none was given.
    """

    response_ids: tuple[Sequence[int], ...]
    comparisons: tuple[tuple[int, int], ...] = ((0, 1),)
    margin: float = 0.0


Batch: TypeAlias = dict[str, Any]
"""What a collator returns. The keys are listed in :mod:`plaudit.data.collate`."""
