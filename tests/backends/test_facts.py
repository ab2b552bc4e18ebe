"""What is known of a model and a device before anything is loaded."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import psutil
import pytest
from gguf import GGMLQuantizationType as Type

from axion.backends.facts import device_facts, model_facts
from axion.errors import ModelLoadError
from axion.hub.resolve import resolve
from tests.backends.engine_models import write_gguf
from tests.gguf_files import build, write_tiny_gguf


async def test_a_snapshot_tells_what_it_is():
    facts = model_facts("demo", (await resolve("axion/demo")).path)
    assert facts.architectures == ("LlamaForCausalLM",)
    assert facts.format == "safetensors"
    assert facts.weight_bytes > 10**6
    assert facts.head_dim > 0
    assert not facts.quantization


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"hidden_size": 64, "num_attention_heads": 4}, {"head_dim": 16}),
        ({"hidden_size": 64, "num_attention_heads": 4, "head_dim": 32}, {"head_dim": 32}),
        ({"text_config": {"head_dim": 8, "torch_dtype": "bfloat16"}}, {"head_dim": 8}),
        ({"quantization_config": {"quant_method": "awq"}}, {"quantization": "awq"}),
        ({"compression_config": {"quant_method": "awq"}}, {"quantization": "awq"}),
        (
            {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
            {"quantization": "fp8"},
        ),
        ({"vocab_size": 100, "hidden_size": 64}, {"num_embedding_weights": 6400}),
        ({"vocab_size": "many", "hidden_size": 64}, {"num_embedding_weights": 0}),
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, {"has_remote_code": True}),
        ({"auto_map": {"AutoModel": "x.Y"}}, {"has_remote_code": False}),
        ({"torch_dtype": "float16"}, {"dtype": "float16"}),
        ({"max_position_embeddings": 2048}, {"max_length": 2048}),
        (
            {"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 2.0}},
            {"max_length": 128},
        ),
        (
            {
                "max_position_embeddings": 256,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 64,
                },
            },
            {"max_length": 256},
        ),
        (
            {"max_position_embeddings": 256, "rope_scaling": {"rope_type": "llama3", "factor": 8}},
            {"max_length": 256},
        ),
        *(
            (
                {"max_position_embeddings": 64, "rope_scaling": {"type": "yarn", "factor": factor}},
                {"max_length": 64},
            )
            for factor in (math.inf, math.nan)
        ),
    ],
    ids=str,
)
def test_config_json_is_read(tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["A"], **config}))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10)
    facts = model_facts("m", tmp_path)
    assert facts.weight_bytes == 10
    assert {name: getattr(facts, name) for name in expected} == expected


def test_a_config_without_architectures_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="names no architecture"):
        model_facts("m", tmp_path)


def test_pickle_is_a_format_of_its_own(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"architectures": ["A"]}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"x" * 10)
    facts = model_facts("m", tmp_path)
    assert (facts.format, facts.weight_bytes) == ("pickle", 10)


def gguf_of(case: str, folder: Path, kind: Type = Type.F32) -> Path:
    return write_tiny_gguf(case, build(case), folder / "model.gguf", kind)


@pytest.mark.parametrize(
    ("case", "kind", "architecture", "quantization"),
    [
        ("llama", Type.F32, "LlamaForCausalLM", ""),
        ("mixtral", Type.Q8_0, "MixtralForCausalLM", "Q8_0"),
        ("olmo3", Type.Q4_0, "Olmo3ForCausalLM", "Q4_0"),
        ("qwen3", Type.BF16, "Qwen3ForCausalLM", ""),
    ],
)
def test_a_gguf_file_tells_what_it_is(
    tmp_path: Path, case: str, kind: Type, architecture: str, quantization: str
):
    file = gguf_of(case, tmp_path, kind)
    facts = model_facts("m", file)
    assert (facts.format, facts.architectures) == ("gguf", (architecture,))
    assert facts.quantization == quantization
    assert facts.dtype == {Type.F32: "float32", Type.BF16: "bfloat16"}.get(kind, "")
    assert facts.weight_bytes == file.stat().st_size
    assert facts.max_length == 512


def test_an_unknown_architecture_keeps_its_name(tmp_path: Path):
    facts = model_facts("m", write_gguf(tmp_path / "m.gguf", "mamba"))
    assert facts.architectures == ("mamba",)


def test_what_is_no_gguf_file_is_a_clear_error(tmp_path: Path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGML")
    with pytest.raises(ModelLoadError, match=r"model\.gguf is no GGUF file"):
        model_facts("m", file)


async def test_the_cpu_has_the_memory_that_is_available():
    facts = await device_facts("cpu")
    assert facts.kind == "cpu"
    assert 0 < facts.free_bytes <= psutil.virtual_memory().total


async def test_gpus_are_asked_of_their_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'NVIDIA A, 1000, 1500'\necho 'NVIDIA B, with comma, 2000, 2500'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    facts = await device_facts("auto")
    assert (facts.kind, facts.name, facts.free_bytes) == ("cuda", "NVIDIA A", 1000 * 2**20)
    facts = await device_facts("cuda:1")
    assert (facts.name, facts.free_bytes) == ("NVIDIA B, with comma", 2000 * 2**20)
    assert facts.total_bytes == 2500 * 2**20
    assert (await device_facts("cpu")).kind == "cpu"


async def test_without_a_driver_auto_is_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (await device_facts("auto")).kind == "cpu"
    assert (await device_facts("cuda")).kind == "cuda"
