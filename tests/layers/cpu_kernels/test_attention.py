"""Tokens one by one: the kernel computes what attention is, nearer to it than torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from axion.layers import cpu_kernels
from axion.layers.context import KVCache
from axion.layers.kv_format import KV_FORMATS
from tests.layers import test_attention
from tests.layers.test_attention import Sequences

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels import attention

ByTorch = Callable[[Callable[[], Tensor]], Tensor]
# Sizes of which half a vector of pairs, half a tile of values and some heads of a tile are left.
HEAD_DIM, V_HEAD_DIM = 176, 160
NUM_HEADS, NUM_KV_HEADS, BLOCK_SIZE = 10, 2, 16
# Few new tokens and cached ones: blocks that are full and not, and a sequence in several parts.
LENGTHS = [(1, 0), (3, 14), (1, 15), (1, 159), (2, 600), (1, 1100)]
CHUNK = (20, 30)


@pytest.fixture(autouse=True)
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many keys each part had that the kernel was given."""
    monkeypatch.setattr(test_attention, "HEAD_DIM", HEAD_DIM)
    monkeypatch.setattr(test_attention, "V_HEAD_DIM", V_HEAD_DIM)
    num_keys: list[int] = []
    plan = attention._plan

    def recorded(*args: Any, **kwargs: Any) -> Any:
        made = plan(*args, **kwargs)
        num_keys.extend(end - start for _, _, _, start, end, _, _ in made.tensors[2].tolist())
        return made

    monkeypatch.setattr(attention, "_plan", recorded)
    return num_keys


def sequences_of(
    lengths: list[tuple[int, int]], num_heads: int = NUM_HEADS, num_kv_heads: int = NUM_KV_HEADS
) -> Sequences:
    return Sequences(lengths, num_heads, num_kv_heads, BLOCK_SIZE, torch.bfloat16)


def only(sequences: Sequences, seq: int) -> Sequences:
    """One of the sequences, alone in a step."""
    alone = sequences_of([(1, 0)])
    for name in ("query_lens", "context_lens", "q", "k", "v", "tables"):
        setattr(alone, name, getattr(sequences, name)[seq : seq + 1])
    alone.cache = sequences.cache
    return alone


def distance(out: Tensor, expected: Tensor) -> float:
    return float((out.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": 40},
        {"window": 700, "softcap": 0.7},
        {"chunk": 60, "sinks": torch.linspace(-2, 2, NUM_HEADS)},
        {"sinks": torch.linspace(-2, 60, NUM_HEADS)},
        {"alibi_slopes": torch.linspace(0.05, 0.8, NUM_HEADS)},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_error_is_below_that_of_torch(
    options: dict[str, Any], num_threads: int, by_torch: ByTorch, computed: list[int]
) -> None:
    sequences = sequences_of(LENGTHS)
    outputs = sequences.attend(**options)
    assert computed
    of_torch = by_torch(lambda: torch.cat(sequences.attend(**options))).split(sequences.query_lens)
    expected = [sequences.expected(seq, **options) for seq in range(len(LENGTHS))]
    for out, exact in zip(outputs, expected, strict=True):
        assert distance(out, exact) < 0.005
    found, other, exact = (torch.cat(list(x)) for x in (outputs, of_torch, expected))
    assert distance(found, exact) < distance(other, exact)


@pytest.mark.parametrize("name", KV_FORMATS)
def test_keys_and_values_in_bytes_are_read_where_they_are(
    name: str, by_torch: ByTorch, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(test_attention, "HEAD_DIM", 32)
    monkeypatch.setattr(test_attention, "V_HEAD_DIM", 32)
    sequences = sequences_of([*LENGTHS, CHUNK], 4, 2)
    for x in (sequences.k[3], sequences.v[3]):  # small and large ones
        x *= torch.logspace(-4, 3, len(x))[:, None, None]
    kv_format = KV_FORMATS[name](torch.bfloat16)
    stored = (kv_format.store(x) for x in (sequences.cache.k, sequences.cache.v))
    sequences.cache = KVCache(*stored, format=kv_format)
    outputs = sequences.attend()
    assert computed
    of_torch = by_torch(lambda: torch.cat(sequences.attend())).split(sequences.query_lens)
    for out, other in zip(outputs, of_torch, strict=True):
        assert distance(out, other) < 0.01


def test_values_may_be_the_beginning_of_their_keys(
    computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As of `test_chunk_attention`: the same kernels compute both.
    monkeypatch.setattr(test_attention, "HEAD_DIM", 48)
    monkeypatch.setattr(test_attention, "V_HEAD_DIM", 32)
    sequences = sequences_of([*LENGTHS, CHUNK], 6, 2)
    cache = sequences.cache
    sequences.cache = KVCache(cache.k, cache.k[..., :32])
    sequences.v = [k[..., :32] for k in sequences.k]
    for seq, out in enumerate(sequences.attend()):
        assert distance(out, sequences.expected(seq)) < 0.005
    assert computed


@pytest.mark.parametrize("window", [None, 530], ids=str)
def test_bits_depend_on_neither_other_sequences_nor_threads(
    window: int | None, num_threads: int
) -> None:
    sequences = sequences_of(LENGTHS)
    together = sequences.attend(window=window)
    torch.set_num_threads(1)
    for seq in range(len(LENGTHS)):
        assert torch.equal(only(sequences, seq).attend(window=window)[0], together[seq])


def test_tokens_computed_together_have_the_bits_of_those_that_come_one_by_one() -> None:
    sequences = sequences_of([(attention.MAX_QUERY_LEN, 507)])
    together = sequences.attend()[0]
    for count in range(attention.MAX_QUERY_LEN - 1, 0, -1):
        one = only(sequences, 0)
        one.query_lens, one.context_lens = [1], [507 + attention.MAX_QUERY_LEN - count]
        for name in ("q", "k", "v"):
            setattr(one, name, [getattr(sequences, name)[0][:-count]])
        assert torch.equal(one.attend()[0], together[-count - 1 : -count])


@pytest.mark.parametrize("window", [None, 30], ids=str)
@pytest.mark.parametrize("sick", [1, 3, 5])
def test_a_nan_stays_in_its_own_sequence(sick: int, window: int | None) -> None:
    sequences = sequences_of(LENGTHS)
    sequences.k[sick][-1] = sequences.v[sick][-1] = torch.nan
    for seq, out in enumerate(sequences.attend(window=window)):
        assert out.isnan().any() == (seq == sick)


def test_keys_before_the_window_are_not_read(computed: list[int]) -> None:
    sequences = sequences_of(LENGTHS)
    for seq, (_, cached) in enumerate(LENGTHS):
        before = sequences.slots(seq, torch.arange(max(0, cached - 29)))
        for cache in (sequences.cache.k, sequences.cache.v):
            cache.view(-1, *cache.shape[2:])[before] = torch.nan
    for seq, out in enumerate(sequences.attend(window=30)):
        assert distance(out, sequences.expected(seq, window=30)) < 0.005
    assert 30 in computed


def test_what_the_kernel_does_not_compute_is_left_to_torch(computed: list[int]) -> None:
    sequences = Sequences([(1, 30), (1, 7)], NUM_HEADS, NUM_KV_HEADS, 4, torch.bfloat16)
    for seq, out in enumerate(sequences.attend()):
        assert distance(out, sequences.expected(seq)) < 0.01
    assert not computed
