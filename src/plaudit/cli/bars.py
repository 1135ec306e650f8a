"""Progress bars: on a terminal only, those of the libraries as well."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import datasets
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
