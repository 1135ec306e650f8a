"""The walk: the same rows get the same rewards wherever a trained model is used."""

from __future__ import annotations

import json
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import RewardModel
from plaudit.export.export import export_model
from plaudit.model.golden import load_golden_rows
from serve.conftest import LiveServer
from tolerances import REWARD
from verification.conftest import train

ROWS = conversation_rows(10)
SIDES = ("chosen", "rejected")


@pytest.fixture(scope="module", params=["full", "adapter"])
def walked(request, tmp_path_factory):
    """A trained model: its trainer, its folder, and its rewards (rows, 2) as evaluation gives them."""
    root = tmp_path_factory.mktemp(request.param)
    tokenizer, options = tiny_tokenizer(), {}
    if request.param == "adapter":
        peft = pytest.importorskip("peft")
        tiny_model(tokenizer, max_position_embeddings=512).save_pretrained(root / "base")
        config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        options = {"model": str(root / "base"), "peft_config": config}
    trainer = train(root / "run", tokenizer, conversation_rows(), **options)
    rewards = trainer.predict(Dataset.from_list(ROWS)).predictions
    assert rewards.shape == (len(ROWS), 2)
    assert np.ptp(rewards) > 0.1
    return trainer, root / "run", rewards


def conversations():
    """Whole conversations, chosen and rejected of each row in turn."""
    return [row["prompt"] + row[side] for row in ROWS for side in SIDES]


def stock_rewards(model, tokenizer):
    """By transformers alone: render, tokenise, call, one at a time."""
    rewards = []
    for messages in conversations():
        inputs = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            rewards.append(model(**inputs).logits.item())
    return np.reshape(rewards, (-1, 2))


def test_evaluation_reports_them(walked):
    trainer, _, rewards = walked
    metrics = trainer.evaluate(Dataset.from_list(ROWS))
    assert metrics["eval_mean_reward"] == REWARD.approx(rewards.mean())
    assert metrics["eval_margin"] == REWARD.approx((rewards[:, 0] - rewards[:, 1]).mean())


def test_golden_rows_have_them(walked):
    _, folder, rewards = walked
    known = {json.dumps(messages): reward for messages, reward in zip(conversations(), rewards.flat, strict=True)}
    golden = [row for row in load_golden_rows(str(folder)).rows if json.dumps(row.messages) in known]
    assert len(golden) >= 4
    for row in golden:
        assert row.reward == REWARD.approx(known[json.dumps(row.messages)])


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
@pytest.mark.parametrize("merge", [False, True])
def test_the_scorer_gives_them(walked, layout, merge):
    _, folder, rewards = walked
    model = RewardModel.from_pretrained(folder, device="cpu", batch_layout=layout, merge_adapter=merge)
    np.testing.assert_allclose(model.score(ROWS), rewards, **REWARD.close)


def test_transformers_and_its_pipeline_give_them(walked, tmp_path):
    _, folder, rewards = walked
    if (folder / "adapter_config.json").exists():
        peft = pytest.importorskip("peft")
        adapter = peft.AutoPeftModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        model = adapter.merge_and_unload()
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    np.testing.assert_allclose(stock_rewards(model.eval(), tokenizer), rewards, **REWARD.close)
    if model.config.pad_token_id is None:  # that of the base model, which an adapter does not change
        model.config.pad_token_id = tokenizer.pad_token_id
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    texts = [tokenizer.apply_chat_template(one, tokenize=False) for one in conversations()]
    answers = classify(texts, function_to_apply="none", batch_size=4, padding=True)
    np.testing.assert_allclose(np.reshape([one["score"] for one in answers], (-1, 2)), rewards, **REWARD.close)


def test_a_running_server_gives_them(walked):
    _, folder, rewards = walked
    with LiveServer(RewardModel.from_pretrained(folder, device="cpu")) as live:

        def ask(route, body):
            request = Request(f"http://127.0.0.1:{live.port}{route}", json.dumps(body).encode())
            with urlopen(request, timeout=30) as answer:
                return json.load(answer)

        scored = ask("/score", ROWS)["rewards"]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        texts = [tokenizer.apply_chat_template(one, tokenize=False) for one in conversations()]
        classified = [one["probs"] for one in ask("/classify", {"input": texts})["data"]]
        remote = ask("/get_reward", {"query": texts})["rewards"]
    np.testing.assert_allclose(scored, rewards, **REWARD.close)
    np.testing.assert_allclose(np.reshape(classified, (-1, 2)), rewards, **REWARD.close)
    np.testing.assert_allclose(np.reshape(remote, (-1, 2)), rewards, **REWARD.close)


def test_the_reloaded_export_gives_them(walked, tmp_path):
    _, folder, rewards = walked
    export_model(folder, tmp_path / "export", device="cpu")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "export").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "export")
    np.testing.assert_allclose(stock_rewards(model, tokenizer), rewards, **REWARD.close)
    again = RewardModel.from_pretrained(tmp_path / "export", device="cpu")
    np.testing.assert_allclose(again.score(ROWS), rewards, **REWARD.close)
    # The golden rows went along, and hold the export, too.
    assert load_golden_rows(str(tmp_path / "export")).rewards == REWARD.approx(load_golden_rows(str(folder)).rewards)
