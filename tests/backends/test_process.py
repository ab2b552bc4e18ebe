"""A managed child process: its log is kept, and it ends with all that it started."""

from __future__ import annotations

import asyncio
import logging
import sys

import psutil
import pytest

from axion.backends.process import GuardedProcess, ManagedProcess

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


async def test_values_of_secrets_are_not_logged(caplog: pytest.LogCaptureFixture):
    code = "import os; print(f\"key={os.environ['THE_API_KEY']} mode={os.environ['THE_MODE']}\")"
    env = {"THE_API_KEY": "sk-1234567890", "THE_MODE": "verbose-mode"}
    with caplog.at_level(logging.DEBUG, "axion.test"):
        process = await ManagedProcess.spawn([sys.executable, "-c", code], logger=logger, env=env)
        await process.wait()
    await process.stop()
    assert list(process.log_lines) == ["key=*** mode=verbose-mode"]
    assert "1234567890" not in caplog.text


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("(EngineCore pid=7) ERROR 11-21 06:00:00 [core.py:1] broken", logging.ERROR),
        ("06:00:00.000 WARNING: slow", logging.WARNING),
        ("INFO:     Started server process", logging.INFO),
        ("something without a level", logging.INFO),
    ],
)
async def test_a_foreign_line_has_its_own_level(
    line: str, level: int, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.DEBUG, "axion.test"):
        process = await spawn(f"print({line!r})")
        await process.wait()
    await process.stop()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(level, line)]


async def test_a_progress_bar_is_a_sign_of_life_and_one_line():
    code = (
        "import sys, time\n"
        "time.sleep(0.05)\n"
        "sys.stdout.write('\\r 10%'); sys.stdout.flush(); time.sleep(0.05)\n"
        "print('\\r 20%\\r100%')\n"
        "time.sleep(600)\n"
    )
    process = await spawn(code)
    try:
        spawned_at = process.last_line_at
        async with asyncio.timeout(10):
            while process.last_line_at == spawned_at:
                await asyncio.sleep(0.01)
            while not process.log_lines:
                await asyncio.sleep(0.01)
        assert list(process.log_lines) == ["100%"]
    finally:
        await process.stop()


async def test_noise_is_neither_logged_nor_a_sign_of_life():
    code = "print('GET /health 200'); print('GET /healthy')"
    process = await ManagedProcess.spawn(
        [sys.executable, "-c", code], logger=logger, noise="GET /health "
    )
    await process.wait()
    await process.stop()
    assert list(process.log_lines) == ["GET /healthy"]


@pytest.mark.parametrize("grace_s", [0.2, 0])
async def test_stop_ends_what_has_left_the_group(grace_s: float):
    code = (
        "import signal, subprocess, sys, time\n"
        "code = 'import time; time.sleep(600)'\n"
        "child = subprocess.Popen([sys.executable, '-c', code], start_new_session=True)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    process = await GuardedProcess.spawn([sys.executable, "-c", code], logger=logger, grace_s=600)
    async with asyncio.timeout(10):
        while not process.log_lines:
            await asyncio.sleep(0.01)
    async with asyncio.timeout(10):
        await process.stop(grace_s)
    assert not psutil.pid_exists(int(process.log_lines[0]))
    assert not psutil.pid_exists(process.pid)


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
