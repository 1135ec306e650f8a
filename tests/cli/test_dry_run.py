"""The dry run: what it shows, that its numbers are true, and that it changes and writes nothing."""

from __future__ import annotations

import io
import re
from collections import Counter

import pytest
import torch
from datasets import Dataset
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import RewardConfig, RewardTrainer
from plaudit.cli import build, dry_run
from plaudit.cli.dry_run import count_steps, measure_speed, render_tokens, token_texts
from plaudit.training import memory


def plain(text, width=200):
    """What a terminal without colours shows."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(text)
    return out.getvalue()


@pytest.fixture
def make_trainer(tmp_path):
    def make(architecture="llama", rows=12, **settings):
        tokenizer = tiny_tokenizer()
        config = RewardConfig(
            str(tmp_path / "out"), use_cpu=True, report_to=[], per_device_train_batch_size=4, **settings
        )
        dataset = Dataset.from_list(conversation_rows(rows))
        return RewardTrainer(
            tiny_model(tokenizer, architecture), config, train_dataset=dataset, processing_class=tokenizer
        )

    return make


# --- the whole page --------------------------------------------------------------------------------------


def test_shows_everything_and_writes_nothing(train, tmp_path):
    before = sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts)
    code, out, err = train("--dry-run", "--eval_fraction", "0.25")
    assert code == 0, err
    for line in (
        r"model +tiny \(LlamaForSequenceClassification\)",
        r"parameters +31,648",
        r"precision +weights in float32",
        r"device +cpu",
        r"batch layout +shared_prefix \(each prompt computed once\)",
        r"train data: 9 rows read, 9 kept",
        r"eval data: 3 rows read, 3 kept",
        r"Shared prompt: \d+ tokens",
        r"◀ reward",
        r"padded +\(16, \d+\)",
        r"shared_prefix +\(1, \d+\)",
        r"peak memory +about [\d.]+ [KMG]iB: weights 124 KiB",
        r"steps +2 of 8 examples",
        r"time +about ",
        r"Training would save to .*out\.",
    ):
        assert re.search(line, out), f"{line} not in:\n{out}"
    assert out.count("◀ reward") == 2
    assert out.count("Shared prompt") == 1
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


def test_reads_a_stream(train):
    code, out, err = train("--dry_run", "--dataset_streaming")
    assert code == 0, err
    assert "12 rows read so far" in out
    assert "steps         2 of 8" in out


def test_an_adapter_trains_few_parameters(train):
    pytest.importorskip("peft")
    code, out, err = train("--dry-run", "--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj")
    assert code == 0, err
    # Two matrices of rank 2 on the q_proj (32 to 32) of each of 3 layers, and the head.
    assert f"of which {3 * 2 * (32 + 32) + 32} are trained" in out


def test_says_which_layout_a_failed_self_check_leaves(train, monkeypatch):
    monkeypatch.setattr("plaudit.model.shared_prefix.compare_with_padded", lambda *a, **k: "it is odd")
    code, out, err = train("--dry-run")
    assert code == 0
    assert re.search(r"batch layout +padded \(it is odd\)", out)
    assert "Falling back to the padded layout" in err


def test_errors_are_those_of_training(train, tmp_path):
    code, _, err = train("--dry-run", "--max_length", "3")
    assert code == 2
    assert "max_length" in err
    (tmp_path / "file").write_text("")
    code, _, err = train("--dry-run", "--use_cpu", "--output_dir", str(tmp_path / "file"), defaults=False)
    assert code == 2
    assert "cannot be written" in err


def test_too_little_memory_is_said(train, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(memory, "estimate_memory", fail)
    code, out, _ = train("--dry-run")
    assert code == 0
    assert "Even a small batch does not fit" in out


# --- tokens ----------------------------------------------------------------------------------------------


def test_pieces_join_to_the_text_and_hold_whole_characters():
    tokenizer = tiny_tokenizer()
    text = "<|im_start|>a b é 😀!<|im_end|>\n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_texts(ids, tokenizer)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    assert pieces[:4] == ["<|im_start|>", "a", " ", "b"]
    # The four bytes of the emoji: it stands at the last one.
    end = pieces.index("😀")
    assert pieces[end - 3 : end] == ["", "", ""]


def test_blanks_that_a_tokenizer_drops_at_the_start_are_shown():
    backend = Tokenizer(models.WordLevel({"▁the": 0, "▁sky": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert tokenizer.decode([1]) == "sky"
    assert token_texts([0, 1, 1], tokenizer) == ["the", " sky", " sky"]


def test_boundaries_and_reward_are_readable_without_colour():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("hi\n<|im_end|>", add_special_tokens=False)["input_ids"]
    assert plain(render_tokens(ids, tokenizer, rewarded=True)) == "h│i│↵\n│<|im_end|>│ ◀ reward\n"
    assert "reward" not in plain(render_tokens(ids, tokenizer, rewarded=False))


def test_special_tokens_have_a_colour_of_their_own():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    ids = tokenizer("h<|im_end|>", add_special_tokens=False)["input_ids"]
    rendered = render_tokens(ids, tokenizer, rewarded=False)
    styles = {rendered.plain[span.start : span.end]: str(span.style) for span in rendered.spans}
    assert styles["<|im_end|>"] == "bold magenta"
    assert styles.get("h") != "bold magenta"


def test_long_texts_lose_their_middle_and_say_so():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("x" * 1000, add_special_tokens=False)["input_ids"]
    text = render_tokens(ids, tokenizer, rewarded=True).plain
    assert text.count("x│") == 320
    assert "680 tokens omitted" in text
    assert text.endswith("◀ reward")


# --- numbers ---------------------------------------------------------------------------------------------


def estimate_memory(trainer, rows, tokens):
    layout, loss_of_rows = trainer.batch_layout, trainer.loss_of_rows
    return memory.estimate_memory(trainer.model, trainer.args, rows, tokens, layout=layout, loss_of_rows=loss_of_rows)


def test_token_counts_are_those_of_the_collators(make_trainer):
    trainer = make_trainer()
    for rows in memory.sample_batches(trainer.train_dataset, trainer.args):
        count = memory.count_tokens(rows)
        batch = trainer.data_collator([dict(row) for row in rows])
        assert count["shared_prefix"] == batch["input_ids"].numel()
        assert count["responses"] == batch["response_lengths"].sum()
        assert count["padded"] == 2 * len(rows) * batch["response_lengths"].max()
    assert memory.count_tokens(rows, 64)["padded"] == 2 * len(rows) * 64


def test_sampled_batches_hold_each_row_once_up_to_the_limit(make_trainer, monkeypatch):
    trainer = make_trainer(rows=10)
    batches = memory.sample_batches(trainer.train_dataset, trainer.args)
    assert [len(rows) for rows in batches] == [4, 4, 2]
    monkeypatch.setattr(memory, "SAMPLED_BATCHES", 1)
    assert [len(rows) for rows in memory.sample_batches(trainer.train_dataset, trainer.args)] == [4]


@pytest.mark.parametrize("checkpointing", [True, False])
def test_measuring_leaves_the_model_as_it_was(make_trainer, checkpointing):
    trainer = make_trainer(gradient_checkpointing=checkpointing)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    rows = memory.sample_batches(trainer.train_dataset, trainer.args)[0]
    estimate_memory(trainer, rows, 1000)
    assert min(measure_speed(trainer, rows)) > 0
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())
    assert not any(getattr(module, "gradient_checkpointing", False) for module in trainer.model.modules())


def test_memory_of_weights_gradients_and_optimizer_is_exact(make_trainer):
    trainer = make_trainer()
    trainer.model.model.embed_tokens.weight.requires_grad_(False)
    frozen = trainer.model.model.embed_tokens.weight.numel()
    count = sum(parameter.numel() for parameter in trainer.model.parameters())
    needed = estimate_memory(trainer, memory.sample_batches(trainer.train_dataset, trainer.args)[0], 100)
    assert needed["weights"] == 4 * count
    assert needed["gradients"] == 4 * (count - frozen)
    assert needed["optimizer"] == 8 * (count - frozen)
    assert needed.keys() == {"weights", "gradients", "optimizer", "activations"}


def test_activations_grow_with_tokens_and_shrink_with_checkpointing(make_trainer):
    kept = {}
    for checkpointing in (True, False):
        trainer = make_trainer(gradient_checkpointing=checkpointing)
        rows = memory.sample_batches(trainer.train_dataset, trainer.args)[0]
        for tokens in (1000, 2000):
            kept[checkpointing, tokens] = estimate_memory(trainer, rows, tokens)["activations"]
    assert 1.7 < kept[False, 2000] / kept[False, 1000] < 2.1
    assert kept[True, 1000] < kept[False, 1000] / 2
    # At the least each of 3 layers keeps its input, 32 numbers a token.
    assert kept[True, 1000] >= 3 * 1000 * 32 * 4


def test_counted_activations_are_what_a_real_batch_of_that_size_keeps(make_trainer):
    trainer = make_trainer(gradient_checkpointing=False, rows=40)
    rows = [dict(row) for row in trainer.train_dataset]
    tokens = memory.count_tokens(rows)[trainer.batch_layout]
    assert tokens > 1000
    saved = memory.saved_bytes(trainer.model, trainer.loss_of_rows, rows)
    assert estimate_memory(trainer, rows, tokens)["activations"] == pytest.approx(saved, rel=0.15)


def test_weights_are_not_counted_as_activations(make_trainer):
    trainer = make_trainer(gradient_checkpointing=False)
    rows = memory.sample_batches(trainer.train_dataset, trainer.args)[0]
    weights = sum(parameter.numel() * 4 for parameter in trainer.model.parameters())
    assert estimate_memory(trainer, rows, 0)["activations"] < weights / 4


@pytest.mark.parametrize(
    ("settings", "rows", "steps"),
    [
        ({"num_train_epochs": 2}, 10, 2 * 3),
        ({"num_train_epochs": 2, "gradient_accumulation_steps": 2}, 10, 2 * 2),
        ({"num_train_epochs": 0.5}, 16, 2),
        ({"max_steps": 7}, None, 7),
    ],
)
def test_steps_are_those_of_the_trainer(make_trainer, settings, rows, steps):
    trainer = make_trainer(rows=rows or 12, save_strategy="no", disable_tqdm=True, **settings)
    assert count_steps(trainer.args, rows) == steps
    trainer.train()
    assert trainer.state.global_step == steps


def test_time_adds_batches_and_optimizer(train, monkeypatch):
    monkeypatch.setattr(dry_run, "measure_speed", lambda trainer, rows: (0.01, 0.001))
    monkeypatch.setattr(memory, "count_tokens", lambda rows, multiple=None: Counter(padded=100, shared_prefix=100))
    monkeypatch.setattr(dry_run, "duration", lambda seconds: f"{seconds:.3f}")
    monkeypatch.setattr(memory, "estimate_memory", lambda *args, **kwargs: {})
    out = train("--dry-run", "--gradient_accumulation_steps", "2")[1]
    # 2 steps of 2 batches of 100 tokens, and of 31,648 parameters
    assert f"about {2 * (2 * 100 * 0.01 + 31_648 * 0.001):.3f} for training" in out


def test_the_estimate_is_built_like_the_training(monkeypatch, train):
    built = []
    real = build.RewardTrainer
    monkeypatch.setattr(build, "RewardTrainer", lambda *a, **k: built.append(k["args"]) or real(*a, **k))
    assert train("--dry-run", "--batch_layout", "padded", "--pad_to_multiple_of", "8")[0] == 0
    assert (built[0].batch_layout, built[0].pad_to_multiple_of) == ("padded", 8)
