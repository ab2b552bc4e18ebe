"""Operations on vectors compute the same on processors that have no instruction for them."""

from __future__ import annotations

import pytest
import torch

from axion.layers import cpu_kernels

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels.parallel import parallel

multiply_pairs = parallel("tests.layers.cpu_kernels.makers:multiply_pairs", integers=3)


@pytest.mark.parametrize("portably", [0, 1])
def test_products_of_pairs(portably: int) -> None:
    a, b = (torch.randn(16, 2).bfloat16() for _ in range(2))
    out = torch.empty(16)
    multiply_pairs(portably)(a.data_ptr(), b.data_ptr(), out.data_ptr())
    torch.testing.assert_close(out, (a.float() * b.float()).sum(1))
