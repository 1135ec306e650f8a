"""``plaudit serve``: a reward model behind HTTP."""

from __future__ import annotations

import importlib.util
import os
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from plaudit.cli.arguments import Command, LoadArguments, Word, about
from plaudit.cli.console import log_lines, say
from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from plaudit.serve.schemas import ServerSettings


API_KEY_VARIABLE = "PLAUDIT_API_KEY"
_NEEDED = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}
_MIB = 2**20


@dataclass
class ServeArguments:
    """What to serve, where, and how much of it."""

    title: ClassVar[str] = "Server"

    host: str = field(
        default="127.0.0.1", metadata=about("Address to listen on; 0.0.0.0 takes requests of other machines.")
    )
    port: int = field(default=8000, metadata=about("Port to listen on; 0 takes a free one."))
    api_key: str | None = field(
        default=None,
        metadata=about(
            "What clients must send as `Authorization: Bearer KEY`. Other users of the machine can read command lines: "
            f"the environment variable {API_KEY_VARIABLE} does the same."
        ),
    )
    served_model_name: str | None = field(
        default=None, metadata=about("What the model is called in answers. Default: MODEL.")
    )
    max_wait_ms: float = field(
        default=2.0, metadata=about("How long the first request of a batch waits for others, in milliseconds.")
    )
    overlong: str = field(
        default="error",
        metadata=about(
            "What happens to a row that has more: it is refused, or cut, which the answer then says.",
            choices=("error", "truncate_left", "truncate_right"),
        ),
    )
    max_queue: int = field(
        default=4096, metadata=about("Most responses that wait; requests beyond it are refused with status 429.")
    )
    max_body_mb: float = field(
        default=8.0, metadata=about("Largest body of a request, in MiB; larger ones are refused with status 413.")
    )
    read_timeout: float = field(default=30.0, metadata=about("Longest time that a body may take, in seconds."))
    stop_timeout: float = field(
        default=60.0, metadata=about("Longest time that accepted requests get when the server stops, in seconds.")
    )
    texts: str = field(
        default="auto",
        metadata=about(
            "What the texts of /get_reward and /classify are: rendered by the chat template, or plain; auto looks for "
            "the template's marks.",
            choices=("auto", "rendered", "plain"),
        ),
    )


COMMAND = Command(
    "serve",
    usage="MODEL [--port N] [--NAME VALUE ...]",
    about="Serve a reward model over HTTP.",
    examples=("plaudit serve runs/first --port 8000",),
    notes=(
        "MODEL is a folder or a model id: what `plaudit train` writes, an adapter, or any other reward model of one "
        "output. Routes: /score, /rank, /get_reward (OpenRLHF), /classify (vLLM), /health, /metrics (Prometheus), and "
        "/docs, which explains them. Ctrl-C or SIGTERM stops the server once it has answered what it accepted; a "
        "second one stops it at once.",
    ),
    words=(Word("model", extra="Start a server for each, on ports of their own."),),
    kinds=(ServeArguments, LoadArguments),
)


def run(arguments: Sequence[str]) -> int:
    """Serve a model with the given command-line arguments, until the process is told to stop.

    Returns:
        0 once every accepted request is answered.

    Raises:
        PlauditError: The command line is wrong, there is no such model, the address is not free, or the extra
            ``serve`` is not installed.
    """
    if COMMAND.helped(arguments):
        return 0
    (model_name,), settings, loading = COMMAND.parse(arguments)
    require_extra()
    from plaudit.serve.app import bind, serve

    server_settings = server_settings_of(settings)
    with log_lines():
        # Before the model is loaded, which takes longer than to hear that a port is taken.
        listener = bind(server_settings)
        with listener:
            model = loading.load(model_name, settings.overlong)
            serve(model, server_settings, listener)
        say("Stopped.")
    return 0


def require_extra() -> None:
    """Refuse to start without the libraries of the extra.

    Raises:
        ConfigError: One is missing.
    """
    missing = [name for module, name in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}", fix="pip install 'plaudit[serve]'")


def server_settings_of(settings: ServeArguments) -> ServerSettings:
    """The settings of the server among those of the command line, with the key of the environment.

    Args:
        settings: Those of the command line.

    Raises:
        ConfigError: One of them cannot work.
    """
    from plaudit.serve.schemas import ServerSettings

    return ServerSettings(
        host=settings.host,
        port=settings.port,
        api_key=settings.api_key if settings.api_key is not None else os.environ.get(API_KEY_VARIABLE),
        name=settings.served_model_name,
        max_wait_ms=settings.max_wait_ms,
        max_queue=settings.max_queue,
        max_body_bytes=int(settings.max_body_mb * _MIB),
        read_timeout=settings.read_timeout,
        stop_timeout=settings.stop_timeout,
        texts=typing.cast(Any, settings.texts),
    )
