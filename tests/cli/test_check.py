"""``plaudit check``: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builders import tiny_tokenizer
from doctor.clean_sets import clean_rows, said
from plaudit.cli.main import main


@pytest.fixture
def check(capsys):
    """Run ``plaudit check``; returns exit code, output and errors."""

    def run(*arguments):
        capsys.readouterr()
        code = main(["check", *map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


@pytest.fixture
def clean(tmp_path):
    return write(tmp_path / "clean.jsonl", clean_rows(80))


@pytest.fixture
def faulty(tmp_path):
    rows = clean_rows(80)
    rows[4]["rejected"] = None
    rows[6]["rejected"] = rows[6]["chosen"]
    rows[9] = rows[8]
    rows[30]["chosen"] = said("word " * 300 + "end.")
    return write(tmp_path / "faulty.jsonl", rows)


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_clean_data(check, clean):
    code, out, err = check(clean)
    assert code == 0
    assert out.splitlines()[0].startswith(f"{clean}: no faults found in 80 rows (")
    assert "always the longer" in out
    assert "bag of words" in out
    assert out.splitlines()[-1] == f"Next: plaudit train --dataset_name {clean} --eval_fraction 0.1"
    assert "\x1b" not in out + err


def test_faults_are_listed_with_examples_and_the_next_command(check, faulty):
    code, out, _ = check(faulty)
    assert code == 1
    lines = out.splitlines()
    assert "2 errors, 1 warning in 80 rows" in lines[0]
    table = {" ".join(line.split()) for line in lines}
    assert "error unreadable 1 1.2% 4" in table
    assert "error identical responses 1 1.2% 6" in table
    assert "warning exact duplicates of an earlier row 1 1.2% 9" in table
    assert "  1: `rejected`: is null (row 4)" in lines
    assert any(line.startswith('  rows 8, 9: "Case 0-8:') for line in lines)
    assert lines[-1] == f"Next: plaudit check {faulty} --fix faulty.clean.jsonl"


def test_the_next_command_does_what_it_says(check, faulty, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, out, _ = check(faulty)
    command = out.splitlines()[-1].removeprefix("Next: plaudit check ").split()
    code, out, _ = check(*command)
    assert code == 1
    assert "Kept 77 rows in faulty.clean.jsonl; removed: 1 unreadable, 1 identical, 1 duplicate" in out
    assert out.splitlines()[-1].startswith("Next: plaudit train --dataset_name faulty.clean.jsonl")
    assert check("faulty.clean.jsonl")[0] == 0
    code, _, err = check(*command)
    assert code == 2
    assert "exists" in err
    assert check(*command, "--overwrite")[0] == 1


def test_strict_counts_warnings(check, tmp_path):
    rows = clean_rows(60)
    rows[3] = rows[2]
    path = write(tmp_path / "twice.jsonl", rows)
    assert check(path)[0] == 0
    assert check(path, "--strict")[0] == 1


def test_results_as_json(check, faulty, tmp_path):
    target = tmp_path / "found.json"
    code, _, err = check(faulty, "--json", target)
    assert code == 1
    assert f"Results in {target}." in err
    results = json.loads(target.read_text())
    assert [finding["kind"] for finding in results["findings"]] == ["unreadable", "identical", "duplicate"]
    assert results["shortcuts"][1]["name"] == "bag of words"
    code, _, err = check(faulty, "--json", target)
    assert (code, "exists" in err) == (2, True)
    assert check(faulty, "--json", target, "--overwrite")[0] == 1


def test_a_model_counts_tokens(check, faulty, model_folder, tmp_path):
    code, out, _ = check(faulty, "--model", model_folder, "--fix", tmp_path / "a.jsonl")
    assert code == 1
    assert "over-long (more than 1,024 tokens)" in out
    assert "row 30: 1," in out
    assert "Tokens per response with its prompt:" in out
    # Nobody asked for this limit: the row stays.
    assert "Kept 77 rows" in out
    arguments = ("--model", model_folder, "--max-length", "1000", "--fix", tmp_path / "b.jsonl")
    assert "removed: 1 unreadable, 1 identical, 1 duplicate, 1 overlong" in check(faulty, *arguments)[1]


def test_evaluation_data_and_benchmarks(check, clean, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = clean_rows(80)
    held_out = write(Path("test.jsonl"), rows[5:8])
    questions = write(Path("bench.jsonl"), [{"question": rows[11]["prompt"][0]["content"]}])
    code, out, _ = check(clean, "--eval", held_out, "--benchmark", questions, held_out)
    assert code == 1
    assert "prompt is in the evaluation data (3 of 3 prompts of it)" in out
    assert f"prompt is in a benchmark ({questions}: 1; {held_out}: 3)" in out
    assert f"--eval {held_out} --benchmark {questions} {held_out} --fix clean.clean.jsonl" in out


def test_another_split_of_the_same_data(check, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = clean_rows(50)
    write(folder / "train.jsonl", rows)
    write(folder / "test.jsonl", rows[:2])
    code, out, _ = check(folder, "--eval_split", "test")
    assert code == 1
    assert "2 of 2 prompts" in out
    assert "in 20 rows" in check(folder, "--split", "train[:20]")[1]


def test_a_fault_of_most_rows_is_to_be_mended_not_removed(check, tmp_path):
    rows = [row | ({"margin": 1.0} if number % 2 else {}) for number, row in enumerate(clean_rows(40))]
    code, out, _ = check(write(tmp_path / "margins.jsonl", rows))
    assert code == 1
    assert out.splitlines()[-1].startswith("Next: fix the errors above")
    assert "--fix would remove 20 of 40 rows" in out


def test_a_stream(check, faulty):
    code, out, _ = check(faulty, "--streaming")
    assert code == 1
    assert "2 errors, 1 warning in 80 rows" in out


def test_a_file_that_breaks_off(check, clean):
    clean.write_text(clean.read_text() + '\n{"prompt"')
    code, out, _ = check(clean)
    assert code == 1
    assert "the file breaks off (after row 79:" in out
    assert "line 81: is not valid JSON" in out
    assert out.splitlines()[-1] == "Next: repair the file, then check again."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "the following arguments are required: dataset"),
        (["nowhere.jsonl"], "there is no such file or folder"),
        (["DATA", "--modell", "x"], "Did you mean `--model`?"),
        (["DATA", "--zzz"], "lists all settings"),
        (["DATA", "other.jsonl"], "unexpected argument 'other.jsonl'"),
        (["DATA", "--max_length", "0"], "`max_length` is 0"),
        (["DATA", "--sample_rows", "0"], "`sample_rows` is 0"),
        (["DATA", "--max_length", "9"], "there is no tokenizer"),
        (["DATA", "--eval", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["DATA", "--benchmark", "nowhere.jsonl"], "nowhere.jsonl: there is no such file"),
        (["DATA", "--fix", "DATA"], "is the data set itself"),
        (["DATA", "--model", "EMPTY"], "no tokenizer could be loaded"),
    ],
)
def test_wrong_command_lines(check, clean, tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    names = {"DATA": clean, "EMPTY": tmp_path / "empty"}
    code, out, err = check(*(names.get(argument, argument) for argument in arguments))
    assert code == 2
    assert words in err
    assert err.startswith("plaudit check: ")
    assert out == ""


def test_help_lists_every_setting(check):
    code, out, _ = check("--help")
    assert code == 0
    assert out.startswith("Usage: plaudit check DATASET")
    for name in ("model", "max_length", "eval", "benchmark", "fix", "overwrite", "json", "strict", "dataset_streaming"):
        assert f"--{name} " in out


def test_a_named_model_is_not_asked_for(check, tmp_path):
    tiny_tokenizer(chat_template="{{ raise_exception('only for tools') }}").save_pretrained(tmp_path / "model")
    rows = write(tmp_path / "rows.jsonl", [{"chosen": said("a"), "rejected": said("b")}] * 3)
    _, out, _ = check(rows, "--model", tmp_path / "model")
    assert "name a model" not in out
    assert "no row could be read with the tokenizer" in out
    _, out, _ = check(rows)
    assert "name a model" in out
