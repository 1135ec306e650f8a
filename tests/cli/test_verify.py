"""``plaudit verify``: what it prints, and its exit code."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from plaudit import RewardModel
from plaudit.cli.export import VERIFY
from plaudit.cli.main import main
from plaudit.model.golden import FILE_NAME, load_golden_rows
from serve.conftest import LiveServer


@pytest.fixture
def folder(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.fixture
def plaudit(capsys, monkeypatch):
    """Run the command; returns exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.delenv("PLAUDIT_API_KEY", raising=False)

    def run(*arguments):
        capsys.readouterr()
        code = main(["verify", *map(str, arguments), "--device", "cpu"])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_rows_are_saved_and_then_found(plaudit, folder, pairs, tmp_path):
    code, out, err = plaudit(folder)
    assert (code, out) == (2, "")
    assert "--rows FILE --save" in err
    code, out, err = plaudit(folder, "--rows", pairs, "--save", "--no_export")
    assert code == 0
    assert FILE_NAME in err
    code, out, err = plaudit(folder, "--json", tmp_path / "found.json")
    assert (code, err) == (0, "")
    assert out.startswith(f"{folder}: 8 golden rows, in float32\n")
    assert re.search(r"^transformers, padded batch +8 +\S+ +\S+ +\S+ +same *$", out, flags=re.MULTILINE)
    assert "export, reloaded" in out
    assert out.endswith("The rewards are the same everywhere.\n")
    assert json.loads((tmp_path / "found.json").read_text())["passed"] is True


def test_a_difference_is_said_once_and_ends_with_1(plaudit, folder, pairs):
    plaudit(folder, "--rows", pairs, "--save", "--no_export")
    load_golden_rows(str(folder)).rescaled(2.0, 0.0).save(folder)
    code, out, err = plaudit(folder, "--export", "false")
    assert (code, err) == (1, "")
    assert out.count("Rewards are 0.5 times the golden ones") == 1
    assert out.endswith("The rewards are not the same everywhere.\n")
    assert plaudit(folder, "--no_export", "--tolerance", "100")[0] == 0


def test_a_server_with_a_key(plaudit, folder, pairs, monkeypatch):
    plaudit(folder, "--rows", pairs, "--save", "--no_export")
    with LiveServer(RewardModel.from_pretrained(folder, device="cpu"), api_key="secret") as live:
        asked = (folder, "--url", f"http://127.0.0.1:{live.port}", "--no_local")
        assert plaudit(*asked, "--api_key", "secret")[0] == 0
        assert plaudit(*asked, "--api_key", "wrong")[0] == 1
        monkeypatch.setenv("PLAUDIT_API_KEY", "secret")
        code, out, _ = plaudit(*asked, "--server", "plaudit")
    assert code == 0
    assert "plaudit /get_reward, texts" in out
    assert "transformers" not in out


def test_mistakes_are_errors(plaudit, folder, tmp_path):
    for arguments in ((), (folder, "--server", "triton"), (folder, "--url", "nowhere"), (tmp_path / "nothing",)):
        code, out, err = plaudit(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("plaudit verify: ")


def test_help_names_every_setting(capsys):
    assert main(["verify", "--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"--{name} " in out for name in VERIFY.settings)
