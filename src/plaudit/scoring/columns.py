"""The columns that rewards are written to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from datasets import Features, List, Value

from plaudit.data.columns import quoted
from plaudit.errors import ConfigError, DataError
from plaudit.scoring.rows import Shape

_PAIR = ("chosen", "rejected")
_BESIDE = ("spread", "lower")


@dataclass(frozen=True)
class RewardColumns:
    """Where the rewards of a row go.

    Attributes:
        name: A number for one response, a list for several; pairs have ``chosen_<name>`` and ``rejected_<name>``.
        overwrite: Whether a column of that name may be replaced.
        uncertainty: Whether ``<name>_spread`` and ``<name>_lower`` go beside them; pairs have those of their margin, as
            ``<name>_margin_spread`` and ``<name>_margin_lower``.

    >>> RewardColumns("reward").values("pair", [0.5, -1.0], ["pair"])
    {'chosen_reward': 0.5, 'rejected_reward': -1.0}
    """

    name: str
    overwrite: bool = False
    uncertainty: bool = False

    def of(self, shape: Shape) -> list[str]:
        """Columns for rows of one shape.

        Args:
            shape: That of the rewards of a row.
        """
        rewards = [f"{one}_{self.name}" for one in _PAIR] if shape == "pair" else [self.name]
        if not self.uncertainty:
            return rewards
        about = f"{self.name}_margin" if shape == "pair" else self.name
        return [*rewards, *(f"{about}_{one}" for one in _BESIDE)]

    def names(self, shapes: Iterable[Shape]) -> dict[str, Any]:
        """All columns, with their types as `datasets` names them.

        Args:
            shapes: The shapes that rows have.
        """
        number = Value("float64")
        return {name: List(number) if shape == "list" else number for shape in shapes for name in self.of(shape)}

    def values(self, shape: Shape, score: Any, shapes: Sequence[Shape], beside: Sequence[Any] = ()) -> dict[str, Any]:
        """What a row gets.

        Args:
            shape: Shape of its rewards.
            score: Its rewards (None: it could not be scored).
            shapes: The shapes that rows have. A row that says nothing has none of them, and is null in all columns.
            beside: Spread and lower bound, where they are written.
        """
        if score is None:
            return dict.fromkeys(self.of(shape) if shape in shapes else self.names(shapes))
        return dict(zip(self.of(shape), [*(score if shape == "pair" else [score]), *beside], strict=True))

    def check(self, row: Mapping[str, Any], shape: Shape, number: int) -> None:
        """Refuse a row that has such a column already.

        Args:
            row: Its columns.
            shape: Shape of its rewards.
            number: Its number.

        Raises:
            DataError: It has one, and that may not be replaced.
        """
        there = [] if self.overwrite else [name for name in self.of(shape) if name in row]
        if there:
            fix = "Name another with --column, or replace it with --overwrite-column."
            raise DataError("is there already", row=number, field=there[0], fix=fix)

    def require_one_type(self, shapes: Sequence[Shape]) -> None:
        """Refuse to write numbers and lists into one column of Parquet.

        Args:
            shapes: The shapes that rows have.

        Raises:
            ConfigError: Some rows have one response, others several.
        """
        if {"one", "list"} <= set(shapes):
            fix = "Write JSON lines, or score them as two files."
            raise ConfigError(f"{quoted([self.name])} would hold numbers and lists, which Parquet cannot", fix=fix)


def add_to_table(table: pa.Table, names: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] = ()) -> pa.Table:
    """A table with more columns, or with columns replaced where they are.

    Args:
        table: It; its own columns keep their types.
        names: Names and types of the columns, as `datasets` names them.
        rows: Values of the columns.
    """
    for name, feature in names.items():
        values = pa.array([row.get(name) for row in rows], type=Features({name: feature}).arrow_schema.field(0).type)
        place = table.schema.get_field_index(name)
        table = table.append_column(name, values) if place < 0 else table.set_column(place, name, values)
    return table.replace_schema_metadata(metadata_with(table.schema.metadata, names))


def metadata_with(
    metadata: Mapping[bytes, bytes] | None, names: Mapping[str, Any], without: Iterable[str] = ()
) -> dict[bytes, bytes] | None:
    """Metadata of a table whose columns change: `datasets` keeps its own types there, and `pandas` its index.

    Args:
        metadata: What the table has.
        names: Names and types of columns that are new or replaced.
        without: Names of columns that go.
    """
    if metadata is None or b"huggingface" not in metadata:
        return None if metadata is None else dict(metadata)
    known = Features.from_arrow_schema(pa.schema([], metadata=dict(metadata)))
    features = Features({**{name: one for name, one in known.items() if name not in set(without)}, **names})
    return {**metadata, b"huggingface": features.arrow_schema.metadata[b"huggingface"]}
