"""Backends as a library: load, ask, stream, shut down."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import pytest

import axion
from axion import InferenceRequest, ModelConfig, NativeBackend, VllmBackend
from axion.backends.inference import LibraryBackend
from axion.errors import EngineUnavailableError, InvalidRequestError, ModelLoadError
from tests.backends import fake_server
from tests.backends.engine_models import write_program

QUESTION = [{"role": "user", "content": "What is 20 + 22?"}]


async def pieces(stream: AsyncGenerator[str, None]) -> list[str]:
    async with aclosing(stream) as texts:
        return [text async for text in texts]


async def test_the_native_engine_answers_without_a_server():
    async with NativeBackend() as backend:
        await backend.load_model(ModelConfig(model_name="axion/demo", tensor_parallel_size=1))
        request = InferenceRequest(messages=QUESTION, temperature=0.0)
        result = await backend.infer(request)
        assert result.text == "20 + 22 = 42"
        assert result.finish_reason == "stop"
        assert result.prompt_tokens > 0
        streamed = await pieces(backend.stream(request))
        assert "".join(streamed) == result.text
        assert len(streamed) > 1
        short = InferenceRequest(prompt="Once upon", max_tokens=3, temperature=0.0, stop=["zzz"])
        result = await backend.infer(short)
        assert (result.completion_tokens, result.finish_reason) == (3, "length")
    with pytest.raises(EngineUnavailableError):
        await backend.infer(request)


async def test_a_spawned_engine_answers_in_the_same_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # vLLM's command line, with the fake's in place of what the fake does not know.
    script = f"""#!{sys.executable}
import os, sys
port = sys.argv[sys.argv.index("--port") + 1]
words = ["--port", port, "--set", "model=axion/demo"]
os.execv(sys.executable, [sys.executable, {fake_server.__file__!r}, *words])
"""
    monkeypatch.setenv("AXION_VLLM_COMMAND", str(write_program(tmp_path / "vllm", script)))
    async with VllmBackend() as backend:
        await backend.load_model(ModelConfig(model_name="axion/demo"))
        request = InferenceRequest(prompt="Count:", max_tokens=4, temperature=0.0)
        result = await backend.infer(request)
        assert (result.text, result.finish_reason) == (" 0 1 2 3", "length")
        assert result.completion_tokens == 4
        assert "".join(await pieces(backend.stream(request))) == result.text
        pid = backend.pid
        assert pid is not None
    assert backend.pid is None


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (InferenceRequest(), "prompt"),
        (InferenceRequest(prompt="a", messages=QUESTION), "prompt"),
        (InferenceRequest(prompt="a", temperature=9.0), "temperature"),
        (InferenceRequest(prompt="a", options={"nonsense": 1}), "nonsense"),
        (InferenceRequest(prompt="a", options={"n": 2}), "n"),
    ],
)
async def test_a_request_is_refused_by_name(request_: InferenceRequest, param: str):
    with pytest.raises(InvalidRequestError) as caught:
        await axion.MaxBackend().infer(request_)
    assert caught.value.param == param


async def test_the_native_engine_refuses_several_devices_by_name():
    with pytest.raises(ModelLoadError, match="tensor_parallel_size is 2"):
        async with NativeBackend() as backend:
            await backend.load_model(ModelConfig(model_name="axion/demo", tensor_parallel_size=2))


def test_every_public_name_is_there():
    for name in axion.__all__:
        assert getattr(axion, name)
    backends = [name for name in axion.__all__ if name.endswith("Backend")]
    assert len(backends) == 8
    assert all(issubclass(getattr(axion, name), LibraryBackend) for name in backends)
