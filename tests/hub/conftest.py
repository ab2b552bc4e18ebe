"""A Hugging Face Hub on loopback, with the endpoints that huggingface_hub calls."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "a" * 40


@dataclass
class Repo:
    files: dict[str, bytes]
    gated: bool = False
    sizes: dict[str, int] = field(default_factory=dict)


class Hub(ThreadingHTTPServer):
    """Serves `repos`; notes each request in `requests` as `METHOD path`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []
        self.tokens_with_access: set[str] = set()
        self.valid_tokens: set[str] = set()
        self.fail_with: int | None = None
        self.block_downloads: threading.Event | None = None
        # By file: at which bytes its next downloads break off, and whether by a reset.
        self.cuts: dict[str, list[int]] = {}
        self.resets = False
        self.ranges: list[str] = []
        self.download_began = threading.Event()
        self.commits = [COMMIT]  # main is the last
        # What is pushed to main as soon as somebody has asked what main is.
        self.pushed: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def downloads(self) -> list[str]:
        return [r.rsplit("/", 1)[1] for r in self.requests if r.startswith("GET /") and "/res" in r]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub = cast(Hub, self.server)
        path = unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        if hub.fail_with is not None:
            return self._error(hub.fail_with)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in hub.valid_tokens:
            return self._error(401, message="Invalid credentials in Authorization header")
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            parts = parts[2:]
        repo = hub.repos.get("/".join(parts[:2]))
        if repo is None:
            return self._error(404 if token else 401, code="RepoNotFound")
        verb, revision, file = parts[2], parts[3], "/".join(parts[4:])
        if revision not in ("main", *hub.commits):
            return self._error(404, code="RevisionNotFound")
        commit = hub.commits[-1] if revision == "main" else revision
        match verb:
            case "revision":
                self._json(self._info(parts, repo, commit))
                hub.commits += hub.pushed
                hub.pushed.clear()
            case "tree":
                self._json(self._tree(repo))
            case "resolve":
                if repo.gated and token not in hub.tokens_with_access:
                    return self._error(403 if token else 401, code="GatedRepo")
                self._file(file, repo.files[file], commit, with_body=with_body)
        return None

    def _info(self, parts: list[str], repo: Repo, commit: str) -> dict[str, Any]:
        siblings = [
            {"rfilename": name, "size": repo.sizes.get(name, len(data))}
            for name, data in repo.files.items()
        ]
        return {"id": "/".join(parts[:2]), "sha": commit, "siblings": siblings}

    def _tree(self, repo: Repo) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}
            for name, data in repo.files.items()
        ]

    def _file(self, name: str, data: bytes, commit: str, *, with_body: bool) -> None:
        hub = cast(Hub, self.server)
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit}
        if with_body and hub.block_downloads is not None:
            self._send(200, data[:0], headers, length=len(data))
            hub.download_began.set()
            hub.block_downloads.wait()
            self.close_connection = True
            return
        if with_body and (wanted := self.headers.get("Range")):
            hub.ranges.append(wanted)
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
            self._send(206, data[first:], headers)
            return
        if with_body and (cuts := hub.cuts.get(name)):
            self._send(200, data[: cuts.pop(0)], headers, length=len(data))
            self.close_connection = True
            if hub.resets:
                linger = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                os.close(self.connection.detach())
            return
        self._send(200, data if with_body else b"", headers, length=len(data))

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, *, code: str = "", message: str = "no") -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running hub, the environment pointing at it, and an empty cache."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        if server.block_downloads is not None:
            server.block_downloads.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def files() -> dict[str, bytes]:
    """A small repository, with what serving needs and what it does not."""
    return {
        "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b'{"a": 1}',
        "chat_template.jinja": b"{{ messages }}",
        "additional_chat_templates/tool_use.jinja": b"{{ tools }}",
        "model.safetensors": b"s" * 100_000,
        "pytorch_model.bin": b"p" * 1000,
        "consolidated.safetensors": b"c" * 1000,
        "original/consolidated.safetensors": b"o" * 1000,
        "onnx/config.json": b"[]",
        "model.Q4_K_M.gguf": b"g" * 1000,
        "README.md": b"# model",
    }
