"""Finds marks that occur nearly only on one side: what gives the label away without a look at the content."""

from __future__ import annotations

import math

# ruff: noqa: RUF001  (punctuation, quotation marks and brackets of many languages)
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from plaudit.intervals import holm

_OPEN_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the of and or nor but for to with from by at into onto than which who whose whom where when while if "
        "because although unless until your our their its my very however therefore including between among during "
        "without within upon",
    )
)
"""Words that English sentences do not end with."""
_ENDS = ".!?…。！？؟।)]}»›\"'”’」』】*_`~>|:/%$°+=#"
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]*_]*(?:\s|$)")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*$")
_LIST_ITEM = re.compile(r"\s*(?:[-*+•–]|\d{1,3}[.)]|#{1,6})\s")
_URL = re.compile(r"(?:https?://|www\.)\S+$")
_FENCE = re.compile(r"^\s*(?:```|~~~)", re.MULTILINE)
_PROSE_WORDS = 8
"""Length from which a line without a full stop looks unfinished rather than short."""


def breaks_off(text: str) -> str | None:
    """Says why a response seems to break off; None where it does not.

    Short responses, lists, code and tables may end without a full stop; a sentence in prose that follows finished ones
    may not.

    >>> breaks_off("It is blue. The reason is that the light of the"), breaks_off("42"), breaks_off("- milk\\n- eggs")
    ('ends in the word "the"', None, None)
    """
    text = text.rstrip()
    if not text:
        return None
    if len(_FENCE.findall(text)) % 2:
        return "leaves a code block open"
    last = text[-1]
    if last in _ENDS or not (last.isalnum() or last in ",;-–—("):
        return None
    line = text.rsplit("\n", 1)[-1]
    words = line.split()
    # "See you soon," closes a letter.
    if (last == "(" or (last == "," and len(words) >= 5)) and len(text.split()) >= 4:
        return f"ends with {last!r}"
    word = _WORD.search(text)
    if word is None or _URL.search(line) or "`" in line or "|" in line or re.search(r"^:|[.@/\\]", words[-1]):
        return None
    is_open = word[0].islower() and word[0] in _OPEN_WORDS and len(words) >= 4
    # "option a" and "vitamin a" do not end in an article.
    if is_open and (words[-1] != "a" or (words[-2][-1:].isalpha() and words[-2].lower() in _OPEN_WORDS)):
        return f'ends in the word "{word[0]}"'
    if _LIST_ITEM.match(line):
        return None
    before = text[: len(text) - len(line)]
    inside = _SENTENCE_END.search(line) is not None
    if not inside and (len(words) < _PROSE_WORDS or _SENTENCE_END.search(before) is None):
        return None
    # After the last full stop of the line: "Answer. 12 apples" has ended.
    tail = _SENTENCE_END.split(line)[-1].split() if inside else words
    if len(tail) < 3 or not tail[-1][-1].isalpha():
        return None
    # Who writes sentences without capitals also ends them without a full stop.
    starts = [part.lstrip("\"'“‘([*_ \n\t-")[:1] for part in _SENTENCE_END.split(text)]
    return None if any(start.islower() for start in starts) else "ends in the middle of a sentence"


def lacks_end(text: str) -> bool | None:
    """Whether a response of one long sentence lacks its full stop; None where the response is of another kind.

    By itself that is a matter of style: it tells something only where the other responses have theirs.
    """
    text = text.strip()
    if "\n" in text or len(text.split()) < _PROSE_WORDS or text[-1] in "`|" or _URL.search(text):
        return None
    return text[-1].isalnum() or text[-1] in ",;-("


