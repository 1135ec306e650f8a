"""What can be measured: a library and the options in which it differs from the settings that all share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One side of the comparison.

    Attributes:
        library: ``"reference"`` or ``"plaudit"``.
        description: For the help and the result.
        options: Arguments of the library's ``RewardConfig``.
    """

    library: str
    description: str
    options: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "reference": Variant("reference", "the reference library at its defaults (gradient checkpointing on)"),
    "reference-no-checkpointing": Variant(
        "reference", "the reference library without gradient checkpointing", {"gradient_checkpointing": False}
    ),
    "plaudit": Variant(
        "plaudit",
        "shared prefixes, no gradient checkpointing",
        {"batch_layout": "shared_prefix", "gradient_checkpointing": False},
    ),
    "plaudit-checkpointing": Variant(
        "plaudit",
        "shared prefixes, gradient checkpointing",
        {"batch_layout": "shared_prefix", "gradient_checkpointing": True},
    ),
    "plaudit-padded": Variant(
        "plaudit",
        "padded rectangles, no gradient checkpointing",
        {"batch_layout": "padded", "gradient_checkpointing": False},
    ),
    "reference-other-rounding": Variant(
        "reference",
        "as reference-no-checkpointing, padded to multiples of 64: the same mathematics, rounded otherwise; "
        "shows how far losses drift apart through rounding alone",
        {"gradient_checkpointing": False, "pad_to_multiple_of": 64},
    ),
}

DEFAULT_VARIANTS = (
    "reference",
    "reference-no-checkpointing",
    "plaudit",
    "plaudit-checkpointing",
    "plaudit-padded",
)
