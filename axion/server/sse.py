"""Server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html.

An own sender instead of sse-starlette's EventSourceResponse, for two reasons. A token has to cost
next to nothing here, and its tasks, timers and locks take some 10 µs for each event and 140 µs for
each stream, against 0.3 µs and 5 µs of this. And it ends all streams as soon as the server is asked
to stop, where Axion lets them finish.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Send

# Proxies drop a connection that has been silent for long, usually for 60 s.
PING_INTERVAL_S = 15.0
DONE = b"[DONE]"

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def event_bytes(data: bytes, event: str = "") -> bytes:
    """One event, named if `event` says so; `data` has no line break."""
    name = b"event: %s\n" % event.encode() if event else b""
    return name + b"data: " + data + b"\n\n"


class EventStream:
    """One response of server-sent events, as a context manager.

    The response begins with the first event, so that an error before it can still choose the
    status; it ends with the block, whole unless an exception leaves the block.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._num_events = 0
        self._pings: asyncio.Task[None] | None = None

    @property
    def started(self) -> bool:
        return self._num_events > 0

    async def __aenter__(self) -> EventStream:
        return self

    async def send(self, data: bytes, event: str = "") -> None:
        """Send one event, as `event_bytes` writes it."""
        if not self._num_events:
            await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            self._pings = asyncio.create_task(self._ping())
        self._num_events += 1
        await self._send_body(event_bytes(data, event))

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pings is not None:
            self._pings.cancel()
        if error is None:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _ping(self) -> None:
        num_seen = self._num_events
        while True:
            await asyncio.sleep(PING_INTERVAL_S)
            if num_seen == self._num_events:
                await self._send_body(b": ping\n\n")
            num_seen = self._num_events

    async def _send_body(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
