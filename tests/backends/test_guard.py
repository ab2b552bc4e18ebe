"""The guard leaves nothing of a server behind, however the two end. All processes are real."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from axion.backends import guard

# A server of another maker: children in its group, in a session of their own, deaf to SIGTERM,
# and one whose parent has gone. Each writes its id to a file of its name.
SERVER = """
import os, pathlib, signal, sys, tempfile, time
folder = pathlib.Path(sys.argv[1])

def begin(name):
    (folder / f"{name}.part").write_text(str(os.getpid()))
    (folder / f"{name}.part").rename(folder / name)

def fork(name, *, setsid=False, deaf=False, orphan=False):
    if os.fork():
        return
    if orphan and os.fork():
        os._exit(0)
    if setsid:
        os.setsid()
    if deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    begin(name)
    time.sleep(600)

fork("plain")
fork("session", setsid=True)
fork("deaf", setsid=True, deaf=True)
fork("orphan", setsid=True, orphan=True)
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
elif "graceful" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
begin("server")
(folder / "cwd").write_text(os.getcwd())
(folder / "temp_folder").write_text(tempfile.gettempdir())
begin("ready")
while True:
    time.sleep(600)
"""
NAMES = ("server", "plain", "session", "deaf", "orphan")


class Tree:
    """A guard with a server below it, and a parent between it and the test if wanted."""

    def __init__(self, folder: Path, *options: str, grace_s: float = 20) -> None:
        self.folder = folder
        script = folder / "server.py"
        script.write_text(SERVER)
        self.command = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid())]
        self.command += [str(grace_s), sys.executable, str(script), str(folder), *options]
        self.temp = folder / "temp"
        self.temp.mkdir()
        self.process: subprocess.Popen[bytes]

    def start(self, command: list[str] | None = None) -> None:
        self.process = subprocess.Popen(
            command or self.command,
            start_new_session=True,
            env=os.environ | {"TMPDIR": str(self.temp)},
        )

    async def ready(self) -> None:
        await until(lambda: all((self.folder / name).exists() for name in (*NAMES, "ready")))
        self.processes = {name: psutil.Process(self.pid(name)) for name in NAMES}

    def pid(self, name: str) -> int:
        return int((self.folder / name).read_text())

    def left(self) -> list[str]:
        return [name for name, process in self.processes.items() if process.is_running()]

    async def status(self) -> int:
        return await asyncio.to_thread(self.process.wait, 30)


async def until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Callable[..., Tree]]:
    trees: list[Tree] = []

    def make(*options: str, grace_s: float = 20) -> Tree:
        trees.append(Tree(tmp_path, *options, grace_s=grace_s))
        return trees[-1]

    yield make
    for made in trees:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()
        for name in NAMES:
            if (tmp_path / name).exists():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(made.pid(name), signal.SIGKILL)


async def test_sigterm_ends_all_and_gives_the_servers_status(tree):
    tree = tree("graceful")
    tree.start()
    await tree.ready()
    tree.process.terminate()
    assert await tree.status() == 5
    assert tree.left() == []
    assert not list(tree.temp.iterdir())


async def test_a_server_that_ignores_sigterm_is_killed(tree):
    tree = tree("deaf", grace_s=0.2)
    tree.start()
    await tree.ready()
    tree.process.terminate()
    assert await tree.status() == 128 + signal.SIGKILL
    assert tree.left() == []


async def test_sigquit_ends_the_wait(tree):
    tree = tree("deaf", grace_s=600)
    tree.start()
    await tree.ready()
    tree.process.terminate()
    tree.process.terminate()  # changes nothing
    tree.process.send_signal(signal.SIGQUIT)
    assert await tree.status() == 128 + signal.SIGKILL
    assert tree.left() == []


async def test_a_stopped_server_is_ended(tree):
    tree = tree(grace_s=0.2)
    tree.start()
    await tree.ready()
    for name in NAMES:
        os.kill(tree.pid(name), signal.SIGSTOP)
    tree.process.terminate()
    assert await tree.status() != 0
    assert tree.left() == []


async def test_a_killed_server_takes_its_children_along(tree):
    tree = tree()
    tree.start()
    await tree.ready()
    os.kill(tree.pid("server"), signal.SIGKILL)
    assert await tree.status() == 128 + signal.SIGKILL
    assert tree.left() == []
    assert not list(tree.temp.iterdir())


async def test_a_killed_grandchild_is_the_servers_affair(tree):
    tree = tree()
    tree.start()
    await tree.ready()
    os.kill(tree.pid("orphan"), signal.SIGKILL)
    await until(lambda: not psutil.pid_exists(tree.pid("orphan")))  # reaped
    assert tree.left() == ["server", "plain", "session", "deaf"]
    assert tree.process.poll() is None


async def test_a_killed_parent_takes_all_along(tree, tmp_path: Path):
    tree = tree()
    code = (
        "import os, subprocess, sys, time\n"
        "command = sys.argv[1:]\n"
        "command[4] = str(os.getpid())\n"
        "guard = subprocess.Popen(command, start_new_session=True)\n"
        "time.sleep(600)\n"
    )
    tree.start([sys.executable, "-c", code, *tree.command])
    await tree.ready()
    (guard_process,) = psutil.Process(tree.process.pid).children()
    tree.process.kill()
    await until(lambda: tree.left() == [] and not guard_process.is_running())
    assert not list(tree.temp.iterdir())


async def test_a_killed_guard_takes_the_server_along(tree):
    tree = tree()
    tree.start()
    await tree.ready()
    tree.process.kill()
    await until(lambda: "server" not in tree.left())
    os.killpg(tree.process.pid, signal.SIGKILL)  # as ManagedProcess does
    await until(lambda: "plain" not in tree.left())


async def test_the_server_works_in_a_fresh_folder(tree):
    tree = tree()
    tree.start()
    await tree.ready()
    folder = (tree.folder / "cwd").read_text()
    assert Path(folder).parent == tree.temp
    assert (tree.folder / "temp_folder").read_text() == folder


async def test_a_parent_that_has_gone_already_is_noticed(tree, tmp_path: Path):
    tree = tree()
    tree.command[4] = "1"
    tree.start()
    assert await tree.status() == 1
    assert not (tmp_path / "ready").exists()


def test_a_command_that_is_not_there_is_named(tmp_path: Path):
    command = [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), "1", "no-such-server"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 127
    assert "no-such-server cannot be run: No such file" in result.stderr


async def test_signals_reach_the_server_as_they_would_without_a_guard(tree):
    tree = tree()
    tree.start()
    await tree.ready()
    status = Path(f"/proc/{tree.pid('server')}/status").read_text()
    masks = dict(line.split(":\t") for line in status.splitlines() if line.startswith("Sig"))
    assert int(masks["SigBlk"], 16) == 0
