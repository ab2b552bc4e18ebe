"""What arrives on a real socket: attacks on the HTTP layer, slow clients, clients that leave."""

from __future__ import annotations

import asyncio
import json
import resource
import time
from contextlib import ExitStack

import httpx
import pytest

from axion.server import protocol
from axion.server.body import BODY_TIMEOUT_S, MAX_LARGE_BODIES
from axion.server.protocol import MAX_BODY_CHUNKS, MAX_HEADER_BYTES, MAX_HEADERS
from tests.server.conftest import MODEL, LiveServer, ScriptedBackend, read_all

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
REQUEST_LINE = b"POST /v1/chat/completions HTTP/1.1\r\nHost: test\r\n"


def chat_request(**fields: object) -> bytes:
    body = json.dumps({**CHAT, **fields}).encode()
    return REQUEST_LINE + b"Content-Length: %d\r\n\r\n" % len(body) + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def error_of(answer: bytes) -> dict[str, object]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    error: dict[str, object] = json.loads(body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return error


def send_until_refused(server: LiveServer, parts: list[bytes]) -> bytes:
    """Send `parts` as far as the server takes them, and return what it answered."""
    with server.connect() as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except (ConnectionResetError, BrokenPipeError):
            pass
        return read_all(connection)


def assert_alive(server: LiveServer) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200


class TestHeaders:
    def test_row_4_a_header_of_16_mib_is_refused(self, server: LiveServer):
        parts = [REQUEST_LINE + b"X-Huge: ", *([b"a" * 65536] * 256), b"\r\n\r\n"]
        answer = send_until_refused(server, parts)
        assert status_of(answer) in (0, 431)
        assert_alive(server)

    def test_row_4_an_oversized_header_is_431(self, server: LiveServer):
        answer = send_until_refused(
            server, [REQUEST_LINE, b"X-Huge: " + b"a" * (MAX_HEADER_BYTES + 2**18)]
        )
        assert status_of(answer) == 431
        assert error_of(answer)["code"] == "headers_too_large"

    def test_row_4_five_thousand_headers_are_431(self, server: LiveServer):
        headers = b"".join(b"X-%d: a\r\n" % index for index in range(5000))
        answer = send_until_refused(server, [REQUEST_LINE + headers + b"\r\n"])
        assert status_of(answer) == 431
        assert error_of(answer)["code"] == "headers_too_large"
        assert_alive(server)

    def test_row_4_a_huge_url_is_431(self, server: LiveServer):
        url = b"GET /" + b"a" * (MAX_HEADER_BYTES + 1) + b" HTTP/1.1\r\nHost: test\r\n\r\n"
        assert status_of(send_until_refused(server, [url])) == 431

    def test_row_4_a_trailer_without_end_is_refused(self, server: LiveServer):
        head = REQUEST_LINE + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX-Trailer: "
        answer = send_until_refused(server, [head, *([b"a" * 65536] * 64)])
        assert status_of(answer) in (0, 431)
        assert_alive(server)

    def test_ordinary_headers_pass(self, server: LiveServer):
        headers = {f"x-{index}": "a" * 200 for index in range(MAX_HEADERS - 20)}
        assert httpx.get(f"{server.url}/version", headers=headers).status_code == 200

    def test_an_unfinished_request_is_closed(
        self, server: LiveServer, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(protocol, "HEADERS_TIMEOUT_S", 0.05)
        for sent in (b"", b"GET / HT", REQUEST_LINE):
            with server.connect() as connection:
                connection.sendall(sent)
                assert read_all(connection) == b""

    @pytest.mark.parametrize(
        "garbage",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"GET http:// HTTP/1.1\r\nHost: test\r\n\r\n",
        ],
    )
    def test_what_is_not_http_is_400(self, server: LiveServer, garbage: bytes):
        answer = send_until_refused(server, [garbage])
        assert status_of(answer) == 400
        assert error_of(answer)["type"] == "invalid_request_error"
        assert_alive(server)

    @pytest.mark.parametrize("path", [b"../../etc/passwd", b"..%2f..%2fetc", b"a%00b", b"%2e"])
    def test_row_17_a_path_as_model_name_is_404(self, server: LiveServer, path: bytes):
        request = b"GET /v1/models/" + path + b" HTTP/1.1\r\nConnection: close\r\n\r\n"
        answer = send_until_refused(server, [request])
        assert status_of(answer) == 404
        assert error_of(answer)["code"] == "model_not_found"


class TestBody:
    def test_row_5_64_mib_are_413_before_they_are_sent_and_memory_stays_flat(
        self, server: LiveServer
    ):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        head = REQUEST_LINE + b"Content-Length: %d\r\n\r\n" % (64 * 2**20)
        with server.connect(timeout=BODY_TIMEOUT_S / 2) as connection:
            connection.sendall(head)
            assert status_of(connection.recv(65536)) == 413
        # A client that sends it all before it looks gets the answer too.
        with server.connect() as connection:
            connection.sendall(head)
            part = b" " * 2**20
            for _ in range(64):
                connection.sendall(part)
            assert status_of(connection.recv(65536)) == 413
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert after - before < 16 * 1024  # KiB
        assert_alive(server)

    def test_row_5_an_unbounded_body_is_413_at_the_limit(self, server: LiveServer):
        head = REQUEST_LINE + b"Transfer-Encoding: chunked\r\n\r\n"
        part = b"10000\r\n" + b" " * 65536 + b"\r\n"
        with server.connect() as connection:
            connection.sendall(head + part * 20)
            assert status_of(connection.recv(65536)) == 413

    def test_row_5_large_bodies_that_never_end_leave_room_for_others(self, server: LiveServer):
        size = server.state.settings.max_request_bytes
        large = REQUEST_LINE + b"Content-Length: %d\r\n\r\n" % size + b" " * (size - 1)
        with ExitStack() as held:
            for count in range(1, MAX_LARGE_BODIES + 1):
                held.enter_context(server.connect()).sendall(large)
                server.wait_for(
                    lambda count=count: server.state.num_arriving_bytes == count * (size - 1)
                )
            with server.connect() as connection:
                connection.sendall(large)
                answer = connection.recv(65536)
            assert status_of(answer) == 429
            assert b"retry-after: 1" in answer.lower()
            assert httpx.post(f"{server.url}/v1/chat/completions", json=CHAT).status_code == 200
        server.wait_for(lambda: server.state.num_arriving_bytes == 0)

    def test_an_answered_client_cannot_send_for_ever(
        self, server: LiveServer, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(protocol, "LINGER_S", 0.1)
        head = REQUEST_LINE + b"Content-Length: %d\r\n\r\n" % (2**40)
        started = time.monotonic()
        with server.connect() as connection, pytest.raises(OSError):  # noqa: PT011
            connection.sendall(head)
            while time.monotonic() - started < 10:
                connection.sendall(b" " * 65536)
        assert time.monotonic() - started < 10

    def test_row_6_half_a_million_chunks_of_one_byte_are_4xx(self, server: LiveServer):
        head = REQUEST_LINE + b"Transfer-Encoding: chunked\r\n\r\n"
        part = b"1\r\n \r\n" * 5000
        answer = send_until_refused(server, [head, *([part] * 100)])
        assert status_of(answer) == 400
        assert str(MAX_BODY_CHUNKS) in str(error_of(answer)["message"])
        server.wait_for(lambda: server.state.num_in_flight == 0)
        assert_alive(server)

    def test_a_request_is_answered_once_whatever_follows(self, server: LiveServer):
        head = b"POST /nowhere HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        with server.connect() as connection:
            connection.sendall(head)
            assert status_of(connection.recv(65536)) == 404
            connection.sendall(b"this is no chunk\r\n")
            assert read_all(connection) == b""

    def test_a_chunked_body_is_read(self, server: LiveServer):
        body = json.dumps(CHAT).encode()
        chunks = (body[start : start + 7] for start in range(0, len(body), 7))
        response = httpx.post(f"{server.url}/v1/chat/completions", content=chunks)
        assert response.status_code == 200

    @pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
    def test_an_offer_of_another_protocol_is_ignored(self, server: LiveServer, protocol: bytes):
        offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + protocol + b"\r\n"
        request = chat_request(user="\r\n\r\nUpgrade: x").replace(
            REQUEST_LINE, REQUEST_LINE + offer
        )
        with server.connect() as connection:
            for _ in range(2):
                connection.sendall(request)
                assert status_of(connection.recv(65536)) == 200

    def test_a_connection_is_kept_after_an_error(self, server: LiveServer):
        with httpx.Client(base_url=server.url) as client:
            for content, status in ((b"no json", 400), (json.dumps(CHAT).encode(), 200)):
                response = client.post("/v1/chat/completions", content=content)
                assert response.status_code == status
                assert "connection" not in response.headers
            assert server.call(lambda: len(server.server.server_state.connections)) == 1


class TestDisconnect:
    @pytest.mark.parametrize("stream", [False, True])
    def test_a_client_that_leaves_ends_its_request(
        self, server: LiveServer, backend: ScriptedBackend, stream: bool
    ):
        backend.pause = lambda: asyncio.Event().wait()
        with server.connect() as connection:
            connection.sendall(chat_request(stream=stream))
            server.wait_for(lambda: backend.running == 1)
        server.wait_for(lambda: backend.running == 0 and server.state.num_in_flight == 0)
        server.wait_for(lambda: b'status="499"} 1.0' in server.state.metrics.render({}))

    def test_a_client_that_leaves_while_it_sends_is_forgotten(
        self, server: LiveServer, backend: ScriptedBackend
    ):
        with server.connect() as connection:
            connection.sendall(chat_request()[:-5])
            server.wait_for(lambda: len(server.server.server_state.tasks) == 1)
        server.wait_for(lambda: not server.server.server_state.tasks)
        assert backend.seen == []

    def test_a_client_that_pipelines_and_leaves_ends_its_requests(
        self, server: LiveServer, backend: ScriptedBackend
    ):
        backend.pause = lambda: asyncio.Event().wait()
        with server.connect() as connection:
            connection.sendall(chat_request() * 3)
            server.wait_for(lambda: backend.running == 1)
        server.wait_for(lambda: backend.running == 0)
        assert len(backend.seen) == 1

    def test_a_pipelining_client_gets_its_first_answer(self, server: LiveServer):
        with server.connect() as connection:
            connection.sendall(chat_request() * 2)
            answer = read_all(connection)
        assert answer.count(b"HTTP/1.1 200 OK") == 1
        assert b"connection: close" in answer

    def test_a_client_that_does_not_read_is_dropped(
        self, server: LiveServer, backend: ScriptedBackend, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(protocol, "WRITE_TIMEOUT_S", 0.1)
        backend.num_tokens = 10**9
        with server.connect() as connection:
            connection.sendall(chat_request(stream=True))
            server.wait_for(lambda: backend.running == 1)
            server.wait_for(lambda: backend.running == 0)
