"""``plaudit eval``: what it prints, what it writes, and its exit codes."""

import json
import re

import pytest

from evaluation.tiny_runs import negate, pairs, plain_reward, save_model, write
from plaudit.cli.main import main
from plaudit.evaluation.results import Evaluation
from plaudit.model.calibration import load_calibration


@pytest.fixture
def run(capsys):
    """Run ``plaudit eval``; returns exit code, output and errors."""

    def command(*arguments):
        capsys.readouterr()
        code = main(["eval", *map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return command


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return save_model(folder / "first"), save_model(folder / "second", change=negate)


@pytest.fixture(scope="module")
def rows(models):
    return pairs(plain_reward(models[0]))


@pytest.fixture
def file(rows, tmp_path):
    return write(tmp_path / "pairs.jsonl", rows)


def test_a_table_and_a_line_each(run, models, file):
    code, out, err = run(models[0], "--suite", file, "--slice", "source", "--mistakes", "1")
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0].startswith(f"{models[0]} LlamaForSequenceClassification, ")
    assert any(re.fullmatch(r"pairs: 40 rows, 80 responses, [\d.]+ s", line) for line in lines)
    assert any(re.fullmatch(r"score 40 80\.0% 65\.2% to 89\.5% \+\d\.\d{3}", line) for line in lines)
    assert any(line.startswith("source=x 14 ") for line in lines)
    assert any(line.startswith("Calibration: expected calibration error ") for line in lines)
    assert any(line.startswith("Accuracy: 80.0% is better than always taking the longer response (") for line in lines)
    assert any("; there are only 40 labels: the interval is 24 points wide" in line for line in lines)
    assert any(line.startswith("Length: ") and "the longer response is preferred in " in line for line in lines)
    assert "Sanity: passed (constant rewards, swapped labels, batch size, padding)" in lines
    assert sum(line.startswith("Mistake: Row ") for line in lines) == 1
    assert "Comparison" not in out


def test_two_models_are_compared(run, models, file, tmp_path):
    code, out, _ = run(*models, "--suite", file, "--output", tmp_path / "out", "--sanity-rows", "0")
    assert code == 0
    verdict = next(line for line in out.splitlines() if line.startswith("  pairs: "))
    assert verdict.startswith(f"  pairs: {models[0]} is better than {models[1]} by 60.0 points (95% ")
    assert verdict.endswith("40 rows")
    assert out.splitlines()[-1] == f"Results in {tmp_path / 'out'}."
    evaluation = Evaluation.load(tmp_path / "out")
    assert [model.name for model in evaluation.models] == [str(model) for model in models]
    assert evaluation.comparisons[0].real
    code, out, err = run(*models, "--suite", file, "--output", tmp_path / "out", "--sanity_rows", "0")
    assert code == 0
    assert err.count("nothing has changed") == 2
    code, out, _ = run(models[0], models[0], "--suite", file, "--sanity-rows", "0")
    assert "  pairs: no difference shown: " in out


def test_several_suites_in_any_spelling_and_json(run, models, file, rows, tmp_path):
    bar = write(tmp_path / "bar.jsonl", [{**row, "subset": "natural"} for row in rows])
    target = tmp_path / "results.json"
    command = (models[0], "--suite", file, f"LLMBar={bar}", "--suite", bar, "--json", target, "--max-rows", "10")
    code, out, err = run(*command, "--sanity-rows", "0", "--batch-layout", "padded", "--max-length", "200")
    assert code == 0
    assert f"Results in {target}." in err
    values = json.loads(target.read_text())
    assert [suite["name"] for suite in values["models"][0]["suites"]] == ["pairs", "llmbar", "bar"]
    assert values["models"][0]["batch_layout"] == "padded"
    assert values["settings"]["max_length"] == 200
    assert "llmbar (LLMBar): 10 of 40 rows, 20 responses" in out
    assert "Note: No rows of Neighbor, GPTInst, GPTOut, Manual" in out
    code, _, err = run(*command)
    assert code == 2
    assert "results.json' exists" in err


def test_the_calibration_is_written_beside_the_model(run, rows, tmp_path):
    # Half as sure as it should be: a temperature below 1 helps.
    model = save_model(tmp_path / "model", change=lambda model: model.score.weight.mul_(0.1))
    reward = plain_reward(model)
    file = write(tmp_path / "pairs.jsonl", pairs(reward, 100, right=0.9))
    code, out, _ = run(model, "--suite", file, "--save-calibration", "--sanity-rows", "0")
    assert code == 0
    written = load_calibration(str(model))
    assert 0 < written.temperature < 0.5
    line = next(line for line in out.splitlines() if line.startswith("Wrote "))
    assert line.startswith(f"Wrote {model}/reward_calibration.json: temperature {written.temperature:.4g}")
    assert "temperature fitted on 50 comparisons of pairs; on 50 others: log loss 0." in line
    code, out, _ = run(
        model, "--suite", file, "--save-calibration", "--sanity-rows", "0", "--json", tmp_path / "again.json"
    )
    fitted = json.loads((tmp_path / "again.json").read_text())["models"][0]["suites"][0]["calibration"]["temperature"]
    assert fitted == pytest.approx(1.0, abs=1e-3)


def test_a_calibration_that_does_not_help_is_not_written(run, models, rows, tmp_path):
    model = save_model(tmp_path / "model")
    right = write(tmp_path / "right.jsonl", pairs(plain_reward(model), 20, right=1.0))
    code, out, _ = run(model, "--suite", right, "--save-calibration", "--sanity-rows", "0")
    assert code == 0
    assert "no temperature fits right, because all comparisons are right" in out
    assert load_calibration(str(model)) is None
    code, _, err = run("owner/name", "--suite", right, "--save-calibration")
    assert code == 2
    assert "'owner/name' is not a folder" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "{file}"], "no model is named"),
        (["{model}"], "no suite is named"),
        (["{model}", "--suit", "{file}"], "Did you mean `--suite`?"),
        (["{model}", "--suite", "rewardbenc"], "Did you mean `rewardbench`"),
        (["{model}", "--suite", "nothing.jsonl"], "nothing.jsonl: there is no such file"),
        (["{model}", "--suite", "{file}", "--slice", "nothing"], "no column `nothing` to slice by"),
        (["{model}", "--suite", "{file}", "--max-rows", "0"], "`max_rows` is 0"),
        (["{model}", "--suite", "{file}", "--overlong", "cut"], "invalid choice: 'cut'"),
        (["{folder}", "--suite", "{file}"], "holds no model"),
        (["{model}", "--suite", "{model}/config.json"], "config.json"),
    ],
)
def test_errors_are_one_message_and_exit_code_2(run, models, file, tmp_path, arguments, message):
    places = {"model": models[0], "file": file, "folder": tmp_path}
    code, _, err = run(*(argument.format(**places) for argument in arguments))
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_broken_suite_keeps_the_one_before_it(run, models, file, rows, tmp_path):
    broken = write(tmp_path / "broken.jsonl", [*rows[:2], {**rows[2], "chosen": None}])
    code, _, err = run(models[0], "--suite", file, broken, "--output", tmp_path / "out", "--sanity-rows", "0")
    assert code == 2
    assert "broken.jsonl data set, row 2, field `chosen`" in err
    assert "Stopped early; the results so far are in" in err
    assert Evaluation.load(tmp_path / "out")["pairs"].rows == 40


def test_rewards_that_score_wrote_are_judged(run, models, file, tmp_path):
    scored = tmp_path / "scored.jsonl"
    assert main(["score", str(models[0]), str(file), "--output", str(scored)]) == 0
    code, out, err = run("--rewards", scored, "--slice", "source")
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert any(re.fullmatch(r"score 40 80\.0% 65\.2% to 89\.5% \+\d\.\d{3}", line) for line in lines)
    assert run(models[0], "--rewards", scored)[0] == 2


def test_help_names_every_setting(run):
    code, out, _ = run("--help")
    assert code == 0
    for name in ("--suite", "--slice", "--output", "--save_calibration", "--batch_layout"):
        assert name in out
    assert "Exit code: 0, or 2" in out


def test_a_warning_is_given_once_however_many_models(run, models, tmp_path):
    texts = [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": "no"} for i in range(8)]
    code, _, err = run(*models, "--suite", write(tmp_path / "texts.jsonl", texts))
    assert code == 0
    assert err.count("Plain text is scored as it is") == 1
