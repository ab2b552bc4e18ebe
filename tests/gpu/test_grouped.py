"""Rows multiplied by their experts' weights, against torch's product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from axion.layers import kernels as all_kernels
from axion.layers.kernels.weights import low_bit_experts
from axion.layers.linear import Linear
from axion.layers.moe import ExpertLinear, Groups
from axion.quantization.layers import QuantizedExpertLinear, QuantizedLinear
from tests.gpu.weights import FORMATS, random_kernel

kernels = pytest.importorskip("axion.layers.kernels.grouped")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "counts", [[2, 0, 1, 0], [0, 0, 0, 5], [70, 3, 0, 64], [1, 0, 0, 0]], ids=str
)
def test_each_expert_multiplies_its_rows(
    counts: list[int], dtype: torch.dtype, device: torch.device
) -> None:
    ends = torch.tensor(counts, device=device).cumsum(0, dtype=torch.int32)
    x = torch.randn(sum(counts), 136, device=device).to(dtype)
    weight = torch.randn(4, 72, 136, device=device).to(dtype)
    expected = F.grouped_mm(x.float(), weight.float().transpose(1, 2), offs=ends)
    out = kernels.grouped_product(x, weight, ends)
    assert out.dtype == dtype
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("num_splits", [2, 3])
def test_inputs_are_divided_where_programs_are_few(
    num_splits: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_num_splits", lambda *_: num_splits)
    ends = torch.tensor([2, 2, 5], device=device, dtype=torch.int32)
    x, weight = torch.randn(5, 280, device=device), torch.randn(3, 72, 280, device=device)
    out = kernels.grouped_product(x, weight, ends)
    expected = F.grouped_mm(x, weight.transpose(1, 2), offs=ends)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_a_gpu_has_programs_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "num_multiprocessors", lambda _: 132)
    cuda = torch.device("cuda")
    assert kernels._num_splits(448, 32, cuda) == 1
    assert kernels._num_splits(64, 112, cuda) == 4
    assert kernels._num_splits(1, 32, cuda) == 8  # each reads some tiles


def test_rows_behind_those_of_all_experts_are_nobodys(device: torch.device) -> None:
    ends = torch.tensor([2, 3], device=device, dtype=torch.int32)
    x, weight = torch.randn(8, 16, device=device), torch.randn(2, 24, 16, device=device)
    out = kernels.grouped_product(x, weight, ends)
    expected = torch.cat((x[:2] @ weight[0].T, x[2:3] @ weight[1].T))
    torch.testing.assert_close(out[:3], expected, rtol=1e-4, atol=1e-4)


FEW, MANY = (5, torch.bfloat16), (90, torch.float32)


@pytest.mark.parametrize(
    ("format", "num_rows", "dtype"),
    [
        *((format, *FEW) for format in FORMATS),
        *((format, *MANY) for format in ("uint8 in groups", "E4M3 in blocks", "MXFP4")),
    ],
)
def test_weights_of_a_few_bits_are_read_where_they_lie(
    format: str,
    num_rows: int,
    dtype: torch.dtype,
    device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(all_kernels, "run_on", lambda _: True)
    torch.manual_seed(0)
    ends = torch.tensor([2, 2, num_rows], device=device, dtype=torch.int32)
    experts = [random_kernel(format, device) for _ in ends]
    weight = torch.stack([expert.dequantize(torch.float32) for expert in experts])
    x = torch.randn(num_rows, weight.shape[-1], device=device).to(dtype)
    low_bit = low_bit_experts([expert.low_bit() for expert in experts])
    out = kernels.grouped_product(x, low_bit, ends)
    assert out.dtype == dtype
    expected = F.grouped_mm(x.float(), weight.transpose(1, 2), offs=ends)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    scale = expected.std()
    torch.testing.assert_close(
        out.float() / scale, expected / scale, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("formats", [["MXFP4"], ["int8", "E4M3"]], ids=len)
def test_a_layer_asks_for_all_experts_at_once(
    formats: list[str], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an expert's projections have kernels of their own."""
    torch.manual_seed(0)
    experts = []
    for _ in range(3):
        expert = QuantizedLinear(Linear(160, 72 * len(formats)), [])
        for format in formats:
            codes = torch.randint(118, (72, 160), dtype=torch.uint8, device=device)
            expert.kernels.append(FORMATS[format](codes))
        experts.append(expert)
    in_features = experts[0].kernels[0].in_features
    linear = ExpertLinear(3, in_features, {"all": 72 * len(formats)}, bias=True).to(device)
    linear.bias.normal_()
    layer = QuantizedExpertLinear(linear, experts)
    groups = Groups(
        torch.tensor([0, 0, 2, 2, 2], device=device),
        torch.tensor([2, 2, 5], device=device, dtype=torch.int32),
    )
    x = torch.randn(5, in_features, device=device)
    monkeypatch.setattr(all_kernels, "run_on", lambda _: False)
    expected = layer(x, groups)
    monkeypatch.setattr(all_kernels, "run_on", lambda _: True)
    monkeypatch.setattr(layer, "_one_by_one", None)
    torch.testing.assert_close(layer(x, groups), expected, rtol=1e-4, atol=1e-4)
    # What some experts lack, none is computed by.
    experts[1].kernels[0].low_bit = lambda: None
    assert QuantizedExpertLinear(linear, experts).low_bit is None
