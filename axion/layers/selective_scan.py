"""Recurrences without products between the numbers of a state, and Mamba's selective scan
(arXiv:2312.00752)."""

from __future__ import annotations

import torch
from torch import Tensor

# Of the states of so many tokens at a time all are kept.
_CHUNK = 32


def linear_recurrence(state: Tensor, decay: Tensor, added: Tensor) -> Tensor:
    """The states after each token, where each is the last one times `decay`, plus `added`.

    In log2(length) steps, each of which joins neighbouring spans of tokens.

    Args:
        state: `[batch, ...]`, before the first token.
        decay, added: `[batch, length, ...]`.

    Returns:
        `[batch, length, ...]`.
    """
    span = 1
    while span < decay.shape[1]:
        joined = added[:, span:] + decay[:, span:] * added[:, :-span]
        added = torch.cat((added[:, :span], joined), dim=1)
        decay = torch.cat((decay[:, :span], decay[:, span:] * decay[:, :-span]), dim=1)
        span *= 2
    return added + decay * state[:, None]


def selective_scan(
    state: Tensor, x: Tensor, dt: Tensor, b: Tensor, c: Tensor, *, a: Tensor
) -> tuple[Tensor, Tensor]:
    """Go on from `state` over some tokens of each sequence, in float32.

    Args:
        state: `[batch, num_channels, state_size]`.
        x, dt: `[batch, length, num_channels]`, inputs and steps.
        b, c: `[batch, length, state_size]`, what writes to the state and what reads it.
        a: `[num_channels, state_size]`, below 0.

    Returns:
        `[batch, length, num_channels]`, and the state after the last token.
    """
    state, x, dt, b, c = (t.float() for t in (state, x, dt, b, c))
    out = torch.empty_like(x)
    for start in range(0, x.shape[1], _CHUNK):
        tokens = slice(start, start + _CHUNK)
        steps = dt[:, tokens, :, None]
        added = steps * x[:, tokens, :, None] * b[:, tokens, None]
        states = linear_recurrence(state, (steps * a).exp(), added)
        out[:, tokens] = (states @ c[:, tokens, :, None]).squeeze(-1)
        state = states[:, -1]
    return out, state
