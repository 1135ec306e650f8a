"""Whole texts, as trainers and other servers' clients send them: rendered by a chat template, or plain."""

from __future__ import annotations

from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from plaudit.data.encode import ConversationEncoder
from plaudit.data.template_sketches import RENDER_ERRORS
from plaudit.serving.settings import TextForm

WORD_BYTES = 4 * 2**20
"""What the words of earlier requests may take: a server runs for months, and others' texts bring new ones for ever."""
_USER, _ASSISTANT = "Zu7q", "Za7q"


class WholeTexts:
    """Turns a whole text into a row that gets the reward of the conversation or the plain text that it is.

    A text rendered by the chat template is tokenised as it stands: its special tokens are in it, and none is added.
    What the template prints after the last answer is completed: a policy stops at its end token, before the line
    break that many templates print after it, and the reward would be read at another token than in training. A
    plain text gets one eos token at its end, as in training, also if it has one already.

    Args:
        tokenizer: The model's tokenizer.
        form: What texts are; ``"auto"`` takes a text for rendered if the template's beginning of an answer is in it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, form: TextForm = "auto") -> None:
        self._form = form
        self._header, self._ending = _marks_of(tokenizer)
        self._encoder = ConversationEncoder(tokenizer)
        self._encoder.cache_bytes = WORD_BYTES
        self._bos, self._eos = str(tokenizer.bos_token or ""), str(tokenizer.eos_token or "")

    def row(self, text: str) -> Any:
        """The row to score for a text.

        Args:
            text: A prompt with its response.
        """
        if not self._is_rendered(text):
            return text.removeprefix(self._bos).removesuffix(self._eos)
        if self._eos not in self._ending:
            text = text.removesuffix(self._eos)
        return {"response_ids": self._encoder.tokenize([text + self._missing_ending(text)])}

    def _is_rendered(self, text: str) -> bool:
        if self._form == "auto":
            return bool(self._header) and self._header in text
        return self._form == "rendered"

    def _missing_ending(self, text: str) -> str:
        there = next(size for size in range(len(self._ending), -1, -1) if text.endswith(self._ending[:size]))
        return self._ending[there:]


def _marks_of(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the chat template prints before an answer, however it goes on, and after the last one."""
    if not tokenizer.chat_template:
        return "", ""
    question = {"role": "user", "content": _USER}
    try:
        whole = str(
            tokenizer.apply_chat_template([question, {"role": "assistant", "content": _ASSISTANT}], tokenize=False)
        )
        asked = str(tokenizer.apply_chat_template([question], tokenize=False, add_generation_prompt=True))
    except RENDER_ERRORS:
        return "", ""
    before, found, ending = whole.rpartition(_ASSISTANT)
    if not found or _USER not in before or _USER not in asked:
        return "", ""
    between, prompt = before.rpartition(_USER)[2], asked.rpartition(_USER)[2]
    # Templates may print more before an answer than before a generation, an empty thought for one.
    same = takewhile(lambda pair: pair[0] == pair[1], zip(between, prompt, strict=False))
    return "".join(one for one, _ in same).strip(), ending
