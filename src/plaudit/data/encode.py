"""Turns preference examples into text, and text into token ids, many at a time."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import functools
import hashlib
import json
import logging
import re
import tempfile
from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import jinja2
import tokenizers
import transformers
from transformers import PreTrainedTokenizerBase

from plaudit.data.pieces import CACHE_BYTES, PieceTokenizer, piece_tokenizer_for
from plaudit.data.template_sketches import RENDER_ERRORS, Conversation, TemplateSketches, sketches_for
from plaudit.errors import ConfigError
from plaudit.types import PreferenceExample

logger = logging.getLogger("plaudit")

# Odd, so that the samples are not all first responses of pairs.
_CHECK_EVERY = 63


class Encoder(ABC):
    """Renders and tokenises responses with a tokenizer of its own.

    Args:
        tokenizer: It is copied, without its padding and truncation: calling a tokenizer changes its state.

    Attributes:
        cache_bytes: About how much memory the words that it has seen may take; set before it is used.
    """

    add_special_tokens: bool
    cache_bytes: int = CACHE_BYTES

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_padding()
            backend.no_truncation()
        self._pieces: PieceTokenizer | None = None
        self._may_split = True

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made again from the tokenizer where it is needed."""
        return {**vars(self), "_pieces": None}

    @abstractmethod
    def check(self, example: PreferenceExample) -> None:
        """Refuse a tokenizer that does not suit the data.

        Args:
            example: The first row of the data.

        Raises:
            ConfigError: The tokenizer lacks something that such rows need.
        """

    @abstractmethod
    def render(self, examples: Sequence[PreferenceExample]) -> list[list[str]]:
        """Write out the responses of G examples.

        Args:
            examples: G examples with N responses each.

        Returns:
            Text of each response, exactly as it is tokenised, per example.

        Raises:
            RENDER_ERRORS: The chat template refuses a conversation.
        """

    def tokenize(self, texts: list[str]) -> list[list[int]]:
        """Tokenise rendered texts like :meth:`tokenize_compactly`, into lists.

        Args:
            texts: N texts.
        """
        return [ids.tolist() for ids in self.tokenize_compactly(texts)]

    def tokenize_compactly(self, texts: list[str]) -> list[array[int]]:
        """Tokenise rendered texts in one call, each different text once.

        Args:
            texts: N texts.

        Returns:
            N arrays of token ids, 32 bits each.
        """
        if not texts:
            return []
        # Rows made of several rated answers repeat their texts.
        unique = list(dict.fromkeys(texts))
        ids = dict(zip(unique, self._tokenize_pieces(unique) or self._tokenize_whole(unique), strict=True))
        return [ids[text] for text in texts]

    def _tokenize_pieces(self, texts: list[str]) -> list[array[int]] | None:
        """Tokenise texts by pieces; None where the tokenizer does not allow it exactly."""
        if self._may_split and self._pieces is None:
            self._pieces = piece_tokenizer_for(self.tokenizer, self.add_special_tokens)
            self._may_split = self._pieces is not None
            if self._pieces is not None:
                self._pieces.cache_bytes = self.cache_bytes
        if self._pieces is None:
            return None
        ids = self._pieces.tokenize(texts)
        sample = slice(None, None, max(1, min(_CHECK_EVERY, len(texts) // 4)))
        if ids[sample] == self._tokenize_whole(texts[sample]):
            return ids
        logger.warning(
            "Tokenising texts by pieces gives other ids than tokenising them whole, which is done from here on. "
            "Please report it with the name of the tokenizer."
        )
        self._pieces, self._may_split = None, False
        return None

    def _tokenize_whole(self, texts: list[str]) -> list[array[int]]:
        encoded = self.tokenizer(
            texts,
            add_special_tokens=self.add_special_tokens,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [array("i", ids) for ids in cast(list[list[int]], encoded["input_ids"])]

    def fingerprint(self) -> str:
        """Hash everything that can change token ids, but nothing that earlier use of the tokenizer leaves."""
        template = self.tokenizer.chat_template
        settings = {
            "encoder": type(self).__name__,
            "tokenizer": type(self.tokenizer).__name__,
            "versions": [transformers.__version__, tokenizers.__version__],
            "special_tokens": self.tokenizer.special_tokens_map,
            "split_special_tokens": getattr(self.tokenizer, "split_special_tokens", False),
            "chat_template": template,
            # A template that prints the date renders something else tomorrow.
            "date": datetime.date.today().isoformat() if "strftime_now" in str(template) else None,
        }
        digest = hashlib.sha256(json.dumps(settings, default=str).encode())
        digest.update(self._serialised())
        return digest.hexdigest()

    def _serialised(self) -> bytes:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            return cast(bytes, backend.to_str().encode())
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            return b"".join(path.read_bytes() for path in files)


class ConversationEncoder(Encoder):
    """Renders conversations with the chat template, whose text holds every special token already."""

    add_special_tokens = False

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self._sketches: TemplateSketches | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is made again from the tokenizer where it is needed."""
        return {**super().__getstate__(), "_sketches": None}

    def check(self, example: PreferenceExample) -> None:
        """Refuse a tokenizer without a chat template."""
        if not self.tokenizer.chat_template and "chat_template" not in example.chat_template_kwargs:
            raise ConfigError(
                "The data holds conversations, but the tokenizer has no chat template",
                fix="Use a chat model's tokenizer, set its `chat_template`, or turn the messages into text.",
            )
        template = self._template_of(example)
        if self._prints_the_date(template, example):
            variable = re.search(r"set\s+(\w+)\s*=\s*strftime_now", template)
            _warn_of_todays_date(self.tokenizer.name_or_path, variable[1] if variable else None)

    def _template_of(self, example: PreferenceExample) -> str:
        own = example.chat_template_kwargs.get("chat_template")
        return self.tokenizer.get_chat_template(own, cast(Any, example.tools))

    def _prints_the_date(self, template: str, example: PreferenceExample) -> bool:
        """Whether a conversation renders differently on another day."""
        if "strftime_now" not in template:
            return False
        texts = set()
        for day in ("today", "tomorrow"):
            # A macro hides the function of the same name.
            dated = {"chat_template": f"{{% macro strftime_now(format) %}}{day}{{% endmacro %}}{template}"}
            kwargs = {**example.chat_template_kwargs, **dated}
            changed = dataclasses.replace(example, responses=example.responses[:1], chat_template_kwargs=kwargs)
            try:
                texts.update(self._render_group([changed]))
            except RENDER_ERRORS:
                return False  # the row is named when it is read
        return len(texts) > 1

    def render(self, examples: Sequence[PreferenceExample]) -> list[list[str]]:
        """Render conversations, those with equal tools and template variables together."""
        texts: list[list[str]] = [[] for _ in examples]
        groups: dict[str, list[int]] = {}
        for index, example in enumerate(examples):
            settings = (example.tools, example.chat_template_kwargs)
            groups.setdefault(json.dumps(settings, default=repr) if any(settings) else "", []).append(index)
        for indices in groups.values():
            rendered = iter(self._render_group([examples[index] for index in indices]))
            for index in indices:
                texts[index] = [next(rendered) for _ in examples[index].responses]
        return texts

    def _render_group(self, examples: Sequence[PreferenceExample]) -> list[str]:
        """Render all responses of examples that share their tools and template variables."""
        responses = [cast(Conversation, response) for example in examples for response in example.responses]
        tools, variables = examples[0].tools, examples[0].chat_template_kwargs
        if tools or variables:
            return self._render_all(responses, tools, variables)
        if self._sketches is None:
            self._sketches = sketches_for(self.tokenizer, self._render_all)
        return self._sketches.render(responses)

    def _render_all(
        self,
        conversations: list[Conversation],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] = MappingProxyType({}),
    ) -> list[str]:
        try:
            rendered = self.tokenizer.apply_chat_template(
                cast(Any, conversations), tools=cast(Any, tools), tokenize=False, **variables
            )
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"The chat template cannot be read: line {error.lineno}: {error.message}",
                fix="Mend `tokenizer.chat_template`.",
            ) from error
        return cast(list[str], rendered)


@functools.cache  # once is enough
def _warn_of_todays_date(tokenizer_name: str, variable: str | None) -> None:
    fixed = f'give every row `chat_template_kwargs` such as {{"{variable}": "26 Jul 2024"}}, or '
    logger.warning(
        "The chat template of %s prints today's date: the same conversation gets another reward on another day. "
        "To mend it, %stake the date out of the template (`chat_template_path`).",
        repr(tokenizer_name) if tokenizer_name else "the tokenizer",
        fixed if variable else "",
    )


class TextEncoder(Encoder):
    """Ends plain text with exactly one EOS and tokenises it as the tokenizer does by default."""

    add_special_tokens = True

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        bare, full = (
            cast(list[int], self.tokenizer("a", add_special_tokens=special, verbose=False)["input_ids"])
            for special in (False, True)
        )
        self._bos, self._eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        self._adds_bos = self._bos is not None and full[:1] == [self._bos] != bare[:1]
        self._adds_eos = self._eos is not None and full[-1:] == [self._eos] != bare[-1:]

    def check(self, example: PreferenceExample) -> None:
        """Refuse a tokenizer without an EOS token."""
        if self.tokenizer.eos_token is None:
            raise ConfigError(
                "The data holds plain text, which must end with an EOS, but the tokenizer has no `eos_token`",
                fix="Set `tokenizer.eos_token` to the token that ends a text.",
            )

    def render(self, examples: Sequence[PreferenceExample]) -> list[list[str]]:
        """End texts with the EOS token, where they do not end with it already."""
        eos = cast(str, self.tokenizer.eos_token)
        return [
            [text if text.endswith(eos) else text + eos for text in cast(tuple[str, ...], example.responses)]
            for example in examples
        ]

    def tokenize_compactly(self, texts: list[str]) -> list[array[int]]:
        """Tokenise texts, with one BOS and EOS where text and tokenizer both have one."""
        ids = super().tokenize_compactly(texts)
        return [self._undouble(one) for one in ids] if self._adds_bos or self._adds_eos else ids

    def _undouble(self, ids: array[int]) -> array[int]:
        """Drop the BOS and EOS of the text itself where the tokenizer has put its own beside them."""
        start, end = 0, len(ids)
        if self._adds_bos and end > 2 and ids[0] == ids[1] == self._bos:
            start = 1
        if self._adds_eos:
            while end - start > 1 and ids[end - 2] == self._eos:
                end -= 1
        return ids[start:end]
