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
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from axion.backends.base import InferenceBackend
from axion.cli.loading import create_backend, model_config, progress
from axion.errors import EngineUnavailableError
from axion.hub.resolve import resolve
from axion.hub.snapshot import Snapshot, native_formats
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.completions import CompletionChunk, CompletionRequest
from axion.openai.parsing import parse_request
from axion.settings import load_settings, model_folders
from axion.text.chat_template import has_chat_template

Chunk = dict[str, Any]
Chunks = Generator[Chunk, None, None]
Endpoint = Literal["chat/completions", "completions"]
ResultT = TypeVar("ResultT")

_CANCEL_TIMEOUT_S = 10.0
_CONTROLS = dict.fromkeys(
    code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
)


def terminal_safe(text: str) -> str:
    """`text` without control characters: a model must not move the cursor or set the title."""
    return text.translate(_CONTROLS)


class Model(Protocol):
    """What the commands talk to."""

    name: str
    has_chat_template: bool

    def stream(self, endpoint: Endpoint, body: dict[str, Any]) -> Chunks:
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
        self.has_chat_template = has_chat_template(snapshot.path)
        self._loop = loop
        self._backend = backend

    def stream(self, endpoint: Endpoint, body: dict[str, Any]) -> Chunks:
        data = msgspec.json.encode(body)
        request_id = uuid.uuid4().hex
        chunks: Generator[ChatCompletionChunk | CompletionChunk, None, None]
        if endpoint == "completions":
            text = parse_request(CompletionRequest, data)
            chunks = self._loop.iterate(self._backend.complete(text, request_id))
        else:
            chat = parse_request(ChatCompletionRequest, data)
            chunks = self._loop.iterate(self._backend.chat(chat, request_id))
        with closing(chunks):
            for chunk in chunks:
                yield msgspec.json.decode(chunk.to_json())


@contextmanager
def local_model(name: str | None) -> Iterator[LocalModel]:
    """Load a model, with a progress display on stderr; it is stopped at the end, always.

    Args:
        name: as `axion.hub.resolve` takes it; None takes MODEL_NAME.

    Raises:
        AxionError: the model cannot be had or loaded, or a setting is wrong.
    """
    settings = load_settings()
    name = name or settings.model_name
    with LoopThread() as loop:
        with progress() as show:
            snapshot = loop.call(
                resolve(
                    name,
                    on_progress=partial(show, f"Downloading {name}"),
                    formats=native_formats(
                        allow_pickle=settings.allow_pickle,
                        trust_remote_code=settings.trust_remote_code,
                    ),
                    folders=model_folders(settings),
                )
            )
            config = msgspec.structs.replace(
                model_config(settings),
                model_name=str(snapshot.path),
                served_name=snapshot.name,
                max_num_seqs=1,
            )
            backend = create_backend(show)
            try:
                loop.call(backend.start(config))
            except BaseException:
                loop.call(backend.stop(0))
                raise
        try:
            yield LocalModel(loop, backend, snapshot)
        finally:
            loop.call(backend.stop(0))


class LoopThread:
    """An event loop in a thread, used as a context manager from another."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    def __enter__(self) -> LoopThread:
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._stop.wait()

    def call(self, coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
        """The coroutine's result; an interrupt while waiting cancels it and waits for its end."""
        future, ended = self._submit(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            ended.wait(_CANCEL_TIMEOUT_S)
            raise

    def iterate(self, items: AsyncIterator[ResultT]) -> Generator[ResultT, None, None]:
        """What an asynchronous iterator yields; closing this closes that."""
        received: queue.SimpleQueue[ResultT | None] = queue.SimpleQueue()

        async def pump() -> None:
            try:
                async for item in items:
                    received.put(item)
            finally:
                if isinstance(items, AsyncGenerator):
                    await items.aclose()
                received.put(None)

        future, ended = self._submit(pump())
        try:
            while (item := received.get()) is not None:
                yield item
            future.result()
        finally:
            future.cancel()
            ended.wait(_CANCEL_TIMEOUT_S)

    def _submit(
        self, coroutine: Coroutine[Any, Any, ResultT]
    ) -> tuple[Future[ResultT], threading.Event]:
        ended = threading.Event()

        async def run() -> ResultT:
            try:
                return await coroutine
            finally:
                ended.set()

        return asyncio.run_coroutine_threadsafe(run(), self._loop), ended
