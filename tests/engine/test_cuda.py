"""A step on CUDA mixes no devices and waits for nothing; on a stand-in for the device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.engine.sampler import Sampler
from axion.engine.sequence import Sequence
from axion.engine.structured import TokenMask
from axion.layers import kernels
from axion.models.base import MLP
from axion.quantization.int8 import Int8Kernel
from axion.quantization.kernel import Kernel
from axion.types import EngineConfig, SamplingParams
from tests.gpu.stand_in import stand_in
from tests.parity.checkpoints import save_tiny

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="tests/gpu/ has what is true of the device that is there"
)

# A prompt in chunks beside one that decodes, and all that a request can ask of the sampler.
REQUESTS = {
    20: SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, prompt_logprobs=1),
    3: SamplingParams(
        **{"top_k": 9, "top_p": 0.9, "min_p": 0.01, "seed": 1, "logprobs": 2},
        **{"min_tokens": 2, "logit_bias": {5: 2.0}, "repetition_penalty": 1.1, "max_tokens": 3},
    ),
}


def make_core(path: Path, **options: Any) -> EngineCore:
    options = {"max_model_len": 64, "kv_cache_bytes": 2**19, "dtype": "bfloat16", **options}
    return load_engine(
        EngineConfig(
            model_path=str(path),
            device="cuda:0",
            max_num_seqs=2,
            max_num_batched_tokens=12,
            block_size=4,
            **options,
        )
    )


def compute_without_waiting(core: EngineCore) -> None:
    torch.cuda.set_sync_debug_mode("error")
    for length, params in REQUESTS.items():
        assert core.add(AddRequest(str(length), [*range(7, 7 + length)], params)) is None
    while core.has_unfinished:
        for output in core.step():
            assert output.error is None


CAPTURED = ["llama", "gemma3", "gpt-oss", "deepseek-v3", "qwen3-moe"]
EAGER = ["deepseek-v32", "deepseek-v4", "qwen3-next", "minimax-m3"]


@pytest.mark.parametrize("case", [*CAPTURED, *EAGER])
def test_models(case: str, tmp_path: Path) -> None:
    path = save_tiny(case, tmp_path)
    with stand_in():
        core = make_core(path)
        assert (core.runner.graphs is not None) == (case in CAPTURED)
        compute_without_waiting(core)


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_quantized_experts(
    quantization: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_tiny("mixtral", tmp_path)
    with stand_in() as device, caplog.at_level(logging.WARNING, logger="axion.engine"):
        core = make_core(path, quantization=quantization)
        assert core.runner.graphs is not None
        compute_without_waiting(core)
        assert device.launches["_grouped"]
    assert not caplog.messages


def test_experts_in_a_format_without_a_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Int8Kernel, "low_bit", Kernel.low_bit)
    path = save_tiny("mixtral", tmp_path)
    with stand_in() as device, caplog.at_level(logging.WARNING, logger="axion.engine"):
        core = make_core(path, quantization="int8")
        assert core.runner.graphs is None
        core.add(AddRequest("", [1, 2], SamplingParams(max_tokens=2, ignore_eos=True)))
        while core.has_unfinished:
            assert not any(output.error for output in core.step())
        assert not device.launches["_grouped"]
    [warning] = caplog.messages
    assert "MixtralForCausalLM has experts in a format" in warning
    assert "Int8Kernel" in warning


@pytest.mark.parametrize(
    ("options", "kernel"),
    [
        ({"quantization": "int8"}, "_grouped"),
        ({"quantization": "int4"}, "_grouped"),
        ({"quantization": "fp8"}, "_grouped"),
        ({"kv_cache_dtype": "fp8"}, ""),
        ({"kv_cache_dtype": "int8"}, ""),
        ({"speculative": "ngram"}, "_attend"),
        ({"kv_offload_bytes": 2**16, "kv_cache_bytes": 2**14}, "_attend"),
        ({"dtype": "float32", "deterministic": True, "cuda_graphs": False}, "_gated"),
    ],
    ids=lambda option: "-".join(option) if isinstance(option, dict) else option,
)
def test_settings(options: dict[str, Any], kernel: str, tiny_model: Path) -> None:
    with stand_in() as device:
        compute_without_waiting(make_core(tiny_model, **options))
        assert not kernel or device.launches[kernel]


@pytest.mark.parametrize(
    ("quantization", "kernel"), [("int8", ""), ("int4", "_unpack"), ("fp8", "")]
)
def test_products_of_many_tokens(
    quantization: str, kernel: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "MAX_LOW_BIT_ROWS", 1)
    with stand_in() as device:
        compute_without_waiting(make_core(tiny_model, quantization=quantization))
        assert not kernel or device.launches[kernel]


def test_a_draft_model(tiny_model: Path) -> None:
    with stand_in():
        core = make_core(tiny_model, draft_model_path=str(tiny_model))
        assert core.proposer._runner.graphs is not None
        compute_without_waiting(core)
        assert core.stats.num_draft_tokens > 0


def test_where_triton_does_not_work(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "run_on", lambda _: False)
    with stand_in() as device:
        compute_without_waiting(make_core(tiny_model))
        assert not device.launches


def test_masks_of_grammars() -> None:
    sequences = [Sequence(name, [1], SamplingParams(temperature=0), seed=0) for name in "ab"]
    with stand_in():
        device = torch.device("cuda", 0)
        sampler, logits = Sampler(device, 20), torch.arange(20.0, device=device).expand(2, 20)
        torch.cuda.set_sync_debug_mode("error")
        for rows in ([1], [0, 1]):
            mask = TokenMask(rows, np.array([[0b1000, 0, 0, 0]] * len(rows), np.uint8))
            found = sampler(logits, sequences, mask)
            assert [token.token_id for token in found.read()] == [3 if 0 in rows else 19, 3]


def test_a_capture_that_fails_says_why_and_leaves_its_stream(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forward = MLP.forward

    def reads_a_value(self: MLP, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states.any().item()
        return forward(self, hidden_states)

    monkeypatch.setattr(MLP, "forward", reads_a_value)
    with stand_in() as device, caplog.at_level(logging.WARNING, logger="axion.engine"):
        assert make_core(tiny_model).runner.graphs is None
        assert device.stream == "default"
    [warning] = caplog.messages
    assert "_local_scalar_dense" in warning


def test_an_error_that_stays_on_the_device_ends_the_process(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with stand_in():
        core = make_core(tiny_model)
        monkeypatch.setattr(core.runner, "launch", fail)
        core.add(AddRequest("once", [1, 2], SamplingParams()))
        assert core.step()[0].error is not None
        monkeypatch.setattr(torch.cuda, "synchronize", fail)
        core.add(AddRequest("for ever", [1, 2], SamplingParams()))
        with pytest.raises(RuntimeError, match="illegal memory access"):
            core.step()


@pytest.mark.parametrize(
    ("operation", "fault"),
    [
        (lambda x: x + torch.ones(3), "on the CPU"),
        (lambda x: x[x > 0], "synchronizing"),
        (lambda x: x.sum().item(), "synchronizing"),
        (lambda x: x.tolist(), "synchronizing"),
        (lambda x: x[[0, 1]], "synchronizing"),
        (lambda x: x.to("cpu"), "synchronizing"),
        (lambda x: torch.ones(3).to(x.device, non_blocking=True), "synchronizing"),
        (lambda x: torch.tensor([1, 2], device=x.device), "synchronizing"),
        (lambda x: x.repeat_interleave(x.long()), "synchronizing"),
        (lambda x: x.long()[None] @ x.long()[:, None], "not implemented"),
    ],
    ids=map(str, range(10)),
)
def test_the_stand_in_refuses_what_a_device_does(operation: Any, fault: str) -> None:
    with stand_in() as device:
        x = torch.ones(3, device="cuda:0")
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match=fault):
            operation(x)
        on_its_way = x.to("cpu", non_blocking=True)
        assert on_its_way.tolist() != [1, 1, 1]
        event = device.event()
        event.record()
        event.synchronize()
        assert on_its_way.tolist() == [1, 1, 1]
