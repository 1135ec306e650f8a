"""Traps planted in real folders: `verify` fails, says which trap it is, and passes where there is none."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import plaudit
from builders import CHATML, tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import ConfigError
from plaudit.model.golden import FILE_NAME, load_golden_rows
from verification.conftest import by_path, train, traps

TRANSFORMERS = {"transformers, one by one", "transformers, padded batch", "transformers pipeline, from text"}


def verify(folder, **options):
    return plaudit.verify(folder, device="cpu", **{"export": False, **options})


def set_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def set_tokenizer(folder, **values):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for name, value in values.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)


def verdicts(verification, *paths):
    found = by_path(verification)
    return {found[path].verdict for path in paths}


# ---- nothing wrong --------------------------------------------------------------------------------------------


def test_every_way_gives_the_golden_rewards(folder):
    found = verify(folder, export=True)
    assert found.passed, str(found)
    assert set(by_path(found)) == {
        "chat template and tokenizer",
        *TRANSFORMERS,
        *(f"scorer, {layout}, {how}" for layout in ("padded", "shared_prefix") for how in ("one by one", "together")),
        "scorer, from messages or text",
        "export, reloaded",
    }
    assert {one.verdict for one in found.results} == {"same"}
    assert all(one.largest <= 1e-4 for one in found.results if one.largest is not None)
    assert "export, reloaded" in str(found)
    assert not list(folder.parent.glob("*export*"))


def test_plain_texts_and_a_bos(text_folder):
    found = verify(text_folder)
    assert found.passed, str(found)
    assert {one.verdict for one in found.results} == {"same"}


def test_adapters_and_their_merged_export(tmp_path):
    peft = pytest.importorskip("peft")
    tokenizer = tiny_tokenizer()
    tiny_model(tokenizer).save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    train(tmp_path / "run", tokenizer, conversation_rows(), model=str(tmp_path / "base"), peft_config=config)
    found = verify(tmp_path / "run", export=True)
    assert found.passed, str(found)
    assert by_path(found)["merged export, reloaded"].verdict == "same"


def test_a_model_without_the_shared_layout_is_no_fault(tmp_path):
    tokenizer = tiny_tokenizer()
    rows = [{"chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(6)]
    train(tmp_path / "run", tokenizer, rows, model=tiny_model(tokenizer, "bert"))
    found = verify(tmp_path / "run")
    assert found.passed, str(found)
    assert by_path(found)["scorer, shared_prefix, together"].verdict == "skipped"


# ---- traps ----------------------------------------------------------------------------------------------------


def test_a_changed_chat_template(folder):
    set_tokenizer(folder, chat_template=CHATML.replace("{%- if tools", "You are kind. {%- if tools"))
    found = verify(folder)
    assert not found.passed
    wrong = by_path(found)["chat template and tokenizer"]
    assert (wrong.verdict, wrong.finding.trap) == ("differs", "chat_template")
    assert "other token ids in 8 of 8 rows" in wrong.note
    assert verdicts(found, "scorer, from messages or text") == {"differs"}
    assert verdicts(found, *TRANSFORMERS) == {"same"}


def test_a_chat_template_that_prints_a_second_bos(tmp_path):
    once = "{{ bos_token }}" + CHATML
    tokenizer = tiny_tokenizer(chat_template=once, bos=True)
    train(tmp_path / "run", tokenizer, conversation_rows())
    assert verify(tmp_path / "run").passed
    set_tokenizer(tmp_path / "run", chat_template="{{ bos_token }}" + once)
    found = verify(tmp_path / "run")
    assert by_path(found)["chat template and tokenizer"].finding.trap == "second_bos"
    assert by_path(found)["scorer, from messages or text"].finding.trap == "second_bos"


def test_another_head(folder):
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    weights["score.weight"] = torch.randn_like(weights["score.weight"]) * 0.2
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = verify(folder)
    assert verdicts(found, "chat template and tokenizer") == {"same"}
    assert verdicts(found, *TRANSFORMERS, "scorer, padded, together") == {"differs"}
    assert traps(found) == {"lost_head"}


def test_no_head_at_all(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["score.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = verify(folder)
    assert not found.passed
    wrong = by_path(found)["loading the model"]
    assert wrong.verdict == "failed"
    assert "score.weight" in wrong.note


def test_pad_equal_to_eos(text_folder):
    set_tokenizer(text_folder, pad_token="<|eos|>")
    set_config(text_folder, pad_token_id=2)
    found = verify(text_folder)
    assert verdicts(found, *TRANSFORMERS) == {"differs"}
    assert verdicts(found, "scorer, padded, together", "scorer, shared_prefix, together") == {"same"}
    assert traps(found) == {"pad_is_eos"}


def test_a_pad_token_that_is_not_known_to_the_model(folder):
    set_config(folder, pad_token_id=77)
    found = verify(folder)
    wrong = by_path(found)["transformers, padded batch"]
    assert (wrong.verdict, wrong.finding.trap) == ("differs", "padding")
    assert verdicts(found, "transformers, one by one", "scorer, padded, together") == {"same"}


def test_half_precision(folder):
    found = verify(folder, dtype="bfloat16")
    assert found.passed, str(found)
    strict = verify(folder, dtype="bfloat16", tolerance=1e-6)
    assert verdicts(strict, *TRANSFORMERS) == {"differs"}
    assert traps(strict) == {"dtype"}


def test_weights_of_another_step(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = weights["score.weight"] * 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    found = verify(folder)
    assert traps(found) == {"rescaled"}


def test_a_calibration_beside_the_model_is_left_out(folder):
    plaudit.model.calibration.RewardCalibration(scale=3.0).save(folder)
    assert verify(folder).passed


# ---- golden rows of other models ------------------------------------------------------------------------------


def test_a_model_without_golden_rows_gets_them(folder, tmp_path, caplog):
    (folder / FILE_NAME).unlink()
    with pytest.raises(ConfigError) as error:
        verify(folder)
    assert "--rows FILE --save" in error.value.fix
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in conversation_rows()))
    assert verify(folder, rows=data).passed
    assert not (folder / FILE_NAME).exists()
    with caplog.at_level(logging.INFO, logger="plaudit"):
        assert verify(folder, rows=data, save=True).passed
    assert FILE_NAME in caplog.text
    golden = load_golden_rows(str(folder))
    assert verify(folder).golden == golden
    assert "plain transformers" in golden.how
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        assert golden.rewards == [model(torch.tensor([row.ids])).logits.item() for row in golden.rows]


def test_golden_rows_from_elsewhere(folder, tmp_path):
    golden = load_golden_rows(str(folder))
    elsewhere = golden.rescaled(1.0, 5.0).save(tmp_path)
    (folder / FILE_NAME).unlink()
    assert verify(folder, rows=golden).passed
    assert traps(verify(folder, rows=elsewhere)) == {"rescaled"}
    assert verify(folder, rows=conversation_rows()).passed


def test_what_cannot_be_verified(folder, tmp_path):
    for model, options, value in (
        (folder, {"local": False}, "verify"),
        (folder, {"rows": [{"chosen": None, "rejected": None}]}, "golden row"),
        ("nobody/nothing", {"save": True}, "nobody/nothing"),
        (tmp_path / "nothing", {}, "nothing"),
    ):
        with pytest.raises(ConfigError) as error:
            verify(model, **options)
        assert value in error.value.message
        assert error.value.fix
