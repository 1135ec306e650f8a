"""The model card says what was read, dropped, set and reached, and its code runs."""

import re

import pytest
import yaml


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
    assert names["reward"] == pytest.approx(expected, abs=1e-5)
