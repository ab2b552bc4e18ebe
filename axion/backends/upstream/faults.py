"""A server's failures as a client hears of them: what they mean, without the server's secrets."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from axion.errors import (
    AxionError,
    ContextLengthExceededError,
    EngineUnavailableError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    RequestTooLargeError,
)

logger = logging.getLogger("axion.backends")

_MAX_MESSAGE_CHARS = 500
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s'\"<>)\]]+", re.IGNORECASE)
_PATH = re.compile(r"(?<![\w<])(?:~|\.{1,2})?/(?:[\w.@+~-]+/)+[\w.@+~-]*")
_CONTEXT_LENGTH = re.compile(
    r"context[ _](?:length|size|window)|maximum (?:model|input|sequence) length", re.IGNORECASE
)


class Faults:
    """The errors that clients get for what one server does wrong.

    Args:
        engine, upstream_model, served_name, api_key: as `Upstream` takes them.
    """

    def __init__(
        self, *, engine: str, upstream_model: str, served_name: str, api_key: str | None
    ) -> None:
        self._engine = engine
        self._upstream_model = upstream_model
        self._served_name = served_name
        self._api_key = api_key

    def stopping(self) -> EngineUnavailableError:
        return EngineUnavailableError(f"The engine of this model ({self._engine}) is stopping.")

    def unreachable(self, error: Exception) -> EngineUnavailableError:
        logger.warning("engine %s: %s", self._engine, self._shown(str(error) or repr(error)))
        return EngineUnavailableError(
            f"The connection to the engine of this model ({self._engine}) broke or could not be "
            "made. Send the request again.",
            headers={"Retry-After": "5"},
        )

    def no_endpoint(self) -> NotFoundError:
        return NotFoundError(
            f"The engine of this model ({self._engine}) has no such endpoint; it cannot do this."
        )

    def not_understood(self) -> EngineUnavailableError:
        return EngineUnavailableError(
            f"What the engine of this model ({self._engine}) answered cannot be understood."
        )

    def incomplete(self) -> EngineUnavailableError:
        return EngineUnavailableError(
            f"The engine of this model ({self._engine}) stopped before the answer was complete."
        )

    def given_up(self) -> EngineUnavailableError:
        return EngineUnavailableError(
            f"The engine of this model ({self._engine}) gave this request up."
        )

    def of_answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> AxionError:
        """For an answer whose status is not 200."""
        told = _told(body)
        message = self._shown(told.message)
        logger.warning("engine %s answered %d: %s", self._engine, status, message)
        engine = f"the engine of this model ({self._engine})"
        if status == 429:
            retry = {"Retry-After": headers.get("retry-after", "1")}
            return QueueFullError(f"{engine[0].upper()}{engine[1:]} is busy.", headers=retry)
        # A wrong key, name or path is Axion's to have right, not the client's.
        if not 400 <= status < 500 or status in (401, 403, 404, 405, 408):
            retry = {"Retry-After": headers.get("retry-after", "5")}
            return EngineUnavailableError(
                f"This request could not be answered: {engine} failed (status {status}).",
                headers=retry,
            )
        text = f"{message or 'The request was refused.'} (engine: {self._engine})"
        if status == 413:
            return RequestTooLargeError(text)
        if _CONTEXT_LENGTH.search(f"{told.code} {told.type} {told.message}"):
            return ContextLengthExceededError(text, param=told.param)
        return InvalidRequestError(text, param=told.param)

    def of_event(self, data: bytes) -> AxionError:
        """For an event of a stream that is an error."""
        return self.of_answer(_told(data).status or 500, data, {})

    def _shown(self, message: str) -> str:
        """A server's words without its addresses, paths, traceback and key."""
        if self._api_key:
            message = message.replace(self._api_key, "…")
        for noise in ("Traceback (most recent call last)", "For further information visit"):
            message = message.partition(noise)[0]
        message = message.replace(self._upstream_model, self._served_name)
        kept = message.split(self._served_name) if "/" in self._served_name else [message]
        clean = [_PATH.sub("…", _URL.sub("…", part)) for part in kept]
        text = " ".join(self._served_name.join(clean).split())
        return text if len(text) <= _MAX_MESSAGE_CHARS else f"{text[:_MAX_MESSAGE_CHARS]}…"


class _Told(NamedTuple):
    """What an error body says; servers have several forms of it."""

    message: str = ""
    param: str | None = None
    code: str = ""
    type: str = ""
    status: int | None = None


def _told(body: bytes) -> _Told:
    try:
        data = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Told(body[:_MAX_MESSAGE_CHARS].decode(errors="replace"))
    if isinstance(data, dict):
        for name in ("error", "detail"):
            data = data.get(name) or data
            if not isinstance(data, dict):
                break
    if isinstance(data, list):  # FastAPI's list of what is wrong with the fields
        data = data[0] if data else ""
    if not isinstance(data, dict):
        return _Told(str(data))
    place = data.get("loc")
    param = data.get("param") or (place[-1] if isinstance(place, list) and place else None)
    code = data.get("code")
    status = int(str(code)) if str(code).isdecimal() else None
    kind = str(data.get("type") or "")
    if status is None and "invalid_request" in kind:
        status = 400
    return _Told(
        str(data.get("message") or data.get("msg") or ""),
        param if isinstance(param, str) and param and not _PATH.search(param) else None,
        str(code or ""),
        kind,
        status,
    )
