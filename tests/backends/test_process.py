"""A managed child process: its log is kept, and it ends with all that it started."""

from __future__ import annotations

import asyncio
import logging
import sys

import psutil
import pytest

from axion.backends.process import ManagedProcess

logger = logging.getLogger("axion.test")


async def spawn(code: str) -> ManagedProcess:
    return await ManagedProcess.spawn([sys.executable, "-u", "-c", code], logger=logger)


async def test_the_log_is_forwarded_and_its_end_kept(caplog: pytest.LogCaptureFixture):
    code = "print('WARNING one'); print('two'); [print(i) for i in range(300)]"
    with caplog.at_level(logging.DEBUG, "axion.test"):
        process = await spawn(code)
        assert await process.wait() == 0
    await process.stop()
    assert caplog.records[0].levelno == logging.WARNING
    assert caplog.records[0].getMessage() == "one"
    assert caplog.records[1].getMessage() == "two"
    assert len(process.log_lines) == 200
    assert process.log_lines[-1] == "299"


async def test_a_line_without_end_does_not_stop_the_log():
    process = await spawn("print('x' * 300_000); print('after')")
    await process.wait()
    await process.stop()
    assert process.log_lines[-1] == "after"


async def test_stop_ends_grandchildren_too():
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = await spawn(code)
    async with asyncio.timeout(10):
        while not process.log_lines:
            await asyncio.sleep(0.01)
    grandchild = int(process.log_lines[0])
    await process.stop()
    async with asyncio.timeout(5):
        while psutil.pid_exists(grandchild) and (
            psutil.Process(grandchild).status() != psutil.STATUS_ZOMBIE
        ):
            await asyncio.sleep(0.01)
    assert not psutil.pid_exists(process.pid)


async def test_a_child_that_ignores_sigterm_is_killed():
    code = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    process = await spawn(code)
    async with asyncio.timeout(10):
        while not process.log_lines:
            await asyncio.sleep(0.01)
    await process.stop(grace_s=0.2)
    assert await process.wait() == -9
