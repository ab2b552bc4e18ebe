from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai.types.chat
import pytest

from axion.errors import InternalError
from axion.openai.chat_answer import (
    ChatCompletionChunk,
    ChoiceLogprobs,
    ChunkChoice,
    Delta,
    DeltaFunction,
    DeltaToolCall,
    TokenLogprob,
    TopLogprob,
    collect_chat,
)
from axion.openai.common import PromptTokensDetails, Usage

SHARED: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "system_fingerprint": None,
}


def chunk(index: int, delta: Delta, **fields: Any) -> ChatCompletionChunk:
    fields = {"logprobs": None, "finish_reason": None} | fields
    return ChatCompletionChunk(**SHARED, choices=[ChunkChoice(index=index, delta=delta, **fields)])


def usage_chunk() -> ChatCompletionChunk:
    usage = Usage(
        prompt_tokens=1,
        completion_tokens=2,
        total_tokens=3,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=0),
    )
    return ChatCompletionChunk(**SHARED, choices=[], usage=usage)


async def stream(*chunks: ChatCompletionChunk) -> AsyncIterator[ChatCompletionChunk]:
    for each in chunks:
        yield each


def test_a_chunk_has_openais_shape():
    data = json.loads(chunk(0, Delta(content="x")).to_json())
    assert data == SHARED | {
        "choices": [
            {"index": 0, "delta": {"content": "x"}, "logprobs": None, "finish_reason": None}
        ]
    }
    openai.types.chat.ChatCompletionChunk.model_validate(data, strict=True)


async def test_choices_are_collected_each_on_its_own():
    entry = TokenLogprob(
        token="a",
        logprob=-1.0,
        bytes=[97],
        top_logprobs=[TopLogprob(token="b", logprob=-2.0, bytes=None)],
    )
    call = DeltaToolCall(
        index=0, id="call_1", type="function", function=DeltaFunction(name="f", arguments="")
    )
    rest = DeltaToolCall(index=0, function=DeltaFunction(arguments="{}"))
    answer = await collect_chat(
        stream(
            chunk(1, Delta(role="assistant", content="")),
            chunk(0, Delta(role="assistant", content="")),
            chunk(0, Delta(content="a"), logprobs=ChoiceLogprobs(content=[entry], refusal=None)),
            chunk(1, Delta(tool_calls=[call])),
            chunk(1, Delta(tool_calls=[rest])),
            chunk(0, Delta(content="b")),
            chunk(1, Delta(reasoning_content="Hm.")),
            chunk(1, Delta(), finish_reason="tool_calls"),
            chunk(0, Delta(), finish_reason="length"),
            usage_chunk(),
        )
    )
    data = json.loads(answer.to_json())
    official = openai.types.chat.ChatCompletion.model_validate(data)
    first, second = official.choices
    assert (first.index, first.message.content, first.finish_reason) == (0, "ab", "length")
    assert first.message.tool_calls is None
    assert first.logprobs is not None
    assert first.logprobs.content is not None
    assert first.logprobs.content[0].top_logprobs[0].token == "b"
    assert (second.message.content, second.finish_reason) == (None, "tool_calls")
    assert second.logprobs is None
    assert second.message.tool_calls is not None
    assert second.message.tool_calls[0].id == "call_1"
    assert second.message.tool_calls[0].function.arguments == "{}"
    assert data["choices"][1]["message"]["reasoning_content"] == "Hm."
    assert official.usage is not None
    assert official.usage.total_tokens == 3
    assert data["choices"][0]["message"] == {"role": "assistant", "content": "ab", "refusal": None}
    assert "index" not in data["choices"][1]["message"]["tool_calls"][0]


async def test_log_probabilities_of_an_empty_answer_are_an_empty_list():
    chunks = (chunk(0, Delta(), finish_reason="stop"), usage_chunk())
    answer = await collect_chat(stream(*chunks), with_logprobs=True)
    assert answer.choices[0].logprobs == ChoiceLogprobs(content=[], refusal=None)
    assert (await collect_chat(stream(*chunks))).choices[0].logprobs is None


async def test_a_stream_that_ends_early_is_no_answer():
    for chunks in ([], [usage_chunk(), chunk(0, Delta(content="a"))]):
        with pytest.raises(InternalError):
            await collect_chat(stream(*chunks))
