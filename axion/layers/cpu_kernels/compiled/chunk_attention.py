"""Attention of chunks of prompts."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

from numba import float32, njit

from axion.layers.cpu_kernels.chunk_attention import KEYS, STRIP_ROWS
from axion.layers.cpu_kernels.compiled import simd
from axion.layers.cpu_kernels.compiled.simd import LANES
from axion.layers.cpu_kernels.compiled.threads import thread
from axion.layers.cpu_kernels.compiled.tiles import add_products, gather_columns, scatter_columns

_VECTORS, _HALF = STRIP_ROWS // LANES, LANES // 2
_SUMS = 4  # rows of sums in registers: with four vectors of columns, half of the registers
_ROW_BYTES = 4 * STRIP_ROWS
_TILE_BYTES = 4 * 8
_LOG2_E = 1.4426950408889634
_LOWEST = -1e30  # below every score, and the difference of two such is a number


def attend(head_dim: int, v_dim: int, group: int) -> Callable[[Any], None]:
    """For `attend_chunks`, with `group` heads of queries to each of keys.

    The rows of a tile are its tokens' heads, as many as belong to one head of keys; strips of them
    are transposed, and their last rows may repeat the tile's last token.
    """
    num_words = head_dim // 2

    @njit(error_model="numpy")
    def load_rows(
        num_rows: int, queries: int, sources: int, sums: int, highests: int, totals: int
    ) -> None:
        """Transpose the queries at `sources`, and begin their sums."""
        for row in range(0, num_rows, LANES):
            strip, lane = row // STRIP_ROWS * STRIP_ROWS, row % STRIP_ROWS
            out, of_rows = queries + 4 * num_words * strip + 4 * lane, sources + 8 * row
            for word in range(0, num_words - LANES + 1, LANES):
                gather_columns(LANES, out + _ROW_BYTES * word, _ROW_BYTES, of_rows, 4 * word)
            if num_words % LANES == _HALF:
                word = num_words - _HALF
                gather_columns(_HALF, out + _ROW_BYTES * word, _ROW_BYTES, of_rows, 4 * word)
            simd.store_f32(highests, row, simd.spread(float32(_LOWEST)))
            simd.store_f32(totals, row, simd.spread(float32(0)))
        for i in range(0, num_rows * v_dim, LANES):
            simd.store_f32(sums, i, simd.spread(float32(0)))

    @njit(error_model="numpy")
    def pack_block(
        keys: int,
        values: int,
        k_cache: int,
        k_stride: int,
        v_cache: int,
        v_stride: int,
        block_table: int,
        block_size: int,
        start: int,
        count: int,
        first: int,
        last: int,
    ) -> None:
        """A head's keys from `start` on as they are, and its values two by two, the numbers of both
        by turns. In place of tokens before `first` and behind `last` these are repeated."""
        for i in range(0, count, 2):
            token = min(max(start + i, first), last)
            one = simd.load_int(block_table, token // block_size) * block_size
            one += token % block_size
            token = min(max(start + i + 1, first), last)
            other = simd.load_int(block_table, token // block_size) * block_size
            other += token % block_size
            of_pair = keys + 2 * i * head_dim
            simd.copy(of_pair, k_cache + 2 * one * k_stride, 2 * head_dim)
            simd.copy(of_pair + 2 * head_dim, k_cache + 2 * other * k_stride, 2 * head_dim)
            of_pair = values + 2 * i * v_dim
            for j in range(0, v_dim, LANES):
                a = simd.load_bf16(v_cache + 2 * one * v_stride, j)
                b = simd.load_bf16(v_cache + 2 * other * v_stride, j)
                simd.store_pairs(of_pair, 2 * j, a, b)

    @njit(error_model="numpy")
    def write_rows(
        num_rows: int, targets: int, sums: int, highests: int, totals: int, sinks: int
    ) -> None:
        """Divide by the sums of weights.

        Args:
            sinks: of each row; 0: none.
        """
        for row in range(0, num_rows, LANES):
            total = simd.load_f32(totals, row)
            if sinks != 0:
                ln_2 = simd.spread(float32(1 / _LOG2_E))
                sink = simd.load_f32(sinks, row) - simd.load_f32(highests, row) * ln_2
                total = total + simd.exp(sink)
            simd.store_f32(totals, row, simd.spread(float32(1)) / total)
            strip, lane = row // STRIP_ROWS * STRIP_ROWS, row % STRIP_ROWS
            of_strip = sums + 4 * v_dim * strip + 4 * lane
            for i in range(0, v_dim, LANES):
                place = of_strip + _ROW_BYTES * i
                scatter_columns(targets + 8 * row, 2 * i, place, _ROW_BYTES, totals + 4 * row)

    def compute(arguments: Any) -> None:
        (
            out,
            q,
            q_stride,
            num_kv_heads,
            k_cache,
            k_stride,
            v_cache,
            v_stride,
            v_head_stride,
            block_tables,
            max_blocks,
            block_size,
            tiles,
            num_tiles,
            max_rows,
            next_unit,
            window,
            chunk,
            sinks,
            slopes,
            scratch,
            scratch_bytes,
            scale,
            softcap,
        ) = arguments[0]
        keys = scratch + thread() * scratch_bytes
        values = keys + 2 * head_dim * KEYS
        scores = values + 2 * v_dim * KEYS
        queries = scores + _ROW_BYTES * KEYS
        sums = queries + 2 * head_dim * max_rows
        sources = sums + 4 * v_dim * max_rows
        targets = sources + 8 * max_rows
        positions = targets + 8 * max_rows
        firsts = positions + 4 * max_rows
        highests = firsts + 4 * max_rows
        totals = highests + 4 * max_rows
        shrinks = totals + 4 * max_rows
        row_slopes = shrinks + 4 * max_rows
        row_sinks = row_slopes + 4 * max_rows

        is_changed = softcap > 0 or slopes != 0
        factor = _LOG2_E if is_changed else scale * _LOG2_E
        while True:
            unit = simd.next_int(next_unit)
            if unit >= num_tiles * num_kv_heads:
                break
            kv_head = unit % num_kv_heads
            tile = tiles + _TILE_BYTES * (unit // num_kv_heads)
            token_row, num_tokens = simd.load_int(tile, 0), simd.load_int(tile, 1)
            sequence, position = simd.load_int(tile, 2), simd.load_int(tile, 3)
            block_table = block_tables + 8 * sequence * max_blocks
            last = position + num_tokens - 1

            num_rows = (num_tokens * group + STRIP_ROWS - 1) // STRIP_ROWS * STRIP_ROWS
            for row in range(num_rows):
                token = min(row // group, num_tokens - 1)
                head = kv_head * group + row % group
                of_head = (token_row + token) * num_kv_heads * group + head
                first = 0
                if window > 0:
                    first = max(0, position + token + 1 - window)
                elif chunk > 0:
                    first = (position + token) // chunk * chunk
                of_token = (token_row + token) * q_stride
                simd.store_int(sources, row, q + 2 * (of_token + head * head_dim))
                simd.store_int(targets, row, out + 2 * of_head * v_dim)
                simd.store_float(positions, row, float32(position + token))
                simd.store_float(firsts, row, float32(first))
                if slopes != 0:
                    simd.store_float(row_slopes, row, simd.load_float(slopes, head))
                if sinks != 0:
                    simd.store_float(row_sinks, row, simd.load_float(sinks, head))
            load_rows(num_rows, queries, sources, sums, highests, totals)

            visible = int(simd.load_float(firsts, 0))
            for start in range(visible // KEYS * KEYS, last + 1, KEYS):
                pack_block(
                    keys,
                    values,
                    k_cache + 2 * kv_head * head_dim,
                    k_stride,
                    v_cache + 2 * kv_head * v_head_stride,
                    v_stride,
                    block_table,
                    block_size,
                    start,
                    _whole_sums(min(KEYS, last + 1 - start)),
                    visible,
                    last,
                )
                for strip in range(0, num_rows, STRIP_ROWS):
                    end = strip + STRIP_ROWS - 1
                    behind = int(simd.load_float(positions, end)) + 1
                    count = _whole_sums(min(KEYS, behind - start))
                    if count <= 0 or start + count <= int(simd.load_float(firsts, strip)):
                        continue
                    for i in range(0, count, _SUMS):
                        add_products(
                            _SUMS,
                            _VECTORS,
                            0,
                            scores + _ROW_BYTES * i,
                            keys + 2 * head_dim * i,
                            2 * head_dim,
                            4,
                            queries + 4 * num_words * strip,
                            num_words,
                        )
                    is_masked = start < int(simd.load_float(firsts, end))
                    is_masked |= start + count > int(simd.load_float(positions, strip)) + 1
                    if is_changed or is_masked:
                        _change_scores(
                            scores,
                            start,
                            count,
                            positions + 4 * strip,
                            firsts + 4 * strip,
                            0 if slopes == 0 else row_slopes + 4 * strip,
                            scale if is_changed else 1.0,
                            softcap,
                        )
                    of_strip = shrinks + 4 * strip
                    _weigh(
                        scores, count, highests + 4 * strip, totals + 4 * strip, of_strip, factor
                    )
                    for i in range(0, v_dim, _SUMS):
                        add_products(
                            _SUMS,
                            _VECTORS,
                            of_strip,
                            sums + 4 * v_dim * strip + _ROW_BYTES * i,
                            values + 4 * i,
                            4,
                            4 * v_dim,
                            scores,
                            count // 2,
                        )
            sinks_at = 0 if sinks == 0 else row_sinks
            write_rows(num_rows, targets, sums, highests, totals, sinks_at)

    return compute


@njit
def _whole_sums(count: int) -> int:
    return (count + _SUMS - 1) // _SUMS * _SUMS


@njit(error_model="numpy")
def _change_scores(
    scores: int,
    start: int,
    count: int,
    positions: int,
    firsts: int,
    slopes: int,
    scale: float,
    softcap: float,
) -> None:
    """Of a strip and the keys from `start` on: scaled, capped, less with distance, and -inf where a
    key is behind the row's position, or before the first that it sees.

    Args:
        slopes: of each row; 0: none.
    """
    for lane in range(0, STRIP_ROWS, LANES):
        column = scores + 4 * lane
        position, first = simd.load_f32(positions, lane), simd.load_f32(firsts, lane)
        for i in range(count):
            x = simd.load_f32(column, STRIP_ROWS * i) * simd.spread(float32(scale))
            key = simd.spread(float32(start + i))
            if softcap > 0:
                x = simd.tanh(x) * simd.spread(float32(softcap))
            if slopes != 0:
                x = simd.fma(simd.load_f32(slopes, lane), key - position, x)
            x = simd.where_less(position, key, simd.spread(float32(-inf)), x)
            x = simd.where_less(key, first, simd.spread(float32(-inf)), x)
            simd.store_f32(column, STRIP_ROWS * i, x)


@njit(error_model="numpy")
def _weigh(
    scores: int, count: int, highests: int, totals: int, shrinks: int, factor: float
) -> None:
    """Make a strip's weights of its scores, in their place: pairs of bfloat16 of two keys each.

    Args:
        factor: makes exponents of 2 of scores.
    """
    to_exponent = simd.spread(float32(factor))
    for lane in range(0, STRIP_ROWS, LANES):
        column = scores + 4 * lane
        highest = simd.spread(float32(-inf))
        for i in range(count):
            highest = simd.maximum(simd.load_f32(column, STRIP_ROWS * i), highest)
        before = simd.load_f32(highests, lane)
        highest = simd.maximum(highest * to_exponent, before)
        shrink = _exp2(before - highest)
        total = simd.load_f32(totals, lane) * shrink
        less = simd.spread(float32(0)) - highest
        for i in range(0, count, 2):
            a = _exp2(simd.fma(simd.load_f32(column, STRIP_ROWS * i), to_exponent, less))
            b = _exp2(simd.fma(simd.load_f32(column, STRIP_ROWS * (i + 1)), to_exponent, less))
            total = total + (a + b)
            simd.store_pairs(column, STRIP_ROWS * i, a, b)
        simd.store_f32(highests, lane, highest)
        simd.store_f32(totals, lane, total)
        simd.store_f32(shrinks, lane, shrink)


@njit(error_model="numpy")
def _exp2(x: Any) -> Any:
    """2 to the power of each lane, at most 0, to 4e-5 of it where bfloat16 has 2e-3. Below -126
    exactly 0. NaN stays NaN."""
    lowest = simd.spread(float32(-126))
    limited = simd.maximum(lowest, x)
    exponent = simd.nearest(limited)
    rest = limited - exponent
    # Taylor's polynomial, within a half.
    power = simd.spread(float32(0.0096181291))
    power = simd.fma(power, rest, simd.spread(float32(0.0555041087)))
    power = simd.fma(power, rest, simd.spread(float32(0.2402265070)))
    power = simd.fma(power, rest, simd.spread(float32(0.6931471806)))
    power = simd.fma(power, rest, simd.spread(float32(1)))
    power = simd.times_power(power, exponent)
    return simd.where_less(x, lowest, simd.spread(float32(0)), power)
