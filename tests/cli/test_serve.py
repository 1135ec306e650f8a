"""``plaudit serve``: its help, its errors, and what it starts."""

from __future__ import annotations

import logging

import pytest

from builders import tiny_tokenizer
from model_builders import tiny_model
from plaudit.cli import serve as command
from plaudit.cli.main import main
from plaudit.serve import app as server


@pytest.fixture
def folder(tmp_path):
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    return str(tmp_path / "rm")


@pytest.fixture
def started(monkeypatch):
    """What would have been served."""
    calls = []
    monkeypatch.setattr(server, "serve", lambda model, settings, listener: calls.append((model, settings, listener)))
    return calls


def test_help_names_every_setting(capsys):
    assert main(["serve", "--help"]) == 0
    out = capsys.readouterr().out
    for name in ("host", "port", "api_key", "max_wait_ms", "max_queue", "max_body_mb", "overlong", "texts"):
        assert f"--{name}" in out
    assert "plaudit serve MODEL" in out


def test_the_model_is_served_with_the_settings(folder, started, monkeypatch):
    monkeypatch.setenv("PLAUDIT_API_KEY", "from the environment")
    settings = "--port 0 --max-wait-ms 7 --overlong truncate_left --max_length 99 --max_body_mb 0.5"
    names = "--batch-layout padded --served_model_name mine"
    assert main(["serve", folder, *settings.split(), *names.split()]) == 0
    ((model, settings, listener),) = started
    assert (model.overlong, model.max_length, model.batch_layout) == ("truncate_left", 99, "padded")
    assert (settings.max_wait_ms, settings.max_body_bytes, settings.served_model_name) == (7.0, 2**19, "mine")
    assert settings.api_key == "from the environment"
    assert settings.host == "127.0.0.1"
    assert listener.fileno() == -1  # closed


def test_a_key_on_the_command_line_comes_first(folder, started, monkeypatch):
    monkeypatch.setenv("PLAUDIT_API_KEY", "from the environment")
    assert main(["serve", folder, "--port", "0", "--api_key", "said"]) == 0
    assert started[0][1].api_key == "said"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: model"),
        (["a", "b"], "unexpected argument 'b'"),
        (["a", "--prot", "80"], "Did you mean `--port`"),
        (["a", "--port", "many"], "is not a whole number"),
        (["a", "--port", "99999"], "`port` is 99999"),
        (["a", "--overlong", "nan"], "invalid choice"),
        (["a", "--host", "256.1.1.1"], "256.1.1.1"),
        (["no/such/model", "--port", "0"], "no/such/model"),
    ],
)
def test_wrong_command_lines(capsys, started, arguments, words):
    assert main(["serve", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert started == []


def test_a_taken_port_is_said_before_the_model_is_loaded(capsys):
    from plaudit.serve.settings import ServerSettings

    with server.bind(ServerSettings(port=0)) as taken:
        taken.listen()
        assert main(["serve", "no/such/model", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err


def test_the_missing_extra_is_named(monkeypatch, capsys, started):
    find = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert main(["serve", "a"]) == 2
    err = capsys.readouterr().err
    assert "serving needs uvicorn" in err
    assert "pip install 'plaudit[serve]'" in err


@pytest.mark.parametrize(
    ("host", "key", "warns"),
    [("127.0.0.1", None, False), ("0.0.0.0", None, True), ("0.0.0.0", "k", False), ("::1", None, False)],
)
def test_an_open_address_without_a_key_is_warned_of(monkeypatch, caplog, host, key, warns):
    from plaudit.serve.settings import ServerSettings

    class Idle:
        def __init__(self, *arguments):
            pass

        def run(self, sockets):
            pass

    monkeypatch.setattr(server, "RewardServer", Idle)
    settings = ServerSettings(host=host, port=0, api_key=key)
    with caplog.at_level(logging.WARNING, logger="plaudit"):
        server.serve(None, settings, server.bind(ServerSettings(port=0)))
    assert ("no API key" in caplog.text) == warns
