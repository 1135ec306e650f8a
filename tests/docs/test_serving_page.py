"""The page on serving: its code runs against a server, and what it says of settings and metrics is true."""

import re
from pathlib import Path

import pytest

from builders import tiny_tokenizer
from model_builders import tiny_model
from plaudit import RewardModel
from plaudit.cli.serve import SERVE
from serve.conftest import LiveServer
from tolerances import REWARD

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture
def model():
    return RewardModel(tiny_model(tiny_tokenizer()), tiny_tokenizer())


def test_code_runs_and_gives_the_rewards_of_python(model):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    names = {}
    with LiveServer(model) as server:
        exec(block.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), names)
    assert names["reward"] == REWARD.approx(model.score("2+2=4"))
    assert names["several"] == REWARD.approx(model.score([f"2+2={end}" for end in ("4", "5", "22")]))
    assert names["pair"] == REWARD.approx(model.score(["2+2=4", "2+2=5"]))
    assert names["order"] == [one.position for one in model.rank("2+2=", ["5", "4"])]


def test_commands_of_curl_are_answered(model):
    sent = re.findall(r"curl http://127\.0\.0\.1:8000(/score|/rank) -d '(.*?)'\n", PAGE)
    assert len(sent) == 2
    with LiveServer(model) as server:
        for path, body in sent:
            with server.send(body.encode(), path) as connection:
                assert b" 200 " in connection.recv(100)


def test_settings_and_metrics_exist(model):
    known = {*SERVE.options, "--help", "--reward"}
    ours = PAGE.partition("## Serve a checkpoint with vLLM or SGLang")[0]
    assert set(re.findall(r"--[a-z_]+", ours)) - {"--remote_rm_url"} <= known
    with LiveServer(model) as server:
        page = server.service.metrics.text().decode()
    told = set(re.findall(r"`(plaudit_\w+)`", PAGE))
    kept = set(re.findall(r"^# TYPE (plaudit_\w+) ", page, flags=re.MULTILINE))
    assert told == {name for name in kept if not name.endswith("_created")}
