"""Trained tiny reward models with their golden rows in folders, and servers that answer as others do."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from builders import tiny_tokenizer
from model_builders import conversation_rows, tiny_model
from plaudit import RewardConfig, RewardTrainer


def train(folder, tokenizer, rows, **options):
    """Train a tiny model for two steps and save it with its golden rows."""
    model = options.pop("model", None) or tiny_model(tokenizer, max_position_embeddings=512)
    config = RewardConfig(
        str(folder), use_cpu=True, report_to=[], disable_tqdm=True, max_steps=2, learning_rate=1e-2, save_strategy="no",
        per_device_train_batch_size=4,
    )  # fmt: skip
    trainer = RewardTrainer(model, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **options)
    trainer.train()
    trainer.save_model()
    return trainer


@pytest.fixture(scope="session")
def _conversations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conversations") / "model"
    train(folder, tiny_tokenizer(), conversation_rows())
    return folder


@pytest.fixture(scope="session")
def _texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts") / "model"
    rows = [{"prompt": "2+2=" * (1 + n % 3), "chosen": f"{n} is it", "rejected": f"{n}"} for n in range(12)]
    train(folder, tiny_tokenizer(bos=True), rows)
    return folder


@pytest.fixture
def folder(_conversations, tmp_path):
    """A model that was trained on conversations; this copy may be spoilt."""
    return shutil.copytree(_conversations, tmp_path / "model")


@pytest.fixture
def text_folder(_texts, tmp_path):
    """A model that was trained on plain texts, with a BOS token; this copy may be spoilt."""
    return shutil.copytree(_texts, tmp_path / "texts")


class OtherServer:
    """A server that answers as vLLM, SGLang or OpenRLHF do, from a model folder, with a mistake if wanted.

    `read` turns rewards into what is answered; `change` turns token ids into what is computed; `asked` keeps bodies.
    """

    def __init__(self, folder, kind, *, read=lambda rewards: rewards, change=list, special=None, api_key=None):
        self.kind, self.read, self.change, self.special, self.api_key = kind, read, change, special, api_key
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.asked = []

    def rewards(self, inputs, add_special_tokens=True):
        """Rewards of token ids or texts."""
        found = []
        special = add_special_tokens if self.special is None else self.special
        for one in inputs:
            ids = self.tokenizer(one, add_special_tokens=special)["input_ids"] if isinstance(one, str) else one
            with torch.no_grad():
                found.append(self.model(torch.tensor([self.change(ids)])).logits.item())
        return self.read(found)

    ROUTES: ClassVar = {
        "vllm": ["/classify", "/pooling", "/tokenize", "/v1/models"],
        "sglang": ["/classify", "/encode", "/get_model_info", "/v1/models"],
        "openrlhf": ["/get_reward"],
        "unknown": ["/generate"],
    }

    def get(self, path):
        if path == "/openapi.json":
            return {"info": {"title": "FastAPI"}, "paths": {route: {} for route in self.ROUTES[self.kind]}}
        return {"data": [{"id": "the-model"}]} if path == "/v1/models" else None

    def post(self, path, body):
        self.asked.append((path, body))
        if (self.kind, path) == ("vllm", "/classify"):
            assert body["model"] == "the-model"
            rewards = self.rewards(body["input"], body.get("add_special_tokens", True))
            data = [{"index": n, "probs": [one], "num_classes": 1} for n, one in enumerate(rewards)]
            return {"object": "list", "data": data[::-1]}
        if (self.kind, path) == ("sglang", "/classify"):
            assert ("text" in body) != ("input_ids" in body)
            rewards = self.rewards(body.get("text") or body["input_ids"])
            return [{"embedding": [one], "meta_info": {}} for one in rewards]
        if (self.kind, path) == ("openrlhf", "/get_reward"):
            assert set(body) == {"query", "prompts", "labels"}
            return {"rewards": self.rewards(body["query"], add_special_tokens=False)}
        return None


def _handler(server):
    class Handler(BaseHTTPRequestHandler):
        def _answer(self, found):
            allowed = server.api_key is None or self.headers.get("Authorization") == f"Bearer {server.api_key}"
            data = json.dumps(found if allowed else {"error": "no"}).encode()
            self.send_response(401 if not allowed else 404 if found is None else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self._answer(server.get(self.path))

        def do_POST(self):
            self._answer(server.post(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        def log_message(self, *args):
            pass

    return Handler


@pytest.fixture
def start():
    """Starts such a server; returns its URL and the server."""
    with contextlib.ExitStack() as stack:

        def run(*args, **options):
            server = OtherServer(*args, **options)
            http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(server))
            thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(lambda: (http.shutdown(), thread.join(), http.server_close()))
            return f"http://127.0.0.1:{http.server_port}", server

        yield run


def by_path(verification):
    """Results by their path."""
    return {one.path: one for one in verification.results}


def traps(verification):
    """Names of all findings."""
    return {one.trap for one in verification.findings}
