from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import uvloop

from axion.backends.http import HttpClient

HEAD = b"HTTP/1.1 200 OK\r\n"
OK = HEAD + b"content-length: 2\r\n\r\nok"


class Peer:
    """Answers each request with the next of `answers`; for None it closes the connection.

    Args:
        closes: whether it closes the connection after an answer.
    """

    def __init__(self, *answers: bytes | None, closes: bool) -> None:
        self.answers = list(answers)
        self.closes = closes
        self.requests: list[bytes] = []
        self.num_connections = 0
        self.num_lost = 0
        self.lost = asyncio.Event()
        self.client: HttpClient

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
                await writer.drain()
                if self.closes:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.num_lost += 1
            self.lost.set()
        finally:
            writer.close()

    async def get(self) -> tuple[int, bytes]:
        async with self.client.request("GET", "/x") as response:
            return response.status, await response.read_all(10**9)


@asynccontextmanager
async def peer(*answers: bytes | None, closes: bool = False) -> AsyncIterator[Peer]:
    peer = Peer(*answers, closes=closes)
    server = await asyncio.start_server(peer.talk, "127.0.0.1", 0)
    peer.client = HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    try:
        yield peer
    finally:
        await peer.client.close()
        server.close()
        await server.wait_closed()


async def test_a_connection_is_kept_for_the_next_request():
    async with peer(
        HEAD + b"content-length: 2\r\n\r\nok", HEAD + b"content-length: 0\r\n\r\n"
    ) as p:
        assert await p.get() == (200, b"ok")
        assert await p.get() == (200, b"")
        assert p.num_connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"connection: close\r\ncontent-length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
)
async def test_a_connection_is_not_kept_where_the_server_says_so(answer: bytes):
    async with peer(answer, answer) as p:
        assert [await p.get(), await p.get()] == [(200, b"ok")] * 2
        assert p.num_connections == 2


async def test_a_kept_connection_that_the_server_has_closed_is_replaced():
    async with peer(
        HEAD + b"content-length: 0\r\n\r\n", None, HEAD + b"content-length: 1\r\n\r\n1"
    ) as p:
        await p.get()
        assert await p.get() == (200, b"1")
        assert p.num_connections == 2


async def test_a_new_connection_that_is_closed_is_an_error():
    async with peer(None) as p:
        with pytest.raises(ConnectionError):
            await p.get()
        assert p.num_connections == 1


async def test_a_body_without_length_ends_with_the_connection():
    async with peer(HEAD + b"\r\nall of it", closes=True) as p:
        assert await p.get() == (200, b"all of it")


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"content-length: 9\r\n\r\nok",
        HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\nzz\r\nok\r\n",
        b"SMTP ready\r\n\r\n",
        HEAD + b"x: y\r\n" * 20_000,
    ],
)
async def test_a_broken_response_is_an_error(answer: bytes):
    async with peer(answer, closes=True) as p:
        with pytest.raises(ConnectionError):
            await p.get()


async def test_an_informal_response_is_passed_over():
    async with peer(
        b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + HEAD + b"content-length: 1\r\n\r\n1"
    ) as p:
        assert await p.get() == (200, b"1")


async def test_leaving_closes_the_connection():
    async with peer(HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\nok\r\n") as p:
        async with p.client.request("GET", "/") as response:
            assert await response.read() == b"ok"
        async with asyncio.timeout(5):
            await p.lost.wait()


async def test_a_slow_reader_holds_the_server_up():
    size = 8 * 2**20
    answer = HEAD + b"content-length: %d\r\n\r\n" % size + b"x" * size
    async with peer(answer) as p, p.client.request("GET", "/") as response:
        while not response._paused:
            await asyncio.sleep(0)
        assert len(response._body) < size
        assert len(await response.read_all(size)) == size


async def test_nobody_there_is_an_error():
    client = HttpClient("http://127.0.0.1:1")
    with pytest.raises(ConnectionRefusedError):
        async with client.request("GET", "/"):
            pass


@pytest.mark.parametrize("url", ["127.0.0.1:80", "ftp://host", "http://", "http://host/?a=1"])
def test_a_wrong_url_is_refused(url: str):
    with pytest.raises(ValueError, match="must be http"):
        HttpClient(url)


def test_a_key_with_a_line_break_is_refused():
    with pytest.raises(ValueError, match="one line"):
        HttpClient("http://host", headers={"authorization": "Bearer a\r\nx: y"})


@pytest.mark.parametrize(
    "scenario",
    [
        test_a_connection_is_kept_for_the_next_request,
        test_a_kept_connection_that_the_server_has_closed_is_replaced,
        test_a_new_connection_that_is_closed_is_an_error,
        test_a_body_without_length_ends_with_the_connection,
        test_leaving_closes_the_connection,
        test_a_slow_reader_holds_the_server_up,
        test_nobody_there_is_an_error,
    ],
)
def test_it_is_the_same_on_the_servers_event_loop(scenario: Callable[[], Awaitable[None]]):
    async def run() -> None:
        await scenario()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
