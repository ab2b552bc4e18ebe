"""A Python library behind just enough of the OpenAI API for `axion bench` to ask it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Usage(NamedTuple):
    prompt_tokens: int
    completion_tokens: int


Chat = Callable[[list[dict[str, str]], int], Iterator[str | Usage]]
"""(messages, max_tokens) -> the text of each token as it comes, then the usage; called from many
threads at once."""


def serve(chat: Chat, port: int) -> None:
    """Streams chat completions on loopback until the process ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            body = b'{"data": [{"id": "bench"}]}'
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            for part in chat(body["messages"], body["max_tokens"]):
                if isinstance(part, Usage):
                    self.send({"choices": [], "usage": part._asdict()})
                else:
                    self.send({"choices": [{"delta": {"content": part}}]})
            self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def send(self, chunk: dict[str, Any]) -> None:
            self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.serve_forever()
