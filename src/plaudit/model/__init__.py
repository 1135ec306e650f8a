"""The reward model: loading, the head that scores, attention for the shared-prefix layout, and files beside it."""

from __future__ import annotations


def find_file(name_or_path: str, file: str, revision: str | None = None) -> str | None:
    """Returns the path of a file in a model's folder or Hub repository; None where there is none."""
    from transformers.utils import cached_file

    try:
        path: str | None = cached_file(
            name_or_path, file, revision=revision, _raise_exceptions_for_missing_entries=False
        )
    except OSError:  # no such folder or repository, or no connection: loading the model reports it
        return None
    return path
