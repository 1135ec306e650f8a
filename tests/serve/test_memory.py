"""A server that runs for long does not keep the words that it was sent."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from plaudit.data.encode import TextEncoder
from plaudit.serve.handlers import WORD_BYTES


def kept(encoder, texts_at_a_time=100, words=10):
    """Bytes that Python keeps after 3 and after 9 calls, of which each has words that no other has."""
    found = []
    tracemalloc.start()
    try:
        for call in range(9):
            encoder.tokenize(
                [" ".join(f"w{call}x{text}x{word}" for word in range(words)) for text in range(texts_at_a_time)]
            )
            gc.collect()
            found.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    return found[2], found[8]


@pytest.mark.parametrize(("limit", "grows"), [(30_000, False), (2**40, True)])
def test_words_are_forgotten_beyond_the_limit(tokenizer, limit, grows):
    encoder = TextEncoder(tokenizer)
    encoder.cache_bytes = limit
    early, late = kept(encoder)
    if grows:
        assert late - early > 600_000  # six calls of 1,000 words
    else:
        assert late - early < 200_000


def test_a_server_sets_its_own_limit(serve):
    client = serve()
    assert client.post("/score", json={"prompt": "2+2=", "response": "4"}).status_code == 200
    service = client.app.state.service
    encoders = [*service.preparer.encoders.values(), service.served.encoder]
    assert [encoder.cache_bytes for encoder in encoders] == [WORD_BYTES] * 2
    assert WORD_BYTES < 2**23
