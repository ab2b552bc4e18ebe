"""A pooling process: `python -m axion.pooling.process ADDRESS PARENT_PID`.

One thread: take the messages that have come, compute one batch, send what it completes. So a
batch never waits while the process is idle, and requests gather while it is busy.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import loguru
import zmq

from axion.engine.child import arrived, connected_to_parent, freeze_heap
from axion.engine.messages import AbortRequest, Ping, Shutdown
from axion.errors import AxionError, ModelNotFoundError
from axion.pooling.batcher import Batcher
from axion.pooling.core import PoolingCore
from axion.pooling.messages import (
    EmbedRequest,
    FromPooling,
    Load,
    LoadFailed,
    Output,
    PoolingReady,
    RerankRequest,
    StepOutputs,
    decode_to_pooling,
    encode,
)
from axion.pooling.model import PoolingModel
from axion.types import PoolingConfig, PoolingInfo, PoolingKind

logger = logging.getLogger("axion.pooling")


class PoolingProcess:
    """Serves one model to the process at the other end of a socket."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket

    def run(self) -> None:
        first = decode_to_pooling(self._socket.recv())
        assert isinstance(first, Load)
        core = self._load(first.config)
        if core is not None:
            self._serve(core)

    def _load(self, config: PoolingConfig) -> PoolingCore | None:
        try:
            model = _load_model(config)
        except Exception as error:
            self._send(_load_failed(config, error))
            return None
        freeze_heap()
        self._send(PoolingReady(PoolingInfo(dim=model.dim, max_length=model.max_length)))
        batcher = Batcher(config.max_batch_size, config.max_batch_tokens, config.max_wait_s)
        return PoolingCore(model, batcher, time.monotonic)

    def _serve(self, core: PoolingCore) -> None:
        while True:
            outputs: list[Output] = []
            for message in arrived(self._socket, wait=not core.has_waiting):
                match decode_to_pooling(message):
                    case EmbedRequest() | RerankRequest() as request:
                        if (answer := core.add(request)) is not None:
                            outputs.append(answer)
                    case AbortRequest(request_ids):
                        core.abort(request_ids)
                    case Ping():
                        pass  # what is sent below answers it
                    case Shutdown():
                        return
            outputs += core.step()
            self._send(StepOutputs(outputs, core.stats))

    def _send(self, message: FromPooling) -> None:
        self._socket.send(encode(message))


def _load_model(config: PoolingConfig) -> PoolingModel:
    # What serves the model is imported alone: fastembed and torch take a second and much memory.
    if config.kind is PoolingKind.RERANK:
        from axion.pooling.reranker import Reranker

        return Reranker(config)
    if config.is_folder:
        is_native = _is_native(Path(config.model).expanduser())
    else:
        from axion.pooling.embedder import is_listed

        is_native = not is_listed(config.model)
    if is_native:
        from axion.pooling.native import NativeEmbedder

        return NativeEmbedder(config)
    from axion.pooling.embedder import Embedder

    return Embedder(config)


def _is_native(folder: Path) -> bool:
    """Whether the folder has a model for the native engine and none for fastembed."""
    has_onnx = any(folder.glob("*.onnx")) or (folder / "onnx" / "model.onnx").is_file()
    return not has_onnx and any(folder.glob("*.safetensors"))


def _load_failed(config: PoolingConfig, error: Exception) -> LoadFailed:
    """What a client may know of it; a folder's path is not among that, and the log has it all."""
    refused = f"The model {config.name} cannot be loaded"
    if isinstance(error, AxionError):
        logger.error("%s cannot be loaded. %s", config.name, error.message)
    else:
        logger.error("%s cannot be loaded", config.name, exc_info=error)
    if config.is_folder or not isinstance(error, AxionError):
        return LoadFailed(f"{refused}; the server's log says why.", False)
    return LoadFailed(
        f"{refused}. {error.message} Folders are named in EMBEDDING_MODEL and RERANK_MODEL.",
        isinstance(error, ModelNotFoundError),
    )


def main() -> None:
    # fastembed's log, in the form that the parent expects, and without the values of variables.
    loguru.logger.configure(
        handlers=[{"sink": sys.stderr, "format": "{level} {message}", "diagnose": False}]
    )
    with connected_to_parent() as socket:
        PoolingProcess(socket).run()


if __name__ == "__main__":
    main()
