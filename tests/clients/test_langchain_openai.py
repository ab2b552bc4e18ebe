"""langchain-openai: chat models, tools, structured output, embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pydantic
import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

SUM = "What is 12 + 30?"
WEATHER = "What is the weather in Paris?"
ANNA = "Give me a JSON object with name Anna and age 30."


class Person(pydantic.BaseModel):
    """A person."""

    name: str
    age: int = pydantic.Field(ge=0, le=150)


@tool
def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    return json.dumps({"city": city, "temperature": 18, "condition": "sunny"})


@pytest.fixture(scope="module")
def connection(url: str) -> Iterator[dict[str, Any]]:
    # A client of our own, because langchain does not close the one that it makes.
    with httpx.Client(timeout=60) as client:
        yield {
            "base_url": f"{url}/v1",
            "api_key": "none",
            "max_retries": 0,
            "http_client": client,
        }


@pytest.fixture(scope="module")
def chat(connection: dict[str, Any]) -> ChatOpenAI:
    return ChatOpenAI(model="axion/demo", temperature=0, stream_usage=True, **connection)


@pytest.fixture(scope="module")
def responses(connection: dict[str, Any]) -> ChatOpenAI:
    return ChatOpenAI(model="axion/demo", temperature=0, use_responses_api=True, **connection)


def added_up(model: Any, text: str) -> AIMessageChunk:
    first, *others = model.stream(text)
    for chunk in others:
        first += chunk
    return first


def test_invoke(chat: ChatOpenAI):
    answer = chat.invoke(SUM)
    assert answer.content == "12 + 30 = 42"
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.usage_metadata["total_tokens"] > answer.usage_metadata["input_tokens"] > 0


def test_stream(chat: ChatOpenAI):
    assert len(list(chat.stream(SUM))) > 2
    answer = added_up(chat, SUM)
    assert answer.content == "12 + 30 = 42"
    assert answer.usage_metadata["output_tokens"] > 0


async def test_batch_on_an_event_loop(url: str):
    async with httpx.AsyncClient(timeout=60) as client:
        chat = ChatOpenAI(
            model="axion/demo",
            temperature=0,
            base_url=f"{url}/v1",
            api_key="none",
            http_async_client=client,
        )
        answers = await chat.abatch([SUM, "What is 2 + 3?"])
    assert [answer.content for answer in answers] == ["12 + 30 = 42", "2 + 3 = 5"]


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_bound_tool_is_called_and_its_result_used(api: str, request: pytest.FixtureRequest):
    model = request.getfixturevalue(api).bind_tools([get_weather])
    messages: list[Any] = [HumanMessage(WEATHER)]
    messages.append(model.invoke(messages))
    [call] = messages[-1].tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    messages.append(get_weather.invoke(call))
    assert "18" in model.invoke(messages).text


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_a_streamed_call_is_put_together(api: str, request: pytest.FixtureRequest):
    answer = added_up(request.getfixturevalue(api).bind_tools([get_weather]), WEATHER)
    [call] = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})


@pytest.mark.parametrize("choice", ["any", "get_weather"])
def test_a_call_that_must_be_made(chat: ChatOpenAI, choice: str):
    model = chat.bind_tools([get_weather], tool_choice=choice, strict=True)
    assert model.invoke("Hello!").tool_calls[0]["name"] == "get_weather"


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_with_structured_output(chat: ChatOpenAI, method: str):
    answer = chat.with_structured_output(Person, method=method).invoke(ANNA)
    assert isinstance(answer, Person)
    assert answer.age == 30


# openai's own type of a parsed answer does not expect one when langchain writes it as JSON.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
def test_structured_output_streamed(chat: ChatOpenAI):
    *_, last = chat.with_structured_output(Person).stream(ANNA)
    assert last == Person(name="Anna", age=30)


def test_the_responses_api(responses: ChatOpenAI):
    assert responses.invoke(SUM).text == "12 + 30 = 42"
    assert added_up(responses, SUM).text == "12 + 30 = 42"


def test_an_image_is_refused_with_the_reason(chat: ChatOpenAI):
    image = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    with pytest.raises(openai.BadRequestError, match="takes text only"):
        chat.invoke([HumanMessage([image])])


def test_embeddings(connection: dict[str, Any]):
    # By default it sends token ids of OpenAI's vocabulary; for other models it is told not to.
    embeddings = OpenAIEmbeddings(model="minilm", check_embedding_ctx_length=False, **connection)
    one, two = embeddings.embed_documents(["one", "two words"])
    assert len(one) == len(two) == 384
    assert embeddings.embed_query("one") == pytest.approx(one, abs=1e-6)


def test_shorter_embeddings(connection: dict[str, Any]):
    embeddings = OpenAIEmbeddings(
        model="minilm", check_embedding_ctx_length=False, dimensions=64, **connection
    )
    assert len(embeddings.embed_query("one")) == 64
