from __future__ import annotations

from typing import Any

import pytest

from tests.backends.upstream.harness import chat_request, dumped, repairing, take, text_request


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


async def test_usage_in_every_chunk_where_the_server_counts_in_its_own_words(fake, upstream):
    options = {"include_usage": True, "continuous_usage_stats": True}
    server = fake("max")
    up = repairing(upstream, server, "max")
    chunks, _ = await take(up.chat(chat_request(stream_options=options, max_tokens=3), "1"))
    assert [chunk.usage.completion_tokens for chunk in chunks] == [1, 1, 2, 3, 3, 3]
    assert server.stats()["body"]["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize("fields", [{"n": 3}, {"prompt": ["a b", "c"], "n": 2}])
async def test_the_usage_is_that_of_all_choices(fake, upstream, fields: dict[str, Any]):
    up = repairing(upstream, fake("llama_cpp"), "llama_cpp")
    chunks, _ = await take(up.complete(text_request(max_tokens=5, **fields), "1"))
    usage = chunks[-1].usage
    num_choices = len({choice.index for chunk in chunks for choice in chunk.choices})
    assert usage.completion_tokens == 5 * num_choices
    assert usage.prompt_tokens == (3 if "prompt" in fields else 1)
    assert usage.prompt_tokens_details.cached_tokens == len(fields.get("prompt", "a"))
