"""The page for those who come from the reference library: complete, and each line held by a test that exists."""

import ast
import inspect
import re
from dataclasses import fields
from pathlib import Path

from transformers import TrainingArguments

from plaudit import RewardConfig, RewardTrainer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "coming-from-trl.md").read_text()
TESTS = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::([\w:]+)`", PAGE)))
# What this library adds to the reference's settings.
OURS = {"batch_layout", "overlong", "objective", "plackett_luce_top_k", "length_penalty_coefficient"}
OURS |= {"attention_backend", "group_by_prompt", "max_tokens_per_batch", "golden_rows", "ensemble_size"}
OURS |= {"length_head_coefficient", "lm_loss_coefficient", "schema"}


def names_of_tests(file):
    """Names of the tests of a file: ``test`` and ``Class::test``, and the classes."""
    names = set()
    for node in ast.parse((ROOT / file).read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


def test_the_tests_that_the_page_names_exist():
    known = {file: names_of_tests(file) for file in {file for file, _ in TESTS}}
    assert [f"{file}::{name}" for file, name in TESTS if name not in known[file]] == []


def test_every_line_of_its_tables_names_a_test():
    rows = [
        line
        for line in PAGE.splitlines()
        if line.startswith("| ") and not re.match(r"\| (\*\*|On the|What goes)", line)
    ]
    assert len(rows) > 80
    assert [row for row in rows if "`tests/" not in row] == []


def test_every_argument_and_every_setting_is_there():
    arguments = list(inspect.signature(RewardTrainer.__init__).parameters)[1:]
    inherited = {field.name for field in fields(TrainingArguments)}
    own = {field.name for field in fields(RewardConfig)} - inherited - OURS
    changed = {"logging_steps", "gradient_checkpointing", "learning_rate", "bf16"}
    metrics = {"num_tokens", "accuracy", "min_reward", "mean_reward", "max_reward", "margin", "tie_rate", "grad_norm"}
    for name in {*arguments, *own, *changed, *metrics}:
        assert f"`{name}" in PAGE, name
