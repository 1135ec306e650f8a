"""Arguments of the trainer and settings of the Trainer underneath: each does what its name says, or is refused."""

import copy
import json
import logging
import sys
from functools import partial

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import HfArgumentParser, TrainerCallback

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import ConfigError, DataCollatorForPreference, RewardConfig, RewardTrainer
from tolerances import REWARD, SUMMED


def training_logs(trainer):
    return [log for log in trainer.state.log_history if "loss" in log]


def trainer_with(**arguments):
    """The trainer with arguments that the fixture does not know."""
    return partial(RewardTrainer, **arguments)


def batches_of(trainer):
    return list(trainer.get_train_dataloader())


def save_model_and_tokenizer(folder, tokenizer, **changes):
    tiny_model(tokenizer, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# ---- arguments of the trainer ---------------------------------------------------------------------------------


def test_arguments_come_in_the_order_of_the_reference(model, dataset, tokenizer, tmp_path):
    config = RewardConfig(str(tmp_path), use_cpu=True, report_to=[], max_steps=1)
    collator = DataCollatorForPreference(pad_token_id=0)
    own = {}

    class Noting(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            own["called"] = True

    trainer = RewardTrainer(
        model,
        config,
        collator,
        dataset,
        dataset,
        tokenizer,
        lambda prediction: {"mine": 1.0},
        [Noting()],
        (None, None),
        None,
        lambda logits, labels: logits,
        None,
    )
    trainer.train()
    assert own == {"called": True}
    assert trainer.evaluate()["eval_mine"] == 1.0


def test_callbacks_are_called_and_see_the_metrics(model, dataset, make_trainer):
    seen = []

    class Noting(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((state.global_step, dict(logs)))

    make_trainer(model, dataset, callbacks=[Noting()]).train()
    assert [step for step, logs in seen if "accuracy" in logs and "num_tokens" in logs] == [1, 2]
    trainer = make_trainer(model, dataset, callbacks=[Noting])  # a class will do, too
    assert sum(isinstance(callback, Noting) for callback in trainer.callback_handler.callbacks) == 1


def test_a_callback_of_ones_own_survives_a_resume(model, dataset, make_trainer, tmp_path):
    class Counting(TrainerCallback):
        steps = 0

        def on_step_end(self, *args, **kwargs):
            self.steps += 1

    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    make_trainer(model, dataset, **settings).train()
    counting = Counting()
    trainer = make_trainer(model, dataset, callbacks=[counting], **settings)
    trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    assert counting.steps == 2


def test_an_optimizer_and_a_scheduler_of_ones_own(model, dataset, make_trainer):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.1**step)
    before = copy.deepcopy(model.score.weight)
    trainer = make_trainer(model, dataset, cls=trainer_with(optimizers=(optimizer, scheduler)), max_steps=3)
    trainer.train()
    assert [log["learning_rate"] for log in training_logs(trainer)] == pytest.approx([0.5, 0.05, 0.005])
    assert not torch.equal(model.score.weight, before)


def test_an_optimizer_class_and_its_arguments(model, dataset, make_trainer):
    arguments = {"lr": 0.25, "momentum": 0.5}
    trainer = make_trainer(
        model, dataset, cls=trainer_with(optimizer_cls_and_kwargs=(torch.optim.SGD, arguments)), max_steps=1
    )
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, torch.optim.SGD)
    assert trainer.optimizer.param_groups[0]["momentum"] == 0.5
    assert training_logs(trainer)[0]["learning_rate"] == pytest.approx(0.25)
    assert arguments == {"lr": 0.25, "momentum": 0.5}
    with pytest.raises(RuntimeError, match="optimizer"):
        make_trainer(
            model,
            dataset,
            cls=trainer_with(
                optimizers=(torch.optim.SGD(model.parameters(), lr=1.0), None),
                optimizer_cls_and_kwargs=(torch.optim.SGD, arguments),
            ),
        )


def test_a_collator_of_ones_own_trains(model, dataset, make_trainer):
    """Left padding, columns that nobody knows: what counts is the last attended token."""
    widths = []

    def collate(rows):
        ids = [row["chosen_ids"] for row in rows] + [row["rejected_ids"] for row in rows]
        width = max(map(len, ids))
        widths.append(width)
        padding = [width - len(one) for one in ids]
        return {
            "input_ids": torch.tensor([[0] * pad + one for pad, one in zip(padding, ids, strict=True)]),
            "attention_mask": torch.tensor([[0] * pad + [1] * len(one) for pad, one in zip(padding, ids, strict=True)]),
            "note": torch.arange(len(rows)),
        }

    logs = []
    for collator in (None, collate):
        trainer = make_trainer(copy.deepcopy(model), dataset, data_collator=collator, batch_layout="auto")
        trainer.train()
        logs.append(training_logs(trainer))
    assert widths
    assert trainer.batch_layout == "padded"
    for ours, own in zip(*logs, strict=True):
        for name in ("loss", "accuracy", "margin", "num_tokens"):
            assert own[name] == REWARD.approx(ours[name]), name


def test_a_collator_that_forgets_half_the_rows_is_told(model, dataset, make_trainer):
    def collate(rows):
        ids = torch.tensor([row["chosen_ids"][:3] for row in rows[:3]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    trainer = make_trainer(model, dataset, data_collator=collate)
    with pytest.raises(ValueError, match="even number of rows"):
        trainer.train()


# ---- model and tokenizer --------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_text", [False, True])
def test_model_init_kwargs_reach_the_model_and_stay_as_they_were(tokenizer, dataset, make_trainer, tmp_path, as_text):
    folder = save_model_and_tokenizer(tmp_path / "base", tokenizer)
    kwargs = {"dtype": "bfloat16", "attn_implementation": "eager"}
    before = dict(kwargs)
    trainer = make_trainer(
        folder, dataset, processing_class=None, model_init_kwargs=json.dumps(kwargs) if as_text else kwargs
    )
    assert kwargs == before
    assert trainer.model.dtype == torch.bfloat16
    assert trainer.model.config._attn_implementation.endswith("eager")
    assert trainer.args.to_dict()["model_init_kwargs"] == before


def test_model_init_kwargs_beside_a_ready_model_are_said_to_be_ignored(model, dataset, make_trainer, caplog):
    make_trainer(model, dataset, model_init_kwargs={"dtype": "bfloat16"})
    assert "'dtype': ignored, as the model is already instantiated" in caplog.text


def test_text_that_is_no_json_is_refused(model, dataset, make_trainer):
    with pytest.raises(ConfigError) as error:
        make_trainer(model, dataset, model_init_kwargs="dtype=bfloat16")
    assert error.value.field == "model_init_kwargs"


def test_the_argument_parser_of_transformers_reads_the_config_beside_another(tmp_path):
    from dataclasses import dataclass

    @dataclass
    class Mine:
        extra: int = 3

    flags = ["--output_dir", str(tmp_path), "--max_length", "64", "--extra", "5", "--gradient_checkpointing", "false"]
    config, mine = HfArgumentParser((RewardConfig, Mine)).parse_args_into_dataclasses([*flags, "--use_cpu", "true"])
    assert (config.max_length, config.gradient_checkpointing, mine.extra) == (64, False, 5)
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"output_dir": str(tmp_path), "center_rewards_coefficient": 0.01, "extra": 7}))
    config, mine = HfArgumentParser((RewardConfig, Mine)).parse_json_file(str(path))
    assert (config.center_rewards_coefficient, mine.extra) == (0.01, 7)


