"""huggingface_hub's InferenceClient, with `base_url`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import AsyncInferenceClient, InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.inference._generated.types import (
    ChatCompletionInputFunctionName,
    ChatCompletionInputToolChoiceClass,
)

MODEL = "axion/demo"
SUM = [{"role": "user", "content": "What is 12 + 30?"}]
WEATHER = [{"role": "user", "content": "What is the weather in Paris?"}]
ANNA = [{"role": "user", "content": "Give me a JSON object with name Anna and age 30."}]
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city."}},
            "required": ["city"],
        },
    },
}
PERSON = {
    "type": "object",
    "properties": {"name": {"const": "Bert"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch):
    """The tests' offline mode would keep the client from a server on this machine too."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.fixture(scope="module", params=["", "/v1"], ids=["root", "v1"])
def client(request: pytest.FixtureRequest, url: str) -> Iterator[InferenceClient]:
    """It adds what the address lacks of /v1/chat/completions."""
    with InferenceClient(base_url=url + request.param, api_key="none", timeout=60) as client:
        yield client


def test_chat_with_every_parameter(client: InferenceClient):
    answer = client.chat_completion(
        SUM,
        model=MODEL,
        frequency_penalty=0.0,
        logprobs=True,
        max_tokens=20,
        n=1,
        presence_penalty=0.0,
        seed=1,
        stop=["!"],
        temperature=0,
        top_logprobs=2,
        top_p=0.9,
    )
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == ("12 + 30 = 42", "stop")
    assert len(choice.logprobs.content[0].top_logprobs) == 2
    assert answer.usage.total_tokens > answer.usage.prompt_tokens > 0


def test_stream(client: InferenceClient):
    chunks = list(
        client.chat.completions.create(
            messages=SUM,
            model=MODEL,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    deltas = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert len(deltas) > 2
    assert "".join(deltas) == "12 + 30 = 42"
    assert chunks[-1].usage.completion_tokens > 0


async def test_stream_on_an_event_loop(url: str):
    async with AsyncInferenceClient(base_url=url, api_key="none", timeout=60) as client:
        stream = await client.chat_completion(SUM, model=MODEL, temperature=0, stream=True)
        deltas = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(deltas) == "12 + 30 = 42"


def test_tools(client: InferenceClient):
    answer = client.chat_completion(WEATHER, model=MODEL, tools=[TOOL], temperature=0)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_a_streamed_call(client: InferenceClient):
    stream = client.chat_completion(WEATHER, model=MODEL, tools=[TOOL], temperature=0, stream=True)
    calls = [call for chunk in stream for call in chunk.choices[0].delta.tool_calls or []]
    assert [call.function.name for call in calls if call.function.name] == ["get_weather"]
    pieces = [call.function.arguments for call in calls]
    assert len(pieces) > 2
    assert json.loads("".join(pieces)) == {"city": "Paris"}


def test_a_named_function_in_its_own_type(client: InferenceClient):
    choice = ChatCompletionInputToolChoiceClass(
        function=ChatCompletionInputFunctionName(name="get_weather")
    )
    hello = [{"role": "user", "content": "Hello!"}]
    answer = client.chat_completion(
        hello, model=MODEL, tools=[TOOL], tool_choice=choice, temperature=0
    )
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "get_weather"


def test_a_schema_is_followed(client: InferenceClient):
    """Which it sends as type json_object with a value."""
    format: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
    answer = client.chat_completion(ANNA, model=MODEL, response_format=format, temperature=0)
    assert json.loads(answer.choices[0].message.content)["name"] == "Bert"


def test_an_error_says_what_to_do(client: InferenceClient):
    with pytest.raises(HfHubHTTPError, match=f"Served: {MODEL}") as error:
        client.chat_completion(SUM)  # it says "dummy" where no model is named
    assert error.value.response.status_code == 404
