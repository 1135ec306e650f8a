"""Requests that are refused: each error has a status, a reason, and the same form of body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse

from plaudit.errors import PlauditError


class RequestError(PlauditError):
    """A request that is not answered with rewards.

    >>> RequestError(422, "is empty", field="query").response().body
    b'{"error":{"message":"is empty","field":"query"}}'
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

    def response(self) -> JSONResponse:
        """Returns the answer to the request."""
        parts = (("message", self.message), ("field", self.field), ("fix", self.fix))
        # A request may hold half of a pair of surrogates, which UTF-8 cannot encode.
        error = {name: text.encode("utf-8", "backslashreplace").decode() for name, text in parts if text is not None}
        return JSONResponse({"error": error}, self.status, self.headers)


class ErrorDetail(BaseModel):
    """What is wrong, where, and what to do."""

    message: str
    field: str | None = None
    fix: str | None = None


class ErrorAnswer(BaseModel):
    """The body of every error."""

    error: ErrorDetail


ERROR_ANSWERS: dict[int | str, dict[str, Any]] = {
    status: {"description": reason, "model": ErrorAnswer}
    for status, reason in {
        401: "The API key is missing or wrong.",
        413: "The body is too large, or the request larger than the queue.",
        422: "The body is not JSON in UTF-8, or something in it cannot be scored: `field` says what.",
        429: "The queue is full; `Retry-After` says when to try again.",
        500: "The model could not compute it.",
        503: "The server is stopping.",
    }.items()
}
"""The errors of each route that takes rows, for its OpenAPI page."""


def stopping() -> RequestError:
    """Returns the error of new requests while the server stops."""
    fix = "Send the request to another server."
    return RequestError(503, "the server is stopping", fix=fix, headers={"Connection": "close"})
