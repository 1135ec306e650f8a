"""The model card says what was read, dropped, set and reached, and its code runs."""

import re

import pytest
import yaml
from datasets import Dataset

from plaudit.objectives import OBJECTIVES
from plaudit.training.artifacts import render_model_card
from tolerances import REWARD


def test_the_card_of_a_run(model, dataset, make_trainer, tmp_path):
    trainer = make_trainer(model, dataset, eval_dataset=dataset, center_rewards_coefficient=0.25)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    trainer.create_model_card(model_name=str(tmp_path / "out"), tags=["mine"], dataset="some/pairs")
    text = (tmp_path / "out" / "README.md").read_text()
    header = yaml.safe_load(text.split("---")[1])
    assert header["tags"] == ["mine", "plaudit", "reward-trainer"]
    assert header["datasets"] == ["some/pairs"]
    assert "train data: 12 rows read, 12 kept" in text
    assert f"| eval_accuracy | {metrics['eval_accuracy']:.4g} |" in text
    assert "| center_rewards_coefficient | 0.25 |" in text
    assert "shared_prefix" in text
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
    names = {}
    exec(code, names)
    assert isinstance(names["reward"], float)


def test_the_code_of_an_adapter_runs_too(tokenizer, dataset, make_trainer, tmp_path):
    peft = pytest.importorskip("peft")
    from model_builders import tiny_model

    base = tmp_path / "base"
    tiny_model(tokenizer).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    trainer = make_trainer(str(base), dataset, peft_config=config)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name=str(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert yaml.safe_load(text.split("---")[1])["library_name"] == "peft"
    code = re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1]
    names = {}
    exec(code, names)
    expected = trainer.model(**names["inputs"]).logits.item()
    assert names["reward"] == REWARD.approx(expected)


def message(role, content):
    return [{"role": role, "content": content}]


YES, NO = message("assistant", "yes"), message("assistant", "no")


@pytest.mark.parametrize(
    ("settings", "rows", "says"),
    [
        (
            {},
            {"chosen": YES, "rejected": NO},
            "the Bradley-Terry loss.",
        ),
        ({}, {"response": YES, "score": 3.5}, "Rewards are estimates of ratings"),
        ({}, {"response": YES, "label": True}, "Above 0 a response is more likely good"),
        (
            {"objective": "plackett_luce", "plackett_luce_top_k": 2},
            {"responses": [message("assistant", one) for one in ("yes", "no", "so")], "ranks": [2, 1, 3]},
            "Trained on rankings with the Plackett-Luce loss.",
        ),
        (
            {"label_smoothing_factor": 0.1},
            {"chosen": YES, "rejected": NO, "preference_prob": 0.7},
            "| label_smoothing_factor | 0.1 |",
        ),
    ],
)
def test_the_card_says_what_was_really_learned(settings, rows, says, model, make_trainer, tmp_path):
    data = Dataset.from_list([{"prompt": message("user", f"Question {n}"), **rows} for n in range(4)])
    trainer = make_trainer(model, data, **settings)
    trainer.create_model_card()
    text = (tmp_path / "out" / "README.md").read_text()
    assert says in text
    name = trainer.training_objective.name
    assert f"| objective | {name} |" in text
    assert ("Bradley-Terry" in text) is (name == "bradley_terry")
    assert ("their absolute height means nothing" in text) is trainer.training_objective.compares
    assert ("plackett_luce_top_k" in text) is (name == "plackett_luce")
    assert ("label_smoothing_factor" in text) is ("label_smoothing_factor" in settings)


def test_every_objective_has_words_on_the_card():
    for name in OBJECTIVES:
        record = {
            "base_model": None,
            "adapter": False,
            "objective": name,
            "batch_layout": "",
            "batch_layout_reason": "",
        }
        record |= {"settings": {}, "data": {}, "versions": {}, "log_history": []}
        assert "Trained on " in render_model_card(record, {}, name="m", location="m")


@pytest.mark.parametrize("template", [True, False])
@pytest.mark.parametrize("golden_rows", [0, 4])
def test_the_code_of_a_text_model_scores_a_text(dataset, make_trainer, tmp_path, template, golden_rows):
    from builders import tiny_tokenizer
    from model_builders import tiny_model
    from plaudit import RewardModel
    from plaudit.export.export import export_model

    tokenizer = tiny_tokenizer(chat_template=template)
    rows = Dataset.from_list([{"prompt": f"{i}+1=", "chosen": f"{i + 1}", "rejected": "no"} for i in range(8)])
    trainer = make_trainer(tiny_model(tokenizer), rows, processing_class=tokenizer, golden_rows=golden_rows)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(model_name=str(tmp_path / "out"))
    text = (tmp_path / "out" / "README.md").read_text()
    assert "apply_chat_template" not in text
    assert "conversation" not in text
    names = {}
    exec(re.search(r"```python\n(.*?)```", text, flags=re.DOTALL)[1], names)
    expected = RewardModel.from_pretrained(tmp_path / "out").score({"response": "prompt and response"})
    assert names["reward"] == REWARD.approx(float(expected))
    if golden_rows:  # they tell an export what was trained
        export_model(tmp_path / "out", tmp_path / "exported")
        assert "tokenizer.eos_token" in (tmp_path / "exported" / "README.md").read_text()
