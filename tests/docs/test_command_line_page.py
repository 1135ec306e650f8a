"""The page on the command line, followed from top to bottom with a tiny model: its commands run, its names exist."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit.cli.main import COMMANDS, command_of, main

PAGE = (Path(__file__).parents[2] / "docs" / "command-line.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
QUICK = ["--use_cpu", "--max_steps", "2", "--disable_tqdm", "true"]
DECLARED = sorted(set(COMMANDS) - {"train", "demo"})


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """An empty folder with the files that the page names; the embedded model is a tiny one."""
    folder = tmp_path / "tiny"
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer).save_pretrained(folder)
    shutil.copytree(folder, tmp_path / "runs" / "second")
    pairs = [{**row, "source": "ab"[n % 2]} for n, row in enumerate(conversation_rows(40))]
    answers = [{"prompt": row["prompt"], "responses": [row["chosen"], row["rejected"]] * 2} for row in pairs]
    for name, rows in {"pairs": pairs, "test": pairs[:12], "answers": answers}.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "train.yaml").write_text("dataset_name: pairs.jsonl\noutput_dir: runs/from-file\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("plaudit.cli.build.embedded_model_path", lambda *args, **kwargs: folder)


@pytest.mark.slow
def test_the_commands_run_one_after_the_other(newcomer, monkeypatch, capsys):
    served = []
    monkeypatch.setattr("plaudit.serve.app.serve", lambda model, settings, listener: served.append(settings))
    run = set()
    for line in LINES:
        words = shlex.split(line, comments=True)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            monkeypatch.setitem(os.environ, name, value)
        if words[1] == "train" and "--help" not in words:
            words += QUICK
        words = ["0" if word == "8000" else "127.0.0.1" if word == "0.0.0.0" else word for word in words]
        code = main(words[1:])
        assert code in ([0, 1] if words[1] == "check" else [0]), (line, capsys.readouterr().err)
        run.add(words[1])
    assert {"train", "check", "eval", "report", "score", "best-of-n", "filter", "serve"} <= run
    assert served[0].api_key == "secret"
    for name in ("clean.jsonl", "found.json", "results.json", "first.html", "best.jsonl", "better-half.jsonl"):
        assert Path(name).exists(), name


def test_every_command_has_a_row():
    assert set(re.findall(r"^\| `plaudit ([a-z-]+)`", PAGE, flags=re.MULTILINE)) == set(COMMANDS)


def test_settings_that_a_section_names_exist():
    unknown = set()
    for name in DECLARED:
        section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)[1]
        known = set(command_of(name)[0].options)
        named = set(re.findall(r"--[a-z_-]+[a-z]", section)) - {"--standalone", "--nproc_per_node"}
        unknown |= {f"{name} {setting}" for setting in named - known}
    assert unknown == set()
