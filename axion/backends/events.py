"""Reads server-sent events: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

from typing import NamedTuple


class ServerEvent(NamedTuple):
    """One event; `name` is empty where the server gave none."""

    data: bytes
    name: bytes = b""


class EventReader:
    """Events from the bytes of a stream, however these are cut.

    Args:
        max_bytes: of one event.
    """

    def __init__(self, max_bytes: int = 16 * 1024 * 1024) -> None:
        self._max_bytes = max_bytes
        self._rest = b""  # of a line that has not ended
        self._after_cr = False
        self._name = b""
        self._data: list[bytes] = []
        self._num_bytes = 0

    def push(self, data: bytes) -> list[ServerEvent]:
        """The events that end in `data`.

        Raises:
            ValueError: an event is too long.
        """
        if not data:
            return []
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        events: list[ServerEvent] = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(ServerEvent(b"\n".join(self._data), self._name))
                    self._data = []
                    self._num_bytes = 0
                self._name = b""
                continue
            field, _, value = line.partition(b":")
            if value.startswith(b" "):
                value = value[1:]
            if field == b"data":
                self._data.append(value)
                self._num_bytes += len(value)
            elif field == b"event":
                self._name = value
        if self._num_bytes + len(self._rest) > self._max_bytes:
            raise ValueError(f"an event is longer than {self._max_bytes} bytes")
        return events
