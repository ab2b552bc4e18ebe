"""Sums are those of torch, to the bit."""

from __future__ import annotations

import pytest
import torch

from axion.layers import cpu_kernels

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels.addition import add, can_add


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("shape", [(1, 16), (3, 1040), (40, 2, 528), (0, 32)])
def test_sums_are_those_of_torch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, *shape).bfloat16()
    for other in (b, b.new_ones(shape[-1]) / 3):
        assert can_add(a, other)
        assert torch.equal(add(a, other), a + other)


def test_other_sums_are_left_to_torch() -> None:
    x = torch.ones(4, 32, dtype=torch.bfloat16)
    others = [1.0, x.float(), x[:1], x.T.contiguous().T, x[:, :16], x[0, :1]]
    assert not any(can_add(x, other) for other in others)
    assert not can_add(x[:, :8].contiguous(), x[:, :8].contiguous())
