"""Spawned servers: ready when they answer, restarted when they end or hang, nothing left behind.

The servers are real processes that behave as the engines do (see `fake_server`).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from axion.backends import spawned
from axion.backends.base import ModelConfig
from axion.backends.spawned import SpawnedBackend
from axion.backends.supervisor import Supervisor
from axion.errors import EngineUnavailableError, ModelLoadError
from axion.openai.chat import ChatCompletionRequest
from axion.types import BackendState
from tests.backends import fake_server

MODEL = ModelConfig(model_name="axion/demo", served_name="the-model")


class FakeBackend(SpawnedBackend):
    """Serves by `fake_server`, with its settings."""

    engine = "fake"
    command_variable = "AXION_FAKE_COMMAND"
    default_command = sys.executable
    probe_interval_s = 0.1
    probe_timeout_s = 2.0
    max_missed_probes = 2
    exit_grace_s = 5.0

    def __init__(self, *script: str, **settings: Any) -> None:
        super().__init__()
        self.script = script or (fake_server.__file__,)
        self.settings = settings
        self.ports: list[int] = []

    def arguments(self, model: ModelConfig, path: str, port: int) -> list[str]:
        self.ports.append(port)
        pairs = [f"{name}={json.dumps(value)}" for name, value in self.settings.items()]
        options = [argument for pair in pairs for argument in ("--set", pair)]
        return [*self.script, "--port", str(port), *options]

    def environment(self, model: ModelConfig, path: str, port: int) -> dict[str, str]:
        return {"PYTHONUNBUFFERED": "1"}

    def upstream_model(self, model: ModelConfig, path: str) -> str:
        return "fake-model"

    @property
    def state(self) -> BackendState:
        return self._supervisor.state

    @property
    def restarts(self) -> int:
        return self._supervisor.restarts

    @property
    def server(self) -> psutil.Process:
        """The process below the guard."""
        (server,) = psutil.Process(self.pid).children()
        return server

    def control(self, **settings: Any) -> None:
        url = f"http://127.0.0.1:{self.ports[-1]}/control"
        httpx.post(url, json=settings, trust_env=False).raise_for_status()

    def stream(self, **fields: Any) -> AsyncGenerator[Any, None]:
        return self.chat(a_request(**fields), "r")


def a_request(**fields: Any) -> ChatCompletionRequest:
    messages = [{"role": "user", "content": "Count."}]
    return ChatCompletionRequest.model_validate(
        {"model": MODEL.name, "messages": messages, **fields}
    )


@pytest.fixture(autouse=True)
def quick_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Supervisor, "first_backoff_s", 0.05)


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def started(*script: str, **settings: Any) -> AsyncIterator[FakeBackend]:
    backend = FakeBackend(*script, **settings)
    try:
        await backend.start(MODEL)
        yield backend
    finally:
        await backend.stop(0)


async def text_of(stream: AsyncGenerator[Any, None]) -> str:
    chunks = [chunk async for chunk in stream]
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


async def first_token(stream: AsyncGenerator[Any, None]) -> None:
    async for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            return


async def test_it_answers_and_ends():
    async with started() as backend:
        assert await text_of(backend.stream(max_tokens=3)) == " 0 1 2"
        assert (await backend.health()).state is BackendState.READY
        assert (await backend.prepare_chat(a_request())).cache_key
        server = backend.server
    assert not server.is_running()
    assert (await backend.health()).state is BackendState.STOPPED
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        backend.stream()


async def test_a_start_takes_the_time_it_needs_while_it_shows_progress(monkeypatch):
    monkeypatch.setattr(FakeBackend, "start_silence_s", 1.0)
    async with started(start_s=2.5) as backend:
        assert backend.restarts == 0


async def test_a_start_without_a_sign_of_life_fails(monkeypatch):
    monkeypatch.setattr(FakeBackend, "start_silence_s", 0.5)
    backend = FakeBackend("-c", "import time; time.sleep(600)")
    with pytest.raises(ModelLoadError, match=r"fake cannot serve the-model\. It neither wrote"):
        await backend.start(MODEL)
    assert backend.pid is None


async def test_health_alone_is_not_enough(monkeypatch):
    monkeypatch.setattr(spawned, "_POLL_INTERVAL_S", 0.01)
    with pytest.raises(ModelLoadError, match=r"failed on a request \(.*status 500") as caught:
        async with started(fault="status"):
            pass
    assert "/usr" not in caught.value.message


async def test_a_first_request_that_fails_is_tried_again():
    async with started(fault="status", times=1) as backend:
        assert backend.state is BackendState.READY


@pytest.mark.parametrize("status", [0, 1])
async def test_a_server_that_ends_while_it_starts_says_why(
    status: int, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(ModelLoadError) as caught:
        async with started(exit_at_start=status):
            pass
    assert caught.value.message == (
        f"The engine fake cannot serve the-model. It ended with status {status} while it started: "
        "ValueError: Architecture 'FakeForCausalLM' not found in registry"
    )
    assert "Starting the engine" in caught.value.__notes__[0]
    assert "Starting the engine" in caplog.text


async def test_no_path_of_the_servers_reaches_a_client():
    code = "raise OSError('no such file: /opt/engine/weights.bin')"
    with pytest.raises(ModelLoadError, match="no such file: …") as caught:
        await FakeBackend("-c", code).start(MODEL)
    assert "/opt" not in caught.value.message


async def test_an_engine_that_is_not_there_says_what_to_set(monkeypatch):
    monkeypatch.setenv("AXION_FAKE_COMMAND", "/nowhere/no-such-engine --fast")
    with pytest.raises(ModelLoadError, match=r"not installed.*AXION_FAKE_COMMAND"):
        await FakeBackend().start(MODEL)


async def test_a_port_that_another_took_is_given_up_for_another(monkeypatch):
    free_port = spawned.free_port
    with socket.create_server(("127.0.0.1", 0)) as other:
        ports = iter([other.getsockname()[1]])
        monkeypatch.setattr(spawned, "free_port", lambda: next(ports, None) or free_port())
        async with started() as backend:
            assert len(backend.ports) == 2
            assert backend.restarts == 0


async def test_a_killed_server_fails_its_requests_and_is_started_again():
    async with started(token_s=0.05, num_tokens=10_000, spawn_child=True) as backend:
        stream = backend.stream()
        await first_token(stream)
        server = backend.server
        (child,) = server.children()
        server.kill()
        async with asyncio.timeout(5):
            with pytest.raises(EngineUnavailableError):
                await text_of(stream)
        await until(lambda: backend.restarts == 1)
        assert not child.is_running()
        await until(lambda: backend.state is BackendState.READY)
        assert backend.server.pid != server.pid
        assert await text_of(backend.stream(max_tokens=2)) == " 0 1"


async def test_an_end_with_status_0_is_a_failure(tmp_path: Path):
    wrapper = tmp_path / "wrapper.py"
    wrapper.write_text("import subprocess, sys\nsubprocess.run([sys.executable, *sys.argv[1:]])\n")
    async with started(str(wrapper), fake_server.__file__) as backend:
        (server,) = backend.server.children()
        server.kill()
        await until(lambda: backend.restarts == 1)
        await until(lambda: backend.state is BackendState.READY)


async def test_while_it_is_down_a_request_is_told_so(monkeypatch):
    monkeypatch.setattr(Supervisor, "first_backoff_s", 600.0)
    async with started() as backend:
        backend.server.kill()
        await until(lambda: backend.state is BackendState.DOWN)
        with pytest.raises(EngineUnavailableError, match="fake server ended and is being"):
            backend.stream()


async def test_a_server_that_hangs_is_killed_and_started_again(monkeypatch):
    monkeypatch.setattr(FakeBackend, "probe_timeout_s", 0.3)
    async with started(token_s=0.05, num_tokens=10_000) as backend:
        stream = backend.stream()
        await first_token(stream)
        server = backend.server
        server.suspend()
        async with asyncio.timeout(20):
            with pytest.raises(EngineUnavailableError):
                await text_of(stream)
        await until(lambda: backend.restarts == 1)
        assert not server.is_running()
        await until(lambda: backend.state is BackendState.READY)


async def test_a_server_whose_streams_go_on_does_not_hang():
    async with started(token_s=0.02, num_tokens=60) as backend:
        stream = backend.stream()
        await first_token(stream)
        backend.control(healthy=False)
        assert (await text_of(stream)).endswith(" 59")  # ten probes later
        assert backend.restarts == 0
        await until(lambda: backend.restarts == 1)


async def test_running_requests_finish_before_the_end():
    async with started(token_s=0.02, num_tokens=20) as backend:
        stream = backend.stream()
        await first_token(stream)
        stopping = asyncio.create_task(backend.stop(30))
        assert (await text_of(stream)).endswith(" 19")
        await stopping


async def test_a_server_that_ignores_sigterm_with_a_stream_is_ended(monkeypatch):
    monkeypatch.setattr(FakeBackend, "exit_grace_s", 0.3)
    async with started(token_s=0.05, num_tokens=10_000, ignore_sigterm=True) as backend:
        stream = backend.stream()
        await first_token(stream)
        server = backend.server
        await backend.stop(0.1)
        with pytest.raises(EngineUnavailableError):
            await text_of(stream)
        assert not server.is_running()


async def test_stop_ends_a_start():
    backend = FakeBackend(start_s=600)
    starting = asyncio.create_task(backend.start(MODEL))
    await until(lambda: backend.pid is not None and backend._process.log_lines != [])
    guard = psutil.Process(backend.pid)
    await backend.stop(0)
    with pytest.raises(EngineUnavailableError, match="shutting down"):
        await starting
    assert not guard.is_running()


async def test_nothing_is_left_when_axion_is_killed(tmp_path: Path):
    code = (
        "import asyncio\n"
        "from tests.backends.test_spawned import MODEL, FakeBackend\n"
        "async def main():\n"
        "    backends = [FakeBackend(spawn_child=True), FakeBackend(start_s=600)]\n"
        "    starting = asyncio.create_task(backends[1].start(MODEL))\n"
        "    await backends[0].start(MODEL)\n"
        "    while not (backends[1]._process and backends[1]._process.log_lines):\n"
        "        await asyncio.sleep(0.01)\n"
        "    print('ready', flush=True)\n"
        "    await starting\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        cwd=Path(__file__).parents[2],
    ) as parent:
        assert parent.stdout is not None
        assert await asyncio.to_thread(parent.stdout.readline) == b"ready\n"
        processes = psutil.Process(parent.pid).children(recursive=True)
        assert len(processes) == 5  # two guards, two servers, a server's child
        assert len(list(tmp_path.glob("axion-*"))) == 2
        parent.kill()
        await until(lambda: not any(process.is_running() for process in processes))
        await until(lambda: not list(tmp_path.glob("axion-*")))


async def test_probes_are_not_in_the_log(caplog: pytest.LogCaptureFixture, tmp_path: Path):
    server = tmp_path / "server.py"
    server.write_text(
        "print('\"GET /health HTTP/1.1\" 200'); print('after')\n"
        f"exec(open({fake_server.__file__!r}).read())\n"
    )
    with caplog.at_level(logging.INFO, "axion.fake"):
        async with started(str(server)):
            pass
    assert "after" in caplog.text
    assert "GET /health" not in caplog.text


def test_the_cause_is_the_last_error_that_is_named():
    lines = ["INFO start", "ValueError: one", "Traceback", "RuntimeError: see above for it", "bye"]
    assert FakeBackend.cause(None, lines) == "RuntimeError: see above for it"
    assert FakeBackend.cause(None, ["something", ""]) == "something"
    assert FakeBackend.cause(None, []) == ""


def test_status_says_what_a_kill_means():
    assert "memory" in spawned._status(128 + signal.SIGKILL)
    assert spawned._status(3) == "3"
