"""Tokenises each distinct piece of text once, where that gives exactly the ids of the whole text."""

from __future__ import annotations

import json
import logging
import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

logger = logging.getLogger("plaudit")

CACHE_BYTES = 64 * 2**20
"""What a tokenizer may remember of pieces that it has seen, unless it is told otherwise."""
_BYTES_OF_ENTRY = 180
"""About what an entry takes beside its characters and ids: two objects, and its place in the table."""
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


@dataclass
class PieceTokenizer:
    """Splits texts where the tokenizer splits them anyway, and tokenises each different piece once.

    A tokenizer takes its special tokens out of a text before anything else, and treats what lies between them
    each by itself: pieces that occur again, such as the turns of a shared prompt, need not be tokenised again.
    Byte-level tokenizers with one of the usual patterns go on to split before a space, so that words are pieces.

    Attributes:
        backend: Tokenises pieces; it neither pads nor truncates.
        tokens: The tokens that are taken out first, and their ids.
        greedy: Tokens that take their surroundings with them: texts that hold one stay whole.
        anchor: A token put before a piece that does not begin its text, where beginnings are treated differently.
        words: Whether pieces are split before spaces.
        before: Ids that the tokenizer puts before a text.
        after: Ids that it puts behind a text.
        cache_bytes: About how much memory the words that were seen may take; then all of them are forgotten.
    """

    backend: Tokenizer
    tokens: dict[str, int]
    greedy: list[str]
    anchor: str | None = None
    words: bool = False
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    cache_bytes: int = CACHE_BYTES
    _ids_of_heads: dict[str, bytes] = field(default_factory=dict, repr=False)
    _ids_of_words: dict[str, bytes] = field(default_factory=dict, repr=False)
    _cached_bytes: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        self._split_at = _any_of(self.tokens)
        self._greedy = _any_of(self.greedy)

    def tokenize(self, texts: Sequence[str]) -> list[array[int]]:
        """Tokenise texts.

        Args:
            texts: N texts.

        Returns:
            N arrays of token ids, 32 bits each.
        """
        whole = [n for n, text in enumerate(texts) if self._greedy is not None and self._greedy.search(text)]
        ids_of_whole = dict(zip(whole, self._encode([texts[n] for n in whole]), strict=True))
        split = [[] if n in ids_of_whole else self._pieces_of(text) for n, text in enumerate(texts)]
        ids_of = self._ids_of({piece for pieces in split for piece in pieces[::2] if piece})
        ids_of |= {token: _packed([index]) for token, index in self.tokens.items()} | {"": b""}
        before, after = _packed(self.before), _packed(self.after)
        return [
            array("i", b"".join((before, ids_of_whole.get(n, b""), *map(ids_of.__getitem__, pieces), after)))
            for n, pieces in enumerate(split)
        ]

    def _pieces_of(self, text: str) -> list[str]:
        """Text, token, text, token, ..., text."""
        pieces = self._split_at.split(text) if self._split_at is not None else [text]
        if self.anchor is not None:
            pieces[2::2] = [self.anchor + piece if piece else "" for piece in pieces[2::2]]
        return pieces

    def _ids_of(self, pieces: set[str]) -> dict[str, bytes]:
        if self.words:
            return self._ids_by_words(pieces)
        ordered = list(pieces)
        ids = dict(zip(ordered, self._encode(ordered), strict=True))
        if self.anchor is not None:
            # A piece that begins its text holds no token, so that it cannot be taken for an anchored one.
            size = len(_packed([0]))
            ids = {piece: one[size:] if piece.startswith(self.anchor) else one for piece, one in ids.items()}
        return ids

    def _ids_by_words(self, pieces: set[str]) -> dict[str, bytes]:
        heads, words = self._ids_of_heads, self._ids_of_words
        if self._cached_bytes > self.cache_bytes:
            heads.clear()
            words.clear()
            self._cached_bytes = 0
        split = {piece: _BEFORE_SPACE.split(piece) for piece in pieces}
        new_heads = list({parts[0] for parts in split.values()} - heads.keys())
        new_words = list({word for parts in split.values() for word in parts[1:]} - words.keys())
        ids = self._encode(new_heads + [" " + word for word in new_words])
        heads.update(zip(new_heads, ids[: len(new_heads)], strict=True))
        words.update(zip(new_words, ids[len(new_heads) :], strict=True))
        self._cached_bytes += sum(map(len, new_heads)) + sum(map(len, new_words)) + sum(map(len, ids))
        self._cached_bytes += _BYTES_OF_ENTRY * len(ids)
        return {
            piece: b"".join((heads[parts[0]], *map(words.__getitem__, parts[1:]))) for piece, parts in split.items()
        }

    def _encode(self, texts: list[str]) -> list[bytes]:
        encoded = self.backend.encode_batch_fast(texts, add_special_tokens=False) if texts else []
        return [_packed(one.ids) for one in encoded]


