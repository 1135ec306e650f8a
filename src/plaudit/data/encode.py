"""Renders examples as text and tokenises the text, many at a time."""

from __future__ import annotations

import contextlib
import copy
import datetime
import functools
import hashlib
import json
import logging
import re
import tempfile
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import jinja2
import tokenizers
import transformers
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from plaudit.data.fast_encode import RENDER_ERRORS, Conversation, TemplateSketches
from plaudit.errors import ConfigError
from plaudit.schema import Example

logger = logging.getLogger("plaudit")
CACHE_BYTES = 64 * 2**20
"""Default maximum size of the cache of tokenised words."""
_BYTES_OF_ENTRY = 180
"""Approximate overhead of a cache entry: two objects, and a slot in the table."""
_ENCODING_METHODS = ("__call__", "_encode_plus", "_batch_encode_plus", "encode", "_convert_encoding")
# A visible ASCII character before a space: every classification of characters agrees on these two.
_BEFORE_SPACE = re.compile(r" (?<=[!-~] )")
# With these patterns no word crosses from such a character to the space behind it, and none looks back.
_LATER_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORD_PATTERNS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    _LATER_PATTERN.replace("DIGITS", r"\p{N}{1,3}"),
    _LATER_PATTERN.replace("DIGITS", r"\p{N}"),
}


class SegmentTokenizer:
    """Splits texts where the tokenizer splits them anyway, and tokenises each distinct text segment once.

    A tokenizer takes its special tokens out of a text before anything else, and treats what lies between them
    each by itself: segments that occur again, such as the turns of a shared prompt, need not be tokenised again.
    Byte-level tokenizers with one of the usual patterns go on to split before a space, so that words are segments.
    """

    def __init__(self, backend: Tokenizer, before: Sequence[int] = (), after: Sequence[int] = ()) -> None:
        self.backend = backend  # tokenises segments; it neither pads nor truncates
        self.before, self.after = _packed(before), _packed(after)  # what the tokenizer puts before and behind a text
        added = backend.get_added_tokens_decoder().items()
        first = {token.content: (index, token) for index, token in added if token.content and not token.normalized}
        # The tokens that are taken out first; those that take their surroundings with them leave their text whole.
        plain = {text: index for text, (index, token) in first.items() if not _is_greedy(token)}
        self._ids_of_tokens = {token: _packed([index]) for token, index in plain.items()} | {"": b""}
        self._split_at, self._greedy = _any_of(plain), _any_of(first.keys() - plain.keys())
        # The only step that treats the beginning of a text in its own way. The anchor is a token to put before a
        # segment that does not begin its text.
        position_matters = '"prepend_scheme": "first"' in json.dumps(_state_of(backend.pre_tokenizer))
        self.anchor = min(plain, key=len) if position_matters and plain else None
        self.words = not position_matters and _splits_before_spaces(backend)  # whether segments are split before spaces
        # About how much memory the words that were seen may take; then all of them are forgotten.
        self.cache_bytes, self._cached_bytes = CACHE_BYTES, 0
        self._ids_of_heads: dict[str, bytes] = {}
        self._ids_of_words: dict[str, bytes] = {}

    def tokenize(self, texts: Sequence[str]) -> list[array[int]]:
        """Returns an array of 32-bit token ids for each text."""
        whole = [n for n, text in enumerate(texts) if self._greedy is not None and self._greedy.search(text)]
        ids_of_whole = dict(zip(whole, self._encode([texts[n] for n in whole]), strict=True))
        split = [
            [] if n in ids_of_whole else [text] if self._split_at is None else self._split_at.split(text)
            for n, text in enumerate(texts)
        ]  # text, token, text, token, ..., text
        if self.anchor is not None:
            for segments in split:
                segments[2::2] = [self.anchor + segment if segment else "" for segment in segments[2::2]]
        ids_of = self._ids_of({segment for segments in split for segment in segments[::2] if segment})
        ids_of |= self._ids_of_tokens
        return [
            array(
                "i", b"".join((self.before, ids_of_whole.get(n, b""), *map(ids_of.__getitem__, segments), self.after))
            )
            for n, segments in enumerate(split)
        ]

    def _ids_of(self, segments: set[str]) -> dict[str, bytes]:
        if not self.words:
            ordered = list(segments)
            ids = self._encode(ordered)
            if self.anchor is not None:
                # A segment that begins its text holds no token, so that it cannot be taken for an anchored one.
                size = len(_packed([0]))
                starts = [size if segment.startswith(self.anchor) else 0 for segment in ordered]
                ids = [packed[start:] for packed, start in zip(ids, starts, strict=True)]
            return dict(zip(ordered, ids, strict=True))
        heads, words = self._ids_of_heads, self._ids_of_words
        if self._cached_bytes > self.cache_bytes:
            heads.clear()
            words.clear()
            self._cached_bytes = 0
        split = {segment: _BEFORE_SPACE.split(segment) for segment in segments}
        new_heads = list({parts[0] for parts in split.values()} - heads.keys())
        new_words = list({word for parts in split.values() for word in parts[1:]} - words.keys())
        ids = self._encode(new_heads + [" " + word for word in new_words])
        heads.update(zip(new_heads, ids[: len(new_heads)], strict=True))
        words.update(zip(new_words, ids[len(new_heads) :], strict=True))
        self._cached_bytes += sum(map(len, [*new_heads, *new_words, *ids])) + _BYTES_OF_ENTRY * len(ids)
        return {
            segment: b"".join((heads[parts[0]], *map(words.__getitem__, parts[1:]))) for segment, parts in split.items()
        }

    def _encode(self, texts: list[str]) -> list[bytes]:
        encoded = self.backend.encode_batch_fast(texts, add_special_tokens=False) if texts else []
        return [_packed(encoding.ids) for encoding in encoded]


