"""Sums and products are those of torch, to the bit."""

from __future__ import annotations

import pytest
import torch

from axion.layers import cpu_kernels

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels.elementwise import can_compute, elementwise


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("shape", [(1, 16), (3, 1040), (40, 2, 528), (0, 32)])
def test_sums_and_products_are_those_of_torch(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, *shape).bfloat16()
    for other in (b, torch.randn(shape[-1]).bfloat16()):
        assert can_compute("add", a, other)
        assert torch.equal(elementwise("add", a, other), a + other)
        assert can_compute("multiply", a, other)
        assert torch.equal(elementwise("multiply", a, other), a * other)
    for number in (0.22, -3):
        assert can_compute("multiply", a, number)
        assert torch.equal(elementwise("multiply", a, number), a * number)


def test_what_else_there_is_is_left_to_torch() -> None:
    x = torch.ones(4, 32, dtype=torch.bfloat16)
    others = [x.float(), x[:1], x.T.contiguous().T, x[:, :16], x[0, :1], 1j]
    assert not any(can_compute("multiply", x, other) for other in others)
    assert not can_compute("add", x[:, :8].contiguous(), x[:, :8].contiguous())
    assert not can_compute("multiply", x.float(), 2.0)
    assert not can_compute("add", x, 0.22)
