from __future__ import annotations

import logging

import msgspec
import pytest

from axion.engine import process
from axion.engine.messages import EngineFailed, Start, encode
from axion.types import EngineConfig


class Socket:
    """One message to read; keeps what is sent."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.sent: list[bytes] = []

    def recv(self) -> bytes:
        return self.message

    def send(self, message: bytes) -> None:
        self.sent.append(message)


def test_an_error_that_nobody_expected_is_told_and_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("in /a/secret/path")

    monkeypatch.setattr(process, "load_engine", broken)
    socket = Socket(encode(Start(EngineConfig(model_path="/nowhere"))))
    with caplog.at_level(logging.ERROR, "axion.engine"):
        process.EngineProcess(socket).run()
    (sent,) = socket.sent
    failed = msgspec.msgpack.decode(sent, type=EngineFailed)
    assert "ZeroDivisionError" in failed.message
    assert "/a/secret" not in failed.message
    assert "/a/secret" in caplog.text
