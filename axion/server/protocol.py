"""uvicorn's HTTP protocol with the bounds it lacks: headers, chunks, and slow clients.

httptools limits neither the size nor the number of headers, uvicorn waits for ever for a request
to arrive and for an answer to be read. What is over a bound is answered with an error where
that is still possible, and the connection is closed.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from axion.errors import AxionError, InvalidRequestError
from axion.server.errors import HeadersTooLargeError

MAX_HEADERS = 128
MAX_HEADER_BYTES = 64 * 1024  # request line included
MAX_BODY_CHUNKS = 16 * 1024
# Seconds.
HEADERS_TIMEOUT_S = 30.0
WRITE_TIMEOUT_S = 60.0
LINGER_S = 2.0

_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. `http=BoundedHttpProtocol` in uvicorn's configuration.

    Pipelined requests are not answered: the connection closes after the first response, and
    clients send the others again (RFC 9112, 9.3.2). uvicorn would stop reading while they wait,
    and so not see the client leave.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_message = False
        self._answered = False
        self._discarding = False
        self._num_header_bytes = 0
        self._num_unparsed_bytes = 0
        self._num_chunks = 0
        self._refusal: AxionError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    # Bytes in

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._close_after(HEADERS_TIMEOUT_S)

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        if not self._in_message:
            # Java's client offers HTTP/2 in this header. The offer may be ignored, and the parser
            # would drop the request's body instead.
            head, end, body = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"", head) + end + body
        # The parser keeps a header, or a trailer, until it is complete: bound what it keeps.
        self._num_unparsed_bytes += len(data)
        super().data_received(data)
        if self._num_unparsed_bytes > MAX_HEADER_BYTES and not self._discarding:
            self._refusal = _headers_too_large()
            self.send_400_response("")

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_timer()
        self._cancel_write_timer()
        super().connection_lost(exc)

    # Parser callbacks. What they raise ends in `send_400_response`.

    def on_message_begin(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._discarding = True
            self.cycle.keep_alive = False
            raise InvalidRequestError("Pipelined requests are not answered.")
        super().on_message_begin()
        self._in_message, self._answered = True, False
        self._num_header_bytes = self._num_chunks = 0
        self._close_after(HEADERS_TIMEOUT_S)

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_header_bytes(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count_header_bytes(len(name) + len(value))

    def on_headers_complete(self) -> None:
        self._num_unparsed_bytes = 0
        self._cancel_timer()
        super().on_headers_complete()

    def on_chunk_header(self) -> None:
        self._num_chunks += 1
        if self._num_chunks > MAX_BODY_CHUNKS:
            self._refuse(
                InvalidRequestError(
                    f"The body came in more than {MAX_BODY_CHUNKS} chunks. Send larger ones, or "
                    "send the body with a Content-Length."
                )
            )

    def on_body(self, body: bytes) -> None:
        self._num_unparsed_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._num_unparsed_bytes = 0
        self._in_message = False
        if self.cycle.response_complete:
            self._close_after(self.timeout_keep_alive)
        super().on_message_complete()

    # Bytes out

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._answered = True
        if self._discarding:
            self.transport.close()
        # Answered before the body was read (413): a close right now would reset the connection
        # under the answer, so read on for a moment.
        self._close_after(LINGER_S if self._in_message else self.timeout_keep_alive)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def resume_writing(self) -> None:
        self._cancel_write_timer()
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no acceptable request, unless an answer is under way."""
        if self._discarding:
            return
        self._discarding = True
        if self._in_message and self._answered:
            self.transport.close()
            return
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            if cycle.response_started:
                return
            cycle.disconnected = True  # the answer is given here, not by the app
            cycle.message_event.set()
        error = self._refusal or InvalidRequestError("This is not a valid HTTP/1.1 request.")
        body = msgspec.json.encode(error.body())
        self.transport.write(
            STATUS_LINE[error.status]
            + b"content-type: application/json\r\nconnection: close\r\n"
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._close_after(LINGER_S)

    def shutdown(self) -> None:
        """The server ends: drop what has not arrived in full, let what is being answered finish."""
        if self._in_message and self.cycle is not None and not self.cycle.response_started:
            self.transport.close()
        else:
            super().shutdown()

    # Bounds

    def _count_header_bytes(self, num_bytes: int) -> None:
        self._num_unparsed_bytes = 0
        self._num_header_bytes += num_bytes
        if self._num_header_bytes > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse(_headers_too_large())

    def _refuse(self, error: AxionError) -> None:
        self._refusal = error
        raise error

    def _close_after(self, seconds: float) -> None:
        self._cancel_timer()
        self._timer = self.loop.call_later(seconds, self._close)

    def _close(self) -> None:
        self.transport.close()
        # A close waits for the peer to read what is still to be sent.
        self._timer = self.loop.call_later(WRITE_TIMEOUT_S, self.transport.abort)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _cancel_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


def _headers_too_large() -> HeadersTooLargeError:
    return HeadersTooLargeError(
        f"The request's headers are over this server's limits of {MAX_HEADERS} headers and "
        f"{MAX_HEADER_BYTES} bytes."
    )
