"""Paged attention: keys and values to their slots, then attention over the blocks.

A step is cut into tiles: neighbouring queries of one sequence with all query heads of one key-value
head, so that each key and value is loaded once for all of them. A program walks over the keys that
its tile sees, a block of keys at a time, with the running softmax of FlashAttention-2
(arXiv:2307.08691). Where tiles are too few to keep the GPU busy, as when few sequences decode, each
is computed by several programs, which take a part of the keys each, and a second kernel joins what
they found (Flash-Decoding, pytorch.org/blog/flash-decoding).

Grids follow from what the host knows: the lengths of queries, the width of block tables and the
GPU. So nothing waits for the device, and a step in which every sequence has one query can be
captured in a CUDA graph and replayed for sequences of any length that the tables have room for.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from axion.layers.attention.options import AttentionOptions
from axion.layers.context import ForwardContext, KVCache
from axion.layers.kernels import num_multiprocessors
from axion.layers.transfer import to_device

# Bytes of keys and values that a program loads at once. Two such loads are under way, and 99 KiB
# of shared memory (consumer Ampere and Ada) have to hold them, the queries and the weights.
_LOAD_BYTES = 40 * 1024
_MAX_KEYS = 64
# Numbers of the result that a program keeps, 64 registers a thread.
_RESULT_SIZE = 8192
_MIN_ROWS, _MAX_ROWS = 16, 64  # 16: what tensor cores multiply at least
# Programs for each multiprocessor, and keys for each program, below which tiles are not split.
_NUM_WAVES = 4
_MIN_SPLIT = 128
_MAX_SPLITS = 64
_LOG2E = tl.constexpr(math.log2(math.e))
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MAX_HEAD_DIM = 1024


class _Tiles(NamedTuple):
    """Queries that are computed together.

    Attributes:
        tiles: `[num_tiles, 3]` int32: sequence, row of the first query, number of queries.
        block_q: no tile has more.
    """

    tiles: Tensor
    block_q: int


def supports(q: Tensor, cache: KVCache, options: AttentionOptions) -> bool:
    """Whether `paged_attention` computes with such heads and numbers, and what the options ask."""
    return (
        options.chosen is None
        and options.compressed is None
        and q.dtype == cache.k.dtype == cache.v.dtype
        and q.dtype in _DTYPES
        and q.shape[-1] <= _MAX_HEAD_DIM
    )


def paged_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    cache: KVCache,
    context: ForwardContext,
    options: AttentionOptions,
) -> Tensor:
    """As `axion.layers.attention.paged_attention`, of what `supports` allows.

    Products are of the inputs' precision, sums in float32. Entries whose slot is negative are not
    stored.
    """
    scale, window, chunk, softcap, sinks, alibi_slopes, _, _ = options
    if k is not None and v is not None:
        store(k, v, cache, context.slot_mapping[cache.group])
    num_tokens, num_heads, head_dim = q.shape
    num_kv_heads, v_dim = cache.v.shape[2:]
    group = num_heads // num_kv_heads
    block_d = max(16, _floor(head_dim))
    block_v = _padded(v_dim)
    values_in_keys = cache.v.data_ptr() == cache.k.data_ptr() and v_dim <= block_d
    if values_in_keys:
        block_v = block_d
    max_rows = min(max(_RESULT_SIZE // block_v, _MIN_ROWS), _MAX_ROWS)
    key_bytes = (head_dim + (0 if values_in_keys else block_v)) * q.element_size()
    num_keys = _floor(min(max(_LOAD_BYTES // key_bytes, 16), _MAX_KEYS))
    if q.dtype == torch.float32:  # no tensor cores: what is multiplied must fit in registers
        max_rows = num_keys = _MIN_ROWS
    heads = min(group, max_rows)  # of a program

    q = q if q.stride(-1) == 1 else q.contiguous()
    tables = context.block_tables[cache.group]
    out = q.new_empty(num_tokens, num_heads, v_dim)
    max_q = max_rows // heads
    for tiles, block_q in context.once((_cut, max_q), partial(_cut, max_q=max_q)):
        rows = max(triton.next_power_of_2(block_q * heads), _MIN_ROWS)
        num_tiles, num_parts = len(tiles), num_kv_heads * triton.cdiv(group, heads)
        capacity = tables.shape[-1] * context.block_size
        if reach := window or chunk:
            capacity = min(capacity, reach + block_q - 1)
        num_splits = _num_splits(num_tiles * num_parts, capacity, q.device)
        result, lse = out, out  # lse is not written where nothing is split
        if num_splits > 1:
            shape = (num_tiles * block_q, num_heads, num_splits)
            result = q.new_empty((*shape, v_dim), dtype=torch.float32)
            lse = q.new_empty(shape, dtype=torch.float32)
        _attend[(num_tiles, num_parts, num_splits)](
            result,
            lse,
            q,
            cache.k,
            cache.v,
            context.positions,
            context.context_lens,
            tables,
            tiles,
            sinks,
            alibi_slopes,
            scale * _LOG2E.value if softcap is None else scale / softcap,
            None if softcap is None else softcap * _LOG2E.value,
            window,
            chunk,
            *q.stride()[:2],
            cache.k.stride(1),
            cache.v.stride(1),
            *tables.stride(),
            GROUP=group,
            HEADS=heads,
            HEAD_DIM=head_dim,
            V_DIM=v_dim,
            BLOCK_SIZE=context.block_size,
            BLOCK_Q=block_q,
            ROWS=rows,
            KEYS=num_keys,
            BLOCK_D=block_d,
            BLOCK_REST=0 if head_dim <= block_d else _padded(head_dim - block_d),
            BLOCK_V=block_v,
            VALUES_IN_KEYS=values_in_keys,
            IS_SPLIT=num_splits > 1,
            MIN_SPLIT=_MIN_SPLIT,
            num_stages=2,
        )
        if num_splits > 1:
            _join[(num_tiles * block_q, num_heads)](
                out,
                result,
                lse,
                tiles,
                BLOCK_Q=block_q,
                NUM_SPLITS=num_splits,
                V_DIM=v_dim,
                BLOCK_V=block_v,
            )
    return out


def store(k: Tensor, v: Tensor, cache: KVCache, slot_mapping: Tensor) -> None:
    """Keys and values to their slots.

    Args:
        k, v: `[num_tokens, num_kv_heads, head_dim]`.
        slot_mapping: `[num_tokens]`; what belongs to a negative slot is not stored.
    """
    if cache.v.data_ptr() == cache.k.data_ptr():
        v = v[:, :0]  # the beginning of k
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    k_size, v_size = k[0].numel(), v[0].numel()
    _store[(len(k),)](
        k,
        v,
        cache.k,
        cache.v,
        slot_mapping,
        slot_mapping.stride(0),
        *k.stride()[:2],
        *v.stride()[:2],
        cache.k.stride(1),
        cache.v.stride(1),
        K_DIM=k.shape[-1],
        V_DIM=v.shape[-1],
        K_SIZE=k_size,
        V_SIZE=v_size,
        BLOCK=triton.next_power_of_2(max(k_size, v_size)),
    )


def _padded(size: int) -> int:
    """Tensor cores multiply 16 by 16 at least."""
    return max(16, triton.next_power_of_2(size))


def _floor(size: int) -> int:
    """The largest power of two that is not larger."""
    return 1 << size.bit_length() - 1


def _cut(context: ForwardContext, *, max_q: int) -> list[_Tiles]:
    """Tiles of one query, for sequences that have no more, and tiles of up to `max_q`."""
    query_lens, device = context.query_lens, context.positions.device
    if max(query_lens) == 1:
        # Made on the device: a CUDA graph makes it too.
        seqs = torch.arange(len(query_lens), device=device, dtype=torch.int32)
        return [_Tiles(torch.stack((seqs, seqs, torch.ones_like(seqs)), 1), 1)]
    lens = np.array(query_lens)
    first_rows = np.cumsum(lens) - lens
    cuts = []
    for seqs, size in ((lens == 1).nonzero()[0], 1), ((lens > 1).nonzero()[0], max_q):
        counts = -(-lens[seqs] // size)
        if not len(counts):
            continue
        # How many tiles of the sequence are before this one.
        index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        seq = np.repeat(seqs, counts)
        num_queries = np.minimum(lens[seq] - index * size, size)
        tiles = np.stack((seq, first_rows[seq] + index * size, num_queries), 1)
        cuts.append(_Tiles(to_device(tiles.astype(np.int32), device), size))
    return cuts


def _num_splits(num_programs: int, capacity: int, device: torch.device) -> int:
    """Among how many programs the keys of a tile are divided, a power of two.

    Args:
        num_programs: without splitting.
        capacity: keys that a tile can see at most.
    """
    wanted = _NUM_WAVES * num_multiprocessors(device) // num_programs
    return _floor(max(1, min(wanted, capacity // _MIN_SPLIT, _MAX_SPLITS)))


# Metadata lie where a step puts them: kernels are not compiled anew where an address or a stride is
# a multiple of 16 in one step and not in the next.
@triton.jit(
    do_not_specialize=["slot_mapping_stride"], do_not_specialize_on_alignment=["slot_mapping"]
)
def _store(
    k,
    v,
    k_cache,
    v_cache,
    slot_mapping,
    slot_mapping_stride,
    k_row_stride,
    k_head_stride,
    v_row_stride,
    v_head_stride,
    k_slot_stride,
    v_slot_stride,
    K_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    K_SIZE: tl.constexpr,
    V_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One token's keys and values."""
    row = tl.program_id(0).to(tl.int64)
    slot = tl.load(slot_mapping + row * slot_mapping_stride).to(tl.int64)
    if slot < 0:
        return
    i = tl.arange(0, BLOCK)
    key = tl.load(
        k + row * k_row_stride + i // K_DIM * k_head_stride + i % K_DIM, mask=i < K_SIZE, other=0.0
    )
    tl.store(k_cache + slot * k_slot_stride + i, key, mask=i < K_SIZE)
    if V_SIZE:
        value = tl.load(
            v + row * v_row_stride + i // V_DIM * v_head_stride + i % V_DIM,
            mask=i < V_SIZE,
            other=0.0,
        )
        tl.store(v_cache + slot * v_slot_stride + i, value, mask=i < V_SIZE)


