"""Engines that cannot run everywhere, against a server that behaves as they are known to."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from axion.backends.base import ModelConfig
from axion.backends.inference import InferenceRequest
from axion.backends.llama_cpp import LlamaCppBackend
from axion.backends.max import MaxBackend
from axion.backends.sglang import SglangBackend
from axion.backends.spawned import SpawnedBackend
from axion.backends.tensorrt_llm import TensorRTLLMBackend
from axion.backends.tgi import TgiBackend
from axion.backends.vllm import VllmBackend
from axion.errors import ModelLoadError
from tests.backends import fake_server
from tests.backends.engine_models import write_gguf, write_model, write_program

# Gets the engine's command line, and keeps it; answers only to the name that the engine would.
SCRIPT = """#!{python}
import json, os, pathlib, sys
given = sys.argv[1:]
variables = {{name: os.environ.get(name) for name in ("HF_HUB_OFFLINE", "DO_NOT_TRACK")}}
variables["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES")
pathlib.Path({record!r}).write_text(json.dumps([given, variables]))
port = given[given.index("--port") + 1]
words = ["--port", port, "--style", {style!r}, "--set", "model=" + {name!r}]
words += ["--set", "start_s=0.3"] + {more!r}
os.execv(sys.executable, [sys.executable, {fake!r}, *words])
"""
ENGINES = [
    (MaxBackend, "max", "the-model"),
    (VllmBackend, "vllm", "the-model"),
    (SglangBackend, "llama_cpp", "the-model"),  # 503 while it starts
    (TensorRTLLMBackend, "llama_cpp", "folder"),
    (TgiBackend, "llama_cpp", "tgi"),
    (LlamaCppBackend, "llama_cpp", "the-model"),
]


@pytest.mark.parametrize(("engine", "style", "name"), ENGINES, ids=lambda value: str(value))
async def test_an_engine_is_spawned_and_answers(
    engine: type[SpawnedBackend],
    style: str,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    record = tmp_path / "given"
    script = SCRIPT.format(
        python=sys.executable,
        fake=fake_server.__file__,
        record=str(record),
        style=style,
        name=name,
        more=[],
    )
    monkeypatch.setenv(engine.command_variable, str(write_program(tmp_path / "engine", script)))
    monkeypatch.setenv(engine.command_variable.replace("COMMAND", "ARGS"), "--more 'two words'")
    is_gguf = "gguf" in engine.known.formats
    path = write_gguf(tmp_path / "m.gguf") if is_gguf else write_model(tmp_path / "folder")
    model = ModelConfig(model_name=str(path), served_name="the-model", device="cuda:3")
    async with engine() as backend:
        await backend.load_model(model)
        result = await backend.infer(InferenceRequest(prompt="Count:", max_tokens=3))
        assert result.text == " 0 1 2"
    given, variables = json.loads(record.read_text())
    assert given[-2:] == ["--more", "two words"]
    assert "127.0.0.1" in given
    assert "0.0.0.0" not in given
    assert str(path) in given
    assert variables == {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": "3"}


async def test_an_engine_that_refuses_the_model_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    script = SCRIPT.format(
        python=sys.executable,
        fake=fake_server.__file__,
        record=str(tmp_path / "given"),
        style="max",
        name="the-model",
        more=["--set", "exit_at_start=1"],
    )
    monkeypatch.setenv("AXION_MAX_COMMAND", str(write_program(tmp_path / "max", script)))
    path = write_model(tmp_path / "folder")
    with pytest.raises(ModelLoadError, match="Architecture 'FakeForCausalLM' not found"):
        async with MaxBackend() as backend:
            await backend.load_model(ModelConfig(model_name=str(path), device="cpu"))


async def test_an_engine_of_another_python_gets_no_pythonpath(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    record = tmp_path / "given"
    script = f'#!/bin/sh\necho "[$PYTHONPATH]" > {record}\nexit 1\n'
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("AXION_TGI_COMMAND", str(write_program(tmp_path / "tgi", script)))
    path = write_model(tmp_path / "folder")
    with pytest.raises(ModelLoadError, match="ended with status 1"):
        async with TgiBackend() as backend:
            await backend.load_model(ModelConfig(model_name=str(path), device="cpu"))
    assert record.read_text() == "[]\n"


async def test_arguments_that_cannot_be_split_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    program = write_program(tmp_path / "max", "#!/bin/sh\n")
    monkeypatch.setenv("AXION_MAX_COMMAND", str(program))
    monkeypatch.setenv("AXION_MAX_ARGS", "--open 'quote")
    path = write_model(tmp_path / "folder")
    with pytest.raises(ModelLoadError, match="AXION_MAX_ARGS"):
        async with MaxBackend() as backend:
            await backend.load_model(ModelConfig(model_name=str(path), device="cpu"))
