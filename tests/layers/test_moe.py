"""Experts see the tokens that chose them, and only those."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from axion.errors import ModelLoadError
from axion.layers.moe import ExpertLinear, Experts, Router

NUM_EXPERTS, HIDDEN, WIDTH, TOP_K = 5, 16, 24, 2


@pytest.fixture
def experts() -> Experts:
    torch.manual_seed(0)
    module = Experts(NUM_EXPERTS, HIDDEN, WIDTH, F.silu)
    for parameter in module.parameters():
        parameter.normal_(std=0.3)
    return module


def one_by_one(experts: Experts, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for token in range(len(x)):
        for weight, expert in zip(weights[token], indices[token], strict=True):
            gate, up = (experts.gate_up_proj.weight[expert] @ x[token]).chunk(2)
            out[token] += weight * (experts.down_proj.weight[expert] @ (F.silu(gate) * up))
    return out


@pytest.mark.parametrize(
    "indices",
    [
        [[0, 1]],
        [[4, 2], [2, 4], [2, 0]],
        [[3, 1]] * 7,
        [[i % NUM_EXPERTS, (i + 1) % NUM_EXPERTS] for i in range(23)],
    ],
    ids=["one token", "some experts without any", "all the same", "all experts"],
)
def test_the_sum_over_each_token_s_experts(experts: Experts, indices: list[list[int]]) -> None:
    x, weights = torch.randn(len(indices), HIDDEN), torch.rand(len(indices), TOP_K)
    chosen = torch.tensor(indices)
    expected = one_by_one(experts, x, weights, chosen)
    torch.testing.assert_close(experts(x, weights, chosen), expected)


def test_what_is_no_number_stays_in_its_token(experts: Experts) -> None:
    router = Router(HIDDEN, NUM_EXPERTS, TOP_K)
    router.weight.normal_()
    x = torch.randn(6, HIDDEN)
    expected = experts(x, *router(x))
    x[2] = torch.nan
    out = experts(x, *router(x))
    assert out[2].isnan().all()
    healthy = [0, 1, 3, 4, 5]
    torch.testing.assert_close(out[healthy], expected[healthy])


def test_close_scores_keep_their_order_in_bfloat16() -> None:
    router = Router(8, 2, 1).to(torch.bfloat16)
    router.weight.fill_(1.0)
    router.weight[1, 0] = 1 + 2**-7
    x = torch.full((1, 8), 100.0, dtype=torch.bfloat16)
    assert router.logits(x).bfloat16().unique().numel() == 1
    _, indices = router(x)
    assert indices.tolist() == [[1]]


def test_sizes_that_the_kernels_do_not_take_are_refused() -> None:
    with pytest.raises(ModelLoadError, match=r"12 features.*multiple of 8"):
        ExpertLinear(4, 12, {"down_proj": 16})
