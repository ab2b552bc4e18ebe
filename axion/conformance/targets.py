"""Servers that are spawned for the checks, and what only those show: their begin and end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator

import psutil

from axion.backends.base import ModelConfig
from axion.backends.facts import EngineFacts
from axion.backends.spawned import SpawnedBackend
from axion.backends.upstream.client import Upstream
from axion.conformance.behaviour import Observation
from axion.conformance.server import FaultError, RefusedError, Server, UnreachableError

_END_WITHIN_S = 30.0
_READY_WITHIN_S = 900.0
_POLL_S = 0.05


class AxionServer(SpawnedBackend):
    """Axion itself, with its own engine."""

    engine = "native"
    title = "Axion"
    command_variable = "AXION_COMMAND"
    default_command = f"{sys.executable} -m axion"
    known = EngineFacts(engine="native")

    def arguments(self, model: ModelConfig, path: str, port: int) -> list[str]:
        options = {
            "--served-model-name": model.name,
            "--server-host": "127.0.0.1",
            "--server-port": port,
            "--max-seq-len": model.max_seq_len,
            "--concurrent-requests": model.max_num_seqs,
            "--device": model.device,
            "--dtype": model.dtype,
            "--axion-backends": "native",
            # Whatever the environment shares among other engines.
            "--backend-weights": "",
            "--shadow": "",
        }
        return ["serve", path, *(str(word) for pair in options.items() for word in pair)]


def unattended(cls: type[SpawnedBackend]) -> type[SpawnedBackend]:
    """The class whose server is not killed when it hangs: that it does is to be seen."""
    return type(cls.__name__, (cls,), {"max_missed_probes": sys.maxsize})


class SpawnedServer:
    """A server of its own for the checks.

    Attributes:
        seconds_to_ready: from its start to its first answer.
    """

    def __init__(self, backend: SpawnedBackend, model: ModelConfig) -> None:
        self._backend = backend
        self._model = model
        self.seconds_to_ready = 0.0

    async def start(self) -> None:
        """Raises:
        AxionError: it cannot be started; says why.
        """
        began = time.monotonic()
        await self._backend.start(self._model)
        self.seconds_to_ready = time.monotonic() - began

    async def stop(self) -> None:
        await self._backend.stop(0)

    @contextlib.asynccontextmanager
    async def connect(self) -> AsyncIterator[Server]:
        """The server, which may have come back after an end."""
        upstream = await self._upstream()
        server = Server(upstream.url, upstream.upstream_model, rename=self._backend.rename)
        try:
            yield server
        finally:
            await server.close()

    async def ready(self) -> Observation:
        return Observation(f"{self.seconds_to_ready:.1f} s", "from its start to its first answer")

    async def sigterm(self) -> Observation:
        """SIGTERM while nothing runs."""
        await self._upstream()
        server = self._server()
        took = await _terminate(server)
        _kill(server)
        return _ended(took, "")

    async def sigterm_in_stream(self) -> Observation:
        """SIGTERM while an answer is being sent."""
        async with self.connect() as server:
            began = asyncio.Event()
            stream = asyncio.create_task(_stream(server, began))
            await asyncio.wait(
                [stream, waiting := asyncio.create_task(began.wait())],
                timeout=_END_WITHIN_S,
                return_when=asyncio.FIRST_COMPLETED,
            )
            waiting.cancel()
            if not began.is_set() or stream.done():
                stream.cancel()
                return Observation("not seen", "no stream was open for long enough")
            process = self._server()
            took = await _terminate(process)
            await asyncio.wait([stream], timeout=_POLL_S)
            how = stream.result() if stream.done() else "the stream does not end"
            _kill(process)
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)
        return _ended(took, f"; {how}")

    def _server(self) -> psutil.Process:
        """The server's own process: the first child of the guard, which would kill it in time."""
        guard = self._backend.pid
        assert guard is not None
        return psutil.Process(guard).children()[0]

    async def _upstream(self) -> Upstream:
        deadline = time.monotonic() + _READY_WITHIN_S
        while time.monotonic() < deadline:
            upstream = self._backend.upstream
            # One that has just died of a check may not be known to be dead.
            if upstream is not None and await upstream.is_healthy(self._backend.health_path):
                return upstream
            await asyncio.sleep(_POLL_S)
        raise UnreachableError("The server did not come back after its end.")


async def _terminate(process: psutil.Process) -> float | None:
    """Seconds from SIGTERM to the end of a process; None if it goes on."""
    process.terminate()
    began = time.monotonic()
    while process.is_running():
        if time.monotonic() - began > _END_WITHIN_S:
            return None
        await asyncio.sleep(_POLL_S)
    return time.monotonic() - began


def _kill(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


async def _stream(server: Server, began: asyncio.Event) -> str:
    """Read a long answer; returns how its stream ended."""
    body = {
        "model": server.model,
        "prompt": "Once upon a time",
        "stream": True,
        "max_tokens": 1500,
        "temperature": 1,
    }
    last, failed = "", ""
    try:
        async for event in server.events("/v1/completions", {**body, "ignore_eos": True}):
            last, failed = event, failed or (" an error and" if '"error"' in event else "")
            began.set()
    except (FaultError, RefusedError) as error:
        return f"the stream breaks ({error})"
    if last == "[DONE]":
        return f"the stream ends with{failed} [DONE]"
    return f"the stream ends with{failed} no [DONE]"


def _ended(seconds: float | None, more: str) -> Observation:
    if seconds is None:
        return Observation("hangs", f"still there after {_END_WITHIN_S:g} s{more}")
    return Observation("ends", f"after {seconds:.1f} s{more}")
