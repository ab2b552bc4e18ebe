from __future__ import annotations

import threading
from typing import Any

import pytest

from axion.backends.native.prompt import _reads
from axion.errors import ContextLengthExceededError, InvalidRequestError
from axion.text.tokenizer import Tokenizer as TextTokenizer
from tests.backends.native.harness import (
    TOOLS,
    RecordingEngine,
    Start,
    chat,
    chat_request,
    complete,
    fault,
)
from tests.echo_engine import EchoEngine


async def test_earlier_reasoning_reaches_a_template_that_reads_it(start: Start):
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning_content": "Hm."},
    ]
    answer = await chat(await start(EchoEngine(), "reasoning"), messages)
    assert answer.choices[0].message.content == "x(Hm.)y"
    error = await fault((await start(EchoEngine())).chat(chat_request(messages), "r"))
    assert error.param == "messages[1].reasoning_content"


@pytest.mark.parametrize(
    ("model", "effort", "prompt"),
    [
        ("effort", "high", "x high"),
        ("effort", "none", "x none"),
        ("reasoning", "none", "x"),
        ("plain", "none", "x"),  # it does not reason
    ],
)
async def test_reasoning_effort_reaches_the_template(
    start: Start, model: str, effort: str, prompt: str
):
    answer = await chat(await start(EchoEngine(), model), "x", reasoning_effort=effort)
    assert answer.choices[0].message.content == prompt


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        ("plain", {"reasoning_effort": "low"}),
        ("reasoning", {"reasoning_effort": "low"}),
        ("always", {"reasoning_effort": "none"}),
        (
            "reasoning",
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
        ),
    ],
)
async def test_reasoning_effort_that_the_template_cannot_honour_is_refused(
    start: Start, model: str, fields: dict[str, Any]
):
    error = await fault((await start(EchoEngine(), model)).chat(chat_request(**fields), "r"))
    assert error.status == 400
    assert error.param == "reasoning_effort"
    assert "'none'" not in error.message  # Anthropic's API has another word for it


async def test_a_developer_is_the_system_to_a_template_that_knows_none(start: Start):
    messages = [{"role": "developer", "content": "x"}, {"role": "user", "content": "y"}]
    answer = await chat(await start(EchoEngine()), messages)
    assert answer.choices[0].message.content == "[system]xy"


async def test_an_earlier_tool_call_reaches_the_template_with_its_arguments(start: Start):
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 42}'}}
    messages = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "y", "tool_call_id": "c", "name": "f"},
    ]
    answer = await chat(await start(EchoEngine(), "tools"), messages)
    assert answer.choices[0].message.content == "x42y"


async def test_template_variables_reach_the_template(start: Start):
    backend = await start(EchoEngine(), "tools")
    answer = await chat(backend, "hey", chat_template_kwargs={"shout": True})
    assert answer.choices[0].message.content == "hey!"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": TOOLS}, "tools"),
        ({"chat_template_kwargs": {"shout": True}}, "chat_template_kwargs.shout"),
        (
            {
                "content": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "c",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{}"},
                            }
                        ],
                    }
                ]
            },
            "messages[0].tool_calls",
        ),
    ],
)
async def test_what_the_template_would_drop_is_refused_by_name(
    start: Start, fields: dict[str, Any], param: str
):
    backend = await start(EchoEngine())
    error = await fault(backend.chat(chat_request(**fields), "r"))
    assert isinstance(error, InvalidRequestError)
    assert error.param == param


async def test_a_name_reaches_a_template_that_reads_it_and_is_left_out_by_others(start: Start):
    messages = [{"role": "user", "content": "x", "name": "ann"}]
    answer = await chat(await start(EchoEngine(), "names"), messages)
    assert answer.choices[0].message.content == "ann: x"
    answer = await chat(await start(EchoEngine()), messages)
    assert answer.choices[0].message.content == "x"


async def test_templates_without_a_default_are_named_and_the_model_completes(start: Start):
    backend = await start(EchoEngine(), "named")
    error = await fault(backend.chat(chat_request(), "r"))
    assert error.status == 400
    assert "named rag, tool_use" in error.message
    assert (await complete(backend)).choices[0].text == "Hello, fox."
    answer = await chat(backend, "hey", tools=TOOLS)
    assert answer.choices[0].message.content == "hey"


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("{% for m in messages %}{{ m.name }}{% endfor %}", True),
        ("{%- for message in loop_messages %}{{ message['name'] }}{% endfor %}", True),
        ("{% for m in messages %}{{ m.get('name') }}{% endfor %}", True),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ name }}", False),
        ("{% for m in messages %}{% for t in m.tool_calls %}{{ t.name }}{% endfor %}", False),
        ("", False),
    ],
)
def test_a_template_that_reads_names_is_told_from_one_that_does_not(source: str, reads: bool):
    assert _reads(source, "name") is reads


async def test_a_model_without_a_chat_template_completes_only(start: Start):
    backend = await start(EchoEngine(), "none")
    error = await fault(backend.chat(chat_request(), "r"))
    assert "/v1/completions" in error.message
    assert (await complete(backend)).choices[0].text == "Hello, fox."


async def test_a_prompt_may_be_token_ids(start: Start):
    engine = RecordingEngine()
    await complete(await start(engine), [[3, 4], [5]])
    assert engine.prompts == [[3, 4], [5]]


async def test_a_huge_prompt_that_cannot_fit_is_refused_unencoded(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delattr(TextTokenizer, "encode")
    backend = await start(EchoEngine(max_model_len=100))
    with pytest.raises(ContextLengthExceededError, match=r"has 100 tokens.* has at least 28572,"):
        await complete(backend, "a" * 200_000)
    with pytest.raises(ContextLengthExceededError, match=r"has 100 tokens.* has at least 28572,"):
        await chat(backend, "a" * 200_000)


async def test_a_long_prompt_is_encoded_off_the_event_loop(
    start: Start, monkeypatch: pytest.MonkeyPatch
):
    threads = []
    encode = TextTokenizer.encode

    def recording(*args: Any, **kwargs: Any) -> list[int]:
        threads.append(threading.current_thread())
        return encode(*args, **kwargs)

    monkeypatch.setattr(TextTokenizer, "encode", recording)
    backend = await start(EchoEngine(max_model_len=100_000))
    await complete(backend, "a" * 50_000, max_tokens=1)
    await complete(backend, ["a" * 500] * 100, max_tokens=1)
    await chat(backend, "a" * 50_000, max_tokens=1)
    assert len(threads) == 102
    assert threading.main_thread() not in threads
