from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from axion.backends.capabilities import Capabilities, Support
from axion.backends.events import EventReader
from axion.backends.upstream import Upstream, _ChatAnswer
from axion.errors import (
    AxionError,
    CannotContinueError,
    ContextLengthExceededError,
    EngineUnavailableError,
    InvalidRequestError,
    NotFoundError,
    QueueFullError,
    RequestTooLargeError,
)
from axion.openai.chat import ChatCompletionChunk, ChatCompletionRequest, collect_chat
from axion.openai.completions import CompletionChunk, CompletionRequest, collect_completion
from axion.openai.delivered import Delivered
from tests.backends.fake_server import DEFAULTS, FakeServer, text_of

STYLES = ("vllm", "max", "llama_cpp")
HONOURS_ALL = Capabilities(engine="fake", honours_all=True)
HONOURS_NOTHING = Capabilities(engine="fake")
TOOL = {"type": "function", "function": {"name": "f"}}
LEAKS = ("/usr", "127.0.0.1", "http:", "core.py", "Traceback", "secret")


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, FakeServer]]:
    servers = {style: FakeServer(style) for style in STYLES}
    yield servers
    for server in servers.values():
        server.close()


@pytest.fixture
def fake(servers: dict[str, FakeServer]) -> Callable[..., FakeServer]:
    def configured(style: str = "vllm", **settings: Any) -> FakeServer:
        try:
            servers[style].control(**DEFAULTS | settings)
        except httpx.ConnectError:  # a test had it die
            servers[style].close()
            servers[style] = FakeServer(style, **settings)
        return servers[style]

    return configured


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[..., Upstream]]:
    made: list[Upstream] = []

    def create(server: FakeServer, **arguments: Any) -> Upstream:
        given = {"engine": "fake", "capabilities": HONOURS_ALL, "upstream_model": "fake-model"}
        made.append(Upstream(server.url, **{**given, "served_name": "m", **arguments}))
        return made[-1]

    yield create
    for one in made:
        await one.close()


def chat_request(**fields: Any) -> ChatCompletionRequest:
    messages = [{"role": "user", "content": "Count please"}]
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    return ChatCompletionRequest.model_validate(
        {"model": "m", "messages": messages, **stream, **fields}
    )


def text_request(**fields: Any) -> CompletionRequest:
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    return CompletionRequest.model_validate({"model": "m", "prompt": "Count", **stream, **fields})


def dumped(chunk: ChatCompletionChunk | CompletionChunk) -> Any:
    return json.loads(chunk.to_json())


