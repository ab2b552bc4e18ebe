"""Weights packed for oneDNN multiply as plain ones, and their rows can still be read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from axion.layers import onednn

DTYPES = [torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out_features", [320, 331])
@pytest.mark.parametrize("num_rows", [0, 1, 7, 100])
def test_the_product_is_the_plain_one(num_rows: int, out_features: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(out_features, 256).to(dtype)
    assert onednn.suits(weight)
    packed = onednn.pack(weight)
    x = torch.randn(2, 256, num_rows).to(dtype).transpose(1, 2)  # not contiguous
    expected = F.linear(x.float(), weight.float())
    out = onednn.linear(x, packed)
    assert out.shape == expected.shape
    assert out.dtype == dtype
    error = (out.float() - expected).norm()
    assert error <= 4 * torch.finfo(dtype).eps * expected.norm()
    assert torch.equal(packed.to_dense(), weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1024, 1001])
def test_rows_are_read_where_the_product_reads_them(num_rows: int, dtype: torch.dtype) -> None:
    weight = torch.randn(num_rows, 192).to(dtype)
    packed = onednn.pack(weight)
    view = onednn.rows_view(packed, weight)
    if view is None:
        pytest.skip("oneDNN lays weights out in another way on this CPU")
    indices = torch.randint(0, num_rows, (3000,))
    assert torch.equal(onednn.rows(view, indices, dtype), weight[indices])


def test_a_layout_that_is_not_known_is_not_read() -> None:
    weight = torch.randn(1024, 192)
    packed = onednn.pack(weight)
    assert onednn.rows_view(packed, weight.flip(0)) is None
    assert onednn.rows_view(packed, weight.repeat(2, 1)) is None


def test_small_weights_and_other_number_formats_stay_plain() -> None:
    assert not onednn.suits(torch.randn(64, 64))
    assert not onednn.suits(torch.randn(512, 512).double())
    assert not onednn.suits(torch.randn(512, 512, device="meta"))
