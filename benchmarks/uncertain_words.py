"""Comparisons whose truth is known: words have a worth, some are rare, and some are never seen in training."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import expit
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel, PreTrainedTokenizerFast

SEEN, UNSEEN, WORDS = 300, 100, 4  # words of each kind, and words of a response


class Words:
    """Draws comparisons of responses that are the sum of their words.

    Args:
        seed: Seed of worths, frequencies and draws.
        noisy: Whether the better one wins with the probability of Bradley and Terry, rather than always.
    """

    def __init__(self, seed: int, noisy: bool) -> None:
        self._rng = np.random.default_rng(seed)
        self._worth = self._rng.normal(size=SEEN + UNSEEN)
        self._frequency = 1 / np.arange(1, SEEN + 1)
        self._frequency /= self._frequency.sum()
        self._noisy = noisy

    def draw(self, count: int, *, far: bool = False) -> list[dict[str, str]]:
        """Some comparisons; of words that are never seen in training, if they are to be far from it."""
        return [self._row(far) for _ in range(count)]

    def _row(self, far: bool) -> dict[str, str]:
        prompt = self._rng.choice(SEEN, 3, p=self._frequency)
        one, other = (
            self._rng.integers(SEEN, SEEN + UNSEEN, WORDS) if far else self._rng.choice(SEEN, WORDS, p=self._frequency)
            for _ in range(2)
        )
        difference = self._worth[one].sum() - self._worth[other].sum()
        if self._rng.random() > (expit(difference) if self._noisy else float(difference > 0)):
            one, other = other, one
        prompt_text, chosen, rejected = (" ".join(f"w{word}" for word in words) for words in (prompt, one, other))
        return {"prompt": f"{prompt_text} : ", "chosen": chosen, "rejected": rejected}


def words_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    names = ["<pad>", "<eos>", ":", *(f"w{word}" for word in range(SEEN + UNSEEN))]
    backend = Tokenizer(models.WordLevel({name: place for place, name in enumerate(names)}, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def words_model(seed: int) -> PreTrainedModel:
    """A small Llama that knows nothing."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=SEEN + UNSEEN + 3,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
        num_labels=1,
    )
    return LlamaForSequenceClassification(config)
