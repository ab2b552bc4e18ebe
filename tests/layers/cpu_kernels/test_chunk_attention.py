"""Chunks of prompts: the kernel computes what attention is, nearer to it than torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from axion.layers import cpu_kernels
from tests.layers import test_attention
from tests.layers.test_attention import Sequences

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels import chunk_attention

ByTorch = Callable[[Callable[[], Tensor]], Tensor]
NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE = 6, 2, 16


@pytest.fixture(autouse=True)
def head_dims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_attention, "HEAD_DIM", 48)
    monkeypatch.setattr(test_attention, "V_HEAD_DIM", 32)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of the tiles that the kernel has computed."""
    rows: list[int] = []
    plan = chunk_attention._plan

    def recorded(*args: Any, **kwargs: Any) -> Any:
        made = plan(*args, **kwargs)
        rows.extend(made.tiles[:, 1].tolist())
        return made

    monkeypatch.setattr(chunk_attention, "_plan", recorded)
    return rows


def sequences_of(lengths: list[tuple[int, int]]) -> Sequences:
    return Sequences(lengths, NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE, torch.bfloat16)


def distance(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 40},
        {"window": 150, "softcap": 0.7},
        {"chunk": 60, "sinks": torch.linspace(-2, 2, NUM_HEADS)},
        {"alibi_slopes": torch.linspace(0.05, 0.8, NUM_HEADS)},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_error_is_below_that_of_torch(
    options: dict[str, Any], num_threads: int, by_torch: ByTorch, computed: list[int]
) -> None:
    lengths = [(200, 0), (1, 3), (33, 290), (9, 500), (8, 8), (130, 1)]
    sequences = sequences_of(lengths)
    outputs = sequences.attend(**options)
    assert computed
    of_torch = by_torch(lambda: torch.cat(sequences.attend(**options)))
    of_torch = of_torch.split(sequences.query_lens)
    for seq, (query_len, _) in enumerate(lengths):
        expected = sequences.expected(seq, **options)
        bound = distance(of_torch[seq], expected) if query_len > 8 else 0.005
        assert distance(outputs[seq], expected) < bound < 0.01


def test_bits_depend_on_neither_other_sequences_nor_chunks(computed: list[int]) -> None:
    sequences = sequences_of([(40, 260), (300, 0), (20, 110)])
    together = sequences.attend(window=170)
    alone = sequences_of([(40, 260), (300, 0), (20, 110)])
    one = slice(1, 2)
    for name in ("query_lens", "context_lens", "q", "k", "v", "tables"):
        setattr(alone, name, getattr(sequences, name)[one])
    whole = computed.copy()
    assert torch.equal(alone.attend(window=170)[0], together[1])
    assert computed != whole
    # What is stored is the whole sequence's, so its last tokens can be a chunk.
    alone.query_lens = [111]
    assert torch.equal(alone.attend(window=170)[0], together[1][-111:])


@pytest.mark.parametrize("window", [None, 30], ids=str)
@pytest.mark.parametrize("sick", [0, 2])
def test_a_nan_stays_in_its_own_sequence(sick: int, window: int | None) -> None:
    sequences = sequences_of([(20, 3), (130, 70), (17, 0)])
    sequences.k[sick][-1] = sequences.v[sick][-1] = torch.nan
    for seq, out in enumerate(sequences.attend(window=window)):
        assert out.isnan().any() == (seq == sick)


def test_keys_before_the_window_are_not_read() -> None:
    lengths = [(150, 200), (40, 33)]
    sequences = sequences_of(lengths)
    for seq, (_, cached) in enumerate(lengths):
        before = sequences.slots(seq, torch.arange(cached - 29))
        for cache in (sequences.cache.k, sequences.cache.v):
            cache.view(-1, *cache.shape[2:])[before] = torch.nan
    for seq, out in enumerate(sequences.attend(window=30)):
        assert distance(out, sequences.expected(seq, window=30)) < 0.005


def test_work_is_cut_until_each_thread_has_some(computed: list[int], num_threads: int) -> None:
    sequences_of([(300, 0)]).attend()
    assert sum(computed) == 300
    assert len(computed) * NUM_KV_HEADS >= 4 * num_threads
