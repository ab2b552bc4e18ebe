"""Codes of a few bits are read as their formats pack them, and multiplied by as what they mean."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from axion.layers import cpu_kernels
from axion.quantization import integers, rows
from axion.quantization.integers import AtenInt4Kernel, IntegerKernel, integer_kernel

IN, OUT = 128, 80


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_lie_one_after_another_from_the_lowest_bit(bits: int) -> None:
    codes = [(7 * i + 3) % (1 << bits) for i in range(32)]
    number = sum(code << bits * place for place, code in enumerate(codes))
    packed = torch.tensor([list(number.to_bytes(4 * bits, "little"))] * 2, dtype=torch.uint8)
    assert integers.unpack(packed, bits).tolist() == [codes, codes]


def test_nibbles_are_packed_as_they_are_unpacked() -> None:
    packed = torch.randint(256, (3, 8), dtype=torch.uint8)
    assert torch.equal(integers.pack_nibbles(integers.unpack(packed, 4)), packed)


def drawn(
    group_size: int, groups: Tensor | None = None, num_outputs: int = OUT
) -> tuple[dict[str, Tensor], Tensor]:
    """Tensors of a kernel with four bits, and the weight that they stand for."""
    codes = torch.randint(16, (num_outputs, IN), dtype=torch.uint8)
    num_groups = -(-IN // group_size)
    scales = torch.rand(num_outputs, num_groups).half() / 10
    zeros = torch.randint(16, (num_outputs, num_groups), dtype=torch.uint8)
    index = torch.arange(IN) // group_size if groups is None else groups
    weight = (codes.float() - zeros[:, index]) * scales[:, index].float()
    tensors = {"codes": integers.pack_nibbles(codes), "scales": scales, "zeros": zeros}
    return tensors | ({} if groups is None else {"groups": groups}), weight


def act_order(group_size: int) -> Tensor:
    return (torch.randperm(IN) // group_size).int()


@pytest.mark.parametrize("is_ordered", [True, False])
@pytest.mark.parametrize(
    ("dtype", "group_size", "kernel_cls"),
    [
        (torch.float32, 32, IntegerKernel),
        (torch.float32, 48, IntegerKernel),
        (torch.bfloat16, 32, AtenInt4Kernel),
        (torch.bfloat16, 128, AtenInt4Kernel),
        (torch.bfloat16, 16, IntegerKernel),
        (torch.bfloat16, 48, IntegerKernel),
    ],
)
def test_a_product_is_one_with_the_weight(
    dtype: torch.dtype,
    group_size: int,
    kernel_cls: type,
    is_ordered: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rows, "MAX_PIECE", 24 * IN)
    monkeypatch.setattr(integers, "MAX_PIECE", IN)
    tensors, weight = drawn(group_size, None if is_ordered else act_order(group_size))
    kernel = integer_kernel(**tensors, dtype=dtype, bits=4, group_size=group_size)
    assert type(kernel) is kernel_cls
    x = torch.randn(2, 3, IN).to(dtype)
    # In bfloat16 a scale is rounded, its zero, and what comes out.
    allowed = 0.01 if dtype == torch.bfloat16 else 1e-6
    for ours, theirs in (
        (kernel(x), x.float() @ weight.T),
        (kernel.dequantize(dtype), weight),
    ):
        assert (ours.float() - theirs).norm() < allowed * theirs.norm()


def test_groups_of_different_sizes_are_not_for_aten() -> None:
    tensors, weight = drawn(32, torch.randint(4, (IN,), dtype=torch.int32))
    kernel = integer_kernel(**tensors, dtype=torch.bfloat16, bits=4, group_size=32)
    assert isinstance(kernel, IntegerKernel)
    torch.testing.assert_close(kernel.dequantize(torch.float32), weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group_size", [32, 48, 128])
@pytest.mark.parametrize("is_ordered", [True, False])
def test_bytes_are_counted_before_they_are_taken(
    dtype: torch.dtype, group_size: int, is_ordered: bool
) -> None:
    tensors, _ = drawn(group_size, None if is_ordered else act_order(group_size))
    kernel = integer_kernel(**tensors, dtype=dtype, bits=4, group_size=group_size)
    counted = integers.num_bytes(
        IN, OUT, dtype, bits=4, group_size=group_size, scale_bytes=2, is_ordered=is_ordered
    )
    assert counted == sum(p.nbytes for p in kernel.parameters())


@pytest.mark.parametrize("is_ordered", [True, False])
@pytest.mark.parametrize("num_outputs", [128, 80])
def test_many_rows_are_multiplied_as_few_are(
    num_outputs: int, is_ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_PIECE", 64 * IN)
    tensors, _ = drawn(32, None if is_ordered else act_order(32), num_outputs)
    kernel = integer_kernel(**tensors, dtype=torch.bfloat16, bits=4, group_size=32)
    assert isinstance(kernel, AtenInt4Kernel)
    x = torch.randn(4, 100, IN).bfloat16()
    few = torch.stack([kernel(part) for part in x])
    torch.testing.assert_close(kernel(x).float(), few.float(), rtol=0.02, atol=0.1)


@pytest.mark.parametrize("num_rows", [3, 100])
@pytest.mark.parametrize("is_loaded_before", [True, False])
def test_where_the_cpus_kernels_do_not_work_it_is_multiplied_as_well(
    is_loaded_before: bool, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, weight = drawn(32, None, 128)
    make = partial(integer_kernel, **tensors, dtype=torch.bfloat16, bits=4, group_size=32)
    kernel = make() if is_loaded_before else None
    monkeypatch.setattr(cpu_kernels, "work", lambda: False)
    x = torch.randn(num_rows, IN).bfloat16()
    expected = x.float() @ weight.T
    assert ((kernel or make())(x).float() - expected).norm() < 0.01 * expected.norm()


def test_atens_kernel_takes_a_part_of_wider_rows_and_no_rows() -> None:
    tensors, _ = drawn(32, None)
    kernel = integer_kernel(**tensors, dtype=torch.bfloat16, bits=4, group_size=32)
    assert isinstance(kernel, AtenInt4Kernel)
    part = torch.randn(3, 2 * IN).bfloat16()[:, IN:]
    assert torch.equal(kernel(part), kernel(part.contiguous()))
    assert kernel(part[:0]).shape == (0, OUT)


@pytest.mark.parametrize("num_rows", [64, 192, 80])
def test_what_is_packed_is_what_aten_packs(num_rows: int) -> None:
    codes = torch.randint(0, 16, (num_rows, 64), dtype=torch.uint8)
    expected = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    assert torch.equal(integers.aten_pack(codes), expected)
