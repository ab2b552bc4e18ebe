"""A small backend that really streams, and a small server that speaks the OpenAI API."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from axion.backends.base import ModelConfig
from axion.cli import session
from axion.errors import ContextLengthExceededError
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import ChatCompletionChunk
from axion.openai.completions import CompletionChunk, CompletionRequest
from axion.types import BackendHealth, BackendState


def chunk(
    text: str | None, *, finish_reason: str | None = None, chat: bool = True
) -> dict[str, Any]:
    """One chunk of an answer, as the API has it; the last one has the usage too."""
    choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": finish_reason}
    choice |= {"delta": {"content": text}} if chat else {"text": text or ""}
    return {
        "id": "1",
        "object": "chat.completion.chunk" if chat else "text_completion",
        "created": 1,
        "model": "m",
        "system_fingerprint": None,
        "choices": [choice],
    }


USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 0},
}


def wait_for_output(capfd: pytest.CaptureFixture[str], text: str) -> None:
    """Take what is printed until `text` has been."""
    deadline, out = time.monotonic() + 30, ""
    while text not in out:
        assert time.monotonic() < deadline
        time.sleep(0.005)  # the thread that prints needs the interpreter too
        out += capfd.readouterr().out


class WordsBackend:
    """Repeats the last message word by word.

    `on_chunk` is called on the event loop before each chunk but the first. With `hang`, nothing
    comes after the first until the request is cancelled.
    """

    def __init__(self) -> None:
        self.started_with: ModelConfig | None = None
        self.requests: list[ChatCompletionRequest | CompletionRequest] = []
        self.cancelled = threading.Event()
        self.stopped = False
        self.on_start: Callable[[], None] = lambda: None
        self.on_chunk: Callable[[], None] = lambda: None
        self.hang = False
        self.max_words = 100

    async def start(self, model: ModelConfig) -> None:
        self.started_with = model
        self.on_start()

    async def health(self) -> BackendHealth:
        return BackendHealth(state=BackendState.READY)

    async def chat(
        self, request: ChatCompletionRequest, request_id: str
    ) -> AsyncIterator[ChatCompletionChunk]:
        self.requests.append(request)
        async for body in self._words(str(request.messages[-1].content), chat=True):
            yield ChatCompletionChunk.model_validate(body)

    async def complete(
        self, request: CompletionRequest, request_id: str
    ) -> AsyncIterator[CompletionChunk]:
        self.requests.append(request)
        async for body in self._words(str(request.prompt), chat=False):
            yield CompletionChunk.model_validate(body)

    async def stop(self, drain_s: float) -> None:
        self.stopped = True

    async def _words(self, text: str, *, chat: bool) -> AsyncIterator[dict[str, Any]]:
        words = text.split()
        if len(words) > self.max_words:
            raise ContextLengthExceededError("The prompt is too long.", param="messages")
        try:
            for index, word in enumerate(words):
                if index:
                    self.on_chunk()
                    if self.hang:
                        await asyncio.Event().wait()
                await asyncio.sleep(0)
                yield chunk(f"{' ' * bool(index)}{word}", chat=chat)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        yield chunk(None, finish_reason="stop", chat=chat)
        yield chunk(None, chat=chat) | {"choices": [], "usage": USAGE}


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> WordsBackend:
    """Takes the place of the native engine."""
    backend = WordsBackend()
    monkeypatch.setattr(session, "create_backend", lambda show: backend)
    return backend


@pytest.fixture
def model(tmp_path: Path) -> str:
    """The folder of a model with a chat template."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "chat_template.jinja"):
        (folder / name).write_text("{}")
    return str(folder)


class Server(ThreadingHTTPServer):
    """Answers `POST /v1/chat/completions` by the chunks in `answers`, one list a request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[list[dict[str, Any]]] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.error: tuple[int, bytes] | None = None
        self.models = ["first", "second"]
        self.complete = True
        self.hangs = False
        self.client_left = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = cast(Server, self.server)
        self._send(200, json.dumps({"data": [{"id": name} for name in server.models]}).encode())

    def do_POST(self) -> None:
        server = cast(Server, self.server)
        server.keys.append(self.headers.get("Authorization"))
        server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        if server.error is not None:
            return self._send(*server.error)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for body in server.answers.pop(0):
            self.wfile.write(b": a comment\r\n\r\ndata: " + json.dumps(body).encode() + b"\n\n")
            self.wfile.flush()
        if server.hangs:
            # Nothing more is sent: an end of the stream here is the client's leaving.
            self.connection.recv(1)
            server.client_left.set()
        elif server.complete:
            self.wfile.write(b"data: [DONE]\n\n")
        return None

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
