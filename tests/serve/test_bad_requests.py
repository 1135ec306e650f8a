"""Bad requests: each gets its status and a reason, and the server goes on."""

from __future__ import annotations

import base64
import socket

import pytest

from plaudit.errors import ConfigError
from plaudit.serve.app import bind, key_of
from plaudit.serve.settings import ServerSettings
from serve.conftest import LiveServer, read_all, until
from tolerances import REWARD

NESTED = b"[" * 200_000


def goes_on(client):
    answer = client.post("/score", json="2+2=4")
    assert answer.status_code == 200
    return isinstance(answer.json()["rewards"], float)


@pytest.mark.parametrize(
    ("path", "body", "status", "field", "words"),
    [
        ("/score", b'{"prompt": "a", ', 422, None, "not JSON"),
        ("/score", b"", 422, None, "the body is empty"),
        ("/score", b'{"response": NaN}', 422, None, "NaN"),
        ("/score", b"\xff\xfe{}", 422, None, "not UTF-8: byte 0 is 0xff"),
        ("/score", '{"response": "é"}'.encode("latin-1"), 422, None, "not UTF-8: byte 14"),
        ("/score", b'{"prompt": "a", "response": "\\ud800"}', 422, "response", "half a character"),
        ("/score", NESTED, 422, None, "nested too deeply"),
        ("/score", b"1" * 5000, 422, None, "cannot be read"),
        ("/score", b"3", 422, None, "nothing that can be scored"),
        ("/score", b"null", 422, None, "nothing that can be scored"),
        ("/score", b"[]", 422, None, "empty list"),
        ("/score", b"{}", 422, None, "holds nothing to score"),
        ("/score", b'{"prompt": "a"}', 422, None, "holds nothing to score"),
        ("/score", b'{"prompt": "a", "response": 3}', 422, "response", "is the number 3"),
        ("/score", b'{"prompt": "a", "response": null}', 422, "response", "null"),
        ("/score", b'{"prompt": "a", "responses": []}', 422, "responses", "empty"),
        ("/score", b'{"prompt": "a", "responses": ["b", 4]}', 422, "responses[1]", "is the number 4"),
        ("/score", b'["a", {"chosen": "b"}]', 422, "[1].rejected", ""),
        ("/score", b'["a", 7]', 422, "[1]", "nothing that can be scored"),
        ("/score", b'{"messages": []}', 422, "messages", ""),
        ("/score", b'{"messages": [{"role": "user"}]}', 422, "messages[0].content", ""),
        ("/score", b'{"response_ids": [[1, 999999]]}', 422, None, "has token id 999999; the model has"),
        ("/score", b'{"response_ids": [[1, -2]]}', 422, "response_ids[0][1]", "not a token id"),
        ("/score", b'{"messages": "a", "chat_template_kwargs": {"chat_template": "x"}}', 422,
         "chat_template_kwargs", "brings a chat template"),
        ("/score", b'{"messages": "a", "chat_template_kwargs": "{}"}', 422,
         "chat_template_kwargs", "not an object"),
        ("/rank", b'{"prompt": "a"}', 422, "responses", "is missing"),
        ("/rank", b'{"prompt": "a", "responses": []}', 422, "responses", "is an empty list"),
        ("/rank", b'{"prompt": "a", "responses": "b"}', 422, "responses", "not a list"),
        ("/rank", b'{"prompt": "a", "responses": ["b", null]}', 422, "responses[1]", "null"),
        ("/get_reward", b"[]", 422, None, "not an object"),
        ("/get_reward", b'{"query": []}', 422, "query", "is an empty list"),
        ("/get_reward", b'{"query": null}', 422, "query", "is null"),
        ("/get_reward", b'{"query": ["a", 3]}', 422, "query[1]", "not a text"),
        ("/get_reward", b'{"query": ["a", ""]}', 422, "query[1]", "empty"),
        ("/get_reward", b'{"query": ["a"], "prompts": ["a", "b"]}', 422, "prompts", "2 entries for 1"),
        ("/classify", b'{"model": "tiny"}', 422, "input", "is missing"),
        ("/classify", b'{"input": {"a": 1}}', 422, "input", "not a list"),
        ("/classify", b'{"input": [["a"]]}', 422, "input[0]", "not a token id"),
        ("/classify", b'{"input": "a", "truncate_prompt_tokens": 5}', 422, "truncate_prompt_tokens", "raw and whole"),
        ("/nothing", b"{}", 404, None, "Not Found"),
    ],
)  # fmt: skip
def test_status_and_reason(client, path, body, status, field, words):
    answer = client.post(path, content=body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error.get("field") == field
    assert words in error["message"]
    assert error["fix"]
    assert goes_on(client)


def test_methods_have_the_same_body_of_error(client):
    answer = client.get("/score")
    assert answer.status_code == 405
    assert "Method Not Allowed" in answer.json()["error"]["message"]
    assert answer.headers["allow"] == "POST"


def test_a_text_of_100_000_tokens(client):
    answer = client.post("/score", json=["a", {"prompt": "b", "response": "x" * 100_000}])
    assert answer.status_code == 422
    error = answer.json()["error"]
    assert error["message"] == "has 100002 tokens, more than `max_length` 512"
    assert error["field"] == "[1].response"
    assert "--overlong" in error["fix"]
    assert goes_on(client)


def test_a_body_of_10_megabytes(client):
    answer = client.post("/score", json="x" * 10_000_000)
    assert answer.status_code == 413
    assert "8,388,608 bytes" in answer.json()["error"]["message"]
    assert goes_on(client)


def test_a_body_of_unknown_length_is_cut_off_while_it_arrives(make_model):
    with LiveServer(make_model(), max_body_mb=0.1) as server, server.connect() as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        chunk = b"2710\r\n" + b"x" * 10_000 + b"\r\n"
        sent = 0
        connection.settimeout(10)
        try:
            while sent < 1000:  # 10 MB, and it would go on
                connection.sendall(chunk)
                sent += 1
        except OSError:
            pass
        assert sent < 1000
        status, body = read_all(server.send("2+2=4"))
        assert (status, isinstance(body["rewards"], float)) == (200, True)
        assert 'plaudit_requests_total{route="/score",status="413"} 1.0' in server.service.metrics.text().decode()


def test_the_answer_to_a_large_body_arrives(make_model):
    with LiveServer(make_model()) as server:
        status, body = read_all(server.send(b'"' + b"x" * 10_000_000 + b'"'))
        assert status == 413
        assert "8,388,608" in body["error"]["message"]


def test_a_slow_body(make_model):
    with LiveServer(make_model(), read_timeout=0.2) as server, server.connect() as connection:
        connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert read_all(connection)[0] == 408


def test_a_compressed_body(client):
    assert client.post("/score", content=b"x", headers={"Content-Encoding": "gzip"}).status_code == 415


def test_conversations_without_a_chat_template(serve, make_model):
    model = make_model()
    model.processing_class.chat_template = None
    answer = serve(model).post("/score", json=[{"role": "user", "content": "a"}])
    assert answer.status_code == 422
    assert "no chat template" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        ("Bearer s3cret-key", 200),
        ("bearer s3cret-key", 200),
        ("Bearer s3cret-ke", 401),
        ("Bearer ", 401),
        ("s3cret-key", 401),
        ("Basic " + base64.b64encode(b"any:s3cret-key").decode(), 200),
        ("Basic " + base64.b64encode(b"s3cret-key:x").decode(), 401),
        ("Basic ???", 401),
        (b"Bearer \xff", 401),
    ],
)
def test_the_key(serve, header, status):
    client = serve(api_key="s3cret-key")
    headers = {} if header is None else {"Authorization": header}
    answer = client.post("/score", json="2+2=4", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "s3cret" not in answer.text
        assert client.get("/metrics", headers=headers).status_code == 401
    assert client.get("/health").status_code == 200


def test_keys_are_compared_in_constant_time(serve, monkeypatch):
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("plaudit.serve.app.hmac.compare_digest", compare)
    client = serve(api_key="k")
    client.post("/score", json="a", headers={"Authorization": "Bearer very long key"})
    assert compared == [(32, 32)]
    assert key_of("Basic") == ""


def test_the_queue_has_an_end(serve, make_model):
    model = make_model(max_tokens_per_batch=16)
    client = serve(model, max_queue=8)
    answer = client.post("/score", json=["a"] * 9)
    assert answer.status_code == 413
    assert "9 responses; the queue holds 8" in answer.json()["error"]["message"]
    assert client.post("/score", json=[f"text {n}" for n in range(8)]).status_code == 200


def test_a_full_queue_says_when_to_come_again(make_model):
    model = make_model()
    with LiveServer(model, max_queue=4, max_wait_ms=0) as server:
        model.may_go.clear()
        first = server.send("first")
        until(lambda: len(model.asked) == 2)  # the warm-up and this one
        waiting = [server.send([f"a{n}", f"b{n}"]) for n in range(2)]
        until(lambda: server.service.batcher.responses == 4)
        with server.send("one more") as refused:
            head = b"".join(iter(lambda: refused.recv(65536), b"")).decode()
        assert " 429 " in head
        assert "retry-after: " in head.lower()
        assert "4 responses wait" in head
        model.may_go.set()
        assert [read_all(one)[0] for one in (first, *waiting)] == [200] * 3
        assert read_all(server.send("one more"))[0] == 200


def test_a_client_that_hangs_up_disturbs_nobody(make_model, reference):
    model = make_model(max_tokens_per_batch=16)
    with LiveServer(model, max_wait_ms=0) as server:
        model.may_go.clear()
        first = server.send("first")
        until(lambda: len(model.asked) == 2)
        gone = server.send([f"nobody waits for {n}" for n in range(20)])
        until(lambda: server.service.batcher.responses == 20)
        kept = server.send("somebody waits")
        until(lambda: server.service.batcher.responses == 21)
        gone.close()
        until(lambda: server.service.batcher.responses == 1)
        model.may_go.set()
        rewards = [read_all(one)[1]["rewards"] for one in (first, kept)]
        assert rewards == REWARD.approx(reference.score(["first", "somebody waits"]))
        assert len(model.asked) == 3
        metrics = server.service.metrics.text().decode()
        assert "plaudit_dropped_rows_total 20.0" in metrics
        until(lambda: server.service.active == 0)


def test_a_client_that_hangs_up_within_its_body(make_model):
    with LiveServer(make_model()) as server:
        with server.connect() as connection:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
            until(lambda: server.service.active == 1)
        until(lambda: server.service.active == 0)
        assert read_all(server.send("2+2=4"))[0] == 200


def test_a_batch_that_fails_fails_only_for_the_one_to_blame(make_model, reference):
    model = make_model()

    def fault(rows):
        if any(len(row["response_ids"][0]) == 12 for row in rows if isinstance(row, dict) and "response_ids" in row):
            raise MemoryError("too much")

    with LiveServer(model, max_wait_ms=0) as server:
        model.may_go.clear()
        first = server.send("first")
        until(lambda: len(model.asked) == 2)
        model.fault = fault
        bad, good = server.send("x" * 11), server.send("fine")
        until(lambda: server.service.batcher.responses == 2)
        model.may_go.set()
        assert read_all(first)[0] == 200
        status, body = read_all(bad)
        assert (status, "MemoryError" in body["error"]["message"]) == (500, True)
        status, body = read_all(good)
        assert (status, body["rewards"]) == (200, REWARD.approx(reference.score("fine")))


def test_settings_that_cannot_work():
    wrong = {"port": 70_000, "max_queue": 0, "max_body_mb": 0, "max_wait_ms": -1, "texts": "html", "api_key": " "}
    for name, value in wrong.items():
        with pytest.raises(ConfigError) as error:
            ServerSettings(**{name: value})
        assert error.value.field == name
    assert "secret" not in repr(ServerSettings(api_key="secret"))
    with bind(ServerSettings(port=0)) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError) as error:
            bind(ServerSettings(port=port))
        assert f":{port}" in error.value.message


def test_bodies_that_are_too_much_together(make_model, monkeypatch):
    monkeypatch.setattr("plaudit.serve.service._BODIES", 2)
    with LiveServer(make_model(), max_body_mb=1000 / 2**20) as server:
        slow = [server.connect() for _ in range(2)]
        for connection in slow:
            connection.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 990\r\n\r\n" + b"x" * 980)
        until(lambda: sum(server.service.body_bytes.values()) == 1960)
        status, body = read_all(server.send("x" * 100))
        assert (status, "2,000 bytes in all" in body["error"]["message"]) == (429, True)
        assert read_all(server.send("2+2=4"))[0] == 200
        for connection in slow:
            connection.close()
        until(lambda: sum(server.service.body_bytes.values()) == 0)
        assert read_all(server.send("x" * 100))[0] == 200


def test_an_answer_does_not_wait_for_an_acknowledgement(make_model):
    with LiveServer(make_model(), max_wait_ms=0) as server, server.connect() as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        connection.recv(65536)
        (accepted,) = server.server.server_state.connections
        held = accepted.transport.get_extra_info("socket")
        assert held.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
