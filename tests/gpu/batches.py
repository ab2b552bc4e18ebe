"""A step over a paged KV cache that holds random keys and values."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from axion.layers.attention.options import AttentionOptions
from axion.layers.context import ForwardContext, KVCache


@dataclass
class Batch:
    """Inputs of attention, strided as they may be. NaN is wherever no sequence has a key, and where
    this step's go."""

    q: Tensor
    k: Tensor
    v: Tensor
    cache: KVCache
    context: ForwardContext

    @property
    def inputs(self) -> tuple[Any, ...]:
        """The arguments of attention before its options."""
        return self.q, self.k, self.v, self.cache, self.context

    def run(self, attention: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        """What attention returns, and the keys and values that the cache has then."""
        k_cache, v_cache = self.cache.k.clone(), self.cache.v.clone()
        if self.cache.v.data_ptr() == self.cache.k.data_ptr():
            v_cache = k_cache[..., : v_cache.shape[-1]]
        cache = KVCache(k_cache, v_cache, self.cache.group)
        options = {"scale": 0.3, **options}
        out = attention(self.q, self.k, self.v, cache, self.context, AttentionOptions(**options))
        return out, k_cache, v_cache


def make_batch(
    lengths: list[tuple[int, int]],
    *,
    device: torch.device,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    v_head_dim: int | None = None,
    values_in_keys: bool = False,
    block_size: int = 4,
    dtype: torch.dtype = torch.float32,
    max_blocks: int = 0,
) -> Batch:
    """A step.

    Args:
        lengths: of each sequence the tokens of this step and those before.
        max_blocks: width of the block tables at least.
    """
    v_head_dim = v_head_dim or head_dim
    generator = torch.Generator().manual_seed(1)
    query_lens = [n for n, _ in lengths]
    context_lens = [n + cached for n, cached in lengths]
    num_blocks = [-(-length // block_size) for length in context_lens]
    ids = iter(torch.randperm(sum(num_blocks), generator=generator).tolist())
    tables = torch.zeros(2, len(lengths), max(*num_blocks, max_blocks), dtype=torch.int64)
    positions, slots, cached_slots = [], [], []
    for seq, (n, cached) in enumerate(lengths):
        tables[1, seq, : num_blocks[seq]] = torch.tensor(
            list(itertools.islice(ids, num_blocks[seq]))
        )
        tokens = torch.arange(n + cached)
        slot = tables[1, seq, tokens // block_size] * block_size + tokens % block_size
        positions.append(tokens[cached:])
        slots.append(slot[cached:])
        cached_slots.append(slot[:cached])

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    key_size = num_kv_heads * head_dim
    value_size = 0 if values_in_keys else num_kv_heads * v_head_dim
    width = key_size + value_size + 3
    memory = torch.full((sum(num_blocks), block_size, width), torch.nan).to(dtype)
    before = torch.cat(cached_slots)
    memory.view(-1, width)[before, : width - 3] = random(len(before), width - 3)
    memory = memory.to(device)
    k_cache = memory[..., :key_size].unflatten(-1, (num_kv_heads, head_dim))
    if values_in_keys:
        v_cache = k_cache[..., :v_head_dim]
    else:
        v_cache = memory[..., key_size : width - 3].unflatten(-1, (num_kv_heads, v_head_dim))
    num_tokens = sum(query_lens)
    k = random(num_tokens, num_kv_heads, head_dim)
    v = k[..., :v_head_dim] if values_in_keys else random(num_tokens, num_kv_heads, v_head_dim)
    flat = torch.cat(positions)
    cache = KVCache(k_cache, v_cache, 1)
    context = ForwardContext(
        positions=flat.to(device),
        rope_lengths=(flat + 1).to(device),
        slot_mapping=torch.stack([torch.full_like(flat, -1), torch.cat(slots)], 1).to(device).T,
        block_tables=tables.to(device),
        context_lens=torch.tensor(context_lens, device=device),
        query_lens=query_lens,
        context_lens_list=context_lens,
        kv_caches=[cache],
        block_size=block_size,
    )
    # As the parts of one projection are.
    q = random(num_tokens, num_heads * head_dim + 5)[:, 5:].unflatten(-1, (num_heads, head_dim))
    return Batch(q.to(device), k.to(device), v.to(device), cache, context)
