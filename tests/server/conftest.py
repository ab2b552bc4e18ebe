"""A server on a real socket in a thread, and a backend that does what a test tells it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest
import uvloop

from axion.backends.base import ModelConfig, PreparedChat, Tokenization
from axion.backends.capabilities import Capabilities
from axion.errors import AxionError, CannotContinueError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk, ChatFinishReason, ChunkChoice, Delta
from axion.openai.common import PromptTokensDetails, Usage
from axion.openai.completions import CompletionChunk, CompletionChunkChoice, CompletionRequest
from axion.openai.delivered import Delivered
from axion.router.registry import ModelRegistry
from axion.server.app import create_app
from axion.server.listener import bind
from axion.server.runner import Server
from axion.settings import Settings
from axion.types import BackendHealth, BackendState, EngineStats

MODEL = "test/model"


class ScriptedBackend:
    """Answers `num_tokens` times "tok "; waits and fails where it is told to.

    Attributes:
        continues: it goes on with answers that another one began.
        pause: awaited before each token.
        fail_at: `(n, error)`: raise it in place of the n-th token; 0 is before the first chunk.
        running: requests that have begun and not ended.
    """

    def __init__(self, engine: str = "native", capabilities: Capabilities | None = None) -> None:
        self.engine = engine
        self.capabilities = capabilities or Capabilities(engine=engine, honours_all=True)
        self.has_own_queue = True
        self.continues = True
        self.num_tokens = 3
        self.pause: Callable[[], Any] | None = None
        self.fail_at: tuple[int, Exception] | None = None
        self.start_error: AxionError | None = None
        self.loaded = asyncio.Event()
        self.loaded.set()
        self.state = BackendState.READY
        self.returns_soon = False
        self.running = 0
        self.seen: list[Any] = []
        self.stopped_with: float | None = None

    async def start(self, model: ModelConfig) -> None:
        await self.loaded.wait()
        if self.start_error is not None:
            raise self.start_error

    async def health(self) -> BackendHealth:
        stats = EngineStats(num_running=self.running, num_generated_tokens=7, num_blocks=99)
        return BackendHealth(
            state=self.state, stats=stats, restarts=2, returns_soon=self.returns_soon
        )

    async def stop(self, drain_s: float) -> None:
        self.stopped_with = drain_s

    async def tokenize(
        self,
        prompt: Any,
        *,
        add_special_tokens: bool | None = None,
        with_strings: bool = False,
    ) -> Tokenization:
        """One token a character of a text; two for a conversation."""
        self.seen.append(prompt)
        token_ids = [ord(char) for char in prompt] if isinstance(prompt, str) else [1, 2]
        return Tokenization(
            token_ids=token_ids,
            token_strings=[chr(token_id) for token_id in token_ids] if with_strings else [],
            max_model_len=99,
        )

    async def detokenize(self, token_ids: list[int]) -> str:
        return "".join(map(chr, token_ids))

    async def _tokens(self, request: Any, delivered: Delivered | None) -> AsyncIterator[str | None]:
        """None to open the answer, then its tokens; those that follow where one was begun."""
        first = 0
        if delivered is not None:
            if not self.continues:
                raise CannotContinueError("Not this one.")
            first = 1 + delivered.choices[0].content.count("tok ")
        self.running += 1
        self.seen.append(request)
        try:
            for index in range(first, self.num_tokens + 1):
                if self.fail_at is not None and self.fail_at[0] == index:
                    raise self.fail_at[1]
                if index and self.pause is not None:
                    await self.pause()
                yield "tok " if index else None
        finally:
            self.running -= 1

    async def prepare_chat(self, request: ChatCompletionRequest) -> PreparedChat:
        return PreparedChat(
            cache_key=request.model_dump_json(exclude={"user"}).encode(),
            is_deterministic=request.temperature == 0,
            run=partial(self.chat, request),
        )

    async def chat(
        self,
        request: ChatCompletionRequest,
        request_id: str,
        *,
        delivered: Delivered | None = None,
    ) -> AsyncIterator[ChatCompletionChunk]:
        async with contextlib.aclosing(self._tokens(request, delivered)) as tokens:
            async for token in tokens:
                role = Delta(role="assistant", content="")
                yield _chat_chunk(role if token is None else Delta(content=token))
        yield _chat_chunk(Delta(), "stop")
        if request.include_usage:
            last = _chat_chunk(Delta())
            yield last.model_copy(update={"choices": [], "usage": _usage(self.num_tokens)})

    async def complete(
        self,
        request: CompletionRequest,
        request_id: str,
        *,
        delivered: Delivered | None = None,
    ) -> AsyncIterator[CompletionChunk]:
        async with contextlib.aclosing(self._tokens(request, delivered)) as tokens:
            async for token in tokens:
                if token is not None:
                    yield _text_chunk(token, None)
        yield _text_chunk("", "stop")
        if request.include_usage:
            last = _text_chunk("", None)
            yield last.model_copy(update={"choices": [], "usage": _usage(self.num_tokens)})


def _chat_chunk(delta: Delta, finish: ChatFinishReason | None = None) -> ChatCompletionChunk:
    choice = ChunkChoice(index=0, delta=delta, logprobs=None, finish_reason=finish)
    return ChatCompletionChunk(
        id="chatcmpl-1",
        object="chat.completion.chunk",
        created=1,
        model=MODEL,
        system_fingerprint=None,
        choices=[choice],
    )


def _text_chunk(text: str, finish: Any) -> CompletionChunk:
    choice = CompletionChunkChoice(index=0, text=text, logprobs=None, finish_reason=finish)
    return CompletionChunk(
        id="cmpl-1",
        object="text_completion",
        created=1,
        model=MODEL,
        system_fingerprint=None,
        choices=[choice],
    )


def _usage(num_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=2,
        completion_tokens=num_tokens,
        total_tokens=2 + num_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
    )


class LiveServer:
    """An app on a free port, run by an event loop in a thread."""

    def __init__(self, settings: Settings, registry: ModelRegistry, **server: Any) -> None:
        self.app = create_app(settings, registry)
        self.state = self.app.state.server
        self.registry = registry
        self._listener = bind("127.0.0.1", 0)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = server
        self.loop: asyncio.AbstractEventLoop
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.server = Server(self.app, **self._server)
        await self.registry.start()
        self._ready.set()
        await self.server.serve(sockets=[self._listener])
        await self.state.stop(0)

    def call(self, function: Callable[[], Any]) -> Any:
        """Run `function` on the server's own loop and return its result."""

        async def run() -> Any:
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(10)

    def wait_for(self, condition: Callable[[], bool], timeout: float = 10) -> None:
        """Return once `condition` holds on the server's loop."""

        async def wait() -> None:
            async with asyncio.timeout(timeout):
                while not condition():
                    await asyncio.sleep(0.002)

        asyncio.run_coroutine_threadsafe(wait(), self.loop).result(timeout + 5)

    def connect(self, timeout: float = 10) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def __enter__(self) -> LiveServer:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.server.should_exit = True
        self._thread.join(15)
        assert not self._thread.is_alive()


@pytest.fixture
def settings() -> Settings:
    return Settings(model_name=MODEL, max_connections=8, max_request_bytes=1024 * 1024)


@pytest.fixture
def backend() -> ScriptedBackend:
    return ScriptedBackend()


@pytest.fixture
def registry(backend: ScriptedBackend) -> ModelRegistry:
    registry = ModelRegistry()
    registry.add(ModelConfig(model_name=MODEL), backend)
    return registry


@pytest.fixture
def server(settings: Settings, registry: ModelRegistry) -> Iterator[LiveServer]:
    with LiveServer(settings, registry) as live:
        yield live


def read_all(connection: socket.socket) -> bytes:
    """Everything until the other side closes, or resets."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)
