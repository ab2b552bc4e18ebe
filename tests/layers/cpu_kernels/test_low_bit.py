"""Products with weights of few bits are those of rounded inputs, alike for any number of rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from axion.layers import cpu_kernels

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels import low_bit

Product = Callable[[Tensor], Tensor]
NUM_ROWS = [1, 2, 5, 64, 67]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def rounded(x: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Integers and steps."""
    groups = x.float().unflatten(-1, (-1, group_size))
    step = (groups.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-30)
    return (groups / step).round(), step


def int8(out_features: int, in_features: int) -> tuple[Product, Product]:
    """The kernel's product, and what it is."""
    codes = torch.randint(-128, 128, (out_features, in_features), dtype=torch.int8)
    scale = torch.rand(out_features) / 100
    packed = codes.view(-1, 64, in_features // 4, 4).transpose(1, 2).contiguous().view(torch.int32)

    def expected(x: Tensor) -> Tensor:
        integers, step = rounded(x, in_features)
        sums = integers.flatten(1).double() @ codes.T.double()
        return (sums.float() * scale * step[:, 0]).bfloat16()

    return lambda x: low_bit.int8_product(x, packed, scale), expected


def int4(out_features: int, in_features: int, group_size: int) -> tuple[Product, Product]:
    """The same; expected in float32."""
    codes = torch.randint(16, (out_features, in_features), dtype=torch.uint8)
    pairs = torch.randn(in_features // group_size, out_features, 2).bfloat16()
    first, second = codes.view(-1, 2, 32, in_features).transpose(2, 3).unbind(1)
    packed = (first | second << 4).contiguous()
    scale, zero = pairs.double().repeat_interleave(group_size, 0).unbind(-1)
    weight = (codes.T.double() - 8) * scale + zero

    def expected(x: Tensor) -> Tensor:
        integers, step = rounded(x, 32)
        return ((integers * step).flatten(1).double() @ weight).float()

    pairs = pairs.unflatten(1, (-1, 64)).transpose(0, 1).contiguous()
    return lambda x: low_bit.int4_product(x, packed, pairs), expected


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("shape", [(64, 16), (192, 400)], ids=str)
def test_eight_bits_are_multiplied_exactly(
    shape: tuple[int, int], num_rows: int, num_threads: int
) -> None:
    product, expected = int8(*shape)
    x = torch.randn(num_rows, shape[1]).bfloat16()
    assert torch.equal(product(x), expected(x))


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@pytest.mark.parametrize("shape", [(64, 32, 32), (192, 384, 32), (128, 384, 128)], ids=str)
def test_four_bits_are_multiplied_as_nearly_as_bfloat16_is(
    shape: tuple[int, int, int], num_rows: int, num_threads: int
) -> None:
    product, expected = int4(*shape)
    x = torch.randn(num_rows, shape[1]).bfloat16()
    torch.testing.assert_close(product(x).float(), expected(x), rtol=2**-8, atol=1e-5 * shape[1])


@pytest.mark.parametrize("product", [int8(192, 320)[0], int4(192, 320, 32)[0]], ids=["8", "4"])
def test_a_row_has_the_same_bits_in_whatever_batch(product: Product) -> None:
    x = torch.randn(70, 320).bfloat16()
    alone = torch.cat([product(row) for row in x.split(1)])
    for num_rows in (2, 3, 4, 9, 70):
        assert torch.equal(product(x[:num_rows]), alone[:num_rows])


@pytest.mark.parametrize("product", [int8(64, 64)[0], int4(64, 64, 32)[0]], ids=["8", "4"])
@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf])
def test_what_is_no_number_stays_in_its_row(product: Product, strange: float) -> None:
    x = torch.randn(6, 64).bfloat16()
    expected = product(x)
    x[4, 33] = strange
    out = product(x)
    assert not out[4].isfinite().any()
    others = [0, 1, 2, 3, 5]
    assert torch.equal(out[others], expected[others])


@pytest.mark.parametrize("product", [int8(64, 64)[0], int4(64, 64, 32)[0]], ids=["8", "4"])
def test_of_zeros_and_of_no_rows(product: Product) -> None:
    assert torch.equal(product(torch.zeros(2, 64).bfloat16()), torch.zeros(2, 64).bfloat16())
    assert product(torch.empty(0, 64).bfloat16()).shape == (0, 64)
