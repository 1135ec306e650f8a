"""A tiny tokenizer, a tiny model that fits it, and a few conversations."""

from __future__ import annotations

import pytest
from datasets import Dataset

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import RewardConfig, RewardTrainer


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer):
    return tiny_model(tokenizer)


@pytest.fixture
def dataset():
    return Dataset.from_list(conversation_rows())


@pytest.fixture
def make_trainer(tmp_path, tokenizer):
    """Build a trainer that writes to a temporary folder, without progress bars and reports."""

    def make(model, train_dataset, *, processing_class=tokenizer, folder="out", cls=RewardTrainer, **settings):
        own = {
            "eval_dataset",
            "data_collator",
            "compute_metrics",
            "callbacks",
            "peft_config",
            "preprocess_logits_for_metrics",
        }
        arguments = {key: settings.pop(key) for key in own & settings.keys()}
        defaults = {
            "max_steps": 2,
            "logging_steps": 1,
            "per_device_train_batch_size": 4,
            "save_strategy": "no",
        }
        config = RewardConfig(
            str(tmp_path / folder), use_cpu=True, report_to=[], disable_tqdm=True, **{**defaults, **settings}
        )
        return cls(model, config, train_dataset=train_dataset, processing_class=processing_class, **arguments)

    return make
