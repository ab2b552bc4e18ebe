"""The API process's side of a process whose time, memory and output are limited."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import weakref
from collections.abc import Sequence
from typing import Any

from axion.errors import EngineUnavailableError
from axion.text import template_worker

MAX_MEMORY_BYTES = 512 * 2**20
MAX_OUTPUT_BYTES = 64 * 2**20


class StoppedError(Exception):
    """What was asked for went over a limit; the message says over which one."""


class BoundedProcess:
    """Answers one request at a time in a process of its own; safe from several threads.

    A request that goes over a limit costs the process its life; the next one starts another. It
    ends with this one, however that ends.

    Args:
        command: runs `template_worker.serve`; the limits are put behind it.
        does: what it does, for people.
        timeout_s: most time for one request, in seconds.
    """

    def __init__(self, command: Sequence[str], does: str, timeout_s: float) -> None:
        self._command = [*command, str(timeout_s), str(MAX_MEMORY_BYTES)]
        self._does = does
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def call(self, request: bytes) -> bytes:
        """What the process answers.

        Raises:
            StoppedError: it went over a limit, or ended.
            EngineUnavailableError: it does not start.
        """
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                template_worker.write_frame(process.stdin, request)
                return template_worker.read_frame(process.stdout, MAX_OUTPUT_BYTES)
            except (EOFError, BrokenPipeError):
                raise StoppedError(self._death(process)) from None
            except OverflowError:
                self._stop()
                raise StoppedError(f"its output is over {MAX_OUTPUT_BYTES // 2**20} MiB") from None
            except BaseException:  # a reply that nobody read would answer the next call
                self._stop()
                raise

    def close(self) -> None:
        """End the process; a later call would start it again."""
        with self._lock:
            self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        self._process = process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            start_new_session=True,  # Ctrl-C is for the server, which still has to drain
        )
        self._finalizer = weakref.finalize(self, _end, process)
        assert process.stdout is not None
        try:
            template_worker.read_frame(process.stdout)
        except EOFError:
            self._stop()
            raise EngineUnavailableError(
                f"The process that {self._does} does not start; the log says why."
            ) from None
        return process

    def _death(self, process: subprocess.Popen[bytes]) -> str:
        status = process.wait()
        self._stop()
        if status == -signal.SIGALRM:
            return f"it takes longer than {self._timeout_s:g} s"
        if status == template_worker.OUT_OF_MEMORY:
            return f"it takes more than {MAX_MEMORY_BYTES // 2**20} MiB of memory"
        return f"it ended the process that {self._does}"

    def _stop(self) -> None:
        if self._finalizer is not None:
            self._finalizer()
        self._process = self._finalizer = None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        with contextlib.suppress(BrokenPipeError):  # a request that was never read
            pipe.close()
