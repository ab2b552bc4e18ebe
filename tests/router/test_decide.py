"""The decision is a function of facts, and every refusal says why."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from axion.backends.facts import DeviceFacts, EngineFacts, ModelFacts
from axion.router.decide import Reason, decide

LLAMA = ModelFacts(
    name="m",
    architectures=("LlamaForCausalLM",),
    weight_bytes=4 * 2**30,
    head_dim=64,
)
CPU = DeviceFacts(kind="cpu", free_bytes=16 * 2**30)
ENGINE = EngineFacts(
    engine="max",
    command="max",
    variable="AXION_MAX_COMMAND",
    version="26.7",
    architectures=frozenset({"LlamaForCausalLM", "Qwen3ForCausalLM"}),
    quantizations=frozenset({"gptq"}),
    dtypes={"cpu": frozenset({"float32"})},
    faults={"Qwen3ForCausalLM/cpu": "It ends while it compiles this architecture on CPU."},
    memory_factor={"cpu": 2.5},
    head_dims={"cpu": frozenset({32, 64})},
)

_FALLBACK = {"by_fallback": frozenset({"LlamaForCausalLM"})}
_OWN_CODE = {"architectures": ("OwnForCausalLM",), "has_remote_code": True}
_QUANTIZES = {"quantizes": ("int8", "int4"), "memory_factor": {"cpu": 1}}


def judge(
    engine: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    device: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Reason, str]:
    decision = decide(
        msgspec.structs.replace(LLAMA, **model or {}),
        msgspec.structs.replace(CPU, **device or {}),
        {"max": msgspec.structs.replace(ENGINE, **engine or {})},
        ["max"],
        **options,
    )
    (verdict,) = decision.verdicts
    assert verdict.accepted == (verdict.code is Reason.ACCEPTED)
    assert decision.engines == (("max",) if verdict.accepted else ())
    return verdict.code, verdict.reason


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({}, Reason.ACCEPTED, "LlamaForCausalLM"),
        ({"engine": {"installed": False}}, Reason.NOT_INSTALLED, "AXION_MAX_COMMAND"),
        (
            {"engine": {"installed": False, "command": "", "variable": "REMOTE_URL"}},
            Reason.NOT_CONFIGURED,
            "REMOTE_URL",
        ),
        ({"engine": {"problem": "It said nothing."}}, Reason.NOT_ANSWERING, "said nothing"),
        (
            {"model": {"architectures": ("GlmForCausalLM",)}},
            Reason.UNSUPPORTED_ARCHITECTURE,
            "GlmForCausalLM is not among the 2",
        ),
        (
            {"model": {"architectures": ("A",)}, "engine": {"refusals": {"A": "It is odd."}}},
            Reason.UNSUPPORTED_ARCHITECTURE,
            "does not serve A: It is odd.",
        ),
        (
            {"model": _OWN_CODE, "engine": {"remote_code": True}},
            Reason.UNSUPPORTED_ARCHITECTURE,
            "TRUST_REMOTE_CODE=true runs its author's code on this machine",
        ),
        (
            {"model": _OWN_CODE, "engine": {"remote_code": True}, "trust_remote_code": True},
            Reason.ACCEPTED,
            "serves by the model's own Python code (TRUST_REMOTE_CODE) OwnForCausalLM",
        ),
        (
            {"model": _OWN_CODE, "trust_remote_code": True},
            Reason.UNSUPPORTED_ARCHITECTURE,
            "OwnForCausalLM is not among the 2 that it lists: LlamaForCausalLM, Qwen3ForCausalLM.",
        ),
        (
            {
                "model": _OWN_CODE,
                "engine": {"remote_code": True, "refusals": {"OwnForCausalLM": "It is odd."}},
                "trust_remote_code": True,
            },
            Reason.UNSUPPORTED_ARCHITECTURE,
            "It is odd.",
        ),
        (
            {
                "model": {"has_remote_code": True},
                "engine": {"remote_code": True},
                "trust_remote_code": True,
            },
            Reason.ACCEPTED,
            "lists LlamaForCausalLM",
        ),
        ({"engine": _FALLBACK}, Reason.ACCEPTED, "by its fallback"),
        (
            {"engine": _FALLBACK | {"quantizes": ("int8",)}, "quantization": "int8"},
            Reason.ACCEPTED,
            "by its fallback",
        ),
        ({"engine": _FALLBACK, "model": {"quantization": "gptq"}}, Reason.ACCEPTED, "fallback"),
        ({"model": {"architectures": ()}}, Reason.UNSUPPORTED_ARCHITECTURE, "does not name"),
        ({"model": {"architectures": ("Qwen3ForCausalLM",)}}, Reason.KNOWN_FAULT, "compiles"),
        (
            {"model": {"architectures": ("Qwen3ForCausalLM",)}, "device": {"kind": "cuda"}},
            Reason.ACCEPTED,
            "cuda",
        ),
        ({"engine": {"architectures": None}}, Reason.ACCEPTED, "not asked"),
        ({"model": {"format": "gguf"}}, Reason.UNSUPPORTED_FORMAT, "gguf; it loads safetensors"),
        ({"model": {"quantization": "gptq"}}, Reason.ACCEPTED, ""),
        ({"model": {"quantization": "awq"}}, Reason.UNSUPPORTED_QUANTIZATION, "awq"),
        ({"quantization": "int8"}, Reason.UNSUPPORTED_QUANTIZATION, "QUANTIZATION is int8, to"),
        (
            {"quantization": "int8", "model": {"quantization": "gptq"}},
            Reason.UNSUPPORTED_QUANTIZATION,
            "quantized already, by gptq",
        ),
        # 2 Gi of weights of two bytes, a quarter of them the embedding's: 1 GiB and 1.5 GiB.
        (
            {
                "quantization": "int8",
                "engine": {"dtypes": {}, **_QUANTIZES},
                "model": {"dtype": "bfloat16", "num_embedding_weights": 2**29},
            },
            Reason.ACCEPTED,
            "needs some 2.5 GiB",
        ),
        # The same computed in float32: 2 GiB of embedding; what is quantized is as small.
        (
            {
                "quantization": "int4",
                "dtype": "float32",
                "engine": _QUANTIZES,
                "model": {"dtype": "bfloat16", "num_embedding_weights": 2**29},
            },
            Reason.ACCEPTED,
            "needs some 2.9 GiB",
        ),
        (
            {"engine": {"devices": frozenset({"cuda"})}},
            Reason.UNSUPPORTED_DEVICE,
            "needs cuda",
        ),
        ({"dtype": "bfloat16"}, Reason.UNSUPPORTED_DTYPE, "computes in float32"),
        ({"dtype": "float32"}, Reason.ACCEPTED, ""),
        ({"model": {"head_dim": 16}}, Reason.KNOWN_FAULT, "size 16"),
        ({"device": {"free_bytes": 8 * 2**30}}, Reason.NOT_ENOUGH_MEMORY, "10.0 GiB"),
        ({"device": {"free_bytes": 0}}, Reason.ACCEPTED, ""),
        # Computed in float32 alone, 16-bit weights take twice their room.
        (
            {"model": {"dtype": "bfloat16"}, "device": {"free_bytes": 19 * 2**30}},
            Reason.NOT_ENOUGH_MEMORY,
            "20.0 GiB",
        ),
        (
            {"model": {"dtype": "bfloat16"}, "device": {"free_bytes": 21 * 2**30}},
            Reason.ACCEPTED,
            "20.0 GiB",
        ),
        ({"tensor_parallel_size": 2}, Reason.UNSUPPORTED_PARALLELISM, "TENSOR_PARALLEL_SIZE is 2"),
        ({"deterministic": True}, Reason.NOT_DETERMINISTIC, "DETERMINISTIC is on"),
        ({"deterministic": True, "engine": {"deterministic": True}}, Reason.ACCEPTED, ""),
        (
            {"tensor_parallel_size": 2, "engine": {"tensor_parallel": True}},
            Reason.ACCEPTED,
            "5.0 GiB",
        ),
    ],
    ids=str,
)
def test_every_refusal_says_why(changes: dict[str, Any], code: Reason, says: str):
    found, reason = judge(**changes)
    assert found is code
    assert says in reason


def test_the_order_is_kept_and_an_unknown_engine_is_named():
    engines = {name: EngineFacts(engine=name) for name in ("native", "vllm")}
    decision = decide(LLAMA, CPU, engines, ["vllm", "vlm", "native", "vllm"])
    assert [verdict.engine for verdict in decision.verdicts] == ["vllm", "vlm", "native"]
    assert decision.engines == ("vllm", "native")
    assert decision.verdicts[1].code is Reason.UNKNOWN_ENGINE
    assert "native, vllm" in decision.verdicts[1].reason


def test_a_decision_can_be_written_as_json():
    decision = decide(LLAMA, CPU, {"max": ENGINE}, ["max"])
    assert b'"code":"accepted"' in msgspec.json.encode(decision)
