"""Attention to a window and to entries that stand for several tokens, over any course of steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from axion.engine.kv_cache import KVCacheGroup, allocate
from axion.layers.attention import Compressed, choose_tokens, entry_inputs, paged_attention
from axion.layers.context import ForwardContext, KVCacheSpec
from axion.layers.kv_format import KV_FORMATS, KVEntries

HEAD_DIM, NUM_HEADS, WINDOW, NUM_CHOSEN = 8, 3, 5, 2


class Model:
    """An entry is the mean of its tokens and of those of the entry before it."""

    def __init__(self, num_tokens: list[int], *, block_size: int, stride: int) -> None:
        self.block_size, self.stride = block_size, stride
        generator = torch.Generator().manual_seed(1)
        # No product of two is negative, so that no two scores are equal.
        self.q, self.kv = (
            [torch.rand(n, heads, HEAD_DIM, generator=generator) for n in num_tokens]
            for heads in (NUM_HEADS, 1)
        )
        num_blocks = [-(-n // block_size) for n in num_tokens]
        total = sum(num_blocks)
        ids = torch.randperm(total, generator=generator).split(num_blocks)
        self.tables = [table.tolist() for table in ids]
        specs = [
            KVCacheSpec(1, HEAD_DIM, HEAD_DIM, values_in_keys=True),
            KVCacheSpec(1, HEAD_DIM, 0),
            KVCacheSpec(1, HEAD_DIM, HEAD_DIM, values_in_keys=True, stride=stride),
        ]
        self.caches = allocate(
            [spec.in_pieces(block_size) for spec in specs],
            [KVCacheGroup(None, [0, 1, 2])],
            total,
            block_size,
            dtype=torch.float32,
            device=torch.device("cpu"),
        )
        for cache in self.caches:
            cache.k.fill_(torch.nan)

    def step(self, spans: list[tuple[int, int, int]], *, is_sparse: bool) -> list[Tensor]:
        """What attention gives the tokens from the second number up to the third, of the sequence
        that the first one names."""
        widest = max(map(len, self.tables))
        tables = torch.tensor(
            [self.tables[i] + [0] * (widest - len(self.tables[i])) for i, _, _ in spans]
        )
        positions = torch.cat([torch.arange(start, end) for _, start, end in spans])
        query_lens = [end - start for _, start, end in spans]
        rows = torch.arange(len(spans)).repeat_interleave(torch.tensor(query_lens))
        context = ForwardContext(
            positions=positions,
            rope_lengths=positions + 1,
            slot_mapping=(
                tables[rows, positions // self.block_size] * self.block_size
                + positions % self.block_size
            )[None],
            block_tables=tables[None],
            context_lens=torch.tensor([end for _, _, end in spans]),
            query_lens=query_lens,
            context_lens_list=[end for _, _, end in spans],
            kv_caches=self.caches,
            block_size=self.block_size,
        )
        q, kv = (torch.cat([x[i][a:b] for i, a, b in spans]) for x in (self.q, self.kv))
        own, inputs, entries = self.caches
        slots = context.slot_mapping[0]
        inputs.keys.store(slots, kv)
        parts = entry_inputs(inputs, entries, context, length=2 * self.stride)
        first = (parts.starts - self.stride)[:, None] + torch.arange(2 * self.stride)
        is_there = (first >= 0)[..., None, None]
        mean = (inputs.keys.gather(parts.slots) * is_there).sum(1) / is_there.sum(1)
        entries.keys.store(slots[parts.rows], mean)
        chosen = None
        if is_sparse:
            weights = torch.ones(len(q), NUM_HEADS)
            chosen = choose_tokens(q, None, weights, entries, context, num_chosen=NUM_CHOSEN)
        options: dict[str, Any] = {"sinks": torch.arange(NUM_HEADS) / 2, "window": WINDOW}
        compressed = Compressed(entries, chosen)
        out = paged_attention(q, kv, kv, own, context, scale=0.3, compressed=compressed, **options)
        return list(out.split(query_lens))

    def expected(self, sequence: int, *, is_sparse: bool) -> Tensor:
        """Of all tokens of a sequence."""
        q, kv = self.q[sequence].double(), self.kv[sequence][:, 0].double()
        tokens = torch.arange(len(kv))
        ends = (torch.arange(len(kv) // self.stride) + 1) * self.stride - 1
        means = [kv[max(0, end + 1 - 2 * self.stride) : end + 1].mean(0) for end in ends]
        entries = torch.stack(means) if means else kv[:0]
        seen = (tokens <= tokens[:, None]) & (tokens > tokens[:, None] - WINDOW)
        seen_entries = ends <= tokens[:, None]
        if is_sparse:
            best = torch.einsum("qhd,kd->hqk", q, entries).relu().sum(0)
            best = best.masked_fill(~seen_entries, -1)
            best = best.topk(min(NUM_CHOSEN, len(ends))).indices
            seen_entries &= torch.zeros_like(seen_entries).scatter_(1, best, value=True)
        kv, seen = torch.cat((kv, entries)), torch.cat((seen, seen_entries), dim=1)
        scores = (torch.einsum("qhd,kd->hqk", q, kv) * 0.3).masked_fill(~seen, -torch.inf)
        sinks = (torch.arange(NUM_HEADS, dtype=scores.dtype) / 2)[:, None, None]
        scores = torch.cat((scores, sinks.expand(-1, len(q), 1)), dim=-1)
        return torch.einsum("hqk,kd->qhd", scores.softmax(-1)[..., :-1], kv)


@settings(max_examples=60)
@given(
    chunks=st.lists(
        st.lists(st.sampled_from([1, 1, 2, 5, 9, 14]), min_size=1, max_size=6),
        min_size=1,
        max_size=3,
    ),
    block_size=st.sampled_from([1, 4, 16]),
    stride=st.sampled_from([2, 3, 4, 8]),
    is_sparse=st.booleans(),
)
def test_tokens_see_a_window_and_the_entries_that_are_complete(
    chunks: list[list[int]], block_size: int, stride: int, is_sparse: bool
) -> None:
    model = Model([sum(lengths) for lengths in chunks], block_size=block_size, stride=stride)
    out: list[list[Tensor]] = [[] for _ in chunks]
    starts = [0] * len(chunks)
    for index in range(max(map(len, chunks))):
        running = [i for i, lengths in enumerate(chunks) if index < len(lengths)]
        spans = [(i, starts[i], starts[i] + chunks[i][index]) for i in running]
        for (i, _, end), part in zip(spans, model.step(spans, is_sparse=is_sparse), strict=True):
            out[i].append(part)
            starts[i] = end
    for i, parts in enumerate(out):
        expected = model.expected(i, is_sparse=is_sparse)
        torch.testing.assert_close(torch.cat(parts).double(), expected, rtol=1e-4, atol=1e-5)


def test_tokens_that_are_computed_again_change_their_entries() -> None:
    """As when a draft was wrong: what it completed is completed anew."""
    model = Model([12], block_size=4, stride=4)
    right = model.kv[0].clone()
    model.step([(0, 0, 5)], is_sparse=False)
    model.kv[0] = torch.full_like(right, 7.0)
    model.step([(0, 5, 9)], is_sparse=False)
    model.kv[0] = right
    [first] = model.step([(0, 5, 6)], is_sparse=False)
    [rest] = model.step([(0, 6, 12)], is_sparse=False)
    expected = model.expected(0, is_sparse=False)[5:]
    torch.testing.assert_close(torch.cat((first, rest)).double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stride", "block_size", "num_pieces"),
    [
        (1, 16, 1),
        (4, 16, 4),
        (6, 16, 2),
        (3, 16, 1),
        (8, 16, 8),
        (128, 16, 8),
        (4, 2, 2),
        (128, 1, 1),
    ],
)
def test_an_entry_lies_in_the_block_of_its_last_token_and_meets_no_other(
    stride: int, block_size: int, num_pieces: int
) -> None:
    spec = KVCacheSpec(2, 24, 8, stride=stride).in_pieces(block_size)
    assert (spec.num_pieces, spec.k_head_dim, spec.v_head_dim) == (
        *(num_pieces, 24 // num_pieces),
        8 // num_pieces,
    )
    num_blocks = -(-4 * stride // block_size)
    cpu = torch.device("cpu")
    [cache] = allocate(
        *([spec], [KVCacheGroup(None, [0])], num_blocks, block_size),
        dtype=torch.float32,
        device=cpu,
    )
    cache.k.fill_(torch.nan)
    ends = torch.arange(1, 5) * stride - 1
    k, v = torch.randn(4, 2, 24), torch.randn(4, 2, 8)
    cache.store(ends, k, v)
    assert torch.equal(cache.keys.gather(ends), k)
    assert torch.equal(cache.values.gather(ends[None])[0], v)
    blocks_written = cache.k.isfinite().flatten(1).any(1).nonzero().flatten()
    assert set(blocks_written.tolist()) == set((ends // block_size).tolist())
    assert (cache.keys.head_dim, cache.values.head_dim) == (24, 8)


@pytest.mark.parametrize("name", KV_FORMATS)
def test_pieces_may_be_bytes_in_any_number(name: str) -> None:
    kv_format = KV_FORMATS[name](torch.float32)
    x = torch.randn(2, 1, 12)
    stored = torch.zeros(8, 1, kv_format.width(3), dtype=torch.uint8)
    entries = KVEntries(stored, kv_format, num_pieces=4)
    entries.store(torch.tensor([7, 1]), x)
    torch.testing.assert_close(entries.gather(torch.tensor([4, 3])), x, atol=0.02, rtol=0.07)
    assert entries.head_dim == 12


def test_the_cache_of_entries_is_smaller_by_their_stride() -> None:
    cache = KVCacheSpec(1, 512, 512, values_in_keys=True)
    assert cache.num_elements == 512
    assert cache._replace(stride=4).in_pieces(16).num_elements == 128
    assert cache._replace(stride=128).in_pieces(128).num_elements == 4
    # A block has room for one entry at least.
    assert cache._replace(stride=128).in_pieces(16).num_elements == 32
