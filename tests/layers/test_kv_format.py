"""Keys and values that are stored in a byte a number."""

from __future__ import annotations

import pytest
import torch

from axion.layers.kv_format import KV_FORMATS, KVEntries


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


@pytest.mark.parametrize("is_apart", [False, True], ids=["beside", "apart"])
@pytest.mark.parametrize("name", [None, *KV_FORMATS])
def test_entries_are_gathered_head_by_head_as_they_are_token_by_token(
    name: str | None, is_apart: bool
):
    stored = torch.randn(40, 3, 24).bfloat16()
    kv_format = None if name is None else KV_FORMATS[name](torch.bfloat16)
    if kv_format is not None:
        stored = kv_format.store(stored)
    entries = KVEntries(stored[..., : stored.shape[2] - 4] if is_apart else stored, kv_format)
    slots = torch.randint(40, (5, 7), generator=torch.Generator().manual_seed(0))
    head_slots = (slots[:, None] * 3 + torch.arange(3)[:, None]).flatten(0, 1)
    expected = entries.gather(slots).transpose(1, 2).flatten(0, 1)
    assert torch.equal(entries.gather_heads(slots, head_slots), expected)
