"""DeepSpeed: ZeRO trains like one process, with exact margins; and what its sharding must not break.

Training runs where DeepSpeed is installed (`make test-deepspeed`), on the CPU. The other tests imitate it.
"""

import contextlib
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from run_deepspeed_process import ROWS, train
from tokenizers import Tokenizer
from tokenizers import models as tokenizer_models
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from two_processes import run_two_processes

from builders import tiny_tokenizer
from model_builders import COMMON, tiny_reward_model
from plaudit.model.head import initialize_head
from plaudit.model.load import load_model, set_pad_token
from tolerances import REWARD


@pytest.fixture
def language_model(tmp_path):
    """Folder of a language model: its reward head is drawn when it is loaded."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**COMMON | {"vocab_size": len(tiny_tokenizer())}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run_deepspeed(folder, stage, precision):
    # DeepSpeed compiles with what stands beside the interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    settings = {"PATH": path, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return run_two_processes("run_deepspeed_process.py", folder, stage, precision, timeout=400, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "precision"), [(2, "fp32"), (3, "fp32"), (2, "bf16")])
def test_zero_trains_like_one_process(language_model, tmp_path, stage, precision):
    pytest.importorskip("deepspeed")
    one = train(language_model, tmp_path / "one", "shared_prefix", 4)
    assert np.std(one["rewards"]) > 1e-2, "the rewards must differ for this to say anything"
    tolerance = 1e-4 if precision == "fp32" else 0.2
    for results in run_deepspeed(tmp_path, stage, precision):
        for layout, two in results.items():
            assert two["engine"] == "DeepSpeedEngine"
            assert two["sharded"] == (stage == 3)
            assert two["layout"] == layout
            assert two["complete"] == "checkpoint-3"
            assert two["losses"] == pytest.approx(one["losses"], abs=tolerance)
            np.testing.assert_allclose(two["rewards"], one["rewards"], atol=tolerance)
            np.testing.assert_allclose(two["resumed"], two["rewards"], **REWARD.close)
            # The loss of the rewards that were returned, with the margins to the last digit.
            margins = torch.tensor([row["margin"] for row in ROWS])
            rewards = torch.tensor(two["rewards"])
            exact = -torch.nn.functional.logsigmoid(rewards[:, 0] - rewards[:, 1] - margins).mean()
            assert two["eval_loss"] == REWARD.approx(exact.item())
            if precision == "fp32":
                assert_saved(tmp_path / layout / "final", two["rewards"])


def assert_saved(folder, rewards):
    """The folder gives the rewards to anyone who loads it."""
    loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    tokenizer = tiny_tokenizer()
    for row, expected in zip(ROWS, rewards, strict=True):
        for key, reward in zip(("chosen", "rejected"), expected, strict=True):
            ids = tokenizer.apply_chat_template(row["prompt"] + row[key], return_tensors="pt", return_dict=False)
            assert loaded(ids).logits.item() == REWARD.approx(reward)


def test_a_fresh_head_is_drawn_into_gathered_weights(language_model, monkeypatch):
    """Imitates ZeRO-3: outside `GatheredParameters` a parameter is empty, and what is written to it is lost."""
    gathered = []
    load = AutoModelForSequenceClassification.from_pretrained

    def sharded(*args, **kwargs):
        model, info = load(*args, **kwargs)
        weight = model.score.weight
        weight.ds_id, weight.ds_shape, weight.whole = 0, weight.shape, weight.data
        weight.data = torch.empty(0)
        return model, info

    @contextlib.contextmanager
    def gather(parameters, modifier_rank=None):
        parameters = list(parameters)
        gathered.append(modifier_rank)
        for parameter in parameters:
            parameter.data = parameter.whole
        yield
        for parameter in parameters:
            parameter.whole, parameter.data = parameter.data, torch.empty(0)

    fake = types.SimpleNamespace(zero=types.SimpleNamespace(GatheredParameters=gather))
    monkeypatch.setitem(sys.modules, "deepspeed", fake)
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", sharded)
    model = load_model(str(language_model), seed=7)
    assert gathered == [0], "rank 0 is the one whose values count"
    expected = torch.nn.Linear(COMMON["hidden_size"], 1, bias=False)
    initialize_head(expected, 7)
    assert torch.equal(model.score.weight.whole, expected.weight)


def test_sharded_embeddings_are_counted_whole():
    """A padding token goes into a spare row; ZeRO-3 shows embeddings of no rows, which must not be made longer."""
    backend = Tokenizer(tokenizer_models.WordLevel({"<e>": 0, "a": 1, "b": 2}, unk_token="a"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>", pad_token="<e>")
    model = tiny_reward_model("llama", vocab_size=8, eos_token_id=0, pad_token_id=None)
    weight = model.get_input_embeddings().weight
    weight.ds_shape = weight.shape
    weight.data = torch.empty(0)
    resized = []
    model.resize_token_embeddings = resized.append
    assert set_pad_token(model, tokenizer).pad_token_id == 3
    assert resized == []
