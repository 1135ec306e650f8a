"""The folder of an export: there when it is whole, not at all otherwise, and never in place of something else."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from plaudit import ConfigError
from plaudit.export import export as exporting
from plaudit.export.export import export_model, new_folder

peft = pytest.importorskip("peft")


def everything_in(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- all or nothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["write_card", "carry_files", "check_folder"])
@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(source, tmp_path, monkeypatch, step, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(exporting, step, fail)
    with pytest.raises(ConfigError if isinstance(error, OSError) else KeyboardInterrupt, match=r"space|^$"):
        export_model(source, tmp_path / "deep" / "out")
    assert not list((tmp_path / "deep").iterdir())


def test_a_failure_keeps_what_was_there(source, tmp_path, monkeypatch):
    export_model(source, tmp_path / "out")
    before = everything_in(tmp_path / "out")

    def fail(*args, **kwargs):
        raise ConfigError("no")

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "check_folder", fail)
        with pytest.raises(ConfigError, match="no"):
            export_model(source, tmp_path / "out", overwrite=True, temperature=2.0)
    assert everything_in(tmp_path / "out") == before
    export_model(source, tmp_path / "out", overwrite=True, temperature=2.0)
    assert everything_in(tmp_path / "out") != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_nothing_has_the_name_before_it_is_whole(source, tmp_path, monkeypatch):
    stock, seen = exporting.check_folder, []

    def look(*arguments):
        seen.append((tmp_path / "out").exists())
        return stock(*arguments)

    monkeypatch.setattr(exporting, "check_folder", look)
    export_model(source, tmp_path / "out")
    assert seen == [False]


def test_somebody_else_who_was_faster_is_not_overwritten(tmp_path):
    def write_after_them():
        with new_folder(tmp_path / "out", overwrite=False) as folder:
            (folder / "config.json").write_text("mine")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "config.json").write_text("theirs")

    with pytest.raises(ConfigError) as error:
        write_after_them()
    assert error.value.field == "output"
    assert (tmp_path / "out" / "config.json").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# ---- places -------------------------------------------------------------------------------------------------------


def test_an_existing_folder_is_refused(source, tmp_path):
    (tmp_path / "out").mkdir()
    export_model(source, tmp_path / "out")  # an empty one harms nobody
    with pytest.raises(ConfigError) as error:
        export_model(source, tmp_path / "out")
    assert (error.value.field, "--overwrite" in error.value.fix) == ("output", True)


def test_only_a_model_is_overwritten(source, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for output in (tmp_path, tmp_path / "thesis.txt"):
        with pytest.raises(ConfigError) as error:
            export_model(source, output, overwrite=True)
        assert (error.value.field, str(output) in error.value.message) == ("output", True)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_source_is_never_overwritten(source, tmp_path, monkeypatch):
    before = everything_in(source)
    monkeypatch.chdir(source)
    (tmp_path / "link").symlink_to(source)
    for output in (source, source.parent, source / "..", ".", tmp_path / "link"):
        with pytest.raises(ConfigError) as error:
            export_model(source, output, overwrite=True)
        assert error.value.field == "output"
    assert everything_in(source) == before
    export_model(source, source / "exported")
    assert export_model(source, tmp_path / "out").left_behind == ("exported/",)


# ---- what cannot be exported --------------------------------------------------------------------------------------


def test_language_models_and_classifiers_are_refused(save, tokenizer, tmp_path):
    config = AutoConfig.from_pretrained(save())
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(ConfigError, match="is a language model"):
        export_model(tmp_path / "lm", tmp_path / "out")
    with pytest.raises(ConfigError, match="num_labels=3"):
        export_model(save(num_labels=3), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        export_model(tmp_path / "missing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_quantised_weights_are_refused(save_adapter, source, tmp_path):
    def quantise(folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq", "bits": 4}}))

    quantise(source)
    with pytest.raises(ConfigError, match="quantised"):
        export_model(source, tmp_path / "out")
    adapter = save_adapter()
    quantise(adapter.parent / "source")
    with pytest.raises(ConfigError, match="quantised"):
        export_model(adapter, tmp_path / "out")


def test_virtual_tokens_cannot_be_merged_and_can_be_kept(save_adapter, tmp_path):
    source = save_adapter(peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3))
    with pytest.raises(ConfigError, match="PromptTuningConfig") as error:
        export_model(source, tmp_path / "out")
    assert "merge=False" in error.value.fix
    assert not list(tmp_path.iterdir())
    result = export_model(source, tmp_path / "out", merge=False, temperature=2.0)
    assert result.adapter == "kept"
    assert result.check.largest_difference < 1e-4


def test_settings_of_precision(save_adapter, source, tmp_path):
    for model, settings in ((source, {"dtype": "int8"}), (save_adapter(), {"merge": False, "dtype": "bfloat16"})):
        with pytest.raises(ConfigError) as error:
            export_model(model, tmp_path / "out", **settings)
        assert error.value.field == "dtype"
        assert error.value.fix is not None


def test_an_adapter_that_is_no_number_is_refused(save_adapter, tmp_path):
    from safetensors.torch import load_file, save_file

    source = save_adapter()
    weights = load_file(source / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_A" in name)
    save_file({**weights, name: torch.full_like(weights[name], float("nan"))}, source / "adapter_model.safetensors")
    with pytest.raises(ConfigError):
        export_model(source, tmp_path / "out")
    assert not list(tmp_path.iterdir())