_PHRASES = {
    "as an AI": r"\bas an? (?:ai|artificial intelligence|(?:large )?language model|chatbot|assistant)\b",
    "I am an AI": r"\bi(?:'m| am) (?:just |only )?an? (?:ai|artificial|(?:large )?language model|chatbot)\b",
    "I'm sorry": r"\bi(?:'m| am)(?: very| so| really| truly)? sorry\b|^sorry\b",
    "I apologize": r"\bi apologi[sz]e\b|\bmy apologies\b",
    "I cannot help": r"\bi (?:can't|cannot|can not|won't|will not)(?: be able to)? "
    r"(?:help|assist|provide|answer|do that|fulfil|fulfill|comply|engage|create|generate|write|support|discuss)",
    "I am unable to": r"\bi(?:'m| am) (?:unable|not able) to\b",
    "I don't know": r"\bi (?:don't|do not) know\b",
    "I have no comment": r"\bi have no comment\b",
    "I don't have": r"\bi (?:don't|do not) have (?:any )?(?:personal|feelings|opinions|access|the ability)",
    "knowledge cutoff": r"\bknowledge cut-?\s?off\b|\bmy training data\b|\blast (?:knowledge )?update\b",
    "it is important to": r"\bit(?:'s| is) (?:also )?(?:important|crucial|essential|worth) (?:to|noting)\b",
    "I hope this helps": r"\bi hope (?:this|that|it) helps\b",
    "let me know": r"\b(?:please )?let me know (?:if|what|how)\b",
    "feel free to": r"\bfeel free to\b",
    "Is there anything else": r"\bis there anything (?:else|more)\b",
    "Sure": r"^(?:sure|certainly|absolutely|of course)\b",
    "Here is": r"^here(?:'s| is| are)\b",
    "good question": r"^(?:what a |that's a |that is a )?(?:great|good|excellent|interesting) question\b",
    "in conclusion": r"\b(?:in conclusion|to summarize|in summary|overall,)",
    "consult a professional": r"\b(?:consult|seek|speak (?:to|with)) "
    r"(?:\w+ ){0,4}(?:professional|doctor|lawyer|expert)",
}
_FORMATS = {
    "a bullet list": r"^[ \t]*[-*+•] \S",
    "a numbered list": r"^[ \t]*\d{1,3}[.)] \S",
    "a markdown heading": r"^#{1,6} \S",
    "bold text": r"\*\*[^*\n]+\*\*|__[^_\n]+__",
    "a code block": r"^[ \t]*(?:```|~~~)",
    "inline code": r"(?<!`)`[^`\n]+`(?!`)",
    "a table": r"^\|.+\|[ \t]*$",
    "a link": r"https?://|\]\([^)\s]+\)",
    "LaTeX": r"\\\(|\\\[|\$\$|\\frac|\\boxed",
    "an HTML tag": r"</?[a-z][a-z0-9]*(?: [^<>]*)?/?>",
    "an emoji": "[\U0001f300-\U0001faff\u2600-\u27bf]",
    "a blank line": r"\n[ \t]*\n",
    "a question at the end": r"\?[\"'”’)]*\s*\Z",
    "an exclamation mark": r"!",
    "leading white space": r"\A\s",
    "trailing white space": r"[ \t\n]\Z",
    "a small first letter": r"\A\s*[a-z]",
    "no full stop at the end": r"[^\W_]\s*\Z",
    "a turn of the other speaker": r"^(?:human|user|assistant|question|q|### ?instruction)\s*:",
}
_CASED = {"a small first letter"}
SPECIAL_TOKENS = (
    r"<\|[\w .:-]{1,40}\|>|<｜[^｜<>]{1,40}｜>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|"
    r"<(?:eos|bos|pad|unk|endoftext)>|\[(?:EOS|PAD|BOS|CLS|SEP|MASK)\]"
)
"""What special tokens of common tokenizers look like in text."""


class Marker:
    """Names the marks of a text, and counts them on both sides."""

    def __init__(self, special_tokens: Iterable[str] = ()) -> None:
        self._phrases = {
            f'the {"opening" if pattern.startswith("^") else "phrase"} "{name}"': re.compile(pattern, re.I | re.M)
            for name, pattern in _PHRASES.items()
        }
        # Most texts have no stock phrase: one look tells.
        self._any_phrase = re.compile("|".join(f"(?:{pattern})" for pattern in _PHRASES.values()), re.I | re.M)
        self._formats = {
            name: re.compile(pattern, re.M if name in _CASED else re.I | re.M) for name, pattern in _FORMATS.items()
        }
        own = [re.escape(token) for token in special_tokens if len(token) > 2]
        self._special = re.compile("|".join([*own, SPECIAL_TOKENS]))
        self._counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}  # by whether it is preferred
        self._sizes = {True: 0, False: 0}

    def marks(self, text: str) -> list[str]:
        """Names the marks that a text carries.

        >>> Marker().marks("As an AI I cannot help with that.\\n")
        ['the phrase "as an AI"', 'the phrase "I cannot help"', 'trailing white space']
        """
        plain = text.replace("’", "'")
        phrases = self._phrases if self._any_phrase.search(plain) else {}
        return [name for name, pattern in phrases.items() if pattern.search(plain)] + [
            name for name, pattern in self._formats.items() if pattern.search(text)
        ]

    def special_token(self, text: str) -> str | None:
        """Returns the first special token that is written out in a text, or None."""
        match = self._special.search(text)
        return match[0] if match else None

    def count(self, text: str, *, preferred: bool) -> None:
        """Counts the marks of one response."""
        self._counts[preferred].update(self.marks(text))
        self._sizes[preferred] += 1

    def leaks(self) -> list[Leak]:
        """Returns the marks that lean to one side, of the responses counted."""
        names = [*self._phrases, *self._formats]
        chosen, rejected = (np.array([self._counts[side][name] for name in names], float) for side in (True, False))
        return find_leaks(names, chosen, self._sizes[True], rejected, self._sizes[False])


