"""A model to talk to from the command line, on this machine or behind a URL.

The commands are ordinary blocking programs: Ctrl-C is theirs. What is asynchronous runs on an
event loop in a thread of its own.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from axion.backends.base import InferenceBackend, ModelConfig
from axion.errors import EngineUnavailableError
from axion.hub.resolve import ProgressCallback, resolve
from axion.hub.snapshot import Snapshot
from axion.openai.chat import ChatCompletionRequest
from axion.openai.common import parse_request
from axion.openai.completions import CompletionRequest
from axion.settings import Settings, load_settings

Chunk = dict[str, Any]
Endpoint = Literal["chat/completions", "completions"]
Show = Callable[[str, int, int], None]
ResultT = TypeVar("ResultT")

_CANCEL_TIMEOUT_S = 10.0


class Model(Protocol):
    """What the commands talk to."""

    name: str
    has_chat_template: bool

    def stream(self, endpoint: Endpoint, body: dict[str, Any]) -> Iterator[Chunk]:
        """The chunks of an answer, as OpenAI's streaming API has them.

        Closing the iterator, or an interrupt in it, ends the request.

        Raises:
            AxionError: the request was refused, or the answer could not be finished.
        """
        ...


class Answer:
    """One answer, while it is streamed and after.

    Attributes:
        text: as far as it has come.
        first_token_s: seconds from the request to the first text; None before it.
        total_s: seconds from the request to the end.
    """

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.first_token_s: float | None = None
        self.total_s = 0.0

    def read(self, chunks: Iterator[Chunk], write: Callable[[str], None]) -> None:
        """Take in all chunks, and write each piece of text as it comes.

        Raises:
            EngineUnavailableError: the chunks ended before the answer did.
        """
        started = time.monotonic()
        for chunk in chunks:
            self.usage = chunk.get("usage") or self.usage
            for choice in chunk.get("choices", ()):
                piece = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                if piece:
                    if self.first_token_s is None:
                        self.first_token_s = time.monotonic() - started
                    self.text += piece
                    write(piece)
                self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self.total_s = time.monotonic() - started
        if self.finish_reason is None:
            raise EngineUnavailableError("The answer ended early.")


class LocalModel:
    """A model in a process of its own on this machine."""

    def __init__(self, loop: LoopThread, backend: InferenceBackend, snapshot: Snapshot) -> None:
        self.name = snapshot.name
        self.has_chat_template = has_chat_template(snapshot)
        self._loop = loop
        self._backend = backend

    def stream(self, endpoint: Endpoint, body: dict[str, Any]) -> Iterator[Chunk]:
        data = msgspec.json.encode(body)
        request_id = uuid.uuid4().hex
        if endpoint == "completions":
            completion = parse_request(CompletionRequest, data)
            chunks = self._loop.iterate(self._backend.complete(completion, request_id))
        else:
            chat = parse_request(ChatCompletionRequest, data)
            chunks = self._loop.iterate(self._backend.chat(chat, request_id))
        for chunk in chunks:
            yield msgspec.json.decode(chunk.to_json())


@contextmanager
def local_model(name: str) -> Iterator[LocalModel]:
    """Load a model, with a progress display on stderr; it is stopped at the end, always.

    Raises:
        AxionError: the model cannot be had or loaded, or a setting is wrong.
    """
    settings = load_settings()
    with LoopThread() as loop:
        running = _running(name or settings.model_name, settings)
        with _progress_display() as show:
            backend, snapshot = loop.call(running(show).__aenter__())


def create_backend(on_progress: ProgressCallback) -> InferenceBackend:
    """The native engine. Tests put their own in its place."""
    from axion.backends.native import NativeBackend
    from axion.backends.worker import spawn_engine

    return NativeBackend(partial(spawn_engine, on_progress=on_progress))
