"""Settings: flags, the YAML file, and the help."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from plaudit.cli.build import (
    TRAIN,
    build_trainer,
    make_peft_config,
    make_quantization_config,
    model_init_kwargs,
    parse_arguments,
)
from plaudit.errors import ConfigError
from plaudit.training.config import RewardConfig
from plaudit.training.setup import load_model_and_tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "train.yaml"
BASE = ["--use_cpu", "--output_dir", "out"]


def write(tmp_path, text):
    path = tmp_path / "train.yaml"
    path.write_text(text, encoding="utf-8")
    return ["--config", str(path), *BASE]


def test_both_spellings():
    for name in ("--dataset_name", "--dataset-name"):
        assert parse_arguments([name, "pairs.jsonl", *BASE]).dataset_name == "pairs.jsonl"


REFERENCE_FLAGS = """
    --model_name_or_path m --model_revision r --dtype bfloat16 --attn_implementation eager
    --dataset_name d --dataset_config c --dataset_train_split a --dataset_test_split b --dataset_streaming
    --use_peft --lora_r 8 --lora_alpha 4 --lora_dropout 0.1 --lora_target_modules q_proj v_proj
    --lora_modules_to_save score --lora_task_type SEQ_CLS --use_rslora --use_dora
    --lora_target_parameters experts --ignore_bias_buffers --bnb_4bit_quant_storage bfloat16
    --load_in_4bit --bnb_4bit_quant_type fp4 --use_bnb_nested_quant --center_rewards_coefficient 0.01