async def take(
    chunks: AsyncIterator[Any], delivered: Delivered | None = None
) -> tuple[list[Any], AxionError | None]:
    """The chunks up to the end or the error."""
    taken = []
    try:
        async with asyncio.timeout(20):
            async for chunk in chunks:
                taken.append(chunk)
                if delivered is not None:
                    delivered.take(chunk)
    except AxionError as error:
        return taken, error
    return taken, None


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("style", STYLES)
async def test_a_chat_is_the_same_whichever_engine_answers(fake, upstream, style: str):
    chunks, _ = await take(upstream(fake(style, num_tokens=3)).chat(chat_request(), "7"))

    shared = {
        "id": "chatcmpl-7",
        "object": "chat.completion.chunk",
        "created": chunks[0].created,
        "model": "m",
        "system_fingerprint": None,
        "usage": None,
    }
    deltas = [{"role": "assistant", "content": ""}, *({"content": f" {i}"} for i in range(3)), {}]
    choices = [
        [{"index": 0, "delta": d, "logprobs": None, "finish_reason": None if d else "stop"}]
        for d in deltas
    ]
    usage = {
        "prompt_tokens": 2,
        "completion_tokens": 4,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    expected = [shared | {"choices": choice} for choice in choices]
    assert [dumped(chunk) for chunk in chunks] == [
        *expected,
        shared | {"choices": [], "usage": usage},
    ]
    assert abs(chunks[0].created - time.time()) < 60


@pytest.mark.parametrize("style", STYLES)
async def test_a_completion_is_the_same_whichever_engine_answers(fake, upstream, style: str):
    request = text_request(echo=True, max_tokens=2)
    chunks, _ = await take(upstream(fake(style)).complete(request, "7"))

    texts = [(c.text, c.finish_reason) for chunk in chunks for c in chunk.choices]
    assert texts == [("Count", None), (" 0", None), (" 1", None), ("", "length")]
    assert dumped(chunks[-1])["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 2,
        "total_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert (chunks[0].id, chunks[0].object) == ("cmpl-7", "text_completion")


async def test_an_answer_that_does_not_stream_is_collected(fake, upstream):
    up = upstream(fake(num_tokens=3))
    request = {"stream": None, "stream_options": None}
    chat = await collect_chat(up.chat(chat_request(**request, n=2), "1"))
    assert [choice.message.content for choice in chat.choices] == [" 0 1 2"] * 2
    prompts = ["a", "b 0"]
    texts = await collect_completion(up.complete(text_request(**request, prompt=prompts), "1"))
    assert [choice.text for choice in texts.choices] == [" 0 1 2", " 1 2"]
    assert texts.usage.prompt_tokens == 3


async def test_a_stream_without_usage_asked_for_has_none(fake, upstream):
    chunks, _ = await take(upstream(fake()).chat(chat_request(stream_options=None), "1"))
    assert all("usage" not in dumped(chunk) and chunk.choices for chunk in chunks)


async def test_usage_is_counted_where_the_engine_does_not_tell_it(fake, upstream):
    chunks, _ = await take(upstream(fake(drop=["usage"])).chat(chat_request(max_tokens=5), "1"))
    assert chunks[-1].usage.completion_tokens == 5


async def test_usage_in_every_chunk(fake, upstream):
    options = {"include_usage": True, "continuous_usage_stats": True}
    request = text_request(stream_options=options, max_tokens=3)
    chunks, _ = await take(upstream(fake()).complete(request, "1"))
    assert [chunk.usage.completion_tokens for chunk in chunks] == [1, 2, 3, 3, 3]


async def test_reasoning_has_one_name(fake, upstream):
    chunks, _ = await take(upstream(fake(num_reasoning=2, num_tokens=1)).chat(chat_request(), "1"))
    deltas = [dumped(chunk)["choices"][0]["delta"] for chunk in chunks[1:4]]
    assert deltas == [{"reasoning_content": " r0"}, {"reasoning_content": " r1"}, {"content": " 0"}]
    assert chunks[-1].usage.completion_tokens_details.reasoning_tokens == 2


async def test_a_tool_call(fake, upstream):
    request = chat_request(tools=[TOOL], tool_choice="required", stream=None, stream_options=None)
    answer = await collect_chat(upstream(fake()).chat(request, "1"))
    (call,) = answer.choices[0].message.tool_calls
    assert (call.id, call.function.name, call.function.arguments) == ("call_1", "f", '{"a": 1}')
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_log_probabilities(fake, upstream):
    up = upstream(fake())
    request = chat_request(logprobs=True, top_logprobs=1, max_tokens=1)
    chunks, _ = await take(up.chat(request, "1"))
    entry = {"token": " 0", "logprob": -0.5, "bytes": [32, 48]}
    assert dumped(chunks[1])["choices"][0]["logprobs"] == {
        "content": [entry | {"top_logprobs": [entry]}],
        "refusal": None,
    }
    chunks, _ = await take(up.complete(text_request(logprobs=1, max_tokens=2), "1"))
    assert dumped(chunks[1])["choices"][0]["logprobs"] == {
        "tokens": [" 1"],
        "token_logprobs": [-0.5],
        "top_logprobs": [{" 1": -0.5}],
        "text_offset": [2],
    }


async def test_a_stop_string_ends_the_answer(fake, upstream):
    chunks, _ = await take(upstream(fake()).chat(chat_request(stop="4 5"), "1"))
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert text == " 0 1 2 3 "


# What Axion makes good


COUNTS = {"max": {"return_token_ids": True}, "llama_cpp": {"timings_per_token": True}}


def repairing(upstream: Callable[..., Upstream], server: FakeServer, style: str) -> Upstream:
    return upstream(server, capabilities=HONOURS_NOTHING, counts=COUNTS[style])


@pytest.mark.parametrize("style", COUNTS)
@pytest.mark.parametrize("kind", ["chat", "text"])
@pytest.mark.parametrize(
    ("fields", "text", "num_tokens", "reason"),
    [
        ({"stop": "4 5"}, " 0 1 2 3 ", 6, "4 5"),
        ({"stop": ["9 9", " 3"]}, " 0 1 2", 4, " 3"),
        ({"stop": "3 4", "include_stop_str_in_output": True}, " 0 1 2 3 4", 5, "3 4"),
        ({"stop": [" 2", " 5"], "min_tokens": 4}, " 0 1 2 3 4", 6, " 5"),
        ({"stop": " 4 x", "max_tokens": 5}, " 0 1 2 3 4", 5, None),
    ],
)
async def test_stop_strings_that_the_server_does_not_know_end_the_answer(
    fake,
    upstream,
    style: str,
    kind: str,
    fields: dict[str, Any],
    text: str,
    num_tokens: int,
    reason,
):
    server = fake(style, token_s=0.001, num_tokens=2000)
    up = repairing(upstream, server, style)
    fields = {"max_tokens": 2000, **fields}
    answers = {
        "chat": lambda: collect_chat(up.chat(chat_request(**fields), "1")),
        "text": lambda: collect_completion(up.complete(text_request(**fields), "1")),
    }
    answer = await answers[kind]()
    (choice,) = answer.choices
    assert (choice.text if kind == "text" else choice.message.content) == text
    assert choice.finish_reason == ("length" if reason is None else "stop")
    assert choice.stop_reason == reason
    assert answer.usage.completion_tokens == num_tokens
    assert answer.usage.prompt_tokens == {"chat": 2, "text": 1}[kind]
    assert "stop" not in server.stats()["body"]
    if reason is not None:
        await until(lambda: server.stats()["num_aborted"] == 1)


@pytest.mark.parametrize("kind", ["chat", "text"])
async def test_log_probabilities_come_with_the_text_of_their_tokens(fake, upstream, kind: str):
    up = repairing(upstream, fake("llama_cpp"), "llama_cpp")
    request = {"stop": "3 5", "max_tokens": 6, "logprobs": True}
    if kind == "chat":
        chunks, _ = await take(up.chat(chat_request(**request), "1"))
        told = [
            (c.delta.content, [entry.token for entry in c.logprobs.content])
            for chunk in chunks
            for c in chunk.choices
            if c.logprobs is not None
        ]
    else:
        request["logprobs"] = 1
        chunks, _ = await take(up.complete(text_request(**request), "1"))
        told = [
            (c.text, c.logprobs.tokens)
            for chunk in chunks
            for c in chunk.choices
            if c.logprobs is not None
        ]
    alone = [(f" {i}", [f" {i}"]) for i in range(6)]
    assert told == [*alone[:3], ("3 4", [" 3", " 4"]), alone[5]]


@pytest.mark.parametrize("fields", [{"n": 3}, {"prompt": ["a b", "c"], "n": 2}])
async def test_the_usage_is_that_of_all_choices(fake, upstream, fields: dict[str, Any]):
    up = repairing(upstream, fake("llama_cpp"), "llama_cpp")
    chunks, _ = await take(up.complete(text_request(max_tokens=5, **fields), "1"))
    usage = chunks[-1].usage
    num_choices = len({choice.index for chunk in chunks for choice in chunk.choices})
    assert usage.completion_tokens == 5 * num_choices
    assert usage.prompt_tokens == (3 if "prompt" in fields else 1)
    assert usage.prompt_tokens_details.cached_tokens == len(fields.get("prompt", "a"))


async def test_a_cut_choice_does_not_end_the_others(fake, upstream):
    server = fake("llama_cpp")
    up = repairing(upstream, server, "llama_cpp")
    answer = await collect_chat(up.chat(chat_request(stop=" 3", n=2), "1"))
    assert [choice.message.content for choice in answer.choices] == [" 0 1 2"] * 2
    assert answer.usage.completion_tokens == 8


async def test_usage_in_every_chunk_where_the_server_counts_in_its_own_words(fake, upstream):
    options = {"include_usage": True, "continuous_usage_stats": True}
    server = fake("max")
    up = repairing(upstream, server, "max")
    chunks, _ = await take(up.chat(chat_request(stream_options=options, max_tokens=3), "1"))
    assert [chunk.usage.completion_tokens for chunk in chunks] == [1, 1, 2, 3, 3, 3]
    assert server.stats()["body"]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(("features", "sent"), [([], 1_592_653_589), (["seed.0"], 0)])
def test_seed_0_is_another_number_where_it_means_none(features: list[str], sent: int):
    honoured = dict.fromkeys(["seed", *features], Support.HONOURED)
    capabilities = Capabilities(engine="x", features=honoured)
    up = Upstream(
        "http://h", engine="x", upstream_model="u", served_name="m", capabilities=capabilities
    )
    assert up.body(chat_request(seed=0))["seed"] == sent
    assert up.body(chat_request(seed=3))["seed"] == 3


# What is sent


async def test_the_body_says_what_the_client_said(fake, upstream):
    server = fake()
    up = upstream(server, api_key="secret", rename={"top_k": "k"}, extra_body={"x": 1})
    request = chat_request(
        temperature=0.5,
        top_k=3,
        seed=None,
        user="u",
        metadata={"a": "b"},
        prompt_cache_key="k",
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}],
        guided_regex="[0-9]+",
    )
    await take(up.chat(request, "1"))
    stats = server.stats()
    assert stats["body"] == {
        "model": "fake-model",
        "messages": [{"role": "user", "content": "Count please"}],
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "temperature": 0.5,
        "k": 3,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}],
        "structured_outputs": {"regex": "[0-9]+"},
        "x": 1,
    }
    assert stats["headers"]["authorization"] == "Bearer secret"


