# ruff: noqa: E501
"""Tokenising by segments and rendering by sketches: exactly what whole texts and the template itself give."""

from __future__ import annotations

import logging
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from builders import CHATML, tiny_tokenizer
from plaudit.data.encode import ConversationEncoder, SegmentTokenizer, TextEncoder, segment_tokenizer_for
from plaudit.schema import Example

SPECIAL = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<unk>")
TEXTS = [
    "<|im_start|>user\nWhat's up  with the 42 dogs? <|im_end|>\n<|im_start|>assistant\nNothing much.\n\n  <|im_end|>\n",
    "",
    " ",
    "  leading and trailing  ",
    "<|im_end|>",
    "<|im_start|><|im_end|><|im_start|>",
    " <|im_start|> hello <|im_end|> hello",
    "Ünïcödé — “quotes” it's 😀 \u00a0x \u3000 y\u0301 e\u0301 <|im_start|>\u0301 z",
    "tab\there\r\nnew\x0bline\x1c end\x85 of",
    "a <|im_start a |> b <|im_end|x <|im_end|>|> c",
    "HELLO Hello hello 1234567 12 345",
]
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def trained(backend: Tokenizer, kind: str) -> Tokenizer:
    """Learn a small vocabulary, so that neighbouring letters merge."""
    from tokenizers import trainers

    names = {"bpe": trainers.BpeTrainer, "unigram": trainers.UnigramTrainer, "wordpiece": trainers.WordPieceTrainer}
    options = {"special_tokens": list(SPECIAL), "vocab_size": 400, "show_progress": False}
    options |= {"unk_token": "<unk>"} if kind == "unigram" else {}
    options |= {"initial_alphabet": sorted(pre_tokenizers.ByteLevel.alphabet())} if kind == "bpe" else {}
    backend.train_from_iterator([text for text in TEXTS for _ in range(3)], names[kind](**options))
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return backend


def byte_level(split: str | None = None, normalizer: object = None, prefix: bool = False) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(split), "isolated")] if split else [pre_tokenizers.Digits(True)]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=split is None))
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if normalizer is not None:
        backend.normalizer = normalizer
    return trained(backend, "bpe")


def metaspace(scheme: str, kind: str = "bpe") -> Tokenizer:
    model = models.BPE(unk_token="<unk>", byte_fallback=True) if kind == "bpe" else models.Unigram()
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=kind != "bpe")
    return trained(backend, kind)


def legacy_llama() -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return trained(backend, "bpe")


def wordpiece() -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.BertNormalizer(lowercase=True), normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return trained(backend, "wordpiece")


def greedy() -> Tokenizer:
    """Tokens that take spaces with them, one that is longer than another, and one that is found after normalising."""
    backend = byte_level()
    backend.add_special_tokens([AddedToken("<|im_end|>\n", rstrip=True, normalized=False, special=True)])
    backend.add_tokens([AddedToken("<|im_start|>user", normalized=False), AddedToken("dogs", normalized=True)])
    return backend


KINDS = {
    "byte-level": byte_level,
    "byte-level, Llama 3": lambda: byte_level(LLAMA3),
    "byte-level, NFC": lambda: byte_level(LLAMA3, normalizers.NFC()),
    "byte-level, prefix space": lambda: byte_level(prefix=True),
    "byte-level, unknown pattern": lambda: byte_level(r"\w+ \w+|\s|."),
    "metaspace, always": lambda: metaspace("always"),
    "metaspace, first": lambda: metaspace("first"),
    "metaspace, never": lambda: metaspace("never"),
    "unigram": lambda: metaspace("always", "unigram"),
    "unigram, first": lambda: metaspace("first", "unigram"),
    "legacy Llama": legacy_llama,
    "wordpiece": wordpiece,
    "greedy": greedy,
}
_MADE: dict[str, tuple[PreTrainedTokenizerFast, SegmentTokenizer]] = {}


def made(kind: str) -> tuple[PreTrainedTokenizerFast, SegmentTokenizer]:
    if kind not in _MADE:
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind](), eos_token="<|im_end|>")
        segments = segment_tokenizer_for(tokenizer, add_special_tokens=False)
        assert segments is not None
        _MADE[kind] = tokenizer, segments
    return _MADE[kind]


