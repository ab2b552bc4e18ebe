"""Which tokens each token attends to, where a small attention beside the layer's own decides it
(DeepSeek sparse attention, arXiv:2512.02556)."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from axion.layers.attention.reference import MAX_SCORES, Chunk, attention_groups
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
    """Store the step's index keys, then find for each token those of its sequence that score best.

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
