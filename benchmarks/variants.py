"""What can be measured: a library and the options in which it differs from the settings that all share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Variant:
    """One side of the comparison.

    Attributes:
        library: ``"reference"``, ``"plaudit"`` or ``"flash-pref"``.
        description: For the help and the result.
        options: Arguments of the library's ``RewardConfig``.
        order: Of the rows. ``"given"``: the order of the file, alike for all. ``"sorted"``: longest rows first, sorted
            before training. ``"own"``: the library's own, drawn afresh each epoch.
        lora: Whether LoRA adapters are trained in place of the whole model.
        pairs: Whether it reads rows of many responses as pairs.
    """

    library: str
    description: str
    options: dict[str, Any] = field(default_factory=dict)
    order: Literal["given", "sorted", "own"] = "given"
    lora: bool = False
    pairs: bool = False


_SHARED: dict[str, Any] = {"batch_layout": "shared_prefix", "gradient_checkpointing": False}
_PADDED: dict[str, Any] = {"batch_layout": "padded", "gradient_checkpointing": False}
_PLAIN: dict[str, Any] = {"gradient_checkpointing": False}
_NO_FILTER: dict[str, Any] = {"logging_nan_inf_filter": False}


def _reference(description: str, *options: dict[str, Any], **fields: Any) -> Variant:
    return Variant("reference", description, {k: v for one in options for k, v in one.items()}, pairs=True, **fields)


def _plaudit(description: str, *options: dict[str, Any], **fields: Any) -> Variant:
    return Variant("plaudit", description, {k: v for one in options for k, v in one.items()}, **fields)


VARIANTS = {
    "reference": _reference("the reference library at its defaults (gradient checkpointing on)"),
    "reference-no-checkpointing": _reference("the reference library without gradient checkpointing", _PLAIN),
    "reference-sorted": _reference(
        "the reference library without gradient checkpointing, its rows sorted by length beforehand",
        _PLAIN,
        order="sorted",
    ),
    "reference-sorted-checkpointing": _reference(
        "the reference library at its defaults, its rows sorted by length beforehand", order="sorted"
    ),
    "reference-no-nan-filter": _reference(
        "as reference-no-checkpointing, without the Trainer's look at each loss for NaN", _PLAIN, _NO_FILTER
    ),
    "reference-lora": _reference("the reference library at its defaults, LoRA on attention projections", lora=True),
    "reference-lora-no-checkpointing": _reference(
        "the reference library without gradient checkpointing, LoRA on attention projections", _PLAIN, lora=True
    ),
    "plaudit": _plaudit("shared prefixes, no gradient checkpointing", _SHARED),
    "plaudit-checkpointing": _plaudit(
        "shared prefixes, gradient checkpointing", _SHARED, {"gradient_checkpointing": True}
    ),
    "plaudit-pairs": _plaudit(
        "shared prefixes, no gradient checkpointing, on the pairs that the reference reads", _SHARED, pairs=True
    ),
    "plaudit-grouped": _plaudit(
        "as plaudit, rows of one prompt in the same batch (group_by_prompt)",
        _SHARED,
        {"group_by_prompt": True, "train_sampling_strategy": "random"},
        order="own",
    ),
    "plaudit-compiled": _plaudit(
        "as plaudit, the model below the head compiled (torch_compile)", _SHARED, {"torch_compile": True}
    ),
    "plaudit-padded": _plaudit("padded rectangles, no gradient checkpointing", _PADDED),
    "plaudit-padded-by-length": _plaudit(
        "padded rectangles of rows of similar length (train_sampling_strategy group_by_length)",
        _PADDED,
        {"train_sampling_strategy": "group_by_length"},
        order="own",
    ),
    "plaudit-no-nan-filter": _plaudit(
        "as plaudit, without the Trainer's look at each loss for NaN", _SHARED, _NO_FILTER
    ),
    "plaudit-lora": _plaudit(
        "shared prefixes, no gradient checkpointing, LoRA on attention projections", _SHARED, lora=True
    ),
    "flash-pref": Variant(
        "flash-pref",
        "flash-pref 0.1.1 with transformers 4.51.3, no gradient checkpointing, attention on padded rectangles",
        _PLAIN,
        pairs=True,
    ),
    "reference-other-rounding": _reference(
        "as reference-no-checkpointing, padded to multiples of 64: the same mathematics, rounded otherwise; "
        "shows how far losses drift apart through rounding alone",
        _PLAIN,
        {"pad_to_multiple_of": 64},
    ),
}

DEFAULT_VARIANTS = (
    "reference",
    "reference-no-checkpointing",
    "plaudit",
    "plaudit-checkpointing",
    "plaudit-padded",
)
