"""What a run writes: the table for people, and the data that the router reads."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from axion.backends.capabilities import Capabilities, file_name
from axion.conformance.suite import Row


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Attributes:
    features: a row for each, in the order of their checks.
    device: what the engine computed on, in words.
    """

    engine: str
    version: str
    model: str
    device: str
    date: datetime.date
    features: Sequence[Row]
    behaviour: Sequence[Row]
    capabilities: Capabilities

    def to_json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self._fields()), indent=2)

    def _fields(self) -> dict[str, Any]:
        fields = msgspec.structs.asdict(self)
        for name in ("features", "behaviour"):
            fields[name] = [row._asdict() for row in fields[name]]
        return fields

    def to_markdown(self) -> str:
        of = f"{self.engine} {self.version}".strip()
        lines = [
            f"# {of}",
            "",
            f"Written by `axion conformance` on {self.date}, with the model {self.model} on "
            f"{self.device}. [What the words mean](README.md).",
            "",
            *_table("field", self.features),
            "",
            *_table("behaviour", self.behaviour),
        ]
        return "\n".join(lines) + "\n"

    def write(self, folder: Path) -> list[Path]:
        """Write the table and the data into a folder; returns the files."""
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / file_name(self.engine, self.version)
        # Not with_suffix: a version has dots of its own.
        table = data.with_name(data.name.removesuffix("json") + "md")
        table.write_text(self.to_markdown())
        data.write_bytes(encode(self.capabilities))
        return [table, data]


def encode(capabilities: Capabilities) -> bytes:
    """As `axion.backends.capabilities` reads it."""
    return msgspec.json.format(msgspec.json.encode(capabilities), indent=2) + b"\n"


def _table(what: str, rows: Sequence[Row]) -> list[str]:
    cells = [
        "| "
        + " | ".join(_cell(text) for text in (f"`{row.name}`", row.result, row.evidence))
        + " |"
        for row in rows
    ]
    return [f"| {what} | result | evidence |", "|---|---|---|", *cells]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
