from __future__ import annotations

from contextlib import aclosing

from tests.backends.native.harness import (
    CALL,
    TOOLS,
    Start,
    chat,
    chat_request,
    chat_stream,
    streamed_text,
)
from tests.echo_engine import EchoEngine


async def test_a_chat_is_answered(start: Start):
    engine = EchoEngine()
    answer = await chat(await start(engine), "Hello, 狐!")
    (choice,) = answer.choices
    assert choice.message.content == "Hello, 狐!"
    assert choice.finish_reason == "stop"
    assert answer.id == "chatcmpl-r"
    assert answer.model == "m"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == answer.usage.completion_tokens
    assert engine.stats.num_running == 0


async def test_a_stream_has_openais_shape(start: Start):
    chunks = await chat_stream(await start(EchoEngine()))
    assert {(chunk.id, chunk.created, chunk.model) for chunk in chunks} == {
        ("chatcmpl-r", chunks[0].created, "m")
    }
    first, *middle, last = chunks
    assert first.choices[0].delta.model_dump(exclude_unset=True) == {
        "role": "assistant",
        "content": "",
    }
    assert all(chunk.choices[0].delta.role is None for chunk in middle)
    assert all(chunk.choices[0].finish_reason is None for chunk in (first, *middle))
    assert last.choices[0].finish_reason == "stop"
    assert last.choices[0].delta.model_dump(exclude_unset=True) == {}
    assert streamed_text(chunks) == "Hello, fox."
    assert len(middle) > 1
    assert not any("usage" in chunk.model_fields_set for chunk in chunks)


async def test_usage_ends_a_stream_that_asks_for_it(start: Start):
    options = {"include_usage": True}
    *chunks, last = await chat_stream(await start(EchoEngine()), stream_options=options)
    assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == 2 * last.usage.prompt_tokens


async def test_usage_so_far_is_in_every_chunk_that_asks_for_it(start: Start):
    options = {"continuous_usage_stats": True}
    chunks = await chat_stream(await start(EchoEngine()), stream_options=options)
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]
    assert len(counts) == len(chunks)
    assert counts == sorted(counts)
    assert counts[0] <= 1 < counts[-1]


async def test_a_chunk_is_one_line(start: Start):
    backend = await start(EchoEngine())
    request = chat_request("a\nb\rc", stream=True)
    async with aclosing(backend.chat(request, "r")) as chunks:
        async for chunk in chunks:
            assert len(chunk.to_json().splitlines()) == 1


async def test_tool_calls_are_taken_out_of_the_answer(start: Start):
    backend = await start(EchoEngine(), "tools")
    answer = await chat(backend, f"Let me see.\n{CALL}\n{CALL}", tools=TOOLS)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    assert choice.message.tool_calls is not None
    first, second = choice.message.tool_calls
    assert first.type == "function"
    assert (first.function.name, first.function.arguments) == ("f", '{"x": 1}')
    assert first.id.startswith("call_")
    assert first.id != second.id
    only = await chat(backend, CALL, tools=TOOLS)
    assert only.choices[0].message.content is None


async def test_a_tool_call_is_streamed_in_openais_deltas(start: Start):
    backend = await start(EchoEngine(), "tools")
    chunks = await chat_stream(backend, f"Hm. {CALL}{CALL}", tools=TOOLS)
    assert streamed_text(chunks) == "Hm."
    deltas = [chunk.choices[0].delta.tool_calls for chunk in chunks]
    calls = [call for (call,) in filter(None, deltas)]
    for index in (0, 1):
        first, *others = (call for call in calls if call.index == index)
        assert first.id
        assert first.type == "function"
        assert first.function
        assert (first.function.name, first.function.arguments) == ("f", "")
        assert len(others) > 3
        assert all(call.id is call.type is call.function.name is None for call in others)
        assert "".join(call.function.arguments for call in others) == '{"x": 1}'
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


async def test_only_one_call_is_generated_where_calls_may_not_be_parallel(start: Start):
    engine = EchoEngine()
    backend = await start(engine, "tools")
    content = f"Hm. {CALL}\n{CALL} and more"
    answer = await chat(backend, content, tools=TOOLS, parallel_tool_calls=False, logprobs=True)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Hm."
    assert choice.message.tool_calls is not None
    assert [call.function.arguments for call in choice.message.tool_calls] == ['{"x": 1}']
    assert choice.logprobs is not None
    tokens = [entry.token for entry in choice.logprobs.content or ()]
    assert content.startswith("".join(tokens))
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(tokens) < answer.usage.prompt_tokens
    assert engine.stats.num_running == 0


