"""A model in a process of its own: spawned, spoken to, restarted when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import msgspec
import psutil
import zmq
import zmq.asyncio

from axion.backends.process import ManagedProcess
from axion.backends.supervisor import Supervisor
from axion.engine.messages import (
    AbortRequest,
    Ping,
    Shutdown,
    encode,
)
from axion.errors import AxionError, EngineUnavailableError, ModelLoadError
from axion.types import (
    BackendState,
)

_EXIT_GRACE_S = 5.0
# The share of a processor that tells a process at work from one that only looks for messages.
_COMPUTES = 0.05
# The same for one that loads: from a slow disk or network it may compute next to nothing.
_LOADS = 0.002
# Of processes that compute with torch. oneDNN, and torch in front of it, keep what they have made
# for every shape of a product, and each number of tokens in a step is another: the newest will do.
# What a step frees the next needs again: given back to the kernel, it would come in anew page by
# page, which takes longer than to compute what goes there.
# A thread that waits for another looks a while (here some 50 us) before it sleeps. For OpenMP's
# milliseconds it would keep from the processor what it waits for, wherever others compute too.
_TUNING = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128",
    "LRU_CACHE_CAPACITY": "128",
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "THP_MEM_ALLOC_ENABLE": "1",
    "GOMP_SPINCOUNT": "2000",
}
_MAX_FOLDER_LENGTH = 80  # a Unix socket's path has at most 107 bytes

OutputT = TypeVar("OutputT")


class Outputs(Generic[OutputT]):
    """What a worker answers to one request.

    Attributes:
        finished: the last output was taken; until then, the request is aborted if it is left.
    """

    def __init__(self) -> None:
        self._queue: asyncio.Queue[OutputT | AxionError] = asyncio.Queue()
        self.finished = False

    def put(self, output: OutputT | AxionError) -> None:
        self._queue.put_nowait(output)

    async def next(self) -> OutputT:
        """The next output.

        Raises:
            EngineUnavailableError: the worker ended before it.
        """
        output = await self._queue.get()
        if isinstance(output, AxionError):
            self.finished = True
            raise output
        return output


class Worker(ABC, Generic[OutputT]):
    """A child process that serves one model. What is said to it is a subclass's.

    When the process dies, or hangs, the requests in it end with `EngineUnavailableError`, and a
    `Supervisor` starts it again.

    A process answers between two steps, so a long step and a hang look alike from here. What
    tells them apart is whether it computes: 2,048 tokens of an 8B model take a slow processor
    some minutes, and keep it busy. While it loads it is not asked, and has all the time that it
    needs if only it tells its progress or computes now and then.

    New requests wait for a process that is being restarted.

    Attributes:
        MAX_PAUSE_S: how long a request waits for a new process.
        module: what the process runs: `python -m MODULE ADDRESS PARENT_PID`.
        title: what the process is called in messages.
        ping_interval_s: seconds from one ping to the next.
        idle_limit_s: seconds without an answer after which a process that does not compute
            either (stopped, or waiting for what will not come) is ended and started again.
        busy_limit_s: the same for one that computes.
        load_limit_s: the same for one that loads and does not compute.
    """

    MAX_PAUSE_S: ClassVar[float] = 60.0

    module: ClassVar[str]
    title: ClassVar[str]
    logger: ClassVar[logging.Logger]
    ping_interval_s: ClassVar[float] = 5.0
    idle_limit_s: ClassVar[float] = 30.0
    busy_limit_s: ClassVar[float] = 600.0
    load_limit_s: ClassVar[float] = 600.0

    def __init__(self) -> None:
        self.supervisor = Supervisor(self._live, title=self.title, logger=self.logger)
        self._outputs: dict[str, Outputs[OutputT]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._settled = asyncio.Event()  # it is ready, or will never be again
        self._connection: _Connection | None = None
        self._has_answered = False

    @abstractmethod
    def first_message(self) -> msgspec.Struct:
        """What every life of the process begins with."""

    @abstractmethod
    def take(self, frame: bytes) -> None:
        """Take in one message of the process.

        Raises:
            AxionError: the model cannot be loaded.
        """

    def reset(self) -> None:
        """Forget what a process that has ended had told."""

    @property
    def state(self) -> BackendState:
        return self.supervisor.state

    @property
    def detail(self) -> str:
        return self.supervisor.detail

    @property
    def restarts(self) -> int:
        return self.supervisor.restarts

    @property
    def pid(self) -> int | None:
        """Id of the process, while there is one."""
        return self._connection.process.pid if self._connection else None

    async def start(self) -> None:
        """Returns when the model is loaded.

        Raises:
            AxionError: it cannot be; the message says why.
        """
        await self.supervisor.start()

    async def stop(self, drain_s: float) -> None:
        """Take no more requests, let the running ones finish for `drain_s` seconds, then end."""
        self.supervisor.retire()
        self._settled.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), drain_s)
        self._fail_running(self.detail)
        if self._connection is not None:
            self._connection.send(Shutdown())
        # Without a process there is nothing to wait for: it pauses before a restart.
        await self.supervisor.end(_EXIT_GRACE_S if self._connection is not None else 0)

    @property
    def returns_soon(self) -> bool:
        """Whether it is being restarted, and requests wait for it."""
        return self.supervisor.returns_within(self.MAX_PAUSE_S)

    async def until_back(self) -> None:
        """Wait for the next process, if there is none now.

        Raises:
            EngineUnavailableError: it takes too long.
        """
        if self.state is BackendState.DOWN and not self.returns_soon:
            raise self.unavailable()
        try:
            async with asyncio.timeout(self.MAX_PAUSE_S):
                while self.state is BackendState.DOWN:
                    await self._settled.wait()
        except TimeoutError:
            raise self.unavailable() from None

    def unavailable(self) -> EngineUnavailableError:
        return EngineUnavailableError(self.detail, headers={"Retry-After": "5"})

    @contextlib.contextmanager
    def request(self, request_id: str, message: msgspec.Struct) -> Iterator[Outputs[OutputT]]:
        """Send one request; leaving the block before its last output aborts it.

        Raises:
            EngineUnavailableError: the process is not ready.
        """
        if self.state is not BackendState.READY or self._connection is None:
            raise self.unavailable()
        assert request_id not in self._outputs, "request ids are unique"
        connection = self._connection
        outputs = self._outputs[request_id] = Outputs[OutputT]()
        self._idle.clear()
        try:
            connection.send(message)
            yield outputs
        finally:
            self._outputs.pop(request_id, None)
            if not self._outputs:
                self._idle.set()
            if not outputs.finished and connection is self._connection:
                connection.send(AbortRequest([request_id]))

    def deliver(self, request_id: str, output: OutputT) -> None:
        """Pass an output on; a request that was aborted meanwhile takes no more."""
        if (outputs := self._outputs.get(request_id)) is not None:
            outputs.put(output)

    def become_ready(self) -> None:
        """The model is loaded."""
        self.supervisor.ready()
        self._settled.set()

    async def _live(self) -> str:
        """One life of the process; returns how it ended.

        Raises:
            AxionError: it could not load the model.
        """
        context = zmq.asyncio.Context()
        try:
            connection = await _Connection.open(context, self.module, self.logger)
            self._connection = connection
            connection.send(self.first_message())
            reader = asyncio.create_task(self._read(connection))
            ended = asyncio.create_task(connection.process.wait())
            hung = asyncio.create_task(self._watch(connection))
            tasks = (reader, ended, hung)
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                if reader.done():
                    reader.result()  # raises: it never ends by itself
                if hung.done():
                    return hung.result()
                status = ended.result()
                if not self.supervisor.has_started:
                    last = "\n  ".join(list(connection.process.log_lines)[-20:])
                    guess = " (killed, most likely for want of memory)"
                    raise ModelLoadError(
                        f"The {self.title} ended with status {status}"
                        f"{guess if status == -signal.SIGKILL else ''} while it loaded the "
                        f"model. Its last lines:\n  {last}"
                    )
                return f"it ended with status {status}"
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                self._connection = None
                self._go_down()
                await connection.close()
        finally:
            context.destroy(linger=0)

    async def _read(self, connection: _Connection) -> None:
        while True:
            frame = await connection.receive()
            self._has_answered = True
            self.take(frame)

    async def _watch(self, connection: _Connection) -> str:
        """Returns when the process hangs, and has been killed.

        Raises:
            ModelLoadError: it hung while it loaded.
        """
        pid = connection.process.pid
        # Counted in pings and not by the clock: while this process was stopped, it sent none.
        silent_s = 0.0
        computed_s = 0.0
        while True:
            self._has_answered = False
            loads = self.state is not BackendState.READY
            if not loads:
                connection.send(Ping())
            await asyncio.sleep(self.ping_interval_s)
            silent_s += self.ping_interval_s
            share = (_cpu_seconds(pid) - computed_s) / silent_s
            told = self._has_answered or self.state is BackendState.STOPPED
            if told or (loads and share > _LOADS):
                silent_s, computed_s = 0.0, _cpu_seconds(pid)
                continue
            limit_s = self.busy_limit_s if share > _COMPUTES else self.idle_limit_s
            if silent_s < (self.load_limit_s if loads else limit_s):
                continue
            connection.process.kill()
            if loads:
                raise ModelLoadError(
                    f"The {self.title} neither told anything nor computed for {silent_s:g} s while "
                    "it loaded the model, and was killed."
                )
            return f"it did not answer for {silent_s:g} s and was killed"

    def _go_down(self) -> None:
        self.supervisor.down()
        if self.state is not BackendState.STOPPED:
            self._settled.clear()
        self.reset()
        self._fail_running(f"The {self.title} stopped while it computed this request.")

    def _fail_running(self, message: str) -> None:
        for outputs in self._outputs.values():
            outputs.put(EngineUnavailableError(message))


class _Connection:
    """One process and the socket to it."""

    def __init__(self, folder: Path, socket: zmq.asyncio.Socket, process: ManagedProcess) -> None:
        self._folder = folder
        self._socket = socket
        self.process = process

    @classmethod
    async def open(
        cls, context: zmq.asyncio.Context, module: str, logger: logging.Logger
    ) -> _Connection:
        # mkdtemp makes the folder for this user alone (0700).
        folder = tempfile.mkdtemp(prefix="axion-")
        if len(folder) > _MAX_FOLDER_LENGTH:
            os.rmdir(folder)
            folder = tempfile.mkdtemp(prefix="axion-", dir="/tmp")
        address = f"ipc://{folder}/engine.sock"
        socket = context.socket(zmq.PAIR)
        try:
            socket.set_hwm(0)
            socket.bind(address)
            process = await ManagedProcess.spawn(
                # It finds modules where this process does, and with -P nowhere else: the working
                # folder may be a downloaded model's.
                [sys.executable, "-P", "-m", module, address, str(os.getpid())],
                logger=logger,
                env={"PYTHONPATH": os.pathsep.join(sys.path)} | tuning(os.environ),
            )
        except BaseException:
            socket.close(linger=0)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(Path(folder), socket, process)

    def send(self, message: msgspec.Struct) -> None:
        # Not waited for: without a high-water mark only a process that is not there yet, or no
        # longer, holds a message up, and closing the socket drops it.
        self._socket.send(encode(message))

    async def receive(self) -> bytes:
        frame: bytes = await self._socket.recv()
        return frame

    async def close(self) -> None:
        try:
            await self.process.stop(_EXIT_GRACE_S)
        finally:
            self._socket.close(linger=0)
            shutil.rmtree(self._folder, ignore_errors=True)


def tuning(environ: Mapping[str, str]) -> dict[str, str]:
    """What a worker's environment has besides `environ`, which comes first."""
    return {name: value for name, value in _TUNING.items() if name not in environ}


def _cpu_seconds(pid: int) -> float:
    """Seconds that a process and its ended children have computed."""
    try:
        return float(sum(psutil.Process(pid).cpu_times()[:4]))
    except psutil.NoSuchProcess:
        return 0.0
