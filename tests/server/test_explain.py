from __future__ import annotations

from typing import Any

import httpx
import pytest

from axion.backends.base import ModelConfig
from axion.backends.capabilities import Capabilities, Support
from axion.router.decide import Decision, Reason, Verdict
from axion.router.plan import Begin, Plan
from axion.router.registry import ModelRegistry
from tests.server.conftest import MODEL, ScriptedBackend
from tests.server.test_app import app, assert_openai_error, client

__all__ = ["app", "client"]

PATH = "/v1/route/explain"
CHAT = {"messages": [{"role": "user", "content": "hello"}]}
PLAIN = Capabilities(engine="fast", features={"temperature": Support.HONOURED})


@pytest.fixture
def fast() -> ScriptedBackend:
    return ScriptedBackend("fast", PLAIN)


@pytest.fixture
def registry(fast: ScriptedBackend, backend: ScriptedBackend) -> ModelRegistry:
    model = ModelConfig(model_name=MODEL)
    verdicts = (
        Verdict(engine="fast", accepted=True, code=Reason.ACCEPTED, reason="Yes.", version="1"),
        Verdict(engine="absent", accepted=False, code=Reason.NOT_INSTALLED, reason="No."),
        Verdict(engine="native", accepted=True, code=Reason.ACCEPTED, reason="Yes."),
    )

    async def planner(begin: Begin) -> Plan:
        decision = Decision(model=MODEL, device="cpu", verdicts=verdicts)
        return Plan([(fast, model), (backend, model)], decision)

    registry = ModelRegistry()
    registry.add_planned(model, planner)
    return registry


async def explained(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post(PATH, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def test_the_decision_and_the_state_of_each_engine(client: httpx.AsyncClient):
    found = await explained(client)
    assert (found["model"], found["device"], found["features"]) == (MODEL, "cpu", [])
    told = [(e["engine"], e["accepted"], e["code"], e["state"]) for e in found["engines"]]
    assert told == [
        ("fast", True, "accepted", "ready"),
        ("absent", False, "not_installed", None),
        ("native", True, "accepted", "ready"),
    ]
    assert found["answered_by"] == "fast"


async def test_a_request_goes_to_the_engine_that_honours_it(
    client: httpx.AsyncClient, fast: ScriptedBackend, backend: ScriptedBackend
):
    found = await explained(client, model=MODEL, request={**CHAT, "temperature": 0.5, "n": 2})
    assert found["features"] == ["n", "temperature"]
    assert [engine["missing"] for engine in found["engines"]] == [["n"], [], []]
    assert (found["answered_by"], found["error"]) == ("native", None)
    assert fast.seen == backend.seen == []


async def test_what_a_client_would_be_told_when_none_does(
    client: httpx.AsyncClient, backend: ScriptedBackend
):
    backend.capabilities = PLAIN
    found = await explained(client, request={"prompt": "a", "logit_bias": {"1": 1}})
    assert found["answered_by"] is None
    assert "logit_bias is not supported by fast" in found["error"]


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"model": "other"}, 404, "model"),
        ({"request": {}}, 400, "request"),
        ({"request": {**CHAT, "prompt": "a"}}, 400, "request"),
        ({"request": {**CHAT, "temperature": 9}}, 400, "request.temperature"),
        ({"request": 1}, 400, "request"),
        ({"nonsense": 1}, 400, "nonsense"),
    ],
)
async def test_a_bad_request_is_named(
    client: httpx.AsyncClient, body: dict[str, Any], status: int, param: str
):
    error = assert_openai_error(await client.post(PATH, json=body), status)
    assert error["param"] == param
