"""The chat template, as transformers applies it."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerFast

from axion.demo.chat import render
from axion.demo.grammar import conversation

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in <any> city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def call(arguments: Any) -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": arguments}
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }


def test_a_plain_conversation_is_chatml() -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
    ]
    assert render(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_developer_message_is_a_system_message() -> None:
    as_system = render([{"role": "system", "content": "Be kind."}])
    assert render([{"role": "developer", "content": "Be kind."}]) == as_system


def test_tools_are_listed_in_the_system_turn_as_they_were_given() -> None:
    text = render([{"role": "user", "content": "Hi"}], [WEATHER])
    system, user = text.split("<|im_end|>\n")[:2]
    assert system.startswith("<|im_start|>system\nYou can call these tools:\n<tools>\n")
    assert '"description": "The weather in <any> city"' in system
    assert system.count("<tools>") == system.count("</tools>") == 1
    assert user == "<|im_start|>user\nHi"


def test_tools_come_after_the_system_message() -> None:
    text = render([{"role": "system", "content": "Be kind."}], [WEATHER, WEATHER])
    assert text.startswith("<|im_start|>system\nBe kind.\n\nYou can call these tools:\n<tools>\n{")
    assert text.count("<|im_start|>") == 1
    assert text.count('"name": "get_weather"') == 2


@pytest.mark.parametrize("arguments", [{"city": "Zürich"}, '{"city": "Zürich"}'])
def test_arguments_may_be_an_object_or_json_text(arguments: Any) -> None:
    assert render([call(arguments)]) == (
        "<|im_start|>assistant\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Zürich"}}\n'
        "</tool_call><|im_end|>\n"
    )


def test_content_and_several_calls_stand_on_lines_of_their_own() -> None:
    message = call({})
    message["content"] = "I will look."
    message["tool_calls"] *= 2
    one = '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>'
    assert render([message]) == f"<|im_start|>assistant\nI will look.\n{one}\n{one}<|im_end|>\n"


def test_results_that_follow_each_other_share_a_user_turn() -> None:
    results = [{"role": "tool", "content": text} for text in ("18 °C", "20 °C")]
    assert render([call({}), *results]).partition("<|im_end|>\n")[2] == (
        "<|im_start|>user\n<tool_response>\n18 °C\n</tool_response>\n"
        "<tool_response>\n20 °C\n</tool_response><|im_end|>\n"
    )


def test_an_unknown_role_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "wizard", "content": "Hi"}]
    with pytest.raises(TemplateError, match='Unknown role "wizard"'):
        render(messages)
    with pytest.raises(TemplateError, match='Unknown role "wizard"'):
        tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_transformers_writes_the_same_text(
    tokenizer: PreTrainedTokenizerFast, add_generation_prompt: bool
) -> None:
    rng = Random(2)
    for _ in range(40):
        chat = conversation(rng)
        assert render(chat.messages, chat.tools, add_generation_prompt) == (
            tokenizer.apply_chat_template(
                chat.messages,
                tools=chat.tools or None,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
            )
        )
