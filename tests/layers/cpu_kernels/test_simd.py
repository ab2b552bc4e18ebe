"""Operations on vectors compute the same on processors that have no instruction for them."""

from __future__ import annotations

import platform

import pytest
import torch

from axion.layers import cpu_kernels

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels import object_files
from axion.layers.cpu_kernels.parallel import parallel

multiply_pairs = parallel("tests.layers.cpu_kernels.makers:multiply_pairs", integers=3)
multiply_quads = parallel("tests.layers.cpu_kernels.makers:multiply_quads", integers=3)


@pytest.mark.parametrize("portably", [0, 1])
def test_products_of_pairs(portably: int) -> None:
    a, b = (torch.randn(16, 2).bfloat16() for _ in range(2))
    out = torch.empty(16)
    multiply_pairs(portably)(a.data_ptr(), b.data_ptr(), out.data_ptr())
    torch.testing.assert_close(out, (a.float() * b.float()).sum(1))


@pytest.mark.parametrize("portably", [0, 1])
def test_products_of_quads(portably: int) -> None:
    a = torch.randint(256, (16, 4), dtype=torch.uint8)
    b = torch.randint(-128, 128, (16, 4), dtype=torch.int8)
    a[:2], b[0], b[1] = 255, 127, -128
    out = torch.empty(16)
    multiply_quads(portably)(a.data_ptr(), b.data_ptr(), out.data_ptr())
    assert torch.equal(out, (a.float() * b.float()).sum(1))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="compiles for a processor of x86-64")
def test_processors_that_do_not_round_to_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    from axion.layers.cpu_kernels import compiler

    monkeypatch.setattr(compiler.llvm, "get_host_cpu_name", lambda: "x86-64-v3")
    monkeypatch.setattr(compiler.llvm, "get_host_cpu_features", compiler.llvm.FeatureMap)
    monkeypatch.setattr(object_files, "get", compiler.compile_kernel)
    ends = [0.0, -0.0, torch.inf, -torch.inf, 3.4e38, 1 + 2**-8, 1 + 3 * 2**-8, 1e-40]
    numbers = torch.cat([torch.tensor(ends), torch.randn(8)])
    for x in (numbers, torch.full((16,), torch.nan)):
        out = torch.empty(16, dtype=torch.bfloat16)
        parallel("tests.layers.cpu_kernels.makers:round_to_bfloat16", integers=2)()(
            x.data_ptr(), out.data_ptr()
        )
        torch.testing.assert_close(out, x.bfloat16(), rtol=0, atol=0, equal_nan=True)
