"""Requests that are refused: each error has a status, a reason, and one form of body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import JSONResponse

from plaudit.errors import PlauditError


class RequestError(PlauditError):
    """A request that is not answered with rewards.

    Args:
        status: HTTP status.
        message: What is wrong.
        field: Where in the body it is wrong.
        fix: What the client can do about it.
        headers: Headers of the answer.

    >>> RequestError(422, "is empty", field="query").body()
    {'error': {'message': 'is empty', 'field': 'query'}}
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        field: str | None = None,
        fix: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.status, self.headers = status, dict(headers or {})
        super().__init__(message, field=field, fix=fix)

    def body(self) -> dict[str, Any]:
        """What the client is told."""
        told = {"message": self.message, "field": self.field, "fix": self.fix}
        return {"error": {name: text for name, text in told.items() if text is not None}}

    def response(self) -> JSONResponse:
        """The answer to the request."""
        # A request may hold half of a pair of surrogates, which no UTF-8 can say.
        return JSONResponse(_sayable(self.body()), self.status, self.headers)


def _sayable(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sayable(one) for name, one in value.items()}
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


def stopping() -> RequestError:
    """The error of new requests while the server stops."""
    return RequestError(
        503, "the server is stopping", fix="Send the request to another server.", headers={"Connection": "close"}
    )
