"""Golden rows of a run: chosen once, right for the weights beside them, and without any influence on training."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit.model.golden import FILE_NAME, chat_template_hash, load_golden_rows
from plaudit.training.artifacts import MOST_TOKENS, choose_golden_rows
from tolerances import REWARD


def stock_rewards(folder, golden):
    """Rewards of the saved weights by a stock forward, one response at a time."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [model(torch.tensor([row.ids])).logits.item() for row in golden.rows]


# ---- choice ---------------------------------------------------------------------------------------------------


def test_short_long_and_multi_turn_rows_are_chosen_two_to_a_prompt(tokenizer):
    rows = conversation_rows(40)
    rows[17]["prompt"] = [
        {"role": role, "content": text} for role, text in [("user", "a"), ("assistant", "b"), ("user", "c")]
    ]
    chosen = choose_golden_rows(tokenizer, [Dataset.from_list(rows)], 8, max_length=None)
    assert len(chosen) == 8
    assert len({row.example for row in chosen}) == 4
    assert 17 in {row.example for row in chosen}
    lengths = sorted(
        len(row.ids) for row in choose_golden_rows(tokenizer, [Dataset.from_list(rows)], 80, max_length=None)
    )
    assert {lengths[0], lengths[-1]} <= {len(row.ids) for row in chosen}
    for row in chosen:
        text = tokenizer.apply_chat_template(row.messages, tokenize=False)
        assert row.text == text
        assert list(row.ids) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_long_rows_are_left_out_while_there_are_others(tokenizer):
    rows = conversation_rows(6)
    rows[2]["chosen"] = [{"role": "assistant", "content": "x" * 2 * MOST_TOKENS}]
    chosen = choose_golden_rows(tokenizer, [Dataset.from_list(rows)], 100, max_length=None)
    assert 2 not in {row.example for row in chosen}
    only = choose_golden_rows(tokenizer, [Dataset.from_list(rows[2:3])], 8, max_length=None)
    assert [row.example for row in only] == [0, 0]
    assert choose_golden_rows(tokenizer, [Dataset.from_list(rows[2:3])], 8, max_length=MOST_TOKENS) == ()


def test_the_first_data_set_with_a_row_that_fits_is_taken(tokenizer):
    texts = Dataset.from_list([{"prompt": "a ", "chosen": "b", "rejected": "c"}])
    chosen = choose_golden_rows(tokenizer, [None, {"first": texts, "second": None}], 8, max_length=None)
    assert [row.text for row in chosen] == ["a b<|eos|>", "a c<|eos|>"]
    assert chosen[0].messages is None
    assert choose_golden_rows(tokenizer, [texts], 1, max_length=None) == chosen[:1]
    assert choose_golden_rows(tokenizer, [texts], 0, max_length=None) == ()
    stream = texts.to_iterable_dataset()
    assert choose_golden_rows(tokenizer, [stream], 8, max_length=None) == chosen


def test_token_ids_come_without_text_and_broken_rows_are_passed_over(tokenizer):
    ids = Dataset.from_list([{"chosen_ids": [5, 6], "rejected_ids": [5, 7]}])
    assert [row.ids for row in choose_golden_rows(None, [ids], 8, max_length=None)] == [(5, 6), (5, 7)]
    legacy = ids.rename_columns({"chosen_ids": "chosen_input_ids", "rejected_ids": "rejected_input_ids"})
    assert len(choose_golden_rows(None, [legacy], 8, max_length=None)) == 2
    broken = Dataset.from_list([{"chosen": None, "rejected": "b"}, {"chosen": "a", "rejected": "b"}])
    assert {row.example for row in choose_golden_rows(tokenizer, [broken], 8, max_length=None)} == {1}
    lists = Dataset.from_list([{"prompt": "p", "responses": ["a", "b", "c"], "scores": [1.0, 2.0, 3.0]}])
    assert [row.text for row in choose_golden_rows(tokenizer, [lists], 8, max_length=None)] == [
        "pa<|eos|>",
        "pc<|eos|>",
    ]


