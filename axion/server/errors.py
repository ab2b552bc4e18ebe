"""Every answer that is an error has its API's error body and gives nothing of the server away."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from axion.errors import (
    AxionError,
    InternalError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
)

logger = logging.getLogger("axion.server")

# Seconds; sent as Retry-After where the error has none of its own.
RETRY_AFTER = {429: "1", 503: "5"}


class UnsupportedMediaTypeError(InvalidRequestError):
    """The body is declared to be something other than JSON."""

    status = 415


class RequestTimeoutError(InvalidRequestError):
    """The request did not arrive in time."""

    status = 408
    default_code = "request_timeout"


class HeadersTooLargeError(InvalidRequestError):
    """The request's line and headers are over their limits."""

    status = 431
    default_code = "headers_too_large"


def json_response(
    content: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """`content` (anything that msgspec encodes) as a JSON response."""
    return Response(msgspec.json.encode(content), status, headers, "application/json")


def error_response(error: AxionError, endpoint: Any = None) -> Response:
    """The error with its status and headers, in OpenAI's body or in that of the endpoint's API."""
    headers = dict(error.headers)
    if error.status in RETRY_AFTER:
        headers.setdefault("Retry-After", RETRY_AFTER[error.status])
    body = getattr(endpoint, "error_body", AxionError.body)(error)
    return json_response(body, error.status, headers)


def as_axion_error(error: Exception, request_id: str) -> AxionError:
    """What the client learns of `error`. A fault of our own is described in the log only."""
    if isinstance(error, AxionError):
        return error
    logger.error("request %s failed", request_id, exc_info=error)
    return InternalError(
        f"The server met an unexpected error. Its log has the details under request {request_id}."
    )


async def on_http_exception(request: Request, exc: Exception) -> Response:
    """Answer what Starlette's router refuses: no such route, or not with this method."""
    assert isinstance(exc, HTTPException)
    if exc.status_code == 405:
        allow = ", ".join(sorted((exc.headers or {}).get("Allow", "").split(", ")))
        if request.method == "OPTIONS":
            return Response(status_code=204, headers={"Allow": allow})
        return error_response(
            MethodNotAllowedError(
                f"This endpoint does not answer {request.method}; it answers {allow}.",
                headers={"Allow": allow},
            ),
            request.scope.get("endpoint"),
        )
    message = "There is no such endpoint. GET / lists those there are."
    if not request.scope["path"].startswith("/v1/"):
        message += " The base_url of OpenAI's client ends with /v1."
    return error_response(NotFoundError(message))


class ErrorMiddleware:
    """Turns whatever an endpoint raises into an error response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        response_started = False

        async def watch(message: Message) -> None:
            nonlocal response_started
            response_started = True
            await send(message)

        try:
            await self.app(scope, receive, watch)
        except ClientDisconnect:
            raise
        except Exception as error:
            answer = as_axion_error(error, scope["state"]["request_id"])
            if not response_started:
                response = error_response(answer, scope.get("endpoint"))
                await response(scope, receive, send)
