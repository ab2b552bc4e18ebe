"""Paged attention of tokens that are computed alone, or few of a sequence: keys and values to their
slots, then attention over the blocks.

What it costs is reading keys and values, so each is read once, where it lies: by the block, and all
heads of a block that a thread has beside each other. The softmax is a running one (FlashAttention-2,
arXiv:2307.08691), in float32.

The heads of keys are divided among the threads, so that these have equally much to do whatever the
lengths are. A long sequence is computed in parts, and what these found is joined (Flash-Decoding):
where more threads than heads compute, each has parts. Parts begin at multiples of `_PART` tokens,
and blocks of keys are computed one after the other, so a token's bits depend on its own sequence
alone.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import numba
import torch
from llvmlite import ir
from numba import float32, types
from numba.extending import intrinsic
from torch import Tensor

from axion.layers.attention import reference
from axion.layers.attention.options import AttentionOptions
from axion.layers.context import ForwardContext, KVCache
from axion.layers.cpu_kernels import simd
from axion.layers.cpu_kernels.parallel import ParallelKernel, barrier, num_threads, parallel, share, thread
from axion.layers.cpu_kernels.simd import BF16, F32, I32, LANES

MAX_QUERY_LEN = 8
"""More new tokens of one sequence are attended to faster by products."""

_PART = 512  # tokens
_MAX_HEAD_DIM = 1024
# Registers that sums are kept in, of 32: heads times vectors.
_NUM_SUMS = 16


class _Plan(NamedTuple):
    """What a step's layers of a kind compute.

    Attributes:
        parts: `[num_parts, 7]` int64, of each token's keys: its row, its sequence, its position, the
            first key and the one behind the last, which part it is and of how many.
        num_keys: of all parts.
        tables: `[num_seqs, max_blocks]` int64.
        scratch: see `_kernel`.
    """

    parts: Tensor
    num_keys: int
    tables: Tensor
    scratch: Tensor


def supports(q: Tensor, cache: KVCache, context: ForwardContext, options: AttentionOptions) -> bool:
    """Whether `paged_attention` computes with such heads and numbers, and what the options ask."""
    return (
        options.chosen is None
        and options.compressed is None
        and cache.k.dtype == cache.v.dtype == q.dtype
        and cache.stride == cache.num_pieces == 1
        and q.shape[-1] % LANES == cache.v.shape[-1] % LANES == context.block_size % LANES == 0
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
    """As `axion.layers.attention.paged_attention`, of what `supports` allows; chunks of more than
    `MAX_QUERY_LEN` tokens by torch."""
    num_rows, num_heads, head_dim = q.shape
    _, block_size, num_kv_heads, v_dim = cache.v.shape
    out = q.new_empty(num_rows, num_heads, v_dim)
    plan = context.once(
        (_plan, cache.group, options.window, options.chunk, num_heads, v_dim),
        partial(
            _plan,
            kv_group=cache.group,
            window=options.window,
            chunk=options.chunk,
            scratch_size=num_heads * _scratch_row(v_dim),
        ),
    )
    q = _heads_together(q)
    num_stored = k_address = k_stride = v_address = v_stride = 0
    if k is not None and v is not None:
        k, v = _heads_together(k), _heads_together(v)
        num_stored = num_rows
        k_address, k_stride, v_address, v_stride = k.data_ptr(), k.stride(0), v.data_ptr(), v.stride(0)
    k_cache, v_cache = cache.k.data_ptr(), cache.v.data_ptr()
    softcap = options.softcap or 0.0
    sinks, slopes = _float_address(options.sinks), _float_address(options.alibi_slopes)
    _kernel(head_dim, v_dim, num_heads // num_kv_heads)(
        out.data_ptr(),
        q.data_ptr(),
        q.stride(0),
        num_kv_heads,
        k_cache,
        cache.k.stride(1),
        v_cache,
        cache.v.stride(1),
        k_address,
        k_stride,
        v_address,
        v_stride,
        context.slot_mapping[cache.group].data_ptr(),
        num_stored,
        plan.tables.data_ptr(),
        plan.tables.shape[1],
        block_size,
        plan.parts.data_ptr(),
        len(plan.parts),
        plan.num_keys,
        plan.scratch.data_ptr(),
        0 if sinks is None else sinks.data_ptr(),
        0 if slopes is None else slopes.data_ptr(),
        options.scale / softcap if softcap else options.scale,
        softcap,
    )
    return out


def _heads_together(x: Tensor) -> Tensor:
    """`[num_tokens, num_heads, head_dim]` whose rows have no gaps."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


