"""Real servers of other makers, spawned and looked after: `make test-backends`.

They are where tests/engines/install.sh puts them, in the folder AXION_ENGINES_DIR. Without that
variable nothing here runs: the suite uses fakes that behave as these were recorded.

With MAX_SERVE_DUMMY_MODEL=1 MAX echoes in place of computing, and compiles nothing.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from axion import LlamaCppBackend, MaxBackend, ModelConfig, NativeBackend, VllmBackend
from axion.backends.spawned import SpawnedBackend
from axion.openai.chat import ChatCompletionRequest
from axion.openai.chat_answer import collect_chat
from axion.router.registry import ModelRegistry
from axion.router.route import Route
from axion.types import BackendState

ENGINES = os.environ.get("AXION_ENGINES_DIR", "")
FOLDER = Path(ENGINES)
pytestmark = [
    pytest.mark.skipif(not ENGINES, reason="AXION_ENGINES_DIR names no folder of engines"),
    # MAX compiles a model for minutes when it sees it first.
    pytest.mark.timeout(2400),
]
RESTART_WITHIN_S = 900
BACKENDS: list[tuple[type[SpawnedBackend], str, str]] = [
    (MaxBackend, "max", "tiny-llama"),
    (VllmBackend, "vllm", "tiny-llama"),
    (LlamaCppBackend, "llama-server", "tiny-llama.gguf"),
]


def chat(**fields: object) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello, who are you?"}]}
    return ChatCompletionRequest.model_validate(body | fields)


def family() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


def server_of(backend: SpawnedBackend) -> psutil.Process:
    """The server's own process: the guard's first child."""
    return psutil.Process(backend.pid).children()[0]


def worker_of(backend: SpawnedBackend) -> psutil.Process:
    """The process that computes: the last one, where the server has some."""
    server = server_of(backend)
    return [server, *server.children(recursive=True)][-1]


@pytest.fixture(params=BACKENDS, ids=lambda entry: entry[1])
async def backend(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[SpawnedBackend]:
    """A backend whose engine answers; nothing of it is left in the end."""
    kind, program, model = request.param
    monkeypatch.setenv(kind.command_variable, str(FOLDER / "bin" / program))
    monkeypatch.setenv("AXION_VLLM_ARGS", "--enforce-eager")
    before = family()
    backend: SpawnedBackend = kind()
    path = str(FOLDER / "models" / model)
    try:
        await backend.load_model(
            ModelConfig(model_name=path, max_seq_len=512, kv_cache_bytes=2**30, device="cpu")
        )
        yield backend
    finally:
        await backend.shutdown()
    assert family() <= before


async def test_it_answers_in_openais_shape_and_is_restarted_when_one_of_its_processes_is_killed(
    backend: SpawnedBackend,
):
    answer = await collect_chat(backend.chat(chat(max_tokens=8, temperature=0), "one"))
    choice = answer.choices[0]
    assert choice.finish_reason == "length"
    assert choice.message.content
    assert answer.usage.completion_tokens == 8
    assert answer.model.endswith(("tiny-llama", "tiny-llama.gguf"))
    stop = choice.message.content[2:5]
    stopped = await collect_chat(
        backend.chat(chat(max_tokens=8, temperature=0, stop=stop), "stopped")
    )
    assert stopped.choices[0].message.content == choice.message.content.partition(stop)[0]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.prompt_tokens == answer.usage.prompt_tokens
    again = await collect_chat(backend.chat(chat(max_tokens=8, temperature=0), "two"))
    assert again.choices[0].message.content == choice.message.content

    for num_restarts, victim in enumerate((server_of, worker_of), start=1):
        victim(backend).kill()
        async with asyncio.timeout(RESTART_WITHIN_S):
            while (await backend.health()).restarts < num_restarts:
                await asyncio.sleep(0.1)
            while (await backend.health()).state is not BackendState.READY:
                await asyncio.sleep(0.1)
        after = await collect_chat(backend.chat(chat(max_tokens=8, temperature=0), "three"))
        assert after.choices[0].message.content == choice.message.content


async def test_what_it_does_not_honour_is_answered_by_the_native_engine(
    backend: SpawnedBackend, monkeypatch: pytest.MonkeyPatch
):
    registry = ModelRegistry()
    name = "tiny-llama.gguf" if backend.engine == "llama_cpp" else "tiny-llama"
    path = str(FOLDER / "models" / name)
    model = ModelConfig(model_name=path, served_name="m", max_seq_len=512, device="cpu")
    native = NativeBackend()

    async def started(_: ModelConfig) -> None:
        """It is running already."""

    monkeypatch.setattr(backend, "start", started)
    served = registry.add(model, backend, native)
    await served.start()
    async with asyncio.timeout(RESTART_WITHIN_S):
        while not all(candidate.has_started for candidate in served.candidates):
            await asyncio.sleep(0.05)
    try:
        plain = Route(served)
        await collect_chat(plain.chat(chat(max_tokens=4), "one"))
        assert plain.engine == backend.engine
        biased = Route(served)
        forced = chat(max_tokens=4, logit_bias={"65": 100}, n=2, min_p=0.1, seed=0)
        answer = await collect_chat(biased.chat(forced, "two"))
        assert len(answer.choices) == 2
        honoured = not backend.capabilities.missing(["logit_bias", "n", "min_p", "seed.0"])
        assert biased.engine == (backend.engine if honoured else "native")
    finally:
        await native.shutdown()
