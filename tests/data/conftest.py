"""Fixtures for the data tests."""

from __future__ import annotations

import datasets
import pytest
from transformers import PreTrainedTokenizerFast

from builders import tiny_tokenizer


@pytest.fixture(autouse=True)
def _quiet_progress():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()
