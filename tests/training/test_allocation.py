"""Freed memory is kept while a model is trained on a CPU, and handed back afterwards."""

import platform
import resource

import pytest
import torch
from datasets import Dataset

from model_builders import conversation_rows, tiny_model
from plaudit.training import memory as allocation
from plaudit.training.memory import keep_freed_memory

CPU = torch.device("cpu")


def faults_of_steps(steps=5):
    """Pages that had to be mapped while a block comes and goes that is larger than what the C library ever keeps."""
    torch.ones(2**24)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(steps):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator only")
def test_steps_map_no_page_anew():
    # Other threads of the process count too, and the system may take idle pages back: the quietest of several tries.
    outside = min(faults_of_steps() for _ in range(4))
    with keep_freed_memory(CPU):
        inside = min(faults_of_steps() for _ in range(4))
    assert inside < outside / 4


class Library:
    def __init__(self):
        self.calls = []

    def mallopt(self, option, value):
        self.calls.append((option, value))

    def malloc_trim(self, pad):
        self.calls.append(("trim", pad))


def test_it_is_undone_also_after_an_error(monkeypatch):
    library = Library()
    monkeypatch.setattr(allocation, "_glibc", lambda: library)
    inside = keep_freed_memory(CPU)
    inside.__enter__()
    assert len(library.calls) == 3
    error = KeyboardInterrupt()
    assert not inside.__exit__(KeyboardInterrupt, error, None)
    assert {option for option, _ in library.calls[3:-1]} >= {option for option, _ in library.calls[:3]}
    assert library.calls[-1] == ("trim", 0)


def test_nothing_happens_elsewhere(monkeypatch):
    library = Library()
    monkeypatch.setattr(allocation, "_glibc", lambda: library)
    with keep_freed_memory(torch.device("meta")):
        assert not library.calls
    monkeypatch.setattr(allocation, "_glibc", lambda: None)
    with keep_freed_memory(CPU):
        pass
    monkeypatch.undo()
    monkeypatch.setattr(allocation.platform, "libc_ver", lambda: ("", ""))
    assert allocation._glibc() is None


def test_training_is_inside_and_its_end_outside(tokenizer, make_trainer, monkeypatch):
    library = Library()
    monkeypatch.setattr(allocation, "_glibc", lambda: library)
    seen = []
    trainer = make_trainer(tiny_model(tokenizer), Dataset.from_list(conversation_rows(4)), max_steps=1)
    compute_loss = trainer.compute_loss
    monkeypatch.setattr(
        trainer,
        "compute_loss",
        lambda *args, **kwargs: seen.append(len(library.calls)) or compute_loss(*args, **kwargs),
    )
    trainer.train()
    assert seen == [3]
    assert library.calls[-1] == ("trim", 0)
