"""Paged attention against attention as written in the paper, over any mix of sequences."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from axion.layers.attention import paged_attention
from axion.layers.context import ForwardContext, KVCache

HEAD_DIM, V_HEAD_DIM = 8, 6


class Sequences:
    """Random queries, keys and values of whole sequences, and a cache that holds what was
    computed before this step. Slots that belong to nobody hold NaN."""

    def __init__(
        self,
        lengths: list[tuple[int, int]],
        num_heads: int,
        num_kv_heads: int,
        block_size: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.query_lens = [query_len for query_len, _ in lengths]
        self.context_lens = [query_len + cached for query_len, cached in lengths]
        generator = torch.Generator().manual_seed(1)

        def random(heads: int, size: int) -> list[Tensor]:
            return [
                torch.randn(length, heads, size, generator=generator).to(dtype)
                for length in self.context_lens
            ]

        self.q, self.k = random(num_heads, HEAD_DIM), random(num_kv_heads, HEAD_DIM)
        self.v = random(num_kv_heads, V_HEAD_DIM)
        num_blocks = [-(-length // block_size) for length in self.context_lens]
        ids = iter(torch.randperm(sum(num_blocks), generator=generator).tolist())
        self.tables = torch.zeros(len(lengths), max(num_blocks), dtype=torch.int32)
        for table, n in zip(self.tables, num_blocks, strict=True):
            table[:n] = torch.tensor(list(itertools.islice(ids, n)))
        self.block_size = block_size
        self.cache = KVCache(
            *(
                torch.full((sum(num_blocks), block_size, num_kv_heads, size), torch.nan).to(dtype)
                for size in (HEAD_DIM, V_HEAD_DIM)
            )
        )
        for seq, (query_len, cached) in enumerate(lengths):
            slots = self.slots(seq, torch.arange(cached))
            self.cache.k.view(-1, num_kv_heads, HEAD_DIM)[slots] = self.k[seq][:cached]
            self.cache.v.view(-1, num_kv_heads, V_HEAD_DIM)[slots] = self.v[seq][:cached]
            assert len(self.k[seq]) == query_len + cached

    def slots(self, seq: int, positions: Tensor) -> Tensor:
        blocks = self.tables[seq, positions // self.block_size].long()
        return blocks * self.block_size + positions % self.block_size

    def new(self, tensors: list[Tensor]) -> Tensor:
        """The rows of this step, flat."""
        return torch.cat([x[-n:] for x, n in zip(tensors, self.query_lens, strict=True)])

    def attend(self) -> list[Tensor]:
        positions = [
            torch.arange(length - n, length)
            for n, length in zip(self.query_lens, self.context_lens, strict=True)
        ]
        flat = torch.cat(positions)
        context = ForwardContext(
            positions=flat,
            rope_lengths=flat + 1,
            slot_mapping=torch.cat([self.slots(seq, p) for seq, p in enumerate(positions)]),
            block_tables=self.tables,
            context_lens=torch.tensor(self.context_lens),
            query_lens=self.query_lens,
            context_lens_list=self.context_lens,
            kv_caches=[self.cache],
            block_size=self.block_size,
        )
        out = paged_attention(
            self.new(self.q), self.new(self.k), self.new(self.v), self.cache, context, scale=0.3
        )
        return list(out.split(self.query_lens))

    def expected(self, seq: int) -> Tensor:
        q, k, v = (x[seq].double() for x in (self.q, self.k, self.v))
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * 0.3
        future = torch.ones(len(k), len(k), dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        return torch.einsum("hqk,khd->qhd", weights, v)[-self.query_lens[seq] :]


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(
        st.tuples(st.integers(1, 7), st.integers(0, 20)) | st.tuples(st.just(1), st.integers(0, 9)),
        min_size=1,
        max_size=6,
    ),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    block_size=st.sampled_from([1, 4, 16]),
)
def test_equals_plain_causal_attention(
    lengths: list[tuple[int, int]], heads: tuple[int, int], block_size: int
) -> None:
    sequences = Sequences(lengths, *heads, block_size)
    for seq, out in enumerate(sequences.attend()):
        torch.testing.assert_close(out.double(), sequences.expected(seq), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype) -> None:
    sequences = Sequences([(1, 30), (5, 0), (3, 8)], 4, 2, 4, dtype)
    for seq, out in enumerate(sequences.attend()):
        assert out.dtype == dtype
        torch.testing.assert_close(out.double(), sequences.expected(seq), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("sick", range(4))
def test_a_nan_stays_in_its_own_sequence(sick: int) -> None:
    sequences = Sequences([(1, 2), (1, 30), (4, 0), (3, 9)], 4, 2, 4)
    sequences.v[sick][-1] = sequences.k[sick][-1] = torch.nan
    for seq, out in enumerate(sequences.attend()):
        assert out.isnan().any() == (seq == sick)