async def test_what_asks_for_nothing_is_not_sent_to_an_engine_that_may_refuse_it(fake, upstream):
    neutral = {"logit_bias": {}, "ignore_eos": False, "skip_special_tokens": True, "n": 1}
    up = upstream(fake("max"), capabilities=HONOURS_NOTHING)
    _, error = await take(up.chat(chat_request(**neutral), "1"))
    assert error is None
    _, error = await take(up.chat(chat_request(min_p=0.5, skip_special_tokens=False), "1"))
    assert isinstance(error, InvalidRequestError)
    assert error.param == "skip_special_tokens"


async def test_a_completion_without_limit_is_as_long_as_everywhere(fake, upstream):
    server = fake()
    await take(upstream(server).complete(text_request(), "1"))
    assert server.stats()["body"]["max_tokens"] == 16


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"guided_json": {"type": "object"}}, {"json": {"type": "object"}}),
        ({"guided_choice": ["a"]}, {"choice": ["a"]}),
        ({"guided_grammar": "g"}, {"grammar": "g"}),
        ({"structured_outputs": {"json_object": True}}, {"json_object": True}),
        ({"structured_outputs": {"json": '{"a": 1}'}}, {"json": '{"a": 1}'}),
    ],
)
def test_structured_output_in_vllms_words(fields: dict[str, Any], sent: dict[str, Any]):
    up = Upstream("http://h", engine="vllm", upstream_model="u", served_name="m")
    assert up.body(chat_request(**fields))["structured_outputs"] == sent


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"guided_json": '{"type": "object"}'}, "json_schema"),
        ({"structured_outputs": {"json": {"type": "object"}}}, "json_schema"),
        ({"structured_outputs": {"json_object": True}}, "json_object"),
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"guided_regex": "a"}, None),
    ],
)
def test_structured_output_in_openais_words(fields: dict[str, Any], kind: str | None):
    up = Upstream("http://h", engine="max", upstream_model="u", served_name="m")
    if kind is None:
        with pytest.raises(InvalidRequestError, match=r"guided_regex is not supported .*\(max\)"):
            up.body(chat_request(**fields))
        return
    sent = up.body(chat_request(**fields))["response_format"]
    assert sent["type"] == kind
    if kind == "json_schema":
        assert sent["json_schema"]["schema"] == {"type": "object"}