LEVEL = 0.01
"""Chance, over all marks together, of calling a difference real that is none (Holm's method)."""
ONE_SIDED = 0.9
"""A mark belongs to one side if this share of its occurrences is there (at equal numbers of responses)."""
LEAST_SHARE = 0.01
"""Marks that both sides carry less often are not reported."""
LARGE, SMALL = 0.5, 0.2
"""Cohen's words for effect sizes: h from 0.5 is medium to large, below 0.2 not worth a word."""


@dataclass(frozen=True)
class Leak:
    """A mark that one side carries more often than the other."""

    mark: str  # what it is, for people
    chosen: float  # share of the preferred responses that carry it
    rejected: float  # share of the others that do
    # cohen's h, :math:`2 \\arcsin\\sqrt{p_1} - 2 \\arcsin\\sqrt{p_2}`, positive where the preferred ones carry it
    # more often
    effect: float
    p_value: float  # that of a two-proportion z test, adjusted for the number of marks (Holm)

    @property
    def one_sided(self) -> bool:
        """Whether it gives the label away: nearly all on one side, or a difference that nobody overlooks."""
        more, less = max(self.chosen, self.rejected), min(self.chosen, self.rejected)
        return more >= ONE_SIDED * (more + less) or abs(self.effect) >= LARGE

    def sentence(self) -> str:
        """Says it, such as ``'"as an AI" is in 31% of rejected and 1% of chosen'``."""
        shares = [(self.chosen, "chosen"), (self.rejected, "rejected")]
        (more, where), (less, elsewhere) = sorted(shares, key=lambda share: -share[0])
        return f"{self.mark} is in {percent(more)} of {where} and {percent(less)} of {elsewhere}"

    def to_dict(self) -> dict[str, Any]:
        """Writes the leak as plain values."""
        return {**vars(self), "one_sided": self.one_sided}


def percent(share: float) -> str:
    """Writes a share for people.

    >>> percent(0.314), percent(0.0042), percent(0.00003), percent(0.0)
    ('31%', '0.4%', '<0.1%', '0%')
    """
    if share == 0 or share >= 0.0995:
        return f"{share:.0%}"
    return f"{share:.1%}" if share >= 0.0005 else "<0.1%"


def two_proportions(first_M: np.ndarray, size: int, second_M: np.ndarray, other_size: int) -> np.ndarray:
    r"""P values of two-sided tests whether two shares are equal, shape (M,).

    .. math:: z = \frac{p_1 - p_2}{\sqrt{p (1 - p) (1/n_1 + 1/n_2)}}, \quad p = \frac{x_1 + x_2}{n_1 + n_2}

    >>> two_proportions(np.array([31, 5]), 100, np.array([1, 5]), 100).round(4).tolist()
    [0.0, 1.0]
    """
    pooled_M = (first_M + second_M) / (size + other_size)
    spread_M = np.sqrt(pooled_M * (1 - pooled_M) * (1 / size + 1 / other_size))
    difference_M = np.abs(first_M / size - second_M / other_size)
    z_M = np.divide(difference_M, spread_M, out=np.zeros_like(spread_M), where=spread_M > 0)
    return np.array([math.erfc(z / math.sqrt(2)) for z in z_M.tolist()])


def find_leaks(
    names: Sequence[str], chosen_M: np.ndarray, size: int, rejected_M: np.ndarray, other_size: int
) -> list[Leak]:
    """Names the marks whose shares differ for certain and by enough to matter, the clearest first."""
    if not size or not other_size or not names:
        return []
    adjusted_M = np.array(holm(two_proportions(chosen_M, size, rejected_M, other_size).tolist()))
    shares_M, others_M = chosen_M / size, rejected_M / other_size
    effect_M = 2 * np.arcsin(np.sqrt(shares_M)) - 2 * np.arcsin(np.sqrt(others_M))
    wanted = (adjusted_M < LEVEL) & (np.maximum(shares_M, others_M) >= LEAST_SHARE)
    leaks = [
        Leak(names[m], float(shares_M[m]), float(others_M[m]), float(effect_M[m]), float(adjusted_M[m]))
        for m in np.flatnonzero(wanted).tolist()
    ]
    kept = [leak for leak in leaks if leak.one_sided or abs(leak.effect) >= SMALL]
    return sorted(kept, key=lambda leak: -abs(leak.effect))
