"""A field's check tells who honours it from who refuses it and who drops it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import pytest

from axion.backends.base import ModelConfig
from axion.backends.capabilities import Support
from axion.backends.native.backend import NativeBackend
from axion.conformance.behaviour import BEHAVIOURS, Observation
from axion.conformance.check import CHECKS, Finding, honoured
from axion.conformance.probe import Probe
from axion.conformance.server import Server, UnreachableError
from axion.conformance.suite import Suite
from axion.conformance.tokens import Tokens
from axion.openai.features import FEATURES
from axion.router.registry import ModelRegistry
from axion.settings import Settings
from tests.conformance.lossy import LossyTransport, Record
from tests.server.conftest import LiveServer
from tests.tiny_model import save_tiny_model

# It shows whatever can be in a prompt, so that every field has an effect.
TEMPLATE = (
    "{% if tools %}<|system|><tool_call>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for message in messages %}"
    "<|{{ message.role }}|>{% if message.name %}{{ message.name }}: {% endif %}"
    "{% if message.reasoning_content %}({{ message.reasoning_content }}){% endif %}"
    "{{ message.content }}"
    "{% for call in message.tool_calls %}<tool_call>{{ call | tojson }}{% endfor %}<|end|>"
    "{% endfor %}"
    "{% if reasoning_effort %}[{{ reasoning_effort }}]{% endif %}"
    "{% if enable_thinking is defined %}[{{ enable_thinking }}]{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# What nobody can see from outside with this model.
UNSEEN = {"priority", "add_special_tokens"}

SHOWN_BY_THE_ANSWER = {
    *("temperature", "top_k", "top_p", "min_p", "seed", "seed.0", "n", "logit_bias", "stop"),
    *("presence_penalty", "frequency_penalty", "repetition_penalty", "min_tokens", "ignore_eos"),
    *("stop_token_ids", "logprobs", "continue_final_message", "tools", "tool_choice.none"),
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """Axion with its own engine and a model of random weights."""
    folder = save_tiny_model(tmp_path_factory.mktemp("conformance") / "tiny")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    yield from _serve(str(folder))


def _serve(model_name: str) -> Iterator[LiveServer]:
    model = ModelConfig(
        model_name=model_name,
        served_name="tested",
        device="cpu",
        dtype="float32",  # in which a seed's answer does not depend on what is asked beside it
        max_seq_len=2048,
        kv_cache_bytes=64 * 2**20,
        num_threads=1,
    )
    registry = ModelRegistry()
    registry.add(model, NativeBackend())
    with LiveServer(Settings(model_name=model_name), registry) as server:
        yield server


@pytest.fixture
def demo() -> Iterator[LiveServer]:
    yield from _serve("axion/demo")


@asynccontextmanager
async def suite_of(
    live: LiveServer,
    *,
    engine: str = "somebody's",
    transport: LossyTransport | None = None,
) -> AsyncIterator[Suite]:
    server = Server(live.url, "tested", transport=transport)
    try:
        suite = Suite(server, engine, Tokens(server))
        await suite.begin()
        yield suite
    finally:
        await server.close()


async def found(suite: Suite, feature: str) -> Support | None:
    [_] = [row async for row in suite.run({feature})]
    return suite.findings[feature].support


async def found_of_all(
    live: LiveServer,
    features: Collection[str],
    record: Record,
    how: Literal["dropped", "refused"] | None = None,
    **options: Any,
) -> dict[str, Support | None]:
    """What is found of each feature, of a server that does `how` with that one.

    They are asked beside each other, as many as the engine takes into a step.
    """
    places = asyncio.Semaphore(ModelConfig(model_name="tested").max_num_seqs)

    async def one(feature: str) -> Support | None:
        transport = LossyTransport(record, feature, how)
        async with places, suite_of(live, transport=transport, **options) as suite:
            return await found(suite, feature)

    return dict(zip(features, await asyncio.gather(*map(one, features)), strict=True))


def test_every_feature_has_a_check():
    assert CHECKS.keys() == FEATURES


async def test_everything_is_run_and_echo_last(live: LiveServer, monkeypatch: pytest.MonkeyPatch):
    async def at_once(probe: Probe) -> Finding:
        return honoured("")

    async def nothing(name: str, probe: Probe) -> Observation:
        return Observation("", "")

    checks = {name: check._replace(run=at_once) for name, check in CHECKS.items()}
    monkeypatch.setattr("axion.conformance.suite.CHECKS", checks)
    monkeypatch.setattr("axion.conformance.suite.observe", nothing)
    async with suite_of(live) as suite:
        names = [row.name async for row in suite.run()]
    assert sorted(names) == sorted([*FEATURES, *BEHAVIOURS])
    assert names[-1] == "echo.logprobs"


async def test_the_native_engine_drops_nothing(live: LiveServer):
    async with suite_of(live, engine="native") as suite:
        await asyncio.gather(*(found(suite, feature) for feature in FEATURES))
        rows = [row async for row in suite.run(BEHAVIOURS.keys())]
    assert {row.name for row in rows} == BEHAVIOURS.keys()
    others = {name: f for name, f in suite.findings.items() if f.support is not Support.HONOURED}
    # Every answer of best_of is given, and this model does not reason.
    assert others.keys() == {"best_of", "messages.reasoning_content"}
    assert {finding.support for finding in others.values()} == {Support.REFUSED}
    behaviour = {row.name: row.result for row in suite.observations}
    assert behaviour == {
        "unknown field": "refused",
        "wrong model": "404",
        "malformed JSON": "400",
        "value out of range": "400",
        "error body": "OpenAI's",
        "usage": "right",
        "usage of a stream": "right",
        "stream equals whole": "yes",
        "[DONE]": "once, last",
        "role": "one chunk",
        "finish_reason": "once",
        "tokenization": "vLLM's form",
        "metrics": "Prometheus",
        "disconnect frees the engine": "yes",
    }


async def test_a_model_that_is_sure_of_itself_is_no_reason_to_call_a_field_dropped(
    demo: LiveServer,
):
    async with Record() as record:
        supports = await found_of_all(demo, SHOWN_BY_THE_ANSWER, record, engine="native")
    assert supports == dict.fromkeys(SHOWN_BY_THE_ANSWER, Support.HONOURED)


async def test_a_server_that_ignores_or_refuses_a_field_is_found_out(live: LiveServer):
    async with Record() as record:
        supports = await found_of_all(live, FEATURES, record, "dropped")
        assert supports == dict.fromkeys(FEATURES, Support.DROPPED)
        supports = await found_of_all(live, FEATURES, record, "refused")
        assert supports == dict.fromkeys(FEATURES, Support.REFUSED)


@pytest.mark.parametrize("feature", sorted(UNSEEN))
async def test_what_shows_no_effect_counts_as_dropped_unless_the_source_is_known(
    live: LiveServer, feature: str
):
    async with suite_of(live) as suite:
        assert await found(suite, feature) is Support.DROPPED
        assert suite.findings[feature].accepted
    async with suite_of(live, engine="native") as suite:
        assert await found(suite, feature) is Support.HONOURED


async def test_a_server_that_is_not_there_is_an_error():
    server = Server("http://127.0.0.1:9", "tested")
    with pytest.raises(UnreachableError, match="does not answer"):
        await Suite(server, "x", Tokens(server)).begin()
    await server.close()


async def test_a_server_without_the_model_is_an_error(live: LiveServer):
    server = Server(live.url, "another")
    with pytest.raises(UnreachableError, match="another"):
        await Suite(server, "x", Tokens(server)).begin()
    await server.close()
