"""Attention of chunks of prompts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba import float32

from axion.layers.cpu_kernels import LANES
from axion.layers.cpu_kernels.chunk_attention import KEYS, STRIP_ROWS
from axion.layers.cpu_kernels.compiled import simd
from axion.layers.cpu_kernels.compiled.tiles import add_products, gather_columns, scatter_columns
from axion.layers.cpu_kernels.compiled.threads import thread

_VECTORS = STRIP_ROWS // LANES
_TILE = 4  # rows of products that are summed up at once: with four vectors, half of the registers
_ROW_BYTES = 4 * STRIP_ROWS
_LOG2_E = 1.4426950408889634
_LOWEST = -1e30  # below every score, so that the difference of two such is a number
_HIDDEN = float("-inf")


@numba.njit(error_model="numpy")
def _exp2(x: Any) -> Any:
    """2 to the power of each lane, to 4e-5 of it, where bfloat16 has 2e-3; below -126 exactly 0.
    NaN stays NaN."""
    lowest = simd.spread(float32(-126.0))
    above = simd.maximum(lowest, x)
    whole = simd.nearest(above)
    rest = above - whole  # within a half
    power = simd.spread(float32(0.0096181291))
    power = simd.fma(power, rest, simd.spread(float32(0.0555041087)))
    power = simd.fma(power, rest, simd.spread(float32(0.2402265070)))
    power = simd.fma(power, rest, simd.spread(float32(0.6931471806)))
    power = simd.fma(power, rest, simd.spread(float32(1.0)))
    power = simd.times_power(power, whole)
    return simd.where_less(x, lowest, simd.spread(float32(0.0)), power)


def _block_packer(head_dim: int, v_dim: int) -> Any:
    @numba.njit(error_model="numpy")
    def pack_block(
        keys: int,
        values: int,
        k_cache: int,
        k_stride: int,
        v_cache: int,
        v_stride: int,
        table: int,
        block_size: int,
        start: int,
        count: int,
        first: int,
        last: int,
    ) -> None:
        """A head's keys from `start` on as they are, and its values two by two, the numbers of both
        by turns. In place of those before `first` and behind `last` these are repeated."""
        for i in range(0, count, 2):
            token = min(max(start + i, first), last)
            one = simd.load_int(table, token // block_size) * block_size + token % block_size
            token = min(max(start + i + 1, first), last)
            other = simd.load_int(table, token // block_size) * block_size + token % block_size
            simd.copy(keys + 2 * i * head_dim, k_cache + 2 * one * k_stride, 2 * head_dim)
            simd.copy(keys + 2 * (i + 1) * head_dim, k_cache + 2 * other * k_stride, 2 * head_dim)
            one, other = v_cache + 2 * one * v_stride, v_cache + 2 * other * v_stride
            for j in range(0, v_dim, LANES):
                simd.store_pairs(
                    values + 2 * i * v_dim, 2 * j, simd.load_bf16(one, j), simd.load_bf16(other, j)
                )

    return pack_block


@numba.njit(error_model="numpy")
def _change_scores(
    scores: int,
    start: int,
    count: int,
    positions: int,
    firsts: int,
    slopes: int,
    scale: float,
    softcap: float,
    is_masked: bool,
) -> None:
    """Cap the scores of keys from `start` on, let them lose with distance, and hide some keys.

    Args:
        slopes: 0: none.
        scale: of scores, if they are capped or lose.
    """
    for lane in range(0, STRIP_ROWS, LANES):
        column = scores + 4 * lane
        position, first = simd.load_f32(positions, lane), simd.load_f32(firsts, lane)
        for i in range(count):
            x = simd.load_f32(column, STRIP_ROWS * i)
            key = simd.spread(float32(start + i))
            if softcap > 0:  # tanh, by the one function that there is
                x = x * simd.spread(float32(scale * 2 * _LOG2_E / softcap))
                x = _exp2(simd.minimum(simd.spread(float32(126.0)), x))
                x = simd.spread(float32(2.0)) / (x + simd.spread(float32(1.0)))
                x = (simd.spread(float32(1.0)) - x) * simd.spread(float32(softcap))
            elif slopes != 0:
                x = x * simd.spread(float32(scale))
            if slopes != 0:
                x = simd.fma(simd.load_f32(slopes, lane), key - position, x)
            if is_masked:
                x = simd.where_less(position, key, simd.spread(float32(_HIDDEN)), x)
                x = simd.where_less(key, first, simd.spread(float32(_HIDDEN)), x)
            simd.store_f32(column, STRIP_ROWS * i, x)


@numba.njit(error_model="numpy")
def _weigh(
    scores: int, count: int, highest_at: int, totals: int, shrinks: int, factor: float
) -> None:
    """Make weights of scores, in pairs of bfloat16, in the place of every other one.

    Args:
        factor: makes powers of 2 of scores.
    """
    to_power = simd.spread(float32(factor))
    for lane in range(0, STRIP_ROWS, LANES):
        column = scores + 4 * lane
        before = simd.load_f32(highest_at, lane)
        highest = simd.spread(float32(_HIDDEN))
        for i in range(count):
            highest = simd.maximum(simd.load_f32(column, STRIP_ROWS * i), highest)
        highest = simd.maximum(highest * to_power, before)
        shrink = _exp2(before - highest)
        less = simd.spread(float32(0.0)) - highest
        total = simd.load_f32(totals, lane) * shrink
        for i in range(0, count, 2):
            one = simd.load_f32(column, STRIP_ROWS * i)
            other = simd.load_f32(column, STRIP_ROWS * (i + 1))
            one, other = (
                _exp2(simd.fma(one, to_power, less)),
                _exp2(simd.fma(other, to_power, less)),
            )
            total = total + (one + other)
            # In the place of half a row that was read before, or just now.
            simd.store_pairs(column, STRIP_ROWS * i, one, other)
        simd.store_f32(highest_at, lane, highest)
        simd.store_f32(totals, lane, total)
        simd.store_f32(shrinks, lane, shrink)


def attend(head_dim: int, v_dim: int, group: int) -> Callable[[Any], None]:
    """For `chunk_attention`."""
    pack_block = _block_packer(head_dim, v_dim)

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
            tables,
            table_stride,
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
        queries = scratch + thread() * scratch_bytes
        sums = queries + 2 * head_dim * max_rows
        scores = sums + 4 * v_dim * max_rows
        keys = scores + 4 * KEYS * STRIP_ROWS
        values = keys + 2 * head_dim * KEYS
        sources = values + 2 * v_dim * KEYS
        targets = sources + 8 * max_rows
        positions = targets + 8 * max_rows
        firsts = positions + 4 * max_rows
        highest = firsts + 4 * max_rows
        totals = highest + 4 * max_rows
        shrinks = totals + 4 * max_rows
        lane_slopes = 0 if slopes == 0 else shrinks + 4 * max_rows

        changes = softcap > 0 or slopes != 0
        factor = _LOG2_E if changes else scale * _LOG2_E
        while True:
            unit = simd.next_int(next_unit)
            if unit >= num_tiles * num_kv_heads:
                break
            tile, kv_head = tiles + 32 * (unit // num_kv_heads), unit % num_kv_heads
            row, num_tokens = simd.load_int(tile, 0), simd.load_int(tile, 1)
            sequence, position = simd.load_int(tile, 2), simd.load_int(tile, 3)
            table = tables + 8 * sequence * table_stride
            num_strips = (num_tokens * group + STRIP_ROWS - 1) // STRIP_ROWS

            for i in range(num_strips * STRIP_ROWS):  # behind the last they repeat it
                token = min(i // group, num_tokens - 1)
                head = kv_head * group + i % group
                at = position + token
                first = 0
                if window > 0:
                    first = max(0, at + 1 - window)
                elif chunk > 0:
                    first = at // chunk * chunk
                simd.store_int(sources, i, q + 2 * ((row + token) * q_stride + head * head_dim))
                of_token = (row + token) * num_kv_heads * group
                simd.store_int(targets, i, out + 2 * (of_token + head) * v_dim)
                simd.store_float(positions, i, float32(at))
                simd.store_float(firsts, i, float32(first))
                if slopes != 0:
                    simd.store_float(lane_slopes, i, simd.load_float(slopes, head))
            for i in range(0, num_strips * STRIP_ROWS, LANES):
                simd.store_f32(highest, i, simd.spread(float32(_LOWEST)))
                simd.store_f32(totals, i, simd.spread(float32(0.0)))
                strip, lane = i // STRIP_ROWS * STRIP_ROWS, i % STRIP_ROWS
                of_strip = queries + 2 * head_dim * strip + 4 * lane
                for word in range(0, head_dim // 2, LANES):
                    gather_columns(
                        of_strip + _ROW_BYTES * word, _ROW_BYTES, sources + 8 * i, 4 * word
                    )
            for i in range(0, v_dim * num_strips * STRIP_ROWS, LANES):
                simd.store_f32(sums, i, simd.spread(float32(0.0)))

            visible = int(simd.load_float(firsts, 0))
            last = position + num_tokens - 1
            for start in range(visible // KEYS * KEYS, last + 1, KEYS):
                count = (min(KEYS, last + 1 - start) + _TILE - 1) // _TILE * _TILE
                pack_block(
                    keys,
                    values,
                    k_cache + 2 * kv_head * head_dim,
                    k_stride,
                    v_cache + 2 * kv_head * v_dim,
                    v_stride,
                    table,
                    block_size,
                    start,
                    count,
                    visible,
                    last,
                )
                for strip in range(0, num_strips * STRIP_ROWS, STRIP_ROWS):
                    # Of its first and its last row.
                    low = int(simd.load_float(positions, strip))
                    high = int(simd.load_float(positions, strip + STRIP_ROWS - 1))
                    first = int(simd.load_float(firsts, strip + STRIP_ROWS - 1))
                    num_keys = (min(KEYS, high + 1 - start) + _TILE - 1) // _TILE * _TILE
                    if num_keys <= 0:
                        continue
                    for i in range(0, num_keys, _TILE):
                        add_products(
                            _TILE,
                            _VECTORS,
                            0,
                            scores + _ROW_BYTES * i,
                            keys + 2 * head_dim * i,
                            2 * head_dim,
                            4,
                            queries + 2 * head_dim * strip,
                            head_dim // 2,
                        )
                    is_masked = start + num_keys > low + 1 or start < first
                    if is_masked or changes:
                        _change_scores(
                            scores,
                            start,
                            num_keys,
                            positions + 4 * strip,
                            firsts + 4 * strip,
                            0 if slopes == 0 else lane_slopes + 4 * strip,
                            scale,
                            softcap,
                            is_masked,
                        )
                    of_strip = shrinks + 4 * strip
                    _weigh(
                        scores, num_keys, highest + 4 * strip, totals + 4 * strip, of_strip, factor
                    )
                    for i in range(0, v_dim, _TILE):
                        add_products(
                            _TILE,
                            _VECTORS,
                            of_strip,
                            sums + 4 * v_dim * strip + _ROW_BYTES * i,
                            values + 4 * i,
                            4,
                            4 * v_dim,
                            scores,
                            num_keys // 2,
                        )

            for i in range(0, num_strips * STRIP_ROWS, LANES):
                total = simd.load_f32(totals, i)
                if sinks != 0:
                    for j in range(i, i + LANES):
                        head = kv_head * group + j % group
                        simd.store_float(shrinks, j, simd.load_float(sinks, head))
                    sink = simd.load_f32(shrinks, i) * simd.spread(float32(_LOG2_E))
                    sink = simd.minimum(
                        simd.spread(float32(126.0)), sink - simd.load_f32(highest, i)
                    )
                    total = total + _exp2(sink)
                simd.store_f32(totals, i, simd.spread(float32(1.0)) / total)
                strip, lane = i // STRIP_ROWS * STRIP_ROWS, i % STRIP_ROWS
                of_strip = sums + 4 * v_dim * strip + 4 * lane
                for j in range(0, v_dim, LANES):
                    scatter_columns(
                        targets + 8 * i, 2 * j, of_strip + _ROW_BYTES * j, _ROW_BYTES, totals + 4 * i
                    )

    return compute
