"""The folder of an export: refused where it would harm, written beside its place, and renamed when it is whole."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from transformers.utils import cached_file

from plaudit.errors import ConfigError
from plaudit.scoring.loading import Source

CARRIED = ("plaudit_run.json", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")
"""Files that are copied as they are."""

_WRITTEN_ANEW = (
    *("config.json", "generation_config.json", "README.md", "golden_rows.json", "reward_calibration.json"),
    *("*model*.safetensors", "*model*.safetensors.index.json", "*model*.bin", "*model*.bin.index.json"),
    *("adapter_config.json", "plaudit_export.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab.*", "merges.txt"),
    *("*.model", "*.tiktoken", "*.py", ".*", "__pycache__"),
)
_MODEL_FILES = ("config.json", "adapter_config.json")


def require_place(output: Path, source: Source, *, overwrite: bool) -> None:
    """Refuse an output folder that would destroy something.

    Args:
        output: Where the export is to be.
        source: What is exported.
        overwrite: Whether a model that is there may be replaced.

    Raises:
        ConfigError: It is the source or holds it, exists, or holds something that is no model.
    """
    from_folder = Path(source.name).expanduser()
    if from_folder.is_dir() and from_folder.resolve().is_relative_to(output):
        raise ConfigError(
            f"the output folder {str(output)!r} is that of the model itself, or holds it",
            fix="Name another folder: a model is never exported over itself.",
        )
    if not output.exists():
        return
    if not output.is_dir():
        raise ConfigError(f"{str(output)!r} is a file", fix="Name a folder that does not exist yet.")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise ConfigError(
            f"the folder {str(output)!r} exists", fix="Name another one, or replace it with `overwrite` (--overwrite)."
        )
    if not any((output / name).exists() for name in _MODEL_FILES):
        raise ConfigError(
            f"the folder {str(output)!r} holds something else than a model, which would be deleted",
            fix="Name another folder, or empty this one yourself.",
        )


@contextlib.contextmanager
def new_folder(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write to, which gets its name when all went well, and is removed otherwise.

    Args:
        output: Where it is to be.
        overwrite: Whether what is there may be replaced; it stays until the new one is whole.
    """
    unfinished = output.with_name(f".{output.name}.{os.getpid()}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
        _put_in_place(unfinished, output, overwrite)
    except (OSError, SafetensorError) as error:
        raise ConfigError(
            f"the export cannot be written to {str(output)!r}: {error}",
            fix="Name a folder on a disk with space, where you may write.",
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put_in_place(folder: Path, output: Path, overwrite: bool) -> None:
    if not output.exists() or not any(output.iterdir()) or not overwrite:
        folder.replace(output)  # fails where somebody else has written there meanwhile
        return
    old = output.with_name(f".{output.name}.{os.getpid()}.old")
    output.replace(old)
    try:
        folder.replace(output)
    except OSError:
        old.replace(output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def carry_files(source: Source, folder: Path) -> tuple[str, ...]:
    """Copy what goes along with a model as it is.

    Args:
        source: The model.
        folder: Where to.

    Returns:
        Names of the files.
    """
    carried = []
    for name in CARRIED:
        found = file_of(source, name)
        if found is not None:
            shutil.copyfile(found, folder / name)
            carried.append(name)
    return tuple(carried)


def file_of(source: Source, name: str) -> Path | None:
    """A file beside a model; None where there is none.

    Args:
        source: The model.
        name: Name of the file.
    """
    if not source.has(name):
        return None
    found = cached_file(source.name, name, revision=source.revision)
    return None if found is None else Path(found)


def left_behind(source: Source) -> tuple[str, ...]:
    """What lies in the folder of the source and is neither copied nor written anew; of a model on the Hub nothing.

    Args:
        source: The model.
    """
    folder = Path(source.name).expanduser()
    if not folder.is_dir():
        return ()
    known = (*CARRIED, *_WRITTEN_ANEW)
    return tuple(
        path.name + ("/" if path.is_dir() else "")
        for path in sorted(folder.iterdir())
        if not any(fnmatch.fnmatchcase(path.name, pattern) for pattern in known)
    )
