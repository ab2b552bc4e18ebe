"""Quantized weights, multiplied as they are stored and dequantized before."""

from __future__ import annotations

import pytest
import torch

from axion.layers import kernels
from axion.quantization import integers
from axion.quantization.int8 import Int8Kernel
from axion.quantization.kernel import Kernel

pytest.importorskip("triton")


def check(
    kernel: Kernel, in_features: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = next(kernel.parameters()).device
    x = torch.randn(2, 1, in_features, device=device).to(dtype)
    expected = x.float() @ kernel.dequantize(torch.float32).T
    monkeypatch.setattr(kernels, "run_on", lambda _: True)
    monkeypatch.setattr(kernel, "rows", None)
    out = kernel(x)
    assert out.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(
        out.float() / expected.std(), expected / expected.std(), rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("out_features", "in_features"), [(13, 1100), (16, 64)])
def test_eight_bits(
    out_features: int,
    in_features: int,
    dtype: torch.dtype,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8, device=device)
    scale = torch.rand(out_features, device=device)
    check(Int8Kernel(codes, scale, rounds_input=False), in_features, dtype, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("num_groups", "group_size"), [(35, 32), (3, 128), (1, 1024)])
def test_four_bits(
    num_groups: int,
    group_size: int,
    dtype: torch.dtype,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_features = num_groups * group_size
    kernel = integers.IntegerKernel(
        torch.randint(256, (13, in_features // 2), dtype=torch.uint8, device=device),
        torch.rand(num_groups, 13, device=device).to(dtype).T,  # as GPTQ and AWQ store them
        torch.randint(16, (13, num_groups), dtype=torch.uint8, device=device),
        None,
        bits=4,
    )
    check(kernel, in_features, dtype, monkeypatch)