# Faults


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(
    "fault", ["close", "die", "no_done", "error_event", "garbage", "endless_event"]
)
async def test_a_stream_that_breaks_off_is_the_engines_fault(
    fake, upstream, fault: str, after: int
):
    server = fake(fault=fault, after=after, token_s=0.001)
    up = upstream(server)
    chunks, error = await take(up.chat(chat_request(), "1"))
    assert type(error) is EngineUnavailableError
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert text == text_of(0, after)
    assert not any(leak in error.message for leak in LEAKS)
    assert up.num_running == 0


@pytest.mark.parametrize("fault", ["not_http", "endless_head", "status"])
async def test_a_failure_before_the_answer_is_the_engines_fault(fake, upstream, fault: str):
    chunks, error = await take(upstream(fake(fault=fault)).chat(chat_request(), "1"))
    assert (chunks, type(error)) == ([], EngineUnavailableError)


async def test_an_answer_that_is_whole_needs_no_marker(fake, upstream):
    chunks, error = await take(upstream(fake(fault="no_marker")).chat(chat_request(), "1"))
    assert error is None
    assert chunks[-1].usage.completion_tokens == 21


async def test_a_choice_that_is_missing_is_the_engines_fault(fake, upstream):
    _, error = await take(upstream(fake("max")).chat(chat_request(n=2), "1"))
    assert isinstance(error, EngineUnavailableError)


