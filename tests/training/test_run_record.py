"""What a run folder keeps about its training, and the report that is made of it without the data set."""

from __future__ import annotations

import json

import pytest

import plaudit
from plaudit.report import write_report


def read(folder):
    return json.loads((folder / "plaudit_run.json").read_text(encoding="utf-8"))


@pytest.fixture
def folder(make_trainer, model, dataset, tmp_path):
    rows = dataset.to_list()
    rows[3]["rejected"] = rows[3]["chosen"]
    trainer = make_trainer(
        model, type(dataset).from_list(rows), eval_dataset=dataset, max_steps=4, learning_rate=3e-6,
        eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    return tmp_path / "out"


def test_the_record_says_what_happened(folder):
    record = read(folder)
    assert (record["format"], record["version"]) == ("plaudit run", 1)
    train = record["data"]["train"]
    assert (train["rows_read"], train["rows_kept"]) == (12, 11)
    assert train["dropped"] == {"identical": {"count": 1, "first_rows": [3]}}
    assert train["lengths"]["mean"] > 0
    assert "prompts" not in train
    assert record["settings"]["learning_rate"] == 3e-6
    assert {"learning_rate", "max_steps"} <= set(record["changed_settings"])
    assert "weight_decay" not in record["changed_settings"]
    assert record["versions"]["plaudit"] == plaudit.__version__
    assert record["parameters"] == record["trainable_parameters"] > 0
    assert record["objective"] == "bradley_terry"
    assert record["state"]["global_step"] == 4
    assert [one["step"] for one in record["log_history"] if "loss" in one] == [1, 2, 3, 4]


def test_checkpoints_keep_it_without_the_logs(folder):
    record = read(folder / "checkpoint-2")
    assert "log_history" not in record
    assert record["data"] == read(folder)["data"]
    assert not list(folder.rglob("*.part"))


def test_other_processes_write_none(make_trainer, model, dataset, tmp_path, monkeypatch):
    trainer = make_trainer(model, dataset)
    monkeypatch.setattr(type(trainer.args), "should_save", property(lambda self: False))
    trainer.save_model()
    assert not (tmp_path / "out" / "plaudit_run.json").exists()


def test_a_report_of_a_real_run(folder):
    report = write_report(folder)
    results = json.loads(report.json.read_text())
    sections = {one["name"]: one for one in results["sections"]}
    curves = {block["name"]: block for block in sections["training"]["blocks"] if "name" in block}
    assert {"loss", "accuracy", "margin", "learning_rate", "grad_norm"} <= set(curves)
    assert curves["accuracy"]["columns"] == ["step", "training", "held-out"]
    rows = next(block for block in sections["data"]["blocks"] if block["name"] == "dropped")["rows"]
    assert [(row[:2], row[3:]) for row in rows] == [(["train", "dropped"], [1, "3"])]
    of_checkpoint = write_report(folder / "checkpoint-2", folder / "checkpoint.html")
    assert of_checkpoint.document.title == "out/checkpoint-2"
    logs = {one["name"]: one for one in of_checkpoint.document.to_dict()["sections"]}["training"]["blocks"]
    assert next(block for block in logs if block.get("name") == "loss")["rows"][-1][0] == 2
