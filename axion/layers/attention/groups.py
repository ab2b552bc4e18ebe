"""Groups of neighbouring tokens, which are chosen together, each by one entry of the KV cache.

What the entry of a group that is not complete will be made of is kept in a state, as a
convolution's inputs are: for models that have states in any case. So the KV cache holds nothing but
entries of whole groups.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from axion.layers.context import ForwardContext
from axion.layers.state import scan


def pool_groups(
    tokens: Tensor,
    pool: Callable[[Tensor], Tensor],
    state: Tensor,
    context: ForwardContext,
    *,
    size: int,
) -> Tensor:
    """Make the entries of the groups that the step completes.

    Args:
        tokens: what they are made of, `[num_tokens, width]`.
        pool: makes them, of groups `[..., size, width]` entries `[..., head_dim]`.
        state: `[num_slots, size - 1, width]`.

    Returns:
        `[num_tokens, head_dim]`: at the rows of groups' last tokens their entries, elsewhere zeros.
    """
    cell = partial(_pool, pool=pool, size=size)
    return scan(cell, state, (tokens, context.positions), context)


def _pool(
    tail: Tensor,
    tokens: Tensor,
    positions: Tensor,
    *,
    pool: Callable[[Tensor], Tensor],
    size: int,
) -> tuple[Tensor, Tensor]:
    """A run of tokens, `[batch, length, width]`, behind the `size - 1` before it."""
    length = tokens.shape[1]
    seen = torch.cat((tail, tokens), dim=1)
    first_end = -(positions[:, :1] + 1) % size
    ends = first_end + torch.arange(0, length, size, device=seen.device)
    # The last may be behind the run.
    of_group = ends[..., None] + torch.arange(size, device=seen.device)
    of_group = of_group.clamp(max=seen.shape[1] - 1).flatten(1)[..., None]
    groups = seen.gather(1, of_group.expand(-1, -1, seen.shape[-1])).unflatten(1, (-1, size))
    entries = pool(groups)
    out = entries.new_zeros(len(entries), length + size, entries.shape[-1])
    out.scatter_(1, ends[..., None].expand_as(entries), entries)
    return out[:, :length], seen[:, length:]


def tokens_of_groups(groups: Tensor, context: ForwardContext, *, size: int) -> Tensor:
    """The tokens of chosen groups, and those behind a token's last whole group.

    Args:
        groups: `[num_tokens, num_chosen]`, as `choose_tokens` returns them.

    Returns:
        `[num_tokens, num_chosen * size + size - 1]`, as `paged_attention` takes them.
    """
    num_whole = (context.positions[:, None] + 1) // size
    within = torch.arange(size, device=groups.device)
    is_hidden = (groups < 0) | (groups >= num_whole)
    chosen = (groups[..., None] * size + within).masked_fill(is_hidden[..., None], -1)
    return torch.cat((chosen.flatten(1), num_whole * size + within[:-1]), dim=1)
