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

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from axion.layers.attention.options import AttentionOptions
from axion.layers.context import ForwardContext, KVCache
from axion.layers.cpu_kernels.parallel import parallel

STRIP_ROWS = 64
"""Queries that are multiplied at once: a row is a token's head."""
KEYS = 128
"""Of a block."""

# Rows of a tile, for each of which keys are read anew: the most of which every thread still has so
# many heads of tiles to compute.
_TILE_ROWS = (1024, 256, STRIP_ROWS)
_UNITS = 4

_attend = parallel(".compiled.chunk_attention:attend", integers=22, floats=2)


class _Plan(NamedTuple):
    """What the kernel computes for a step's layers of one kind.

    Attributes:
        tiles: `[num_tiles, 4]` int64. Of each: its first token's row in the batch, how many tokens
            it has, their sequence, and the first one's position. Those with most keys come first.
        max_rows: of a tile.
        block_tables: `[num_seqs, max_blocks]` int64.
        scratch: bytes, a row for each thread; see `compiled.chunk_attention`.
        next_unit: `[1]` int64. Units are heads of tiles, and threads take one after the other.
    """

    tiles: Tensor
    max_rows: int
    block_tables: Tensor
    scratch: Tensor
    next_unit: Tensor


def attend_chunks(
    q: Tensor,
    cache: KVCache,
    context: ForwardContext,
    options: AttentionOptions,
    out: Tensor,
    *,
    longer_than: int,
) -> None:
    """Attend to what is stored, of what `attention.supports` allows, in bfloat16.

    Args:
        q: `[num_tokens, num_heads, head_dim]`, each token's numbers side by side.
        out: `[num_tokens, num_heads, v_head_dim]`, contiguous; the rows of sequences with more than
            `longer_than` new tokens are written.
    """
    _, num_heads, head_dim = q.shape
    _, block_size, num_kv_heads, v_dim = cache.v.shape
    scale, window, chunk, softcap, sinks, slopes, _, _ = options
    plan = context.once(
        (_plan, cache.group, num_heads, num_kv_heads, head_dim, v_dim),
        partial(
            _plan,
            kv_group=cache.group,
            heads=(num_heads, num_kv_heads),
            head_dims=(head_dim, v_dim),
            longer_than=longer_than,
        ),
    )
    sinks, slopes = (None if x is None else x.float() for x in (sinks, slopes))
    plan.next_unit.zero_()
    _attend(head_dim, v_dim, num_heads // num_kv_heads)(
        out.data_ptr(),
        q.data_ptr(),
        q.stride(0),
        num_kv_heads,
        cache.k.data_ptr(),
        cache.k.stride(1),
        cache.v.data_ptr(),
        cache.v.stride(1),
        cache.v.stride(2),  # of values in their keys as long as these
        plan.block_tables.data_ptr(),
        plan.block_tables.shape[1],
        block_size,
        plan.tiles.data_ptr(),
        len(plan.tiles),
        plan.max_rows,
        plan.next_unit.data_ptr(),
        window or 0,
        chunk or 0,
        0 if sinks is None else sinks.data_ptr(),
        0 if slopes is None else slopes.data_ptr(),
        plan.scratch.data_ptr(),
        plan.scratch.stride(0),
        scale / (softcap or 1),
        softcap or 0,
    )


def _plan(
    context: ForwardContext,
    *,
    kv_group: int,
    heads: tuple[int, int],
    head_dims: tuple[int, int],
    longer_than: int,
) -> _Plan:
    (num_heads, num_kv_heads), (head_dim, v_dim) = heads, head_dims
    group, num_threads = num_heads // num_kv_heads, torch.get_num_threads()
    for max_tokens in (max(1, num_rows // group) for num_rows in _TILE_ROWS):
        tiles = list(_tiles(context, max_tokens, longer_than))
        if len(tiles) * num_kv_heads >= _UNITS * num_threads:
            break
    tiles.sort(key=lambda tile: -tile[-1])
    max_rows = -(-max_tokens * group // STRIP_ROWS) * STRIP_ROWS
    num_bytes = KEYS * (2 * head_dim + 2 * v_dim + 4 * STRIP_ROWS)
    num_bytes += max_rows * (2 * head_dim + 4 * v_dim + 2 * 8 + 7 * 4)
    return _Plan(
        torch.tensor(tiles, dtype=torch.int64),
        max_rows,
        context.block_tables[kv_group].long().contiguous(),
        torch.empty((num_threads, num_bytes), dtype=torch.uint8),
        torch.zeros(1, dtype=torch.int64),
    )


def _tiles(
    context: ForwardContext, max_tokens: int, longer_than: int
) -> Iterator[tuple[int, int, int, int]]:
    row = 0
    for seq, query_len in enumerate(context.query_lens):
        if query_len > longer_than:
            first = context.context_lens_list[seq] - query_len
            for start in range(0, query_len, max_tokens):
                num_tokens = min(max_tokens, query_len - start)
                yield row + start, num_tokens, seq, first + start
        row += query_len
