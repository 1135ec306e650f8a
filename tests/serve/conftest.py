"""A tiny reward model behind the application, in process, and behind a socket, in a thread."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import pytest
from starlette.testclient import TestClient

from builders import tiny_tokenizer
from model_builders import tiny_model
from plaudit import RewardModel
from plaudit.serve.app import RewardServer, bind, create_app
from plaudit.serve.settings import ServerSettings


class WatchedModel(RewardModel):
    """A reward model that notes what it is asked together, and can be held up."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.asked: list[list] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.fault = None

    def score(self, rows, **options):
        self.asked.append(list(rows))
        assert self.may_go.wait(30)
        if self.fault is not None:
            self.fault(rows)
        return super().score(rows, **options)


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def reference(tokenizer):
    """The model that says what is right; not the one that is served."""
    return RewardModel(tiny_model(tokenizer, max_position_embeddings=512), tokenizer)


@pytest.fixture(params=["shared_prefix", "padded"])
def layout(request):
    return request.param


@pytest.fixture
def make_model(tokenizer):
    def make(**options):
        options = {"batch_layout": "shared_prefix", "max_tokens_per_batch": 2048, "name": "tiny"} | options
        return WatchedModel(tiny_model(tokenizer, max_position_embeddings=512), tokenizer, **options)

    return make


@pytest.fixture
def serve(make_model):
    """Starts the application in process; returns its client."""
    with contextlib.ExitStack() as stack:

        def start(model=None, **settings):
            app = create_app(model or make_model(), ServerSettings(**settings))
            return stack.enter_context(TestClient(app, raise_server_exceptions=False))

        yield start


@pytest.fixture
def client(serve):
    return serve()


class LiveServer:
    """A server on a real socket."""

    def __init__(self, model, **settings):
        self.settings = ServerSettings(port=0, **settings)
        self.listener = bind(self.settings)
        self.ready = threading.Event()
        self.model = model
        self.server = RewardServer(model, self.settings, lambda url: self.ready.set())
        self.service = self.server._service
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.listener]})

    @property
    def port(self):
        return self.listener.getsockname()[1]

    def __enter__(self):
        self.thread.start()
        assert self.ready.wait(30)
        self.address = ("127.0.0.1", self.port)
        return self

    def __exit__(self, *error):
        if error[0] is not None and isinstance(self.model, WatchedModel):
            self.model.may_go.set()  # a failed test must not wait for what it held up
        if self.thread.is_alive():
            self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()

    def connect(self):
        return socket.create_connection(self.address, timeout=20)

    def send(self, body, path="/score", headers=""):
        connection = self.connect()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nConnection: close\r\n{headers}\r\n"
        connection.sendall(head.encode() + data)
        return connection


def read_all(connection):
    """Status and JSON of the answer on a connection."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    connection.close()
    head, _, body = b"".join(parts).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def until(condition, seconds=10.0):
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
