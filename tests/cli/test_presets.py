"""Presets: defaults with a name, which give way to whatever else is said."""

from __future__ import annotations

import pytest

from plaudit.cli.build import PRESETS, TRAIN, parse_arguments, value_text
from plaudit.errors import ConfigError

BASE = ["--use_cpu", "--output_dir", "out"]


def values_of(settings, names):
    values = {**vars(settings), **vars(settings.config)}
    return {name: values[name] for name in names}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_what_it_says(name):
    values = PRESETS[name]
    assert values.keys() <= TRAIN.settings.keys()
    settings = parse_arguments(["--preset", name, *BASE])
    assert values_of(settings, values) == dict(values)
    assert settings.preset == name
    plain = parse_arguments(BASE)
    others = {"lora_dropout", "weight_decay", "max_grad_norm", "seed", "eval_fraction", "dtype"}
    assert values_of(settings, others) == values_of(plain, others)
    assert plain.preset is None


def test_the_file_wins_over_the_preset_and_flags_over_both(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("preset: quick\nlearning_rate: 3.0e-4\nlora_r: 4\nuse_peft: false\nlora_target_modules: null\n")
    settings = parse_arguments(["--config", str(path), "--lora_r", "2", "--save_total_limit", "none", *BASE])
    assert settings.preset == "quick"
    assert settings.config.learning_rate == 3e-4
    assert settings.config.save_total_limit is None
    assert (settings.lora_r, settings.use_peft, settings.lora_target_modules) == (
        2,
        False,
        None,
    )
    assert settings.config.gradient_accumulation_steps == 4
    other = parse_arguments(["--config", str(path), "--preset=full", *BASE])
    assert other.preset == "full"
    assert other.config.gradient_accumulation_steps == 8
    assert other.config.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("arguments", "message", "fix"),
    [
        (["--preset", "quik"], "'quik'", "Did you mean `quick`?"),
        (["--preset", "zzz"], "'zzz'", "Use one of: quick, full."),
        (["--preset"], "--preset", "`plaudit train --help` lists all settings."),
    ],
)
def test_presets_that_are_not_there(arguments, message, fix):
    with pytest.raises(ConfigError) as error:
        parse_arguments([*BASE, *arguments])
    assert message in error.value.message
    assert error.value.fix == fix


def test_an_unknown_preset_leaves_no_folder(train, tmp_path):
    code, out, err = train("--preset", "quik")
    assert (code, out) == (2, "")
    assert "Did you mean `quick`?" in err
    assert not (tmp_path / "out").exists()


def test_a_preset_trains_and_says_what_it_set(train, tmp_path):
    pytest.importorskip("peft")
    code, _, err = train("--preset", "quick", "--learning_rate", "1e-3", "--lora_r", "2")
    assert code == 0, err
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    lines = err.splitlines()
    assert lines[0].startswith("Preset quick: use_peft true, lora_alpha 32, lora_target_modules all-linear, ")
    assert "lr_scheduler_type cosine" in lines[0]
    assert lines[1] == "  Overridden: lora_r 2 (not 16), learning_rate 0.001 (not 0.0002)."


def test_the_help_lists_presets_with_what_they_set(capsys):
    assert TRAIN.helped(["--help"])
    text = " ".join(capsys.readouterr().out.split())  # whatever the width of the terminal
    for name, values in PRESETS.items():
        line = text.partition(f"The preset {name} ")[2].partition("The preset ")[0]
        for setting, value in values.items():
            assert f"{setting} {value_text(value)}" in line
