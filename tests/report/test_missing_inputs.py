"""Reports of runs that lack something: what is missing is said, and what is broken is named."""

from __future__ import annotations

import json
import math

import pytest

from plaudit.errors import ConfigError
from plaudit.report import write_report
from report.fake_run import logs, record, write_run
from report.pages import opened


def titles(found):
    return [one["title"] for one in found.json["sections"]]


def test_without_an_evaluation(tmp_path):
    folder = write_run(tmp_path / "run", evaluated=False, steps=100)
    found = opened(write_report(folder))
    assert titles(found) == ["At a glance", "Training", "Data", "Settings and versions"]
    assert "No evaluation yet" in found.page.text
    assert f"plaudit eval {folder} --suite" in found.page.text
    numbers = found.blocks("overview")["headline"]["numbers"]
    assert numbers[0]["value"] == [one["eval_accuracy"] for one in logs(100) if "eval_accuracy" in one][-1]
    assert "held-out" in numbers[0]["detail"]


def test_accuracy_on_the_training_data_is_called_that(tmp_path):
    only = [one for one in logs(50) if "eval_loss" not in one]
    (tmp_path / "plaudit_run.json").write_text(json.dumps({**record(50), "log_history": only}))
    found = opened(write_report(tmp_path))
    assert "not held out, it says little" in found.blocks("overview")["headline"]["numbers"][0]["detail"]


def test_only_a_configuration(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForSequenceClassification"]}))
    found = opened(write_report(tmp_path))
    for words in ("No training logs", "What was read and dropped is not known", "The settings are not known"):
        assert words in found.page.text
    assert ["architecture", "LlamaForSequenceClassification"] in found.blocks("settings")["model"]["rows"]
    assert found.page.all("svg") == []


def test_a_killed_run_is_read_from_its_newest_checkpoint(tmp_path):
    for step in (9, 30, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": logs(step, every=1)}))
    (tmp_path / "checkpoint-100" / "trainer_state.json").write_text('{"log_history": [')
    kept = {name: value for name, value in record().items() if name != "log_history"}
    (tmp_path / "checkpoint-30" / "plaudit_run.json").write_text(json.dumps(kept))
    found = opened(write_report(tmp_path))
    assert found.blocks("training")["loss"]["rows"][-1][0] == 30
    assert "checkpoint-30/trainer_state.json" in found.page.text
    assert "trainer_state.json in checkpoint-100 cannot be read" in found.page.text
    assert found.blocks("data")["rows"]["rows"][0][1] == 6000


def test_logs_that_go_on_after_the_weights_were_saved_win(tmp_path):
    write_run(tmp_path, evaluated=False, steps=50)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": logs(80)}))
    assert opened(write_report(tmp_path)).blocks("training")["loss"]["rows"][-1][0] == 80


def test_several_evaluation_sets_and_numbers_that_are_none(tmp_path):
    told = [
        {"step": 1, "loss": math.nan, "accuracy": 0.5, "grad_norm": math.inf},
        {"step": 2, "loss": 0.6, "accuracy": 0.6, "grad_norm": 1.0},
        {"step": 2, "eval_chat_accuracy": 0.7, "eval_chat_tie_accuracy": 0.1},
        {"step": 2, "eval_code_accuracy": 0.8},
    ]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": told}))
    found = opened(write_report(tmp_path)).blocks("training")
    assert found["accuracy"]["columns"] == ["step", "training", "held-out: chat", "held-out: code"]
    assert found["accuracy"]["rows"] == [[1, 0.5, None, None], [2, 0.6, 0.7, 0.8]]
    assert found["loss"]["rows"] == [[2, 0.6]]
    assert found["tie_accuracy"]["rows"] == [[2, 0.1]]


def test_long_trainings_show_some_steps_and_keep_all(tmp_path):
    write_run(tmp_path, evaluated=False, steps=5000)
    found = opened(write_report(tmp_path))
    assert len(found.blocks("training")["loss"]["rows"]) == 500
    assert "40 of 500 rows; the JSON file has all." in found.page.text
    assert len(found.html) < 300_000


def test_a_broken_evaluation_that_was_found_is_named_and_left_out(tmp_path):
    write_run(tmp_path, evaluated=False, steps=20)
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "evaluation.json").write_text("{")
    found = opened(write_report(tmp_path))
    assert "An evaluation was left out" in found.page.text
    assert "evaluation.json" in found.page.text
    assert "No evaluation yet" in found.page.text


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "other"),
        ("{", "evaluation.json"),
        ("{}", "evaluation.json"),
        ('{"format": "plaudit evaluation", "version": 2}', "version 2, not 1"),
        ('{"format": "plaudit evaluation", "version": 1}', "models"),
    ],
)
def test_an_evaluation_that_was_named_must_be_sound(tmp_path, content, named):
    folder = write_run(tmp_path / "run", evaluated=False, steps=20)
    other = tmp_path / "other"
    other.mkdir()
    if content is not None:
        (other / "evaluation.json").write_text(content)
    with pytest.raises(ConfigError) as error:
        write_report(folder, evaluations=[other])
    assert named in error.value.message
    assert "plaudit eval" in error.value.fix
    assert not (folder / "report.html").exists()


