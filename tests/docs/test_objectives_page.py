"""The page of objectives: its rows are read, its table is true, its commands and its code run, with a tiny model."""

import json
import re
import shlex
from pathlib import Path

import pytest

from builders import tiny_tokenizer
from model_builders import tiny_model
from plaudit.cli.main import main
from plaudit.data.parse import read_example
from plaudit.errors import ConfigError
from plaudit.objectives import OBJECTIVES, check_objective, choose_objective

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
QUICK = ["--use_cpu", "--max_steps", "2", "--disable_tqdm", "true"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


ROWS = [json.loads(line) for line in blocks("json")[0].splitlines()]
COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.split("## Which data")[1].split("\n\n")[1].splitlines()[2:]
]


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """An empty folder with the data that the page names; the embedded model is a tiny one."""
    folder = tmp_path / "tiny"
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    tiny_model(tokenizer).save_pretrained(folder)
    for name, kind in (("ranked", "ranks"), ("ties", "tie")):
        row = next(row for row in ROWS if kind in row)
        rows = [row | {"prompt": f"{n}+{n}="} for n in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("plaudit.demo.embedded_model_path", lambda *args, **kwargs: folder)
    monkeypatch.setattr("plaudit.cli.build.embedded_model_path", lambda *args, **kwargs: folder)
    return folder


def test_there_is_a_row_for_each_line_of_the_table_and_it_is_read():
    forms = [read_example(row, row_number=n).row_kind for n, row in enumerate(ROWS)]
    assert forms == ["pairs", "pairs", "pairs", "pairs", "scores", "ranks", "ratings", "labels"]
    assert len(TABLE) == len(ROWS)
    for row, cells in zip(ROWS, TABLE, strict=True):
        said = set(row) - {"prompt"}
        if "chosen" in said and len(said) > 2:
            said -= {"chosen", "rejected"}
        assert said <= set(re.findall(r"`(\w+)`", cells[1])), cells


def fits(name, form, columns):
    try:
        check_objective(name, [form], columns, "train")
    except ConfigError:
        return False
    return True


def test_the_table_is_what_the_objectives_say():
    for row, (_, _, read_by, taken) in zip(ROWS, TABLE, strict=True):
        form = read_example(row, row_number=0).row_kind
        columns = {"margin", "preference_prob", "tie"} & set(row)
        fitting = {name for name in OBJECTIVES if fits(name, form, columns)}
        assert set(re.findall(r"`(\w+)`", read_by)) == fitting, row
        assert taken == f"`{choose_objective([form], columns)[0]}`", row


def test_every_objective_and_setting_is_explained():
    section = PAGE.split("## The objectives")[1].split("## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, flags=re.MULTILINE) == list(OBJECTIVES)
    for name in ("center_rewards", "lm_loss", "length_penalty", "length_head"):
        assert f"| `{name}_coefficient` |" in PAGE
    for metric in ("accuracy", "tie_rate", "tie_accuracy", "margin", "kendall_tau", "best_of_n_accuracy", "mse"):
        assert f"`{metric}`" in PAGE.split("## Metrics")[1]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_run(newcomer, command, capsys):
    arguments = shlex.split(command)[1:]
    assert main([*arguments, *QUICK]) == 0
    output = capsys.readouterr()
    if "--dry-run" in arguments:
        assert "auto: the data has ranks" in output.out
        return
    assert (Path(arguments[arguments.index("--output_dir") + 1]) / "config.json").exists()
    if "ranked" in command and "--objective" not in arguments:
        assert "Objective: bradley_terry (the data has ranks)." in output.err
        assert "Objective: bradley_terry (the data has ranks)." in PAGE


@pytest.mark.slow
def test_code_runs_from_top_to_bottom(newcomer, capsys):
    names = {}
    for block in blocks("python"):
        exec(block, names)
    *_, answer, objective, parameter = [
        line for line in capsys.readouterr().out.splitlines() if line and not line.startswith("{'")
    ]
    assert answer in ("6", "7", "I do not know")
    assert objective == "rao_kupper"
    assert re.fullmatch(r"tensor\(\[-?\d.*\]\)", parameter)
    assert (Path("runs/ties") / "training_heads.safetensors").exists()
