from __future__ import annotations

from typing import Any

import pytest

from axion.backends.capabilities import Capabilities, Support, shipped_capabilities
from axion.backends.upstream.dialect import Dialect
from axion.errors import InvalidRequestError
from tests.backends.upstream.harness import HONOURS_NOTHING, chat_request, take, text_request


async def test_the_body_says_what_the_client_said(fake, upstream):
    server = fake()
    up = upstream(server, api_key="secret", rename={"top_k": "k"}, extra_body={"x": 1})
    request = chat_request(
        temperature=0.5,
        top_k=3,
        seed=None,
        user="u",
        metadata={"a": "b"},
        prompt_cache_key="k",
        tools=[{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}],
        guided_regex="[0-9]+",
    )
    await take(up.chat(request, "1"))
    stats = server.stats()
    assert stats["body"] == {
        "model": "fake-model",
        "messages": [{"role": "user", "content": "Count please"}],
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "temperature": 0.5,
        "k": 3,
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"default": None}}}],
        "structured_outputs": {"regex": "[0-9]+"},
        "x": 1,
    }
    assert stats["headers"]["authorization"] == "Bearer secret"


async def test_what_asks_for_nothing_is_not_sent_to_an_engine_that_may_refuse_it(fake, upstream):
    neutral = {"logit_bias": {}, "ignore_eos": False, "skip_special_tokens": True, "n": 1}
    up = upstream(fake("max"), capabilities=HONOURS_NOTHING)
    _, error = await take(up.chat(chat_request(**neutral), "1"))
    assert error is None
    _, error = await take(up.chat(chat_request(min_p=0.5, skip_special_tokens=False), "1"))
    assert isinstance(error, InvalidRequestError)
    assert error.param == "skip_special_tokens"


async def test_a_completion_without_limit_is_as_long_as_everywhere(fake, upstream):
    server = fake()
    await take(upstream(server).complete(text_request(), "1"))
    assert server.stats()["body"]["max_tokens"] == 16


@pytest.mark.parametrize(("features", "sent"), [([], 1_592_653_589), (["seed.0"], 0)])
def test_seed_0_is_another_number_where_it_means_none(features: list[str], sent: int):
    honoured = dict.fromkeys(["seed", *features], Support.HONOURED)
    capabilities = Capabilities(engine="x", features=honoured)
    dialect = Dialect(engine="x", upstream_model="u", capabilities=capabilities)
    assert dialect.body(chat_request(seed=0))["seed"] == sent
    assert dialect.body(chat_request(seed=3))["seed"] == 3


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({"guided_json": {"type": "object"}}, {"json": {"type": "object"}}),
        ({"guided_choice": ["a"]}, {"choice": ["a"]}),
        ({"guided_grammar": "g"}, {"grammar": "g"}),
        ({"structured_outputs": {"json_object": True}}, {"json_object": True}),
        ({"structured_outputs": {"json": '{"a": 1}'}}, {"json": '{"a": 1}'}),
    ],
)
def test_structured_output_in_vllms_words(fields: dict[str, Any], sent: dict[str, Any]):
    dialect = Dialect(engine="vllm", upstream_model="u", capabilities=shipped_capabilities("vllm"))
    assert dialect.body(chat_request(**fields))["structured_outputs"] == sent


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"guided_json": '{"type": "object"}'}, "json_schema"),
        ({"structured_outputs": {"json": {"type": "object"}}}, "json_schema"),
        ({"structured_outputs": {"json_object": True}}, "json_object"),
        ({"response_format": {"type": "json_object"}}, "json_object"),
        ({"guided_regex": "a"}, None),
    ],
)
def test_structured_output_in_openais_words(fields: dict[str, Any], kind: str | None):
    dialect = Dialect(engine="max", upstream_model="u", capabilities=shipped_capabilities("max"))
    if kind is None:
        with pytest.raises(InvalidRequestError, match=r"guided_regex is not supported .*\(max\)"):
            dialect.body(chat_request(**fields))
        return
    sent = dialect.body(chat_request(**fields))["response_format"]
    assert sent["type"] == kind
    if kind == "json_schema":
        assert sent["json_schema"]["schema"] == {"type": "object"}
