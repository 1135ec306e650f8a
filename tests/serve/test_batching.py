"""Requests are computed together, get their own answers, and none is lost when the server stops."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plaudit.serve.batching import Batcher, QueuedRow, ServerMetrics
from plaudit.serve.errors import RequestError
from serve.conftest import LiveServer, read_all, until
from tolerances import REWARD


def test_requests_that_arrive_while_a_batch_runs_are_computed_together(make_model, reference, layout):
    model = make_model(batch_layout=layout)
    prompt = "A prompt that all of them share, of some length: "
    with LiveServer(model, max_wait_ms=0) as server:
        model.may_go.clear()
        first = server.send("first")
        until(lambda: len(model.asked) == 2)
        waiting = [server.send({"prompt": prompt, "response": f"answer {n}"}) for n in range(12)]
        until(lambda: server.service.batcher.responses == 12)
        model.may_go.set()
        rewards = [read_all(one)[1]["rewards"] for one in (first, *waiting)]
    assert [len(rows) for rows in model.asked[1:]] == [1, 12]
    assert rewards == REWARD.approx(reference.score(["first", *(f"{prompt}answer {n}" for n in range(12))]))


def test_a_batch_has_no_more_tokens_than_it_may(make_model):
    model = make_model(max_tokens_per_batch=100, batch_layout="padded")
    with LiveServer(model, max_wait_ms=0) as server:
        model.may_go.clear()
        first = server.send("first")
        until(lambda: len(model.asked) == 2)
        waiting = [server.send("x" * 29) for _ in range(7)]  # 30 tokens each
        until(lambda: server.service.batcher.responses == 7)
        model.may_go.set()
        assert {read_all(one)[0] for one in (first, *waiting)} == {200}
    assert [len(rows) for rows in model.asked[1:]] == [1, 3, 3, 1]


def test_the_first_request_waits_for_others(make_model):
    model = make_model()
    with LiveServer(model, max_wait_ms=400) as server:
        waiting = [server.send(f"text {n}") for n in range(5)]
        assert {read_all(one)[0] for one in waiting} == {200}
    assert len(model.asked) == 2


def test_a_full_batch_does_not_wait(make_model):
    model = make_model(max_tokens_per_batch=20)
    with LiveServer(model, max_wait_ms=10_000) as server:
        connection = server.send("x" * 40)
        connection.settimeout(5)
        assert read_all(connection)[0] == 200


def test_many_threads_get_their_own_answers(make_model, reference, layout):
    texts = [f"{'even' if n % 2 else 'odd'} text number {n} {'!' * (n % 13)}" for n in range(240)]
    expected = reference.score(texts)
    model = make_model(batch_layout=layout, max_tokens_per_batch=300)
    with LiveServer(model) as server, ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda text: read_all(server.send(text)), texts))
    assert [status for status, _ in answers] == [200] * 240
    assert [body["rewards"] for _, body in answers] == REWARD.approx(expected)
    assert len(set(expected)) > 200
    assert len(model.asked) < 240


def test_told_to_stop_it_answers_what_it_accepted_and_refuses_new_work(make_model, reference):
    model = make_model(max_tokens_per_batch=16)
    with LiveServer(model, max_wait_ms=0) as server:
        model.may_go.clear()
        accepted = [server.send(f"accepted {n}") for n in range(6)]
        until(lambda: server.service.batcher.responses >= 5)
        server.server.handle_exit(signal.SIGTERM)
        time.sleep(0.3)  # some of the server's ticks
        status, body = read_all(server.send("too late"))
        assert status == 503
        assert "stopping" in body["error"]["message"]
        with server.connect() as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert read_all(connection)[0] == 503
        model.may_go.set()
        answers = [read_all(one) for one in accepted]
        server.thread.join(10)
        assert not server.thread.is_alive()
    assert [status for status, _ in answers] == [200] * 6
    expected = reference.score([f"accepted {n}" for n in range(6)])
    assert [body["rewards"] for _, body in answers] == REWARD.approx(expected)
    with pytest.raises(OSError, match=r"."):
        server.connect()


def test_it_does_not_wait_for_ever_when_it_stops(make_model):
    model = make_model()
    with LiveServer(model, stop_timeout=0.3) as server:
        model.may_go.clear()
        connection = server.send("never answered")
        until(lambda: len(model.asked) == 2)
        server.server.handle_exit(signal.SIGTERM)
        server.thread.join(10)
        assert not server.thread.is_alive()
        model.may_go.set()
        connection.close()


def test_told_twice_it_stops_at_once(make_model):
    model = make_model()
    with LiveServer(model) as server:
        model.may_go.clear()
        connection = server.send("never answered")
        until(lambda: len(model.asked) == 2)
        server.server.handle_exit(signal.SIGINT)
        server.server.handle_exit(signal.SIGINT)
        server.thread.join(10)
        assert not server.thread.is_alive()
        model.may_go.set()
        connection.close()


def test_metrics(client):
    client.post("/score", json={"prompt": "2+2=", "responses": ["4", "5"]})
    client.post("/score", json="2+2=4")
    client.post("/score", content=b"{")
    client.get("/a/path/nobody/knows")
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    values = dict(re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", page.text, flags=re.MULTILINE))
    expected = {
        'plaudit_requests_total{route="/score",status="200"}': 2,
        'plaudit_requests_total{route="/score",status="422"}': 1,
        'plaudit_requests_total{route="other",status="404"}': 1,
        'plaudit_request_seconds_count{route="/score"}': 3,
        "plaudit_queue_responses": 0,
        "plaudit_batch_tokens_count": 2,
        "plaudit_batch_seconds_count": 2,
        "plaudit_queue_seconds_count": 2,
        "plaudit_responses_total": 3,
        "plaudit_tokens_total": 18,
        "plaudit_dropped_rows_total": 0,
    }
    assert {name: float(values[name]) for name in expected} == expected


# ---- the queue alone -----------------------------------------------------------------------------------------------


def run_batcher(requests, *, max_tokens=20, max_queue=10_000, compute=None, drop=()):
    """Submit requests at once; returns their rewards, and the batches."""
    batches = []

    def note(rows):
        batches.append([list(map(list, row)) for row in rows])
        return [[float(sum(ids)) for ids in row] for row in rows]

    async def run():
        batcher = Batcher(
            compute or note, max_tokens=max_tokens, max_wait=0.0, max_queue=max_queue, metrics=ServerMetrics()
        )
        batcher.start()
        jobs = [batcher.submit([QueuedRow(row, sum(map(len, row))) for row in rows]) for rows in requests]
        for index in drop:
            batcher.drop(jobs[index])
        kept = [job.done for index, job in enumerate(jobs) if index not in drop]
        done = await asyncio.wait_for(asyncio.gather(*kept, return_exceptions=True), 20)
        assert batcher.responses == 0
        await batcher.stop()
        return done

    return asyncio.run(run()), batches


IDS = st.lists(st.integers(0, 9), min_size=1, max_size=12)
REQUESTS = st.lists(st.lists(st.lists(IDS, min_size=1, max_size=3), min_size=1, max_size=6), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(requests=REQUESTS, max_tokens=st.integers(1, 60), data=st.data())
def test_whatever_is_asked_each_gets_its_own_within_the_budget(requests, max_tokens, data):
    drop = data.draw(st.sets(st.integers(0, len(requests) - 1), max_size=len(requests) - 1))
    found, batches = run_batcher(requests, max_tokens=max_tokens, drop=drop)
    kept = [rows for index, rows in enumerate(requests) if index not in drop]
    assert found == [[[float(sum(ids)) for ids in row] for row in rows] for rows in kept]
    for batch in batches:
        assert len(batch) == 1 or sum(len(ids) for row in batch for ids in row) <= max_tokens
    # First come, first served, each row once.
    assert [row for batch in batches for row in batch] == [row for rows in kept for row in rows]


def test_an_error_of_one_is_not_that_of_others():
    def compute(rows):
        if any([13] in list(row) for row in rows):
            raise RuntimeError("unlucky")
        return [[1.0] for _ in rows]

    found, _ = run_batcher([[[[1]], [[2]]], [[[13]], [[4]]], [[[5]]]], compute=compute)
    assert found[0] == [[1.0], [1.0]]
    assert isinstance(found[1], RequestError)
    assert found[1].status == 500
    assert found[2] == [[1.0]]


def test_whoever_waits_when_it_ends_is_told():
    async def run():
        hold = threading.Event()
        batcher = Batcher(
            lambda rows: [[1.0] for _ in rows if hold.wait(10)],
            max_tokens=1,
            max_wait=0.0,
            max_queue=100,
            metrics=ServerMetrics(),
        )
        batcher.start()
        jobs = [batcher.submit([QueuedRow([[1]], 1)]) for _ in range(3)]
        await asyncio.sleep(0.05)
        await batcher.stop()
        hold.set()
        return await asyncio.gather(*(job.done for job in jobs), return_exceptions=True)

    assert [error.status for error in asyncio.run(run())] == [503] * 3


def test_answers_are_json():
    assert json.loads(RequestError(422, "a \ud800", field="b").response().body)["error"]["field"] == "b"
