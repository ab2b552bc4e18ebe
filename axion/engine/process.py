"""The engine process: `python -m axion.engine.process ADDRESS PARENT_PID`.

One thread: take the messages that have come, compute one step, send its outputs.
"""

from __future__ import annotations

import logging

import zmq

from axion.engine.assembly import load_engine
from axion.engine.child import arrived, connected_to_parent, freeze_heap
from axion.engine.core import EngineCore
from axion.engine.messages import (
    AbortRequest,
    AddRequest,
    EngineFailed,
    EngineReady,
    LoadProgress,
    Ping,
    Shutdown,
    Start,
    StepOutputs,
    decode_to_engine,
    encode,
)
from axion.errors import ModelLoadError
from axion.types import EngineConfig

logger = logging.getLogger("axion.engine")


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
            core = load_engine(config, lambda done, total: self._send(LoadProgress(done, total)))
        except ModelLoadError as error:
            self._send(EngineFailed(error.message))
            return None
        except Exception as error:
            logger.exception("the model cannot be loaded")
            self._send(
                EngineFailed(
                    f"Loading the model failed with {type(error).__name__}, which nobody expected: "
                    "its files may be damaged, or it is a fault of Axion's. The log says more."
                )
            )
            return None
        freeze_heap()
        self._send(EngineReady(core.info))
        self._send(StepOutputs([], core.stats))
        return core

    def _serve(self, core: EngineCore) -> None:
        while True:
            outputs = []
            while not self._socket.poll(0) and core.use_idle_time():
                pass
            for message in arrived(self._socket, wait=not core.has_unfinished):
                match decode_to_engine(message):
                    case AddRequest() as request:
                        if (refusal := core.add(request)) is not None:
                            outputs.append(refusal)
                    case AbortRequest(request_ids):
                        core.abort(request_ids)
                    case Ping():
                        pass  # what is sent below answers it
                    case Shutdown():
                        return
            outputs += core.step()
            self._send(StepOutputs(outputs, core.stats))

    def _send(self, message: LoadProgress | EngineReady | EngineFailed | StepOutputs) -> None:
        self._socket.send(encode(message))


def main() -> None:
    with connected_to_parent() as socket:
        EngineProcess(socket).run()


if __name__ == "__main__":
    main()
