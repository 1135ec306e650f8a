"""What every command prints with: a console, and log lines on the standard error stream."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator

import datasets
from rich.console import Console
from transformers.utils import logging as transformers_logging


@contextlib.contextmanager
def bars_where_seen() -> Iterator[bool]:
    """Bars on a terminal, none in pipes and files; also those of `datasets` and `transformers`."""
    seen = sys.stderr.isatty()
    of_data = not seen and not datasets.are_progress_bars_disabled()
    of_models = not seen and transformers_logging.is_progress_bar_enabled()
    if of_data:
        datasets.disable_progress_bars()
    if of_models:
        transformers_logging.disable_progress_bar()
    try:
        yield seen
    finally:
        if of_data:
            datasets.enable_progress_bars()
        if of_models:
            transformers_logging.enable_progress_bar()


def make_console() -> Console:
    """A console on the present standard output: tests and pipes replace the stream."""
    return Console(highlight=False, soft_wrap=False)


def say(line: str) -> None:
    """Print one line of progress where log lines go."""
    if _is_main_process():
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def log_lines(at_least: int = logging.INFO) -> Iterator[None]:
    """Show Plaudit's log lines while a command runs; on other processes than the first only warnings.

    Args:
        at_least: Level of the lines to show.
    """
    logger = logging.getLogger("plaudit")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(at_least if _is_main_process() else max(at_least, logging.WARNING))
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: {message}"


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0") or 0) == 0


def duration(seconds: float) -> str:
    """Write a time for people.

    >>> duration(4.21), duration(75), duration(7260)
    ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(amount: float) -> str:
    """Write a number of bytes for people.

    >>> size(2_000), size(538_000_000), size(14.2 * 2**30)
    ('2 KiB', '513 MiB', '14.2 GiB')
    """
    if amount < 2**20:
        return f"{amount / 2**10:.0f} KiB"
    return f"{amount / 2**20:.0f} MiB" if amount < 2**30 else f"{amount / 2**30:.1f} GiB"
