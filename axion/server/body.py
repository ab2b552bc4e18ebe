"""Read a request's body within its limits of size and time, and all bodies within memory."""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from axion.errors import QueueFullError, RequestTooLargeError
from axion.server.errors import RequestTimeoutError, UnsupportedMediaTypeError
from axion.server.state import ServerState

# For the whole body, in seconds: a client that trickles holds a connection no longer than this.
BODY_TIMEOUT_S = 60.0
# All bodies that are arriving may together be as large as so many of the largest size.
MAX_LARGE_BODIES = 16
# Those up to this size are always taken.
SMALL_BODY_BYTES = 64 * 1024

_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


async def read_json_body(state: ServerState, scope: Scope, receive: Receive) -> bytes:
    """The bytes of a JSON body.

    The body is taken for JSON unless it is declared as a form or compressed: clients in the wild
    send JSON with no content type, or with `text/plain`.

    Raises:
        UnsupportedMediaTypeError: a form, or a compressed body.
        RequestTooLargeError: over `max_request_bytes`; from Content-Length, before anything is
            read.
        QueueFullError: too many large bodies are arriving at the same time.
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
    max_bytes = state.settings.max_request_bytes
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _read(state, receive)
    except TimeoutError:
        raise RequestTimeoutError(
            f"The body did not arrive within {BODY_TIMEOUT_S:g} seconds.",
            headers={"Connection": "close"},
        ) from None


async def _read(state: ServerState, receive: Receive) -> bytes:
    max_bytes = state.settings.max_request_bytes
    parts: list[bytes] = []
    size = 0
    try:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            size += len(part)
            state.num_arriving_bytes += len(part)
            if size > max_bytes:
                raise _too_large(max_bytes)
            if size > SMALL_BODY_BYTES and state.num_arriving_bytes > MAX_LARGE_BODIES * max_bytes:
                raise QueueFullError(
                    "Too many large requests are arriving at once. Send the request again in a "
                    "moment."
                )
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)
    finally:
        state.num_arriving_bytes -= size


def _too_large(max_bytes: int) -> RequestTooLargeError:
    return RequestTooLargeError(f"The body is over this server's limit of {max_bytes} bytes.")
