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
        for name in ("max_queue", "max_body_mb", "read_timeout", "stop_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"`{name}` is {getattr(self, name)}", field=name, fix="Use a positive number.")
        if not 0 <= self.port < 2**16:
            fix = "Use a number from 0 to 65535; 0 takes a free port."
            raise ConfigError(f"`port` is {self.port}", field="port", fix=fix)
        if not 0 <= self.max_wait_ms <= 10_000:
            fix = "Use 0 to 10,000 milliseconds."
            raise ConfigError(f"`max_wait_ms` is {self.max_wait_ms}", field="max_wait_ms", fix=fix)
        if self.texts not in get_args(TextForm):
            fix = f"Use one of {', '.join(get_args(TextForm))}."
            raise ConfigError(f"`texts` is {self.texts!r}", field="texts", fix=fix)
        if self.api_key is not None and not self.api_key.strip():
            raise ConfigError("`api_key` is empty", field="api_key", fix="Set a key, or none at all.")

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
