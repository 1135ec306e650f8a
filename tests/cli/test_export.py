"""``plaudit export``: what it says, what it writes, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from model_builders import conversation_rows
from plaudit import RewardModel
from plaudit.cli.export import EXPORT, EXPORT_MODEL
from plaudit.cli.main import main
from plaudit.model.calibration import RewardCalibration, load_calibration
from tolerances import REWARD


@pytest.fixture
def plaudit(capsys, monkeypatch, tmp_path):
    """Run the command in an empty folder; returns exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        capsys.readouterr()
        code = main(["export", *map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def scores(folder, rows=None):
    model = RewardModel.from_pretrained(folder, device="cpu")
    return np.array(model.score(conversation_rows() if rows is None else rows))


def test_what_is_said(plaudit, model_folder):
    code, out, err = plaudit(model_folder, "--output", "my export")
    assert (code, err) == (0, "")
    assert out.startswith("Exported to my export\nModel")
    assert re.search(r"^Model +LlamaForSequenceClassification, [\d,]+ parameters, from tiny$", out, re.MULTILINE)
    assert re.search(r"^Weights +stored in float32; the head in float32$", out, re.MULTILINE)
    assert re.search(r"^Check +6 responses scored before and after: largest difference [\de.-]+ \(allowed", out, re.M)
    assert out.splitlines()[-3:] == [
        "  plaudit verify 'my export'",
        "  vllm serve 'my export' --runner pooling",
        "  hf upload USER/'my export' 'my export'",
    ]
    np.testing.assert_allclose(scores("my export"), scores(model_folder), **REWARD.close)


def test_a_shift_that_cannot_be_folded_is_said_loudly(plaudit, model_folder, pairs):
    code, out, err = plaudit(model_folder, "-o", "out", "--normalize", pairs)
    assert code == 0
    assert err.startswith("Warning: The head has no bias, so the shift of ")
    assert "only Plaudit applies" in err
    calibration = load_calibration("out")
    record = json.loads(Path("out/plaudit_export.json").read_text())
    assert f"{record['scale']:.6g} * reward, folded into `score`: what every server gives" in out
    assert f"a shift of {calibration.shift:+.6g} and a temperature of {record['scale']:.6g} for prob" in out
    assert "in reward_calibration.json: only Plaudit applies it" in out
    assert "mean 0 and deviation 1 over 24 responses of pairs.jsonl" in out
    assert scores("out").mean() == REWARD.approx(0)
    assert scores("out").std() == REWARD.approx(1)


def test_settings_arrive(plaudit, model_folder, tmp_path):
    code, out, _ = plaudit(
        model_folder, "--output", "out", "--dtype", "bfloat16", "--temperature", "2", "--tolerance=1"
    )
    assert code == 0
    assert "stored in bfloat16" in out
    assert "0.5 * reward, folded into `score`" in out
    assert "(allowed 0.5" in out or re.search(r"\(allowed [\d.]+\)", out)
    np.testing.assert_allclose(scores("out"), scores(model_folder) / 2, atol=0.1)
    RewardCalibration(3.0, 0.0, 1.0, "test").save("out")
    assert plaudit("out", "--output", "raw", "--raw")[0] == 0
    assert load_calibration("raw") == RewardCalibration(3.0, 0.0, 1.0, "test")
    assert plaudit("out", "--output", "folded", "--overwrite")[0] == 0
    assert load_calibration("folded") is None
    np.testing.assert_allclose(scores("folded"), scores("raw"), **REWARD.close)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--output", "out"), "required: model"),
        (("MODEL",), "the following arguments are required: --output"),
        (("MODEL", "MODEL", "--output", "out"), "unexpected argument"),
        (("MODEL", "--output", "out", "--dtype", "int4"), "invalid choice"),
        (("MODEL", "--output", "out", "--normalise", "x"), "Did you mean `--normalize`?"),
        (("MODEL", "--output", "MODEL", "--overwrite"), "is that of the model itself"),
        (("MODEL", "--output", "out", "--temperature", "0"), "field `temperature`: is 0.0"),
        (("MODEL", "--output", "out", "--temperature", "missing.jsonl"), "there is no such file or folder"),
        (("MODEL", "--output", "out", "--temperature", "stored"), "there is no calibration beside the model"),
        (("MODEL", "--output", "out", "--raw", "--temperature", "2"), "exclude each other"),
        (("missing", "--output", "out"), "there is no reward model in 'missing'"),
    ],
)
def test_errors(plaudit, model_folder, tmp_path, arguments, message):
    code, out, err = plaudit(*(str(model_folder) if argument == "MODEL" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("plaudit export: ")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_help_lists_every_setting(plaudit):
    code, out, _ = plaudit("--help")
    assert code == 0
    for name in ("--output", "--merge", "--dtype", "--normalize", "--temperature", "--raw", "--overwrite"):
        assert name in out
    assert {"--no_merge", "--split", "--revision"} <= set(EXPORT.options)


def test_temperatures():
    for text, value in (("1e-1", 0.1), ("stored", "stored"), ("2.jsonl", "2.jsonl")):
        _, _, calls = EXPORT.parse(["m", "--output", "out", "--temperature", text])
        assert calls[EXPORT_MODEL]["temperature"] == value
