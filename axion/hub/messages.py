"""What a download process tells its parent, one JSON object a line."""

from __future__ import annotations

import msgspec


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Bytes of this download: those written, and all of them."""

    done: int
    total: int


class Downloaded(msgspec.Struct, frozen=True, tag=True):
    """The download is complete; `revision` is its commit."""

    path: str
    revision: str


class FromCache(msgspec.Struct, frozen=True, tag=True):
    """The Hub could not be asked, and what is in the local cache is taken."""

    reason: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The download failed; `not_found` where the model does not exist."""

    message: str
    not_found: bool


Message = Progress | Downloaded | FromCache | Failed