def whole(tokenizer: PreTrainedTokenizerFast, texts: list[str], special: bool = False) -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=special)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_give_the_ids_of_whole_texts(kind):
    tokenizer, segments = made(kind)
    for _ in range(2):  # the second time from the cache
        assert [ids.tolist() for ids in segments.tokenize(TEXTS)] == whole(tokenizer, TEXTS)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(st.sampled_from([*SPECIAL, " ", "  ", "\n", " \n ", "'s", "42", "hello", "x.", "é", "\u0301", "\x1c"]),
                  st.text(max_size=4)),
        max_size=12,
    ).map("".join)
)  # fmt: skip
def test_pieces_give_the_ids_of_any_text(text):
    for kind in KINDS:
        tokenizer, segments = made(kind)
        assert segments.tokenize([text, text + " " + text])[1].tolist() == whole(tokenizer, [text + " " + text])[0], (
            kind
        )


def test_only_known_patterns_are_split_into_words():
    by_words = {kind for kind in KINDS if made(kind)[1].words}
    assert by_words == {"byte-level", "byte-level, Llama 3", "byte-level, NFC", "greedy"}


def test_repeated_pieces_are_tokenised_once(monkeypatch):
    _, segments = made("metaspace, always")
    seen: list[str] = []
    real = SegmentTokenizer._encode
    monkeypatch.setattr(SegmentTokenizer, "_encode", lambda self, texts: seen.extend(texts) or real(self, texts))
    prompt = "<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n"
    segments.tokenize([prompt + "So.<|im_end|>\n", prompt + "Not so.<|im_end|>\n"])
    assert sorted(seen) == sorted(["user\nHow?", "\n", "assistant\nSo.", "assistant\nNot so."])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: setattr(t.backend_tokenizer.model, "dropout", 0.1), "at random"),
        (lambda t: setattr(t, "split_special_tokens", True), "as text"),
        (lambda t: t.backend_tokenizer.enable_truncation(4), "truncates"),
    ],
)
def test_tokenizers_that_do_not_allow_it_are_left_alone(change, reason, caplog):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_level())
    change(tokenizer)
    with caplog.at_level(logging.DEBUG, "plaudit"):
        assert segment_tokenizer_for(tokenizer, add_special_tokens=False) is None
    assert reason in caplog.text


def test_a_tokenizer_class_that_encodes_in_its_own_way_is_left_alone():
    class Own(PreTrainedTokenizerFast):
        def _encode_plus(self, *args, **kwargs):
            return super()._encode_plus(*args, **kwargs)

    assert segment_tokenizer_for(Own(tokenizer_object=byte_level()), add_special_tokens=False) is None