@triton.jit(
    do_not_specialize=["table_stride", "block_stride"],
    do_not_specialize_on_alignment=["positions", "context_lens", "tables", "tiles"],
)
def _attend(
    out,
    lse,
    q,
    k,
    v,
    positions,
    context_lens,
    tables,
    tiles,
    sinks,
    alibi_slopes,
    factor,
    cap,
    window,
    chunk,
    q_row_stride,
    q_head_stride,
    k_slot_stride,
    v_slot_stride,
    table_stride,
    block_stride,
    GROUP: tl.constexpr,
    HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_REST: tl.constexpr,
    BLOCK_V: tl.constexpr,
    VALUES_IN_KEYS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    MIN_SPLIT: tl.constexpr,
):
    """One tile's attention with the heads of one key-value head, over one part of the keys.

    Rows of the program are (query, head). A head of queries and keys is a power of two (`BLOCK_D`)
    and a rest, padded: 576 is 512 and 64, not 1,024. Scores are times log2(e), because exp2 is what
    the hardware has; `factor` and `cap` come so.

    Args:
        out: `[num_tokens, num_heads, V_DIM]`; of a split tile
            `[num_tiles * BLOCK_Q, num_heads, num_splits, V_DIM]`.
        lse: the logarithm (of base two) of what the softmax divided by,
            `[num_tiles * BLOCK_Q, num_heads, num_splits]`.
    """
    tile, part, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    CHUNKS: tl.constexpr = (GROUP + HEADS - 1) // HEADS
    num_heads = tl.num_programs(1) // CHUNKS * GROUP
    kv_head = part // CHUNKS
    seq = tl.load(tiles + tile * 3).to(tl.int64)
    first_row = tl.load(tiles + tile * 3 + 1).to(tl.int64)
    num_queries = tl.load(tiles + tile * 3 + 2)
    first_position = tl.load(positions + first_row).to(tl.int32)

    r = tl.arange(0, ROWS)
    query = r // HEADS
    head_of_group = part % CHUNKS * HEADS + r % HEADS
    head = kv_head * GROUP + head_of_group
    is_row = (query < num_queries) & (query < BLOCK_Q) & (head_of_group < GROUP)
    position = first_position + query

    # The keys that any of the queries sees, and which of them are this program's.
    begin = 0
    # A sequence that only fills up a captured batch has one key, whatever its position.
    end = tl.minimum(first_position + num_queries, tl.load(context_lens + seq).to(tl.int32))
    if window is not None:
        begin = tl.maximum(first_position - window + 1, 0)
    if chunk is not None:
        begin = first_position // chunk * chunk
    if IS_SPLIT:
        size = tl.maximum(tl.cdiv(end - begin, tl.num_programs(2)), MIN_SPLIT)
        begin += split * tl.cdiv(size, KEYS) * KEYS
        end = tl.minimum(end, begin + tl.cdiv(size, KEYS) * KEYS)

    d = tl.arange(0, BLOCK_D)
    q_rows = q + (first_row + query) * q_row_stride + head * q_head_stride
    q_main = tl.load(q_rows[:, None] + d, mask=is_row[:, None] & (d < HEAD_DIM), other=0.0)
    table = tables + seq * table_stride
    k += kv_head * HEAD_DIM
    v += kv_head * V_DIM
    if BLOCK_REST:
        rest = BLOCK_D + tl.arange(0, BLOCK_REST)
        q_rest = tl.load(
            q_rows[:, None] + rest, mask=is_row[:, None] & (rest < HEAD_DIM), other=0.0
        )
    dv = tl.arange(0, BLOCK_V)

    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if sinks is not None:  # a key without a value, of the first part
        sink = tl.load(sinks + head, mask=is_row & (split == 0), other=float("-inf"))
        highest = sink.to(tl.float32) * _LOG2E
        total = (highest > float("-inf")).to(tl.float32)
    if alibi_slopes is not None:
        slope = tl.load(alibi_slopes + head, mask=is_row, other=0.0).to(tl.float32) * _LOG2E
    result = tl.zeros([ROWS, BLOCK_V], tl.float32)
    for start in range(begin, end, KEYS):
        n = start + tl.arange(0, KEYS)
        is_key = n < end
        block = tl.load(table + n // BLOCK_SIZE * block_stride, mask=is_key, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + n % BLOCK_SIZE
        k_slots = k + slot * k_slot_stride
        k_main = tl.load(
            k_slots[None, :] + d[:, None], mask=is_key[None, :] & (d < HEAD_DIM)[:, None], other=0.0
        )
        scores = tl.dot(q_main, k_main, input_precision="ieee")
        if BLOCK_REST:
            k_rest = tl.load(
                k_slots[None, :] + rest[:, None],
                mask=is_key[None, :] & (rest < HEAD_DIM)[:, None],
                other=0.0,
            )
            scores = tl.dot(q_rest, k_rest, scores, input_precision="ieee")
        scores *= factor
        if cap is not None:  # tanh, by the one function that there is
            scores = cap * (1 - 2 / (1 + tl.exp2(scores * (2 * _LOG2E))))
        if alibi_slopes is not None:
            scores += slope[:, None] * (n[None, :] - position[:, None])
        is_seen = is_key[None, :] & (n[None, :] <= position[:, None])
        if window is not None:
            is_seen &= n[None, :] > position[:, None] - window
        if chunk is not None:
            is_seen &= n[None, :] >= position[:, None] // chunk * chunk
        scores = tl.where(is_seen, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # A row may have seen no key yet.
        origin = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - origin[:, None])
        shrink = tl.exp2(highest - origin)
        total = total * shrink + tl.sum(weights, 1)
        highest = higher
        if VALUES_IN_KEYS:
            values = tl.trans(k_main)
        else:
            values = tl.load(
                v + slot[:, None] * v_slot_stride + dv,
                mask=is_key[:, None] & (dv < V_DIM),
                other=0.0,
            )
        result = tl.dot(
            weights.to(values.dtype), values, result * shrink[:, None], input_precision="ieee"
        )

    total = tl.where(total == 0, 1.0, total)  # where no key was seen
    result /= total[:, None]
    out_row = (first_row + query) * num_heads + head
    if IS_SPLIT:
        num_splits = tl.num_programs(2)
        out_row = ((tile.to(tl.int64) * BLOCK_Q + query) * num_heads + head) * num_splits + split
        tl.store(lse + out_row, highest + tl.log2(total), mask=is_row)
    tl.store(
        out + out_row[:, None] * V_DIM + dv,
        result.to(out.dtype.element_ty),
        mask=is_row[:, None] & (dv < V_DIM),
    )


@triton.jit(do_not_specialize_on_alignment=["tiles"])
def _join(
    out,
    parts,
    lse,
    tiles,
    BLOCK_Q: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    V_DIM: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """One query's head from its parts, each weighted by its share of the softmax's sum."""
    tile, query = tl.program_id(0) // BLOCK_Q, tl.program_id(0) % BLOCK_Q
    head, num_heads = tl.program_id(1), tl.num_programs(1)
    if query >= tl.load(tiles + tile * 3 + 2):
        return
    row = tl.load(tiles + tile * 3 + 1).to(tl.int64) + query
    index = tl.program_id(0).to(tl.int64) * num_heads + head
    split = index * NUM_SPLITS + tl.arange(0, NUM_SPLITS)
    dv = tl.arange(0, BLOCK_V)
    shares = tl.load(lse + split)
    highest = tl.max(shares, 0)
    shares = tl.exp2(shares - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(shares, 0)
    found = tl.load(parts + split[:, None] * V_DIM + dv, mask=(dv < V_DIM)[None, :], other=0.0)
    result = tl.sum(found * shares[:, None], 0) / tl.where(total == 0, 1.0, total)
    tl.store(
        out + (row * num_heads + head) * V_DIM + dv,
        result.to(out.dtype.element_ty),
        mask=dv < V_DIM,
    )
