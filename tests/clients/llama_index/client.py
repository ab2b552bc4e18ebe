"""Uses llama-index as its users do, and prints what each step had back as one JSON object.

Run as `python client.py URL`, with the packages of requirements.txt on the path.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from typing import Any

import openai
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

URL = f"{sys.argv[1]}/v1"
WEATHER = "What is the weather in Paris?"
ANNA = "Give me a JSON object with name Anna and age 30."


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def get_weather(city: str) -> str:
    """Get the current weather in a city."""
    return json.dumps({"city": city, "temperature": 18, "condition": "sunny"})


def model(**fields: Any) -> OpenAILike:
    values = {"is_chat_model": True, "is_function_calling_model": True, **fields}
    return OpenAILike(
        model="axion/demo",
        api_base=URL,
        api_key="none",
        temperature=0,
        context_window=2048,
        max_retries=0,
        **values,
    )


LLM = model()
TOOL = FunctionTool.from_defaults(get_weather)
MESSAGES = [ChatMessage(role="user", content="What is 12 + 30?")]


def chat() -> str | None:
    return LLM.chat(MESSAGES).message.content


def stream() -> list[str]:
    return [chunk.delta or "" for chunk in LLM.stream_chat(MESSAGES)]


def completion() -> list[str]:
    """By /v1/completions, whole and streamed."""
    text = model(is_chat_model=False, is_function_calling_model=False, max_tokens=5)
    chunks = text.stream_complete("One two")
    return [text.complete("One two").text, "".join(chunk.delta or "" for chunk in chunks)]


def tools() -> list[dict[str, Any]]:
    answer = LLM.chat_with_tools([TOOL], user_msg=WEATHER)
    return [call.tool_kwargs for call in LLM.get_tool_calls_from_response(answer)]


def required_tool() -> list[str]:
    answer = LLM.chat_with_tools([TOOL], user_msg="Hello!", tool_required=True)
    return [call.tool_name for call in LLM.get_tool_calls_from_response(answer)]


def streamed_tools() -> list[dict[str, Any]]:
    *_, last = LLM.stream_chat_with_tools([TOOL], user_msg=WEATHER)
    return [call.tool_kwargs for call in LLM.get_tool_calls_from_response(last)]


def agent() -> str:
    async def run() -> str:
        return str(await FunctionAgent(tools=[TOOL], llm=LLM).run(WEATHER))

    return asyncio.run(run())


def structured() -> dict[str, Any]:
    llm = model(should_use_structured_outputs=True).as_structured_llm(Person)
    return llm.complete(ANNA).raw.model_dump()


def embeddings() -> list[list[float]]:
    embedding = OpenAILikeEmbedding(model_name="minilm", api_base=URL, api_key="none")
    return [
        embedding.get_query_embedding("one"),
        *embedding.get_text_embedding_batch(["one", "two words"]),
    ]


def version() -> str:
    return openai.__version__


STEPS: list[Callable[[], Any]] = [
    chat,
    stream,
    completion,
    tools,
    required_tool,
    streamed_tools,
    agent,
    structured,
    embeddings,
    version,
]

if __name__ == "__main__":
    print(json.dumps({step.__name__: step() for step in STEPS}))