async def test_nobody_there(upstream):
    up = Upstream("http://127.0.0.1:1/v1", engine="fake", upstream_model="u", served_name="m")
    _, error = await take(up.chat(chat_request(), "1"))
    assert type(error) is EngineUnavailableError
    assert not any(leak in error.message for leak in LEAKS)
    assert not await up.is_healthy()
    with pytest.raises(EngineUnavailableError):
        await up.answers()


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "top_k must be at least 1", InvalidRequestError),
        (400, "This model's maximum context length is 9 tokens.", ContextLengthExceededError),
        (413, "Too large", RequestTooLargeError),
        (422, "Field required", InvalidRequestError),
        (429, "Busy", QueueFullError),
        (401, "Incorrect key secret", EngineUnavailableError),
        (404, "The model does not exist", EngineUnavailableError),
        (502, "Bad gateway", EngineUnavailableError),
        (503, "Loading", EngineUnavailableError),
    ],
)
async def test_an_error_of_the_engine_has_its_meaning(
    fake, upstream, style: str, status: int, message: str, kind: type[AxionError]
):
    up = upstream(fake(style, fault="status", status=status, message=message), api_key="secret")
    _, error = await take(up.chat(chat_request(), "1"))
    assert type(error) is kind
    if kind is QueueFullError:
        assert error.headers == {"Retry-After": "7"}
    elif isinstance(error, InvalidRequestError):
        assert error.message == f"{message} (engine: fake)"


