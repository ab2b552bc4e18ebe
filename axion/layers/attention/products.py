"""Attention as products of matrices: what torch's own attention does not compute, and where it is
slower."""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.attention.options import AttentionOptions

# Of a chunk in bfloat16 on a CPU: scores that fit in its caches, and rows that are worth a product.
_BLOCK_SCORES = 2**21
_BLOCK_ROWS = (16, 128)
# Numbers of keys that its blocks see: keys are copied for each, and oneDNN makes a kernel.
_BLOCK_LENGTHS = 8


def products_are_faster(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether products are faster than torch's own attention: for a chunk three times, measured
    with AVX-512; in float32 they are not."""
    return device.type == "cpu" and dtype == torch.bfloat16


def attend_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention of many sequences' single tokens, as two products.

    Args:
        q: `[batch, num_kv_heads, heads_per_kv_head, head_dim]`.
        k: `[batch, num_kv_heads, length, head_dim]`, contiguous: or it would be copied.
        v: `[batch, num_kv_heads, length, v_head_dim]`, contiguous.
        mask: as in `Decode`.

    Returns:
        `[batch, num_heads, v_head_dim]`.
    """
    k, v = k.flatten(0, 1), v.flatten(0, 1)
    x = torch.baddbmm(q.new_zeros(1), q.flatten(0, 1), k.transpose(1, 2), beta=0, alpha=scale)
    x = x.unflatten(0, q.shape[:2]).add_(mask).softmax(-1)
    return torch.bmm(x.flatten(0, 1), v).view(len(q), -1, v.shape[-1])


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention of a chunk a few rows at a time, over the keys that these can see, and few more.

    Scores are rounded to the number format of q, as they are where attention is written out.

    Args:
        q: `[num_kv_heads, heads_per_kv_head, query_len, head_dim]`.
        k: `[num_kv_heads, length, head_dim]`.
        v: `[num_kv_heads, length, v_head_dim]`.
        mask: as in `Chunk`.

    Returns:
        `[query_len, num_heads, v_head_dim]`.
    """
    (num_kv_heads, group, query_len, _), length = q.shape, k.shape[1]
    fewest, most = _BLOCK_ROWS
    step = min(max(_BLOCK_SCORES // (num_kv_heads * group * length), fewest), most)
    stride = step * -(-query_len // (step * _BLOCK_LENGTHS))
    hidden = torch.full((step, stride), float("-inf"), dtype=q.dtype).triu_(1)
    zero = torch.zeros(1, dtype=q.dtype)  # of which baddbmm takes nothing
    out = q.new_empty(query_len, num_kv_heads, group, v.shape[-1])
    for start in range(0, query_len, step):
        end = min(start + step, query_len)
        first = length - query_len + start
        if start % stride == 0:
            seen = min(first + stride, length)
            keys, values = k[:, :seen].contiguous().transpose(1, 2), v[:, :seen].contiguous()
        rows = q[:, :, start:end].flatten(1, 2)
        x = torch.baddbmm(zero, rows, keys, beta=0, alpha=scale)
        x = x.unflatten(1, (group, end - start))
        if mask is None:
            x[..., first:] += hidden[: end - start, : seen - first]
        else:
            x += mask[start:end, :seen]
        x = torch.bmm(x.softmax(-1).flatten(1, 2), values)
        out[start:end] = x.unflatten(1, (group, end - start)).permute(2, 0, 1, 3)
    return out.flatten(1, 2)


def attend_written_out(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    distances: Tensor,
    options: AttentionOptions,
) -> Tensor:
    """Attention with all that `options` ask for, in float32.

    Args:
        q: `[..., num_kv_heads, heads_per_kv_head, query_len, head_dim]`.
        k: `[..., num_kv_heads, length, head_dim]`.
        v: `[..., num_kv_heads, length, v_head_dim]`.
        mask: additive, of the shape `[..., query_len, length]`; None: causal.
        distances: of that shape, too.

    Returns:
        `[..., num_kv_heads, heads_per_kv_head, query_len, v_head_dim]`.
    """
    rows = q.shape[-3:-1]
    x = (q.flatten(-3, -2) @ k.transpose(-1, -2)).float().unflatten(-2, rows) * options.scale
    if options.softcap is not None:
        x = options.softcap * torch.tanh(x / options.softcap)
    if options.alibi_slopes is not None:
        x = x + options.alibi_slopes.float().view(*q.shape[-4:-2], 1, 1) * distances
    if mask is None:
        mask = x.new_full(x.shape[-2:], float("-inf")).triu(1)
    x = x + mask
    out = (x.softmax(-1).to(v.dtype).flatten(-3, -2) @ v).unflatten(-2, rows)
    if options.sinks is not None:
        # The share of the softmax's sum that is not the sink's.
        sinks = options.sinks.float().view(*q.shape[-4:-2], 1, 1)
        out = out * torch.sigmoid(x.logsumexp(-1, keepdim=True) - sinks).to(out.dtype)
    return out
