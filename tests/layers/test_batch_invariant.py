"""The bits of a token's attention depend on its own sequence alone."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from axion.layers.attention import batch_invariant, reference
from axion.layers.attention.options import AttentionOptions
from axion.layers.context import ForwardContext, KVCache

BLOCK, HEAD_DIM, V_HEAD_DIM = 16, 32, 24


class Model:
    """Attention over sequences of random tokens, `[length, heads, head_dim]` each, step by step.
    Slots that hold nothing yet are NaN."""

    def __init__(self, lengths: list[int], heads: tuple[int, int], dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(len(lengths))
        num_heads, num_kv_heads = heads

        def random(num_heads: int, size: int) -> list[Tensor]:
            shapes = [(length, num_heads, size) for length in lengths]
            return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]

        self.q, self.k = random(num_heads, HEAD_DIM), random(num_kv_heads, HEAD_DIM)
        self.v = random(num_kv_heads, V_HEAD_DIM)
        num_blocks = [-(-length // BLOCK) for length in lengths]
        self.tables = torch.zeros(len(lengths), max(num_blocks), dtype=torch.int64)
        for row, n in enumerate(num_blocks):
            self.tables[row, :n] = torch.arange(n) + sum(num_blocks[:row])
        self.cache = KVCache(
            *(
                torch.full((sum(num_blocks), BLOCK, num_kv_heads, size), torch.nan).to(dtype)
                for size in (HEAD_DIM, V_HEAD_DIM)
            )
        )

    def step(
        self, spans: list[tuple[int, int, int]], attention: Any, **options: Any
    ) -> list[Tensor]:
        """Compute tokens `start` to `end` of sequence `seq`, for each (seq, start, end)."""
        seqs = [seq for seq, _, _ in spans]
        positions = [torch.arange(start, end) for _, start, end in spans]
        slots = [
            self.tables[seq, p // BLOCK] * BLOCK + p % BLOCK
            for seq, p in zip(seqs, positions, strict=True)
        ]
        flat = torch.cat(positions)
        ends = [end for _, _, end in spans]
        context = ForwardContext(
            positions=flat,
            rope_lengths=flat + 1,
            slot_mapping=torch.cat(slots)[None],
            block_tables=self.tables[seqs][None],
            context_lens=torch.tensor(ends),
            query_lens=[end - start for _, start, end in spans],
            context_lens_list=ends,
            kv_caches=[self.cache],
            block_size=BLOCK,
        )
        q, k, v = (
            torch.cat([x[seq][start:end] for seq, start, end in spans])
            for x in (self.q, self.k, self.v)
        )
        out = attention.paged_attention(
            q, k, v, self.cache, context, AttentionOptions(0.2, **options)
        )
        return list(out.split(context.query_lens))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"window": 300},
    {"window": 5},
    {"softcap": 0.7},
    {"sinks": True},
    {"chunk": 290},
    {"alibi_slopes": True},
]


def options_of(options: dict[str, Any], heads: tuple[int, int]) -> dict[str, Any]:
    """With a number for each head where there is True."""
    per_head = torch.linspace(-2, 2, heads[0])
    return {name: per_head if value is True else value for name, value in options.items()}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_it_is_attention(options: dict[str, Any]) -> None:
    heads = (6, 2)
    spans = [(0, 0, 530), (1, 0, 9), (2, 0, 1)]
    options = options_of(options, heads)
    results = [
        Model([530, 9, 1], heads, torch.float32).step(spans, module, **options)
        for module in (batch_invariant, reference)
    ]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=5)
@given(seed=st.integers(0, 2**32))
def test_chunks_and_neighbours_change_no_bit(options: dict[str, Any], seed: int) -> None:
    random = Random(seed)
    heads = random.choice([(4, 4), (8, 2), (3, 1)])
    dtype = random.choice([torch.float32, torch.bfloat16])
    lengths = [random.randint(1, 600) for _ in range(random.randint(1, 4))]
    options = options_of(options, heads)
    alone = Model(lengths, heads, dtype)
    expected = [
        alone.step([(seq, 0, length)], batch_invariant, **options)[0]
        for seq, length in enumerate(lengths)
    ]
    together = Model(lengths, heads, dtype)
    done = [0] * len(lengths)
    while done != lengths:
        counts = [random.choice([0, 1, 1, 7, 100, 600]) for _ in lengths]
        spans = [
            (seq, start, min(start + count, lengths[seq]))
            for seq, (start, count) in enumerate(zip(done, counts, strict=True))
            if count and start < lengths[seq]
        ]
        if not spans:
            continue
        outputs = together.step(spans, batch_invariant, **options)
        for (seq, start, end), out in zip(spans, outputs, strict=True):
            assert torch.equal(out, expected[seq][start:end])
            done[seq] = end


def test_keys_before_the_window_are_not_read() -> None:
    model = Model([700], (4, 2), torch.float32)
    [expected] = model.step([(0, 0, 700)], batch_invariant, window=40)
    model.tables[0, : (699 - 40) // BLOCK] = 0
    for cache in (model.cache.k, model.cache.v):
        cache[0] = torch.nan
    [out] = model.step([(0, 699, 700)], batch_invariant, window=40)
    assert torch.equal(out, expected[-1:])
