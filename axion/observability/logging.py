"""Log lines: filtered by component, one line an event, safe against what clients send.

Every logger is `axion` or a child of it (`axion.http`, `axion.engine`). What clients send
never reaches a log as it came: control characters are escaped, so that one event is one line,
and prompts, completions and keys are not logged at all.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from axion.settings import SettingsError

ROOT = "axion"
LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 10,
}

_COMPONENT = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)*")
_FIELDS = ("request_id", "method", "path", "status", "duration_ms", "client")
# C0, DEL, C1 and the two Unicode line breaks: what could end or rewrite a line on a terminal.
_ESCAPES = {
    code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)
}


def escape(text: str) -> str:
    r"""`text` with every control character written as an escape (`\n`, `\x1b`)."""
    return text.translate(_ESCAPES)


def parse_filter(log_filter: str) -> dict[str, int]:
    """Levels by logger name, from a filter such as `axion=info,http=debug` or `debug`.

    A component is a logger's name below `axion`; `axion` itself, and a bare level, set all.

    Raises:
        SettingsError: the filter cannot be read; the message says what is accepted.
    """
    levels = {ROOT: logging.INFO}
    for part in filter(None, (part.strip() for part in log_filter.lower().split(","))):
        component, separator, level = (piece.strip() for piece in part.rpartition("="))
        if level not in LEVELS or (separator and not _COMPONENT.fullmatch(component)):
            raise SettingsError(
                f"AXION_LOG: cannot read {part!r}. Expected a level ({', '.join(LEVELS)}) or "
                "component=level pairs separated by commas, such as axion=info,http=debug."
            )
        in_tree = not component or component == ROOT or component.startswith(f"{ROOT}.")
        levels[(component or ROOT) if in_tree else f"{ROOT}.{component}"] = LEVELS[level]
    return levels


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00.000 INFO axion.http: message`; a traceback follows, indented."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).isoformat(" ", "milliseconds")
        line = f"{time} {record.levelname} {record.name}: {escape(record.getMessage())}"
        if record.exc_info:
            # Indented, so that no line of an exception's message passes for a log line.
            trace = self.formatException(record.exc_info).splitlines()
            line += "".join(f"\n    {escape(row)}" for row in trace)
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line; an access line has its parts as fields of their own."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "component": record.name,
            "message": record.getMessage(),
        }
        entry |= {name: getattr(record, name) for name in _FIELDS if hasattr(record, name)}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the time, so that a progress bar can make room for the line."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass


def configure_logging(
    log_filter: str, log_format: Literal["text", "json"] = "text", stream: TextIO | None = None
) -> None:
    """Send this process's log to `stream` (default: stderr). Calling it again replaces it.

    Loggers outside `axion` (uvicorn, huggingface_hub) are heard from warnings upwards.

    Raises:
        SettingsError: the filter cannot be read.
    """
    levels = parse_filter(log_filter)
    handler = _StderrHandler() if stream is None else logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in list(logging.root.manager.loggerDict):
        if name == ROOT or name.startswith(f"{ROOT}."):
            logging.getLogger(name).setLevel(logging.NOTSET)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
