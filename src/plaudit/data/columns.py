"""Names the columns of preference data, and says what is wrong with a data set that lacks one."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Sequence

from plaudit.errors import DataError

RESPONSE_COLUMNS = ("chosen", "rejected")
TOKENIZED_COLUMNS = ("chosen_ids", "rejected_ids")
LEGACY_COLUMNS = {"chosen_input_ids": "chosen_ids", "rejected_input_ids": "rejected_ids"}
RAW_COLUMNS = ("prompt", *RESPONSE_COLUMNS, "tools", "chat_template_kwargs", "margin")
"""Every column that a raw row is read from; others are ignored."""

_SINGLE = "single rated answers: pair a good and a bad answer to the same prompt"
_ALONE = "there is no second answer to compare with"
_NEAR_MISSES = (
    (
        "response_a response_b",
        "put the better one into `chosen`, the other into `rejected`, and leave ties out",
    ),
    ("prompt completion label", _SINGLE),
    ("prompt response label", _SINGLE),
    ("responses scores", "make a row of each pair, with the answer of the higher score in `chosen`"),
    ("prompt completion", _ALONE),
    ("messages", _ALONE),
)

_SYNONYMS = {
    "chosen": ("preferred", "accepted", "winner", "win", "y_w", "response_j", "chosen_response", "better"),
    "rejected": ("dispreferred", "loser", "lose", "y_l", "response_k", "rejected_response", "worse"),
}


def is_tokenized(column_names: Iterable[str]) -> bool:
    """Tell whether rows come as token ids.

    Args:
        column_names: Names of the columns.

    >>> is_tokenized(["chosen_ids", "rejected_ids", "margin"]), is_tokenized(["chosen", "rejected"])
    (True, False)
    """
    names = set(column_names)
    found = names & set(TOKENIZED_COLUMNS)
    # A stray column of ids beside complete raw rows is not meant to be read.
    return len(found) == len(TOKENIZED_COLUMNS) or (bool(found) and not names >= set(RESPONSE_COLUMNS))


def legacy_columns(column_names: Iterable[str]) -> dict[str, str]:
    """Find the columns that older libraries wrote under another name, and warn about them.

    Args:
        column_names: Names of the columns.

    Returns:
        Old name -> new name, for the columns that must be renamed.
    """
    names = set(column_names)
    renames = {old: new for old, new in LEGACY_COLUMNS.items() if old in names and new not in names}
    if renames:
        warnings.warn(
            f"The columns {quoted(renames)} are read as {quoted(renames.values())}. "
            "The old names will not be supported in v1: rename the columns.",
            FutureWarning,
            stacklevel=3,
        )
    return renames


def check_columns(column_names: Iterable[str], dataset_name: str | None = None) -> None:
    """Refuse a data set that lacks a column a preference cannot do without.

    Args:
        column_names: Names of the columns (legacy ones already renamed).
        dataset_name: Which data set it is.

    Raises:
        DataError: A column is missing; the message names it, the columns found, and near misses.
    """
    names = list(column_names)
    wanted = TOKENIZED_COLUMNS if is_tokenized(names) else RESPONSE_COLUMNS
    missing = [name for name in wanted if name not in names]
    if not missing:
        return
    raise DataError(
        f"has no column {quoted(missing)}; its columns are {quoted(names) if names else '(none)'}",
        dataset=dataset_name,
        fix=_column_advice(names, missing),
    )


def _column_advice(names: Sequence[str], missing: Sequence[str]) -> str:
    lowered = {name.lower(): name for name in reversed(names)}
    renames = []
    for column in missing:
        close = [name for name in _SYNONYMS.get(column, ()) if name in lowered]
        close += difflib.get_close_matches(column, list(lowered), n=1, cutoff=0.75)
        if close and lowered[close[0]] not in TOKENIZED_COLUMNS + RESPONSE_COLUMNS:
            renames.append(f"`{lowered[close[0]]}` to `{column}`")
    if renames:
        return f"Rename {' and '.join(renames)} (`dataset.rename_column`), if that is what they hold."
    for columns, advice in _NEAR_MISSES:
        if set(columns.split()) <= set(lowered):
            return f"With {quoted(columns.split())}: {advice}."
    return (
        "Preference data has `chosen` and `rejected` (text, or lists of messages), and optionally `prompt`, "
        "`tools`, `chat_template_kwargs` and `margin`; or token ids in `chosen_ids` and `rejected_ids`."
    )


def quoted(names: Iterable[str]) -> str:
    """Write names as a list of code words.

    Args:
        names: Some names.

    >>> quoted(["chosen", "rejected"])
    '`chosen`, `rejected`'
    """
    return ", ".join(f"`{name}`" for name in names)
