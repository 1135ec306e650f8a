"""The table of settings in a command's help, made from the dataclasses that declare them."""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.table import Table
from rich.text import Text


def settings_table(fields: Sequence[dataclasses.Field[Any]], hints: Mapping[str, Any]) -> Table:
    """Names, values, explanations and defaults of some settings.

    Args:
        fields: Fields of a dataclass; the explanation is the `help` of their metadata.
        hints: The type of each, by name.
    """
    table = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
    table.add_column(no_wrap=True, max_width=44)
    table.add_column(overflow="fold")
    for one in fields:
        option = Text(f"--{one.name}", style="cyan").append(f" {_value_name(hints[one.name])}", style="dim")
        text = " ".join(str(one.metadata.get("help", "")).replace("%%", "%").split())
        choices = choices_of(one, hints[one.name])
        if choices:
            text += f" Choices: {', '.join(map(str, choices))}."
        default = _default_of(one)
        table.add_row(option, Text(f"{text} [{default}]" if default else text))
    return table


def options_of(hint: Any) -> tuple[Any, ...]:
    """The members of a union of types, or the one type.

    >>> options_of(int | None)
    (<class 'int'>, <class 'NoneType'>)
    """
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def choices_of(one: dataclasses.Field[Any], hint: Any) -> list[Any]:
    """The values that a setting may have; none where it may have any.

    Args:
        one: The field.
        hint: Its type.
    """
    if one.metadata.get("choices"):
        return list(one.metadata["choices"])
    for option in options_of(hint):
        if isinstance(option, type) and issubclass(option, enum.Enum):
            return [str(member.value) for member in option]
        if typing.get_origin(option) is Literal:
            return [str(value) for value in typing.get_args(option)]
    return []


def _value_name(hint: Any) -> str:
    names = {int: "N", float: "X", str: "TEXT", bool: "", dict: "JSON", list: "TEXT ..."}
    options = [typing.get_origin(one) or one for one in options_of(hint) if one is not type(None)]
    for kind in (dict, list, bool, float, int, str):
        if kind in options:
            return names[kind]
    return "NAME"


def _default_of(one: dataclasses.Field[Any]) -> str:
    default = one.default
    if one.default_factory is not dataclasses.MISSING:
        default = one.default_factory()
    if default is dataclasses.MISSING or default is None or default == "" or default == []:
        return ""
    return str(default.value if isinstance(default, enum.Enum) else default)
