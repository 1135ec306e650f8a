"""`torch_compile` with the shared-prefix layout: the same losses, and no compiling for each new batch."""

import pytest
import torch
from datasets import Dataset

from model_builders import conversation_rows, tiny_model
from tolerances import REWARD


@pytest.fixture
def train(tokenizer, make_trainer):
    def train(steps, **settings):
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        trainer = make_trainer(
            tiny_model(tokenizer),
            Dataset.from_list(conversation_rows(40)),
            gradient_checkpointing=False,
            batch_layout="shared_prefix",
            max_steps=steps,
            logging_steps=1,
            per_device_train_batch_size=3,
            **settings,
        )
        trainer.train()
        losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        return losses, torch._dynamo.utils.counters["stats"]["unique_graphs"]

    yield train
    torch.compiler.reset()


@pytest.mark.slow
def test_compiled_steps_are_the_same_and_later_batches_compile_nothing(train):
    plain, graphs = train(10)
    assert graphs == 0
    compiled, all_graphs = train(10, torch_compile=True, torch_compile_backend="eager")
    assert compiled == REWARD.approx(plain)
    _, first_graphs = train(4, torch_compile=True, torch_compile_backend="eager")
    assert all_graphs == first_graphs > 0
