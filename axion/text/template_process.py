"""The API process's side of the process that renders chat templates."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from typing import Any

from axion.errors import AxionError, EngineUnavailableError, InvalidRequestError, ModelLoadError
from axion.text import template_worker

DEFAULT_TIMEOUT_S = 2.0
MAX_MEMORY_BYTES = 512 * 2**20
MAX_OUTPUT_BYTES = 64 * 2**20
_MAX_MESSAGE_CHARS = 1000


class TemplateProcess:
    """Renders templates in a process of its own, one at a time; safe from several threads.

    A template that takes too long, or too much memory, costs the process its life; the next
    call starts another. It ends with this one, however that ends.

    Args:
        timeout_s: most time for one template, in seconds.
    """

    def __init__(self, timeout_s: float = DEFAULT_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None

    def describe(self, template: str) -> dict[str, Any]:
        """What a template reads: what `template_worker.describe` says.

        Raises:
            ModelLoadError: it has a syntax error, or cannot be compiled within the limits.
        """
        try:
            result: dict[str, Any] = self._call(template, None)
        except (InvalidRequestError, EngineUnavailableError) as error:
            raise ModelLoadError(error.message) from None
        return result

    def render(self, template: str, arguments: dict[str, Any]) -> str:
        """The text that a template makes of its arguments, which are JSON.

        Raises:
            InvalidRequestError: the template raised an error, did what the sandbox forbids, or
                went over a limit.
        """
        result: str = self._call(template, arguments)
        return result

    def close(self) -> None:
        """End the process; a later call would start it again."""
        with self._lock:
            self._stop()

    def _call(self, template: str, arguments: dict[str, Any] | None) -> Any:
        try:
            request = json.dumps({"template": template, "arguments": arguments}).encode()
        except (ValueError, RecursionError):
            raise _failed("it is nested too deeply, or holds a number that is too long") from None
        with self._lock:
            process = self._running()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                template_worker.write_frame(process.stdin, request)
                reply = json.loads(template_worker.read_frame(process.stdout, MAX_OUTPUT_BYTES))
            except (EOFError, BrokenPipeError):
                raise self._death(process) from None
            except OverflowError:
                self._stop()
                raise _stopped(f"its output is over {MAX_OUTPUT_BYTES // 2**20} MiB") from None
            except BaseException:  # a reply that nobody read would answer the next call
                self._stop()
                raise
        if "error" in reply:
            raise _ERRORS[reply["error"]](reply["message"][:_MAX_MESSAGE_CHARS])
        return reply["result"]

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._stop()
        # -P: no module is taken from the script's folder or the working folder.
        self._process = process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                template_worker.__file__,
                str(self._timeout_s),
                str(MAX_MEMORY_BYTES),
            ],
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
                "The process that renders chat templates does not start; the log says why."
            ) from None
        return process

    def _death(self, process: subprocess.Popen[bytes]) -> AxionError:
        status = process.wait()
        self._stop()
        if status == -signal.SIGALRM:
            return _stopped(f"it takes longer than {self._timeout_s:g} s")
        if status == template_worker.OUT_OF_MEMORY:
            return _stopped(f"it takes more than {MAX_MEMORY_BYTES // 2**20} MiB of memory")
        return _stopped("it ended the process that renders it")

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


def _stopped(reason: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"The model's chat template was stopped: {reason}.", param="messages"
    )


def _failed(message: str) -> AxionError:
    return InvalidRequestError(
        f"The model's chat template does not take this conversation: {message}", param="messages"
    )


def _refused(message: str) -> AxionError:
    return InvalidRequestError(
        f"The model's chat template was refused, it does what the sandbox forbids: {message}",
        param="messages",
    )


def _syntax(message: str) -> AxionError:
    return ModelLoadError(f"The model's chat template has a syntax error in {message}")


_ERRORS = {"failed": _failed, "refused": _refused, "syntax": _syntax}
