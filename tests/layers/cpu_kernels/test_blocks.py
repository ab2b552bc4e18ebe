"""Products with weights of blocks, against the same weights dequantized."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import llvmlite.binding as llvm
import pytest
import torch
from torch import Tensor

from axion.layers import cpu_kernels

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels import blocks, object_files, parallel
from axion.quantization.gguf import BLOCK_TYPES
from axion.quantization.gguf_packed import PackedBlockKernel
from tests.quantization.test_gguf_blocks import COLUMNS, random_weight

# One of each kind of planes, scales and offsets.
NAMES = ["Q8_0", "Q4_K", "Q6_K", "IQ2_XS"]


@pytest.fixture
def one_tile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels for all numbers of rows are too many to compile."""
    blocks._kernels.cache_clear()
    monkeypatch.setattr(blocks, "_TILES", (8,))
    yield
    blocks._kernels.cache_clear()


@cache
def packed(name: str) -> PackedBlockKernel:
    return PackedBlockKernel(random_weight(BLOCK_TYPES[name]), BLOCK_TYPES[name])


def multiply(x: Tensor, name: str) -> Tensor:
    kernel = packed(name)
    return blocks.product(x.bfloat16(), kernel.codes, kernel.scales, name)


def whole_inputs(num_rows: int) -> Tensor:
    """Which eight bits hold as they are."""
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randint(-126, 127, (num_rows, COLUMNS), generator=generator).float()
    x[:, ::32] = 127
    return x * torch.tensor([0.25, 2.0]).repeat_interleave(COLUMNS // 2)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.usefixtures("one_tile")
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost_but_by_rounding_inputs(name: str):
    weight = packed(name).dequantize(torch.float32)
    x = whole_inputs(11)
    assert error(multiply(x, name), x @ weight.T) <= 0.003  # that of bfloat16
    x = torch.randn(11, COLUMNS, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert error(multiply(x, name), x.float() @ weight.T) <= 0.009


def test_a_row_s_result_does_not_depend_on_the_others(num_threads: int):
    x = torch.randn(139, COLUMNS, generator=torch.Generator().manual_seed(0))
    whole = multiply(x, "Q4_K")
    for start, end in [(0, 1), (1, 2), (2, 4), (3, 6), (10, 17), (60, 70), (5, 139)]:
        assert torch.equal(multiply(x[start:end], "Q4_K"), whole[start:end])


@pytest.mark.usefixtures("one_tile")
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_what_is_no_number_stays_in_its_row(name: str):
    x = torch.randn(8, COLUMNS, generator=torch.Generator().manual_seed(0))
    expected = multiply(x, name)
    x[1, 5], x[2, 5], x[3], x[4], x[5, 32:64] = torch.nan, torch.inf, 0, 1e-39, 0
    found = multiply(x, name)
    assert torch.equal(found[[0, 6, 7]], expected[[0, 6, 7]])
    assert not found[1:3].isfinite().any()
    assert torch.equal(found[3:5], torch.zeros_like(found[3:5]))
    assert found[5].isfinite().all()


@pytest.mark.usefixtures("one_tile")
@pytest.mark.parametrize(("feature", "name"), [("", "MXFP4"), ("avxvnni", "NVFP4")])
def test_other_processors_get_the_same(feature: str, name: str, monkeypatch: pytest.MonkeyPatch):
    if feature and not llvm.get_host_cpu_features().get(feature):
        pytest.skip("a processor without that")
    from axion.layers.cpu_kernels import compiler
    from axion.layers.cpu_kernels.compiled import integers

    monkeypatch.setattr(integers, "has", lambda context, name: name == feature)
    monkeypatch.setattr(object_files, "get", compiler.compile_kernel)
    fresh = parallel.parallel(".compiled.blocks:multiply", integers=8)
    monkeypatch.setattr(blocks, "_multiply", fresh)
    x = whole_inputs(3)
    expected = x @ packed(name).dequantize(torch.float32).T
    assert error(multiply(x, name), expected) <= 0.003
