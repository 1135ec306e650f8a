"""Public data on the command line: every command reads it by the same schema, and says so."""

from __future__ import annotations

import json

import pytest

from data.published_rows import ROWS, assistant, user
from plaudit import RewardModel
from plaudit.cli.main import main
from tolerances import REWARD


def battles(count=12):
    chats = [[user(f"{n}+2?") + assistant(text) for text in (f"{n + 2}, I think", "?")] for n in range(count)]
    winners = ["model_a", "model_b", "tie"]
    return [
        {
            "id": n,
            "model_a": "a",
            "model_b": "b",
            "winner": winners[n % 3],
            "conversation_a": one,
            "conversation_b": two,
        }
        for n, (one, two) in enumerate(chats)
    ]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture
def arena(tmp_path):
    return write(tmp_path / "arena.jsonl", battles())


@pytest.fixture
def plaudit(capsys):
    def run(*arguments):
        capsys.readouterr()
        code = main([*map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run


def test_train_holds_out_whole_prompts(train, tmp_path):
    rows = [
        {**ROWS["helpsteer2"][0], "prompt": f"{n // 2}+2?", "response": f"{n}", "helpfulness": n % 5} for n in range(12)
    ]
    code, _, err = train("--eval_fraction", "0.5", data=write(tmp_path / "ratings.jsonl", rows))
    assert code == 0, err
    assert err.count("rows are read as HelpSteer and HelpSteer2") == 2
    assert "regression" in err


def test_dry_run(train, arena):
    code, out, err = train("--dry-run", data=arena)
    assert code == 0, err
    assert "The rows are read as Chatbot Arena" in out
    assert "rao_kupper" in out
    code, out, err = train("--dry-run", "--schema", "none", data=arena)
    assert code == 2
    assert "chosen" in err


def test_train_on_a_mixture_with_a_schema_for_a_part(train, arena, tmp_path):
    own = write(
        tmp_path / "own.jsonl",
        [{"chosen": row["conversation_a"], "rejected": row["conversation_b"]} for row in battles()],
    )
    parts = [str(own), json.dumps({"path": str(arena), "schema": "arena"})]
    code, _, err = train("--datasets", *parts, data=None)
    assert code == 0, err
    code, _, err = train("--datasets", *parts, "--schema", "arena", data=None)
    assert code == 2
    assert "schema" in err


def test_check_says_how_rows_are_read_and_keeps_them_in_the_copy(plaudit, arena, tmp_path):
    rows = battles()
    rows[4]["winner"] = "model_c"
    write(arena, rows)
    code, out, _ = plaudit("check", arena, "--json", tmp_path / "check.json", "--fix", tmp_path / "clean.jsonl")
    assert code == 1
    assert "The rows are read as Chatbot Arena" in out
    found = json.loads((tmp_path / "check.json").read_text())
    assert found["schema"] == "arena"
    assert [finding["rows"] for finding in found["findings"] if finding["kind"] == "unreadable"] == [[4]]
    assert found["row_kinds"] == {"pairs": 11}
    kept = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert kept == rows[:4] + rows[5:]


def test_check_stops_at_a_question_that_nothing_reads(plaudit, tmp_path):
    rows = [{"chosen": f"{n}", "rejected": f"{n + 1}", "context": "2+2?"} for n in range(4)]
    path = write(tmp_path / "pairs.jsonl", rows)
    code, _, err = plaudit("check", path)
    assert code == 2
    assert "`context`" in err
    assert plaudit("check", path, "--schema", "none")[0] in (0, 1)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_score_and_eval_read_the_same_rewards(plaudit, arena, model_folder, tmp_path, kind):
    scored = tmp_path / f"scored.{kind}"
    code, _, err = plaudit("score", model_folder, arena, "--output", scored)
    assert code == 0, err
    assert err.count("rows are read as Chatbot Arena") == 1
    if kind == "jsonl":
        rows = [json.loads(line) for line in scored.read_text().splitlines()]
        model = RewardModel.from_pretrained(model_folder, device="cpu")
        for row, given in zip(rows, battles(), strict=True):
            sides = (
                ["conversation_b", "conversation_a"]
                if given["winner"] == "model_b"
                else ["conversation_a", "conversation_b"]
            )
            rewards = [row.pop("chosen_reward"), row.pop("rejected_reward")]
            assert rewards == REWARD.approx(model.score([given[side] for side in sides]))
            assert row == given
    results = {}
    for name, command in {"model": [model_folder, "--suite", arena], "file": ["--rewards", scored]}.items():
        code, _, err = plaudit("eval", *command, "--json", tmp_path / f"{name}.json", "--output", tmp_path / name)
        assert code == 0, err
        assert "rows are read as Chatbot Arena" in err
        results[name] = json.loads((tmp_path / f"{name}.json").read_text())["models"][0]["suites"][0]
    assert results["model"]["result"]["score"] == results["file"]["result"]["score"]
    assert results["model"]["rows"] == 12


def test_score_refuses_a_question_that_nothing_reads(plaudit, model_folder, tmp_path):
    path = write(tmp_path / "answers.jsonl", [{"question": "2+2?", "response": "4"}] * 3)
    code, _, err = plaudit("score", model_folder, path, "--output", tmp_path / "scored.jsonl")
    assert code == 2
    assert "`question`" in err
    assert plaudit("score", model_folder, path, "--output", tmp_path / "scored.jsonl", "--schema", "none")[0] == 0


def test_best_of_n_of_ultrafeedback_keeps_its_columns(plaudit, model_folder, tmp_path):
    row = ROWS["ultrafeedback"][0]
    rows = [{**row, "completions": row["completions"][:2]}] * 3
    path, best = write(tmp_path / "ultra.jsonl", rows), tmp_path / "best.jsonl"
    scored = tmp_path / "scored.jsonl"
    assert plaudit("score", model_folder, path, "--output", scored)[0] == 0
    code, _, err = plaudit("best-of-n", scored, "--output", best, "--responses-column", "completions")
    assert code == 0, err
    assert json.loads(best.read_text().splitlines()[0])["response"] in rows[0]["completions"]
