"""Engines of other makers: where they are, and what they say of themselves when asked."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

logger = logging.getLogger("axion.backends")

_MAX_ANSWER_BYTES = 4 * 2**20


class AskError(Exception):
    """A program could not be asked; the message says why, without a path."""


def find_command(variable: str, default: str) -> list[str] | None:
    """The command that starts an engine: what `variable` says, else `default`, if it is there.

    The first word is the path of a program that exists.
    """
    try:
        words = shlex.split(os.environ.get(variable) or default)
    except ValueError:
        return None
    path = shutil.which(words[0]) if words else None
    return None if path is None else [path, *words[1:]]


def interpreter(program: str) -> str | None:
    """The Python that runs a program: what its first line names, if it is one that exists."""
    try:
        with open(program, "rb") as file:
            line = file.readline(4096)
    except OSError:
        return None
    words = line[2:].decode(errors="replace").split() if line.startswith(b"#!") else []
    if words and Path(words[0]).name == "env":
        words = words[1:]
    path = shutil.which(words[0]) if words else None
    return path if path is not None and "python" in Path(path).name else None


def separation(program: str) -> dict[str, str]:
    """Variables to set for a program that another Python than this one runs, or none.

    Where this process finds its modules is no place for that Python to look.
    """
    python = os.path.abspath(interpreter(program) or program)
    if os.path.dirname(python) == os.path.dirname(os.path.abspath(sys.executable)):
        return {}
    # Python takes an empty one for none.
    return {name: "" for name in ("PYTHONPATH", "PYTHONHOME") if name in os.environ}


async def ask(
    command: Sequence[str],
    *,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    with_errors: bool = False,
) -> bytes:
    """What a program writes to its standard output, and behind that to the other one if asked for.

    Raises:
        AskError: it cannot be run, ends with another status than 0, or takes too long.
    """
    name = Path(command[0]).name
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **separation(command[0]), **(env or {})},
        )
    except OSError as error:
        raise AskError(f"{name} cannot be run: {error.strerror}.") from None
    try:
        async with asyncio.timeout(timeout_s):
            written, errors = await process.communicate()
    except TimeoutError:
        raise AskError(f"{name} did not answer within {timeout_s:g} s.") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if process.returncode:
        lines = errors.decode(errors="replace").strip().splitlines() or [""]
        logger.info("%s ended with status %d: %s", name, process.returncode, lines[-1])
        raise AskError(f"{name} ended with status {process.returncode} when it was asked.")
    if len(written) > _MAX_ANSWER_BYTES:
        raise AskError(f"{name} wrote more than {_MAX_ANSWER_BYTES} bytes.")
    return written + errors if with_errors else written


async def ask_once(
    engine: str,
    command: Sequence[str],
    *,
    of: str,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    with_errors: bool = False,
) -> bytes:
    """As `ask`, with the answer kept on disk for as long as the engine's program is the same.

    Args:
        of: the program whose place and time of change stand for the engine's version.
    """
    file = _cache_folder() / f"{engine}-{_identity(command, of)}"
    with contextlib.suppress(OSError):
        return file.read_bytes()
    answer = await ask(command, timeout_s=timeout_s, env=env, with_errors=with_errors)
    with contextlib.suppress(OSError):  # without a place to keep it, it is asked again
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = file.with_suffix(f".{os.getpid()}")
        part.write_bytes(answer)
        part.replace(file)
    return answer


def _identity(command: Sequence[str], program: str) -> str:
    path = os.path.realpath(program)
    digest = hashlib.blake2b(digest_size=16)
    with contextlib.suppress(OSError):
        # An upgrade in place leaves the program as it is and changes the packages beside it.
        places = [path, *map(str, Path(path).parent.parent.glob("lib/python*/site-packages"))]
        digest.update(repr([os.stat(place).st_mtime_ns for place in places]).encode())
    digest.update("\0".join([path, *command]).encode())
    return digest.hexdigest()


def _cache_folder() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "axion" / "engines"
