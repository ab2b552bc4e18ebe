"""The largest number of a row is the one that torch finds."""

from __future__ import annotations

import pytest
import torch

from axion.layers import cpu_kernels

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels.argmax import argmax


@pytest.mark.parametrize(("num_rows", "size"), [(1, 16), (3, 8192), (5, 30000)])
def test_first_of_the_largest(num_rows: int, size: int, num_threads: int) -> None:
    # So few different numbers that many are the largest.
    x = torch.randint(-50, 5, (num_rows, size + 16)).bfloat16()[:, :size]
    places, are_usable = argmax(x)
    assert torch.equal(places, x.argmax(-1))
    assert are_usable.all()


@pytest.mark.parametrize("place", [0, 9000, 19999])
def test_what_is_not_finite_is_found(place: int, num_threads: int) -> None:
    x = torch.randn(6, 20000).bfloat16()
    expected = x.argmax(-1)
    x[1, place], x[2, place] = torch.nan, torch.inf
    x[3] = -torch.inf
    x[4, (expected[4] + 1) % 20000] = -torch.inf
    places, are_usable = argmax(x)
    assert are_usable.tolist() == [True, False, False, False, True, True]
    assert torch.equal(places[[0, 4, 5]], expected[[0, 4, 5]])
    assert ((places >= 0) & (places < 20000)).all()
