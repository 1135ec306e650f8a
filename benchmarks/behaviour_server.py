"""What `behaviour.py` records of a server: its answer to good and bad requests on every route."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from behaviour_parts import attempt, command, contents, plain

REQUESTS: dict[str, list[Any]] = {
    "/score": [
        {"prompt": "2+2=", "response": "4"},
        [{"prompt": "2+2=", "responses": ["4", "5", "22"]}, {"prompt": "2+2=", "chosen": "4", "rejected": "5"}],
        [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}],
        {"response_ids": [[5, 6, 2], [7, 2]]},
        "2+2=4",
        [],
        7,
        b"{no JSON",
        [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": None}],
        {"response_ids": [[99999]]},
        {"prompt": "a", "response": "long " * 200},
    ],
    "/rank": [
        {"prompt": "2+2=", "responses": ["5", "4", "five"]},
        {"prompt": [{"role": "user", "content": "2+2?"}], "responses": ["5", "4"]},
        {"prompt": "2+2="},
        {"prompt": "2+2=", "responses": "4"},
        ["4"],
    ],
    "/get_reward": [
        {
            "query": ["2+2=4", "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"],
            "prompts": ["", ""],
        },
        {"query": "2+2=4"},
        {"query": ["a"], "labels": ["b", "c"]},
        {"query": [7]},
        {},
    ],
    "/classify": [
        {"input": ["2+2=4", "2+2=5"], "model": "tiny"},
        {"input": [5, 6, 7, 2]},
        {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
        {"input": "2+2=4", "use_activation": True},
        {"input": "2+2=4", "model": "other"},
        {"input": []},
    ],
    "/nowhere": [{}],
    "/health": [None, {}],
    "/v1/models": [None],
    "/docs": [None],
    "/metrics": [None],
    "/openapi.json": [None],
}


def ask(url: str, body: Any, key: str = "secret") -> dict[str, Any]:
    """Send a request: the status, and the answer as JSON or text."""
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, sent, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    with contextlib.suppress(ValueError):
        return {"status": status, "answer": plain(json.loads(text))}
    return {"status": status, "answer": text}


def metrics_of(text: str) -> dict[str, Any]:
    """Names and labels of a server's metrics; values of those that count."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        name, _, value = line.rpartition(" ")
        if line.startswith("plaudit_") and "_created" not in name and "_seconds_bucket" not in name:
            found[name] = "varies" if "seconds" in name else float(value)
    return found


@contextlib.contextmanager
def server(*arguments: str) -> Iterator[str]:
    """Serve a model on a free port; gives the address once the server answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    serve = [sys.executable, "-m", "plaudit", "serve", *arguments, "--port", str(port)]
    with Path("server.log").open("w") as log:
        process = subprocess.Popen(serve, stdout=log, stderr=log)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                if ask(f"{url}/health", None)["status"] == 200:
                    break
            if process.poll() is not None:
                raise RuntimeError(Path("server.log").read_text())
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def record() -> Any:
    """Every route of `plaudit serve`, with good and bad requests, and `plaudit verify` against it."""
    with server("runs/padded", "--served_model_name", "tiny", "--api_key", "secret", "--max_length", "600") as url:
        answers: dict[str, Any] = {
            route: [ask(url + route, body) for body in bodies] for route, bodies in REQUESTS.items()
        }
        answers["no key"] = ask(f"{url}/score", REQUESTS["/score"][0], key="wrong")
        arguments = ["--url", url, "--api_key", "secret", "--no_local", "--json", "server.verify.json"]
        answers["verify"] = command("verify", "runs/padded", *arguments)
    answers["verify"]["json"] = attempt(contents, "server.verify.json")
    answers["/docs"] = [answers["/docs"][0]["status"]]
    answers["/metrics"] = metrics_of(answers["/metrics"][0]["answer"])
    paths = answers["/openapi.json"][0]["answer"]["paths"]
    answers["/openapi.json"] = {
        path: {method: sorted(about["responses"]) for method, about in methods.items()}
        for path, methods in paths.items()
    }
    return answers
