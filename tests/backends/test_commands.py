"""What each engine is started with: the command line and the environment that differ."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from axion.backends.base import ModelConfig
from axion.backends.capabilities import Support
from axion.backends.engines import spawned_engines
from axion.backends.llama_cpp import LlamaCppBackend
from axion.backends.max import MaxBackend
from axion.backends.sglang import SglangBackend
from axion.backends.spawned import SpawnedBackend
from axion.backends.tensorrt_llm import TensorRTLLMBackend
from axion.backends.tgi import TgiBackend
from axion.backends.vllm import VllmBackend
from tests.backends.engine_models import HERMES, QWEN3, write_model

GPU = ModelConfig(
    model_name="org/model",
    served_name="the-model",
    max_seq_len=1000,
    max_num_seqs=7,
    max_num_batched_tokens=500,
    device="cuda",
    memory_fraction=0.8,
    tensor_parallel_size=2,
)
CPU = msgspec.structs.replace(GPU, device="cpu", tensor_parallel_size=1)
PORT = 20_001


def options(backend: SpawnedBackend, model: ModelConfig, path: Path | str) -> dict[str, str]:
    """The command line as names and values; a flag's value, and a lone word's, is empty."""
    words = backend.arguments(model, str(path), PORT)
    assert all(isinstance(word, str) for word in words)
    found: dict[str, str] = {}
    for word, after in zip(words, [*words[1:], "-"], strict=True):
        if word.startswith("-"):
            found[word] = "" if after.startswith("-") else after
        elif word not in found.values():
            found[word] = ""
    return found


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "folder")


def test_max_on_a_gpu(model: Path):
    assert options(MaxBackend(), GPU, model) == {
        "serve": "",
        "--host": "127.0.0.1",
        "--port": str(PORT),
        "--model-path": str(model),
        "--served-model-name": "the-model",
        "--max-batch-size": "7",
        "--max-length": "1000",
        "--max-batch-input-tokens": "500",
        "--devices": "gpu:0,1",
        "--device-memory-utilization": "0.8",
        "--enable-penalties": "",
        "--enable-min-tokens": "",
        "--enable-structured-output": "",
    }
    assert MaxBackend().environment(GPU, str(model), PORT) == {"MAX_SERVE_DISABLE_TELEMETRY": "1"}
    narrow = msgspec.structs.replace(GPU, dtype="bfloat16")
    assert options(MaxBackend(), narrow, model)["--quantization-encoding"] == "bfloat16"


@pytest.mark.parametrize(
    ("config", "sampling"),
    [
        ({"do_sample": True, "top_k": 5}, ""),
        ({"do_sample": False}, "--temperature 1 --top-k -1"),
        ({"do_sample": False, "temperature": 0.5, "top_k": 5}, "--temperature 0.5 --top-k 5"),
    ],
)
def test_max_samples_although_the_model_would_rather_not(
    model: Path, config: dict[str, Any], sampling: str
):
    (model / "generation_config.json").write_text(json.dumps(config))
    line = " ".join(MaxBackend().arguments(CPU, str(model), PORT))
    assert sampling in line
    assert bool(sampling) == ("--top-k" in line)


def test_max_on_a_cpu_computes_in_float32(model: Path):
    found = options(MaxBackend(), CPU, model)
    assert found["--devices"] == "cpu"
    assert found["--quantization-encoding"] == "float32"
    assert "--device-memory-utilization" not in found
    assert "--enable-structured-output" not in found


def test_vllm_on_a_gpu(model: Path):
    assert options(VllmBackend(), GPU, model) == {
        "serve": "",
        str(model): "",
        "--served-model-name": "the-model",
        "--host": "127.0.0.1",
        "--port": str(PORT),
        "--max-model-len": "1000",
        "--max-num-seqs": "7",
        "--max-num-batched-tokens": "500",
        "--dtype": "auto",
        "--tensor-parallel-size": "2",
        "--scheduling-policy": "priority",
        "--gpu-memory-utilization": "0.8",
        "--enable-prompt-tokens-details": "",
        "--disable-uvicorn-access-log": "",
    }
    assert VllmBackend().environment(GPU, str(model), PORT) == {"VLLM_NO_USAGE_STATS": "1"}
    fixed = msgspec.structs.replace(GPU, kv_cache_bytes=5)
    assert options(VllmBackend(), fixed, model)["--kv-cache-memory-bytes"] == "5"
    trusting = msgspec.structs.replace(GPU, trust_remote_code=True)
    assert options(VllmBackend(), trusting, model)["--trust-remote-code"] == ""


def test_vllm_on_a_cpu_gets_its_cores_and_its_cache(model: Path):
    assert "--gpu-memory-utilization" not in options(VllmBackend(), CPU, model)
    sized = msgspec.structs.replace(CPU, kv_cache_bytes=3 * 2**30, num_threads=1)
    found = VllmBackend().environment(sized, str(model), PORT)
    assert found["VLLM_CPU_KVCACHE_SPACE"] == "3"
    assert found["VLLM_CPU_OMP_THREADS_BIND"] == str(min(os.sched_getaffinity(0)))
    every = VllmBackend().environment(CPU, str(model), PORT)
    cores = every["VLLM_CPU_OMP_THREADS_BIND"].split(",")
    assert len(cores) == len(os.sched_getaffinity(0))
    assert int(every["VLLM_CPU_KVCACHE_SPACE"]) >= 1


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        ("{{ messages }}", None, None),
        (HERMES, "hermes", None),
        (QWEN3, "hermes", "qwen3"),
        ("{{ tools }}<tool_call><parameter=", "qwen3_coder", None),
        ("{{ tools }}[TOOL_CALLS]", "mistral", None),
        ("{{ messages }}</think>", None, "deepseek_r1"),
        ("{{ tools }}<|channel|>", "openai", "openai_gptoss"),
        ("{{ tools }}<start_function_call>", "functiongemma", None),
    ],
)
def test_vllm_reads_calls_and_reasoning_as_the_models_template_writes_them(
    tmp_path: Path, template: str, tools: str | None, reasoning: str | None
):
    path = write_model(tmp_path / "m", template=template)
    found = options(VllmBackend(), CPU, path)
    assert found.get("--tool-call-parser") == tools
    assert ("--enable-auto-tool-choice" in found) == (tools is not None)
    assert found.get("--reasoning-parser") == reasoning
    missing = VllmBackend().capabilities_for(CPU, str(path)).missing(["tools"])
    assert bool(missing) == (tools is None)


def test_sglang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_model(tmp_path / "m", template=QWEN3)
    monkeypatch.delenv("AXION_SGLANG_COMMAND", raising=False)
    assert options(SglangBackend(), GPU, path) == {
        "serve": "",
        "--model-path": str(path),
        "--served-model-name": "the-model",
        "--host": "127.0.0.1",
        "--port": str(PORT),
        "--context-length": "1000",
        "--max-running-requests": "7",
        "--chunked-prefill-size": "500",
        "--mem-fraction-static": "0.8",
        "--dtype": "auto",
        "--tp-size": "2",
        "--tool-call-parser": "qwen25",
        "--reasoning-parser": "qwen3",
        "--enable-metrics": "",
    }
    monkeypatch.setenv("AXION_SGLANG_COMMAND", "sh -m sglang.launch_server")
    assert "serve" not in options(SglangBackend(), GPU, path)


def test_tgi_has_ports_and_a_socket_of_its_own(model: Path):
    found = options(TgiBackend(), GPU, model)
    ports = {found[name] for name in ("--port", "--prometheus-port", "--master-port")}
    assert len(ports) == 3
    assert str(PORT) in found["--shard-uds-path"]
    assert found["--hostname"] == "127.0.0.1"
    assert found["--num-shard"] == "2"
    assert found["--usage-stats"] == "off"
    assert (found["--max-total-tokens"], found["--max-input-tokens"]) == ("1000", "999")
    assert TgiBackend().upstream_model(GPU, str(model)) == "tgi"


def test_tensorrt_llm_calls_the_model_by_its_folder(model: Path):
    found = options(TensorRTLLMBackend(), GPU, model)
    assert next(iter(found)) == str(model)
    assert found["--tp_size"] == "2"
    assert found["--max_seq_len"] == "1000"
    assert found["--host"] == "127.0.0.1"
    assert TensorRTLLMBackend().upstream_model(GPU, str(model)) == "folder"


def test_llama_cpp_takes_the_file():
    found = options(LlamaCppBackend(), CPU, "/models/m.gguf")
    assert found == {
        "--model": "/models/m.gguf",
        "--alias": "the-model",
        "--host": "127.0.0.1",
        "--port": str(PORT),
        "--parallel": "7",
        "--ctx-size": "4000",
        "--gpu-layers": "0",
        "--kv-unified": "",
        "--jinja": "",
        "--metrics": "",
        "--no-webui": "",
    }
    threads = msgspec.structs.replace(CPU, num_threads=3)
    assert options(LlamaCppBackend(), threads, "m.gguf")["--threads"] == "3"
    assert options(LlamaCppBackend(), GPU, "m.gguf")["--gpu-layers"] == "999"


def test_max_holds_answers_to_a_schema_on_a_gpu_alone(model: Path):
    feature = ["response_format.json_schema"]
    assert MaxBackend().capabilities_for(CPU, str(model)).missing(feature) == feature
    assert MaxBackend().capabilities_for(GPU, str(model)).missing(feature) == []


@pytest.mark.parametrize(
    ("backend", "lines", "cause"),
    [
        (
            VllmBackend(),
            [
                "(EngineCore pid=1) ERROR ValueError: Head size 16 is not supported.",
                "(APIServer pid=2) RuntimeError: Engine core initialization failed. "
                "See root cause above.",
            ],
            "ValueError: Head size 16 is not supported.",
        ),
        (
            VllmBackend(),
            [
                "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
                "  Value error, The checkpoint has model type `nope`.",
                "    For further information visit https://errors.pydantic.dev",
            ],
            "Value error, The checkpoint has model type `nope`.",
        ),
        (
            MaxBackend(),
            ["  raise ValueError(", "ValueError: Architecture 'X' not found in registry", "bye"],
            "ValueError: Architecture 'X' not found in registry",
        ),
    ],
    ids=["vllm worker", "vllm config", "max"],
)
def test_the_line_that_says_why_is_found(backend: SpawnedBackend, lines: list[str], cause: str):
    assert backend.cause(lines) == cause


@pytest.mark.parametrize("engine", spawned_engines(), ids=lambda engine: engine.engine)
def test_every_engine_is_known_by_consistent_names(engine: Any):
    assert engine.known.engine == engine.engine
    assert engine.command_variable == f"AXION_{engine.engine.upper()}_COMMAND"
    assert set(engine().capabilities.features.values()) <= set(Support)
