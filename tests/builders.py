"""Small real things for tests, built in memory: no downloads, no files."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{%- for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{%- if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A chat template that prints the tools and the messages, but no tool calls."""

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>")


def tiny_tokenizer(
    chat_template: bool | str = True, eos: bool = True, bos: bool = False, pad: bool = True
) -> PreTrainedTokenizerFast:
    """Build a byte-level tokenizer of 261 tokens that reads any text, one token a byte.

    Args:
        chat_template: True for :data:`CHATML`, False for none, or the template itself.
        eos: Whether there is an EOS token, ``<|eos|>`` (the tokenizer adds none by itself).
        bos: Whether there is a BOS token, ``<|bos|>``, which the tokenizer then puts before every text.
        pad: Whether there is a padding token, ``<|pad|>``.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL_TOKENS])
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", vocab["<|bos|>"])]
        )
    names = {"pad_token": pad, "bos_token": bos, "eos_token": eos}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, **{name: f"<|{name[:3]}|>" for name, wanted in names.items() if wanted}
    )
    if chat_template:
        tokenizer.chat_template = CHATML if chat_template is True else chat_template
    return tokenizer