"""


def test_names_of_the_reference_command_line():
    settings = parse_arguments([*REFERENCE_FLAGS.split(), *BASE])
    model = (settings.model_name_or_path, settings.model_revision, settings.dtype, settings.attn_implementation)
    assert model == ("m", "r", "bfloat16", "eager")
    assert (settings.dataset_name, settings.datasets, settings.dataset_config) == ("d", None, "c")
    splits = (settings.dataset_train_split, settings.dataset_test_split, settings.eval_fraction)
    assert splits == ("a", "b", None)
    assert settings.dataset_streaming is True
    assert settings.lora_target_parameters == ["experts"]
    assert settings.bnb_4bit_quant_storage == "bfloat16"
    assert settings.lora_target_modules == ["q_proj", "v_proj"]
    assert (settings.lora_r, settings.lora_alpha, settings.lora_dropout) == (
        8,
        4,
        0.1,
    )
    assert settings.use_rslora
    assert settings.use_dora
    assert settings.load_in_4bit
    assert settings.bnb_4bit_quant_type == "fp4"
    assert settings.config.center_rewards_coefficient == 0.01


def test_every_field_of_the_config_is_a_setting():
    assert {field.name for field in dataclasses.fields(RewardConfig) if field.init} <= TRAIN.settings.keys()


def test_help_puts_plaudits_own_settings_first(capsys):
    assert TRAIN.helped(["--help"])
    text = capsys.readouterr().out
    names = ("dry_run", "overlong", "dtype", "eval_fraction", "lora_r", "load_in_4bit", "num_train_epochs")
    order = [text.index(f"\n  --{name} ") for name in names]
    assert order == sorted(order)
    assert text.count("--learning_rate ") == 1


def test_the_forms_of_the_references_command_line():
    for words, value in ((["--bf16"], True), (["--bf16", "true"], True), (["--no_bf16"], False), ([], False)):
        assert parse_arguments([*BASE, *words]).config.bf16 is value, words
    given = ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr": 1e-6}']
    assert parse_arguments([*BASE, *given]).config.lr_scheduler_kwargs == {"min_lr": 1e-6}
    assert parse_arguments([*BASE, "--report_to", "none"]).config.report_to == []


def test_the_output_folder_is_named_after_the_model():
    assert parse_arguments(["--use_cpu"]).config.output_dir == "SmolLM2-135M-Instruct-Reward"
    assert parse_arguments(["--use_cpu", "--model_name_or_path", "a/b"]).config.output_dir == "b-Reward"
    assert parse_arguments([*BASE, "--model_name_or_path", "a/b"]).config.output_dir == "out"


def test_none_empties_a_number():
    settings = parse_arguments(["--max_length", "none", "--eval_fraction=None", *BASE])
    assert settings.config.max_length is None
    assert settings.eval_fraction is None


def test_a_bare_switch_without_default_means_true():
    assert parse_arguments(["--greater_is_better", *BASE]).config.greater_is_better is True
    assert parse_arguments(["--greater_is_better", "false", *BASE]).config.greater_is_better is False


def test_model_init_kwargs_as_json():
    settings = parse_arguments(["--model_init_kwargs", '{"dtype": "bfloat16"}', *BASE])
    assert settings.config.model_init_kwargs == {"dtype": "bfloat16"}


@pytest.mark.parametrize(
    ("arguments", "names", "fix"),
    [
        (["--learnig_rate", "1e-4"], ["--learnig_rate"], "`--learning_rate`"),
        (["--learning_rate", "fast"], ["--learning_rate", "'fast'"], "--help"),
        (["--batch_layout", "round"], ["--batch_layout", "'round'", "shared_prefix"], "--help"),
        (["pairs.jsonl"], ["'pairs.jsonl'"], "Write: plaudit train"),
        (["--load_best_model_at_end"], ["load_best_model_at_end"], "setting named above"),
        (["--config"], ["--config"], "--help"),
    ],
)
def test_bad_flags(arguments, names, fix):
    with pytest.raises(ConfigError) as error:
        parse_arguments([*BASE, *arguments])
    assert all(name in error.value.message for name in names)
    assert fix in error.value.fix


# --- YAML -------------------------------------------------------------------------------------------------


def test_gradient_checkpointing_is_a_switch_or_auto(tmp_path):
    base = ["--model_name_or_path", "m", "--dataset_name", "d.jsonl"]
    for words, value in [
        ([], True),
        (["--gradient_checkpointing", "auto"], "auto"),
        (["--gradient_checkpointing=false"], False),
        (["--no_gradient_checkpointing"], False),
        (["--gradient_checkpointing"], True),
    ]:
        assert parse_arguments([*base, *words]).config.gradient_checkpointing == value, words
    path = write(tmp_path, "model_name_or_path: m\ngradient_checkpointing: auto\n")
    assert parse_arguments(path).config.gradient_checkpointing == "auto"


def test_yaml_values_of_every_kind(tmp_path):
    settings = parse_arguments(
        write(
            tmp_path,
            """
            model_name_or_path: m
            learning-rate: 3e-5
            max_length: null
            gradient_checkpointing: false
            use_peft: true
            lora_target_modules: [q_proj, v_proj]
            report_to: [none]
            model_init_kwargs: {dtype: bfloat16}
            lr_scheduler_kwargs:
              num_cycles: 2
            """,
        )
    )
    config = settings.config
    assert settings.model_name_or_path == "m"
    assert (config.learning_rate, config.max_length, config.gradient_checkpointing) == (3e-5, None, False)
    assert config.model_init_kwargs == {"dtype": "bfloat16"}
    assert config.lr_scheduler_kwargs == {"num_cycles": 2}
    assert settings.use_peft
    assert settings.lora_target_modules == ["q_proj", "v_proj"]


def test_flags_win_over_the_file(tmp_path):
    arguments = write(tmp_path, "learning_rate: 1.0e-5\nmax_length: 64\nuse_peft: true\nseed: 3")
    settings = parse_arguments([*arguments, "--learning_rate", "2e-5", "--max_length", "none"])
    assert settings.config.learning_rate == 2e-5
    assert settings.config.max_length is None
    assert settings.config.seed == 3
    assert parse_arguments([*arguments, "--use_peft", "false"]).use_peft is False


@pytest.mark.parametrize(
    ("text", "names", "fix"),
    [
        ("learnig_rate: 1", ["`learnig_rate`"], "`learning_rate`"),
        ("zzz: 1", ["`zzz`"], "--help"),
        ("seed: three", ["--seed", "'three'"], "--help"),
        ("seed: [1]", ["`seed`", "list"], "single value"),
        ("seed:", ["`seed`", "empty"], "remove the line"),
        ("batch_layout: round", ["--batch_layout", "'round'"], "--help"),
        ("- a\n- b", [], "`name: value`"),
        ("a: [", ["line 1: "], "`name: value`"),
    ],
)
def test_bad_files(tmp_path, text, names, fix):
    with pytest.raises(ConfigError) as error:
        parse_arguments(write(tmp_path, text))
    assert all(name in error.value.message for name in ["train.yaml: ", *names])
    assert fix in error.value.fix


def test_a_file_that_is_not_there():
    with pytest.raises(ConfigError) as error:
        parse_arguments(["--config", "gone.yaml"])
    assert "gone.yaml: " in error.value.message
    assert "--config" in error.value.fix


def test_the_example_can_be_read():
    settings = parse_arguments(["--config", str(EXAMPLE), "--use_cpu"])
    assert settings.eval_fraction == 0.1
    assert settings.config.eval_strategy == "epoch"


# --- what flags become ------------------------------------------------------------------------------------


def kwargs_of(*arguments):
    settings = parse_arguments([*arguments, *BASE])
    return model_init_kwargs(settings)


def test_model_flags_become_arguments_of_from_pretrained():
    assert kwargs_of() == {}
    assert kwargs_of("--dtype", "bfloat16", "--model_revision", "v1", "--attn_implementation", "eager") == {
        "dtype": "bfloat16",
        "revision": "v1",
        "attn_implementation": "eager",
    }
    given = '{"dtype": "bfloat16", "low_cpu_mem_usage": true}'
    assert kwargs_of("--model_init_kwargs", given, "--dtype", "bfloat16") == {
        "dtype": "bfloat16",
        "low_cpu_mem_usage": True,
    }


@pytest.mark.parametrize(
    ("flag", "given"), [("dtype", "dtype"), ("dtype", "torch_dtype"), ("model_revision", "revision")]
)
def test_a_flag_that_contradicts_model_init_kwargs(flag, given):
    with pytest.raises(ConfigError) as error:
        kwargs_of("--model_init_kwargs", f'{{"{given}": "main"}}', f"--{flag}", "float16")
    assert f"`{flag}`" in error.value.message
    assert f"{given}='main'" in error.value.message


def quantization_of(*arguments):
    return make_quantization_config(parse_arguments([*arguments, *BASE]), {})


def test_quantisation_without_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError) as error:
        quantization_of("--load_in_4bit", "--use_peft")
    assert error.value.fix == "Remove --load_in_4bit."
    with pytest.raises(ConfigError) as error:
        quantization_of("--load_in_4bit", "--load_in_8bit", "--use_peft")
    assert {"`load_in_4bit`", "`load_in_8bit`"} <= set(error.value.message.split())


def test_quantisation_without_bitsandbytes(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        quantization_of("--load_in_8bit", "--use_peft")
    assert error.value.fix == "Run: pip install bitsandbytes"


def test_quantisation_config(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    made = []
    monkeypatch.setattr("plaudit.cli.build.BitsAndBytesConfig", lambda **kwargs: made.append(kwargs) or "bits")
    settings = parse_arguments(["--load_in_4bit", "--use_bnb_nested_quant", *BASE])
    assert make_quantization_config(settings, {"dtype": "float16"}) == "bits"
    assert made == [
        {
            "load_in_4bit": True,
            "bnb_4bit_compute_dtype": "float16",
            "bnb_4bit_quant_storage": None,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
        }
    ]


def test_quantisation_goes_to_the_trainer_which_refuses_a_second_one(monkeypatch, tmp_path):
    monkeypatch.setattr("plaudit.cli.build.make_quantization_config", lambda settings, kwargs: "bits")
    monkeypatch.setattr("plaudit.cli.build.load_data", lambda settings: ("rows", None))
    made = []
    monkeypatch.setattr("plaudit.cli.build.RewardTrainer", lambda *args, **more: made.append(more))
    flags = ["--dataset_name", "d", "--model_name_or_path", "m", "--use_cpu", "--output_dir", str(tmp_path / "out")]
    settings = parse_arguments(flags)
    monkeypatch.setenv("LOCAL_RANK", "3")
    build_trainer(settings)
    assert made[0]["quantization_config"] == "bits"
    assert made[0]["args"].model_init_kwargs == {"device_map": {"": 3}}
    monkeypatch.undo()
    with pytest.raises(ConfigError) as error:
        load_model_and_tokenizer(
            "m", parse_arguments([*flags, "--model_init_kwargs", '{"quantization_config": {}}']).config, None, "bits"
        )
    assert error.value.field == "quantization_config"


def test_adapter():
    pytest.importorskip("peft")
    settings = parse_arguments(["--use_peft", "--lora_target_modules", "all-linear", "--use_rslora", *BASE])
    config = make_peft_config(settings)
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.05)
    assert (config.target_modules, config.use_rslora, config.task_type) == ("all-linear", True, "SEQ_CLS")
    assert make_peft_config(parse_arguments(BASE)) is None


@pytest.mark.parametrize(
    ("given", "passed"),
    [
        (["q_proj"], {"q_proj"}),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        ([r".*\.q_proj"], r".*\.q_proj"),
    ],
)
def test_target_modules_are_names_or_one_pattern(given, passed):
    pytest.importorskip("peft")
    settings = parse_arguments(["--use_peft", "--lora_target_modules", *given, *BASE])
    assert make_peft_config(settings).target_modules == passed
