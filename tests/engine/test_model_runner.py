"""A model has computed once before the first request comes."""

from __future__ import annotations

from pathlib import Path

import pytest

from axion.engine.assembly import load_engine
from axion.engine.messages import AddRequest
from axion.layers import cpu_kernels
from axion.types import EngineConfig, SamplingParams
from tests.parity.checkpoints import save_tiny


@pytest.mark.parametrize("case", ["qwen3", "gemma3", "qwen3-next"])
def test_no_request_waits_for_a_compiler(
    case: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not cpu_kernels.work():
        pytest.skip("kernels do not work on this machine")
    from axion.layers import onednn
    from axion.layers.cpu_kernels.parallel import ParallelKernel

    used: list[ParallelKernel] = []
    call = ParallelKernel.__call__

    def record(kernel: ParallelKernel, *arguments: float) -> None:
        used.append(kernel)
        call(kernel, *arguments)

    monkeypatch.setattr(ParallelKernel, "__call__", record)
    monkeypatch.setattr(onednn, "_MIN_ELEMENTS", 2**12)
    config = EngineConfig(
        model_path=str(save_tiny(case, tmp_path)),
        device="cpu",
        dtype="bfloat16",
        kv_cache_bytes=2**22,
        max_model_len=128,
    )
    core = load_engine(config)
    assert core.stats.num_blocks_used == core.stats.num_steps == 0
    warm, used[:] = set(used), []
    assert warm
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    for name in "abc":
        assert core.add(AddRequest(name, [1, 2, 3], params)) is None
    while core.has_unfinished:
        assert not any(output.error for output in core.step())
    assert used
    assert set(used) <= warm
