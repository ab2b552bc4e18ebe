"""What a request asks of an engine: every field has a feature, or none on purpose."""

from __future__ import annotations

import json
from typing import Any

import pytest

from axion.openai.chat import ChatCompletionRequest
from axion.openai.completions import CompletionRequest
from axion.openai.features import WITHOUT_FEATURE, features
from axion.openai.parsing import parse_request

TOOL = {"type": "function", "function": {"name": "f"}}
STRICT = {"type": "function", "function": {"name": "f", "strict": True}}
NAMED = {"type": "function", "function": {"name": "f"}}
# A value that asks for something, for every field that can.
CHAT: list[tuple[dict[str, Any], set[str]]] = [
    ({"max_tokens": 5}, {"max_tokens"}),
    ({"max_completion_tokens": 5}, {"max_tokens"}),
    ({"temperature": 0.5}, {"temperature"}),
    ({"top_p": 0.5}, {"top_p"}),
    ({"top_k": 5}, {"top_k"}),
    ({"min_p": 0.5}, {"min_p"}),
    ({"n": 2}, {"n"}),
    ({"stop": "x"}, {"stop"}),
    ({"stop_token_ids": [1]}, {"stop_token_ids"}),
    ({"seed": 7}, {"seed"}),
    ({"seed": 0}, {"seed.0"}),
    ({"min_tokens": 2}, {"min_tokens"}),
    ({"presence_penalty": 1}, {"presence_penalty"}),
    ({"frequency_penalty": 1}, {"frequency_penalty"}),
    ({"repetition_penalty": 2}, {"repetition_penalty"}),
    ({"logit_bias": {"1": 1}}, {"logit_bias"}),
    ({"ignore_eos": True}, {"ignore_eos"}),
    ({"truncate_prompt_tokens": 9}, {"truncate_prompt_tokens"}),
    ({"allowed_token_ids": [1]}, {"allowed_token_ids"}),
    ({"bad_words": ["a"]}, {"bad_words"}),
    ({"prompt_logprobs": 0}, {"prompt_logprobs"}),
    ({"return_token_ids": True}, {"return_token_ids"}),
    ({"include_stop_str_in_output": True}, {"include_stop_str_in_output"}),
    ({"skip_special_tokens": False}, {"skip_special_tokens"}),
    ({"priority": 1}, {"priority"}),
    ({"cache_salt": "a"}, {"cache_salt"}),
    ({"logprobs": True}, {"logprobs"}),
    ({"logprobs": True, "top_logprobs": 2}, {"logprobs", "top_logprobs"}),
    ({"tools": [TOOL]}, {"tools"}),
    ({"tools": [STRICT]}, {"tools", "tools.strict"}),
    ({"tools": [TOOL], "tool_choice": "required"}, {"tools", "tool_choice.required"}),
    ({"tools": [TOOL], "tool_choice": NAMED}, {"tools", "tool_choice.named"}),
    ({"tools": [TOOL], "tool_choice": "none"}, {"tools", "tool_choice.none"}),
    ({"tools": [TOOL], "parallel_tool_calls": False}, {"tools", "parallel_tool_calls"}),
    ({"response_format": {"type": "json_object"}}, {"response_format.json_object"}),
    ({"structured_outputs": {"regex": "a"}}, {"structured_outputs.regex"}),
    ({"guided_json": {}}, {"structured_outputs.json"}),
    ({"guided_regex": "a"}, {"structured_outputs.regex"}),
    ({"guided_choice": ["a"]}, {"structured_outputs.choice"}),
    ({"guided_grammar": "start: /a/"}, {"structured_outputs.grammar"}),
    ({"reasoning_effort": "low"}, {"reasoning_effort"}),
    ({"chat_template_kwargs": {"a": 1}}, {"chat_template_kwargs"}),
    ({"add_generation_prompt": False}, {"add_generation_prompt"}),
    (
        {"add_generation_prompt": False, "continue_final_message": True},
        {"add_generation_prompt", "continue_final_message"},
    ),
]
NEUTRAL: dict[str, Any] = {
    **{"n": 1, "top_p": 1, "top_k": -1, "min_p": 0, "presence_penalty": 0, "logit_bias": {}},
    **{"frequency_penalty": 0, "repetition_penalty": 1, "min_tokens": 0, "ignore_eos": False},
    **{"stop": [], "logprobs": False, "user": "x", "response_format": {"type": "text"}},
    **{"bad_words": [], "return_token_ids": False, "truncate_prompt_tokens": None},
    **{"tools": [], "tool_choice": "auto", "stream": True, "seed": None},
}


def chat(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
    return ChatCompletionRequest.model_validate(body)


def _id(value: object) -> str:
    return str(sorted(value) if isinstance(value, set) else value)


@pytest.mark.parametrize(("fields", "expected"), CHAT, ids=_id)
def test_what_a_chat_asks_for(fields: dict[str, Any], expected: set[str]):
    assert features(chat(**fields)) == expected


@pytest.mark.parametrize("name", [name for name in NEUTRAL if name != "tool_choice"])
def test_a_value_that_holds_anyway_asks_for_nothing(name: str):
    assert not features(chat(**{name: NEUTRAL[name]}))


def test_every_field_of_a_chat_has_a_feature_or_none_on_purpose():
    tried = {name for fields, _ in CHAT for name in fields}
    assert ChatCompletionRequest.model_fields.keys() <= tried | WITHOUT_FEATURE


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "a"}, set()),
        ({"prompt": "a", "max_tokens": 0}, {"max_tokens"}),
        ({"prompt": [1, 2]}, {"prompt.token_ids"}),
        ({"prompt": ["a", "b"]}, {"prompt.list"}),
        ({"prompt": "a", "logprobs": 0}, {"logprobs"}),
        ({"prompt": "a", "echo": True}, {"echo"}),
        ({"prompt": "a", "echo": True, "logprobs": 1}, {"echo", "logprobs", "echo.logprobs"}),
        (
            {"prompt": "a", "response_format": {"type": "json_object"}},
            {"response_format.json_object", "response_format.completions"},
        ),
        (
            {"prompt": "a", "guided_json": {}},
            {"structured_outputs.json", "response_format.completions"},
        ),
        ({"prompt": "a", "guided_regex": "a"}, {"structured_outputs.regex"}),
    ],
    ids=_id,
)
def test_what_a_completion_asks_for(body: dict[str, Any], expected: set[str]):
    assert features(parse_completion(body)) == expected


def parse_completion(body: dict[str, Any]) -> CompletionRequest:
    return parse_request(CompletionRequest, json.dumps({"model": "m", **body}).encode())
