"""Decode steps that are replayed without Python, against those that are computed kernel by kernel:
the same bits."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from axion.engine.assembly import load_engine
from axion.engine.core import EngineCore
from axion.engine.messages import AddRequest
from axion.layers import cpu_kernels, onednn
from axion.models.base import MLP
from axion.types import EngineConfig, SamplingParams
from tests.parity.checkpoints import build_tiny

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels import linear
from axion.layers.cpu_kernels.recording import Recording

CASES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen2": {},  # which adds biases
    "gemma3": {},  # two groups of layers: with a window and without
    "granite-moe": {},  # which multiplies by numbers
    "cohere2": {},  # layer norms
}


@pytest.fixture(autouse=True)
def kernels_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products are computed by kernels, too."""
    monkeypatch.setattr(onednn, "_MIN_ELEMENTS", 1)
    monkeypatch.setattr(linear, "max_rows", lambda _: cpu_kernels.MAX_ROWS)


@pytest.fixture
def replays(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of each replay, how many sequences it had."""
    sizes: list[int] = []
    replay = Recording.replay

    def counted(self: Recording, *args: Any) -> Tensor:
        result = replay(self, *args)
        sizes.append(len(result))
        return result

    monkeypatch.setattr(Recording, "replay", counted)
    return sizes


def save(case: str, path: Path) -> Path:
    # Heads as those of the bundled model, whose kernels other tests compile.
    sizes = {"head_dim": 64, "hidden_size": 128, "intermediate_size": 128, "vocab_size": 256}
    changes = {**sizes, "max_position_embeddings": 1024, **CASES[case]}
    build_tiny(case, **changes).to(torch.bfloat16).save_pretrained(path)
    return path


def make_core(path: Path, **options: Any) -> EngineCore:
    defaults = {"max_num_batched_tokens": 1024, "max_model_len": 600, "kv_cache_bytes": 2**21}
    config = {"dtype": "bfloat16", "max_num_seqs": 6, **defaults, **options}
    return load_engine(EngineConfig(model_path=str(path), device="cpu", **config))


def answers(core: EngineCore, lengths: list[int]) -> dict[str, list[tuple[int, float]]]:
    """Tokens and log probabilities of sequences with such prompts, which come and go."""
    found: dict[str, list[tuple[int, float]]] = {}
    for i, length in enumerate(lengths):
        params = SamplingParams(temperature=0, max_tokens=4 + 3 * i, ignore_eos=True, logprobs=0)
        prompt = [(31 * i + 7 * j) % 250 for j in range(length)]
        assert core.add(AddRequest(str(i), prompt, params)) is None
    while core.has_unfinished:
        for output in core.step():
            assert output.error is None
            entries = zip(output.token_ids, output.logprobs or [], strict=True)
            found.setdefault(output.request_id, []).extend((t, e.logprob) for t, e in entries)
    return found


def eager(core: EngineCore, compute: Callable[[], Any]) -> Any:
    """What is computed without recordings."""
    steps, core.runner.graphs = core.runner.graphs, None
    try:
        return compute()
    finally:
        core.runner.graphs = steps


@pytest.mark.parametrize(
    ("case", "quantization"),
    [*((case, "none") for case in CASES), ("qwen3", "int8"), ("qwen3", "int4")],
)
def test_replayed_steps_have_the_bits_of_others(
    case: str, quantization: str, tmp_path: Path, replays: list[int]
) -> None:
    """Of different numbers of sequences, and where one grows beyond what is attended to at once."""
    core = make_core(save(case, tmp_path), quantization=quantization, enable_prefix_caching=False)
    lengths = [20, 508, 3, 40]
    expected = eager(core, lambda: answers(core, lengths))
    del replays[:]
    assert answers(core, lengths) == expected
    assert answers(core, lengths) == expected
    assert set(replays) == {1, 2, 3, 4}


def test_preempted_sequences_and_cached_prefixes_are_replayed_alike(
    tmp_path: Path, replays: list[int]
) -> None:
    core = make_core(save("qwen3", tmp_path), kv_cache_bytes=2**17, max_model_len=128)
    lengths = [30, 31, 30, 31]
    eager(core, lambda: answers(core, lengths))  # fills the cache of prefixes
    expected = eager(core, lambda: answers(core, lengths))
    before = core.stats.num_preemptions
    del replays[:]
    assert answers(core, lengths) == expected
    assert core.stats.num_preemptions > before
    assert len(set(replays)) > 1


def test_what_torch_computes_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replays: list[int], caplog: Any
) -> None:
    path = save("qwen3", tmp_path)
    monkeypatch.setattr(MLP, "activate", lambda _, gate, up: F.relu(gate) * up)
    with caplog.at_level(logging.INFO, logger="axion.engine"):
        core = make_core(path)
    assert "torch computes aten.relu.default" in caplog.text
    answers(core, [3, 5])
    assert not replays


def test_a_draft_model_is_replayed_too(tmp_path: Path, replays: list[int]) -> None:
    from tests.tiny_model import save_tiny_model

    sizes = {"hidden_size": 128, "max_position_embeddings": 1024}
    path = save_tiny_model(tmp_path / "model", **sizes)
    core = make_core(path, draft_model_path=str(path))
    assert core.proposer is not None
    expected = eager(core, lambda: answers(core, [5, 9]))
    del replays[:]
    assert answers(core, [5, 9]) == expected
    assert replays
