"""What an engine does with each field of a request: measured, and kept as data."""

from __future__ import annotations

import enum
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

import msgspec

_FOLDER = Path(__file__).parent / "measured"


class Support(enum.StrEnum):
    """What becomes of a field that a request sets."""

    HONOURED = "honoured"
    REFUSED = "refused"
    DROPPED = "dropped"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine does with requests.

    Attributes:
        version: of the engine that was measured.
        features: by name, as `axion.openai.features` gives them. What is not in it is dropped:
            an engine that nobody asked is not to be trusted.
        measured: how it is known: `conformance`, `source` or `recorded`.
    """

    engine: str
    version: str = ""
    measured: str = ""
    features: dict[str, Support] = {}
    honours_all: bool = False

    def missing(self, features: Collection[str]) -> list[str]:
        """Those of `features` that the engine would refuse or drop, sorted."""
        if self.honours_all:
            return []
        return sorted(name for name in features if self.features.get(name) is not Support.HONOURED)

    def replaced(self, features: Mapping[str, Support]) -> Capabilities:
        """These capabilities, but for `features`."""
        return msgspec.structs.replace(self, features={**self.features, **features})


@cache
def shipped_capabilities(engine: str) -> Capabilities:
    """What this release of Axion knows of an engine; nothing, where nobody has measured it."""
    path = _FOLDER / f"{engine}.json"
    if not path.is_file():
        return Capabilities(engine=engine)
    return msgspec.json.decode(path.read_bytes(), type=Capabilities)
