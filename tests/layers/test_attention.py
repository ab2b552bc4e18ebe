"""Paged attention against attention as written in the paper, over any mix of sequences."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from axion.layers import kv_format
from axion.layers.attention import chosen as chosen_attention
from axion.layers.attention import paged_attention, products, reference, step_groups
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

    def attend(self, **options: Any) -> list[Tensor]:
        positions = [
            torch.arange(length - n, length)
            for n, length in zip(self.query_lens, self.context_lens, strict=True)
        ]
        flat = torch.cat(positions)
        context = ForwardContext(
            positions=flat,
            rope_lengths=flat + 1,
            slot_mapping=torch.cat([self.slots(seq, p) for seq, p in enumerate(positions)])[None],
            block_tables=self.tables[None],
            context_lens=torch.tensor(self.context_lens),
            query_lens=self.query_lens,
            context_lens_list=self.context_lens,
            kv_caches=[self.cache],
            block_size=self.block_size,
        )
        new = (self.new(self.q), self.new(self.k), self.new(self.v))
        out = paged_attention(*new, self.cache, context, scale=0.3, **options)
        # The next layer, of another kind, finds nothing of this one in the context.
        paged_attention(*new, self.cache, context, scale=0.3)
        again = paged_attention(*new, self.cache, context, scale=0.3, **options)
        assert torch.equal(again.nan_to_num(), out.nan_to_num())
        return list(out.split(self.query_lens))

    def expected(
        self,
        seq: int,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
        chunk: int | None = None,
        alibi_slopes: Tensor | None = None,
        chosen: Tensor | None = None,
    ) -> Tensor:
        """Args: chosen: `[context_len, num_chosen]`, of this sequence."""
        q, k, v = (x[seq].double() for x in (self.q, self.k, self.v))
        new = slice(len(q) - self.query_lens[seq], None)
        q = q[new]
        group = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * 0.3
        if softcap is not None:
            scores = softcap * (scores / softcap).tanh()
        tokens = torch.arange(len(k))
        positions = tokens[new, None]
        seen = tokens <= positions
        if window is not None:
            seen &= tokens > positions - window
        if chunk is not None:
            seen &= tokens // chunk == positions // chunk
        if alibi_slopes is not None:
            scores = scores + alibi_slopes[:, None, None] * (tokens - positions)
        if chosen is not None:
            seen &= (tokens[:, None] == chosen[new, None]).any(-1)
        scores = scores.masked_fill(~seen, float("-inf"))
        if sinks is not None:
            scores = torch.cat((scores, sinks[:, None, None].expand(-1, len(q), 1)), dim=-1)
        weights = scores.softmax(-1)[..., : len(k)]
        return torch.einsum("hqk,khd->qhd", weights, v)


any_lengths = st.lists(
    st.tuples(st.integers(1, 7), st.integers(0, 20)) | st.tuples(st.just(1), st.integers(0, 9)),
    min_size=1,
    max_size=6,
)
any_heads = st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)])


@settings(max_examples=60)
@given(lengths=any_lengths, heads=any_heads, block_size=st.sampled_from([1, 4, 16]))
def test_equals_plain_causal_attention(
    lengths: list[tuple[int, int]], heads: tuple[int, int], block_size: int
) -> None:
    sequences = Sequences(lengths, *heads, block_size)
    for seq, out in enumerate(sequences.attend()):
        torch.testing.assert_close(out.double(), sequences.expected(seq), rtol=1e-4, atol=1e-5)


@settings(max_examples=100)
@given(
    lengths=any_lengths,
    heads=any_heads,
    window=st.none() | st.integers(1, 28),
    softcap=st.none() | st.just(0.7),
    has_sinks=st.booleans(),
    max_rows=st.integers(1, 8),
)
def test_windows_soft_caps_and_sinks(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    window: int | None,
    softcap: float | None,
    has_sinks: bool,
    max_rows: int,
) -> None:
    sequences = Sequences(lengths, *heads, block_size=4)
    sinks = torch.linspace(-2, 2, heads[0]) if has_sinks else None
    options = {"window": window, "softcap": softcap, "sinks": sinks}
    with pytest.MonkeyPatch.context() as patch:
        # Chunks of a few tokens are cut as long ones are.
        patch.setattr(step_groups, "_MIN_ROWS", max_rows)
        patch.setattr(reference, "MAX_SCORES", max_rows * heads[0] * 10)
        outputs = sequences.attend(**options)
    for seq, out in enumerate(outputs):
        expected = sequences.expected(seq, **options)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=60)
@given(
    lengths=any_lengths,
    heads=any_heads,
    chunk=st.none() | st.integers(1, 28),
    has_slopes=st.booleans(),
    max_rows=st.integers(1, 8),
)
def test_chunks_and_slopes(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    chunk: int | None,
    has_slopes: bool,
    max_rows: int,
) -> None:
    sequences = Sequences(lengths, *heads, block_size=4)
    slopes = torch.linspace(0.1, 0.8, heads[0]) if has_slopes else None
    options = {"chunk": chunk, "alibi_slopes": slopes}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_groups, "_MIN_ROWS", max_rows)
        patch.setattr(reference, "MAX_SCORES", max_rows * heads[0] * 10)
        outputs = sequences.attend(**options)
    for seq, out in enumerate(outputs):
        expected = sequences.expected(seq, **options)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("has_sinks", [False, True])
def test_each_token_attends_to_what_is_chosen_for_it(
    has_sinks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chosen_attention, "MAX_SCORES", 3 * 5 * HEAD_DIM)  # three tokens at a time
    sequences = Sequences([(1, 2), (1, 30), (4, 0), (7, 9)], 4, 2, 4)
    sinks = torch.linspace(-2, 2, 4) if has_sinks else None
    generator = torch.Generator().manual_seed(2)
    chosen = []
    for length in sequences.context_lens:
        # Itself; the others at random, of which some are behind it, and some not there at all.
        others = torch.randperm(length + 1, generator=generator)[:4].expand(length, -1) - 1
        others = torch.nn.functional.pad(others, (0, 4 - others.shape[1]), value=-1)
        itself = torch.arange(length)[:, None]
        chosen.append(torch.cat((itself, others.masked_fill(others == itself, -1)), dim=1))
    outputs = sequences.attend(chosen=sequences.new(chosen), sinks=sinks)
    for seq, out in enumerate(outputs):
        expected = sequences.expected(seq, chosen=chosen[seq], sinks=sinks)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


def test_keys_before_the_window_are_not_read() -> None:
    sequences = Sequences([(1, 30), (3, 20)], 4, 2, 4)
    for seq, (query_len, cached) in enumerate([(1, 30), (3, 20)]):
        before = sequences.slots(seq, torch.arange(query_len + cached - (query_len - 1) - 8))
        for cache in (sequences.cache.k, sequences.cache.v):
            cache.view(-1, *cache.shape[2:])[before] = torch.nan
    for seq, out in enumerate(sequences.attend(window=8)):
        torch.testing.assert_close(
            out.double(), sequences.expected(seq, window=8), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"softcap": 0.7}], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close(dtype: torch.dtype, options: dict[str, Any]) -> None:
    sequences = Sequences([(1, 30), (5, 0), (3, 8)], 4, 2, 4, dtype)
    for seq, out in enumerate(sequences.attend(**options)):
        assert out.dtype == dtype
        expected = sequences.expected(seq, **options)
        torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("window", [None, 4], ids=str)
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("num_seqs", [1, 3, 4, 9])
def test_tokens_of_many_sequences_in_bfloat16(
    num_seqs: int, num_kv_heads: int, window: int | None
) -> None:
    lengths = [(1, 3 + 7 * index) for index in range(num_seqs)]
    sequences = Sequences(lengths, 4, num_kv_heads, 4, torch.bfloat16)
    for seq, out in enumerate(sequences.attend(window=window)):
        assert out.dtype == torch.bfloat16
        expected = sequences.expected(seq, window)
        torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("window", [None, 40, 200])
def test_long_chunks_in_bfloat16_are_attended_block_by_block(
    window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "_BLOCK_ROWS", (5, 16))
    sequences = Sequences([(90, 0), (1, 3), (70, 61), (130, 1)], 6, 2, 4, torch.bfloat16)
    for seq, out in enumerate(sequences.attend(window=window)):
        expected = sequences.expected(seq, window)
        torch.testing.assert_close(out.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("options", [{}, {"window": 9}], ids=str)
@pytest.mark.parametrize("lengths", [[(1, 30)], [(9, 30), (1, 4)]], ids=str)
def test_blocks_that_follow_one_another_are_read_in_place(
    lengths: list[tuple[int, int]], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    sequences = Sequences(lengths, 4, 2, 4)
    monkeypatch.setattr(kv_format.F, "embedding", None)
    for seq, out in enumerate(sequences.attend(**options)):
        expected = sequences.expected(seq, **options)
        torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sick", range(6))
def test_a_nan_stays_in_its_own_sequence(sick: int, dtype: torch.dtype) -> None:
    sequences = Sequences([(1, 2), (1, 30), (4, 0), (3, 9), (1, 7), (1, 9)], 4, 2, 4, dtype)
    sequences.v[sick][-1] = sequences.k[sick][-1] = torch.nan
    for seq, out in enumerate(sequences.attend()):
        assert out.isnan().any() == (seq == sick)
