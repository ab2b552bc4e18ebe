"""A server process: listens at once, drains at SIGTERM, speaks HTTPS, and ends as it should."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from axion.server.listener import bind, tls_context
from axion.settings import Settings, SettingsError
from tests.server.conftest import read_all

CERTIFICATE = Path(__file__).parent / "tls" / "cert.pem"
KEY = Path(__file__).parent / "tls" / "key.pem"
NAME = "echo"


class ServerProcess:
    """`axion serve` with the echo engine, on a free port."""

    def __init__(self, model: Path, *flags: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.server.echo_server", str(model)),
                *("--served-model-name", NAME, "--server-host", "127.0.0.1"),
                *("--server-port", "0", *flags),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "ECHO_TOKEN_DELAY_S": "0.01", **environment},
        )
        line = self._readline("Listening")
        match = re.search(r"(https?)://127\.0\.0\.1:(\d+)", line)
        assert match, line
        self.url, self.port = match.group(), int(match.group(2))

    def _readline(self, expected: str) -> str:
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if expected in line:
                return line
        pytest.fail(f"{expected!r} is not in {lines}")

    def wait_until_ready(self) -> ServerProcess:
        self._readline("Ready")
        return self

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, timeout: float = 30) -> tuple[int, str]:
        """Exit status, and what it wrote since."""
        output, _ = self._process.communicate(timeout=timeout)
        return self._process.returncode, output

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


Start = Callable[..., ServerProcess]


@pytest.fixture
def start(tiny_model: Path) -> Iterator[Start]:
    servers = []

    def start(*flags: str, **environment: str) -> ServerProcess:
        servers.append(ServerProcess(tiny_model, *flags, **environment))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def completion(num_tokens: int, **fields: Any) -> dict[str, Any]:
    return {
        "model": NAME,
        "prompt": "hello",
        "ignore_eos": True,
        "max_tokens": num_tokens,
        "stream": True,
        **fields,
    }


def test_listens_while_the_model_loads(start: Start):
    server = start(ECHO_LOAD_S="1")
    with httpx.Client(base_url=server.url) as client:
        response = client.get("/health")
        assert response.status_code == 503
        assert response.json()["status"] == "starting"
        assert client.get("/health/live").status_code == 200
        response = client.post("/v1/completions", json=completion(1))
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "engine_unavailable"
        server.wait_until_ready()
        assert client.get("/health").status_code == 200
        assert client.post("/v1/completions", json=completion(1)).status_code == 200
        assert "server" not in response.headers
    server.signal(signal.SIGTERM)
    assert server.wait()[0] == 0


def test_sigterm_lets_running_requests_finish_and_refuses_new_ones(start: Start):
    server = start().wait_until_ready()
    with (
        httpx.Client(base_url=server.url) as client,
        client.stream("POST", "/v1/completions", json=completion(200)) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        server.signal(signal.SIGTERM)
        refused = None
        while refused is None or refused.status_code == 200:
            refused = httpx.post(f"{server.url}/v1/completions", json=completion(1))
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
        assert refused.headers["connection"] == "close"
        assert httpx.get(f"{server.url}/health").status_code == 503
        assert httpx.get(f"{server.url}/health/live").status_code == 200
        *_, done = [line for line in lines if line]
        assert done == "data: [DONE]"
    status, output = server.wait()
    assert status == 0
    assert "Traceback" not in output


def test_what_outlasts_the_drain_ends_with_an_error(start: Start):
    server = start("--drain-timeout-s", "0.3").wait_until_ready()
    with (
        httpx.Client(base_url=server.url) as client,
        client.stream("POST", "/v1/completions", json=completion(4000)) as response,
    ):
        lines = response.iter_lines()
        next(lines)
        server.signal(signal.SIGTERM)
        *_, last = [line for line in lines if line]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_unavailable"
    status, output = server.wait()
    assert status == 0
    assert "Traceback" not in output


@pytest.mark.parametrize("stubborn", [{}, {"ECHO_GOES_ON": "1"}], ids=["ends", "goes on"])
def test_a_second_signal_ends_it_at_once(start: Start, stubborn: dict[str, str]):
    times = {"ECHO_TOKEN_DELAY_S": "0.1", "ECHO_FLUSH_S": "600"}
    server = start("--drain-timeout-s", "600", **times, **stubborn)
    server.wait_until_ready()
    with (
        httpx.Client(base_url=server.url) as client,
        client.stream("POST", "/v1/completions", json=completion(4000)) as response,
    ):
        lines = response.iter_lines()  # kept: with it the stream would end
        next(lines)
        server.signal(signal.SIGTERM)
        server._readline("shutting down")
        server.signal(signal.SIGTERM)
        status, output = server.wait()
    assert status == 128 + signal.SIGTERM
    assert output.count("ending at once; requests that are cut off: 1") == 1
    assert "Traceback" not in output


def test_sigint_while_the_model_loads_ends_it(start: Start):
    server = start(ECHO_LOAD_S="600")
    assert httpx.get(f"{server.url}/health").status_code == 503
    server.signal(signal.SIGINT)
    status, output = server.wait()
    assert status == 0
    assert "Traceback" not in output


def test_idle_connections_do_not_hold_the_shutdown(start: Start):
    server = start(ECHO_FLUSH_S="600").wait_until_ready()
    with httpx.Client(base_url=server.url) as client:
        client.get("/version")
        with socket.create_connection(("127.0.0.1", server.port)) as unfinished:
            unfinished.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n{")
            server.signal(signal.SIGTERM)
            status, output = server.wait()
            assert read_all(unfinished) == b""
    assert status == 0
    assert "Traceback" not in output


def test_https(start: Start):
    server = start("--tls-cert-file", str(CERTIFICATE), "--tls-key-file", str(KEY))
    server.wait_until_ready()
    assert server.url.startswith("https://")
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    with httpx.Client(base_url=server.url, verify=context) as client:
        assert client.get("/health").status_code == 200
        response = client.post("/v1/completions", json=completion(5))
        assert response.text.endswith("data: [DONE]\n\n")


def test_a_model_that_cannot_be_had_says_why_and_names_the_demo(tmp_path: Path):
    result = subprocess.run(
        [sys.executable, "-m", "tests.server.echo_server", str(tmp_path), "--server-port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 1
    assert str(tmp_path) in result.stderr
    assert "MODEL_NAME=axion/demo" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_port_in_use_is_one_clear_sentence(tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = subprocess.run(
            [
                *(sys.executable, "-m", "tests.server.echo_server", str(tmp_path)),
                *("--server-host", "127.0.0.1", "--server-port", str(port)),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert result.returncode == 1
    assert f"Port {port} on 127.0.0.1 is in use." in result.stderr
    assert "Traceback" not in result.stderr


def test_an_address_that_is_not_ours_is_refused():
    with pytest.raises(SettingsError, match=r"Cannot listen on 203\.0\.113\.1"):
        bind("203.0.113.1", 0)
    with pytest.raises(SettingsError, match="no address"):
        bind("999.0.0.1.", 0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tls_cert_file": CERTIFICATE}, "both"),
        ({"tls_key_file": KEY}, "both"),
        ({"tls_cert_file": CERTIFICATE, "tls_key_file": "nowhere.pem"}, "TLS_KEY_FILE: cannot"),
        ({"tls_cert_file": "nowhere.pem", "tls_key_file": KEY}, "TLS_CERT_FILE: cannot"),
        ({"tls_cert_file": KEY, "tls_key_file": CERTIFICATE}, "PEM"),
        ({"tls_cert_file": __file__, "tls_key_file": __file__}, "PEM"),
    ],
)
def test_unusable_tls_settings_are_named(fields: dict[str, Any], message: str):
    with pytest.raises(SettingsError, match=message):
        tls_context(Settings(**fields))


def test_no_tls_settings_mean_http():
    assert tls_context(Settings()) is None


def test_a_pooling_process_starts_with_its_first_request_and_ends_with_the_server(
    start: Start, cross_encoder: Path
):
    server = start("--rerank-model", f"cross={cross_encoder}", "--cpu-threads", "1")
    server.wait_until_ready()

    def processes() -> list[psutil.Process]:
        children = psutil.Process(server.pid).children()
        return [child for child in children if "axion.pooling.process" in child.cmdline()]

    def rerank(num_documents: int) -> httpx.Response:
        body = {"query": "q", "documents": ["word " * 200] * num_documents}
        return httpx.post(f"{server.url}/v1/rerank", json=body, timeout=60)

    assert processes() == []
    assert rerank(1).status_code == 200
    (process,) = processes()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(rerank, 200)
        while httpx.get(f"{server.url}/health").json()["requests_in_flight"] == 0:
            time.sleep(0.005)
        server.signal(signal.SIGTERM)
        assert running.result().status_code == 200, "it is drained"
    assert server.wait()[0] == 0
    assert not process.is_running()