def _packed(ids: Sequence[int]) -> bytes:
    """Ids as bytes: joining them costs next to nothing, and they are no work for the garbage collector."""
    return array("i", ids).tobytes()


def _any_of(tokens: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds the leftmost token and the longest there, as the tokenizer does."""
    ordered = sorted(tokens, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, ordered))})") if ordered else None


def piece_tokenizer_for(tokenizer: PreTrainedTokenizerBase, add_special_tokens: bool) -> PieceTokenizer | None:
    """Prepare to tokenise by pieces; None where the ids would not certainly be those of whole texts.

    Args:
        tokenizer: It must neither pad nor truncate.
        add_special_tokens: Whether it puts its special tokens around a text.
    """
    reason = _obstacle(tokenizer)
    around: tuple[tuple[int, ...], tuple[int, ...]] | None = ((), ())
    if reason is None and add_special_tokens:
        around = _ids_around(tokenizer.backend_tokenizer)
        reason = "what it puts around a text depends on the text" if around is None else None
    if reason is not None or around is None:
        logger.debug("Texts are tokenised whole: the tokenizer %s.", reason)
        return None
    backend: Tokenizer = tokenizer.backend_tokenizer
    added = {token.content: index for index, token in backend.get_added_tokens_decoder().items() if token.content}
    known = backend.get_added_tokens_decoder()
    first = {text: index for text, index in added.items() if not known[index].normalized}
    plain = {text: index for text, index in first.items() if not _is_greedy(known[index])}
    # The only step that treats the beginning of a text in its own way.
    position_matters = b'"prepend_scheme":"first"' in _state_of(backend.pre_tokenizer)
    anchor = min(plain, key=len) if position_matters and plain else None
    greedy = [text for text in first if text not in plain]
    words = anchor is None and not position_matters and _splits_before_spaces(backend)
    return PieceTokenizer(backend, plain, greedy, anchor, words, *around)


def _obstacle(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Why texts cannot be tokenised by pieces."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return "is not one of the library `tokenizers`"
    own = [
        name
        for name in _ENCODING_METHODS
        if getattr(type(tokenizer), name, None) is not getattr(PreTrainedTokenizerFast, name, None)
    ]
    if own:
        return f"has a way of its own to encode ({own[0]})"
    backend = tokenizer.backend_tokenizer
    if getattr(backend.model, "dropout", None):
        return "drops merges at random"
    if getattr(tokenizer, "split_special_tokens", False) or backend.encode_special_tokens:
        return "reads special tokens as text"
    if backend.padding is not None or backend.truncation is not None:
        return "pads or truncates"
    return None


def _is_greedy(token: AddedToken) -> bool:
    return bool(token.lstrip or token.rstrip or token.single_word)


def _state_of(part: Any) -> bytes:
    """A part of a tokenizer as JSON without spaces; ``b"null"`` where there is none."""
    return json.dumps(json.loads(part.__getstate__()), separators=(",", ":")).encode() if part is not None else b"null"


def _ids_around(backend: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Ids that the tokenizer puts before and behind each text; None where they cannot be told."""
    around = set()
    for text in ("a", "Hello there", "1 2"):
        full, bare = (backend.encode(text, add_special_tokens=special).ids for special in (True, False))
        places = [n for n in range(len(full) - len(bare) + 1) if full[n : n + len(bare)] == bare]
        if len(places) != 1:
            return None
        around.add((tuple(full[: places[0]]), tuple(full[places[0] + len(bare) :])))
    return around.pop() if len(around) == 1 else None


def _splits_before_spaces(backend: Tokenizer) -> bool:
    """Whether every visible ASCII character ends a word where a space follows."""
    if type(backend.model).__name__ != "BPE" or _state_of(backend.normalizer) not in (b"null", b'{"type":"NFC"}'):
        return False
    for token in backend.get_added_tokens_decoder().values():
        if _BEFORE_SPACE.search(token.content) or (token.normalized and _is_greedy(token)):
            return False
    steps = json.loads(_state_of(backend.pre_tokenizer))
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
