"""OpenAI's client for Node, with zod; `client.mjs` is what its user writes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import install, run_script

pytestmark = pytest.mark.timeout(300)  # the first run installs

HERE = Path(__file__).parent / "node"


@pytest.fixture(scope="module")
def answers(url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs Node 20 or later and npm on the PATH")
    packages = install(HERE / "package-lock.json", "npm", "ci", "--fetch-retries=1")
    # Node looks for packages beside the script.
    folder = tmp_path_factory.mktemp("node")
    (folder / "node_modules").symlink_to(packages / "node_modules")
    shutil.copy(HERE / "client.mjs", folder)
    return run_script("node", folder / "client.mjs", url)


def test_chat(answers: dict[str, Any]):
    chat = answers["chat"]
    assert (chat["text"], chat["finish"]) == ("12 + 30 = 42", "stop")
    assert chat["usage"]["total_tokens"] > chat["usage"]["prompt_tokens"] > 0


def test_a_stream_adds_up_to_the_whole_answer(answers: dict[str, Any]):
    stream = answers["stream"]
    assert len(stream["deltas"]) > 2
    assert "".join(stream["deltas"]) == stream["text"] == answers["chat"]["text"]
    assert stream["usage"]["total_tokens"] == answers["chat"]["usage"]["total_tokens"]


def test_a_stream_can_be_left(answers: dict[str, Any]):
    # What has come with the third chunk is still told; 1,500 were asked for.
    assert 3 <= answers["aborted"] < 100


def test_a_streamed_call_is_put_together(answers: dict[str, Any]):
    call = answers["toolStream"]
    assert len(call["pieces"]) > 2
    assert (call["name"], call["parsed"]) == ("get_weather", {"city": "Paris"})
    assert call["finish"] == "tool_calls"


def test_the_tool_runner_goes_on_to_an_answer(answers: dict[str, Any]):
    assert "18" in answers["runTools"]


def test_zod_schemas_are_followed(answers: dict[str, Any]):
    assert answers["parse"] == answers["responseParse"] == {"name": "Anna", "age": 30}


def test_embeddings_by_default_are_those_in_plain_numbers(answers: dict[str, Any]):
    by_default, as_float = answers["embeddings"]
    assert [len(vector) for vector in by_default] == [384, 384]
    for one, other in zip(by_default, as_float, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_responses_follow_each_other(answers: dict[str, Any]):
    assert "42" in answers["response"]


def test_a_response_is_streamed(answers: dict[str, Any]):
    stream = answers["responseStream"]
    assert stream["text"] == "12 + 30 = 42"
    assert stream["types"][0] == "response.created"
    assert stream["types"].count("response.output_text.delta") > 2
    assert stream["types"][-1] == "response.completed"


def test_models_are_listed(answers: dict[str, Any]):
    assert answers["models"] == ["axion/demo", "minilm", "cross"]


def test_an_error_is_the_clients_own(answers: dict[str, Any]):
    error = answers["error"]
    assert error["requestID"].startswith("req_")
    del error["requestID"]
    assert error == {"kind": "NotFoundError", "status": 404, "code": "model_not_found"}
