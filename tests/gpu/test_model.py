"""Whole models, with the kernels and without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from axion.engine.assembly import load_engine
from axion.engine.messages import AddRequest
from axion.layers import kernels
from axion.layers.attention import reference
from axion.types import EngineConfig, SamplingParams
from tests.parity.checkpoints import save_tiny

pytest.importorskip("triton")
# numpy says so, and the interpreter goes on with infinity, as the hardware does.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp")
PARAMS = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, logprobs=3)
PROMPTS = [[5, 6, 7], [*range(10, 28)]]


def answers(
    path: Path, device: torch.device, quantization: str
) -> list[tuple[int, list[tuple[int, float]]]]:
    """Tokens and logarithms of probabilities, of prompts in chunks beside one that decodes."""
    config = EngineConfig(
        model_path=str(path),
        device=str(device),
        dtype="float32",
        quantization=quantization,
        kv_cache_bytes=2**20,
        max_model_len=64,
        max_num_batched_tokens=12,
    )
    core = load_engine(config)
    for name, prompt in enumerate(PROMPTS):
        core.add(AddRequest(str(name), prompt, PARAMS))
    found = []
    while core.has_unfinished:
        for output in core.step():
            for token_id, logprobs in zip(output.token_ids, output.logprobs, strict=True):
                found.append((token_id, sorted(logprobs.top)))
    return found


@pytest.mark.parametrize(
    ("case", "quantization"),
    [("gemma2", "none"), ("gpt-oss", "int4"), ("deepseek-v3", "none")],
)
def test_models_answer_the_same(
    case: str,
    quantization: str,
    device: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = save_tiny(case, tmp_path)
    monkeypatch.setattr(kernels, "run_on", lambda _: False)
    expected = answers(path, device, quantization)
    monkeypatch.setattr(kernels, "run_on", lambda _: True)
    monkeypatch.delattr(reference, "paged_attention")
    actual = answers(path, device, quantization)
    assert [token_id for token_id, _ in actual] == [token_id for token_id, _ in expected]
    for (_, one), (_, other) in zip(actual, expected, strict=True):
        torch.testing.assert_close(torch.tensor(one), torch.tensor(other), rtol=1e-3, atol=1e-3)
