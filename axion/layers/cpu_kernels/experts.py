"""What is around the experts' products: scores, the choice, the way of tokens to experts, and back.

As torch computes that, it takes a third of what the products of a decode step with few bits do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from axion.layers.cpu_kernels import LANES
from axion.layers.cpu_kernels.parallel import parallel

_FEW = 16384  # numbers that one thread has summed up before another has begun
_FEW_SCORES = 512  # among which it has chosen
_score = parallel(".compiled.experts:score", integers=6)
_choose = parallel(".compiled.experts:choose", integers=10, floats=2)
_dispatch = parallel(".compiled.experts:dispatch", integers=10)
_combine = parallel(".compiled.experts:combine", integers=7)


def score(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T` in float32.

    Args:
        x: `[num_tokens, size]`, a multiple of 32.
        weight: `[num_experts, size]`, bfloat16.
    """
    (num_tokens, size), num_experts = x.shape, len(weight)
    x, weight = x.contiguous(), weight.contiguous()
    out = x.new_empty(num_tokens, num_experts, dtype=torch.float32)
    _score()(x.data_ptr(), weight.data_ptr(), out.data_ptr(), num_tokens, num_experts, size)
    return out


def choose(
    logits: Tensor,
    top_k: int,
    *,
    scoring: str,
    bias: Tensor | None = None,
    normalizes: bool,
    eps: float = 0.0,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The best experts of each token, of equal ones the first; what is not a number is not chosen
    while there is another.

    Args:
        logits: `[num_tokens, num_experts]`, float32.
        scoring: "softmax" over all, or "sigmoid".
        bias: on the sigmoids for the choice, but not for the weights; `[num_experts]`, float32.
        normalizes: the weights of those that are chosen are divided by their sum and `eps`.
        factor: on the weights.

    Returns:
        Weights (float32) and indices (int64), `[num_tokens, top_k]` each.
    """
    num_tokens, num_experts = logits.shape
    logits = logits.contiguous()
    is_sigmoid, bias_address = scoring == "sigmoid", 0
    assert is_sigmoid == (bias is not None)
    if bias is not None:
        assert bias.shape == (num_experts,)
        assert bias.dtype == torch.float32
        bias = bias.contiguous()
        bias_address = bias.data_ptr()
    weights = logits.new_empty(num_tokens, top_k)
    indices = logits.new_empty(num_tokens, top_k, dtype=torch.int64)
    size = -(-num_experts // LANES) * LANES
    scratch = logits.new_empty(torch.get_num_threads(), 2, size)
    kernel = _choose()
    compute = kernel if logits.numel() > _FEW_SCORES else kernel.alone
    compute(
        logits.data_ptr(),
        bias_address,
        weights.data_ptr(),
        indices.data_ptr(),
        scratch.data_ptr(),
        num_tokens,
        num_experts,
        top_k,
        is_sigmoid,
        normalizes,
        eps,
        factor,
    )
    return weights, indices


def dispatch(x: Tensor, indices: Tensor, num_experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A row for each expert that a token has chosen, sorted by expert.

    Args:
        x: `[num_tokens, size]`.
        indices: `[num_tokens, top_k]`, below `num_experts`.

    Returns:
        The rows, `[num_tokens * top_k, size]`; their experts, int64; where each expert's end,
        `[num_experts]` int32; and where each token's are, `[num_tokens, top_k]` int64.
    """
    (num_tokens, size), top_k = x.shape, indices.shape[1]
    x, indices = x.contiguous(), indices.to(torch.int64).contiguous()
    rows = x.new_empty(num_tokens * top_k, size)
    experts, places = indices.new_empty(num_tokens * top_k), torch.empty_like(indices)
    ends = torch.empty(num_experts, dtype=torch.int32)
    _dispatch()(
        x.data_ptr(),
        indices.data_ptr(),
        rows.data_ptr(),
        experts.data_ptr(),
        places.data_ptr(),
        ends.data_ptr(),
        num_tokens,
        top_k,
        num_experts,
        size,
    )
    return rows, experts, ends, places


def combine(rows: Tensor, weights: Tensor, places: Tensor) -> Tensor:
    """The weighted sum of each token's rows, in the order of its experts.

    Args:
        rows: `[num_tokens * top_k, size]`.
        weights: `[num_tokens, top_k]`.
        places: as `dispatch` returns them.
    """
    (num_tokens, top_k), size = places.shape, rows.shape[1]
    rows, weights = rows.contiguous(), weights.float().contiguous()
    out = rows.new_empty(num_tokens, size)
    kernel = _combine()
    compute = kernel if rows.numel() > _FEW else kernel.alone
    compute(
        rows.data_ptr(),
        weights.data_ptr(),
        places.data_ptr(),
        out.data_ptr(),
        num_tokens,
        top_k,
        size,
    )
    return out
