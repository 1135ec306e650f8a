"""The README, followed literally: its commands and its code run, with a tiny model in place of the big ones."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit.cli.main import main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
QUICK = ["--use_cpu", "--max_steps", "2", "--disable_tqdm", "true"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("plaudit ")]


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """An empty folder with the data that the README names; the embedded model is a tiny one."""
    folder = tmp_path / "tiny"
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer).save_pretrained(folder)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, conversation_rows(40))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("plaudit.demo.embedded_model_path", lambda *args, **kwargs: folder)
    monkeypatch.setattr("plaudit.demo.embedded_model.embedded_model_path", lambda *args, **kwargs: folder)
    monkeypatch.setattr("plaudit.cli.build.embedded_model_path", lambda *args, **kwargs: folder, raising=False)
    return folder


def test_there_are_commands():
    assert len(COMMANDS) >= 4


TRAINING = [command for command in COMMANDS if command.startswith("plaudit train ")]


# The first stands for all of them in the quick set.
@pytest.mark.parametrize("command", [TRAINING[0], *(pytest.param(one, marks=pytest.mark.slow) for one in TRAINING[1:])])
def test_training_commands_run(newcomer, command):
    hub = {"Qwen/Qwen3-0.6B": str(newcomer), "trl-lib/ultrafeedback_binarized": "pairs.jsonl"}
    arguments = [hub.get(word, word) for word in shlex.split(command)[1:]]
    assert main([*arguments, *QUICK]) == 0
    folder = Path(arguments[arguments.index("--output_dir") + 1])
    assert (folder / "config.json").exists() is ("--dry-run" not in command)


@pytest.mark.slow
def test_the_other_commands_run_one_after_the_other(newcomer, tmp_path, monkeypatch):
    for name in ("first", "second"):
        shutil.copytree(newcomer, tmp_path / "runs" / name)
    rows = conversation_rows(12)
    write = {
        "test.jsonl": rows,
        "llmbar.jsonl": [{"input": "2+2?", "output_1": "4", "output_2": "5", "label": 1, "subset": "Natural"}],
        "answers.jsonl": [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]]} for row in rows],
    }
    for name, content in write.items():
        (tmp_path / name).write_text("\n".join(map(json.dumps, content)))
    served = []
    monkeypatch.setattr("plaudit.serve.app.serve", lambda model, settings, listener: served.append(settings))
    others = [shlex.split(one, comments=True)[1:] for one in COMMANDS if not one.startswith("plaudit train ")]
    known = {"check", "eval", "report", "score", "best-of-n", "serve", "verify", "export"}
    assert {arguments[0] for arguments in others} == known
    # Training would have left golden rows; the models of this test have seen none.
    assert main(["verify", "runs/first", "--rows", "test.jsonl", "--save"]) == 0
    for arguments in others:
        assert main(["0" if word == "8000" else word for word in arguments]) in (
            [0, 1] if arguments[0] == "check" else [0]
        )
    assert len(served) == 1
    assert len((tmp_path / "best.jsonl").read_text().splitlines()) == len(rows)
    assert (tmp_path / "pairs.clean.jsonl").exists()
    assert list((tmp_path / "runs" / "first").glob("*.html"))
    assert (tmp_path / "exported" / "config.json").exists()


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
    for target in ("demo", "bench"):
        assert f"make {target}" in README
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