def _packed(ids: Sequence[int]) -> bytes:
    """Returns ids as bytes, which are cheap to join and no work for the garbage collector."""
    return array("i", ids).tobytes()


def _any_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """Returns a pattern that finds the leftmost token, and the longest there, as the tokenizer does."""
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None


def segment_tokenizer_for(tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> SegmentTokenizer | None:
    """Returns None where ids by segments would not certainly be those of whole texts."""
    reason = _obstacle(tokenizer)
    around: tuple[tuple[int, ...], tuple[int, ...]] | None = ((), ())
    if reason is None and add_special_tokens:
        around = _ids_around(tokenizer.backend_tokenizer)
        reason = "what it puts around a text depends on the text" if around is None else None
    if reason is not None or around is None:
        logger.debug("Texts are tokenised whole: the tokenizer %s.", reason)
        return None
    return SegmentTokenizer(tokenizer.backend_tokenizer, *around)


def _obstacle(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Returns why texts cannot be tokenised by segments."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return "is not one of the library `tokenizers`"
    for name in _ENCODING_METHODS:
        if getattr(type(tokenizer), name, None) is not getattr(PreTrainedTokenizerFast, name, None):
            return f"has a way of its own to encode ({name})"
    backend = tokenizer.backend_tokenizer
    if getattr(backend.model, "dropout", None):
        return "drops merges at random"
    if getattr(tokenizer, "split_special_tokens", False) or backend.encode_special_tokens:
        return "reads special tokens as text"
    return "pads or truncates" if backend.padding is not None or backend.truncation is not None else None


def _is_greedy(token: AddedToken) -> bool:
    return bool(token.lstrip or token.rstrip or token.single_word)


def _state_of(part: Any) -> Any:
    """Returns the settings of a part of a tokenizer; None where there is none."""
    return None if part is None else json.loads(part.__getstate__())


def _ids_around(backend: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Returns the ids that the tokenizer puts before and after each text; None where they depend on the text."""
    around = set()
    for text in ("a", "Hello there", "1 2"):
        full, bare = (backend.encode(text, add_special_tokens=special).ids for special in (True, False))
        starts = [n for n in range(len(full) - len(bare) + 1) if full[n : n + len(bare)] == bare]
        if len(starts) != 1:
            return None
        around.add((tuple(full[: starts[0]]), tuple(full[starts[0] + len(bare) :])))
    return around.pop() if len(around) == 1 else None


def _splits_before_spaces(backend: Tokenizer) -> bool:
    """Whether every visible ASCII character ends a word where a space follows."""
    if type(backend.model).__name__ != "BPE" or _state_of(backend.normalizer) not in (None, {"type": "NFC"}):
        return False
    for token in backend.get_added_tokens_decoder().values():
        if _BEFORE_SPACE.search(token.content) or (token.normalized and _is_greedy(token)):
            return False
    steps = _state_of(backend.pre_tokenizer)
    steps = steps["pretokenizers"] if steps is not None and steps["type"] == "Sequence" else [steps]
    split = False
    for step in steps:
        kind = step["type"] if step is not None else None
        if kind == "ByteLevel" and not step["add_prefix_space"]:
            split |= step["use_regex"]
        elif kind == "Split" and step["pattern"].get("Regex") in _WORD_PATTERNS:
            if step["behavior"] != "Isolated" or step["invert"]:
                return False
            split = True
        elif kind != "Digits":
            return False
    return split


# Odd, so that the samples are not all first responses of pairs.
_CHECK_EVERY = 63
_TURNED_OFF = ("padding", "truncation", "return_attention_mask", "return_token_type_ids", "verbose")


class Encoder(ABC):
    """Renders and tokenises responses with its own copy of a tokenizer: calling one changes its state."""

    add_special_tokens: bool
    cache_bytes: int = CACHE_BYTES  # about how much memory the words that it has seen may take; set before it is used

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = copy.deepcopy(tokenizer)
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            backend.no_padding()
            backend.no_truncation()
        # Made when it is first needed; False where ids by segments would not be exact.
        self._segments: SegmentTokenizer | Literal[False] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Drops what can be rebuilt from the tokenizer."""
        return {**vars(self), "_segments": False if self._segments is False else None, "_sketches": None}

    @abstractmethod
    def check(self, example: Example) -> None:
        """Raises `ConfigError` where the tokenizer lacks something that rows like the example need."""

    @abstractmethod
    def render(self, examples: Sequence[Example]) -> list[list[str]]:
        """Renders the responses of G examples as text."""

    def tokenize(self, texts: list[str]) -> list[array[int]]:
        """Tokenises rendered texts in one call, each distinct text once, into arrays of 32-bit ids."""
        if not texts:
            return []
        # Rows made of several rated answers repeat their texts.
        unique = list(dict.fromkeys(texts))
        if self._segments is None:
            self._segments = segment_tokenizer_for(self.tokenizer, self.add_special_tokens) or False
            if self._segments:
                self._segments.cache_bytes = self.cache_bytes
        ids = self._segments.tokenize(unique) if self._segments else self._tokenize_whole(unique)
        sample = slice(None, None, max(1, min(_CHECK_EVERY, len(unique) // 4)))
        if self._segments and ids[sample] != self._tokenize_whole(unique[sample]):
            logger.warning(
                "Tokenising by text segments gives other ids than tokenising whole texts, which is used from here on. "
                "Please report this with the name of the tokenizer."
            )
            self._segments, ids = False, self._tokenize_whole(unique)
        ids_of = dict(zip(unique, ids, strict=True))
        return [ids_of[text] for text in texts]

    def _tokenize_whole(self, texts: list[str]) -> list[array[int]]:
        encoded = self.tokenizer(texts, add_special_tokens=self.add_special_tokens, **dict.fromkeys(_TURNED_OFF, False))
        return [array("i", ids) for ids in cast(list[list[int]], encoded["input_ids"])]

    def fingerprint(self) -> str:
        """Returns a hash of everything that can change token ids, and of no state left by earlier use."""
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
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None:
            digest.update(backend.to_str().encode())
            return digest.hexdigest()
        with tempfile.TemporaryDirectory() as folder:
            self.tokenizer.save_pretrained(folder)
            for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                digest.update(path.read_bytes())
        return digest.hexdigest()


class ConversationEncoder(Encoder):
    """Renders conversations with the chat template, whose text holds every special token already."""

    add_special_tokens = False
    _sketches: TemplateSketches | None = None

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        # By template, and whether there are tools: whether it reads a list of parts, and no plain text.
        self._reads_parts: dict[tuple[str | None, bool], bool] = {}

    def check(self, example: Example) -> None:
        """Requires a chat template, and warns where a conversation renders differently on another day."""
        variables = example.chat_template_kwargs
        if not self.tokenizer.chat_template and "chat_template" not in variables:
            fix = "Use a chat model's tokenizer, set its `chat_template`, or turn the messages into text."
            raise ConfigError("The data holds conversations, but the tokenizer has no chat template", fix=fix)
        template = self.tokenizer.get_chat_template(variables.get("chat_template"), cast(Any, example.tools))
        if "strftime_now" not in template:
            return
        texts = set()
        for day in ("today", "tomorrow"):
            # A macro hides the function of the same name.
            dated = f"{{% macro strftime_now(format) %}}{day}{{% endmacro %}}{template}"
            response = cast(Conversation, example.responses[0])
            try:
                texts.update(self._render_all([response], example.tools, {**variables, "chat_template": dated}))
            except RENDER_ERRORS:
                return  # the row is named when it is read
        if len(texts) > 1:
            variable = re.search(r"set\s+(\w+)\s*=\s*strftime_now", template)
            _warn_of_todays_date(self.tokenizer.name_or_path, variable[1] if variable else None)

    def render(self, examples: Sequence[Example]) -> list[list[str]]:
        """Renders conversations, those with equal tools and template variables together."""
        texts: list[list[str]] = [[] for _ in examples]
        groups: dict[str, list[int]] = {}
        for index, example in enumerate(examples):
            settings = (example.tools, example.chat_template_kwargs)
            groups.setdefault(json.dumps(settings, default=repr) if any(settings) else "", []).append(index)
        for group, indices in groups.items():
            responses = [cast(Conversation, response) for index in indices for response in examples[index].responses]
            if group:
                first = examples[indices[0]]
                rendered = iter(self._render_all(responses, first.tools, first.chat_template_kwargs))
            else:
                self._sketches = self._sketches or TemplateSketches(self.tokenizer, self._render_all)
                rendered = iter(self._sketches.render(responses))
            for index in indices:
                texts[index] = [next(rendered) for _ in examples[index].responses]
        return texts

    def _render_all(self, conversations: list[Conversation], tools: Any = None, variables: Any = None) -> list[str]:
        variables = variables or {}
        key = variables.get("chat_template"), bool(tools)
        if key not in self._reads_parts:
            self._reads_parts[key] = self._shows_only_parts(conversations[0], tools, variables)
        if self._reads_parts[key]:
            conversations = [_in_parts(conversation) for conversation in conversations]
        return self._apply(conversations, tools, variables)

    def _shows_only_parts(self, conversation: Conversation, tools: Any, variables: Mapping[str, Any]) -> bool:
        """Whether the template leaves out texts unless they come as parts, as those of some vision models do."""
        probes = [{**message, "content": f"probe{index}."} for index, message in enumerate(conversation)]
        shown = []
        for probe in (probes, _in_parts(probes)):
            text = ""
            with contextlib.suppress(*RENDER_ERRORS):  # the row is named when it is rendered
                (text,) = self._apply([probe], tools, variables)
            shown.append(sum(message["content"] in text for message in probes))
            if shown[0] == len(probes):
                return False
        printed_as_list = "{'type'" in text
        return shown[1] > shown[0] and not printed_as_list

    def _apply(self, conversations: list[Conversation], tools: Any, variables: Mapping[str, Any]) -> list[str]:
        template = cast(Any, self.tokenizer).apply_chat_template
        try:
            return cast(list[str], template(conversations, tools=tools, tokenize=False, **variables))
        except jinja2.TemplateSyntaxError as error:
            message = f"The chat template cannot be read: line {error.lineno}: {error.message}"
            raise ConfigError(message, fix="Correct `tokenizer.chat_template`.") from error


def _in_parts(conversation: Conversation) -> Conversation:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in conversation]


@functools.cache  # once is enough
def _warn_of_todays_date(tokenizer_name: str, variable: str | None) -> None:
    fixed = f'give every row `chat_template_kwargs` such as {{"{variable}": "26 Jul 2024"}}, or '
    logger.warning(
        "The chat template of %s prints today's date: the same conversation gets another reward on another day. "
        "To fix it, %stake the date out of the template (`chat_template_path`).",
        repr(tokenizer_name) if tokenizer_name else "the tokenizer",
        fixed if variable else "",
    )


class TextEncoder(Encoder):
    """Ends plain text with exactly one EOS and tokenises it as the tokenizer does by default.

    An encoder's tokenizer may have no EOS: what it puts behind a text itself, such as [SEP], ends it.
    """

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
        self._adds_end = full[-1:] != bare[-1:] and full[-1] in self.tokenizer.all_special_ids

    def check(self, example: Example) -> None:
        """Requires an EOS token, or a tokenizer that ends texts with a token of its own."""
        if self.tokenizer.eos_token is None and not self._adds_end:
            message = "The data holds plain text, which must end with an EOS, but the tokenizer has no `eos_token`"
            raise ConfigError(message, fix="Set `tokenizer.eos_token` to the token that ends a text.")

    def render(self, examples: Sequence[Example]) -> list[list[str]]:
        """Ends texts with the EOS token, where they do not end with it already."""
        eos = self.tokenizer.eos_token or ""  # every text ends with an empty one
        return [
            [text if text.endswith(eos) else text + eos for text in cast(tuple[str, ...], example.responses)]
            for example in examples
        ]

    def tokenize(self, texts: list[str]) -> list[array[int]]:
        """Tokenises texts, with one BOS and EOS where text and tokenizer both have one."""
        ids = super().tokenize(texts)
        if not (self._adds_bos or self._adds_eos):
            return ids
        # Drops the BOS and EOS of a text where the tokenizer has added its own.
        for index, tokens in enumerate(ids):
            start, end = 0, len(tokens)
            if self._adds_bos and end > 2 and tokens[0] == tokens[1] == self._bos:
                start = 1
            if self._adds_eos:
                while end - start > 1 and tokens[end - 2] == self._eos:
                    end -= 1
            ids[index] = tokens[start:end]
        return ids
