"""How a spawned server begins and ends is seen as it is, whatever looks after it."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from axion.backends.base import ModelConfig
from axion.backends.spawned import SpawnedBackend
from axion.conformance import targets
from axion.conformance.targets import AxionServer, SpawnedServer, unattended
from axion.settings import load_settings
from tests.backends import fake_server


class FakeBackend(SpawnedBackend):
    """Serves by `fake_server`: slow answers, and what the test says."""

    engine = "fake"
    command_variable = "AXION_FAKE_COMMAND"
    default_command = sys.executable
    settings: tuple[str, ...] = ()

    def arguments(self, model: ModelConfig, path: str, port: int) -> list[str]:
        settings = [word for pair in self.settings for word in ("--set", pair)]
        return [fake_server.__file__, "--port", str(port), *settings]

    def upstream_model(self, model: ModelConfig, path: str) -> str:
        return "fake-model"


@asynccontextmanager
async def spawned(**settings: Any) -> AsyncIterator[SpawnedServer]:
    backend = unattended(FakeBackend)()
    assert isinstance(backend, FakeBackend)
    backend.settings = tuple(f"{name}={value}" for name, value in settings.items())
    server = SpawnedServer(backend, ModelConfig(model_name="axion/demo"))
    try:
        await server.start()
        yield server
    finally:
        await server.stop()


async def test_a_server_that_ends_at_once():
    async with spawned(token_s=0.02, num_tokens=10_000) as server:
        assert server.seconds_to_ready > 0
        assert (await server.sigterm()).result == "ends"
        # It has come back, and an answer is cut off in the middle.
        seen = await server.sigterm_in_stream()
    assert seen.result == "ends"
    assert "the stream breaks" in seen.evidence


async def test_a_server_that_does_not_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(targets, "_END_WITHIN_S", 0.3)
    async with spawned(ignore_sigterm="true", token_s=0.02, num_tokens=10_000) as server:
        seen = await server.sigterm_in_stream()
    assert seen.result == "hangs"
    assert "the stream does not end" in seen.evidence


def test_axion_itself_starts_whatever_is_shared_among_other_engines(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("BACKEND_WEIGHTS", "max=0.5")
    monkeypatch.setenv("SHADOW", "max=0.5")
    _, _, *words = AxionServer().arguments(ModelConfig(model_name="axion/demo"), "m", 1)
    flags = {
        flag.removeprefix("--").replace("-", "_"): value
        for flag, value in zip(words[::2], words[1::2], strict=True)
    }
    assert load_settings(**flags).axion_backends == "native"
