"""A client for HTTP/1.1, for what Axion asks of the servers behind it.

An own client instead of httpx's, for one reason. A token has to cost next to nothing here: read by
httpx, each chunk of a stream takes 175 µs of processor time, by this 14 µs, most of it the
kernel's. httptools, which the server reads requests with, does the parsing.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

import httptools

from axion import __version__

CONNECT_TIMEOUT_S = 5.0
_MAX_HEAD_BYTES = 64 * 1024
# What is read ahead of whoever reads the body.
_MAX_BUFFERED_BYTES = 1024 * 1024
# How long a stream whose last event has come may take to end, so that its connection is kept.
_END_GRACE_S = 1.0

Verify = bool | str | ssl.SSLContext


class HttpClient:
    """Requests to one server, on connections that are kept open; as many as there are requests.

    Args:
        base_url: `http://host:port` or the same with https; a path in it does not count.
        headers: sent with every request.
        verify: whether to check the server's certificate, or the file of the authorities to check
            it by.

    Raises:
        ValueError: the URL is not one of these.
    """

    def __init__(
        self, base_url: str, *, headers: Mapping[str, str] | None = None, verify: Verify = True
    ) -> None:
        url = urlsplit(base_url)
        if url.scheme not in ("http", "https") or not url.hostname or url.query or url.fragment:
            raise ValueError("the URL must be http(s)://host[:port][/path]")
        self._host = url.hostname
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = _tls_context(verify) if url.scheme == "https" else None
        given = {
            "host": url.netloc.rpartition("@")[2],
            "user-agent": f"axion/{__version__}",
            "accept-encoding": "identity",
            **(headers or {}),
        }
        self._headers = "".join(f"{name}: {_one_line(value)}\r\n" for name, value in given.items())
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    @asynccontextmanager
    async def request(
        self, method: str, path: str, body: bytes | None = None
    ) -> AsyncIterator[HttpResponse]:
        """Send a request with a JSON body; the block begins when the response's head is there.

        Leaving the block before the body's end closes the connection at once.

        Raises:
            OSError: there is no connection, it broke, or what came is not HTTP.
        """
        head = f"{method} {path} HTTP/1.1\r\n{self._headers}"
        if body is not None:
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        message = head.encode("latin-1") + b"\r\n" + (body or b"")
        while True:
            is_kept = bool(self._idle)
            connection = self._idle.pop() if is_kept else await self._connect()
            response = connection.send(message)
            try:
                await response.wait_for_head()
                break
            except BaseException as error:
                connection.abort()
                # The server may have closed a kept connection just before it was used again.
                if not (is_kept and response.is_untouched and isinstance(error, OSError)):
                    raise
        try:
            yield response
        finally:
            connection.release()

    async def close(self) -> None:
        """Close all connections; requests in them fail."""
        for connection in [*self._open]:
            connection.abort()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            _, connection = await loop.create_connection(
                lambda: _Connection(self._idle, self._open), self._host, self._port, ssl=self._tls
            )
        return connection


class HttpResponse:
    """The answer to one request, as it comes.

    Attributes:
        status: HTTP status.
        headers: their names in lower case.
        ends_soon: nothing more is wanted and the rest is short: let it come, keep the connection.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.ends_soon = False
        self._transport = transport
        self._parser = httptools.HttpResponseParser(self)
        self._head_done = False
        self._num_head_bytes = 0
        self._body = bytearray()
        self._complete = False
        self._keep_alive = False
        self._error: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._paused = False

    @property
    def is_complete(self) -> bool:
        return self._complete

    @property
    def is_untouched(self) -> bool:
        """Whether not a byte of it has come."""
        return not self._num_head_bytes

    @property
    def can_keep_connection(self) -> bool:
        return self._complete and self._error is None and self._keep_alive

    async def wait_for_head(self) -> None:
        while not self._head_done:
            await self._wait()

    async def read(self) -> bytes:
        """What has come of the body since the last call, at least one byte; empty at its end.

        Raises:
            OSError: the connection broke before the body's end.
        """
        while not self._body:
            if self._complete:
                return b""
            await self._wait()
        data = bytes(self._body)
        self._body.clear()
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def read_all(self, max_bytes: int) -> bytes:
        """The whole body, cut off after `max_bytes`."""
        parts = bytearray()
        while len(parts) < max_bytes and (data := await self.read()):
            parts += data
        return bytes(parts[:max_bytes])

    def fail(self, error: OSError) -> None:
        """What waits for more gets this error."""
        if not self._complete:
            self._error = self._error or error
        self._wake()

    # Called by the connection.

    def feed(self, data: bytes) -> None:
        if not self._head_done:
            self._num_head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.fail(ConnectionError("what the server sent is not HTTP"))
        else:
            if not self._head_done and self._num_head_bytes > _MAX_HEAD_BYTES:
                self.fail(ConnectionError("the head of the response does not end"))
            self._wake()
        if self._error is not None:
            self._transport.abort()
        elif len(self._body) > _MAX_BUFFERED_BYTES and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def lose(self) -> None:
        """The connection is closed, which ends a body without a length."""
        has_length = self.headers.keys() & {"content-length", "transfer-encoding"}
        if self._head_done and not has_length:
            self._complete = True
        self.fail(ConnectionError("the connection was closed before the answer was complete"))

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self._head_done = self.status >= 200

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._head_done:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()
        else:  # 1xx: the response follows
            self.headers.clear()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Connection(asyncio.Protocol):
    """One connection: in a request, ending one, or in `idle`."""

    def __init__(self, idle: list[_Connection], open_: set[_Connection]) -> None:
        self._idle = idle
        self._open = open_
        self._transport: asyncio.Transport
        self._response: HttpResponse | None = None
        self._released = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._open.add(self)

    def data_received(self, data: bytes) -> None:
        if self._response is None:
            self._transport.abort()  # nobody has asked
            return
        self._response.feed(data)
        if self._released and self._response.is_complete:
            self._keep()

    def connection_lost(self, error: Exception | None) -> None:
        self._open.discard(self)
        if self in self._idle:
            self._idle.remove(self)
        if self._response is not None:
            self._response.lose()

    def send(self, message: bytes) -> HttpResponse:
        self._released = False
        self._response = HttpResponse(self._transport)
        self._transport.write(message)
        return self._response

    def release(self) -> None:
        """The request is over: whoever sent it reads no more."""
        response = self._response
        assert response is not None
        self._released = True
        if response.is_complete:
            self._keep()
        elif response.ends_soon:
            asyncio.get_running_loop().call_later(_END_GRACE_S, self._end, response)
        else:
            self.abort()

    def abort(self) -> None:
        self._transport.abort()

    def _keep(self) -> None:
        assert self._response is not None
        if self._response.can_keep_connection and not self._transport.is_closing():
            self._response = None
            self._idle.append(self)
        else:
            self.abort()

    def _end(self, response: HttpResponse) -> None:
        if self._response is response:
            self.abort()


def _one_line(value: str) -> str:
    if not value.isprintable():
        raise ValueError("a header must be one line of printable characters")
    return value


def _tls_context(verify: Verify) -> ssl.SSLContext:
    if isinstance(verify, ssl.SSLContext):
        return verify
    context = ssl.create_default_context(cafile=verify if isinstance(verify, str) else None)
    if verify is False:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
