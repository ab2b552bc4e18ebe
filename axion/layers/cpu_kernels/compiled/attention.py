"""Paged attention."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from llvmlite import ir
from numba import float32, njit, types
from numba.extending import intrinsic

from axion.layers.cpu_kernels.compiled import simd
from axion.layers.cpu_kernels.compiled.simd import BF16, F32, I32, LANES
from axion.layers.cpu_kernels.compiled.threads import barrier, num_threads, share, thread

# Vectors of values that are read at once, and sums that are kept in registers meanwhile.
_MAX_VECTORS, _MAX_SUMS = 8, 16
_LINE = 64  # bytes that memory is read by
_PART_BYTES = 7 * 8


def attend(head_dim: int, v_dim: int, group: int) -> Callable[[Any], None]:
    """For `paged_attention`, with `group` heads of queries to each of keys.

    A head has a row of scratch memory: the sum of weighted values, `[v_dim]` float32, and behind it
    vectors of `LANES`: sums of weights (to be added up), the highest score so far, what the sums
    before the newest keys are multiplied by, and the weights of these.
    """
    row_bytes = 4 * _row_size(v_dim)
    totals, highests, shrinks, all_weights = (v_dim + LANES * i for i in range(4))
    num_vectors = v_dim // LANES
    tile_vectors = max(n for n in range(1, _MAX_VECTORS + 1) if num_vectors % n == 0)
    num_tiles = num_vectors // tile_vectors
    tile_heads = min(group, _MAX_SUMS // tile_vectors)
    rest_heads = group % tile_heads
    # Lines of the next keys, and of values, that are asked for in one pass over the present ones.
    key_lines = -(-2 * head_dim // _LINE // group)
    value_lines = -(-2 * v_dim // _LINE // (num_tiles * -(-group // tile_heads)))

    @njit(error_model="numpy")
    def weigh(row: int, scores: Any, first: int, last: int) -> None:
        """Weights of the newest keys, those from `first` to `last`, and all sums of weights."""
        if last - first < LANES:
            hidden = simd.spread(float32(-inf))
            scores = simd.where_less(simd.lanes(), simd.spread(float32(last)), scores, hidden)
            scores = simd.where_less(simd.lanes(), simd.spread(float32(first)), hidden, scores)
        highest = simd.load_f32(row, highests)
        higher = simd.maximum(highest, simd.spread(simd.largest(scores)))
        shrink = simd.exp(highest - higher)
        weights = simd.exp(scores - higher)
        simd.store_f32(row, totals, simd.fma(simd.load_f32(row, totals), shrink, weights))
        simd.store_f32(row, highests, higher)
        simd.store_f32(row, shrinks, shrink)
        simd.store_f32(row, all_weights, weights)

    @njit(error_model="numpy")
    def join(out: int, row: int, count: int, stride: int, sinks: int, head: int) -> None:
        """A head's result from its parts, whose rows are `stride` bytes apart."""
        highest = simd.load_f32(row, highests)
        for part in range(1, count):
            highest = simd.maximum(highest, simd.load_f32(row + part * stride, highests))
        total = simd.spread(float32(0))
        if sinks != 0:
            total = simd.exp(simd.spread(simd.load_float(sinks, head)) - highest)
        for part in range(count):
            of_part = row + part * stride
            shrink = simd.exp(simd.load_f32(of_part, highests) - highest)
            weights = simd.spread(simd.total(simd.load_f32(of_part, totals)))
            total = simd.fma(weights, shrink, total)
            simd.store_f32(of_part, shrinks, shrink)
        for column in range(0, v_dim, LANES):
            values = simd.spread(float32(0))
            for part in range(count):
                of_part = row + part * stride
                shrink = simd.load_f32(of_part, shrinks)
                values = simd.fma(simd.load_f32(of_part, column), shrink, values)
            simd.store_bf16(out, column, values / total)

    def compute(arguments: Any) -> None:
        (
            out,
            q,
            q_stride,
            num_kv_heads,
            k_cache,
            k_slot_stride,
            v_cache,
            v_slot_stride,
            num_stored,
            k,
            k_stride,
            v,
            v_stride,
            slots,
            block_tables,
            max_blocks,
            block_size,
            parts,
            num_parts,
            num_keys,
            scratch,
            sinks,
            slopes,
            scale,
            softcap,
        ) = arguments[0]
        if num_stored > 0:
            start, end = share(num_stored)
            for token in range(start, end):
                slot = simd.load_int(slots, token)
                key = k_cache + 2 * slot * k_slot_stride
                simd.copy(key, k + 2 * token * k_stride, 2 * num_kv_heads * head_dim)
                if v_cache != k_cache:  # else values are in the keys
                    value = v_cache + 2 * slot * v_slot_stride
                    simd.copy(value, v + 2 * token * v_stride, 2 * num_kv_heads * v_dim)
            barrier()
        num_heads = num_kv_heads * group
        place_bytes = num_heads * row_bytes
        places = scratch + num_threads() * place_bytes  # of parts
        is_split = False
        # All parts' keys of the first head, of the second and so on, in one row: those in this
        # thread's share of it begin the parts that it computes.
        first, last = share(num_kv_heads * num_keys)
        num_before = 0
        for part in range(num_parts):
            of_part = parts + _PART_BYTES * part
            token_row = simd.load_int(of_part, 0)
            sequence = simd.load_int(of_part, 1)
            position = simd.load_int(of_part, 2)
            start = simd.load_int(of_part, 3)
            end = simd.load_int(of_part, 4)
            count = simd.load_int(of_part, 6)
            is_split |= count > 1
            first_head = max(0, -((num_before - first) // num_keys))
            last_head = min(num_kv_heads, -((num_before - last) // num_keys))
            num_before += end - start
            if first_head >= last_head:
                continue
            place = places + part * place_bytes if count > 1 else scratch + thread() * place_bytes
            for head in range(first_head * group, last_head * group):
                row = place + head * row_bytes
                for column in range(0, v_dim + LANES, LANES):
                    simd.store_f32(row, column, simd.spread(float32(0)))
                simd.store_f32(row, highests, simd.spread(float32(-inf)))
            block_table = block_tables + 8 * sequence * max_blocks
            next_token = start // LANES * LANES
            next_slot = _slot(block_table, next_token, block_size)
            while next_token < end:
                token, slot = next_token, next_slot
                next_token += LANES
                if next_token < end:
                    next_slot = _slot(block_table, next_token, block_size)
                first_key, last_key = max(start - token, 0), min(end - token, LANES)
                for kv_head in range(first_head, last_head):
                    keys = k_cache + 2 * (slot * k_slot_stride + kv_head * head_dim)
                    next_keys = keys + 2 * (next_slot - slot) * k_slot_stride
                    for head in range(kv_head * group, (kv_head + 1) * group):
                        query = q + 2 * (token_row * q_stride + head * head_dim)
                        scores = _scores(
                            head_dim, key_lines, query, keys, next_keys, 2 * k_slot_stride
                        )
                        next_keys += _LINE * key_lines
                        scores = scores * simd.spread(float32(scale))
                        if softcap > 0:
                            scores = simd.tanh(scores) * simd.spread(float32(softcap))
                        if slopes != 0:
                            slope = simd.spread(simd.load_float(slopes, head))
                            distances = simd.spread(float32(token - position)) + simd.lanes()
                            scores = simd.fma(slope, distances, scores)
                        weigh(place + head * row_bytes, scores, first_key, last_key)
                    values = v_cache + 2 * (slot * v_slot_stride + kv_head * v_dim)
                    next_values = values + 2 * (next_slot - slot) * v_slot_stride
                    for tile in range(num_tiles):
                        column = tile * tile_vectors * LANES
                        row = place + kv_head * group * row_bytes
                        for _ in range(group // tile_heads):
                            _add_values(
                                v_dim,
                                tile_heads,
                                tile_vectors,
                                value_lines,
                                row,
                                column,
                                values,
                                next_values,
                                2 * v_slot_stride,
                                first_key,
                                last_key,
                            )
                            row += tile_heads * row_bytes
                            next_values += _LINE * value_lines
                        if rest_heads > 0:
                            _add_values(
                                v_dim,
                                rest_heads,
                                tile_vectors,
                                value_lines,
                                row,
                                column,
                                values,
                                next_values,
                                2 * v_slot_stride,
                                first_key,
                                last_key,
                            )
                            next_values += _LINE * value_lines
            if count == 1:
                for head in range(first_head * group, last_head * group):
                    result = out + 2 * (token_row * num_heads + head) * v_dim
                    join(result, place + head * row_bytes, 1, place_bytes, sinks, head)
        if not is_split:
            return
        barrier()
        first_head, last_head = share(num_heads)
        for part in range(num_parts):
            of_part = parts + _PART_BYTES * part
            token_row = simd.load_int(of_part, 0)
            count = simd.load_int(of_part, 6)
            if count > 1 and simd.load_int(of_part, 5) == 0:
                for head in range(first_head, last_head):
                    result = out + 2 * (token_row * num_heads + head) * v_dim
                    row = places + part * place_bytes + head * row_bytes
                    join(result, row, count, place_bytes, sinks, head)

    return compute


def _row_size(v_dim: int) -> int:
    """Numbers in a row of scratch memory."""
    return v_dim + 4 * LANES


@njit(error_model="numpy")
def _slot(block_table: int, token: int, block_size: int) -> int:
    block = simd.load_int(block_table, token // block_size)
    return block * block_size + token % block_size


@intrinsic(prefer_literal=True)
def _scores(
    typing_context: Any,
    head_dim: types.IntegerLiteral,
    num_lines: types.IntegerLiteral,
    query: types.Integer,
    keys: types.Integer,
    next_keys: types.Integer,
    stride: types.Integer,
) -> Any:
    """Products of a query with `LANES` keys, `stride` bytes apart, a lane for each.

    Meanwhile `num_lines` lines of each of as many other keys are asked for.
    """
    num_pairs, rest = divmod(head_dim.literal_value, 2 * LANES)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        query, keys, next_keys, stride = values[2:]

        def number(value: int) -> Any:
            return ir.Constant(query.type, value)

        def pairs(address: Any) -> list[Any]:
            """A head's numbers, two in a lane."""
            vectors = [
                simd.load(builder, address, number(LANES * i), I32.of_llvm, 4)
                for i in range(num_pairs)
            ]
            if rest:
                half = ir.VectorType(I32.of_llvm.element, LANES // 2)
                numbers = simd.load(builder, address, number(LANES * num_pairs), half, 4)
                lanes = ir.Constant(I32.of_llvm, list(range(LANES)))
                vectors.append(builder.shuffle_vector(numbers, ir.Constant(half, None), lanes))
            return vectors

        of_query = pairs(query)

        def products(key: int, step: int) -> Any:
            """With every `step`-th key from this one on; these have neighbouring lanes, again and
            again, and the sum of each is still to be made of lanes `LANES // step` apart."""
            if step == LANES:
                offset = builder.mul(stride, number(key))
                for line in range(num_lines.literal_value):
                    ahead = builder.add(builder.add(next_keys, offset), number(_LINE * line))
                    simd.prefetch(builder, ahead)
                total = ir.Constant(F32.of_llvm, None)
                for a, b in zip(of_query, pairs(builder.add(keys, offset)), strict=True):
                    total = simd.dot_bf16(context, builder, total, a, b)
                return total
            a, b = products(key, 2 * step), products(key + step, 2 * step)
            first = [
                start + lane
                for start in range(0, LANES, 2 * step)
                for lane in (*range(step), *range(LANES, LANES + step))
            ]
            halves = (ir.Constant(I32.of_llvm, [x + up for x in first]) for up in (0, step))
            return builder.fadd(*(builder.shuffle_vector(a, b, half) for half in halves))

        return products(0, 1)

    # numba tells variants apart by the types of what is given.
    return F32(head_dim, num_lines, *[types.int64] * 4), generate


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
    next_values: types.Integer,
    stride: types.Integer,
    first: types.Integer,
    last: types.Integer,
) -> Any:
    """Add weighted values of keys from the `first` to the `last`, `stride` bytes apart, to
    `num_vectors` of the sums in each of `num_heads` rows, from a column on.

    Meanwhile `num_lines` lines of each of as many other values are asked for.
    """
    heads, vectors, width = (x.literal_value for x in (num_heads, num_vectors, v_dim))

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        rows, column, values, next_values, stride, first, last = arguments[4:]
        of_int = rows.type

        def number(value: int) -> Any:
            return ir.Constant(of_int, value)

        places, before = [], []
        for head in range(heads):
            row = builder.add(rows, number(4 * head * _row_size(width)))
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
            ahead = builder.add(builder.add(next_values, offset), number(_LINE * line))
            simd.prefetch(builder, ahead)
        numbers = [
            builder.fpext(simd.load(builder, of_key, number(LANES * i), BF16, 2), F32.of_llvm)
            for i in range(vectors)
        ]
        of_weight = builder.add(weights, builder.mul(key, number(4)))
        after = []
        for head in range(heads):
            place = builder.add(of_weight, number(4 * head * _row_size(width)))
            weight = simd.broadcast(builder, place, F32.of_llvm)
            for value in numbers:
                total = sums[len(after)]
                after.append(
                    simd.call(builder, "llvm.fma.v16f32", F32.of_llvm, [weight, value, total])
                )
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

    return types.void(v_dim, num_heads, num_vectors, num_lines, *[types.int64] * 7), generate
