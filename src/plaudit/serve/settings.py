"""The settings of a server, declared once for Python and the command line."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

from plaudit.errors import ConfigError

TextForm: TypeAlias = Literal["auto", "rendered", "plain"]
"""The texts of /get_reward and /classify: rendered by the chat template, or plain; auto looks for its marks."""


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server; the help of `plaudit serve` says more about each."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0 takes a free one
    api_key: str | None = field(default=None, repr=False)
    served_model_name: str | None = None  # None: the model as it was loaded
    max_wait_ms: float = 2.0  # how long the first request of a batch waits for others
    max_queue: int = 4096  # waiting responses; further requests get status 429
    max_body_mb: float = 8.0  # MiB; larger bodies get status 413
    read_timeout: float = 30.0  # seconds for a body to arrive
    stop_timeout: float = 60.0  # seconds for accepted requests when the server stops
    texts: TextForm = "auto"

    def __post_init__(self) -> None:
        positive = ("max_queue", "max_body_mb", "read_timeout", "stop_timeout")
        checks = {
            **{name: (getattr(self, name) > 0, "Use a positive number.") for name in positive},
            "port": (0 <= self.port < 2**16, "Use a number from 0 to 65535; 0 takes a free port."),
            "max_wait_ms": (0 <= self.max_wait_ms <= 10_000, "Use 0 to 10,000 milliseconds."),
            "texts": (self.texts in get_args(TextForm), f"Use one of {', '.join(get_args(TextForm))}."),
            "api_key": (self.api_key is None or self.api_key.strip(), "Set a key, or none at all."),
        }
        for name, (valid, fix) in checks.items():
            if not valid:
                value = "empty" if name == "api_key" else repr(getattr(self, name))
                raise ConfigError(f"`{name}` is {value}", field=name, fix=fix)

    @property
    def max_body_bytes(self) -> int:
        """Maximum size of a request body, in bytes."""
        return int(self.max_body_mb * 2**20)

    @property
    def is_local(self) -> bool:
        """Whether only programs on the same machine can reach the server."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name
            return False
