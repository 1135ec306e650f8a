"""Output of the commands: a console, log lines on standard error, progress bars."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from rich.console import Console


@contextlib.contextmanager
def bars_where_seen(hide: bool = False) -> Iterator[bool]:
    """Hides the bars of `datasets` and `transformers` unless standard error is a terminal; yields whether it is."""
    import datasets  # here, because it is slow to import and --help needs none of it
    from transformers.utils import logging as transformers_logging

    is_terminal = sys.stderr.isatty()
    with contextlib.ExitStack() as stack:
        if (hide or not is_terminal) and not datasets.are_progress_bars_disabled():
            datasets.disable_progress_bars()
            stack.callback(datasets.enable_progress_bars)
        if (hide or not is_terminal) and transformers_logging.is_progress_bar_enabled():
            transformers_logging.disable_progress_bar()
            stack.callback(transformers_logging.enable_progress_bar)
        yield is_terminal


def quiet_libraries() -> None:
    """Hides what libraries say that is not for users, and progress bars of less than a second or of no terminal."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module="plaudit")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    logging.getLogger("transformers.trainer_utils").setLevel(logging.WARNING)  # settings that a resumed run changes
    os.environ.setdefault(*(("TQDM_DELAY", "1") if sys.stderr.isatty() else ("TQDM_DISABLE", "1")))


def make_console() -> Console:
    """Returns a console on the current standard output, which tests and pipes replace."""
    return Console(highlight=False, soft_wrap=False)


def say(line: str) -> None:
    """Prints a line of progress on standard error, in the main process only."""
    if is_main_process():
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def log_lines(level: int = logging.INFO) -> Iterator[None]:
    """Shows Plaudit's log lines from `level` while a command runs; other processes show only warnings."""
    logger = logging.getLogger("plaudit")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    before, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(level if is_main_process() else max(level, logging.WARNING))
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        logger.propagate = propagate


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        message = super().format(record)
        return message if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: {message}"


def is_main_process() -> bool:
    """Whether this is the only process, or the first of several."""
    return int(os.environ.get("RANK", "0") or 0) == 0


def duration(seconds: float) -> str:
    """Returns a time in units that people read.

    >>> duration(4.21), duration(75), duration(7260)
    ('4.2 s', '1 min 15 s', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def size(amount: float) -> str:
    """Returns a number of bytes in binary units.

    >>> size(2_000), size(538_000_000), size(14.2 * 2**30)
    ('2 KiB', '513 MiB', '14.2 GiB')
    """
    if amount < 2**20:
        return f"{amount / 2**10:.0f} KiB"
    return f"{amount / 2**20:.0f} MiB" if amount < 2**30 else f"{amount / 2**30:.1f} GiB"
