"""llama-index, with an older openai below it; `client.py` is what its user writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import install, run_script

pytestmark = pytest.mark.timeout(300)  # the first run installs

HERE = Path(__file__).parent / "llama_index"


@pytest.fixture(scope="module")
def answers(url: str) -> dict[str, Any]:
    packages = install(
        HERE / "requirements.txt",
        *(sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--retries=1"),
        *("--no-deps", "--no-compile", "--target", ".", "--requirement", "requirements.txt"),
    )
    return run_script(sys.executable, HERE / "client.py", url, PYTHONPATH=str(packages))


def test_it_runs_on_the_openai_client_that_it_needs(answers: dict[str, Any]):
    assert answers["version"].startswith("2.")


def test_chat_whole_and_streamed(answers: dict[str, Any]):
    assert answers["chat"] == "12 + 30 = 42"
    assert len(answers["stream"]) > 2
    assert "".join(answers["stream"]) == answers["chat"]


def test_text_completion_whole_and_streamed(answers: dict[str, Any]):
    whole, streamed = answers["completion"]
    assert whole == streamed != ""


def test_tools_whole_and_streamed(answers: dict[str, Any]):
    assert answers["tools"] == answers["streamed_tools"] == [{"city": "Paris"}]


def test_a_required_tool_is_called(answers: dict[str, Any]):
    assert answers["required_tool"][0] == "get_weather"


def test_an_agent_uses_a_result(answers: dict[str, Any]):
    assert "18" in answers["agent"]


def test_a_pydantic_class_is_filled(answers: dict[str, Any]):
    assert answers["structured"] == {"name": "Anna", "age": 30}


def test_embeddings(answers: dict[str, Any]):
    query, one, two = answers["embeddings"]
    assert len(one) == len(two) == 384
    assert one == pytest.approx(query, abs=1e-6)
    assert one != pytest.approx(two, abs=1e-2)
