"""Quantized weights, as kernels read them and as torch dequantizes them."""

from __future__ import annotations

import pytest
import torch

from axion.layers import kernels
from axion.quantization import rows
from axion.quantization.rows import RowKernel
from tests.gpu.weights import FORMATS, random_kernel

low_bit = pytest.importorskip("axion.layers.kernels.low_bit")


@pytest.fixture(autouse=True)
def _has_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "run_on", lambda _: True)


@pytest.mark.parametrize("format", FORMATS)
def test_numbers_are_what_the_format_says(format: str, device: torch.device) -> None:
    torch.manual_seed(0)
    kernel = random_kernel(format, device, num_outputs=37)
    expected = kernel.dequantize(torch.float32)
    weight = kernel.low_bit()
    assert weight is not None
    out = low_bit.unpack(weight, kernel.in_features, torch.float32)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=0)
    out = low_bit.unpack(weight, kernel.in_features, torch.bfloat16)
    torch.testing.assert_close(out, expected.bfloat16(), rtol=0.01, atol=0)


def check(kernel: RowKernel, num_rows: int, dtype: torch.dtype, device: torch.device) -> None:
    x = torch.randn(num_rows, 1, kernel.in_features, device=device).to(dtype)
    expected = x.float() @ kernel.dequantize(torch.float32).T
    kernel.rows = None  # what torch computes by
    out = kernel(x)
    assert out.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    scale = expected.std()
    torch.testing.assert_close(
        out.float() / scale, expected / scale, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize(
    ("num_rows", "dtype"),
    [(1, torch.bfloat16), (17, torch.float16), (40, torch.float32), (70, torch.bfloat16)],
    ids=["1", "17", "40", "70"],
)
@pytest.mark.parametrize("format", ["int8", "uint4 in groups", "E4M3 in blocks", "NVFP4"])
def test_a_layer_multiplies_by_what_it_keeps(
    format: str, num_rows: int, dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(0)
    check(random_kernel(format, device), num_rows, dtype, device)


@pytest.mark.parametrize("format", ["int8", "uint4 in groups", "E4M3 in blocks"])
def test_many_rows_are_multiplied_by_unpacked_pieces(
    format: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "MAX_LOW_BIT_ROWS", 2)
    monkeypatch.setattr(rows, "_MAX_UNPACKED", 30 * 160)
    torch.manual_seed(0)
    check(random_kernel(format, device), 3, torch.float32, device)
