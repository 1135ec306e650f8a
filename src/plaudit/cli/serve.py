"""``plaudit serve``: serves a reward model over HTTP."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from plaudit.cli.arguments import API_KEY_VARIABLE, LOAD, LOADING, SCHEMA, Command, Section, about
from plaudit.cli.console import log_lines, say
from plaudit.errors import ConfigError

SERVER = "plaudit.serve.settings:ServerSettings"
_NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}

SERVE = Command(
    "serve",
    usage="MODEL [--port N] [--NAME VALUE ...]",
    about="Serve a reward model over HTTP.",
    examples=("plaudit serve runs/first --port 8000",),
    notes=(
        "MODEL is a folder or a model id: what `plaudit train` writes, an adapter, or any other reward model with one "
        "output. Routes: /score, /rank, /get_reward (OpenRLHF), /classify (vLLM), /health, /metrics (Prometheus) and "
        "/docs, which documents them. Ctrl-C or SIGTERM stops the server after it has answered the requests it "
        "accepted; a second one stops it at once.",
    ),
    words=("model",),
    sections=(
        Section(
            "Server: address, access and limits.",
            SERVER,
            host="Address to listen on; 0.0.0.0 accepts requests from other machines.",
            port="Port to listen on; 0 picks a free one.",
            api_key="Key that clients must send as `Authorization: Bearer KEY`. Other users of the machine can read "
            f"command lines, but not the environment variable {API_KEY_VARIABLE}.",
            served_model_name="Name of the model in responses. Default: MODEL.",
            max_wait_ms="How long the first request of a batch waits for others, in milliseconds.",
            max_queue="Maximum number of waiting responses; further requests get status 429.",
            max_body_mb="Maximum size of a request body, in MiB; larger ones get status 413.",
            read_timeout="Maximum time to receive a request body, in seconds.",
            stop_timeout="Maximum time to answer accepted requests when the server stops, in seconds.",
            texts="Whether clients of /get_reward and /classify send texts rendered by the chat template, or plain "
            "ones; auto looks for the special tokens of the template.",
        ),
        Section(
            "Model: how the reward model is loaded and run.",
            LOAD,
            **LOADING,
            overlong=about(
                "How to handle rows longer than --max_length: reject them, or truncate them and report it.",
                choices=("error", "truncate_left", "truncate_right"),
            ),
            schema=about(SCHEMA.replace("public data is", "the rows of /score are"), choices=("auto", "none")),
        ),
    ),
)


def run_serve(arguments: Sequence[str]) -> int:
    """Serves a model until the process is told to stop; returns 0 once every accepted request is answered."""
    (name,), _, calls = SERVE.parse(arguments)
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}", fix="Run: pip install 'plaudit[serve]'")
    from plaudit.inference.reward_model import RewardModel
    from plaudit.serve.app import bind, serve
    from plaudit.serve.settings import ServerSettings

    settings = ServerSettings(**{"api_key": os.environ.get(API_KEY_VARIABLE), **calls[SERVER]})
    with log_lines():
        # Before the model is loaded, because that takes longer than to find out that a port is taken.
        with bind(settings) as listener:
            serve(RewardModel.from_pretrained(name, **calls[LOAD]), settings, listener)
        say("Stopped.")
    return 0
