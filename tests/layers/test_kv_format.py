"""Keys and values that are stored in a byte a number."""

from __future__ import annotations

import pytest
import torch

from axion.layers.kv_format import KV_FORMATS


@pytest.mark.parametrize(("name", "most"), [("fp8", 0.03), ("int8", 0.01)])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_what_is_stored_comes_back_within_the_formats_error(name: str, most: float, scale: float):
    generator = torch.Generator().manual_seed(0)
    x = scale * torch.randn(64, 2, 64, generator=generator)
    kv_format = KV_FORMATS[name](torch.float32)
    stored = kv_format.store(x)
    assert stored.dtype == torch.uint8
    assert stored.shape == (64, 2, kv_format.width(64))
    loaded = kv_format.load(stored)
    assert loaded.dtype == torch.float32
    assert (loaded - x).norm() / x.norm() < most


@pytest.mark.parametrize("name", KV_FORMATS)
def test_the_beginning_of_an_entry_is_an_entry(name: str):
    kv_format = KV_FORMATS[name](torch.bfloat16)
    stored = kv_format.store(torch.randn(4, 1, 24))
    beginning = kv_format.load(stored[..., : kv_format.width(16)])
    assert torch.equal(beginning, kv_format.load(stored)[..., :16])


@pytest.mark.parametrize("name", KV_FORMATS)
def test_zeros_and_numbers_beyond_the_range_stay_numbers_and_nan_stays_nan(name: str):
    kv_format = KV_FORMATS[name](torch.float32)
    x = torch.tensor([[0.0] * 4, [1e6, -1e6, 1e6, 1e6], [torch.nan, 1.0, 1.0, 1.0]])
    zeros, large, nan = kv_format.load(kv_format.store(x))
    assert torch.equal(zeros, torch.zeros(4))
    assert large.isfinite().all()
    assert large[0] > 400 > -400 > large[1]
    assert nan[0].isnan()
