"""The page on exports: its commands and its code run with a tiny adapter, and what it says of settings is true."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import RewardModel
from plaudit.cli.export import EXPORT
from plaudit.cli.main import main
from plaudit.export.export import TOLERANCE
from plaudit.model.golden import GoldenRow, GoldenRows

peft = pytest.importorskip("peft")

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
MESSAGES = [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "4"}]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """An empty folder with the adapter and the data that the page names."""
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer, max_position_embeddings=512).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", dtype=torch.float32)
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="SEQ_CLS", r=4, target_modules="all-linear", init_lora_weights=False)
    folder = tmp_path / "runs" / "first"
    peft.get_peft_model(base, config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = RewardModel.from_pretrained(folder, device="cpu")
    ids = [tokenizer(f"golden {n}")["input_ids"] for n in range(16)]
    rewards = model.score([{"response_ids": ids}])[0]
    GoldenRows(tuple(GoldenRow(tuple(one), reward) for one, reward in zip(ids, rewards, strict=True))).save(folder)
    (folder / "plaudit_run.json").write_text("{}")
    for name in ("optimizer.pt", "trainer_state.json"):
        (folder / name).write_text("x")
    (folder / "checkpoint-300").mkdir()
    rows = conversation_rows()
    margins = model.margin(rows)
    # Right in most, wrong in some: a temperature can be fitted.
    turned = [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if (margin > 0) == (n % 4 == 0) else row
        for n, (row, margin) in enumerate(zip(rows, margins, strict=True))
    ]
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, turned)))


@pytest.mark.slow
def test_commands_and_code_run(newcomer, capsys):
    (first, *others) = blocks("console")
    assert main(shlex.split(first)[1:]) == 0
    told, shown = (
        capsys.readouterr().out.splitlines(),
        re.search(r"```\n(Exported.*?)```", PAGE, re.DOTALL)[1].splitlines(),
    )
    numbers = re.compile(r"\b[\d.,e-]*\d\b")
    assert [numbers.sub("N", line).split() for line in told] == [numbers.sub("N", line).split() for line in shown]
    for line in "".join(others).strip().splitlines():
        assert main(shlex.split(line)[1:]) == 0, capsys.readouterr().err
    names = {}
    code = "\n".join(blocks("python")).replace('"exported", dtype', '"exported", overwrite=True, dtype')
    exec(code, names)
    ours = RewardModel.from_pretrained("runs/first", device="cpu")
    assert names["reward"] == pytest.approx(ours.score(MESSAGES), abs=0.05)
    assert RewardModel.from_pretrained("halved").score(MESSAGES) == pytest.approx(ours.score(MESSAGES) / 2, abs=0.05)
    rewards = np.array(RewardModel.from_pretrained("normalized").score(rows_of("pairs.jsonl")))
    assert rewards.mean() == pytest.approx(0, abs=0.02)
    assert rewards.std() == pytest.approx(1, abs=0.02)


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_settings_and_tolerances_on_the_page_exist():
    assert set(re.findall(r"--[a-z_]+", PAGE)) - {"--runner"} <= set(EXPORT.options)
    assert "is 1e-4 for weights stored in float32, 0.01 for float16 and 0.05 for bfloat16" in PAGE
    assert TOLERANCE == {"float32": 1e-4, "float16": 0.01, "bfloat16": 0.05}
