"""Encoders: what is fresh is trained and saved with an adapter, and no row is longer than what they read."""

import json

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForSequenceClassification

from builders import tiny_tokenizer
from model_builders import tiny_model
from plaudit import RewardModel
from tolerances import REWARD

peft = pytest.importorskip("peft")

ENCODERS = {
    "bert": {},
    "deberta-v2": {"pooler_hidden_size": 32, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 16},
    "distilbert": {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4},
}


@pytest.fixture(params=ENCODERS)
def encoder(request, tmp_path):
    """Folder of a pretrained encoder: a masked language model, without what classification adds."""
    tokenizer = tiny_tokenizer()
    config = AutoConfig.for_model(
        request.param,
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        pad_token_id=0,
        **ENCODERS[request.param],
    )
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def rewards(model, dataset):
    with torch.no_grad():
        return np.array(
            [
                [model(torch.tensor([row[key]])).logits.item() for key in ("chosen_ids", "rejected_ids")]
                for row in dataset
            ]
        )


@pytest.mark.parametrize("by_name", [True, False])
def test_a_reloaded_adapter_gives_the_same_rewards(encoder, dataset, make_trainer, tmp_path, by_name):
    config = peft.LoraConfig(r=2, target_modules="all-linear")
    model = str(encoder)
    if not by_name:
        model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=1)
    trainer = make_trainer(model, dataset, peft_config=config, learning_rate=1e-2, max_steps=3)
    base_model = trainer.model.get_base_model()
    outside = [name for name, _ in base_model.named_parameters() if "pooler" in name or "classifier" in name]
    assert outside
    assert not any("lora_" in name for name in outside)
    before = {name: value.detach().clone() for name, value in base_model.named_parameters() if name in outside}
    trainer.train()
    after = dict(base_model.named_parameters())
    for name in outside:
        assert torch.equal(before[name], after[name]) == ("original_module" in name), name
    trainer.save_model()
    expected = trainer.predict(dataset).predictions
    torch.manual_seed(7)  # what is not saved is drawn otherwise
    folder = tmp_path / "out"
    again = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1).eval()
    np.testing.assert_allclose(rewards(again, trainer.train_dataset), expected, **REWARD.close)
    scorer = RewardModel.from_pretrained(folder, device="cpu")
    np.testing.assert_allclose(scorer.score(list(dataset)), expected, **REWARD.close)


def test_the_preset_quick_trains_encoders(encoder, tmp_path, capsys):
    from model_builders import conversation_rows
    from plaudit.cli.main import main

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, conversation_rows())))
    out = tmp_path / "quick"
    code = main(
        f"train --preset quick --model_name_or_path {encoder} --dataset_name {pairs} --output_dir {out} --max_steps 2 "
        "--use_cpu --disable_tqdm true --save_strategy no --report_to none".split()
    )
    assert code == 0, capsys.readouterr().err
    assert RewardModel.from_pretrained(out, device="cpu").score("a") != RewardModel.from_pretrained(
        out, device="cpu"
    ).score("b")


def encoder_tokenizer():
    """Ends texts with a token of its own, as BERT's [SEP], and has no EOS."""
    tokenizer = tiny_tokenizer(eos=False, chat_template=False)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|eos|>", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", 1), ("<|eos|>", 2)]
    )
    tokenizer.add_special_tokens({"cls_token": "<|bos|>", "sep_token": "<|eos|>"})
    return tokenizer


def test_an_encoder_without_eos_scores_and_trains_plain_text(make_trainer):
    from datasets import Dataset

    tokenizer = encoder_tokenizer()
    model = tiny_model(tiny_tokenizer(), "bert")
    ids = tokenizer("a good answer")["input_ids"]
    assert ids[-1] == 2
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits.item()
    assert RewardModel(model, tokenizer).score("a good answer") == pytest.approx(expected, abs=1e-5)
    rows = Dataset.from_list([{"chosen": "a good answer", "rejected": "a bad one"}] * 4)
    trainer = make_trainer(model, rows, processing_class=tokenizer)
    assert trainer.train_dataset[0]["chosen_ids"] == ids