def _float_address(x: Tensor | None) -> Tensor | None:
    return x if x is None else x.float()


def _scratch_row(v_dim: int) -> int:
    return v_dim + 4 * LANES


def _plan(
    context: ForwardContext, *, kv_group: int, window: int | None, chunk: int | None, scratch_size: int
) -> _Plan:
    parts: list[tuple[int, ...]] = []
    num_keys = row = num_places = 0
    for seq, query_len in enumerate(context.query_lens):
        if query_len <= MAX_QUERY_LEN:
            end = context.context_lens_list[seq]
            for position in range(end - query_len, end):
                start = 0
                if window is not None:
                    start = max(0, position + 1 - window)
                if chunk is not None:
                    start = position // chunk * chunk
                first, behind = start // _PART, position // _PART + 1
                for part in range(first, behind):
                    begin = max(start, part * _PART)
                    end_of_part = min(position + 1, (part + 1) * _PART)
                    parts.append((row, seq, position, begin, end_of_part, part - first, behind - first))
                num_keys += position + 1 - start
                row += 1
        else:
            row += query_len
    if any(part[6] > 1 for part in parts):
        num_places = len(parts)
    return _Plan(
        torch.tensor(parts, dtype=torch.int64).view(-1, 7),
        num_keys,
        context.block_tables[kv_group].long().contiguous(),
        torch.empty((torch.get_num_threads() + num_places) * scratch_size, dtype=torch.float32),
    )


