"""Sharing a model: what arrives on the Hub, here a folder, and what the model card says."""

import json
import re
from concurrent.futures import Future
from pathlib import Path
from shutil import copy2
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers.trainer
import yaml
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from model_builders import tiny_model
from plaudit import RewardTrainer
from plaudit.version import __version__
from tolerances import REWARD


class FakeHub:
    """What the Trainer asks of the Hub, on a folder: each repository a folder, each upload a commit."""

    def __init__(self, root):
        self.root, self.commits = root, []

    def create_repo(self, repo_id, *, token=None, private=None, exist_ok=False):
        repo_id = repo_id if "/" in repo_id else f"someone/{repo_id}"
        (self.root / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(
        self,
        *,
        repo_id,
        folder_path,
        commit_message=None,
        token=None,
        run_as_future=False,
        ignore_patterns=None,
        revision=None,
        path_in_repo="",
    ):
        source, target = Path(folder_path), self.root / repo_id / path_in_repo
        names = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
        names = list(filter_repo_objects(names, ignore_patterns=ignore_patterns))
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            copy2(source / name, target / name)
        commit = SimpleNamespace(
            repo_id=repo_id, message=commit_message, names=names, token=token, revision=revision, path=path_in_repo
        )
        self.commits.append(commit)
        if not run_as_future:
            return commit
        future = Future()
        future.set_result(commit)
        return future


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    if hasattr(transformers.trainer, "hf_api"):
        monkeypatch.setattr(transformers.trainer, "hf_api", lambda: fake)
    else:  # older transformers call functions
        monkeypatch.setattr(transformers.trainer, "create_repo", fake.create_repo)
        monkeypatch.setattr(transformers.trainer, "upload_folder", fake.upload_folder)
    return fake


def header_of(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---")[1])


def code_of(text):
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def plain_rewards(model, dataset):
    with torch.no_grad():
        return np.array(
            [
                [model(torch.tensor([row[key]])).logits.item() for key in ("chosen_ids", "rejected_ids")]
                for row in dataset
            ]
        )


def assert_it_can_be_served(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "reward"}
    assert config["problem_type"] == "regression"
    assert config["sentence_transformers"] == {"activation_fn": "torch.nn.modules.linear.Identity"}
    assert config["pad_token_id"] != config["eos_token_id"]
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert list(weights.get_slice("score.weight").get_shape()) == [1, 32]
    assert {name for name in names if not name.startswith("model.")} == {"score.weight"}


# ---- on the Hub -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["padded", "shared_prefix"])
def test_a_pushed_model_is_whole(model, dataset, make_trainer, hub, layout):
    trainer = make_trainer(
        model, dataset, batch_layout=layout, learning_rate=1e-2, hub_model_id="us/judge", save_strategy="steps",
        save_steps=1,
    )  # fmt: skip
    trainer.train()
    expected = trainer.predict(dataset).predictions
    trainer.push_to_hub("First try", token="secret", revision="draft", license="apache-2.0", tags=["mine"])
    (commit,) = hub.commits
    assert (commit.repo_id, commit.message, commit.token, commit.revision) == (
        "us/judge",
        "First try",
        "secret",
        "draft",
    )
    assert not any("checkpoint" in name for name in commit.names)
    folder = hub.root / "us/judge"
    assert_it_can_be_served(folder)
    reloaded = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    np.testing.assert_allclose(plain_rewards(reloaded, trainer.train_dataset), expected, **REWARD.close)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token_id == reloaded.config.pad_token_id
    assert tokenizer.chat_template == trainer.processing_class.chat_template
    header = header_of(folder)
    assert {"plaudit", "reward-trainer", "mine"} <= set(header["tags"])
    assert (header["license"], header["library_name"]) == ("apache-2.0", "transformers")
    assert 'from_pretrained("us/judge")' in (folder / "README.md").read_text()


def test_a_pushed_adapter_brings_its_head(tokenizer, dataset, make_trainer, hub, tmp_path):
    peft = pytest.importorskip("peft")
    base = tmp_path / "base"
    tiny_model(tokenizer).save_pretrained(base)
    trainer = make_trainer(
        str(base), dataset, peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"]), learning_rate=1e-2
    )
    trainer.train()
    trainer.push_to_hub()
    folder = hub.root / "someone/out"
    with safe_open(folder / "adapter_model.safetensors", "pt") as weights:
        assert [name for name in weights.keys() if "score" in name]  # noqa: SIM118 (not a mapping)
    reloaded = peft.AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1).eval()
    np.testing.assert_allclose(
        plain_rewards(reloaded, trainer.train_dataset), trainer.predict(dataset).predictions, **REWARD.close
    )
    assert AutoTokenizer.from_pretrained(folder).chat_template == tokenizer.chat_template
    header = header_of(folder)
    assert header["library_name"] == "peft"
    assert {"plaudit", "reward-trainer"} <= set(header["tags"])


def test_pushing_need_not_wait(model, dataset, make_trainer, hub):
    trainer = make_trainer(model, dataset)
    assert trainer.push_to_hub(blocking=False).result().repo_id == "someone/out"


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("strategy", ["every_save", "checkpoint", "end"])
def test_models_are_pushed_while_they_train(tokenizer, dataset, make_trainer, hub, strategy, adapter):
    peft_config = None
    if adapter:
        peft = pytest.importorskip("peft")
        peft_config = peft.LoraConfig(r=2, target_modules=["q_proj"])
    trainer = make_trainer(
        tiny_model(tokenizer),
        dataset,
        peft_config=peft_config,
        push_to_hub=True,
        hub_strategy=strategy,
        save_strategy="steps",
        save_steps=2,
        max_steps=4,
    )
    trainer.train()
    saves = [commit for commit in hub.commits if not commit.path]
    weights = "adapter_model.safetensors" if adapter else "model.safetensors"
    assert [commit.message for commit in saves] == (
        [] if strategy == "end" else ["Training in progress, step 2", "Training in progress, step 4"]
    )
    for commit in saves:
        assert {weights, "README.md", "tokenizer.json", "chat_template.jinja"} <= set(commit.names)
    checkpoints = [commit for commit in hub.commits if commit.path]
    assert [commit.path for commit in checkpoints] == (["last-checkpoint"] * 2 if strategy == "checkpoint" else [])
    assert all("trainer_state.json" in commit.names for commit in checkpoints)
    trainer.save_model()
    assert hub.commits[-1].message == "Model save"
    folder = hub.root / "someone/out"
    assert {"plaudit", "reward-trainer"} <= set(header_of(folder)["tags"])
    if not adapter:
        assert_it_can_be_served(folder)


# ---- the model card -------------------------------------------------------------------------------------------


def test_the_card_says_what_was_done_and_with_what(model, dataset, make_trainer, tmp_path):
    parts = {"easy": dataset.select(range(5)), "hard": dataset.select(range(5, 12))}
    trainer = make_trainer(model, dataset, eval_dataset=parts, max_length=300)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(
        language=["en", "de"],
        license="mit",
        tags="mine",
        model_name="Judge",
        finetuned_from="maker/base",
        tasks="text-ranking",
        dataset_tags=["some/pairs"],
        dataset_args="the first half of some/pairs",
    )
    folder = tmp_path / "out"
    text, header = (folder / "README.md").read_text(), header_of(folder)
    assert header["language"] == ["en", "de"]
    assert (header["license"], header["base_model"]) == ("mit", "maker/base")
    assert (header["pipeline_tag"], header["datasets"]) == ("text-ranking", ["some/pairs"])
    assert "# Judge" in text
    assert "train data: 12 rows read, 12 kept" in text
    assert "easy data: 5 rows read" in text
    assert "the first half of some/pairs" in text
    assert "| max_length | 300 |" in text
    for name in ("eval_easy_accuracy", "eval_hard_accuracy"):
        assert f"| {name} | {metrics[name]:.4g} |" in text
    assert f"| plaudit | {__version__} |" in text
    assert f"| transformers | {transformers.__version__} |" in text
    assert f"| torch | {torch.__version__} |" in text


def test_the_card_says_how_to_load_score_and_serve(model, dataset, tokenizer, make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(model, dataset)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name=str(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"vllm serve {tmp_path / 'out'} --runner pooling" in text
    score, serve = code_of(text)
    names = {}
    exec(score, names)
    sent = {}

    def post(url, json):
        sent.update(json, url=url)
        return SimpleNamespace(json=lambda: {"data": [{"probs": [names["reward"]]}]})

    monkeypatch.setattr("requests.post", post)
    exec(serve, names)
    assert names["served"] == names["reward"]
    assert sent["url"].endswith("/classify")
    assert sent["input"] == [names["inputs"]["input_ids"][0].tolist()]  # ids: no server adds a second BOS to them
    assert sent["use_activation"] is False


def test_the_card_of_an_adapter_merges_before_it_serves(tokenizer, dataset, make_trainer, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    tiny_model(tokenizer).save_pretrained(tmp_path / "base")
    trainer = make_trainer(str(tmp_path / "base"), dataset, peft_config=peft.LoraConfig(r=2, target_modules=["q_proj"]))
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name=str(tmp_path / "out"))
    score, merge, _ = code_of((tmp_path / "out" / "README.md").read_text())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(score, names)
    exec(merge, names)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert merged(**names["inputs"]).logits.item() == REWARD.approx(names["reward"])
    assert_it_can_be_served(tmp_path / "merged")


def test_a_card_can_be_written_before_anything_else_is(model, dataset, make_trainer, tmp_path):
    make_trainer(model, dataset, cls=RewardTrainer).create_model_card()
    assert "# out" in (tmp_path / "out" / "README.md").read_text()
