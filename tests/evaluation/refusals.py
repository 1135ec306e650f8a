"""An error that is expected, by its fields and by values in its message."""

from __future__ import annotations

import contextlib

import pytest


@contextlib.contextmanager
def refused(kind, *values, **fields):
    """Expects an error with these fields and a fix, whose texts hold some values, such as a name or a number."""
    with pytest.raises(kind) as caught:
        yield caught
    error = caught.value
    for name, expected in fields.items():
        found = getattr(error, name)
        assert found == expected or (name == "dataset" and str(found).endswith(expected)), f"{name} is {found!r}"
    assert error.fix
    for value in values:
        assert str(value) in str(error), f"{value} is not in {error}"
