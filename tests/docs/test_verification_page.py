"""The page on verification: its code and commands run, and its settings and traps exist."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from builders import tiny_tokenizer
from model_builders import conversation_rows
from plaudit import RewardConfig, RewardModel
from plaudit.cli.export import VERIFY, VERIFY_MODEL
from plaudit.cli.main import main
from plaudit.model.golden import FILE_NAME
from plaudit.training.artifacts import MOST_TOKENS
from plaudit.verification.diagnosis import TOLERANCES
from serve.conftest import LiveServer
from verification.conftest import train

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "verification.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def _run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "first"
    train(folder, tiny_tokenizer(), conversation_rows())
    return folder


@pytest.fixture
def run(_run, tmp_path, monkeypatch):
    """An empty folder with a trained model in ``runs/first`` and data beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    shutil.copytree(_run, tmp_path / "runs" / "first")
    Path("pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in conversation_rows()))
    return tmp_path / "runs" / "first"


@pytest.mark.slow
def test_the_code_runs(run):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {}
    exec(block, names)
    assert names["same"] is True


@pytest.mark.slow
def test_the_commands_run(run):
    lines = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 3
    with LiveServer(RewardModel.from_pretrained(run, device="cpu")) as live:
        for line in lines:
            words = shlex.split(line.replace("127.0.0.1:8000", f"127.0.0.1:{live.port}"), comments=True)
            assert words[0] == "plaudit"
            assert main(words[1:]) == 0, line


def test_settings_and_numbers_are_true():
    known = {*VERIFY.options, *(f"--{name}" for name in RewardConfig.__dataclass_fields__)}
    assert set(re.findall(r"`(--[a-z_]+)", PAGE)) <= known
    assert FILE_NAME in PAGE
    assert (RewardConfig("out").golden_rows, "eight responses" in PAGE) == (8, True)
    assert f"at most {MOST_TOKENS} tokens" in PAGE
    assert [TOLERANCES[name] for name in ("float32", "float16", "bfloat16")] == [1e-4, 0.01, 0.05]


def test_the_servers_commands_on_the_page_about_serving_parse():
    page = (DOCS / "serving.md").read_text(encoding="utf-8")
    lines = re.findall(r"^plaudit verify (.*)$", page, flags=re.MULTILINE)
    assert [VERIFY.parse(shlex.split(line))[2][VERIFY_MODEL]["server"] for line in lines] == ["vllm", "sglang"]
