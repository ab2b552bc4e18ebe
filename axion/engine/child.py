"""What every worker process begins and ends with: its parent, its log, its socket.

A worker is run as `python -m MODULE ADDRESS PARENT_PID`. The socket is a ZeroMQ PAIR over a Unix
socket in a folder that only this user can enter. The worker removes both as soon as it is
connected, so that nothing of them is left however the two processes end.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zmq

_PR_SET_PDEATHSIG = 1


@contextmanager
def connected_to_parent() -> Iterator[zmq.Socket[bytes]]:
    """The socket to the process that started this one, and that this one does not outlive."""
    address, parent_pid = sys.argv[1], int(sys.argv[2])
    try:
        _die_with_parent(parent_pid)
    except SystemExit:
        _remove(address)
        raise
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)
        socket.connect(address)
        socket.poll()  # the first message is there: so is the connection
        _remove(address)
        yield socket
        socket.setsockopt(zmq.LINGER, 2000)


def arrived(socket: zmq.Socket[bytes], *, wait: bool) -> Iterator[bytes]:
    """The messages that have come, of which there is one at least when it was waited for."""
    timeout_ms = None if wait else 0
    while socket.poll(timeout_ms):
        timeout_ms = 0
        yield socket.recv()


def freeze_heap() -> None:
    """Take what is there for good, mostly torch's modules, out of all later garbage collections:
    going through it would hold a step for a tenth of a second."""
    gc.collect()
    gc.freeze()


def _remove(address: str) -> None:
    path = Path(address.removeprefix("ipc://"))
    with contextlib.suppress(OSError):  # the parent may be doing the same
        path.unlink()
        path.parent.rmdir()


def _die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent goes, even by `kill -9`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it went before the call
        sys.exit(1)