@cache
def _kernel(head_dim: int, v_dim: int, group: int) -> ParallelKernel:
    """Of heads of so many numbers, and so many heads of queries for each of keys.

    Scratch memory is for each thread, and behind those for each part, `[num_heads, row]` float32: a
    row is the weighted values' sums, and in 16 lanes each the sums of weights (to be added up), the
    highest score, what became of it, and weights.
    """
    row_floats = _scratch_row(v_dim)
    row_bytes = 4 * row_floats
    totals, highest_at, shrinks, weights_at = (v_dim + LANES * i for i in range(4))
    vectors = v_dim // LANES
    tile_vectors = max(n for n in range(1, 9) if vectors % n == 0)
    num_tiles = vectors // tile_vectors
    tile_heads = min(group, max(1, _NUM_SUMS // tile_vectors))
    rest_heads = group % tile_heads
    lowest = float("-inf")
    key_lines = -(-2 * head_dim // 64 // group)
    value_lines = -(-2 * v_dim // 64 // (num_tiles * -(-group // tile_heads)))

    @numba.njit
    def join(out: int, places: int, place_bytes: int, count: int, sink: float) -> None:
        """A head's result from its parts, whose rows of scratch are `place_bytes` apart."""
        highest = simd.load_f32(places, highest_at)
        for part in range(1, count):
            highest = simd.maximum(simd.load_f32(places + part * place_bytes, highest_at), highest)
        total = simd.spread(float32(0.0))
        for part in range(count):
            place = places + part * place_bytes
            factor = simd.exp(simd.load_f32(place, highest_at) - highest)
            simd.store_f32(place, shrinks, factor)
            total = simd.fma(factor, simd.spread(simd.total(simd.load_f32(place, totals))), total)
        total = total + simd.exp(simd.spread(float32(sink)) - highest)
        for i in range(0, v_dim, LANES):
            sums = simd.spread(float32(0.0))
            for part in range(count):
                place = places + part * place_bytes
                sums = simd.fma(simd.load_f32(place, shrinks), simd.load_f32(place, i), sums)
            simd.store_bf16(out, i, sums / total)

    @parallel(integers=23, floats=2)
    def attend(arguments: Any) -> None:
        (
            out,
            q,
            q_stride,
            num_kv_heads,
            k_cache,
            k_cache_stride,
            v_cache,
            v_cache_stride,
            k,
            k_stride,
            v,
            v_stride,
            slots,
            num_stored,
            tables,
            table_stride,
            block_size,
            parts,
            num_parts,
            num_keys,
            scratch,
            sinks,
            slopes,
            factor,
            softcap,
        ) = arguments[0]
        start, end = share(num_stored)
        for token in range(start, end):
            slot = simd.load_int(slots, token)
            simd.copy(
                k_cache + 2 * slot * k_cache_stride,
                k + 2 * token * k_stride,
                2 * num_kv_heads * head_dim,
            )
            if v_cache != k_cache:
                simd.copy(
                    v_cache + 2 * slot * v_cache_stride,
                    v + 2 * token * v_stride,
                    2 * num_kv_heads * v_dim,
                )
        if num_stored > 0:
            barrier()
        if num_parts == 0:
            return

        num_heads = num_kv_heads * group
        place_bytes = num_heads * row_bytes
        of_parts = scratch + num_threads() * place_bytes
        # All parts' keys of the first head, of the second, ...: this thread's part of them.
        first, last = share(num_kv_heads * num_keys)
        before = 0
        is_split = False
        for part in range(num_parts):
            of_part = parts + 56 * part
            row = simd.load_int(of_part, 0)
            sequence = simd.load_int(of_part, 1)
            position = simd.load_int(of_part, 2)
            start = simd.load_int(of_part, 3)
            end = simd.load_int(of_part, 4)
            count = simd.load_int(of_part, 6)
            is_split = is_split or count > 1
            first_head = max(0, -((before - first) // num_keys))
            last_head = min(num_kv_heads, -((before - last) // num_keys))
            before += end - start
            if first_head >= last_head:
                continue
            place = scratch + thread() * place_bytes
            if count > 1:
                place = of_parts + part * place_bytes
            for head in range(first_head * group, last_head * group):
                of_head = place + head * row_bytes
                for i in range(0, v_dim + LANES, LANES):
                    simd.store_f32(of_head, i, simd.spread(float32(0.0)))
                simd.store_f32(of_head, highest_at, simd.spread(float32(lowest)))
            table = tables + 8 * sequence * table_stride
            for token in range(start // LANES * LANES, end, LANES):
                block = simd.load_int(table, token // block_size)
                slot = block * block_size + token % block_size
                first_key = max(start - token, 0)
                last_key = min(end - token, LANES)
                next_slot = slot
                if token + LANES < end:
                    block = simd.load_int(table, (token + LANES) // block_size)
                    next_slot = block * block_size + (token + LANES) % block_size
                for kv_head in range(first_head, last_head):
                    next_keys = k_cache + 2 * (next_slot * k_cache_stride + kv_head * head_dim)
                    next_values = v_cache + 2 * (next_slot * v_cache_stride + kv_head * v_dim)
                    keys = k_cache + 2 * (slot * k_cache_stride + kv_head * head_dim)
                    values = v_cache + 2 * (slot * v_cache_stride + kv_head * v_dim)
                    for head in range(kv_head * group, (kv_head + 1) * group):
                        of_head = place + head * row_bytes
                        queries = q + 2 * (row * q_stride + head * head_dim)
                        scores = _scores(head_dim, key_lines, queries, keys, next_keys, 2 * k_cache_stride)
                        next_keys += 64 * key_lines
                        scores = scores * simd.spread(float32(factor))
                        if softcap > 0:
                            # tanh, by the one function that there is
                            scores = simd.exp(scores + scores) + simd.spread(float32(1.0))
                            scores = simd.spread(float32(1.0)) - simd.spread(float32(2.0)) / scores
                            scores = scores * simd.spread(float32(softcap))
                        if slopes != 0:
                            slope = simd.spread(simd.load_float(slopes, head))
                            distance = simd.spread(float32(token - position)) + simd.lanes()
                            scores = simd.fma(slope, distance, scores)
                        if last_key - first_key < LANES:
                            hidden = simd.spread(float32(lowest))
                            behind = simd.spread(float32(last_key))
                            scores = simd.where_less(simd.lanes(), behind, scores, hidden)
                            before_it = simd.spread(float32(first_key))
                            scores = simd.where_less(simd.lanes(), before_it, hidden, scores)
                        highest = simd.load_f32(of_head, highest_at)
                        higher = simd.maximum(highest, simd.spread(simd.largest(scores)))
                        weights = simd.exp(scores - higher)
                        shrink = simd.exp(highest - higher)
                        total = simd.fma(simd.load_f32(of_head, totals), shrink, weights)
                        simd.store_f32(of_head, totals, total)
                        simd.store_f32(of_head, highest_at, higher)
                        simd.store_f32(of_head, shrinks, shrink)
                        simd.store_f32(of_head, weights_at, weights)
                    of_heads = place + kv_head * group * row_bytes
                    for tile in range(num_tiles):
                        column = tile * tile_vectors * LANES
                        for head in range(0, group - tile_heads + 1, tile_heads):
                            _add_values(
                                v_dim,
                                tile_heads,
                                tile_vectors,
                                value_lines,
                                of_heads + head * row_bytes,
                                column,
                                values,
                                next_values,
                                2 * v_cache_stride,
                                first_key,
                                last_key,
                            )
                            next_values += 64 * value_lines
                        if rest_heads > 0:
                            _add_values(
                                v_dim,
                                rest_heads,
                                tile_vectors,
                                value_lines,
                                of_heads + (group - rest_heads) * row_bytes,
                                column,
                                values,
                                next_values,
                                2 * v_cache_stride,
                                first_key,
                                last_key,
                            )
                            next_values += 64 * value_lines
            if count == 1:
                for head in range(first_head * group, last_head * group):
                    sink = lowest
                    if sinks != 0:
                        sink = simd.load_float(sinks, head)
                    of_head = out + 2 * (row * num_heads + head) * v_dim
                    join(of_head, place + head * row_bytes, place_bytes, 1, sink)
        if not is_split:
            return
        barrier()
        first_head, last_head = share(num_heads)
        for part in range(num_parts):
            of_part = parts + 56 * part
            row = simd.load_int(of_part, 0)
            count = simd.load_int(of_part, 6)
            if count > 1 and simd.load_int(of_part, 5) == 0:
                for head in range(first_head, last_head):
                    sink = lowest
                    if sinks != 0:
                        sink = simd.load_float(sinks, head)
                    of_head = out + 2 * (row * num_heads + head) * v_dim
                    place = of_parts + part * place_bytes + head * row_bytes
                    join(of_head, place, place_bytes, count, sink)

    return attend


@intrinsic(prefer_literal=True)
def _scores(
    typing_context: Any,
    head_dim: types.IntegerLiteral,
    num_lines: types.IntegerLiteral,
    q: types.Integer,
    keys: types.Integer,
    ahead: types.Integer,
    stride: types.Integer,
) -> Any:
    """Products of a head of queries with `LANES` keys, `stride` bytes apart, a lane for each."""
    num_pairs, rest = divmod(head_dim.literal_value, 2 * LANES)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        _, _, q, keys, ahead, stride = values
        index = [ir.Constant(q.type, LANES * i) for i in range(num_pairs + 1)]

        def pairs(address: Any) -> list[Any]:
            vectors = [
                simd.load(builder, address, i, I32.of_llvm, 4) for i in index[:num_pairs]
            ]
            if rest:
                half = ir.VectorType(ir.IntType(32), LANES // 2)
                numbers = simd.load(builder, address, index[num_pairs], half, 4)
                mask = ir.Constant(I32.of_llvm, list(range(LANES)))
                vectors.append(builder.shuffle_vector(numbers, ir.Constant(half, None), mask))
            return vectors

        queries = pairs(q)

        def sums(key: int, step: int) -> Any:
            """Of each `step`-th key from this one on; lanes for them by turns."""
            if step == LANES:
                offset = builder.mul(stride, ir.Constant(q.type, key))
                address = builder.add(keys, offset)
                for line in range(num_lines.literal_value):
                    simd.prefetch_(builder, builder.add(builder.add(ahead, offset), ir.Constant(q.type, 64 * line)))
                total = ir.Constant(F32.of_llvm, None)
                for a, b in zip(queries, pairs(address), strict=True):
                    total = simd.dot_bf16(context, builder, total, a, b)
                return total
            a, b = sums(key, 2 * step), sums(key + step, 2 * step)
            low = [
                lane + start for lane in range(0, LANES, 2 * step) for start in (*range(step), *range(LANES, LANES + step))
            ]
            masks = (ir.Constant(I32.of_llvm, [lane + up for lane in low]) for up in (0, step))
            return builder.fadd(*(builder.shuffle_vector(a, b, mask) for mask in masks))

        return sums(0, 1)

    return F32(head_dim, num_lines, *([types.int64] * 4)), generate


@intrinsic(prefer_literal=True)
def _add_values(
    typing_context: Any,
    v_dim: types.IntegerLiteral,
    num_heads: types.IntegerLiteral,
    num_vectors: types.IntegerLiteral,
    num_lines: types.IntegerLiteral,
    rows: types.Integer,
    column: types.Integer,
    values: types.Integer,
    ahead: types.Integer,
    stride: types.Integer,
    first: types.Integer,
    last: types.Integer,
) -> Any:
    """To the sums of `num_heads` neighbouring rows of scratch memory, from a column on, weighted
    values of keys from the `first` up to the `last`, `stride` bytes apart."""
    heads, vectors, width = (x.literal_value for x in (num_heads, num_vectors, v_dim))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, column, values, ahead, stride, first, last = arguments[4:]
        of_int = rows.type

        def number(value: int) -> Any:
            return ir.Constant(of_int, value)

        places, before = [], []
        for head in range(heads):
            row = builder.add(rows, number(4 * head * _scratch_row(width)))
            shrink = simd.load(builder, row, number(width + 2 * LANES), F32.of_llvm, 4)
            for vector in range(vectors):
                index = builder.add(column, number(LANES * vector))
                places.append((row, index))
                old = simd.load(builder, row, index, F32.of_llvm, 4)
                before.append(builder.fmul(old, shrink))
        weights = builder.add(rows, number(4 * (width + 3 * LANES)))
        values = builder.add(values, builder.mul(column, number(2)))

        entry, body = builder.block, builder.append_basic_block("keys")
        builder.branch(body)
        builder.position_at_end(body)
        key = builder.phi(of_int)
        key.add_incoming(first, entry)
        sums = [builder.phi(F32.of_llvm) for _ in before]
        offset = builder.mul(key, stride)
        of_key = builder.add(values, offset)
        for line in range(num_lines.literal_value):
            simd.prefetch_(builder, builder.add(builder.add(ahead, offset), number(64 * line)))
        numbers = [
            builder.fpext(simd.load(builder, of_key, number(LANES * i), BF16, 2), F32.of_llvm)
            for i in range(vectors)
        ]
        of_weight = builder.add(weights, builder.mul(key, number(4)))
        after = []
        for head in range(heads):
            place = builder.add(of_weight, number(4 * head * _scratch_row(width)))
            weight = simd.broadcast(builder, place, F32.of_llvm)
            for value in numbers:
                total = sums[len(after)]
                after.append(simd.call(builder, "llvm.fma.v16f32", F32.of_llvm, [weight, value, total]))
        for total, old, new in zip(sums, before, after, strict=True):
            total.add_incoming(old, entry)
            total.add_incoming(new, body)
        next_key = builder.add(key, number(1))
        key.add_incoming(next_key, body)
        done = builder.append_basic_block("done")
        builder.cbranch(builder.icmp_signed("<", next_key, last), body, done)
        builder.position_at_end(done)
        for (row, index), total in zip(places, after, strict=True):
            simd.store(builder, total, row, index, 4)
        return context.get_dummy_value()

    # numba tells variants apart by the types of their arguments.
    return types.void(v_dim, num_heads, num_vectors, num_lines, *([types.int64] * 7)), generate
