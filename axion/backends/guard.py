"""The guard of a spawned server: `python -I -S guard.py PARENT_PID GRACE_S COMMAND...`.

A server of another maker starts processes of its own, and leaves them behind when it is killed:
they then hold the GPU. The guard stands between Axion and the server, as the leader of their
process group. It is a subreaper: whoever loses their parent below it, in whatever session, becomes
its child. So it ends when, and only when, there is nothing left to end.

It ends all when the server ends, when Axion does (the kernel then sends it SIGTERM), and on
SIGTERM: the server first, with `GRACE_S` seconds to do so by itself, then what it left. SIGQUIT
kills all of it at once. The exit status is the server's, 128 + N where signal N ended it.

The server works in a fresh folder, which is its place for temporary files too and is removed at the
end: what lies in Axion's own working folder, such as a `.env`, is not meant for it, and a server
that is killed leaves its sockets.

Of a guard that is killed itself the kernel takes the server along, and Axion the process group;
what has left that group stays. The file is run as a script and imports nothing of Axion's: it
starts in some 30 ms and holds some 10 MB. It needs Linux.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_TERM = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
_AWAITED = _TERM | {signal.SIGQUIT, signal.SIGCHLD}
# What a server leaves behind has lost who it works for: it needs no time to finish anything.
_ORPHAN_GRACE_S = 1.0
# A process that a driver holds in the kernel cannot be waited for without end.
_MAX_KILL_S = 10.0
_KILL_INTERVAL_S = 0.02


class Guard:
    """One server and all that descends from it."""

    def __init__(self, command: list[str], folder: str) -> None:
        self._status: int | None = None
        self._has_children = True
        self._pid = _spawn(command, folder)

    def run(self, grace_s: float) -> int:
        """Returns the server's exit status when nothing of it is left."""
        patient = self._wait_for_server(grace_s)
        if patient:
            self._end_others()
        deadline = time.monotonic() + _MAX_KILL_S
        while self._has_children and time.monotonic() < deadline:
            _signal(_descendants(), signal.SIGKILL)
            signal.sigtimedwait({signal.SIGCHLD}, _KILL_INTERVAL_S)
            self._reap()
        return self._status if self._status is not None else 128 + signal.SIGKILL

    def _wait_for_server(self, grace_s: float) -> bool:
        """Whether it ended in time."""
        deadline = None
        while self._status is None:
            left_s = 3600.0 if deadline is None else max(0.0, deadline - time.monotonic())
            received = signal.sigtimedwait(_AWAITED, left_s)
            if received is None:
                if deadline is not None:
                    return False
            elif received.si_signo == signal.SIGCHLD:
                self._reap()
            elif received.si_signo == signal.SIGQUIT:
                return False
            elif deadline is None:
                _signal([self._pid], signal.SIGTERM)
                deadline = time.monotonic() + grace_s
        return True

    def _end_others(self) -> None:
        _signal(_descendants(), signal.SIGTERM)
        deadline = time.monotonic() + _ORPHAN_GRACE_S
        while self._has_children and (left_s := deadline - time.monotonic()) > 0:
            received = signal.sigtimedwait(_AWAITED, left_s)
            if received is not None and received.si_signo == signal.SIGQUIT:
                return
            self._reap()

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._has_children = False
                return
            if pid == 0:
                return
            if pid == self._pid:
                code = os.waitstatus_to_exitcode(status)
                self._status = code if code >= 0 else 128 - code


def _spawn(command: list[str], folder: str) -> int:
    guard_pid = os.getpid()
    pid = os.fork()
    if pid != 0:
        return pid
    try:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard_pid:  # it went before the call
            os._exit(1)
        # What Python ignores and this process blocks would be inherited.
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.chdir(folder)
        os.environ["TMPDIR"] = folder
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"ERROR {command[0]} cannot be run: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def _descendants() -> list[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                # The name, in parentheses, may hold anything; the state and the parent follow.
                parent = int(file.read().rpartition(b")")[2].split()[1])
        except OSError:  # it has ended
            continue
        children.setdefault(parent, []).append(int(name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def main() -> int:
    parent_pid, grace_s, command = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent_pid:  # it went before the call
        return 1
    folder = tempfile.mkdtemp(prefix="axion-")
    try:
        return Guard(command, folder).run(grace_s)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
