from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from axion.backends.base import ModelConfig
from axion.router.registry import ModelRegistry
from tests.server.conftest import MODEL, ScriptedBackend
from tests.server.test_app import app, assert_openai_error, client
from tests.server.test_responses import DEMO
from tests.server.test_streams import NAME, EchoServer

__all__ = ["app", "client"]

MESSAGES = [{"role": "user", "content": "What is 27 + 15?"}]


@pytest.fixture(scope="module")
def echo() -> Iterator[EchoServer]:
    with EchoServer(DEMO) as server:
        yield server


def post(echo: EchoServer, path: str, **body: Any) -> Any:
    response = httpx.post(f"{echo.url}{path}", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_a_text_becomes_tokens_and_text_again(echo: EchoServer, prefix: str):
    text = "Grüße, 你好 <|im_end|> 👋🏽!"
    answer = post(echo, f"{prefix}/tokenize", model=NAME, prompt=text)
    assert answer["count"] == len(answer["tokens"]) > 0
    assert answer["max_model_len"] == 4096
    assert answer["token_strs"] is None
    back = post(echo, f"{prefix}/detokenize", model=NAME, tokens=answer["tokens"])
    assert back == {"prompt": text}


def test_token_strings_are_the_vocabularys(echo: EchoServer):
    answer = post(echo, "/tokenize", prompt="Hello there", return_token_strs=True)
    assert len(answer["token_strs"]) == answer["count"]
    assert "".join(answer["token_strs"]).replace("Ġ", " ") == "Hello there"


def test_a_conversation_has_the_tokens_that_a_chat_takes(echo: EchoServer):
    answer = post(echo, "/tokenize", model=NAME, messages=MESSAGES)
    messages: Any = MESSAGES
    usage = echo.openai.chat.completions.create(model=NAME, messages=messages).usage
    assert answer["count"] == usage.prompt_tokens
    text = post(echo, "/detokenize", tokens=answer["tokens"])["prompt"]
    assert text.startswith("<|im_start|>user\nWhat is 27 + 15?<|im_end|>")
    assert text.endswith("<|im_start|>assistant\n")
    open_end = post(echo, "/tokenize", messages=MESSAGES, add_generation_prompt=False)
    assert answer["tokens"][: open_end["count"]] == open_end["tokens"]
    assert open_end["count"] < answer["count"]


def test_an_empty_text_has_no_tokens(echo: EchoServer):
    assert post(echo, "/tokenize", prompt="")["tokens"] == []
    assert post(echo, "/detokenize", tokens=[]) == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("tokenize", {}, "prompt"),
        ("tokenize", {"prompt": "x", "messages": MESSAGES}, "prompt"),
        ("tokenize", {"prompt": ["x"]}, "prompt"),
        ("tokenize", {"messages": []}, "messages"),
        ("tokenize", {"prompt": "x", "tools": []}, "tools"),
        ("tokenize", {"messages": MESSAGES, "chat_template": "x"}, "chat_template"),
        (
            "tokenize",
            {"messages": MESSAGES, "chat_template_kwargs": {"king": 1}},
            "chat_template_kwargs.king",
        ),
        (
            "tokenize",
            {"messages": MESSAGES, "continue_final_message": True},
            "continue_final_message",
        ),
        ("detokenize", {}, "tokens"),
        ("detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("detokenize", {"tokens": [2**63]}, "tokens[0]"),
        ("detokenize", {"tokens": [2**30]}, "tokens"),
        ("detokenize", {"tokens": ["x"]}, "tokens[0]"),
        ("detokenize", {"tokens": [[1]]}, "tokens[0]"),
    ],
)
def test_what_is_wrong_is_a_400_that_names_it(
    echo: EchoServer, path: str, body: dict[str, Any], param: str
):
    error = assert_openai_error(httpx.post(f"{echo.url}/{path}", json=body), 400)
    assert error["param"] == param


def test_who_knows_it_from_llama_cpp_is_told_the_name_here(echo: EchoServer):
    response = httpx.post(f"{echo.url}/tokenize", json={"content": "x"})
    message = assert_openai_error(response, 400)["message"]
    assert message == "content is not a field here: send prompt."


def test_a_text_that_cannot_fit_is_not_encoded_for_seconds(echo: EchoServer):
    response = httpx.post(f"{echo.url}/tokenize", json={"prompt": "x" * 10_000_000})
    assert assert_openai_error(response, 400)["code"] == "context_length_exceeded"


async def test_the_model_may_be_left_out_where_there_is_one(
    client: httpx.AsyncClient, registry: ModelRegistry
):
    assert (await client.post("/tokenize", json={"prompt": "ab"})).json()["tokens"] == [97, 98]
    registry.add(ModelConfig(model_name="another"), ScriptedBackend())
    response = await client.post("/tokenize", json={"prompt": "ab"})
    error = assert_openai_error(response, 400)
    assert error["param"] == "model"
    assert MODEL in error["message"]
