"""Servers of other makers that Axion spawns: from a model and a free port to answers, and the end.

What differs between the engines is in a file of each; how one is started, watched, restarted and
ended is here.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import os
import random
import re
import shlex
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, ClassVar, Self

import msgspec

from axion.backends.base import ModelConfig
from axion.backends.capabilities import Capabilities, capabilities_of, shipped_capabilities
from axion.backends.facts import EngineFacts, device_facts
from axion.backends.installed import AskError, ask_once, find_command, separation
from axion.backends.process import GuardedProcess
from axion.backends.supervisor import Supervisor
from axion.backends.upstream.backend import UpstreamBackend
from axion.backends.upstream.client import Upstream
from axion.errors import AxionError, ModelLoadError
from axion.hub.resolve import resolve
from axion.hub.snapshot import fingerprint
from axion.settings import Settings
from axion.types import BackendHealth

_HOST = "127.0.0.1"
# Below the ports that Linux gives to outgoing connections: an engine that compiles for minutes
# before it listens would find one of those taken.
_PORTS = range(20_000, 32_000)
_MAX_PORT_TRIES = 3
_MAX_FIRST_REQUESTS = 3
_POLL_INTERVAL_S = 0.25
_ERROR = re.compile(r"\b(?:\w+\.)*\w*(?:Error|Exception)\b: .+")
_PATH = re.compile(r"(?<![\w/])~?/(?:[\w.@+~-]+/)*[\w.@+~-]+")
_MAX_CAUSE_CHARS = 500
_ASK_TIMEOUT_S = 60.0
# What follows the word, else the last number with a point in it: warnings may stand before it.
_VERSIONS = (re.compile(r"\bversion:? v?(\d[\w.+-]*)"), re.compile(r"\d+\.\d+[\w.+-]*"))
# Engines count who uses them, and would look for newer files of a model that is there.
_QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}


class SpawnedBackend(UpstreamBackend, abc.ABC):
    """One model, served by a server that this process spawns.

    The server is ready when its health is good and a real request has been answered. While it
    starts it has as much time as it needs, if only it shows signs of life. After that, a server
    that ends, with whatever status, or hangs, is started again; the requests in it fail at once.

    Args:
        on_given_up: called with the cause when the server fails again and again.

    Attributes:
        engine: its name (`vllm`).
        title: its name as its makers write it.
        command_variable: environment variable with the command (`AXION_VLLM_COMMAND`). The one
            that ends with ARGS instead has arguments that come last, and so beat Axion's.
        default_command: the command without that, looked for on PATH.
        known: what is known of it without asking.
        health_path: answers 200 while the server is well.
        rename, counts: as `Upstream` takes them.
        capabilities: what becomes of requests, with what Axion makes good in front of the server.
        probe_interval_s: seconds between two looks at its health.
        probe_timeout_s: seconds that a look may take.
        max_missed_probes: looks in a row without success after which the server hangs. One during
            which an answer went on does not count.
        start_silence_s: seconds that a server which starts may neither log anything nor be well.
        exit_grace_s: seconds from SIGTERM to SIGKILL.
    """

    title: ClassVar[str]
    command_variable: ClassVar[str]
    default_command: ClassVar[str]
    known: ClassVar[EngineFacts] = EngineFacts(engine="")
    health_path: ClassVar[str] = "/health"
    rename: ClassVar[Mapping[str, str]] = {}
    counts: ClassVar[Mapping[str, Any]] = {}
    probe_interval_s: ClassVar[float] = 5.0
    probe_timeout_s: ClassVar[float] = 10.0
    max_missed_probes: ClassVar[int] = 3
    start_silence_s: ClassVar[float] = 600.0
    exit_grace_s: ClassVar[float] = 15.0

    def __init__(self, *, on_given_up: Callable[[str], None] | None = None) -> None:
        self._learn(shipped_capabilities(self.engine))
        self.engine_version = ""
        self.logger = logging.getLogger(f"axion.{self.engine}")
        self._supervisor = Supervisor(
            self._live, title=f"{self.engine} server", logger=self.logger, on_given_up=on_given_up
        )
        self._process: GuardedProcess | None = None
        self._model: ModelConfig
        self._path: str

    @classmethod
    def from_settings(cls, settings: Settings, on_progress: Callable[[int, int], None]) -> Self:
        """One that a server runs with."""
        return cls()

    @classmethod
    async def facts(cls, settings: Settings) -> EngineFacts:
        """What is known of the engine on this machine; its answers are kept on disk."""
        return await cls._facts()

    @classmethod
    def unasked_facts(cls) -> EngineFacts:
        """What is known of the engine on this machine without a question to it."""
        return msgspec.structs.replace(
            cls.known,
            engine=cls.engine,
            command=cls.default_command,
            variable=cls.command_variable,
            installed=find_command(cls.command_variable, cls.default_command) is not None,
        )

    @classmethod
    async def _facts(cls) -> EngineFacts:
        facts = cls.unasked_facts()
        command = find_command(cls.command_variable, cls.default_command)
        if command is None:
            return facts
        try:
            return await cls.asked(facts, command)
        except AskError as error:
            return msgspec.structs.replace(facts, problem=str(error))

    @classmethod
    async def asked(cls, facts: EngineFacts, command: list[str]) -> EngineFacts:
        """`facts` with what the engine says of itself: its version, unless a subclass asks more.

        Raises:
            AskError: it does not answer.
        """
        return msgspec.structs.replace(facts, version=await cls.version(command))

    @classmethod
    async def version(cls, command: list[str]) -> str:
        """What the engine's `--version` says; empty where it does not."""
        try:
            said = await ask_once(
                cls.engine,
                [*command, "--version"],
                of=command[0],
                timeout_s=_ASK_TIMEOUT_S,
                with_errors=True,
            )
        except AskError:
            return ""
        text = said.decode(errors="replace")
        return next((found[-1] for form in _VERSIONS if (found := form.findall(text))), "")

    @abc.abstractmethod
    def arguments(self, model: ModelConfig, path: str, port: int) -> list[str]:
        """What follows the command.

        Args:
            path: the model's folder.
            port: to listen on, at 127.0.0.1.
        """

    def environment(self, model: ModelConfig, path: str, port: int) -> dict[str, str]:
        """Variables that the server gets beside those of this process."""
        return {}

    def capabilities_for(self, model: ModelConfig, path: str) -> Capabilities:
        """What the server itself does with requests when it serves this model."""
        return capabilities_of(self.engine, self.engine_version)

    def upstream_model(self, model: ModelConfig, path: str) -> str:
        """What the server calls the model."""
        return model.name

    def connect(self, model: ModelConfig, path: str, port: int) -> Upstream:
        """The server as one that can be asked."""
        return Upstream(
            f"http://{_HOST}:{port}",
            engine=self.engine,
            upstream_model=self.upstream_model(model, path),
            served_name=model.name,
            rename=self.rename,
            counts=self.counts,
            capabilities=self._server_capabilities,
        )

    def _learn(self, capabilities: Capabilities) -> None:
        self._server_capabilities = capabilities
        self.capabilities = capabilities.repaired(tells_usage=bool(self.counts))

    def cause(self, log_lines: Sequence[str]) -> str:
        """Which of its last lines says why the server ended."""
        errors = [found[0] for line in log_lines if (found := _ERROR.search(line))]
        return errors[-1] if errors else next(filter(None, reversed(log_lines)), "")

    @property
    def pid(self) -> int | None:
        """Id of the process that leads the server's group, while there is one."""
        return self._process.pid if self._process else None

    async def start(self, model: ModelConfig) -> None:
        """Find the model's files, spawn the server; returns when it has answered a request.

        Raises:
            ModelNotFoundError: there is no such model.
            ModelLoadError: the server is not installed, or cannot serve the model; says why.
        """
        path = (await resolve(model.model_name, formats=self.known.formats)).path
        if model.device == "auto":
            device = await device_facts("auto")
            model = msgspec.structs.replace(model, device=device.kind)
        self.identity = (await asyncio.to_thread(fingerprint, path),)
        self._model, self._path = model, str(path)
        self.engine_version = (await self._facts()).version
        self._learn(self.capabilities_for(model, self._path))
        await self._supervisor.start()

    async def health(self) -> BackendHealth:
        supervisor = self._supervisor
        return BackendHealth(
            state=supervisor.state, detail=supervisor.detail, restarts=supervisor.restarts
        )

    async def stop(self, drain_s: float) -> None:
        self._supervisor.retire()
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            # Before SIGTERM: a server may wait for its streams, and they for it.
            await upstream.drain(drain_s)
        await self._supervisor.end(0)

    def _ready(self) -> Upstream:
        self.detail = self._supervisor.detail
        return super()._ready()

    def _command(self) -> list[str]:
        command = find_command(self.command_variable, self.default_command)
        if command is None:
            raise ModelLoadError(
                f"The engine {self.engine} is not installed: there is no program for its command. "
                f"Install it, or set {self.command_variable} to the command that starts it "
                f"(default: {self.default_command})."
            )
        return [os.path.abspath(command[0]), *command[1:]]  # it works in another folder

    def _user_arguments(self) -> list[str]:
        variable = self.command_variable.removesuffix("COMMAND") + "ARGS"
        try:
            return shlex.split(os.environ.get(variable, ""))
        except ValueError as error:
            raise ModelLoadError(f"{variable} cannot be split into words: {error}.") from None

    async def _live(self) -> str:
        """One life of the server; returns how it ended.

        Raises:
            ModelLoadError: it did not become ready.
        """
        for _ in range(_MAX_PORT_TRIES):
            port = free_port()
            with contextlib.suppress(_PortTakenError):
                return await self._live_at(port)
            self.logger.warning("port %d was taken by another; trying again with another", port)
        raise ModelLoadError(f"The engine {self.engine} found no free port. Try again.")

    async def _live_at(self, port: int) -> str:
        model, path = self._model, self._path
        upstream = self.connect(model, path, port)
        command = self._command()
        env = _QUIET | _visible_gpu(model.device) | self.environment(model, path, port)
        process = self._process = await GuardedProcess.spawn(
            [*command, *self.arguments(model, path, port), *self._user_arguments()],
            logger=self.logger,
            env=separation(command[0]) | env,
            noise=f"GET {self.health_path} ",
            grace_s=self.exit_grace_s,
        )
        ended = asyncio.create_task(process.wait())
        grace_s = self.exit_grace_s
        try:
            if not await _before(ended, self._become_ready(process, upstream)):
                if _is_taken(port):
                    raise _PortTakenError
                raise self._failure(process, f"ended with status {_status(ended.result())}")
            self.upstream = upstream
            self._supervisor.ready()
            if await _before(ended, self._hang(upstream)):
                grace_s = 0  # it would not notice
                return "it did not answer and was killed"
            return f"it ended with status {_status(ended.result())}"
        finally:
            ended.cancel()
            self.upstream = None
            self._supervisor.down()
            try:
                await upstream.drain(0)
                await upstream.close()
            finally:
                await process.stop(grace_s)
                self._process = None

    async def _become_ready(self, process: GuardedProcess, upstream: Upstream) -> None:
        """Returns when the server has answered a request.

        Raises:
            ModelLoadError: it shows no sign of life, or does not answer.
        """
        while not await upstream.is_healthy(self.health_path, self.probe_timeout_s):
            if time.monotonic() - process.last_line_at > self.start_silence_s:
                silence = f"neither wrote nor answered anything for {self.start_silence_s:g} s"
                raise self._failure(process, silence)
            await asyncio.sleep(_POLL_INTERVAL_S)
        for tries_left in reversed(range(_MAX_FIRST_REQUESTS)):
            try:
                return await upstream.answers()
            except AxionError as error:
                if not tries_left:
                    raise self._failure(process, f"failed on a request ({error})") from None
            await asyncio.sleep(_POLL_INTERVAL_S)
        return None

    async def _hang(self, upstream: Upstream) -> None:
        """Returns when the server hangs."""
        num_missed = 0
        while num_missed < self.max_missed_probes:
            looked_at = time.monotonic()
            await asyncio.sleep(self.probe_interval_s)
            healthy = await upstream.is_healthy(self.health_path, self.probe_timeout_s)
            if healthy or upstream.last_data_at > looked_at:
                num_missed = 0
            else:
                num_missed += 1
                self.logger.warning(
                    *("the %s server does not answer (%d of %d)", self.engine, num_missed),
                    self.max_missed_probes,
                )

    def _failure(self, process: GuardedProcess, what: str) -> ModelLoadError:
        """An error whose message may be shown to clients; the last lines are a note to it."""
        cause = _PATH.sub("…", self.cause(process.log_lines))[:_MAX_CAUSE_CHARS]
        error = ModelLoadError(
            f"The engine {self.engine} cannot serve {self._model.name}. It {what} while it "
            f"started{f': {cause}' if cause else '.'}"
        )
        error.add_note("Its last lines:\n" + "\n".join(process.log_lines))
        self.logger.error("the %s server did not start", self.engine, exc_info=error)
        return error


def _visible_gpu(device: str) -> dict[str, str]:
    """What makes an engine see `cuda:N` alone, which it then calls its first."""
    _, _, index = device.partition(":")
    return {"CUDA_VISIBLE_DEVICES": index} if index else {}


class _PortTakenError(Exception):
    """Another program listens where the server should."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    return next(port for port in random.sample(_PORTS, 1000) if not _is_taken(port))


def _is_taken(port: int) -> bool:
    with socket.socket() as listener:
        # As servers do, so that connections that have ended do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((_HOST, port))
        except OSError:
            return True
    return False


def _status(status: int) -> str:
    killed = status in (-signal.SIGKILL, 128 + signal.SIGKILL)
    return f"{status} (killed, most likely for want of memory)" if killed else str(status)


async def _before(ended: asyncio.Task[int], waiting: Coroutine[Any, Any, None]) -> bool:
    """Whether `waiting` is over before a process has ended; raises what it raises."""
    task = asyncio.create_task(waiting)
    try:
        await asyncio.wait((ended, task), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return False
        task.result()
        return True
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
