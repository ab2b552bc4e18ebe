"""Rows multiplied by their experts' weights, against torch's product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

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


def test_rows_behind_those_of_all_experts_are_nobodys(device: torch.device) -> None:
    ends = torch.tensor([2, 3], device=device, dtype=torch.int32)
    x, weight = torch.randn(8, 16, device=device), torch.randn(2, 24, 16, device=device)
    out = kernels.grouped_product(x, weight, ends)
    expected = torch.cat((x[:2] @ weight[0].T, x[2:3] @ weight[1].T))
    torch.testing.assert_close(out[:3], expected, rtol=1e-4, atol=1e-4)
