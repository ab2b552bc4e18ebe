"""All experts at once give each row what its expert alone gives it, bit by bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from axion.hub.gguf import TensorType
from axion.layers import cpu_kernels, onednn

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.linear import Linear
from axion.layers.moe import ExpertLinear, Groups
from axion.quantization.gguf import BLOCK_TYPES
from axion.quantization.gguf_packed import PackedBlockKernel
from axion.quantization.kernel import DenseKernel, Kernel
from axion.quantization.layers import QuantizedExpertLinear, QuantizedLinear
from axion.quantization.on_load import Int4OnLoad, Int8OnLoad
from tests.quantization.test_gguf_blocks import random_weight

FORMATS: dict[str, Callable[[Tensor], Kernel]] = {
    "bf16": DenseKernel,
    "int8": lambda weight: Int8OnLoad().kernel(weight, torch.bfloat16),
    "int4": lambda weight: Int4OnLoad().kernel(weight, torch.bfloat16),
    "Q8_0": lambda weight: blocks(BLOCK_TYPES["Q8_0"], len(weight)),
}
LAYERS = [("bf16",), ("int8",), ("int4",), ("int4", "Q8_0")]
IN, OUT = 512, 384
# Rows of each expert; those of eight and four bits are multiplied 64 at a time, others 192.
COUNTS = {"one": [0, 1, 0, 0], "few": [1, 0, 3, 5], "many": [66, 195, 2, 0]}


@pytest.fixture(autouse=True)
def packs_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny weights too."""
    monkeypatch.setattr(onednn, "_MIN_ELEMENTS", 1)
    torch.manual_seed(0)


def blocks(kind: TensorType, num_rows: int) -> PackedBlockKernel:
    """A weight of a GGUF file, with rows in an order of its own."""
    weight = random_weight(kind)
    rows = torch.randperm(num_rows) % len(weight)
    return PackedBlockKernel(weight[rows], kind)


def make_layer(*formats: str) -> QuantizedExpertLinear:
    """Of four experts that have a projection in each of the formats."""
    experts = []
    for _ in range(4):
        expert = QuantizedLinear(Linear(IN, OUT * len(formats)), [])
        for name in formats:
            expert.kernels.append(FORMATS[name](torch.randn(OUT, IN).bfloat16()))
        experts.append(expert)
    linear = ExpertLinear(4, IN, {"all": OUT * len(formats)}, bias=True).bfloat16()
    linear.bias.normal_()
    layer = QuantizedExpertLinear(linear, experts)
    if any(kernel.packed_weight() is None for expert in experts for kernel in expert.kernels):
        pytest.skip("no kernel multiplies by one of these weights on this CPU")
    assert layer.packed is not None
    return layer


def make_rows(counts: list[int]) -> tuple[Tensor, Groups]:
    experts = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    ends = torch.tensor(counts).cumsum(0).int()
    return torch.randn(len(experts), IN).bfloat16(), Groups(experts, ends)


def alone(layer: QuantizedExpertLinear, x: Tensor, groups: Groups) -> Tensor:
    """Each row by itself."""
    pairs = zip(x.split(1), groups.experts.tolist(), strict=True)
    return torch.cat([layer.experts[expert](row) + layer.bias[expert] for row, expert in pairs])


@pytest.mark.parametrize("counts", COUNTS)
@pytest.mark.parametrize("formats", LAYERS, ids="-".join)
def test_rows_have_the_bits_of_a_row_alone(
    formats: tuple[str, ...], counts: str, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make_layer(*formats)
    x, groups = make_rows(COUNTS[counts])
    monkeypatch.setattr(layer, "_one_by_one", None)
    assert torch.equal(layer(x, groups), alone(layer, x, groups))


@pytest.mark.parametrize("formats", [("bf16",), ("int8",), ("int4", "Q8_0")], ids="-".join)
def test_what_is_no_number_stays_in_its_row(formats: tuple[str, ...]) -> None:
    layer = make_layer(*formats)
    x, groups = make_rows(COUNTS["few"])
    expected = layer(x, groups)
    x[2, 7] = torch.nan
    out = layer(x, groups)
    assert out[2].isnan().all()
    others = [row for row in range(len(x)) if row != 2]
    assert torch.equal(out[others], expected[others])


def test_rows_of_no_expert_are_left_out() -> None:
    """Such as those that steps of a fixed size end with."""
    layer = make_layer("int8")
    x, groups = make_rows(COUNTS["few"])
    longer = torch.cat([x, torch.full_like(x, torch.nan)])
    experts = torch.cat([groups.experts, torch.full_like(groups.experts, 3)])
    out = layer(longer, Groups(experts, groups.ends))
    assert out.shape == (2 * len(x), OUT)
    assert torch.equal(out[: len(x)], layer(x, groups))
    no_rows = Groups(groups.experts[:0], torch.zeros_like(groups.ends))
    assert layer(x[:0], no_rows).shape == (0, OUT)


def test_experts_that_differ_are_computed_one_by_one() -> None:
    layer = make_layer("int8")
    layer.experts[2].kernels[0] = FORMATS["int4"](torch.randn(OUT, IN).bfloat16())
    del layer.packed
    assert layer.packed is None
    x, groups = make_rows(COUNTS["few"])
    assert torch.equal(layer(x, groups), alone(layer, x, groups))


def test_one_by_one_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer("bf16")
    [stack] = layer.packed
    monkeypatch.setattr(layer, "packed", [stack._replace(first=stack.first._replace(max_rows=2))])
    calls = []
    monkeypatch.setattr(layer, "_one_by_one", lambda x, ends: calls.append(ends) or x[:, :1])
    for counts in COUNTS["few"], [2, 2, 2, 2]:
        layer(*make_rows(counts))
    assert calls == [[1, 1, 4, 9]]