async def test_an_error_in_the_stream_may_be_the_requests(fake, upstream):
    server = fake(fault="error_event", status=400, message="bad")
    _, error = await take(upstream(server).chat(chat_request(), "1"))
    assert isinstance(error, InvalidRequestError)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        (b'{"error": {"message": "no", "param": "n", "code": 400}}', "no", "n"),
        (b'{"detail": [{"loc": ["body", "n"], "msg": "too big"}]}', "too big", "n"),
        (b'{"detail": "no"}', "no", None),
        (b'{"error": "no"}', "no", None),
        (b'{"object": "error", "message": "no", "code": 400}', "no", None),
        (b"no", "no", None),
        (b"\xff[]", "\ufffd[]", None),
        (
            b'{"error": {"message": "1 error\\n a For further information visit x", "param": ""}}',
            "1 error a",
            None,
        ),
        (b"[]", "The request was refused.", None),
        (b'{"error": {"message": "/models/llama-3 is wrong"}}', "m is wrong", None),
        (b'{"error": {"message": "see https://h:1/a?b=secret"}}', "see …", None),
        (
            b'{"error": {"message": "in ~/.cache/hub/x.py line 3\\n\\nand"}}',
            "in … line 3 and",
            None,
        ),
        (b'{"error": {"message": "key secret is wrong"}}', "key … is wrong", None),
        (b'{"error": {"message": "Bad. Traceback (most recent call last): x"}}', "Bad.", None),
    ],
)
def test_the_engines_words_come_without_what_is_its_own(
    body: bytes, message: str, param: str | None
):
    up = Upstream(
        "http://h", engine="e", upstream_model="/models/llama-3", served_name="m", api_key="secret"
    )
    error = up.failure(400, body, {})
    assert (error.message, error.param) == (f"{message} (engine: e)", param)


# Clients that leave, and the end


@pytest.mark.parametrize("fault", ["", "silent", "hang"])
async def test_a_client_who_leaves_frees_the_engine(fake, upstream, fault: str):
    server = fake(num_tokens=10**6, token_s=0.001, fault=fault, after=0 if fault == "hang" else 2)
    up = upstream(server)

    async def client() -> None:
        async with aclosing(up.chat(chat_request(), "1")) as chunks:
            async for _ in chunks:
                pass

    task = asyncio.create_task(client())
    await until(lambda: server.stats()["num_running"] == 1)
    assert up.num_running == 1
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until(lambda: server.stats()["num_aborted"] == 1)
    assert (up.num_running, server.stats()["num_running"]) == (0, 0)


async def test_many_streams_at_once_share_connections_in_turn(fake, upstream):
    server = fake(num_tokens=50)
    up = upstream(server)
    for _ in range(2):
        answers = await asyncio.gather(*(take(up.chat(chat_request(), str(i))) for i in range(100)))
        assert all(error is None and len(chunks) == 53 for chunks, error in answers)
    assert server.stats()["num_requests"] == 200
    assert len(up._client._open) <= 100


def test_streams_that_break_off_on_the_servers_event_loop(fake):
    server = fake(num_tokens=30, fault="close", after=7, times=20)

    async def run() -> None:
        up = Upstream(server.url, engine="fake", upstream_model="fake-model", served_name="m")
        answers = await asyncio.gather(*(take(up.chat(chat_request(), str(i))) for i in range(50)))
        assert sorted(len(chunks) for chunks, _ in answers) == [8] * 20 + [33] * 30
        await up.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def test_draining_waits_for_requests_and_ends_those_that_take_too_long(fake, upstream):
    up = upstream(fake(num_tokens=5, token_s=0.01))
    quick = asyncio.create_task(take(up.chat(chat_request(), "1")))
    await until(lambda: up.num_running == 1)
    await up.drain(10)
    assert (await quick)[1] is None
    _, error = await take(up.chat(chat_request(), "2"))
    assert isinstance(error, EngineUnavailableError)

    up = upstream(fake(fault="silent", after=1))
    endless = asyncio.create_task(take(up.chat(chat_request(), "1")))
    await until(lambda: up.num_running == 1)
    await up.drain(0.01)
    assert isinstance((await endless)[1], EngineUnavailableError)


async def test_health(fake, upstream):
    server = fake(healthy=False)
    up = upstream(server)
    assert not await up.is_healthy()
    server.control(healthy=True)
    assert await up.is_healthy()
    server.control(fault="hang_all")
    assert not await up.is_healthy(timeout_s=0.05)