def test_the_eos_token_asked_for_ends_the_text(tokenizer, make_trainer):
    dataset = Dataset.from_dict({"chosen": ["good", "fine"], "rejected": ["bad", "poor"]})
    trainer = make_trainer(tiny_model(tokenizer), dataset, eos_token="<|im_end|>")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert [row["chosen_ids"][-1] for row in trainer.train_dataset] == [end, end]
    assert trainer.model.config.eos_token_id == trainer.processing_class.eos_token_id == end
    assert trainer.processing_class.pad_token_id != end
    assert tokenizer.eos_token == "<|eos|>"


# ---- batches --------------------------------------------------------------------------------------------------


def test_padded_widths_are_multiples_of_what_was_asked_for(model, dataset, make_trainer):
    plain = make_trainer(copy.deepcopy(model), dataset, batch_layout="padded")
    wide = make_trainer(copy.deepcopy(model), dataset, batch_layout="padded", pad_to_multiple_of=16)
    widths = [batch["input_ids"].shape[1] for batch in batches_of(plain)]
    assert [batch["input_ids"].shape[1] for batch in batches_of(wide)] == [-(-width // 16) * 16 for width in widths]
    assert any(width % 16 for width in widths)
    for trainer in (plain, wide):
        trainer.train()
    losses = [[log["loss"] for log in training_logs(trainer)] for trainer in (plain, wide)]
    assert losses[0] == REWARD.approx(losses[1])


def test_a_layout_without_padding_says_that_there_is_nothing_to_pad(model, dataset, make_trainer, caplog):
    trainer = make_trainer(model, dataset, pad_to_multiple_of=16)
    assert trainer.batch_layout == "shared_prefix"
    assert "`pad_to_multiple_of` has no effect in the shared_prefix layout" in caplog.text
    caplog.clear()
    make_trainer(model, dataset, pad_to_multiple_of=16, batch_layout="padded")
    assert "pad_to_multiple_of" not in caplog.text


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_rows_of_similar_length_go_together(model, make_trainer, layout):
    rows = [
        {"prompt": "Say ", "chosen": "a" * (1 + 7 * n % 40), "rejected": "b" * (1 + 11 * n % 40)} for n in range(40)
    ]
    dataset = Dataset.from_list(rows)

    def spread(**settings):
        trainer = make_trainer(copy.deepcopy(model), dataset, batch_layout=layout, max_steps=10, **settings)
        order = [batch["response_lengths"].view(-1) for batch in batches_of(trainer)]
        trainer.train()
        assert len(training_logs(trainer)) == 10
        assert sum(len(lengths) for lengths in order) == 80
        # longest response of each row, whatever the order of the layout
        return sum(float(lengths.float().std()) for lengths in order), order[0].max()

    grouped, first = spread(train_sampling_strategy="group_by_length")
    shuffled, _ = spread()
    assert grouped < shuffled
    assert first == max(len(f"Say {row[name]}") + 1 for row in rows for name in ("chosen", "rejected"))


def test_sequential_sampling_keeps_the_order(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset, train_sampling_strategy="sequential", batch_layout="padded")
    first = batches_of(trainer)[0]
    length = first["response_lengths"][0]
    assert first["input_ids"][0, :length].tolist() == trainer.train_dataset[0]["chosen_ids"]


@pytest.mark.parametrize("remove", [True, False])
def test_columns_beside_the_preference(model, make_trainer, remove):
    rows = [{**row, "note": f"row {n}", "score": n} for n, row in enumerate(conversation_rows(8))]
    dataset = Dataset.from_list(rows)
    trainer = make_trainer(model, dataset, eval_dataset=dataset, remove_unused_columns=remove)
    trainer.train()
    assert trainer.evaluate()["eval_num_tokens"] > 0
    assert trainer.predict(dataset).predictions.shape == (8, 2)


def test_a_collator_of_ones_own_sees_the_columns_that_are_kept(model, make_trainer):
    rows = [{**row, "note": f"row {n}"} for n, row in enumerate(conversation_rows(8))]
    rows[1]["rejected"] = rows[1]["chosen"]  # dropped: the others must keep their own notes
    dataset = Dataset.from_list(rows)
    plain = DataCollatorForPreference(pad_token_id=0)
    seen = {}

    def collate(batch):
        for row in batch:
            seen[row.get("note")] = list(row["chosen_ids"])
        return plain(batch)

    trainer = make_trainer(model, dataset, data_collator=collate, remove_unused_columns=False, num_train_epochs=1)
    trainer.train()
    assert seen.keys() == {f"row {n}" for n in range(8) if n != 1}
    tokenizer = trainer.processing_class
    for note, ids in seen.items():
        content = rows[int(note.split()[1])]["prompt"][0]["content"]
        assert f"user\n{content}<|im_end|>" in tokenizer.decode(ids)


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_worker_processes_load_the_same_batches(model, dataset, make_trainer, layout):
    runs = []
    for workers in ({}, {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}):
        trainer = make_trainer(
            copy.deepcopy(model),
            dataset,
            batch_layout=layout,
            eval_dataset={"a": dataset, "b": dataset.select(range(3))},
            max_steps=7,  # three steps an epoch
            **workers,
        )
        trainer.train()
        metrics = [trainer.evaluate() for _ in range(2)]  # the second time with the same workers
        runs.append(([log["loss"] for log in training_logs(trainer)], metrics))
    assert runs[0][0] == SUMMED.approx(runs[1][0])
    for alone, helped in zip(runs[0][1], runs[1][1], strict=True):
        for name in ("eval_a_loss", "eval_b_loss", "eval_a_num_tokens", "eval_b_num_tokens"):
            assert alone[name] == SUMMED.approx(helped[name])


# ---- settings that mean something else here -------------------------------------------------------------------


def test_several_gpus_in_one_process_are_refused_with_the_launcher_to_use(model, dataset, make_trainer, monkeypatch):
    monkeypatch.setattr(RewardConfig, "n_gpu", property(lambda self: 2))
    with pytest.raises(ConfigError) as error:
        make_trainer(model, dataset)
    assert "torchrun" in error.value.fix


def test_a_stream_needs_to_be_told_when_to_stop(model, make_trainer):
    stream = IterableDataset.from_generator(partial(iter, conversation_rows(12)))
    with pytest.raises(ConfigError) as error:
        make_trainer(model, stream, max_steps=-1)
    assert error.value.field == "max_steps"


def test_the_step_and_the_epoch_are_logged(model, dataset, make_trainer):
    trainer = make_trainer(model, dataset, max_steps=6)
    trainer.train()
    assert [log["epoch"] for log in training_logs(trainer)] == pytest.approx([n / 3 for n in range(1, 7)])
    assert [log["step"] for log in training_logs(trainer)] == [1, 2, 3, 4, 5, 6]
    assert trainer.state.global_step == 6


def test_the_gradient_norm_is_that_before_clipping(model, dataset, make_trainer):
    norms = []
    for limit in (1e-3, 1e3):
        trainer = make_trainer(copy.deepcopy(model), dataset, max_steps=1, max_grad_norm=limit)
        trainer.train()
        norms.append(float(training_logs(trainer)[0]["grad_norm"]))
    assert norms[0] == REWARD.approx(norms[1])
    assert norms[0] > 1e-3


def test_the_default_output_folder_is_named_after_the_model(tokenizer, dataset, tmp_path, monkeypatch, caplog):
    folder = save_model_and_tokenizer(tmp_path / "Tiny-1B", tokenizer)
    monkeypatch.chdir(tmp_path)
    with caplog.at_level(logging.WARNING):
        trainer = RewardTrainer(folder, train_dataset=dataset)
    assert trainer.args.output_dir == "Tiny-1B-Reward"
    assert trainer.processing_class.chat_template == tiny_tokenizer().chat_template


# ---- settings of our own --------------------------------------------------------------------------------------


def test_the_centering_penalty_is_weighed_into_the_loss(model, dataset, make_trainer):
    plain = make_trainer(copy.deepcopy(model), dataset)
    centered = make_trainer(copy.deepcopy(model), dataset, center_rewards_coefficient=0.25)
    rewards = plain.predict(dataset).predictions
    penalty = 0.25 * float(((rewards[:, 0] + rewards[:, 1]) ** 2).mean())
    assert penalty > 0.01
    assert centered.evaluate(dataset)["eval_loss"] == REWARD.approx(plain.evaluate(dataset)["eval_loss"] + penalty)


def test_no_limit_keeps_every_row(model, make_trainer):
    rows = conversation_rows(4)
    rows[0]["chosen"] = [{"role": "assistant", "content": "x" * 1100}]
    assert len(make_trainer(model, Dataset.from_list(rows)).train_dataset) == 3  # the default is 1024
    trainer = make_trainer(model, Dataset.from_list(rows), max_length=None)
    assert len(trainer.train_dataset) == 4


def test_the_deprecated_padding_token_is_still_read(tokenizer, dataset, make_trainer):
    with pytest.warns(FutureWarning, match="`pad_token` is deprecated"):
        trainer = make_trainer(tiny_model(tokenizer), dataset, pad_token="<|bos|>")
    assert trainer.processing_class.pad_token == "<|bos|>"
    assert trainer.model.config.pad_token_id == tokenizer.convert_tokens_to_ids("<|bos|>")
    assert tokenizer.pad_token == "<|pad|>"


def test_data_is_prepared_by_several_processes(model, dataset, make_trainer, monkeypatch):
    monkeypatch.setattr("plaudit.data.prepare.ROWS_PER_PROCESS", 1)
    alone, together = (make_trainer(model, dataset, dataset_num_proc=count) for count in (None, 2))
    assert list(alone.train_dataset) == list(together.train_dataset)


def test_code_that_comes_with_a_model_runs_only_on_request(tokenizer, dataset, make_trainer, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path.copy())  # transformers adds that folder
    folder = save_model_and_tokenizer(tmp_path / "base", tokenizer)
    path = tmp_path / "base" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "auto_map": {"AutoModelForSequenceClassification": "mine.Mine"}}))
    (tmp_path / "base" / "mine.py").write_text(
        "from transformers import LlamaForSequenceClassification\n\n\n"
        "class Mine(LlamaForSequenceClassification):\n    pass\n"
    )
    names = [type(make_trainer(folder, dataset, trust_remote_code=trust).model).__name__ for trust in (False, True)]
    assert names == ["LlamaForSequenceClassification", "Mine"]


def test_train_returns_what_the_trainer_does_and_passes_its_arguments_on(model, dataset, make_trainer):
    seen = {}

    class Watching(RewardTrainer):
        def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
            seen["ignore_keys"] = ignore_keys
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    trainer = make_trainer(model, dataset, cls=Watching, eval_dataset=dataset, eval_strategy="steps", eval_steps=2)
    output = trainer.train(trial=None, ignore_keys_for_eval=["mine"])
    assert output.global_step == 2
    assert output.training_loss == REWARD.approx(sum(log["loss"] for log in training_logs(trainer)) / 2)
    assert "train_runtime" in output.metrics
    assert seen == {"ignore_keys": ["mine"]}
