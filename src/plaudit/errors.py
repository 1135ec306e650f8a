"""The errors that Plaudit raises on purpose. Each says what is wrong, where, and how to fix it."""

from __future__ import annotations

import json
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str], otherwise: str, prefix: str = "") -> str:
    """Returns a fix that names the nearest of the known names, or another fix where none is near."""
    import difflib  # here: it is needed only for a misspelled name

    close = difflib.get_close_matches(name, list(names), n=1)
    return f"Did you mean `{prefix}{close[0]}`?" if close else otherwise


class PlauditError(Exception):
    """Base of every error that Plaudit raises on purpose.

    Args:
        message: What is wrong.
        row: Index of the row in the data set as it was passed in, counted from 0.
        field: Name of the column, with the path inside it (such as ``chosen[1].content``), or of the setting.
        dataset: Which data set: ``"train"``, ``"eval"``, a file name.
        fix: What the user can do about it.

    All arguments are attributes. ``summary`` is the place and the message without the fix; ``str()`` adds the fix.

    >>> error = DataError("is null", row=17, field="rejected", dataset="train", fix="Remove the row.")
    >>> error.summary
    'train data set, row 17, field `rejected`: is null'
    >>> print(error)
    train data set, row 17, field `rejected`: is null
      Fix: Remove the row.
    """

    def __init__(
        self,
        message: str,
        *,
        row: int | None = None,
        field: str | None = None,
        dataset: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.message, self.row, self.field, self.dataset, self.fix = message, row, field, dataset, fix
        super().__init__(self.summary if fix is None else f"{self.summary}\n  Fix: {fix}")

    @property
    def summary(self) -> str:
        """Place and message, without the fix."""
        is_named = self.field is None or self.message.startswith(f"`{self.field}`")  # as in "`port` is 99999"
        parts = [
            *([f"{self.dataset} data set"] if self.dataset is not None else []),
            *([f"row {self.row}"] if self.row is not None else []),
            *([] if is_named else [f"field `{self.field}`"]),
        ]
        return f"{', '.join(parts)}: {self.message}" if parts else self.message


class ConfigError(PlauditError, ValueError):
    """A setting, or a combination of model, tokenizer and settings, that cannot work."""


class DataError(PlauditError, ValueError):
    """A row that cannot be read as a preference, or a data set that cannot be used."""


class WorkerError(DataError):
    """An error of a dataloader worker, which torch makes anew in the main process from the text of its traceback."""

    def __init__(self, text: str) -> None:
        self._dumped = text.strip().rpartition("\n")[2].removeprefix(f"{__name__}.{type(self).__name__}: ")
        self._in_worker = self._dumped == text
        message, row, field, dataset, fix = json.loads(self._dumped)
        super().__init__(message, row=row, field=field, dataset=dataset, fix=fix)

    def __str__(self) -> str:
        return self._dumped if self._in_worker else super().__str__()


def as_raised_in_worker(error: DataError) -> DataError:
    """Returns the error to raise: in a dataloader worker, one that keeps its place and its fix on the way out."""
    from torch.utils.data import get_worker_info  # here: the errors themselves need no torch

    if get_worker_info() is None:
        return error
    return WorkerError(json.dumps([error.message, error.row, error.field, error.dataset, error.fix]))
