"""Which checkpoints of a run are whole: one whose process was killed while writing it must not be resumed from."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME

from plaudit.errors import ConfigError

logger = logging.getLogger("plaudit")


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the Trainer's state is the last file it writes."""
    try:
        return "global_step" in json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def newest_complete_checkpoint(run_folder: str | os.PathLike[str]) -> Path:
    """The checkpoint to resume a run from.

    Args:
        run_folder: Folder with ``checkpoint-<step>`` folders.

    Raises:
        ConfigError: If there is none that is complete.
    """
    folder = Path(run_folder)
    found = sorted(
        (int(match[1]), path)
        for path in (folder.iterdir() if folder.is_dir() else ())
        if path.is_dir() and (match := re.fullmatch(r"checkpoint-(\d+)", path.name))
    )
    for _, checkpoint in reversed(found):
        if is_complete(checkpoint):
            return checkpoint
        logger.warning("%s was not written to its end: it is passed over.", checkpoint)
    raise ConfigError(
        f"there is no complete checkpoint in {str(folder)!r}",
        fix="Name a checkpoint folder in `resume_from_checkpoint`, or start from the beginning.",
    )


def mark_incomplete(checkpoint: str | os.PathLike[str]) -> None:
    """Take the mark of completeness from a checkpoint that is about to be written again."""
    (Path(checkpoint) / TRAINER_STATE_NAME).unlink(missing_ok=True)
