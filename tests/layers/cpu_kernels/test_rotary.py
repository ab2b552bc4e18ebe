"""Rotation computes the bits that torch does in several passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from axion.layers import cpu_kernels
from axion.layers.norm import OffsetRMSNorm, RMSNorm
from axion.layers.rotary import apply_rotary, apply_rotary_interleaved

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

ByTorch = Callable[[Callable[[], Tensor]], Tensor]
ROTATIONS = [apply_rotary, apply_rotary_interleaved]


def heads_and_tables(
    num_tokens: int, num_heads: int, head_dim: int, num_pairs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Heads as they lie in a projection that they are a part of."""
    x = torch.randn(num_tokens, 7 + num_heads * head_dim).bfloat16()
    angles = 100 * torch.randn(num_tokens, 1, num_pairs)
    cos = angles.cos().bfloat16().repeat(1, 1, 2)
    sin = torch.cat((-angles.sin(), angles.sin()), dim=-1).bfloat16()
    return x[:, 7:].unflatten(1, (num_heads, head_dim)), cos, sin


@pytest.mark.parametrize("rotate", ROTATIONS)
@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "head_dim", "num_pairs"),
    [(1, 3, 32, 16), (5, 2, 80, 16), (90, 3, 128, 64), (4, 2, 32, 8)],
)
def test_heads_are_rotated(
    rotate: Callable[[Tensor, Tensor, Tensor], Tensor],
    num_tokens: int,
    num_heads: int,
    head_dim: int,
    num_pairs: int,
    num_threads: int,
    by_torch: ByTorch,
) -> None:
    x, cos, sin = heads_and_tables(num_tokens, num_heads, head_dim, num_pairs)
    for heads in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
        expected = by_torch(lambda x=heads: rotate(x, cos, sin))
        assert torch.equal(rotate(heads, cos, sin), expected)


@pytest.mark.parametrize("rotate", ROTATIONS)
@pytest.mark.parametrize("norm_cls", [RMSNorm, OffsetRMSNorm])
@pytest.mark.parametrize("num_tokens", [1, 90])
def test_heads_are_normalised_before(
    rotate: Callable[..., Tensor], norm_cls: type[RMSNorm], num_tokens: int, num_threads: int
) -> None:
    x, cos, sin = heads_and_tables(num_tokens, 3, 80, 16)
    norm = norm_cls(80, 1e-5).bfloat16()
    norm.weight.copy_(torch.randn(80))
    assert torch.equal(rotate(x, cos, sin, norm), rotate(norm(x), cos, sin))


def test_a_token_is_the_same_among_others_and_nan_stays_in_its_head() -> None:
    x, cos, sin = heads_and_tables(90, 3, 128, 64)
    norm = RMSNorm(128, 1e-5).bfloat16()
    norm.weight.copy_(torch.randn(128))
    x[6, 1, 5] = torch.nan
    together = apply_rotary(x, cos, sin, norm)
    assert torch.equal(together[7:8], apply_rotary(x[7:8], cos[7:8], sin[7:8], norm))
    assert together.isnan().sum() == 128
