"""Tokens find their experts and come back as by torch, each as if it were alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from axion.layers import cpu_kernels

if not cpu_kernels.work():
    pytest.skip("kernels do not work on this machine", allow_module_level=True)

from axion.layers.cpu_kernels import experts
from axion.layers.moe import Groups, Router, SigmoidRouter, pass_experts

ByTorch = Callable[[Callable[[], Tensor]], Tensor]
EPS = torch.finfo(torch.bfloat16).eps


def make_router(size: int, num_experts: int, *, bias: bool = False) -> Router:
    torch.manual_seed(0)
    router = Router(size, num_experts, 2, bias=bias).bfloat16()
    for parameter in router.parameters():
        parameter.normal_()
    return router


def choose(num_tokens: int, num_experts: int, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, and the weights and indices of their experts."""
    torch.manual_seed(0)
    indices = torch.rand(num_tokens, num_experts).topk(top_k).indices
    return torch.randn(num_tokens, 528).bfloat16(), torch.rand(num_tokens, top_k), indices


def negate(x: Tensor, groups: Groups) -> Tensor:
    """Experts of which each multiplies by its number."""
    return x * groups.experts[:, None].to(x.dtype)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("num_tokens", "num_experts"), [(1, 128), (3, 2), (70, 9), (0, 4)])
def test_scores_are_those_of_float32(
    num_tokens: int, num_experts: int, bias: bool, num_threads: int, by_torch: ByTorch
) -> None:
    router = make_router(96, num_experts, bias=bias)
    x = torch.randn(num_tokens, 96).bfloat16()
    scores = router.logits(x)
    expected = by_torch(lambda: router.logits(x))
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-4)
    alone = [router.logits(row) for row in x.split(1)]
    assert torch.equal(scores, torch.cat(alone)) or not num_tokens


def test_close_scores_keep_their_order() -> None:
    router = make_router(32, 2)
    router.weight.fill_(1.0)
    router.weight[1, 0] = 1 + 2**-7
    logits = router.logits(torch.full((1, 32), 100.0).bfloat16())
    assert logits.bfloat16().unique().numel() == 1
    assert logits[0, 1] > logits[0, 0]


@pytest.mark.parametrize("size", [48, 40])
def test_sizes_without_whole_vectors_are_scored_by_torch(size: int, by_torch: ByTorch) -> None:
    router = make_router(size, 4)
    x = torch.randn(3, size).bfloat16()
    assert torch.equal(router.logits(x), by_torch(lambda: router.logits(x)))


def routers(num_experts: int, top_k: int) -> list[Router]:
    """Of each kind one, of 64 features."""
    made: list[Router] = []
    for normalizes in (False, True):
        made.append(Router(64, num_experts, top_k, norm_topk_prob=normalizes))
        of_sigmoids = SigmoidRouter(
            64, num_experts, top_k, norm_topk_prob=normalizes, scaling_factor=2.5
        )
        of_sigmoids.e_score_correction_bias.copy_(torch.randn(num_experts))
        made.append(of_sigmoids)
    return made


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"), [(1, 128, 8), (70, 60, 4), (5, 17, 17), (0, 4, 1)]
)
def test_those_are_chosen_that_torch_chooses(
    num_tokens: int,
    num_experts: int,
    top_k: int,
    num_threads: int,
    by_torch: ByTorch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    x = torch.randn(num_tokens, 64).bfloat16()
    scores = 3 * torch.randn(num_tokens, num_experts)
    for router in routers(num_experts, top_k):
        monkeypatch.setattr(router, "logits", lambda x: scores[: len(x)])
        weights, indices = router(x)
        assert torch.equal(indices, by_torch(lambda of=router: of(x)[1]))
        expected = by_torch(lambda of=router: of(x)[0])
        torch.testing.assert_close(weights, expected, rtol=1e-6, atol=0)
        for own, whole in zip(router(x[:1]), (weights, indices), strict=True):
            assert torch.equal(own, whole[:1])


def test_of_equal_scores_the_first_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router(64, 40, 3)
    scores = torch.zeros(2, 40)
    scores[1, [5, 20, 21, 36]] = 1.0
    monkeypatch.setattr(router, "logits", lambda _: scores)
    weights, indices = router(torch.ones(2, 64).bfloat16())
    assert indices.tolist() == [[0, 1, 2], [5, 20, 21]]
    torch.testing.assert_close(weights, torch.full((2, 3), 1 / 3))


def test_scores_that_are_no_numbers_choose_experts_that_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = torch.zeros(3, 4)
    scores[0], scores[1] = torch.nan, -torch.inf
    for router in routers(4, 2):
        monkeypatch.setattr(router, "logits", lambda _: scores)
        weights, indices = router(torch.ones(3, 64).bfloat16())
        assert 0 <= indices.min() <= indices.max() < 4
        assert weights[0].isnan().all()
        assert weights[2].isfinite().all()


@pytest.mark.parametrize(
    ("num_tokens", "num_experts", "top_k"), [(1, 128, 8), (5, 4, 1), (67, 9, 4)]
)
def test_sums_are_those_of_torch(
    num_tokens: int, num_experts: int, top_k: int, num_threads: int, by_torch: ByTorch
) -> None:
    x, weights, indices = choose(num_tokens, num_experts, top_k)

    def compute(x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        return pass_experts(x, weights, indices, num_experts, negate)

    out = compute(x, weights, indices)
    # Torch rounds the weights, too.
    magnitude = by_torch(lambda: compute(x.abs(), weights, indices))
    expected = by_torch(lambda: compute(x, weights, indices))
    assert ((out - expected).abs() <= 2 * EPS * magnitude).all()
    for token in range(0, num_tokens, 13):
        own = slice(token, token + 1)
        assert torch.equal(out[own], compute(x[own], weights[own], indices[own]))


def test_rows_are_sorted_by_expert_and_then_by_token() -> None:
    x, _, indices = choose(11, 6, 3)
    rows, of_rows, ends, places = experts.dispatch(x, indices.int().T.contiguous().T, 6)
    expected, order = indices.flatten().sort(stable=True)
    assert torch.equal(of_rows, expected)
    assert torch.equal(rows, x[order // 3])
    assert torch.equal(places.flatten()[order], torch.arange(33))
    assert ends.tolist() == [int((expected <= expert).sum()) for expert in range(6)]


def test_what_is_no_number_stays_in_its_token() -> None:
    x, weights, indices = choose(6, 4, 2)
    router = make_router(528 - 16, 4)
    expected = pass_experts(x, weights, indices, 4, negate)
    scores = router.logits(x[:, 16:])
    x[2] = torch.nan
    out = pass_experts(x, weights, indices, 4, negate)
    assert out[2].isnan().all()
    assert router.logits(x[:, 16:])[2].isnan().all()
    others = [0, 1, 3, 4, 5]
    assert torch.equal(out[others], expected[others])
    assert torch.equal(router.logits(x[:, 16:])[others], scores[others])