def test_tools_and_template_variables_are_kept(tokenizer):
    tool = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}
    rows = [{**row, "tools": json.dumps([tool])} for row in conversation_rows(2)]
    chosen = choose_golden_rows(tokenizer, [Dataset.from_list(rows)], 2, max_length=None)
    assert chosen[0].tools == [tool]
    assert chosen[0].text == tokenizer.apply_chat_template(chosen[0].messages, tools=[tool], tokenize=False)


# ---- at a save ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_each_checkpoint_has_the_rewards_of_its_weights(make_trainer, model, dataset, tmp_path, layout, tokenizer):
    trainer = make_trainer(
        model, dataset, batch_layout=layout, learning_rate=1e-2, save_strategy="steps", save_steps=1, max_steps=2
    )
    trainer.train()
    trainer.save_model()
    folders = [tmp_path / "out" / "checkpoint-1", tmp_path / "out" / "checkpoint-2", tmp_path / "out"]
    goldens = [load_golden_rows(str(folder)) for folder in folders]
    for folder, golden in zip(folders, goldens, strict=True):
        assert golden.rewards == REWARD.approx(stock_rewards(folder, golden))
        assert (golden.dtype, len(golden.rows), golden.pad_token_id) == ("float32", 8, 0)
        assert golden.chat_template == chat_template_hash(tokenizer)
    assert goldens[1] == goldens[2] or goldens[1].rewards == REWARD.approx(goldens[2].rewards)
    assert goldens[0].rewards != pytest.approx(goldens[1].rewards, abs=1e-3)
    assert "step 2" in goldens[1].how
    assert goldens[1].versions["plaudit"]


def test_training_is_the_same_to_the_last_bit_without_them(make_trainer, tokenizer, dataset):
    def run(count):
        model = tiny_model(tokenizer, attention_dropout=0.2)
        trainer = make_trainer(
            model,
            dataset,
            folder=f"out-{count}",
            golden_rows=count,
            disable_dropout=False,
            max_steps=4,
            learning_rate=1e-3,
            save_strategy="steps",
            save_steps=1,
        )
        trainer.train()
        return [log["loss"] for log in trainer.state.log_history if "loss" in log], model.score.weight.tolist()

    with_rows, without = run(8), run(0)
    assert with_rows == without
    assert len(set(with_rows[0])) > 1


def test_modes_and_random_state_are_left_alone(make_trainer, model, dataset):
    trainer = make_trainer(model, dataset)
    trainer.model.train()
    trainer.model.score.eval()
    modes = {name: module.training for name, module in trainer.model.named_modules()}
    state = torch.get_rng_state()
    trainer.save_model()
    assert {name: module.training for name, module in trainer.model.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_is_off_while_they_are_computed(make_trainer, tokenizer, dataset, tmp_path):
    trainer = make_trainer(tiny_model(tokenizer, attention_dropout=0.9), dataset, disable_dropout=False)
    trainer.model.train()
    trainer.save_model()
    golden = load_golden_rows(str(tmp_path / "out"))
    assert golden.rewards == REWARD.approx(stock_rewards(tmp_path / "out", golden))


def test_mixed_precision_is_off_while_they_are_computed(make_trainer, model, dataset, tmp_path):
    trainer = make_trainer(model, dataset, bf16=True, max_steps=1)
    trainer.train()
    assert trainer.model.forward.__qualname__ != trainer.model._original_forward.__qualname__
    trainer.save_model()
    golden = load_golden_rows(str(tmp_path / "out"))
    assert golden.dtype == "float32"
    assert golden.rewards == REWARD.approx(stock_rewards(tmp_path / "out", golden))


def test_adapters_have_them_too(make_trainer, tokenizer, dataset, tmp_path):
    peft = pytest.importorskip("peft")
    tiny_model(tokenizer).save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.5, init_lora_weights=False)
    trainer = make_trainer(str(tmp_path / "base"), dataset, peft_config=config, learning_rate=1e-2)
    trainer.train()
    trainer.save_model()
    golden = load_golden_rows(str(tmp_path / "out"))
    model = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(tmp_path / "out"), num_labels=1).eval()
    with torch.no_grad():
        rewards = [model(input_ids=torch.tensor([row.ids])).logits.item() for row in golden.rows]
    assert golden.rewards == REWARD.approx(rewards)


