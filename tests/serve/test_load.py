"""Requests by the ten thousand to a server in a second process: none lost or mixed up, and its memory stays flat."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_ten_thousand_requests(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    load = importlib.import_module("serving_load")
    found = load.measure(load.Settings(requests=10_000, clients=(4, 64), rounds=3))
    assert found["requests"] == 10_000
    assert found["distinct_rewards"] > 0.5 * found["texts"]  # rounded to four digits, of 45,000 texts
    for stage in found["stages"]:
        assert stage["answered"] == stage["requests"]
        assert stage["mixed_up"] == 0
        assert stage["milliseconds"]["p50"] < stage["milliseconds"]["p99"] < 5000
    assert found["stages"][1]["requests_per_batch"] > 3
    assert found["rss_growth_bytes"] < 40 * 2**20
    # Caches have filled by then. Without a limit on words, each round kept another 1 to 3 MiB.
    memory = [one["rss_bytes"] for one in found["rounds"]]
    assert memory[2] - memory[0] < 1.5 * 2**20
    assert all(one["answered"] == 10_000 and one["mixed_up"] == 0 for one in found["rounds"])
