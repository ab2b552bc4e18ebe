from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from axion.backends.capabilities import Capabilities
from axion.backends.events import EventReader, ServerEvent
from axion.backends.upstream.chat import ChatAnswer
from axion.backends.upstream.client import Upstream
from axion.backends.upstream.dialect import Dialect
from axion.backends.upstream.faults import Faults
from axion.errors import EngineUnavailableError
from axion.openai.chat_answer import collect_chat
from axion.openai.completions import collect_completion
from tests.backends.fake_server import text_of
from tests.backends.upstream.harness import (
    COUNTS,
    LEAKS,
    STYLES,
    chat_request,
    dumped,
    repairing,
    take,
    text_request,
    until,
)


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


PROMPT = [1, 802, 201, 42, 75, 2, 201, 1, 758, 426, 874, 201]  # of the recorded chats


async def test_vllms_token_ids_are_passed_on():
    async with recorded("vllm", "{kind}-tokens") as up:
        chunks, _ = await take(up.chat(chat_request(return_token_ids=True), "1"))
        texts, _ = await take(up.complete(text_request(return_token_ids=True), "1"))
        silent, _ = await take(up.chat(chat_request(), "1"))
        whole = await collect_completion(
            up.complete(text_request(return_token_ids=True, stream=None, stream_options=None), "1")
        )
    assert [chunk.prompt_token_ids for chunk in chunks] == [PROMPT, *[None] * (len(chunks) - 1)]
    token_ids = [dumped(chunk)["choices"][0]["token_ids"] for chunk in chunks[:-1]]
    assert token_ids == [[], [517], [422], [774], []]
    assert chunks[-1].usage.prompt_tokens == texts[-1].usage.prompt_tokens + 9 == len(PROMPT)
    assert [id for chunk in texts[:-1] for id in chunk.choices[0].token_ids] == [857, 362, 896]
    assert [chunk.choices[0].prompt_token_ids for chunk in texts[:2]] == [[42, 374, 344], None]
    assert "token_ids" not in str([dumped(chunk) for chunk in silent])
    [choice] = dumped(whole)["choices"]
    assert (choice["token_ids"], choice["prompt_token_ids"]) == ([857, 362, 896], [42, 374, 344])


async def test_vllms_scores_of_a_prompt_are_passed_on():
    fields = {"prompt_logprobs": 1, "return_token_ids": True, "stream": None}
    async with recorded("vllm", "{kind}-scores") as up:
        chat = await collect_chat(up.chat(chat_request(**fields, stream_options=None), "1"))
        text = await collect_completion(
            up.complete(text_request(**fields, stream_options=None), "1")
        )
    assert chat.choices[0].message.content == " textderlse"
    assert dumped(chat)["prompt_token_ids"] == PROMPT
    [choice] = dumped(text)["choices"]
    for answer, token_ids in ((dumped(chat), PROMPT), (choice, [42, 374, 344])):
        first, *entries = answer["prompt_logprobs"]
        assert first is None
        assert [next(iter(entry)) for entry in entries] == [str(id) for id in token_ids[1:]]
    assert choice["prompt_logprobs"][1] == {
        "374": {"logprob": -6.072021961212158, "rank": 61, "decoded_token": "el"},
        "901": {"logprob": -1.583297848701477, "rank": 1, "decoded_token": "04"},
    }
    assert (choice["text"], choice["finish_reason"]) == (" D itscheduler", "length")
    assert text.usage.total_tokens == 6


async def test_all_calls_of_a_whole_answer_are_taken():
    functions = [{"name": name, "arguments": f'{{"a": {i}}}'} for i, name in enumerate("fg")]
    calls = [{"id": f"c{i}", "type": "function", "function": f} for i, f in enumerate(functions)]
    message = {"role": "assistant", "content": None, "reasoning": "Hm.", "tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    usage = {"prompt_tokens": 1, "completion_tokens": 9}
    request = chat_request(prompt_logprobs=0, stream=None, stream_options=None)
    dialect = Dialect(engine="vllm", upstream_model="u", capabilities=Capabilities(engine="vllm"))
    faults = Faults(engine="vllm", upstream_model="u", served_name="m", api_key=None)
    answer = ChatAnswer(dialect, faults, "m", request, "1", None)
    body = answer.body()
    assert body is not None
    assert not body.keys() & {"stream", "stream_options"}
    event = ServerEvent(json.dumps({"choices": [choice], "usage": usage}).encode())

    async def chunks() -> AsyncIterator[Any]:
        for chunk in (*answer.take(event), *answer.end()):
            yield chunk

    whole = await collect_chat(chunks())
    assert whole.choices[0].message.reasoning_content == "Hm."
    assert [call.function.model_dump() for call in whole.choices[0].message.tool_calls] == functions
    assert whole.choices[0].finish_reason == "tool_calls"


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


@asynccontextmanager
async def recorded(engine: str, name: str) -> AsyncIterator[Upstream]:
    """A server that answers as one has answered before.

    Args:
        name: of the record, behind the engine's; `{kind}` stands for `chat` or `completion`.
    """

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        file = name.format(kind="chat" if b"/chat/" in head else "completion")
        data = (Path(__file__).parent / "data" / f"{engine}-{file}.http").read_bytes()
        for start in range(0, len(data), 100):
            writer.write(data[start : start + 100])
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    up = Upstream(url, engine=engine, upstream_model="tiny", served_name="m")
    try:
        yield up
    finally:
        await up.close()
        server.close()
        await server.wait_closed()


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
    options = {"stream": None, "stream_options": None}
    async with recorded(engine, "{kind}") as up:
        whole = await collect_chat(up.chat(chat_request(**options), "1"))
        text = await collect_completion(up.complete(text_request(**options), "1"))
    assert (whole.choices[0].message.content or "").startswith(chat)
    assert text.choices[0].text.startswith(completion)
    assert text.choices[0].logprobs is None
    assert (
        *(whole.usage.prompt_tokens, whole.usage.completion_tokens),
        *(text.usage.prompt_tokens, text.usage.completion_tokens),
    ) == num_tokens


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
    dialect = Dialect(engine="fake", upstream_model="u", capabilities=Capabilities(engine="fake"))
    faults = Faults(engine="fake", upstream_model="u", served_name="m", api_key=None)
    answer = ChatAnswer(dialect, faults, "m", chat_request(), "1", None)
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


async def test_a_stop_string_ends_the_answer(fake, upstream):
    chunks, _ = await take(upstream(fake()).chat(chat_request(stop="4 5"), "1"))
    text = "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices)
    assert text == " 0 1 2 3 "


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


async def test_a_cut_choice_does_not_end_the_others(fake, upstream):
    server = fake("llama_cpp")
    up = repairing(upstream, server, "llama_cpp")
    answer = await collect_chat(up.chat(chat_request(stop=" 3", n=2), "1"))
    assert [choice.message.content for choice in answer.choices] == [" 0 1 2"] * 2
    assert answer.usage.completion_tokens == 8


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


async def test_an_answer_that_is_whole_needs_no_marker(fake, upstream):
    chunks, error = await take(upstream(fake(fault="no_marker")).chat(chat_request(), "1"))
    assert error is None
    assert chunks[-1].usage.completion_tokens == 21


async def test_a_choice_that_is_missing_is_the_engines_fault(fake, upstream):
    _, error = await take(upstream(fake("max")).chat(chat_request(n=2), "1"))
    assert isinstance(error, EngineUnavailableError)