def test_an_evaluation_elsewhere_counts_once(full_run, tmp_path):
    folder = write_run(tmp_path / "run", evaluated=False, steps=20)
    once = opened(write_report(folder, evaluations=[full_run / "evaluation"]))
    assert "suite-2" in once.page.ids
    found = opened(write_report(full_run, tmp_path / "a.html", evaluations=[full_run / "evaluation"]))
    assert "suite-3" not in found.page.ids


def test_partial_evaluations_and_failed_checks_are_said_first(full_run, tmp_path):
    content = json.loads((full_run / "evaluation" / "evaluation.json").read_text())
    content["complete"] = False
    suite = content["models"][0]["suites"][0]
    suite["checks"][2] |= {"passed": False, "message": "Rewards differ by 0.5."}
    for name in ("calibration", "length", "best_of_n", "histogram", "margins"):
        suite[name] = None
    suite |= {"points": [], "format": [], "mistakes": [], "slices": {}, "dropped": {}}
    content["models"][0]["suites"] = [suite]
    (tmp_path / "evaluation.json").write_text(json.dumps(content))
    found = opened(write_report(tmp_path))
    text = found.page.text
    assert "The evaluation was not finished." in text
    assert "Sanity: FAILED: batch size: Rewards differ by 0.5." in text
    assert "The evaluation kept no mistakes to show." in text
    assert found.page.all("svg") == []


def test_no_run_folder(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "nowhere", tmp_path, tmp_path / "file"):
        with pytest.raises(ConfigError) as error:
            write_report(path)
        assert str(path) in error.value.message
        assert "output_dir" in error.value.fix


@pytest.mark.parametrize("name", ["report.html", "report.json", "report.md"])
def test_files_that_are_no_reports_are_left_alone(tmp_path, name):
    write_run(tmp_path, evaluated=False, steps=20)
    (tmp_path / name).write_text("precious")
    with pytest.raises(ConfigError) as error:
        write_report(tmp_path)
    assert str(tmp_path / name) in error.value.message
    assert "--output" in error.value.fix
    assert (tmp_path / name).read_text() == "precious"
    (tmp_path / name).unlink()
    write_report(tmp_path)
    write_report(tmp_path)


def test_other_places_for_the_page(tmp_path):
    folder = write_run(tmp_path / "run", evaluated=False, steps=20)
    assert write_report(folder, tmp_path / "a" / "b.html").markdown == tmp_path / "a" / "b.md"
    assert write_report(folder, tmp_path / "a").html == tmp_path / "a" / "report.html"
    with pytest.raises(ConfigError) as error:
        write_report(folder, tmp_path / "page.pdf")
    assert "page.pdf.html" in error.value.fix
