"""Read a request's body within its limits of size and time."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from axion.errors import RequestTooLargeError
from axion.server.errors import RequestTimeoutError, UnsupportedMediaTypeError

# For the whole body, in seconds: a client that trickles holds a connection no longer than this.
BODY_TIMEOUT_S = 60.0

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


async def read_json_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The bytes of a JSON body.

    The body is taken for JSON unless it is declared as a form or compressed: clients in the wild
    send JSON with no content type, or with `text/plain`.

    Raises:
        UnsupportedMediaTypeError: a form, or a compressed body.
        RequestTooLargeError: over `max_bytes`; from Content-Length, before anything is read.
        RequestTimeoutError: not complete within `BODY_TIMEOUT_S`.
        ClientDisconnect: the client left.
    """
    headers = Headers(scope=scope)
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type in _FORMS:
        raise UnsupportedMediaTypeError(
            f"The body must be JSON, not {media_type}: send it with the header "
            "'Content-Type: application/json'."
        )
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMediaTypeError("The body must be plain JSON, without Content-Encoding.")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read(receive, max_bytes)
    except TimeoutError:
        raise RequestTimeoutError(
            f"The body did not arrive within {BODY_TIMEOUT_S:g} seconds.",
            headers={"Connection": "close"},
        ) from None


async def _read(receive: Receive, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > max_bytes:
            raise _too_large(max_bytes)
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _too_large(max_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"The body is over this server's limit of {max_bytes} bytes.")
