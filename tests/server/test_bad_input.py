"""Whatever a client sends to any endpoint is answered, and what is wrong is a 4xx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from axion.backends.base import ModelConfig
from axion.backends.native.backend import NativeBackend
from axion.openai.chat import ChatCompletionRequest
from axion.openai.completions import CompletionRequest
from axion.openai.embeddings import EmbeddingRequest
from axion.openai.fields import RequestModel
from axion.openai.messages import CountTokensRequest, MessagesRequest
from axion.openai.rerank import RerankRequest, ScoreRequest
from axion.openai.responses import ResponsesRequest
from axion.openai.tokenize import DetokenizeRequest, TokenizeRequest
from axion.router.registry import ModelRegistry
from axion.settings import Settings
from axion.types import EngineConfig
from tests.echo_engine import EchoEngine
from tests.server.conftest import LiveServer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]
ENDPOINTS: dict[str, tuple[type[RequestModel], dict[str, Any]]] = {
    CHAT: (ChatCompletionRequest, {"model": "m", "messages": MESSAGES}),
    TEXT: (CompletionRequest, {"model": "m", "prompt": "Hi"}),
    "/v1/responses": (ResponsesRequest, {"model": "m", "input": "Hi"}),
    "/v1/messages": (MessagesRequest, {"model": "m", "max_tokens": 9, "messages": MESSAGES}),
    "/v1/messages/count_tokens": (CountTokensRequest, {"model": "m", "messages": MESSAGES}),
    "/v1/embeddings": (EmbeddingRequest, {"input": "Hi"}),
    "/v1/rerank": (RerankRequest, {"query": "Hi", "documents": ["a", "b"]}),
    "/v1/score": (ScoreRequest, {"text_1": "Hi", "text_2": ["a", "b"]}),
    "/tokenize": (TokenizeRequest, {"prompt": "Hi"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [1, 2]}),
}
BODIES = {path: body for path, (_, body) in ENDPOINTS.items()}
FIELDS = [
    (path, name)
    for path, (request, _) in ENDPOINTS.items()
    for name in sorted(request.model_fields)
]
COUNT = (1, 2**31 - 1)
INTEGERS = {
    "best_of": (1, 128),
    "dimensions": COUNT,
    "max_completion_tokens": COUNT,
    "max_output_tokens": COUNT,
    "max_tokens": COUNT,
    "max_tokens_per_doc": COUNT,
    "min_tokens": (0, 2**31 - 1),
    "n": (1, 128),
    "priority": (-(2**63), 2**63 - 1),
    "seed": (-(2**63), 2**63 - 1),
    "top_k": (-1, 2**31 - 1),
    "top_logprobs": (0, 20),
    "top_n": COUNT,
    "truncate_prompt_tokens": (-1, 2**31 - 1),
}
OWN_BOUNDS = {
    (TEXT, "max_tokens"): (0, 2**31 - 1),
    (TEXT, "logprobs"): (0, 20),
    ("/v1/messages", "top_k"): (0, 2**31 - 1),
}


def deep(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": [value]}
    return value


VALUES: tuple[Any, ...] = (
    *("", "x" * 5000, "\0\x1b\n", 5, -1, 0, 2**31, 2**63, -(2**63) - 1, 10**400),
    *(1.5, -0.0, 1e308, True, [], [[]], [None], [0] * 5000, ["x"] * 200, {}, {"": None}),
    *({"x" * 100: 1}, {str(i): 1 for i in range(5000)}, deep(50), deep(20_000 // 8)),
)


@pytest.fixture(scope="module")
def server(tiny_model: Any, sentence_model: Path, cross_encoder: Path) -> Iterator[LiveServer]:
    async def start(config: EngineConfig) -> EchoEngine:
        return EchoEngine(vocab_size=320, max_model_len=256)

    registry = ModelRegistry()
    model = ModelConfig(model_name=str(tiny_model), served_name="m", max_seq_len=256)
    registry.add(model, NativeBackend(start))
    settings = Settings(
        max_request_bytes=2**20,
        embedding_model=f"e={sentence_model}",
        rerank_model=f"r={cross_encoder}",
        cpu_threads=1,
    )
    with LiveServer(settings, registry) as live:
        yield live


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(autouse=True)
def healthy_afterwards(client: httpx.Client) -> Iterator[None]:
    yield
    assert client.get("/health/ready").status_code == 200


def refused(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of a response, which has the API's shape and gives nothing away."""
    assert response.status_code == status, response.text[:300]
    error: dict[str, Any] = response.json()["error"]
    if response.url.path.startswith("/v1/messages"):
        assert error.keys() == {"message", "type"}
        # Anthropic's shape has no place for the field, and the message begins with it.
        first = error["message"].split(" ")[0]
        error |= {"param": None if first == "The" else first, "code": None}
    else:
        assert error.keys() == {"message", "type", "param", "code"}
        assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 1000
    for secret in ("/work", "/tmp", "Traceback", ".py", ".sock", "pydantic"):
        assert secret not in error["message"]
    return error


@pytest.mark.parametrize(("index", "path", "name"), [(i, *f) for i, f in enumerate(FIELDS)])
def test_a_value_of_any_kind_is_taken_or_refused_by_the_fields_name(
    client: httpx.Client, index: int, path: str, name: str
):
    num_refused = 0
    # Chat's fields meet more; what the others have of their own is made of the same types. Of each
    # type there are many fields, so that neighbours share the values.
    for value in (VALUES if path == CHAT else VALUES[::2])[index % 2 :: 2]:
        body = BODIES[path] | {name: value}
        try:
            content = json.dumps(body)
        except RecursionError:
            continue
        response = client.post(path, content=content)
        if response.status_code == 200:
            continue
        num_refused += 1
        if name in {"model", "previous_response_id"} and response.status_code == 404:
            continue
        error = refused(response)
        if error["param"] is None:  # the reader of JSON stops at its depth before there are fields
            assert "valid JSON" in error["message"] or _is_about(name, error)
        else:
            assert error["param"].startswith(name) or _is_about(name, error), error
            assert error["param"] in error["message"] or _is_about(name, error), error
    assert num_refused


