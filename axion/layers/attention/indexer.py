"""Which tokens each token attends to, where a small attention beside the layer's own decides it."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from axion.layers.attention.step_groups import MAX_SCORES, Chunk, attention_groups
from axion.layers.context import ForwardContext, KVCache


def choose_tokens(
    q: Tensor,
    k: Tensor | None,
    weights: Tensor,
    cache: KVCache,
    context: ForwardContext,
    *,
    num_chosen: int,
) -> Tensor | None:
    """Store the step's index keys, then find for each token those of its sequence that score best
    (DeepSeek sparse attention, arXiv:2512.02556).

    Where the cache has one key for several tokens, its entries are scored and chosen in their
    place; a token sees those whose last token is not behind it. A score is the weighted sum over
    heads of `relu(q @ k)`, in float32.

    Args:
        q: `[num_tokens, num_heads, head_dim]`.
        k: `[num_tokens, head_dim]`, one for all heads; None: they are stored.
        weights: `[num_tokens, num_heads]`, float32.
        cache: of the index keys: one head of them, without values.
        num_chosen: so many tokens at most.

    Returns:
        Positions in each token's sequence, or of entries, `[num_tokens, num_chosen]` int64, as
        `paged_attention` takes them; None where no sequence has more than are chosen, so that all
        are.
    """
    keys, stride = cache.keys, cache.stride
    if k is not None:
        keys.store(context.slot_mapping[cache.group], k[:, None])
    if max(context.context_lens_list) // stride <= num_chosen:
        return None
    max_scores = MAX_SCORES // q.shape[1]
    build = partial(attention_groups, kv_group=cache.group, max_scores=max_scores, stride=stride)
    groups = context.once((choose_tokens, cache.group, max_scores, stride), build)
    chosen = q.new_full((len(q), num_chosen), -1, dtype=torch.int64)
    for group in groups:
        rows = slice(None) if group.rows is None else group.rows
        if isinstance(group, Chunk):  # all rows see the same keys
            of_seq = keys.gather(group.slots)[:, 0]
            mask = group.mask
        else:
            of_seq, mask = keys.gather(group.slots)[:, :, 0], group.mask[:, 0, 0]
        scores = torch.relu(q[rows].float() @ of_seq.float().transpose(-1, -2))
        scores = (weights[rows, None] @ scores).squeeze(1)
        if mask is None:
            mask = scores.new_full(scores.shape, float("-inf")).triu(1)
        best = (scores + mask).topk(min(num_chosen, scores.shape[-1])).indices
        chosen[rows, : best.shape[1]] = best
    return chosen


def choose_blocks(
    q: Tensor,
    k: Tensor,
    cache: KVCache,
    context: ForwardContext,
    *,
    block_size: int,
    num_chosen: int,
    num_local: int,
) -> Tensor | None:
    """Store the step's index keys, then find for each token and each head the blocks of its
    sequence that score best (MiniMax-M3).

    A block's score is the best `q @ k` of its tokens, in float32.

    Args:
        q: `[num_tokens, num_heads, head_dim]`.
        k: `[num_tokens, head_dim]`, one for all heads.
        cache: of the index keys: one head of them, without values.
        block_size: tokens of a block, which have nothing to do with those of the cache.
        num_chosen: so many blocks at most.
        num_local: blocks that are chosen in any case: the token's own, and those before it.

    Returns:
        Positions in each token's sequence, `[num_tokens, num_heads, num_chosen * block_size]`
        int64, as `paged_attention` takes them; None where no sequence has more than are chosen, so
        that all are.
    """
    keys, num_heads = cache.keys, q.shape[1]
    keys.store(context.slot_mapping[cache.group], k[:, None])
    if max(context.context_lens_list) <= num_chosen * block_size:
        return None
    max_scores = MAX_SCORES // num_heads
    build = partial(attention_groups, kv_group=cache.group, max_scores=max_scores)
    groups = context.once((choose_tokens, cache.group, max_scores, 1), build)
    local = torch.arange(num_local, device=q.device)
    chosen = q.new_full((len(q), num_heads, num_chosen), -1, dtype=torch.int64)
    for group in groups:
        rows = slice(None) if group.rows is None else group.rows
        if isinstance(group, Chunk):  # all rows see the same keys
            of_seq = keys.gather(group.slots)[:, 0]
            mask = group.mask
        else:
            of_seq, mask = keys.gather(group.slots)[:, :, 0], group.mask[:, 0, 0]
        scores = q[rows].float() @ of_seq.float().transpose(-1, -2)
        if mask is None:
            mask = scores.new_full((len(scores), scores.shape[-1]), float("-inf")).triu(1)
        scores = scores + mask[:, None]
        scores = F.pad(scores, (0, -scores.shape[-1] % block_size), value=float("-inf"))
        scores = scores.unflatten(-1, (-1, block_size)).amax(-1)
        own = (context.positions[rows, None] // block_size - local).clamp(min=0)
        scores.scatter_(-1, own[:, None].expand(-1, num_heads, -1), float("inf"))
        best = scores.topk(min(num_chosen, scores.shape[-1])).indices
        chosen[rows, :, : best.shape[-1]] = best
    tokens = chosen[..., None] * block_size + torch.arange(block_size, device=q.device)
    return tokens.masked_fill_(chosen[..., None] < 0, -1).flatten(-2)
