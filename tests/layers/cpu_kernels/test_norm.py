"""Norms compute what torch does in several passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from axion.layers import cpu_kernels
from axion.layers.norm import Float32RMSNorm, LayerNorm, OffsetRMSNorm, RMSNorm, add_and_norm

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

ByTorch = Callable[[Callable[[], Tensor]], Tensor]
NORMS = [RMSNorm, Float32RMSNorm, OffsetRMSNorm]


def norm_of(norm_cls: type[RMSNorm], size: int) -> RMSNorm:
    norm = norm_cls(size, 1e-5).bfloat16()
    norm.weight.copy_(torch.randn(size))
    return norm


def assert_nearly_all_bits_are_equal(result: Tensor, expected: Tensor) -> None:
    """Where the order of a sum tells, a number is rounded to its other neighbour."""
    torch.testing.assert_close(result, expected, rtol=2**-7, atol=0)
    assert (result != expected).float().mean() < 0.001


@pytest.mark.parametrize("norm_cls", NORMS)
@pytest.mark.parametrize(("num_rows", "size"), [(1, 16), (5, 1008), (40, 1024)])
def test_rows_and_sums(
    norm_cls: type[RMSNorm], num_rows: int, size: int, num_threads: int, by_torch: ByTorch
) -> None:
    norm = norm_of(norm_cls, size)
    x, residual = (3 * torch.randn(2, num_rows, size)).bfloat16()
    total, normalized = add_and_norm(x, residual, norm)
    assert torch.equal(total, x + residual)
    assert_nearly_all_bits_are_equal(normalized, by_torch(lambda: norm(total)))
    assert_nearly_all_bits_are_equal(norm(x), by_torch(lambda: norm(x)))


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"elementwise_affine": False}], ids=str)
@pytest.mark.parametrize("shape", [(1, 16), (3, 5, 64), (40, 1008)])
def test_layer_norms(
    options: dict[str, bool], shape: tuple[int, ...], num_threads: int, by_torch: ByTorch
) -> None:
    norm = LayerNorm(shape[-1], **options).bfloat16()
    for parameter in norm.parameters():
        parameter.detach().normal_()
    x = (3 + torch.randn(shape)).bfloat16().transpose(0, -2)
    with torch.no_grad():
        result, expected = norm(x), by_torch(lambda: norm(x))
        # Torch multiplies and adds in another order before it rounds.
        torch.testing.assert_close(result, expected, rtol=2**-7, atol=1e-5)
        assert (result != expected).float().mean() < 0.002
        assert torch.equal(norm(x[-1:]), result[-1:])


@pytest.mark.parametrize("num_tokens", [1, 70])
def test_heads_where_they_lie(num_tokens: int, num_threads: int, by_torch: ByTorch) -> None:
    norm = norm_of(RMSNorm, 64)
    packed = torch.randn(num_tokens, 3 + 5 * 64 + 9).bfloat16()
    for heads in (
        packed[:, 3:-9].unflatten(1, (5, 64)),
        packed[:, 3:-9].unflatten(1, (5, 64)).transpose(0, 1),
        packed[:, 3:-9].unflatten(1, (64, 5)).transpose(1, 2),  # not side by side
    ):
        assert_nearly_all_bits_are_equal(norm(heads), by_torch(lambda x=heads: norm(x)))


def test_a_weight_in_float32(by_torch: ByTorch) -> None:
    norm = norm_of(Float32RMSNorm, 32).float()
    x = torch.randn(7, 32).bfloat16()
    assert_nearly_all_bits_are_equal(norm(x), by_torch(lambda: norm(x)))


def test_other_sizes_are_left_to_torch(by_torch: ByTorch) -> None:
    norm = norm_of(RMSNorm, 24)
    x = torch.randn(3, 24).bfloat16()
    assert torch.equal(norm(x), by_torch(lambda: norm(x)))


def test_a_row_is_the_same_among_others_and_nan_stays_in_its_row() -> None:
    norm = norm_of(RMSNorm, 1024)
    x = torch.randn(40, 1024).bfloat16()
    x[7, 3] = torch.nan
    together = norm(x)
    assert torch.equal(together[8:9], norm(x[8:9]))
    assert together[7].isnan().all()
    assert together[[*range(7), *range(8, 40)]].isfinite().all()
