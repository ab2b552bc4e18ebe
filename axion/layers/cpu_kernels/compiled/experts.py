"""For `experts`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import float32, njit

from axion.layers.cpu_kernels.compiled import simd
from axion.layers.cpu_kernels.compiled.simd import LANES
from axion.layers.cpu_kernels.compiled.threads import barrier, share, thread

_COLUMNS = 512  # of a token that a thread sums up at once
_TOKENS = 64  # that stay in the processor's second cache while all experts are scored


def score() -> Callable[[Any], None]:
    """Four experts' rows of the weight meet each of a token's numbers while it is in a register."""

    def compute(arguments: Any) -> None:
        x, weight, out, num_tokens, num_experts, size = arguments[0]
        start, end = share((num_experts + 3) // 4)
        for first_token in range(0, num_tokens, _TOKENS):
            for tile in range(start, end):
                first = 4 * tile
                rows = weight + 2 * size * first
                for token in range(first_token, min(first_token + _TOKENS, num_tokens)):
                    scores = _products(
                        x + 2 * size * token, rows, 2 * size, num_experts - 1 - first, size
                    )
                    for i in range(min(4, num_experts - first)):
                        simd.store_float(out, token * num_experts + first + i, scores[i])

    return compute


@njit
def _products(x: int, rows: int, row_bytes: int, last: int, size: int) -> tuple[float, ...]:
    """Of a token with four rows; behind the last, with it again."""
    b = rows + min(1, last) * row_bytes
    c = rows + min(2, last) * row_bytes
    d = rows + min(3, last) * row_bytes
    of_a = of_b = of_c = of_d = simd.spread(float32(0))
    for i in range(0, size, 2 * LANES):
        pairs = simd.load_pairs(x, i)
        of_a = simd.add_dot(of_a, pairs, simd.load_pairs(rows, i))
        of_b = simd.add_dot(of_b, pairs, simd.load_pairs(b, i))
        of_c = simd.add_dot(of_c, pairs, simd.load_pairs(c, i))
        of_d = simd.add_dot(of_d, pairs, simd.load_pairs(d, i))
    return simd.total(of_a), simd.total(of_b), simd.total(of_c), simd.total(of_d)


def choose() -> Callable[[Any], None]:
    """Vectors are of scores, and behind them of what is below all."""

    def compute(arguments: Any) -> None:
        (
            logits,
            bias,
            weights,
            indices,
            scratch,
            num_tokens,
            num_experts,
            top_k,
            is_sigmoid,
            is_normalized,
            eps,
            factor,
        ) = arguments[0]
        size = (num_experts + LANES - 1) // LANES * LANES
        one = simd.spread(float32(1))
        scores = scratch + 4 * 2 * size * thread()
        choice = scores + 4 * size
        start, end = share(num_tokens)
        for token in range(start, end):
            of_token = logits + 4 * token * num_experts
            for expert in range(num_experts):
                simd.store_float(choice, expert, simd.load_float(of_token, expert))
            for expert in range(num_experts, size):
                simd.store_float(choice, expert, float32(-float("inf")))
            highest = simd.spread(simd.load_float(choice, _largest(choice, size)))
            sum_of_all = simd.spread(float32(0))
            for i in range(0, size, LANES):
                score = simd.load_f32(choice, i)
                if is_sigmoid:
                    score = one / (one + simd.exp(simd.spread(float32(0)) - score))
                else:
                    score = simd.exp(score - highest)
                sum_of_all = sum_of_all + score
                simd.store_f32(scores, i, score)
            if is_sigmoid:
                for expert in range(num_experts):
                    score = simd.load_float(scores, expert) + simd.load_float(bias, expert)
                    simd.store_float(choice, expert, score)
            divisor = float32(0)
            for i in range(token * top_k, (token + 1) * top_k):
                expert = _largest(choice, size)
                simd.store_float(choice, expert, float32(-float("inf")))
                simd.store_int(indices, i, expert)
                score = simd.load_float(scores, expert)
                simd.store_float(weights, i, score)
                divisor += score
            if is_normalized:
                divisor += float32(eps)
            else:
                divisor = float32(1) if is_sigmoid else simd.total(sum_of_all)
            for i in range(token * top_k, (token + 1) * top_k):
                weight = simd.load_float(weights, i) / divisor * float32(factor)
                simd.store_float(weights, i, weight)

    return compute


@njit
def _largest(row: int, size: int) -> int:
    """The place of the first of the largest numbers; of none but NaN and minus infinity 0."""
    best, place = simd.spread(float32(-float("inf"))), simd.lanes()
    for i in range(0, size, LANES):
        value, here = simd.load_f32(row, i), simd.lanes() + simd.spread(float32(i))
        place = simd.where_less(best, value, here, place)
        best = simd.where_less(best, value, value, best)
    of_all = simd.spread(simd.largest(best))
    place = simd.where_less(best, of_all, simd.spread(float32(float("inf"))), place)
    return int(-simd.largest(simd.spread(float32(0)) - place))


def dispatch() -> Callable[[Any], None]:
    """Counted by the first thread, and copied by all."""

    def compute(arguments: Any) -> None:
        x, indices, out, experts, places, ends, num_tokens, top_k, num_experts, size = arguments[0]
        num_rows = num_tokens * top_k
        if thread() == 0:
            for expert in range(num_experts):
                simd.store_int32(ends, expert, 0)
            for row in range(num_rows):
                expert = simd.load_int(indices, row)
                simd.store_int32(ends, expert, simd.load_int32(ends, expert) + 1)
            end = 0
            for expert in range(num_experts):
                begin, end = end, end + simd.load_int32(ends, expert)
                simd.store_int32(ends, expert, begin)
            for row in range(num_rows):
                expert = simd.load_int(indices, row)
                place = simd.load_int32(ends, expert)
                simd.store_int(places, row, place)
                simd.store_int(experts, place, expert)
                simd.store_int32(ends, expert, place + 1)
        barrier()
        start, stop = share(num_rows)
        for row in range(start, stop):
            place = simd.load_int(places, row)
            simd.copy(out + 2 * size * place, x + 2 * size * (row // top_k), 2 * size)

    return compute


def combine() -> Callable[[Any], None]:
    def compute(arguments: Any) -> None:
        x, weights, places, out, num_tokens, top_k, size = arguments[0]
        num_parts = (size + _COLUMNS - 1) // _COLUMNS
        start, end = share(num_tokens * num_parts)
        for i in range(start, end):
            token, first = i // num_parts, i % num_parts * _COLUMNS
            for column in range(first, min(first + _COLUMNS, size), LANES):
                total = simd.spread(float32(0))
                for row in range(token * top_k, (token + 1) * top_k):
                    weight = simd.spread(simd.load_float(weights, row))
                    values = simd.load_bf16(x, simd.load_int(places, row) * size + column)
                    total = simd.fma(weight, values, total)
                simd.store_bf16(out, token * size + column, total)

    return compute
