"""Linear attention over a state that fades: what Mamba-2 (state space duality, arXiv:2405.21060)
and lightning attention (arXiv:2401.04658) compute."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 64


def fading_attention(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor]:
    """Each token's key and value are added to a matrix that fades from token to token, and its
    query reads that; in float32.

    Args:
        state: `[batch, num_heads, k_dim, v_dim]`.
        q, k: `[batch, length, num_groups, k_dim]`, each for `num_heads / num_groups` heads.
        v: `[batch, length, num_heads, v_dim]`.
        log_decay: `[batch, length, num_heads]`, not above 0.

    Returns:
        `[batch, length, num_heads, v_dim]`, and the state after the last token.
    """
    by_group = (q.shape[2], -1)
    # [batch, num_groups, heads_per_group, length, ...]
    q, k = (x.float().transpose(1, 2)[:, :, None] for x in (q, k))
    v = v.float().unflatten(2, by_group).permute(0, 2, 3, 1, 4)
    log_decay = log_decay.float().unflatten(2, by_group).permute(0, 2, 3, 1)[..., None]
    state = state.float().unflatten(1, by_group)
    if v.shape[3] == 1:
        state = state * log_decay.exp() + k.transpose(-1, -2) @ v
        out = q @ state
    else:
        out, state = _chunks(state, q, k, v, log_decay)
    return out.permute(0, 3, 1, 2, 4).flatten(2, 3), state.flatten(1, 2)


def _chunks(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor
) -> tuple[Tensor, Tensor]:
    """Within a chunk as attention with a mask that fades, between chunks by the state."""
    length = v.shape[3]
    size = min(length, _CHUNK)
    # A token of zeros changes no state.
    q, k, v, log_decay = (
        F.pad(x, (0, 0, 0, -length % size)).unflatten(3, (-1, size)) for x in (q, k, v, log_decay)
    )
    faded = log_decay.cumsum(-2)  # from the chunk's beginning up to each token
    lower = torch.ones(size, size, dtype=torch.bool, device=v.device).tril()
    between = (faded - faded.transpose(-1, -2)).masked_fill(~lower, float("-inf")).exp()
    out = (q @ k.transpose(-1, -2)) * between @ v
    last = faded[..., -1:, :]
    added = k.transpose(-1, -2) @ (v * (last - faded).exp())
    last, faded = last.exp(), faded.exp()
    for i in range(v.shape[3]):
        out[:, :, :, i] += (q[:, :, :, i] @ state) * faded[:, :, :, i]
        state = state * last[:, :, :, i] + added[:, :, :, i]
    return out.flatten(3, 4)[:, :, :, :length], state
