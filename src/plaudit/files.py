"""Writes files atomically: a reader, or a process that was killed, finds a whole file or none."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from plaudit.errors import ConfigError


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which takes the name when the block ends without an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def refuse_existing(path: str | Path, overwrite: bool) -> None:
    """Raises `ConfigError` if a file exists and may not be overwritten."""
    if Path(path).is_dir():
        raise ConfigError(f"{str(path)!r} is a folder", fix="Pass a file name.")
    if os.path.lexists(path) and not overwrite:
        fix = "Use another file name, or pass `--overwrite` to replace it."
        raise ConfigError(f"{str(path)!r} exists", fix=fix)


def write_atomically(path: Path, text: str) -> None:
    """Writes a small file, and returns once it is on disk."""
    with appearing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def rename(temporary: Path, path: Path) -> None:
    """Renames a complete file, and syncs its folder so that the name survives a loss of power."""
    temporary.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