def test_evaluation_data_comes_first(make_trainer, model, dataset, tmp_path):
    other = Dataset.from_list([{**row, "chosen": [{"role": "assistant", "content": "EVAL"}]} for row in dataset])
    make_trainer(model, dataset, eval_dataset={"a": other}).save_model()
    assert any("EVAL" in row.text for row in load_golden_rows(str(tmp_path / "out")).rows)


def test_none_are_written_where_none_are_wanted_and_old_ones_go(make_trainer, model, dataset, tmp_path):
    make_trainer(model, dataset).save_model()
    assert (tmp_path / "out" / FILE_NAME).exists()
    make_trainer(model, dataset, golden_rows=0).save_model()
    assert not (tmp_path / "out" / FILE_NAME).exists()


@pytest.mark.parametrize("case", ["fsdp", "zero3", "nan", "memory", "no row"])
def test_where_they_cannot_be_computed_the_log_says_so(
    make_trainer, model, dataset, tmp_path, monkeypatch, caplog, case
):
    trainer = make_trainer(model, dataset)
    (tmp_path / "out" / FILE_NAME).write_text("old")
    if case == "fsdp":
        trainer.is_fsdp_enabled = True
    elif case == "zero3":
        next(trainer.model.parameters()).ds_id = 0
    elif case == "nan":
        torch.nn.init.constant_(trainer.model.score.weight, float("nan"))
    elif case == "no row":
        trainer._golden_rows = ()
    else:

        def refuse(*args, **kwargs):
            raise torch.OutOfMemoryError("out of memory")

        monkeypatch.setattr(trainer.model, "forward", refuse)
    with caplog.at_level(logging.WARNING, logger="plaudit"):
        trainer._save(str(tmp_path / "out"))
    assert not (tmp_path / "out" / FILE_NAME).exists()
    assert "plaudit verify MODEL --rows FILE --save" in caplog.text


def test_other_processes_write_none(make_trainer, model, dataset, tmp_path, monkeypatch):
    trainer = make_trainer(model, dataset)
    monkeypatch.setattr(type(trainer.args), "should_save", property(lambda self: False))
    trainer.save_model()
    assert not (tmp_path / "out" / FILE_NAME).exists()


def test_a_model_that_reads_its_rewards_itself(make_trainer, tokenizer, tmp_path):
    model = tiny_model(tokenizer, "bert")
    rows = [{"chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(6)]
    trainer = make_trainer(model, Dataset.from_list(rows))
    trainer.save_model()
    golden = load_golden_rows(str(tmp_path / "out"))
    assert golden.rewards == REWARD.approx(stock_rewards(tmp_path / "out", golden))


def test_plain_texts_with_a_bos(make_trainer, dataset, tmp_path):
    tokenizer = tiny_tokenizer(bos=True)
    rows = [{"prompt": "2+2=", "chosen": str(n), "rejected": str(-n)} for n in range(1, 7)]
    make_trainer(tiny_model(tokenizer), Dataset.from_list(rows), processing_class=tokenizer).save_model()
    golden = load_golden_rows(str(tmp_path / "out"))
    for row in golden.rows:
        assert list(row.ids) == tokenizer(row.text)["input_ids"]
        assert row.text.endswith("<|eos|>")


@pytest.mark.parametrize("public", [False, True])
def test_the_log_says_once_whose_rows_these_are(make_trainer, model, dataset, caplog, public):
    trainer = make_trainer(model, dataset, folder=f"public-{public}")
    trainer.args.push_to_hub = public
    with caplog.at_level(logging.INFO, logger="plaudit"):
        for _ in range(2):
            trainer._save(trainer.args.output_dir)
    (said,) = [record for record in caplog.records if "responses of your data" in record.message]
    assert said.levelno == (logging.WARNING if public else logging.INFO)
