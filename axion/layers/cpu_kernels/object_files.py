"""Object files of kernels: from the cache of an earlier process, or else from one that compiles.

numba and what it needs take 130 MB and two thirds of a second, and LLVM ends the process when a
processor is strange to it. So a process of its own compiles (`compiler`), as long as some kernel is
missing, and a process with a model only links.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
import tempfile
import threading
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import llvmlite.binding as llvm

logger = logging.getLogger("axion.engine")

ENTRY = "kernel"
"""The name of a kernel's function in its object file."""
_DIGEST_SIZE = 32


class Wanted(NamedTuple):
    """A kernel that `parallel` was asked for.

    Attributes:
        name: `module:function` of what makes it; modules may be relative to this package.
        given: what that is given.
        integers, floats: how many numbers the kernel takes.
    """

    name: str
    given: tuple[int | str, ...]
    integers: int
    floats: int


def get(wanted: Wanted) -> bytes:
    """The kernel's object file.

    Raises:
        RuntimeError: it could not be compiled; says why.
        OSError: no process could be started for that.
    """
    file = None if (folder := _folder()) is None else folder / _file_name(wanted)
    with compiler.lock:  # so that another thread reads what this one compiles
        if file is not None and (kept := _read(file)) is not None:
            return kept
        compiled = compiler.compile(wanted)
        if file is not None:
            try:
                _write(file, compiled)
            except OSError as error:
                _warn(file.parent, error.strerror)
        return compiled


def _file_name(wanted: Wanted) -> str:
    return f"{hashlib.sha256(json.dumps(wanted).encode()).hexdigest()[:16]}.o"


def _read(file: Path) -> bytes | None:
    """What `_write` has written there; None: nothing is there, or nothing that may be run."""
    with contextlib.suppress(OSError), file.open("rb") as opened:
        about = os.fstat(opened.fileno())
        if about.st_uid not in (0, os.geteuid()) or about.st_mode & stat.S_IWOTH:
            logger.warning("a kernel is compiled anew: others may have written %s", file)
            return None
        # LLVM would end the process over a file that a full disk or a power failure has cut.
        digest, content = opened.read(_DIGEST_SIZE), opened.read()
        if digest == _digest(content):
            return content
    return None


def _write(file: Path, content: bytes) -> None:
    """Whole at once: other processes may read and write the same file."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as temporary:
        try:
            temporary.write(_digest(content) + content)
            temporary.flush()
            os.replace(temporary.name, file)
        except OSError:
            os.unlink(temporary.name)
            raise


@cache
def _warn(folder: Path, reason: str | None) -> None:
    """Once, however many kernels there are."""
    logger.warning(
        "kernels cannot be kept in %s (%s), so every start compiles them; XDG_CACHE_HOME names "
        "another place",
        folder.parent,
        reason,
    )


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


@cache
def _folder() -> Path | None:
    """Where this state of this package on this processor keeps what it has compiled."""
    state = hashlib.sha256()
    for source in sorted(Path(__file__).parent.rglob("*.py")):
        state.update(source.read_bytes())
    about = (
        *(version(name) for name in ("numba", "llvmlite")),
        *(llvm.get_default_triple(), llvm.get_host_cpu_name()),
        llvm.get_host_cpu_features().flatten(),
    )
    state.update(json.dumps(about).encode())
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:  # nobody knows a home
        return None
    return root / "axion" / "kernels" / state.hexdigest()[:16]


class _Compiler:
    """The process that compiles, while there is one.

    Attributes:
        lock: held while it is asked and ended. Several models may be loaded at once, by threads of
            a program that has them in its own process.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._process: subprocess.Popen[str] | None = None

    def compile(self, wanted: Wanted) -> bytes:
        if self._process is not None and self._process.poll() is not None:
            self.end()
        if self._process is None:
            logger.info("compiling kernels for this processor")
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            print(json.dumps(wanted), file=process.stdin, flush=True)
            answer = process.stdout.readline()
        except BaseException:  # else the next kernel would be given the answer for this one
            process.kill()
            self.end()
            raise
        if not answer:
            self.end()
            raise RuntimeError(f"the compiler ended with status {process.returncode}")
        result = json.loads(answer)
        if "error" in result:
            raise RuntimeError(result["error"])
        return base64.b64decode(result["object"])

    def end(self) -> None:
        """Its memory is wanted for other things."""
        with self.lock:
            if self._process is not None:
                self._process.communicate()  # closes its input, at which it ends
                self._process = None

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "axion.layers.cpu_kernels.compiler"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(sys.path),
                "OMP_NUM_THREADS": "1",
                "NUMBA_OPT": "0",  # all of it is optimised afterwards, at once
            },
        )


compiler = _Compiler()
atexit.register(compiler.end)