async def test_answers_means_a_real_token(fake, upstream):
    server = fake(fault="status", times=1, status=400, message="no chat template")
    up = upstream(server)
    await up.answers()
    assert server.stats()["body"] == {"model": "fake-model", "max_tokens": 1, "prompt": "Hi"}
    server.control(fault="status", times=-1, status=500)
    with pytest.raises(EngineUnavailableError):
        await up.answers()


async def test_tokens(fake, upstream):
    up = upstream(fake())
    tokens = await up.tokenize("a bcd", with_strings=True)
    assert (tokens.token_ids, tokens.token_strings) == ([1, 3], ["a", "bcd"])
    assert (await up.tokenize(chat_request())).token_ids == [5, 6]
    assert await up.detokenize([4, 5]) == " 4 5"
    with pytest.raises(NotFoundError):
        await upstream(fake("max")).tokenize("a")


# Going on with another engine's answer


@pytest.mark.parametrize("tells_usage", [True, False])
@pytest.mark.parametrize(
    ("limit", "after"),
    [*itertools.product([None, 12, 30], [0, 1, 2, 7, 12]), (None, 13), (30, 13)],
)
@pytest.mark.parametrize("kind", ["chat", "text"])
async def test_a_continued_answer_equals_an_uninterrupted_one(
    fake, upstream, kind: str, limit: int | None, after: int, tells_usage: bool
):
    server = fake(num_tokens=12, token_s=0.0001)
    up = upstream(server)
    if not tells_usage:
        up.tells_usage = False
    request = (chat_request if kind == "chat" else text_request)(max_tokens=limit)
    run = up.chat if kind == "chat" else up.complete
    whole, _ = await take(run(request, "1"))

    server.control(fault="close", after=after)
    delivered = Delivered()
    begun, error = await take(run(request, "1"), delivered)
    assert isinstance(error, EngineUnavailableError)
    server.control(fault="")
    rest, error = await take(run(request, "1", delivered=delivered), delivered)

    assert error is None
    if after == 13 and not tells_usage:  # nobody has said that the end was a token
        rest[-1].usage.completion_tokens += 1
        rest[-1].usage.total_tokens += 1
    chunks = [dumped(chunk) | {"created": 0} for chunk in begun + rest]
    assert chunks == [dumped(chunk) | {"created": 0} for chunk in whole]
    assert delivered.choices[0].content == text_of(0, 12)


async def test_echo_is_not_said_twice(fake, upstream):
    server = fake(fault="close", after=2, num_tokens=5)
    up = upstream(server)
    request = text_request(echo=True)
    delivered = Delivered()
    await take(up.complete(request, "1"), delivered)
    server.control(fault="")
    await take(up.complete(request, "1", delivered=delivered), delivered)
    assert delivered.choices[0].content == "Count" + text_of(0, 5)


async def test_an_open_last_message_stays_open(fake, upstream):
    server = fake(fault="close", after=2, num_tokens=6)
    up = upstream(server)
    messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "So: 0"}]
    open_ = {"continue_final_message": True, "add_generation_prompt": False}
    request = chat_request(messages=messages, **open_)
    delivered = Delivered()
    await take(up.chat(request, "1"), delivered)
    server.control(fault="")
    await take(up.chat(request, "1", delivered=delivered), delivered)
    assert delivered.choices[0].content == text_of(1, 6)
    assert server.stats()["body"]["messages"][-1]["content"] == "So: 0 1 2"
    assert len(server.stats()["body"]["messages"]) == 2


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({}, {"num_reasoning": 1}),
        ({"tools": [TOOL], "tool_choice": "required"}, {}),
        ({"guided_regex": "[0-9 ]+"}, {}),
        ({"response_format": {"type": "json_object"}}, {}),
        ({"n": 2}, {}),
        ({"presence_penalty": 1}, {}),
    ],
)
async def test_what_cannot_be_gone_on_with_is_refused_at_once(
    fake, upstream, fields: dict[str, Any], settings: dict[str, Any]
):
    server = fake(fault="close", after=1, **settings)
    up = upstream(server)
    request = chat_request(**fields)
    delivered = Delivered()
    await take(up.chat(request, "1"), delivered)
    server.control(fault="")
    chunks, error = await take(up.chat(request, "1", delivered=delivered))
    assert (chunks, type(error)) == ([], CannotContinueError)
    assert server.stats()["num_requests"] == 0