async def test_a_call_that_max_tokens_cuts_keeps_what_was_there(start: Start):
    backend = await start(EchoEngine(), "tools")
    for parallel in (True, False):
        answer = await chat(backend, CALL, tools=TOOLS, max_tokens=44, parallel_tool_calls=parallel)
        (choice,) = answer.choices
        assert choice.finish_reason == "length"
        assert choice.message.tool_calls is not None
        (call,) = choice.message.tool_calls
        assert '{"x": 1}'.startswith(call.function.arguments)
        assert call.function.arguments not in ("", '{"x": 1}')


async def test_a_template_whose_format_is_unknown_gets_calls_as_json(start: Start):
    backend = await start(EchoEngine(), "json")
    answer = await chat(backend, '{"name": "f", "parameters": {}}', tools=TOOLS)
    assert answer.choices[0].finish_reason == "tool_calls"


async def test_reasoning_is_told_from_the_answer(start: Start):
    backend = await start(EchoEngine(), "reasoning")
    content = f"<think>\nHm.\n</think>\n\nYes. {CALL}"
    answer = await chat(backend, content, tools=TOOLS, logprobs=True)
    message = answer.choices[0].message
    assert getattr(message, "reasoning_content", None) == "Hm."
    assert message.content == "Yes."
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].logprobs is not None
    tokens = [entry.token for entry in answer.choices[0].logprobs.content or ()]
    assert "".join(tokens) == content
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    inside = answer.usage.completion_tokens_details.reasoning_tokens
    assert len("Hm.") < inside < len("<think>\nHm.\n</think>")
    chunks = await chat_stream(backend, content)
    deltas = [chunk.choices[0].delta for chunk in chunks]
    reasoning = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    assert "".join(reasoning) == "Hm."
    assert streamed_text(chunks) == f"Yes. {CALL}"


async def test_reasoning_that_the_prompt_opens_needs_no_tag(start: Start):
    backend = await start(EchoEngine(), "reasoning")
    answer = await chat(backend, "Hm.</think>Yes.", chat_template_kwargs={"enable_thinking": True})
    message = answer.choices[0].message
    assert getattr(message, "reasoning_content", None) == "Hm."
    assert message.content == "Yes.<think>"
    messages = [{"role": "assistant", "content": "<think>a"}]
    fields = {"add_generation_prompt": False, "continue_final_message": True}
    answer = await chat(backend, messages, **fields)
    assert answer.choices[0].message.content == ""


async def test_an_answer_without_reasoning_has_none(start: Start):
    answer = await chat(await start(EchoEngine(), "reasoning"), "Yes.")
    assert not hasattr(answer.choices[0].message, "reasoning_content")
    assert answer.usage is not None
    assert answer.usage.completion_tokens_details is not None
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


async def test_a_tool_call_stays_text_where_none_is_expected(start: Start):
    backend = await start(EchoEngine(), "tools")
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        answer = await chat(backend, CALL, **fields)
        assert answer.choices[0].message.content == CALL
        assert answer.choices[0].finish_reason == "stop"
    malformed = await chat(backend, "<tool_call>oops</tool_call>", tools=TOOLS)
    assert malformed.choices[0].message.content == "<tool_call>oops</tool_call>"
    assert malformed.choices[0].finish_reason == "stop"


async def test_tool_calls_are_found_where_their_tags_are_special_tokens(start: Start):
    backend = await start(EchoEngine(), "special")
    answer = await chat(backend, CALL, tools=TOOLS)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert (await chat(backend, "<tool_call>x")).choices[0].message.content == "x"


async def test_special_tokens_around_reasoning_and_calls_are_read_and_not_shown(start: Start):
    backend = await start(EchoEngine(), "mistral")
    content = "[THINK]Hm.[/THINK]Yes.<|other|>[TOOL_CALLS]f[ARGS]{}"
    answer = await chat(backend, content, tools=TOOLS)
    message = answer.choices[0].message
    assert getattr(message, "reasoning_content", None) == "Hm."
    assert message.content == "Yes."
    assert message.tool_calls is not None
    assert len(message.tool_calls[0].id) == 9
    assert (await chat(backend, content)).choices[0].message.content == "Yes.f{}"
    shown = await chat(backend, content, skip_special_tokens=False)
    assert shown.choices[0].message.content == "Yes.<|other|>[TOOL_CALLS]f[ARGS]{}"
