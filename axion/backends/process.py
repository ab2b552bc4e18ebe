"""A child process with its own process group, whose log is kept and whose end is certain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import Self

from axion.backends import guard

_NUM_LOG_LINES = 200
_MAX_LINE_BYTES = 64 * 1024
# A guard that kills what is below it gives up after ten seconds.
_GUARD_S = 12.0
# The level stands at the front of a line, behind a time, a name or a process's number.
_LEVEL = re.compile(r"^.{0,60}?\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$", re.IGNORECASE)
_MIN_SECRET_LENGTH = 8


class ManagedProcess:
    """One child process.

    It leads a session of its own, so that everything it spawns can be ended with it. What it
    writes is forwarded to `logger` line by line, and the last lines are kept for error messages.
    The values of variables that are named as secrets are not in either.

    Args:
        secrets: what is not to be logged.
        noise: lines that hold it are dropped.

    Attributes:
        last_line_at: when it last wrote something that is not noise, by `time.monotonic`.
    """

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        logger: logging.Logger,
        secrets: re.Pattern[str] | None = None,
        noise: str | None = None,
    ) -> None:
        self._process = process
        self._logger = logger
        self._secrets = secrets
        self._noise = noise
        self.log_lines: deque[str] = deque(maxlen=_NUM_LOG_LINES)
        self.last_line_at = time.monotonic()
        self._forwarder = asyncio.create_task(self._forward())

    @classmethod
    async def spawn(
        cls,
        command: list[str],
        *,
        logger: logging.Logger,
        env: Mapping[str, str] | None = None,
        noise: str | None = None,
    ) -> Self:
        """Start `command`, with `env` added to this process's environment.

        Raises:
            OSError: it cannot be run.
        """
        env = {**os.environ, **(env or {})}
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            env=env,
        )
        return cls(process, logger, _secrets_of(env), noise)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> int:
        """The exit status, once the process has ended and its log is read."""
        status = await self._process.wait()
        # A grandchild may hold the pipe open: its lines are not worth waiting for.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._forwarder), 1)
        return status

    async def stop(self, grace_s: float = 5.0) -> None:
        """SIGTERM to the group, SIGKILL to what is left of it after `grace_s` seconds."""
        try:
            await self._end(grace_s)
        finally:  # a caller who does not wait leaves nothing behind either
            self.kill()
        await self._process.wait()
        self._forwarder.cancel()
        await asyncio.gather(self._forwarder, return_exceptions=True)

    async def _end(self, grace_s: float) -> None:
        """Ask the process to end, and wait until it has or the time is over."""
        self._signal_group(signal.SIGTERM)
        await self._ended_within(grace_s)

    def kill(self) -> None:
        """SIGKILL to the group."""
        self._signal_group(signal.SIGKILL)

    async def _ended_within(self, timeout_s: float) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), timeout_s)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _forward(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        rest = b""
        while chunk := await stream.read(_MAX_LINE_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self._take(line)
            if b"\r" in rest:  # a progress bar paints over itself
                self.last_line_at = time.monotonic()
                rest = rest[rest.rindex(b"\r") :]
            if len(rest) > _MAX_LINE_BYTES:
                rest = b""
        if rest:
            self._take(rest)

    def _take(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip().rpartition("\r")[2]
        if self._noise is not None and self._noise in text:
            return
        self.last_line_at = time.monotonic()
        if self._secrets is not None:
            text = self._secrets.sub("***", text)
        self.log_lines.append(text)
        first, _, message = text.partition(" ")
        levels = logging.getLevelNamesMapping()
        if first in levels:  # as Axion's own processes write it
            self._logger.log(levels[first], "%s", message)
            return
        found = _LEVEL.match(text)
        self._logger.log(levels[found[1]] if found else logging.INFO, "%s", text)


class GuardedProcess(ManagedProcess):
    """A child process that starts others, each of which is ended with it: see `guard`.

    It works in a fresh folder, which is removed at its end.
    """

    @classmethod
    async def spawn(
        cls,
        command: list[str],
        *,
        logger: logging.Logger,
        env: Mapping[str, str] | None = None,
        noise: str | None = None,
        grace_s: float = 15.0,
    ) -> Self:
        """As `ManagedProcess.spawn`.

        Args:
            grace_s: how long it has to end by itself after SIGTERM, in seconds, whether it is
                stopped or this process has been killed.
        """
        if sys.platform == "linux":
            script = [sys.executable, "-I", "-S", guard.__file__]
            command = [*script, str(os.getpid()), str(grace_s), *command]
        return await super().spawn(command, logger=logger, env=env, noise=noise)

    async def _end(self, grace_s: float) -> None:
        steps = ((signal.SIGTERM, grace_s), (signal.SIGQUIT, _GUARD_S))
        for number, wait_s in steps if grace_s > 0 else steps[1:]:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.send_signal(number)
                await self._ended_within(wait_s)


def _secrets_of(env: Mapping[str, str]) -> re.Pattern[str] | None:
    """What matches the values of variables that hold secrets, by their names."""
    values = [
        re.escape(value)
        for name, value in env.items()
        if _SECRET_NAME.search(name) and len(value) >= _MIN_SECRET_LENGTH
    ]
    # The longest first: one may be the beginning of another.
    return re.compile("|".join(sorted(values, key=len, reverse=True))) if values else None
