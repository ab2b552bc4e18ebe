"""What is known of a model and a device before anything is loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import psutil
import pytest

from axion.backends.facts import device_facts, gguf_architecture, model_facts
from axion.errors import ModelLoadError
from axion.hub.resolve import resolve


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(*entries: bytes) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", 3, 0, len(entries)) + b"".join(entries)


ARCHITECTURE = string("general.architecture") + struct.pack("<I", 8) + string("llama")
NUMBER = string("a.number") + struct.pack("<IQ", 10, 5)
NUMBERS = string("numbers") + struct.pack("<IIQ", 9, 5, 3) + struct.pack("<3i", 1, 2, 3)
STRINGS = string("strings") + struct.pack("<IIQ", 9, 8, 2) + string("a") + string("bc")
LISTS = string("lists") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 0, 2) + b"ab"


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
        ({"auto_map": {"AutoModel": "x.Y"}}, {"has_remote_code": True}),
        ({"architectures": None}, {"architectures": ()}),
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
    ],
    ids=str,
)
def test_config_json_is_read(tmp_path: Path, config: dict[str, Any], expected: dict[str, Any]):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["A"], **config}))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 10)
    facts = model_facts("m", tmp_path)
    assert facts.weight_bytes == 10
    assert {name: getattr(facts, name) for name in expected} == expected


@pytest.mark.parametrize(
    "entries",
    [(ARCHITECTURE,), (NUMBER, NUMBERS, STRINGS, LISTS, ARCHITECTURE)],
    ids=["first", "last"],
)
def test_a_gguf_file_names_its_architecture(tmp_path: Path, entries: tuple[bytes, ...]):
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf(*entries))
    assert gguf_architecture(file) == "llama"
    facts = model_facts("m", file)
    assert (facts.format, facts.architectures) == ("gguf", ("llama",))
    assert facts.weight_bytes == file.stat().st_size


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGML" + bytes(100),
        gguf(NUMBER),
        gguf(ARCHITECTURE)[:-3],
        gguf(string("x") + struct.pack("<I", 99)),
        gguf(string("x") + struct.pack("<IIQ", 9, 8, 2**60)),
        gguf(struct.pack("<Q", 2**63)),
    ],
    ids=range(8),
)
def test_what_is_no_gguf_file_is_a_clear_error(tmp_path: Path, content: bytes):
    file = tmp_path / "model.gguf"
    file.write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"model\.gguf is no GGUF file"):
        gguf_architecture(file)


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
