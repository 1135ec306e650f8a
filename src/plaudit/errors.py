"""The errors Plaudit raises on purpose: each says what is wrong, where, and how to mend it."""


class PlauditError(Exception):
    """Base of every error that Plaudit raises on purpose."""


class ConfigError(PlauditError, ValueError):
    """A setting, or a combination of model, tokenizer and settings, that cannot work.

    Args:
        message: What is wrong.
        fix: What the user can do about it.
    """

    def __init__(self, message: str, *, fix: str | None = None) -> None:
        self.fix = fix
        super().__init__(message if fix is None else f"{message}\n  How to mend it: {fix}")


class DataError(PlauditError, ValueError):
    """A row that cannot be read as a preference, or a data set that cannot be used.

    Args:
        message: What is wrong with the value.
        row: Index of the row in the data set as it was passed in, counted from 0.
        field: Name of the column (with the path inside it, such as ``chosen[1].content``).
        dataset: Which data set it is: ``"train"``, ``"eval"``, a file name.
        fix: What the user can do about it.

    >>> print(DataError("is null", row=17, field="rejected", dataset="train", fix="Drop the row."))
    train data set, row 17, field `rejected`: is null
      How to mend it: Drop the row.
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
        place = ", ".join(
            part
            for part in (
                f"{dataset} data set" if dataset is not None else None,
                f"row {row}" if row is not None else None,
                f"field `{field}`" if field is not None else None,
            )
            if part is not None
        )
        text = f"{place}: {message}" if place else message
        super().__init__(text if fix is None else f"{text}\n  How to mend it: {fix}")

    def __reduce__(self):  # data sets are prepared in worker processes: the error must survive pickling
        return (_rebuild_data_error, (self.message, self.row, self.field, self.dataset, self.fix))


def _rebuild_data_error(message, row, field, dataset, fix) -> DataError:
    return DataError(message, row=row, field=field, dataset=dataset, fix=fix)
