"""The endpoints, in process: what each answers, and that every error is OpenAI's."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from axion.errors import EngineUnavailableError, InvalidRequestError
from axion.openai.parsing import parse_request
from axion.router.registry import ModelRegistry
from axion.server import body, endpoint
from axion.server.app import ROUTES, create_app
from axion.settings import Settings
from axion.types import BackendState
from tests.server.conftest import MODEL, ScriptedBackend

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
TEXT: dict[str, Any] = {"model": MODEL, "prompt": "hello"}


@pytest.fixture
async def app(settings: Settings, registry: ModelRegistry) -> Any:
    await registry.start()
    return create_app(settings, registry)


@pytest.fixture
async def client(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def events(response: httpx.Response) -> list[Any]:
    """The decoded events of a stream; `[DONE]` stays text."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    data = [line.removeprefix("data: ") for line in lines]
    return [text if text == "[DONE]" else json.loads(text) for text in data]


def assert_openai_error(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert content.keys() == {"error"}
    error: dict[str, Any] = content["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error


class TestChat:
    async def test_answers_whole(self, client: httpx.AsyncClient):
        response = await client.post("/v1/chat/completions", json=CHAT)
        assert response.status_code == 200
        answer = response.json()
        assert answer["object"] == "chat.completion"
        assert answer["choices"][0]["message"]["content"] == "tok tok tok "
        assert answer["usage"]["total_tokens"] == 5

    async def test_streams_role_deltas_finish_and_done(self, client: httpx.AsyncClient):
        response = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        *chunks, done = events(response)
        assert done == "[DONE]"
        assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert [c["choices"][0]["delta"].get("content") for c in chunks[1:4]] == ["tok "] * 3
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert not any("usage" in chunk for chunk in chunks)

    async def test_stream_ends_with_usage_when_asked(self, client: httpx.AsyncClient):
        request = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        *_, last, done = events(await client.post("/v1/chat/completions", json=request))
        assert done == "[DONE]"
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 3

    async def test_error_before_the_first_chunk_has_its_status(
        self, client: httpx.AsyncClient, backend: ScriptedBackend
    ):
        backend.fail_at = (0, InvalidRequestError("no good", param="messages[0]"))
        for stream in (False, True):
            response = await client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
            assert assert_openai_error(response, 400)["param"] == "messages[0]"

    async def test_error_in_mid_stream_is_an_event_and_no_done(
        self, client: httpx.AsyncClient, backend: ScriptedBackend
    ):
        backend.fail_at = (2, EngineUnavailableError("the engine stopped"))
        response = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert response.status_code == 200
        last = events(response)[-1]
        assert last["error"]["code"] == "engine_unavailable"
        assert "[DONE]" not in response.text

    async def test_silence_is_filled_with_comments(
        self,
        client: httpx.AsyncClient,
        backend: ScriptedBackend,
        monkeypatch: pytest.MonkeyPatch,
    ):
        monkeypatch.setattr("axion.server.sse.PING_INTERVAL_S", 0.01)
        backend.pause = lambda: asyncio.sleep(0.05)
        response = await client.post("/v1/chat/completions", json={**CHAT, "stream": True})
        assert ": ping\n\n" in response.text
        assert response.text.endswith("data: [DONE]\n\n")


class TestCompletions:
    async def test_answers_whole(self, client: httpx.AsyncClient):
        answer = (await client.post("/v1/completions", json=TEXT)).json()
        assert answer["object"] == "text_completion"
        assert answer["choices"][0]["text"] == "tok tok tok "

    async def test_streams(self, client: httpx.AsyncClient):
        response = await client.post("/v1/completions", json={**TEXT, "stream": True})
        *chunks, done = events(response)
        assert done == "[DONE]"
        assert "".join(c["choices"][0]["text"] for c in chunks) == "tok tok tok "
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


class TestModels:
    async def test_lists_what_is_served(self, client: httpx.AsyncClient):
        content = (await client.get("/v1/models")).json()
        assert content["object"] == "list"
        model = content["data"][0]
        assert model["id"] == MODEL
        assert model["object"] == "model"
        assert model["created"] > 1_600_000_000

    async def test_an_id_may_contain_slashes(self, client: httpx.AsyncClient):
        assert (await client.get(f"/v1/models/{MODEL}")).json()["id"] == MODEL

    @pytest.mark.parametrize(
        "name", ["nobody", "", "%2e%2e/%2e%2e/etc", "%2Fetc", "a%00b", "test", MODEL + "/"]
    )
    async def test_row_17_other_names_are_not_found(self, client: httpx.AsyncClient, name: str):
        url = httpx.URL("http://test", raw_path=b"/v1/models/" + name.encode())
        error = assert_openai_error(await client.get(url), 404)
        assert error["code"] == "model_not_found"
        assert MODEL in error["message"]

    @pytest.mark.parametrize("name", ["nobody", "../..", "a\x00b", "a\nb", "x" * 5000])
    async def test_unknown_model_in_a_request_is_404(self, client: httpx.AsyncClient, name: str):
        response = await client.post("/v1/chat/completions", json={**CHAT, "model": name})
        error = assert_openai_error(response, 404)
        assert error["code"] == "model_not_found"
        assert error["param"] == "model"
        assert MODEL in error["message"]
        assert len(error["message"]) < 500


class TestHealth:
    async def test_tells_status_models_backends_and_system(self, client: httpx.AsyncClient):
        response = await client.get("/health")
        assert response.status_code == 200
        content = response.json()
        assert content["status"] == "ok"
        (model,) = content["models"]
        assert model["id"] == MODEL
        assert model["health"]["state"] == "ready"
        assert model["health"]["restarts"] == 2
        assert content["backends"] == {"native": {"available": True, "num_models": 1}}
        assert content["system"]["memory_total_bytes"] > 0
        assert content["system"]["process"]["memory_bytes"] > 0

    async def test_is_503_starting_until_the_model_is_loaded(
        self, settings: Settings, registry: ModelRegistry, backend: ScriptedBackend
    ):
        transport = httpx.ASGITransport(create_app(settings, registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.get("/health")
            assert response.status_code == 503
            assert response.json()["status"] == "starting"
            assert (await client.get("/health/ready")).status_code == 503
            assert (await client.get("/health/live")).status_code == 200
            response = await client.post("/v1/chat/completions", json=CHAT)
            assert assert_openai_error(response, 503)["code"] == "engine_unavailable"
            assert int(response.headers["retry-after"]) > 0
            await registry.start()
            assert (await client.get("/health")).status_code == 200
            assert (await client.get("/health/ready")).json() == {"status": "ok"}

    async def test_is_503_degraded_when_the_engine_is_down(
        self, client: httpx.AsyncClient, backend: ScriptedBackend
    ):
        backend.state = BackendState.DOWN
        response = await client.get("/health")
        assert response.status_code == 503
        assert response.json()["status"] == "degraded"
        assert response.json()["backends"]["native"]["available"] is False

    async def test_a_model_that_cannot_be_loaded_gives_no_path_away(
        self, settings: Settings, registry: ModelRegistry, backend: ScriptedBackend
    ):
        backend.start_error = EngineUnavailableError("/home/somebody/model is broken")
        with pytest.raises(EngineUnavailableError):
            await registry.start()
        transport = httpx.ASGITransport(create_app(settings, registry))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.get("/health")
            assert response.status_code == 503
            assert "somebody" not in response.text
            response = await client.post("/v1/chat/completions", json=CHAT)
            assert assert_openai_error(response, 503)
            assert "somebody" not in response.text

    async def test_draining_is_not_ready(self, client: httpx.AsyncClient, app: Any):
        app.state.server.draining = True
        assert (await client.get("/health")).status_code == 503
        assert (await client.get("/health/live")).status_code == 200


class TestMetrics:
    async def test_counts_requests_tokens_and_times(self, client: httpx.AsyncClient):
        for stream in (False, True):
            await client.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        response = await client.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = response.text
        label = f'{{model="{MODEL}"}}'
        assert 'axion_requests_total{endpoint="/v1/chat/completions",status="200"} 2.0' in text
        assert f"axion_time_to_first_token_seconds_count{label} 2.0" in text
        assert f"axion_inter_token_latency_seconds_count{label} 4.0" in text
        assert f"axion_engine_generated_tokens_total{label} 7.0" in text
        assert f"axion_engine_blocks{label} 99.0" in text
        assert f"axion_engine_restarts_total{label} 2.0" in text
        assert f"axion_model_ready{label} 1.0" in text
        assert "axion_requests_in_flight 0.0" in text

    async def test_no_label_is_chosen_by_a_client(self, client: httpx.AsyncClient):
        await client.get("/SECRET")
        await client.get("/v1/models/SECRET")
        await client.post("/v1/chat/completions", json={**CHAT, "model": "SECRET"})
        await client.request("SECRET", "/health", headers={"x-request-id": "SECRET"})
        text = (await client.get("/metrics")).text
        assert "SECRET" not in text
        assert 'axion_requests_total{endpoint="other",status="404"} 1.0' in text
        assert 'endpoint="/v1/models/{id:path}",status="404"} 1.0' in text

    async def test_each_app_has_its_own(self, client: httpx.AsyncClient, settings: Settings):
        await client.get("/version")
        other = httpx.ASGITransport(create_app(settings, ModelRegistry()))
        async with httpx.AsyncClient(transport=other, base_url="http://test") as fresh:
            assert "/version" not in (await fresh.get("/metrics")).text


class TestOtherOrigins:
    PAGE = "https://chat.example.com"

    async def ask(
        self, settings: Settings, registry: ModelRegistry, allowed: str, origin: str = PAGE
    ) -> list[httpx.Response]:
        """What a browser asks before a chat of a page, the chat, and one that is refused."""
        await registry.start()
        allowing = settings.model_copy(update={"allowed_origins": allowed})
        transport = httpx.ASGITransport(create_app(allowing, registry))
        path, headers = "/v1/chat/completions", {"Origin": origin}
        before = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization, content-type",
            # What some browsers say where a page of the internet asks a server beside them.
            "Access-Control-Request-Private-Network": "true",
        }
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [
                await client.options(path, headers=headers | before),
                await client.post(path, headers=headers, json=CHAT),
                await client.post(path, headers=headers, json={}),
            ]

    @pytest.mark.parametrize("allowed", ["*", "http://localhost:5173, https://chat.example.com"])
    async def test_a_page_that_is_allowed_may_ask(
        self, settings: Settings, registry: ModelRegistry, allowed: str
    ):
        responses = await self.ask(settings, registry, allowed)
        assert [response.status_code for response in responses] == [200, 200, 400]
        for response in responses:
            assert response.headers["access-control-allow-origin"] in ("*", self.PAGE)
            assert "x-request-id" in response.headers
        assert "authorization" in responses[0].headers["access-control-allow-headers"].lower()
        assert responses[0].headers["access-control-allow-private-network"] == "true"
        assert "Retry-After" in responses[1].headers["access-control-expose-headers"]

    @pytest.mark.parametrize("allowed", ["", "https://chat.example.org"])
    async def test_another_page_may_not(
        self, settings: Settings, registry: ModelRegistry, allowed: str
    ):
        for response in await self.ask(settings, registry, allowed):
            assert "access-control-allow-origin" not in response.headers


class TestRouting:
    async def test_index_names_every_endpoint(self, client: httpx.AsyncClient):
        text = (await client.get("/")).text
        for route in ROUTES:
            assert route.path_format in text

    async def test_version(self, client: httpx.AsyncClient):
        from axion import __version__

        assert (await client.get("/version")).json() == {"version": __version__}

    @pytest.mark.parametrize("path", ["/nowhere", "/v1", "/health/", "/v1/chat/completions/x"])
    async def test_unknown_route_is_404(self, client: httpx.AsyncClient, path: str):
        assert_openai_error(await client.get(path), 404)

    @pytest.mark.parametrize(
        ("path", "is_told"), [("/chat/completions", True), ("/v1/images/generations", False)]
    )
    async def test_who_forgot_v1_is_told(self, client: httpx.AsyncClient, path: str, is_told: bool):
        error = assert_openai_error(await client.post(path, json={}), 404)
        assert ("ends with /v1" in error["message"]) == is_told

    @pytest.mark.parametrize(
        ("method", "path", "allow"),
        [
            ("GET", "/v1/chat/completions", "POST"),
            ("DELETE", "/v1/completions", "POST"),
            ("POST", "/v1/models", "GET, HEAD"),
            ("PUT", "/health", "GET, HEAD"),
        ],
    )
    async def test_wrong_method_is_405_with_allow(
        self, client: httpx.AsyncClient, method: str, path: str, allow: str
    ):
        response = await client.request(method, path)
        assert_openai_error(response, 405)
        assert response.headers["allow"] == allow

    @pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
    async def test_head_and_options_behave(self, client: httpx.AsyncClient, route: Any):
        is_stored = "responses/{id}" in route.path
        path = route.path_format.replace("{id}", "resp_1" if is_stored else MODEL)
        response = await client.options(path)
        assert response.status_code == 204
        assert set(response.headers["allow"].split(", ")) == route.methods
        expected = 405 if "GET" not in route.methods else 404 if is_stored else 200
        assert (await client.head(path)).status_code == expected

    async def test_every_response_has_request_id_and_nosniff(self, client: httpx.AsyncClient):
        for path in ("/", "/nowhere", "/v1/chat/completions"):
            response = await client.get(path)
            assert response.headers["x-request-id"].startswith("req_")
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "access-control-allow-origin" not in response.headers

    async def test_a_sane_request_id_is_kept(self, client: httpx.AsyncClient):
        response = await client.get("/version", headers={"x-request-id": "job-7.3:a"})
        assert response.headers["x-request-id"] == "job-7.3:a"

    @pytest.mark.parametrize("value", ["", "x" * 129, "a b", "<script>", "a\tb", "é".encode()])
    async def test_another_request_id_is_replaced(
        self, client: httpx.AsyncClient, value: str | bytes
    ):
        response = await client.get("/version", headers={"x-request-id": value})
        assert response.headers["x-request-id"].startswith("req_")


class TestBody:
    @pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"{", b"\xff\xfe", b"null", b"1"])
    async def test_what_is_not_a_json_object_is_400(
        self, client: httpx.AsyncClient, content: bytes
    ):
        for path in ("/v1/chat/completions", "/v1/completions"):
            assert_openai_error(await client.post(path, content=content), 400)

    @pytest.mark.parametrize("media_type", [None, "text/plain", "application/json; charset=utf-8"])
    async def test_json_is_read_whatever_it_is_called(
        self, client: httpx.AsyncClient, media_type: str | None
    ):
        headers = {} if media_type is None else {"content-type": media_type}
        response = await client.post(
            "/v1/chat/completions", content=json.dumps(CHAT), headers=headers
        )
        assert response.status_code == 200

    @pytest.mark.parametrize(
        "header",
        [
            {"content-type": "multipart/form-data; boundary=x"},
            {"content-type": "application/x-www-form-urlencoded"},
            {"content-encoding": "gzip"},
        ],
    )
    async def test_forms_and_compressed_bodies_are_415(
        self, client: httpx.AsyncClient, header: dict[str, str]
    ):
        response = await client.post(
            "/v1/chat/completions", content=json.dumps(CHAT), headers=header
        )
        assert_openai_error(response, 415)

    async def test_too_large_by_content_length_is_413_unread(self, app: Any, settings: Settings):
        async def receive() -> Any:
            pytest.fail("the body was read")

        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        length = str(settings.max_request_bytes + 1).encode()
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [(b"content-length", length)],
        }
        await app(scope, receive, send)
        assert sent[0]["status"] == 413
        assert b"request_too_large" in sent[1]["body"]

    async def test_too_large_while_reading_is_413(
        self, client: httpx.AsyncClient, settings: Settings
    ):
        num_sent = 0

        async def chunks() -> AsyncIterator[bytes]:
            nonlocal num_sent
            while True:
                num_sent += 1
                yield b" " * 65536

        response = await client.post("/v1/chat/completions", content=chunks())
        assert_openai_error(response, 413)
        assert num_sent <= settings.max_request_bytes / 65536 + 2

    async def test_a_large_body_is_parsed_off_the_event_loop(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ):
        threads: list[threading.Thread] = []

        def recording(*args: Any) -> Any:
            threads.append(threading.current_thread())
            return parse_request(*args)

        monkeypatch.setattr(endpoint, "parse_request", recording)
        large = TEXT | {"prompt": "a" * body.SMALL_BODY_BYTES}
        assert (await client.post("/v1/completions", json=large)).status_code == 200
        assert_openai_error(await client.post("/v1/completions", json=large | {"n": 0}), 400)
        assert len(threads) == 2
        assert threading.main_thread() not in threads

    async def test_a_slow_body_is_408(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(body, "BODY_TIMEOUT_S", 0.05)

        async def chunks() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.Event().wait()

        response = await client.post("/v1/chat/completions", content=chunks())
        assert assert_openai_error(response, 408)["code"] == "request_timeout"

    @pytest.mark.parametrize(
        ("path", "field", "values"),
        [
            ("chat/completions", "n", [10**6, 0, -1, 2**63]),
            ("chat/completions", "top_logprobs", [10**6, -1, 2**63]),
            ("completions", "n", [10**6, 0, -1, 2**63]),
            ("completions", "logprobs", [10**6, -1, 2**63]),
            ("completions", "best_of", [10**6, -1]),
        ],
    )
    async def test_row_7_huge_counts_are_400(
        self, client: httpx.AsyncClient, path: str, field: str, values: list[int]
    ):
        base = CHAT if path.startswith("chat") else TEXT
        for value in values:
            response = await client.post(f"/v1/{path}", json={**base, field: value})
            assert_openai_error(response, 400)

    @pytest.mark.parametrize("prompt", [[], [[]], [-1], [2**63], [[1], []], [1.5], {}, None])
    async def test_row_8_empty_prompts_are_4xx(
        self, client: httpx.AsyncClient, backend: ScriptedBackend, prompt: Any
    ):
        response = await client.post("/v1/completions", json={**TEXT, "prompt": prompt})
        assert_openai_error(response, 400)
        assert backend.seen == []
        assert (await client.get("/health")).status_code == 200

    @pytest.mark.parametrize("value", [-1, -(2**63), 2**63, 10**30])
    @pytest.mark.parametrize("field", ["max_tokens", "n", "min_tokens", "top_logprobs"])
    async def test_row_20_negative_and_huge_integers_are_400(
        self, client: httpx.AsyncClient, backend: ScriptedBackend, field: str, value: int
    ):
        response = await client.post("/v1/chat/completions", json={**CHAT, field: value})
        assert_openai_error(response, 400)
        assert backend.seen == []


class TestFaults:
    async def test_row_21_an_unexpected_error_tells_only_the_request_id(
        self,
        client: httpx.AsyncClient,
        backend: ScriptedBackend,
        caplog: pytest.LogCaptureFixture,
    ):
        for at, stream in ((0, False), (0, True), (2, False), (2, True)):
            backend.fail_at = (at, RuntimeError("/secret/path ipc://socket"))
            response = await client.post(
                "/v1/chat/completions",
                json={**CHAT, "stream": stream},
                headers={"x-request-id": f"find-me-{at}-{stream}"},
            )
            if stream and at:
                error = events(response)[-1]["error"]
                assert error["type"] == "server_error"
            else:
                error = assert_openai_error(response, 500)
            assert f"find-me-{at}-{stream}" in error["message"]
            for leak in ("secret", "socket", "Traceback", "RuntimeError", ".py"):
                assert leak not in response.text
            assert f"find-me-{at}-{stream}" in caplog.text
        assert "/secret/path" in caplog.text
        assert "Traceback" in caplog.text

    async def test_too_many_in_flight_is_429_and_probes_still_answer(
        self, client: httpx.AsyncClient, backend: ScriptedBackend, settings: Settings
    ):
        gate = asyncio.Event()
        backend.pause = gate.wait
        running = [
            asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
            for _ in range(settings.max_connections)
        ]
        async with asyncio.timeout(5):
            while backend.running < settings.max_connections:
                await asyncio.sleep(0)
        response = await client.post("/v1/chat/completions", json=CHAT)
        assert assert_openai_error(response, 429)["code"] == "queue_full"
        assert int(response.headers["retry-after"]) > 0
        assert (await client.get("/health")).status_code == 200
        in_flight = f"axion_requests_in_flight {float(settings.max_connections)}"
        assert in_flight in (await client.get("/metrics")).text
        gate.set()
        assert {r.status_code for r in await asyncio.gather(*running)} == {200}
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200

    async def test_draining_refuses_new_requests(self, client: httpx.AsyncClient, app: Any):
        app.state.server.draining = True
        response = await client.post("/v1/chat/completions", json=CHAT)
        assert_openai_error(response, 503)
        assert response.headers["connection"] == "close"
        assert int(response.headers["retry-after"]) > 0

    async def test_row_23_what_clients_send_is_not_in_the_log(
        self, client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
    ):
        caplog.set_level(logging.DEBUG)
        secret = "my hidden words"
        messages = [{"role": "user", "content": secret}]
        headers = {"authorization": "Bearer sk-hidden"}
        for request in (
            {**CHAT, "messages": messages},
            {**CHAT, "messages": messages, "n": -1},
            {**CHAT, "messages": [{"role": secret}]},
            {**CHAT, "model": secret},
        ):
            await client.post("/v1/chat/completions?key=hidden", json=request, headers=headers)
        ours = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("axion"))
        assert "/v1/chat/completions" in ours
        assert "hidden" not in ours
        assert "tok" not in ours
