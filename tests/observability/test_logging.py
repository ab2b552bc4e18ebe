"""Filters by component, one line an event, and nothing that a client can forge."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from axion.observability.logging import configure_logging, escape, parse_filter
from axion.settings import SettingsError


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    yield
    root.handlers[:], root.level = handlers, level
    for name in ("axion", "axion.http", "axion.engine", "axion.http.access"):
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize(
    ("log_filter", "levels"),
    [
        ("info", {"axion": logging.INFO}),
        ("debug", {"axion": logging.DEBUG}),
        ("", {"axion": logging.INFO}),
        ("axion=info,http=info", {"axion": logging.INFO, "axion.http": logging.INFO}),
        (" Axion = WARN , engine=debug,", {"axion": logging.WARNING, "axion.engine": 10}),
        ("warning,http.access=off", {"axion": logging.WARNING, "axion.http.access": 60}),
        ("axion.http=error", {"axion": logging.INFO, "axion.http": logging.ERROR}),
    ],
)
def test_a_filter_sets_levels_by_component(log_filter: str, levels: dict[str, int]):
    assert parse_filter(log_filter) == levels


@pytest.mark.parametrize(
    "log_filter", ["loud", "http=", "=info", "http=loud", "http=info=debug", "ht tp=info", "-=info"]
)
def test_a_bad_filter_says_what_is_accepted(log_filter: str):
    with pytest.raises(SettingsError, match=r"AXION_LOG.*debug, info.*axion=info,http=debug"):
        parse_filter(log_filter)


def test_components_are_heard_at_their_levels():
    stream = io.StringIO()
    configure_logging("axion=warning,http=debug", stream=stream)
    logging.getLogger("axion.http").debug("heard: http debug")
    logging.getLogger("axion.engine").info("not heard: engine info")
    logging.getLogger("axion.engine").warning("heard: engine warning")
    logging.getLogger("elsewhere").info("not heard: elsewhere info")
    assert stream.getvalue().count("heard") == 2
    assert "not heard" not in stream.getvalue()


def test_configuring_again_replaces_everything():
    first, second = io.StringIO(), io.StringIO()
    configure_logging("http=debug", stream=first)
    configure_logging("info", stream=second)
    logging.getLogger("axion.http").debug("too fine")
    logging.getLogger("axion.http").info("once")
    assert first.getvalue() == ""
    assert second.getvalue().count("\n") == 1


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_row_23_one_event_is_one_line_whatever_a_client_sends(log_format: str):
    stream = io.StringIO()
    configure_logging("info", log_format, stream)  # type: ignore[arg-type]
    evil = "a\n2026-01-01 INFO axion: forged\r\x1b[2J\x00\x7f\x85\u2028b"
    logging.getLogger("axion.http").info("model %s", evil)
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.endswith("\n")
    assert not any(character in line for character in "\r\x1b\x00\x7f\x85\u2028")


def test_row_23_an_exception_forges_no_line():
    stream = io.StringIO()
    configure_logging("info", stream=stream)
    try:
        raise RuntimeError("x\n2026-01-01 00:00:00.000 INFO axion: forged\x1b[2J")
    except RuntimeError:
        logging.getLogger("axion").exception("failed")
    first, *rest = stream.getvalue().splitlines()
    assert first.endswith("ERROR axion: failed")
    assert rest
    assert all(line.startswith("    ") for line in rest)
    assert "\x1b" not in stream.getvalue()


def test_json_lines_have_the_fields_of_an_access_line():
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    fields = {"method": "GET", "path": "/x\ny", "status": 200, "request_id": "req_1"}
    logging.getLogger("axion.http").info("%(method)s %(path)s", fields, extra=fields)
    entry = json.loads(stream.getvalue())
    assert entry["level"] == "info"
    assert entry["component"] == "axion.http"
    assert entry["message"] == "GET /x\ny"
    assert {name: entry[name] for name in fields} == fields
    assert entry["time"].endswith("+00:00")


def test_escape_leaves_readable_text_alone():
    assert escape("Grüße, 世界 🙂 a\\b") == "Grüße, 世界 🙂 a\\b"
    assert escape("a\nb\x1b\u2028") == r"a\nb\x1b\u2028"
