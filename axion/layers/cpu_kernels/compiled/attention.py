"""Paged attention."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any, NamedTuple

from llvmlite import ir
from numba import float32, njit, types
from numba.extending import intrinsic

from axion.layers.cpu_kernels.compiled import simd
from axion.layers.cpu_kernels.compiled.simd import F32, I32, LANES
from axion.layers.cpu_kernels.compiled.threads import barrier, num_threads, share, thread

# Vectors of values that are read at once, and sums that are kept in registers meanwhile.
_MAX_VECTORS, _MAX_SUMS = 8, 16
_LINE = 64  # bytes that memory is read by
_PART_BYTES = 7 * 8


def attend(head_dim: int, v_dim: int, group: int, format: str | None) -> Callable[[Any], None]:
    """For `paged_attention`, with `group` heads of queries to each of keys, and a name of
    `axion.layers.kv_format.KV_FORMATS`, or None.

    A head has a row of scratch memory: the sum of weighted values, `[v_dim]` float32, and behind it
    vectors of `LANES`: sums of weights (to be added up), the highest score so far, what the sums
    before the newest keys are multiplied by, and the weights of these.

    What depends on the step is read at `plan`. Parts are `[num_parts, 7]` int64: their token's row
    and sequence and position, the first key and the one behind the last, which of the token's parts
    it is, and of how many.
    """
    row_bytes = 4 * _row_size(v_dim)
    totals, highests, shrinks, all_weights = (v_dim + LANES * i for i in range(4))
    num_vectors = v_dim // LANES
    tile_vectors = max(n for n in range(1, _MAX_VECTORS + 1) if num_vectors % n == 0)
    num_tiles = num_vectors // tile_vectors
    tile_heads = min(group, _MAX_SUMS // tile_vectors)
    rest_heads = group % tile_heads
    of_keys, of_values = _Entries(format, head_dim), _Entries(format, v_dim)
    k_bytes, v_bytes = of_keys.num_bytes, of_values.num_bytes
    # Lines of each value that are asked for in one pass over keys, and of keys in one over values.
    value_lines = -(-v_bytes // _LINE // group)
    key_lines = -(-k_bytes // _LINE // (num_tiles * -(-group // tile_heads)))
    scores_of = _scores(of_keys, value_lines)
    add_values = _add_values(of_values, tile_heads, tile_vectors, key_lines)
    add_rest = _add_values(of_values, rest_heads, tile_vectors, key_lines)

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
            plan,
            sinks,
            slopes,
            scale,
            softcap,
        ) = arguments[0]
        slots = simd.load_int(plan, 0)
        block_tables = simd.load_int(plan, 1)
        max_blocks = simd.load_int(plan, 2)
        block_size = simd.load_int(plan, 3)
        parts = simd.load_int(plan, 4)
        num_parts = simd.load_int(plan, 5)
        num_keys = simd.load_int(plan, 6)
        scratch = simd.load_int(plan, 7)
        if num_stored > 0:
            start, end = share(num_stored)
            for token in range(start, end):
                slot = simd.load_int(slots, token)
                key = k_cache + slot * k_slot_stride
                simd.copy(key, k + token * k_stride, num_kv_heads * k_bytes)
                if v_cache != k_cache:  # else values are in the keys
                    value = v_cache + slot * v_slot_stride
                    simd.copy(value, v + token * v_stride, num_kv_heads * v_bytes)
            barrier()
        num_heads = num_kv_heads * group
        place_bytes = num_heads * row_bytes
        places = scratch + num_threads() * place_bytes  # of parts
        # Values that are in their keys lie as far apart as these.
        v_head_stride = k_bytes if v_cache == k_cache else v_bytes
        is_split = False
        # Each part's keys of the first head, of the second and so on, in one row: those in this
        # thread's share of it begin what it computes. Of most parts it has all heads: the processor
        # fetches what follows a head's keys by itself, for another thread in vain.
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
            first_head = max(0, -((num_before - first) // (end - start)))
            last_head = min(num_kv_heads, -((num_before - last) // (end - start)))
            num_before += num_kv_heads * (end - start)
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
                token, slot, next_head = next_token, next_slot, first_head
                next_token += LANES
                if next_token < end:
                    next_slot = _slot(block_table, next_token, block_size)
                elif part + 1 < num_parts:
                    of_next = of_part + _PART_BYTES
                    table = block_tables + 8 * simd.load_int(of_next, 1) * max_blocks
                    start_of_next = simd.load_int(of_next, 3) // LANES * LANES
                    next_slot, next_head = _slot(table, start_of_next, block_size), 0
                first_key, last_key = max(start - token, 0), min(end - token, LANES)
                heads = first_head, last_head
                for kv_head in range(first_head, last_head):
                    keys = k_cache + slot * k_slot_stride + kv_head * k_bytes
                    values = v_cache + slot * v_slot_stride + kv_head * v_head_stride
                    # Asked for are the next head's values, and the keys of the one after it. More
                    # than memory brings meanwhile the processor forgets.
                    ahead, of_ahead = _after(kv_head, 1, heads, slot, next_slot, next_head)
                    next_values = v_cache + ahead * v_slot_stride + of_ahead * v_head_stride
                    last_value_line = next_values + v_bytes - 1
                    ahead, of_ahead = _after(kv_head, 2, heads, slot, next_slot, next_head)
                    next_keys = k_cache + ahead * k_slot_stride + of_ahead * k_bytes
                    for head in range(kv_head * group, (kv_head + 1) * group):
                        query = q + 2 * (token_row * q_stride + head * head_dim)
                        scores = scores_of(query, keys, k_slot_stride, next_values, v_slot_stride)
                        next_values = min(next_values + _LINE * value_lines, last_value_line)
                        scores = scores * simd.spread(float32(scale))
                        if softcap > 0:
                            scores = simd.tanh(scores) * simd.spread(float32(softcap))
                        if slopes != 0:
                            slope = simd.spread(simd.load_float(slopes, head))
                            distances = simd.spread(float32(token - position)) + simd.lanes()
                            scores = simd.fma(slope, distances, scores)
                        weigh(place + head * row_bytes, scores, first_key, last_key)
                    for tile in range(num_tiles):
                        row = place + kv_head * group * row_bytes
                        at = tile * tile_vectors * LANES
                        for _ in range(group // tile_heads):
                            add_values(
                                *(row, at, values, v_slot_stride, first_key, last_key),
                                *(next_keys, k_slot_stride),
                            )
                            row += tile_heads * row_bytes
                            next_keys += _LINE * key_lines
                        if rest_heads > 0:
                            add_rest(
                                *(row, at, values, v_slot_stride, first_key, last_key),
                                *(next_keys, k_slot_stride),
                            )
                            next_keys += _LINE * key_lines
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


@njit(error_model="numpy")
def _after(
    head: int, count: int, heads: tuple[int, int], slot: int, next_slot: int, next_head: int
) -> tuple[int, int]:
    """The slot and the head that come so many after this one, where heads from `heads[0]` to
    `heads[1]` are read of a slot, and then those from `next_head` on of the next slot."""
    first, last = heads
    if head + count < last:
        return slot, head + count
    return next_slot, next_head + min(head + count - last, last - first - 1)


class _Entries(NamedTuple):
    """Keys or values of a head as they are stored, each with what is before its numbers.

    Attributes:
        format: a name of `axion.layers.kv_format.KV_FORMATS`; None: bfloat16.
        size: how many numbers.
    """

    format: str | None
    size: int

    @property
    def header(self) -> int:
        """Bytes before the numbers: of int8 their scale, in bfloat16."""
        return 2 if self.format == "int8" else 0

    @property
    def element(self) -> int:
        """Bytes of a number."""
        return 2 if self.format is None else 1

    @property
    def num_bytes(self) -> int:
        return self.header + self.element * self.size

    def numbers(self, builder: Any, address: Any, index: int) -> Any:
        """Those in the vector of this index, to be multiplied by the scale."""
        offset = ir.Constant(address.type, self.header + self.element * LANES * index)
        address = builder.add(address, offset)
        if self.format is None:
            return simd.from_bf16(builder, address)
        return (simd.from_int8 if self.format == "int8" else simd.from_fp8)(builder, address)

    def scaled(self, builder: Any, vector: Any, address: Any) -> Any:
        """The vector times the scale of the entry at this address."""
        if self.header == 0:
            return vector
        return builder.fmul(vector, simd.broadcast_bf16(builder, address))


def _ask(builder: Any, first: Any, offset: Any, num_lines: int) -> None:
    """Memory for lines from `first + offset` on."""
    for line in range(num_lines):
        place = builder.add(offset, ir.Constant(offset.type, _LINE * line))
        simd.prefetch(builder, builder.add(first, place))


def _scores(keys: _Entries, num_lines: int) -> Any:
    """`(query, keys, stride, ahead, ahead_stride)` to products of a query and `LANES` keys that are
    `stride` bytes apart, a lane for each. Meanwhile `num_lines` lines from each of as many
    addresses are asked for, the first of which is `ahead`.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        query, first_key, stride, ahead, ahead_stride = values

        def number(value: int) -> Any:
            return ir.Constant(query.type, value)

        if keys.format is None:
            of_query = simd.load_pairs_of(builder, query, keys.size)
        else:
            of_query = [
                simd.from_bf16(builder, builder.add(query, number(2 * LANES * i)))
                for i in range(keys.size // LANES)
            ]

        def product(address: Any) -> Any:
            """With one key, to be added up."""
            total = ir.Constant(F32.of_llvm, None)
            if keys.format is None:
                pairs = simd.load_pairs_of(builder, address, keys.size)
                for a, b in zip(of_query, pairs, strict=True):
                    total = simd.dot_bf16(context, builder, total, a, b)
                return total
            for i, vector in enumerate(of_query):
                numbers = keys.numbers(builder, address, i)
                total = simd.multiply_add(builder, vector, numbers, total)
            return keys.scaled(builder, total, address)

        def products(key: int, step: int) -> Any:
            """With every `step`-th key from this one on; these have neighbouring lanes, again and
            again, and the sum of each is still to be made of lanes `LANES // step` apart."""
            if step == LANES:
                _ask(builder, ahead, builder.mul(ahead_stride, number(key)), num_lines)
                return product(builder.add(first_key, builder.mul(stride, number(key))))
            a, b = products(key, 2 * step), products(key + step, 2 * step)
            first = [
                start + lane
                for start in range(0, LANES, 2 * step)
                for lane in (*range(step), *range(LANES, LANES + step))
            ]
            halves = (ir.Constant(I32.of_llvm, [x + up for x in first]) for up in (0, step))
            return builder.fadd(*(builder.shuffle_vector(a, b, half) for half in halves))

        return products(0, 1)

    @intrinsic
    def scores(
        typing_context: Any, query: Any, keys: Any, stride: Any, ahead: Any, ahead_stride: Any
    ) -> Any:
        return F32(*[types.int64] * 5), generate

    return scores


def _add_values(values: _Entries, num_heads: int, num_vectors: int, num_lines: int) -> Any:
    """`(row, column, values, stride, first, last, ahead, ahead_stride)`: add weighted values of the
    keys from the `first` to the `last`, `stride` bytes apart, to `num_vectors` of the sums in each
    of `num_heads` rows, from a column on. Meanwhile lines are asked for as in `_scores`.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first_row, column, of_values, stride, first, last, ahead, ahead_stride = arguments
        of_int = first_row.type

        def number(value: int) -> Any:
            return ir.Constant(of_int, value)

        places, before = [], []
        for head in range(num_heads):
            row = builder.add(first_row, number(4 * head * _row_size(values.size)))
            shrink = simd.load(builder, row, number(values.size + 2 * LANES), F32.of_llvm, 4)
            for vector in range(num_vectors):
                index = builder.add(column, number(LANES * vector))
                places.append((row, index))
                old = simd.load(builder, row, index, F32.of_llvm, 4)
                before.append(builder.fmul(old, shrink))
        weights = builder.add(first_row, number(4 * (values.size + 3 * LANES)))

        entry, body = builder.block, builder.append_basic_block("keys")
        builder.branch(body)
        builder.position_at_end(body)
        key = builder.phi(of_int)
        key.add_incoming(first, entry)
        sums = [builder.phi(F32.of_llvm) for _ in before]
        offset = builder.mul(key, stride)
        _ask(builder, ahead, builder.mul(key, ahead_stride), num_lines)
        of_key = builder.add(of_values, offset)
        of_column = builder.add(of_key, builder.mul(column, number(values.element)))
        numbers = [values.numbers(builder, of_column, i) for i in range(num_vectors)]
        of_weight = builder.add(weights, builder.mul(key, number(4)))
        after: list[Any] = []
        for head in range(num_heads):
            place = builder.add(of_weight, number(4 * head * _row_size(values.size)))
            weight = simd.broadcast(builder, place, F32.of_llvm)
            weight = values.scaled(builder, weight, of_key)
            for vector in numbers:
                after.append(simd.multiply_add(builder, weight, vector, sums[len(after)]))
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

    @intrinsic
    def add_values(
        typing_context: Any,
        row: Any,
        column: Any,
        values: Any,
        stride: Any,
        first: Any,
        last: Any,
        ahead: Any,
        ahead_stride: Any,
    ) -> Any:
        return types.void(*[types.int64] * 8), generate

    return add_values
