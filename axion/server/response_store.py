"""The responses that clients may come back to, in memory, bounded in number and size."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from axion.errors import NotFoundError

MAX_RESPONSES = 1000
MAX_BYTES = 64 * 2**20
_MAX_SHOWN = 80


class ResponseNotFoundError(NotFoundError):
    """No response is stored under this id."""

    default_code = "response_not_found"


@dataclass(frozen=True)
class StoredResponse:
    """A response and what led to it, both as JSON.

    Attributes:
        items: the whole conversation that it answers, earlier responses included.
        events: what has been streamed of it, compressed; empty if it was not.
    """

    response: bytes
    items: bytes
    events: bytes = b""

    @property
    def num_bytes(self) -> int:
        return len(self.response) + len(self.items) + len(self.events)


class ResponseStore:
    """The latest used responses; the others are forgotten."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self.num_bytes = 0
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._responses: OrderedDict[str, StoredResponse] = OrderedDict()

    def __len__(self) -> int:
        return len(self._responses)

    def put(self, id: str, stored: StoredResponse) -> None:
        """Keep a response under a new id; one that is too large alone is not kept."""
        self._responses[id] = stored
        self.num_bytes += stored.num_bytes
        while len(self) > self._max_responses or self.num_bytes > self._max_bytes:
            _, oldest = self._responses.popitem(last=False)
            self.num_bytes -= oldest.num_bytes

    def get(self, id: str, *, param: str | None = None) -> StoredResponse:
        """A response, which is the latest used one from now on.

        Args:
            param: the request field that the id comes from.

        Raises:
            ResponseNotFoundError: there is none, or no longer.
        """
        stored = self._responses.get(id)
        if stored is None:
            raise ResponseNotFoundError(
                f"No response is stored under {id[:_MAX_SHOWN]!r}. This server keeps the "
                f"{self._max_responses} latest ones, until it ends; send the conversation as "
                "input instead.",
                param=param,
                code="previous_response_not_found" if param else None,
            )
        self._responses.move_to_end(id)
        return stored

    def delete(self, id: str) -> None:
        """Forget a response; raises as `get` does."""
        self.num_bytes -= self.get(id).num_bytes
        del self._responses[id]
