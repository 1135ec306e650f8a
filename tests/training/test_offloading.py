"""Offloaded activations give the same gradients; without an accelerator the setting does nothing and says so."""

import torch

from model_builders import tiny_reward_model
from plaudit.training.memory import offload_activations


def test_gradients_are_the_same_and_activations_leave():
    model = tiny_reward_model("llama")
    ids = torch.randint(3, 100, (3, 40), generator=torch.Generator().manual_seed(0))

    def gradients():
        model.zero_grad()
        model(ids).logits.sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    plain = gradients()
    moved = []
    empty = torch.empty
    torch.empty, keep = (lambda *args, **kwargs: moved.append(args[0]) or empty(*args, **kwargs)), torch.empty
    try:
        with offload_activations(model, pin_memory=False):
            offloaded = gradients()
    finally:
        torch.empty = keep
    assert moved, "nothing was offloaded"
    for left, right in zip(plain, offloaded, strict=True):
        assert torch.equal(left, right)


def test_it_does_nothing_on_a_cpu_and_says_so(model, dataset, make_trainer, caplog):
    trainer = make_trainer(model, dataset, activation_offloading=True)
    if not torch.accelerator.is_available():
        assert "`activation_offloading` has no effect here" in caplog.text
    trainer.train()
