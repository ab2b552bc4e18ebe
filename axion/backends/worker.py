"""The native engine in a process of its own: spawned, spoken to, restarted when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import zmq
import zmq.asyncio

from axion.backends.process import ManagedProcess
from axion.engine.messages import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineReady,
    LoadProgress,
    Shutdown,
    Start,
    StepOutputs,
    ToEngine,
    decode_from_engine,
    encode,
)
from axion.errors import AxionError, EngineUnavailableError, InternalError, ModelLoadError
from axion.types import (
    BackendHealth,
    BackendState,
    EngineConfig,
    EngineInfo,
    EngineStats,
    FinishReason,
    SamplingParams,
    SequenceOutput,
)

logger = logging.getLogger("axion.engine")

_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 30.0
_STABLE_AFTER_S = 60.0
_EXIT_GRACE_S = 5.0
_MAX_FOLDER_LENGTH = 80  # a Unix socket's path has at most 107 bytes


async def spawn_engine(
    config: EngineConfig, on_progress: Callable[[int, int], None] | None = None
) -> WorkerEngine:
    """Start an engine process and wait until its model is loaded.

    Args:
        on_progress: called with (bytes read, bytes in all) while the weights load.

    Raises:
        ModelLoadError: the model cannot be served; the message says why.
    """
    engine = WorkerEngine(config, on_progress)
    await engine.start()
    return engine


class WorkerEngine:
    """An `EngineClient` whose engine lives in a child process.

    When the process dies, the sequences in it end with `EngineUnavailableError` and the process
    is started again, after a pause that doubles with every failure.
    """

    def __init__(
        self, config: EngineConfig, on_progress: Callable[[int, int], None] | None = None
    ) -> None:
        self._config = config
        self._on_progress = on_progress or (lambda done, total: None)
        self._state = BackendState.STARTING
        self._detail = "The model is loading."
        self._info: EngineInfo | None = None
        self._stats = EngineStats()
        self._restarts = 0
        self._queues: dict[str, asyncio.Queue[SequenceOutput | AxionError]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._connection: _Connection | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise EngineUnavailableError(self._detail)
        return self._info

    @property
    def stats(self) -> EngineStats:
        return self._stats

    @property
    def pid(self) -> int | None:
        """Process id of the engine, while there is one."""
        return self._connection.process.pid if self._connection else None

    def health(self) -> BackendHealth:
        return BackendHealth(
            state=self._state,
            detail=self._detail,
            info=self._info,
            stats=self._stats,
            restarts=self._restarts,
        )

    async def start(self) -> None:
        self._supervisor = asyncio.create_task(self._supervise())
        try:
            await asyncio.shield(self._started)
        except BaseException:
            await self._end_supervisor(grace_s=0)
            raise

    async def stop(self, drain_s: float) -> None:
        """Take no more requests, let the running ones finish for `drain_s` seconds, then end."""
        self._state, self._detail = BackendState.STOPPED, "The server is shutting down."
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), drain_s)
        self._fail_running(self._detail)
        if self._connection is not None:
            self._connection.send(Shutdown())
        # Without a process there is nothing to wait for: it pauses before a restart.
        await self._end_supervisor(_EXIT_GRACE_S if self._connection is not None else 0)

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: list[int],
        params: SamplingParams,
        *,
        cache_salt: str = "",
        priority: int = 0,
    ) -> AsyncGenerator[SequenceOutput, None]:
        if self._state is not BackendState.READY or self._connection is None:
            raise EngineUnavailableError(self._detail, headers={"Retry-After": "5"})
        assert request_id not in self._queues, "request ids are unique"
        connection = self._connection
        queue: asyncio.Queue[SequenceOutput | AxionError] = asyncio.Queue()
        self._queues[request_id] = queue
        self._idle.clear()
        finished = False
        try:
            connection.send(AddRequest(request_id, prompt_token_ids, params, cache_salt, priority))
            while not finished:
                output = await queue.get()
                finished = isinstance(output, AxionError) or output.finish_reason is not None
                if isinstance(output, AxionError):
                    raise output
                if output.finish_reason is FinishReason.ERROR:
                    raise InternalError(output.error or "The engine could not go on.")
                yield output
        finally:
            self._queues.pop(request_id, None)
            if not self._queues:
                self._idle.set()
            if not finished and connection is self._connection:
                connection.send(AbortRequest([request_id]))

    async def _supervise(self) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            started_at = time.monotonic()
            try:
                cause = f"it ended with status {await self._live()}"
            except Exception as error:  # whatever it is: the next life may be better
                if not self._started.done():
                    self._started.set_exception(error)
                    return
                cause = f"{type(error).__name__}: {error}"
            if self._state is BackendState.STOPPED:
                return
            if time.monotonic() - started_at > _STABLE_AFTER_S:
                backoff_s = _FIRST_BACKOFF_S
            logger.error("the engine is down (%s); restarting it in %.1f s", cause, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)
            self._restarts += 1

    async def _live(self) -> int:
        """One life of the engine process; returns its exit status.

        Raises:
            ModelLoadError: it could not load the model.
        """
        context = zmq.asyncio.Context()
        try:
            self._connection = connection = await _Connection.open(context)
            connection.send(Start(self._config))
            reader = asyncio.create_task(self._read(connection))
            ended = asyncio.create_task(connection.process.wait())
            try:
                await asyncio.wait((reader, ended), return_when=asyncio.FIRST_COMPLETED)
                if reader.done():
                    reader.result()  # raises: it never ends by itself
                status = ended.result()
                if not self._started.done():
                    last = "\n  ".join(list(connection.process.log_lines)[-20:])
                    guess = " (killed, most likely for want of memory)"
                    raise ModelLoadError(
                        f"The engine process ended with status {status}"
                        f"{guess if status == -signal.SIGKILL else ''} while it loaded the "
                        f"model. Its last lines:\n  {last}"
                    )
                return status
            finally:
                reader.cancel()
                ended.cancel()
                await asyncio.gather(reader, ended, return_exceptions=True)
                self._connection = None
                self._go_down()
                await connection.close()
        finally:
            context.destroy(linger=0)

    async def _read(self, connection: _Connection) -> None:
        while True:
            match decode_from_engine(await connection.receive()):
                case StepOutputs(outputs, stats):
                    self._stats = stats
                    for output in outputs:
                        # A request that was aborted meanwhile has no queue any more.
                        if (queue := self._queues.get(output.request_id)) is not None:
                            queue.put_nowait(output)
                case LoadProgress(num_bytes_done, num_bytes_total):
                    self._on_progress(num_bytes_done, num_bytes_total)
                case EngineReady(info):
                    self._info = info
                    if self._state is not BackendState.STOPPED:
                        self._state, self._detail = BackendState.READY, ""
                    if not self._started.done():
                        self._started.set_result(None)
                case EngineFailed(message):
                    raise ModelLoadError(message)

    def _go_down(self) -> None:
        if self._state is not BackendState.STOPPED:
            self._state = BackendState.DOWN
            self._detail = "The engine process ended and is being restarted."
        self._stats = EngineStats()
        self._fail_running("The engine stopped while it computed this request.")

    def _fail_running(self, message: str) -> None:
        for queue in self._queues.values():
            queue.put_nowait(EngineUnavailableError(message))

    async def _end_supervisor(self, grace_s: float) -> None:
        if self._supervisor is None:
            return
        # It ends by itself when the process exits; a process that does not is ended for it.
        await asyncio.wait((self._supervisor,), timeout=grace_s)
        self._supervisor.cancel()
        await asyncio.gather(self._supervisor, return_exceptions=True)


class _Connection:
    """One engine process and the socket to it."""

    def __init__(self, folder: Path, socket: zmq.asyncio.Socket, process: ManagedProcess) -> None:
        self._folder = folder
        self._socket = socket
        self.process = process

    @classmethod
    async def open(cls, context: zmq.asyncio.Context) -> _Connection:
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
                [sys.executable, "-P", "-m", "axion.engine.process", address, str(os.getpid())],
                logger=logger,
                env={"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        except BaseException:
            socket.close(linger=0)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return cls(Path(folder), socket, process)

    def send(self, message: ToEngine) -> None:
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
