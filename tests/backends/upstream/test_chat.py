from __future__ import annotations

from axion.openai.chat_answer import collect_chat
from tests.backends.upstream.harness import TOOL, chat_request, dumped, take, text_request


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
