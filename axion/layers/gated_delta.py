"""The gated delta rule (Gated DeltaNet, arXiv:2412.06464): a matrix that maps keys to values fades,
and is corrected by each token where it maps the token's key to something else than its value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_CHUNK = 64
# Where each channel has a decay of its own, what is between two tokens is a vector.
_CHUNK_BY_CHANNEL = 16


def gated_delta_rule(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """Go on from `state` over some tokens of each sequence, in float32.

    Args:
        state: `[batch, num_heads, k_dim, v_dim]`.
        q, k: `[batch, length, num_heads, k_dim]`.
        v: `[batch, length, num_heads, v_dim]`.
        log_decay: `[batch, length, num_heads]`, or `[batch, length, num_heads, k_dim]` where each
            channel of a key has its own (Kimi delta attention, arXiv:2510.26692); not above 0.
        beta: `[batch, length, num_heads]`, what share of its error is corrected.

    Returns:
        `[batch, length, num_heads, v_dim]`, and the state after the last token.
    """
    by_channel = log_decay.dim() == k.dim()
    log_decay = log_decay if by_channel else log_decay[..., None]
    tokens = tuple(x.float().transpose(1, 2) for x in (q, k, v, log_decay, beta[..., None]))
    if q.shape[1] == 1:
        out, state = _step(state.float(), *tokens)
    elif by_channel:
        out, state = _spans(state.float(), *tokens)
    else:
        out, state = _chunks(state.float(), *tokens)
    return out.transpose(1, 2), state


def normalized(x: Tensor) -> Tensor:
    """Of length 1 in the last dimension, in float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def _step(
    state: Tensor, q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of each sequence; all `[batch, num_heads, 1, ...]`."""
    state = state * log_decay.exp().transpose(-1, -2)
    state = state + k.transpose(-1, -2) @ (beta * (v - k @ state))
    return q @ state, state


def _spans(state: Tensor, *tokens: Tensor) -> tuple[Tensor, Tensor]:
    """A few chunks at a time, so that what is between two tokens need not be kept of all."""
    outs = []
    for span in zip(*(x.split(_CHUNK, dim=2) for x in tokens), strict=True):
        out, state = _chunks(state, *span, size=_CHUNK_BY_CHANNEL)
        outs.append(out)
    return torch.cat(outs, dim=2), state


def _chunks(
    state: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    *,
    size: int = _CHUNK,
) -> tuple[Tensor, Tensor]:
    """Chunk by chunk; all `[batch, num_heads, length, ...]`.

    The corrections that tokens of a chunk make to each other are a triangular system, so that a
    chunk costs a few products instead of a step for each token (arXiv:2406.06484).
    """
    length = q.shape[2]
    size = min(length, size)
    # A token of zeros changes no state.
    q, k, v, log_decay, beta = (
        F.pad(x, (0, 0, 0, -length % size)).unflatten(2, (-1, size))
        for x in (q, k, v, log_decay, beta)
    )
    faded = log_decay.cumsum(-2)  # from the chunk's beginning up to each token
    lower = torch.ones(size, size, dtype=torch.bool, device=q.device).tril()
    between = faded[..., :, None, :] - faded[..., None, :, :]
    between = between.masked_fill(~lower[..., None], float("-inf")).exp()
    k_beta = k * beta
    system = _faded_products(k_beta, k, between)
    right = torch.cat((v * beta, k_beta * faded.exp()), dim=-1)
    solved = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    new_v, old_k = solved.split((v.shape[-1], k.shape[-1]), dim=-1)
    within = _faded_products(q, k, between)
    q = q * faded.exp()
    last = faded[..., -1:, :]
    k = (k * (last - faded).exp()).transpose(-1, -2)
    last = last.exp().transpose(-1, -2)
    out = torch.empty_like(v)
    for i in range(out.shape[2]):
        corrected = new_v[:, :, i] - old_k[:, :, i] @ state
        out[:, :, i] = q[:, :, i] @ state + within[:, :, i] @ corrected
        state = state * last[:, :, i] + k[:, :, i] @ corrected
    return out.flatten(2, 3)[:, :, :length], state


def _faded_products(a: Tensor, b: Tensor, between: Tensor) -> Tensor:
    """Products of each two rows of `[..., size, k_dim]`, `[..., size, size]`.

    Args:
        between: what is left of the second at the first, `[..., size, size, 1 or k_dim]`.
    """
    if between.shape[-1] == 1:
        return (a @ b.transpose(-1, -2)) * between[..., 0]
    return torch.einsum("...id,...jd,...ijd->...ij", a, b, between)
