"""The README, followed literally: its commands and its code run, with a tiny model in place of the big ones."""

import re
import shlex
from pathlib import Path

import pytest

from builders import tiny_tokenizer
from model_builders import tiny_model
from plaudit.cli.main import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
QUICK = ["--use_cpu", "--max_steps", "2", "--disable_tqdm", "true"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [
    shlex.split(line)[1:] for block in blocks("bash") for line in block.splitlines() if line.startswith("plaudit ")
]
HUB = {"Qwen/Qwen3-0.6B": "tiny", "trl-lib/ultrafeedback_binarized": "examples/data/pairs.jsonl"}
NOT_HERE = ["demo", "--help"]  # they have tests of their own


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """A folder with nothing but the examples; the embedded model is a tiny one."""
    folder = tmp_path / "tiny"
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer, max_position_embeddings=1024).save_pretrained(folder)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("plaudit.demo.embedded_model_path", lambda *args, **kwargs: folder)
    monkeypatch.setattr("plaudit.demo.embedded_model.embedded_model_path", lambda *args, **kwargs: folder)
    monkeypatch.setattr("plaudit.cli.build.embedded_model_path", lambda *args, **kwargs: folder, raising=False)
    return folder


def run(arguments):
    """Runs a command of the page; training takes two steps."""
    arguments = [HUB.get(word, word) for word in arguments]
    assert main([*arguments, *(QUICK if arguments[0] == "train" else [])]) == 0, arguments


def test_the_first_training_command_runs(newcomer):
    run(next(arguments for arguments in COMMANDS if arguments[0] == "train"))
    assert Path("runs/first/config.json").exists()


@pytest.mark.slow
def test_all_commands_run_in_their_order(newcomer, monkeypatch):
    served = []
    monkeypatch.setattr("plaudit.serve.app.serve", lambda model, settings, listener: served.append(settings))
    assert {"check", "train", "eval", "report", "score", "best-of-n", "verify", "export", "serve"} <= {
        arguments[0] for arguments in COMMANDS
    }
    for arguments in COMMANDS:
        if arguments[0] not in NOT_HERE:
            run(["0" if word == "8000" else word for word in arguments])
    assert len(served) == 1
    assert len(Path("runs/best.jsonl").read_text().splitlines()) == 20
    assert list(Path("runs/first").glob("*.html"))
    assert Path("runs/exported/config.json").exists()


@pytest.mark.slow
def test_code_runs_from_top_to_bottom(newcomer, capsys):
    names = {}
    for block in blocks("python"):
        exec(block, names)
    output = capsys.readouterr().out
    assert re.search(r"reward: -?\d", output)
    assert Path("runs/first/config.json").exists()


def test_make_targets_are_named_as_they_are():
    makefile = (ROOT / "Makefile").read_text()
    for target in ("setup", "bench"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