async def test_only_an_engine_that_honours_it_goes_on_with_a_chat(fake, upstream):
    server = fake(fault="close", after=1)
    up = upstream(server, capabilities=HONOURS_NOTHING)
    delivered = Delivered()
    await take(up.chat(chat_request(), "1"), delivered)
    _, error = await take(up.chat(chat_request(), "1", delivered=delivered))
    assert isinstance(error, CannotContinueError)


@pytest.mark.parametrize("fields", [{"prompt": [1, 2]}, {"echo": True, "logprobs": 1}])
async def test_only_a_text_prompt_is_gone_on_with(fake, upstream, fields: dict[str, Any]):
    server = fake(fault="close", after=1)
    up = upstream(server)
    delivered = Delivered()
    await take(up.complete(text_request(**fields), "1"), delivered)
    _, error = await take(up.complete(text_request(**fields), "1", delivered=delivered))
    assert isinstance(error, CannotContinueError)


# Bytes

STREAM = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}\r\n\r\n'
    b': ping\n\ndata: {"choices":[{"index":0,"delta":{"content":"\xe2\x82\xac"},"x":[1]}]}\n\n'
    b'data: {"choices":[],"usage":null}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":""},"finish_reason":""}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"!"},"finish_reason":"eos_token"}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"never"},"finish_reason":"stop"}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n'
    b"data: [DONE]\n\n"
)


def translated(pieces: list[bytes]) -> list[Any]:
    up = Upstream("http://h", engine="fake", upstream_model="u", served_name="m")
    answer = _ChatAnswer(up, chat_request(), "1", None)
    answer._shared["created"] = 0
    reader = EventReader()
    events = [event for piece in pieces for event in reader.push(piece)]
    chunks = [chunk for event in events for chunk in answer.take(event)]
    return [dumped(chunk) for chunk in [*chunks, *answer.end()]]


@given(st.lists(st.integers(0, len(STREAM))))
def test_an_answer_is_the_same_however_its_bytes_come(cuts: list[int]):
    edges = [0, *sorted(cuts), len(STREAM)]
    chunks = translated([STREAM[start:end] for start, end in itertools.pairwise(edges)])
    assert chunks == translated([STREAM])
    deltas = [(c["delta"], c["finish_reason"]) for chunk in chunks for c in chunk["choices"]]
    assert deltas == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "€"}, None),
        ({"content": "!"}, None),
        ({}, "stop"),
    ]


@pytest.mark.parametrize(
    ("engine", "chat", "completion", "num_tokens"),
    [
        ("vllm", "ic responseeutsory", "CHeren chatauseM accept", (22, 8, 7, 8)),
        ("max", "user\nHello, wh", "Once upon a time", (22, 8, 7, 7)),
    ],
)
async def test_recorded_answers_of_real_engines(
    engine: str, chat: str, completion: str, num_tokens: tuple[int, ...]
):
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        kind = "chat" if b"/chat/" in head else "completion"
        data = (Path(__file__).parent / "data" / f"{engine}-{kind}.http").read_bytes()
        for start in range(0, len(data), 100):
            writer.write(data[start : start + 100])
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    up = Upstream(url, engine=engine, upstream_model="tiny", served_name="m")
    options = {"stream": None, "stream_options": None}
    whole = await collect_chat(up.chat(chat_request(**options), "1"))
    text = await collect_completion(up.complete(text_request(**options), "1"))
    await up.close()
    server.close()
    await server.wait_closed()
    assert (whole.choices[0].message.content or "").startswith(chat)
    assert text.choices[0].text.startswith(completion)
    assert text.choices[0].logprobs is None
    assert (
        *(whole.usage.prompt_tokens, whole.usage.completion_tokens),
        *(text.usage.prompt_tokens, text.usage.completion_tokens),
    ) == num_tokens
