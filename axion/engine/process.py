"""The engine process: `python -m axion.engine.process ADDRESS PARENT_PID`.

One thread: take the messages that have come, compute one step, send its outputs. The socket is
a ZeroMQ PAIR over a Unix socket in a folder that only this user can enter.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys

import zmq

from axion.engine.core import EngineCore
from axion.engine.messages import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineReady,
    LoadProgress,
    Shutdown,
    Start,
    StepOutputs,
    decode_to_engine,
    encode,
)
from axion.errors import ModelLoadError
from axion.types import EngineConfig

logger = logging.getLogger("axion.engine")

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent goes, even by `kill -9`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it went before the call
        sys.exit(1)


class EngineProcess:
    """Runs an `EngineCore` for the process at the other end of a socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def run(self) -> None:
        start = decode_to_engine(self._socket.recv())
        assert isinstance(start, Start)
        core = self._load(start.config)
        if core is not None:
            self._serve(core)

    def _load(self, config: EngineConfig) -> EngineCore | None:
        try:
            core = EngineCore(config, lambda done, total: self._send(LoadProgress(done, total)))
        except ModelLoadError as error:
            self._send(EngineFailed(error.message))
            return None
        self._send(EngineReady(core.info))
        self._send(StepOutputs([], core.stats))
        return core

    def _serve(self, core: EngineCore) -> None:
        while True:
            outputs = []
            timeout_ms = 0 if core.has_unfinished else None
            while self._socket.poll(timeout_ms):
                timeout_ms = 0
                match decode_to_engine(self._socket.recv()):
                    case AddRequest() as request:
                        if (refusal := core.add(request)) is not None:
                            outputs.append(refusal)
                    case AbortRequest(request_ids):
                        core.abort(request_ids)
                    case Shutdown():
                        return
            outputs += core.step()
            self._send(StepOutputs(outputs, core.stats))

    def _send(self, message: LoadProgress | EngineReady | EngineFailed | StepOutputs) -> None:
        self._socket.send(encode(message))


def main() -> None:
    address, parent_pid = sys.argv[1], int(sys.argv[2])
    die_with_parent(parent_pid)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(message)s")
    with zmq.Context() as context, context.socket(zmq.PAIR) as socket:
        socket.set_hwm(0)
        socket.connect(address)
        EngineProcess(socket).run()
        socket.setsockopt(zmq.LINGER, 2000)


if __name__ == "__main__":
    main()
