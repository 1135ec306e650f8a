"""A tiny model in a folder, a file of pairs, and a way to run the command line in this process."""

from __future__ import annotations

import json

import datasets.config
import pytest

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit.cli.main import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, conversation_rows())), encoding="utf-8")
    return path


@pytest.fixture
def train(model_folder, pairs, tmp_path, capsys):
    """Run ``plaudit train`` on the tiny model for two steps; returns exit code, output and errors."""

    def run(*arguments, model=model_folder, data=pairs, defaults=True):
        command = ["train", *arguments]
        if model is not None:
            command += ["--model_name_or_path", str(model)]
        if data is not None:
            command += ["--dataset_name", str(data)]
        if defaults:
            command += ["--output_dir", str(tmp_path / "out"), "--max_steps", "2", "--use_cpu"]
            command += ["--disable_tqdm", "true", "--save_strategy", "no"]
        capsys.readouterr()
        code = main(command)
        output = capsys.readouterr()
        return code, output.out, output.err

    return run