def test_what_a_tokenizer_puts_around_a_text_is_kept():
    backend = byte_level()
    ids = [(token, backend.token_to_id(token)) for token in ("<|im_start|>", "<|im_end|>")]
    backend.post_processor = processors.TemplateProcessing(single="<|im_start|> $A <|im_end|>", special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    segments = segment_tokenizer_for(tokenizer, add_special_tokens=True)
    assert [one.tolist() for one in segments.tokenize(TEXTS)] == whole(tokenizer, TEXTS, special=True)


def test_wrong_pieces_are_noticed_and_the_texts_tokenised_whole(monkeypatch, caplog):
    tokenizer = tiny_tokenizer()
    encoder = TextEncoder(tokenizer)
    monkeypatch.setattr(SegmentTokenizer, "_encode", lambda self, texts: [b"\0\0\0\0" for _ in texts])
    texts = [f"text {n}<|eos|>" for n in range(9)]
    assert [ids.tolist() for ids in encoder.tokenize(texts)] == whole(tokenizer, texts)
    assert "other ids than tokenising whole texts" in caplog.text


# --- rendering

THINKING = (
    "{%- set ns = namespace(last=-1) %}{%- for m in messages[::-1] %}"
    "{%- if ns.last < 0 and m.role == 'user' and not m.content.startswith('<tool>') %}"
    "{%- set ns.last = messages|length - 1 - loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{{ m.role }}:{% if '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1] | trim }}{% else %}{{ m.content }}{% endif %}"
    "{{ '!' if loop.index0 > ns.last }}|{% endfor %}"
)
LLAMA_LIKE = (
    "{% for message in messages %}{% set content = '<' + message['role'] + '>' + message['content'] | trim + '.' %}"
    "{% if loop.index0 == 0 %}{% set content = (bos_token or '') + content %}{% endif %}{{ content }}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "thinking": THINKING,
    "llama": LLAMA_LIKE,
    "whole message": "{% for m in messages %}{{ m | tojson }}{% endfor %}",
    "printed message": "{% for m in messages %}{{ m }}{% endfor %}",
    "length": "{% for m in messages %}{{ m.content | length }}{{ m.content }}{% endfor %}",
    "macro": "{% macro show(m) %} {{ m.content }} {% endmacro %}{% for m in messages %}[{{ show(m) | trim }}]{% endfor %}",
    "case": "{% for m in messages %}{{ (m.role ~ m.content) | upper }}{{ m.content.title() }}{% endfor %}",
    "letters": "{% for m in messages %}{% for c in m.content %}{{ c }}-{% endfor %}{% endfor %}",
    "haystack": "{% for m in messages %}{{ m.content in 'hello world' }}{{ m.content in ['hello'] }}{% endfor %}",
    "join": "{{ messages | map(attribute='content') | join('+') }}{{ messages[0].values() | join(',') }}",
    "method of plain text": "{% for m in messages %}{{ '-'.join([m.content]) }}{{ 'hello'.find(m.content) }}{% endfor %}",
    "numbers": "{% for m in messages %}{{ m.content | int }}{{ m.content | wordcount }}{{ m.content[0:1] }}{% endfor %}",
    "formats": "{% for m in messages %}{{ '%s' % m.content }}{{ '{}'.format(m.content) }}{{ m.content|e }}{% endfor %}",
    "compares": "{% for m in messages %}{{ m.content == 'hello' }}{{ m.content < 'i' }}{{ 'hello' != m.content }}{% endfor %}",
    "keys": "{% set d = {'hello': 1} %}{% for m in messages %}{{ d[m.content] or 0 }}{{ {m.content: 1} }}{% endfor %}",
    "assigned": "{% for m in messages %}{% set x %}{{ m.content }} {% endset %}{{ x == 'hello ' }}{{ x|trim }}{% endfor %}",
    "concatenated": "{% for m in messages %}{% set x = m.role ~ m.content %}{{ 'rhe' in x }}{{ x }}{% endfor %}",
    "filter block": "{% for m in messages %}{% filter upper %}{{ m.content }}{% endfilter %}{% endfor %}",
    "changed": "{% for m in messages %}{% if loop.changed(m.content) %}{{ m.content }}{% endif %}{% endfor %}",
    "empty": "{% for m in messages %}{{ m.content or 'nothing' }}{{ m.content is string }}{% if not m.content.strip() %}?{% endif %}{% endfor %}",
    "strips": "{% for m in messages %}{{ m.content.lstrip('h \n') }}{{ m.content | trim('o') }}{{ 'oho' | trim(m.content) }}{% endfor %}",
    "chosen": "{% for m in messages | selectattr('content', 'equalto', 'hello') | list %}{{ m.role }}{% endfor %}{{ messages|length }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "raises": "{% for m in messages %}{% if 'hello' in m.content %}{{ m.content }}{% else %}{{ m.content|abs }}{% endif %}{% endfor %}",
}
CONTENTS = ["hello", " hello\n", "", "x", "  ", "a</think> b ", "<tool>", "hello world", "7", "Say %s {0} <b>", "user"]


def conversations(seed: int, count: int = 60) -> list[list[dict[str, str]]]:
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        roles = ["system"] * draw.randrange(2) + ["user", "assistant"] * draw.randrange(1, 3)
        made.append([{"role": role, "content": draw.choice(CONTENTS)} for role in roles])
    return made


def examples_of(chats) -> list[Example]:
    return [Example((one,)) for one in chats]


@pytest.mark.parametrize("name", TEMPLATES)
def test_sketches_give_what_the_template_gives(name):
    tokenizer = tiny_tokenizer(TEMPLATES[name])
    encoder = ConversationEncoder(tokenizer)
    for seed in range(3):
        chats = conversations(seed)
        if name == "raises":
            chats = [[{"role": "user", "content": "hello" + text["content"]} for text in one] for one in chats]
        expected = [tokenizer.apply_chat_template(one, tokenize=False) for one in chats]
        # One at a time, so that no sample of a batch catches what a sketch gets wrong.
        assert [encoder.render(examples_of([one]))[0][0] for one in chats] == expected
        assert [text for (text,) in encoder.render(examples_of(chats))] == expected


def runs_of_the_template(tokenizer, chats, monkeypatch) -> int:
    """How many conversations the template itself renders."""
    count = 0
    real = PreTrainedTokenizerFast.apply_chat_template

    encoder = ConversationEncoder(tokenizer)
    render_all = encoder._render_all

    def counted(given, *args, **kwargs):
        nonlocal count
        count += len(given)
        return render_all(given, *args, **kwargs)

    monkeypatch.setattr(encoder, "_render_all", counted)
    rendered = [text for (text,) in encoder.render(examples_of(chats))]
    assert rendered == [real(tokenizer, one, tokenize=False) for one in chats]
    return count


@pytest.mark.parametrize(("name", "most"), [("chatml", 20), ("llama", 20), ("generation", 20), ("thinking", 20)])
def test_the_template_runs_once_for_each_way_through_it(name, most, monkeypatch):
    chats = conversations(0, 640)
    if name == "thinking":
        # Those that it cuts apart take the long way.
        chats = [one for one in chats if not any("<" in message["content"] for message in one)]
    assert runs_of_the_template(tiny_tokenizer(TEMPLATES[name]), chats, monkeypatch) <= most


def test_a_template_that_looks_inside_is_left_to_itself(monkeypatch, caplog):
    with caplog.at_level(logging.INFO, "plaudit"):
        count = runs_of_the_template(tiny_tokenizer(TEMPLATES["letters"]), conversations(0, 300), monkeypatch)
    assert count >= 300
    assert "rendered by itself" in caplog.text


def test_messages_with_more_than_a_role_and_a_text_are_rendered_by_the_template():
    tokenizer = tiny_tokenizer(
        "{% for m in messages %}{{ m.name }}{{ m.content }}{{ m.reasoning_content }}{% endfor %}"
    )
    chats = [
        [{"role": "user", "content": "a"}],
        [{"role": "user", "content": "a", "name": "n"}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning": "r"}],
        [{"content": "a", "role": "user"}],
    ]
    expected = [tokenizer.apply_chat_template(one, tokenize=False) for one in chats]
    assert [text for (text,) in ConversationEncoder(tokenizer).render(examples_of(chats))] == expected


def test_the_order_of_keys_is_part_of_a_message():
    tokenizer = tiny_tokenizer("{% for m in messages %}{{ m | list | first }}{{ m.content }}{% endfor %}")
    chats = [[{"role": "user", "content": "a"}], [{"content": "a", "role": "user"}]]
    encoder = ConversationEncoder(tokenizer)
    assert encoder.render(examples_of(chats)) == [["rolea"], ["contenta"]]


def test_the_clock_is_read_for_every_conversation(monkeypatch):
    tokenizer = tiny_tokenizer("{{ strftime_now('%Y') }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert runs_of_the_template(tokenizer, conversations(0, 100), monkeypatch) >= 100


def test_an_encoder_travels_to_other_processes_after_use():
    encoder = ConversationEncoder(tiny_tokenizer())
    chats = examples_of(conversations(0, 5))
    texts = encoder.render(chats)
    ids = encoder.tokenize([text for (text,) in texts])
    again = pickle.loads(pickle.dumps(encoder))
    assert again.render(chats) == texts
    assert again.tokenize([text for (text,) in texts]) == ids