def _is_about(name: str, error: dict[str, Any]) -> bool:
    """Whether the fault lies in two fields together, or in how long the prompt became."""
    too_long = "The context of this model" in error["message"]
    return name in error["message"] or too_long or "min_tokens" in (error["param"] or "")


@pytest.mark.parametrize(
    ("path", "name"), [field for field in FIELDS if field[1] in INTEGERS or field in OWN_BOUNDS]
)
def test_an_integer_outside_its_bounds_is_refused_at_once(
    client: httpx.Client, path: str, name: str
):
    low, high = OWN_BOUNDS.get((path, name)) or INTEGERS[name]
    for value in (low - 1, high + 1, -(2**63) - 1, 2**63, 2**64, -(10**30)):
        response = client.post(path, json=BODIES[path] | {name: value})
        assert refused(response)["param"] == name
        assert response.elapsed.total_seconds() < 10  # on a machine that is busy, too


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "+1", "01", "0x10", ".5", "1."]
)
def test_a_number_that_json_does_not_have_is_refused(client: httpx.Client, path: str, number: str):
    content = json.dumps(BODIES[path])[:-1] + f', "temperature": {number}}}'
    error = refused(client.post(path, content=content))
    assert error["param"] in (None, "temperature")


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("surrogate", [r"\ud800", r"\udfff", r"a\ud83d", r"\udc00\ud800"])
def test_a_lone_surrogate_is_refused_wherever_it_is(
    client: httpx.Client, path: str, surrogate: str
):
    for name in ("model", "user", "stop", "messages", "prompt", "cache_salt", surrogate):
        content = json.dumps(BODIES[path])[:-1] + f', "{name}": "{surrogate}"}}'
        refused(client.post(path, content=content))


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "content",
    [
        *(b"", b" ", b"{", b"[]", b"null", b'"text"', b"5", b"\xff\xfe", b"\xef\xbb\xbf{}", b"{}"),
        *(b"[" * 100_000, b'{"a":' * 100_000, b"{" + b'"a":1,' * 50_000 + b'"b":1}', b"\0" * 100),
        b'{"model": "m", "prompt": "\xff", "messages": []}',
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_body_that_is_no_request_is_refused(client: httpx.Client, path: str, content: bytes):
    refused(client.post(path, content=content))


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "name", ["temprature", "x", "", "a.b", "__class__", "model_config", "é" * 99]
)
def test_an_unknown_field_is_refused_by_its_name(client: httpx.Client, path: str, name: str):
    error = refused(client.post(path, json=BODIES[path] | {name: 1}))
    assert "is not a known field" in error["message"]
    assert error["param"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [None]}, "messages[0]"),
        ({"messages": [{}]}, "messages[0].role"),
        ({"messages": MESSAGES * 10_001}, "messages"),
        ({"messages": [{"role": "king", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": "Hi", "x": 1}]}, "messages[0].x"),
        ({"messages": [{"role": "user", "content": "Hi " * 3000}]}, "messages"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x"}}
                        ],
                    }
                ]
            },
            "messages[0].content[0].type",
        ),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages[0].tool_call_id"),
        ({"tools": [{}] * 129}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"logit_bias": {"320": 1}}, "logit_bias"),
        ({"stop_token_ids": [320]}, "stop_token_ids"),
        ({"max_tokens": 4000}, "max_tokens"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"raise_exception": 1}}, "chat_template_kwargs.raise_exception"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_wrong_in_a_chat_is_named(client: httpx.Client, fields: Any, param: str):
    error = refused(client.post(CHAT, json=BODIES[CHAT] | fields))
    assert error["param"] is not None
    assert error["param"].startswith(param)


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        ([[]], "prompt[0]"),
        ([""], "prompt[0]"),
        ([-1], "prompt[0]"),
        ([320], "prompt"),
        ([2**63], "prompt[0]"),
        ([1.5], "prompt[0]"),
        ([True], "prompt[0]"),
        ([1, None], "prompt[1]"),
        ([["a"]], "prompt[0][0]"),
        ([[[1]]], "prompt[0][0]"),
        (["a"] * 129, "prompt"),
        ([1] * 256, "prompt"),
        ("Hi " * 3000, "prompt"),
        (None, "prompt"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_prompt_that_cannot_be_is_named(client: httpx.Client, prompt: Any, param: str):
    assert refused(client.post(TEXT, json=BODIES[TEXT] | {"prompt": prompt}))["param"] == param


@pytest.mark.parametrize("path", BODIES)
def test_a_body_of_50_mb_is_refused_before_it_is_read(server: LiveServer, path: str):
    with server.connect() as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {50 * 2**20}\r\n\r\n".encode()
        )
        head = connection.recv(65536)
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"request_too_large" in head


@pytest.mark.parametrize("path", BODIES)
def test_an_endless_body_is_refused_when_it_passes_the_limit(client: httpx.Client, path: str):
    def endless() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 2**20

    try:
        response = client.post(path, content=endless())
    except httpx.WriteError:
        return  # it was refused, and the connection closed, while this still wrote
    refused(response, 413)
