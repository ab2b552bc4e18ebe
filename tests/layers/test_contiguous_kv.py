"""Contiguous copies of keys and values, against what the paged KV cache holds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from axion.layers.attention import paged_attention
from axion.layers.context import ForwardContext, KVCache
from axion.layers.contiguous_kv import ContiguousKV, ContiguousRows
from axion.layers.kv_format import KV_FORMATS

BLOCK_SIZE, MAX_BLOCKS, NUM_SEQS = 4, 25, 5
NUM_KV_HEADS, HEAD_DIM, V_HEAD_DIM = 2, 8, 6


class Engine:
    """Steps of sequences by their places, each with blocks of its own, over two layers."""

    def __init__(
        self,
        max_tokens: int = 4096,
        *,
        dtype: torch.dtype = torch.float32,
        format: str | None = None,
        num_heads: int = 4,
    ) -> None:
        self.num_heads, self.dtype = num_heads, dtype
        self.ids = list(range(NUM_SEQS))
        self.next_id = NUM_SEQS
        self.lengths = [0] * NUM_SEQS
        self.tables = torch.randperm(NUM_SEQS * MAX_BLOCKS).view(NUM_SEQS, MAX_BLOCKS)
        self.rows = ContiguousRows(max_tokens)
        kv_format = None if format is None else KV_FORMATS[format](dtype)
        self.layers = []
        for _ in range(2):
            shapes = ((NUM_KV_HEADS, HEAD_DIM), (NUM_KV_HEADS, V_HEAD_DIM))
            copies = ContiguousKV(max_tokens, *shapes, dtype)
            copies._k.fill_(torch.nan)
            copies._v.fill_(torch.nan)
            k, v = (
                torch.full((NUM_SEQS * MAX_BLOCKS, BLOCK_SIZE, *shape), torch.nan, dtype=dtype)
                for shape in shapes
            )
            if kv_format is not None:
                k, v = kv_format.store(k), kv_format.store(v)
            self.layers.append(KVCache(k, v, format=kv_format, contiguous=copies))

    def leave(self, seq: int) -> None:
        """Another sequence comes in its place."""
        self.ids[seq], self.next_id, self.lengths[seq] = self.next_id, self.next_id + 1, 0

    def step(
        self,
        counts: dict[int, int],
        layers: tuple[int, ...] = (0, 1),
        sick: int | None = None,
        **options: Any,
    ) -> list[tuple[Tensor, Tensor]]:
        """Compute so many more tokens of each sequence: by copies, and by gathering."""
        seqs = list(counts)
        query_lens = list(counts.values())
        starts = [self.lengths[seq] for seq in seqs]
        for seq, count in counts.items():
            self.lengths[seq] += count
        context_lens = [self.lengths[seq] for seq in seqs]
        positions = [torch.arange(a, b) for a, b in zip(starts, context_lens, strict=True)]
        slots = [
            self.tables[seq, x // BLOCK_SIZE] * BLOCK_SIZE + x % BLOCK_SIZE
            for seq, x in zip(seqs, positions, strict=True)
        ]
        self.rows.begin([self.ids[seq] for seq in seqs], starts)
        flat = torch.cat(positions)
        context = ForwardContext(
            positions=flat,
            rope_lengths=flat + 1,
            slot_mapping=torch.cat(slots)[None],
            block_tables=self.tables[seqs][None],
            context_lens=torch.tensor(context_lens),
            query_lens=query_lens,
            context_lens_list=context_lens,
            kv_caches=self.layers,
            block_size=BLOCK_SIZE,
            contiguous_rows={0: self.rows},
        )
        gathering = replace(context, contiguous_rows={})
        outputs = []
        for index in layers:
            q = torch.randn(len(flat), self.num_heads, HEAD_DIM).to(self.dtype)
            k = torch.randn(len(flat), NUM_KV_HEADS, HEAD_DIM).to(self.dtype)
            v = torch.randn(len(flat), NUM_KV_HEADS, V_HEAD_DIM).to(self.dtype)
            if sick in counts:
                last = sum(query_lens[: seqs.index(sick) + 1]) - 1
                k[last] = v[last] = torch.nan
            layer = self.layers[index]
            outputs.append(
                (
                    paged_attention(q, k, v, layer, context, scale=0.3, **options),
                    paged_attention(q, None, None, layer, gathering, scale=0.3, **options),
                )
            )
        return outputs


def check(outputs: list[tuple[Tensor, Tensor]], dtype: torch.dtype = torch.float32) -> None:
    error = 1e-5 if dtype == torch.float32 else 0.02
    for found, expected in outputs:
        torch.testing.assert_close(found, expected, rtol=error, atol=error, equal_nan=True)


# Some sequences decode, some compute chunks, some wait; before that one leaves, one goes back (a
# wrong draft, a preemption), one computes a NaN; the second layer is in some steps only.
steps = st.lists(
    st.tuples(
        st.lists(st.sampled_from([0, 1, 1, 1, 1, 7]), min_size=NUM_SEQS, max_size=NUM_SEQS),
        st.none() | st.integers(0, NUM_SEQS - 1),
        st.none() | st.tuples(st.integers(0, NUM_SEQS - 1), st.integers(1, 9)),
        st.none() | st.integers(0, 4 * NUM_SEQS),
        st.sampled_from([(0, 1), (0, 1), (0,)]),
    ),
    min_size=1,
    max_size=14,
)


@settings(deadline=None, max_examples=40)
@given(steps=steps, dtype=st.sampled_from([torch.float32, torch.bfloat16]), data=st.data())
def test_copies_give_what_gathering_gives(steps: list[Any], dtype: torch.dtype, data: Any) -> None:
    torch.manual_seed(0)
    # Of 96 tokens three sequences, or two of more than 32 tokens, have no room.
    engine = Engine(data.draw(st.sampled_from([96, 4096])), dtype=dtype)
    for counts, leaving, back, sick, layers in steps:
        if leaving is not None:
            engine.leave(leaving)
        if back is not None:
            seq, num_tokens = back
            engine.lengths[seq] = max(0, engine.lengths[seq] - num_tokens)
        # What begins has a prompt; no more tokens than there are blocks for.
        chunks = {
            seq: count + 2 * (count > 0 and not engine.lengths[seq])
            for seq, count in enumerate(counts)
            if count and engine.lengths[seq] + 9 < MAX_BLOCKS * BLOCK_SIZE
        }
        if chunks:
            check(engine.step(chunks, layers, sick), dtype)


@pytest.mark.parametrize("format", [None, "fp8", "int8"], ids=str)
@pytest.mark.parametrize("num_heads", [2, 4])
def test_many_keys_in_bfloat16_and_bytes(num_heads: int, format: str | None) -> None:
    engine = Engine(dtype=torch.bfloat16, format=format, num_heads=num_heads)
    engine.step(dict.fromkeys(range(NUM_SEQS), 60))
    for _ in range(8):  # rows become longer meanwhile
        check(engine.step(dict.fromkeys(range(NUM_SEQS), 1)), torch.bfloat16)


@pytest.mark.parametrize(
    "options", [{"softcap": 0.7}, {"sinks": torch.ones(4)}], ids=["cap", "sink"]
)
def test_scores_of_any_kind_read_copies(options: dict[str, Any]) -> None:
    engine = Engine()
    engine.step({0: 9, 1: 5})
    for _ in range(3):
        check(engine.step({0: 1, 1: 1}, **options))
    assert engine.layers[0].contiguous is not None
    assert engine.layers[0].contiguous._number == 3


def test_a_step_copies_one_token_of_each_sequence_and_all_of_one_that_comes() -> None:
    rows = ContiguousRows(512)
    tables = torch.arange(64).view(4, 16)

    def take(ids: list[int], lengths: list[int]) -> list[tuple[int, int]]:
        rows.begin(ids, [length - 1 for length in lengths])
        step = rows.take(list(range(len(ids))), lengths, tables, BLOCK_SIZE)
        assert step is not None
        assert sorted(step.order) == list(range(len(ids)))
        return [step.missing[step.order.index(index)] for index in range(len(ids))]

    assert take([1, 2, 3], [10, 20, 30]) == [(0, 32)] * 3
    assert take([1, 2, 3], [11, 21, 31]) == [(10, 11), (20, 21), (30, 31)]
    assert take([2, 3], [22, 32]) == [(21, 22), (0, 32)], "the last row fills the hole"
    assert take([4, 2, 3], [5, 23, 32]) == [(0, 32), (22, 23), (31, 32)]
    assert take([4, 2, 3], [6, 24, 33]) == [(0, 64)] * 3, "rows become longer"
    assert take([4, 2], [7, 25]) == [(0, 32)] * 2, "and shorter"


def test_where_there_is_no_room_nothing_is_copied() -> None:
    rows = ContiguousRows(64)
    rows.begin([1, 2, 3], [3, 3, 3])
    tables = torch.zeros(3, 9, dtype=torch.long)
    assert rows.take([0, 1, 2], [4, 4, 4], tables, BLOCK_SIZE) is None
    assert rows.take([0, 1], [4, 33, 4], tables, BLOCK_SIZE) is None
    assert rows.take([0, 1], [4, 32, 4], tables, BLOCK_SIZE) is not None
