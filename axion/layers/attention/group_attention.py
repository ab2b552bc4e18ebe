"""Attention of one group of a step: torch's own, or products where these are faster or torch's own
does not compute what is asked."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers.attention.options import AttentionOptions
from axion.layers.attention.products import (
    attend_blocks,
    attend_rows,
    attend_written_out,
    products_are_faster,
)
from axion.layers.attention.step_groups import Chunk, Decode
from axion.layers.context import KVCache

# From so many keys of a head on, two products for all sequences are faster than torch's own
# attention.
_MIN_PRODUCTS = 256


class Caches(NamedTuple):
    """Where keys and values are read, of tokens and of compressed entries."""

    own: KVCache
    compressed: KVCache | None

    def has_heads_apart(self, group: Decode) -> bool:
        """Whether `by_head` gives what they see, which is not so of heads with slots of their own
        and of two caches."""
        is_gathered = isinstance(group.slots, Tensor) and group.slots.ndim == 2
        return is_gathered and group.compressed is None

    def by_head(self, group: Decode) -> tuple[Tensor, Tensor]:
        """`[batch, num_kv_heads, length, head_dim]` of each, contiguous."""
        keys, values = self.own.keys, self.own.values
        assert isinstance(group.slots, Tensor), "of a run nothing is gathered"
        head_slots = group.head_slots(keys.num_heads)
        k, v = (x.gather_heads(group.slots, head_slots) for x in (keys, values))
        heads = (len(group.slots), keys.num_heads)
        return k.unflatten(0, heads), v.unflatten(0, heads)

    def by_token(self, group: Decode | Chunk) -> tuple[Tensor, Tensor]:
        """`[..., length, num_kv_heads, head_dim]` of each, those of compressed entries last."""
        own = self.own.keys, self.own.values
        if isinstance(group.slots, Tensor) and group.slots.ndim == 3:
            k, v = (entries.gather_by_head(group.slots) for entries in own)
        else:
            k, v = (entries.gather(group.slots) for entries in own)
        if self.compressed is None or group.compressed is None:
            return k, v
        of_entries = self.compressed.keys, self.compressed.values
        more_k, more_v = (entries.gather(group.compressed) for entries in of_entries)
        return torch.cat((k, more_k), dim=-3), torch.cat((v, more_v), dim=-3)


def attend_decode(q: Tensor, caches: Caches, group: Decode, options: AttentionOptions) -> Tensor:
    """`[batch, num_heads, head_dim]` to `[batch, num_heads, v_head_dim]`."""
    # The heads that share a kv head become rows of one query: no copies of keys and values.
    q = q.unflatten(1, (caches.own.keys.num_heads, -1))
    are_faster = options.is_plain and products_are_faster(q.device, q.dtype)
    are_worth_it = q.shape[2] == 1 or len(q) * group.mask.shape[-1] >= _MIN_PRODUCTS
    if are_faster and are_worth_it and caches.has_heads_apart(group):
        return attend_rows(q, *caches.by_head(group), group.mask, options.scale)
    k, v = (x.transpose(1, 2) for x in caches.by_token(group))
    if are_faster and q.shape[2] == 1:
        # Products with a single row are slow in bfloat16: three times, measured with AVX-512.
        q, k, v, mask = (x.float() for x in (q, k, v, group.mask))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=options.scale)
        out = out.bfloat16()
    elif options.is_plain:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=group.mask, scale=options.scale)
    else:
        mask = group.mask[..., None, :]
        out = attend_written_out(q[..., None, :], k, v, mask, group.distances, options).squeeze(-2)
    return out.flatten(1, 2)


def attend_chunk(q: Tensor, caches: Caches, chunk: Chunk, options: AttentionOptions) -> Tensor:
    """`[query_len, num_heads, head_dim]` to `[query_len, num_heads, v_head_dim]`."""
    # kv heads as the batch, and the query heads of each as its heads: expand copies nothing.
    k, v = (x.transpose(0, 1) for x in caches.by_token(chunk))
    q = q.transpose(0, 1).unflatten(0, (k.shape[0], -1))
    if options.is_plain and chunk.compressed is None and products_are_faster(q.device, q.dtype):
        return attend_blocks(q, k, v, chunk.mask, options.scale)
    if options.is_plain:
        out = F.scaled_dot_product_attention(
            q,
            k[:, None].expand(-1, q.shape[1], -1, -1),
            v[:, None].expand(-1, q.shape[1], -1, -1),
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            scale=options.scale,
        )
    else:
        out = attend_written_out(q, k, v, chunk.mask, chunk.distances, options)
    return out.flatten(0, 1).transpose(0, 1)
