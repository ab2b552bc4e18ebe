"""What an engine does with each field of a request: measured, and kept as data."""

from __future__ import annotations

import enum
import logging
import os
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

import msgspec

logger = logging.getLogger("axion.backends")

_FOLDER = Path(__file__).parent / "measured"
USAGE_IN_CHUNKS = "stream_options.continuous_usage_stats"
# What Axion makes good itself in front of a server, and what the server must honour for that.
_REPAIRED = {
    # Axion cuts the text, and nobody but the chunks says how many tokens there were.
    "stop": (USAGE_IN_CHUNKS,),
    "include_stop_str_in_output": (USAGE_IN_CHUNKS,),
    # Another number is sent for it.
    "seed.0": ("seed",),
    # They are asked for in OpenAI's words.
    "structured_outputs.json": ("response_format.json_schema",),
    "structured_outputs.json_object": ("response_format.json_object",),
}


class Support(enum.StrEnum):
    """What becomes of a field that a request sets."""

    HONOURED = "honoured"
    REFUSED = "refused"
    DROPPED = "dropped"


class Capabilities(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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

    def repaired(self, *, tells_usage: bool = False) -> Capabilities:
        """What becomes of requests where an `Upstream` stands before the server.

        Args:
            tells_usage: the server tells it in each chunk in words of its own.
        """
        told = self.replaced({USAGE_IN_CHUNKS: Support.HONOURED}) if tells_usage else self
        return told.replaced(
            {
                name: Support.HONOURED
                for name, needed in _REPAIRED.items()
                if not told.missing(needed)
            }
        )


@cache
def shipped_capabilities(engine: str) -> Capabilities:
    """What this release of Axion knows of an engine; nothing, where nobody has measured it."""
    path = _FOLDER / f"{engine}.json"
    if not path.is_file():
        return Capabilities(engine=engine)
    return msgspec.json.decode(path.read_bytes(), type=Capabilities)


def capabilities_of(engine: str, version: str) -> Capabilities:
    """What is known of an engine of this version: what was measured here, else what is shipped."""
    if version:
        try:
            data = (measured_folder() / file_name(engine, version)).read_bytes()
            return msgspec.json.decode(data, type=Capabilities)
        except OSError:
            pass
        except msgspec.DecodeError as error:
            logger.warning("what was measured of %s %s cannot be read: %s", engine, version, error)
    return shipped_capabilities(engine)


def measured_folder() -> Path:
    """Where `axion conformance --save` leaves what it found on this machine."""
    root = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(root).expanduser() / "axion" / "measured"


def file_name(engine: str, version: str) -> str:
    """The file of an engine's version."""
    return re.sub(r"[^\w.+-]", "_", f"{engine}-{version or 'unknown'}") + ".json"
