"""Attention of sequences' several new tokens to the tokens before them, in the paged KV cache.

What it costs is arithmetic: two products, with keys and with values, and the softmax between them
(FlashAttention-2, arXiv:2307.08691). A tile of queries takes blocks of keys one after the other,
with a running softmax in float32, so that what is multiplied stays in the processor's caches and
what is added up in its registers, and keys that no query of a tile sees are not multiplied.

Queries lie in the lanes of vectors: a strip of the tile is transposed once. A word of a key, or of
two tokens' values, is spread over all lanes and multiplied with pairs of bfloat16, so keys are
used as they are, and sums and maxima of scores need no steps across lanes.

Blocks are counted from a sequence's first token, so a token's bits depend on its own sequence
alone, and not on how that was cut into chunks.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from axion.layers.attention.options import AttentionOptions
from axion.layers.context import ForwardContext, KVCache
from axion.layers.cpu_kernels import LANES
from axion.layers.cpu_kernels.parallel import parallel

STRIP_ROWS = 64
"""Queries that are multiplied at once: a row is a token's head."""
KEYS = 128
"""Of a block."""

# Of a tile, the most that gives all threads enough to do: keys are read anew for each tile.
_TILE_ROWS = (1024, 256, STRIP_ROWS)

_attend = parallel(".compiled.chunk_attention:attend", integers=21, floats=2)


class _Plan(NamedTuple):
    """What a step's layers with such heads compute.

    Attributes:
        tiles: `[num_tiles, 4]` int64, of each its first row in the batch, how many tokens it has,
            their sequence, and the first one's position. Those with most keys come first.
        tables: `[num_seqs, max_blocks]` int64.
        max_rows: of a tile.
        scratch: `[num_threads, num_bytes]`; of a thread: queries, sums and what there is for each
            row, scores, keys and values.
        next_unit: `[1]` int64, what is not begun of the tiles' heads.
    """

    tiles: Tensor
    max_rows: int
    tables: Tensor
    scratch: Tensor
    next_unit: Tensor


def supports(q: Tensor, cache: KVCache, options: AttentionOptions) -> bool:
    """Whether `attend_chunks` computes with such heads and numbers, and what the options ask."""
    return (
        options.chosen is None
        and options.compressed is None
        and cache.k.dtype == cache.v.dtype == q.dtype == torch.bfloat16
        and cache.stride == cache.num_pieces == 1
        and q.shape[-1] % (2 * LANES) == cache.v.shape[-1] % LANES == 0
        and q.shape[1] // cache.k.shape[2] <= STRIP_ROWS
    )


def attend_chunks(
    out: Tensor,
    q: Tensor,
    cache: KVCache,
    context: ForwardContext,
    options: AttentionOptions,
    *,
    min_query_len: int = 2,
) -> None:
    """Attend from tokens of sequences that have at least so many in the step.

    Args:
        out: `[num_tokens, num_heads, v_head_dim]`, contiguous; their rows are written.
        q: `[num_tokens, num_heads, head_dim]`.
        cache: has the step's keys and values.
    """
    _, num_heads, head_dim = q.shape
    _, block_size, num_kv_heads, v_dim = cache.v.shape
    group = num_heads // num_kv_heads
    plan = context.once(
        (_plan, cache.group, num_kv_heads, group, head_dim, v_dim),
        partial(
            _plan,
            kv_group=cache.group,
            num_kv_heads=num_kv_heads,
            group=group,
            head_dims=(head_dim, v_dim),
            min_query_len=min_query_len,
        ),
    )
    if not len(plan.tiles):
        return
    q = q if q.stride()[1:] == (head_dim, 1) else q.contiguous()
    softcap = options.softcap or 0.0
    sinks, slopes = (
        None if x is None else x.float() for x in (options.sinks, options.alibi_slopes)
    )
    plan.next_unit.zero_()
    _attend(head_dim, v_dim, group)(
        out.data_ptr(),
        q.data_ptr(),
        q.stride(0),
        num_kv_heads,
        cache.k.data_ptr(),
        cache.k.stride(1),
        cache.v.data_ptr(),
        cache.v.stride(1),
        plan.tables.data_ptr(),
        plan.tables.shape[1],
        block_size,
        plan.tiles.data_ptr(),
        len(plan.tiles),
        plan.max_rows,
        plan.next_unit.data_ptr(),
        options.window or 0,
        options.chunk or 0,
        0 if sinks is None else sinks.data_ptr(),
        0 if slopes is None else slopes.data_ptr(),
        plan.scratch.data_ptr(),
        plan.scratch.stride(0),
        options.scale,
        softcap,
    )


def _plan(
    context: ForwardContext,
    *,
    kv_group: int,
    num_kv_heads: int,
    group: int,
    head_dims: tuple[int, int],
    min_query_len: int,
) -> _Plan:
    num_threads = torch.get_num_threads()
    for max_rows in _TILE_ROWS:
        tiles = _tiles(context, max_rows // group, min_query_len)
        if len(tiles) * num_kv_heads >= 4 * num_threads:
            break
    tiles.sort(key=lambda tile: -tile[3])
    head_dim, v_dim = head_dims
    num_bytes = max_rows * (2 * head_dim + 4 * v_dim + 2 * 8 + 6 * 4)
    num_bytes += KEYS * (4 * STRIP_ROWS + 2 * head_dim + 2 * v_dim)
    return _Plan(
        torch.tensor(tiles, dtype=torch.int64).view(-1, 4),
        max_rows,
        context.block_tables[kv_group].long().contiguous(),
        torch.empty((num_threads, num_bytes), dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
    )


def _tiles(
    context: ForwardContext, max_tokens: int, min_query_len: int
) -> list[tuple[int, int, int, int]]:
    tiles: list[tuple[int, int, int, int]] = []
    row = 0
    for seq, query_len in enumerate(context.query_lens):
        if query_len >= min_query_len:
            position = context.context_lens_list[seq] - query_len
            for start in range(0, query_len, max_tokens):
                num_tokens = min(max_tokens, query_len - start)
                tiles.append((row + start, num_tokens, seq, position + start))
        row += query_len
    return tiles
