"""A child process with its own process group, whose log is kept and whose end is certain."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections import deque
from collections.abc import Mapping

_NUM_LOG_LINES = 200
_MAX_LINE_BYTES = 64 * 1024


class ManagedProcess:
    """One child process.

    It leads a session of its own, so that everything it spawns can be ended with it. What it
    writes is forwarded to `logger` line by line, and the last lines are kept for error messages.
    """

    def __init__(self, process: asyncio.subprocess.Process, logger: logging.Logger) -> None:
        self._process = process
        self._logger = logger
        self.log_lines: deque[str] = deque(maxlen=_NUM_LOG_LINES)
        self._forwarder = asyncio.create_task(self._forward())

    @classmethod
    async def spawn(
        cls, command: list[str], *, logger: logging.Logger, env: Mapping[str, str] | None = None
    ) -> ManagedProcess:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=_MAX_LINE_BYTES,
            env={**os.environ, **(env or {})},
        )
        return cls(process, logger)

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
            if self._process.returncode is None:
                self._signal_group(signal.SIGTERM)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), grace_s)
        finally:  # a caller who does not wait leaves nothing behind either
            self._signal_group(signal.SIGKILL)
        await self._process.wait()
        self._forwarder.cancel()
        await asyncio.gather(self._forwarder, return_exceptions=True)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    async def _forward(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while True:
            try:
                line = await stream.readline()
            except ValueError:  # longer than the limit; asyncio has dropped it
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self.log_lines.append(text)
            level, _, rest = text.partition(" ")
            number = logging.getLevelNamesMapping().get(level)
            self._logger.log(
                logging.INFO if number is None else number, "%s", text if number is None else rest
            )
